"""From pixels as one detector wants them to pixels as another one does."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


class PixelMap:
    """The exact affine map, and swap of channels, between the normalisations of two detectors' preprocessors.

    Errors: ValueError for a preprocessor that normalises by other means than mean, std and a swap.
    """

    def __init__(self, source: nn.Module, target: nn.Module) -> None:
        (self.mean, self.std, swapped), (mean, std, wanted) = normalisation(source), normalisation(target)
        self.swap = swapped != wanted
        if self.swap:
            self.mean, self.std = self.mean.flip(0), self.std.flip(0)
        self.factor, self.shift = self.std / std, (self.mean - mean) / std
        self.pad_value = float(getattr(target, 'pad_value', 0))

    def __call__(self, inputs: Tensor, samples: Sequence[BaseDataElement]) -> Tensor:
        """(N, 3, H, W) -> the same size, with what lies outside of each picture as the target pads."""
        shape = (1, 3, 1, 1)
        factor, shift = (value.to(inputs).view(shape) for value in (self.factor, self.shift))
        mapped = (inputs.flip(1) if self.swap else inputs) * factor + shift
        for picture, sample in zip(mapped, samples, strict=True):
            height, width = sample.img_shape[:2]
            picture[:, height:] = self.pad_value
            picture[:, :, width:] = self.pad_value
        return mapped


def between(source: nn.Module, target: nn.Module) -> PixelMap | None:
    """The map from one preprocessor's pixels to another's; None where they are the same."""
    (mean, std, swap), (mean_t, std_t, swap_t) = normalisation(source), normalisation(target)
    same = mean.equal(mean_t) and std.equal(std_t) and swap == swap_t
    return None if same else PixelMap(source, target)


def normalisation(preprocessor: nn.Module) -> tuple[Tensor, Tensor, bool]:
    """Mean and std (3,) in the order in which channels leave it, and whether it swaps them."""
    mean, std = (getattr(preprocessor, key, None) for key in ('mean', 'std'))
    if not hasattr(preprocessor, '_channel_conversion'):
        raise ValueError(f'{type(preprocessor).__name__} normalises pixels in a way of its own; expected mean, std and '
                         'a swap of channels, as of a DetDataPreprocessor')
    mean, std = (torch.full((3,), blank) if value is None else value.detach().float().cpu().flatten().expand(3)
                 for value, blank in ((mean, 0.0), (std, 1.0)))
    return mean, std, bool(preprocessor._channel_conversion)
