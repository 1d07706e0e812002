"""Weights that the kit ships: rounded to half precision, named by their hash, with a record beside.

`<name>-<first 8 digits of its SHA-256>.pth` lies in the profile's folder below data/teachers/; `run.shipped_file` finds
it there. What is shipped is rounded first and evaluated then, so that the numbers are those of the file.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amdlib.errors import SettingError, WeightsError
from amdlib.files import ROOT, sha256
from amdlib.paper.profiles import Profile
from amdlib.weights.writing import write_weights
from amdlib.words import log


def folder_of(profile: Profile) -> Path:
    """Where a profile's weights are shipped. Errors: SettingError for one that ships none."""
    if not profile.shipped:
        raise SettingError(f'profile {profile.name} ships no weights: ' + (
            'its teachers are published ones' if profile.published else
            'its teachers are trained with its runs, on the data that is given'))
    return ROOT / profile.shipped


def rounded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors as float16, counts as they are. Errors: WeightsError where a value is too large for it."""
    found = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    if bad := [name for name, value in found.items() if not torch.isfinite(value).all()]:
        raise WeightsError(f'{", ".join(bad)}: not finite in half precision, so it cannot be shipped in it')
    return found


@contextlib.contextmanager
def shipping(folder: Path, name: str, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Iterator[Path]:
    """The file, in its place, while the block evaluates it and writes its record (`.json`) beside.

    An older file of this name goes when the block ends well, and comes back when it does not.

    Args:
        weights: as `rounded` has them.
        meta: plain values; the same weights and meta give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f'.{name}-*.old'):      # by a call that was killed
        left.unlink()
    new = folder / f'.{name}.new'
    write_weights(new, dict(weights), dict(meta))
    file = folder / f'{name}-{sha256(new)[:8]}.pth'
    was_there = file.exists()
    older = [path for path in folder.glob(f'{name}-????????.*') if path.stem != file.stem]
    aside = [path.rename(path.with_name(f'.{path.name}.old')) for path in older]
    os.replace(new, file)
    try:
        yield file
    except BaseException:
        if not was_there:
            file.unlink(missing_ok=True)
            file.with_suffix('.json').unlink(missing_ok=True)
        for path, original in zip(aside, older, strict=True):
            path.rename(original)
        raise
    for path in aside:
        path.unlink()
    replaced = [path.name for path in older if path.suffix == '.pth']
    instead = f' instead of {", ".join(replaced)}' if replaced else ''
    log.info(f'{file} ({file.stat().st_size / 1e6:.1f} MB){instead}')
