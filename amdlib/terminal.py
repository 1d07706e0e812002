"""What is said, as whoever watches sees it: no wider than the terminal, coloured where it is one, progress in one line.

A line that ends in a carriage return is rewritten by the next, on a terminal and on a notebook's page. Whoever executes
a notebook receives such lines from its kernel, which cannot see the terminal, and gives them to a `Screen` of its own.
"""
from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from typing import TextIO

PAGE = 100          # columns that a line of progress may take in a notebook
LINE_EVERY_S = 20   # between two lines of progress where none can be rewritten
_CODES = {'failed': 31, 'FAILED': 31, 'error:': 31, 'done': 32, 'stale': 33, 'warning:': 33, 'running': 36}
# the word for a state: `done` is one in a column of states only, not in "3 of 7 runs are done"
_WORDS = re.compile(r'(?<![\w-])(failed|FAILED|error:|(?<=  )done|stale|warning:|running)(?![\w-])')


def in_notebook(stream: TextIO) -> bool:
    """Whether a stream leads to a notebook's page."""
    return type(stream).__module__.startswith('ipykernel')


def columns(stream: TextIO) -> int | None:
    """How wide a stream's terminal is; None where it is no terminal."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def fitted(line: str, width: int | None) -> str:
    """A line no wider than that: prose is wrapped, a table's line loses its last columns and says so by '…'."""
    if width is None or len(line) <= width:
        return line
    if line.startswith('|'):
        return line[:line.rfind('|', 0, width - 1) + 1] + '…'
    indent = line[:len(line) - len(line.lstrip())]
    return textwrap.fill(line.strip(), width, initial_indent=indent, subsequent_indent=f'{indent}  ',
                         break_long_words=False, break_on_hyphens=False)


def coloured(text: str, stream: TextIO) -> str:
    """Words that tell a state in its colour, on a terminal that shows colours and where nobody has asked for none."""
    if not stream.isatty() or os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb':
        return text
    return _WORDS.sub(lambda found: f'\033[{_CODES[found[1]]}m{found[1]}\033[0m', text)


class Screen:
    """Lines that stay, and below them one line of progress that is rewritten; into a log a line of it now and then.

    Also a file to write to, for what a kernel has said.

    Args:
        stream: where to; None: what sys.stdout is at that moment, which a notebook and a test exchange.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream, self._received = stream, ''
        self._width, self._told_s = 0, -LINE_EVERY_S    # of the progress that stands there; when a log had some

    @property
    def stream(self) -> TextIO:
        return sys.stdout if self._stream is None else self._stream

    @property
    def rewrites(self) -> bool:
        """Whether a line of progress takes the place of the last."""
        return self.stream.isatty() or in_notebook(self.stream)

    def say(self, text: object) -> None:
        """Text that stays."""
        width = columns(self.stream)
        lines = '\n'.join(fitted(line, width) for line in str(text).split('\n'))
        self.stream.write(f'{self._cleared()}{coloured(lines, self.stream)}\n')
        self.stream.flush()

    def progress(self, text: str) -> None:
        """A line of progress in the place of the last; without such a place, one at most every LINE_EVERY_S."""
        if self.rewrites:
            most = (columns(self.stream) or PAGE) - 1
            text = text if len(text) <= most else f'{text[:most - 1]}…'
            self.stream.write(f'{text.ljust(self._width)}\r')
            self.stream.flush()
            self._width = len(text)
        elif time.monotonic() - self._told_s >= LINE_EVERY_S:
            self._told_s = time.monotonic()
            self.say(text)

    def _cleared(self) -> str:
        """What takes the line of progress away."""
        width, self._width = self._width, 0
        return f'{" " * width}\r' if width else ''

    def write(self, text: str) -> None:
        """What a kernel has said, in pieces of any length."""
        *lines, self._received = (self._received + text).split('\n')
        for line in lines:
            self.say(line.rpartition('\r')[2])
        *rewritten, self._received = self._received.split('\r')
        for progress in filter(None, map(str.rstrip, rewritten)):
            self.progress(progress)

    def flush(self) -> None:
        """What was received without its end is kept until it comes."""

    def close(self) -> None:
        """The rest."""
        if self._received.strip():
            self.say(self._received)
        self._received = ''


SCREEN = Screen()
