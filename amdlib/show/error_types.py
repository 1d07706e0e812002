"""What a detector gets wrong: TIDE's six types of error, what each costs, and two runs side by side.

Written from the paper's definitions (Bolya, Foley, Hays, Hoffman, TIDE, ECCV 2020, section 2), with t_f = 0.5 and
t_b = 0.1; matching is pycocotools' at IoU t_f. A false positive is

    duplicate        over an object of its class, IoU >= t_f, that a higher score has found
    classification   over an object of another class, IoU >= t_f
    localisation     near an object of its class, t_b <= IoU < t_f
    both             near an object of another class, t_b <= IoU < t_f
    background       anywhere else
    missed           (an object) found by none, and meant by no classification or localisation error

The paper does not say which one it is where two fit; here the first in this list. What a type costs (dAP) is the gain
in AP at t_f when it alone is repaired: the class or the box is put right, and of several detections that then fit an
object the highest score stays; the other false positives are taken away; missed objects are no longer asked for.
Detections stay where they were matched, so a repair moves, adds or takes away single entries of a curve and cannot
lower it.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask
from pycocotools.cocoeval import COCOeval

from amdlib.errors import SettingError
from amdlib.evaluation import evaluated
from amdlib.show.stats import RECALLS, Matches

TYPES = ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')


@dataclass
class _Found:
    """The counted detections of a test set, and its objects, crowds left out.

    Args:
        category, score: a line a detection, those of a class in the order of images (pycocotools' among equal scores).
        object: index of the object it has found, or that its repair would find; -1 for none.
        kind: 'correct' or one of TYPES.
        line: index in the given detections.
        objects: category of each object. missed: whether it is.
    """

    category: np.ndarray
    score: np.ndarray
    object: np.ndarray
    kind: np.ndarray
    line: np.ndarray
    objects: np.ndarray
    missed: np.ndarray


@dataclass(frozen=True)
class Errors:
    """A run's errors.

    Args:
        ap: AP at the foreground IoU, percent; None where the set has no object.
        types: a line a type: count, dAP (percentage points).
        labels: a word a detection given: 'correct', a type, or 'ignored' (in a crowd, or beyond 100 in an image).
        missed: ids of the annotations that were missed.
    """

    ap: float | None
    types: pd.DataFrame
    labels: list[str]
    missed: list[int]


def find_errors(ann_file: str | Path, detections: list[dict], foreground: float = 0.5,
                background: float = 0.1) -> Errors:
    """Sort a run's errors into TIDE's types and tell what each costs.

    Args:
        detections: COCO results format, boxes xywh in pixels.
        foreground, background: t_f and t_b. Errors: SettingError unless 0 < background < foreground < 1.
    """
    if not 0 < background < foreground < 1:
        raise SettingError(f'0 < background < foreground < 1 is needed, not {background} and {foreground}')
    evaluation = evaluated(ann_file, detections, iouThrs=np.array([foreground]), areaRng=[[0, 1e10]],
                           areaRngLbl=['all'], maxDets=[100])
    found, ids = _found(evaluation, foreground, background)
    ap = _ap(found)
    lines = [{'type': kind, 'count': int(found.missed.sum() if kind == 'missed' else (found.kind == kind).sum()),
              'dAP': None if ap is None else _repaired(found, kind) - ap} for kind in TYPES]
    labels = np.full(len(detections), 'ignored', object)
    labels[found.line] = found.kind
    return Errors(ap, pd.DataFrame(lines).set_index('type'), labels.tolist(),
                  [i for i, gone in zip(ids, found.missed, strict=True) if gone])


def side_by_side(ann_file: str | Path, runs: Mapping[str, list[dict]]) -> pd.DataFrame:
    """Where runs differ: sizes, classes and types of error, a column a run; for two runs their difference too.

    Returns: index part ('size', 'class', 'error: dAP', 'error: count') and name; numbers in percent, counts as such.
    """
    columns = {}
    for label, detections in runs.items():
        matches = Matches.of(ann_file, detections)
        numbers, own = matches.numbers(), find_errors(ann_file, detections)
        columns[label] = pd.Series(
            {('size', name): numbers[name] for name in ('AP_S', 'AP_M', 'AP_L', 'AR_S', 'AR_M', 'AR_L')}
            | {('class', name): value for name, value in matches.class_ap().items()}
            | {(f'error: {column}', name): own.types.loc[name, column]
               for column in ('dAP', 'count') for name in TYPES}, dtype=float)
    table = pd.DataFrame(columns).rename_axis(['part', 'name'])
    if len(columns) == 2:
        first, second = columns.values()
        table['difference'] = first - second
    return table


def _found(evaluation: COCOeval, foreground: float, background: float) -> tuple[_Found, list[int]]:
    """Every counted detection with its type, in pycocotools' order; and the objects' ids."""
    truth = [one for one in evaluation.cocoGt.dataset['annotations'] if not one.get('iscrowd')]
    index = {one['id']: i for i, one in enumerate(truth)}
    by_image: dict[int, list[int]] = {}
    for i, one in enumerate(truth):
        by_image.setdefault(one['image_id'], []).append(i)
    lines = []
    for cell in evaluation.evalImgs:  # class by class, in each the images in order
        if cell is None:
            continue
        near = np.array(by_image.get(cell['image_id'], []), int)
        boxes = [evaluation.cocoDt.anns[i]['bbox'] for i in cell['dtIds']]
        ious = mask.iou(np.array(boxes, float).reshape(-1, 4), np.array([truth[i]['bbox'] for i in near], float),
                        [0] * len(near)) if len(near) and boxes else np.zeros((len(boxes), len(near)))
        own = np.array([truth[i]['category_id'] == cell['category_id'] for i in near], bool)
        kinds, places = _kinds(ious, own, foreground, background)
        for n, i in enumerate(cell['dtIds']):
            if cell['dtIgnore'][0, n]:
                continue
            if matched := cell['dtMatches'][0, n]:
                kind, at = 'correct', index[int(matched)]
            else:
                kind, at = kinds[n], int(near[places[n]]) if places[n] >= 0 else -1
            lines.append((cell['category_id'], cell['dtScores'][n], at, kind, i - 1))  # loadRes counts from 1
    category, score, at, kind, line = (np.array(column) for column in zip(*lines, strict=True)) if lines else (
        np.zeros(0, int), np.zeros(0), np.zeros(0, int), np.zeros(0, object), np.zeros(0, int))
    missed = np.ones(len(truth), bool)
    missed[at[np.isin(kind, ('correct', 'classification', 'localisation'))]] = False
    return _Found(category, score, at, kind, line, np.array([one['category_id'] for one in truth], int),
                  missed), [one['id'] for one in truth]


def _kinds(ious: np.ndarray, own: np.ndarray, foreground: float, background: float) -> tuple[np.ndarray, np.ndarray]:
    """Types of false positives and the objects they mean (-1: none), from their IoU with the image's objects (D, G);
    own: same class."""
    kinds, places = np.full(len(ious), 'background', object), np.full(len(ious), -1)
    same, other = np.where(own, ious, -1), np.where(own, -1, ious)
    for kind, values, least in (('both', other, background), ('localisation', same, background),
                                ('classification', other, foreground), ('duplicate', same, foreground)):
        if ious.size:       # the later ones take precedence
            fits = values.max(axis=1) >= least
            kinds[fits], places[fits] = kind, values.argmax(axis=1)[fits]
    return kinds, places


def _repaired(found: _Found, kind: str) -> float:
    """AP in percent with one type of error repaired."""
    if kind == 'missed':
        value = _ap(found, asked=~found.missed)
        return 100. if value is None else value  # nothing is asked for that was not found
    if kind not in ('classification', 'localisation'):
        return _ap(found, kept=found.kind != kind)
    wrong = found.kind == kind
    claims = wrong | (found.kind == 'correct')
    category = np.where(claims, found.objects[found.object], found.category) if len(found.objects) else found.category
    # Of all that fit an object the highest score stays; between equals the one that had found it, then the first.
    kept = ~claims
    lines = np.flatnonzero(claims)
    lines = lines[np.lexsort((wrong[lines], -found.score[lines], found.object[lines]))]
    kept[lines[np.unique(found.object[lines], return_index=True)[1]]] = True
    return _ap(found, category, claims, kept)


def _ap(found: _Found, category: np.ndarray | None = None, correct: np.ndarray | None = None,
        kept: np.ndarray | None = None, asked: np.ndarray | None = None) -> float | None:
    """Mean over classes of the 101-point AP in percent, as COCO has it; a class without objects is no part of it."""
    category = found.category if category is None else category
    correct = found.kind == 'correct' if correct is None else correct
    kept = np.ones(len(category), bool) if kept is None else kept
    objects = found.objects if asked is None else found.objects[asked]
    values = []
    for one in np.unique(objects):
        own = np.flatnonzero(kept & (category == one))
        hit = correct[own[np.argsort(-found.score[own], kind='stable')]]
        hits, seen = np.cumsum(hit).astype(float), np.arange(1, len(hit) + 1)
        precision = np.maximum.accumulate((hits / (seen + np.spacing(1)))[::-1])[::-1]
        at = np.searchsorted(hits / (objects == one).sum(), RECALLS)
        values.append(np.append(precision, 0)[at])
    return 100 * float(np.mean(np.array(values).T.ravel())) if values else None
