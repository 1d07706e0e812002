"""What is said while something runs, and how times, counts and lists read."""
from __future__ import annotations

import datetime
import logging
import sys
from collections.abc import Iterable

log = logging.getLogger('amdlib')


class _Standard(logging.StreamHandler):
    """Writes to what sys.stdout is at that moment: a notebook and a test exchange it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stdout


def show_log(stream=None) -> None:
    """Print what the kit says, as plain lines; on standard output unless `stream` is given. The last call counts."""
    handler = _Standard() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter('%(message)s'))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def minutes(seconds: float) -> str:
    """`1:40`, `2:03:20`."""
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix('0:').removeprefix('0') if text.startswith('0:') else text


def timestamp() -> str:
    """Now, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


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
