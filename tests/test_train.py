"""train.py: one run from start to record; what a record promises; stale, forced, failed, resumed and seeded runs."""
import gzip
import json
import sys
import threading

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from amdlib import data, results, train, weights
from amdlib.experiments import Run, shorter
from amdlib.train import ProgressReport, TrainingError, describe, minutes, run_row

slow = pytest.mark.slow
PROMISED = {'id', 'row', 'group', 'profile', 'seed', 'settings', 'settings_hash', 'config', 'files', 'code_fingerprint',
            'code', 'data', 'teacher', 'numbers', 'weights_sha256', 'steps', 'train_s', 'wall_s', 'device', 'threads',
            'peak_memory_bytes', 'peak_gpu_memory_bytes', 'operators', 'versions', 'host'}


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


# ---- failed and resumed -----------------------------------------------------------------------------------------

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


@slow
def test_resume_goes_on_after_the_last_whole_epoch(dataset, tiny, tmp_path, monkeypatch):
    run = Run.of('retinanet-baseline', tiny, 0, {'epochs': 2})
    folder = results.run_folder(run, dataset, tmp_path)

    def interrupt(self, runner):
        if runner.epoch == 1:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(train.ProgressHook, 'before_train_epoch', interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_row(run, dataset, tmp_path, say=lambda *_: None)
    assert results.state(run, dataset, tmp_path).name == 'failed'
    assert [path.name for path in folder.glob('mmengine/*.pth')] == ['epoch_1.pth']

    trained_steps, original = [], train.ProgressHook.after_train_iter

    def count(self, runner, *words, **more):
        trained_steps.append(runner.iter + 1)
        original(self, runner, *words, **more)
    monkeypatch.setattr(train.ProgressHook, 'after_train_iter', count)
    record = run_row(run, dataset, tmp_path, resume=True, say=lambda *_: None)
    assert trained_steps == [5, 6, 7, 8] and record['steps'] == 8
    assert results.state(run, dataset, tmp_path).name == 'done'
    assert not (folder / 'error.txt').exists() and not list(folder.glob('mmengine/*.pth'))


# ---- refusals ---------------------------------------------------------------------------------------------------

def test_cfg_options_need_a_work_dir(dataset, tiny, tmp_path):
    with pytest.raises(TrainingError, match='--work-dir'):
        run_row(Run.of('retinanet-baseline', tiny), dataset, tmp_path, cfg_options={'train_cfg.max_epochs': 1})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('row', ['retinanet-teacher', 'retinanet-amd'])
def test_the_papers_teacher_is_not_trained_but_asked_for(dataset, tmp_path, row):
    with pytest.raises(TrainingError, match='retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth') as told:
        run_row(Run.of(row, 'paper'), dataset, tmp_path)
    assert 'teacher_checkpoint' in str(told.value)
    assert not list(tmp_path.rglob('record.json'))


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
