"""step.py: what a method that looks at a whole step is shown, of every pair; what is not asked for is not computed."""
import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from torch._subclasses.fake_tensor import FakeTensorMode

from amdlib import methods
from amdlib.engine.step import dense_head, first_stage, offers
from amdlib.engine.taps import tap
from amdlib.paper.pairs import GROUPS

# a method of a user's that keeps what it is shown, `probe.py:Probe`
PROBE = """
from amdlib.methods.step import StepLoss


class Probe(StepLoss):
    NEEDS = frozenset({needs})
    WEIGHT_EXPONENTS = {{'weight': (0, 0)}}

    def __init__(self, channels, weight=1.0):
        super().__init__(channels)
        self.weight, self.seen = weight, None

    def weighted_losses(self, step):
        self.seen = step
        self.told['mean'] = step.f_s[0].mean()
        if len(step.f_s) == 1:
            return {{'all': step.f_s[0].mean()}}
        return {{'near': self.weight * (step.f_s[0] - step.f_t[0]).square().mean(),
                 'fpn_1': (step.f_s[1] - step.f_t[1]).abs().mean()}}
"""
GROUP = pytest.mark.parametrize('group', GROUPS)


@pytest.fixture
def probe(config_of, tmp_path):
    """Group, what is needed, and what differs from the model -> a Distiller that trains with a Probe."""
    def make(group='retinanet', *needs, **changes):
        file = tmp_path / f'probe_{"_".join(needs)}.py'
        file.write_text(PROBE.format(needs=set(needs) or ''))
        cfg = config_of(f'{group}-amd')
        for key, value in {'method': f'{file}:Probe', 'options': {}, **changes}.items():    # update() would merge
            cfg.model[key] = value
        torch.manual_seed(0)
        return MODELS.build(cfg.model).train()
    return make


@pytest.fixture
def shown(config_of, train_batch):
    """Distiller -> the step that its method is shown, and what the Distiller logs. Batch norms stay as they are."""
    def look(model):
        for module in model.student.backbone.modules():
            module.eval()
        torch.manual_seed(0)
        data = model.data_preprocessor(train_batch(config_of()), training=True)
        losses = model.loss(**data)
        return model.distill_losses['loss_probe'].seen, losses, data
    return look


def same(found, expected):
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- terms ------------------------------------------------------------------------------------------------------

@GROUP
def test_terms_and_shares_are_logged_by_name(probe, shown, group):
    step, losses, _ = shown(probe(group))
    assert {'loss_probe_near', 'loss_probe_fpn_1', 'share_probe_near', 'share_fpn_1', 'ratio', 'mean'} <= set(losses)
    distilled = losses['loss_probe_near'] + losses['loss_probe_fpn_1']
    detected = sum(sum(value) if isinstance(value, list) else value for name, value in losses.items()
                   if 'loss' in name and 'probe' not in name)
    assert losses['ratio'].item() == pytest.approx((distilled / detected).item(), rel=1e-4)
    assert losses['share_probe_near'].item() == pytest.approx(
        (losses['loss_probe_near'] / (distilled + detected)).item(), rel=1e-4)
    assert not any(value.requires_grad for name, value in losses.items() if 'loss' not in name and 'acc' not in name)


def test_the_gradient_of_a_step_is_measured(probe, shown):
    model = probe()
    model.measures_gradients = True
    _, losses, _ = shown(model)
    assert losses['grad_distillation'] > 0


def test_what_a_detector_lacks_is_told_when_it_is_built(probe):
    with pytest.raises(ValueError, match='Probe: needs proposals of a first stage: the student has none'):
        probe('retinanet', 'proposals')


@GROUP
def test_a_pairs_offers_are_its_detectors(config_of, group):
    model = config_of(f'{group}-amd').model
    for side in ('student', 'teacher'):
        assert offers(MODELS.build(copy.deepcopy(model[side]))) == {'boxes', *GROUPS[group].offers}


def test_what_warms_up_rises_to_the_share_that_is_asked(config_of, train_batch):
    model = config_of('retinanet-frs').model
    model.update(share=0.3, options={'ramp_steps': 4})
    model = MODELS.build(model).train()
    data = model.data_preprocessor(train_batch(config_of('retinanet-frs')), training=True)
    ratios = [model.loss(**data)['ratio'].item() for _ in range(6)]     # of one batch, so of one detection loss
    assert ratios == pytest.approx([part * 0.3 / 0.7 for part in (0, 0.25, 0.5, 0.75, 1, 1)], rel=1e-3)


def test_the_first_steps_are_counted_in_the_checkpoint(config_of):
    model, resumed = (MODELS.build(config_of('retinanet-fgfi').model) for _ in range(2))
    for _ in range(3):
        model.distill_losses['loss_fgfi'].warm_up()
    resumed.load_state_dict(model.state_dict())
    assert resumed.distill_losses['loss_fgfi'].waits == 400 - 3


# ---- features, places -------------------------------------------------------------------------------------------

def test_features_are_the_tapped_ones_divided_by_the_scales(probe, shown):
    scales = [8.0, 4.0, 1.0, 0.5, 3.0]
    model = probe(scales=scales)
    step, _, data = shown(model)
    with tap(model.student, model.student_taps) as f_s:
        model.student.extract_feat(data['inputs'])
    for found, expected in ((step.f_s, f_s), (step.f_t, model.teacher_features(data['inputs']))):
        assert same(found, [one / scale for one, scale in zip(expected, scales, strict=True)])
    assert all(one.requires_grad for one in step.f_s)
    assert not any(one.requires_grad for one in step.f_t)


@GROUP
def test_ground_truth_strides_and_anchors(probe, shown, group):
    step, _, data = shown(probe(group, 'anchors', 'boxes'))
    assert same(step.boxes, [sample.gt_instances.bboxes for sample in data['data_samples']])
    assert same(step.labels, [sample.gt_instances.labels for sample in data['data_samples']])
    assert step.image_shapes == [(64, 64)] * 2
    assert step.strides == ([4, 8, 16, 32] if group == 'faster_rcnn' else [8, 16, 32, 64, 128])
    a = {'retinanet': 9, 'reppoints': 1, 'faster_rcnn': 3, 'gfl': 1}[group]
    for feature, boxes, stride in zip(step.f_s, step.anchors, step.strides, strict=True):
        h, w = feature.shape[2:]
        assert boxes.shape == (h * w * a, 4)
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).view(h, w, a, 2)
        assert torch.allclose(centres[..., 0], stride * torch.arange(w).view(1, w, 1).float(), atol=1e-4)
        assert torch.allclose(centres[..., 1], stride * torch.arange(h).view(h, 1, 1).float(), atol=1e-4)
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_level_that_the_head_does_not_have_is_told(probe, shown):
    """Faster R-CNN's RPN begins at stride 4, RetinaNet's head at 8."""
    where = dict(student_module='backbone.layer1', teacher_module='backbone.layer1')
    model = probe('retinanet', 'anchors', levels=[0], **where)
    with pytest.raises(ValueError, match='a level of stride 4 is compared, but .* has boxes of strides 8, 16, 32, 64'):
        shown(model)[0].anchors  # noqa: B018


def test_the_boxes_of_points_are_those_that_reppoints_assigns(probe, shown):
    model = probe('reppoints', 'anchors')
    step, _, _ = shown(model)
    head = model.student.bbox_head
    points = head.prior_generator.grid_priors([tuple(one.shape[2:]) for one in step.f_s], device='cpu',
                                              with_stride=True)
    assert all(torch.allclose(a, b) for a, b in zip(step.anchors, head.centers_to_bboxes([points])[0], strict=True))


# ---- heads ------------------------------------------------------------------------------------------------------

@GROUP
def test_heads_of_both_sides_are_those_of_their_own_passes(probe, shown, group):
    model = probe(group, 'heads')
    calls = []
    model.teacher.backbone.register_forward_hook(lambda *_: calls.append(1))
    handle = dense_head(model.student).register_forward_hook(lambda *_: calls.append(2))
    step, _, data = shown(model)
    with torch.no_grad():
        heads_t = step.heads_t, step.heads_t
        assert calls == [2, 1]                      # once each, whatever is asked for
        handle.remove()
        expected_t = dense_head(model.teacher)(model.teacher.extract_feat(data['inputs']))
        expected_s = dense_head(model.student)(model.student.extract_feat(data['inputs']))
    assert heads_t[0] is heads_t[1]
    for found, expected in ((step.heads_s, expected_s), (step.heads_t, expected_t)):
        assert len(found) == len(expected)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert all(one.requires_grad for levels in step.heads_s for one in levels)
    assert not any(one.requires_grad for levels in step.heads_t for one in levels)
    assert same(step.f_t, model.teacher_features(data['inputs']))


def test_what_is_inside_the_students_head_leads_to_its_scores(probe, shown):
    model = probe('retinanet', 'heads')
    step, _, _ = shown(model)
    head = model.student.bbox_head
    last = step.inside_s[f'cls_convs.{len(head.cls_convs) - 1}']
    assert same([head.retina_cls(one) for one in last], step.heads_s[0])


def test_a_gradient_passes_through_the_teachers_head_and_not_into_it(probe, shown):
    model = probe('retinanet', 'heads')
    step, _, _ = shown(model)
    inner = step.inside_s['cls_convs.0'][0]
    step.teacher_head.retina_cls(inner).sum().backward()
    assert model.student.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.parameters())


def test_a_teacher_may_look_at_each_picture_alone(probe, shown):
    together, alone = (shown(probe('retinanet', 'heads', alone=alone))[0] for alone in (False, True))
    for a, b in zip((*together.heads_t, together.f_t), (*alone.heads_t, alone.f_t), strict=True):
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a, b, strict=True))


def test_a_shuffled_teacher_sees_the_picture_before_it(probe, shown):
    straight, shuffled = (shown(probe('retinanet', 'heads', shuffled=shuffled))[0] for shuffled in (False, True))
    for a, b in zip((*straight.heads_t, straight.f_t), (*shuffled.heads_t, shuffled.f_t), strict=True):
        assert same([one.roll(1, dims=0) for one in a], b)


# ---- proposals --------------------------------------------------------------------------------------------------

def test_both_sides_score_the_students_proposals(probe, shown):
    model = probe('faster_rcnn', 'proposals')
    calls = []
    first_stage(model.student)[1].register_forward_hook(lambda *_: calls.append(1))
    step, _, data = shown(model)
    assert calls == [1]
    rois = bbox2roi(step.proposals)
    assert len(step.proposals) == 2
    assert len(rois) == len(step.roi_scores('student')) == len(step.roi_scores('teacher')) > 0
    with torch.no_grad():
        for side, detector in (('student', model.student), ('teacher', model.teacher)):
            extractor, box_head = first_stage(detector)
            maps = detector.extract_feat(data['inputs'])
            scores, deltas = box_head(extractor(maps[:4], rois))
            assert torch.equal(step.roi_scores(side), scores)
            classes = 1 if box_head.reg_class_agnostic else box_head.num_classes
            moved = step.roi_deltas(side)
            assert moved.shape == (len(rois), classes, 4)
            # decoded by a coder without standard deviations they are the boxes that the head means
            plain = DeltaXYWHBBoxCoder().decode(rois[:, None, 1:].expand_as(moved).reshape(-1, 4), moved.reshape(-1, 4))
            meant = box_head.bbox_coder.decode(rois[:, 1:], deltas)
            assert torch.allclose(plain.reshape(len(rois), -1), meant, atol=1e-4)
    for of in (step.roi_scores, step.roi_deltas):
        assert of('student').requires_grad
        assert not of('teacher').requires_grad


def test_the_teachers_proposals_and_features_of_boxes(probe, shown):
    model = probe('faster_rcnn', 'proposals')
    step, _, data = shown(model)
    proposals = step.proposals_t
    assert len(proposals) == 2
    assert all(one.shape[1] == 4 and not one.requires_grad for one in proposals)
    for side, detector in (('student', model.student), ('teacher', model.teacher)):
        expected = first_stage(detector)[0](detector.extract_feat(data['inputs'])[:4], bbox2roi(proposals))
        assert torch.equal(step.roi_features(side, proposals), expected)
        assert step.roi_features(side, proposals, 10).shape[2:] == (10, 10)
    assert step.roi_features('student', proposals).requires_grad


# ---- a GPU that is not there ------------------------------------------------------------------------------------

@pytest.mark.parametrize(('method', 'options'), [('pkd', {}), ('fgfi', {'off_steps': 0}), ('frs', {}), ('kd', {}),
                                                 ('dist', {}), ('adl', {})])
def test_no_tensor_of_a_loss_stays_on_the_cpu(method, options):
    with FakeTensorMode(allow_non_fake_inputs=False):
        with torch.device('cuda'):
            loss = methods.find_method(method)([(16, 32)], **options)
            f_s, f_t, boxes = torch.rand(2, 16, 8, 10), torch.rand(2, 32, 8, 10), [torch.rand(3, 4)] * 2
            step = SimpleNamespace(f_s=[f_s], f_t=[f_t], levels=[0], boxes=boxes, anchors=[torch.rand(8 * 10 * 3, 4)],
                                   strides=[8], has={'heads'}, teacher_head=SimpleNamespace(
                                       cls_out_channels=4, prior_generator=SimpleNamespace(strides=[(8, 8)])),
                                   **{side: ([torch.rand(2, 3 * 4, 8, 10)],) for side in ('heads_s', 'heads_t')})
        assert {term.device.type for term in loss(step).values()} == {'cuda'}


# ---- what is not asked for --------------------------------------------------------------------------------------

@GROUP
def test_what_is_not_needed_is_not_computed(probe, shown, group):
    model = probe(group)
    called = []
    for name, part in model.teacher.named_children():
        if 'head' in name:
            for module in part.modules():
                module.register_forward_hook(lambda *_: called.append(1))
    step, _, _ = shown(model)
    assert not called
    assert not step.heard.heads
    assert step.heard.rois is None
    assert not any(module._forward_hooks for module in model.student.modules())

