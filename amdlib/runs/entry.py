"""What an entry of a scheduler's queue does: train one run, and end where it is told to."""
from __future__ import annotations

import os
import signal
from pathlib import Path

from amdlib.errors import RunError, Stopped
from amdlib.files import locked, write_json
from amdlib.runs import slurm
from amdlib.runs.run import Run
from amdlib.runs.signals import listening
from amdlib.runs.store import Store
from amdlib.words import log


def train_queued(run: Run, store: Store) -> None:
    """Train a run that no other entry has, once its teacher is there. SIGTERM and SIGUSR1 end it after a step, with a
    whole checkpoint.

    Slurm sends SIGUSR1 before a time limit: then the entry is queued again. After a SIGTERM it is not: it was
    cancelled, or Slurm itself queues what it has preempted.
    Errors: Stopped; RunError where the teacher is missing; whatever training raises.
    """
    folder, teacher = store.run_folder(run), run.teacher()
    with listening(folder) as came:     # before what takes seconds to load
        if not _claim(folder):
            return
        if teacher and (found := store.state(teacher)).name not in ('done', 'running'):
            raise RunError(f'{run.id}: its teacher {teacher.id} is {found}')
        from amdlib.runs.train import train
        try:
            train(run, store, wait=True)
        except Stopped:
            if signal.SIGUSR1 in came:
                _requeue()
            raise


def _claim(folder: Path) -> bool:
    """Have this entry train the run of this folder; False, said, where another one has it that waits or runs.

    Outside of Slurm it is always so.
    """
    if not (own := _own_job()):
        return True
    with locked(folder / '.slurm.lock', 'waiting for another entry'):
        claim = slurm.read_claim(folder)
        other = claim.get('job', own)
        if other != own and other in slurm.ask([other]):
            log.info(f'entry {other} has this run: nothing is to do for {own}')
            return False
        write_json(folder / slurm.CLAIM, {**(claim if other == own else {}), 'job': own})
    return True


def _requeue() -> None:
    """Have Slurm queue this entry again; where it cannot, that is said."""
    if own := _own_job():
        try:
            slurm.call(['scontrol', 'requeue', own])
            log.info(f'entry {own} is queued again')
        except RunError as error:
            log.info(f'entry {own} is not queued again: {error}')


def _own_job() -> str:
    """The entry that this process is, such as 12_3, or a job such as 12; '' outside of Slurm."""
    array, task = (os.environ.get(f'SLURM_ARRAY_{name}_ID') for name in ('JOB', 'TASK'))
    return f'{array}_{task}' if array and task else os.environ.get('SLURM_JOB_ID', '')
