"""Every row once at the paper's full architectures: a few steps, evaluated, exported, read again by stock mmdet.

The ordinary path (Config, run, record, export) with the profile `dryrun`: random weights, a few images of COCO, a small
image scale. What it leaves in `results/dryrun/` says that it means nothing as a result.
"""
from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.structures import InstanceData
from pycocotools.coco import COCO

from amdlib.errors import RunError
from amdlib.files import write_text
from amdlib.methods import find_method, looks_at_steps
from amdlib.paper.profiles import PAPER_IMAGE_PX
from amdlib.paper.rows import ROWS
from amdlib.runs.batch import run_missing
from amdlib.runs.device import default_jobs
from amdlib.runs.run import Run, with_teachers
from amdlib.runs.store import WEIGHTS, Store
from amdlib.scale.export import export
from amdlib.words import log, minutes

LIMIT_S, LIMIT_BYTES = 20 * 60, 16 * 2 ** 30    # what a run of all rows should stay below on two cores
ONNX_ROW = 'retinanet-baseline'     # every RetinaNet has the same graph
BOX_PX, SCORE = 0.011, 1.1e-6       # a run's detections are written to 0.01 px and 1e-6
GIB = 2 ** 30


class PeakMemory:
    """The most memory that this process and all below it had at once, sampled while the block runs.

    Pages that several processes share count once (proportional set size).
    """

    def __init__(self, every_s: float = 1.0) -> None:
        self.every_s, self.peak_bytes = every_s, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(map(_memory_bytes, [me, *me.children(recursive=True)])))
            if self._end.wait(self.every_s):
                return


def _memory_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):     # it has ended meanwhile
        return getattr(process.memory_full_info(), 'pss', 0)
    return 0


def dry_run(store: Store, rows: Iterable[str] | None = None, *, keep: bool = False) -> pd.DataFrame:
    """Run, export and read again every row (or `rows`) and the teachers behind them; write dryrun.csv, dryrun.md and
    dryrun.log.

    Args:
        store: of the profile `dryrun`.
        keep: leave weights and exported files, some 300 MB a row; otherwise they go as soon as they are checked.
    Returns: one line a row, with the reason of a failure in `problem`.
    Errors: RunError where a row failed, after everything is written.
    """
    runs = with_teachers(Run.of(row, store.profile) for row in rows or ROWS)
    lines: dict[Run, dict[str, Any]] = {}
    began_s, failures = time.monotonic(), ''

    def check(run: Run) -> None:
        lines[run] = {'row': run.row.id, **check_run(run, store)}
        log.info(describe(lines[run]))
        if not (keep or run.row.is_teacher):
            _drop_weights(store.run_folder(run))

    with _kept_log(store.folder / 'dryrun.log'), PeakMemory() as memory:
        try:
            run_missing(runs, store, force=True, check=check)
        except RunError as error:
            failures = str(error)
    if not keep:
        for run in runs:
            _drop_weights(store.run_folder(run))
    table = pd.DataFrame([lines.get(run) or {'row': run.row.id, 'problem': _why(run, failures)} for run in runs])
    path = write(table, store, time.monotonic() - began_s, memory.peak_bytes)
    log.info(path.read_text().partition('\n\n')[2].partition('\n\n')[0])
    log.info(str(path))
    if failures:
        raise RunError(failures)
    return table


@contextlib.contextmanager
def _kept_log(path: Path) -> Iterator[None]:
    """What is logged while the block runs, into a file too, each line with the time since the start."""
    began_s, lines = time.monotonic(), []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f'{minutes(time.monotonic() - began_s):>6}  {record.getMessage()}\n')
    handler = Keep()
    level = log.level
    log.setLevel(logging.INFO)      # also where nobody has asked for it
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, ''.join(lines))


def check_run(run: Run, store: Store) -> dict[str, Any]:
    """What a finished run of the dry run was like; exports it and reads it again.

    Errors: RunError for a loss that is not finite or missing, for no detections, and for other ones after reading.
    """
    record, scalars, detections = store.state(run).record, store.scalars(run), store.detections(run)
    _check_losses(run, record, scalars)
    if not detections:
        raise RunError('nothing was detected: neither evaluation nor export is tried')
    onnx = run.row.id == ONNX_ROW
    written = export(run.id, store, with_onnx=onnx)
    images = read_again(written, record, store, detections)
    return {
        'steps': record['steps'], 's_per_step': record['train_s'] / record['steps'],
        'first_loss': scalars.loss.iloc[0], 'last_loss': scalars.loss.iloc[-1],
        'grad_norm': scalars.grad_norm.iloc[-1], 'lr': scalars.lr.iloc[-1],
        'peak_memory_gib': record['peak_memory_bytes'] / GIB,
        'peak_gpu_memory_gib': (record['peak_gpu_memory_bytes'] or math.nan) / GIB,
        'detections': len(detections), 'images': images, 'exported': written['weights'].name,
        'exported_mb': written['weights'].stat().st_size / 1e6, 'onnx': 'same boxes' if onnx else '',
        'read_again': 'same detections', 'wall_s': record['wall_s'], 'device': record['device'],
        'threads': record['threads'], 'settings_hash': record['settings_hash'], 'commit': record['code']['commit'],
        'problem': ''}


def _check_losses(run: Run, record: dict[str, Any], scalars: pd.DataFrame) -> None:
    """Every step logged, every term finite, and with a method a term for each level, or one of a step."""
    if len(scalars) != record['steps'] or not record['steps']:
        raise RunError(f'{record["steps"]} steps, of which {len(scalars)} are logged')
    terms = [name for name in scalars if 'loss' in name]
    if odd := [name for name in terms if not all(map(math.isfinite, scalars[name]))]:
        raise RunError(f'not finite: {", ".join(odd)}')
    method, wanted = run.row.method, []
    if method:
        at_steps = looks_at_steps(find_method(method))
        wanted = [f'loss_{method}_'] if at_steps else [f'loss_{method}_fpn_{i}' for i in run.row.group.levels]
    if missing := [name for name in wanted if not any(term.startswith(name) for term in terms)]:
        raise RunError(f'no such term among the losses: {", ".join(missing)}; there are: {", ".join(terms)}')


def read_again(written: dict[str, Path], record: dict[str, Any], store: Store,
               detections: list[dict[str, Any]]) -> int:
    """Load an exported detector with mmdet's own loader and compare its detections on the test images with the run's.

    Returns: the number of images.
    Errors: RunError naming the first image that differs, and by how much.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(record['threads'])    # another number of threads sums in another order
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it says what it loads
            warnings.simplefilter('ignore')
            model = init_detector(str(written['config']), str(written['weights']),
                                  device='cpu' if record['device'] == 'CPU' else 'cuda:0')
            truth = COCO(str(store.dataset.test_ann))
            categories = truth.getCatIds(catNms=model.dataset_meta['classes'])
            for image in truth.dataset['images']:
                path = store.dataset.test_images / image['file_name']
                found = inference_detector(model, str(path)).pred_instances.cpu()
                recorded = [one for one in detections if one['image_id'] == image['id']]
                if difference := _difference(found, recorded, categories):
                    raise RunError(f'{written["weights"].name} in mmdet finds others than the run in '
                                      f'{image["file_name"]}: {difference}')
    finally:
        torch.set_num_threads(threads)
    return len(truth.dataset['images'])


def _difference(found: InstanceData, recorded: list[dict[str, Any]], categories: list[int]) -> str:
    """In what an image's detections differ from the recorded ones; '' where they are the same up to rounding."""
    if len(found) != len(recorded):
        return f'{len(found)} instead of {len(recorded)}'
    if not recorded:
        return ''
    if [categories[label] for label in found.labels.tolist()] != [one['category_id'] for one in recorded]:
        return 'other classes'
    boxes_xywh_px = torch.cat([found.bboxes[:, :2], found.bboxes[:, 2:] - found.bboxes[:, :2]], 1).double()
    px = float((boxes_xywh_px - torch.tensor([one['bbox'] for one in recorded]).double()).abs().max())
    score = float((found.scores.double() - torch.tensor([one['score'] for one in recorded]).double()).abs().max())
    return '' if px <= BOX_PX and score <= SCORE else f'by up to {px:.2g} px and {score:.2g} in score'


def describe(line: dict[str, Any]) -> str:
    """One row's line for the terminal."""
    onnx = ', ONNX agrees' if line['onnx'] else ''
    return (f'{line["row"]}: {line["steps"]} steps, {line["s_per_step"]:.1f} s/step, loss {line["first_loss"]:.3f} -> '
            f'{line["last_loss"]:.3f}, {line["peak_memory_gib"]:.1f} GiB, {line["detections"]} detections in '
            f'{line["images"]} images, {line["exported"]} ({line["exported_mb"]:.0f} MB) read again: '
            f'{line["read_again"]}{onnx}')


def write(table: pd.DataFrame, store: Store, total_s: float, peak_bytes: int) -> Path:
    """Write dryrun.csv (every value) and dryrun.md (for reading); return the latter."""
    store.folder.mkdir(parents=True, exist_ok=True)
    write_text(store.folder / 'dryrun.csv', table.to_csv(index=False, float_format='%.6g'))
    failed = int((table.problem != '').sum())
    cores = len(os.sched_getaffinity(0))
    verdicts = [f'{value} ({"below" if inside else "ABOVE"} {limit})' for value, inside, limit in (
        (minutes(total_s), total_s < LIMIT_S, f'{LIMIT_S // 60} minutes'),
        (f'{peak_bytes / GIB:.1f} GiB at the most, all processes together', peak_bytes < LIMIT_BYTES,
         f'{LIMIT_BYTES // GIB} GiB'))]
    jobs = store.means.jobs or default_jobs(store.means.device)
    summary = (f'{len(table) - failed} of {len(table)} rows passed, {failed} failed. {verdicts[0]}, {verdicts[1]}; '
               f'{jobs} rows at once on {cores} cores.')
    width, height = store.profile.image_px
    about = [store.profile.can_show,
             f'Images are fitted into {width}x{height} px (the paper: {PAPER_IMAGE_PX[0]}x{PAPER_IMAGE_PX[1]}), '
             f'{store.profile.batch_size} a step; {"; ".join(store.dataset.notes)}. Teachers are trained as many '
             'steps, from random weights, and taught with all the same. Detections are kept down to a score of 0. '
             '*Memory* is the main process\'s own peak, *MB* the exported file\'s size; *read again*: stock mmdet '
             'loads the exported config and weights and finds the same as the run did, to 0.01 px.']
    parts = ['# Dry run', summary, *about, readable(table).to_markdown(index=False, disable_numparse=True)]
    write_text(store.folder / 'dryrun.md', '\n\n'.join(parts) + '\n')
    return store.folder / 'dryrun.md'


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The columns worth reading, as text."""
    lines = []
    for line in table.to_dict('records'):
        if line['problem']:
            lines.append({'row': line['row'], 'read again': f'FAILED: {line["problem"]}'})
            continue
        lines.append({'row': line['row'], 'steps': f'{line["steps"]:.0f}', 's/step': f'{line["s_per_step"]:.1f}',
                      'first loss': f'{line["first_loss"]:.3f}', 'last loss': f'{line["last_loss"]:.3f}',
                      'gradient norm': f'{line["grad_norm"]:.3g}', 'memory, GiB': f'{line["peak_memory_gib"]:.1f}',
                      'detections': f'{line["detections"]:.0f}', 'MB': f'{line["exported_mb"]:.0f}',
                      'read again': line['read_again'] + (', ONNX too' if line['onnx'] else ''),
                      'wall s': f'{line["wall_s"]:.0f}'})
    return pd.DataFrame(lines).fillna('')


def _why(run: Run, failures: str) -> str:
    told = [line.strip().removeprefix(f'{run.id}: ') for line in failures.splitlines()
            if line.strip().startswith(f'{run.id}: ')]
    return told[0] if told else 'not run'


def _drop_weights(folder: Path) -> None:
    for file in [folder / WEIGHTS, *(folder / 'export').glob('*.pth'), *(folder / 'export').glob('*.onnx')]:
        file.unlink(missing_ok=True)
