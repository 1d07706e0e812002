"""A finished run as files for others: the plain detector for stock mmdet, a card that describes it, and ONNX.

mmdet needs `<name>-<hash>.pth` and `<name>.py` and nothing of this kit (with mmcv-lite `import amdlib.mmcv_ext` first,
which serves the operators; a compiled mmcv needs not even that). Nothing that a record says is executed.
"""
from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from amdlib.errors import RunError
from amdlib.files import sha256, write_text
from amdlib.paper.pairs import find_group
from amdlib.paper.rows import Row, find_row, outside_row
from amdlib.runs.config import config, settings_hash
from amdlib.runs.originals import get_config
from amdlib.runs.record import read_record
from amdlib.runs.run import Run
from amdlib.runs.store import RECORD, WEIGHTS, Store, unfinished
from amdlib.scale import onnx
from amdlib.show.tables import detector
from amdlib.weights.reading import load_strictly, read_weights
from amdlib.weights.sizes import check_size
from amdlib.weights.writing import write_weights
from amdlib.words import log, number

TESTING = ('default_scope', 'default_hooks', 'env_cfg', 'vis_backends', 'visualizer', 'log_processor', 'log_level',
           'load_from', 'test_cfg')     # of mmdet's config; what init_detector and tools/test.py read

NEEDED = ('id', 'row', 'profile', 'seed', 'settings', 'settings_hash', 'config', 'files', 'data', 'code', 'numbers',
          'versions', 'weights_sha256', 'steps', 'device')  # of a record


def export(run: str | Path, store: Store, *, output: str | Path | None = None, with_onnx: bool = False,
           files: Mapping[str, str] | None = None, method: str | None = None,
           stale_ok: bool = False, made: Run | None = None) -> dict[str, Path]:
    """Write a run's detector, its mmdet config and a card; `with_onnx` also the network as ONNX. Return the paths.

    Args:
        run: name of a run's folder (`retinanet-amd+phi=0.7-s0`) or a run's folder.
        output: folder to write into; default: `export` in the run's folder.
        files: the weight files that the run was made with, by setting, where it was made with any.
        method: `path/to/file.py:ClassName` of the loss that the run was made with, where that is not the kit's.
        stale_ok: export a run that would be made again, too.
        made: the run itself, where it is no row of the paper's.
    Errors: RunError for a run that is unknown, unfinished or stale, an ONNX graph that is not possible or does not
        agree with torch, and missing packages.
    """
    folder = _find(run, store)
    record = _record(folder, store)
    row = made.row if made else _row(record, method)
    given = {**record['settings'], **(files or {})}
    missing = [] if made else [key for key in record['files'] if key in record['settings'] and key not in (files or {})]
    made = made or Run.of(row, store.profile, record['seed'], {key: value for key, value in given.items()
                                                               if key not in missing})
    if (stale := _why_stale(made, folder, record, store, missing)) and not stale_ok:
        raise RunError(f'{record["id"]} is {stale}; --stale-ok exports it all the same')
    trained = _config(made, record, store)
    model = trained.model.student if trained.model.type == 'Distiller' else trained.model
    if with_onnx:
        onnx.check_possible(model, record['id'])
    name = f'{record["id"]}-{store.dataset.name}'
    output = Path(output) if output else folder / 'export'
    output.mkdir(parents=True, exist_ok=True)

    check_size(folder / WEIGHTS)
    state = read_weights(folder / WEIGHTS)
    written = {'config': output / f'{name}.py'}
    write_text(written['config'], mmdet_config(trained, row, record, store))
    network = _build(written['config'])
    load_strictly(network, state, str(folder / WEIGHTS))
    meta = _meta(record, trained)
    written['weights'] = _under_its_hash(output, name, '.pth', lambda path: write_weights(path, state, meta))
    parity = None
    if with_onnx:
        images = onnx.first_images(trained, store.dataset)
        boxes = onnx.RetinaNetBoxes(network)

        def write(path: Path) -> None:
            nonlocal parity
            onnx.write_onnx(boxes, path, {**onnx.properties(model, meta), 'run': name})
            parity = onnx.check_onnx(path, boxes, images)
        written['onnx'] = _under_its_hash(output, name, '.onnx', write)
        log.info(f'ONNX: {len(images)} test images, largest difference to torch {parity["boxes"]:.1e} px in boxes, '
                 f'{parity["scores"]:.1e} in scores')
    written['card'] = output / f'{name}.md'
    write_text(written['card'], card(record, made, meta, written, parity, stale))
    return written


# ---- the run ----------------------------------------------------------------------------------------------------

def profile_of(run: str | Path) -> str | None:
    """The profile that a run's folder tells; None for a name, an unfinished run, or a record that cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_record(Path(run) / RECORD).get('profile')
    return None


def _find(run: str | Path, store: Store) -> Path:
    if Path(run).is_dir():
        return Path(run).resolve()
    runs = store.folder / 'runs'
    if not (folder := runs / run).is_dir():
        there = sorted(path.name for path in runs.glob('*') if path.is_dir())
        raise RunError(f'no run {str(run)!r} in {runs}; there are: {", ".join(there) or "none"}')
    return folder


def _record(folder: Path, store: Store) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f'{folder.name} is {unfinished(folder)}; only a finished run can be exported')
    try:
        record = read_record(path)
    except (OSError, ValueError) as error:
        raise RunError(f'{path} cannot be read: {error}') from None
    if lacking := [key for key in NEEDED if key not in record]:
        raise RunError(f'{path}: a record of another format, {lacking[0]} is missing')
    if not (folder / WEIGHTS).is_file():
        raise RunError(f'{folder / WEIGHTS} is missing')
    if not record['id'].isprintable() or '/' in record['id']:   # it becomes a file's name and a comment in a config
        raise RunError(f'{path}: {record["id"]!r} is no name of a run')
    if record['profile'] != store.profile.name:
        raise RunError(f'{record["id"]} was made at the profile {record["profile"]}, not {store.profile.name}')
    return record


def _row(record: dict[str, Any], method: str | None) -> Row:
    """The record's row. Errors: RunError where its loss is from outside and `method` does not say where it lies."""
    if method is not None:
        return outside_row(find_group(record['group']), method)
    if outside := record.get('method_file'):
        raise RunError(f'{record["id"]} was made with a loss in {outside["name"]}: say where it lies, --method '
                       f'path/to/{outside["name"]}:{record["row"].rpartition(".")[2]}')
    return find_row(record['row'])


def _why_stale(run: Run, folder: Path, record: dict[str, Any], store: Store, missing: list[str]) -> str:
    """Why a finished run would be made again now; empty where it would not."""
    if missing:
        given = ', '.join(f'{key}={record["settings"][key]}' for key in missing)
        return f'not to be checked without the weight files that it was made with (--set {given}, with their folder)'
    if sha256(folder / WEIGHTS) != record['weights_sha256']:
        return 'stale: weights.pth is not the file that the record speaks of (another SHA-256)'
    if folder.parent.name == 'runs':    # its teacher lies beside it
        depth = len(store.folder.relative_to(store.results).parts)
        store = replace(store, results=folder.parents[depth + 1])
    found = store.state(run, folder)
    return '' if found.name == 'done' else f'{found.name}: {found.why}'


def _config(run: Run, record: dict[str, Any], store: Store) -> Config:
    """The Config that a record's run was made with: the run's own, or, where that has changed since, what the record
    holds as plain data."""
    cfg = config(run, store.dataset)
    if settings_hash(cfg) == record['settings_hash']:
        return cfg
    if not isinstance(record['config'], dict):
        raise RunError(f'{record["id"]}: its settings have changed since and its record, of an older format, holds its '
                       'config as text, which is not executed: train it again')
    return Config({key: record['config'][key] for key in ('model', 'test_dataloader')})


# ---- for mmdet --------------------------------------------------------------------------------------------------

def mmdet_config(trained: Config, row: Row, record: dict[str, Any], store: Store) -> str:
    """The text of an mmdet config for inference and testing, of mmdet's own types only.

    Where the run's detector and image scale are those of one of mmdet's configs, it inherits that config.
    Errors: RunError for content that would be executed as code when mmdet reads the file.
    """
    model = trained.model.student if trained.model.type == 'Distiller' else trained.model
    base = row.group.teacher_config if row.is_teacher else row.group.student_config
    head = f'# {record["id"]}, profile {store.profile.name}; inference and testing with mmdet 3.3\n'
    original, pipeline = get_config(base), trained.test_dataloader.dataset.pipeline
    if (not row.group.own and _same(_weightless(model), _weightless(original.model))
            and _same(_without_truth(pipeline), _without_truth(original.test_dataloader.dataset.pipeline))):
        return f'{head}_base_ = {base!r}\n'
    original = get_config(row.group.student_config)
    cfg = Config({key: copy.deepcopy(original[key]) for key in TESTING if key in original})
    cfg.model = _weightless(model)
    given, name = trained.test_dataloader.dataset, store.dataset.name
    cfg.test_dataloader = dict(
        batch_size=1, num_workers=2, persistent_workers=True, drop_last=False,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='CocoDataset', data_root=f'data/{name}/', ann_file=Path(given.ann_file).name,
                     data_prefix=dict(img=f'{Path(given.data_prefix.img).name}/'), test_mode=True,
                     metainfo=given.metainfo, pipeline=pipeline))
    cfg.test_evaluator = dict(type='CocoMetric', metric='bbox', ann_file=f'data/{name}/{Path(given.ann_file).name}')
    if odd := next(_odd(cfg.to_dict()), None):
        raise RunError(f'{record["id"]}: {odd!r} in its config could be executed as code: not written')
    return f'{head}# data below data/{name}/: change data_root, ann_file and data_prefix to yours\n{cfg.pretty_text}'


def _odd(value: Any) -> Iterator[str]:
    """What mmengine would not write or read as plain data: keys and types that are no names, and `{{`, where it puts in
    other text."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not str(key).isidentifier() or key == 'type' and not str(item).isidentifier():
                yield f'{key}: {item}'
            yield from _odd(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _odd(item)
    elif isinstance(value, str) and '{{' in value:
        yield value


def _same(one: Any, other: Any) -> bool:
    """Whether two parts of Configs say the same; JSON has no tuples."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _weightless(model: ConfigDict) -> ConfigDict:
    """A detector's config without where its backbone's first weights came from: the file has all weights."""
    model = copy.deepcopy(model)
    model.backbone.init_cfg = None
    return model


def _without_truth(pipeline: list) -> list:
    return [step for step in pipeline if step['type'] != 'LoadAnnotations']


def _meta(record: dict[str, Any], trained: Config) -> dict[str, Any]:
    """What the weight file says of itself; plain types, so that it loads without running code."""
    classes = tuple(trained.test_dataloader.dataset.metainfo.classes)
    return {'dataset_meta': {'classes': classes},  # mmdet takes the names of classes from here
            **{key: record[key] for key in ('id', 'row', 'profile', 'seed', 'settings', 'settings_hash', 'numbers',
                                            'versions', 'weights_sha256')},
            'data': {key: record['data'][key] for key in ('name', 'fingerprint')}, **record['code']}


def _build(path: Path) -> nn.Module:
    cfg = Config.fromfile(path)
    init_default_scope('mmdet')
    return MODELS.build(_weightless(cfg.model)).eval()


def _under_its_hash(folder: Path, name: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """Write a file beside, name it after the first 8 digits of its SHA-256, as the model zoo does."""
    beside = folder / f'.{name}{suffix}.{os.getpid()}'
    try:
        write(beside)
        path = folder / f'{name}-{sha256(beside)[:8]}{suffix}'
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


# ---- the card ---------------------------------------------------------------------------------------------------

def card(record: dict[str, Any], run: Run, meta: dict[str, Any], written: dict[str, Path],
         parity: dict[str, float] | None, stale: str = '') -> str:
    """Markdown: what the detector is, how it was made, how good it is, and how to load it."""
    classes, row = meta['dataset_meta']['classes'], run.row
    made = 'a teacher' if row.is_teacher else 'trained alone' if row.method is None else (
        f'distilled from {detector(run.teacher())} by {row.label}')
    settings = ', '.join(f'{key} = {value}' for key, value in record['settings'].items()) or "the row's own"
    clean = {True: '', False: ' with changes that were not committed', None: ''}[record['code'].get('clean')]
    numbers = '\n'.join(f'| {name} | {number(value, ".2f")} |' for name, value in record['numbers'].items())
    parts = [
        f'# {written["config"].stem}',
        f'{detector(run)}, {made}. From the AMD kit (arXiv 2301.13538), row `{row.id}`, profile '
        f'`{record["profile"]}`, seed {record["seed"]}, settings: {settings}.',
        '\n'.join([f'- data: {meta["data"]["name"]} (fingerprint {meta["data"]["fingerprint"]}): '
                   f'{"; ".join(record["data"]["notes"])}',
                   f'- {len(classes)} classes: {", ".join(classes)}',
                   f'- commit: {record["code"]["commit"]}{clean}',
                   f'- {record["steps"]} steps on {record["device"]}; settings hash {record["settings_hash"]}',
                   *([f'- when exported, this run was {stale}'] if stale else [])]),
        '| COCO number, percent | value |\n|:--|--:|\n' + numbers,
        run.profile.can_show,
        '## mmdet 3.3',
        '```python\nimport amdlib.mmcv_ext  # with mmcv-lite only: the operators; not needed where mmcv is compiled\n'
        'from mmdet.apis import inference_detector, init_detector\n\n'
        f"model = init_detector('{written['config'].name}', '{written['weights'].name}', device='cpu')\n"
        "found = inference_detector(model, 'image.jpg').pred_instances  # bboxes (xyxy, px), scores, labels\n```"]
    if 'onnx' in written:
        parts += ['## ONNX', (
            f'`{written["onnx"].name}`: input `images` (N, 3, H, W), float32, RGB, 0 to 255, resized as the config\'s '
            'test pipeline does; normalisation and padding are inside; N, H and W are free. Outputs `boxes_xyxy_px` '
            '(N, A, 4) in pixels of the input and `scores` (N, A, classes), one line an anchor. Then: drop low scores '
            'and boxes without area, NMS by class, keep the best; mmdet\'s thresholds are in the file\'s metadata. '
            f'Largest difference to torch on {onnx.PARITY_IMAGES} test images: {parity["boxes"]:.1e} px, '
            f'{parity["scores"]:.1e} in score.')]
    return '\n\n'.join(parts) + '\n'
