"""Found by every Python process that has this folder on PYTHONPATH: counts what changes files below a folder, in all
processes together, and kills the process at one of these points.

TORTURE is a JSON object: folder (below which changes count), log (a line a point: number, what, path), at (the number
of the point at which to kill; 0: none), after (whether the change is made before the kill).
"""
import builtins
import fcntl
import functools
import json
import os
import signal

ASKED = json.loads(os.environ['TORTURE']) if 'TORTURE' in os.environ else None
_open = builtins.open


def reached(what, path):
    """Count a point; the number that it has."""
    with _open(ASKED['log'], 'a+') as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.seek(0)
        number = sum(1 for _ in log) + 1
        log.write(f'{number} {what} {os.path.relpath(path, ASKED["folder"])}\n')
    return number


def concerns(path):
    try:
        return os.path.abspath(os.fspath(path)).startswith(ASKED['folder'] + os.sep)
    except (TypeError, ValueError):     # a descriptor
        return False


def pointed(function, what, which=0):
    """The function, as a point at which a process can be killed."""
    @functools.wraps(function)
    def call(*words, **more):
        named = len(words) > which and isinstance(words[which], (str, os.PathLike)) and more.get('dir_fd') is None
        if not named or not concerns(words[which]):
            return function(*words, **more)
        here = reached(what, words[which]) == ASKED['at']
        if here and not ASKED['after']:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return function(*words, **more)
        finally:
            if here:
                os.kill(os.getpid(), signal.SIGKILL)
    return call


def opened(file, mode='r', *words, **more):
    """`open`: what is opened to be written is a point, before and after the file is there."""
    if any(letter in mode for letter in 'wax+') and isinstance(file, (str, os.PathLike)) and concerns(file):
        return pointed(_open, f'open {mode}')(file, mode, *words, **more)
    return _open(file, mode, *words, **more)


if ASKED:
    for name, which in (('replace', 1), ('rename', 1), ('unlink', 0), ('remove', 0), ('rmdir', 0), ('mkdir', 0)):
        setattr(os, name, pointed(getattr(os, name), name, which))
    builtins.open = opened
