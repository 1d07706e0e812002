"""CrossKD (Wang et al., Cross-head knowledge distillation for object detection, 2024): the teacher's head goes on with
the student's feature. Written from the paper's formulas."""
from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdlib.methods.gid import decoded, positive
from amdlib.methods.kd import alike, compared, per_anchor
from amdlib.methods.level import check_integer, check_number
from amdlib.methods.pkd import standardised
from amdlib.methods.step import Step, StepLoss, lacks


class CrossKDLoss(StepLoss):
    """Scores and boxes of the teacher's head on the student's feature, beside the teacher's own.

    In both branches of the student's head the feature after the convolution number `after`, made like the teacher's
    (`in_place_of`), passes the rest of the teacher's branch, which is frozen: a gradient passes through it, none goes
    into it. score (`score_weight`): `score_error` of the crossed scores. box (`box_weight`): 1 - `giou` of the crossed
    boxes with the teacher's, weighted by the teacher's largest score. Both are sums over anchors divided by the number
    of `positive` anchors.
    Of a head with fewer convolutions, all but the last are the student's, at least one [own].
    Errors: see `StepLoss`; `ValueError` where the heads are not of the same width, classes and anchors.
    Source: Wang et al. 2024, its formulas [paper]; `after` and weights as published for RetinaNet [code].
    """

    LABEL = 'CrossKD'
    WEIGHT_EXPONENTS = {'score_weight': (0, 0), 'box_weight': (0, 0)}
    PUBLISHED = {'retinanet': {'score_weight': 1.0, 'box_weight': 1.0, 'after': 3}}
    NEEDS = frozenset({'boxes', 'anchors', 'heads'})

    def __init__(self, channels: Sequence[tuple[int, int]], score_weight: float = 1.0, box_weight: float = 1.0,
                 after: int = 3) -> None:
        super().__init__(channels)
        check_number('score_weight', score_weight, at_least=0)
        check_number('box_weight', box_weight, at_least=0)
        check_integer('after', after, at_least=1)
        self.score_weight = score_weight
        self.box_weight = box_weight
        self.after = after

    @classmethod
    def cannot(cls, student: Collection[str], teacher: Collection[str]) -> str:
        return super().cannot(student, teacher) or lacks(student, teacher, 'branches', 'sigmoid')

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        head = step.teacher_head
        places, (maps_t, maps_of_boxes_t) = compared(step), step.heads_t
        scores, scores_t = alike(*(per_anchor([maps[place] for place in places], head.cls_out_channels) for maps in (
            self._crossed(step, 'cls_convs', head.cls_convs, head.retina_cls), maps_t)))
        deltas, deltas_t = alike(*(per_anchor([maps[place] for place in places], 4) for maps in (
            self._crossed(step, 'reg_convs', head.reg_convs, head.retina_reg), maps_of_boxes_t)))
        anchors = torch.cat(step.anchors)
        apart = 1 - giou(decoded(head, anchors, deltas), decoded(head, anchors, deltas_t))
        positives = max(sum(int(positive(anchors, boxes).sum()) for boxes in step.boxes), 1)
        return {'score': self.score_weight * score_error(scores, scores_t).sum() / positives,
                'box': self.box_weight * (scores_t.amax(dim=2).sigmoid() * apart).sum() / positives}

    def _crossed(self, step: Step, name: str, convs: nn.ModuleList, output: nn.Module) -> list[Tensor]:
        """What a branch of the teacher makes of the student's feature, for every level of the head."""
        # DEVIATION CrossKD-1: published for heads of four convolutions; of a shorter one the last is the teacher's
        after = min(self.after, max(1, len(convs) - 1))
        inside = f'{name}.{after - 1}'
        if inside not in step.inside_s:
            raise ValueError(f"the student's head has no {inside}, which the teacher's has")
        rest = nn.Sequential(*convs[after:], output)
        return [rest(in_place_of(*alike(*pair)))
                for pair in zip(step.inside_s[inside], step.inside_t[inside], strict=True)]

    def extra_repr(self) -> str:
        return f'score_weight={self.score_weight}, box_weight={self.box_weight}, after={self.after}'


def in_place_of(h_s: Tensor, h_t: Tensor) -> Tensor:
    """The student's feature with mean and deviation, over images and positions, of each of the teacher's channels.

    Shapes: (N, C, H, W) twice -> (N, C, H, W).
    """
    over = dict(dim=(0, 2, 3), keepdim=True)
    return standardised(h_s) * h_t.std(correction=0, **over) + h_t.mean(**over)


def score_error(scores: Tensor, scores_t: Tensor) -> Tensor:
    """Binary cross-entropy with the teacher's probability, weighted by the distance of the probabilities, summed over
    classes; 0 where they are equal.

    Shapes: scores before the sigmoid (..., K) twice -> (...).
    """
    p_t = torch.sigmoid(scores_t)
    each = F.binary_cross_entropy_with_logits(scores, p_t, reduction='none')
    return ((torch.sigmoid(scores) - p_t).abs() * each).sum(dim=-1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes xyxy, one by one: (..., 4) twice -> (...), in (-1, 1]."""
    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(dim=-1)
    (a_low, a_high), (b_low, b_high) = a.split(2, dim=-1), b.split(2, dim=-1)
    inside = area(torch.maximum(a_low, b_low), torch.minimum(a_high, b_high))
    union = area(a_low, a_high) + area(b_low, b_high) - inside
    around = area(torch.minimum(a_low, b_low), torch.maximum(a_high, b_high))
    return inside / union.clamp(min=1e-6) - (around - union) / around.clamp(min=1e-6)
