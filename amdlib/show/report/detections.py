"""What stored detections show: what a run gets wrong, and right and wrong boxes on a few test images.

Kept in a hidden file of the store's folder by the hash of the detections, so that a report is slow once only.
"""
from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amdlib.evaluation import evaluated
from amdlib.files import digest, read_json, sha256
from amdlib.runs.device import default_jobs
from amdlib.runs.store import Store
from amdlib.show.error_types import TYPES, find_errors
from amdlib.show.remembered import Remembered
from amdlib.show.report.records import Entry
from amdlib.words import log

KEPT = '.detections.json'
RULE = 1                            # counts up where other errors or boxes would be found
SHOWN, SCORE, IOU = 8, 0.3, 0.5     # images; least score of a box that is drawn; from which a box is right
WORTH = 4                           # runs, from which on another process is started
KINDS = {'found': 'right', 'false': 'wrong', 'missed': 'missed'}    # by the class of the sheet that draws it


class Box(NamedTuple):
    """A box on an image, xywh in pixels: `kind` of KINDS, the class it names, its score (None: a missed object)."""
    kind: str
    xywh: tuple[float, ...]
    label: str
    score: float | None

    @property
    def told(self) -> str:
        return f'{self.label}{"" if self.score is None else f" {self.score:.2f}"}: {KINDS[self.kind]}'


@dataclass(frozen=True)
class Seen:
    """What a run's detections show.

    Args:
        ap50: in percent; None where the test set has no object.
        errors: by TIDE's type how many, and what they cost in points of AP50.
        boxes: by id of the images that are shown.
    """
    ap50: float | None
    errors: dict[str, tuple[int, float | None]]
    boxes: dict[int, list[Box]]


def chosen(images: Sequence[dict[str, Any]], count: int = SHOWN) -> list[dict[str, Any]]:
    """Images evenly over a test set in the order of their ids: a rule that knows no result."""
    ordered = sorted(images, key=lambda image: image['id'])
    places = dict.fromkeys((2 * i + 1) * len(ordered) // (2 * count) for i in range(count))
    return [ordered[place] for place in places] if ordered else []


def images_shown(store: Store, folder: Path) -> list[dict[str, Any]]:
    """Copy the test images that are shown into a folder, each once for all pages; their COCO records with `shown`, the
    name there. Those that do not lie here are left out."""
    try:
        images = chosen(json.loads(store.dataset.test_ann.read_text())['images'])
    except (OSError, ValueError, KeyError):
        return []
    found = []
    for image in images:
        source = store.dataset.test_images / image['file_name']
        if source.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            name = f'{image["id"]}{source.suffix.lower()}'
            shutil.copyfile(source, folder / name)
            found.append({**image, 'shown': name})
    return found


def see(entries: Iterable[Entry], store: Store, images: Sequence[dict[str, Any]]) -> dict[str, Seen]:
    """By run what its detections show, for those that lie here and were made with the data as they are."""
    of_today = [entry for entry in entries if entry.record and entry.detections_file
                and entry.record['data']['fingerprint'] == store.dataset.fingerprint]
    memory, ids = Remembered(store.folder / KEPT), [image['id'] for image in images]
    keys = {entry.id: digest(json.dumps([RULE, store.dataset.fingerprint, entry.split, ids, SCORE, IOU,
                                         sha256(entry.detections_file)])) for entry in of_today}
    kept, found = memory.read(), {}
    missing = [entry for entry in of_today if keys[entry.id] not in kept]
    work = [(entry.detections_file, store.annotations(entry.split), ids if entry.split == 'test' else [])
            for entry in missing]
    jobs = min(default_jobs('cpu'), len(missing) // WORTH)      # a process costs as much as some runs
    with ProcessPoolExecutor(jobs) if jobs > 1 else contextlib.nullcontext() as pool:
        results = map(_look, work) if pool is None else pool.map(_look, work)
        for done, (entry, result) in enumerate(zip(missing, results, strict=True), 1):
            told = f': its detections are left out, they cannot be read ({result})' if isinstance(result, str) else ''
            log.info(f'errors and boxes, {done} of {len(missing)}, {entry.id}{told}')
            if not told:
                kept[keys[entry.id]] = result
    if missing:
        memory.keep({key: kept[key] for key in keys.values() if key in kept})
    for run, key in keys.items():
        if key in kept:
            ap50, errors, boxes = kept[key]
            found[run] = Seen(ap50, {kind: tuple(own) for kind, own in errors.items()},
                              {int(image): [Box(*box) for box in own] for image, own in boxes.items()})
    return found


def _look(work: tuple[Path, Path, Sequence[int]]) -> list[Any] | str:
    """Plain values of a `Seen`, or why there are none; of (detections, annotations, ids of the images)."""
    file, ann, ids = work
    try:
        detections = read_json(file)
        errors = find_errors(ann, detections, IOU)
        boxes = boxes_on(ann, detections, ids)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return [errors.ap, {kind: [int(errors.types.loc[kind, 'count']), errors.types.loc[kind, 'dAP']] for kind in TYPES},
            {str(image): own for image, own in boxes.items()}]


def boxes_on(ann: Path, detections: Iterable[dict], ids: Sequence[int]) -> dict[int, list[Box]]:
    """On each image the boxes with at least SCORE, right or wrong as pycocotools matches them at IoU 0.5, from the
    highest score down, and the objects that none of them has found. Crowds, and boxes in them, are left out."""
    if not ids:
        return {}
    wanted = set(ids)
    shown = [one for one in detections if one['image_id'] in wanted and one['score'] >= SCORE]
    evaluation = evaluated(ann, shown, imgIds=sorted(wanted), iouThrs=np.array([IOU]), areaRng=[[0, 1e10]],
                           areaRngLbl=['all'], maxDets=[100])
    names = {one['id']: one['name'] for one in evaluation.cocoGt.dataset['categories']}
    boxes: dict[int, list[Box]] = {image: [] for image in ids}
    for cell in evaluation.evalImgs:
        if cell is None:
            continue
        label, own = names[cell['category_id']], boxes[cell['image_id']]
        own += [Box('missed', tuple(evaluation.cocoGt.anns[i]['bbox']), label, None) for i, matched, ignored in zip(
            cell['gtIds'], cell['gtMatches'][0], cell['gtIgnore'], strict=True) if not matched and not ignored]
        own += [Box('found' if matched else 'false', tuple(evaluation.cocoDt.anns[i]['bbox']), label, float(score))
                for i, matched, ignored, score in zip(cell['dtIds'], cell['dtMatches'][0], cell['dtIgnore'][0],
                                                      cell['dtScores'], strict=True) if not ignored]
    return boxes


def told(boxes: Sequence[Box], run: str, image: int) -> str:
    """What a panel shows, in words."""
    counts = {kind: sum(box.kind == kind for box in boxes) for kind in KINDS}
    return (f'{run}, image {image}: {counts["found"]} of {counts["found"] + counts["missed"]} objects found, '
            f'{counts["false"]} wrong boxes')
