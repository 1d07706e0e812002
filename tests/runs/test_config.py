"""config.py: every row at every profile, the paper's values, what settings change, and what of it is hashed."""
import ast
import copy
import functools
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from amdlib import methods
from amdlib.datasets import Dataset
from amdlib.errors import SettingError
from amdlib.methods.amd import AMDLoss
from amdlib.methods.fgd import FGDLoss
from amdlib.methods.fkd import FKDLoss
from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import paper_groups
from amdlib.paper.profiles import PROFILES
from amdlib.paper.rows import ROWS
from amdlib.runs.config import Taught, config, describe_lr, settings_hash
from amdlib.runs.originals import get_config
from amdlib.runs.run import Run, table_runs
from amdlib.runs.store import file_hashes
from amdlib.weights.reading import load_strictly

METHOD_ROWS = [row.id for row in ROWS.values() if row.method]
PAPERS_ROWS = [row.id for row in ROWS.values() if row.group.name in paper_groups()]
COMPARED = {group: [row.name for row in ROWS.values() if row.group.name == group and row.name == row.method]
            for group in GROUPS}
CELLS = Dataset('cells', Path('/d/train.json'), Path('/d/train'), Path('/d/test.json'), Path('/d/test'),
                ('platelet', 'rbc', 'wbc'), '0' * 16, ())


@pytest.fixture(scope='module')
def cfg_of(dataset):
    """Row id, profile name -> its Config (made once, handed out as copies)."""
    @functools.cache
    def make(row, profile):
        return config(Run.of(row, profile), {'shapes': dataset, 'folder': CELLS}.get(PROFILES[profile].data))
    return lambda row, profile='paper': copy.deepcopy(make(row, profile))


def resize_scales(cfg):
    return [step.scale for loader in (cfg.train_dataloader, cfg.test_dataloader)
            for step in loader.dataset.pipeline if step.type == 'Resize']


def detectors(cfg):
    return (cfg.model.student, cfg.model.teacher) if cfg.model.type == 'Distiller' else (cfg.model,)


# ---- every row --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('row', ROWS)
@pytest.mark.parametrize('profile', PROFILES)
def test_every_row_at_every_profile_gives_a_config(cfg_of, dataset, row, profile):
    cfg = cfg_of(row, profile)
    assert isinstance(cfg, Config)
    assert (cfg.model.type == 'Distiller') == (ROWS[row].method is not None)
    assert cfg.train_dataloader.batch_size == PROFILES[profile].batch_size
    assert cfg.train_cfg.max_epochs == Run.of(row, profile).epochs
    assert resize_scales(cfg) == [PROFILES[profile].image_px] * 2
    assert cfg.test_evaluator.type == 'CocoNumbers'
    assert cfg.custom_imports.imports == ['amdlib.engine']
    assert not {'val_dataloader', 'val_cfg', 'val_evaluator'} & set(cfg)  # nothing is selected on the reported split
    assert cfg.default_hooks.checkpoint.save_best is None
    if PROFILES[profile].published:
        return
    data = CELLS if PROFILES[profile].data == 'folder' else dataset
    for detector in detectors(cfg):
        heads = detector.bbox_head if 'bbox_head' in detector else detector.roi_head.bbox_head
        classes = {head.num_classes for head in (heads if isinstance(heads, list) else [heads])}
        assert classes == {len(data.classes)}
    assert cfg.train_dataloader.dataset.ann_file == str(data.train_ann)
    assert cfg.test_dataloader.dataset.data_prefix.img == str(data.test_images)
    assert cfg.test_dataloader.dataset.metainfo.classes == data.classes
    assert cfg.test_evaluator.ann_file == str(data.test_ann)


@pytest.mark.parametrize('name', ['baseline', 'teacher', 'amd'])
@pytest.mark.parametrize('group', paper_groups())
def test_at_paper_every_head_has_as_many_classes_as_the_data(group, name):
    """COCO's 80 change nothing; of other data in its layout a mistake would show after all epochs only."""
    coco = replace(CELLS, name='coco', classes=tuple(map(str, range(80))))
    run = Run.of(f'{group}-{name}', 'paper')
    text = str(config(run, None).model.to_dict())
    assert str(config(run, coco).model.to_dict()) == text
    assert text.count("'num_classes': 80") == text.count("'num_classes': ") > 0
    few = str(config(run, CELLS).model.to_dict())
    assert few == text.replace("'num_classes': 80", "'num_classes': 3")


@pytest.mark.slow
@pytest.mark.parametrize('row', [row for row in ROWS if not ROWS[row].shuffled])    # they need kept features
def test_every_row_builds_and_makes_a_training_step(dataset, tiny, train_step, row):
    cfg = config(Run.of(row, tiny), dataset)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    before = {name: value.clone() for name, value in model.named_parameters()}
    logged = train_step(model, cfg)
    assert all(torch.isfinite(value) for value in logged.values()), logged
    method, group = ROWS[row].method, ROWS[row].group
    terms = [name for name in logged if name.startswith(f'loss_{method}_')]
    if method and methods.looks_at_steps(methods.find_method(method)):
        assert terms    # of the whole step, named as the method likes
    else:
        assert terms == [f'loss_{method}_fpn_{i}' for i in group.levels if method]
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize('profile', ['mini', 'small'])
def test_without_data_only_the_paper_profile_has_a_config(profile):
    with pytest.raises(SettingError, match=f'profile {profile} needs a data set'):
        config(Run.of('retinanet-baseline', profile))


def test_making_a_config_leaves_mmdets_and_the_rows_alone(dataset, tiny):
    before = copy.deepcopy(ROWS['retinanet-amd'].options)
    first = config(Run.of('retinanet-amd', tiny), dataset)
    first.model.student.neck.out_channels = 1
    assert config(Run.of('retinanet-amd', tiny), dataset).model.student.neck.out_channels == 64
    assert ROWS['retinanet-amd'].options == before


@pytest.mark.parametrize(('row', 'profile'), [
    ('retinanet-amd', 'mini'), ('reppoints-fgd', 'mini'), ('faster_rcnn-mgd', 'mini'), ('retinanet-teacher', 'mini'),
    ('faster_rcnn-amd', 'paper'), ('retinanet-baseline', 'small')])
def test_the_printed_config_reads_back_equal(cfg_of, row, profile):
    cfg = cfg_of(row, profile)
    text = cfg.pretty_text
    ast.parse(text)
    assert Config.fromstring(text, '.py').to_dict() == cfg.to_dict()


def test_a_loss_from_outside_takes_the_place_of_the_papers(dataset, tiny, mine, train_step):
    cfg = config(Run.of(f'retinanet-{mine}', tiny), dataset)
    own, amd = cfg.to_dict(), config(Run.of('retinanet-amd', tiny), dataset).to_dict()
    assert own['model'].pop('method') == mine
    assert own['model'].pop('options') == {'weight': pytest.approx(1e-5 * 4 * 1333 * 800 / 64 ** 2)}
    del amd['model']['method'], amd['model']['options']
    assert own == amd
    logged = train_step(MODELS.build(cfg.model), cfg)
    assert [name for name in logged if name.startswith('loss_mine')] == [f'loss_mine_fpn_{i}' for i in range(5)]


# ---- the paper's values (method.md) -----------------------------------------------------------------------------

@pytest.mark.parametrize('row', [row for row in PAPERS_ROWS if not ROWS[row].is_teacher])
def test_the_papers_schedule(cfg_of, row):
    cfg = cfg_of(row)
    assert cfg.train_cfg.max_epochs == 24
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.by_epoch) == ('LinearLR', False)
    assert (steps.type, steps.by_epoch, steps.milestones, steps.gamma, steps.end) == (
        'MultiStepLR', True, [16, 22], 0.1, 24)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ('SGD', 0.9, 1e-4)
    assert optimizer.lr == (0.02 if 'faster' in row else 0.01)
    assert cfg.auto_scale_lr == {'enable': True, 'base_batch_size': 16}
    assert cfg.optim_wrapper.clip_grad == {'max_norm': 35, 'norm_type': 2}
    assert resize_scales(cfg) == [(1333, 800)] * 2
    assert all(step.keep_ratio for step in cfg.train_dataloader.dataset.pipeline if step.type == 'Resize')
    assert not any('Choice' in step.type for step in cfg.train_dataloader.dataset.pipeline)  # a single scale


@pytest.mark.parametrize('group', GROUPS)
def test_a_pairs_schedule_ends_with_its_training(cfg_of, group):
    """Also where mmdet's config of the student is for another number of epochs."""
    cfg = cfg_of(f'{group}-baseline')
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs


@pytest.mark.parametrize('row', PAPERS_ROWS)
def test_the_tenth_is_the_papers_run_with_steps_that_follow_its_epochs(cfg_of, row):
    paper, tenth = (cfg_of(row, profile).to_dict() for profile in ('paper', 'tenth'))
    assert tenth['train_cfg'].pop('max_epochs') == 12
    assert (tenth['param_scheduler'][-1].pop('milestones'), tenth['param_scheduler'][-1].pop('end')) == ([8, 11], 12)
    for part, keys in (('train_cfg', ['max_epochs']), ('param_scheduler', ['milestones', 'end'])):
        for key in keys:
            (paper[part] if isinstance(paper[part], dict) else paper[part][-1]).pop(key)
    assert tenth == paper
    run, of_paper = (Run.of(row, profile) for profile in ('tenth', 'paper'))
    assert run.published_files() == of_paper.published_files()
    assert (run.reference_rms, run.inherits) == (of_paper.reference_rms, of_paper.inherits)


def test_a_student_with_a_shorter_schedule_gets_the_papers():
    group = replace(GROUPS['retinanet'], student_config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    run = Run.of(replace(ROWS['retinanet-baseline'], group=group), 'paper')
    assert config(run).param_scheduler == config(Run.of('retinanet-baseline', 'paper')).param_scheduler


@pytest.mark.parametrize('row', METHOD_ROWS)
def test_the_detectors_are_mmdets_own(cfg_of, row):
    model, group = cfg_of(row).model, ROWS[row].group
    assert model.student == get_config(group.student_config).model
    teacher = copy.deepcopy(get_config(group.teacher_config).model)
    assert teacher.backbone.init_cfg is not None
    teacher.backbone.init_cfg = None  # its weights come from the detector's checkpoint
    assert model.teacher == teacher


@pytest.mark.parametrize('row', [row for row in PAPERS_ROWS if ROWS[row].method])
def test_the_papers_students_and_levels(cfg_of, row):
    model = cfg_of(row).model
    assert model.student.backbone.init_cfg == {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'}
    assert tuple(model.levels) == tuple(range(5 if ROWS[row].group.one_stage else 4))


@pytest.mark.parametrize('row', METHOD_ROWS)
def test_method_levels_and_inheriting(cfg_of, row):
    model, group = cfg_of(row).model, ROWS[row].group
    assert model.method == ROWS[row].method
    assert tuple(model.levels) == group.levels
    assert tuple(model.inherit) == (('neck', 'bbox_head') if group.one_stage else ())
    distiller = inspect.signature(MODELS.get('Distiller')).parameters
    for side in ('student_module', 'teacher_module'):
        assert side not in model
        assert distiller[side].default == 'neck.fpn_convs.{i}.conv'


@pytest.mark.parametrize(('group', 'alpha', 'ratio'),
                         [('retinanet', 2e-5, 0.65), ('reppoints', 2e-5, 0.65), ('faster_rcnn', 5e-7, 0.45)])
def test_the_papers_weights_of_mgd_and_amd(cfg_of, group, alpha, ratio):
    assert cfg_of(f'{group}-mgd').model.options == {'alpha_mgd': alpha, 'lambda_mgd': ratio}
    assert cfg_of(f'{group}-amd').model.options == {'alpha': alpha, 'mask_ratio': ratio}
    loss = AMDLoss(4, 4)
    assert (loss.temperature, loss.phi, loss.spatial, loss.generation.kind, loss.channel_position) == (
        0.5, 1.0, 'adaptive', 'conv2', 'after')
    assert loss.clue is not None
    assert inspect.signature(AMDLoss).parameters['se_reduction'].default == 16


@pytest.mark.parametrize(('group', 'weights'), [
    ('retinanet', (1e-3, 5e-4, 5e-4, 5e-4, 5e-6)), ('reppoints', (1.6e-3, 8e-4, 8e-4, 8e-4, 8e-6)),
    ('faster_rcnn', (5e-5, 2.5e-5, 5e-5, 5e-5, 5e-7))])
def test_the_papers_weights_of_fgd(cfg_of, group, weights):
    options = cfg_of(f'{group}-fgd').model.options
    names = ('alpha_fgd', 'beta_fgd', 'gamma_fgd', 'gamma_channel_fgd', 'lambda_fgd')     # gamma is one there
    assert options == dict(zip(names, weights, strict=True))
    assert FGDLoss(4, 4).temp == 0.5


@pytest.mark.parametrize('group', paper_groups())
def test_the_papers_weights_of_fkd(cfg_of, group):
    loss = FKDLoss(4, 4, **cfg_of(f'{group}-fkd').model.options)
    assert (loss.feature_weight, loss.channel_weight, loss.spatial_weight, loss.nonlocal_weight) == (
        7e-5, 4e-3, 4e-3, 7e-5)
    assert (loss.spatial_temperature, loss.channel_temperature) == (0.5, 0.5)


# ---- results that are there -------------------------------------------------------------------------------------

@pytest.mark.parametrize(('profile', 'hashes'), [
    ('mini', ['9ed87b746d5ee67d', 'fdd27f117f41c7cc', '6f92a67f3427dc51']),
    ('small', ['fb33a45136b3e10a', '51832468236e4da5', 'f402b1f059c0626b']),
    ('paper', ['d09ec3e4ca1bebb8', '92d28c7ab0f292af', '91ba682f43c29dd8'])])
def test_what_has_results_keeps_its_settings_hashes(cfg_of, profile, hashes):
    """A number here changes only with the runs that it makes stale, or with mmdet's own configs."""
    rows = ('retinanet-amd', 'reppoints-teacher', 'faster_rcnn-mgd')
    assert [settings_hash(cfg_of(row, profile)) for row in rows] == hashes


# ---- rows differ in the method only -----------------------------------------------------------------------------

@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('group', GROUPS)
def test_baseline_and_methods_differ_in_the_method_only(cfg_of, group, profile):
    baseline = cfg_of(f'{group}-baseline', profile).to_dict()
    student = baseline.pop('model')
    models = []
    for method in COMPARED[group]:
        cfg = cfg_of(f'{group}-{method}', profile).to_dict()
        models.append(cfg.pop('model'))
        assert cfg == baseline
        assert models[-1]['student'] == student
        assert models[-1].pop('method') == method
        assert models[-1].pop('options')
    assert all(model == models[0] for model in models)


@pytest.mark.parametrize('group', GROUPS)
def test_the_teacher_of_the_methods_is_the_teachers_row(cfg_of, group):
    teacher, amd = cfg_of(f'{group}-teacher', 'mini'), cfg_of(f'{group}-amd', 'mini')
    assert amd.model.teacher == teacher.model
    assert amd.optim_wrapper == teacher.optim_wrapper
    assert amd.train_dataloader == teacher.train_dataloader
    assert 'mask_head' not in str(teacher.model)


# ---- settings ---------------------------------------------------------------------------------------------------

def test_the_seed_is_that_of_the_run(dataset, tiny):
    cfg = config(Run.of('retinanet-mgd', tiny, seed=3), dataset)
    assert (cfg.randomness.seed, cfg.model.seed) == (3, 3)


def test_settings_reach_the_config(dataset, tiny):
    settings = {'epochs': 7, 'lr': 0.5, 'batch_size': 3, 'amp': True, 'phi': 0.7}
    cfg = config(Run.of('retinanet-amd', tiny, 0, settings), dataset)
    assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.lr, cfg.train_dataloader.batch_size,
            cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == (7, 0.5, 3, 'AmpOptimWrapper', 'float16')
    assert cfg.param_scheduler[1].T_max == 7
    model = MODELS.build(cfg.model)
    assert {loss.phi for loss in model.distill_losses.values()} == {0.7}


def test_a_shortened_paper_run_keeps_the_shape_of_its_schedule():
    cfg = config(Run.of('retinanet-amd', 'paper', 0, {'epochs': 12, 'lr': 0.005}))
    assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.lr) == (12, 0.005)
    assert (cfg.param_scheduler[-1].milestones, cfg.param_scheduler[-1].end) == ([8, 11], 12)


def test_weight_files_reach_the_config(dataset, tiny, weight_file, tmp_path):
    cfg = config(Run.of('retinanet-amd', tiny, 0, {'backbone': str(weight_file)}), dataset,
                 taught=Taught(tmp_path / 'weights.pth'))
    assert cfg.model.student.backbone.init_cfg == {'type': 'Pretrained', 'checkpoint': str(weight_file)}
    assert cfg.model.teacher.backbone.init_cfg is None
    assert cfg.model.teacher_weights == str(tmp_path / 'weights.pth')


def test_switches_reach_the_config(dataset, tiny):
    on = {'gpus': 2, 'amp': 'bf16', 'tf32': True, 'channels_last': True, 'fused': True, 'compile_teacher': True,
          'half_teacher': 'bf16'}
    run = Run.of('retinanet-amd', tiny, 0, on)
    cfg = config(run, dataset)
    assert (cfg.gpus, cfg.tf32, cfg.channels_last, cfg.optim_wrapper.optimizer.fused) == (2, True, True, True)
    assert cfg.optim_wrapper.type == 'BFloat16OptimWrapper'
    assert (cfg.model.compile_teacher, cfg.model.half_teacher) == (True, 'bf16')
    assert set(run.teacher().settings) == {'gpus', 'amp', 'tf32', 'channels_last', 'fused'}
    table = table_runs('table1', 'small', 'retinanet', settings={'compile_teacher': True, 'amp': 'bf16'})
    assert {run.row.name: run.recipe.compile_teacher for run in table} == {
        run.row.name: run.row.method is not None for run in table}
    assert {run.recipe.amp for run in table} == {'bf16'}


# ---- kept and scaled features, arms, splits ---------------------------------------------------------------------

def test_what_a_student_takes_from_its_teacher(dataset, bed):
    run = Run.of('retinanet-amd', bed)
    taught = Taught(Path('/t/weights.pth'), Path('/t/features'), (4.0, 2.0, 1.0, 0.5, 0.25))
    plain, model = config(run, dataset).model, config(run, dataset, taught=taught).model
    assert (model.teacher_weights, model.kept, model.alone) == ('/t/weights.pth', '/t/features', True)
    assert (model.reference_rms, model.scales) == (0.5, [8.0, 4.0, 2.0, 1.0, 0.5])
    assert (plain.teacher_weights, plain.kept, plain.scales, plain.alone) == (None, None, None, True)
    some = config(Run.of('retinanet-amd', bed, 0, {'levels': (1, 3), 'reference': 0.25}), dataset, taught=taught).model
    assert (tuple(some.levels), some.scales) == ((1, 3), [8.0, 2.0])
    one = Run.of('retinanet-amd', bed, 0, {'levels': (1, 2), 'one_scale': True})
    assert config(one, dataset, taught=taught).model.scales == [pytest.approx(2.5 ** .5 / 0.5)] * 2     # (2^2 + 1) / 2


@pytest.mark.parametrize('row', METHOD_ROWS)
def test_at_paper_the_losses_see_features_as_they_are(cfg_of, row):
    model = cfg_of(row).model
    assert not {'scales', 'reference_rms', 'alone', 'kept'} & set(model)
    taught = Taught(Path('/t/weights.pth'), feature_rms=(4.0,) * 5)     # whoever has measured them
    assert 'scales' not in config(Run.of(row, 'paper'), taught=taught).model


def test_the_row_inherit_is_a_detector_that_starts_from_its_teacher(cfg_of, dataset, tiny):
    for group in GROUPS:
        cfg = config(Run.of(f'{group}-inherit', tiny), dataset, taught=Taught(Path('/t/weights.pth')))
        head = 'bbox_head' if GROUPS[group].one_stage else 'rpn_head'
        assert cfg.inherit.to_dict() == {'parts': ('neck', head), 'weights': '/t/weights.pth'}
        baseline = config(Run.of(f'{group}-baseline', tiny), dataset)
        assert {**cfg.to_dict(), 'inherit': None} == {**baseline.to_dict(), 'inherit': None}


@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('group', GROUPS)
def test_an_untrained_teacher_is_the_teacher_with_random_weights(cfg_of, group, profile):
    untrained, teacher = cfg_of(f'{group}-untrained', profile), cfg_of(f'{group}-teacher', profile)
    assert untrained.pop('untrained') is True
    assert untrained.model.backbone.init_cfg is None
    teacher.model.backbone.init_cfg = None
    assert untrained.to_dict() == teacher.to_dict()


def test_a_run_is_evaluated_on_the_split_that_its_name_says(dataset, tiny):
    run = Run.of('retinanet-amd', tiny, 0, {'split': 'val'})
    cfg = config(run, dataset)
    assert run.id == 'retinanet-amd+split=val-s0'
    assert cfg.test_dataloader.dataset.ann_file == cfg.test_evaluator.ann_file == str(dataset.val_ann)
    assert cfg.test_dataloader.dataset.data_prefix.img == str(dataset.val_images)
    assert cfg.train_dataloader.dataset.ann_file == str(dataset.train_ann)
    with pytest.raises(SettingError, match='split=val: cells has no such split'):
        config(run, CELLS)


def test_sgd_is_mmdets_own_of_the_student(dataset, tiny):
    for row, lr in (('retinanet-amd', 0.01), ('faster_rcnn-amd', 0.02)):
        optimizer = config(Run.of(row, tiny, 0, {'optimizer': 'sgd'}), dataset).optim_wrapper.optimizer
        assert optimizer.to_dict() == {'type': 'SGD', 'lr': lr, 'momentum': 0.9, 'weight_decay': 1e-4}
    given = config(Run.of('retinanet-amd', tiny, 0, {'optimizer': 'sgd', 'lr': 0.1}), dataset).optim_wrapper.optimizer
    assert (given.type, given.lr) == ('SGD', 0.1)
    assert get_config(GROUPS['retinanet'].student_config).optim_wrapper.optimizer.lr == 0.01    # a copy was changed
    assert Run.of('retinanet-amd', 'paper', 0, {'optimizer': 'sgd'}) == Run.of('retinanet-amd', 'paper')
    with pytest.raises(SettingError, match='optimizer=adamw: profile paper trains with the SGD of mmdet'):
        Run.of('retinanet-amd', 'paper', 0, {'optimizer': 'adamw'})


# ---- the learning rate ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('profile', 'settings', 'scaled', 'images'), [
    ('paper', {}, True, 2), ('paper', {'gpus': 8}, True, 16), ('paper', {'gpus': 4, 'accumulate': 2}, True, 16),
    ('paper', {'lr': 0.005}, False, 2), ('small', {}, False, 8), ('small', {'gpus': 2}, True, 16),
    ('mini', {}, False, 4), ('mini', {'batch_size': 1}, True, 1),
    ('mini', {'batch_size': 2, 'accumulate': 2}, False, 4)])
def test_the_learning_rate_grows_with_the_images_an_update(dataset, profile, settings, scaled, images):
    run = Run.of('retinanet-baseline', profile, 0, settings)
    cfg = config(run, {'shapes': dataset, 'folder': CELLS, 'coco': None}[PROFILES[profile].data])
    assert run.images_per_update == images
    rule = cfg.auto_scale_lr
    assert rule.enable == scaled
    if scaled:  # what mmengine will multiply with, which knows GPUs and batch size only
        factor = run.batch_size * run.recipe.gpus / rule.base_batch_size
        assert factor == images / (16 if profile == 'paper' else PROFILES[profile].batch_size)
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == run.recipe.accumulate


@pytest.mark.parametrize(('profile', 'settings', 'given', 'used', 'text'), [
    ('paper', {}, 0.01, 0.00125, 'lr 0.01 for 16 images a step -> 0.00125 for 2'),
    ('paper', {'gpus': 8}, 0.01, 0.01, 'lr 0.01 for 16 images a step (2 x 8 GPUs)'),
    ('paper', {'gpus': 2, 'accumulate': 2}, 0.01, 0.005,
     'lr 0.01 for 16 images a step -> 0.005 for 8 (2 x 2 GPUs x 2 steps)'),
    ('paper', {'lr': 0.02}, 0.02, 0.02, 'lr 0.02 for 2 images a step, as given: not scaled'),
    ('mini', {}, 0.003, 0.003, 'lr 0.003 for 4 images a step')])
def test_how_the_learning_rate_came_about_is_told(profile, settings, given, used, text):
    assert describe_lr(Run.of('retinanet-baseline', profile, 0, settings), given, used) == text


# ---- what of it is hashed ---------------------------------------------------------------------------------------

def hash_of(profile, dataset, row='retinanet-amd', seed=0, settings=None, **paths):
    return settings_hash(config(Run.of(row, profile, seed, settings), dataset, **paths))


def test_paths_workers_and_what_follows_from_a_teacher_do_not_count_as_settings(dataset, tiny, bed, tmp_path):
    wanted = hash_of(tiny, dataset)
    assert len(wanted) == 16
    taught = Taught(Path('/some/weights.pth'), Path('/some/features'), (1.0, 2.0, 3.0, 4.0, 5.0))
    for profile in (tiny, bed):
        assert hash_of(profile, dataset, work_dir='/elsewhere', taught=taught) == hash_of(profile, dataset)
        elsewhere = {'row': 'retinanet-inherit', 'taught': taught}
        assert hash_of(profile, dataset, **elsewhere) == hash_of(profile, dataset, 'retinanet-inherit')
    moved = replace(dataset, **{key: tmp_path / 'moved' / getattr(dataset, key).name
                                for key in ('train_ann', 'train_images', 'test_ann', 'test_images')})
    assert hash_of(tiny, moved) == wanted
    assert hash_of(replace(tiny, workers=3), dataset) == wanted


def test_a_weight_files_folder_does_not_count_but_its_content_does(dataset, tiny, tmp_path):
    runs = []
    for folder, content in (('a', b'1'), ('b', b'1'), ('c', b'2')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'r18.pth').write_bytes(content)
        runs.append(Run.of('retinanet-amd', tiny, 0, {'backbone': str(tmp_path / folder / 'r18.pth')}))
    assert len({settings_hash(config(run, dataset)) for run in runs}) == 1
    first, same, other = (file_hashes(run) for run in runs)
    assert first == same != other
    assert list(first) == ['backbone']


def test_the_folder_of_a_loss_from_outside_does_not_count(dataset, tiny, mine, tmp_path):
    moved = tmp_path / 'moved' / 'own.py'
    moved.parent.mkdir()
    moved.write_bytes(Path(mine.rpartition(':')[0]).read_bytes())
    assert hash_of(tiny, dataset, f'retinanet-{mine}') == hash_of(tiny, dataset, f'retinanet-{moved}:Mine')


CHANGES = [
    {'settings': {'lr': 1e-4}}, {'settings': {'phi': 0.7}}, {'settings': {'epochs': 9}}, {'settings': {'alpha': 1e-5}},
    {'settings': {'batch_size': 3}}, {'settings': {'amp': True}}, {'settings': {'spatial': 'random'}}, {'seed': 1},
    {'settings': {'gpus': 2}}, {'settings': {'accumulate': 2}}, {'settings': {'tf32': True}},
    {'settings': {'channels_last': True}}, {'settings': {'fused': True}}, {'settings': {'half_teacher': 'bf16'}},
    {'settings': {'compile_teacher': True}}, {'settings': {'levels': (0, 1)}}, {'settings': {'factor': 0.1}},
    {'settings': {'reference': 0.5}}, {'settings': {'one_scale': True}}, {'settings': {'optimizer': 'sgd'}},
    {'settings': {'split': 'val'}}, {'settings': {'inherit': False}}, {'row': 'retinanet-amd-shuffled'},
    {'reference_rms': 0.5}, {'keep_features': True}, {'arm': 'alone'}, {'row': 'retinanet-mgd'},
    {'image_px': (96, 96)}, {'neck_channels': 128},
    {'proposals': 30, 'row': 'faster_rcnn-amd'}]


@pytest.mark.parametrize('part', ['student', 'teacher'])
def test_the_sizes_of_anchors_are_settings(dataset, tiny, part):
    """Of two-stage detectors they are called scales, as the Distiller's constants are."""
    cfg = config(Run.of('faster_rcnn-amd', tiny), dataset)
    before = settings_hash(cfg)
    cfg.model[part].rpn_head.anchor_generator.scales = [7]
    assert settings_hash(cfg) != before


@pytest.mark.parametrize('changes', CHANGES, ids=str)
def test_what_changes_a_number_changes_the_hash(dataset, tiny, changes):
    of_profile = {key: value for key, value in changes.items() if key not in ('settings', 'seed', 'row')}
    of_run = {key: value for key, value in changes.items() if key not in of_profile}
    base = {'row': of_run['row']} if of_profile and 'row' in of_run else {}
    assert hash_of(replace(tiny, **of_profile), dataset, **of_run) != hash_of(tiny, dataset, **base)


# ---- a teacher's weights ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('group', GROUPS)
def test_a_trained_teacher_fits_the_teacher_of_its_students(dataset, tiny, group):
    trained = MODELS.build(config(Run.of(f'{group}-teacher', tiny), dataset).model)
    taught = MODELS.build(config(Run.of(f'{group}-amd', tiny), dataset).model.teacher)
    load_strictly(taught, trained.state_dict(), 'the trained one')
