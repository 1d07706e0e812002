"""distiller.py: the teacher stays outside; what is compared, logged, inherited and refused; losses from outside."""
import copy
import shutil

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from torch._subclasses.fake_tensor import FakeTensorMode

from amdlib import methods
from amdlib.engine.distiller import Distiller
from amdlib.engine.taps import tap
from amdlib.errors import RunError, WeightsError
from amdlib.weights.reading import read_weights
from amdlib.weights.writing import write_weights

METHODS = [name for name in methods.names() if not methods.looks_at_steps(methods.find_method(name))]


@pytest.fixture(scope='module')
def cfg_of(config_of):
    """Row id, and what differs from its model -> a fresh Config; the teacher may have other channels."""
    def make(row='retinanet-amd', teacher_channels=None, **changes):
        cfg = config_of(row)
        if teacher_channels:
            cfg.model.teacher = config_of(f'{row.split("-")[0]}-teacher', neck_channels=teacher_channels).model
        for key, value in changes.items():  # update() would merge options into options
            cfg.model[key] = value
        return cfg
    return make


@pytest.fixture
def build(cfg_of):
    """As `cfg_of`, but the model itself, initialised from a fixed seed."""
    def make(row='retinanet-amd', **changes):
        torch.manual_seed(0)
        model = MODELS.build(cfg_of(row, **changes).model)
        model.init_weights()
        return model.train()
    return make


@pytest.fixture
def batch(cfg_of, train_batch):
    """What a detector's forward takes: normalised images and their samples."""
    def make(model):
        torch.manual_seed(0)
        return model.data_preprocessor(train_batch(cfg_of()), training=True)
    return make


def distillation(losses):
    return {name: value for name, value in losses.items() if '_fpn_' in name and name.startswith('loss')}


def copies(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# ---- the teacher stays outside ----------------------------------------------------------------------------------

def test_the_teacher_is_nowhere_in_the_model(build, cfg_of):
    model = build()
    of_teacher = {id(p) for p in model.teacher.parameters()} | {id(b) for b in model.teacher.buffers()}
    assert of_teacher
    assert not any('teacher' in name for name in model.state_dict())
    assert {name.split('.')[0] for name in model.state_dict()} == {'student', 'distill_losses'}
    assert not of_teacher & ({id(p) for p in model.parameters()} | {id(b) for b in model.buffers()})
    assert not {id(m) for m in model.teacher.modules()} & {id(m) for _, m in model.named_modules()}
    optimizer = build_optim_wrapper(model, cfg_of().optim_wrapper).optimizer
    optimised = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert optimised == {id(p) for p in model.parameters()}


def test_the_teacher_is_frozen_and_in_eval_mode_whatever_train_says(build):
    model = build()
    for mode in (True, False, True):
        model.train(mode)
        assert model.student.training is mode
        assert not any(module.training for module in model.teacher.modules())
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_a_training_step_changes_the_student_and_nothing_of_the_teacher(build, cfg_of, train_step):
    model = build('retinanet-mgd', teacher_channels=96)
    teacher, student, losses = copies(model.teacher), copies(model.student), copies(model.distill_losses)
    logged = train_step(model, cfg_of('retinanet-mgd'))
    assert all(torch.isfinite(value) for value in logged.values())
    assert all(torch.equal(value, teacher[name]) for name, value in model.teacher.state_dict().items())
    moved = {name for name, value in model.student.state_dict().items() if not torch.equal(value, student[name])}
    assert {'backbone.conv1.weight', 'neck.fpn_convs.0.conv.weight', 'bbox_head.retina_cls.weight'} <= moved
    moved = {name for name, value in model.distill_losses.state_dict().items()
             if not torch.equal(value, losses[name])}
    assert {f'loss_mgd_fpn_{i}.{part}' for i in range(5) for part in ('align.weight', 'generation.2.weight')} <= moved


@pytest.mark.parametrize('method', METHODS)
def test_the_gradient_of_every_method_reaches_the_student_and_not_the_teacher(build, batch, method):
    # MGD's usual ratio may mask the whole of a coarse level, which then has no gradient
    model = build(method=method, options={'lambda_mgd': 0.1} if method == 'mgd' else {})
    distilled = distillation(model.loss(**batch(model)))
    assert len(distilled) == 5
    for i, term in enumerate(distilled.values()):
        model.zero_grad()
        term.backward(retain_graph=True)
        if method == 'cwd' and i >= 3:      # a distribution over the one position of such a level says nothing
            assert term == 0
            continue
        assert model.student.neck.fpn_convs[i].conv.weight.grad.abs().sum() > 0
        assert i >= 3 or model.student.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.parameters())


@pytest.mark.parametrize('row', ['retinanet-amd', 'reppoints-amd', 'faster_rcnn-amd'])
def test_the_teachers_head_is_never_computed(cfg_of, batch, row):
    cfg = cfg_of(row)
    teacher = MODELS.build(cfg.model.teacher)
    heads = [module for name, module in teacher.named_children() if 'head' in name]
    called = []
    for part in (module for head in heads for module in head.modules()):
        part.register_forward_hook(lambda *_: called.append(1))
    assert heads
    model = Distiller(**{**{k: v for k, v in cfg.model.items() if k != 'type'}, 'teacher': teacher})
    model.loss(**batch(model))
    assert not called
    teacher.train()(**batch(model), mode='loss')
    assert called  # the hooks work


def test_to_a_dtype_takes_the_teacher_along(build):
    model = build().to(torch.float64)
    for side in (model.student, model.teacher):
        assert {v.dtype for v in side.state_dict().values() if v.is_floating_point()} == {torch.float64}
    assert {p.dtype for p in model.float().teacher.parameters()} == {torch.float32}


def test_building_leaves_the_student_as_it_was(cfg_of):
    """The blank image that measures the levels must not count in the batch norm's statistics."""
    cfg = cfg_of()
    student = MODELS.build(cfg.model.student).train()
    before = copies(student)
    Distiller(student, cfg.model.teacher, 'amd')
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.backbone.bn1.num_batches_tracked == 0


def test_taps_are_removed_even_after_an_error(build, batch):
    model = build()
    data = batch(model)
    model.loss(**data)
    with pytest.raises(ZeroDivisionError), tap(model.student, model.student_taps):
        raise ZeroDivisionError
    for side in (model.student, model.teacher):
        assert not any(module._forward_hooks for module in side.modules())


# ---- what is compared and logged --------------------------------------------------------------------------------

@pytest.mark.parametrize('row', ['retinanet-amd', 'reppoints-mgd', 'faster_rcnn-fgd'])
def test_every_levels_term_and_share_is_logged(build, batch, row):
    model = build(row)
    levels = range(4 if 'faster' in row else 5)
    losses = model.loss(**batch(model))
    terms = distillation(losses)
    assert list(terms) == [f'loss_{row.split("-")[1]}_fpn_{i}' for i in levels]
    total, logged = model.parse_losses(losses)
    shares = [logged[f'share_fpn_{i}'] for i in levels]
    assert all(0 <= share <= 1 for share in shares)
    assert not any(share.requires_grad for share in shares)
    assert shares[0] > 0
    detection = sum(value for name, value in logged.items()
                    if 'loss' in name and name != 'loss' and name not in terms)
    assert detection > 0
    assert float((sum(shares) + detection / total).detach()) == pytest.approx(1, abs=1e-5)
    assert total.item() == pytest.approx((detection + sum(terms.values())).item(), rel=1e-5)  # shares are not added up
    for i, term in zip(levels, terms.values(), strict=True):
        assert (logged[f'share_fpn_{i}'] * total).item() == pytest.approx(term.item(), rel=1e-4, abs=1e-9)


def test_a_term_is_the_loss_between_the_outputs_of_the_named_modules(build, batch):
    """RepPoints: before the neck's group norm, so the convolutions are redone by hand here."""
    model = build('reppoints-fgd')
    data = batch(model)
    for module in model.student.backbone.modules():
        module.eval()  # both passes see the same statistics of batch norm
    losses = model.loss(**data)
    boxes = [sample.gt_instances.bboxes for sample in data['data_samples']]
    shapes = [sample.img_shape for sample in data['data_samples']]

    def before_norm(detector):
        stages, neck = detector.backbone(data['inputs']), detector.neck
        laterals = [conv(x) for conv, x in zip(neck.lateral_convs, stages[1:], strict=True)]
        for i in (1, 0):
            laterals[i] = laterals[i] + torch.nn.functional.interpolate(
                laterals[i + 1], size=laterals[i].shape[2:], mode='nearest')
        return [conv.conv(x) for conv, x in zip(neck.fpn_convs, laterals, strict=False)]  # without the extra levels
    with torch.no_grad():
        for i, (f_s, f_t) in enumerate(zip(before_norm(model.student), before_norm(model.teacher), strict=True)):
            loss = model.distill_losses[f'loss_fgd_fpn_{i}']
            assert torch.equal(losses[f'loss_fgd_fpn_{i}'], loss(f_s, f_t, boxes, shapes))


def test_levels_and_modules_are_configurable(build, batch):
    model = build(levels=(1, 2), student_module='neck.lateral_convs.{i}.conv', teacher_module='neck.fpn_convs.{i}.conv')
    assert model.student_taps == ['neck.lateral_convs.1.conv', 'neck.lateral_convs.2.conv']
    assert list(distillation(model.loss(**batch(model)))) == ['loss_amd_fpn_1', 'loss_amd_fpn_2']


def test_names_of_each_side_are_those_of_the_pattern(build, batch):
    names = [f'neck.fpn_convs.{i}.conv' for i in (1, 3)]
    named = build(student_module=names, teacher_module=names, levels=(1, 3))
    plain = build(levels=(1, 3))
    assert distillation(named.loss(*batch(named).values())) == distillation(plain.loss(*batch(plain).values()))
    with pytest.raises(ValueError, match='2 names for the student, 1 for the teacher, 2 levels'):
        build(student_module=names, teacher_module=names[:1], levels=(1, 3))


def test_distillation_starts_as_the_share_that_is_asked(build, batch):
    model = build(share=0.3)
    losses = model.loss(*batch(model).values())
    assert float(losses['ratio']) == pytest.approx(0.3 / 0.7, rel=1e-5)
    assert sum(float(losses[f'share_fpn_{i}']) for i in range(5)) == pytest.approx(0.3, rel=1e-5)
    plain = build()
    factor, untouched = float(losses['share_factor']), distillation(plain.loss(*batch(plain).values()))
    assert factor != pytest.approx(1, rel=0.1)
    for name, value in distillation(losses).items():
        assert float(value) == pytest.approx(factor * float(untouched[name]), rel=1e-4)


def test_unequal_channels_are_measured_and_aligned(build, batch):
    model = build('retinanet-fgd', teacher_channels=96)
    assert all(tuple(loss.align.weight.shape) == (96, 64, 1, 1) for loss in model.distill_losses.values())
    assert len(distillation(model.loss(**batch(model)))) == 5


def test_options_reach_every_level(build):
    model = build(options={'alpha': 3e-5, 'phi': 0.7, 'spatial': 'random', 'mask_ratio': 0.25})
    assert {(loss.alpha, loss.phi, loss.spatial, loss.random_mask.mask_ratio)
            for loss in model.distill_losses.values()} == {(3e-5, 0.7, 'random', 0.25)}


def test_a_few_steps_on_one_batch_lower_both_parts_of_the_loss(build, cfg_of, train_batch):
    model, cfg = build(), cfg_of()
    optimiser = build_optim_wrapper(model, {**cfg.optim_wrapper, 'optimizer': dict(type='AdamW', lr=1e-3)})
    data = train_batch(cfg)
    logged = [model.train_step(copy.deepcopy(data), optimiser) for _ in range(12)]
    distilled = [sum(distillation(step).values()).item() for step in logged]
    detected = [step['loss'].item() - part for step, part in zip(logged, distilled, strict=True)]
    assert distilled[-1] < 0.9 * distilled[0]
    assert detected[-1] < 0.9 * detected[0]


# ---- scales, pictures one by one, what is told -------------------------------------------------------------------

@pytest.fixture
def seen(batch):
    """Distiller -> by level what goes into its loss, and what both sides gave."""
    def look(model):
        pairs, data = [], batch(model)
        for module in model.student.backbone.modules():
            module.eval()   # a second pass sees the same statistics of batch norm
        for loss in model.distill_losses.values():
            loss.register_forward_pre_hook(lambda _, words: pairs.append(words[:2]))
        model.loss(**data)
        with tap(model.student, model.student_taps) as f_s, torch.no_grad():
            model.student.extract_feat(data['inputs'])
        return pairs, list(zip(f_s, model.teacher_features(data['inputs']), strict=True))
    return look


@pytest.mark.parametrize('row', ['retinanet-amd', 'faster_rcnn-fgd'])
def test_without_scales_losses_see_features_untouched(build, seen, row):
    for pair, given in zip(*seen(build(row)), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(pair, given, strict=True))


def test_losses_see_both_sides_divided_by_the_constant_of_the_level(build, seen):
    scales = [8.0, 4.0, 1.0, 0.5, 3.0]
    for scale, pair, given in zip(scales, *seen(build(scales=scales)), strict=True):
        assert all(torch.equal(one, other / scale) for one, other in zip(pair, given, strict=True))


def test_losses_are_told_the_teachers_levels_around_theirs(build, seen):
    model, told = build(scales=[8.0, 4.0, 1.0, 0.5, 3.0]), []
    for loss in model.distill_losses.values():
        loss.look_around = lambda *around: told.append(around)
    pairs, _ = seen(model)
    teachers = [None, *(f_t for _, f_t in pairs), None]
    for (finer, coarser), before, after in zip(told, teachers[:-2], teachers[2:], strict=True):
        assert (finer is None and before is None) or torch.equal(finer, before)
        assert (coarser is None and after is None) or torch.equal(coarser, after)


@pytest.mark.parametrize('scales', [[1.0] * 4, [1.0] * 6, [1.0, 1.0, 0.0, 1.0, 1.0], [float('inf')] * 5])
def test_scales_that_are_none_are_refused(build, scales):
    with pytest.raises(ValueError, match='expected a positive number for each of the levels'):
        build(scales=scales)


def test_a_teacher_may_look_at_each_picture_alone(build, batch):
    model = build(alone=True)
    data = batch(model)
    passes, features = [], model._features_of
    model.teacher.backbone.register_forward_hook(lambda _, words, __: passes.append(len(words[0])))
    found = features(data['inputs'], data['data_samples'])
    assert passes == [1, 1]
    for i, picture in enumerate(data['inputs'].split(1)):
        for level, wanted in zip(found, model.teacher_features(picture), strict=True):
            assert torch.equal(level[i:i + 1], wanted)


def test_a_shuffled_teacher_needs_kept_features(build, batch):
    model = build(shuffled=True)
    with pytest.raises(RunError, match='needs the kept features'):
        model.loss(**batch(model))


@pytest.mark.parametrize(('row', 'told'), [('retinanet-amd-allmasked', 1.0), ('retinanet-amd-unmasked', 0.0),
                                           ('retinanet-mgd', None), ('retinanet-fgd', 'nothing')])
def test_what_a_loss_tells_and_the_ratio_are_logged(build, batch, row, told):
    model = build(row)
    losses = model.loss(**batch(model))
    masked = [losses.get(f'masked_fpn_{i}') for i in range(5)]
    if told == 'nothing':
        assert masked == [None] * 5
    else:
        assert all(0 <= value <= 1 and told in (None, value) and not value.requires_grad for value in masked)
    _, logged = model.parse_losses(losses)
    distilled = sum(distillation(logged).values())
    detected = logged['loss'] - distilled
    assert losses['ratio'].item() == pytest.approx((distilled / detected).item(), rel=1e-4)
    assert not {'grad_detection', 'grad_distillation'} & set(losses)


def test_a_loss_may_tell_nothing_that_would_be_added_up(build, batch):
    model = build()
    model.distill_losses['loss_amd_fpn_0'].register_forward_hook(
        lambda loss, *_: loss.told.update(own_loss=torch.tensor(3.0)))
    with pytest.raises(ValueError, match="amd tells 'own_loss': what has loss in its name is added up"):
        model.loss(**batch(model))


def test_gradients_on_the_backbone_are_those_of_each_part_alone(build, batch):
    model = build()
    data, parts = batch(model), {}
    for module in model.student.backbone.modules():
        module.eval()
    model.measures_gradients = True
    losses = model.loss(**data)
    for name, terms in (('grad_distillation', distillation(losses)),
                        ('grad_detection', {key: value for key, value in losses.items()
                                            if 'loss' in key and '_fpn_' not in key})):
        model.zero_grad()
        model.parse_losses(terms)[0].backward(retain_graph=True)
        found = [p.grad for p in model.student.backbone.parameters() if p.grad is not None]
        parts[name] = torch.stack([gradient.norm() for gradient in found]).norm().item()
    assert {name: losses[name].item() for name in parts} == pytest.approx(parts, rel=1e-4)
    assert min(parts.values()) > 0


def test_everything_masked_asks_nothing_of_the_backbone(build, batch):
    model = build('retinanet-amd-allmasked')
    model.measures_gradients = True
    assert model.loss(**batch(model))['grad_distillation'] == 0


# ---- only the student predicts ----------------------------------------------------------------------------------

@pytest.mark.parametrize('row', ['retinanet-amd', 'faster_rcnn-mgd'])
def test_predictions_are_the_plain_students_bit_for_bit(build, cfg_of, batch, row):
    model = build(row).eval()
    cfg = cfg_of(row)
    (cfg.model.student.test_cfg if row[0] == 'r' else cfg.model.student.test_cfg.rcnn).score_thr = 0.0
    model.student.test_cfg = cfg.model.student.test_cfg
    plain = MODELS.build(cfg.model.student).eval()
    plain.load_state_dict({name.removeprefix('student.'): value for name, value in model.state_dict().items()
                           if name.startswith('student.')})
    for detector in (model.student, plain):  # untrained scores lie below the threshold: show them all
        head = detector.bbox_head if row[0] == 'r' else detector.roi_head
        head.test_cfg = cfg.model.student.test_cfg if row[0] == 'r' else cfg.model.student.test_cfg.rcnn
    data = batch(model)
    with torch.no_grad():
        found = model(**copy.deepcopy(data), mode='predict')
        wanted = plain(**copy.deepcopy(data), mode='predict')
        for a, b in zip(model(**data, mode='tensor'), plain(**data, mode='tensor'), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for a, b in zip(found, wanted, strict=True):
        assert len(a.pred_instances) > 0
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(a.pred_instances[key], b.pred_instances[key])


def test_predicting_does_not_touch_the_teacher(build, batch):
    model = build().eval()
    calls = []
    model.teacher.backbone.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(**batch(model), mode='predict')
    assert not calls


# ---- inheriting -------------------------------------------------------------------------------------------------

def test_neck_and_head_are_inherited_where_shapes_match(build):
    model = build(inherit=('neck', 'bbox_head'))
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    expected = [name for name in student if name.startswith(('neck.', 'bbox_head.'))
                and student[name].shape == teacher[name].shape]
    assert model.inherited == expected
    assert all(torch.equal(student[name], teacher[name]) for name in expected)
    assert 'bbox_head.retina_cls.weight' in expected
    assert 'neck.fpn_convs.0.conv.weight' in expected
    assert 'neck.lateral_convs.0.conv.weight' not in expected  # the teacher's backbone is wider
    student['neck.fpn_convs.0.conv.weight'].zero_()  # copies, not the teacher's own tensors
    assert teacher['neck.fpn_convs.0.conv.weight'].abs().sum() > 0


def test_nothing_is_inherited_unless_asked(build):
    model = build('faster_rcnn-amd')
    assert model.inherited == []
    name = 'neck.fpn_convs.0.conv.weight'
    assert not torch.equal(model.student.state_dict()[name], model.teacher.state_dict()[name])


def test_inheriting_happens_when_it_is_built_and_not_again(cfg_of):
    model = MODELS.build(cfg_of().model)
    name = 'neck.fpn_convs.0.conv.weight'
    assert torch.equal(model.student.state_dict()[name], model.teacher.state_dict()[name])
    saved = {key: torch.full_like(value, 0.5) if value.is_floating_point() else value
             for key, value in model.state_dict().items()}
    model.load_state_dict(saved)
    model.init_weights()    # as mmengine does before training
    model.train()
    assert (model.student.state_dict()[name] == 0.5).all()


@pytest.mark.parametrize('changes', [{'inherit': ('roi_head',)}, {'inherit': ('neck',), 'teacher_channels': 96}])
def test_inheriting_nothing_at_all_is_an_error(build, changes):
    with pytest.raises(ValueError, match=f'nothing to inherit: no tensor of {changes["inherit"][0]}'):
        build(**changes)


def test_the_teachers_weights_come_from_the_file(cfg_of, tmp_path):
    cfg = cfg_of()
    wanted = copies(MODELS.build(cfg.model.teacher))
    write_weights(tmp_path / 'teacher.pth', wanted, {})
    model = MODELS.build({**cfg.model, 'teacher_weights': str(tmp_path / 'teacher.pth')})
    model.init_weights()
    assert all(torch.equal(value, wanted[name]) for name, value in model.teacher.state_dict().items())
    wanted.pop('neck.fpn_convs.0.conv.weight')
    write_weights(tmp_path / 'teacher.pth', wanted, {})
    with pytest.raises(WeightsError, match='teacher.pth.*neck.fpn_convs.0.conv.weight'.replace('.*', '(?s:.*)')):
        MODELS.build({**cfg.model, 'teacher_weights': str(tmp_path / 'teacher.pth')})


# ---- what does not fit is refused when it is built --------------------------------------------------------------

@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_a_missing_level_is_named(cfg_of, side):
    cfg = cfg_of()
    cfg.model[side].neck.num_outs = 4
    with pytest.raises(ValueError, match=rf'level 4: the {side} \(RetinaNet\) has no module .neck.fpn_convs.4.conv.'):
        MODELS.build(cfg.model)


def test_levels_of_different_size_are_refused_with_their_shapes(cfg_of):
    cfg = cfg_of()
    cfg.model.student.neck.start_level = 0
    with pytest.raises(ValueError, match=r'level 0: .*student gives \(1, 64, 32, 32\), the teacher \(1, 64, 16, 16\)'):
        MODELS.build(cfg.model)


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_a_module_that_does_not_run_is_named(cfg_of, side):
    cfg = cfg_of(levels=(0,), **{f'{side}_module': 'bbox_head.cls_convs.{i}.conv'})
    with pytest.raises(ValueError, match=f'level 0: the {side} does not run that module'):
        MODELS.build(cfg.model)


def test_an_unknown_method_is_refused_and_the_known_ones_are_listed(cfg_of):
    with pytest.raises(ValueError, match="unknown method 'adm'") as told:
        MODELS.build(cfg_of(method='adm').model)
    assert all(name in str(told.value) for name in METHODS)


# ---- losses that are not finite ---------------------------------------------------------------------------------

@pytest.mark.parametrize('value', [float('inf'), float('nan')])
def test_a_level_that_is_not_finite_stops_training_and_is_named(build, batch, value):
    model = build()
    model.distill_losses['loss_amd_fpn_2'].register_forward_hook(lambda *_: torch.tensor(value))
    with pytest.raises(RunError) as caught:
        model.loss(**batch(model))
    first = str(caught.value).split(';')[0]
    assert f'loss_amd_fpn_2 = {value}' in first
    assert not any(f'fpn_{i}' in first for i in (0, 1, 3, 4))
    assert 'loss_cls' in str(caught.value)  # all terms follow


def test_a_term_of_the_detector_that_is_not_finite_is_named_too(build, batch):
    model = build()
    model.student.bbox_head.loss_bbox.register_forward_hook(lambda *_: torch.tensor(float('nan')))
    with pytest.raises(RunError, match=r'not finite: loss_bbox = nan;'):
        model.loss(**batch(model))


# ---- random masks -----------------------------------------------------------------------------------------------

def masks(model, size=16):
    """The next mask of every level, all of one size."""
    return [loss.random_mask(torch.zeros(1, 1, size, size)) for loss in model.distill_losses.values()]


def test_levels_and_seeds_draw_different_masks(build):
    drawn = [mask for seed in (0, 1) for mask in masks(build('retinanet-mgd', seed=seed))]
    assert len(drawn) == 10
    for i, a in enumerate(drawn):
        assert all(not torch.equal(a, b) for b in drawn[:i])
    again = masks(build('retinanet-mgd', seed=1))
    assert all(torch.equal(a, b) for a, b in zip(drawn[5:], again, strict=True))


@pytest.mark.parametrize('changes', [{'row': 'retinanet-mgd'},
                                     {'row': 'retinanet-amd', 'options': {'spatial': 'random'}}])
def test_a_resumed_run_continues_the_sequence_of_masks(build, tmp_path, changes):
    first = build(**changes)
    begun = masks(first)
    write_weights(tmp_path / 'w.pth', first.state_dict(), {})
    wanted = masks(first)
    resumed = build(**changes, seed=7)
    resumed.load_state_dict(read_weights(tmp_path / 'w.pth'))
    found = masks(resumed)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found, begun, strict=True))


# ---- published checkpoints --------------------------------------------------------------------------------------

PUBLISHED = {  # parts of a level's loss in the public code, where the teacher has other channels than the student
    'mgd': ['align.weight', 'align.bias', 'generation.0.weight', 'generation.0.bias', 'generation.2.weight',
            'generation.2.bias'],
    'fgd': ['align.weight', 'align.bias', 'conv_mask_s.weight', 'conv_mask_s.bias', 'conv_mask_t.weight',
            'conv_mask_t.bias', *(f'channel_add_conv_{side}.{part}.{kind}' for side in 'st' for part in (0, 1, 3)
                                  for kind in ('weight', 'bias'))]}


@pytest.mark.parametrize('method', PUBLISHED)
def test_the_names_are_those_of_published_distillation_checkpoints(build, method):
    model = build(f'retinanet-{method}', teacher_channels=96)
    names = [name for name in model.state_dict() if not name.endswith('_extra_state')]
    assert 'student.backbone.conv1.weight' in names
    assert 'student.bbox_head.retina_cls.weight' in names
    assert [name for name in names if not name.startswith('student.')] == [
        name for name in names if name in {f'distill_losses.loss_{method}_fpn_{i}.{part}'
                                           for i in range(5) for part in PUBLISHED[method]}]
    assert sum(name.startswith('distill_losses.') for name in names) == 5 * len(PUBLISHED[method])
    # a published file holds no generator of masks: it loads all the same
    model.load_state_dict({name: torch.zeros_like(model.state_dict()[name]) for name in names})
    assert model.distill_losses[f'loss_{method}_fpn_0'].align.weight.abs().sum() == 0


# ---- losses from outside ----------------------------------------------------------------------------------------

OUTSIDE = """
import torch
from amdlib.methods.level import LevelLoss


class MyLoss(LevelLoss):
    WEIGHT_EXPONENTS = {'weight': (1, 1)}

    def __init__(self, student_channels, teacher_channels, weight=0.25):
        super().__init__(student_channels, teacher_channels)
        self.weight = weight
        self.align = torch.nn.Conv2d(student_channels, teacher_channels, 1)

    def weighted_loss(self, f_s, f_t, boxes=None, image_shapes=None):
        return self.weight * (f_t - self.align(f_s)).abs().mean()
"""


def test_a_loss_from_outside_takes_part_under_its_class_name(build, batch, tmp_path):
    (tmp_path / 'mine.py').write_text(OUTSIDE)
    model = build(method=f'{tmp_path}/mine.py:MyLoss', options={'weight': 0.5}, teacher_channels=96)
    assert list(model.distill_losses) == [f'loss_myloss_fpn_{i}' for i in range(5)]
    assert 'distill_losses.loss_myloss_fpn_0.align.weight' in model.state_dict()
    losses = model.loss(**batch(model))
    assert list(distillation(losses)) == list(model.distill_losses)
    sum(distillation(losses).values()).backward()
    assert model.distill_losses['loss_myloss_fpn_0'].align.weight.grad.abs().sum() > 0


# ---- switches for speed -----------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('row', ['reppoints-fgd', 'faster_rcnn-fkd', 'retinanet-mgd'])
def test_every_group_trains_in_channels_last_and_bfloat16(config_of, train_step, row):
    cfg = config_of(row, 0, {'amp': 'bf16', 'channels_last': True, 'fused': True, 'half_teacher': 'bf16'})
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    logged = train_step(model.to(memory_format=torch.channels_last), cfg)
    assert all(torch.isfinite(value) for value in logged.values()), logged


@pytest.mark.slow
def test_a_compiled_teacher_has_the_same_features(config_of):
    if not shutil.which('g++'):
        pytest.skip('torch.compile needs a C++ compiler on the CPU')
    cfg, found = config_of(), []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = MODELS.build({**copy.deepcopy(cfg.model), 'compile_teacher': compiled})
        assert not any('_orig_mod' in name for name in model.teacher.state_dict())
        found.append(model.teacher_features(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))))
    for plain, other in zip(*found, strict=True):
        assert torch.allclose(plain, other, rtol=1e-3, atol=1e-4 * plain.abs().max())


# ---- a GPU that is not there ------------------------------------------------------------------------------------

@pytest.mark.parametrize(('method', 'options'), [
    ('fitnet', {}), ('fkd', {}), ('fgd', {}), ('mgd', {}), ('cwd', {}), ('defeat', {}), ('amd', {}),
    ('amd', {'spatial': 'random'}), ('amd', {'channel': 'none'}), ('amd', {'generation': 'mbconv'}),
    ('amd', {'channel_position': 'within'})])
def test_no_tensor_of_a_loss_stays_on_the_cpu(method, options):
    """torch follows devices and shapes without computing anything; a tensor on another device would be an error."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        with torch.device('cuda'):
            loss = methods.find_method(method)(16, 32, **options)
            f_s, f_t, boxes = torch.rand(2, 16, 8, 10), torch.rand(2, 32, 8, 10), [torch.rand(3, 4)] * 2
        assert loss(f_s, f_t, boxes, [(64, 80)] * 2).device.type == 'cuda'
        with pytest.raises(Exception, match='same device|different devices|device'):
            loss(f_s, f_t.cpu(), boxes, [(64, 80)] * 2)
