"""training.py: what comes of a task; same seed, same digits; checkpoints, backbones, learning rate, switches."""
import copy
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS

from amdlib.engine import training
from amdlib.engine.training import disk_is_full, evaluate, peak_memory_bytes, train_and_test
from amdlib.errors import WeightsError
from amdlib.evaluation import METRICS, coco_numbers
from amdlib.files import ROOT, read_json, sha256
from amdlib.weights.reading import read_weights
from amdlib.weights.writing import write_weights

slow = pytest.mark.slow
PROMISED = {'numbers', 'student_sha256', 'weights_sha256', 'steps', 'resumed_from', 'train_s', 'wall_s', 'began',
            'device', 'threads', 'workers', 'peak_memory_bytes', 'peak_gpu_memory_bytes', 'operators', 'lr_given',
            'lr_used'}


@pytest.fixture(scope='module')
def done(task_of, tmp_path_factory):
    """Row id -> (Task, outcome), trained once for this module."""
    made = {}

    def get(row):
        if row not in made:
            task = task_of(tmp_path_factory.mktemp('tasks') / row, row)
            # so that a hardly trained detector finds something
            task.cfg.model.get('student', task.cfg.model).test_cfg.score_thr = 0.0
            made[row] = task, train_and_test(task)
        return made[row]
    return get


def built(cfg, seed=0):
    """A detector with random weights."""
    torch.manual_seed(seed)
    return MODELS.build(copy.deepcopy(cfg).model)


# ---- what comes of a task ---------------------------------------------------------------------------------------

@slow
@pytest.mark.parametrize('row', ['retinanet-baseline', 'retinanet-amd'])
def test_an_outcome_has_all_that_is_promised(done, row):
    task, outcome = done(row)
    assert set(outcome) == PROMISED
    assert json.loads(json.dumps(outcome)) == outcome
    assert list(outcome['numbers']) == list(METRICS)
    assert all(value is None or isinstance(value, float) and 0 <= value <= 100
               for value in outcome['numbers'].values())
    assert outcome['steps'] == 4
    assert outcome['resumed_from'] == []
    assert 0 < outcome['train_s'] < outcome['wall_s']
    assert 2 ** 27 < outcome['peak_memory_bytes'] < 2 ** 36
    assert outcome['device'] == ('CPU' if not torch.cuda.is_available() else torch.cuda.get_device_name())
    assert outcome['weights_sha256'] == sha256(task.folder / 'weights.pth')
    assert outcome['lr_given'] == outcome['lr_used'] == task.cfg.optim_wrapper.optimizer.lr
    assert sorted(path.name for path in task.folder.iterdir()) == [
        'detections.json.gz', 'mmengine', 'scalars.jsonl', 'weights.pth']
    assert not list(task.folder.glob('mmengine/**/vis_data'))   # also of a run that was not the first in its process
    (log,) = task.folder.glob('mmengine/*/*.log')
    assert 'more than once' not in log.read_text()      # first weights are drawn when a model is built, and then only


@slow
def test_a_task_is_left_as_it_was(task_of, tmp_path):
    task = task_of(tmp_path)
    before = task.cfg.pretty_text
    train_and_test(task)
    assert task.cfg.pretty_text == before
    assert 'detections' not in task.cfg.test_evaluator


@slow
def test_weights_are_the_plain_student_and_tell_what_they_are(done):
    task, outcome = done('retinanet-amd')
    held = torch.load(task.folder / 'weights.pth', weights_only=True)
    assert held['meta'] == {**task.meta, 'numbers': outcome['numbers']}
    state = held['state_dict']
    assert not [name for name in state if name.startswith(('student.', 'teacher.', 'distill')) or 'loss' in name]
    detector = MODELS.build(task.cfg.model.student)
    assert type(detector).__name__ == 'RetinaNet'
    detector.load_state_dict(state, strict=True)
    assert sum(value.numel() for value in state.values()) == sum(v.numel() for v in detector.state_dict().values())


@slow
def test_numbers_follow_from_the_stored_detections(done, dataset):
    task, outcome = done('retinanet-baseline')
    found = read_json(task.folder / 'detections.json.gz')
    images = {image['id'] for image in read_json(dataset.test_ann)['images']}
    assert len(found) > 50
    assert {one['image_id'] for one in found} <= images
    assert coco_numbers(dataset.test_ann, found) == outcome['numbers']
    assert all(value == round(value, 2) for one in found for value in one['bbox'])


@slow
def test_the_seed_decides_everything(done, content, same_weights, tmp_path):
    task, outcome = done('retinanet-amd')
    results = {}
    for name, seed in (('same', 0), ('other', 1)):
        cfg = copy.deepcopy(task.cfg)
        cfg.randomness.seed = cfg.model.seed = seed
        cfg.work_dir = str(tmp_path / name / 'mmengine')
        (tmp_path / name).mkdir()
        results[name] = train_and_test(dataclasses.replace(task, cfg=cfg, folder=tmp_path / name))
    first, same, other = (content(folder) for folder in (task.folder, tmp_path / 'same', tmp_path / 'other'))
    assert same_weights(first[0], same[0])
    assert first[1:] == same[1:]
    assert results['same']['numbers'] == outcome['numbers']
    assert not torch.equal(other[0]['backbone.conv1.weight'], first[0]['backbone.conv1.weight'])


def test_scalars_are_kept_once_a_step_and_another_backends_files_stay(tmp_path):
    def logged(part, *lines):
        folder = tmp_path / 'mmengine' / part / 'vis_data'
        folder.mkdir(parents=True)
        for name in ('scalars.json', f'{part}.json'):       # mmengine writes both
            (folder / name).write_text(''.join(json.dumps(line) + '\n' for line in lines))
        (folder / 'config.py').write_text('')
        return folder
    first = logged('1', {'loss': 3.0, 'step': 1}, {'loss': 2.0, 'step': 10})
    second = logged('2', {'loss': 2.5, 'step': 10}, {'loss': 1.0, 'step': 11}, {'coco/mAP': 1.0, 'step': 12})
    (second / 'run.wandb').write_text('kept')
    training._keep_scalars(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / 'scalars.jsonl').read_text().splitlines()]
    assert [(line['step'], line['loss']) for line in lines] == [(1, 3.0), (10, 2.5), (11, 1.0)]
    assert not first.exists()
    assert [path.name for path in second.iterdir()] == ['run.wandb']


@slow
def test_who_watches_is_told_every_step(task_of, tmp_path):
    seen = []
    train_and_test(dataclasses.replace(task_of(tmp_path), watch=lambda *told: seen.append(told)))
    assert [told[:3] for told in seen[:4]] == [('train', step, 4) for step in (1, 2, 3, 4)]
    assert [told[0] for told in seen[4:]] == ['test'] * (len(seen) - 4)
    assert seen[-1][1] == seen[-1][2] >= 1
    assert all(told[3] > 0 for told in seen)


# ---- weight files -----------------------------------------------------------------------------------------------

@slow
def test_a_checkpoint_is_evaluated_and_not_trained(done, task_of, content, same_weights, tmp_path):
    trained, outcome = done('retinanet-baseline')
    file, seen = str(trained.folder / 'weights.pth'), []
    task = dataclasses.replace(trained, folder=tmp_path, files={'checkpoint': file})
    again = train_and_test(task)
    assert again['steps'] == 0
    assert again['numbers'] == outcome['numbers']
    assert again['lr_given'] is again['lr_used'] is None
    (weights, detections, logged), wanted = content(tmp_path), content(trained.folder)
    assert same_weights(weights, wanted[0])
    assert detections == wanted[1]
    assert logged == []
    assert evaluate(trained.cfg, file, lambda *told: seen.append(told[0])) == outcome['numbers']
    assert set(seen) == {'test'}


@slow
@pytest.mark.parametrize(('spoil', 'told'), [
    (lambda state: {**state, 'bbox_head.retina_cls.bias': torch.zeros(720)}, 'another number of classes'),
    (lambda state: {f'rpn_head.{name}': value for name, value in state.items()}, 'another architecture')])
def test_a_checkpoint_that_does_not_fit_is_refused(task_of, tmp_path, spoil, told):
    task = task_of(tmp_path)
    write_weights(tmp_path / 'wrong.pth', spoil(built(task.cfg).state_dict()), {})
    with pytest.raises(WeightsError, match=told):
        train_and_test(dataclasses.replace(task, files={'checkpoint': str(tmp_path / 'wrong.pth')}))
    with pytest.raises(WeightsError, match=told):
        evaluate(task.cfg, tmp_path / 'wrong.pth')


class Stop(Exception):
    """Ends training when it is about to begin."""


@slow
@pytest.mark.parametrize('row', ['retinanet-baseline', 'retinanet-amd'])
def test_the_backbones_file_is_where_training_starts(task_of, tmp_path, monkeypatch, row):
    task, begun = task_of(tmp_path, row), []
    student = MODELS.build(task.cfg.model.get('student', task.cfg.model))
    half = {name: torch.full_like(value, 0.5) if value.is_floating_point() else value
            for name, value in student.backbone.state_dict().items()}
    write_weights(tmp_path / 'r18.pth', half, {})

    def stop(self):
        self._init_model_weights()
        begun.append(self.model)
        raise Stop
    monkeypatch.setattr(training.QuietRunner, 'train', stop)
    with pytest.raises(Stop):
        train_and_test(dataclasses.replace(task, files={'backbone': str(tmp_path / 'r18.pth')}))
    backbone = getattr(begun[0], 'student', begun[0]).backbone
    assert (backbone.layer1[0].conv1.weight == 0.5).all()
    write_weights(tmp_path / 'detector.pth', student.state_dict(), {})
    with pytest.raises(WeightsError, match=r'does not fit ResNet.*\n  not in the file'):
        train_and_test(dataclasses.replace(task, files={'backbone': str(tmp_path / 'detector.pth')}))


# ---- errors that the caller explains ----------------------------------------------------------------------------

def full_disk():
    return OSError(errno.ENOSPC, 'No space left on device')


def test_a_full_disk_is_known_behind_what_torch_makes_of_it():
    def save():
        try:
            raise full_disk()
        except OSError:
            raise RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598')  # noqa: B904
    with pytest.raises(RuntimeError) as told:
        save()
    for error in (told.value, full_disk(), OSError(errno.EDQUOT, 'quota')):
        assert disk_is_full(error)
    for error in (OSError(errno.EACCES, 'no'), RuntimeError('full'), None):
        assert not disk_is_full(error)


@slow
@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nmore'),
                                   full_disk()])
def test_errors_of_training_come_out_as_they_are(task_of, tmp_path, error):
    def watch(*_):
        raise error
    with pytest.raises(type(error)) as told:
        train_and_test(dataclasses.replace(task_of(tmp_path), watch=watch))
    assert told.value is error
    assert not (tmp_path / 'weights.pth').exists()
    assert not (tmp_path / 'detections.json.gz').exists()


# ---- learning rate and switches for speed -----------------------------------------------------------------------

@slow
@pytest.mark.parametrize(('settings', 'used'), [({}, 3e-3), ({'batch_size': 1}, 1.5e-3),
                                                ({'batch_size': 1, 'lr': 0.1}, 0.1), ({'accumulate': 3}, 9e-3)])
def test_the_learning_rate_that_is_used_is_told_at_the_start(task_of, tmp_path, settings, used):
    told = []

    def tell(*rates):
        told.append(rates)
        raise Stop
    with pytest.raises(Stop):
        train_and_test(dataclasses.replace(task_of(tmp_path, settings=settings), tell_lr=tell))
    assert told == [(settings.get('lr', 3e-3), pytest.approx(used))]


def _losses(task):
    """The loss of every step."""
    task.cfg.default_hooks.logger.interval = task.cfg.log_processor.window_size = 1
    train_and_test(task)
    logged = [json.loads(line) for line in (task.folder / 'scalars.jsonl').read_text().splitlines()]
    assert [line['step'] for line in logged] == list(range(1, len(logged) + 1))
    return np.array([line['loss'] for line in logged])


@slow
def test_with_every_switch_on_the_losses_stay_within_what_another_seed_shows(task_of, config_of, tmp_path):
    """Over the first 50 steps, as a whole and in every ten of them. 128 px: from maps of 1x1, as P6 is at 64 px,
    torch's bfloat16 convolution on the CPU gives the weights a gradient of uninitialised memory."""
    size = {'image_px': (128, 128)}
    switches = {'amp': 'bf16', 'half_teacher': 'bf16', 'tf32': True, 'channels_last': True, 'fused': True}
    if shutil.which('g++'):     # else torch.compile cannot be used on the CPU
        switches['compile_teacher'] = True
    teacher = built(config_of('retinanet-teacher', **size))    # one teacher for all, untrained
    teacher.init_weights()
    write_weights(tmp_path / 'teacher.pth', teacher.state_dict(), {})

    def losses(name, seed, more):
        task = task_of(tmp_path / name, 'retinanet-amd', seed, {'epochs': 13, **more}, **size)
        task.cfg.model.teacher_weights = str(tmp_path / 'teacher.pth')
        return _losses(task)[:50]
    plain, on, *others = (losses(name, seed, more) for name, seed, more in (
        ('plain', 0, {}), ('on', 0, switches), ('seed 1', 1, {}), ('seed 2', 2, {})))
    assert len(plain) == len(on) == 50
    assert not np.array_equal(plain, on)
    spread = np.mean([np.abs(other - plain) for other in others], axis=0)
    found = np.abs(on - plain)
    print('mean difference by ten steps: switches', found.reshape(5, 10).mean(1).round(4), 'another seed',
          spread.reshape(5, 10).mean(1).round(4))
    assert found.mean() < spread.mean()
    assert (found.reshape(5, 10).mean(1) < spread.reshape(5, 10).mean(1)).all()
    assert torch.get_float32_matmul_precision() == 'highest'     # as before the run


def test_peak_memory_is_the_process_own():
    """A process started by a large one is not large itself."""
    ballast = bytearray(os.urandom(1 << 20)) * 400
    code = ('from amdlib.engine.training import peak_memory_bytes as p; a = p(); b = bytearray(300 << 20); '
            'print(a, p())')
    small, large = map(int, subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                                           cwd=ROOT).stdout.split()[-2:])
    assert peak_memory_bytes() > len(ballast)
    assert large - small > 250 << 20
    assert small < peak_memory_bytes() - (300 << 20)


def test_averaged_weights_are_those_that_are_tested_and_written(task_of, tmp_path):
    """Where a config keeps an average (EMAHook), the detector at the end is the average and not the last step's."""
    tasks = {}
    for name, hooks in (('last', []), ('average', [dict(type='EMAHook', momentum=0.5), dict(type='KeepAverageHook')])):
        task = task_of(tmp_path / name)
        task.cfg.custom_hooks = hooks
        tasks[name] = train_and_test(task), read_weights(task.folder / 'weights.pth')
    name = 'bbox_head.retina_cls.weight'
    last, average = (weights[name] for _, weights in tasks.values())
    assert not last.equal(average)
    cfg = task_of(tmp_path / 'again').cfg
    assert evaluate(cfg, tmp_path / 'average' / 'weights.pth') == tasks['average'][0]['numbers']
