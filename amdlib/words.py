"""What is said while something runs, and how times, counts and lists read."""
from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from amdlib.terminal import SCREEN, Screen

log = logging.getLogger('amdlib')


class _Shown(logging.Handler):
    """Says what is logged on a screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.screen.say(record.getMessage())
        except BrokenPipeError:     # whoever read has seen enough
            raise
        except Exception:           # as every handler: what cannot be said stops nothing
            self.handleError(record)


def show_log(stream: TextIO | None = None) -> None:
    """Print what the kit says, as plain lines; on standard output unless `stream` is given. The last call counts."""
    log.handlers[:] = [_Shown(SCREEN if stream is None else Screen(stream))]
    log.setLevel(logging.INFO)
    log.propagate = False


def hours(seconds: float) -> str:
    """About how long: `2 min`, `3.5 h`."""
    return f'{max(1, round(seconds / 60))} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


def minutes(seconds: float) -> str:
    """`1:40`, `2:03:20`."""
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix('0:').removeprefix('0') if text.startswith('0:') else text


def timestamp() -> str:
    """Now, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def near(path: Path) -> str:
    """A path as it is written from the working folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def number(value: float | None, form: str = '.1f') -> str:
    """A number for reading; an en dash where there is none."""
    return '–' if value is None or value != value else format(value, form)


def plural(count: int, one: str, many: str) -> str:
    """`1 box`, `2 boxes`."""
    return f'{count} {one if count == 1 else many}'


def some(values: Iterable, separator: str = ', ', limit: int = 5) -> str:
    """The first of many, and how many more there are."""
    texts = [str(value) for value in values]
    more = [f'and {len(texts) - limit} more'] if len(texts) > limit else []
    return separator.join(texts[:limit] + more)
