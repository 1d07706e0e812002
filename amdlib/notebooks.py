"""Execute a notebook by papermill, with its parameters checked before anything starts."""
from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError

from amdlib import KitError


class NotebookError(KitError, ValueError):
    """An unknown notebook or parameter, or a notebook that failed; the message says which cell."""


def check(notebook: Path, names: Iterable[str]) -> dict[str, dict]:
    """The notebook's parameters as papermill describes them; NotebookError where it lacks one of `names`."""
    if not notebook.is_file():
        known = ', '.join(sorted(path.stem for path in notebook.parent.glob('*.ipynb')))
        raise NotebookError(f'no notebook {notebook.stem!r}; there are: {known}')
    known = papermill.inspect_notebook(str(notebook))
    if unknown := [name for name in names if name not in known]:
        raise NotebookError(f'{notebook.stem} has no parameter {", ".join(map(repr, unknown))}; it has: '
                            f'{", ".join(known)}')
    return known


def execute(notebook: Path, output: Path, parameters: dict) -> Path:
    """Execute `notebook` into `output`, its output also on the terminal as it appears.

    Args:
        parameters: values or, as from a command line, their text; None and '' keep the notebook's default.
    Errors: NotebookError for a notebook that does not exist, a parameter that it does not have, or a cell that fails
        (what was executed is in `<output>.failed.ipynb`).
    """
    known = check(notebook, parameters)
    given = {name: _literal(value, known[name]['default']) for name, value in parameters.items()
             if value not in (None, '')}
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f'.{output.name}')  # a failed execution must not pass for the result
    failed = output.with_name(f'{output.stem}.failed.ipynb')
    failed.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(str(notebook), str(beside), parameters=given, progress_bar=False,
                                   stdout_file=sys.stdout, stderr_file=sys.stderr,
                                   extra_arguments=['--IPKernelApp.log_level=ERROR'],
                                   cwd=str(notebook.parent))
        beside.replace(output)
    except papermill.PapermillExecutionError as error:
        beside.replace(failed)
        raise NotebookError(f'cell [{error.exec_count}] of {notebook.name} failed with {error.ename}: {error.evalue}\n'
                            f'executed so far: {failed}') from None
    except DeadKernelError:
        beside.replace(failed)
        raise NotebookError(f'the kernel of {notebook.name} died (killed, or out of memory?)\n'
                            f'executed so far: {failed}') from None
    finally:
        beside.unlink(missing_ok=True)  # of an interrupted execution
    return output


def _literal(value, default: str):
    """Text from a command line as the kind of value that the notebook's default is."""
    if not isinstance(value, str) or isinstance(ast.literal_eval(default), str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
