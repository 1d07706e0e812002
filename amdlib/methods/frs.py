"""FRS (Du et al., Distilling object detectors with feature richness, 2021): weights by the teacher's class scores."""
from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdlib.methods.kd import alike, compared
from amdlib.methods.level import check_number
from amdlib.methods.step import Step, StepLoss, WarmUp, lacks


class FRSLoss(StepLoss):
    """Features and class scores, compared where the teacher finds anything: summed over the compared levels.

    feature (`feature_weight`): `mean_by` its `richness` of (adapt(F_S) - F_T)^2, adapt a 3x3 convolution a level. score
    (`score_weight`): the same mean of the binary cross-entropy with the teacher's probability. Both rise linearly over
    the first `ramp_steps` steps. Of a two-stage detector, the first stage's scores.
    Shapes and errors: see `StepLoss`; `ValueError` where the sides tell other classes apart.
    Source: Du et al. 2021; values as in the authors' code [code]. RepPoints with RetinaNet's [own]. Of a two-stage
    detector the levels that the kit compares, not the coarsest, whose feature is a subsampled one [own].
    """

    LABEL = 'FRS'
    WEIGHT_EXPONENTS = {'feature_weight': (1, 0), 'score_weight': (0, 0)}   # a sum over channels, a mean over cells
    PUBLISHED = {'retinanet': {'feature_weight': 0.005, 'score_weight': 0.02},
                 'faster_rcnn': {'feature_weight': 0.002, 'score_weight': 0.1}}
    NEEDS = frozenset({'heads'})

    def __init__(self, channels: Sequence[tuple[int, int]], feature_weight: float = 0.005, score_weight: float = 0.02,
                 ramp_steps: int = 500) -> None:
        super().__init__(channels)
        check_number('feature_weight', feature_weight, at_least=0)
        check_number('score_weight', score_weight, at_least=0)
        self.feature_weight = feature_weight
        self.score_weight = score_weight
        self.warm_up = WarmUp(ramp_steps=ramp_steps)
        self.adapt = nn.ModuleList(nn.Conv2d(*pair, kernel_size=3, padding=1) for pair in self.channels)

    @classmethod
    def cannot(cls, student: Collection[str], teacher: Collection[str]) -> str:
        return super().cannot(student, teacher) or lacks(student, teacher, 'sigmoid')

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        feature, score = 0, 0
        # DEVIATION FRS-1: a two-stage detector's coarsest level has scores, and no feature that is compared
        for place, adapt, f_s, f_t in zip(compared(step), self.adapt, step.f_s, step.f_t, strict=True):
            z_s, z_t = alike(*(heads[0][place] for heads in (step.heads_s, step.heads_t)))
            mask = richness(z_t)
            feature = feature + mean_by(mask, (adapt(f_s) - f_t).square())
            score = score + mean_by(mask, F.binary_cross_entropy_with_logits(z_s, z_t.sigmoid(), reduction='none'))
        factor = self.warm_up()
        return {'feature': factor * self.feature_weight * feature, 'score': factor * self.score_weight * score}

    def extra_repr(self) -> str:
        return f'feature_weight={self.feature_weight}, score_weight={self.score_weight}'


def richness(scores_t: Tensor) -> Tensor:
    """The teacher's largest class score at a cell, over anchors and classes.

    Shapes: scores before the sigmoid (N, A * K, H, W) -> (N, H, W), in (0, 1).
    """
    return torch.sigmoid(scores_t.amax(dim=1))


def mean_by(mask: Tensor, error: Tensor) -> Tensor:
    """Mean over images and cells, weighted by the mask, of an error summed over channels: (N, H, W) and (N, C, H, W) ->
    0-d."""
    return (mask * error.sum(dim=1)).sum() / mask.sum().clamp(min=1e-12)
