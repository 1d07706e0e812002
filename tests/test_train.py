"""train.py: one run from start to record; what a record promises; stale, forced, failed, resumed and seeded runs."""
import copy
import dataclasses
import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from amdlib import data, experiments, explore, export, gate, results, train, weights, zoo
from amdlib.experiments import GROUPS, ROWS, Run, config, shorter
from amdlib.train import ProgressReport, TrainingError, describe, minutes, run_row
from amdlib.zoo import ZooError

slow = pytest.mark.slow
PROMISED = {'id', 'row', 'group', 'profile', 'seed', 'settings', 'settings_hash', 'config', 'files', 'file_names',
            'code_fingerprint', 'code', 'data', 'teacher', 'numbers', 'weights_sha256', 'steps', 'train_s', 'wall_s',
            'device', 'threads', 'peak_memory_bytes', 'peak_gpu_memory_bytes', 'operators', 'versions', 'host'}


@pytest.fixture(scope='module')
def results_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('results')


@pytest.fixture(scope='module')
def trained(dataset, tiny, results_dir):
    """Row id -> (Run, record, folder); trained once for this module, teachers with them."""
    said = []

    def get(row):
        run = Run.of(row, tiny)
        record = run_row(run, dataset, results_dir, say=said.append)
        return run, record, results.run_folder(run, dataset, results_dir)
    get.said = said
    return get


def _state_dict(folder):
    return torch.load(folder / 'weights.pth', weights_only=True)['state_dict']


def _stamp(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in ('record.json', 'weights.pth', 'detections.json.gz')}


# ---- one run, end to end ----------------------------------------------------------------------------------------

@slow
@pytest.mark.parametrize('row', ['retinanet-baseline', 'retinanet-amd'])
def test_a_run_leaves_a_record_with_every_promised_field(trained, dataset, tiny, results_dir, row):
    run, record, folder = trained(row)
    assert json.loads((folder / 'record.json').read_text()) == record
    assert PROMISED <= set(record)
    assert (record['id'], record['profile'], record['seed'], record['settings']) == (f'{row}-s0', 'mini', 0, {})
    assert list(record['numbers']) == list(results.METRICS)
    assert all(value is None or isinstance(value, float) and 0 <= value <= 100 for value in record['numbers'].values())
    assert record['data']['fingerprint'] == dataset.fingerprint
    assert record['steps'] == 4   # 8 images, two a step, one epoch
    assert 0 < record['train_s'] < record['wall_s']
    assert 2 ** 27 < record['peak_memory_bytes'] < 2 ** 36
    assert record['device'] == ('CPU' if not torch.cuda.is_available() else torch.cuda.get_device_name())
    assert torch.__version__.startswith(record['versions']['torch'])
    assert {'python', 'torch', 'torchvision', 'mmdet', 'mmengine', 'numpy', 'pycocotools'} <= set(record['versions'])
    assert record['code'] == results.commit() and set(record['code']) == {'commit', 'clean'}
    assert record['weights_sha256'] == weights.sha256(folder / 'weights.pth')
    assert results.state(run, dataset, results_dir).name == 'done'
    progress = results.read_progress(folder)
    assert progress['phase'] == 'done' and not (folder / 'error.txt').exists()
    assert sorted(path.name for path in folder.iterdir()) == [
        'detections.json.gz', 'mmengine', 'progress.json', 'record.json', 'scalars.jsonl', 'weights.pth']
    assert not list(folder.glob('mmengine/**/*.pth'))      # optimizer state goes when a run is done
    assert not list(folder.glob('mmengine/**/vis_data'))   # also of a run that was not the first in its process
    assert list(folder.glob('mmengine/*/*.log'))


@slow
def test_a_records_config_reads_back_to_the_same_settings(trained, dataset):
    run, record, _ = trained('retinanet-amd')
    cfg = Config.fromstring(record['config'], '.py')
    assert cfg.model.type == 'Distiller' and cfg.model.method == 'amd' and cfg.randomness.seed == 0
    assert results.settings_hash(cfg) == record['settings_hash']


@slow
def test_a_distillation_record_names_its_teacher(trained):
    _, teacher, folder = trained('retinanet-teacher')
    assert teacher['teacher'] is None
    assert trained('retinanet-baseline')[1]['teacher'] is None
    assert trained('retinanet-amd')[1]['teacher'] == {'id': 'retinanet-teacher-s0',
                                                      'weights_sha256': weights.sha256(folder / 'weights.pth')}


@slow
def test_weights_are_the_plain_student(trained):
    _, record, folder = trained('retinanet-amd')
    state = _state_dict(folder)
    assert not [name for name in state if name.startswith(('student.', 'teacher.', 'distill')) or 'loss' in name]
    detector = MODELS.build(Config.fromstring(record['config'], '.py').model.student)
    assert type(detector).__name__ == 'RetinaNet'
    detector.load_state_dict(state, strict=True)
    assert sum(value.numel() for value in state.values()) == sum(v.numel() for v in detector.state_dict().values())


@slow
def test_numbers_follow_from_the_stored_detections(dataset, tiny, tmp_path):
    """Threshold 0, so that a hardly trained detector finds something; also what --cfg-options does."""
    record = run_row(Run.of('retinanet-baseline', tiny), dataset, work_dir=tmp_path,
                     cfg_options={'model.test_cfg.score_thr': 0.0}, say=lambda *_: None)
    found = results.read_detections(tmp_path / 'detections.json.gz')
    assert len(found) > 50 and {one['image_id'] for one in found} <= {
        image['id'] for image in data.coco_images(dataset.test_ann)}
    assert results.coco_numbers(dataset.test_ann, found) == record['numbers']
    assert all(value == round(value, 2) for one in found for value in one['bbox'])
    assert Config.fromstring(record['config'], '.py').model.test_cfg.score_thr == 0
    assert not (tmp_path / 'runs').exists()


def test_the_metric_computes_its_numbers_from_the_detections_that_it_writes(dataset, tmp_path):
    """All true boxes but one class, shifted by less than 0.01 px in the last digit: known recall, and files agree."""
    truth = json.loads(dataset.test_ann.read_text())
    ids = [category['id'] for category in truth['categories']]
    metric = train.CocoNumbers(str(dataset.test_ann), str(tmp_path / 'detections.json.gz'))
    metric.dataset_meta = {'classes': dataset.classes}
    left_out = truth['annotations'][0]['category_id']
    for image in truth['images']:
        own = [one for one in truth['annotations'] if one['image_id'] == image['id'] and one['category_id'] != left_out]
        xywh = np.array([one['bbox'] for one in own], float).reshape(-1, 4) + 0.001
        metric.process({}, [{
            'img_id': image['id'], 'ori_shape': (image['height'], image['width']),
            'gt_instances': {}, 'pred_instances': {
                'bboxes': torch.tensor(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])),
                'labels': torch.tensor([ids.index(one['category_id']) for one in own]),
                'scores': torch.linspace(0.9, 0.12345678, len(own))}}])
    numbers = metric.evaluate(len(truth['images']))
    present = {one['category_id'] for one in truth['annotations']}
    assert numbers['coco/mAP'] == pytest.approx(100 * (len(present) - 1) / len(present))
    found = results.read_detections(tmp_path / 'detections.json.gz')
    assert {f'coco/{name}': value for name, value in results.coco_numbers(dataset.test_ann, found).items()} == numbers
    assert sorted(map(tuple, (one['bbox'] for one in found))) == sorted(
        tuple(map(float, one['bbox'])) for one in truth['annotations'] if one['category_id'] != left_out)
    assert all(one['score'] == round(one['score'], 6) for one in found)


# ---- done, forced, stale ----------------------------------------------------------------------------------------

@slow
def test_a_done_run_is_not_trained_again_until_forced(trained, dataset, results_dir):
    run, record, folder = trained('retinanet-baseline')
    before, said = _stamp(folder), []
    assert run_row(run, dataset, results_dir, say=said.append) == record
    assert _stamp(folder) == before and 'done already' in said[0]
    again = run_row(run, dataset, results_dir, force=True, say=lambda *_: None)
    after = _stamp(folder)
    assert all(after[name] > before[name] for name in before)
    assert again['numbers'] == record['numbers'] and again['began'] >= record['began']


@slow
def test_one_teacher_serves_two_students(trained):
    trained('retinanet-teacher')
    folder = trained('retinanet-teacher')[2]
    before = _stamp(folder)
    _, amd, _ = trained('retinanet-amd')
    _, mgd, _ = trained('retinanet-mgd')
    assert _stamp(folder) == before
    assert amd['teacher'] == mgd['teacher'] and amd['weights_sha256'] != mgd['weights_sha256']


@slow
def test_a_stale_run_says_so_and_is_trained_again(dataset, tiny, tmp_path):
    run = Run.of('retinanet-baseline', tiny)
    old = run_row(run, dataset, tmp_path, say=lambda *_: None)
    other = Run.of('retinanet-baseline', shorter(tiny, lr=1e-4))
    said = []
    new = run_row(other, dataset, tmp_path, say=said.append)
    assert any('stale' in line and 'other settings' in line for line in said)
    assert new['settings_hash'] != old['settings_hash'] and new['weights_sha256'] != old['weights_sha256']
    assert results.state(other, dataset, tmp_path).name == 'done'
    assert results.state(run, dataset, tmp_path).name == 'stale'


@slow
def test_the_seed_decides_everything(trained, dataset, tiny, results_dir, tmp_path):
    _, record, folder = trained('retinanet-amd')
    work = {name: tmp_path / name for name in ('same', 'other')}
    quiet = {'say': lambda *_: None}
    same = run_row(Run.of('retinanet-amd', tiny), dataset, results_dir, work_dir=work['same'], **quiet)
    run_row(Run.of('retinanet-amd', tiny, seed=1), dataset, results_dir, work_dir=work['other'], **quiet)
    first = _state_dict(folder)
    assert all(torch.equal(value, first[name]) for name, value in _state_dict(work['same']).items())
    assert same['numbers'] == record['numbers']
    assert gzip.decompress((work['same'] / 'detections.json.gz').read_bytes()) == gzip.decompress(
        (folder / 'detections.json.gz').read_bytes())
    different = _state_dict(work['other'])
    assert not torch.equal(different['backbone.conv1.weight'], first['backbone.conv1.weight'])


@slow
def test_a_checkpoint_is_evaluated_and_not_trained(trained, dataset, tiny, tmp_path):
    _, teacher, folder = trained('retinanet-teacher')
    run = Run.of('retinanet-teacher', tiny, 0, {'checkpoint': str(folder / 'weights.pth')})
    record = run_row(run, dataset, tmp_path, say=lambda *_: None)
    place = tmp_path / 'mini' / 'runs' / 'retinanet-teacher+checkpoint=weights-s0'
    assert record['steps'] == 0 and record['numbers'] == teacher['numbers']
    assert record['files'] == {'checkpoint': weights.sha256(folder / 'weights.pth')}
    assert record['settings'] == {'checkpoint': 'weights.pth'}    # no path of this machine
    assert all(torch.equal(value, _state_dict(folder)[name]) for name, value in _state_dict(place).items())


# ---- logs for others --------------------------------------------------------------------------------------------

@slow
@pytest.mark.parametrize('by', ['argument', 'environment'])
def test_tensorboard_changes_no_number_and_no_hash(trained, dataset, tiny, tmp_path, monkeypatch, by):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run, record, folder = trained('retinanet-baseline')
    if by == 'environment':
        monkeypatch.setenv('AMD_TENSORBOARD', '1')
    again = run_row(run, dataset, tmp_path, tensorboard=by == 'argument', say=lambda *_: None)
    assert again['settings_hash'] == record['settings_hash'] and again['numbers'] == record['numbers']
    assert results.state(run, dataset, tmp_path).name == 'done'
    other = results.run_folder(run, dataset, tmp_path)
    assert all(torch.equal(value, _state_dict(folder)[name]) for name, value in _state_dict(other).items())
    events = EventAccumulator(str(other / 'tensorboard'))
    events.Reload()
    lines = [json.loads(line) for line in (other / 'scalars.jsonl').read_text().splitlines()]
    assert [one.value for one in events.Scalars('loss')] == pytest.approx([line['loss'] for line in lines])
    assert not (folder / 'tensorboard').exists()


def test_tensorboard_that_is_not_installed_is_told_before_training(dataset, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(train.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(TrainingError, match='--tensorboard needs the package tensorboard: make setup, or pip install'):
        run_row(Run.of('retinanet-baseline', tiny), dataset, tmp_path, tensorboard=True)
    assert not list(tmp_path.iterdir())


class Wandb:
    """Stands in for the package wandb: keeps what is logged, and a file in the folder that it is given."""

    def __init__(self):
        self.logged, self.config, self.run = [], SimpleNamespace(update=lambda *_, **__: None), None

    def init(self, project, dir):
        self.project, self.kept = project, Path(dir) / 'wandb' / 'run.wandb'
        self.kept.parent.mkdir()
        self.kept.write_text('kept')
        self.run = SimpleNamespace(log_code=lambda **_: None)

    def log(self, values, commit):
        self.logged.append(values)

    def join(self):
        pass


@slow
def test_wandb_by_mmengines_config(trained, dataset, tiny, tmp_path, monkeypatch):
    """What README's --cfg-options give. Its files stay, those of a run without network are all that there is."""
    run, record, _ = trained('retinanet-baseline')
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    again = run_row(run, dataset, tmp_path, work_dir=tmp_path / 'run', say=lambda *_: None, cfg_options={
        'visualizer.vis_backends': [{'type': 'LocalVisBackend'},
                                    {'type': 'WandbVisBackend', 'init_kwargs': {'project': 'amd'}}]})
    assert again['settings_hash'] == record['settings_hash'] and again['numbers'] == record['numbers']
    assert wandb.project == 'amd' and wandb.kept.is_file() and (tmp_path / 'run') in wandb.kept.parents
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'scalars.jsonl').read_text().splitlines()]
    assert [values['loss'] for values in wandb.logged if 'loss' in values] == [line['loss'] for line in lines]


# ---- failed -----------------------------------------------------------------------------------------

@slow
@pytest.mark.parametrize('where', ['checkpoint', 'weights'])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(dataset, tiny, tmp_path, monkeypatch, where):
    def full(*_, original, name, **__):
        if where == name:
            try:
                raise OSError(errno.ENOSPC, 'No space left on device')
            except OSError:     # what torch makes of it
                raise RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598')
        return original(*_, **__)

    def no_error_text(path, text, original=Path.write_text):
        if path.name == 'error.txt':
            raise OSError(errno.ENOSPC, 'No space left on device')
        return original(path, text)

    def no_failed(report, phase, *words, original=train.ProgressReport.update, **more):
        if phase == 'failed':
            raise OSError(errno.ENOSPC, 'No space left on device')
        original(report, phase, *words, **more)
    run = Run.of('retinanet-baseline', shorter(tiny, epochs={'student': 2}))
    writing = {'checkpoint': (train.checkpoints, 'write_whole'), 'weights': (train.weights, 'write_weights')}
    with monkeypatch.context() as patch:
        for name, (owner, function) in writing.items():
            patch.setattr(owner, function, partial(full, original=getattr(owner, function), name=name))
        patch.setattr(train.Path, 'write_text', no_error_text)
        patch.setattr(train.ProgressReport, 'update', no_failed)
        with pytest.raises(TrainingError, match=r'the disk is full: \d+ MB are free at .*last whole checkpoint'):
            run_row(run, dataset, tmp_path, say=lambda *_: None)
    said = []
    assert run_row(run, dataset, tmp_path, say=said.append)['steps'] == 8
    assert any('goes on after epoch 2' in line for line in said) == (where == 'weights')


@slow
def test_a_failing_run_says_failed_and_leaves_no_record(dataset, tiny, tmp_path, monkeypatch):
    run = Run.of('retinanet-baseline', tiny)
    folder = results.run_folder(run, dataset, tmp_path)
    run_row(run, dataset, tmp_path, say=lambda *_: None)   # an older record must not survive a failed repetition

    def explode(*_, **__):
        raise RuntimeError('the disk is full\nsecond line')
    with monkeypatch.context() as patch:
        patch.setattr(train.ProgressHook, 'after_train_iter', explode)
        with pytest.raises(RuntimeError, match='disk is full'):
            run_row(run, dataset, tmp_path, force=True, say=lambda *_: None)
    progress = results.read_progress(folder)
    assert progress['phase'] == 'failed' and progress['error'] == 'RuntimeError: the disk is full'
    assert 'explode' in (folder / 'error.txt').read_text()
    for name in ('record.json', 'weights.pth', 'detections.json.gz'):
        assert not (folder / name).exists()
    assert results.state(run, dataset, tmp_path).name == 'failed'


# ---- refusals ---------------------------------------------------------------------------------------------------

def test_cfg_options_need_a_work_dir(dataset, tiny, tmp_path):
    with pytest.raises(TrainingError, match='--work-dir'):
        run_row(Run.of('retinanet-baseline', tiny), dataset, tmp_path, cfg_options={'train_cfg.max_epochs': 1})
    assert not list(tmp_path.iterdir())


@slow
def test_a_gpu_out_of_memory_is_told_with_what_to_lower(dataset, tiny, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nmore')
    monkeypatch.setattr(train.ProgressHook, 'after_train_iter', full)
    run = Run.of('retinanet-baseline', tiny)
    with pytest.raises(TrainingError) as told:
        run_row(run, dataset, tmp_path, say=lambda *_: None)
    for word in ('2 images of up to 64x64 px', 'BATCH_SIZE (batch_size=1; ACCUMULATE=2 keeps 2 images an update)',
                 'AMP=bf16', 'image size', 'Tried to allocate 2.00 GiB.'):
        assert word in str(told.value)
    assert 'HALF_TEACHER' not in str(told.value)     # there is no teacher beside it
    progress = results.read_progress(results.run_folder(run, dataset, tmp_path))
    assert progress['phase'] == 'failed' and 'out of memory' in progress['error']


def test_what_to_lower_depends_on_the_run(tiny):
    error = torch.OutOfMemoryError('full')
    one = train.out_of_memory(Run.of('retinanet-amd', tiny, 0, {'batch_size': 1, 'amp': 'bf16'}), error)
    assert 'BATCH_SIZE' not in one and 'AMP=' not in one and 'HALF_TEACHER=bf16' in one and 'image size' in one


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('settings', [{'amp': 'fp16'}, {'half_teacher': 'fp16'}])
def test_float16_needs_a_gpu(dataset, tiny, tmp_path, settings):
    with pytest.raises(TrainingError, match='fp16 needs a GPU; bf16'):
        run_row(Run.of('retinanet-amd', tiny, 0, settings), dataset, tmp_path)


@pytest.mark.parametrize('row', ['retinanet-teacher', 'retinanet-amd'])
def test_the_papers_teacher_is_not_trained_but_asked_for(dataset, tmp_path, nowhere, row):
    with pytest.raises(ZooError, match='retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth was not found') as told:
        run_row(Run.of(row, 'paper'), dataset, tmp_path)
    assert 'begins with 366f5af1' in str(told.value) and 'AMD_WEIGHTS' in str(told.value)
    assert not list(tmp_path.rglob('record.json'))
    found = results.state(Run.of('retinanet-teacher', 'paper'), dataset, tmp_path)
    assert found.name == 'failed' and found.why.startswith('ZooError: retinanet_x101_64x4d_fpn_1x_coco_20200130')


# ---- published weights ------------------------------------------------------------------------------------------

@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No weights on this machine and none to be fetched; gives the folder that AMD_WEIGHTS names."""
    folder = tmp_path / 'given'
    folder.mkdir()
    for name, value in (('AMD_WEIGHTS', folder), ('AMD_CACHE', tmp_path / 'cache'), ('TORCH_HOME', tmp_path / 'torch'),
                        ('NO_PROXY', '*'), ('AMD_MIRRORS', ''), ('AMD_TEACHER_CHECK', '')):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(experiments, 'MODEL_ZOO', 'http://127.0.0.1:1/')
    return folder


@pytest.fixture
def published(dataset, tiny, nowhere, monkeypatch):
    """The profile `paper` at the size of `tiny`, with published files to it: (profile, files by setting, publish)."""
    paper = shorter(tiny, name='paper', published=True)

    def save(name, state):
        weights.write_weights(nowhere / 'new', state, {})
        path = nowhere / f'{name}-{weights.sha256(nowhere / "new")[:8]}.pth'
        (nowhere / 'new').rename(path)
        return path

    def publish(map_pct):
        group = dataclasses.replace(GROUPS['retinanet'], teacher_file=f'a/{files["checkpoint"].name}',
                                    teacher_map_pct=map_pct)
        for name in ('retinanet-teacher', 'retinanet-amd', 'retinanet-baseline'):
            monkeypatch.setitem(ROWS, name, dataclasses.replace(ROWS[name], group=group))
    torch.manual_seed(0)
    teacher, student = (MODELS.build(config(Run.of(f'retinanet-{name}', tiny), dataset).model)
                        for name in ('teacher', 'baseline'))
    backbone = {name: torch.full_like(value, 0.5) for name, value in student.backbone.state_dict().items()}
    files = {'checkpoint': save('teacher', teacher.state_dict()), 'backbone': save('r18', backbone)}
    monkeypatch.setattr(zoo, 'address', lambda _: f'http://127.0.0.1:1/{files["backbone"].name}')
    return paper, files, publish


@slow
def test_a_student_at_paper_finds_its_teacher_and_backbone_and_records_them(dataset, published, tmp_path, monkeypatch):
    paper, files, publish = published
    publish(map_pct=2.0)    # an untrained teacher has none, which is within 4 of it
    begun = []
    monkeypatch.setattr(train.QuietRunner, 'train', lambda self: begun.append(
        (self._init_model_weights(), self.model.student.state_dict()['backbone.layer1.0.conv1.weight'].clone())))
    quiet = {'say': lambda *_: None}
    run = Run.of('retinanet-amd', paper)
    record = run_row(run, dataset, tmp_path, **quiet)
    assert run.id == 'retinanet-amd-s0' and (begun[0][1] == 0.5).all()    # mmengine has loaded the published backbone
    assert record['files'] == {'backbone': weights.sha256(files['backbone'])}
    assert record['settings'] == {} and record['file_names'] == {'backbone': files['backbone'].name}
    teacher = run_row(run.teacher(), dataset, tmp_path, **quiet)
    assert teacher['files'] == {'checkpoint': weights.sha256(files['checkpoint'])} and teacher['steps'] == 0
    check = {'images': 300, 'map_pct': teacher['numbers']['mAP'], 'published_map_pct': 2.0}
    assert record['teacher_check'] == teacher['teacher_check'] == check
    place = results.run_folder(run.teacher(), dataset, tmp_path)
    assert all(torch.equal(value, weights.read_weights(files['checkpoint'])[name])
               for name, value in _state_dict(place).items())
    for path in files.values():
        path.unlink()
    assert results.state(run, dataset, tmp_path).name == 'done'    # by the digits in the names, without the files
    monkeypatch.setitem(experiments.PROFILES, 'paper', paper)
    assert explore.done_runs('paper', dataset, tmp_path) == [run.teacher(), run]
    written = export.export(run.id, 'paper', dataset, tmp_path, **quiet)    # nor are they needed here
    assert weights.sha256(written['weights']).startswith(written['weights'].stem[-8:])
    record['files']['backbone'] = '0' * 64
    results.write_json(results.run_folder(run, dataset, tmp_path) / 'record.json', record)
    assert results.state(run, dataset, tmp_path).name == 'stale'


@slow
def test_a_teacher_that_is_not_as_good_as_published_stops_everything(dataset, published, tmp_path, monkeypatch):
    paper, files, publish = published
    publish(map_pct=41.0)
    run, evaluated = Run.of('retinanet-amd', paper), []

    def count(*words, original=train.evaluate, **more):
        evaluated.append(1)
        return original(*words, **more)
    monkeypatch.setattr(train, 'evaluate', count)
    for _ in range(2):
        with pytest.raises(gate.TeacherError, match=r'has 0\.\d mAP on the first 300 images'):
            run_row(run, dataset, tmp_path, say=lambda *_: None)
        assert not list(tmp_path.rglob('record.json')) and len(evaluated) == 1
    monkeypatch.setenv('AMD_TEACHER_CHECK', '0')
    record = run_row(run.teacher(), dataset, tmp_path, say=lambda *_: None)
    assert record['teacher_check'] == {'images': 0, 'map_pct': None, 'published_map_pct': 41.0}
    monkeypatch.setenv('AMD_TEACHER_CHECK', '')
    with pytest.raises(gate.TeacherError):    # the teacher's row is done, but its students do not start
        run_row(run, dataset, tmp_path, say=lambda *_: None)
    assert len(evaluated) == 1
    assert run_row(Run.of('retinanet-baseline', paper), dataset, tmp_path, say=lambda *_: None)['teacher_check'] is None


@slow
@pytest.mark.parametrize(('spoil', 'told'), [
    (lambda state: {**state, 'bbox_head.retina_cls.bias': torch.zeros(720)}, 'another number of classes'),
    (lambda state: {f'rpn_head.{name}': value for name, value in state.items()}, 'another architecture')])
def test_a_wrong_teacher_is_refused_before_it_is_evaluated(dataset, tiny, published, tmp_path, spoil, told):
    _, files, _ = published
    weights.write_weights(tmp_path / 'wrong.pth', spoil(weights.read_weights(files['checkpoint'])), {})
    run = Run.of('retinanet-amd', tiny, 0, {'teacher_checkpoint': str(tmp_path / 'wrong.pth')})
    with pytest.raises(weights.WeightsError, match=told):
        run_row(run, dataset, tmp_path, say=lambda *_: None)
    assert not list(tmp_path.rglob('record.json'))


@slow
def test_a_backbone_that_does_not_fit_is_refused_before_training(dataset, tiny, published, tmp_path):
    _, files, _ = published
    run = Run.of('retinanet-baseline', tiny, 0, {'backbone': str(files['checkpoint'])})    # a whole detector
    with pytest.raises(weights.WeightsError, match=r'does not fit ResNet.*\n  not in the file'):
        run_row(run, dataset, tmp_path, say=lambda *_: None)


# ---- learning rate and switches for speed -----------------------------------------------------------------------

def _losses(run, dataset, place, results_dir):
    """The loss of every step."""
    run_row(run, dataset, results_dir, work_dir=place, say=lambda *_: None, cfg_options={
        'default_hooks.logger.interval': 1, 'log_processor.window_size': 1})
    logged = [json.loads(line) for line in (place / 'scalars.jsonl').read_text().splitlines()]
    assert [line['step'] for line in logged] == list(range(1, len(logged) + 1))
    return np.array([line['loss'] for line in logged])


@slow
def test_with_every_switch_on_the_losses_stay_within_what_another_seed_shows(dataset, tiny, tmp_path):
    """Over the first 50 steps, as a whole and in every ten of them. 128 px: from maps of 1x1, as P6 is at 64 px,
    torch's bfloat16 convolution on the CPU gives the weights a gradient of uninitialised memory."""
    tiny = shorter(tiny, image_px=(128, 128))
    switches = {'amp': 'bf16', 'half_teacher': 'bf16', 'tf32': True, 'channels_last': True, 'fused': True}
    if shutil.which('g++'):     # else torch.compile cannot be used on the CPU
        switches['compile_teacher'] = True
    checkpoint = tmp_path / 'teacher.pth'    # one teacher for all, untrained
    torch.manual_seed(0)
    teacher = MODELS.build(config(Run.of('retinanet-teacher', tiny), dataset).model)
    teacher.init_weights()
    weights.write_weights(checkpoint, teacher.state_dict(), {})
    settings = {'epochs': 13, 'teacher_checkpoint': str(checkpoint)}
    plain, on, *others = (
        _losses(Run.of('retinanet-amd', tiny, seed, {**settings, **more}), dataset, tmp_path / name, tmp_path)[:50]
        for name, seed, more in (('plain', 0, {}), ('on', 0, switches), ('seed 1', 1, {}), ('seed 2', 2, {})))
    assert len(plain) == len(on) == 50 and not np.array_equal(plain, on)
    spread = np.mean([np.abs(other - plain) for other in others], axis=0)
    found = np.abs(on - plain)
    print('mean difference by ten steps: switches', found.reshape(5, 10).mean(1).round(4), 'another seed',
          spread.reshape(5, 10).mean(1).round(4))
    assert found.mean() < spread.mean()
    assert (found.reshape(5, 10).mean(1) < spread.reshape(5, 10).mean(1)).all()
    assert torch.get_float32_matmul_precision() == 'highest'     # as before the run


@slow
@pytest.mark.parametrize('row', ['reppoints-fgd', 'faster_rcnn-fkd', 'retinanet-mgd'])
def test_every_group_trains_in_channels_last_and_bfloat16(dataset, tiny, train_step, row):
    run = Run.of(row, tiny, 0, {'amp': 'bf16', 'channels_last': True, 'fused': True, 'half_teacher': 'bf16'})
    cfg = config(run, dataset)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    logged = train_step(model.to(memory_format=torch.channels_last), cfg)
    assert all(torch.isfinite(value) for value in logged.values()), logged


@slow
def test_a_compiled_teacher_has_the_same_features(dataset, tiny):
    if not shutil.which('g++'):
        pytest.skip('torch.compile needs a C++ compiler on the CPU')
    cfg, found = config(Run.of('retinanet-amd', tiny), dataset), []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = MODELS.build({**copy.deepcopy(cfg.model), 'compile_teacher': compiled})
        assert not any('_orig_mod' in name for name in model.teacher.state_dict())
        found.append(model._teacher_features(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))))
    for plain, other in zip(*found, strict=True):
        assert torch.allclose(plain, other, rtol=1e-3, atol=1e-4 * plain.abs().max())


@slow
def test_the_learning_rate_that_is_used_is_told(dataset, tiny, tmp_path, monkeypatch):
    used = []

    def stop(self, runner):
        used.append(runner.optim_wrapper.optimizer.param_groups[0]['initial_lr'])
        raise KeyboardInterrupt
    monkeypatch.setattr(train.ProgressHook, 'before_train_epoch', stop)
    for settings, lr, text in (({}, 3e-3, 'lr 0.003 for 2 images a step'),
                               ({'batch_size': 1}, 1.5e-3, 'lr 0.003 for 2 images a step -> 0.0015 for 1'),
                               ({'batch_size': 1, 'lr': 0.1}, 0.1, 'lr 0.1 for 1 images a step, as given: not scaled'),
                               ({'accumulate': 3}, 9e-3,
                                'lr 0.003 for 2 images a step -> 0.009 for 6 (2 x 3 steps)')):
        run, said = Run.of('retinanet-baseline', tiny, 0, settings), []
        with pytest.raises(KeyboardInterrupt):
            run_row(run, dataset, tmp_path, say=said.append)
        assert used[-1] == pytest.approx(lr) and said[-1] == f'{run.id}: {text}'


# ---- progress ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seconds, text', [(0, '0:00'), (5, '0:05'), (9.6, '0:10'), (100, '1:40'), (600, '10:00'),
                                           (3599, '59:59'), (7400, '2:03:20'), (36000, '10:00:00')])
def test_minutes(seconds, text):
    assert minutes(seconds) == text


def test_describe():
    assert describe('retinanet-amd-s0', 'train', 120, 600, 1 / 4.8, 100) == (
        'retinanet-amd-s0 train 120/600, 4.8 steps/s, 1:40 left')
    assert describe('a', 'train', 1, 9, 2.5, 20) == 'a train 1/9, 2.5 s/step, 0:20 left'
    assert describe('a', 'start', 0, 1, None, None) == 'a start 0/1'


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    class Clock:
        now = 1000.0
        monotonic = staticmethod(lambda: Clock.now)
    monkeypatch.setattr(train.time, 'monotonic', Clock.monotonic)
    return Clock


def test_progress_prints_a_line_every_n_seconds_into_a_log(tmp_path, clock, capsys):
    report = ProgressReport(tmp_path, 'a-run', line_every_s=20)
    for step in range(1, 101):   # one second a step
        clock.now += 1
        report.update('train', step, 100, 1.0)
    lines = capsys.readouterr().out.splitlines()
    steps = [line.split()[2].rstrip(',') for line in lines]
    assert steps == ['1/100', '21/100', '41/100', '61/100', '81/100', '100/100']
    assert lines[1] == 'a-run train 21/100, 1.0 s/step, 1:19 left'


def test_progress_rewrites_one_line_on_a_terminal(tmp_path, clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    report = ProgressReport(tmp_path, 'a-run')
    for step in (1, 2, 3):
        clock.now += 1
        report.update('train', step, 3, 0.5)
    out = capsys.readouterr().out
    assert out.count('\r') == 3 and out.count('\n') == 1 and out.endswith('\n')
    assert max(map(len, out.strip().split('\r'))) < 80


def test_progress_json_is_whole_whenever_it_is_read(tmp_path, clock):
    report, broken, seen, stop = ProgressReport(tmp_path, 'a-run'), [], set(), threading.Event()
    clock.now += 2
    report.update('train', 0, 1000, 0.1)

    def read():
        while not stop.is_set():
            try:
                seen.add(json.loads((tmp_path / 'progress.json').read_text())['step'])
            except (OSError, ValueError) as error:
                broken.append(error)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in range(1, 300):
            clock.now += 2
            report.update('train', step, 1000, 0.1, note='x' * 20000)
    finally:
        stop.set()
        reader.join()
    assert not broken and len(seen) > 1
    last = json.loads((tmp_path / 'progress.json').read_text())
    assert (last['phase'], last['step'], last['steps']) == ('train', 299, 1000)
    assert last['left_s'] == pytest.approx(70.1) and last['pid'] and last['host'] and last['updated']
    assert [path.name for path in tmp_path.iterdir()] == ['progress.json']


def test_progress_json_is_not_written_more_than_once_a_second(tmp_path, clock):
    report = ProgressReport(tmp_path, 'a-run')
    report.update('train', 1, 10, 0.1)
    clock.now += 0.5
    report.update('train', 2, 10, 0.1)
    assert results.read_progress(tmp_path)['step'] == 1
    report.update('train', 10, 10, 0.1)   # but the last step is
    assert results.read_progress(tmp_path)['step'] == 10


def test_peak_memory_is_the_process_own():
    """A process started by a large one is not large itself."""
    ballast = bytearray(os.urandom(1 << 20)) * 400
    code = 'from amdlib.train import peak_memory_bytes as p; a = p(); b = bytearray(300 << 20); print(a, p())'
    small, large = map(int, subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                                           cwd=results.ROOT).stdout.split()[-2:])
    assert train.peak_memory_bytes() > len(ballast) and large - small > 250 << 20
    assert small < train.peak_memory_bytes() - (300 << 20)
