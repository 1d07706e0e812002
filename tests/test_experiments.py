import ast
import copy
import functools
import inspect
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config

from amdlib import experiments, zoo
from amdlib.amd import AMDLoss
from amdlib.data import Dataset
from amdlib.distill import METHODS
from amdlib.experiments import (GROUPS, PROFILES, ROWS, TABLES, Run, SettingError, config, describe_lr,
                                find_profile, find_row, find_table, read_settings, scale_weights, shorter, sweep_runs,
                                table_runs, write_settings)
from amdlib.losses import FGDLoss, FKDLoss, MGDLoss

ROOT = Path(__file__).parents[1]
PAPER = Path(os.environ.get('AMD_SHARED', ROOT.parent / 'shared')) / 'paper'
needs_paper = pytest.mark.skipif(not PAPER.is_dir(), reason='AMD_SHARED has no folder paper')

METHOD_ROWS = [row.id for row in ROWS.values() if row.method]
CELLS = Dataset('cells', Path('/d/train.json'), Path('/d/train'), Path('/d/test.json'), Path('/d/test'),
                ('platelet', 'rbc', 'wbc'), '0' * 16, ())


@pytest.fixture(scope='module')
def cfg_of(dataset):
    """Row id, profile name -> its Config (made once, handed out as copies)."""
    @functools.cache
    def make(row, profile):
        return config(Run.of(row, profile), {'mini': dataset, 'small': CELLS, 'paper': None}[profile])
    return lambda row, profile='paper': copy.deepcopy(make(row, profile))


def method_of(group, method='amd'):
    return f'{group}-{method}'


def resize_scales(cfg):
    return [step.scale for loader in (cfg.train_dataloader, cfg.test_dataloader)
            for step in loader.dataset.pipeline if step.type == 'Resize']


# ---- rows -------------------------------------------------------------------------------------------------------

PRINTED = pd.read_csv(ROOT / 'data' / 'paper_tables.csv', keep_default_na=False)
COMPARED = ('teacher', 'baseline', 'fkd', 'fgd', 'mgd', 'amd')
ARMS = ('amd-channel', 'amd-mask', 'amd-unmasked', 'amd-allmasked')
CHOICES = ['spatial', 'channel', 'generation', 'channel_position']   # columns of the paper's tables, options of AMDLoss


def loss_of(row):
    return AMDLoss(16, 16, **row.options)


def choices_of(row):
    """What a row's loss does, read off the loss and not off the row."""
    loss = loss_of(row)
    return [loss.spatial, 'none' if loss.clue is None else 'se', loss.generation.kind, loss.channel_position]


def printed_rows():
    """Table, group, label, and the four choices of every line of the paper's tables."""
    return [pytest.param(line, id=f'{line.table}-{line.group}-{line.row}') for line in PRINTED.itertuples()]


def test_the_rows_are_those_of_the_papers_tables():
    own = {'retinanet': ('amd-mbconv', 'amd-conv1'), 'reppoints': (), 'faster_rcnn': ('amd-within',)}
    assert list(ROWS) == [f'{group}-{row}' for group in ('retinanet', 'reppoints', 'faster_rcnn')
                          for row in (*COMPARED, *ARMS, *own[group])]
    assert len(ROWS) == 33
    assert all(key == row.id for key, row in ROWS.items())


def test_the_tables_are_the_papers():
    assert {name: (table.number, table.groups) for name, table in TABLES.items()} == {
        'table1': ('I', ('retinanet', 'reppoints', 'faster_rcnn')), 'table2': ('II', ('retinanet',)),
        'table3': ('III', ('reppoints',)), 'table4': ('IV', ('faster_rcnn',)), 'table5': ('V', ('retinanet',)),
        'table6': ('VI', ('faster_rcnn',))}
    for table in TABLES.values():
        assert table.reference in dict(table.lines)     # what differences are taken to is a line of the table itself
        assert set(table.metrics) <= set(PRINTED.columns)


@pytest.mark.parametrize('line', printed_rows())
def test_every_line_of_the_paper_is_one_row_that_does_what_its_columns_say(line):
    (table,) = [table for table in TABLES.values() if table.number == line.table]
    (row,) = [row for row in table.rows(line.group) if table.label(row) == line.row]
    assert row.group.name == line.group
    wanted = [getattr(line, choice) for choice in CHOICES]
    if row.method == 'amd':
        assert choices_of(row) == wanted
    else:
        assert wanted == [''] * 4


def test_every_line_of_a_table_is_printed_in_the_paper_or_known_to_be_ours():
    printed = set(PRINTED[['table', 'group', 'row']].itertuples(index=False, name=None))
    ours = {(table.number, row.group.name, table.label(row)) for table in TABLES.values() for row in table.rows()}
    assert printed <= ours
    assert {(number, label) for number, _, label in ours - printed} == {
        ('I', 'Teacher'), *((number, label) for number in ('II', 'III', 'IV')
                            for label in ('baseline', 'nothing masked', 'everything masked'))}


@pytest.mark.parametrize('table', ['table2', 'table3', 'table4'])
def test_an_ablation_has_the_controls_without_and_with_everything_masked(table):
    by_label = {TABLES[table].label(row): row for row in TABLES[table].rows()}
    assert choices_of(by_label['nothing masked']) == ['none', 'se', 'conv2', 'after']
    assert choices_of(by_label['everything masked']) == ['all', 'se', 'conv2', 'after']


@pytest.mark.parametrize('group', GROUPS)
def test_the_variants_of_amd_differ_from_it_in_one_choice_only(group):
    full, changed = ROWS[f'{group}-amd'], {}
    for row in [row for row in ROWS.values() if row.group.name == group and row.name.startswith('amd-')]:
        assert row.method == 'amd'
        changed[row.name] = [choice for choice, one, other in zip(CHOICES, choices_of(full), choices_of(row),
                                                                  strict=True) if one != other]
        loss, whole = loss_of(row), loss_of(full)
        assert (loss.alpha, loss.temperature, loss.phi) == (whole.alpha, whole.temperature, whole.phi)
        assert row.value('mask_ratio') == full.value('mask_ratio')
    assert changed == {
        'amd-channel': ['spatial'], 'amd-mask': ['channel'], 'amd-unmasked': ['spatial'], 'amd-allmasked': ['spatial'],
        **{'retinanet': {'amd-mbconv': ['generation'], 'amd-conv1': ['generation']}, 'reppoints': {},
           'faster_rcnn': {'amd-within': ['channel_position']}}[group]}


def test_a_row_that_tables_share_is_one_run():
    """Baselines and full methods of Tables II to VI are Table I's, so 41 lines need 33 runs."""
    by_table = {name: table_runs(name, 'mini') for name in TABLES}
    everything = [run for runs in by_table.values() for run in runs]
    assert len(everything) == 18 + 3 * 6 + 3 + 2
    assert len({run.id for run in everything}) == len(set(everything)) == len(ROWS) == 33
    for shared, tables in (('retinanet-amd', ('table1', 'table2', 'table5')),
                           ('faster_rcnn-amd', ('table1', 'table4', 'table6')),
                           ('reppoints-baseline', ('table1', 'table3'))):
        assert {name for name, runs in by_table.items() if Run.of(shared, 'mini') in runs} == set(tables)


@needs_paper
def test_the_papers_tables_are_the_shared_ones():
    assert (ROOT / 'data' / 'paper_tables.csv').read_bytes() == (PAPER / 'tables.csv').read_bytes()


@needs_paper
@pytest.mark.parametrize('group', GROUPS.values(), ids=GROUPS)
def test_detectors_and_teachers_are_those_of_the_methods_page(group):
    page = (PAPER / 'method.md').read_text()
    line = next(line for line in page.splitlines() if line.startswith(f'| {group.name} |'))
    for value in (group.student_config, group.teacher_config, group.teacher_file):
        assert f'`{value}`' in line


@pytest.mark.parametrize(('group', 'digits'),
                         [('retinanet', '366f5af1'), ('reppoints', 'f87da1ea'), ('faster_rcnn', 'e75f90c8')])
def test_the_teachers_file_ends_in_the_first_digits_of_its_hash(group, digits):
    assert re.fullmatch(rf'[\w/%-]+[-_]{digits}\.pth', GROUPS[group].teacher_file)


@pytest.mark.parametrize('row', ROWS)
@pytest.mark.parametrize('profile', PROFILES)
def test_every_row_at_every_profile_gives_a_config(cfg_of, row, profile):
    cfg = cfg_of(row, profile)
    assert isinstance(cfg, Config)
    assert (cfg.model.type == 'Distiller') == (ROWS[row].method is not None)
    assert cfg.train_dataloader.batch_size == PROFILES[profile].batch_size
    assert cfg.train_cfg.max_epochs == Run.of(row, profile).epochs
    assert resize_scales(cfg) == [PROFILES[profile].image_px] * 2
    assert cfg.test_evaluator.type == 'CocoNumbers'
    assert not {'val_dataloader', 'val_cfg', 'val_evaluator'} & set(cfg)  # nothing is selected on the reported split
    assert cfg.default_hooks.checkpoint.save_best is None
    if profile != 'paper':
        data = CELLS if profile == 'small' else None
        for detector in (cfg.model.student, cfg.model.teacher) if ROWS[row].method else (cfg.model,):
            heads = detector.bbox_head if 'bbox_head' in detector else detector.roi_head.bbox_head
            classes = {head.num_classes for head in (heads if isinstance(heads, list) else [heads])}
            assert classes == {len(data.classes) if data else 5}
        if data:
            assert cfg.train_dataloader.dataset.ann_file == str(data.train_ann)
            assert cfg.test_dataloader.dataset.data_prefix.img == str(data.test_images)
            assert cfg.test_dataloader.dataset.metainfo.classes == data.classes
            assert cfg.test_evaluator.ann_file == str(data.test_ann)


@pytest.mark.parametrize('profile', ['mini', 'small'])
def test_without_data_only_the_paper_profile_has_a_config(profile):
    with pytest.raises(SettingError, match=f'profile {profile} needs a data set'):
        config(Run.of('retinanet-baseline', profile))


@pytest.mark.parametrize('row', ROWS)
def test_every_row_builds_and_makes_a_training_step(dataset, tiny, train_step, row):
    cfg = config(Run.of(row, tiny), dataset)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    before = {name: value.clone() for name, value in model.named_parameters()}
    logged = train_step(model, cfg)
    assert all(torch.isfinite(value) for value in logged.values()), logged
    method, group = ROWS[row].method, ROWS[row].group
    terms = [name for name in logged if name.startswith('loss') and '_fpn_' in name]
    assert terms == [f'loss_{method}_fpn_{i}' for i in group.levels if method]
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


# ---- the paper's values (method.md) -----------------------------------------------------------------------------

@pytest.mark.parametrize('row', [row.id for row in ROWS.values() if not row.is_teacher])
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


@pytest.mark.parametrize('row', METHOD_ROWS)
def test_the_papers_detectors_are_mmdets_own(cfg_of, row):
    model, group = cfg_of(row).model, ROWS[row].group
    assert model.student == get_config(group.student_config).model
    teacher = copy.deepcopy(get_config(group.teacher_config).model)
    assert teacher.backbone.init_cfg is not None
    teacher.backbone.init_cfg = None  # its weights come from the detector's checkpoint
    assert model.teacher == teacher


@pytest.mark.parametrize(('group', 'levels', 'inherit'), [
    ('retinanet', 5, ('neck', 'bbox_head')), ('reppoints', 5, ('neck', 'bbox_head')), ('faster_rcnn', 4, ())])
@pytest.mark.parametrize('method', ['fkd', 'fgd', 'mgd', 'amd'])
def test_the_papers_levels_and_inheriting(cfg_of, group, levels, inherit, method):
    model = cfg_of(method_of(group, method)).model
    assert (model.method, tuple(model.levels), tuple(model.inherit)) == (method, tuple(range(levels)), inherit)
    distiller = inspect.signature(MODELS.get('Distiller')).parameters
    for side in ('student_module', 'teacher_module'):
        assert side not in model and distiller[side].default == 'neck.fpn_convs.{i}.conv'


@pytest.mark.parametrize(('group', 'alpha', 'ratio'),
                         [('retinanet', 2e-5, 0.65), ('reppoints', 2e-5, 0.65), ('faster_rcnn', 5e-7, 0.45)])
def test_the_papers_weights_of_mgd_and_amd(cfg_of, group, alpha, ratio):
    assert cfg_of(method_of(group, 'mgd')).model.options == {'alpha_mgd': alpha, 'lambda_mgd': ratio}
    assert cfg_of(method_of(group, 'amd')).model.options == {'alpha': alpha, 'mask_ratio': ratio}
    loss = AMDLoss(4, 4)
    assert (loss.temperature, loss.phi, loss.spatial, loss.generation.kind, loss.channel_position) == (
        0.5, 1.0, 'adaptive', 'conv2', 'after')
    assert loss.clue is not None
    assert inspect.signature(AMDLoss).parameters['se_reduction'].default == 16


@pytest.mark.parametrize(('group', 'weights'), [
    ('retinanet', (1e-3, 5e-4, 5e-4, 5e-6)), ('reppoints', (1.6e-3, 8e-4, 8e-4, 8e-6)),
    ('faster_rcnn', (5e-5, 2.5e-5, 5e-5, 5e-7))])
def test_the_papers_weights_of_fgd(cfg_of, group, weights):
    options = cfg_of(method_of(group, 'fgd')).model.options
    assert options == dict(zip(('alpha_fgd', 'beta_fgd', 'gamma_fgd', 'lambda_fgd'), weights, strict=True))
    assert FGDLoss(4, 4).temp == 0.5


@pytest.mark.parametrize('group', GROUPS)
def test_the_papers_weights_of_fkd(cfg_of, group):
    loss = FKDLoss(4, 4, **cfg_of(method_of(group, 'fkd')).model.options)
    assert (loss.feature_weight, loss.channel_weight, loss.spatial_weight, loss.nonlocal_weight) == (
        7e-5, 4e-3, 4e-3, 7e-5)
    assert (loss.spatial_temperature, loss.channel_temperature) == (0.5, 0.5)


# ---- rows differ in the method only -----------------------------------------------------------------------------

@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('group', GROUPS)
def test_baseline_and_methods_differ_in_the_method_only(cfg_of, group, profile):
    baseline = cfg_of(method_of(group, 'baseline'), profile).to_dict()
    student = baseline.pop('model')
    models = []
    for method in ('fkd', 'fgd', 'mgd', 'amd'):
        cfg = cfg_of(method_of(group, method), profile).to_dict()
        models.append(cfg.pop('model'))
        assert cfg == baseline
        assert models[-1]['student'] == student
        assert models[-1].pop('method') == method
        assert models[-1].pop('options')
    assert all(model == models[0] for model in models)


@pytest.mark.parametrize('group', GROUPS)
def test_the_teacher_of_the_methods_is_the_teachers_row(cfg_of, group):
    teacher, amd = cfg_of(method_of(group, 'teacher'), 'mini'), cfg_of(method_of(group, 'amd'), 'mini')
    assert amd.model.teacher == teacher.model
    assert amd.optim_wrapper == teacher.optim_wrapper and amd.train_dataloader == teacher.train_dataloader
    assert 'mask_head' not in str(teacher.model)


def test_the_seed_is_that_of_the_run(dataset, tiny):
    cfg = config(Run.of('retinanet-mgd', tiny, seed=3), dataset)
    assert cfg.randomness.seed == 3 and cfg.model.seed == 3


# ---- the rule for weights ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('row', METHOD_ROWS)
def test_the_paper_profile_leaves_weights_as_they_are(row):
    row = ROWS[row]
    defaults = inspect.signature(METHODS[row.method]).parameters
    options = Run.of(row, 'paper').options()
    assert set(row.options) <= set(options)
    assert all(value == row.options.get(name, defaults[name].default) for name, value in options.items())


def test_the_rule_by_hand():
    """64 channels at 100x50: a quarter of the channels, 1333 * 800 / 5000 = 213.28 times fewer positions."""
    profile = shorter(PROFILES['mini'], neck_channels=64, image_px=(100, 50))
    assert scale_weights(AMDLoss, {'alpha': 1e-5, 'phi': 0.7, 'mask_ratio': 0.5}, profile) == {
        'alpha': pytest.approx(1e-5 * 4 * 213.28, rel=1e-12), 'phi': 0.7, 'mask_ratio': 0.5}
    assert scale_weights(MGDLoss, {}, profile) == {'alpha_mgd': pytest.approx(2e-5 * 4 * 213.28, rel=1e-12)}
    assert scale_weights(FKDLoss, {}, profile) == pytest.approx({
        'feature_weight': 7e-5 * 2 * 213.28 ** .5, 'channel_weight': 4e-3 * 2, 'spatial_weight': 4e-3 * 213.28 ** .5,
        'nonlocal_weight': 7e-5 * 2 * 213.28 ** .5}, rel=1e-12)
    ones = {'alpha_fgd': 1, 'beta_fgd': 2, 'gamma_fgd': 3, 'lambda_fgd': 5}
    assert scale_weights(FGDLoss, ones, profile) == (
        pytest.approx({'alpha_fgd': 4, 'beta_fgd': 8, 'gamma_fgd': 3 * 213.28, 'lambda_fgd': 5 * 4 * 213.28},
                      rel=1e-12))


def test_the_rule_keeps_amds_weighted_term_for_the_same_error_an_element():
    torch.manual_seed(0)
    profile = shorter(PROFILES['mini'], neck_channels=64, image_px=(128, 128))
    weight = scale_weights(AMDLoss, {}, profile)['alpha']
    large, small = 256 * 1333 * 800, 64 * 128 * 128  # elements, up to the stride, for an error of 1 each
    assert weight * small == pytest.approx(2e-5 * large, rel=1e-12)


def test_a_weight_given_as_a_setting_is_on_the_papers_scale_too(tiny):
    row, given = Run.of('retinanet-amd', tiny).options(), Run.of('retinanet-amd', tiny, 0, {'alpha': 4e-5}).options()
    assert given['alpha'] == pytest.approx(2 * row['alpha'])


# ---- settings, ids, teachers ------------------------------------------------------------------------------------

@pytest.mark.parametrize(('call', 'words'), [
    (lambda: find_row('retinanet-adm'), ["'retinanet-adm'", *ROWS]),
    (lambda: Run.of('amd', 'mini'), ["'amd'", *ROWS]),
    (lambda: find_profile('tiny'), ["'tiny'", *PROFILES]),
    (lambda: Run.of('retinanet-amd', 'large'), ["'large'", *PROFILES]),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'ph': 1.0}),
     ["retinanet-amd has no setting 'ph'", 'phi', 'epochs', 'lr']),
    (lambda: Run.of('retinanet-baseline', 'mini', 0, {'phi': 1.0}), ["no setting 'phi'", 'epochs', 'backbone']),
    (lambda: Run.of('retinanet-mgd', 'mini', 0, {'student_channels': 3}), ["'student_channels'", 'lambda_mgd']),
    (lambda: Run.of('retinanet-mgd', 'mini', 0, {'seed': 3}), ["'seed'"]),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'phi': 'high'}), ["phi='high'", 'float']),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'phi': True}), ['phi=True', 'float']),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'epochs': 1.5}), ['epochs=1.5', 'int']),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'epochs': True}), ['epochs=True', 'int']),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'epochs': 0}), ['epochs=0', 'positive']),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'lr': -1}), ['lr=-1', 'positive']),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'amp': 1}), ['amp=1', 'off, bf16, fp16']),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'spatial': 3}), ['spatial=3', 'str']),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'teacher_checkpoint': 'no/such.pth'}),
     ['no/such.pth', 'no such file']),
    (lambda: Run.of('retinanet-amd', 'mini', -1), ['seed', '-1']),
    (lambda: table_runs('table1', 'mini', 'retina'), ["'retina'", *GROUPS]),
    (lambda: table_runs('table1', 'mini', seeds='0,x'), ["'0,x'"]),
    (lambda: table_runs('table1', 'mini', seeds=' '), ['no seeds']),
    (lambda: table_runs('table1', 'mini', seeds='-1'), ['-1']),
    (lambda: find_table('table7'), ["'table7'", *TABLES]),
    (lambda: table_runs('table9', 'mini'), ["'table9'", *TABLES]),
    (lambda: table_runs('table3', 'mini', 'retinanet'), ["table3 has no group 'retinanet'", 'reppoints']),
    (lambda: table_runs('table1', 'mini', settings={'phi': 0.7}), ["'phi'", 'epochs', 'teacher_checkpoint']),
    (lambda: sweep_runs('reppoints-adm', 'phi', '1', 'mini'), ["'reppoints-adm'", *ROWS]),
    (lambda: sweep_runs('reppoints-amd', 'fi', '1', 'mini'), ["no setting 'fi'", 'phi', 'temperature']),
    (lambda: sweep_runs('reppoints-baseline', 'phi', '1', 'mini'), ["reppoints-baseline has no setting 'phi'"]),
    (lambda: sweep_runs('reppoints-amd', 'phi', ' , ', 'mini'), ['no values of phi given']),
    (lambda: sweep_runs('reppoints-amd', 'phi', '0.5 much', 'mini'), ["phi='much'", 'float']),
    (lambda: sweep_runs('reppoints-amd', 'mask_ratio', '0.5 2', 'mini'), ['reppoints-amd', 'mask_ratio', '2']),
    (lambda: read_settings('phi'), ["'phi'", 'KEY=VALUE']),
    (lambda: read_settings(['=3']), ["'=3'", 'KEY=VALUE']),
])
def test_bad_input_is_refused_with_what_is_known(call, words):
    with pytest.raises(SettingError) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == []


def test_text_from_the_command_line_becomes_values():
    run = Run.of('retinanet-amd', 'mini', 0, {'phi': '2', 'epochs': '3', 'amp': 'bf16', 'spatial': 'random'})
    assert dict(run.settings) == {'phi': 2.0, 'epochs': 3, 'amp': 'bf16', 'spatial': 'random'}
    assert type(dict(run.settings)['phi']) is float


def test_a_setting_that_is_the_rows_own_value_is_the_row_itself():
    plain = Run.of('retinanet-amd', 'mini')
    for same in ({'phi': '1.0'}, {'phi': 1}, {'temperature': 0.5}, {'alpha': '2e-5'}, {'mask_ratio': 0.65},
                 {'spatial': 'adaptive', 'generation': 'conv2'}):
        assert Run.of('retinanet-amd', 'mini', 0, same) == plain
    assert Run.of('faster_rcnn-amd', 'mini', 0, {'mask_ratio': 0.65}).id == 'faster_rcnn-amd+mask_ratio=0.65-s0'
    assert Run.of('retinanet-amd-channel', 'mini', 0, {'spatial': 'random'}).id == 'retinanet-amd-channel-s0'
    # the profile's own schedule may change, so epochs stay even where they are the same now
    assert Run.of('retinanet-amd', 'mini', 0, {'epochs': plain.epochs}).id == f'retinanet-amd+epochs={plain.epochs}-s0'


def test_a_runs_value_of_an_option_is_the_settings_the_rows_or_the_class_own():
    assert Run.of('retinanet-amd', 'mini', 0, {'phi': 0.7}).value('phi') == 0.7
    assert Run.of('retinanet-amd', 'mini').value('phi') == ROWS['retinanet-amd'].value('phi') == 1.0
    assert Run.of('faster_rcnn-amd', 'mini').value('mask_ratio') == 0.45        # of the row, at the paper's scale
    assert Run.of('faster_rcnn-amd', 'mini').value('alpha') == 5e-7
    assert ROWS['faster_rcnn-amd-within'].value('channel_position') == 'within'
    assert ROWS['faster_rcnn-amd'].value('channel_position') == 'after'


@pytest.mark.parametrize('settings', [
    {}, {'phi': '0.7', 'epochs': '2'}, {'backbone': "a folder/it's.pth", 'spatial': 'random'}, {'x': ''},
    {'values': '0.5 0.7'}])
def test_settings_as_text_read_back(settings):
    assert read_settings(write_settings(settings)) == settings
    assert read_settings([f'{key}={value}' for key, value in settings.items()]) == settings


def test_settings_of_a_run_are_read_back_as_the_same_run():
    run = Run.of('retinanet-amd', 'mini', 1, {'phi': 0.7, 'amp': True, 'epochs': 2, 'spatial': 'random'})
    assert Run.of(run.row, run.profile, run.seed, read_settings(write_settings(dict(run.settings)))) == run


def test_ids_are_unique_stable_and_carry_the_settings():
    assert Run.of('retinanet-amd', 'mini').id == 'retinanet-amd-s0'
    assert Run.of('reppoints-amd', 'mini', 2, {'phi': 0.7}).id == 'reppoints-amd+phi=0.7-s2'
    first, second = {'phi': 0.7, 'epochs': 3}, {'epochs': '3', 'phi': '0.7'}
    assert Run.of('retinanet-amd', 'mini', 0, first) == Run.of('retinanet-amd', 'mini', 0, second)
    assert Run.of('retinanet-amd', 'mini', 0, first).id == 'retinanet-amd+epochs=3+phi=0.7-s0'
    runs = [Run.of(row, 'mini', seed, settings) for row in METHOD_ROWS for seed in (0, 1)
            for settings in ({}, {'epochs': 3}, {'lr': 0.001})]
    assert len({run.id for run in runs}) == len(runs)


def test_table_1_runs_teachers_once_and_the_rest_with_every_seed():
    ids = [run.id for run in table_runs('table1', 'mini', 'retinanet', '1 0,1')]
    rows = ('baseline', 'fkd', 'fgd', 'mgd', 'amd')
    assert ids == ['retinanet-teacher-s0', *(f'retinanet-{row}-s{seed}' for row in rows for seed in (0, 1))]
    assert [run.row.id for run in table_runs('table1', 'mini')] == [
        f'{group}-{row}' for group in GROUPS for row in COMPARED]


def test_a_tables_settings_reach_each_row_under_its_own_name(tmp_path):
    file = tmp_path / 'x.pth'
    file.write_bytes(b'x')
    runs = {run.row.name: dict(run.settings) for run in table_runs('table1', 'small', 'retinanet', '0', {
        'epochs': '3', 'teacher_backbone': str(file), 'backbone': '', 'teacher_checkpoint': None})}
    assert runs['teacher'] == {'epochs': 3, 'backbone': str(file)}
    assert runs['baseline'] == {'epochs': 3}
    assert runs['amd'] == {'epochs': 3, 'teacher_backbone': str(file)}
    assert Run.of('retinanet-amd', 'small', 0, runs['amd']).teacher() == Run.of('retinanet-teacher', 'small', 0,
                                                                               runs['teacher'])


def test_a_sweep_is_a_run_a_value_and_seed_and_holds_the_row_itself():
    runs = sweep_runs('reppoints-amd', 'phi', '0.5, 1.0 1 1.5', 'mini', '1 0')
    assert [run.id for run in runs] == [
        'reppoints-amd+phi=0.5-s0', 'reppoints-amd+phi=0.5-s1', 'reppoints-amd-s0', 'reppoints-amd-s1',
        'reppoints-amd+phi=1.5-s0', 'reppoints-amd+phi=1.5-s1']       # 1.0 and 1 are one value, and Table I's run
    assert set(sweep_runs('reppoints-amd', 'phi', '1.0', 'mini')) < set(table_runs('table1', 'mini'))
    assert [run.settings for run in sweep_runs('retinanet-amd', 'spatial', 'random none', 'mini', '0', {
        'epochs': 2, 'lr': None})] == [(('epochs', 2), ('spatial', 'random')), (('epochs', 2), ('spatial', 'none'))]


def test_the_teachers_run_takes_the_recipe_and_seed_0():
    run = Run.of('retinanet-amd', 'mini', 3, {'epochs': 2, 'lr': 0.01, 'batch_size': 3, 'amp': True, 'phi': 0.5})
    assert run.teacher() == Run.of('retinanet-teacher', 'mini', 0,
                                   {'epochs': 2, 'lr': 0.01, 'batch_size': 3, 'amp': True})
    assert Run.of('faster_rcnn-fgd', 'mini').teacher().id == 'faster_rcnn-teacher-s0'
    assert Run.of('retinanet-baseline', 'mini').teacher() is None
    assert Run.of('retinanet-teacher', 'mini').teacher() is None


def test_settings_reach_the_config(dataset, tiny):
    settings = {'epochs': 7, 'lr': 0.5, 'batch_size': 3, 'amp': True, 'phi': 0.7}
    cfg = config(Run.of('retinanet-amd', tiny, 0, settings), dataset)
    assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.lr, cfg.train_dataloader.batch_size,
            cfg.optim_wrapper.type) == (7, 0.5, 3, 'AmpOptimWrapper')
    assert cfg.param_scheduler[1].T_max == 7
    model = MODELS.build(cfg.model)
    assert {loss.phi for loss in model.distill_losses.values()} == {0.7}
    assert {loss.phi for loss in MODELS.build(config(Run.of('retinanet-amd', tiny), dataset).model)
            .distill_losses.values()} == {1.0}


def test_a_shortened_paper_run_keeps_the_shape_of_its_schedule():
    cfg = config(Run.of('retinanet-amd', 'paper', 0, {'epochs': 12, 'lr': 0.005}))
    assert cfg.train_cfg.max_epochs == 12 and cfg.optim_wrapper.optimizer.lr == 0.005
    assert (cfg.param_scheduler[-1].milestones, cfg.param_scheduler[-1].end) == ([8, 11], 12)


def test_making_a_config_leaves_mmdets_and_the_rows_alone(dataset, tiny):
    before = copy.deepcopy(ROWS['retinanet-amd'].options)
    first = config(Run.of('retinanet-amd', tiny), dataset)
    first.model.student.neck.out_channels = 1
    assert config(Run.of('retinanet-amd', tiny), dataset).model.student.neck.out_channels == 64
    assert ROWS['retinanet-amd'].options == before


def test_weight_files_reach_the_config(dataset, tiny, tmp_path):
    (tmp_path / 'r18.pth').write_bytes(b'x')
    cfg = config(Run.of('retinanet-amd', tiny, 0, {'backbone': str(tmp_path / 'r18.pth')}), dataset,
                 teacher_weights=tmp_path / 'weights.pth')
    assert cfg.model.student.backbone.init_cfg == {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'r18.pth')}
    assert cfg.model.teacher.backbone.init_cfg is None
    assert cfg.model.teacher_weights == str(tmp_path / 'weights.pth')


# ---- published weights ------------------------------------------------------------------------------------------

@needs_paper
@pytest.mark.parametrize('group', GROUPS.values(), ids=GROUPS)
def test_the_teachers_published_value_is_that_of_the_methods_page(group):
    page = (PAPER / 'method.md').read_text()
    line = next(line for line in page.splitlines() if line.startswith(f'| {group.name} |'))
    assert line.rstrip(' |').rpartition('|')[2].strip() == str(group.teacher_map_pct)


@pytest.mark.parametrize('row', ROWS)
def test_what_a_row_takes_from_the_zoo(cfg_of, row):
    group = ROWS[row].group
    assert Run.of(row, 'mini').published_files() == Run.of(row, 'small').published_files() == {}
    published = Run.of(row, 'paper').published_files()
    if ROWS[row].is_teacher:
        assert published == {
            'checkpoint': f'https://download.openmmlab.com/mmdetection/v2.0/{group.teacher_file}'}
    else:
        assert published == {'backbone': 'https://download.pytorch.org/models/resnet50-0676ba61.pth'}
        model = cfg_of(row).model
        assert model.get('student', model).backbone.init_cfg == {
            'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'}


def test_a_given_file_takes_the_place_of_the_published_one(tmp_path):
    (tmp_path / 'mine.pth').write_bytes(b'x')
    path = str(tmp_path / 'mine.pth')
    run = Run.of('retinanet-amd', 'paper', 0, {'teacher_checkpoint': path, 'backbone': path})
    assert run.published_files() == run.teacher().published_files() == {}
    said = []
    assert run.teacher().find_files(said.append) == {'checkpoint': path} and 'not checked' in said[0]


def test_a_folder_stands_for_the_published_files_in_it(tmp_path):
    """One TEACHER= for all three groups; the backbone likewise."""
    names = {group: zoo.file_name(GROUPS[group].teacher_url) for group in GROUPS}
    for name in names.values():
        (tmp_path / name.replace('%2B', '+')).write_bytes(b'x')
    (tmp_path / 'resnet50-0676ba61.pth').write_bytes(b'x')
    runs = table_runs('table1', 'paper', settings={'teacher_checkpoint': str(tmp_path), 'backbone': str(tmp_path)})
    for run in runs:
        key = 'checkpoint' if run.row.is_teacher else 'teacher_checkpoint'
        if run.row.name != 'baseline':
            assert run.files()[key] == str(tmp_path / names[run.row.group.name].replace('%2B', '+'))
        if not run.row.is_teacher:
            assert run.files()['backbone'] == str(tmp_path / 'resnet50-0676ba61.pth')
        if run.teacher():
            assert run.teacher() in runs
    (tmp_path / names['retinanet']).unlink()
    with pytest.raises(SettingError, match=f'teacher_checkpoint={tmp_path}: the folder has no {names["retinanet"]}'):
        Run.of('retinanet-amd', 'paper', 0, {'teacher_checkpoint': str(tmp_path)})
    with pytest.raises(SettingError, match='a folder, expected a file'):
        Run.of('retinanet-amd', 'mini', 0, {'teacher_checkpoint': str(tmp_path)})


# ---- the text of a config ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(('row', 'profile'), [
    ('retinanet-amd', 'mini'), ('reppoints-fgd', 'mini'), ('faster_rcnn-mgd', 'mini'), ('retinanet-teacher', 'mini'),
    ('faster_rcnn-amd', 'paper'), ('retinanet-baseline', 'small')])
def test_the_printed_config_reads_back_equal(cfg_of, row, profile):
    cfg = cfg_of(row, profile)
    text = cfg.pretty_text
    ast.parse(text)
    assert Config.fromstring(text, '.py').to_dict() == cfg.to_dict()


def test_every_profile_says_what_it_can_show():
    assert all(len(profile.can_show) > 80 for profile in experiments.PROFILES.values())


# ---- learning rate and switches ---------------------------------------------------------------------------------

@pytest.mark.parametrize(('profile', 'settings', 'scaled', 'images'), [
    ('paper', {}, True, 2), ('paper', {'gpus': 8}, True, 16), ('paper', {'gpus': 4, 'accumulate': 2}, True, 16),
    ('paper', {'lr': 0.005}, False, 2), ('small', {}, False, 8), ('small', {'gpus': 2}, True, 16),
    ('mini', {}, False, 4), ('mini', {'batch_size': 1}, True, 1),
    ('mini', {'batch_size': 2, 'accumulate': 2}, False, 4)])
def test_the_learning_rate_grows_with_the_images_an_update(dataset, profile, settings, scaled, images):
    run = Run.of('retinanet-baseline', profile, 0, settings)
    cfg = config(run, {'mini': dataset, 'small': CELLS, 'paper': None}[profile])
    assert run.images_per_update == images
    rule = cfg.auto_scale_lr
    assert rule.enable == scaled
    if scaled:  # what mmengine will multiply with, which knows GPUs and batch size only
        factor = run.batch_size * run.setting('gpus') / rule.base_batch_size
        assert factor == images / (16 if profile == 'paper' else PROFILES[profile].batch_size)
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == run.setting('accumulate')


@pytest.mark.parametrize(('profile', 'settings', 'given', 'used', 'text'), [
    ('paper', {}, 0.01, 0.00125, 'lr 0.01 for 16 images a step -> 0.00125 for 2'),
    ('paper', {'gpus': 8}, 0.01, 0.01, 'lr 0.01 for 16 images a step (2 x 8 GPUs)'),
    ('paper', {'gpus': 2, 'accumulate': 2}, 0.01, 0.005,
     'lr 0.01 for 16 images a step -> 0.005 for 8 (2 x 2 GPUs x 2 steps)'),
    ('paper', {'lr': 0.02}, 0.02, 0.02, 'lr 0.02 for 2 images a step, as given: not scaled'),
    ('mini', {}, 0.003, 0.003, 'lr 0.003 for 4 images a step')])
def test_how_the_learning_rate_came_about_is_told(profile, settings, given, used, text):
    assert describe_lr(Run.of('retinanet-baseline', profile, 0, settings), given, used) == text


def test_switches_reach_the_config_and_their_defaults_are_the_run_itself(dataset, tiny):
    off = {'gpus': 1, 'accumulate': 1, 'amp': 'off', 'tf32': False, 'channels_last': False, 'fused': 'False',
           'compile_teacher': False, 'half_teacher': 'off'}
    assert Run.of('retinanet-amd', tiny, 0, off) == Run.of('retinanet-amd', tiny)
    on = {'gpus': 2, 'amp': 'bf16', 'tf32': 'True', 'channels_last': True, 'fused': True, 'compile_teacher': True,
          'half_teacher': 'bf16'}
    run = Run.of('retinanet-amd', tiny, 0, on)
    cfg = config(run, dataset)
    assert (cfg.gpus, cfg.tf32, cfg.channels_last, cfg.optim_wrapper.optimizer.fused) == (2, True, True, True)
    assert cfg.optim_wrapper.type == 'BFloat16OptimWrapper'
    assert (cfg.model.compile_teacher, cfg.model.half_teacher) == (True, 'bf16')
    assert set(dict(run.teacher().settings)) == {'gpus', 'amp', 'tf32', 'channels_last', 'fused'}
    with pytest.raises(SettingError, match="no setting 'compile_teacher'"):
        Run.of('retinanet-baseline', tiny, 0, {'compile_teacher': True})
    table = table_runs('table1', 'mini', 'retinanet', settings={'compile_teacher': True, 'amp': 'bf16'})
    assert {run.row.name: run.setting('compile_teacher') for run in table} == {
        'teacher': False, 'baseline': False, 'fkd': True, 'fgd': True, 'mgd': True, 'amd': True}
    assert {run.setting('amp') for run in table} == {'bf16'}


def test_mmdets_amp_is_float16(dataset, tiny):
    cfg = config(Run.of('retinanet-baseline', tiny, 0, {'amp': True}), dataset)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ('AmpOptimWrapper', 'float16')
