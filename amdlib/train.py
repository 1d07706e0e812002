"""Run one row through mmengine's Runner and leave its record; the only code that trains."""
from __future__ import annotations

import datetime
import importlib.util
import logging
import os
import platform
import resource
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import HOOKS, METRICS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from amdlib import data, mmcv_ext, results, weights
from amdlib.experiments import Run, config


class TrainingError(RuntimeError):
    """A run cannot start or did not finish; the message says why."""


class ProgressReport:
    """Step, speed and time left: into progress.json for others, and onto a terminal (one line rewritten) or into a
    log or notebook (a line every `line_every_s`)."""

    def __init__(self, place: Path, run_id: str, line_every_s: float = 20) -> None:
        self.place, self.run_id, self.line_every_s = place, run_id, line_every_s
        self.written_s = self.printed_s = 0.0
        self.width = 0

    def update(self, phase: str, step: int, steps: int, s_per_step: float | None = None, **more) -> None:
        now = time.monotonic()
        last = step == steps or phase in ('failed', 'done')
        left_s = None if s_per_step is None else s_per_step * (steps - step)
        if last or now - self.written_s > 1:
            self.written_s = now
            results.write_json(self.place / 'progress.json', {
                'phase': phase, 'step': step, 'steps': steps, 's_per_step': s_per_step, 'left_s': left_s,
                'pid': os.getpid(), 'host': platform.node(), 'updated': timestamp(), **more})
        on_terminal = sys.stdout.isatty()
        if not last and now - self.printed_s < (0.5 if on_terminal else self.line_every_s):
            return
        self.printed_s = now
        text = describe(self.run_id, phase, step, steps, s_per_step, left_s)
        if on_terminal:
            print('\r' + text.ljust(self.width), end='\n' if last else '', flush=True)
            self.width = len(text)
        else:
            print(text, flush=True)


def describe(run_id: str, phase: str, step: int, steps: int, s_per_step: float | None, left_s: float | None) -> str:
    """One line of progress: `retinanet-amd-s0 train 120/600, 4.8 steps/s, 1:40 left`."""
    text = f'{run_id} {phase} {step}/{steps}'
    if s_per_step:
        speed = f'{1 / s_per_step:.1f} steps/s' if s_per_step < 1 else f'{s_per_step:.1f} s/step'
        text += f', {speed}, {minutes(left_s)} left'
    return text


def minutes(seconds: float) -> str:
    """`1:40`, `2:03:20`."""
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix('0:').removeprefix('0') if text.startswith('0:') else text


def timestamp() -> str:
    """Now, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


@HOOKS.register_module()
class ProgressHook(Hook):
    """Feed a ProgressReport from the train and test loops."""
    priority = 'LOW'

    def __init__(self, report: ProgressReport) -> None:
        self.report = report

    def before_train(self, runner) -> None:
        self.first_step, self.began_s = runner.iter, time.monotonic()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        done = runner.iter + 1
        speed = (time.monotonic() - self.began_s) / (done - self.first_step)
        self.report.update('train', done, runner.max_iters, speed)

    def before_test(self, runner) -> None:
        self.test_began_s = time.monotonic()

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        speed = (time.monotonic() - self.test_began_s) / (batch_idx + 1)
        self.report.update('test', batch_idx + 1, len(runner.test_dataloader), speed)


@METRICS.register_module()
class CocoNumbers(CocoMetric):
    """COCO's 12 numbers at full precision, from detections that are written first (to 0.01 px and 1e-6 in score)."""

    def __init__(self, ann_file: str, detections: str | None = None, **kwargs) -> None:
        super().__init__(ann_file=ann_file, metric='bbox', **kwargs)
        self.ann_file, self.detections = ann_file, detections

    def compute_metrics(self, results_of_images: list) -> dict[str, float | None]:
        category_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        found = [{'image_id': int(image['img_id']), 'category_id': int(category_ids[label]),
                  'bbox': [round(float(v), 2) for v in self.xyxy2xywh(box)], 'score': round(float(score), 6)}
                 for _, image in results_of_images
                 for box, label, score in zip(image['bboxes'], image['labels'], image['scores'], strict=True)]
        if self.detections:
            results.write_json(Path(self.detections), found, compress=True)
        return results.coco_numbers(self.ann_file, found)


class QuietRunner(Runner):
    """mmengine's Runner; its log goes to the file in the work dir, only warnings to the terminal."""

    def build_logger(self, *args, **kwargs):
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.WARNING)
        return logger


def run_row(run: Run, dataset: data.Dataset, results_dir: Path = results.ROOT / 'results', *, force: bool = False,
            resume: bool = False, work_dir: Path | None = None, cfg_options: dict | None = None,
            tensorboard: bool = False, say=print) -> dict:
    """Train and evaluate one run, its teacher first where that is missing; return the record.

    A finished run is not trained again unless `force`; a stale one is, and said so. `cfg_options` are mmengine's
    dotted keys; such a run is recorded in `work_dir`, outside the tables. `tensorboard` (or AMD_TENSORBOARD=1 in the
    environment, which reaches the processes of a batch) writes what is logged into `tensorboard/` of the run too.
    Errors: TrainingError; whatever training raises, after progress.json has said `failed`.
    """
    if cfg_options and work_dir is None:
        raise TrainingError('--cfg-options changes the experiment outside the table of rows: give it a --work-dir')
    tensorboard = tensorboard or os.environ.get('AMD_TENSORBOARD', '0') not in ('', '0')
    if tensorboard and importlib.util.find_spec('tensorboard') is None:
        raise TrainingError('--tensorboard needs the package tensorboard: make setup, or pip install tensorboard')
    place = Path(work_dir) if work_dir else results.run_folder(run, dataset, results_dir)
    if work_dir is None:
        found = results.state(run, dataset, results_dir)
        if found.name == 'done' and not force:
            say(f'{run.id}: done already, {found.record["numbers"]["mAP"]:.1f} mAP '
                '(FORCE=1 or --force trains it again)')
            return found.record
        if found.name == 'stale':
            say(f'{run.id}: its record is stale ({found.why}); training it again')
    teacher, teacher_weights = run.teacher(), None
    if teacher is not None:
        run_row(teacher, dataset, results_dir, tensorboard=tensorboard, say=say)
        teacher_weights = results.run_folder(teacher, dataset, results_dir) / 'weights.pth'
    if row_needs_checkpoint(run):
        raise TrainingError(
            f"{run.id}: at profile paper the teacher is mmdet's published one: give its file as teacher_checkpoint "
            f"(make: TEACHER=; the teacher's own row: checkpoint). It is {run.row.group.teacher_file} below "
            'mmdetection/v2.0/ of the model zoo; the digits at the end of its name begin its SHA-256')
    place.mkdir(parents=True, exist_ok=True)
    if not resume:
        _clear(place)
    cfg = config(run, dataset, place / 'mmengine', teacher_weights)
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    if tensorboard:  # no part of the settings: it changes no number
        cfg.visualizer.vis_backends.append(dict(type='TensorboardVisBackend', save_dir=str(place / 'tensorboard')))
    (place / 'error.txt').unlink(missing_ok=True)  # of the part before a resume
    report = ProgressReport(place, run.id)
    report.update('start', 0, 1)
    try:
        record = _train_and_test(run, cfg, dataset, place, teacher_weights, resume, report)
    except BaseException as error:
        (place / 'error.txt').write_text(traceback.format_exc())
        report.update('failed', 0, 1, error=f'{type(error).__name__}: {error}'.splitlines()[0])
        raise
    results.write_json(place / 'record.json', record)
    report.update('done', 1, 1)
    say(f'{run.id}: {record["numbers"]["mAP"]:.1f} mAP, {minutes(record["wall_s"])} ({record["device"]})')
    return record


def row_needs_checkpoint(run: Run) -> bool:
    """The paper's teachers are published weights, not trained here."""
    return run.profile.name == 'paper' and run.row.is_teacher and 'checkpoint' not in run.files()


def _clear(place: Path) -> None:
    """Take an older record away before its run is made again: record first, then what it speaks of."""
    for name in ('record.json', 'weights.pth', 'detections.json.gz', 'error.txt', 'progress.json', 'scalars.jsonl'):
        (place / name).unlink(missing_ok=True)
    for name in ('mmengine', 'tensorboard'):
        shutil.rmtree(place / name, ignore_errors=True)


def _keep_scalars(place: Path) -> None:
    """scalars.jsonl: what mmengine logged (losses, learning rate, gradient norm by step), a resumed run's parts too."""
    parts = sorted((place / 'mmengine').glob('*/vis_data'))
    lines = [line for part in parts for file in sorted(part.glob('scalars.json'))
             for line in file.read_text().splitlines() if '"loss"' in line]
    (place / 'scalars.jsonl').write_text(''.join(f'{line}\n' for line in lines))
    for part in parts:
        shutil.rmtree(part)


def _train_and_test(run: Run, cfg: Config, dataset: data.Dataset, place: Path, teacher_weights, resume: bool,
                    report: ProgressReport) -> dict:
    began = timestamp(), time.monotonic()
    code = results.commit()
    described = {'settings_hash': results.settings_hash(cfg), 'config': cfg.pretty_text}
    cfg.resume = resume
    cfg.experiment_name = f'{run.id}-{time.time_ns()}'
    cfg.visualizer.name = cfg.experiment_name  # mmengine keeps loggers and visualizers by name for the process's life
    cfg.test_evaluator.detections = str(place / 'detections.json.gz')
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # mmengine's checkpoints hold plain Python and numpy values that torch >= 2.6 would refuse on resume
    with torch.serialization.safe_globals(weights.harmless_types()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mmengine|mmdet|torch')
        runner = QuietRunner.from_cfg(cfg)
        runner.register_hook(ProgressHook(report))
        if checkpoint := run.files().get('checkpoint'):
            weights.load_strictly(runner.model, weights.read_weights(checkpoint), checkpoint)
        else:
            runner.train()
        trained_s = time.monotonic() - began[1]
        numbers = runner.test()
    model = runner.model.module if hasattr(runner.model, 'module') else runner.model
    student = getattr(model, 'student', model)
    numbers = {name.removeprefix('coco/'): value for name, value in numbers.items()}
    weights.write_weights(place / 'weights.pth', student.state_dict(), {
        'run': run.id, 'profile': run.profile.name, 'numbers': numbers, 'classes': list(dataset.classes), **code})
    _keep_scalars(place)
    for unfinished in [*(place / 'mmengine').glob('*.pth'), place / 'mmengine' / 'last_checkpoint']:
        unfinished.unlink(missing_ok=True)  # weights.pth is what is kept; optimizer state serves an unfinished run only
    on_gpu = torch.cuda.is_available()
    return {
        'format': 1, 'id': run.id, 'row': run.row.id, 'group': run.row.group.name, 'label': run.row.label,
        'profile': run.profile.name, 'seed': run.seed,
        'settings': {**dict(run.settings), **{key: Path(path).name for key, path in run.files().items()}},
        **described,
        'files': results.file_hashes(run), 'code_fingerprint': results.code_fingerprint(run), 'code': code,
        'data': {'name': dataset.name, 'fingerprint': dataset.fingerprint, 'notes': list(dataset.notes)},
        'teacher': None if teacher_weights is None else {
            'id': run.teacher().id, 'weights_sha256': weights.sha256(teacher_weights)},
        'numbers': numbers, 'weights_sha256': weights.sha256(place / 'weights.pth'),
        'steps': 0 if checkpoint else runner.max_iters, 'train_s': trained_s, 'wall_s': time.monotonic() - began[1],
        'began': began[0],
        'device': torch.cuda.get_device_name() if on_gpu else 'CPU', 'threads': torch.get_num_threads(),
        'peak_memory_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        'peak_gpu_memory_bytes': torch.cuda.max_memory_allocated() if on_gpu else None,
        'operators': mmcv_ext.backend(), 'versions': results.versions(), 'host': platform.platform()}
