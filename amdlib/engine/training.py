"""Train and evaluate one task through mmengine's Runner; the only code that trains."""
from __future__ import annotations

import contextlib
import copy
import errno
import json
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from amdlib import mmcv_ext
from amdlib.engine.checkpoints import WholeCheckpointHook, plain_model
from amdlib.engine.runner import GradientHook, LearningRateHook, ProgressHook, QuietRunner, Watch
from amdlib.engine.start import SeedSteps, weights_sha256
from amdlib.files import sha256, write_text
from amdlib.weights.reading import check_backbone, harmless_types, load_strictly, read_weights
from amdlib.weights.writing import write_weights
from amdlib.words import timestamp


@dataclass
class Task:
    """What a process needs to train and evaluate a run; each process of a run on several GPUs reads it from a file.

    Args:
        name: of the run, for loggers and messages.
        cfg: with `resume` and `load_from` where a run goes on.
        folder: for detections.json.gz, weights.pth, scalars.jsonl, and mmengine's own files in `mmengine/`.
        files: weight files by setting: 'backbone' to start from, 'checkpoint' to evaluate instead of training.
        meta: plain values that weights.pth keeps, beside the numbers.
        watch: told phase, step, steps and seconds a step, after every step.
        gpus: so many processes train it, where that is more than one by `processes.launch`.
        tell_lr: told at the start the learning rate that the Config gives and the one that is used.
        hooks: of mmengine, that only look on.
    """
    name: str
    cfg: Config
    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    meta: dict = field(default_factory=dict)
    watch: Watch | None = None
    gpus: int = 1
    tell_lr: Callable[[float, float], None] | None = None
    hooks: tuple[Hook, ...] = ()


def train_and_test(task: Task) -> dict | None:
    """Train and evaluate in this process.

    Returns: what came of it: the numbers, and times, memory and device for the record; None in all but the first
        process of a distributed run.
    Errors: WeightsError; whatever training raises, such as torch.OutOfMemoryError or, see `disk_is_full`, OSError.
    """
    began, began_s = timestamp(), time.monotonic()
    cfg = _named(task.cfg, task.name)
    checkpoint, backbone = task.files.get('checkpoint'), task.files.get('backbone')
    if backbone:
        cfg.model.get('student', cfg.model).backbone.init_cfg = dict(type='Pretrained', checkpoint=backbone)
    cfg.test_evaluator.detections = str(task.folder / 'detections.json.gz')
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # mmengine's checkpoints hold plain Python and numpy values that torch >= 2.6 would refuse on resume
    with float32_products(bool(cfg.get('tf32'))), _quiet(), torch.serialization.safe_globals(harmless_types()):
        runner = QuietRunner.from_cfg(cfg)
        model = plain_model(runner)
        student = getattr(model, 'student', model)
        rate, started_from = LearningRateHook(task.tell_lr), weights_sha256(student)
        if task.watch is not None:
            runner.register_hook(ProgressHook(task.watch))
        if checkpoint:
            load_strictly(model, read_weights(checkpoint), checkpoint)
            steps, resumed_from, train_s = 0, [], time.monotonic() - began_s
        elif cfg.get('untrained'):
            steps, resumed_from, train_s = 0, [], 0.0
        else:
            if backbone:
                check_backbone(student.backbone, read_weights(backbone), backbone)
            for hook in (rate, SeedSteps(cfg.randomness.seed), GradientHook(), *task.hooks):
                runner.register_hook(hook)
            runner.train()
            kept = next(hook for hook in runner.hooks if isinstance(hook, WholeCheckpointHook))
            steps, resumed_from, train_s = runner.max_iters, kept.resumed_from, kept.train_s
        test_began_s = time.monotonic()
        numbers = _numbers(runner)
    if not is_main_process():
        return None
    write_weights(task.folder / 'weights.pth', student.state_dict(), {**task.meta, 'numbers': numbers})
    _keep_scalars(task.folder)
    on_gpu = torch.cuda.is_available()
    return {
        'numbers': numbers, 'student_sha256': started_from, 'weights_sha256': sha256(task.folder / 'weights.pth'),
        'steps': steps, 'resumed_from': resumed_from,
        'train_s': train_s, 'wall_s': train_s + time.monotonic() - test_began_s, 'began': began,
        'device': torch.cuda.get_device_name() if on_gpu else 'CPU',
        'threads': torch.get_num_threads(), 'workers': cfg.train_dataloader.num_workers,
        'peak_memory_bytes': peak_memory_bytes(),
        'peak_gpu_memory_bytes': torch.cuda.max_memory_allocated() if on_gpu else None,
        'operators': mmcv_ext.backend(), 'lr_given': rate.given, 'lr_used': rate.used}


def evaluate(cfg: Config, checkpoint: str | Path, watch: Watch | None = None) -> dict[str, float | None]:
    """COCO's 12 numbers, in percent, of a detector's Config with a checkpoint that is loaded strictly."""
    with _quiet():
        runner = QuietRunner.from_cfg(_named(cfg, 'evaluate'))
        if watch is not None:
            runner.register_hook(ProgressHook(watch))
        load_strictly(runner.model, read_weights(checkpoint), str(checkpoint))
        return _numbers(runner)


def _named(cfg: Config, name: str) -> Config:
    """A copy of its own name: mmengine keeps loggers and visualizers by name for the process's life."""
    cfg = copy.deepcopy(cfg)
    cfg.experiment_name = cfg.visualizer.name = f'{name}-{time.time_ns()}'
    return cfg


def _numbers(runner: QuietRunner) -> dict[str, float | None]:
    return {name.removeprefix('coco/'): value for name, value in runner.test().items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mmengine|mmdet|torch')
        yield


def _keep_scalars(folder: Path) -> None:
    """scalars.jsonl: what mmengine logged (losses, learning rate, gradient norm by step). Of steps that were trained
    again after a resume, the last time counts."""
    parts = sorted((folder / 'mmengine').glob('*/vis_data'))
    lines = {json.loads(line)['step']: line for part in parts for file in sorted(part.glob('scalars.json'))
             for line in file.read_text().splitlines() if '"loss"' in line}
    write_text(folder / 'scalars.jsonl', ''.join(f'{lines[step]}\n' for step in sorted(lines)))
    for part in parts:
        for file in (*part.glob('*.json'), part / 'config.py'):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: another backend has put its files there, W&B a whole folder
            part.rmdir()


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """TF32 for float32 matrix products and convolutions while the block runs; otherwise torch's own choice stays."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        if tf32:
            torch.set_float32_matmul_precision('high')
            torch.backends.cudnn.allow_tf32 = True
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def peak_memory_bytes() -> int:
    """The most memory that this process has had. (Linux's getrusage also counts what the one that started it had.)"""
    with contextlib.suppress(OSError):
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def disk_is_full(error: BaseException | None) -> bool:
    """Whether this error or one behind it says so; torch raises one of its own over it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return error is not None and disk_is_full(error.__cause__ or error.__context__)
