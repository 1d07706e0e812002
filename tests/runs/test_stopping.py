"""stopping.py: a run that is asked to stop leaves a whole checkpoint, wherever it is, and goes on to the same bits."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from amdlib.datasets import ShapesSpec, prepare
from amdlib.engine.runner import ProgressHook
from amdlib.errors import RunError, Stopped
from amdlib.files import ROOT, read_json, write_json
from amdlib.runs import jobs, stopping
from amdlib.runs.progress import read_progress
from amdlib.runs.run import Run
from amdlib.runs.signals import ASKED, is_heard, listening
from amdlib.runs.store import read_scalars
from amdlib.runs.train import train

from .conftest import equal, state_dict

AN_EPOCH = 4    # steps


@pytest.fixture
def profile(tiny):
    return replace(tiny, epochs={'student': 3}, log_every=1)


@pytest.fixture
def ask_at(monkeypatch):
    """Step -> this process gets a SIGTERM there; of the test by a number below 0."""
    plain = {name: getattr(ProgressHook, name) for name in ('after_train_iter', 'after_test_iter')}

    def set_to(step):
        def after_train_iter(self, of, *words, **more):
            plain['after_train_iter'](self, of, *words, **more)
            if of.iter + 1 == step:
                os.kill(os.getpid(), signal.SIGTERM)

        def after_test_iter(self, of, batch_idx, *words, **more):
            plain['after_test_iter'](self, of, batch_idx, *words, **more)
            if step == -1 - batch_idx:
                os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(ProgressHook, 'after_train_iter', after_train_iter)
        monkeypatch.setattr(ProgressHook, 'after_test_iter', after_test_iter)
    return set_to


def whole(store, run, folder):
    """The same run without a stop: record, weights, what was logged but times."""
    record = train(run, store, work_dir=folder)
    return record, state_dict(folder), logged(folder)


def logged(folder):
    return read_scalars(folder).drop(columns=['time', 'data_time', 'memory'], errors='ignore')


@pytest.mark.parametrize(('row', 'settings', 'workers', 'stops'), [
    # random masks; in the midst of an epoch, in the test
    pytest.param('retinanet-mgd', {}, 0, [7, -1], marks=pytest.mark.slow),
    pytest.param('retinanet-mgd', {'accumulate': 3}, 2, [1, 2, 8], marks=pytest.mark.slurm),
    pytest.param('faster_rcnn-amd', {}, 2, [6], marks=pytest.mark.slurm)])
def test_a_stopped_run_goes_on_bit_for_bit(store, profile, ask_at, said, tmp_path, row, settings, workers, stops):
    run = Run.of(row, replace(profile, workers=workers), 0, settings)
    train(run.teacher(), store)
    expected, weights, lines = whole(store, run, tmp_path / 'whole')
    folder = store.run_folder(run)
    for step in stops:
        ask_at(step)
        with listening(folder), pytest.raises(Stopped, match='s0: stopped after step .* of 12; started again'):
            train(run, store)
        at = step if step > 0 else 12
        assert (read_progress(folder)['phase'], read_progress(folder)['step']) == ('stopped', at)
        assert str(store.state(run)) == f'failed (stopped after step {at} of 12)'
        in_the_midst = (folder / 'mmengine' / 'stopped' / f'epoch_{at // AN_EPOCH}.pth').is_file()
        assert in_the_midst == (at % AN_EPOCH != 0)
        assert len(list((folder / 'mmengine' / 'stopped').glob('*.pth'))) <= 1
        assert not (folder / ASKED).exists()
    ask_at(0)
    record = train(run, store, resume=True)
    assert record['resumed_from'] == [step if step > 0 else 12 for step in stops]
    assert equal(state_dict(folder), weights)
    assert logged(folder).equals(lines)
    for field in ('numbers', 'steps', 'settings_hash', 'config', 'detections_sha256'):
        assert record[field] == expected[field]
    assert not (folder / 'mmengine' / 'stopped').exists()


def test_the_later_checkpoint_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping.checkpoints, '_is_whole', lambda path: path.read_text() != 'half')
    (tmp_path / 'stopped').mkdir()

    def made(*names):
        for name in names:
            (tmp_path / name).write_text('')
        return stopping.newest(tmp_path)
    assert made() is None
    assert made('stopped/epoch_0.pth') == tmp_path / 'stopped' / 'epoch_0.pth'
    assert made('epoch_9.pth') == tmp_path / 'epoch_9.pth'
    assert made('stopped/epoch_10.pth') == tmp_path / 'stopped' / 'epoch_10.pth'
    assert made('epoch_10.pth') == tmp_path / 'stopped' / 'epoch_10.pth'     # in the midst of the eleventh
    (tmp_path / 'stopped' / 'epoch_10.pth').write_text('half')
    assert stopping.newest(tmp_path) == tmp_path / 'epoch_10.pth'


def test_what_an_earlier_life_was_asked_is_over(tmp_path):
    (tmp_path / 'mmengine' / 'stopped').mkdir(parents=True)
    write_json(tmp_path / 'mmengine' / 'stopped' / 'stopped.json', {'step': 3, 'steps': 9})
    (tmp_path / ASKED).touch()
    assert stopping.told(tmp_path / 'mmengine') == {'step': 3, 'steps': 9}
    stopping.begin(tmp_path)
    assert stopping.told(tmp_path / 'mmengine') is None
    assert not (tmp_path / ASKED).exists()
    with listening(tmp_path) as came:
        os.kill(os.getpid(), signal.SIGUSR1)
        stopping.begin(tmp_path)            # asked while it was loading
        assert (tmp_path / ASKED).exists()
        assert is_heard(tmp_path / ASKED)
        assert came == [signal.SIGUSR1]
    assert not is_heard(tmp_path / ASKED)
    assert not (tmp_path / ASKED).exists()


@pytest.mark.parametrize('content', [b'', b'[]', b'{}', b'{"step": "x", "steps": 9}', b'\xff'])
def test_damaged_words_on_where_it_stopped_are_none(tmp_path, content):
    (tmp_path / 'stopped').mkdir()
    (tmp_path / 'stopped' / 'stopped.json').write_bytes(content)
    assert stopping.told(tmp_path) is None


def test_a_failure_is_none_although_an_earlier_life_was_stopped(store, profile, monkeypatch):
    run = Run.of('retinanet-baseline', profile)
    folder = store.run_folder(run)
    (folder / 'mmengine' / 'stopped').mkdir(parents=True)
    write_json(folder / 'mmengine' / 'stopped' / 'stopped.json', {'step': 3, 'steps': 9})

    def fail(*words):
        raise RunError('no')
    monkeypatch.setattr(Run, 'find_files', fail)
    with pytest.raises(RunError, match='^no$'):
        train(run, store)
    assert read_progress(folder)['phase'] == 'failed'


@pytest.mark.slurm
@pytest.mark.parametrize('tell', [lambda process: process.send_signal(signal.SIGUSR1),      # as before a time limit
                                  lambda process: os.killpg(process.pid, signal.SIGTERM)],  # as Slurm preempts
                         ids=['the first', 'all'])
def test_several_processes_stop_together_and_go_on_bit_for_bit(store, profile, tmp_path, monkeypatch, tell):
    """Whether the first process is told alone or torchrun and all others too; gloo on the CPU."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    data = prepare('shapes', cache=tmp_path / 'data', shapes=ShapesSpec(train_images=80, test_images=4, val_images=3))
    store = replace(store, dataset=data)    # 20 steps an epoch
    run = Run.of('retinanet-baseline', replace(profile, epochs={'student': 2}), 0, {'gpus': 2})
    expected = train(run, store, work_dir=tmp_path / 'whole')
    command = jobs.write(jobs.of_run(run, store.with_means(device='cpu'), False), store.run_folder(run))
    folder = store.run_folder(run)
    process = subprocess.Popen([*command, '--queued'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
                               start_new_session=True)
    while process.poll() is None and read_progress(folder).get('phase') != 'train':
        time.sleep(0.02)
    while process.poll() is None and read_progress(folder)['step'] < AN_EPOCH:
        time.sleep(0.02)
    tell(process)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == os.EX_TEMPFAIL, said
    at = read_progress(folder)
    assert (at['phase'], at['steps']) == ('stopped', 40)
    assert at['step'] % 20      # in the midst of an epoch
    record = train(run, store, resume=True)
    assert record['resumed_from'] == [at['step']]
    assert equal(state_dict(folder), state_dict(tmp_path / 'whole'))
    assert record['numbers'] == expected['numbers']


@pytest.mark.slow
def test_a_job_that_is_asked_ends_with_its_own_status(store, profile):
    run = Run.of('retinanet-baseline', replace(profile, epochs={'student': 200}))
    command = jobs.write(jobs.of_run(run, store.with_means(device='cpu'), False), store.run_folder(run))
    process = subprocess.Popen([*command, '--queued'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    while process.poll() is None and read_progress(store.run_folder(run)).get('phase') != 'train':
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == os.EX_TEMPFAIL, said
    assert said.splitlines()[-1].startswith(f'error: {run.id}: stopped after step ')
    assert 'Traceback' not in said
    assert read_json(store.run_folder(run) / 'progress.json')['phase'] == 'stopped'
    assert sys.executable in command
