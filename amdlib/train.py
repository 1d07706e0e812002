"""Run one row through mmengine's Runner and leave its record; the only code that trains."""
from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import importlib.util
import io
import json
import logging
import os
import platform
import resource
import shutil
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import HOOKS, METRICS, OPTIM_WRAPPERS
from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.amp import autocast

from amdlib import KitError, checkpoints, data, distributed, gate, mmcv_ext, results, weights
from amdlib.experiments import Run, config, describe_lr


class TrainingError(KitError, RuntimeError):
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
                'pid': os.getpid(), 'started': results.process_start(os.getpid()), 'host': platform.node(),
                'updated': timestamp(), **more})
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
        if detections:  # where several processes put their parts; mmengine's own place is the current folder
            self.collect_dir = str(Path(detections).with_name('mmengine') / 'parts')

    def compute_metrics(self, results_of_images: list) -> dict[str, float | None]:
        category_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        found = [{'image_id': int(image['img_id']), 'category_id': int(category_ids[label]),
                  'bbox': [round(float(v), 2) for v in self.xyxy2xywh(box)], 'score': round(float(score), 6)}
                 for _, image in results_of_images
                 for box, label, score in zip(image['bboxes'], image['labels'], image['scores'], strict=True)]
        if self.detections:
            results.write_json(Path(self.detections), found, compress=True)
        return results.coco_numbers(self.ann_file, found)


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward under bfloat16 autocast, on any device; its range is float32's, so no loss needs scaling."""

    @contextlib.contextmanager
    def optim_context(self, model):
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


class QuietRunner(Runner):
    """mmengine's Runner; its log goes to the file in the work dir, only warnings to the terminal. Checkpoints are
    whole, and `cfg.channels_last` is obeyed."""

    def build_logger(self, *args, **kwargs):
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.WARNING)
                handler.addFilter(lambda record: 'will be deprecated' not in record.getMessage())   # mmengine's own
        return logger

    @staticmethod
    def build_dataloader(*args, **kwargs):
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells that it reads and indexes
            return Runner.build_dataloader(*args, **kwargs)

    def build_evaluator(self, evaluator):
        with contextlib.redirect_stdout(io.StringIO()):
            return super().build_evaluator(evaluator)

    def wrap_model(self, model_wrapper_cfg, model):
        if self.cfg.get('channels_last'):  # a Distiller takes its teacher along; convolutions pass the layout on
            model = model.to(memory_format=torch.channels_last)
        return super().wrap_model(model_wrapper_cfg, model)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        save = super().save_checkpoint
        checkpoints.write_whole(lambda name: save(out_dir, name, *args, **kwargs), Path(out_dir) / filename)


@contextlib.contextmanager
def float32_products(tf32: bool):
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


@dataclass
class Job:
    """What a process needs to train and evaluate a run; one that runs on several GPUs gets it as a file."""
    run: Run
    cfg: Config
    dataset: data.Dataset
    place: Path
    files: dict[str, str]               # weight files, by setting
    made_with: dict                     # what a record or a checkpoint must agree with to count
    config_text: str = field(init=False)

    def __post_init__(self) -> None:
        self.config_text = self.cfg.pretty_text  # before anything is set that belongs to this machine only

    def do(self, reports: bool) -> dict | None:
        """`train_and_test` as one process of several, of which the first `reports`."""
        return train_and_test(self, ProgressReport(self.place, self.run.id) if reports else None)


def run_row(run: Run, dataset: data.Dataset, results_dir: Path = results.ROOT / 'results', *, force: bool = False,
            resume: bool = False, work_dir: Path | None = None, cfg_options: dict | None = None,
            workers: int | None = None, tensorboard: bool = False, say=print) -> dict:
    """Train and evaluate one run, its teacher first where that is missing; return the record.

    A finished run is not trained again unless `force`; a stale one is, and said so. An interrupted one goes on from its
    last whole checkpoint where settings, data, code, teacher and versions are the same, unless `force`; with `resume`
    it is an error where it cannot. `cfg_options` are mmengine's dotted keys; such a run is recorded in `work_dir`,
    outside the tables. `workers` are the processes that load pictures, a GPU; they change no number.
    `tensorboard` (or AMD_TENSORBOARD=1 in the environment, which reaches the processes of a batch) writes what is
    logged into `tensorboard/` of the run too.
    Errors: TrainingError; whatever training raises, after progress.json has said `failed`.
    """
    tensorboard = tensorboard or os.environ.get('AMD_TENSORBOARD', '0') not in ('', '0')
    _check_words(force, resume, tensorboard, cfg_options, work_dir)
    place = Path(work_dir) if work_dir else results.run_folder(run, dataset, results_dir)
    if work_dir is None and (record := _finished(run, dataset, results_dir, force, say)):
        return record
    check_it_fits(run, dataset)
    if (pid := results.training_process(place)) not in (None, os.getpid()):    # an earlier failure of this one is over
        raise TrainingError(f'{run.id}: process {pid} is training it in {place}')
    teacher = None
    if (of_teacher := run.teacher()) is not None:
        record = run_row(of_teacher, dataset, results_dir, workers=workers, tensorboard=tensorboard, say=say)
        teacher = _Teacher(of_teacher, results.run_folder(of_teacher, dataset, results_dir), record)
    place.mkdir(parents=True, exist_ok=True)
    report = ProgressReport(place, run.id)
    with _failure_told(run, place, report):
        files = run.find_files(say)
        hashes = {key: weights.sha256(path) for key, path in files.items()}
        checked = _check_teacher(run, teacher, dataset, place, files, hashes, report, say)
    job = _job(run, teacher, dataset, place, files, hashes, cfg_options, workers, tensorboard)
    checkpoint = None if force else _interrupted(job, resume, say)
    if checkpoint is None:
        _clear(place)
    job.cfg.resume, job.cfg.load_from = checkpoint is not None, checkpoint and str(checkpoint)
    results.write_json(place / 'unfinished.json', job.made_with)
    (place / 'error.txt').unlink(missing_ok=True)  # of the part before a resume
    report.update('start', 0, 1)
    with _failure_told(run, place, report):
        if (gpus := run.setting('gpus')) > 1:
            record = distributed.launch(job, gpus, place / 'mmengine')
        else:
            record = train_and_test(job, report, say)
    record['teacher_check'] = checked
    results.write_json(place / 'record.json', record)
    # weights.pth is what is kept; checkpoints serve an unfinished run only
    for unfinished in [place / 'unfinished.json', *(place / 'mmengine').glob('*.pth'),
                       *(place / 'mmengine').glob('.*.part'), place / 'mmengine' / 'last_checkpoint']:
        unfinished.unlink(missing_ok=True)
    report.update('done', 1, 1)
    say(f'{run.id}: {record["numbers"]["mAP"]:.1f} mAP, {minutes(record["wall_s"])} ({record["device"]})')
    return record


@dataclass(frozen=True)
class _Teacher:
    """A student's teacher, trained or taken over."""
    run: Run
    place: Path
    record: dict

    @property
    def weights(self) -> Path:
        return self.place / 'weights.pth'


def _check_words(force: bool, resume: bool, tensorboard: bool, cfg_options: dict | None, work_dir) -> None:
    """TrainingError for arguments that do not go together, or need what is not installed."""
    if cfg_options and work_dir is None:
        raise TrainingError('--cfg-options changes the experiment outside the table of rows: give it a --work-dir')
    if force and resume:
        raise TrainingError('--force trains from the beginning, --resume goes on: give one of them')
    if tensorboard and importlib.util.find_spec('tensorboard') is None:
        raise TrainingError('--tensorboard needs the package tensorboard: make setup, or pip install tensorboard')


def _finished(run: Run, dataset: data.Dataset, results_dir: Path, force: bool, say) -> dict | None:
    """The record of a run that need not be trained again."""
    found = results.state(run, dataset, results_dir)
    if found.name == 'stale':
        say(f'{run.id}: its record is stale ({found.why}); training it again')
    if found.name != 'done' or force:
        return None
    say(f'{run.id}: done already, {found.record["numbers"]["mAP"]:.1f} mAP (FORCE=1 or --force trains it again)')
    return found.record


def _check_teacher(run: Run, teacher: _Teacher | None, dataset: data.Dataset, place: Path, files: dict[str, str],
                   hashes: dict[str, str], report: ProgressReport, say) -> dict | None:
    """What gate.check finds, for a teacher that was published or given; `run` is its student, or the teacher itself."""
    if teacher:
        run, place, checkpoint, hashes = teacher.run, teacher.place, teacher.weights, teacher.record['files']
    else:
        checkpoint = files.get('checkpoint')
    if 'checkpoint' not in hashes:
        return None
    return gate.check(run, dataset, place, checkpoint, hashes['checkpoint'],
                      functools.partial(evaluate, report=report), say)


def _job(run: Run, teacher: _Teacher | None, dataset: data.Dataset, place: Path, files: dict[str, str],
         hashes: dict[str, str], cfg_options: dict | None, workers: int | None, tensorboard: bool) -> Job:
    cfg = config(run, dataset, place / 'mmengine', teacher and teacher.weights)
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    if workers is not None:
        _set_workers(cfg, workers)
    made_with = {
        'settings_hash': results.settings_hash(cfg), 'files': hashes,
        'code_fingerprint': results.code_fingerprint(run),
        'data': {'name': dataset.name, 'fingerprint': dataset.fingerprint, 'notes': list(dataset.notes)},
        'teacher': teacher and {'id': teacher.run.id, 'weights_sha256': weights.sha256(teacher.weights)},
        'versions': results.versions()}
    if tensorboard:  # no part of the settings: it changes no number
        cfg.visualizer.vis_backends.append(dict(type='TensorboardVisBackend', save_dir=str(place / 'tensorboard')))
    return Job(run, cfg, dataset, place, files, made_with)


@contextlib.contextmanager
def _failure_told(run: Run, place: Path, report: ProgressReport):
    """An error is left in error.txt and progress.json before it goes on."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk may be full
            (place / 'error.txt').write_text(traceback.format_exc())
        with contextlib.suppress(OSError):
            report.update('failed', 0, 1, error=f'{type(error).__name__}: {error}'.splitlines()[0].rstrip(':'))
        if isinstance(error, distributed.ProcessError):
            raise TrainingError(f'{run.id}: {error}') from error
        raise


def evaluate(cfg: Config, checkpoint: str | Path, report: ProgressReport) -> dict[str, float | None]:
    """COCO's 12 numbers, in percent, of a detector's Config with a checkpoint that is loaded strictly."""
    cfg.experiment_name = cfg.visualizer.name = f'evaluate-{time.time_ns()}'  # see _train_and_test
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mmengine|mmdet|torch')
        runner = QuietRunner.from_cfg(cfg)
        runner.register_hook(ProgressHook(report))
        weights.load_strictly(runner.model, weights.read_weights(checkpoint), str(checkpoint))
        return {name.removeprefix('coco/'): value for name, value in runner.test().items()}


def check_it_fits(run: Run, dataset: data.Dataset) -> None:
    """TrainingError where GPUs are missing or cannot do what is asked, or a step needs more images than there are."""
    gpus, visible = run.setting('gpus'), torch.cuda.device_count()
    on_cpu = os.environ.get('CUDA_VISIBLE_DEVICES') == ''  # --device cpu
    if gpus > 1 and gpus > visible and not on_cpu:
        raise TrainingError(f'{run.id}: gpus={gpus}, but torch sees {visible} (CUDA_VISIBLE_DEVICES='
                            f'{os.environ.get("CUDA_VISIBLE_DEVICES", "not set")}); lower GPUS, or try it with '
                            f'--device cpu, in {gpus} processes on the CPU')
    if visible == 0 and 'fp16' in (run.setting('amp'), run.setting('half_teacher')):
        raise TrainingError(f'{run.id}: fp16 needs a GPU; bf16 works on the CPU too')
    images, step = len(data.coco_images(dataset.train_ann)), run.batch_size * gpus
    if step > images:
        raise TrainingError(f'{run.id}: a step needs {step} images (batch_size={run.batch_size} on '
                            f'{gpus} GPU{"s" if gpus > 1 else ""}), {dataset.name} has {images} to train on: lower '
                            'BATCH_SIZE or GPUS')


def _set_workers(cfg: Config, workers: int) -> None:
    if workers < 0:
        raise TrainingError(f'workers={workers}: expected a number of 0 or more')
    if cfg.train_dataloader.dataset.pipeline[0].type != 'SeedPicture':
        raise TrainingError(f'workers={workers}: at this profile the training process reads its own pictures; others '
                            'would change how they are flipped, and so the numbers')
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.num_workers = workers


def _interrupted(job: Job, resume: bool, say) -> Path | None:
    """The checkpoint from which an interrupted run goes on, or None and why not where there was something."""
    note, folder = job.place / 'unfinished.json', job.place / 'mmengine'
    left = json.loads(note.read_text()) if note.is_file() else None
    names = {'settings_hash': 'settings', 'code_fingerprint': 'code', 'files': 'weight files'}
    other = [] if left is None else [names.get(key, key) for key, value in job.made_with.items()
                                     if left.get(key) != json.loads(json.dumps(value))]
    checkpoint = None
    if left is None:
        why = 'no interrupted run is there'
    elif other:
        why = f'the interrupted run was made with other {", ".join(other)}'
    elif checkpoint := checkpoints.newest_whole(folder, lambda text: say(f'{job.run.id}: {text}')):
        epoch = checkpoint.stem.removeprefix('epoch_')
        say(f'{job.run.id}: goes on after epoch {epoch} of {job.run.epochs} (--force trains from the beginning)')
        return checkpoint
    else:
        why = 'the interrupted run left no whole checkpoint'
    if resume:
        raise TrainingError(f'{job.run.id}: cannot resume in {job.place}: {why}')
    if left is not None:
        say(f'{job.run.id}: starts from the beginning: {why}')
    return None


def _clear(place: Path) -> None:
    """Take an older record away before its run is made again: record first, then what it speaks of."""
    for name in ('record.json', 'unfinished.json', 'weights.pth', 'detections.json.gz', 'error.txt', 'progress.json',
                 'scalars.jsonl'):
        (place / name).unlink(missing_ok=True)
    for name in ('mmengine', 'tensorboard'):
        shutil.rmtree(place / name, ignore_errors=True)


def _keep_scalars(place: Path) -> None:
    """scalars.jsonl: what mmengine logged (losses, learning rate, gradient norm by step). Of steps that were trained
    again after a resume, the last time counts."""
    parts = sorted((place / 'mmengine').glob('*/vis_data'))
    lines = {json.loads(line)['step']: line for part in parts for file in sorted(part.glob('scalars.json'))
             for line in file.read_text().splitlines() if '"loss"' in line}
    (place / 'scalars.jsonl').write_text(''.join(f'{lines[step]}\n' for step in sorted(lines)))
    for part in parts:
        for file in (*part.glob('*.json'), part / 'config.py'):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: another backend has put its files there, W&B a whole folder
            part.rmdir()


def train_and_test(job: Job, report: ProgressReport | None, say=print) -> dict | None:
    """Train and evaluate in this process; the record, or None in all but the first process of a distributed run."""
    try:
        with float32_products(bool(job.cfg.get('tf32'))):
            return _train_and_test(job, report, say)
    except torch.OutOfMemoryError as error:
        raise TrainingError(out_of_memory(job.run, error)) from error
    except (OSError, RuntimeError) as error:
        if not _disk_is_full(error):
            raise
        raise TrainingError(f'{job.run.id}: the disk is full: {shutil.disk_usage(job.place).free / 1e6:.0f} MB are '
                            f'free at {job.place}. Make room; started again, the run goes on from its last whole '
                            'checkpoint') from error


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether this error or one behind it says so; torch raises one of its own over it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return error is not None and _disk_is_full(error.__cause__ or error.__context__)


def out_of_memory(run: Run, error: Exception) -> str:
    """What to lower, first what costs least."""
    width, height = run.profile.image_px
    lower = [f'BATCH_SIZE (batch_size={max(1, run.batch_size // 2)}; ACCUMULATE={2 * run.setting("accumulate")} keeps '
             f'{run.images_per_update} images an update)'] if run.batch_size > 1 else []
    lower += ['AMP=bf16 halves most of what is kept (fp16 where the GPU has no bfloat16)'] * (
        run.setting('amp') == 'off')
    lower += ['HALF_TEACHER=bf16'] * (run.row.method is not None and run.setting('half_teacher') == 'off')
    lower.append('the image size (image_px of the profile), which is another experiment')
    return (f'{run.id}: the GPU is out of memory at {run.batch_size} images of up to {width}x{height} px a step and '
            f'GPU. Lower one of these: {"; ".join(lower)}. Torch says: {str(error).splitlines()[0]}')


def _train_and_test(job: Job, report: ProgressReport | None, say) -> dict | None:
    run, cfg, place = job.run, job.cfg, job.place
    began = timestamp(), time.monotonic()
    code = results.commit()
    if backbone := job.files.get('backbone'):  # after the settings' hash, where it has mmdet's name
        cfg.model.get('student', cfg.model).backbone.init_cfg = dict(type='Pretrained', checkpoint=backbone)
    cfg.experiment_name = f'{run.id}-{time.time_ns()}'
    cfg.visualizer.name = cfg.experiment_name  # mmengine keeps loggers and visualizers by name for the process's life
    cfg.test_evaluator.detections = str(place / 'detections.json.gz')
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # mmengine's checkpoints hold plain Python and numpy values that torch >= 2.6 would refuse on resume
    with torch.serialization.safe_globals(weights.harmless_types()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mmengine|mmdet|torch')
        runner = QuietRunner.from_cfg(cfg)
        if report is not None:
            runner.register_hook(ProgressHook(report))
        if checkpoint := job.files.get('checkpoint'):
            weights.load_strictly(checkpoints.plain_model(runner), weights.read_weights(checkpoint), checkpoint)
            trained_s, resumed_from = time.monotonic() - began[1], []
        else:
            if backbone:
                model = checkpoints.plain_model(runner)
                weights.check_backbone(getattr(model, 'student', model).backbone, weights.read_weights(backbone),
                                       backbone)
            runner.register_hook(_TellLearningRate(run, say))
            runner.train()
            kept = next(hook for hook in runner.hooks if isinstance(hook, checkpoints.WholeCheckpointHook))
            trained_s, resumed_from = kept.train_s, kept.resumed_from
        test_began_s = time.monotonic()
        numbers = runner.test()
    if not is_main_process():
        return None
    model = checkpoints.plain_model(runner)
    student = getattr(model, 'student', model)
    numbers = {name.removeprefix('coco/'): value for name, value in numbers.items()}
    weights.write_weights(place / 'weights.pth', student.state_dict(), {
        'run': run.id, 'profile': run.profile.name, 'numbers': numbers, 'classes': list(job.dataset.classes), **code})
    _keep_scalars(place)
    on_gpu = torch.cuda.is_available()
    return {
        'format': 1, 'id': run.id, 'row': run.row.id, 'group': run.row.group.name, 'label': run.row.label,
        'profile': run.profile.name, 'seed': run.seed,
        'settings': {key: Path(value).name if key in job.files else value for key, value in run.settings},
        'file_names': {key: Path(path).name for key, path in job.files.items()},
        'config': job.config_text, 'code': code, **job.made_with,
        'numbers': numbers, 'weights_sha256': weights.sha256(place / 'weights.pth'),
        'steps': 0 if checkpoint else runner.max_iters, 'resumed_from': resumed_from,
        'train_s': trained_s, 'wall_s': trained_s + time.monotonic() - test_began_s, 'began': began[0],
        'device': torch.cuda.get_device_name() if on_gpu else 'CPU', 'gpus': run.setting('gpus'),
        'threads': torch.get_num_threads(), 'workers': cfg.train_dataloader.num_workers,
        'peak_memory_bytes': peak_memory_bytes(),
        'peak_gpu_memory_bytes': torch.cuda.max_memory_allocated() if on_gpu else None,
        'operators': mmcv_ext.backend(), 'host': platform.platform()}


def peak_memory_bytes() -> int:
    """The most memory that this process has had. (Linux's getrusage also counts what the one that started it had.)"""
    with contextlib.suppress(OSError):
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _TellLearningRate(Hook):
    """Say at the start which learning rate is used, and from what it was scaled."""

    def __init__(self, run: Run, say) -> None:
        self.run, self.say = run, say

    def before_train(self, runner) -> None:
        group = runner.optim_wrapper.optimizer.param_groups[0]
        text = describe_lr(self.run, runner.cfg.optim_wrapper.optimizer.lr, group.get('initial_lr', group['lr']))
        if is_main_process():
            self.say(f'{self.run.id}: {text}')
