"""start.py: a seed means the same in every row; what a student takes from a teacher; random numbers step by step."""
import copy
import dataclasses
import hashlib

import pytest
import torch
from mmdet.models.detectors.two_stage import TwoStageDetector
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.registry import MODELS
from mmengine.hooks import Hook

from amdlib.engine.checkpoints import plain_model
from amdlib.engine.runner import QuietRunner
from amdlib.engine.start import drawn_from, inherit, stream, weights_sha256
from amdlib.engine.training import train_and_test
from amdlib.paper.rows import ROWS
from amdlib.weights.writing import write_weights

slow = pytest.mark.slow
METHODS = [row.name for row in ROWS.values() if row.group.name == 'retinanet' and row.method]


@pytest.fixture
def started(task_of, tmp_path):
    """As `task_of` -> the student as it starts, built as for training."""
    def build(row, seed=0, settings=None, teacher=None, **changes):
        task = taught(task_of(tmp_path / f'{row}-{seed}', row, seed, settings, **changes), teacher)
        if task.cfg.model.type == 'Distiller':      # the runner builds it so too
            return MODELS.build(task.cfg.model).student
        return plain_model(QuietRunner.from_cfg(copy.deepcopy(task.cfg)))
    return build


@pytest.fixture
def teacher(task_of, tmp_path):
    """Group -> a file with the random weights of its teacher."""
    def write(group):
        task, file = task_of(tmp_path / 'teacher', f'{group}-teacher', 7), tmp_path / f'{group}.pth'
        write_weights(file, plain_model(QuietRunner.from_cfg(task.cfg)).state_dict(), {})
        return str(file)
    return write


def taught(task, weights):
    if weights and task.cfg.model.type == 'Distiller':
        task.cfg.model.teacher_weights = weights
    elif weights:
        task.cfg.inherit.weights = weights
    return task


# ---- the initial student ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(('group', 'names'), [
    ('retinanet', METHODS), ('reppoints', ['fkd', 'fgd', 'mgd', 'amd']), ('faster_rcnn', ['fkd', 'fgd', 'mgd', 'amd'])])
def test_a_seeds_student_starts_alike_in_every_row_that_starts_alone(started, group, names):
    """FKD and FGD draw for their losses, FKD twice as often; teachers draw too, and before them all did so."""
    baseline = weights_sha256(started(f'{group}-baseline'))
    for name in names:
        assert weights_sha256(started(f'{group}-{name}', arm='alone')) == baseline
    other = weights_sha256(started(f'{group}-baseline', 1))
    assert other == weights_sha256(started(f'{group}-amd', 1, arm='alone')) != baseline


@pytest.mark.parametrize('group', ['retinanet', 'reppoints'])
def test_a_seeds_student_starts_alike_in_every_row_that_inherits(started, teacher, group):
    file = teacher(group)
    student = started(f'{group}-inherit', teacher=file)
    wanted = weights_sha256(student)
    asked, profiles = {'settings': {'inherit': True}, 'arm': 'alone'}, {'arm': 'inherit'}
    for name, how in (('fkd', asked), ('fgd', asked), ('mgd', asked), ('amd', asked), ('amd', profiles)):
        assert weights_sha256(started(f'{group}-{name}', teacher=file, **how)) == wanted
    assert weights_sha256(started(f'{group}-inherit', 1, teacher=file)) != wanted
    # what it did not take is as in the rows that start alone
    alone = started(f'{group}-baseline').state_dict()
    same = {name.split('.')[0] for name, value in student.state_dict().items()
            if value.is_floating_point() and value.dim() > 1 and torch.equal(value, alone[name])}
    assert 'backbone' in same
    assert 'bbox_head' not in same


def test_two_stage_students_inherit_neck_and_first_stage(started, teacher):
    file = teacher('faster_rcnn')
    student, source = started('faster_rcnn-inherit', teacher=file).state_dict(), torch.load(file)['state_dict']
    for name in ('neck.fpn_convs.0.conv.weight', 'rpn_head.rpn_cls.weight'):
        assert torch.equal(student[name], source[name])


def test_the_first_weights_are_drawn_once(started):
    student = started('retinanet-amd', arm='alone')
    before = weights_sha256(student)
    student.init_weights()
    assert weights_sha256(student) == before


def test_inheriting_copies_what_fits():
    student, source = torch.nn.ModuleDict({'neck': torch.nn.Linear(2, 2), 'head': torch.nn.Linear(2, 1)}), {
        'neck.weight': torch.full((2, 2), 5.0), 'neck.bias': torch.zeros(3), 'head.weight': torch.zeros(1, 2)}
    assert inherit(student, source, ('neck',)) == ['neck.weight']
    assert (student['neck'].weight == 5).all()
    assert (student['head'].weight != 0).any()
    assert inherit(student, source, ()) == []
    with pytest.raises(ValueError, match='nothing to inherit: no tensor of tail'):
        inherit(student, source, ('tail',))


def test_streams_are_of_their_own_and_leave_the_generator_alone():
    names = [('student', 0), ('teacher', 0), ('student', 1), ('loss', 0, 1), ('loss', 1, 0), ('step', 0, 0, 0),
             ('step', 0, 0, 1), ('step', 0, 1, 0), ('student', 2 ** 31 - 1)]
    assert len({stream(*one) for one in names}) == len(names)
    assert all(0 <= stream(*one) < 2 ** 63 for one in names)
    state = torch.get_rng_state()
    with drawn_from('student', 0):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    with drawn_from('student', 0):
        assert torch.equal(torch.rand(3), first)


def test_a_models_hash_is_of_names_and_values():
    model = torch.nn.Linear(3, 2)
    before = weights_sha256(model)
    assert before == weights_sha256(copy.deepcopy(model))
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    assert weights_sha256(model) != before


# ---- the steps --------------------------------------------------------------------------------------------------

class Seen(Hook):
    """Keeps which pictures a step has, and which of them are flipped."""

    def __init__(self):
        self.steps = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.steps.append([(sample.img_id, sample.flip) for sample in data_batch['data_samples']])


@slow
@pytest.mark.parametrize('workers', [0, 1])
def test_pictures_flips_and_samples_are_the_same_in_every_row(task_of, tmp_path, monkeypatch, workers):
    drawn, sampled = [], []

    def loss(self, *words, original=TwoStageDetector.loss):
        drawn.append(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())
        return original(self, *words)

    def choice(self, gallery, num, original=RandomSampler.random_choice):
        found = original(self, gallery, num)
        if len(drawn) == 1:     # after the first step weights differ, and so do proposals
            sampled.append(found.tolist())
        return found
    monkeypatch.setattr(TwoStageDetector, 'loss', loss)
    monkeypatch.setattr(RandomSampler, 'random_choice', choice)
    made = {}
    for row, seed in (('baseline', 0), ('mgd', 0), ('fkd', 0), ('baseline', 1)):
        drawn.clear()
        sampled.clear()
        seen = Seen()
        task = task_of(tmp_path / f'{row}-{seed}', f'faster_rcnn-{row}', seed, {'epochs': 2}, workers=workers)
        train_and_test(dataclasses.replace(task, hooks=(seen,)))
        made[row, seed] = seen.steps, list(drawn), list(sampled)
    steps, states, samples = made['baseline', 0]
    assert len(steps) == len(states) == len(set(states)) == 8
    assert samples
    assert {flip for step in steps for _, flip in step} == {True, False}
    assert made['mgd', 0] == made['fkd', 0] == made['baseline', 0]
    other = made['baseline', 1]
    assert other[0] != steps
    assert not set(other[1]) & set(states)


@slow
@pytest.mark.parametrize(('plain', 'arm'), [('baseline', 'alone'), ('inherit', 'inherit')])
def test_with_everything_masked_a_student_is_the_one_that_is_not_distilled(task_of, teacher, content, same_weights,
                                                                           tmp_path, plain, arm):
    """To the last bit, since its gradient is zero; gradients are not clipped, since the loss has some of its own."""
    file, made = teacher('retinanet'), []
    for row in (plain, 'amd-allmasked', 'amd'):
        task = task_of(tmp_path / row, f'retinanet-{row}', 0, {'epochs': 2}, arm=arm)
        if row != 'baseline':
            taught(task, file)
        task.cfg.optim_wrapper.clip_grad = None
        outcome = train_and_test(task)
        weights, detections, _ = content(task.folder)
        made.append((outcome['student_sha256'], weights, detections))
    (start, weights, detections), masked, full = made
    assert masked[0] == full[0] == start
    assert same_weights(masked[1], weights)
    assert masked[2] == detections
    assert not same_weights(full[1], weights)


@slow
def test_an_untrained_detector_is_evaluated_as_it_was_drawn(task_of, content, tmp_path, started):
    task = task_of(tmp_path / 'untrained', 'retinanet-untrained', 3)
    outcome = train_and_test(task)
    assert (outcome['steps'], outcome['resumed_from'], outcome['train_s'], outcome['lr_used']) == (0, [], 0, None)
    weights, _, logged = content(task.folder)
    assert logged == []
    drawn = started('retinanet-teacher', 3)
    assert outcome['student_sha256'] == weights_sha256(drawn)
    assert all(torch.equal(value, weights[name]) for name, value in drawn.state_dict().items())
