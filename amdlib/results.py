"""Run records and their state.

A run's folder, `results/<profile>[/<data set>]/runs/<run id>/`, holds `record.json` (what was run, with what, and the
12 COCO numbers), `detections.json.gz` (COCO results format; the numbers are computed from this file),
`weights.pth` (the plain detector) and `progress.json`. A record counts only while settings, data, teacher and code are
those that would be used now; otherwise it is stale and says why.
"""
from __future__ import annotations

import ast
import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pandas as pd
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from amdlib import KitError, weights, zoo
from amdlib.data import Dataset
from amdlib.experiments import Run, config

ROOT = Path(__file__).resolve().parent.parent
METRICS = ('mAP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L', 'AR1', 'AR10', 'mAR', 'AR_S', 'AR_M', 'AR_L')  # COCO's order


class ResultError(KitError, ValueError):
    """Records are missing, stale or do not agree; the message names the runs."""


# ---- numbers ----------------------------------------------------------------------------------------------------

def coco_numbers(ann_file: str | Path, detections: list[dict]) -> dict[str, float | None]:
    """The 12 COCO numbers in percent at full precision; None where the data set has no object of that size.

    Args:
        detections: COCO results format, boxes xywh in pixels.
    Source: pycocotools' COCOeval with its defaults (at most 100 detections an image).
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(ann_file))
        found = COCO()
        if detections:
            found = truth.loadRes([dict(detection) for detection in detections])  # it writes into them
        else:  # loadRes refuses an empty list
            found.dataset = {**{key: truth.dataset[key] for key in ('images', 'categories')}, 'annotations': []}
            found.createIndex()
        evaluation = COCOeval(truth, found, 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: None if value < 0 else 100 * float(value)  # COCOeval writes -1 for "no such object"
            for name, value in zip(METRICS, evaluation.stats, strict=True)}


def write_json(path: Path, content: dict | list, compress: bool = False) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    text = json.dumps(content, indent=None if compress else 1)
    beside.write_bytes(gzip.compress(text.encode(), mtime=0) if compress else text.encode())
    os.replace(beside, path)


def read_detections(path: Path) -> list[dict]:
    """Detections of a run, COCO results format."""
    return json.loads(gzip.decompress(Path(path).read_bytes()))


def read_scalars(place: Path) -> pd.DataFrame:
    """What a run logged: step, loss and its terms, lr, grad_norm; empty for a run that was not trained."""
    file = Path(place) / 'scalars.jsonl'
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return pd.DataFrame(lines, columns=None if lines else ['step', 'loss'])


# ---- folders and fingerprints -----------------------------------------------------------------------------------

def folder(profile: str, dataset: Dataset, results: Path = ROOT / 'results') -> Path:
    """Where a profile's results on a data set live: results/mini, results/small/bccd."""
    return Path(results) / profile if profile in ('mini', dataset.name) else Path(results) / profile / dataset.name


def run_folder(run: Run, dataset: Dataset, results: Path = ROOT / 'results') -> Path:
    """The folder of one run."""
    return folder(run.profile.name, dataset, results) / 'runs' / run.id


# what changes no number, or is fingerprinted on its own (data, teacher, files)
_NOT_SETTINGS = {'work_dir', 'num_workers', 'persistent_workers', 'resume', 'load_from', 'launcher', 'visualizer',
                 'vis_backends', 'log_processor', 'log_level', 'env_cfg', 'default_hooks', 'custom_hooks',
                 'custom_imports', 'experiment_name', 'data_root', 'data_prefix', 'ann_file', 'teacher_weights',
                 'dataset_type', 'train_pipeline', 'test_pipeline', 'backend_args', 'test_evaluator', 'detections'}


def settings_hash(cfg: Config) -> str:
    """16 hex digits over everything in a Config that can change a number; paths and workers do not count."""
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in sorted(value.items()) if key not in _NOT_SETTINGS}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return Path(value).name if isinstance(value, str) and value.startswith('/') else value
    return _digest(json.dumps(plain(cfg.to_dict()), sort_keys=True))


def code_fingerprint(run: Run) -> str:
    """16 hex digits over the parts of the kit that a row's numbers depend on, comments and docstrings apart."""
    modules = ['mmcv_ext.py', 'train.py', 'checkpoints.py']
    if run.setting('gpus') > 1:
        modules.append('distributed.py')
    if run.row.method is not None:
        modules += ['distill.py', 'amd.py']  # the rivals' losses are built from amd.py's parts
        if run.row.method != 'amd':
            modules.append('losses.py')
    return _digest(''.join(_code(ROOT / 'amdlib' / name) for name in modules))


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        match getattr(node, 'body', None):
            case [ast.Expr(value=ast.Constant() as docstring), *_]:
                docstring.value = ''
    return ast.unparse(tree)  # unlike ast.dump, the same on every version of Python


def file_hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the weight files that a run's settings name."""
    return {key: weights.sha256(path) for key, path in run.files().items()}


def _same_files(run: Run, recorded: dict[str, str]) -> bool:
    """Published files are known by the digits in their names: they need not lie here to tell a record's state."""
    given, published = file_hashes(run), run.published_files()
    return recorded.keys() == given.keys() | published.keys() and all(
        recorded[key] == value for key, value in given.items()) and all(
        recorded[key].startswith(zoo.digits(zoo.file_name(url))) for key, url in published.items())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- records ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class State:
    """Where a run stands: done, stale, failed, running or missing, and why."""
    name: str
    why: str = ''
    record: dict | None = None


def state(run: Run, dataset: Dataset, results: Path = ROOT / 'results', place: Path | None = None) -> State:
    """Compare a run's record with what would be run now; `place` is the run's folder, where it is not the usual one."""
    place = place or run_folder(run, dataset, results)
    if not (place / 'record.json').is_file():
        return unfinished(place)
    try:
        record = json.loads((place / 'record.json').read_text())
    except json.JSONDecodeError as error:
        return State('stale', f'record.json cannot be read: {error}')
    try:
        return _compare(record, run, dataset, results)
    except (KeyError, TypeError) as error:
        return State('stale', f'record of another format: {error} is missing or of another kind')


def _compare(record: dict, run: Run, dataset: Dataset, results: Path) -> State:
    place, reasons = run_folder(run, dataset, results), []
    if record['settings_hash'] != settings_hash(config(run, dataset)) or not _same_files(run, record['files']):
        reasons.append('made with other settings')
    if record['data']['fingerprint'] != dataset.fingerprint:
        reasons.append(f'made with other data ({record["data"]["fingerprint"]}, now {dataset.fingerprint})')
    if record['code_fingerprint'] != code_fingerprint(run):
        reasons.append('made with other code')
    for name in ('weights.pth', 'detections.json.gz'):
        if not (place / name).is_file():
            reasons.append(f'{name} is missing')
    if teacher := run.teacher():
        taught = state(teacher, dataset, results)
        if taught.name != 'done':
            reasons.append(f'its teacher is {taught.name}')
        elif taught.record['weights_sha256'] != record['teacher']['weights_sha256']:
            reasons.append('its teacher was trained anew')
    return State('stale', ', '.join(reasons), record) if reasons else State('done', '', record)


def read_progress(place: Path) -> dict:
    """A run's progress.json, or {} where there is none."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads((place / 'progress.json').read_text())
    return {}


def unfinished(place: Path) -> State:
    """The state of a run whose folder has no record."""
    progress = read_progress(place)
    if not progress:
        return State('missing', 'never run')
    if progress['phase'] == 'failed':
        return State('failed', progress.get('error', ''))
    if progress['host'] == platform.node() and not training_process(place):
        return State('failed', f'killed at step {progress["step"]} of {progress["steps"]}')
    return State('running', f'step {progress["step"]} of {progress["steps"]}')


def training_process(place: Path) -> int | None:
    """The process of this machine that is training in this folder; None where there is none."""
    progress = read_progress(place)
    pid = progress.get('pid')
    if progress.get('phase') in (None, 'failed', 'done') or progress['host'] != platform.node() or not _alive(pid):
        return None
    started = progress.get('started')
    return pid if started is None or started == process_start(pid) else None  # numbers of processes are used again


def process_start(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where that is not known (no /proc)."""
    try:
        after_name = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
    except OSError:
        return None
    return int(after_name.split()[19])  # field 22 of proc(5)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    names = ('torch', 'torchvision', 'mmdet', 'mmengine', 'mmcv-lite', 'mmcv', 'numpy', 'pycocotools',
             'opencv-python-headless')
    found = {'python': platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> dict[str, str | bool | None]:
    """The commit that the kit stands on, and whether the tree had uncommitted changes (None: no git)."""
    def git(*words: str) -> str:
        done = subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()
    try:
        return {'commit': git('rev-parse', 'HEAD'), 'clean': git('status', '--porcelain', '-uno') == ''}
    except (OSError, subprocess.CalledProcessError):
        return {'commit': None, 'clean': None}


def collect(runs: list[Run], dataset: Dataset, results: Path = ROOT / 'results') -> pd.DataFrame:
    """One line a run: row, seed, the 12 numbers in percent, and what is behind them.

    Errors: ResultError naming every run that is not done; a stale record is never mixed in, nor one of a dry run.
    """
    if dry := [run.id for run in runs if run.profile.dry_run]:
        raise ResultError(f'{", ".join(dry)}: made with random weights in a dry run; such numbers go into no table')
    states = {run: state(run, dataset, results) for run in runs}
    bad = [f'{run.id} ({found.name}{": " + found.why if found.why else ""})'
           for run, found in states.items() if found.name != 'done']
    if bad:
        raise ResultError(f'{len(bad)} of {len(runs)} runs have no valid record: ' + '; '.join(bad))
    lines = []
    for run, found in states.items():
        record = found.record
        lines.append({'group': run.row.group.name, 'row': run.row.name, 'label': run.row.label, 'seed': run.seed,
                      **record['numbers'], 'run': run.id, 'settings_hash': record['settings_hash'],
                      'data': record['data']['fingerprint'], 'commit': record['code']['commit'],
                      'clean': record['code']['clean'], 'train_s': record['train_s'], 'device': record['device']})
    return pd.DataFrame(lines)
