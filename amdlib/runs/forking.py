"""Children of a batch that need not import: one process imports what trains, once, and forks them.

It has neither thread nor GPU, so that a child begins where a fresh process is after its imports.
"""
from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amdlib.errors import RunError
from amdlib.files import ROOT, read_json
from amdlib.runs import fingerprints
from amdlib.runs.originals import get_config
from amdlib.runs.run import Run


class Forker:
    """Starts commands of the kit as forks of one process. Not for a GPU: what CUDA has begun survives no fork.

    Args:
        env: of that process; what libraries read when they are loaded, such as OMP_NUM_THREADS, is its children's too.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self.began_ns = time.time_ns()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # nothing is written into stdin, which children have too: it ends with this process (engine.processes)
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'amdlib.runs.forking', str(theirs.fileno())], pass_fds=[theirs.fileno()],
                env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, cwd=ROOT)
            self.lines = ours.makefile('rw')

    def is_of_now(self) -> bool:
        """Whether it lives, and has imported the code of the kit as it is now."""
        return self.process.poll() is None and all(
            file.stat().st_mtime_ns < self.began_ns for file in (ROOT / 'amdlib').rglob('*.py'))

    def start(self, words: list[str], console: Path, env: Mapping[str, str]) -> Forked:
        """`python -m amdlib WORDS`, what it says in the file `console`. Errors: RunError where the process is gone."""
        return Forked(self, self.ask(words=words, console=str(console), env=dict(env)))

    def ask(self, **what: Any) -> Any:
        """One question and its answer."""
        try:
            print(json.dumps(what), file=self.lines, flush=True)
            return json.loads(self.lines.readline())
        except (OSError, ValueError) as error:
            raise RunError(f'the process that starts others is gone ({type(error).__name__})') from None

    def close(self) -> None:
        """End it, and what it has started."""
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


class Forked:
    """A child, as `subprocess.Popen` shows one."""

    def __init__(self, forker: Forker, pid: int) -> None:
        self.forker, self.pid = forker, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self.forker.ask(pid=self.pid)
            except RunError:    # nobody can tell any more how it ends
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGTERM)
                self.returncode = 1
        return self.returncode


def load() -> None:
    """Import what a child would."""
    import mmdet.utils

    import amdlib.runs.train  # noqa: F401
    mmdet.utils.register_all_modules(init_default_scope=False)


def serve(connection: int) -> dict[str, Any] | None:
    """Answer until the other end is closed: None. In every child: what it is to do."""
    load()
    gc.freeze()     # or a child's first collection would copy all pages
    with socket.socket(fileno=connection) as own, own.makefile('rw') as lines:
        for line in lines:
            asked = json.loads(line)
            if 'pid' in asked:
                pid, status = os.waitpid(asked['pid'], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            else:
                with contextlib.suppress(Exception):    # the child tells it
                    _read_ahead(asked['words'])
                if not (answer := os.fork()):
                    return asked
            print(json.dumps(answer), file=lines, flush=True)
    return None


def _read_ahead(words: list[str]) -> None:
    """What the next children would read and parse again too: the kit's code and mmdet's configs, both remembered."""
    run = Run.from_dict(read_json(words[words.index('job') + 1])['run'])
    fingerprints.code_fingerprint(run)      # by each file's time
    for name in (run.row.group.student_config, run.row.group.teacher_config):
        if '::' in name:                    # one of the user's may change meanwhile
            get_config(name)


def become(asked: dict[str, Any]) -> None:
    """Do in this child what it is asked for, as a process of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(asked['env'])
    with open(asked['console'], 'w') as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    sys.argv = ['amdlib', *asked['words']]
    runpy.run_module('amdlib', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    if (asked := serve(int(sys.argv[1]))) is not None:
        become(asked)
