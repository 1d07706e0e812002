"""A training step as methods see it that look at whole steps: a `methods.step.Step` of a Distiller's two detectors.

The student's side is what its own loss pass computes, listened to; no part of it runs twice.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from amdlib.engine.taps import maps_in, tap
from amdlib.methods.level import at_least_float32

if TYPE_CHECKING:
    from amdlib.engine.distiller import Distiller

OF_TEACHERS_HEAD = {'heads', 'proposals'}   # needs for which the teacher passes each step: kept are its features alone
FINEST_SCALE = 14       # of RoIAlign where a detector has no box head of its own, in its finest stride; mmdet's default


def dense_head(detector: nn.Module) -> nn.Module | None:
    """The head that scores every position, of a two-stage detector its RPN; None where there is none."""
    head = getattr(detector, 'bbox_head', None) or getattr(detector, 'rpn_head', None)
    return head if hasattr(head, 'prior_generator') else None


def offers(detector: nn.Module) -> frozenset[str]:
    """What a detector offers to methods: those of `methods.step.NEEDS` that it has, and of its dense head 'sigmoid'
    (every class has a score of its own), 'branches' (two rows of convolutions, each with one more as its output) and
    'distributions' (sides of boxes as distributions)."""
    head, found = dense_head(detector), {'boxes'}
    if head is not None:
        found |= {'heads', *(word for word, has in (
            ('anchors', hasattr(head.prior_generator, 'base_anchors') or hasattr(head, 'point_base_scale')),
            ('sigmoid', getattr(head, 'use_sigmoid_cls', False)), ('branches', hasattr(head, 'retina_cls')),
            ('distributions', hasattr(head, 'integral'))) if has)}
    if head is not None and hasattr(getattr(detector, 'roi_head', None), 'bbox_roi_extractor'):
        found.add('proposals')
    return frozenset(found)


class Heard:
    """What a student's parts gave while it computed its own loss."""

    def __init__(self) -> None:
        self.heads: tuple[list[Tensor], ...] = ()
        self.inside: dict[str, list[Tensor]] = {}
        self.rois: Tensor | None = None         # (K, 5): the image's place, xyxy
        self.roi_outputs: tuple[Tensor, ...] | None = None      # scores, box deltas


@contextmanager
def hear(student: nn.Module, needs: Collection[str]) -> Iterator[Heard]:
    """Listen to what these needs ask of a student while the block runs."""
    heard, handles = Heard(), []

    def listen(module: nn.Module, keep: Callable[[tuple, Any], None]) -> None:
        handles.append(module.register_forward_hook(lambda _, given, output: keep(given, output)))

    if 'heads' in needs:
        head = dense_head(student)
        listen(head, lambda _, output: setattr(heard, 'heads', tuple(output)))
        for name, part in head.named_modules():
            if name.count('.') == 1:
                listen(part, lambda _, output, name=name: heard.inside.setdefault(name, []).append(output))
    if 'proposals' in needs:
        extractor, box_head = first_stage(student)
        # a cascade's later stages have others, and a mask head may ask this extractor again
        listen(extractor, lambda given, _: setattr(heard, 'rois', given[1] if heard.rois is None else heard.rois))
        listen(box_head, lambda _, output: setattr(
            heard, 'roi_outputs', output if heard.roi_outputs is None else heard.roi_outputs))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def first_stage(detector: nn.Module) -> tuple[nn.Module, nn.Module]:
    """RoI extractor and box head of a two-stage detector, of a cascade its first."""
    parts = detector.roi_head.bbox_roi_extractor, detector.roi_head.bbox_head
    return tuple(part[0] if isinstance(part, nn.ModuleList) else part for part in parts)


class DetectorStep:
    """A step of a Distiller; see `methods.step.Step` for what it shows.

    Args:
        heard: while the student computed its loss.
        f_s: what was tapped meanwhile, as it came.
        features_t: gives the teacher's features, kept or not, of a method that needs no more of it.
    """

    def __init__(self, distiller: Distiller, inputs: Tensor, samples: SampleList, heard: Heard, f_s: list[Tensor],
                 features_t: Callable[[], list[Tensor]]) -> None:
        self.distiller, self.inputs, self.samples, self.heard, self.tapped = distiller, inputs, samples, heard, f_s
        self.features_t = features_t
        self.has, self.levels, self.strides = distiller.needs, distiller.levels, distiller.strides
        self.teacher_head = dense_head(distiller.teacher)

    # ---- ground truth, places

    @functools.cached_property
    def boxes(self) -> list[Tensor]:
        found = [sample.gt_instances.bboxes for sample in self.samples]
        return [getattr(boxes, 'tensor', boxes) for boxes in found]     # mmdet wraps them on some paths

    @functools.cached_property
    def labels(self) -> list[Tensor]:
        return [sample.gt_instances.labels for sample in self.samples]

    @functools.cached_property
    def image_shapes(self) -> list[tuple[int, int]]:
        return [tuple(sample.img_shape[:2]) for sample in self.samples]

    @functools.cached_property
    def anchors(self) -> list[Tensor]:
        head = dense_head(self.distiller.student)
        strides = [stride[0] for stride in head.prior_generator.strides]
        if other := [stride for stride in self.strides if stride not in strides]:
            raise ValueError(f"a level of stride {other[0]} is compared, but the student's head has boxes of strides "
                             f'{", ".join(map(str, strides))}')
        found = [head.prior_generator.single_level_grid_priors(
            feature.shape[2:], level_idx=strides.index(stride), dtype=torch.float32, device=feature.device)
            for stride, feature in zip(self.strides, self.tapped, strict=True)]
        if not hasattr(head, 'point_base_scale'):
            return [getattr(boxes, 'tensor', boxes) for boxes in found]
        halves = [head.point_base_scale * stride / 2 for stride in self.strides]
        return [torch.cat([points[:, :2] - half, points[:, :2] + half], dim=1)
                for points, half in zip(found, halves, strict=True)]

    # ---- features and heads

    @functools.cached_property
    def f_s(self) -> list[Tensor]:
        return self._compared(self.tapped)

    @functools.cached_property
    def f_t(self) -> list[Tensor]:
        return self._compared(self._teacher[0] if self.distiller.needs & OF_TEACHERS_HEAD else self.features_t())

    @functools.cached_property
    def heads_s(self) -> tuple[list[Tensor], ...]:
        return _widened(self.heard.heads)

    @property
    def heads_t(self) -> tuple[list[Tensor], ...]:
        return self._teachers_head[0]

    @functools.cached_property
    def inside_s(self) -> dict[str, list[Tensor]]:
        return dict(zip(self.heard.inside, _widened(self.heard.inside.values()), strict=True))

    @property
    def inside_t(self) -> dict[str, list[Tensor]]:
        return self._teachers_head[1]

    @functools.cached_property
    def _teachers_head(self) -> tuple[tuple[list[Tensor], ...], dict[str, list[Tensor]]]:
        """One pass of the teacher's head: what it returns, and what is inside."""
        each = []
        with torch.no_grad(), self.distiller.teacher_precision(self.inputs.device.type):
            for maps in self._pictures(self._teacher[1]):
                with hear(self.distiller.teacher, {'heads'}) as heard:
                    self.teacher_head(maps)
                each.append(heard)
        inside = _widened(_together([heard.inside.values() for heard in each]))
        return _widened(_together([heard.heads for heard in each])), dict(zip(each[0].inside, inside, strict=True))

    @functools.cached_property
    def _teacher(self) -> tuple[list[Tensor], list[Tensor]]:
        """One pass of the teacher: its compared features, and the maps that its heads receive."""
        distiller, pixels = self.distiller, self.distiller.pixels_for_teacher(self.inputs, self.samples)
        if distiller.shuffled:      # the control: every picture gets what the teacher sees on another one of the step
            pixels = pixels.roll(1, dims=0)
        seen = []
        with torch.no_grad(), distiller.teacher_precision(pixels.device.type):
            for some in pixels.split(1) if distiller.alone else [pixels]:
                with tap(distiller.teacher, distiller.teacher_taps) as features:
                    maps = maps_in(distiller.teacher.extract_feat(some))
                seen.append((features, maps))
        return tuple([torch.cat(level) for level in zip(*part, strict=True)] for part in zip(*seen, strict=True))

    def _pictures(self, maps: list[Tensor]) -> list[tuple[Tensor, ...]]:
        """Maps as the teacher's head gets them: all pictures at once, or each alone."""
        return list(zip(*(level.split(1) for level in maps), strict=True)) if self.distiller.alone else [tuple(maps)]

    def _compared(self, features: Sequence[Tensor]) -> list[Tensor]:
        return divided(map(at_least_float32, features), self.distiller.scales)

    # ---- proposals

    @functools.cached_property
    def proposals(self) -> list[Tensor]:
        rois = self.heard.rois.detach()
        return [rois[rois[:, 0] == place, 1:] for place in range(len(self.samples))]

    @functools.cached_property
    def proposals_t(self) -> list[Tensor]:
        with torch.no_grad():
            found = self.distiller.teacher.rpn_head.predict(tuple(self._teacher[1]), self.samples, rescale=False)
        return [at_least_float32(one.bboxes) for one in found]

    def roi_scores(self, side: str) -> Tensor:
        return at_least_float32(self._roi_outputs(side)[0])

    def roi_deltas(self, side: str) -> Tensor:
        detector = self.distiller.student if side == 'student' else self.distiller.teacher
        coder, deltas = first_stage(detector)[1].bbox_coder, at_least_float32(self._roi_outputs(side)[1])
        if not hasattr(coder, 'stds'):
            raise ValueError(f'the box head of the {side} moves no boxes: it has a {type(coder).__name__}')
        return deltas.unflatten(1, (-1, 4)) * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)

    def _roi_outputs(self, side: str) -> tuple[Tensor, ...]:
        return self.heard.roi_outputs if side == 'student' else self._roi_outputs_t

    @functools.cached_property
    def _roi_outputs_t(self) -> tuple[Tensor, ...]:
        extractor, box_head = first_stage(self.distiller.teacher)
        maps = self._teacher[1][:extractor.num_inputs]
        with torch.no_grad(), self.distiller.teacher_precision(self.inputs.device.type):
            return box_head(extractor(maps, bbox2roi(self.proposals)))

    def roi_features(self, side: str, boxes: Sequence[Tensor], size: int = 7) -> Tensor:
        features = self.f_s if side == 'student' else self.f_t
        finest = FINEST_SCALE * self.strides[0]
        if hasattr(self.distiller.student, 'roi_head'):
            finest = first_stage(self.distiller.student)[0].finest_scale
        extract = SingleRoIExtractor(dict(type='RoIAlign', output_size=size, sampling_ratio=0), features[0].shape[1],
                                     self.strides, finest)
        return extract(features, bbox2roi([one[:, :4] for one in boxes]))


def divided(features: Iterable[Tensor], scales: Sequence[float]) -> list[Tensor]:
    """Features of every level in the magnitude that published weights belong to."""
    return [feature if scale == 1 else feature / scale for feature, scale in zip(features, scales, strict=True)]


def _widened(heads: Iterable[Sequence[Tensor]]) -> tuple[list[Tensor], ...]:
    return tuple([at_least_float32(level) for level in levels] for levels in heads)


def _together(pictures: Sequence[Iterable[Sequence[Tensor]]]) -> Iterator[list[Tensor]]:
    """What was computed picture by picture, each some lists of a tensor a level, as of one batch."""
    for lists in zip(*pictures, strict=True):
        yield [torch.cat(level) for level in zip(*lists, strict=True)]
