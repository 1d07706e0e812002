"""FGFI (Wang et al., Distilling object detectors with fine-grained feature imitation, 2019)."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amdlib.methods.level import check_integer, check_number
from amdlib.methods.step import Step, StepLoss, WarmUp


class FGFILoss(StepLoss):
    """Fine-grained imitation near objects: weight * sum(mask (F_T - adapt(F_S))^2) / (2 * imitated cells) a level.

    The mask, 1 = imitated, is `near_boxes`'; sum and cells are over the batch [own]. adapt is a 3x3 convolution and a
    ReLU, one a level [own], drawn from N(0, 1e-4), read as its deviation. Off for the first `off_steps` steps.
    `overlap`: of the largest IoU of a box, above which an anchor counts.
    Shapes and errors: see `StepLoss`.
    Source: Wang et al. 2019; values as in the authors' code [code]. RepPoints, which has no anchors, by the boxes of
    its points [own].
    """

    LABEL = 'FGFI'
    WEIGHT_EXPONENTS = {'weight': (1, 0)}       # a sum over channels, a mean over cells
    PUBLISHED = {}      # one set of values, the defaults, for every pair
    NEEDS = frozenset({'boxes', 'anchors'})

    def __init__(self, channels: Sequence[tuple[int, int]], weight: float = 0.01, overlap: float = 0.5,
                 off_steps: int = 400) -> None:
        super().__init__(channels)
        check_number('weight', weight, at_least=0)
        check_number('overlap', overlap, at_least=0, at_most=1)
        check_integer('off_steps', off_steps, at_least=0)
        self.weight = weight
        self.overlap = overlap
        self.warm_up = WarmUp(off_steps)
        self.adapt = nn.ModuleList(_adapt(*pair) for pair in self.channels)

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        weight, terms = self.weight * self.warm_up(), {}
        for level, adapt, f_s, f_t, anchors in zip(step.levels, self.adapt, step.f_s, step.f_t, step.anchors,
                                                   strict=True):
            mask = torch.stack([near_boxes(anchors, boxes, f_t.shape[2:], self.overlap) for boxes in step.boxes])
            error = (f_t - adapt(f_s)).square().sum(dim=1)                      # (N, H, W)
            terms[f'fpn_{level}'] = weight * (error * mask).sum() / (2 * mask.sum().clamp(min=1))
        return terms

    def extra_repr(self) -> str:
        return f'weight={self.weight}, overlap={self.overlap}'


@torch.no_grad()
def near_boxes(anchors: Tensor, boxes: Tensor, size: tuple[int, int], overlap: float) -> Tensor:
    """Cells of a level near an object: where the IoU of an anchor with box k exceeds `overlap` times the largest that
    an anchor of the level has with it; the union over k.

    Shapes: (H * W * A, 4) and (n, 4), both xyxy in pixels; size (H, W) -> bool (H, W), without boxes all False.
    """
    overlaps = iou(anchors, boxes.to(anchors))                                  # (H * W * A, n)
    near = overlaps > overlap * overlaps.amax(dim=0, keepdim=True)
    return near.view(*size, -1).any(dim=2)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes xyxy: (m, 4), (n, 4) -> (m, n); 0 where both are empty."""
    sides = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0)
    both = sides.prod(dim=2)
    area_a, area_b = ((one[:, 2:] - one[:, :2]).prod(dim=1) for one in (a, b))
    return both / (area_a[:, None] + area_b - both).clamp(min=1e-6)


def _adapt(student_channels: int, teacher_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(student_channels, teacher_channels, kernel_size=3, padding=1)
    nn.init.normal_(conv.weight, std=1e-4)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.ReLU())
