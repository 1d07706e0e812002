"""mmengine's Runner as the kit uses it, with its hooks and the bfloat16 optimizer wrapper."""
from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmdet.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.dist import is_main_process, master_only
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from torch import nn
from torch.utils.data import DataLoader

from amdlib.engine.start import drawn_from, inherit
from amdlib.files import whole
from amdlib.weights.reading import read_weights

Watch = Callable[[str, int, int, float], None]    # phase ('train', 'test'), steps done, steps in all, seconds a step


@HOOKS.register_module()
class ProgressHook(Hook):
    """Tell `watch` after every step of the train and test loops."""
    priority = 'LOW'

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def before_train(self, runner: Runner) -> None:
        self.first_step, self.began_s = runner.iter, time.monotonic()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        done = runner.iter + 1
        speed = (time.monotonic() - self.began_s) / (done - self.first_step)
        self.watch('train', done, runner.max_iters, speed)

    def before_test(self, runner: Runner) -> None:
        self.test_began_s = time.monotonic()

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        speed = (time.monotonic() - self.test_began_s) / (batch_idx + 1)
        self.watch('test', batch_idx + 1, len(runner.test_dataloader), speed)


class GradientHook(Hook):
    """Has a Distiller measure, at every `every`-th step of one process, what each part of the loss asks of the
    backbone."""

    def __init__(self, every: int = 100) -> None:
        self.every = every

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        model = runner.model
        if hasattr(model, 'measures_gradients'):    # not within a distributed wrapper
            model.measures_gradients = runner.iter % self.every == 0


@HOOKS.register_module()
class KeepAverageHook(Hook):
    """When training ends, weights that a config's EMAHook has averaged become the detector's own: they are evaluated
    and written."""
    priority = 'LOWEST'

    def after_train(self, runner: Runner) -> None:
        for hook in [hook for hook in runner.hooks if isinstance(hook, EMAHook)]:
            hook._swap_ema_parameters()
            runner.hooks.remove(hook)


class LearningRateHook(Hook):
    """Keeps, and tells at the start, the learning rate that the Config gives and the one that is used."""

    def __init__(self, tell: Callable[[float, float], None] | None) -> None:
        self.tell = tell
        self.given: float | None = None
        self.used: float | None = None

    def before_train(self, runner: Runner) -> None:
        group = runner.optim_wrapper.optimizer.param_groups[0]
        self.given = runner.cfg.optim_wrapper.optimizer.lr
        self.used = group.get('initial_lr', group['lr'])
        if self.tell is not None and is_main_process():
            self.tell(self.given, self.used)


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward under bfloat16 autocast, on any device; its range is float32's, so no loss needs scaling."""

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


class QuietRunner(Runner):
    """mmengine's Runner; its log goes to the file in the work dir, only warnings to the terminal. Checkpoints are
    whole, `cfg.channels_last` is obeyed, and a detector starts from its seed alone (see `engine.start`)."""

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """A Distiller starts its own student; `cfg.inherit` is for a student that is not distilled."""
        if isinstance(model, nn.Module) or model.type == 'Distiller':
            return super().build_model(model)
        with drawn_from('student', self.seed):
            built = super().build_model(model)
            built.init_weights()    # once: mmengine's own later call finds it done
        if taken := self.cfg.get('inherit'):
            inherit(built, read_weights(taken.weights), taken.parts)
        return built

    def _init_model_weights(self) -> None:
        """Done when the model was built."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.WARNING)
                handler.addFilter(lambda record: 'will be deprecated' not in record.getMessage())   # mmengine's own
        return logger

    @staticmethod
    def build_dataloader(*args, **kwargs) -> DataLoader:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells that it reads and indexes
            return Runner.build_dataloader(*args, **kwargs)

    def build_evaluator(self, evaluator: dict | list | Evaluator) -> Evaluator:
        with contextlib.redirect_stdout(io.StringIO()):
            return super().build_evaluator(evaluator)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if self.cfg.get('channels_last'):  # a Distiller takes its teacher along; convolutions pass the layout on
            model = model.to(memory_format=torch.channels_last)
        return super().wrap_model(model_wrapper_cfg, model)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        with whole(Path(out_dir) / filename) as beside:     # a kill never leaves half a checkpoint
            super().save_checkpoint(out_dir, beside.name, *args, **kwargs)
