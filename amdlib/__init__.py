"""The AMD kit: Adaptive Masked Distillation for Object Detection (arXiv 2301.13538) and its rivals.

`methods` hold the mathematics on torch alone; `paper` what is compared; `engine` what decides a number; `runs` the life
of a run; `show` tells of numbers. The names below are loaded when they are first used.
"""
from __future__ import annotations

import importlib
from typing import Any

__version__ = '0.2.0'

_PUBLIC = {
    'amdlib.datasets': ('Dataset', 'prepare'),
    'amdlib.engine.distiller': ('Distiller',),
    'amdlib.errors': ('DataError', 'KitError', 'RunError', 'SettingError', 'WeightsError'),
    'amdlib.methods': ('find_method',),
    'amdlib.methods.amd': ('AMDLoss',),
    'amdlib.methods.fgd': ('FGDLoss',),
    'amdlib.methods.fitnet': ('FitNetLoss',),
    'amdlib.methods.fkd': ('FKDLoss',),
    'amdlib.methods.level': ('LevelLoss',),
    'amdlib.methods.mgd': ('MGDLoss',),
    'amdlib.paper.pairs': ('GROUPS',),
    'amdlib.paper.profiles': ('PROFILES',),
    'amdlib.paper.rows': ('ROWS', 'find_row'),
    'amdlib.paper.tables': ('TABLES',),
    'amdlib.runs.batch': ('run_missing',),
    'amdlib.runs.config': ('config',),
    'amdlib.runs.recipe': ('Means', 'Recipe'),
    'amdlib.runs.run': ('Run', 'row_runs', 'sweep_runs', 'table_runs', 'with_teachers'),
    'amdlib.runs.store': ('Store', 'open_store'),
    'amdlib.runs.train': ('train',),
    'amdlib.study.own_loss': ('method',),
    'amdlib.study.pair': ('Pair', 'pair'),
    'amdlib.study.study': ('Study', 'data', 'distill'),
}
_MODULE = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ['__version__', *sorted(_MODULE)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE})
