"""Whether a run can tell anything: a hook that looks on while it trains, warns once of what makes a comparison hollow,
and sums up for the record.

Every step counts, not only those that mmengine logs. Nothing here changes a number.
"""
from __future__ import annotations

import contextlib
import math
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from amdlib import methods
from amdlib.engine.checkpoints import plain_model
from amdlib.errors import RunError
from amdlib.files import read_json, write_json
from amdlib.paper.rows import row_of
from amdlib.runs.recipe import SETTINGS, own_settings
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.words import log

FILE = 'bed.json'               # in mmengine's folder: with several GPUs the hook lives in another process
SETTLED = 100                   # steps after which the terms of a loss say something
RATIO = (0.1, 10.0)             # distillation over detection: below it teaches nothing, above it drowns the detector
RATIO_STEPS, CLIP_STEPS, MASK_STEPS = 50, 200, 50       # how many of the last steps are looked at
MOST_CLIPPED = 0.2              # of the last CLIP_STEPS
FEW_POSITIONS = 16              # a smaller level may well be masked wholly or not at all
HARDLY = 1e-3                   # a share of masked positions that is as good as none
LOOK_EVERY, PIECES = 10, 10     # steps between two looks; parts of a run in `over_time`


class BedWatch(Hook):
    """Counts clipped steps and keeps how large distillation is beside detection, in loss and in gradient, and what is
    masked, level by level.

    It stops a run whose loss is not finite. Errors: RunError, in training.

    Args:
        name: of the run, for its warnings.
        may_mask_all_or_none: a control whose masks are whole or empty by design.
        may_teach_nothing: a control whose loss gives the student no gradient by design.
    """
    priority = 'LOW'

    def __init__(self, name: str, may_mask_all_or_none: bool = False, may_teach_nothing: bool = False) -> None:
        self.name = name
        self.may_mask_all_or_none, self.may_teach_nothing = may_mask_all_or_none, may_teach_nothing
        self.steps = 0
        self.ratios, self.clipped = array('f'), array('b')      # a step; an update of the weights
        self.gradients: list[list[float]] = []                  # step, of detection, of distillation
        self.sums: dict[str, list[float]] = {}                  # logged name -> sum, steps
        self.share_factor: float | None = None
        self.warnings: list[str] = []
        self.positions: dict[int, int] = {}                     # of each level, as the first step had them
        self._warned: set[str] = set()
        self._masked: dict[int, deque[float]] = {}
        self._listening: list[Any] = []
        self._waiting: dict[str, nn.Module] = {}                # losses that are 0 in their first steps

    @classmethod
    def of(cls, run: Run) -> BedWatch:
        """The hook for a run, which knows what a control is meant to do."""
        own = methods.options_of(run.row.method) if run.row.method else {}
        spatial = run.value('spatial') if 'spatial' in own else None
        return cls(run.id, spatial in ('all', 'none'), spatial == 'all')

    # ---- what mmengine calls

    def before_train(self, runner: Runner) -> None:
        losses = getattr(plain_model(runner), 'distill_losses', {})
        self._waiting = {name: loss for name, loss in losses.items() if getattr(loss, 'waits', 0)}
        self._listening = [loss.register_forward_hook(self._first_look(name, runner.iter == 0 and name not in
                                                                       self._waiting))
                           for name, loss in losses.items()]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        for name in [name for name, loss in self._waiting.items() if not loss.waits]:
            self._listening.append(self._waiting.pop(name).register_forward_hook(self._first_look(name, True)))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Mapping[str, Any] | None = None) -> None:
        for handle in self._listening:
            handle.remove()
        self._listening, self.steps = [], runner.iter + 1
        loss = float(outputs['loss'].detach()) if outputs and 'loss' in outputs else 0.0
        if not math.isfinite(loss):     # a Distiller names the term before
            raise RunError(f'the loss is not finite ({loss:g}) at step {self.steps}')
        self._count_clipping(runner)
        if outputs and 'share_factor' in outputs:
            self.share_factor = float(outputs['share_factor'])
        logged = {name: float(value) for name, value in (outputs or {}).items() if _is_told(name)}
        if 'ratio' in logged:
            self.ratios.append(logged.pop('ratio'))
        if 'grad_distillation' in logged:
            self.gradients.append([self.steps, logged.pop('grad_detection'), logged.pop('grad_distillation')])
        for name, value in logged.items():
            total = self.sums.setdefault(name, [0.0, 0])
            total[0], total[1] = total[0] + value, total[1] + 1
            if name.startswith('masked'):
                self._masked.setdefault(_level(name), deque(maxlen=MASK_STEPS)).append(value)
        if self.steps % LOOK_EVERY == 0:
            self._look()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['bed'] = {'ratios': torch.tensor(self.ratios), 'clipped': torch.tensor(self.clipped),
                             'gradients': self.gradients, 'sums': self.sums, 'warnings': self.warnings,
                             'warned': sorted(self._warned)}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """A resumed run goes on counting."""
        if before := checkpoint.get('bed'):
            self.ratios, self.clipped = array('f', before['ratios'].tolist()), array('b', before['clipped'].tolist())
            self.gradients, self.sums = before['gradients'], before['sums']
            self.warnings, self._warned = before['warnings'], set(before['warned'])

    def after_train(self, runner: Runner) -> None:
        if is_main_process():
            write_json(Path(runner.work_dir) / FILE, self.summary())

    # ---- what comes of it

    def summary(self) -> dict[str, Any]:
        """For the record: clipped_share (of updates), ratio_median and gradient_ratio_median (after step 100), masked
        and share of the total loss by level (means over all steps), the factor that a wanted share gave at last,
        positions, over_time, and the warnings."""
        return {
            'steps': self.steps, 'clipped_share': _mean(self.clipped), 'ratio_median': _median(self.ratios[SETTLED:]),
            'gradient_ratio_median': _median(self._gradient_ratios(SETTLED, math.inf)),
            'masked': self._by_level('masked'), 'share': self._by_level('share'),
            **({} if self.share_factor is None else {'share_factor': self.share_factor}),
            'positions': {str(level): count for level, count in self.positions.items()},
            'over_time': [self._piece(part / PIECES, (part + 1) / PIECES) for part in range(PIECES)],
            'warnings': list(self.warnings)}

    def _piece(self, begin: float, end: float) -> dict[str, Any]:
        """A part of the run, in shares of its steps."""
        def part(values: array) -> array:
            return values[round(begin * len(values)):round(end * len(values))]
        return {'step': round(end * self.steps), 'ratio': _median(part(self.ratios)),
                'gradient_ratio': _median(self._gradient_ratios(begin * self.steps, end * self.steps)),
                'clipped_share': _mean(part(self.clipped))}

    def _gradient_ratios(self, after: float, until: float) -> list[float]:
        """Distillation over detection in gradient, of the steps measured in between."""
        return [distillation / detection for step, detection, distillation in self.gradients
                if after < step <= until and detection > 0]

    def _by_level(self, kind: str) -> dict[str, float]:
        return {str(_level(name)): total / steps for name, (total, steps) in sorted(self.sums.items())
                if name.startswith(f'{kind}_fpn')}

    # ---- what it looks at

    def _first_look(self, name: str, is_first_step: bool) -> Any:
        """A forward hook for a loss, of a level or of a step: the sizes of levels, and whether each of its terms asks
        anything of the student."""
        def look(_loss: nn.Module, given: tuple, found: torch.Tensor | dict[str, torch.Tensor]) -> None:
            if isinstance(found, dict):     # of a step, which shows the levels as they were before the heads
                levels = dict(zip(given[0].levels, given[0].tapped, strict=True))
                terms = {f'{name}_{term}': value for term, value in found.items()}
            else:
                levels, terms = {_level(name): given[0]}, {name: found}
            self.positions |= {level: f_s.shape[2] * f_s.shape[3] for level, f_s in levels.items()}
            features = [f_s for f_s in levels.values() if f_s.requires_grad]
            if not is_first_step or self.may_teach_nothing or not features:
                return
            for term, value in terms.items():
                asked = torch.autograd.grad(value, features, retain_graph=True, allow_unused=True) if (
                    value.requires_grad) else ()
                if not any(one is not None and one.any() for one in asked):
                    self._warn(f'gradient {term}', f'{term} gives the student no gradient at the first step')
        return look

    def _count_clipping(self, runner: Runner) -> None:
        """One more update, where this step made one and gradients are clipped."""
        limit = (getattr(runner.optim_wrapper, 'clip_grad_kwargs', None) or {}).get('max_norm')
        if limit is None or not runner.optim_wrapper.should_update():
            return
        norm = runner.message_hub.get_scalar('train/grad_norm').current()
        if math.isfinite(norm):     # fp16 skips an update whose gradient overflowed
            self.clipped.append(int(norm > limit))

    def _look(self) -> None:
        if len(self.ratios) >= SETTLED + RATIO_STEPS:
            ratio = _median(self.ratios[-RATIO_STEPS:])
            if not RATIO[0] <= ratio <= RATIO[1]:
                self._warn('ratio', f'distillation is {ratio:.3g} times the detection loss (median of steps '
                           f'{self.steps - RATIO_STEPS + 1} to {self.steps}); methods compare where it is '
                           f'{RATIO[0]:g} to {RATIO[1]:g}: see factor and reference')
        if len(self.clipped) >= CLIP_STEPS and (share := _mean(self.clipped[-CLIP_STEPS:])) > MOST_CLIPPED:
            self._warn('clipped', f'{share:.0%} of the last {CLIP_STEPS} updates were clipped (at step {self.steps}): '
                       'the gradient says a direction only')
        for level, shares in ({} if self.may_mask_all_or_none else self._masked).items():
            positions = self.positions.get(level, 0)
            if positions < FEW_POSITIONS or len(shares) < MASK_STEPS:
                continue
            if not HARDLY < (share := sum(shares) / len(shares)) < 1 - HARDLY:
                self._warn(f'masked {level}', f'level {level} ({positions} positions) is masked '
                           f'{"wholly" if share > 0.5 else "not at all"} (steps {self.steps - MASK_STEPS + 1} to '
                           f'{self.steps}): see phi and temperature')

    def _warn(self, kind: str, text: str) -> None:
        """Once of a kind."""
        if kind in self._warned:
            return
        self._warned.add(kind)
        self.warnings.append(text)
        if is_main_process():
            log.info(f'{self.name}: warning: {text}')


def take_summary(folder: Path) -> dict[str, Any] | None:
    """What the hook left in mmengine's folder, once; None for a run that was not trained."""
    with contextlib.suppress(FileNotFoundError):
        found = read_json(folder / FILE)
        (folder / FILE).unlink()
        return found
    return None


def warn_of_teacher(run: Run, store: Store) -> str | None:
    """Say, from the records that are there, that a student's teacher is not above the same student trained alone: then
    there is little to learn from it. Returns what was said; None where all is well or not known yet."""
    teacher, baseline = run.teacher(), baseline_of(run)
    if teacher is None or teacher.row.name != 'teacher':    # an untrained one is meant to know nothing
        return None
    states = [store.state(teacher), store.state(baseline)]
    if any(found.name != 'done' for found in states):
        return None
    taught, alone = (found.record['numbers']['mAP'] for found in states)
    if taught is None or alone is None or taught > alone:
        return None
    text = (f'its teacher {teacher.id} ({taught:.1f} mAP) is not above the student that is trained alone '
            f'({baseline.id}, {alone:.1f})')
    log.info(f'{run.id}: warning: {text}')
    return text


def baseline_of(run: Run, name: str = 'baseline') -> Run:
    """The student of the same seed and settings that is trained alone, on the reported split.

    Args:
        name: of its row: 'baseline', or 'inherit'.
    """
    settings = {key: value for key, value in run.settings.items() if key in SETTINGS and key != 'split'}
    row = row_of(run.row.group, name)
    return Run.of(row, run.profile, run.seed, own_settings(row, settings))


def _is_told(name: str) -> bool:
    return name in ('ratio', 'grad_detection', 'grad_distillation') or name.startswith(('masked_fpn_', 'share_fpn_'))


def _level(name: str) -> int:
    return int(name.rpartition('_')[2])


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
