"""Where the processor's time of a whole job goes: start-up, data, teacher, student, evaluation, notebook.

Times are CPU seconds, which other work on the machine moves little. Within a run, a timer of the CPU time looks every
few milliseconds which of the places below the program is in.
"""
from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pandas as pd

from amdlib.files import ROOT
from amdlib.runs.run import Run, with_teachers
from amdlib.runs.store import Store
from amdlib.runs.train import train
from amdlib.words import log

EVERY_S = 0.005
ROWS = ('baseline', 'amd')
# (part, end of the module's path, function): of those that the program is in, the innermost counts
PLACES = (
    ('imports', '<frozen importlib._bootstrap>', '_find_and_load'),
    ('data', 'utils/data/dataloader.py', '__next__'), ('data', 'amdlib/datasets/prepare.py', 'prepare'),
    ("teacher's features", 'engine/kept.py', 'keep_features'),
    ("teacher's features", 'engine/distiller.py', '_features_of'),
    ('student: its loss', 'detectors/single_stage.py', 'loss'), ('student: its loss', 'detectors/two_stage.py', 'loss'),
    ('student: distillation', 'engine/distiller.py', '_terms_of_levels'),
    ('student: distillation', 'engine/distiller.py', '_terms_of_step'),
    ('student: gradient', 'torch/_tensor.py', 'backward'),
    ('student: gradients measured', 'engine/distiller.py', '_gradient'),
    ('student: update', 'optim/optimizer/optimizer_wrapper.py', 'step'),
    ('student: around it', 'base_model/base_model.py', 'train_step'),
    ('evaluation: network', 'detectors/single_stage.py', 'predict'),
    ('evaluation: network', 'detectors/two_stage.py', 'predict'),
    ('evaluation: around it', 'base_model/base_model.py', 'test_step'),
    ("evaluation: COCO's numbers", 'engine/coco.py', 'compute_metrics'),
    ('hooks, log, checkpoints', 'runner/runner.py', 'call_hook'),
    ('building', 'runner/runner.py', 'from_cfg'), ('building', 'runs/config.py', 'config'),
    ('fingerprints, hashes', 'runs/fingerprints.py', 'code_fingerprint'),
    ('fingerprints, hashes', 'amdlib/files.py', 'sha256'))
ARITHMETIC = ("teacher's features", 'student: its loss', 'student: distillation', 'student: gradient',
              'student: update', 'evaluation: network')


class Sampler:
    """Adds up this process's CPU time by the part of PLACES that its main thread is in.

    A timer rings every EVERY_S; what a long operation takes before Python hears it is its own.
    """

    def __init__(self, places: Sequence[tuple[str, str, str]] = PLACES) -> None:
        self.places, self.seconds = places, Counter()
        self._known: dict[CodeType, str | None] = {}

    @contextlib.contextmanager
    def looking(self) -> Iterator[Sampler]:
        """Look while the block runs."""
        before = signal.signal(signal.SIGPROF, lambda _, frame: self._look(frame))
        self._last_s = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)

    def _look(self, frame: FrameType | None) -> None:
        now_s = time.process_time()
        self.seconds[self._part(frame)] += now_s - self._last_s
        self._last_s = now_s

    def _part(self, frame: FrameType | None) -> str:
        while frame is not None:
            code = frame.f_code
            if code not in self._known:
                self._known[code] = next((part for part, file, function in self.places if code.co_name == function
                                          and code.co_filename.endswith(file)), None)
            if part := self._known[code]:
                return part
            frame = frame.f_back
        return 'the rest'


def of_job(store: Store, group: str, rows: Sequence[str] = ROWS) -> dict[str, Any]:
    """CPU seconds by part of a first job with these rows of a group and their teacher, an epoch each, on a CPU: what a
    batch imports once, its runs, here one after the other in this process, and a notebook that shows the last one.

    Returns `parts`, and beside them `import_s`, what a run in a process of its own imports, and `runs`.
    """
    runs = with_teachers(Run.of(f'{group}-{row}', store.profile, 0, {'epochs': 1}) for row in rows)
    parts = Counter({'start-up': of_command(['-c', 'from amdlib.runs import forking; forking.load()'])})
    with tempfile.TemporaryDirectory() as folder:
        own = replace(store, results=Path(folder)).with_means(device='cpu')
        for run in runs:
            log.info(f'{run.id}: where its time goes')
            with Sampler().looking() as sampler:
                train(run, own)
            parts.update(sampler.seconds)
        parts['command and notebook'] = of_command([
            '-m', 'amdlib', 'notebook', 'experiment', '--results', folder, '--profile', store.profile.name,
            *(['--data', str(store.data)] if store.data else []), f'--set=row={runs[-1].row.id}',
            '--set=settings=epochs=1'])
    return {'parts': dict(parts), 'import_s': of_command(['-c', 'import amdlib.runs.train']), 'runs': len(runs)}


def text_of(found: Mapping[str, Any], group: str) -> list[str]:
    """Paragraphs of a page."""
    whole_s = sum(found['parts'].values())
    lines = [{'part': part, 'CPU s': f'{taken_s:.1f}', 'share': f'{taken_s / whole_s:.1%}'}
             for part, taken_s in sorted(found['parts'].items(), key=lambda item: -item[1])]
    around_s = sum(taken_s for part, taken_s in found['parts'].items() if part not in ARITHMETIC)
    alone_s = (found['runs'] - 1) * found['import_s']
    return [
        f'{group}, {found["runs"]} runs of an epoch each, a notebook, on the CPU: {whole_s:.0f} CPU s.',
        pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True),
        f'Not arithmetic: {around_s:.0f} s, {around_s / whole_s:.0%}. A batch imports once; a run in a process of its '
        f'own does so in {found["import_s"]:.1f} s, which would be {alone_s:.0f} s more.']


def of_command(words: Sequence[str]) -> float:
    """CPU seconds of `python WORDS` and of all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
