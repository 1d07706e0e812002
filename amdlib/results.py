"""Run records, their state, and tables beside the paper's numbers.

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
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pandas as pd
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from amdlib import weights
from amdlib.data import Dataset
from amdlib.experiments import GROUPS, Profile, Run, config, find_profile

ROOT = Path(__file__).resolve().parent.parent
METRICS = ('mAP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L', 'AR1', 'AR10', 'mAR', 'AR_S', 'AR_M', 'AR_L')  # COCO's order
TABLE1_METRICS = ('mAP', 'AP_S', 'AP_M', 'AP_L', 'mAR', 'AR_S', 'AR_M', 'AR_L')


class ResultError(ValueError):
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
    modules = ['mmcv_ext.py', 'train.py']
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
    reasons = []
    if record['settings_hash'] != settings_hash(config(run, dataset)) or record['files'] != file_hashes(run):
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
    if progress['host'] == platform.node() and not _alive(progress['pid']):
        return State('failed', f'killed at step {progress["step"]} of {progress["steps"]}')
    return State('running', f'step {progress["step"]} of {progress["steps"]}')


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


# ---- tables -----------------------------------------------------------------------------------------------------

def paper_table(number: str) -> pd.DataFrame:
    """One of the paper's tables ('I' to 'VI') from data/paper_tables.csv, in percent; NaN = not reported."""
    table = pd.read_csv(ROOT / 'data' / 'paper_tables.csv')
    return table[table['table'] == number].reset_index(drop=True)


def collect(runs: list[Run], dataset: Dataset, results: Path = ROOT / 'results') -> pd.DataFrame:
    """One line a run: row, seed, the 12 numbers in percent, and what is behind them.

    Errors: ResultError naming every run that is not done; a stale record is never mixed in.
    """
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


def table1(records: pd.DataFrame) -> pd.DataFrame:
    """Table I: one line a cell, means over seeds, in percent (tidy: group, row, metric, ours, sd, gain, paper ...)."""
    paper = paper_table('I').set_index(['group', 'row'])
    lines = []
    for (group, row), runs in records.groupby(['group', 'row'], sort=False):
        base = records[(records.group == group) & (records.row == 'baseline')]
        for metric in TABLE1_METRICS:
            printed = paper_value(paper, group, runs.label.iloc[0], metric)
            printed_base = paper_value(paper, group, 'baseline', metric)
            is_method = row not in ('teacher', 'baseline')
            lines.append({
                'group': group, 'row': row, 'label': runs.label.iloc[0], 'metric': metric,
                'ours': runs[metric].astype(float).mean(), 'sd': runs[metric].astype(float).std(),
                'seeds': len(runs), 'gain': _difference(runs, base, metric) if is_method else None, 'paper': printed,
                'paper_gain': None if printed is None or not is_method else printed - printed_base,
                'runs': ' '.join(runs.run), 'settings_hash': ' '.join(sorted(set(runs.settings_hash))),
                'data': runs.data.iloc[0], 'commit': ' '.join(sorted({str(c) for c in runs.commit}))})
    return pd.DataFrame(lines)


def _difference(runs: pd.DataFrame, base: pd.DataFrame, metric: str) -> float | None:
    if base.empty:
        return None
    return runs[metric].astype(float).mean() - base[metric].astype(float).mean()


def paper_value(paper: pd.DataFrame, group: str, label: str, metric: str) -> float | None:
    """The paper's number in percent; a teacher's mAP stands in its name: 'RetinaNet-ResNeXt101 (41.0)'."""
    if label == 'Teacher':
        named = re.search(r'\(([\d.]+)\)', paper.loc[(group, 'baseline'), 'teacher'])
        return float(named.group(1)) if metric == 'mAP' else None
    return float(paper.loc[(group, label), metric])


def table1_wide(tidy: pd.DataFrame, group: str) -> pd.DataFrame:
    """One group for reading: a line a row; mAP, gain and paper in full, other numbers as 'ours (paper)'."""
    lines = []
    for (_, label), cells in tidy[tidy.group == group].groupby(['row', 'label'], sort=False):
        by_metric = cells.set_index('metric')
        m = by_metric.loc['mAP']
        spread = f' ± {m.sd:.1f}' if m.seeds > 1 else ''
        line = {'': label, 'mAP': f'{_cell(m.ours)}{spread}', 'gain': _cell(m.gain, '+.1f'),
                'paper mAP': _cell(m.paper), 'paper gain': _cell(m.paper_gain, '+.1f')}
        for metric in TABLE1_METRICS[1:]:
            c = by_metric.loc[metric]
            line[metric] = _cell(c.ours) + (f' ({_cell(c.paper)})' if pd.notna(c.paper) else '')
        lines.append(line)
    return pd.DataFrame(lines)


def detector(run: Run) -> str:
    """What a run trains, in words: `RetinaNet, ResNet-18 (width 16)`."""
    group, profile, is_teacher = run.row.group, run.profile, run.row.is_teacher
    network = profile.teacher if is_teacher else profile.student
    name = group.teacher_label if is_teacher else group.student_label
    if network is None:
        return f'{name}, {"ResNeXt-101" if is_teacher else "ResNet-50"}'
    # DEVIATION no-masks, see experiments
    return f'{name.replace("Cascade Mask", "Cascade")}, ResNet-{network.depth} (width {network.width})'


def group_title(group: str, profile: str) -> str:
    """A table's heading: which student learns from which teacher."""
    student, teacher = (detector(Run.of(f'{group}-{name}', profile)) for name in ('baseline', 'teacher'))
    note = ' without masks: the data have none' if 'Cascade R-CNN' in teacher else ''
    return f'{student}, taught by {teacher}{note}'


def reading_notes(tidy: pd.DataFrame, records: pd.DataFrame, profile: Profile, dataset: Dataset) -> str:
    """Markdown: what these numbers can and cannot show, and what was found, in plain words."""
    images = len(coco_images(dataset.test_ann))
    seeds = int(tidy.loc[tidy.row != 'teacher', 'seeds'].min())
    lines = [profile.can_show, f'{images} test images, {seeds} seed{"s" if seeds > 1 else ""}' + (
        '.' if seeds > 1 else ': the spread between seeds is not known, so read no order into close numbers.')]
    mean = tidy[tidy.metric == 'mAP'].set_index(['group', 'row'])
    for group in tidy.group.unique():
        gains = mean.loc[group].gain.dropna().sort_values(ascending=False)
        teacher, baseline = mean.loc[(group, 'teacher'), 'ours'], mean.loc[(group, 'baseline'), 'ours']
        ranked = ', '.join(f'{mean.loc[(group, row), "label"]} {gain:+.1f}' for row, gain in gains.items())
        lines.append(f'{GROUPS[group].student_label}: the teacher is {teacher - baseline:+.1f} mAP from the baseline '
                     f'({baseline:.1f}); gains: {ranked}.')
    lines += [f'Data: {note}.' for note in dataset.notes]
    return '\n'.join(f'- {line}' for line in lines)


def coco_images(ann_file: Path) -> list[dict]:
    """The images of a COCO file."""
    return json.loads(Path(ann_file).read_text())['images']


def write_table1(tidy: pd.DataFrame, notes: str, place: Path, profile: str) -> Path:
    """Write table1.csv (every cell, full precision) and table1.md (for reading) into `place`; return the latter."""
    place.mkdir(parents=True, exist_ok=True)
    tidy.to_csv(place / 'table1.csv', index=False, float_format='%.6f')
    parts = [f'# Table I, profile `{find_profile(profile).name}`',
             'COCO numbers in percent; in brackets the paper\'s. *gain*: difference to the baseline above it.']
    for group in tidy.group.unique():
        parts += [f'**{group_title(group, profile)}**', table1_wide(tidy, group).to_markdown(index=False,
                                                                                           disable_numparse=True)]
    parts += ['## What this can and cannot show', notes]
    (place / 'table1.md').write_text('\n\n'.join(parts) + '\n')
    return place / 'table1.md'


def _cell(value: float | None, form: str = '.1f') -> str:
    return '–' if pd.isna(value) else format(value, form)
