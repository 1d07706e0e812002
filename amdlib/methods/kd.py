"""KD (Hinton et al., Distilling the knowledge in a neural network, 2015): the teacher's softened class scores."""
from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from amdlib.methods.level import check_number
from amdlib.methods.step import Step, StepLoss, lacks


class KDLoss(StepLoss):
    """The teacher's softened class scores of the same anchors, points or proposals.

    Heads with a sigmoid: `sigmoid_kd` summed over all anchors or points, divided by the sum of the teacher's largest
    scores [own], which counts objects softly: a mean over anchors would count the background. A box head with a
    softmax: the mean of `softmax_kd` over the student's proposals.
    Errors: see `StepLoss`; `ValueError` where the sides tell other classes apart.
    Source: Hinton et al. 2015 name no detector: weight and temperature are [own]; 1 is DKD's temperature on proposals.
    """

    LABEL = 'KD'
    WEIGHT_EXPONENTS = {'weight': (0, 0)}
    PUBLISHED = {}      # nothing is published for these detectors
    NEEDS = frozenset({'heads', 'proposals'})

    def __init__(self, channels: Sequence[tuple[int, int]], weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__(channels)
        check_number('weight', weight, at_least=0)
        check_number('temperature', temperature, above=0)
        self.weight = weight
        self.temperature = temperature

    @classmethod
    def cannot(cls, student: Collection[str], teacher: Collection[str]) -> str:
        return cannot_score_alike(student, teacher)

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        scores_s, scores_t = class_scores(step)
        if 'proposals' in step.has:
            term = softmax_kd(scores_s, scores_t, self.temperature).sum() / max(len(scores_s), 1)
        else:
            objects = scores_t.sigmoid().amax(dim=-1).sum().clamp(min=1e-12)
            term = sigmoid_kd(scores_s, scores_t, self.temperature).sum() / objects
        return {'score': self.weight * term}

    def extra_repr(self) -> str:
        return f'weight={self.weight}, temperature={self.temperature}'


def sigmoid_kd(scores_s: Tensor, scores_t: Tensor, temperature: float = 1.0) -> Tensor:
    """Binary cross-entropy with the teacher's probability, both softened, times T^2, summed over classes.

    Its least value, at equal scores, is the teacher's entropy and not 0.
    Shapes: scores before the sigmoid (..., K) twice -> (...).
    """
    target = torch.sigmoid(scores_t / temperature)
    each = F.binary_cross_entropy_with_logits(scores_s / temperature, target, reduction='none')
    return temperature ** 2 * each.sum(dim=-1)


def softmax_kd(scores_s: Tensor, scores_t: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher, student) over classes at a temperature T, times T^2.

    Shapes: scores before the softmax (..., K) twice -> (...).
    """
    log_s, log_t = (torch.log_softmax(scores / temperature, dim=-1) for scores in (scores_s, scores_t))
    return temperature ** 2 * F.kl_div(log_s, log_t, reduction='none', log_target=True).sum(dim=-1)


# --- Who scores what -------------------------------------------------------------------------------------------------

def class_scores(step: Step) -> tuple[Tensor, Tensor]:
    """Both sides' scores of the same things, before sigmoid or softmax; the teacher's without gradient.

    Of detectors with proposals the student's proposals, for a softmax: (n, classes + 1) twice. A cascade scores them
    with its first stage: the later ones are trained on the boxes of the stage before, and to stricter IoU than the
    student's. Otherwise all anchors or points, for a sigmoid: (N, M, classes) twice.
    Errors: `ValueError` where the shapes differ.
    """
    if 'proposals' in step.has:
        return alike(step.roi_scores('student'), step.roi_scores('teacher'))
    width = step.teacher_head.cls_out_channels
    return alike(per_anchor(step.heads_s[0], width), per_anchor(step.heads_t[0], width))


def per_anchor(maps: Sequence[Tensor], width: int) -> Tensor:
    """A head's maps of all levels as one row an anchor (or point): by level, row, column, and anchor of a position.

    Shapes: (N, A * width, H, W) a level -> (N, sum of H * W * A, width).
    """
    return torch.cat([one.permute(0, 2, 3, 1).reshape(len(one), -1, width) for one in maps], dim=1)


def compared(step: Step) -> list[int]:
    """Of each compared level, its place among the levels of the head."""
    strides = [int(stride[0]) for stride in step.teacher_head.prior_generator.strides]
    return [strides.index(stride) for stride in step.strides]


def alike(of_student: Tensor, of_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The two, the teacher's detached; `ValueError` where their shapes differ (other classes or anchors)."""
    if of_student.shape != of_teacher.shape:
        raise ValueError('student and teacher must score the same classes of the same anchors or proposals, got '
                         f'{tuple(of_student.shape)} and {tuple(of_teacher.shape)}')
    return of_student, of_teacher.detach()


def cannot_score_alike(student: Collection[str], teacher: Collection[str]) -> str:
    """Why two detectors have no class scores of the same things, in words; '' where they have."""
    if ('proposals' in student) != ('proposals' in teacher):
        return 'needs class scores of the same things: one scores anchors, the other proposals'
    return '' if 'proposals' in student else lacks(student, teacher, 'sigmoid')
