"""Every row once at the paper's full architectures: a few steps, evaluated, exported, read again by stock mmdet.

The ordinary path (Config, run, record, export) with the profile `dryrun`: random weights, a few images of COCO, a small
image scale. What it leaves in `results/dryrun/` says that it means nothing as a result.
"""
from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import psutil
import torch
from mmdet.apis import inference_detector, init_detector
from pycocotools.coco import COCO

from amdlib import KitError, batch, export, results
from amdlib.data import Dataset
from amdlib.experiments import DRY_RUN, ROWS, Run
from amdlib.train import minutes

LIMIT_S, LIMIT_BYTES = 20 * 60, 16 * 2 ** 30    # what a run of all rows should stay below on two cores
ONNX_ROW = 'retinanet-baseline'     # every RetinaNet has the same graph
BOX_PX, SCORE = 0.011, 1.1e-6       # a run's detections are written to 0.01 px and 1e-6
GIB = 2 ** 30


class DryRunError(KitError, RuntimeError):
    """Rows of a dry run failed; the message names each with the reason."""


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

    def __exit__(self, *_) -> None:
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


def dry_run(dataset: Dataset, data: str | Path, results_dir: Path = results.ROOT / 'results', *,
            rows: Iterable[str] | None = None, jobs: int | None = None, device: str | None = None, keep: bool = False,
            say: Callable[[str], None] = print) -> pd.DataFrame:
    """Run, export and read again every row (or `rows`) and the teachers behind them; write dryrun.csv, dryrun.md and
    dryrun.log.

    Args:
        dataset: of the profile `dryrun`; `data`: the folder that it was prepared from.
        keep: leave weights and exported files, some 300 MB a row; otherwise they go as soon as they are checked.
    Returns one line a row, with the reason of a failure in `problem`.
    Errors: DryRunError where a row failed, after everything is written.
    """
    runs = batch.with_teachers(Run.of(row, DRY_RUN) for row in rows or ROWS)
    lines: dict[Run, dict] = {}
    began_s, failures, log = time.monotonic(), '', []

    def tell(text: str) -> None:
        log.append(f'{minutes(time.monotonic() - began_s):>6}  {text}\n')
        say(text)

    def check(run: Run) -> None:
        lines[run] = {'row': run.row.id, **check_run(run, dataset, results_dir)}
        tell(describe(lines[run]))
        if not (keep or run.row.is_teacher):
            _drop_weights(results.run_folder(run, dataset, results_dir))

    with PeakMemory() as memory:
        try:
            batch.run_missing(runs, dataset, data, jobs=jobs, force=True, device=device, results_dir=results_dir,
                              check=check, say=tell)
        except batch.BatchError as error:
            failures = str(error)
    if not keep:
        for run in runs:
            _drop_weights(results.run_folder(run, dataset, results_dir))
    table = pd.DataFrame([lines.get(run) or {'row': run.row.id, 'problem': _why(run, failures)} for run in runs])
    place = write(table, dataset, results_dir, time.monotonic() - began_s, memory.peak_bytes,
                  jobs or batch.default_jobs(device))
    place.with_suffix('.log').write_text(''.join(log))
    say(place.read_text().partition('\n\n')[2].partition('\n\n')[0])
    say(str(place))
    if failures:
        raise DryRunError(failures)
    return table


def check_run(run: Run, dataset: Dataset, results_dir: Path) -> dict:
    """What a finished run of the dry run was like; exports it and reads it again.

    Errors: DryRunError for a loss that is not finite or missing, for no detections, and for other ones after reading.
    """
    place = results.run_folder(run, dataset, results_dir)
    record = results.state(run, dataset, results_dir).record
    scalars = results.read_scalars(place)
    _check_losses(run, record, scalars)
    detections = results.read_detections(place / 'detections.json.gz')
    if not detections:
        raise DryRunError('nothing was detected: neither evaluation nor export is tried')
    onnx = run.row.id == ONNX_ROW
    written = export.export(run.id, run.profile.name, dataset, results_dir, onnx=onnx, say=lambda *_: None)
    images = read_again(written, record, dataset, detections)
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


def _check_losses(run: Run, record: dict, scalars: pd.DataFrame) -> None:
    """Every step logged, every term finite, and with a method a term for each level."""
    if len(scalars) != record['steps'] or not record['steps']:
        raise DryRunError(f'{record["steps"]} steps, of which {len(scalars)} are logged')
    terms = [name for name in scalars if 'loss' in name]
    if odd := [name for name in terms if not all(map(math.isfinite, scalars[name]))]:
        raise DryRunError(f'not finite: {", ".join(odd)}')
    wanted = [f'loss_{run.row.method}_fpn_{i}' for i in run.row.group.levels] if run.row.method else []
    if missing := [name for name in wanted if name not in terms]:
        raise DryRunError(f'no such term among the losses: {", ".join(missing)}; there are: {", ".join(terms)}')


def read_again(written: dict[str, Path], record: dict, dataset: Dataset, detections: list[dict]) -> int:
    """Load an exported detector with mmdet's own loader and compare its detections on the test images with the run's.

    Returns the number of images. Errors: DryRunError naming the first image that differs, and by how much.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(record['threads'])    # another number of threads sums in another order
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it says what it loads
            warnings.simplefilter('ignore')
            model = init_detector(str(written['config']), str(written['weights']),
                                  device='cpu' if record['device'] == 'CPU' else 'cuda:0')
            truth = COCO(str(dataset.test_ann))
            categories = truth.getCatIds(catNms=model.dataset_meta['classes'])
            for image in truth.dataset['images']:
                found = inference_detector(model, str(dataset.test_images / image['file_name'])).pred_instances.cpu()
                recorded = [one for one in detections if one['image_id'] == image['id']]
                if difference := _difference(found, recorded, categories):
                    raise DryRunError(f'{written["weights"].name} in mmdet finds others than the run in '
                                      f'{image["file_name"]}: {difference}')
    finally:
        torch.set_num_threads(threads)
    return len(truth.dataset['images'])


def _difference(found, recorded: list[dict], categories: list[int]) -> str:
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


def describe(line: dict) -> str:
    """One row's line for the terminal."""
    onnx = ', ONNX agrees' if line['onnx'] else ''
    return (f'{line["row"]}: {line["steps"]} steps, {line["s_per_step"]:.1f} s/step, loss {line["first_loss"]:.3f} -> '
            f'{line["last_loss"]:.3f}, {line["peak_memory_gib"]:.1f} GiB, {line["detections"]} detections in '
            f'{line["images"]} images, {line["exported"]} ({line["exported_mb"]:.0f} MB) read again: '
            f'{line["read_again"]}{onnx}')


def write(table: pd.DataFrame, dataset: Dataset, results_dir: Path, total_s: float, peak_bytes: int,
          jobs: int) -> Path:
    """Write dryrun.csv (every value) and dryrun.md (for reading); return the latter."""
    place = results.folder(DRY_RUN.name, dataset, results_dir)
    place.mkdir(parents=True, exist_ok=True)
    table.to_csv(place / 'dryrun.csv', index=False, float_format='%.6g')
    failed = int((table.problem != '').sum())
    cores = len(os.sched_getaffinity(0))
    verdicts = [f'{value} ({"below" if inside else "ABOVE"} {limit})' for value, inside, limit in (
        (minutes(total_s), total_s < LIMIT_S, f'{LIMIT_S // 60} minutes'),
        (f'{peak_bytes / GIB:.1f} GiB at the most, all processes together', peak_bytes < LIMIT_BYTES,
         f'{LIMIT_BYTES // GIB} GiB'))]
    summary = (f'{len(table) - failed} of {len(table)} rows passed, {failed} failed. {verdicts[0]}, {verdicts[1]}; '
               f'{jobs} rows at once on {cores} cores.')
    width, height = DRY_RUN.image_px
    about = [DRY_RUN.can_show,
             f'Images are fitted into {width}x{height} px (the paper: 1333x800), {DRY_RUN.batch_size} a step; '
             f'{"; ".join(dataset.notes)}. Teachers are trained as many steps, from random weights, and taught with '
             'all the same. Detections are kept down to a score of 0. *Memory* is the main process\'s own peak, '
             '*MB* the exported file\'s size; *read again*: stock mmdet loads the exported config and weights and '
             'finds the same as the run did, to 0.01 px.']
    parts = ['# Dry run', summary, *about, readable(table).to_markdown(index=False, disable_numparse=True)]
    (place / 'dryrun.md').write_text('\n\n'.join(parts) + '\n')
    return place / 'dryrun.md'


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


def _drop_weights(place: Path) -> None:
    for file in [place / 'weights.pth', *(place / 'export').glob('*.pth'), *(place / 'export').glob('*.onnx')]:
        file.unlink(missing_ok=True)
