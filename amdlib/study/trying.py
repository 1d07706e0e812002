"""A few steps of every row before anything is trained: that it can be, in how much memory and how many minutes."""
from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from amdlib.engine.runner import QuietRunner
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.scale.cost import now_s
from amdlib.scale.dryrun import GIB, PeakMemory
from amdlib.words import log, minutes

STEPS = 5       # the first, which is slower, is not counted
COLUMNS = ('row', 's a step', 'steps', 'minutes a seed', 'memory, GiB', 'problem')


def try_steps(runs: Iterable[Run], store: Store) -> pd.DataFrame:
    """Train each run for five steps from random weights, students with a random teacher: nothing is fetched or kept.

    Returns: a line a run: seconds a step, how many it makes, minutes of these alone (neither start nor evaluation), and
    the most memory: of the GPU, or where there is none of the process.
    """
    lines = []
    for run in runs:
        log.info(f'{run.row.id}: {STEPS} steps')
        lines.append({'row': run.row.id, **dict.fromkeys(COLUMNS[1:], ''),
                      **_try(run, store, run.steps(store.dataset.trained_count))})
    return pd.DataFrame(lines, columns=COLUMNS)


class _Enough(Exception):
    """Ends a training that is only tried."""


class _Stopwatch(Hook):
    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        self.ends_s.append(now_s())
        if len(self.ends_s) == STEPS:
            raise _Enough


def _try(run: Run, store: Store, steps: int) -> dict[str, Any]:
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), PeakMemory(0.1) as memory:
        warnings.simplefilter('ignore')
        try:
            runner = QuietRunner.from_cfg(_unfetched(config(run, store.dataset, folder)))
            runner.register_hook(watch)
            with contextlib.suppress(_Enough):
                runner.train()
        except Exception as error:  # whatever a stranger's detector raises is what is asked for
            return {'problem': f'{type(error).__name__}: {error}'.splitlines()[0]}
    if len(watch.ends_s) < 2:
        return {'problem': 'it makes a single step'}
    s_per_step = float(np.median(np.diff(watch.ends_s)))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory.peak_bytes
    return {'s a step': f'{s_per_step:.2f}', 'steps': str(steps), 'minutes a seed': minutes(s_per_step * steps),
            'memory, GiB': f'{peak / GIB:.1f}'}


def _unfetched(cfg: Config) -> Config:
    """The same without first weights from elsewhere, under a name of its own, as mmengine wants it."""
    cfg.pop('inherit', None)
    for detector in [cfg.model, cfg.model.get('student'), cfg.model.get('teacher')]:
        if detector is not None:
            detector.pop('init_cfg', None)
            if 'backbone' in detector:
                detector.backbone.init_cfg = None
    cfg.experiment_name = cfg.visualizer.name = f'trial-{time.time_ns()}'
    return cfg
