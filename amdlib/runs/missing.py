"""The table of missing runs: of each the command that makes it and what a scheduler asks of it. The local pool
(`batch`) aside, every engine starts from here: Slurm (`slurm`) and, by `jobs --json`, any other."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amdlib import methods
from amdlib.files import ROOT
from amdlib.runs import jobs
from amdlib.runs.run import Run, with_teachers
from amdlib.runs.store import DETECTIONS, RECORD, WEIGHTS, State, Store
from amdlib.runs.times import Takes, expected
from amdlib.words import hours, number

GIB = 2 ** 30


@dataclass(frozen=True)
class Entry:
    """One run that is missing, failed or stale."""
    run: Run
    state: State
    command: tuple[str, ...]    # to be called in the kit's folder
    inputs: tuple[Path, ...]    # files and folders that it reads
    outputs: tuple[Path, ...]
    takes: Takes
    after: Run | None = None    # its teacher, where that is missing too

    def to_dict(self) -> dict[str, Any]:
        """Plain values. `hours` and memory are null where no record tells of them."""
        def gib(size: int | None) -> float | None:
            return None if size is None else round(size / GIB, 2)
        return {'run': self.run.id, 'state': str(self.state), 'after': self.after and self.after.id,
                'command': list(self.command), 'folder': str(ROOT), 'inputs': list(map(str, self.inputs)),
                'outputs': list(map(str, self.outputs)), 'gpus': self.run.recipe.gpus,
                'memory_gib': gib(self.takes.memory_bytes), 'gpu_memory_gib': gib(self.takes.gpu_memory_bytes),
                'hours': self.takes.wall_s and round(self.takes.wall_s / 3600, 3)}


def missing(runs: Iterable[Run], store: Store) -> list[Entry]:
    """The runs, and the teachers that they need, of which no valid record is there and that nobody trains now; teachers
    first. The job file of each is written into its folder.
    """
    store = store.with_kept(False)
    states = {run: store.state(run) for run in with_teachers(runs)}
    wanted = [run for run, found in states.items() if found.name not in ('running', 'done')]
    takes = expected(wanted, store)
    return [Entry(run, states[run],
                  tuple([*jobs.write(jobs.of_run(run, store, force=False), store.run_folder(run)), '--queued']),
                  _inputs(run, store), tuple(store.run_folder(run) / name for name in (RECORD, WEIGHTS, DETECTIONS)),
                  takes[run], run.teacher() if run.teacher() in wanted else None) for run in wanted]


def _inputs(run: Run, store: Store) -> tuple[Path, ...]:
    """Data, weight files that lie somewhere by now, the teacher's record and weights, a loss from outside."""
    data, teacher = store.dataset, run.teacher()
    found = [data.train_ann, data.train_images, store.reported(run),
             data.test_images if run.recipe.split == 'test' else data.val_images]
    found += [Path(path) for path in run.recipe.files().values()]
    found += [ROOT / address for address in run.published_files().values() if '://' not in address]
    found += [store.run_folder(teacher) / name for name in (RECORD, WEIGHTS)] if teacher else []
    found += [methods.method_file(run.row.method)] if run.row.method and methods.is_outside(run.row.method) else []
    return tuple(found)


def readable(entries: Iterable[Entry]) -> str:
    """A line a run: its state, how long it takes and with how much memory, and after what."""
    entries = list(entries)
    width = max((len(one.run.id) for one in entries), default=0)
    lines = []
    for one in entries:
        size = one.takes.memory_bytes
        needs = [hours(one.takes.wall_s) if one.takes.wall_s is not None else 'no run to tell the time from',
                 *([f'{number(size / GIB)} GiB'] if size else []), *([f'after {one.after.id}'] if one.after else [])]
        lines.append(f'{one.run.id:{width}}  {one.state.name:8} {", ".join(needs)}')
    return '\n'.join(lines) or 'nothing is missing'
