"""Run many rows at once, each in a process of its own with its own log, port and, where there are several, GPU."""
from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from amdlib.errors import RunError
from amdlib.files import ROOT
from amdlib.runs import jobs, notebooks
from amdlib.runs.device import default_jobs
from amdlib.runs.forking import Forked, Forker
from amdlib.runs.progress import describe, quiet_s, read_progress
from amdlib.runs.run import Run, with_teachers
from amdlib.runs.store import RECORD, Store, tidy
from amdlib.terminal import SCREEN
from amdlib.words import log, minutes, number

POLL_S = 0.5
EXPERIMENT = notebooks.NOTEBOOKS / 'experiment.ipynb'
PARAMETERS = ('row', 'seed', 'settings', 'force', 'profile', 'data', 'how')     # what a batch gives that notebook


@dataclass
class _Running:
    process: subprocess.Popen | Forked
    slot: int
    log: Path
    began_s: float


def run_missing(runs: Iterable[Run], store: Store, *, force: bool = False,
                executed: Mapping[Run, Path] | None = None, check: Callable[[Run], None] | None = None,
                line_every_s: float = 20) -> None:
    """Train what has no valid record, at most `store.means.jobs` at once, a student only after its teacher.

    An interrupted run goes on from its last whole checkpoint where it can (see `train`), unless `force`. With several
    GPUs each run gets as many as its setting `gpus` says.

    Args:
        executed: runs that `notebooks/experiment.ipynb` makes, each with the file of its executed copy; a run that is
            done is only shown there, where the copy is missing or older than the record.
        check: called for each run that was made, in this process; a run for which it raises has failed.
    Errors: RunError at the end, naming all that failed; a failed run does not stop the others (its students cannot
        start).
    """
    executed, store = dict(executed or {}), store.with_kept(False)
    if executed:
        notebooks.check(EXPERIMENT, PARAMETERS)
    runs = with_teachers([*runs, *executed])
    at_once = store.means.jobs or default_jobs(store.means.device, max((run.recipe.gpus for run in runs), default=1))
    waiting = []
    for run in runs:
        found = store.state(run)
        if found.name == 'done' and not force and _is_shown(executed.get(run), run, store):
            tidy(store.run_folder(run))     # where a kill came after its record
            continue
        if found.name not in ('missing', 'done'):
            again = 'goes on where it can' if found.name == 'failed' and not force else 'is run again'
            log.info(f'{run.id} is {found}: it {again}')
        waiting.append(run)
    log.info(f'{len(runs) - len(waiting)} of {len(runs)} runs are done, {len(waiting)} to do, {at_once} at once')
    _Batch(waiting, len(runs), store, at_once, force, executed, line_every_s, check).go()


def _is_shown(notebook: Path | None, run: Run, store: Store) -> bool:
    record = store.run_folder(run) / RECORD
    return notebook is None or notebook.is_file() and notebook.stat().st_mtime >= record.stat().st_mtime


@dataclass
class _Batch:
    waiting: list[Run]
    total: int                      # runs, those that are done included
    store: Store
    at_once: int
    force: bool
    executed: dict[Run, Path]
    line_every_s: float
    check: Callable[[Run], None] | None = None

    def __post_init__(self) -> None:
        self.running: dict[Run, _Running] = {}
        self.failed: dict[Run, str] = {}
        self.began_s, self.printed_s, self.finished = time.monotonic(), time.monotonic(), 0
        self.to_do = len(self.waiting)
        images = self.store.dataset.trained_count if self.waiting else 0
        self.steps = {run: run.steps(images) for run in self.waiting}
        self.before = dict.fromkeys(self.waiting, 0.0)  # share of a run that an earlier batch made, where it goes on
        self.steps_done = 0.0
        self.forks, self.forkers = self.to_do > 1, []   # whether it forks; the last one counts

    def go(self) -> None:
        try:
            while self.waiting or self.running:
                self._start_ready()
                time.sleep(POLL_S)
                self._reap()
                self._print_progress()
        finally:  # an interrupt takes the children along
            for child in self.running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGTERM)
            for forker in self.forkers:
                forker.close()
        if self.failed:
            raise RunError(f'{len(self.failed)} of {self.to_do} runs failed:\n' + '\n'.join(
                f'  {run.id}: {why}' for run, why in self.failed.items()))

    def _start_ready(self) -> None:
        for run in list(self.waiting):
            teacher = run.teacher()
            if teacher in self.failed:
                self.waiting.remove(run)
                self.failed[run] = f'its teacher {teacher.id} failed'
            elif len(self.running) < self.at_once and teacher not in self.waiting and teacher not in self.running:
                self.waiting.remove(run)
                self._start(run)

    def _start(self, run: Run) -> None:
        slot = min(set(range(self.at_once)) - {child.slot for child in self.running.values()})
        folder, notebook = self.store.run_folder(run), self.executed.get(run)
        told = read_progress(folder)
        if told.get('phase') in ('train', 'stopped') and not self.force:
            self.before[run] = told['step'] / max(1, told['steps'])
        if notebook:
            job = jobs.of_notebook(EXPERIMENT, notebook, {
                'row': run.row.reference, 'seed': run.seed, 'settings': run.settings, 'force': self.force,
                **self.store.parameters()}, self.store.means.device)
        else:
            job = jobs.of_run(run, self.store, self.force)
        command = [*jobs.write(job, folder), '--ends-with-stdin']
        console = notebook.with_suffix('.log') if notebook else folder / 'console.log'
        console.parent.mkdir(parents=True, exist_ok=True)
        environment = self._environment(slot, run.recipe.gpus)
        process = None if notebook or run.recipe.gpus > 1 else self._forked(command, console, environment)
        if process is None:
            with open(console, 'w') as out:
                # a pipe into which nothing is written: where it ends, this process was killed (engine.processes)
                process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.PIPE,
                                           env=environment, start_new_session=True, cwd=ROOT)
        self.running[run] = _Running(process, slot, console, time.monotonic())

    def _forked(self, command: list[str], console: Path, environment: dict[str, str]) -> Forked | None:
        """The command as a fork of a process that has imported what it needs; None where a process of its own is
        better: on a GPU, for a run alone, and where none can be forked."""
        if not self.forks or self.store.means.device != 'cpu' and torch.cuda.device_count():
            return None
        if not self.forkers or not self.forkers[-1].is_of_now():
            self.forkers.append(Forker(environment))
        try:
            return self.forkers[-1].start(command[command.index('amdlib') + 1:], console, environment)
        except RunError:
            self.forks = False
            return None

    def _environment(self, slot: int, gpus: int = 1) -> dict[str, str]:
        threads = max(1, len(os.sched_getaffinity(0)) // (self.at_once * gpus))
        env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'PYTHONUNBUFFERED': '1', 'MASTER_PORT': str(_free_port())}
        if self.store.means.device in (None, 'cuda') and torch.cuda.device_count() > 1:
            visible = os.environ.get('CUDA_VISIBLE_DEVICES')
            cards = visible.split(',') if visible else [str(i) for i in range(torch.cuda.device_count())]
            own = dict.fromkeys(cards[(slot * gpus + i) % len(cards)] for i in range(gpus))  # too few: the run says so
            env['CUDA_VISIBLE_DEVICES'] = ','.join(own)
        return env

    def _reap(self) -> None:
        for run, child in list(self.running.items()):
            if child.process.poll() is None:
                continue
            del self.running[run]
            if isinstance(child.process, subprocess.Popen):
                child.process.stdin.close()
            self.finished += 1
            self.steps_done += self.steps[run] * (1 - self.before[run])
            found = self.store.state(run)
            if child.process.returncode == 0 and found.name == 'done':
                log.info(f'[{self._done()}] {run.id}: {number(found.record["numbers"]["mAP"])} mAP in '
                         f'{minutes(found.record["wall_s"])}')
                self._check(run)
            else:
                self.failed[run] = (f'exit {child.process.returncode}, {found.name} ({found.why}); log: {child.log}'
                                    f'{_said_last(child.log)}')
            if run in self.failed:
                log.info(f'[{self._done()}] {run.id}: FAILED, {self.failed[run]}')

    def _check(self, run: Run) -> None:
        if self.check is None:
            return
        try:
            self.check(run)
        except Exception as error:  # whatever it is, the other runs go on
            self.failed[run] = f'{type(error).__name__}: {error}'

    def _done(self) -> str:
        return f'{self.total - self.to_do + self.finished}/{self.total}'

    def _print_progress(self) -> None:
        every_s = min(1.0, self.line_every_s) if SCREEN.rewrites else self.line_every_s
        if time.monotonic() - self.printed_s < every_s or not self.running:
            return
        self.printed_s, parts, steps = time.monotonic(), [], self.steps_done
        for run, child in self.running.items():
            told = read_progress(self.store.run_folder(run))
            if not told or quiet_s(told) > self.printed_s - child.began_s + 1:  # what an earlier process has left
                parts.append(f'{run.id} starting')
                continue
            phase, step, of = told['phase'], told['step'], max(1, told['steps'])
            if phase in ('train', 'test', 'done'):
                share = step / of if phase == 'train' else 1.0
                self.before[run] = min(self.before[run], share)     # it began anew
                steps += self.steps[run] * (share - self.before[run])
            in_full = describe(run.id, phase, step, told['steps'], told.get('s_per_step'), told.get('left_s'),
                               quiet_s(told))
            short = SCREEN.rewrites and 'no step' not in in_full
            parts.append(f'{run.id} {phase} {step / of:.0%}' if short else in_full)
        elapsed_s, share = self.printed_s - self.began_s, steps / max(1, sum(
            count * (1 - self.before[run]) for run, count in self.steps.items()))
        left = f', about {minutes(elapsed_s * (1 / share - 1))} left in all' if 0.02 < share < 1 else ''
        text = f'[{self._done()}] {minutes(elapsed_s)}{left}  ' + ' | '.join(parts)
        (SCREEN.progress if SCREEN.rewrites else log.info)(text)


def _said_last(log_file: Path) -> str:
    """The error with which a log ends, for a line that names the log; '' where there is none."""
    with contextlib.suppress(OSError):
        lines = log_file.read_bytes()[-4000:].decode(errors='replace').split('\n')
        if told := [line.strip() for line in lines if line.startswith('error: ')]:
            return f': {told[-1][:300]}'
    return ''


def _free_port() -> int:
    """A port that nobody listens on, for the processes of one distributed run."""
    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]
