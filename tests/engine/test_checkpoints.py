"""checkpoints.py: a killed task goes on bit for bit; whole files; every random state; pictures seeded one by one."""
import dataclasses
import logging
import multiprocessing
import os
import random
import signal
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner import Runner

from amdlib import methods
from amdlib.engine.checkpoints import SeedPicture, newest_whole, process_state, restore_process
from amdlib.engine.runner import QuietRunner
from amdlib.engine.training import train_and_test

STEPS_AN_EPOCH = 4   # 8 images, two a step


@dataclasses.dataclass
class Kill:
    """Kills this process, as `kill -9` does, after so many steps."""
    step: int

    def __call__(self, phase, step, steps, s_per_step):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(('row', 'settings', 'workers'), [
    ('retinanet-mgd', {}, 0),                       # random masks
    ('faster_rcnn-baseline', {'accumulate': 3}, 0),  # random proposals; gradients wait at the end of an epoch
    ('retinanet-mgd', {}, 2)])
def test_a_killed_task_goes_on_bit_for_bit(task_of, content, same_weights, tmp_path, row, settings, workers):
    settings = {'epochs': 3, **settings}
    cut = task_of(tmp_path / 'cut', row, settings=settings, workers=workers)
    process = multiprocessing.get_context('fork').Process(
        target=train_and_test, args=(dataclasses.replace(cut, watch=Kill(2 * STEPS_AN_EPOCH + 2)),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    work_dir = cut.folder / 'mmengine'
    assert sorted(path.name for path in work_dir.glob('*.pth')) == ['epoch_1.pth', 'epoch_2.pth']
    cut.cfg.resume, cut.cfg.load_from = True, str(newest_whole(work_dir))
    resumed = train_and_test(cut)
    assert resumed['resumed_from'] == [2 * STEPS_AN_EPOCH]
    assert resumed['steps'] == 3 * STEPS_AN_EPOCH
    whole = task_of(tmp_path / 'whole', row, settings=settings, workers=workers)
    uninterrupted = train_and_test(whole)
    assert uninterrupted['resumed_from'] == []
    assert resumed['numbers'] == uninterrupted['numbers']
    (weights, detections, logged), wanted = content(cut.folder), content(whole.folder)
    assert same_weights(weights, wanted[0])
    assert detections == wanted[1]
    assert logged == wanted[2]
    assert len(logged) >= 1


# ---- files ------------------------------------------------------------------------------------------------------

def save(path, value=0.0):
    torch.save({'state_dict': {'w': torch.full((1000,), value)}}, path)


def test_a_failed_save_leaves_the_checkpoint_as_it_was(tmp_path, monkeypatch):
    runner, path = QuietRunner.__new__(QuietRunner), tmp_path / 'epoch_1.pth'

    def saving(value, error=None):
        def save_checkpoint(_, folder, name):
            save(os.path.join(folder, name), value)
            if error:
                (tmp_path / name).write_bytes(b'half')
                raise error
        monkeypatch.setattr(Runner, 'save_checkpoint', save_checkpoint)
    saving(1.0)
    runner.save_checkpoint(str(tmp_path), path.name)
    before = path.read_bytes()
    saving(2.0, OSError(28, 'No space left on device'))
    with pytest.raises(OSError, match='No space'):
        runner.save_checkpoint(str(tmp_path), path.name)
    assert path.read_bytes() == before
    assert newest_whole(tmp_path) == path
    assert list(tmp_path.iterdir()) == [path]
    saving(2.0)
    runner.save_checkpoint(str(tmp_path), path.name)
    assert path.read_bytes() != before


def test_the_newest_whole_checkpoint_is_found(tmp_path, caplog):
    assert newest_whole(tmp_path) is None
    for epoch in (2, 9, 10, 11, 12):
        save(tmp_path / f'epoch_{epoch}.pth', epoch)
    save(tmp_path / 'best_epoch_99.pth')
    save(tmp_path / '.epoch_13.pth.4711')                # of a process that was killed while it wrote
    cut, flipped = tmp_path / 'epoch_12.pth', tmp_path / 'epoch_11.pth'
    cut.write_bytes(cut.read_bytes()[:2000])
    with zipfile.ZipFile(flipped) as archive:
        inside = next(one for one in archive.infolist() if one.file_size >= 4000)
    bytes_of = bytearray(flipped.read_bytes())
    bytes_of[inside.header_offset + 2000] ^= 1           # one bit of a tensor
    flipped.write_bytes(bytes_of)
    log = logging.getLogger('amdlib')
    log.addHandler(caplog.handler)      # it does not propagate once show_log was called
    try:
        with caplog.at_level('INFO', 'amdlib'):
            caplog.clear()
            assert newest_whole(tmp_path) == tmp_path / 'epoch_10.pth'   # by number, not by name
    finally:
        log.removeHandler(caplog.handler)
    assert list(dict.fromkeys(caplog.messages)) == [f'{path} is damaged and not used' for path in (cut, flipped)]


# ---- random states ----------------------------------------------------------------------------------------------

class Own(torch.nn.Module):
    """A loss from outside that draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.numbers = torch.Generator()


class _Runner:
    """What process_state looks at."""
    def __init__(self):
        masked = methods.find_method('mgd')(2, 2)
        self.model = torch.nn.ModuleDict({'a': masked, 'b': torch.nn.Linear(2, 2), 'c': Own()})

    def draw(self):
        feature = torch.zeros(1, 1, 8, 8)
        return [random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(),
                self.model['a'].random_mask(feature).flatten().tolist(),
                torch.rand(3, generator=self.model['c'].numbers).tolist()]


def test_every_random_state_comes_back(tmp_path):
    runner = _Runner()
    np.random.randn()   # leaves a second normal number waiting
    runner.model['b'].weight.grad = torch.full((2, 2), 0.3)
    torch.save(process_state(runner), tmp_path / 'state')
    expected = runner.draw()
    other = _Runner()
    other.model['a'].reseed(5)
    other.model['c'].numbers.manual_seed(5)
    torch.manual_seed(7)
    assert all(mine != drawn for mine, drawn in zip(other.draw(), expected, strict=True))
    restore_process(other, torch.load(tmp_path / 'state', weights_only=True))   # nothing but plain values
    assert other.draw() == expected
    assert torch.equal(other.model['b'].weight.grad, torch.full((2, 2), 0.3))
    assert other.model['b'].bias.grad is None


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
def test_the_number_of_workers_changes_no_number(task_of, content, same_weights, tmp_path):
    made = []
    for workers in (0, 1, 3):
        task = task_of(tmp_path / str(workers), workers=2)
        for loader in (task.cfg.train_dataloader, task.cfg.test_dataloader):
            loader.num_workers = workers
        assert train_and_test(task)['workers'] == workers
        made.append(content(task.folder))
    for other in made[1:]:
        assert same_weights(made[0][0], other[0])
        assert made[0][1:] == other[1:]
