"""CWD (Shu et al., Channel-wise knowledge distillation for dense prediction, 2021)."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amdlib.methods.level import LevelLoss, align_channels, check_number


class CWDLoss(LevelLoss):
    """Channel-wise distillation: where each channel looks, weight * tau^2 / (C N) * sum of KL(teacher, student).

    Each channel of each image becomes a distribution over its positions, softmax(F / tau), on both sides; the student's
    feature is aligned first. Blind to a constant added to a channel, not to a factor: what the features are divided by
    acts as another tau.
    Shapes and errors: see `LevelLoss`.
    Source: Shu et al. 2021; tau and weight as in mmrazor's configs [code]. Alignment only where channels differ [own].
    """

    LABEL = 'CWD'
    WEIGHT_EXPONENTS = {'weight': (0, 0)}       # a mean over channels and images of distributions over positions
    PUBLISHED = {}      # one set of values, the defaults, for every pair

    def __init__(self, student_channels: int, teacher_channels: int, weight: float = 10.0, tau: float = 1.0) -> None:
        super().__init__(student_channels, teacher_channels)
        check_number('weight', weight, at_least=0)
        check_number('tau', tau, above=0)
        self.weight = weight
        self.tau = tau
        self.align = align_channels(student_channels, teacher_channels)

    def weighted_loss(self, f_s: Tensor, f_t: Tensor, boxes: Sequence[Tensor] | None = None,
                      image_shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        log_s, log_t = (torch.log_softmax(f.flatten(2) / self.tau, dim=2) for f in (self.align(f_s), f_t))
        divergence = (log_t.exp() * (log_t - log_s)).sum(dim=2)                 # (N, C)
        return self.weight * self.tau ** 2 * divergence.mean()

    def extra_repr(self) -> str:
        return f'weight={self.weight}, tau={self.tau}'
