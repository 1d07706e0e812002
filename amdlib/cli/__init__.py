"""The command line: `python -m amdlib COMMAND --help`.

Text becomes values here and nowhere below; what takes seconds to load is loaded by the command that needs it.
"""
from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from amdlib.cli.parsing import COMMANDS, parser
from amdlib.errors import KitError, Stopped
from amdlib.terminal import Screen
from amdlib.words import show_log

__all__ = ['COMMANDS', 'main', 'parser', 'told']
STOPPED = os.EX_TEMPFAIL    # status of a run that goes on when it is started again

for section in ('looking', 'running', 'studies', 'bed', 'scale'):   # each adds its commands, in the help's order
    importlib.import_module(f'amdlib.cli.{section}')


def main(words: list[str] | None = None) -> int:
    """Exit status: 0, 1 for an error that is told in a line, 2 for wrong usage, 75 where a run was stopped that goes on
    when it is started again, 130 where it was interrupted."""
    given = parser().parse_args(words)
    if hasattr(sys.stdout, 'reconfigure'):    # not in tests and notebooks
        sys.stdout.reconfigure(line_buffering=True)     # what is said reaches a log at once
    return told(lambda: COMMANDS[given.command][0](given))


def told(do: Callable[[], int | None]) -> int:
    """Do it; the exit status. What is the user's to mend is told in a line."""
    show_log()
    try:
        return do() or 0
    except BrokenPipeError:     # whoever read, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KitError, OSError) as error:
        file = isinstance(error, OSError) and (error.filename2 or error.filename)   # of a renamed one the new name
        Screen(sys.stderr).say(f'error: {file}: {error.strerror}' if file else f'error: {error}')
        return STOPPED if isinstance(error, Stopped) else 1
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
