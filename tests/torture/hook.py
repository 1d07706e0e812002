"""Count what changes files below a folder, in all processes together, and do harm at one of these points.

What is asked: folder (below which changes count), log (a line a point: number, what, path), at (the number of the
point; 0: none), after (whether the change is made before the harm), how:

| how | harm |
| --- | --- |
| `SIGKILL`, `SIGTERM`, `SIGINT` | the signal, to this process |
| `parent` | SIGKILL to the process that started this one; to this one where that is `top`, the call itself |
| `full` | from here on nothing more can be written: the disk is full |
| `remove PATH` | a folder below `folder` is gone |
"""
import builtins
import errno
import fcntl
import functools
import io
import os
import shutil
import signal
import time

_open, _os_open = builtins.open, os.open
ASKED = {}
FULL = []       # whether the disk is full by now
CHANGES = (('replace', 1), ('rename', 1), ('unlink', 0), ('remove', 0), ('rmdir', 0), ('mkdir', 0))
WRITES = ('mkdir', 'replace', 'rename')


def install(asked):
    """Make every change of a file below `asked['folder']` a point, in this process and those that it starts."""
    ASKED.update(asked)
    for name, which in CHANGES:
        setattr(os, name, pointed(getattr(os, name), name, which))
    builtins.open = io.open = opened
    os.open = low_level_opened


def reached(what, path):
    """Count a point; the number that it has."""
    with _open(ASKED['log'], 'a+') as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.seek(0)
        number = sum(1 for _ in log) + 1
        log.write(f'{number} {what} {os.path.relpath(path, ASKED["folder"])}\n')
    return number


def place(path, dir_fd=None):
    """The absolute path that is meant, where it lies below the folder; '' where it does not, or is a descriptor."""
    if not isinstance(path, (str, os.PathLike)):
        return ''
    within = os.getcwd() if dir_fd is None else os.readlink(f'/proc/self/fd/{dir_fd}')
    meant = os.path.normpath(os.path.join(within, path))
    return meant if meant.startswith(ASKED['folder'] + os.sep) else ''


def harm():
    how, _, path = ASKED['how'].partition(' ')
    if how == 'full':
        FULL.append(True)
    elif how == 'remove':
        shutil.rmtree(os.path.join(ASKED['folder'], path), ignore_errors=True)
    elif how == 'parent':
        os.kill(os.getpid() if os.getpid() == ASKED['top'] else os.getppid(), signal.SIGKILL)
        time.sleep(1)
    else:
        os.kill(os.getpid(), getattr(signal, how))


def pointed(function, what, which=0):
    """The function, as a point at which harm can be done."""
    @functools.wraps(function)
    def call(*words, **more):
        path = place(words[which], more.get('dir_fd')) if len(words) > which else ''
        if not path:
            return function(*words, **more)
        here = reached(what, path) == ASKED['at']
        if here and not ASKED['after']:
            harm()
        if FULL and what.split()[0] in (*WRITES, 'open'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        try:
            return function(*words, **more)
        finally:
            if here and ASKED['after']:
                harm()
    return call


def opened(file, mode='r', *words, **more):
    """`open`: what is opened to be written is a point, before and after the file is there."""
    writes = any(letter in mode for letter in 'wax+')
    return (pointed(_open, f'open {mode}') if writes else _open)(file, mode, *words, **more)


def low_level_opened(path, flags, *words, **more):
    """`os.open`, as locks are: likewise where a file is made."""
    return (pointed(_os_open, 'create') if flags & os.O_CREAT else _os_open)(path, flags, *words, **more)
