"""Methods that look at whole steps, on every detector where they can run: real heads, proposals and pictures."""
import copy
import functools

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torchvision.ops import nms

from amdlib import methods
from amdlib.engine.distiller import Distiller
from amdlib.methods.chen import STDS, nearest_box
from amdlib.methods.crosskd import giou
from amdlib.methods.dkd import targets
from amdlib.methods.gid import decoded, general_instances, positive
from amdlib.methods.ld import regions
from amdlib.paper.pairs import GROUPS
from amdlib.paper.rows import ROWS, cannot

STEP_ROWS = [row.id for row in ROWS.values() if row.name == row.method
             and methods.looks_at_steps(methods.find_method(row.method))]
METHODS = {row.split('-')[1] for row in STEP_ROWS}
TERMS = {'frs': {'feature', 'score'}, 'kd': {'score'}, 'dist': {'classes', 'samples'},
         'gid': {'feature', 'relation', 'score', 'box'}, 'crosskd': {'score', 'box'}, 'mimic': {'feature'},
         'dkd': {'target', 'others'}, 'ld': {'main', 'valuable', 'class'}, 'adl': {'score'},
         'chen': {'rpn_score', 'rpn_box', 'score', 'box', 'hint'}}


@pytest.fixture(scope='module')
def detectors(config_of):
    """Group -> its two detectors, built once."""
    built = {}

    def make(group):
        if group not in built:
            cfg = config_of(f'{group}-amd')
            torch.manual_seed(0)
            built[group] = [MODELS.build(cfg.model[side]) for side in ('student', 'teacher')]
            built[group][0].init_weights()
        return built[group]
    return make


@pytest.fixture(scope='module')
def model_of(config_of, detectors):
    """Row id -> a Distiller of the shared detectors, past the method's first steps, and the name of its method.
    Batch norms stay as they are. With `twins` the teacher is a copy of the student."""
    def make(row, twins=False):
        group, method = row.split('-')
        cfg = {key: value for key, value in config_of(row).model.items() if key not in ('type', 'inherit')}
        student, teacher = detectors(group)
        model = Distiller(**{**cfg, 'student': student, 'teacher': copy.deepcopy(student) if twins else teacher})
        for module in model.train().student.backbone.modules():
            module.eval()
        for loss in model.distill_losses.values():
            if hasattr(loss, 'warm_up'):
                loss.warm_up.steps = loss.warm_up.off_steps + loss.warm_up.ramp_steps
            if method == 'chen':        # a teacher that nobody trained is the worse, and would bound nothing
                loss.margin = 1e6
        return model, method
    return make


@pytest.fixture(scope='module')
def pictures(config_of, train_batch):
    """Model, and whether objects are on them -> what its forward takes."""
    read = functools.cache(lambda: train_batch(config_of()))

    def make(model, objects=True):
        torch.manual_seed(0)
        data = model.data_preprocessor(copy.deepcopy(read()), training=True)
        if not objects:
            for sample in data['data_samples']:
                sample.gt_instances = sample.gt_instances[:0]
        return data
    return make


def terms_of(losses, method):
    return {name.removeprefix(f'loss_{method}_'): value for name, value in losses.items()
            if name.startswith(f'loss_{method}_')}


@pytest.mark.parametrize('row', STEP_ROWS)
def test_every_term_reaches_the_students_backbone_and_nothing_the_teacher(model_of, pictures, row):
    model, method = model_of(row)
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    losses = model.loss(**pictures(model))
    terms = terms_of(losses, method)
    assert terms.keys() == TERMS.get(method, {name for name in terms if name.startswith('fpn_')}) != set()
    assert 0 < losses['ratio'].item() < float('inf')
    weights = [p for p in model.student.backbone.parameters() if p.requires_grad]
    for name, term in terms.items():
        assert term.isfinite(), name
        found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        if name.startswith('fpn_') and int(name[-1]) > 0:       # a coarse level may have no object
            continue
        assert sum(float(one.abs().sum()) for one in found if one is not None) > 0, name
    sum(terms.values()).backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    assert all(p.grad is not None for p in model.distill_losses.parameters())
    model.zero_grad()


@pytest.mark.parametrize('row', STEP_ROWS)
def test_pictures_without_objects_are_finite(model_of, pictures, row):
    model, method = model_of(row)
    terms = terms_of(model.loss(**pictures(model, objects=False)), method)
    assert all(term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


def test_where_they_run_and_why_not_elsewhere():
    where = {method: {row.split('-')[0] for row in STEP_ROWS if row.endswith(f'-{method}')} for method in METHODS}
    assert where['fgfi'] == where['kd'] == where['frs'] == where['dist'] == {*GROUPS}
    assert where['gid'] == {'retinanet', 'faster_rcnn'}
    assert where['crosskd'] == {'retinanet'}
    assert where['mimic'] == where['dkd'] == where['chen'] == {'faster_rcnn'}
    assert where['ld'] == {'gfl'}
    assert where['adl'] == {'retinanet', 'reppoints', 'gfl'}
    for name, group in GROUPS.items():
        assert all(bool(cannot(group, method)) == (name not in where[method]) for method in METHODS)


@pytest.mark.parametrize('row', ['retinanet-dist', 'retinanet-gid', 'retinanet-crosskd', 'faster_rcnn-dist',
                                 'faster_rcnn-gid', 'faster_rcnn-mimic', 'faster_rcnn-dkd', 'gfl-ld', 'reppoints-adl'])
def test_from_a_teacher_that_it_equals_a_student_has_nothing_to_learn(model_of, pictures, row):
    """Anchors, proposals, order of scores, decoding: the same on both sides. (Cross-entropy leaves an entropy.)"""
    model, method = model_of(row, twins=True)
    terms = terms_of(model.loss(**pictures(model)), method)
    assert {name for name, term in terms.items() if term.abs() > 1e-4} <= ({'score'} if method == 'gid' else set())


# ---- against mmdet's own ----------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def shown(model_of, pictures):
    """Row id -> the step that its method is shown, the model, and its pictures."""
    def look(row, **changes):
        model, _ = model_of(row)
        for name, value in changes.items():
            setattr(model, name, value)
        steps = []
        loss, = model.distill_losses.values()
        loss.register_forward_pre_hook(lambda _, given: steps.append(given[0]))
        data = pictures(model)
        model.loss(**data)
        return steps[0], model, data
    return look


@pytest.mark.parametrize('alone', [False, True])
def test_what_is_inside_the_teachers_head_leads_to_its_scores(shown, alone):
    step, model, _ = shown('retinanet-crosskd', alone=alone)
    head = model.teacher.bbox_head
    with torch.no_grad():
        for inner, scores in zip(step.inside_t[f'cls_convs.{len(head.cls_convs) - 1}'], step.heads_t[0], strict=True):
            assert torch.allclose(head.retina_cls(inner), scores, atol=1e-5)
    assert step.inside_t.keys() == step.inside_s.keys()
    assert step.has == {'heads', 'anchors', 'boxes'}


def test_positive_anchors_are_those_that_retinanet_assigns(shown):
    step, model, data = shown('retinanet-crosskd')
    anchors, assigner = torch.cat(step.anchors), model.student.bbox_head.assigner
    for sample in data['data_samples']:
        found = assigner.assign(InstanceData(priors=anchors), sample.gt_instances).gt_inds > 0
        assert found.any()
        assert torch.equal(positive(anchors, sample.gt_instances.bboxes), found)


def test_a_proposals_target_is_the_one_that_the_box_head_assigns(shown):
    step, model, data = shown('faster_rcnn-dkd')
    classes, assigner = model.student.roi_head.bbox_head.num_classes, model.student.roi_head.bbox_assigner
    for proposals, sample in zip(step.proposals, data['data_samples'], strict=True):
        found = assigner.assign(InstanceData(priors=proposals), sample.gt_instances)
        expected = torch.where(found.gt_inds > 0, found.labels, classes)
        assert (expected < classes).any()
        objects = sample.gt_instances
        assert torch.equal(targets(proposals, objects.bboxes, objects.labels, classes), expected)


def test_the_main_region_is_what_gfl_assigns(shown):
    step, model, data = shown('gfl-ld')
    anchors, assigner = torch.cat(step.anchors), model.student.bbox_head.assigner
    for sample in data['data_samples']:
        found = assigner.assign(InstanceData(priors=anchors), [len(level) for level in step.anchors],
                                sample.gt_instances).gt_inds > 0
        main, valuable = regions(step.anchors, sample.gt_instances.bboxes)
        assert main.any()
        assert torch.equal(main, found)
        assert valuable.any()


def test_a_proposals_moves_are_those_that_the_box_head_learns(shown):
    step, model, data = shown('faster_rcnn-chen')
    head, stds = model.student.roi_head.bbox_head, torch.tensor(STDS)
    assert tuple(head.bbox_coder.stds) == STDS
    for proposals, sample in zip(step.proposals, data['data_samples'], strict=True):
        objects = sample.gt_instances
        has, targets, labels = nearest_box(proposals, objects.bboxes, objects.labels)
        found = model.student.roi_head.bbox_assigner.assign(InstanceData(priors=proposals), objects)
        assert torch.equal(has, found.gt_inds > 0)
        assert torch.equal(labels[has], found.labels[has])
        assert torch.allclose(targets[has] / stds, head.bbox_coder.encode(
            proposals[has], objects.bboxes[found.gt_inds[has] - 1]), atol=1e-5)


def test_instances_are_what_nms_keeps_and_giou_is_mmdets():
    torch.manual_seed(0)
    corners = torch.rand(200, 2, 2, 2).sort(dim=2).values.flatten(2) * 100 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    boxes, others = corners.unbind(dim=1)
    scores = torch.rand(200, 1)
    found = general_instances(scores, torch.zeros(200, 1), boxes, others, (200, 200))
    assert torch.equal(found, boxes[nms(boxes, scores[:, 0], 0.3)[:10]])
    assert torch.allclose(giou(boxes, others), bbox_overlaps(boxes, others, mode='giou', is_aligned=True), atol=1e-6)


def test_boxes_are_decoded_picture_by_picture(model_of):
    head, deltas = model_of('retinanet-gid')[0].teacher.bbox_head, torch.randn(2, 7, 4)
    anchors = torch.tensor([[0.0, 0.0, 20.0, 30.0]]).repeat(7, 1) + torch.arange(7)[:, None]
    for found, own in zip(decoded(head, anchors, deltas), deltas, strict=True):
        assert torch.allclose(found, head.bbox_coder.decode(anchors, own))
