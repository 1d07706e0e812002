"""Row -> mmengine Config: mmdet's own configs by inheritance, at a profile's size, with the method beside the detector.

Values and their sources: the paper, the authors' configs or an assumption, as listed in docs/assumptions.md.
"""
from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from amdlib.datasets import Dataset
from amdlib.errors import SettingError
from amdlib.files import ROOT, digest
from amdlib.paper.profiles import Network, Profile
from amdlib.runs.originals import get_config
from amdlib.runs.run import Run


@dataclass(frozen=True)
class Taught:
    """What a student takes from its teacher's run.

    Args:
        weights: the file with the detector.
        kept: folder with its features of every training picture; None: it looks at them beside the student.
        feature_rms: of its features by level, over the training pictures; empty where they are not scaled.
    """
    weights: Path
    kept: Path | None = None
    feature_rms: tuple[float, ...] = ()

    def scales(self, run: Run) -> list[float] | None:
        """The constant of each of the run's levels that brings the features to its reference."""
        if run.reference_rms is None or not self.feature_rms:
            return None
        own = [self.feature_rms[run.row.group.levels.index(level)] for level in run.levels]
        if run.recipe.one_scale:
            own = [(sum(rms ** 2 for rms in own) / len(own)) ** 0.5] * len(own)
        return [rms / run.reference_rms for rms in own]


def config(run: Run, dataset: Dataset | None = None, work_dir: str | Path = '',
           taught: Taught | None = None) -> Config:
    """The whole mmengine Config of a run.

    Args:
        dataset: None is allowed for the profile `paper`: COCO below `data/coco/`, as mmdet has it.
        taught: by the trained teacher, for rows that have one; None leaves it as initialised.
    Errors: SettingError when the profile needs a data set and none is given.
    """
    if dataset is None and not run.profile.published:
        raise SettingError(f'profile {run.profile.name} needs a data set')
    row, profile = run.row, run.profile
    if row.group.own:
        from amdlib.runs import adapt  # which needs this module
        return adapt.config(run, dataset, work_dir, taught)
    cfg = copy.deepcopy(get_config(row.group.student_config))
    settings = run.settings
    student = _detector(row.group.teacher_config if row.is_teacher else row.group.student_config, run, dataset,
                        row.is_teacher, settings.get('backbone') or _shipped_backbone(run),
                        pretrained=row.name != 'untrained')
    cfg.model = student
    if row.kind == 'inherit':
        cfg.inherit = dict(parts=run.inherits, weights=taught and str(taught.weights))
    if row.name == 'untrained':
        cfg.untrained = True
    if row.method is not None:
        cfg.model = ConfigDict(
            type='Distiller', student=student,
            teacher=_detector(row.group.teacher_config, run, dataset, True, None, pretrained=False),
            method=row.method, options=run.options(), levels=run.levels,
            teacher_weights=taught and str(taught.weights), inherit=run.inherits, seed=run.seed)
        if run.reference_rms is not None:
            cfg.model.reference_rms = run.reference_rms
            cfg.model.scales = taught and taught.scales(run)
        if profile.keep_features:
            cfg.model.update(alone=True, kept=taught and taught.kept and str(taught.kept))
        if row.shuffled:
            cfg.model.shuffled = True
        for key in ('compile_teacher', 'half_teacher'):
            if key in settings:
                cfg.model[key] = settings[key]
    _set_data(cfg, run, dataset)
    _set_schedule(cfg, run)
    cfg.custom_imports = dict(imports=['amdlib.engine'], allow_failed_imports=False)
    set_surroundings(cfg, run, work_dir)
    return cfg


def set_surroundings(cfg: Config, run: Run, work_dir: str | Path) -> None:
    """What is the kit's own in every Config: seeds, whole checkpoints, one evaluation at the end."""
    for key in ('gpus', 'tf32', 'channels_last', 'one_scale', 'split'):     # read by the engine, or told only
        if key in run.settings:
            cfg[key] = run.settings[key]
    cfg.randomness = dict(seed=run.seed)
    cfg.work_dir = str(work_dir)
    # two are kept: where the newest is damaged, the one before serves
    cfg.default_hooks.checkpoint.update(type='WholeCheckpointHook', interval=1, max_keep_ckpts=2, save_best=None)
    cfg.default_hooks.logger.interval = run.profile.log_every
    for unused in ('val_dataloader', 'val_evaluator', 'val_cfg', 'tta_model', 'tta_pipeline', 'img_scales'):
        cfg.pop(unused, None)  # nothing is selected on the reported split: it is evaluated once, at the end
    cfg.train_cfg.pop('val_interval', None)


def _shipped_backbone(run: Run) -> str | None:
    """The first weights of a student's backbone, where the profile ships some."""
    file = None if run.profile.published else run.published_files().get('backbone')
    return file and str(ROOT / file)


def _detector(name: str, run: Run, dataset: Dataset | None, is_teacher: bool, backbone: str | None,
              pretrained: bool = True) -> ConfigDict:
    """A detector from mmdet's config `name`, at the run's profile."""
    model = copy.deepcopy(get_config(name).model)
    network = run.profile.teacher if is_teacher else run.profile.student
    if network is not None:
        _shrink(model, network, run.profile)
        pixels = get_config(run.row.group.student_config).model.data_preprocessor
        for key in ('mean', 'std', 'bgr_to_rgb'):   # the kit's own networks belong to no normalisation
            model.data_preprocessor[key] = pixels[key]
        model.backbone.init_cfg = dict(type='Pretrained', checkpoint=backbone) if backbone else None
    elif backbone:
        model.backbone.init_cfg = dict(type='Pretrained', checkpoint=backbone)
    elif not (pretrained and run.profile.published):
        model.backbone.init_cfg = None  # a teacher's weights come from its checkpoint; a dry run's are random
    if dataset is not None:     # else it is COCO, wherever it is
        _set_classes(model, len(dataset.classes))
    if run.profile.score_thr is not None:
        model.test_cfg.get('rcnn', model.test_cfg).score_thr = run.profile.score_thr
    return model


def _set_classes(model: ConfigDict, num_classes: int) -> None:
    """Of every head that tells classes apart."""
    roi = model.get('roi_head', {})
    for part in (model.get('bbox_head'), roi.get('bbox_head'), roi.get('mask_head')):
        for head in part if isinstance(part, list) else [part] if part else []:
            head.num_classes = num_classes


def _shrink(model: ConfigDict, network: Network, profile: Profile) -> None:
    """Exchange the backbone, narrow neck and heads, and fit anchors and proposals to smaller pictures, in place."""
    channels, expansion = profile.neck_channels, 4 if network.depth >= 50 else 1
    model.backbone = ConfigDict(
        type='ResNet', depth=network.depth, base_channels=network.width, num_stages=4, out_indices=(0, 1, 2, 3),
        frozen_stages=-1, norm_cfg=dict(type='BN', requires_grad=True), norm_eval=False, style='pytorch')
    model.neck.in_channels = [network.width * expansion * 2 ** stage for stage in range(4)]
    model.neck.out_channels = channels
    if 'rpn_head' in model:
        _shrink_two_stage(model, profile)
        return
    head = model.bbox_head
    head.update(in_channels=channels, feat_channels=channels,
                # DEVIATION head-norm: without it a RetinaNet head hardly learns from scratch; RepPoints has it anyway
                norm_cfg=dict(type='GN', num_groups=16, requires_grad=True),
                stacked_convs=profile.head_convs or head.stacked_convs)
    if head.type == 'RepPointsHead':
        head.point_feat_channels = channels
        head.point_base_scale *= profile.anchor_scale
        model.train_cfg.init.assigner.scale *= profile.anchor_scale
    elif 'anchor_generator' in head:
        head.anchor_generator.octave_base_scale *= profile.anchor_scale
    elif head.type == 'FCOSHead':
        ends = [end * profile.anchor_scale for end in (64, 128, 256, 512)]  # mmdet's ranges, in pixels
        head.regress_ranges = tuple(zip((-1, *ends), (*ends, 1e8), strict=True))
    else:
        raise SettingError(f'profile {profile.name}: how the object sizes of a {head.type} follow smaller pictures is '
                           'not known; say it in runs/config.py')


def _shrink_two_stage(model: ConfigDict, profile: Profile) -> None:
    channels, roi = profile.neck_channels, model.roi_head
    model.rpn_head.update(in_channels=channels, feat_channels=channels)
    model.rpn_head.anchor_generator.scales = [s * profile.anchor_scale for s in model.rpn_head.anchor_generator.scales]
    if 'mask_head' in roi:  # DEVIATION no-masks: Cascade R-CNN, since the smaller profiles' data have no masks
        model.type = 'CascadeRCNN'
        for key in ('mask_head', 'mask_roi_extractor'):
            roi.pop(key)
    roi.bbox_roi_extractor.out_channels = channels
    roi.bbox_roi_extractor.finest_scale = 56 * profile.anchor_scale  # 56 is mmdet's default
    for head in roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]:
        head.update(in_channels=channels, fc_out_channels=profile.fc_channels)
    for part in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        part.update(nms_pre=2 * profile.proposals, max_per_img=profile.proposals)
    rcnn = model.train_cfg.rcnn
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.num = min(stage.sampler.num, profile.proposals)


def _set_data(cfg: Config, run: Run, dataset: Dataset | None) -> None:
    train, test = cfg.train_dataloader, cfg.test_dataloader
    for loader in (train, test):
        loader.num_workers = run.profile.workers
        loader.persistent_workers = False   # new ones each epoch: SeedPicture learns the epoch from them
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = run.profile.image_px
    # what a picture looks like depends on seed, epoch and picture, not on processes or on what else was drawn
    train.dataset.pipeline.insert(0, ConfigDict(type='SeedPicture', seed=run.seed))
    train.batch_size = run.batch_size
    test.batch_size = run.profile.test_batch_size
    if 'mask_head' in cfg.model.get('roi_head', {}):    # a teacher that is trained here; students have no masks
        next(step for step in train.dataset.pipeline if step.type == 'LoadAnnotations').with_mask = True
    if dataset is None:
        cfg.test_evaluator = ConfigDict(type='CocoNumbers', ann_file=cfg.test_evaluator.ann_file)
        return
    meta = dict(classes=dataset.classes)
    reported = (dataset.test_ann, dataset.test_images) if run.recipe.split == 'test' else (
        dataset.val_ann, dataset.val_images)
    if reported[0] is None:
        raise SettingError(f'split={run.recipe.split}: {dataset.name} has no such split')
    for loader, ann, images in ((train, dataset.train_ann, dataset.train_images), (test, *reported)):
        loader.dataset.update(data_root='', ann_file=str(ann), data_prefix=dict(img=str(images)), metainfo=meta)
    if dataset.negatives:
        train.dataset.filter_cfg.filter_empty_gt = False    # trained on, as asked
    cfg.data_root = ''
    cfg.test_evaluator = ConfigDict(type='CocoNumbers', ann_file=str(reported[0]))


def _set_schedule(cfg: Config, run: Run) -> None:
    settings = run.settings
    cfg.train_cfg.max_epochs = run.epochs
    cfg.optim_wrapper.clip_grad = dict(max_norm=35, norm_type=2)
    if run.profile.lr is None:
        if 'lr' in settings:
            cfg.optim_wrapper.optimizer.lr = settings['lr']
        if run.epochs != cfg.param_scheduler[-1].end:   # of another length, it keeps the shape of the paper's schedule
            cfg.param_scheduler[-1].update(end=run.epochs, milestones=[max(1, round(run.epochs * part))
                                                                       for part in (16 / 24, 22 / 24)])
    else:  # the smaller profiles train from scratch in minutes: AdamW, warm-up, then a cosine down to zero
        cfg.optim_wrapper.optimizer = ConfigDict(type='AdamW', lr=settings.get('lr', run.profile.lr),
                                                 weight_decay=0.05)
        if run.recipe.optimizer == 'sgd':   # mmdet's own of the student, whatever it is at the paper's scale
            cfg.optim_wrapper.optimizer = copy.deepcopy(get_config(
                run.row.group.student_config).optim_wrapper.optimizer)
            cfg.optim_wrapper.optimizer.lr = settings.get('lr', cfg.optim_wrapper.optimizer.lr)
        cfg.param_scheduler = [
            dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
            dict(type='CosineAnnealingLR', T_max=run.epochs, eta_min=0, by_epoch=True, convert_to_iter_based=True)]
    set_rate(cfg, run)


def set_rate(cfg: Config, run: Run) -> None:
    """The learning rate for so many images a step, and with which precision a step is made."""
    settings, base = run.settings, images_of_lr(run.profile)
    cfg.auto_scale_lr = dict(enable='lr' not in settings and (run.profile.lr is None or run.images_per_update != base),
                             base_batch_size=base)
    if run.recipe.accumulate > 1:
        cfg.optim_wrapper.accumulative_counts = run.recipe.accumulate
        cfg.auto_scale_lr.base_batch_size = base / run.recipe.accumulate  # mmengine counts one step's images only
    if run.recipe.fused:
        cfg.optim_wrapper.optimizer.fused = True
    match run.recipe.amp:
        case 'fp16':
            cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
        case 'bf16':
            cfg.optim_wrapper.type = 'BFloat16OptimWrapper'


def images_of_lr(profile: Profile) -> int:
    """Images a step that a profile's learning rate belongs to: 16 for mmdet's, the profile's batch for AdamW."""
    return profile.lr_images if profile.lr is None else profile.batch_size


def describe_lr(run: Run, given: float, used: float) -> str:
    """How the learning rate came about, for one line: `lr 0.01 for 16 images a step -> 0.00125 for 2`.

    Args:
        given: as the Config has it.
        used: as the optimizer has it, scaled or not.
    """
    images, base = run.images_per_update, images_of_lr(run.profile)
    factors = ((run.recipe.gpus, 'GPUs'), (run.recipe.accumulate, 'steps'))
    parts = ' x '.join([f'{run.batch_size}', *(f'{count} {word}' for count, word in factors if count > 1)])
    made_of = f' ({parts})' if ' ' in parts else ''
    if run.recipe.lr is not None:
        return f'lr {used:g} for {images} images a step{made_of}, as given: not scaled'
    if used == given:
        return f'lr {used:g} for {images} images a step{made_of}'
    return f'lr {given:g} for {base} images a step -> {used:g} for {images}{made_of}'


# ---- what of it is a setting ------------------------------------------------------------------------------------

# what changes no number, or is fingerprinted on its own (data, teacher, files)
_NOT_SETTINGS = {'work_dir', 'num_workers', 'persistent_workers', 'resume', 'load_from', 'launcher', 'visualizer',
                 'vis_backends', 'log_processor', 'log_level', 'env_cfg', 'default_hooks', 'custom_hooks',
                 'custom_imports', 'experiment_name', 'data_root', 'data_prefix', 'ann_file', 'teacher_weights',
                 'dataset_type', 'train_pipeline', 'test_pipeline', 'backend_args', 'test_evaluator', 'detections'}
_OF_TEACHER = {'model': ('scales', 'kept'), 'inherit': ('weights',)}    # follow from it; it is fingerprinted


def settings_hash(cfg: Config) -> str:
    """16 hex digits over everything in a Config that can change a number; paths and workers do not count."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in sorted(value.items()) if key not in _NOT_SETTINGS}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return Path(value).name if isinstance(value, str) and value.startswith('/') else value
    content = cfg.to_dict()
    for part, keys in _OF_TEACHER.items():
        content[part] = {key: value for key, value in content.get(part, {}).items() if key not in keys}
        if not content[part]:
            del content[part]
    return digest(json.dumps(plain(content), sort_keys=True))
