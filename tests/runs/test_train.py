"""train.py: one run from start to record; what a record promises; done, stale, forced, failed and interrupted runs."""
import dataclasses
import errno
import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from filelock import FileLock
from mmdet.registry import MODELS
from mmengine.config import Config

from amdlib import methods
from amdlib.engine import runner, training
from amdlib.errors import RunError, WeightsError
from amdlib.evaluation import METRICS, coco_numbers
from amdlib.files import ROOT, read_json, sha256, write_json
from amdlib.paper import pairs
from amdlib.paper.pairs import GROUPS
from amdlib.paper.profiles import PROFILES
from amdlib.paper.rows import ROWS
from amdlib.runs import fingerprints, teacher_check
from amdlib.runs import train as train_module
from amdlib.runs.config import config, settings_hash
from amdlib.runs.progress import FILE as PROGRESS
from amdlib.runs.progress import ProgressReport, read_progress
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.runs.train import train
from amdlib.weights import published
from amdlib.weights.published import Sources
from amdlib.weights.reading import read_weights
from amdlib.weights.writing import write_weights

from .conftest import MINE, equal, state_dict

slow = pytest.mark.slow
STEPS_AN_EPOCH = 4   # 8 images, two a step
PROMISED = {'format', 'id', 'row', 'group', 'label', 'profile', 'seed', 'settings', 'settings_hash', 'settings_key',
            'config', 'files', 'file_names', 'method_file', 'code_fingerprint', 'code', 'data', 'teacher', 'numbers',
            'weights_sha256', 'steps', 'resumed_from', 'train_s', 'wall_s', 'began', 'device', 'threads', 'workers',
            'gpus', 'peak_memory_bytes', 'peak_gpu_memory_bytes', 'operators', 'versions', 'host', 'machine',
            'teacher_check', 'lr_given', 'lr_used', 'student_sha256', 'arm', 'reference_rms', 'bed',
            'detections_sha256', 'numbers_digest', 'driver'}


@pytest.fixture(scope='module')
def kept(tiny, dataset, tmp_path_factory):
    """A store whose runs are trained once for this module."""
    return Store(tiny, dataset, tmp_path_factory.mktemp('kept') / 'results')


@pytest.fixture(scope='module')
def trained(tiny, kept):
    """Row id -> (Run, record, folder), its teacher with it."""
    def get(row):
        run = Run.of(row, tiny)
        return run, train(run, kept), kept.run_folder(run)
    return get


def stamp(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in ('record.json', 'weights.pth', 'detections.json.gz')}


def _train_until(step, run, store, **how):
    """Kill this process, as `kill -9` does, after so many steps; 0: once it has trained, before its record."""
    original = runner.ProgressHook.after_train_iter

    def kill(self, of, *words, **more):
        original(self, of, *words, **more)
        if of.iter + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
    runner.ProgressHook.after_train_iter = kill
    if not step:
        train_module.evidence.of = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    train(run, store, **how)


def _killed(*words, **how):
    """`_train_until` in a process of its own."""
    process = multiprocessing.get_context('fork').Process(target=_train_until, args=words, kwargs=how)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


# ---- one run, end to end ----------------------------------------------------------------------------------------

@slow
@pytest.mark.parametrize('row', ['retinanet-baseline', 'retinanet-amd'])
def test_a_run_leaves_a_record_with_every_promised_field(trained, kept, row):
    run, record, folder = trained(row)
    assert read_json(folder / 'record.json') == record
    assert set(record) == PROMISED
    assert (record['id'], record['profile'], record['seed'], record['settings']) == (f'{row}-s0', 'mini', 0, {})
    assert list(record['numbers']) == list(METRICS)
    assert record['data']['fingerprint'] == kept.dataset.fingerprint
    assert record['steps'] == STEPS_AN_EPOCH
    assert 0 < record['train_s'] < record['wall_s']
    assert record['device'] == ('CPU' if not torch.cuda.is_available() else torch.cuda.get_device_name())
    assert torch.__version__.startswith(record['versions']['torch'])
    assert {'python', 'numpy', *fingerprints.DECIDING} <= set(record['versions'])
    assert set(record['code']) == {'commit', 'clean'}
    assert record['method_file'] is record['teacher_check'] is None
    assert record['settings_key'] == fingerprints.settings_key(run, kept.dataset)
    assert record['weights_sha256'] == sha256(folder / 'weights.pth')
    assert kept.state(run).name == 'done'
    assert read_progress(folder)['phase'] == 'done'
    assert sorted(path.name for path in folder.iterdir()) == [
        '.hashes.json', '.lock', 'detections.json.gz', 'mmengine', 'progress.json', 'record.json', 'scalars.jsonl',
        'weights.pth']
    assert not list(folder.glob('mmengine/**/*.pth'))      # optimizer state goes when a run is done


def paths_of_this_machine(record, *folders):
    """Whatever in a record reads like an absolute path or names one of these folders."""
    found = []

    def look(value):
        if isinstance(value, dict):
            for key, item in value.items():
                look(key)
                look(item)
        elif isinstance(value, list):
            for item in value:
                look(item)
        elif isinstance(value, str) and (re.match(r'/|~/|file:', value) or any(str(one) in value for one in folders)):
            found.append(value)
    look(record)
    return found


@slow
@pytest.mark.parametrize('row', ['retinanet-teacher', 'retinanet-amd'])
def test_a_records_config_reads_back_and_names_no_folder_of_this_machine(trained, kept, row):
    _, record, _ = trained(row)
    cfg = Config(record['config'])
    assert cfg.randomness.seed == 0
    assert settings_hash(cfg) == record['settings_hash']
    assert cfg.train_dataloader.dataset.ann_file == 'train.json'
    assert paths_of_this_machine(record, ROOT, Path.home(), kept.results, kept.dataset.train_ann.parent) == []


@slow
def test_a_distillation_record_names_its_teacher(trained):
    _, teacher, folder = trained('retinanet-teacher')
    assert teacher['teacher'] is trained('retinanet-baseline')[1]['teacher'] is None
    assert trained('retinanet-amd')[1]['teacher'] == {'id': 'retinanet-teacher-s0',
                                                      'weights_sha256': sha256(folder / 'weights.pth')}


@slow
def test_weights_are_the_plain_student_and_tell_whose_they_are(trained, kept):
    run, record, folder = trained('retinanet-amd')
    held = torch.load(folder / 'weights.pth', weights_only=True)
    # no commit: the same training at another one gives the same file, which students of the teacher go by
    assert held['meta'] == {'run': run.id, 'profile': 'mini', 'classes': list(kept.dataset.classes),
                            'numbers': record['numbers']}
    detector = MODELS.build(Config(record['config']).model.student)
    assert type(detector).__name__ == 'RetinaNet'
    detector.load_state_dict(held['state_dict'], strict=True)


@slow
def test_numbers_follow_from_the_stored_detections(store, tiny, tmp_path):
    """Threshold 0, so that a hardly trained detector finds something; also what --cfg-options does."""
    record = train(Run.of('retinanet-baseline', tiny), store, work_dir=tmp_path / 'own',
                   cfg_options={'model.test_cfg.score_thr': 0.0})
    found = read_json(tmp_path / 'own' / 'detections.json.gz')
    assert len(found) > 50
    assert coco_numbers(store.dataset.test_ann, found) == record['numbers']
    assert record['config']['model']['test_cfg']['score_thr'] == 0
    assert 'settings_key' not in record     # it is no run of the table of rows
    assert not store.folder.exists()


@slow
def test_several_processes_train_one_run_and_tell_of_it(store, tiny, monkeypatch, capfd):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    run = Run.of('retinanet-baseline', tiny, 0, {'gpus': 2, 'batch_size': 1})
    record = train(run, store)
    assert (record['gpus'], record['steps'], record['settings']) == (2, 4, {'batch_size': 1, 'gpus': 2})
    told = capfd.readouterr().out       # of the first process, by its own log
    assert f'{run.id} train 4/4' in told
    assert f'{run.id}: lr 0.003 for 2 images a step (1 x 2 GPUs)' in told
    assert set(record) == PROMISED
    assert store.state(run).name == 'done'


# ---- a loss of one's own ----------------------------------------------------------------------------------------

@slow
def test_a_loss_from_outside_is_trained_and_recorded_without_its_folder(kept, tiny, trained, mine):
    _, _, of_amd = trained('retinanet-amd')
    run, file = Run.of(f'retinanet-{mine}', tiny, 0, {'power': 1}), Path(mine.rpartition(':')[0])
    record = train(run, kept)
    assert (record['id'], record['row'], record['label']) == (run.id, 'retinanet-own.Mine', 'Mine')
    assert record['method_file'] == {'name': 'own.py', 'sha256': sha256(file)}
    assert record['config']['model']['method'] == 'own.py:Mine'
    assert paths_of_this_machine(record, ROOT, Path.home(), file.parent, kept.results) == []
    assert {'loss_mine_fpn_0', 'loss_mine_fpn_4'} <= set(kept.scalars(run))
    assert not equal(state_dict(kept.run_folder(run)), state_dict(of_amd))
    amd = Run.of('retinanet-amd', tiny)
    assert [kept.state(one).name for one in (run, amd)] == ['done', 'done']
    file.write_text(MINE.replace('.abs()', '.abs().add(1)'))
    assert [str(kept.state(one)) for one in (run, amd, run.teacher())] == [
        'stale (made with other code)', 'done', 'done']
    file.write_text(MINE)
    assert kept.state(run).name == 'done'


@pytest.mark.parametrize(('old', 'new', 'told'), [
    ('student_channels, teacher_channels, weight', 'channels, weight', 'expected __init__'),
    ("WEIGHT_EXPONENTS = {'weight': (1, 1)}", 'WEIGHT_EXPONENTS = {}', 'has no WEIGHT_EXPONENTS')])
def test_a_loss_that_is_none_is_told_before_a_teacher_trains(mine, old, new, told):
    file = Path(mine.rpartition(':')[0])
    file.write_text(MINE.replace(old, new))
    with pytest.raises(ValueError, match=told):
        Run.of(f'retinanet-{mine}', 'mini')


# ---- done, forced, stale ----------------------------------------------------------------------------------------

@slow
def test_a_done_run_is_not_trained_again_until_forced(trained, kept, said):
    run, record, folder = trained('retinanet-baseline')
    before = stamp(folder)
    (told,) = said(train, run, kept)
    assert told == f'{run.id}: done already, {record["numbers"]["mAP"]:.1f} mAP (FORCE=1 or --force trains it again)'
    assert stamp(folder) == before
    again = train(run, kept, force=True)
    after = stamp(folder)
    assert all(after[name] > before[name] for name in before)
    assert again['numbers'] == record['numbers']
    assert again['began'] >= record['began']


@slow
def test_other_versions_are_told_of_what_is_done(trained, kept, said, monkeypatch):
    run, record, _ = trained('retinanet-baseline')
    monkeypatch.setattr(fingerprints, 'versions', lambda: {**record['versions'], 'torch': '99'})
    (told,) = said(train, run, kept)
    assert f'mAP; made with torch {record["versions"]["torch"]}, now 99 (FORCE=1' in told


@slow
def test_one_teacher_serves_two_students(trained):
    folder = trained('retinanet-teacher')[2]
    before = stamp(folder)
    amd, mgd = trained('retinanet-amd')[1], trained('retinanet-mgd')[1]
    assert stamp(folder) == before
    assert amd['teacher'] == mgd['teacher']
    assert amd['weights_sha256'] != mgd['weights_sha256']


@slow
def test_a_stale_run_says_so_and_is_trained_again(store, tiny, said):
    run = Run.of('retinanet-baseline', tiny)
    old = train(run, store)
    other = Run.of('retinanet-baseline', dataclasses.replace(tiny, lr=1e-4))
    told = said(train, other, store)
    assert f'{run.id}: its record is stale (made with other settings); training it again' in told
    new = store.record(other)
    assert new['settings_hash'] != old['settings_hash']
    assert new['weights_sha256'] != old['weights_sha256']
    assert (store.state(other).name, store.state(run).name) == ('done', 'stale')


@slow
def test_the_seed_decides_everything(trained, kept, tiny, tmp_path):
    _, record, folder = trained('retinanet-amd')
    same = train(Run.of('retinanet-amd', tiny), kept, work_dir=tmp_path / 'same')
    train(Run.of('retinanet-amd', tiny, seed=1), kept, work_dir=tmp_path / 'other')
    first = state_dict(folder)
    assert equal(first, state_dict(tmp_path / 'same'))
    assert same['numbers'] == record['numbers']
    assert gzip.decompress((tmp_path / 'same' / 'detections.json.gz').read_bytes()) == gzip.decompress(
        (folder / 'detections.json.gz').read_bytes())
    assert not torch.equal(state_dict(tmp_path / 'other')['backbone.conv1.weight'], first['backbone.conv1.weight'])


@slow
def test_a_checkpoint_is_evaluated_and_not_trained(trained, store, tiny):
    _, teacher, folder = trained('retinanet-teacher')
    run = Run.of('retinanet-teacher', tiny, 0, {'checkpoint': str(folder / 'weights.pth')})
    record = train(run, store)
    assert run.id == 'retinanet-teacher+checkpoint=weights-s0'
    assert (record['steps'], record['numbers']) == (0, teacher['numbers'])
    assert record['files'] == {'checkpoint': sha256(folder / 'weights.pth')}
    assert record['settings'] == {'checkpoint': 'weights.pth'}
    assert paths_of_this_machine(record, folder) == []
    assert equal(state_dict(store.run_folder(run)), state_dict(folder))


# ---- logs for others --------------------------------------------------------------------------------------------

@slow
def test_tensorboard_changes_no_number_and_no_hash(trained, store):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run, record, folder = trained('retinanet-baseline')
    store = store.with_means(tensorboard=True)
    again = train(run, store)
    for field in ('settings_hash', 'settings_key', 'numbers', 'config'):
        assert again[field] == record[field]
    assert store.state(run).name == 'done'
    other = store.run_folder(run)
    assert equal(state_dict(folder), state_dict(other))
    events = EventAccumulator(str(other / 'tensorboard'))
    events.Reload()
    assert [one.value for one in events.Scalars('loss')] == pytest.approx(store.scalars(run).loss.tolist())
    assert not (folder / 'tensorboard').exists()


def test_tensorboard_that_is_not_installed_is_told_before_training(store, tiny, monkeypatch):
    monkeypatch.setattr(train_module.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(RunError, match='--tensorboard needs the package tensorboard: make setup, or pip install'):
        train(Run.of('retinanet-baseline', tiny), store.with_means(tensorboard=True))
    assert not store.results.exists()


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
def test_wandb_by_mmengines_config(trained, store, tmp_path, monkeypatch):
    """What README's --cfg-options give. Its files stay, those of a run without network are all that there is."""
    run, record, _ = trained('retinanet-baseline')
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    again = train(run, store, work_dir=tmp_path / 'run', cfg_options={
        'visualizer.vis_backends': [{'type': 'LocalVisBackend'},
                                    {'type': 'WandbVisBackend', 'init_kwargs': {'project': 'amd'}}]})
    assert (again['settings_hash'], again['numbers']) == (record['settings_hash'], record['numbers'])
    assert wandb.project == 'amd'
    assert wandb.kept.is_file()
    assert (tmp_path / 'run') in wandb.kept.parents
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'scalars.jsonl').read_text().splitlines()]
    assert [values['loss'] for values in wandb.logged if 'loss' in values] == [line['loss'] for line in lines]


@slow
def test_the_learning_rate_that_is_used_is_told(store, tiny, said, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(runner.ProgressHook, 'before_train_epoch', stop)
    run = Run.of('retinanet-baseline', tiny, 0, {'accumulate': 3})

    def begin():
        with pytest.raises(KeyboardInterrupt):
            train(run, store)
    assert f'{run.id}: lr 0.003 for 2 images a step -> 0.009 for 6 (2 x 3 steps)' in said(begin)


# ---- failed -----------------------------------------------------------------------------------------------------

@slow
@pytest.mark.parametrize('where', ['checkpoint', 'weights'])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(store, tiny, said, monkeypatch, where):
    def no_room():
        return OSError(errno.ENOSPC, 'No space left on device')

    def full(*words, original, name):
        if where == name:
            try:
                raise no_room()
            except OSError:     # what torch makes of it
                raise RuntimeError('[enforce fail at inline_container.cc:672] unexpected pos 704')  # noqa: B904
        return original(*words)

    def no_error_text(path, text, original=Path.write_text):
        if path.name == 'error.txt':
            raise no_room()
        return original(path, text)

    def no_failed(report, phase, *words, original=ProgressReport.__call__, **more):
        if phase == 'failed':
            raise no_room()
        original(report, phase, *words, **more)
    run = Run.of('retinanet-baseline', dataclasses.replace(tiny, epochs={'student': 2}))
    with monkeypatch.context() as patch:
        for name, owner, function in (('checkpoint', runner, 'whole'), ('weights', training, 'write_weights')):
            patch.setattr(owner, function, partial(full, original=getattr(owner, function), name=name))
        patch.setattr(train_module.Path, 'write_text', no_error_text)
        patch.setattr(ProgressReport, '__call__', no_failed)
        with pytest.raises(RunError, match=r'the disk is full: \d+ MB are free at .*last whole checkpoint'):
            train(run, store)
    told = said(train, run, store)
    assert store.record(run)['steps'] == 2 * STEPS_AN_EPOCH
    assert any('goes on after epoch 2' in line for line in told) == (where == 'weights')


@slow
def test_a_failing_run_says_failed_and_leaves_no_record(store, tiny, monkeypatch):
    run = Run.of('retinanet-baseline', tiny)
    folder = store.run_folder(run)

    def explode(*_, **__):
        raise RuntimeError('the loss is not finite\nsecond line')
    with monkeypatch.context() as patch:
        patch.setattr(runner.ProgressHook, 'after_train_iter', explode)
        with pytest.raises(RuntimeError, match='not finite'):
            train(run, store)
    progress = read_progress(folder)
    assert (progress['phase'], progress['error']) == ('failed', 'RuntimeError: the loss is not finite')
    assert 'explode' in (folder / 'error.txt').read_text()
    assert not (folder / 'record.json').exists()
    assert store.state(run).name == 'failed'
    train(run, store)
    assert not (folder / 'error.txt').exists()


@slow
def test_a_finished_run_is_there_until_it_has_been_made_again(store, tiny, monkeypatch):
    """What fails or is killed meanwhile costs nothing."""
    run = Run.of('retinanet-baseline', tiny)
    folder, record, seen = store.run_folder(run), train(run, store), []
    before = stamp(folder)

    def fail(*_, **__):
        seen.append(store.state(run).name)
        raise RuntimeError('no')
    with monkeypatch.context() as patch:
        patch.setattr(runner.ProgressHook, 'after_train_iter', fail)
        with pytest.raises(RuntimeError, match='^no$'):
            train(run, store, force=True)
    assert seen == ['running']
    assert (store.state(run).name, store.state(run).note) == ('done', 'made again, which failed (RuntimeError: no)')
    _killed(1, run, store, force=True)
    assert store.state(run).name == 'done'
    assert store.state(run).note.startswith('made again, which failed (killed at step ')
    assert stamp(folder) == before
    assert train(run, store)['began'] == record['began']        # it counts, and what was left is tidied away
    assert store.state(run).note == ''
    _killed(0, run, store, force=True)      # other files are there, and the old record
    assert train(run, store)['weights_sha256'] == record['weights_sha256']
    assert store.state(run).name == 'done'
    assert sorted(path.name for path in (folder / 'mmengine').glob('*.pth')) == []


@slow
def test_a_gpu_out_of_memory_is_told_with_what_to_lower(store, tiny, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nmore')
    monkeypatch.setattr(runner.ProgressHook, 'after_train_iter', full)
    run = Run.of('retinanet-baseline', tiny)
    with pytest.raises(RunError, match=r'the GPU is out of memory at 2 images .*Lower one of .*Tried to allocate 2.00'):
        train(run, store)
    progress = read_progress(store.run_folder(run))
    assert progress['phase'] == 'failed'
    assert 'out of memory' in progress['error']


# ---- refusals ---------------------------------------------------------------------------------------------------

def test_what_does_not_go_together_is_refused_before_anything(store, tiny, tmp_path):
    run = Run.of('retinanet-baseline', tiny)
    with pytest.raises(RunError, match='--work-dir'):
        train(run, store, cfg_options={'train_cfg.max_epochs': 1})
    with pytest.raises(RunError, match='give one of them'):
        train(run, store, resume=True, force=True)
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileExistsError):
        train(Run.of('retinanet-amd', tiny), store, work_dir=tmp_path / 'file')     # and no teacher was trained
    assert not store.results.exists()


@pytest.mark.parametrize(('settings', 'told'), [
    ({'batch_size': 9}, 'a step needs 9 images'), ({'gpus': 2, 'batch_size': 5}, 'a step needs 10 images')])
def test_a_run_that_does_not_fit_is_refused_before_its_teacher_trains(store, tiny, monkeypatch, settings, told):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    with pytest.raises(RunError, match=told):
        train(Run.of('retinanet-amd', tiny, 0, settings), store)
    assert not store.results.exists()


@slow
def test_the_number_of_workers_changes_no_hash_and_is_recorded(store, tiny, tmp_path):
    run = Run.of('retinanet-baseline', tiny)
    records = [train(run, store.with_means(workers=workers), work_dir=tmp_path / str(workers)) for workers in (0, 1)]
    assert [record['workers'] for record in records] == [0, 1]
    for field in ('settings_hash', 'settings_key', 'numbers'):
        assert records[0][field] == records[1][field]


def test_a_run_that_another_process_trains_is_left_alone(store, tiny):
    run, other = Run.of('retinanet-baseline', tiny), os.getppid()
    folder = store.run_folder(run)
    folder.mkdir(parents=True)
    ProgressReport(folder, run.id)('train', 1, 4, 0.1)
    write_json(folder / PROGRESS, {**read_progress(folder), 'pid': other,
                                   'started': psutil.Process(other).create_time()})
    with pytest.raises(RunError, match=f'process {other} is training it'):
        train(run, store)


def test_two_processes_do_not_train_one_run(store, tiny):
    run = Run.of('retinanet-baseline', tiny)
    folder = store.run_folder(run)
    folder.mkdir(parents=True)
    with FileLock(folder / train_module.LOCK), pytest.raises(RunError, match='another process is training it in'):
        train(run, store)
    assert [path.name for path in folder.iterdir()] == [train_module.LOCK]     # nothing of the other one was touched
    assert train(run, store)['steps'] == STEPS_AN_EPOCH


def test_a_student_waits_for_a_teacher_that_another_process_trains(store, tiny, said):
    run = Run.of('retinanet-inherit', tiny)
    teacher = run.teacher()
    elsewhere = dataclasses.replace(store, results=store.results.with_name('elsewhere'))
    train(teacher, elsewhere)
    folder = store.run_folder(teacher)
    folder.mkdir(parents=True)
    held = threading.Event()

    def hold():
        with FileLock(folder / train_module.LOCK):
            held.set()
            time.sleep(0.5)
            shutil.copytree(elsewhere.run_folder(teacher), folder, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns(train_module.LOCK))
    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    told = said(train, run, store)
    other.join()
    assert f'{teacher.id}: waiting for another process, which trains it' in told
    assert store.record(run)['teacher']['weights_sha256'] == elsewhere.record(teacher)['weights_sha256']
    assert not any(line.startswith(f'{teacher.id}: training') for line in told)


# ---- interrupted ------------------------------------------------------------------------------------------------

@slow
def test_what_an_interrupted_run_goes_on_from(store, tiny, said, monkeypatch):
    """In one test, since each part needs a killed run: a damaged file, other code, --force, --resume."""
    run = Run.of('retinanet-baseline', tiny, 0, {'epochs': 3})
    folder = store.run_folder(run)
    with pytest.raises(RunError, match='cannot resume in .*: no interrupted run is there'):
        train(run, store, resume=True)
    _killed(2 * STEPS_AN_EPOCH + 1, run, store)
    assert store.state(run).name == 'failed'
    newest = folder / 'mmengine' / 'epoch_2.pth'
    newest.write_bytes(newest.read_bytes()[:-1000])
    starts, original = [], runner.ProgressHook.before_train

    def stop(self, of):
        original(self, of)
        starts.append(of.iter)
        raise KeyboardInterrupt

    def begin(**how):
        def interrupted():
            with pytest.raises(KeyboardInterrupt):
                train(run, store, **how)
        return said(interrupted), starts[-1]
    monkeypatch.setattr(runner.ProgressHook, 'before_train', stop)
    told, step = begin()
    assert step == STEPS_AN_EPOCH
    assert 'epoch_2.pth is damaged and not used' in '\n'.join(told)
    assert f'{run.id}: goes on after epoch 1 of 3 (--force trains from the beginning)' in told
    assert begin(resume=True)[1] == STEPS_AN_EPOCH       # stopped again before a step was made
    note = (folder / 'unfinished.json').read_bytes()
    for bad in (b'', b'{"a', b'[]', b'\xff'):
        (folder / 'unfinished.json').write_bytes(bad)
        with pytest.raises(RunError, match='unfinished.json cannot be read$'):
            train(run, store, resume=True)
    (folder / 'unfinished.json').write_bytes(note)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, 'code_fingerprint', lambda _: 'f' * 16)
        with pytest.raises(RunError, match='made with other code$'):
            train(run, store, resume=True)
        told, step = begin()
    assert step == 0
    assert f'{run.id}: starts from the beginning: the interrupted run was made with other code' in told
    assert not list(folder.glob('mmengine/*.pth'))    # what belonged to other code is gone
    assert begin()[1] == 0
    told, step = begin()                              # the second time the code is the same again
    assert step == 0
    assert 'left no whole checkpoint' in '\n'.join(told)


@slow
@pytest.mark.parametrize('row', ['retinanet-mgd', 'outside'])
def test_a_killed_run_goes_on_to_the_same_record(store, tiny, mine, tmp_path, row):
    """Bit for bit as the engine's tests have it; here what is recorded, also with a loss from outside."""
    run = Run.of(f'retinanet-{mine}' if row == 'outside' else row, tiny, 0, {'epochs': 3})
    train(run.teacher(), store)
    _killed(2 * STEPS_AN_EPOCH + 2, run, store)
    record = train(run, store, resume=True)
    whole = train(run, store, work_dir=tmp_path / 'whole')
    assert (record['resumed_from'], whole['resumed_from']) == ([2 * STEPS_AN_EPOCH], [])
    assert equal(state_dict(store.run_folder(run)), state_dict(tmp_path / 'whole'))
    for field in ('numbers', 'steps', 'settings_hash', 'config', 'teacher'):
        assert record[field] == whole[field]
    assert not (store.run_folder(run) / 'unfinished.json').exists()


# ---- published weights ------------------------------------------------------------------------------------------

@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No weights on this machine and none to be fetched; the sources, with an empty folder of the user's."""
    folder = tmp_path / 'given'
    folder.mkdir()
    for name, value in (('TORCH_HOME', tmp_path / 'torch'), ('NO_PROXY', '*')):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(pairs, 'MODEL_ZOO', 'http://127.0.0.1:1/')
    return Sources((folder,), cache=tmp_path / 'cache')


@pytest.mark.parametrize('row', ['retinanet-teacher', 'retinanet-amd'])
def test_the_papers_teacher_is_not_trained_but_asked_for(store, nowhere, row):
    store = dataclasses.replace(store, profile=PROFILES['paper']).with_means(sources=nowhere)
    name = published.file_name(GROUPS['retinanet'].teacher_url)
    with pytest.raises(WeightsError, match=f'{name} was not found') as told:
        train(Run.of(row, 'paper'), store)
    for words in (f'begins with {published.digits(name)}', '--weights'):
        assert words in str(told.value)
    assert not list(store.results.rglob('record.json'))
    assert str(store.state(Run.of('retinanet-teacher', 'paper'))).startswith(f'failed (WeightsError: {name}')


@pytest.fixture
def papers(store, tiny, nowhere, monkeypatch):
    """The profile `paper` at the size of `tiny` with its store, published files to it by setting, and a function that
    publishes the teacher's mAP."""
    paper = dataclasses.replace(tiny, name='paper', published=True)

    def save(name, state):
        write_weights(nowhere.folders[0] / 'new', state, {})
        path = nowhere.folders[0] / f'{name}-{sha256(nowhere.folders[0] / "new")[:8]}.pth'
        (nowhere.folders[0] / 'new').rename(path)
        return path
    torch.manual_seed(0)
    teacher, student = (MODELS.build(config(Run.of(f'retinanet-{name}', tiny), store.dataset).model)
                        for name in ('teacher', 'baseline'))
    backbone = {name: torch.full_like(value, 0.5) for name, value in student.backbone.state_dict().items()}
    files = {'checkpoint': save('teacher', teacher.state_dict()), 'backbone': save('r18', backbone)}
    monkeypatch.setattr(published, 'address', lambda _: f'http://127.0.0.1:1/{files["backbone"].name}')
    group = dataclasses.replace(GROUPS['retinanet'], teacher_file=f'a/{files["checkpoint"].name}')
    for name in ('retinanet-teacher', 'retinanet-amd', 'retinanet-baseline'):
        monkeypatch.setitem(ROWS, name, dataclasses.replace(ROWS[name], group=group))
    store = dataclasses.replace(store, profile=paper).with_means(sources=nowhere)
    return store, files, lambda map_pct: monkeypatch.setattr(teacher_check, 'paper_value', lambda *_: map_pct)


@slow
def test_a_student_at_paper_finds_its_teacher_and_backbone_and_records_them(papers, monkeypatch):
    store, files, publish = papers
    publish(2.0)    # an untrained teacher has none, which is within 4 of it
    begun = []
    monkeypatch.setattr(training.QuietRunner, 'train', lambda self: begun.append(
        (self._init_model_weights(), self.model.student.state_dict()['backbone.layer1.0.conv1.weight'].clone())))
    run = Run.of('retinanet-amd', store.profile)
    record = train(run, store)
    assert run.id == 'retinanet-amd-s0'
    assert (begun[0][1] == 0.5).all()       # mmengine has loaded the published backbone
    assert record['files'] == {'backbone': sha256(files['backbone'])}
    assert (record['settings'], record['file_names']) == ({}, {'backbone': files['backbone'].name})
    teacher = train(run.teacher(), store)
    assert (teacher['files'], teacher['steps']) == ({'checkpoint': sha256(files['checkpoint'])}, 0)
    check = {'images': 300, 'map_pct': teacher['numbers']['mAP'], 'published_map_pct': 2.0}
    assert record['teacher_check'] == teacher['teacher_check'] == check
    assert equal(state_dict(store.run_folder(run.teacher())), read_weights(files['checkpoint']))
    assert paths_of_this_machine(record, store.results.parent) == []
    for path in files.values():
        path.unlink()
    assert store.state(run).name == 'done'    # by the digits in the names, without the files
    record['files']['backbone'] = '0' * 64
    write_json(store.run_folder(run) / 'record.json', record)
    assert str(store.state(run)) == 'stale (made with other settings)'


@slow
def test_a_teacher_that_is_not_as_good_as_published_stops_everything(papers, monkeypatch):
    store, _, publish = papers
    publish(41.0)
    run, evaluated = Run.of('retinanet-amd', store.profile), []

    def count(*words, original=train_module.evaluate, **more):
        evaluated.append(1)
        return original(*words, **more)
    monkeypatch.setattr(train_module, 'evaluate', count)
    for _ in range(2):
        with pytest.raises(WeightsError, match=r'has 0\.\d mAP on the first 300 images'):
            train(run, store)
        assert not list(store.results.rglob('record.json'))
        assert len(evaluated) == 1
    record = train(run.teacher(), store.with_means(teacher_check_images=0))
    assert record['teacher_check'] == {'images': 0, 'map_pct': None, 'published_map_pct': 41.0}
    with pytest.raises(WeightsError):    # the teacher's row is done, but its students do not start
        train(run, store)
    assert len(evaluated) == 1
    assert train(Run.of('retinanet-baseline', store.profile), store)['teacher_check'] is None


@pytest.mark.parametrize('row', ['retinanet-baseline', 'retinanet-teacher'])
def test_a_run_that_diverges_has_failed(store, tiny, row):
    run = Run.of(row, tiny, 0, {'lr': 1e6, 'epochs': 4})
    with pytest.raises(RunError, match='the loss is not finite|not finite: |it diverged: its loss went from'):
        train(run, store)
    assert store.state(run).name == 'failed'
    assert not (store.run_folder(run) / 'record.json').exists()


def test_a_teacher_that_finds_nothing_after_a_training_has_failed(store, tiny, monkeypatch):
    monkeypatch.setattr(train_module, 'TRIAL_STEPS', 4)
    run = Run.of('retinanet-teacher', tiny)     # four steps
    with pytest.raises(RunError, match=r'retinanet-teacher-s0: 0\.0 mAP after 4 steps: no student could learn'):
        train(run, store)
    assert store.state(run).name == 'failed'


@pytest.mark.parametrize(('losses', 'told'), [([1, 1, 1, 1, 1, 9.9], ''), ([1] * 5 + [10.1] * 5, 'from 1 to 10.1'),
                                              ([], ''), ([3, 2, 1], '')])
def test_a_loss_far_above_that_of_the_start_is_a_failure(tmp_path, losses, told):
    write_weights(tmp_path / 'weights.pth', {'a': torch.ones(2)}, {})
    (tmp_path / 'scalars.jsonl').write_text(''.join(f'{{"step": {i}, "loss": {x}}}\n' for i, x in enumerate(losses)))
    if not told:
        train_module._check_it_converged(tmp_path)
        return
    with pytest.raises(RunError, match=told):
        train_module._check_it_converged(tmp_path)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize(('row', 'setting'), [('retinanet-baseline', 'backbone'), ('retinanet-teacher', 'checkpoint'),
                                              ('retinanet-amd', 'teacher_checkpoint')])
def test_a_weight_file_with_numbers_that_are_none_is_refused(store, tiny, tmp_path, row, setting, value):
    file = tmp_path / 'w.pth'
    write_weights(file, {'conv1.weight': torch.tensor([1.0, value]), 'bn1.num_batches_tracked': torch.tensor(1)}, {})
    with pytest.raises(WeightsError, match='w.pth: not finite: conv1.weight'):
        train(Run.of(row, tiny, 0, {setting: str(file)}), store)
    assert not list(store.results.rglob('record.json'))


@slow
@pytest.mark.parametrize(('setting', 'spoil', 'told'), [
    ('teacher_checkpoint', lambda state: {**state, 'bbox_head.retina_cls.bias': torch.zeros(720)},
     'another number of classes'),
    ('teacher_checkpoint', lambda state: {f'rpn_head.{name}': value for name, value in state.items()},
     'another architecture'),
    ('backbone', lambda state: state, r'does not fit ResNet.*\n  not in the file')])
def test_a_wrong_file_is_refused_before_anything_is_recorded(store, tiny, papers, tmp_path, setting, spoil, told):
    _, files, _ = papers
    write_weights(tmp_path / 'wrong.pth', spoil(read_weights(files['checkpoint'])), {})
    row = 'retinanet-baseline' if setting == 'backbone' else 'retinanet-amd'
    with pytest.raises(WeightsError, match=told):
        train(Run.of(row, tiny, 0, {setting: str(tmp_path / 'wrong.pth')}), store)
    assert not list(store.results.rglob('record.json'))


def test_every_method_is_trained_by_its_name(store, tiny):
    """What the Distiller is told is what the registry knows, also of a file."""
    for row in ROWS.values():
        if row.name in methods.names():
            assert config(Run.of(row, tiny), store.dataset).model.method == row.name


def test_half_a_line_of_what_was_logged_is_dropped_where_a_run_goes_on(tmp_path):
    file = tmp_path / 'scalars.json'
    file.write_bytes(b'{"step": 1, "loss": 2.0}\n3\n\xff{"step": 2, "lo')
    train_module._drop_halves(file)
    assert file.read_text() == '{"step": 1, "loss": 2.0}\n'
