"""What a step of each method costs beside one of the baseline: time and memory, measured in turn in one process.

As in `bench`, only ratios are told of time. Memory is counted, not timed: it does not depend on what else the machine
does.
"""
from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from amdlib.engine.step import OF_TEACHERS_HEAD
from amdlib.errors import RunError
from amdlib.paper.pairs import find_group
from amdlib.paper.tables import find_table
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.scale.bench import ROUNDS, conditions, ratio, ratio_text, seconds, told, with_kept_features, write
from amdlib.scale.cost import made_batch, trainable
from amdlib.words import log

MB = 1e6
KEPT = ', kept'


def bench_zoo(store: Store, groups: Iterable[str] = (), rounds: int = ROUNDS) -> Path:
    """Measure a step of every method of the zoo at the store's profile, of each detector pair or some; write
    bench_zoo.json and bench_zoo.md beside the profile's results; return the latter.

    Errors: RunError for a profile without a data set.
    """
    if store.dataset is None:
        raise RunError(f'profile {store.profile.name}: a bench needs DATA')
    table, found = find_table('zoo'), {}
    began_load = os.getloadavg()[0]
    for group in list(groups) or table.groups:
        rows = [row for row in table.rows(group) if row.name == 'baseline' or row.name == row.method]
        log.info(f'{group}: {rounds} rounds of steps of {len(rows)} rows')
        found[group] = of_rows([Run.of(row, store.profile) for row in rows], store, rounds)
    found = {**conditions(store, rounds), 'load': [began_load, os.getloadavg()[0]], 'groups': found}
    return write('bench_zoo', found, text_of(found), store)


def of_rows(runs: Iterable[Run], store: Store, rounds: int) -> list[dict[str, Any]]:
    """A line a run: its step over the first's, median over rounds and quartiles; over the same with the teacher's
    features kept, None where it needs the teacher at every step; bytes, and over the first's."""
    parts, held, labels = {}, {}, {}
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    for run in runs:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            cfg = config(run, store.dataset)
            model, optimizer = trainable(cfg, run, device)
        name, batch = run.row.name, made_batch(run, cfg)
        step = partial(model.train_step, batch, optimizer)
        step()                              # what an optimizer keeps is there from its first step on
        parts[name], labels[name], held[name] = step, run.row.label, held_bytes(model, optimizer)
        if run.row.method and not (model.needs or frozenset()) & OF_TEACHERS_HEAD:
            ready = model.data_preprocessor(batch, training=True)
            features = model._features_of(ready['inputs'], ready['data_samples'])
            parts[name + KEPT] = with_kept_features(model, features, step)
    bytes_of = {name: held[name] + peak_bytes(parts[name]) for name in held}
    took = seconds(parts, rounds)
    first = next(iter(held))
    return [{'method': labels[name], 'step': ratio(took[name], took[first]),
             'kept': ratio(took[name + KEPT], took[first]) if name + KEPT in took else None,
             'bytes': bytes_of[name], 'memory': bytes_of[name] / bytes_of[first]} for name in held]


def held_bytes(model: nn.Module, optimizer: OptimWrapper) -> int:
    """Of the weights of all that takes part, and of what the optimizer remembers."""
    parts = [model, getattr(model, 'teacher', nn.Identity())]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    tensors += [leaf for leaf in tree_leaves(dict(optimizer.optimizer.state)) if isinstance(leaf, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that tensors take during a step beyond what was there before: as the allocator counts it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')     # it tells of a GPU that is not there
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        step()
    changes = [event for event in told.profiler.kineto_results.events() if event.name() == '[memory]']
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([0, *(event.nbytes() for event in changes)]).max())


# ---- what is told -----------------------------------------------------------------------------------------------

def text_of(found: Mapping[str, Any]) -> str:
    """The page."""
    began, ended = found['load']
    parts = ['# What does a step of each method cost?',
             f'Profile {found["profile"]}, {told(found)}; load of the machine {began:.1f} when it began, '
             f'{ended:.1f} at the end. Steps of all lines in turn in one process, over the baseline\'s step of the '
             'same round: median over the rounds [middle half]. Pictures lie in memory.',
             '*Step*: the teacher passes beside the student. *Kept*: its features are kept, where the method needs '
             'nothing else of it. *Memory*: weights, what the optimizer remembers, and the most that tensors take '
             'during a step (teacher\'s pass included), over the baseline\'s.']
    for group, lines in found['groups'].items():
        shown = [{'method': line['method'], 'step / baseline': _text(line['step']),
                  'kept / baseline': _text(line['kept']), 'memory / baseline': f'{line["memory"]:.2f}'}
                 for line in lines]
        parts += [f'## {find_group(group).student_label}', pd.DataFrame(shown).to_markdown(
            index=False, disable_numparse=True), f'The baseline\'s memory: {lines[0]["bytes"] / MB:.0f} MB.']
    return '\n\n'.join(parts) + '\n'


def _text(values: list[float] | None) -> str:
    return '–' if values is None else ratio_text(values)
