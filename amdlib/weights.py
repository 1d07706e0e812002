"""Weight files: read without running code from them, load with every tensor matched, write whole or not at all."""
from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn


class WeightsError(ValueError):
    """A weight file cannot be read or does not fit the model; the message says which tensors."""


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


def _statistic(owner: type, name: str):
    """Stands in for `getattr`, with which a HistoryBuffer pickles its own statistics."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr of {name!r} from {owner!r}')
    return getattr(owner, name)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a torch, mmengine or model-zoo file; 'state_dict' is unwrapped.

    Errors: FileNotFoundError; WeightsError for a truncated file or one that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no weights at {path}')
    try:
        with torch.serialization.safe_globals(harmless_types()):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file that is no checkpoint
        told = str(error).partition('Unpickler error: ')[2] or str(error)  # what was refused; empty for a cut pickle
        raise WeightsError(f'{path} ({path.stat().st_size} bytes) is truncated, not a checkpoint, or holds code: '
                           f'{" ".join(told.split())[:200] or type(error).__name__}') from error
    weights = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(weights, dict):
        raise WeightsError(f'{path} holds {type(weights).__name__}, not a state dict')
    return weights


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load `weights` with every tensor of model and file matched, else WeightsError listing what is not."""
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    shapes = [f'{name}: file {tuple(weights[name].shape)}, model {tuple(own[name].shape)}' for name in own
              if name in weights and isinstance(own[name], Tensor) and weights[name].shape != own[name].shape]
    if missing or unexpected or shapes:
        lists = '\n'.join(f'  {what} ({len(names)}): ' + ', '.join(names[:8]) + (' ...' if len(names) > 8 else '')
                          for what, names in (('not in the file', missing), ('not in the model', unexpected),
                                              ('of another shape', shapes)) if names)
        raise WeightsError(f'{source} does not fit {type(model).__name__}:\n{lists}')
    model.load_state_dict(weights)


def write_weights(path: str | Path, weights: dict[str, Tensor], meta: dict) -> None:
    """Write `{'state_dict', 'meta'}` beside `path` and rename: a kill never leaves half a file."""
    path = Path(path)
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    with open(beside, 'wb') as file:  # given a path, torch.save puts the file's name into the file
        torch.save({'state_dict': {name: value.cpu() for name, value in weights.items()}, 'meta': meta}, file)
    os.replace(beside, path)


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
