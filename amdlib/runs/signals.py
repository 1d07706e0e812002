"""A scheduler tells a run by a signal that it is to stop; the signal leaves a file, for which `stopping` looks."""
from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ASKED = 'stop'      # in the run's folder: whoever makes this file has the run stop
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_listening: list[Path] = []


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[list[int]]:
    """Signals ask the run in this folder to stop while the block runs; gives those that came."""
    came, file = [], folder / ASKED
    file.unlink(missing_ok=True)    # of an earlier life
    before = listen(file, came)
    _listening.append(file)
    try:
        yield came
    finally:
        _listening.remove(file)
        for number, handler in before.items():
            signal.signal(number, handler)
        file.unlink(missing_ok=True)


def listen(file: Path, came: list[int]) -> dict[int, Any]:
    """Have signals make the file and join `came`; the handlers that were there."""
    def ask(number: int, _frame: Any) -> None:
        came.append(number)
        with contextlib.suppress(OSError):      # the folder is gone or full: the kill that follows is survived too
            file.touch()
    return {number: signal.signal(number, ask) for number in SIGNALS}


def is_heard(file: Path) -> bool:
    """Whether signals to this process make that file."""
    return file in _listening
