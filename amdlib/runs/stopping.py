"""End a training after a step, with a whole checkpoint, where a scheduler asks for it, and go on in the midst of an
epoch as if it had never stopped.

It asks by the file `stop` in the run's folder (see `signals`), for which the hook looks in whichever process it lives.
Without that file, and without a checkpoint of its own, the hook does nothing.
"""
from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast, gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from amdlib.engine import checkpoints
from amdlib.errors import Stopped
from amdlib.files import read_json, write_json
from amdlib.runs.signals import ASKED, is_heard, listen

FOLDER = 'stopped'      # in mmengine's folder: the checkpoint, and where it was made
TOLD = 'stopped.json'


def begin(folder: Path) -> None:
    """What an earlier life of the run in this folder was asked, and where it stopped, is over."""
    if not is_heard(folder / ASKED):
        (folder / ASKED).unlink(missing_ok=True)
    (folder / 'mmengine' / FOLDER / TOLD).unlink(missing_ok=True)


def newest(folder: Path) -> Path | None:
    """The checkpoint from which a run goes on: the one that it was stopped with, or else that of its last epoch.

    Args:
        folder: mmengine's, of the run.
    """
    found = [checkpoints.newest_whole(folder / FOLDER), checkpoints.newest_whole(folder)]
    # both are named by the epochs that had ended; a stop in the midst of the next one is later
    return max(filter(None, found), key=lambda path: int(path.stem.rpartition('_')[2]), default=None)


def told(folder: Path) -> dict[str, int] | None:
    """`step` and `steps` where the run of this folder (mmengine's) was stopped since it began; None otherwise."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = read_json(folder / FOLDER / TOLD)
        return {name: int(found[name]) for name in ('step', 'steps')}
    return None


class StopHook(Hook):
    """Stops where the file is there: saves a whole checkpoint and ends the training. Goes on from one.

    Errors: Stopped, in training or evaluation.

    Args:
        file: whose being there asks for it.
        folder: mmengine's, of the run.
    """
    priority = 'LOWEST'     # after the schedule's step and the epoch's own checkpoint

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.folder = file, folder
        self.listens = is_heard(file)
        self._loaded: list[dict] = []       # states of the processes, of a checkpoint that is gone on from
        self._processes: list[dict] = []    # of one that is saved here

    # ---- going on

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._loaded = checkpoint.get('processes', [])

    def before_train(self, runner: Runner) -> None:
        if self.listens and get_world_size() > 1:   # a process of several has handlers of its own
            listen(self.file, [])
        seen = runner.iter - runner.epoch * len(runner.train_dataloader)
        if seen:
            runner.train_loop.run_epoch = functools.partial(_rest_of_epoch, runner, seen, self._loaded[get_rank()])

    # ---- stopping

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if batch_idx + 1 == len(runner.train_dataloader):
            return      # the epoch's own checkpoint is about to be saved
        if self._is_asked():
            self._save(runner)
            self._stop(runner.iter + 1, runner.max_iters)

    def after_train_epoch(self, runner: Runner) -> None:
        if self._is_asked():
            self._stop(runner.iter, runner.max_iters)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if get_world_size() == 1 and self._is_asked():      # several evaluate at their own pace
            self._stop(runner.max_iters, runner.max_iters)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self._processes:     # the hook of whole checkpoints has those of the last epoch
            checkpoint['processes'] = self._processes

    def _is_asked(self) -> bool:
        """Whether it is asked for; where several processes train, what the first one sees counts for all."""
        asked = torch.tensor([int(self.file.exists())])
        broadcast(asked)
        return bool(asked)

    def _save(self, runner: Runner) -> None:
        folder, name = self.folder / FOLDER, f'epoch_{runner.epoch}.pth'
        folder.mkdir(parents=True, exist_ok=True)
        buffers = {name: buffer.cpu() for name, buffer in checkpoints.plain_model(runner).named_buffers()}
        # each process has statistics of its own until an epoch ends; the checkpoint itself holds the first one's
        self._processes = gather_object({**checkpoints.process_state(runner), 'buffers': buffers})
        runner.save_checkpoint(str(folder), name, by_epoch=False)
        if is_main_process():
            for older in folder.glob('epoch_*.pth'):
                if older.name != name:
                    older.unlink()

    def _stop(self, step: int, steps: int) -> None:
        if is_main_process():
            (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
            write_json(self.folder / FOLDER / TOLD, {'step': step, 'steps': steps})
        raise Stopped(f'stopped after step {step} of {steps}; started again, the run goes on from there')


def _rest_of_epoch(runner: Runner, seen: int, state: dict) -> None:
    """mmengine's epoch without its first `seen` batches, which are read and not trained on.

    Args:
        state: of this process, as of `checkpoints.process_state`, and its `buffers`.
    """
    loop = runner.train_loop
    del loop.run_epoch      # the epochs that follow are whole
    runner.call_hook('before_train_epoch')
    runner.model.train()
    batches = enumerate(loop.dataloader)
    for _ in range(seen):
        next(batches)
    checkpoints.restore_process(runner, state)      # as if they had been trained on
    for name, buffer in checkpoints.plain_model(runner).named_buffers():
        buffer.copy_(state['buffers'][name])
    for number, batch in batches:
        loop.run_iter(number, batch)
    runner.call_hook('after_train_epoch')
    loop._epoch += 1
