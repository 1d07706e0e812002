"""ADL (Tang et al., Learning efficient detector with semi-supervised adaptive distillation, 2019): hard scores count
more. An own reading: no code of it is public."""
from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from amdlib.methods.kd import class_scores
from amdlib.methods.level import check_number
from amdlib.methods.step import Step, StepLoss, lacks


class ADLLoss(StepLoss):
    """The teacher's class scores of all anchors or points, by `adaptive_kl` summed over anchors and classes, divided by
    the sum of the teacher's probabilities to the power `theta`.

    Errors: see `StepLoss`; `ValueError` where the sides tell other classes apart.
    Source: Tang et al. 2019, its formula, `beta`, `gamma` and `theta` [paper]; `weight`, that a gradient passes through
    the factor too, as through a focal loss's, and other heads than RetinaNet's [own].
    """

    LABEL = 'ADL'
    WEIGHT_EXPONENTS = {'weight': (0, 0)}
    PUBLISHED = {}      # one set of values, the defaults
    NEEDS = frozenset({'heads'})

    def __init__(self, channels: Sequence[tuple[int, int]], weight: float = 1.0, beta: float = 1.5, gamma: float = 1.0,
                 theta: float = 1.8) -> None:
        super().__init__(channels)
        check_number('weight', weight, at_least=0)
        check_number('beta', beta, at_least=0)
        check_number('gamma', gamma, at_least=0)
        check_number('theta', theta, above=0)
        self.weight = weight
        self.beta = beta
        self.gamma = gamma
        self.theta = theta

    @classmethod
    def cannot(cls, student: Collection[str], teacher: Collection[str]) -> str:
        for side, offered in (('student', student), ('teacher', teacher)):
            if 'proposals' in offered:
                return f"needs a dense head that tells classes apart: the {side}'s first stage does not"
        return super().cannot(student, teacher) or lacks(student, teacher, 'sigmoid')

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        scores_s, scores_t = class_scores(step)
        objects = scores_t.sigmoid().pow(self.theta).sum().clamp(min=1e-12)
        return {'score': self.weight * adaptive_kl(scores_s, scores_t, self.beta, self.gamma).sum() / objects}

    def extra_repr(self) -> str:
        return f'weight={self.weight}, beta={self.beta}, gamma={self.gamma}, theta={self.theta}'


def adaptive_kl(scores_s: Tensor, scores_t: Tensor, beta: float, gamma: float) -> Tensor:
    """(1 - exp(-(KL(q, p) + beta H(q))))^gamma KL(q, p) of each score: q is the teacher's probability, p the student's.

    The factor is near 0 where both agree and the teacher is sure, as on most of the background.
    Shapes: scores before the sigmoid, any twice -> the same.
    """
    q, against = torch.sigmoid(scores_t), torch.sigmoid(-scores_t)
    entropy = F.binary_cross_entropy_with_logits(scores_t, q, reduction='none')
    kl = (q * (F.logsigmoid(scores_t) - F.logsigmoid(scores_s))
          + against * (F.logsigmoid(-scores_t) - F.logsigmoid(-scores_s))).clamp(min=0)     # below 0 by rounding
    # of 0 to the power of less than 1 the gradient is infinite
    factor = (-torch.expm1(-(kl + beta * entropy))).clamp(min=1e-12)
    return factor.pow(gamma) * kl
