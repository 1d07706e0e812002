"""GID (Dai et al., General instance distillation for object detection, 2021): where the two detectors differ most."""
from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdlib.methods.fgfi import iou
from amdlib.methods.kd import alike, compared, per_anchor
from amdlib.methods.level import align_channels, check_integer, check_number
from amdlib.methods.mimic import the_pair
from amdlib.methods.step import Step, StepLoss, lacks


class GIDLoss(StepLoss):
    """Features, relations and head outputs of the `general_instances`, the best of every image.

    feature (`feature_weight`): squared error of RoIAlign (10x10) of both pyramids, summed over channels, mean over
    instances and pooled positions. relation (`relation_weight`): `relation_error` of the same over the batch's
    instances. score and box (`score_weight`, `box_weight`): at the anchors that are `positive` for an instance, binary
    cross-entropy with the teacher's probability summed over classes, and L1 of the box deltas summed over the four;
    mean over these anchors. Of a two-stage detector all is the first stage's [own: the public code trains none].
    `adapt`: the student's features pass a 1x1 convolution, as in the paper (there of no stated size). The public code
    defines such layers and never applies them; so the default is False, and they are where channels differ.
    Errors: see `StepLoss`; `ValueError` where the sides have other classes or anchors, or levels other channels.
    Source: Dai et al. 2021; values as in the authors' config for RetinaNet [code]. The least side of an instance, 10 px
    there, is 1/80 of the picture's shorter side here, which is the same at 800 px [own].
    """

    LABEL = 'GID'
    WEIGHT_EXPONENTS = {'feature_weight': (1, 0), 'relation_weight': (0, 0), 'score_weight': (0, 0),
                        'box_weight': (0, 0)}
    PUBLISHED = {'retinanet': {'feature_weight': 5e-4, 'relation_weight': 40.0, 'score_weight': 0.1, 'box_weight': 1.0}}
    NEEDS = frozenset({'anchors', 'heads'})

    def __init__(self, channels: Sequence[tuple[int, int]], feature_weight: float = 5e-4,
                 relation_weight: float = 40.0, score_weight: float = 0.1, box_weight: float = 1.0,
                 instances: int = 10, adapt: bool = False) -> None:
        super().__init__(channels)
        for name, weight in (('feature_weight', feature_weight), ('relation_weight', relation_weight),
                             ('score_weight', score_weight), ('box_weight', box_weight)):
            check_number(name, weight, at_least=0)
        check_integer('instances', instances, at_least=1)
        self.feature_weight = feature_weight
        self.relation_weight = relation_weight
        self.score_weight = score_weight
        self.box_weight = box_weight
        self.instances = instances
        pair = the_pair(self.channels)
        self.align = nn.Conv2d(*pair, kernel_size=1) if adapt else align_channels(*pair)

    @classmethod
    def cannot(cls, student: Collection[str], teacher: Collection[str]) -> str:
        for side, offered in (('student', student), ('teacher', teacher)):
            if not {'branches', 'proposals'} & {*offered}:
                return f'needs boxes that are moved anchors, as those of RetinaNet or of an RPN: the {side} has none'
        return super().cannot(student, teacher) or lacks(student, teacher, 'sigmoid')

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        head, places = step.teacher_head, compared(step)
        (z_s, z_t), (deltas_s, deltas_t) = (
            alike(*(per_anchor([maps[place] for place in places], width) for maps in sides))
            for width, sides in ((head.cls_out_channels, (step.heads_s[0], step.heads_t[0])),
                                 (4, (step.heads_s[1], step.heads_t[1]))))
        anchors = torch.cat(step.anchors)
        decoded_s, decoded_t = decoded(head, anchors, deltas_s.detach()), decoded(head, anchors, deltas_t)
        found = [general_instances(*image, kept=self.instances) for image in zip(
            z_s.sigmoid(), z_t.sigmoid(), decoded_s, decoded_t, step.image_shapes, strict=True)]
        mask = torch.stack([positive(anchors, boxes) for boxes in found])               # (N, M)
        f_s, f_t = (step.roi_features(side, found, 10) for side in ('student', 'teacher'))
        f_s, count = self.align(f_s), mask.sum().clamp(min=1)
        score = F.binary_cross_entropy_with_logits(z_s[mask], z_t[mask].sigmoid(), reduction='sum') / count
        box = (deltas_s[mask] - deltas_t[mask]).abs().sum() / count
        self.told = {'instances': count.new_tensor(sum(map(len, found)) / len(found), dtype=f_s.dtype)}
        return {'feature': self.feature_weight * (f_s - f_t).square().sum(dim=1).sum() / max(f_t[:, 0].numel(), 1),
                'relation': self.relation_weight * relation_error(f_s, f_t),
                'score': self.score_weight * score, 'box': self.box_weight * box}

    def extra_repr(self) -> str:
        return (f'feature_weight={self.feature_weight}, relation_weight={self.relation_weight}, '
                f'score_weight={self.score_weight}, box_weight={self.box_weight}, instances={self.instances}')


def decoded(head: nn.Module, anchors: Tensor, deltas: Tensor) -> Tensor:
    """Boxes xyxy in pixels, not clipped to the picture: anchors (M, 4) moved by deltas (N, M, 4) -> (N, M, 4)."""
    everywhere = anchors.expand_as(deltas).reshape(-1, 4)
    return head.bbox_coder.decode(everywhere, deltas.reshape(-1, 4)).view_as(deltas)


@torch.no_grad()
def positive(anchors: Tensor, boxes: Tensor, least: float = 0.5) -> Tensor:
    """Anchors that a RetinaNet would train on these boxes: with an IoU of `least` or more with one, or nearest to one.

    Shapes: (M, 4) and (n, 4), xyxy -> bool (M,); without boxes all False.
    """
    if not len(boxes):
        return torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    overlaps = iou(anchors, boxes.to(anchors))
    nearest = (overlaps == overlaps.amax(dim=0)) & (overlaps > 0)
    return ((overlaps >= least) | nearest).any(dim=1)


@torch.no_grad()
def general_instances(p_s: Tensor, p_t: Tensor, boxes_s: Tensor, boxes_t: Tensor, image_shape: tuple[int, int],
                      considered: int = 3000, kept: int = 10, overlap: float = 0.3) -> Tensor:
    """Boxes of one image on which student and teacher disagree most, by greedy non-maximum suppression.

    An anchor's disagreement is the difference of the sides' largest class scores, its box that of the surer side,
    clipped to the picture; those with a side below 1/80 of the picture's shorter one are left out.
    Shapes: probabilities (M, K) and boxes (M, 4) of both sides -> (`kept` or fewer, 4), xyxy in pixels.
    """
    best_s, best_t = p_s.amax(dim=1), p_t.amax(dim=1)
    order = (best_t - best_s).abs().topk(min(considered, len(best_s))).indices
    boxes = torch.where((best_t > best_s)[:, None], boxes_t, boxes_s)[order]
    height, width = image_shape
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    # DEVIATION GID-1: a part of the picture, which is the public code's 10 px at 800 px
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= min(image_shape) / 80).all(dim=1)]
    found = boxes[:0]
    while len(boxes) and len(found) < kept:
        found, rest = torch.cat([found, boxes[:1]]), boxes[1:]
        boxes = rest[iou(boxes[:1], rest)[0] <= overlap]
    return found


def relation_error(f_s: Tensor, f_t: Tensor) -> Tensor:
    """Smooth L1 of the two sides' `distances`, mean over pairs: (m, ...) twice -> 0-d; 0 of fewer than 3 instances,
    since one distance over itself is 1."""
    m = len(f_s)
    if m < 3:
        return 0 * f_s.sum()
    return F.smooth_l1_loss(distances(f_s), distances(f_t), reduction='sum') / (m * (m - 1))


def distances(features: Tensor) -> Tensor:
    """Euclidean distances of each pair of instances over their mean: (m, ...), m of 2 or more -> (m, m)."""
    flat = features.flatten(1)
    apart = torch.cdist(flat, flat, compute_mode='donot_use_mm_for_euclid_dist')
    return apart / (apart.sum() / (len(flat) * (len(flat) - 1))).clamp(min=1e-12)
