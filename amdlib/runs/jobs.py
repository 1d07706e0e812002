"""Job files: JSON that tells another process what to do; no words, no environment."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from amdlib.errors import RunError
from amdlib.files import read_json, write_json
from amdlib.runs import notebooks
from amdlib.runs.device import choose_device
from amdlib.runs.run import Run
from amdlib.runs.store import Store

FILE = 'job.json'


def of_run(run: Run, store: Store, force: bool) -> dict[str, Any]:
    """Train this run."""
    return {'do': 'run', 'run': run.to_dict(), 'store': store.to_dict(), 'force': force}


def of_notebook(notebook: Path, output: Path, parameters: dict[str, Any], device: str | None) -> dict[str, Any]:
    """Execute this notebook into `output`."""
    return {'do': 'notebook', 'notebook': str(notebook), 'output': str(output), 'parameters': parameters,
            'device': device}


def write(job: dict[str, Any], folder: Path) -> list[str]:
    """Write `job.json` into a folder; return the command that executes it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, job)
    return [sys.executable, '-m', 'amdlib', 'job', str(folder / FILE)]


def execute(file: Path, ends_with_stdin: bool = False, queued: bool = False) -> None:
    """Do what a job file says.

    Args:
        ends_with_stdin: end this process when its standard input does, with the process that holds the other end.
        queued: it is an entry of a scheduler's queue, see `entry`.
    Errors: RunError for a file that is none; whatever the job raises.
    """
    if ends_with_stdin:
        from amdlib.engine.processes import end_with
        end_with(sys.stdin.fileno())
    try:
        job = read_json(file)
        kind = job['do']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f'{file}: no job file ({type(error).__name__}: {error})') from None
    if kind == 'notebook':
        choose_device(job['device'])
        notebooks.execute(Path(job['notebook']), Path(job['output']), job['parameters'])
    elif kind == 'run':
        run, store = Run.from_dict(job['run']), Store.from_dict(job['store'])
        choose_device(store.means.device)
        if queued:
            from amdlib.runs.entry import train_queued
            train_queued(run, store)
        else:
            from amdlib.runs.train import train
            train(run, store, force=job['force'])
    else:
        raise RunError(f'{file}: do={kind!r}: expected run or notebook')
