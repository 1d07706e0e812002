"""Results folders of several machines as one: what the others have made is verified and taken, and nothing that would
make a mixture. All or nothing: every reason against it is named before a file is copied."""
from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amdlib.errors import RunError
from amdlib.files import locked, whole
from amdlib.runs.record import read_record
from amdlib.runs.run import Run
from amdlib.runs.store import DETECTIONS, RECORD, SCALARS, WEIGHTS, Store, tidy, told_machine
from amdlib.runs.train import LOCK
from amdlib.show.verify import DISAGREES, verify
from amdlib.words import log, near, plural, some


@dataclass(frozen=True)
class _Made:
    """A run that is done, and where."""
    run: Run
    store: Store
    record: Mapping[str, Any]

    @property
    def where(self) -> str:
        return near(self.store.results)


def gather(others: Iterable[Path], store: Store, jobs: int = 1) -> list[Run]:
    """Take into a store the runs of other results folders that it lacks; return them.

    Args:
        jobs: processes that recompute numbers.
    Errors: RunError naming every run that does not count here (other settings, data, code or teacher), whose files are
        not what its record says, that was made in two places with different digits, and each detector and seed whose
        rows come from two kinds of machine.
    """
    store = store.with_kept(False)
    made, problems, taken = {one.run.id: one for one in _done(store)}, [], []
    for folder in others:
        source = replace(store, results=Path(folder).absolute())
        new = []
        for one in _found(source, problems):
            known = made.setdefault(one.run.id, one)
            if known is one:
                new.append(one)
            elif any(known.record.get(field) != one.record.get(field) for field in ('numbers', 'detections_sha256')):
                problems.append(f'{one.run.id}: made twice with different digits, in {known.where} '
                                f'({told_machine(known.record)}) and {one.where} ({told_machine(one.record)})')
        if new:
            problems += [f'{one.where}: {finding}' for finding in verify(source, [one.run.id for one in new], jobs=jobs)
                         if finding.state == DISAGREES]
        taken += new
    problems += [*_other_teachers(made), *_two_machines(made, taken)]
    if problems:
        raise RunError(f'nothing was taken: {plural(len(problems), "reason", "reasons")} against it\n' + '\n'.join(
            f'  {problem}' for problem in problems))
    for one in sorted(taken, key=lambda one: not one.run.row.is_teacher):   # whose students would be stale without it
        _take(one, store)
    log.info(f'{plural(len(taken), "run", "runs")} taken into {near(store.folder)}: '
             f'{some(one.run.id for one in taken) or "all were here"}')
    return [one.run for one in taken]


def _done(store: Store) -> Iterator[_Made]:
    for file in store.record_files():
        run = store.run_of(file)
        if run and (found := store.state(run)).name == 'done':
            yield _Made(run, store, found.record)


def _found(source: Store, problems: list[str]) -> Iterator[_Made]:
    """The runs of another folder that count; why others do not joins `problems`."""
    files = source.record_files()
    if not files:
        raise RunError(f'{source.folder}: no records in it; expected a results folder with runs of the profile '
                       f'{source.profile.name}')
    for file in files:
        run = source.run_of(file)
        if run is None:
            problems.append(f'{near(file)}: no record of a run that can be told from it here')
        elif (profile := read_record(file).get('profile')) != source.profile.name:
            problems.append(f'{near(file)}: made with the profile {profile}')
        elif (found := source.state(run)).name != 'done':
            problems.append(f'{run.id} in {near(source.results)} is {found}')
        else:
            yield _Made(run, source, found.record)


def _other_teachers(made: Mapping[str, _Made]) -> Iterator[str]:
    """Students that learned from other weights than those of their teacher in the whole."""
    for one in made.values():
        teacher = one.run.teacher()
        if teacher and teacher.id in made:
            known = made[teacher.id]
            if one.record['teacher']['weights_sha256'] != known.record['weights_sha256']:
                yield f'{one.run.id} in {one.where} learned from another {teacher.id} than that in {known.where}'


def _two_machines(made: Mapping[str, _Made], taken: Iterable[_Made]) -> Iterator[str]:
    """Detectors and seeds whose students, compared with each other, come from two kinds of machine."""
    for group, seed in dict.fromkeys((one.run.row.group.name, one.run.seed) for one in taken):
        machines: dict[str, list[str]] = {}
        for one in made.values():
            if (one.run.row.group.name, one.run.seed) == (group, seed) and not one.run.row.is_teacher:
                machines.setdefault(told_machine(one.record), []).append(one.run.row.name)
        if len(machines) > 1:
            yield f'{group}, seed {seed}: rows of {len(machines)} kinds of machine: ' + '; '.join(
                f'{some(sorted(set(rows)))} of {machine}' for machine, rows in machines.items())


def _take(one: _Made, store: Store) -> None:
    """Copy a run's files, its record last: where this is interrupted, the run is not done here."""
    source, folder = one.store.run_folder(one.run), store.run_folder(one.run)
    busy = RunError(f'{one.run.id}: another process is training it in {folder}')
    with locked(folder / LOCK, '', busy):
        for name in (WEIGHTS, DETECTIONS, SCALARS, RECORD):
            if (source / name).is_file():
                with whole(folder / name) as beside:
                    shutil.copyfile(source / name, beside)
        tidy(folder)
    if (found := store.state(one.run)).name != 'done':
        raise RunError(f'{one.run.id}: taken, and now {found}')
