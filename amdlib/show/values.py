"""The values behind the paper's experiments: read from the Configs that train, each with its source.

Sources: `paper` (its text states it), `convention` (the papers and public code that it builds on), `public code` (of
the rival method), `assumed` (nobody states it; see docs/assumptions.md). tests/show/test_values.py holds every value
against the method's page.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

from amdlib.methods import find_method
from amdlib.paper.pairs import find_group
from amdlib.paper.printed import paper_groups
from amdlib.paper.profiles import PAPER_CHANNELS
from amdlib.paper.rows import ROWS
from amdlib.runs.config import config
from amdlib.runs.run import Run

if TYPE_CHECKING:
    from torch import nn

METHOD_ROWS = ('fkd', 'fgd', 'mgd', 'amd')
ALL = ('baseline', *METHOD_ROWS)


@dataclass(frozen=True)
class Value:
    """One value of one group's experiments."""
    what: str      # the line of the method's page
    name: str
    group: str
    value: object
    source: str
    where: str     # what in the kit owns it


def assumptions() -> str:
    """What AMD's rows take where the paper does not state a value; docs/assumptions.md has the reasons."""
    from amdlib.methods.amd import ChannelClue, GenerationBlock  # torch, which a list of rows does not need
    told = []
    for option, name in (('alpha', 'alpha'), ('temperature', 'T'), ('phi', 'phi'), ('mask_ratio', 'ratio of random '
                                                                                                'masks')):
        groups: dict[object, list[str]] = {}
        for group in paper_groups():
            groups.setdefault(ROWS[f'{group}-amd'].value(option), []).append(find_group(group).student_label)
        told.append(f'{name} ' + ', '.join(f'{value:g}' + (f' ({", ".join(labels)})' if len(groups) > 1 else '')
                                           for value, labels in groups.items()))
    told += [f'SE reduction {_default(ChannelClue, "reduction")}', f"MBConv's expansion {GenerationBlock.EXPANSION}",
             "one-stage students of every method start alike: alone, or from the teacher's neck and head"]
    return f'Assumed, since the paper does not state it (reasons: docs/assumptions.md): {"; ".join(told)}.'


# ---- readers ----------------------------------------------------------------------------------------------------

def _default(cls: type, name: str) -> Any:
    return inspect.signature(cls).parameters[name].default


def _scale(cfg: Config) -> tuple:
    scales = {tuple(step.scale) for loader in (cfg.train_dataloader, cfg.test_dataloader)
              for step in loader.dataset.pipeline if step.type == 'Resize'}
    return scales.pop() if len(scales) == 1 else tuple(sorted(scales))


def _module(cfg: Config) -> str:
    from amdlib.engine.distiller import Distiller  # imports mmdet
    sides = {cfg.model.get(side, _default(Distiller, side)) for side in ('student_module', 'teacher_module')}
    return ' and '.join(sorted(sides))


def _expansion(_cfg: Config, _loss: nn.Module | None) -> int:
    from amdlib.methods.amd import GenerationBlock
    return GenerationBlock.EXPANSION


@dataclass(frozen=True)
class _Reader:
    what: str
    name: str
    source: str
    where: str
    rows: tuple[str, ...]                                  # all of them must agree
    read: Callable[[Config, nn.Module | None], object]     # from a row's Config and, for a method's row, its loss


def _attribute(name: str) -> Callable[[Config, nn.Module], object]:
    return lambda _cfg, loss: getattr(loss, name)


_READERS = (
    _Reader('schedule', 'epochs', 'paper', 'PROFILES', ALL, lambda cfg, _: cfg.train_cfg.max_epochs),
    _Reader('schedule', 'optimizer', 'paper', 'mmdet', ALL, lambda cfg, _: cfg.optim_wrapper.optimizer.type),
    _Reader('schedule', 'momentum', 'paper', 'mmdet', ALL, lambda cfg, _: cfg.optim_wrapper.optimizer.momentum),
    _Reader('schedule', 'weight decay', 'paper', 'mmdet', ALL,
            lambda cfg, _: cfg.optim_wrapper.optimizer.weight_decay),
    _Reader('schedule', 'image scale', 'paper', 'PROFILES', ALL, lambda cfg, _: _scale(cfg)),
    _Reader('schedule', 'steps', 'convention', 'mmdet', ALL, lambda cfg, _: tuple(cfg.param_scheduler[-1].milestones)),
    _Reader('alpha', 'alpha', 'assumed', 'AMDLoss', ('amd',), _attribute('alpha')),
    _Reader('T', 'T', 'assumed', 'AMDLoss', ('amd',), _attribute('temperature')),
    _Reader('phi', 'phi', 'assumed', 'AMDLoss', ('amd',), _attribute('phi')),
    _Reader('random masks', 'ratio', 'assumed', 'AMDLoss', ('amd',), lambda cfg, _: cfg.model.options.mask_ratio),
    _Reader('channel clue', 'SE reduction', 'convention', 'ChannelClue', ('amd',),
            lambda _, loss: loss.clue.w1.in_features // loss.clue.w1.out_features),
    _Reader('MBConv', 'expansion', 'assumed', 'GenerationBlock', ('amd',), _expansion),
    _Reader('distilled levels', 'levels', 'convention', 'GROUPS', METHOD_ROWS, lambda cfg, _: len(cfg.model.levels)),
    _Reader('distilled levels', 'module', 'convention', 'Distiller', METHOD_ROWS, lambda cfg, _: _module(cfg)),
    _Reader('inheriting', 'parts', 'convention', 'config', METHOD_ROWS, lambda cfg, _: tuple(cfg.model.inherit)),
    _Reader('gradient clipping', 'max norm', 'convention', 'config', ALL,
            lambda cfg, _: cfg.optim_wrapper.clip_grad.max_norm),
    _Reader('gradient clipping', 'norm', 'convention', 'config', ALL,
            lambda cfg, _: cfg.optim_wrapper.clip_grad.norm_type),
    _Reader('MGD baseline', 'alpha', 'public code', 'MGDLoss', ('mgd',), _attribute('alpha_mgd')),
    _Reader('MGD baseline', 'ratio', 'public code', 'MGDLoss', ('mgd',), lambda cfg, _: cfg.model.options.lambda_mgd),
    _Reader('FGD baseline', 'T', 'public code', 'FGDLoss', ('fgd',), _attribute('temp')),
    *(_Reader('FGD baseline', name, 'public code', 'FGDLoss', ('fgd',), _attribute(f'{name}_fgd'))
      for name in ('alpha', 'beta', 'gamma', 'lambda')),
    *(_Reader('FKD baseline', name, 'public code', 'FKDLoss', ('fkd',), _attribute(attribute))
      for name, attribute in (
          ('masked feature', 'feature_weight'), ('channel', 'channel_weight'), ('spatial', 'spatial_weight'),
          ('non-local', 'nonlocal_weight'), ('spatial temperature', 'spatial_temperature'),
          ('channel temperature', 'channel_temperature'))),
)


def paper_values() -> list[Value]:
    """Every value of the method's page as the Configs of profile `paper` have it, by the paper's groups.

    Errors: ValueError where rows of a group do not agree on a value that they share.
    """
    values = []
    for group in map(find_group, paper_groups()):
        made = {row: config(Run.of(f'{group.name}-{row}', 'paper')) for row in ALL}
        losses = {row: find_method(row)(PAPER_CHANNELS, PAPER_CHANNELS, **made[row].model.options)
                  for row in METHOD_ROWS}
        for reader in _READERS:
            found = {row: reader.read(made[row], losses.get(row)) for row in reader.rows}
            first = found[reader.rows[0]]
            if any(value != first for value in found.values()):
                raise ValueError(f'{group.name}: rows differ in {reader.what}, {reader.name}: {found}')
            values.append(Value(reader.what, reader.name, group.name, first, reader.source, reader.where))
        values += [Value('detectors', name, group.name, value, 'paper', 'GROUPS') for name, value in (
            ('student', group.student_config), ('teacher', group.teacher_config), ('checkpoint', group.teacher_file))]
    return values


def as_text(values: list[Value]) -> str:
    """A line a value; groups that share it stand in one."""
    lines: dict[tuple, list[str]] = {}
    for value in values:
        shown = ', '.join(map(str, value.value)) if isinstance(value.value, tuple) else str(value.value)
        lines.setdefault((value.what, value.name, shown or 'none', value.source, value.where), []).append(value.group)
    text = [f'{"what":18} {"value":40} {"source":12} {"where":16} groups']
    for (what, name, shown, source, where), groups in sorted(lines.items(), key=lambda line: line[0][:2]):
        label = f'{name} {shown}' if name != what else shown
        text.append(f'{what:18} {label:40} {source:12} {where:16} '
                    f'{"all" if len(groups) == len(paper_groups()) else ", ".join(groups)}')
    return '\n'.join(text)
