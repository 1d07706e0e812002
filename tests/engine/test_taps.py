"""taps.py and 'auto': the maps that the head receives are what is compared, whatever makes them."""
import logging

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn

from amdlib.engine.taps import AUTO, look, maps_in, never_seen, pairs_by_size, tap

PATTERN = 'neck.fpn_convs.{i}.conv'


@pytest.fixture(scope='module')
def model_of(config_of):
    """Kind of neck -> a narrow RetinaNet with it, and its Config's model."""
    def make(neck):
        cfg = config_of('retinanet-baseline').model
        channels = cfg.neck.out_channels
        if neck == 'ChannelMapper':
            cfg.backbone.out_indices, width = (1, 2, 3), cfg.backbone.base_channels
            cfg.neck = ConfigDict(type='ChannelMapper', in_channels=[width * n for n in (2, 4, 8)],
                                  out_channels=channels)
        elif neck == 'BFP behind FPN':
            cfg.neck = [cfg.neck, dict(type='BFP', in_channels=channels, num_levels=5, refine_level=1)]
        elif neck == 'PAFPN':
            cfg.neck.update(type='PAFPN', add_extra_convs=False)
        return MODELS.build(cfg), cfg
    return make


def received(model, batch):
    """The maps with which the head is called in a training step."""
    found = []
    handle = model.bbox_head.register_forward_pre_hook(lambda _, inputs: found.extend(maps_in(inputs)))
    model(**batch, mode='loss')
    handle.remove()
    return found


@pytest.fixture
def batch(config_of, train_batch):
    def make(model):
        return model.data_preprocessor(train_batch(config_of('retinanet-baseline')), training=True)
    return make


@pytest.mark.parametrize('neck', ['FPN', 'PAFPN', 'BFP behind FPN'])
def test_a_number_taps_the_very_tensor_that_the_head_receives(model_of, batch, neck):
    model, _ = model_of(neck)
    with tap(model, [0, 2, 1]) as features:
        maps = received(model.train(), batch(model))
    assert [id(one) for one in features] == [id(maps[0]), id(maps[2]), id(maps[1])]
    assert features[0].requires_grad
    assert 'extract_feat' not in vars(model)


def test_names_and_numbers_go_together_and_a_place_that_is_none_gives_none(model_of):
    model, _ = model_of('FPN')
    blank = torch.zeros(1, 3, 64, 64)
    with tap(model, ['backbone.layer4', 1, 9]) as features:
        maps = model.extract_feat(blank)
    assert features[1] is maps[1]
    assert features[2] is None
    assert features[0].shape[1] == model.backbone.feat_dim


def test_one_block_in_another_leaves_the_detector_as_it_was(model_of):
    model, _ = model_of('FPN')
    with tap(model, [0]) as outer:
        with tap(model, [1]) as inner:
            maps = model.extract_feat(torch.zeros(1, 3, 64, 64))
        again = model.extract_feat(torch.zeros(1, 3, 64, 64))
        assert inner[0] is maps[1]
        assert outer[0] is again[0]
    with pytest.raises(KeyError), tap(model, [0]):
        raise KeyError
    assert 'extract_feat' not in vars(model)


def test_looking_leaves_mode_and_statistics(model_of):
    model, _ = model_of('FPN')
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, handed = look(model.train(), ['backbone'], 64)
    assert model.training
    assert len(handed) == 5
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(('neck', 'unseen'), [('FPN', []), ('PAFPN', [1, 2]), ('BFP behind FPN', None)])
def test_what_the_head_never_sees_is_told(model_of, neck, unseen):
    model, _ = model_of(neck)
    if unseen is None:
        assert never_seen(model, [f'neck.0.fpn_convs.{i}.conv' for i in range(5)]) == [
            f'neck.0.fpn_convs.{i}.conv' for i in range(5)]
    else:
        levels = range(5 if neck == 'FPN' else 3)
        assert never_seen(model, [PATTERN.format(i=i) for i in levels]) == [PATTERN.format(i=i) for i in unseen]


def test_a_norm_behind_the_tap_is_no_other_feature(config_of):
    """RepPoints' FPN with group norm: the paper compares what is before the norm, and the head sees what is behind."""
    model = MODELS.build(config_of('reppoints-baseline').model)
    assert isinstance(model.neck.fpn_convs[0].gn, nn.GroupNorm)
    assert never_seen(model, [PATTERN.format(i=i) for i in range(5)]) == []


def test_maps_of_all_kinds_of_outputs():
    a, b, c = (torch.zeros(1, i, 2, 2) for i in (1, 2, 3))
    assert maps_in(a) == [a]
    found = maps_in({'x': (a, [b]), 'memory': torch.zeros(1, 4, 5), 'c': c, 'n': 3})
    assert [one.shape[1] for one in found] == [1, 2, 3]


def sized(*sides):
    return [torch.zeros(1, 1, side, side) for side in sides]


@pytest.mark.parametrize(('student', 'teacher', 'pairs'), [
    ((16, 8, 4), (32, 16, 8, 4, 2), [(0, 1), (1, 2), (2, 3)]),
    ((4, 8, 16), (16, 8, 4), [(0, 2), (1, 1), (2, 0)]),
    ((8, 8), (8, 8, 8), [(0, 0), (1, 1)]),
    ((7,), (8,), [])])
def test_maps_are_paired_by_size_in_the_students_order(student, teacher, pairs):
    assert pairs_by_size(sized(*student), sized(*teacher)) == pairs


# ---- in a Distiller -----------------------------------------------------------------------------------------------

@pytest.fixture
def distiller(model_of, config_of):
    def make(neck, **changes):
        cfg = config_of('retinanet-amd').model
        cfg.student = cfg.teacher = model_of(neck)[1]
        cfg.update(student_module=AUTO, teacher_module=AUTO, levels=None, inherit=())
        for key, value in changes.items():      # update() would merge the neck of one into that of another
            cfg[key] = value
        return MODELS.build(cfg)
    return make


def test_auto_is_the_papers_tap_where_the_head_sees_it(config_of, batch):
    losses = []
    for changes in ({}, dict(student_module=AUTO, teacher_module=AUTO, levels=None)):
        cfg = config_of('retinanet-amd').model
        cfg.update(changes)
        model = MODELS.build(cfg).train()
        losses.append(model.loss(**batch(model)))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(torch.stack(value) if isinstance(value, list) else value,
                           torch.stack(losses[1][name]) if isinstance(value, list) else losses[1][name])
               for name, value in losses[0].items())


@pytest.mark.parametrize('neck', ['PAFPN', 'BFP behind FPN'])
def test_auto_distils_what_the_head_receives_of_any_neck(distiller, batch, neck):
    model = distiller(neck).train()
    losses = model.loss(**batch(model))
    terms = [value for name, value in losses.items() if name.startswith('loss_amd')]
    assert len(terms) == 5
    sum(terms).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.backbone.parameters())
    assert all(p.grad is None for p in model.student.bbox_head.parameters())


def test_a_pattern_on_one_side_takes_its_levels_and_warns_of_what_the_head_never_sees(distiller, caplog):
    with caplog.at_level(logging.WARNING, 'amdlib'):
        model = distiller('PAFPN', student_module=PATTERN, levels=(0, 1, 2))
    assert model.student_taps == [PATTERN.format(i=i) for i in range(3)]
    assert model.teacher_taps == [0, 1, 2]
    assert 'the head of the student (RetinaNet) never sees the output of neck.fpn_convs.1.conv' in caplog.text


def test_some_of_the_pairs(distiller):
    model = distiller('FPN', levels=(1, 3))
    assert model.levels == (1, 3)
    assert model.student_taps == model.teacher_taps == [1, 3]
    assert list(model.distill_losses) == ['loss_amd_fpn_1', 'loss_amd_fpn_3']


@pytest.mark.parametrize(('changes', 'told'), [
    (dict(levels=(4, 5)), r'have 5 feature maps of one size, wanted \(4, 5\).*student 8 \(64 x 64x64\), 16'),
    (dict(student_module=PATTERN), 'levels=None goes with'),
    (dict(student_module=PATTERN, levels=(0, 1, 2), teacher=None), 'have 1 feature maps of one size')])
def test_levels_that_cannot_be_paired_are_refused_with_both_lists(distiller, model_of, changes, told):
    if 'teacher' in changes:
        other = model_of('ChannelMapper')[1]
        other.backbone.out_indices, other.neck.in_channels = (1,), other.neck.in_channels[:1]
        changes = {**changes, 'teacher': other}
    with pytest.raises(ValueError, match=told):
        distiller('FPN', **changes)


def test_mmdets_hooks_find_the_student_in_a_distiller(distiller):
    """YOLOX's hook looks for `detector`, SetEpochInfoHook calls `set_epoch`; some detectors' eval() returns nothing."""
    model = distiller('FPN')
    assert model.detector is model.student
    told = []
    model.student.set_epoch = told.append
    model.set_epoch(3)
    assert told == [3]
