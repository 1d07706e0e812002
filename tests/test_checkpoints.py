"""checkpoints.py: a killed run goes on bit for bit; whole files; what is not resumed and why."""
import json
import multiprocessing
import os
import random
import signal
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from amdlib import checkpoints, results, train
from amdlib.checkpoints import SeedPicture, newest_whole, write_whole
from amdlib.experiments import Run, shorter
from amdlib.train import TrainingError, run_row

STEPS_AN_EPOCH = 4   # 8 images, two a step


def _train_until(step, run, dataset, folder):
    """Kill this process, as `kill -9` does, after so many steps."""
    original = train.ProgressHook.after_train_iter

    def kill(self, runner, *words, **more):
        original(self, runner, *words, **more)
        if runner.iter + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
    train.ProgressHook.after_train_iter = kill
    run_row(run, dataset, folder, say=lambda *_: None)


def killed(step, run, dataset, folder):
    """Train in a process that is killed at `step`; the run's folder."""
    process = multiprocessing.get_context('fork').Process(target=_train_until, args=(step, run, dataset, folder))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return results.run_folder(run, dataset, folder)


def content(folder):
    """What must be equal: weights, detections, and the logged losses by step (their times apart)."""
    weights = torch.load(folder / 'weights.pth', weights_only=True)['state_dict']
    logged = [{key: value for key, value in json.loads(line).items() if 'time' not in key and key != 'memory'}
              for line in (folder / 'scalars.jsonl').read_text().splitlines()]
    return weights, (folder / 'detections.json.gz').read_bytes(), logged


@pytest.mark.slow
@pytest.mark.parametrize(('row', 'settings', 'workers'), [
    ('retinanet-mgd', {}, 0),                       # random masks
    ('faster_rcnn-baseline', {'accumulate': 3}, 0),  # random proposals; gradients wait at the end of an epoch
    ('retinanet-mgd', {}, 2)])
def test_a_killed_run_goes_on_bit_for_bit(dataset, tiny, tmp_path, row, settings, workers):
    run = Run.of(row, shorter(tiny, workers=workers), 0, {'epochs': 3, **settings})
    quiet = {'say': lambda *_: None}
    if run.teacher():
        run_row(run.teacher(), dataset, tmp_path / 'cut', **quiet)
        (tmp_path / 'whole').symlink_to(tmp_path / 'cut')   # one teacher for both
    cut = killed(2 * STEPS_AN_EPOCH + 2, run, dataset, tmp_path / 'cut')
    assert results.state(run, dataset, tmp_path / 'cut').name == 'failed'
    assert sorted(path.name for path in cut.glob('mmengine/*.pth')) == ['epoch_1.pth', 'epoch_2.pth']
    said = []
    record = run_row(run, dataset, tmp_path / 'cut', say=said.append)
    assert f'{run.id}: goes on after epoch 2 of 3 (--force trains from the beginning)' in said
    assert record['resumed_from'] == [2 * STEPS_AN_EPOCH] and record['steps'] == 3 * STEPS_AN_EPOCH
    resumed = content(cut)
    whole = run_row(run, dataset, tmp_path / 'whole', force=True, work_dir=tmp_path / 'uninterrupted', **quiet)
    weights, detections, logged = content(tmp_path / 'uninterrupted')
    assert list(resumed[0]) == list(weights)
    assert [name for name, value in weights.items() if not torch.equal(value, resumed[0][name])] == []
    assert resumed[1] == detections and record['numbers'] == whole['numbers'] and whole['resumed_from'] == []
    assert resumed[2] == logged and len(logged) >= 1
    assert not list(cut.glob('mmengine/*.pth')) and not (cut / 'unfinished.json').exists()


@pytest.mark.slow
def test_what_an_interrupted_run_goes_on_from(dataset, tiny, tmp_path, monkeypatch):
    """In one test, since each part needs a killed run: a damaged file, other code, --force, --resume."""
    run, said = Run.of('retinanet-baseline', tiny, 0, {'epochs': 3}), []
    with pytest.raises(TrainingError, match='cannot resume in .*: no interrupted run is there'):
        run_row(run, dataset, tmp_path, resume=True, say=said.append)
    folder = killed(2 * STEPS_AN_EPOCH + 1, run, dataset, tmp_path)

    newest = folder / 'mmengine' / 'epoch_2.pth'
    newest.write_bytes(newest.read_bytes()[:-1000])
    starts = []
    original = train.ProgressHook.before_train

    def stop(self, runner):
        original(self, runner)
        starts.append(runner.iter)
        raise KeyboardInterrupt
    monkeypatch.setattr(train.ProgressHook, 'before_train', stop)

    def begin(**how):
        said.clear()
        with pytest.raises(KeyboardInterrupt):
            run_row(run, dataset, tmp_path, say=said.append, **how)
        return starts[-1]
    assert begin() == STEPS_AN_EPOCH
    assert f'{run.id}: epoch_2.pth is damaged and not used' in said and any('after epoch 1' in line for line in said)
    assert begin(resume=True) == STEPS_AN_EPOCH       # stopped again before a step was made
    with monkeypatch.context() as patch:
        patch.setattr(results, 'code_fingerprint', lambda _: 'f' * 16)
        with pytest.raises(TrainingError, match='made with other code$'):
            run_row(run, dataset, tmp_path, resume=True, say=said.append)
        assert begin() == 0
    assert f'{run.id}: starts from the beginning: the interrupted run was made with other code' in said
    assert not list(folder.glob('mmengine/*.pth'))    # what belonged to other code is gone
    assert begin() == 0 and begin() == 0              # the second time the code is the same again
    assert any('left no whole checkpoint' in line for line in said)
    with pytest.raises(TrainingError, match='give one of them'):
        run_row(run, dataset, tmp_path, resume=True, force=True)


def test_a_run_that_another_process_trains_is_left_alone(dataset, tiny, tmp_path):
    run, other = Run.of('retinanet-baseline', tiny), os.getppid()
    place = _folder(run, dataset, tmp_path)
    train.ProgressReport(place, run.id).update('train', 1, 4, 0.1)
    results.write_json(place / 'progress.json', {**results.read_progress(place), 'pid': other,
                                                 'started': results.process_start(other)})
    with pytest.raises(TrainingError, match=f'process {other} is training it'):
        run_row(run, dataset, tmp_path, say=lambda *_: None)


def _folder(run, dataset, place):
    folder = results.run_folder(run, dataset, place)
    folder.mkdir(parents=True)
    return folder


# ---- files ------------------------------------------------------------------------------------------------------

def save(path, value=0.0):
    torch.save({'state_dict': {'w': torch.full((1000,), value)}}, path)


def test_a_failed_save_leaves_the_checkpoint_as_it_was(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    write_whole(lambda name: save(tmp_path / name, 1), path)
    before = path.read_bytes()

    def full(name):
        (tmp_path / name).write_bytes(before[:100])
        raise OSError(28, 'No space left on device')
    with pytest.raises(OSError, match='No space'):
        write_whole(full, path)
    assert path.read_bytes() == before and newest_whole(tmp_path) == path   # the part is no checkpoint
    write_whole(lambda name: save(tmp_path / name, 2), path)
    assert path.read_bytes() != before


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert newest_whole(tmp_path) is None
    for epoch in (2, 9, 10, 11, 12):
        save(tmp_path / f'epoch_{epoch}.pth', epoch)
    save(tmp_path / 'best_epoch_99.pth')
    cut, flipped = tmp_path / 'epoch_12.pth', tmp_path / 'epoch_11.pth'
    cut.write_bytes(cut.read_bytes()[:2000])
    with zipfile.ZipFile(flipped) as archive:
        inside = next(one for one in archive.infolist() if one.file_size >= 4000)
    content = bytearray(flipped.read_bytes())
    content[inside.header_offset + 2000] ^= 1            # one bit of a tensor
    flipped.write_bytes(content)
    said = []
    assert newest_whole(tmp_path, said.append) == tmp_path / 'epoch_10.pth'   # by number, not by name
    assert said == ['epoch_12.pth is damaged and not used', 'epoch_11.pth is damaged and not used']


# ---- random states ----------------------------------------------------------------------------------------------

class _Runner:
    """What process_state looks at."""
    def __init__(self):
        self.model = torch.nn.ModuleDict({'a': checkpoints.RandomMask(0.5, 1), 'b': torch.nn.Linear(2, 2)})

    def draw(self):
        feature = torch.zeros(1, 1, 8, 8)
        return [random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(),
                self.model['a'](feature).flatten().tolist()]


def test_every_random_state_comes_back(tmp_path):
    runner = _Runner()
    np.random.randn()   # leaves a second normal number waiting
    runner.model['b'].weight.grad = torch.full((2, 2), 0.3)
    torch.save(checkpoints.process_state(runner), tmp_path / 'state')
    expected = runner.draw()
    other = _Runner()
    other.model['a'].reseed(5)
    torch.manual_seed(7)
    assert other.draw() != expected
    checkpoints.restore_process(other, torch.load(tmp_path / 'state', weights_only=True))   # nothing but plain values
    assert other.draw() == expected
    assert torch.equal(other.model['b'].weight.grad, torch.full((2, 2), 0.3)) and other.model['b'].bias.grad is None


def test_a_picture_is_seeded_by_seed_epoch_and_picture():
    hub = MessageHub.get_instance('seed-picture')
    hub.update_info('epoch', 3)

    def drawn(seed=0, index=5, before=0):
        np.random.seed(before)
        SeedPicture(seed)({'sample_idx': index})
        return np.random.rand(), random.random()
    first = drawn()
    assert drawn(before=9) == first
    assert len({first, drawn(seed=1), drawn(index=6)}) == 3
    hub.update_info('epoch', 4)
    assert drawn() != first
    MessageHub.get_instance('no-epoch')
    with pytest.raises(RuntimeError, match='epoch is not known'):
        drawn()


@pytest.mark.slow
def test_the_number_of_workers_changes_no_number(dataset, tiny, tmp_path):
    run = Run.of('retinanet-baseline', shorter(tiny, workers=2))
    records = [run_row(run, dataset, work_dir=tmp_path / str(workers), workers=workers, say=lambda *_: None)
               for workers in (0, 1, 3)]
    assert [record['workers'] for record in records] == [0, 1, 3]
    assert len({record['settings_hash'] for record in records}) == 1
    first, *others = (content(tmp_path / str(workers))[0] for workers in (0, 1, 3))
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in first.items())


def test_workers_are_refused_where_they_would_change_numbers(dataset, tiny, tmp_path):
    with pytest.raises(TrainingError, match='workers=2: at this profile'):
        run_row(Run.of('retinanet-baseline', tiny), dataset, tmp_path, workers=2, say=lambda *_: None)
