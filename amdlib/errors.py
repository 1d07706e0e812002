"""The kit's own errors: what the command line tells in one line, without a traceback."""
from __future__ import annotations

from collections.abc import Sequence

SHOWN_PROBLEMS = 20


class KitError(Exception):
    """Something outside the kit is not as it must be; the message says what, and what to do about it."""


class SettingError(KitError, ValueError):
    """An unknown row, profile or setting, or a value that does not fit; the message lists what is known."""


class DataError(KitError, ValueError):
    """A data set that cannot be used. `problems` lists all reasons; the message shows 20 and counts the rest."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        lines = self.problems[:SHOWN_PROBLEMS]
        if len(self.problems) > len(lines):
            lines.append(f'... and {len(self.problems) - len(lines)} more')
        super().__init__('\n'.join(lines))


class ImageError(DataError):
    """An image that cannot be read; it may be left out where that is asked for."""


class WeightsError(KitError, ValueError):
    """A weight file cannot be had or read, or does not fit the model; the message says why."""


class RunError(KitError, RuntimeError):
    """Runs or notebooks that cannot start, failed or have no valid record; the message names each with the reason."""


class Stopped(RunError):
    """A scheduler asked a run to stop; it left a whole checkpoint and goes on when it is started again."""
