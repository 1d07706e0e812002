"""What each row costs: steps, seconds a step, memory, GPU-hours.

Steps follow from the schedule and the number of images. Seconds a step are measured or they are not told: by the
records of this profile's runs, else by `measure`, which times a few steps on made images of the profile's full size.
"""
from __future__ import annotations

import math
import shutil
import statistics
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from amdlib.datasets import Dataset
from amdlib.datasets.formats.coco import a_tenth
from amdlib.engine.training import float32_products
from amdlib.errors import RunError
from amdlib.files import read_csv, read_json, write_text
from amdlib.paper.profiles import DRY_RUN
from amdlib.paper.rows import Row
from amdlib.runs.config import config
from amdlib.runs.device import check_it_fits
from amdlib.runs.fingerprints import commit
from amdlib.runs.recipe import FILES
from amdlib.runs.run import Run, table_run
from amdlib.runs.store import Store, record_files
from amdlib.words import log, number, plural, timestamp

# images of train2017 that mmdet trains on: 118287 less those without an annotation (filter_empty_gt)
COCO_TRAIN_IMAGES = 117266
OBJECTS = 7             # of a made image; COCO has 7.3 an image
WARM_UP_STEPS = 5
MEASURED = 'cost_measured.csv'
KEY = ['row', 'settings', 'device']
SWITCHES = {'tf32': True, 'channels_last': True, 'fused': True, 'amp': 'bf16', 'half_teacher': 'bf16',
            'compile_teacher': True}    # for speed; each changes the last digits of what is computed
GIB = 2 ** 30


# ---- what is known ----------------------------------------------------------------------------------------------

def table(rows: Iterable[Row], store: Store, settings: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """One line a row and device: images, epochs, steps, seconds a step, memory, GPU-hours; NaN = not measured.

    `device` is empty where nothing was measured at this profile. `dry_run_s_per_step` is what the last dry run took,
    with smaller images and on the device in `dry_run_device`: no measure of this profile's time.
    Args:
        store: without a data set (`dataset` None) that of the paper is meant, COCO 2017.
        settings: the recipe of the runs, such as gpus or amp; only measurements with the same recipe count.
    """
    images = images_of(store)
    of_records, measured, dry = _records(store), _measured(store), _dry(store)
    lines = []
    for row in rows:
        run = table_run(row, store.profile, settings=settings)
        steps = run.steps(images)
        known = {**measured.get(_key(run), {}), **of_records.get(_key(run), {})}    # by device; records come first
        for device, found in (known or {'': {}}).items():
            s_per_step = found.get('s_per_step', math.nan)
            on_gpu = device not in ('', 'CPU')
            lines.append({
                'row': row.id, 'images': images, 'epochs': 0 if not steps else run.epochs,
                'batch_size': run.batch_size, 'gpus': run.recipe.gpus, 'steps': steps, 'device': device,
                's_per_step': s_per_step, 'memory_gib': found.get('memory_gib', math.nan),
                'gpu_hours': steps * s_per_step * run.recipe.gpus / 3600 if on_gpu else 0 if not steps
                else math.nan, 'by': found.get('by', ''),
                'dry_run_s_per_step': dry.get(row.id, {}).get('s_per_step', math.nan),
                'dry_run_device': dry.get(row.id, {}).get('device', ''), 'settings': _key(run)[1]})
    return pd.DataFrame(lines)


def images_of(store: Store) -> int:
    """On how many it trains an epoch; without a data set those of COCO 2017, or its tenth."""
    if store.dataset is None:
        return a_tenth(COCO_TRAIN_IMAGES) if store.profile.data == 'tenth_of_coco' else COCO_TRAIN_IMAGES
    return store.dataset.trained_count


def _key(run: Run) -> tuple[str, str]:
    """Row and recipe; epochs and weight files change no step's time."""
    return run.row.id, _text(run.settings)


def _text(settings: Mapping[str, Any]) -> str:
    other = {'epochs', 'lr', *FILES}
    return ' '.join(f'{key}={value}' for key, value in sorted(settings.items()) if key not in other)


def folder_of(store: Store) -> Path:
    """Where what is told of a profile goes; without a data set too."""
    return store.results / store.profile.name if store.dataset is None else store.folder


def _records(store: Store) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Seconds a step by row and recipe, then by device, from the records of the profile's runs."""
    folder = folder_of(store)
    if store.dataset is None and store.profile.data == 'coco':      # where a store that has it keeps its runs
        folder /= 'coco'
    runs: dict[tuple[str, str], dict[str, list]] = {}
    for file in record_files(folder / 'runs').values():
        record = read_json(file)
        if record['profile'] == store.profile.name and record['steps']:
            key = record['row'], _text(record['settings'])
            runs.setdefault(key, {}).setdefault(record['device'], []).append(record)
    return {key: {device: {
        's_per_step': statistics.median(one['train_s'] / one['steps'] for one in found),
        'memory_gib': max(one['peak_gpu_memory_bytes' if device != 'CPU' else 'peak_memory_bytes'] or math.nan
                          for one in found) / GIB,
        'by': plural(len(found), 'record', 'records')} for device, found in devices.items()}
        for key, devices in runs.items()}


def _measured(store: Store) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for line in _read(store.results / store.profile.name / MEASURED).to_dict('records'):
        by = line['problem'] or f'{line["steps"]} steps on made images'
        lines.setdefault((line['row'], line['settings']), {})[line['device']] = {
            's_per_step': line['s_per_step'], 'memory_gib': line['memory_gib'], 'by': by}
    return lines


def _dry(store: Store) -> dict[str, dict[str, Any]]:
    file = store.results / DRY_RUN.name / 'dryrun.csv'
    lines = _read(file).to_dict('records')
    return {line['row']: line for line in lines if not line['problem']}


def _read(file: Path) -> pd.DataFrame:
    if not file.is_file():
        return pd.DataFrame()
    text = ('settings', 'problem', 'device')
    return read_csv(file, dtype=dict.fromkeys(text, str)).fillna(dict.fromkeys(text, ''))


def readable(cells: pd.DataFrame) -> pd.DataFrame:
    """As text; what was not measured says so."""
    def told(value: float, form: str, steps: int) -> str:
        return 'not measured' if math.isnan(value) and steps else number(value, form)
    return pd.DataFrame([{
        'row': line.row, 'images': f'{line.images}', 'epochs': f'{line.epochs}',
        'images a step': f'{line.batch_size} x {line.gpus}',
        'steps': f'{line.steps}' if line.steps else '0 (published)',
        's/step': told(line.s_per_step, '.3f', line.steps), 'memory, GiB': told(line.memory_gib, '.1f', line.steps),
        'GPU-hours': told(line.gpu_hours, '.1f', line.steps), 'device': line.device or '–', 'by': line.by or '–',
        's/step, dry run': '–' if math.isnan(line.dry_run_s_per_step)
        else f'{line.dry_run_s_per_step:.1f} ({line.dry_run_device})'} for line in cells.itertuples()])


def write(cells: pd.DataFrame, store: Store) -> Path:
    """Write cost.csv (every value) and cost.md (for reading) into the profile's results; return the latter."""
    folder = folder_of(store)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'cost.csv', cells.to_csv(index=False, float_format='%.6g'))
    width, height = store.profile.image_px
    trained = [line for line in cells.drop_duplicates('row').itertuples() if line.steps]
    whole = cells.dropna(subset='gpu_hours').groupby('device').gpu_hours.agg(['sum', 'size'])
    sums = '; '.join(f'{device}: {line["sum"]:.0f} GPU-hours for {line["size"]:.0f} of {len(trained)} rows'
                     for device, line in whole.iterrows() if device) or 'No row was measured on a GPU.'
    about = (f'Images are fitted into {width}x{height} px. Measured are training steps; evaluation is not included. '
             '*By* says from what: records of whole runs (loading pictures included), or a few steps on made images, '
             f'each as large as can be, with {OBJECTS} objects, already in memory. The dry run\'s images are '
             f'{DRY_RUN.image_px[0]}x{DRY_RUN.image_px[1]} px: its times are no estimate for this profile.')
    parts = [f'# Cost of each row, profile {store.profile.name}', f'{sums} One seed.',
             readable(cells).to_markdown(index=False, disable_numparse=True), about]
    write_text(folder / 'cost.md', '\n\n'.join(parts) + '\n')
    return folder / 'cost.md'


# ---- measuring --------------------------------------------------------------------------------------------------

def measure(rows: Iterable[Row], store: Store, settings: Mapping[str, Any] | None = None, *, steps: int = 20,
            on_cpu: bool = False) -> pd.DataFrame:
    """Time training steps of each row on this machine's GPU and keep them in cost_measured.csv, by row and device.

    A row that needs more memory than there is says so in the column `problem`. Rows that train nothing are passed over.
    Errors: RunError without a GPU, unless `on_cpu`; for several GPUs.
    """
    if not torch.cuda.is_available() and not on_cpu:
        raise RunError('--measure: torch sees no GPU (python -m amdlib doctor tells more); --device cpu measures the '
                        "CPU's steps")
    file = store.results / store.profile.name / MEASURED
    for row in rows:
        run = table_run(row, store.profile, settings=settings)
        if run.recipe.gpus > 1:
            raise RunError(f'{run.id}: one GPU is measured at a time; leave gpus away')
        if not run.trains:
            continue
        if store.dataset is not None:
            check_it_fits(run, store.dataset.trained_count, store.dataset.name)
        line = {'row': row.id, 'settings': _key(run)[1], **measure_run(run, store.dataset, steps)}
        lines = pd.concat([_read(file), pd.DataFrame([line])]).drop_duplicates(KEY, keep='last')
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, lines.to_csv(index=False, float_format='%.6g'))
        memory = '' if math.isnan(line['memory_gib']) else f', {line["memory_gib"]:.1f} GiB'
        log.info(f'{run.id}: ' + (line['problem'] or f'{line["s_per_step"]:.3f} s/step{memory} ({line["device"]})'))
    return _read(file)


def recipes(settings: Mapping[str, Any], on_cpu: bool) -> list[dict[str, Any]]:
    """`settings` with no switch for speed, with each of them, and with all: for `measure`, one after the other."""
    switches = dict(SWITCHES)
    if on_cpu:
        switches.pop('tf32')    # of the GPU alone
        if not shutil.which('g++'):
            switches.pop('compile_teacher')     # torch.compile needs a compiler there
    plain = {key: value for key, value in settings.items() if key not in SWITCHES}
    return [plain, *({**plain, key: value} for key, value in switches.items()), {**plain, **switches}]


def write_switches(rows: Iterable[Row], store: Store, settings: Mapping[str, Any] | None = None) -> Path:
    """Write switches.csv and switches.md: what each of `recipes` was measured to change; return the latter.

    Errors: RunError where no row was measured without a switch.
    """
    measured, lines = _measured(store), []
    for row in rows:
        plain = _key(table_run(row, store.profile, settings=recipes(settings or {}, False)[0]))
        for (row_id, text), by_device in measured.items():
            switches, rest = _split_switches(text)
            if (row_id, rest) == plain:
                lines += [{'row': row.id, 'device': device, 'switch': switches, **found,
                           'speed': measured[plain][device]['s_per_step'] / found['s_per_step']}
                          for device, found in by_device.items() if device in measured.get(plain, {})]
    if not lines:
        raise RunError(f'profile {store.profile.name}: no switch was measured; --measure --switches does it')
    found, folder = pd.DataFrame(lines), store.results / store.profile.name
    write_text(folder / 'switches.csv', found.to_csv(index=False, float_format='%.6g'))
    shown = pd.DataFrame([{
        'row': line.row, 'device': line.device, 'switch': line.switch, 's/step': number(line.s_per_step, '.3f'),
        'steps/s, none = 1': number(line.speed, '.2f'), 'memory, GiB': number(line.memory_gib), 'by': line.by}
        for line in found.itertuples()])
    about = 'Median of training steps on made images in memory. A switch changes the last digits of every number.'
    write_text(folder / 'switches.md', '\n\n'.join([
        f'# Switches for speed, profile {store.profile.name}', about,
        shown.to_markdown(index=False, disable_numparse=True)]) + '\n')
    return folder / 'switches.md'


def _split_switches(text: str) -> tuple[str, str]:
    """The switches in a recipe's text, in words, and the rest of it."""
    words = text.split()
    on = [word for word in words if word.partition('=')[0] in SWITCHES]
    rest = ' '.join(word for word in words if word not in on)
    return (f'all: {", ".join(on)}' if len(on) > 1 else ''.join(on) or 'none'), rest


def measure_run(run: Run, dataset: Dataset | None, steps: int) -> dict[str, Any]:
    """Median seconds of a training step and the most GPU memory, after WARM_UP_STEPS."""
    on_gpu = torch.cuda.is_available()
    device = torch.device('cuda' if on_gpu else 'cpu')
    seconds, problem = [], ''
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with float32_products(run.recipe.tf32), warnings.catch_warnings():
            warnings.filterwarnings('ignore', module='mmengine|mmdet|torch')
            cfg = config(run, dataset)
            model, optimizer = trainable(cfg, run, device)
            batch = made_batch(run, cfg)
            for step in range(WARM_UP_STEPS + steps):
                began_s = now_s()
                model.train_step(batch, optimizer)
                if step >= WARM_UP_STEPS:
                    seconds.append(now_s() - began_s)
    except torch.OutOfMemoryError as error:
        problem = f'out of memory: {str(error).splitlines()[0]}'
    return {'device': device_name(),
            's_per_step': statistics.median(seconds) if seconds else math.nan,
            'memory_gib': torch.cuda.max_memory_allocated() / GIB if on_gpu else math.nan,
            'steps': len(seconds), 'batch_size': run.batch_size, 'image_px': '{}x{}'.format(*run.profile.image_px),
            'torch': torch.__version__, 'commit': commit()['commit'], 'measured': timestamp(),
            'problem': problem}


def trainable(cfg: Config, run: Run, device: torch.device) -> tuple[nn.Module, OptimWrapper]:
    """The model of a run's Config on a device, with random weights, and its optimizer."""
    init_default_scope('mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')
    cfg.model.get('student', cfg.model).backbone.init_cfg = None    # any weights take the same time
    torch.manual_seed(run.seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model = model.to(device).train()
    if cfg.get('channels_last'):
        model = model.to(memory_format=torch.channels_last)
    return model, build_optim_wrapper(model, cfg.optim_wrapper)


def made_batch(run: Run, cfg: Config) -> dict[str, list]:
    """A batch as mmdet's loader gives it, of noise: every image as large as the profile allows, OBJECTS boxes each (and
    their masks, for a detector with a mask head)."""
    width, height = run.profile.image_px
    draw = torch.Generator().manual_seed(run.seed)
    student = cfg.model.get('student', cfg.model)
    heads = student.roi_head.bbox_head if 'roi_head' in student else student.bbox_head
    classes = (heads[0] if isinstance(heads, list) else heads).num_classes
    inputs, samples = [], []
    for place in range(run.batch_size):
        inputs.append(torch.randint(0, 256, (3, height, width), generator=draw, dtype=torch.uint8))
        sides = (0.1 + 0.3 * torch.rand(OBJECTS, 2, generator=draw)) * torch.tensor([width, height])
        corner = torch.rand(OBJECTS, 2, generator=draw) * (torch.tensor([width, height]) - sides)
        boxes_xyxy_px = torch.cat([corner, corner + sides], 1)
        truth = InstanceData(bboxes=boxes_xyxy_px, labels=torch.randint(classes, (OBJECTS,), generator=draw))
        if 'mask_head' in student.get('roi_head', {}):
            truth.masks = _box_masks(boxes_xyxy_px, width, height)
        samples.append(DetDataSample(gt_instances=truth, ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)),
                                     metainfo=dict(img_id=place, img_shape=(height, width), ori_shape=(height, width),
                                                   scale_factor=(1.0, 1.0))))
    return {'inputs': inputs, 'data_samples': samples}


def _box_masks(boxes_xyxy_px: torch.Tensor, width: int, height: int) -> BitmapMasks:
    masks = torch.zeros(len(boxes_xyxy_px), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes_xyxy_px.round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return BitmapMasks(masks.numpy(), height, width)


def device_name() -> str:
    """Of the GPU that torch sees first, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'


def now_s() -> float:
    """A clock that a GPU's work has caught up with."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
