"""Train one run, its teacher first where that is missing, and leave its record."""
from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from amdlib import methods
from amdlib.engine import processes
from amdlib.engine.training import Task, disk_is_full, evaluate, train_and_test
from amdlib.errors import RunError, Stopped, WeightsError
from amdlib.files import locked, plain, read_json, sha256, write_json, write_text
from amdlib.runs import evidence, fingerprints, stopping, taking, teacher_check, watch
from amdlib.runs.config import Taught, config, describe_lr, settings_hash
from amdlib.runs.device import check_it_fits, full_gpu
from amdlib.runs.progress import FILE as PROGRESS
from amdlib.runs.progress import ProgressReport, training_process
from amdlib.runs.run import Run
from amdlib.runs.signals import ASKED
from amdlib.runs.store import RECORD, UNFINISHED, WEIGHTS, Store, read_scalars, remove_all_halves, tidy
from amdlib.weights.reading import read_weights
from amdlib.weights.sizes import check_size
from amdlib.words import log, minutes, number, some

FORMAT = 2                      # of a record; 1 had its config as text
LOCK = '.lock'                  # held by the process that trains
DIVERGED, FEW = 10.0, 5         # last losses over first ones that make a run a failed one; of how many the median
NOTHING_LEFT = 'no interrupted run is there'
TRIAL_STEPS = 100               # below which a teacher that finds nothing is a trial, not a failure


@dataclass(frozen=True)
class TellLr:
    """Says at the start how the learning rate came about."""
    run: Run

    def __call__(self, given: float, used: float) -> None:
        log.info(f'{self.run.id}: {describe_lr(self.run, given, used)}')


@dataclass(frozen=True)
class _Prepared:
    """A run ready to train: its folder, Config and weight files, and what a record must agree with to count."""
    run: Run
    folder: Path
    cfg: Config
    files: dict[str, str]
    made_with: dict[str, Any]


def train(run: Run, store: Store, *, force: bool = False, resume: bool = False, work_dir: Path | None = None,
          cfg_options: dict[str, Any] | None = None, wait: bool = False) -> dict[str, Any]:
    """Train and evaluate one run, its teacher first where that is missing; return the record.

    A finished run is not trained again unless `force`; a stale one is, and said so. What it left stays until the new
    training has ended. An interrupted one goes on from its last whole checkpoint where settings, data, code, teacher
    and versions are the same, unless `force`; with `resume` it is an error where it cannot. `cfg_options` are
    mmengine's dotted keys; such a run is recorded in `work_dir`, outside the tables. One process trains a run: where
    another one does, this is an error, or with `wait` its record is waited for (as a student does for its teacher's).
    Errors: RunError; whatever training raises, after progress.json has said `failed`.
    """
    _check_words(store, force, resume, cfg_options, work_dir)
    store = store.with_kept(False)      # of a kept record nothing can be taken
    folder = Path(work_dir) if work_dir else store.run_folder(run)
    if work_dir is None and (record := _finished(run, store, force)):
        return record
    check_it_fits(run, store.dataset.trained_count, store.dataset.name)
    if run.row.shuffled and not run.profile.keep_features:
        raise RunError(f'{run.id} needs the kept features of all pictures; profile {run.profile.name} keeps none')
    teacher = run.teacher()
    if work_dir:
        folder.mkdir(parents=True, exist_ok=True)   # a place that is none is told before the teacher trains
    taught_by = train(teacher, store, wait=True) if teacher else None
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(run, folder, wait) as waited:
        if waited and work_dir is None and (record := _finished(run, store, force)):
            return record
        return _train(run, store, folder, taught_by, force, resume, cfg_options)


def _train(run: Run, store: Store, folder: Path, taught_by: dict[str, Any] | None, force: bool, resume: bool,
           cfg_options: dict[str, Any] | None) -> dict[str, Any]:
    """What is left of `train` once the folder is this process's own.

    Args:
        taught_by: the teacher's record.
    """
    remove_all_halves(folder)
    stopping.begin(folder)
    report = ProgressReport(folder, run.id)
    with _failure_told(run, folder, report):
        files = run.find_files(store.means.sources)
        for path in files.values():
            _check_finite(Path(path))
        hashes = {key: sha256(path) for key, path in files.items()}
        checked = teacher_check.check(run, store, taught_by, files, hashes, evaluate, report)
        taught = taught_by and taking.taught(run, store, taught_by)
    if taught_by:
        watch.warn_of_teacher(run, store)
    ready = _prepare(run, store, folder, taught, files, hashes, cfg_options)
    checkpoint = None if force else _interrupted(ready, resume)
    if checkpoint is None:
        _clear(folder)
    config_data = portable(ready.cfg.to_dict())     # before anything is set that belongs to this machine only
    ready.cfg.resume, ready.cfg.load_from = checkpoint is not None, checkpoint and str(checkpoint)
    if store.means.tensorboard:     # no part of the settings: it changes no number
        ready.cfg.visualizer.vis_backends.append(
            dict(type='TensorboardVisBackend', save_dir=str(folder / 'tensorboard')))
    write_json(folder / UNFINISHED, ready.made_with)
    (folder / 'error.txt').unlink(missing_ok=True)      # of the part before a resume
    report('start', 0, 1)
    code = fingerprints.commit()
    task = Task(run.id, ready.cfg, folder, files, {
        'run': run.id, 'profile': run.profile.name, 'classes': list(store.dataset.classes)}, report,
        run.recipe.gpus, TellLr(run),
        (watch.BedWatch.of(run), stopping.StopHook(folder / ASKED, folder / 'mmengine')))
    with _failure_told(run, folder, report):
        outcome = processes.launch(task, task.gpus, folder / 'mmengine') if task.gpus > 1 else train_and_test(task)
        _check_it_converged(folder)
        if run.row.is_teacher and outcome['steps'] >= TRIAL_STEPS and not outcome['numbers']['mAP']:
            raise RunError(f'{run.id}: 0.0 mAP after {outcome["steps"]} steps: no student could learn from it')
    record = {**_identity(run, files), 'config': config_data, 'code': code, **ready.made_with, **outcome,
              'gpus': run.recipe.gpus, 'host': platform.platform(), 'machine': fingerprints.machine(),
              'driver': fingerprints.driver(),
              'teacher_check': checked, 'arm': run.arm, 'reference_rms': run.reference_rms,
              'bed': watch.take_summary(folder / 'mmengine'), **evidence.of(folder, outcome['numbers'])}
    if run.row.is_teacher and run.profile.keep_features:
        with _failure_told(run, folder, report):
            record['feature_rms'] = taking.keep_features(run, store, folder, record['weights_sha256'])['feature_rms']
    write_json(folder / RECORD, record)
    tidy(folder)    # weights.pth is what is kept
    report('done', 1, 1)
    log.info(f'{run.id}: {number(record["numbers"]["mAP"])} mAP, {minutes(record["wall_s"])} ({record["device"]})')
    return record


def portable(value: Any) -> Any:
    """The same without folders of this machine: of a path its last part, as the settings hash has it."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith('/') else plain(value)


@contextlib.contextmanager
def _alone(run: Run, folder: Path, wait: bool) -> Iterator[bool]:
    """Hold a run's folder while the block runs, so that no two processes remove each other's files; the system frees it
    when this process ends, however that comes. Gives whether another process had it. Errors: RunError, see `train`."""
    def refused(pid: int | None) -> RunError:
        return RunError(f'{run.id}: {f"process {pid}" if pid else "another process"} is training it in {folder}')
    pid = training_process(folder)
    told = f'{run.id}: waiting for {f"process {pid}" if pid else "another process"}, which trains it'
    with locked(folder / LOCK, told, None if wait else refused(pid)) as waited:
        if (pid := training_process(folder)) not in (None, os.getpid()):    # an earlier failure of this one is over
            raise refused(pid)
        yield waited


def _check_words(store: Store, force: bool, resume: bool, cfg_options: dict | None, work_dir: Path | None) -> None:
    """RunError for arguments that do not go together, or need what is not installed."""
    if cfg_options and work_dir is None:
        raise RunError('--cfg-options changes the experiment outside the table of rows: give it a --work-dir')
    if force and resume:
        raise RunError('--force trains from the beginning, --resume goes on: give one of them')
    if store.means.tensorboard and importlib.util.find_spec('tensorboard') is None:
        raise RunError('--tensorboard needs the package tensorboard: make setup, or pip install tensorboard')


def _finished(run: Run, store: Store, force: bool) -> dict[str, Any] | None:
    """The record of a run that need not be trained again."""
    found = store.state(run)
    if found.name == 'stale':
        log.info(f'{run.id}: its record is stale ({found.why}); training it again')
    if found.name != 'done' or force:
        return None
    tidy(store.run_folder(run))     # where a kill came after its record
    note = f'; {found.note}' if found.note else ''
    log.info(f'{run.id}: done already, {number(found.record["numbers"]["mAP"])} mAP{note} '
             '(FORCE=1 or --force trains it again)')
    return found.record


def _prepare(run: Run, store: Store, folder: Path, taught: Taught | None, files: dict[str, str],
             hashes: dict[str, str], cfg_options: dict[str, Any] | None) -> _Prepared:
    dataset = store.dataset
    cfg = config(run, dataset, folder / 'mmengine', taught)
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    if store.means.workers is not None:
        _set_workers(cfg, store.means.workers)
    made_with = {
        'settings_hash': settings_hash(cfg), 'files': hashes, 'code_fingerprint': fingerprints.code_fingerprint(run),
        'data': {'name': dataset.name, 'fingerprint': dataset.fingerprint, 'notes': list(dataset.notes)},
        'teacher': taught and {'id': run.teacher().id, 'weights_sha256': sha256(taught.weights)},
        'versions': fingerprints.versions()}
    if not cfg_options:
        made_with['settings_key'] = fingerprints.settings_key(run, dataset)
    return _Prepared(run, folder, cfg, files, made_with)


def _identity(run: Run, files: dict[str, str]) -> dict[str, Any]:
    """What a record says of which run it is; no path of this machine."""
    outside = run.row.method and methods.is_outside(run.row.method)
    return {
        'format': FORMAT, 'id': run.id, 'row': run.row.id, 'group': run.row.group.name, 'label': run.row.label,
        'profile': run.profile.name, 'seed': run.seed,
        'settings': {key: Path(value).name if key in files else value for key, value in run.settings.items()},
        'file_names': {key: Path(path).name for key, path in files.items()},
        'method_file': {'name': methods.method_file(run.row.method).name,
                        'sha256': sha256(methods.method_file(run.row.method))} if outside else None}


@contextlib.contextmanager
def _failure_told(run: Run, folder: Path, report: ProgressReport) -> Iterator[None]:
    """An error is left in error.txt and progress.json before it goes on; a full GPU or disk says what to do."""
    try:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise RunError(full_gpu(run, error)) from error
        except (OSError, RuntimeError) as error:
            if not disk_is_full(error):
                raise
            raise RunError(f'{run.id}: the disk is full: {shutil.disk_usage(folder).free / 1e6:.0f} MB are free at '
                           f'{folder}. Make room; started again, the run goes on from its last whole '
                           'checkpoint') from error
    except BaseException as error:
        if isinstance(error, RunError) and (at := stopping.told(folder / 'mmengine')):
            report('stopped', **at)
            raise Stopped(f'{run.id}: stopped after step {at["step"]} of {at["steps"]}; started again, it goes on from '
                          'there') from error
        with contextlib.suppress(OSError):  # the disk may be full
            (folder / 'error.txt').write_text(traceback.format_exc())
        with contextlib.suppress(OSError):
            report('failed', 0, 1, error=f'{type(error).__name__}: {error}'.splitlines()[0].rstrip(':'))
        raise


def _check_finite(weights: Path) -> None:
    """WeightsError where a tensor of a weight file has a number that is none: what starts from it learns nothing."""
    check_size(weights)
    bad = [name for name, value in read_weights(weights).items()
           if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise WeightsError(f'{weights}: not finite: {some(bad)}')


def _check_it_converged(folder: Path) -> None:
    """RunError for a run that ended with weights that are not finite, or with a loss far above that of its start."""
    _check_finite(folder / WEIGHTS)
    losses = read_scalars(folder).loss.to_numpy(float)
    first, last = (float(np.median(part)) for part in (losses[:FEW], losses[-FEW:])) if len(losses) else (0.0, 0.0)
    if last > DIVERGED * first:
        raise RunError(f'it diverged: its loss went from {first:.3g} to {last:.3g}; a smaller learning rate or weight '
                       'may help')


def _set_workers(cfg: Config, workers: int) -> None:
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.num_workers = workers


def _interrupted(ready: _Prepared, resume: bool) -> Path | None:
    """The checkpoint from which an interrupted run goes on, or None and why not where there was something."""
    run, why = ready.run, _no_part_of(ready)
    checkpoint = None if why else stopping.newest(ready.folder / 'mmengine')
    if checkpoint:
        epoch = checkpoint.stem.removeprefix('epoch_')
        within = ', in the midst of the next,' if checkpoint.parent.name == stopping.FOLDER else ''
        log.info(f'{run.id}: goes on after epoch {epoch} of {run.epochs}{within} (--force trains from the beginning)')
        for file in (ready.folder / 'mmengine').glob('*/vis_data/scalars.json'):
            _drop_halves(file)
        return checkpoint
    why = why or 'the interrupted run left no whole checkpoint'
    if resume:
        raise RunError(f'{run.id}: cannot resume in {ready.folder}: {why}')
    if why != NOTHING_LEFT:
        log.info(f'{run.id}: starts from the beginning: {why}')
    return None


def _no_part_of(ready: _Prepared) -> str:
    """Why what was interrupted in a run's folder is no part of this run; '' where it is."""
    names = {'settings_hash': 'settings', 'code_fingerprint': 'code', 'files': 'weight files'}
    try:
        left = read_json(ready.folder / UNFINISHED)
        other = [names.get(key, key) for key, value in ready.made_with.items()
                 if key != 'settings_key' and left.get(key) != plain(value)]
    except FileNotFoundError:
        return NOTHING_LEFT
    except (OSError, ValueError, AttributeError):   # damaged, or of another type
        return f'{UNFINISHED} cannot be read'
    return f'the interrupted run was made with other {", ".join(other)}' if other else ''


def _drop_halves(file: Path) -> None:
    """Leave of a file with JSON in each line what can be read: a kill or a full disk cuts the last line."""
    lines, whole = file.read_bytes().decode(errors='replace').splitlines(), []
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(json.loads(line), dict):
                whole.append(line)
    if len(whole) < len(lines):
        write_text(file, ''.join(f'{line}\n' for line in whole))


def _clear(folder: Path) -> None:
    """Take away what an earlier training left unfinished. A record, and what it speaks of, stays until this one has
    ended: a kill, or FORCE=1 by mistake, costs no finished run."""
    for name in (UNFINISHED, 'error.txt', PROGRESS):
        (folder / name).unlink(missing_ok=True)
    for name in ('mmengine', 'tensorboard'):
        shutil.rmtree(folder / name, ignore_errors=True)
