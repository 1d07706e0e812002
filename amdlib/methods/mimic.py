"""Mimic (Li et al., Mimicking very efficient network for object detection, 2017): features within proposals."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amdlib.methods.level import align_channels, check_number
from amdlib.methods.step import Step, StepLoss


class MimicLoss(StepLoss):
    """RoIAlign (7x7) of both pyramids at the teacher's proposals: weight * sum((F_T - align(F_S))^2) / (2 * elements).

    align is a 1x1 convolution of what was pooled, none where the channels agree [own].
    Errors: see `StepLoss`; `ValueError` where the levels have not all the same channels.
    Source: Li et al. 2017; weight and proposals as in public code of a later framework (EOD) [code].
    """

    LABEL = 'Mimic'
    WEIGHT_EXPONENTS = {'weight': (0, 0)}
    PUBLISHED = {}      # one value, the default, for every two-stage pair
    NEEDS = frozenset({'proposals'})

    def __init__(self, channels: Sequence[tuple[int, int]], weight: float = 1.0) -> None:
        super().__init__(channels)
        check_number('weight', weight, at_least=0)
        self.weight = weight
        self.align = align_channels(*the_pair(self.channels))

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        f_s, f_t = (step.roi_features(side, step.proposals_t) for side in ('student', 'teacher'))
        return {'feature': self.weight * imitation(self.align(f_s), f_t.detach())}

    def extra_repr(self) -> str:
        return f'weight={self.weight}'


def imitation(f_s: Tensor, f_t: Tensor) -> Tensor:
    """Half of the mean squared difference: two (m, C, h, w) -> 0-d; 0 without proposals."""
    return (f_t - f_s).square().sum() / (2 * max(f_t.numel(), 1))


def the_pair(channels: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The channels of student and teacher, one for all levels; `ValueError` where levels differ."""
    if len(set(channels)) != 1:
        raise ValueError(f'channels={channels!r}: expected the same of all levels, whose boxes are pooled together')
    return channels[0]
