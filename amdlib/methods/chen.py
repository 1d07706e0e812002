"""Chen (Chen et al., Learning efficient object detection models with knowledge distillation, 2017): scores, boxes and
features of a two-stage detector. Written from the paper's formulas; where it stays silent, an own reading."""
from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from amdlib.methods.fgfi import iou
from amdlib.methods.gid import positive
from amdlib.methods.kd import alike, compared, per_anchor, sigmoid_kd
from amdlib.methods.level import check_number
from amdlib.methods.step import Step, StepLoss, lacks

STDS = (0.1, 0.1, 0.2, 0.2)     # what Fast R-CNN divides a box head's targets by


class ChenLoss(StepLoss):
    """Soft scores, bounded boxes and hints, in the first stage and in the box head of the student's proposals.

    score (`score_weight`): `soft_error`, mean over proposals. box (`box_weight`): `bounded_error` of the moves of
    proposals that have a box, divided by all proposals as the detection loss is. rpn_score, rpn_box: the same of the
    first stage's anchors, without a weight of the background; the first is divided by the sum of the teacher's
    probabilities, the second is a mean over the anchors with a box (an IoU of 0.7 or more, or the nearest) [own].
    hint (`hint_weight`): mean squared difference of the features, the student's behind a 1x1 convolution even where
    channels agree, mean over levels [own]. `background`: the weight of that class in the box head's soft_error;
    `margin`: see `bounded_error`.
    The paper's class loss is mu * hard + (1 - mu) * soft with mu = .5. Here the student's own loss stays whole, so that
    the soft part weighs as much as the hard one with `score_weight` 1 [own].
    A cascade's box head: see `kd.class_scores`. Levels of the first stage that are not compared have no part.
    Errors: see `StepLoss`; `ValueError` where the sides tell other classes apart.
    Source: Chen et al. 2017; mu, `box_weight` (nu), `hint_weight` and `background` [paper], `margin` as in public code
    of others, which has faults [code].
    """

    LABEL = 'Chen'
    WEIGHT_EXPONENTS = {'score_weight': (0, 0), 'box_weight': (0, 0), 'hint_weight': (0, 0)}
    PUBLISHED = {}      # one set of values, the defaults, for every two-stage pair
    NEEDS = frozenset({'boxes', 'anchors', 'heads', 'proposals'})

    def __init__(self, channels: Sequence[tuple[int, int]], score_weight: float = 1.0, box_weight: float = 0.5,
                 hint_weight: float = 0.5, background: float = 1.5, margin: float = 0.01) -> None:
        super().__init__(channels)
        for name, value in (('score_weight', score_weight), ('box_weight', box_weight), ('hint_weight', hint_weight),
                            ('background', background), ('margin', margin)):
            check_number(name, value, at_least=0)
        self.score_weight = score_weight
        self.box_weight = box_weight
        self.hint_weight = hint_weight
        self.background = background
        self.margin = margin
        self.adapt = nn.ModuleList(nn.Conv2d(*pair, kernel_size=1) for pair in self.channels)

    @classmethod
    def cannot(cls, student: Collection[str], teacher: Collection[str]) -> str:
        return lacks(student, teacher, 'proposals') or super().cannot(student, teacher) or lacks(
            student, teacher, 'sigmoid')

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        score, box = self._of_proposals(step)
        rpn_score, rpn_box = self._of_anchors(step)
        hint = sum((adapt(f_s) - f_t).square().mean() for adapt, f_s, f_t in zip(
            self.adapt, step.f_s, step.f_t, strict=True)) / len(self.adapt)
        return {'rpn_score': self.score_weight * rpn_score, 'rpn_box': self.box_weight * rpn_box,
                'score': self.score_weight * score, 'box': self.box_weight * box, 'hint': self.hint_weight * hint}

    def _of_proposals(self, step: Step) -> tuple[Tensor, Tensor]:
        scores_s, scores_t = alike(step.roi_scores('student'), step.roi_scores('teacher'))
        weights = scores_s.new_ones(scores_s.shape[1])
        weights[-1] = self.background
        matched = [nearest_box(*image) for image in zip(step.proposals, step.boxes, step.labels, strict=True)]
        has, targets, labels = map(torch.cat, zip(*matched, strict=True))
        stds, n = scores_s.new_tensor(STDS), max(len(scores_s), 1)
        moves_s, moves_t = (moved_as(step.roi_deltas(side)[has], labels[has]) / stds for side in ('student', 'teacher'))
        bounded = bounded_error(moves_s, moves_t.detach(), targets[has].to(moves_s) / stds, self.margin)
        return soft_error(scores_s, scores_t, weights).sum() / n, bounded.sum() / n

    def _of_anchors(self, step: Step) -> tuple[Tensor, Tensor]:
        places = compared(step)
        (z_s, z_t), (moves_s, moves_t) = (
            alike(*(per_anchor([heads[i][place] for place in places], width) for heads in (step.heads_s, step.heads_t)))
            for i, width in enumerate((1, 4)))
        anchors = torch.cat(step.anchors)
        has = torch.stack([positive(anchors, boxes, least=0.7) for boxes in step.boxes])                # (N, M)
        targets = torch.stack([nearest_box(anchors, *image)[1]
                               for image in zip(step.boxes, step.labels, strict=True)])                 # (N, M, 4)
        bounded = bounded_error(moves_s[has], moves_t[has], targets[has].to(moves_s), self.margin)
        soft = sigmoid_kd(z_s, z_t).sum() / z_t.sigmoid().sum().clamp(min=1e-12)
        return soft, bounded.sum() / max(len(bounded), 1)

    def extra_repr(self) -> str:
        return (f'score_weight={self.score_weight}, box_weight={self.box_weight}, hint_weight={self.hint_weight}, '
                f'background={self.background}, margin={self.margin}')


def soft_error(scores_s: Tensor, scores_t: Tensor, weights: Tensor) -> Tensor:
    """-sum over classes of weight * the teacher's probability * log of the student's; at equal scores not 0.

    Shapes: scores before the softmax (..., K) twice, weights (K,) -> (...).
    """
    return -(weights * scores_t.softmax(dim=-1) * scores_s.log_softmax(dim=-1)).sum(dim=-1)


def bounded_error(moves_s: Tensor, moves_t: Tensor, targets: Tensor, margin: float) -> Tensor:
    """The student's squared error, where with the margin it exceeds the teacher's; else 0, and so is its gradient.

    Shapes: (k, 4) three times -> (k,).
    """
    error_s, error_t = ((one - targets).square().sum(dim=1) for one in (moves_s, moves_t))
    return torch.where(error_s + margin > error_t, error_s, 0)


@torch.no_grad()
def nearest_box(proposals: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each proposal whether it has a box, by an IoU of 0.5 or more, and of the box that it overlaps most the moves
    that lead there and the class.

    Shapes: (n, 4) and (m, 4), both xyxy in pixels, (m,) -> bool (n,), (n, 4), (n,).
    """
    if not len(boxes):
        none = torch.zeros(len(proposals), dtype=torch.bool, device=proposals.device)
        return none, torch.zeros_like(proposals), none.long()
    most, which = iou(proposals, boxes.to(proposals)).max(dim=1)
    return most >= 0.5, moves(proposals, boxes.to(proposals)[which]), labels[which]


def moves(start: Tensor, end: Tensor) -> Tensor:
    """What moves boxes xyxy to others: of the centre in sides of the first, of the sides as logarithms: (k, 4) twice ->
    (k, 4)."""
    (centre, sides), (to_centre, to_sides) = (((one[:, :2] + one[:, 2:]) / 2, (one[:, 2:] - one[:, :2]).clamp(min=1e-6))
                                              for one in (start, end))
    return torch.cat([(to_centre - centre) / sides, (to_sides / sides).log()], dim=1)


def moved_as(deltas: Tensor, labels: Tensor) -> Tensor:
    """The moves that a box head means for these classes: (k, 1 or classes, 4) and (k,) -> (k, 4)."""
    if deltas.shape[1] == 1:
        return deltas[:, 0]
    return deltas[torch.arange(len(labels), device=deltas.device), labels]
