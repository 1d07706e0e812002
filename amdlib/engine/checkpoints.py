"""Checkpoints from which a run goes on as if it had never stopped: every random state is in them.

mmengine keeps no random state. Here a checkpoint also holds, for every process, the generators of python, numpy, torch
and CUDA, those of the model's own (random masks), and gradients that were accumulated and not yet applied.
"""
from __future__ import annotations

import random
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import HOOKS, TRANSFORMS
from mmengine.dist import gather_object, get_rank
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from amdlib.words import log


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook; its files also hold `processes` (see `process_state`), the seconds trained and the
    steps at which the run was resumed."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._loaded: dict = {}
        self._processes: list[dict] = []
        self._began_s = time.monotonic()    # again when training begins
        self.resumed_from: list[int] = []

    @property
    def train_s(self) -> float:
        """Seconds of training, those before a resume too."""
        return self._loaded.get('train_s', 0.0) + time.monotonic() - self._began_s

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if 'processes' in checkpoint:
            self._loaded = {key: checkpoint[key] for key in ('processes', 'train_s', 'resumed_from')}

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self._began_s = time.monotonic()
        if self._loaded:
            self.resumed_from = [*self._loaded['resumed_from'], runner.iter]
            restore_process(runner, self._loaded['processes'][get_rank()])

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self._processes = gather_object(process_state(runner))  # every process calls this, only the first one saves
        super()._save_checkpoint_with_step(runner, step, meta)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint.update(processes=self._processes, train_s=self.train_s, resumed_from=self.resumed_from)


def newest_whole(folder: str | Path) -> Path | None:
    """The newest undamaged `epoch_*.pth`; a damaged one is named and passed over. None where there is none."""
    epochs = {int(found.group(1)): path for path in Path(folder).glob('epoch_*.pth')
              if (found := re.fullmatch(r'epoch_(\d+)\.pth', path.name))}
    for epoch in sorted(epochs, reverse=True):
        if _is_whole(epochs[epoch]):
            return epochs[epoch]
        log.info(f'{epochs[epoch]} is damaged and not used')
    return None


def _is_whole(path: Path) -> bool:
    try:  # a checkpoint is a zip archive with a checksum for every tensor
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError):
        return False


# ---- what a process has beside weights, optimizer and schedule --------------------------------------------------

def process_state(runner: Runner) -> dict:
    """Random states of this process, and its accumulated gradients, as tensors and plain numbers."""
    _, keys, *position = np.random.get_state()
    model = plain_model(runner)
    return {
        'python': random.getstate(), 'numpy': (torch.from_numpy(keys.astype(np.int64)), *position),
        'torch': torch.get_rng_state(), 'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        'model': {name: generator.get_state() for name, generator in _generators(model).items()},
        'gradients': {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}}


def restore_process(runner: Runner, state: dict) -> None:
    """Undo what happened to this process since `process_state`."""
    random.setstate(state['python'])
    keys, *position = state['numpy']
    np.random.set_state(('MT19937', keys.cpu().numpy().astype(np.uint32), *position))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
    model = plain_model(runner)
    for name, generator in _generators(model).items():
        generator.set_state(state['model'][name].cpu())
    for name, parameter in model.named_parameters():
        if name in state['gradients']:
            parameter.grad = state['gradients'][name].to(parameter)


def plain_model(runner: Runner) -> torch.nn.Module:
    """A runner's model without the wrapper of a distributed run."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _generators(model: torch.nn.Module) -> dict[str, torch.Generator]:
    """Generators that parts of the model draw from, by attribute: those of random masks, and of losses from outside."""
    return {f'{name}.{key}': value for name, part in model.named_modules()
            for key, value in vars(part).items() if isinstance(value, torch.Generator)}


@TRANSFORMS.register_module()
class SeedPicture:
    """First step of a pipeline: makes what follows depend on seed, epoch and picture alone.

    So pictures look the same however many processes load them, and in a resumed run. (Where the training process reads
    its own pictures, the random state in the checkpoint does that.)
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, results: dict) -> dict:
        epoch = MessageHub.get_current_instance().get_info('epoch')  # loaders are forked anew each epoch
        if epoch is None:
            raise RuntimeError('SeedPicture: the epoch is not known here; pictures must be loaded by a runner, in its '
                               'process or in one forked from it')
        number = int(np.random.SeedSequence([self.seed, epoch, results['sample_idx']]).generate_state(1)[0])
        np.random.seed(number)
        random.seed(number)
        return results
