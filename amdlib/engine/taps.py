"""What passes through a detector: outputs of named parts, and the maps that its head receives."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

AUTO = 'auto'   # instead of a pattern of names: the maps that the head receives, paired by size

PROBE_PX = {True: 512, False: 128}   # side of the blank image on which maps are measured, AUTO or not: at 512 px those
                                     # of strides up to 256 still differ in size


@contextmanager
def tap(model: nn.Module, names: Sequence[str | int]) -> Iterator[list[Tensor | None]]:
    """Collect features while the block runs, in the order of `names`: of a name the output of that submodule, of a
    number the map at that place among those that the head receives (`maps_in` what `extract_feat` returns)."""
    features: list[Tensor | None] = [None] * len(names)
    handed = {name: i for i, name in enumerate(names) if isinstance(name, int)}

    def keep(level: int) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            features[level] = output
        return hook

    def keep_handed(found: list[Tensor]) -> None:
        for place, level in handed.items():
            features[level] = found[place] if place < len(found) else None

    handles = [model.get_submodule(name).register_forward_hook(keep(i)) for i, name in enumerate(names)
               if not isinstance(name, int)]
    try:
        with _told_of_maps(model, keep_handed if handed else None):
            yield features
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _told_of_maps(model: nn.Module, tell: Callable[[list[Tensor]], None] | None) -> Iterator[None]:
    """`tell` gets the maps that the head receives, whoever calls `extract_feat` while the block runs: every detector of
    mmdet takes them from there, backbone, neck and all."""
    if tell is None:
        yield
        return
    own, before = model.extract_feat, vars(model).get('extract_feat')

    def told(*inputs: Any, **more: Any) -> Any:
        tell(maps_in(found := own(*inputs, **more)))
        return found
    model.extract_feat = told       # in the instance; the class keeps its own
    try:
        yield
    finally:
        del model.extract_feat
        if before is not None:      # the block lies in another one
            model.extract_feat = before


def maps_in(found: Any) -> list[Tensor]:
    """The feature maps (N, C, H, W) of a tensor, tuple, list or mapping of them, nested or not, in their order."""
    if isinstance(found, Tensor):
        return [found] if found.dim() == 4 else []
    if isinstance(found, Mapping):
        found = list(found.values())
    return [one for part in found for one in maps_in(part)] if isinstance(found, (tuple, list)) else []


def never_seen(model: nn.Module, names: Sequence[str | int], image_px: int = 128) -> list[str]:
    """Those of the named parts whose output the head does not receive, neither as it is nor through the rest of the
    part that holds them (a norm behind a convolution)."""
    named = [name for name in names if not isinstance(name, int)]
    if not named:
        return []
    features, handed = look(model, [*named, *(name.rpartition('.')[0] for name in named)], image_px)
    seen = {id(one) for one in handed}
    return [name for name, own, around in zip(named, features, features[len(named):], strict=False)
            if id(own) not in seen and id(around) not in seen]


@torch.no_grad()
def look(model: nn.Module, names: Sequence[str | int] = (), image_px: int = 128
         ) -> tuple[list[Tensor | None], list[Tensor]]:
    """The features of `names`, and all maps that the head receives, for a blank square image (batch of 1).

    Statistics of batch normalisation stay as they are.
    """
    handed: list[Tensor] = []
    blank = torch.zeros(1, 3, image_px, image_px, device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    with _told_of_maps(model, handed.extend), tap(model, names) as features:
        model.extract_feat(blank)
    model.train(was_training)
    return features, handed


def pairs_by_size(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Places of the maps of both sides that agree in height and width, in the student's order. Where a side has several
    of a size, the first belongs to the other's first, and so on."""
    left: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(teacher):
        left.setdefault(tuple(one.shape[2:]), []).append(place)
    return [(place, left[size].pop(0)) for place, one in enumerate(student) if left.get(size := tuple(one.shape[2:]))]


def told_sizes(maps: Sequence[Tensor], image_px: int) -> str:
    """Stride, channels and grid of maps, for a message: `8 (256 x 64x64), 16 (256 x 32x32)`."""
    return ', '.join(f'{image_px / height:.3g} ({channels} x {height}x{width})'
                     for _, channels, height, width in (one.shape for one in maps))
