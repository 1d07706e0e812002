"""Write weight files whole."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from amdlib import files


def write_weights(path: str | Path, weights: dict[str, Tensor], meta: dict) -> None:
    """Write `{'state_dict', 'meta'}`: a kill or a full disk never leaves half a file.

    Args:
        meta: plain values only, or `read_weights` refuses the file.
    """
    # given a path, torch.save puts the file's name into the file
    with files.whole(path) as beside, open(beside, 'wb') as file:
        torch.save({'state_dict': {name: value.cpu() for name, value in weights.items()}, 'meta': meta}, file)
