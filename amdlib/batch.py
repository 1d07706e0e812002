"""Run many rows at once, each in a process of its own with its own log, port and, where there are several, GPU."""
from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from amdlib import KitError, notebooks, results, zoo
from amdlib.data import Dataset
from amdlib.experiments import Run, write_settings
from amdlib.train import describe, minutes

POLL_S = 0.5
EXPERIMENT = results.ROOT / 'notebooks' / 'experiment.ipynb'
_PARAMETERS = ('row', 'seed', 'settings', 'force')  # what a batch gives that notebook


class BatchError(KitError, RuntimeError):
    """Some runs failed; the message names each with its log."""


@dataclass
class _Running:
    process: subprocess.Popen
    slot: int
    log: Path


def default_jobs(device: str | None = None, gpus: int = 1) -> int:
    """As many runs as there are GPUs for, of which each takes `gpus`; without a GPU one a core, up to four: small
    networks use a second core badly."""
    import torch
    if device and device.startswith('cuda:'):
        return 1
    places = (device != 'cpu' and torch.cuda.device_count()) or max(1, min(4, len(os.sched_getaffinity(0))))
    return max(1, places // gpus)


def with_teachers(runs: Iterable[Run]) -> list[Run]:
    """The runs and the teachers that they need, each once, teachers first."""
    runs = list(dict.fromkeys(runs))
    teachers = dict.fromkeys(teacher for run in runs if (teacher := run.teacher()))
    return [*teachers, *(run for run in runs if run not in teachers)]


def run_missing(runs: Iterable[Run], dataset: Dataset, data: str | Path | None = None, *, jobs: int | None = None,
                force: bool = False, device: str | None = None, workers: int | None = None,
                results_dir: Path = results.ROOT / 'results', executed: Mapping[Run, Path] | None = None,
                check: Callable[[Run], None] | None = None, line_every_s: float = 20, say=print) -> None:
    """Train what has no valid record, at most `jobs` at once, a student only after its teacher.

    An interrupted run goes on from its last whole checkpoint where it can (see train.run_row), unless `force`.
    With several GPUs each run gets as many as its setting `gpus` says.

    Args:
        workers: processes that load pictures, a GPU.
        executed: runs that `notebooks/experiment.ipynb` makes, each with the place of its executed copy; a run that is
            done is only shown there, where the copy is missing or older than the record.
        check: called for each run that was made, in this process; a run for which it raises has failed.
    A failed run does not stop the others (its students cannot start); BatchError names all that failed at the end.
    """
    executed = dict(executed or {})
    notebooks.check(EXPERIMENT, _PARAMETERS)
    runs = with_teachers([*runs, *executed])
    jobs = jobs or default_jobs(device, max((run.setting('gpus') for run in runs), default=1))
    waiting = []
    for run in runs:
        found = results.state(run, dataset, results_dir)
        if found.name == 'done' and not force and _is_shown(executed.get(run), run, dataset, results_dir):
            continue
        if found.name not in ('missing', 'done'):
            again = 'goes on where it can' if found.name == 'failed' and not force else 'is run again'
            say(f'{run.id} is {found.name} ({found.why}): it {again}')
        waiting.append(run)
    say(f'{len(runs) - len(waiting)} of {len(runs)} runs are done, {len(waiting)} to do, {jobs} at once')
    _Batch(waiting, len(runs), dataset, data, jobs, force, device, Path(results_dir), executed, line_every_s, say,
           workers, check).go()


def _is_shown(notebook: Path | None, run: Run, dataset: Dataset, results_dir: Path) -> bool:
    record = results.run_folder(run, dataset, results_dir) / 'record.json'
    return notebook is None or notebook.is_file() and notebook.stat().st_mtime >= record.stat().st_mtime


@dataclass
class _Batch:
    waiting: list[Run]
    total: int                      # runs, those that are done included
    dataset: Dataset
    data: str | Path | None
    jobs: int
    force: bool
    device: str | None
    results_dir: Path
    executed: dict[Run, Path]
    line_every_s: float
    say: Callable[[str], None]
    workers: int | None = None
    check: Callable[[Run], None] | None = None

    def __post_init__(self) -> None:
        self.running: dict[Run, _Running] = {}
        self.failed: dict[Run, str] = {}
        self.began_s, self.printed_s, self.finished = time.monotonic(), time.monotonic(), 0
        self.to_do = len(self.waiting)

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
        if self.failed:
            raise BatchError(f'{len(self.failed)} of {self.to_do} runs failed:\n' + '\n'.join(
                f'  {run.id}: {why}' for run, why in self.failed.items()))

    def _start_ready(self) -> None:
        for run in list(self.waiting):
            teacher = run.teacher()
            if teacher in self.failed:
                self.waiting.remove(run)
                self.failed[run] = f'its teacher {teacher.id} failed'
            elif len(self.running) < self.jobs and teacher not in self.waiting and teacher not in self.running:
                self.waiting.remove(run)
                self._start(run)

    def _start(self, run: Run) -> None:
        slot = min(set(range(self.jobs)) - {child.slot for child in self.running.values()})
        place = results.run_folder(run, self.dataset, self.results_dir)
        command = self._notebook_command(run) if run in self.executed else self._command(run)
        log = self.executed[run].with_suffix('.log') if run in self.executed else place / 'console.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        env = self._environment(slot, run.setting('gpus'))
        with open(log, 'w') as out:
            # a pipe into which nothing is written: where it ends, this process was killed (distributed.end_with)
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, env=env,
                                       start_new_session=True, cwd=results.ROOT)
        self.running[run] = _Running(process, slot, log)

    def _command(self, run: Run) -> list[str]:
        return [sys.executable, '-m', 'amdlib', 'run', run.row.id, '--seed', str(run.seed), *self._where(run),
                *(['--force'] if self.force else []),
                *([] if self.workers is None else ['--workers', str(self.workers)]),
                *(word for key, value in run.settings for word in ('--set', f'{key}={value}'))]

    def _notebook_command(self, run: Run) -> list[str]:
        values = (run.row.id, run.seed, write_settings(dict(run.settings)), self.force)
        return [sys.executable, '-m', 'amdlib', 'notebook', EXPERIMENT.stem, '--output', str(self.executed[run]),
                *self._where(run), *(word for name, value in zip(_PARAMETERS, values, strict=True)
                                     for word in ('--set', f'{name}={value}'))]

    def _where(self, run: Run) -> list[str]:
        return ['--profile', run.profile.name, '--results', str(self.results_dir),
                *(['--data', str(self.data)] if self.data else []),
                *(['--device', self.device] if self.device else [])]

    def _environment(self, slot: int, gpus: int = 1) -> dict[str, str]:
        import torch
        threads = max(1, len(os.sched_getaffinity(0)) // (self.jobs * gpus))
        env = {**os.environ, **zoo.environment(), 'OMP_NUM_THREADS': str(threads), 'PYTHONUNBUFFERED': '1',
               'MASTER_PORT': str(_free_port()), 'AMD_ENDS_WITH_STDIN': '1'}
        if self.device in (None, 'cuda') and torch.cuda.device_count() > 1:
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
            self.finished += 1
            found = results.state(run, self.dataset, self.results_dir)
            if child.process.returncode == 0 and found.name == 'done':
                self.say(f'[{self._done()}] {run.id}: {found.record["numbers"]["mAP"]:.1f} mAP in '
                         f'{minutes(found.record["wall_s"])}')
                self._check(run)
            else:
                self.failed[run] = f'exit {child.process.returncode}, {found.name} ({found.why}); log: {child.log}'
            if run in self.failed:
                self.say(f'[{self._done()}] {run.id}: FAILED, {self.failed[run]}')

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
        if time.monotonic() - self.printed_s < self.line_every_s or not self.running:
            return
        self.printed_s = time.monotonic()
        parts = []
        for run in self.running:
            p = results.read_progress(results.run_folder(run, self.dataset, self.results_dir))
            parts.append(describe(run.id, p['phase'], p['step'], p['steps'], p['s_per_step'], p['left_s']) if p
                         else f'{run.id} starting')
        self.say(f'[{self._done()}] {minutes(time.monotonic() - self.began_s)}  ' + ' | '.join(parts))


def _free_port() -> int:
    """A port that nobody listens on, for the processes of one distributed run."""
    with socket.socket() as probe:
        probe.bind(('', 0))
        return probe.getsockname()[1]
