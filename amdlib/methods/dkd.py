"""DKD (Zhao et al., Decoupled knowledge distillation, 2022): whether it is the target, and what else it is."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from amdlib.methods.fgfi import iou
from amdlib.methods.kd import class_scores
from amdlib.methods.level import check_number
from amdlib.methods.step import Step, StepLoss


class DKDLoss(StepLoss):
    """KD of the student's proposals in two parts, mean over proposals: the target class against the rest (`alpha`), and
    the other classes among themselves (`beta`).

    A proposal's target is the class of the box that it overlaps most, by an IoU of 0.5 or more, else the background:
    how mmdet's box head assigns. A cascade's scores: see `kd.class_scores`.
    Errors: see `StepLoss`; `ValueError` where the sides tell other classes apart.
    Source: Zhao et al. 2022; values as in the authors' code for detectors [code].
    """

    LABEL = 'DKD'
    WEIGHT_EXPONENTS = {'alpha': (0, 0), 'beta': (0, 0)}
    PUBLISHED = {}      # one set of values, the defaults, for every two-stage pair
    NEEDS = frozenset({'boxes', 'proposals'})

    def __init__(self, channels: Sequence[tuple[int, int]], alpha: float = 1.0, beta: float = 0.25,
                 temperature: float = 1.0) -> None:
        super().__init__(channels)
        check_number('alpha', alpha, at_least=0)
        check_number('beta', beta, at_least=0)
        check_number('temperature', temperature, above=0)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        scores_s, scores_t = class_scores(step)
        background = scores_s.shape[1] - 1
        classes = torch.cat([targets(*image, background)
                             for image in zip(step.proposals, step.boxes, step.labels, strict=True)])
        target, others = decoupled(scores_s, scores_t, classes, self.temperature)
        n = max(len(classes), 1)
        return {'target': self.alpha * target.sum() / n, 'others': self.beta * others.sum() / n}

    def extra_repr(self) -> str:
        return f'alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}'


def targets(proposals: Tensor, boxes: Tensor, labels: Tensor, background: int) -> Tensor:
    """Of each proposal the class of the box that it overlaps most, by 0.5 or more, else the background's number.

    Shapes: (n, 4) and (m, 4), both xyxy in pixels, (m,) -> (n,).
    """
    if not len(boxes):
        return labels.new_full((len(proposals),), background)
    most, which = iou(proposals, boxes.to(proposals)).max(dim=1)
    return torch.where(most >= 0.5, labels[which], background)


def decoupled(scores_s: Tensor, scores_t: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """KL(teacher, student), times T^2, of target against the rest, and among the other classes alone.

    In logarithms throughout, so that no probability is 0 and none needs a clamp, as the authors' code does [own].
    Shapes: scores before the softmax (n, K) twice, the target's class (n,) -> two of (n,). With two classes there is
    one other, and the second is 0.
    """
    is_target = F.one_hot(labels, scores_s.shape[1]).bool()
    target, others = [], []
    for scores in (scores_s / temperature, scores_t / temperature):
        rest = scores[~is_target].view(len(scores), scores.shape[1] - 1)
        target.append(torch.log_softmax(torch.stack([scores[is_target], rest.logsumexp(dim=1)], dim=1), dim=1))
        others.append(torch.log_softmax(rest, dim=1))
    return tuple(temperature ** 2 * F.kl_div(log_s, log_t, reduction='none', log_target=True).sum(dim=1)
                 for log_s, log_t in (target, others))
