"""How cost grows: CPU seconds over images, batch, students and processes, three sizes each, with fitted exponents.

An exponent of 1 is proportional; below it, something is shared or paid once; above it, something stands in the way.
"""
from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from mmengine.logging import MessageHub

from amdlib.engine.runner import QuietRunner
from amdlib.files import write_text
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.scale.bench import conditions, told
from amdlib.scale.cost import made_batch, trainable
from amdlib.show import charts
from amdlib.words import log

SIZES = {'images': (16, 32, 64), 'batch': (2, 4, 8), 'students': (1, 2, 4), 'processes': (1, 2, 4)}
MEANT = {'images': 'read and trained on, an epoch', 'batch': 'pictures of a step', 'students': 'a step each, in turn',
         'processes': 'two steps each, at the same time'}
ROUNDS = 3


def scaling(store: Store, group: str = 'retinanet', rounds: int = ROUNDS) -> Path:
    """Measure how the cost of AMD grows; write scaling.csv, scaling.md and scaling.png beside the profile's results;
    return the page."""
    lines = []
    for what, sizes in SIZES.items():
        log.info(f'{group}: {what}, {rounds} rounds of {", ".join(map(str, sizes))}')
        parts = [_part(what, size, group, store) for size in sizes]
        taken = np.array([[cpu_s(part) for part in parts] for _ in range(rounds + 1)])[1:]
        lines += [{'over': what, 'size': size, 'cpu_s': float(took), 'exponent': exponent(sizes, taken)}
                  for size, took in zip(sizes, np.median(taken, axis=0), strict=True)]
    found = pd.DataFrame(lines)
    folder = store.results / store.profile.name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'scaling.csv', found.to_csv(index=False, float_format='%.6g'))
    charts.save(charts.growth(found), folder / 'scaling', ('png',))
    write_text(folder / 'scaling.md', text_of(found, group, store, rounds))
    return folder / 'scaling.md'


def cpu_s(do: Callable[[], None]) -> float:
    """What this process and its children compute for while it is done."""
    began_s = sum(os.times()[:4])
    do()
    return sum(os.times()[:4]) - began_s


def exponent(sizes: tuple[int, ...], taken_s: np.ndarray) -> float:
    """b of a x^b, by least squares on the logarithms of the medians over rounds (rounds, sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(np.median(taken_s, axis=0)), 1)[0])


def _part(what: str, size: int, group: str, store: Store) -> Callable[[], None]:
    """What is measured at a size."""
    batch_size = size if what == 'batch' else store.profile.batch_size
    run = Run.of(f'{group}-amd', replace(store.profile, batch_size=batch_size))
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cfg = config(run, store.dataset)
        students = [trainable(cfg, run, device) for _ in range(size if what == 'students' else 1)]
    batch = made_batch(run, cfg)

    def step() -> None:
        for model, optimizer in students:
            model.train_step(batch, optimizer)

    def epoch() -> None:
        MessageHub.get_current_instance().update_info('epoch', 0)
        cfg.train_dataloader.dataset.indices = size
        for some in QuietRunner.build_dataloader(cfg.train_dataloader, seed=0):
            students[0][0].train_step(some, students[0][1])

    def at_once() -> None:
        children = []
        for _ in range(size):
            if not (child := os.fork()):
                try:
                    step()
                    step()
                finally:
                    os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
    return {'images': epoch, 'processes': at_once}.get(what, step)


def text_of(found: pd.DataFrame, group: str, store: Store, rounds: int) -> str:
    """The page."""
    lines = [{'over': what, 'what': MEANT[what], **{f'size {place}': f'{line.size_:g}: {line.cpu_s:.2f} s'
              for place, line in enumerate(own.rename(columns={'size': 'size_'}).itertuples(), 1)},
              'exponent': f'{own.exponent.iloc[0]:.2f}'} for what, own in found.groupby('over', sort=False)]
    return '\n\n'.join([
        '# How does cost grow?',
        f'{group}-amd, profile {store.profile.name}, {told(conditions(store, rounds))}: CPU seconds, median over the '
        'rounds, and b of a x^b.', pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True),
        '![CPU seconds over size, both logarithmic](scaling.png)',
        'Students learn one after the other, each with its own pass of the teacher: nothing is shared yet. Processes '
        'share a machine; their CPU seconds say what sharing costs, not how long one waits.']) + '\n'
