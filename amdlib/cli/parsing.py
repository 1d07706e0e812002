"""Commands and their parser: a function a command, its arguments above it, its docstring the help."""
from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable

from amdlib.cli.arguments import Words

COMMANDS: dict[str, tuple[Callable[[Words], int | None], tuple]] = {}


def parser() -> argparse.ArgumentParser:
    """Of all commands."""
    whole = argparse.ArgumentParser(prog='python -m amdlib', description='The AMD kit (arXiv 2301.13538).')
    commands = whole.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, (do, arguments) in COMMANDS.items():
        text = ' '.join(inspect.cleandoc(do.__doc__).split())
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for flags, options in arguments:
            one.add_argument(*flags, **options)
    return whole


def command(*arguments: tuple) -> Callable:
    """Make a function a command of its name; its docstring is the help."""
    def add(do: Callable[[Words], int | None]) -> Callable[[Words], int | None]:
        COMMANDS[do.__name__.rstrip('_')] = do, arguments
        return do
    return add
