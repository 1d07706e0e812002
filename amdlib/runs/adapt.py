"""A config of the user's as a run's Config. It stays whole: what changes is the data, the evaluation, the number of
classes in every head, the size of pictures, the length of the schedule and the first weights (`changes` lists it)."""
from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from amdlib.datasets import Dataset
from amdlib.datasets.dataset import TRAINED_FROM_PX
from amdlib.errors import SettingError
from amdlib.runs.config import Taught, set_rate, set_surroundings
from amdlib.runs.originals import get_config
from amdlib.runs.run import Run

MEASURED = 200      # pictures on which the size of a teacher's features is measured
PIXELS = ('scale', 'scales', 'img_scale', 'crop_size', 'size', 'border', 'random_size_range', 'input_size')   # in px
FITTED = ('scale', 'scales', 'img_scale')       # of these, what a picture is fitted into by its sides
FIXED = ('img_scale', 'crop_size', 'size', 'random_size_range', 'input_size')     # and what pictures fill: multiples
GRID = 32                                                                         # of this stay some
WARM_UPS = ('LinearLR', 'ConstantLR')
LEFT_OUT = ('load_from', 'resume', 'work_dir', 'visualizer', 'custom_imports', 'randomness', 'train_cfg',
            'default_hooks', 'val_dataloader', 'val_evaluator', 'val_cfg', 'tta_model', 'tta_pipeline',
            'auto_scale_lr')    # of `changes`


def config(run: Run, dataset: Dataset, work_dir: str | Path = '', taught: Taught | None = None) -> Config:
    """The whole mmengine Config of a run of the user's pair; arguments as of `runs.config.config`.

    Errors: SettingError for a detector that needs more than boxes, or a schedule that is not counted in epochs.
    """
    row, group = run.row, run.row.group
    name = group.teacher_config if row.is_teacher else group.student_config
    cfg = copy.deepcopy(get_config(name))
    check(cfg, name)
    given = row.is_teacher and 'checkpoint' in run.settings
    cfg.model = _detector(cfg, run, dataset, given or group.scratch, fixed=given)
    if row.kind == 'inherit':
        cfg.inherit = dict(parts=run.inherits, weights=taught and str(taught.weights))
    if row.name == 'untrained':
        cfg.untrained = True
    if row.method is not None:
        teacher = copy.deepcopy(get_config(group.teacher_config))
        student, teacher = cfg.model, _detector(teacher, run, dataset, True, fixed='teacher_checkpoint' in run.settings)
        _divisor_of_both(student, teacher)
        cfg.model = ConfigDict(
            type='Distiller', student=student, teacher=teacher, method=row.method, options=run.options(),
            levels=run.levels, **_compared(run),
            teacher_weights=taught and str(taught.weights), inherit=run.inherits, seed=run.seed)
        if run.reference_rms is not None:
            cfg.model.update(reference_rms=run.reference_rms, scales=taught and taught.scales(run))
        if row.shuffled:
            cfg.model.shuffled = True
        for key in ('compile_teacher', 'half_teacher', 'share'):
            if key in run.settings:
                cfg.model[key] = run.settings[key]
    _set_data(cfg, run, dataset, group.teacher_knows or not given)
    here = dataset.train_ann.is_file()      # not where a detector alone is asked for
    _set_schedule(cfg, run, run.steps(dataset.trained_count) if here else 0)
    set_rate(cfg, run)
    cfg.custom_imports = dict(imports=list(dict.fromkeys([*cfg.get('custom_imports', {}).get('imports', []),
                                                          'amdlib.engine'])), allow_failed_imports=False)
    set_surroundings(cfg, run, work_dir)
    return cfg


def check(cfg: Config, name: str) -> None:
    """SettingError for a config that cannot be trained on boxes, or says its schedule in another way."""
    odd = [what for what, there in (
        ('masks', any(step.get('with_mask') or step.get('with_seg') for step in _steps(cfg.train_dataloader.dataset))),
        ('captions', 'language_model' in cfg.model), ('several models', 'detector' in cfg.model)) if there]
    if odd:
        raise SettingError(f'{name}: it is trained on {odd[0]}; expected a detector that boxes alone train')
    if 'max_epochs' not in cfg.train_cfg:
        raise SettingError(f'{name}: its schedule has no epochs ({dict(cfg.train_cfg)}); expected train_cfg.max_epochs')


def plain_pictures(cfg: Config, dataset: Dataset) -> ConfigDict:
    """The training pictures as they are tested, the first `MEASURED` of them."""
    pictures = copy.deepcopy(cfg.test_dataloader.dataset)
    for leaf in _leaves(pictures):
        leaf.update(ann_file=str(dataset.train_ann), data_prefix=dict(img=str(dataset.train_images)), indices=MEASURED)
    return pictures


def changes(run: Run, dataset: Dataset) -> list[str]:
    """How a run's Config differs from the user's, a line each: `model.bbox_head.num_classes: 80 -> 3`."""
    group = run.row.group
    given = get_config(group.teacher_config if run.row.is_teacher else group.student_config)
    made = config(run, dataset)
    made.model = made.model.student if run.row.method else made.model
    before, after = ({key: value for key, value in cfg.to_dict().items() if key not in LEFT_OUT}
                     for cfg in (given, made))
    for cfg in (before, after):
        cfg['test_evaluator'] = cfg['test_evaluator'].get('type') if isinstance(cfg['test_evaluator'], dict) else '...'
    after['train_cfg'] = {'max_epochs': made.train_cfg.max_epochs}
    before['train_cfg'] = {'max_epochs': given.train_cfg.max_epochs}
    return list(_differences({key: before.get(key) for key in after}, after))


def epochs_of(name: str) -> int:
    """Passes over the pictures that a config asks for. Errors: as of `check`."""
    check(get_config(name), name)
    return int(get_config(name).train_cfg.max_epochs)


def image_px(name: str) -> tuple[int, int]:
    """Width and height that a config fits its test pictures into; SettingError where it does not say so."""
    for step in _steps(get_config(name).test_dataloader.dataset):
        scale = step.get('scale') or step.get('img_scale')
        if isinstance(scale, int):
            return scale, scale
        if scale and len(scale) == 2:
            return max(scale), min(scale)
    raise SettingError(f'{name}: its test pipeline has no Resize with a scale; give a size')


# ---- the detector -------------------------------------------------------------------------------------------------

def _detector(cfg: Config, run: Run, dataset: Dataset, scratch: bool, fixed: bool) -> ConfigDict:
    """A config's detector; `scratch`: without first weights from elsewhere, `fixed`: with the classes that it has."""
    model = copy.deepcopy(cfg.model)
    if scratch:
        model.pop('init_cfg', None)
        model.backbone.init_cfg = None
        if run.row.group.scratch and not fixed:     # what is drawn at random must not stay so
            for key, value in (('frozen_stages', -1), ('norm_eval', False)):
                if key in model.backbone:
                    model.backbone[key] = value
    if not fixed:
        for part in model.values():
            _set_classes(part, len(dataset.classes))
    factors = _factors(cfg, run)
    for step in model.data_preprocessor.get('batch_augments') or []:
        _resize(step, factors)
    return model


def _compared(run: Run) -> dict[str, Any]:
    """What the Distiller is told to compare: named modules only where somebody named them."""
    places = [run.row.group.places[run.row.group.levels.index(level)] for level in run.levels]
    if all(isinstance(one, int) for both in places for one in both):
        return {'student_module': 'auto', 'teacher_module': 'auto'}
    return {'student_module': [student for student, _ in places], 'teacher_module': [taught for _, taught in places]}


def _set_classes(part: Any, num_classes: int) -> None:
    if isinstance(part, dict):
        if 'num_classes' in part:
            part['num_classes'] = num_classes
        part = list(part.values())
    for inner in part if isinstance(part, (list, tuple)) else ():
        _set_classes(inner, num_classes)


def _divisor_of_both(student: ConfigDict, teacher: ConfigDict) -> None:
    """The student pads its pictures so that the teacher can see them too."""
    own, other = (one.data_preprocessor.get('pad_size_divisor', 1) for one in (student, teacher))
    if own % other:
        student.data_preprocessor.pad_size_divisor = math.lcm(own, other)


# ---- data and pictures --------------------------------------------------------------------------------------------

def _set_data(cfg: Config, run: Run, dataset: Dataset, known: bool) -> None:
    reported = (dataset.test_ann, dataset.test_images) if run.recipe.split == 'test' else (
        dataset.val_ann, dataset.val_images)
    if reported[0] is None:
        raise SettingError(f'split={run.recipe.split}: {dataset.name} has no such split')
    factors = _factors(cfg, run)
    for loader, ann, images in ((cfg.train_dataloader, dataset.train_ann, dataset.train_images),
                                (cfg.test_dataloader, *reported)):
        loader.num_workers, loader.persistent_workers = run.profile.workers, False
        if not run.profile.workers:
            loader.pop('prefetch_factor', None)
        loader.dataset = _without_others(loader.dataset)
        for step in _steps(loader.dataset):
            _resize(step, factors)
        for leaf in _leaves(loader.dataset):
            for key in ('serialize_data', 'proposal_file'):
                leaf.pop(key, None)
            leaf.update(type='CocoDataset', data_root='', ann_file=str(ann), data_prefix=dict(img=str(images)),
                        metainfo=dict(classes=dataset.classes))
            if loader is cfg.train_dataloader:
                leaf.filter_cfg = dict(filter_empty_gt=not dataset.negatives, min_size=TRAINED_FROM_PX)
    seed = ConfigDict(type='SeedPicture', seed=run.seed)
    for leaf in _leaves(cfg.train_dataloader.dataset):
        leaf.pipeline.insert(0, seed)
    for hook in cfg.get('custom_hooks') or []:
        for step in hook.get('switch_pipeline', []):
            _resize(step, factors)
        if 'switch_pipeline' in hook:
            hook.switch_pipeline.insert(0, copy.deepcopy(seed))
    cfg.train_dataloader.batch_size, cfg.data_root = run.batch_size, ''
    cfg.test_evaluator = ConfigDict(type='CocoNumbers', ann_file=str(reported[0]))
    if not known:       # it is tested on a picture, so that a record is there, and nothing is counted
        cfg.test_evaluator.known = False
        for leaf in _leaves(cfg.test_dataloader.dataset):
            leaf.indices = 1


def _leaves(part: ConfigDict) -> Iterator[ConfigDict]:
    """The data sets with annotations in a nest of wrappers."""
    if 'ann_file' in part:
        yield part
    for inner in [part.get('dataset'), *(part.get('datasets') or [])]:
        if inner is not None:
            yield from _leaves(inner)


def _without_others(part: ConfigDict) -> ConfigDict:
    """The same with the first of several data sets alone: they would all be the user's."""
    if part.get('datasets'):
        return _without_others(part.datasets[0])
    if 'dataset' in part:
        part.dataset = _without_others(part.dataset)
    return part


def _steps(part: Any) -> Iterator[ConfigDict]:
    """The steps of every pipeline in a data set, those within steps too."""
    if isinstance(part, dict):
        for key in ('pipeline', 'transforms', 'dataset', 'datasets'):
            yield from _steps(part.get(key))
        if 'type' in part and 'ann_file' not in part:
            yield part
    elif isinstance(part, (list, tuple)):
        for inner in part:
            yield from _steps(inner)


def _factors(cfg: Config, run: Run) -> tuple[float, float]:
    """By how much pictures are smaller than the config's, of their longer and their shorter sides: those that it fits
    into 1333x800 are fitted into a square, so that a size means the longer side of any picture."""
    name = run.row.group.teacher_config if run.row.is_teacher else run.row.group.student_config
    own, wanted = image_px(name), run.profile.image_px
    return max(wanted) / max(own), min(wanted) / min(own)


def _resize(step: ConfigDict, factors: tuple[float, float]) -> None:
    """Multiply every size in pixels of a step."""
    longer, shorter = factors
    for key in PIXELS:
        if key in step:
            is_fitted = key in FITTED and step.get('keep_ratio', True)
            step[key] = _times(step[key], longer, shorter if is_fitted else longer, GRID if key in FIXED else 1)


def _times(value: Any, longer: float, shorter: float, grid: int) -> Any:
    """A size times `longer`, of two unlike sides the smaller times `shorter`; sizes in any nest of lists."""
    if isinstance(value, (list, tuple)):
        if len(value) == 2 and all(type(side) is int for side in value) and value[0] != value[1]:
            most = _times(max(value), longer, longer, grid)
            sides = {max(value): most, min(value): min(most, _times(min(value), shorter, shorter, grid))}
            return type(value)(sides[side] for side in value)
        return type(value)(_times(one, longer, shorter, grid) for one in value)
    if isinstance(value, bool) or not isinstance(value, int):      # a share of the picture, or None
        return value
    grid = 1 if value % grid else grid
    return round(value * longer / grid) * grid or grid


# ---- schedule -----------------------------------------------------------------------------------------------------

def _set_schedule(cfg: Config, run: Run, steps: int) -> None:
    """The config's schedule at another length: what it says in epochs keeps its place in the whole, and a warm-up that
    is counted in steps, 500 of them for COCO, takes a quarter of all at the most."""
    factor = run.epochs / cfg.train_cfg.max_epochs
    for key in ('val_interval', 'val_begin', 'dynamic_intervals'):
        cfg.train_cfg.pop(key, None)
    cfg.train_cfg.max_epochs = run.epochs
    if 'lr' in run.settings:
        cfg.optim_wrapper.optimizer.lr = run.settings['lr']
    for part in cfg.get('param_scheduler') or []:
        if part.type in WARM_UPS and not part.get('by_epoch', True) and not part.get('begin', 0) and steps:
            part.end = min(part.end, max(1, steps // 4))
    if factor != 1:
        for part in cfg.get('param_scheduler') or []:
            if part.get('by_epoch', True):
                _shorten(part, factor)
        for hook in cfg.get('custom_hooks') or []:
            for key in ('switch_epoch', 'num_last_epochs', 'stop_epoch'):
                if key in hook:
                    hook[key] = round(hook[key] * factor)
    cfg.custom_hooks = [*(hook for hook in cfg.get('custom_hooks') or [] if hook.type != 'NumClassCheckHook'),
                        dict(type='KeepAverageHook')]


def _shorten(part: ConfigDict, factor: float) -> None:
    for key in ('begin', 'end', 'T_max'):
        if key in part and part[key] not in (0, math.inf):
            part[key] = max(1, round(part[key] * factor))
    if 'milestones' in part:
        part.milestones = sorted({max(1, round(epoch * factor)) for epoch in part.milestones})
    if part.get('end', math.inf) <= part.get('begin', 0):       # too short for two phases: the later one waits
        part.end = part.begin + 1


# ---- what changed -------------------------------------------------------------------------------------------------

def _differences(before: Any, after: Any, path: str = '') -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from _differences(before.get(key), after.get(key), f'{path}.{key}'.lstrip('.'))
    elif isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)) and len(before) == len(after):
        for place, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _differences(one, other, f'{path}[{place}]')
    elif before != after:
        yield f'{path}: {_short(before)} -> {_short(after)}'


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
