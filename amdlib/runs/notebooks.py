"""Execute a notebook by papermill, with its parameters checked before anything starts."""
from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import papermill
from jupyter_client import AsyncKernelManager
from nbclient.exceptions import DeadKernelError

from amdlib.errors import RunError
from amdlib.files import ROOT, whole
from amdlib.terminal import Screen

NOTEBOOKS = ROOT / 'notebooks'
ENDS_WITHIN_S = 10      # a cell that is interrupted


class _Kernel(AsyncKernelManager):
    """A kernel that is interrupted at its end only where a cell still runs, and may then end it.

    jupyter_client's own interrupts each one and asks it to leave at once: an idle one that still sends its last reply
    says "KeyboardInterrupt caught in kernel", and a busy one loses the sockets for its reply and says so at length.
    """

    async def _async_interrupt_kernel(self) -> None:
        if self.shutting_down and sys.exception() is None:  # every cell has ended
            return
        if self.shutting_down:
            waiting = asyncio.all_tasks() - {asyncio.current_task()}    # nbclient's, for the cell's reply
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await super()._async_interrupt_kernel()
        if self.shutting_down:
            client = self.client()
            client.start_channels()
            with contextlib.suppress(RuntimeError):     # it does not answer, and is killed
                await client.wait_for_ready(timeout=ENDS_WITHIN_S)
            client.stop_channels()

    interrupt_kernel = _async_interrupt_kernel


def check(notebook: Path, names: Iterable[str]) -> dict[str, dict]:
    """The notebook's parameters as papermill describes them; RunError where it lacks one of `names`."""
    if not notebook.is_file():
        known = ', '.join(sorted(path.stem for path in notebook.parent.glob('*.ipynb')))
        raise RunError(f'no notebook {notebook.stem!r}; there are: {known}')
    known = papermill.inspect_notebook(str(notebook))
    if unknown := [name for name in names if name not in known]:
        raise RunError(f'{notebook.stem} has no parameter {", ".join(map(repr, unknown))}; it has: {", ".join(known)}')
    return known


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> Path:
    """Execute `notebook` into `output`, its output also on the terminal as it appears.

    An execution that is interrupted or killed leaves nothing in the folder of `output`.
    Args:
        parameters: values; None keeps the notebook's default.
    Errors: RunError for a notebook that does not exist, a parameter that it does not have, or a cell that fails (what
        was executed is in `<output>.failed.ipynb`); KeyboardInterrupt.
    """
    check(notebook, parameters)
    given = {name: value for name, value in parameters.items() if value is not None}
    output.parent.mkdir(parents=True, exist_ok=True)
    failed = output.with_name(f'{output.stem}.failed.ipynb')
    failed.unlink(missing_ok=True)
    screen = Screen()
    with tempfile.TemporaryDirectory() as folder:   # a failed execution must not pass for the result
        executed = Path(folder) / output.name
        try:
            papermill.execute_notebook(str(notebook), str(executed), parameters=given, progress_bar=False,
                                       stdout_file=screen, stderr_file=sys.stderr, kernel_manager_class=_Kernel,
                                       coalesce_streams=True,   # of a line that was rewritten, the last is stored
                                       extra_arguments=['--IPKernelApp.log_level=ERROR'], cwd=str(notebook.parent))
        except papermill.PapermillExecutionError as error:
            _copy(executed, failed)
            if error.ename == 'KeyboardInterrupt':      # somebody interrupted the kernel alone
                raise KeyboardInterrupt from None
            raise RunError(f'cell [{error.exec_count}] of {notebook.name} failed with {error.ename}: {error.evalue}\n'
                           f'executed so far: {failed}') from None
        except DeadKernelError:
            _copy(executed, failed)
            raise RunError(f'the kernel of {notebook.name} died (killed, or out of memory?)\n'
                           f'executed so far: {failed}') from None
        finally:
            screen.close()
        _copy(executed, output)
    return output


def _copy(executed: Path, path: Path) -> None:
    with whole(path) as beside:
        shutil.copyfile(executed, beside)
