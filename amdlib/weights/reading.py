"""Read weight files without running code from them, and load them with every tensor matched.

This decides what a run starts from, so its text is in a run's fingerprint; how a misfit is told stands in `misfits`.
"""
from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from amdlib.errors import WeightsError
from amdlib.weights import misfits


def harmless_types() -> list:
    """What mmengine's checkpoints hold besides tensors; pickles naming anything else are refused.

    Types that are allowed already are left out: leaving an inner `safe_globals` block would forbid them in the outer.
    """
    rebuild = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    numpy_1 = [(function, f'numpy.core.multiarray.{function.__name__}') for function in rebuild]  # moved by numpy 2
    dtypes = {type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8', 'b1', 'U1')}
    types = [HistoryBuffer, (_statistic, 'builtins.getattr'), np.ndarray, np.dtype, *rebuild, *numpy_1, *dtypes]
    allowed = torch.serialization.get_safe_globals()
    return [kind for kind in types if kind not in allowed]


def _statistic(owner: type, name: str) -> object:
    """Stands in for `getattr`, with which a HistoryBuffer pickles its own statistics."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr of {name!r} from {owner!r}')
    return getattr(owner, name)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a torch, mmengine or model-zoo file; `state_dict` is unwrapped.

    Errors: FileNotFoundError; WeightsError for a truncated file, a web page, or one that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no weights at {path}')
    try:
        with torch.serialization.safe_globals(harmless_types()):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file that is no checkpoint
        raise WeightsError(misfits.unreadable(path, error)) from error
    weights = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(weights, dict):
        raise WeightsError(f'{path} holds {type(weights).__name__}, not a state dict')
    return weights


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load `weights` with every tensor of model and file matched, else WeightsError listing what is not.

    Names of older versions are understood (`_current_names`); BatchNorm's counts of batches, which no detector reads,
    may be missing.
    """
    own = model.state_dict()
    named = _current_names(weights, own)
    _compare(type(model).__name__, own, named, source)
    model.load_state_dict({**own, **named})


def check_backbone(backbone: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """WeightsError unless `weights` has every tensor of the backbone and nothing more but a classifier `fc`.

    mmengine itself loads what happens to fit and starts the rest from scratch.
    """
    own = backbone.state_dict()
    named = {name: value for name, value in _current_names(weights, own).items() if not name.startswith('fc.')}
    _compare(type(backbone).__name__, own, named, source)


def _current_names(weights: dict, own: dict) -> dict:
    """`weights` by the names that the model has; without the moving averages that mmdet 2 kept among them."""
    named = {}
    for name, value in weights.items():
        if not isinstance(name, str) or name in own:
            named[name] = value
        elif not name.startswith('ema_'):
            name = name.removeprefix('module.')     # of a data-parallel wrapper
            # mmdet 1: conv2_offset beside conv2. mmcv means to rename it when it loads, but torch hands a module
            # only the names that begin with its own
            current = re.sub(r'_offset\.(weight|bias)$', r'.conv_offset.\1', name)
            named[current if current in own else name] = value
    return named


def _compare(model: str, own: dict, weights: dict, source: str) -> None:
    """WeightsError unless both have the same names and shapes."""
    missing = [name for name in own if name not in weights and not name.endswith('num_batches_tracked')]
    unexpected = [name for name in weights if name not in own]
    both = {name: (weights[name], own[name]) for name in own if name in weights and isinstance(own[name], Tensor)}
    no_tensors = {name: type(value) for name, (value, _) in both.items() if not isinstance(value, Tensor)}
    shapes = {name: (tuple(value.shape), tuple(mine.shape)) for name, (value, mine) in both.items()
              if isinstance(value, Tensor) and value.shape != mine.shape}
    if missing or unexpected or no_tensors or shapes:
        raise WeightsError(misfits.misfit(source, model, missing, unexpected, no_tensors, shapes))
