"""Two detectors of the user's: which of their feature maps belong together, and what else one must know of them."""
from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

import amdlib.engine  # noqa: F401  (registers with mmdet)
from amdlib.datasets import Dataset
from amdlib.engine import pixels
from amdlib.engine.step import offers
from amdlib.engine.taps import AUTO, PROBE_PX, look, never_seen, pairs_by_size, told_sizes
from amdlib.errors import SettingError, WeightsError
from amdlib.paper.pairs import Group
from amdlib.runs import adapt
from amdlib.runs.originals import get_config
from amdlib.weights.reading import read_weights
from amdlib.weights.sizes import check_size
from amdlib.words import plural

LIKE = {True: 'retinanet', False: 'faster_rcnn'}    # one-stage or not: the paper's pair whose weights are taken


@dataclass(frozen=True)
class Pair:
    """A student and its teacher, looked at.

    Args:
        group: as runs know it.
        channels: (student, teacher) of each level that is compared.
        strides: of these levels, in pixels of the input.
        lines: what else is worth knowing, in words.
    """
    group: Group
    channels: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    lines: tuple[str, ...]

    def describe(self) -> str:
        """Which maps are compared, parameters, pixels, what is inherited."""
        maps = ', '.join(f'stride {stride}: {student} <- {teacher} channels' for stride, (student, teacher) in
                         zip(self.strides, self.channels, strict=True))
        return '\n'.join([f'{self.group.student_label} <- {self.group.teacher_label}', f'compared: {maps}',
                          *self.lines])


def pair(student: str | nn.Module, teacher: str | nn.Module, classes: Dataset | Sequence[str] = (),
         teacher_weights: str | Path | None = None, scratch: bool = False, features: str | Sequence[str] = AUTO,
         teacher_features: str | Sequence[str] = AUTO) -> Pair:
    """Look at two detectors: mmdet configs (`mmdet::gfl/gfl_r50_fpn_1x_coco.py`, or files of the user's), or models
    that are built already. Only a config can be trained: a run builds its detector in a process of its own.

    Args:
        classes: of the data, or the data; none: nothing is said of the teacher's.
        teacher_weights: any checkpoint of mmdet of the teacher; its classes may be others.
        scratch: nothing is pre-trained: the first weights that the student's config names are left out.
        features, teacher_features: 'auto', the maps that the head receives; or the names of modules, one a level, such
            as 'neck.fpn_convs.0'. Maps of both sides that agree in size are compared.
    Errors: SettingError for configs that cannot be read, built or trained on boxes, for a module that is not there, and
        for detectors without maps of one size, with both lists; WeightsError.
    """
    built = [_built(one) for one in (student, teacher)]
    student, teacher = (one if isinstance(one, str) else '' for one in (student, teacher))
    sides = [_maps(model, wanted) for model, wanted in zip(built, (features, teacher_features), strict=True)]
    maps = [found for _, found in sides]
    places = pairs_by_size(*maps)
    if not places:
        raise SettingError(f'{_label(student, built[0])} and {_label(teacher, built[1])} have no feature maps of one '
                           f'size. Strides (channels x grid): student {told_sizes(maps[0], PROBE_PX[True])}; teacher '
                           f'{told_sizes(maps[1], PROBE_PX[True])}')
    classes = classes.classes if isinstance(classes, Dataset) else tuple(classes)
    knows, told = _knows(teacher, classes, teacher_weights)
    told += _first_weights(student=student, teacher='' if teacher_weights else teacher) if not scratch else ()
    one_stage = not hasattr(built[0], 'roi_head')
    group = Group(config_name(student), _label(student, built[0]), _label(teacher, built[1]), student, teacher, '',
                  one_stage=one_stage, levels=tuple(range(len(places))), weights_of=LIKE[one_stage], own=True,
                  places=tuple((sides[0][0][s], sides[1][0][t]) for s, t in places), scratch=scratch,
                  teacher_knows=knows, offers=_offers(built[0]), teacher_offers=_offers(built[1]))
    compared = [(maps[0][s], maps[1][t]) for s, t in places]
    return Pair(group, tuple((s.shape[1], t.shape[1]) for s, t in compared),
                tuple(round(PROBE_PX[True] / s.shape[2]) for s, _ in compared),
                tuple(_facts(built, [names for names, _ in sides], maps, places, one_stage)) + told)


def _offers(detector: nn.Module) -> tuple[str, ...]:
    return tuple(sorted(offers(detector)))


def _built(detector: str | nn.Module) -> nn.Module:
    """A detector of a config, or one that is built, left as it is."""
    if not isinstance(detector, str):
        if not isinstance(detector, BaseDetector):
            raise SettingError(f'{type(detector).__name__}: expected a config, or a detector of mmdet that is built')
        return detector
    cfg = copy.deepcopy(get_config(detector))
    adapt.check(cfg, detector)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = ConfigDict(cfg.model)
    model.backbone.init_cfg = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')     # mmdet's of its own old names
            return MODELS.build(model).eval()
    except Exception as error:  # whatever a detector raises: a missing package, an operator, a wrong argument
        raise SettingError(f'{detector} cannot be built: {type(error).__name__}: {error}') from error


def _maps(model: nn.Module, wanted: str | Sequence[str]) -> tuple[list[int | str], list[torch.Tensor]]:
    """What is tapped for each feature map of a detector, and the maps, for a blank picture."""
    if wanted == AUTO:
        found = look(model, image_px=PROBE_PX[True])[1]
        return list(range(len(found))), found
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        try:
            model.get_submodule(name)
        except AttributeError as error:
            raise SettingError(f'{type(model).__name__} has no module {name!r}: {error}') from None
    found = look(model, names, PROBE_PX[True])[0]
    for name, one in zip(names, found, strict=True):
        if not isinstance(one, torch.Tensor) or one.dim() != 4:
            raise SettingError(f'{type(model).__name__}: {name!r} gives no feature map (N, C, H, W)')
    return names, found


def _facts(built: list[nn.Module], taps: list[list[int | str]], maps: list[list[torch.Tensor]],
           places: list[tuple[int, int]], one_stage: bool) -> list[str]:
    student, teacher = built
    counts = [sum(p.numel() for p in model.parameters()) / 1e6 for model in built]
    lines = [f'parameters: student {counts[0]:.1f} million, teacher {counts[1]:.1f} million']
    for side, model_maps, used in (('student', maps[0], {s for s, _ in places}), ('teacher', maps[1],
                                                                                  {t for _, t in places})):
        if left := [one for place, one in enumerate(model_maps) if place not in used]:
            lines.append(f'not compared, the other side has none of that size: {side} '
                         f'{told_sizes(left, PROBE_PX[True])}')
    for side, model, names in (('student', student, taps[0]), ('teacher', teacher, taps[1])):
        if unseen := never_seen(model, names):
            lines.append(f'warning: the head of the {side} never sees the output of {", ".join(unseen)}')
    differ = pixels.between(student.data_preprocessor, teacher.data_preprocessor) is not None
    lines.append('pixels: the teacher gets its own normalisation, by an exact map' if differ else
                 'pixels: both normalise alike')
    parts = ('neck', 'bbox_head') if one_stage else ('neck', 'rpn_head')
    own = student.state_dict()
    same = [name for name, value in teacher.state_dict().items() if name.split('.')[0] in parts and name in own
            and own[name].shape == value.shape]
    lines.append(f'inherited, where a student starts from its teacher: {plural(len(same), "tensor", "tensors")} of '
                 f'{" and ".join(parts)}')
    return lines


def _knows(teacher: str, classes: tuple[str, ...], weights: str | Path | None) -> tuple[bool, tuple[str, ...]]:
    """Whether a given teacher's classes are the data's, in their order, and what is said of it."""
    if not classes or not teacher and weights is None:     # a built one has its weights and names no classes
        return True, ()
    if weights is None:
        return True, ('teacher: no weights are given, so it is trained here first',)
    own = _classes_in(Path(weights))
    count = _count(get_config(teacher).model) if teacher else None
    if own is None:
        knows = count == len(classes)
        how = f'its checkpoint names no classes; it has {count}, the data {len(classes)}'
    else:
        knows = [name.lower() for name in own] == [name.lower() for name in classes]
        how = f'its {len(own)} classes are {"" if knows else "not "}those of the data'
    return knows, (f'teacher: {how}; {"evaluated" if knows else "not evaluated: only backbone and neck are used"}',)


def _first_weights(**configs: str) -> tuple[str, ...]:
    """From where the backbones of configs start."""
    found = {side: (get_config(name).model.backbone.get('init_cfg') or {}).get('checkpoint')
             for side, name in configs.items() if name}
    told = ', '.join(f'{side} {where}' for side, where in found.items() if where)
    return (f'first weights of the backbones: {told}; fetched when training begins, where it is an address '
            '(scratch = true leaves them out, student_backbone names a file instead)',) if told else ()


def _classes_in(weights: Path) -> list[str] | None:
    """The classes that a checkpoint names. Errors: WeightsError."""
    if not weights.is_file():
        raise WeightsError(f'{weights}: no such file')
    check_size(weights)
    read_weights(weights)       # refuses what is no checkpoint, without running code of it
    from amdlib.weights.reading import harmless_types
    with torch.serialization.safe_globals(harmless_types()):
        content = torch.load(weights, map_location='cpu', weights_only=True)
    meta = content.get('meta', {}) if isinstance(content, dict) else {}
    found = meta.get('dataset_meta', meta) if isinstance(meta, dict) else {}
    names = next((found[key] for key in ('classes', 'CLASSES') if isinstance(found, dict) and found.get(key)), None)
    return [names] if isinstance(names, str) else list(map(str, names)) if names else None


def _count(part: object) -> int | None:
    """The number of classes that a config's first head says."""
    if isinstance(part, dict):
        if 'num_classes' in part:
            return part['num_classes']
        part = list(part.values())
    for inner in part if isinstance(part, (list, tuple)) else ():
        if (found := _count(inner)) is not None:
            return found
    return None


def config_name(config: str) -> str:
    """A config's name, as part of paths: `gfl_r50_fpn_1x_coco`."""
    return re.sub(r'[^a-z0-9_.]+', '_', Path(config.rpartition('::')[2]).stem.lower()).strip('_.')


def _label(config: str, model: nn.Module) -> str:
    backbone = model.backbone
    depth = f'-{backbone.depth}' if getattr(backbone, 'depth', None) else ''
    return f'{type(model).__name__} {type(backbone).__name__}{depth} ({config_name(config) or "built"})'
