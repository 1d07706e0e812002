"""LD (Zheng et al., Localization distillation for dense object detection, 2022): where the sides of a box may lie."""
from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from amdlib.methods.fgfi import iou
from amdlib.methods.kd import alike, compared, per_anchor, softmax_kd
from amdlib.methods.level import check_number
from amdlib.methods.step import Step, StepLoss, lacks


class LDLoss(StepLoss):
    """The teacher's distributions of the sides of boxes, and its classes, for detectors that have such distributions.

    An anchor's error is `side_error`. main (`main_weight`): summed over the main region, the anchors that are assigned
    a box, each weighted by the student's largest score, detached. valuable (`valuable_weight`): summed over the
    valuable region around it, each weighted by its IoU, over 4. class (`class_weight`): `softmax_kd` at
    `class_temperature`, mean over classes and over the assigned anchors of a level, summed over levels. `regions` has
    both regions, of the levels that are compared.
    `diou`: the valuable region is bounded by the distance-IoU, as in the paper and the authors' code, and not by the
    IoU that weights it [own].
    Errors: see `StepLoss`; `ValueError` where the sides have other classes, anchors or bins.
    Source: Zheng et al. 2022; values, weights and divisors as in the authors' code [code]; mmdet's own LDHead has the
    main region alone, alike.
    """

    LABEL = 'LD'
    WEIGHT_EXPONENTS = {'main_weight': (0, 0, 1), 'valuable_weight': (0, 0, 1), 'class_weight': (0, 0)}
    PUBLISHED = {}      # one set of values, the defaults, for GFL
    NEEDS = frozenset({'boxes', 'anchors', 'heads'})

    def __init__(self, channels: Sequence[tuple[int, int]], main_weight: float = 0.25, valuable_weight: float = 0.25,
                 class_weight: float = 10.0, temperature: float = 10.0, class_temperature: float = 2.0,
                 diou: bool = False) -> None:
        super().__init__(channels)
        for name, weight in (('main_weight', main_weight), ('valuable_weight', valuable_weight),
                             ('class_weight', class_weight)):
            check_number(name, weight, at_least=0)
        check_number('temperature', temperature, above=0)
        check_number('class_temperature', class_temperature, above=0)
        self.main_weight = main_weight
        self.valuable_weight = valuable_weight
        self.class_weight = class_weight
        self.temperature = temperature
        self.class_temperature = class_temperature
        self.diou = diou

    @classmethod
    def cannot(cls, student: Collection[str], teacher: Collection[str]) -> str:
        return lacks(student, teacher, 'distributions') or super().cannot(student, teacher) or lacks(
            student, teacher, 'sigmoid')

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        head, places = step.teacher_head, compared(step)
        (z_s, z_t), (sides_s, sides_t) = (
            [per_anchor(side, width) for side in zip(*(alike(of_s[i], of_t[i]) for i in places), strict=True)]
            for width, of_s, of_t in zip((head.cls_out_channels, 4 * (head.reg_max + 1)), step.heads_s, step.heads_t,
                                         strict=True))
        main, valuable = map(torch.stack, zip(*(regions(step.anchors, boxes, self.diou) for boxes in step.boxes),
                                              strict=True))                             # (N, M)
        compares = main | (valuable > 0)
        error = side_error(sides_s[compares], sides_t[compares], self.temperature)
        sure = z_s.detach().sigmoid().amax(dim=2) * main
        share = torch.cat([level / level.sum().clamp(min=1) for level in main.to(error.dtype).split(
            [len(anchors) for anchors in step.anchors], dim=1)], dim=1)
        of_class = softmax_kd(z_s[main], z_t[main], self.class_temperature) / head.cls_out_channels
        return {'main': self.main_weight * (sure[compares] * error).sum(),
                'valuable': self.valuable_weight * (valuable[compares] * error).sum() / 4,
                'class': self.class_weight * (share[main] * of_class).sum()}

    def extra_repr(self) -> str:
        return (f'main_weight={self.main_weight}, valuable_weight={self.valuable_weight}, '
                f'class_weight={self.class_weight}, temperature={self.temperature}, '
                f'class_temperature={self.class_temperature}, diou={self.diou}')


def side_error(sides_s: Tensor, sides_t: Tensor, temperature: float) -> Tensor:
    """KL(teacher, student) of a side's distribution at a temperature T, times T^2, mean over bins and the four sides.

    Shapes: before the softmax (k, 4 * bins) twice -> (k,).
    """
    sides_s, sides_t = (sides.unflatten(1, (4, -1)) for sides in (sides_s, sides_t))
    return softmax_kd(sides_s, sides_t, temperature).mean(dim=1) / sides_s.shape[2]


@torch.no_grad()
def regions(levels: Sequence[Tensor], boxes: Tensor, diou: bool = False, nearest: int = 9,
            least: float = 0.25) -> tuple[Tensor, Tensor]:
    """The main region, what ATSS assigns to the boxes of an image, and the valuable region with its weights.

    Candidates of a box are the `nearest` anchors of each level by their centres; alpha is mean + standard deviation of
    their IoU with it. Main are the candidates with an IoU of alpha or more whose centre lies in the box; valuable are
    all anchors with an IoU (or distance-IoU) below alpha and of `least` * alpha or more. An anchor's weight is its
    largest IoU with a box for which it is valuable.
    Shapes: anchors of each level (m, 4) and boxes (n, 4), all xyxy in pixels -> bool (M,), and (M,), 0 where it is not
    valuable.
    """
    anchors = torch.cat(list(levels))
    if not len(boxes) or len(anchors) < 2:      # a single candidate has no deviation
        return torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device), anchors.new_zeros(len(anchors))
    boxes = boxes.to(anchors)
    overlaps = iou(anchors, boxes)                                                      # (M, n)
    centres, of_boxes = ((one[:, :2] + one[:, 2:]) / 2 for one in (anchors, boxes))
    apart = (centres[:, None] - of_boxes).square().sum(dim=2).sqrt()
    candidate = torch.cat([torch.zeros_like(level, dtype=torch.bool).scatter(
        0, level.topk(min(nearest, len(level)), dim=0, largest=False).indices, True)
        for level in apart.split([len(level) for level in levels])])
    # the same number of candidates for every box
    of_candidates = overlaps.T[candidate.T].view(len(boxes), -1)
    alpha = of_candidates.mean(dim=1) + of_candidates.std(dim=1)
    inside = (torch.cat([centres[:, None] - boxes[:, :2], boxes[:, 2:] - centres[:, None]], dim=2) > 0.01).all(dim=2)
    bounded = overlaps
    if diou:
        around = torch.maximum(anchors[:, None, 2:], boxes[:, 2:]) - torch.minimum(anchors[:, None, :2], boxes[:, :2])
        bounded = overlaps - apart.square() / around.square().sum(dim=2).clamp(min=1e-6)
    valuable = (bounded < alpha) & (bounded >= least * alpha)
    return (candidate & inside & (overlaps >= alpha)).any(dim=1), (overlaps * valuable).amax(dim=1)
