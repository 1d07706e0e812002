"""Question A, these checkpoints on other images: COCO's numbers for weighted images, and the bootstrap over images.

pycocotools matches every image once; its matches do not depend on other images. AP and AR for any weights of the images
then follow without matching again: weights of one give pycocotools' numbers to the last bit, a weight of 0 leaves an
image out (its objects too), and only ratios of weights count. A weight of 2 is what an image and its copy beside it
give, except where one image holds two detections of a class with the same score: copies repeat the two in turn, and
pycocotools' order within a tie then counts; weights keep "all weights doubled changes nothing" instead.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pycocotools.cocoeval import Params
from scipy.special import stdtrit

from amdlib.errors import SettingError
from amdlib.evaluation import METRICS, evaluated

_PARAMS = Params(iouType='bbox')
THRESHOLDS, RECALLS, AREAS = _PARAMS.iouThrs, _PARAMS.recThrs, tuple(_PARAMS.areaRngLbl)
_CELLS = 1 << 21  # numbers in one temporary array (16 MiB): what bounds the memory of a chunk of resamples


class Metric(NamedTuple):
    """Which of COCO's cells a number is the mean of."""

    recall: bool
    area: int
    thresholds: slice = slice(None)
    most: int = 100  # detections an image


def _at(iou: float) -> slice:
    index = int(np.flatnonzero(iou == THRESHOLDS)[0])
    return slice(index, index + 1)


_MEANING = dict(zip(METRICS, (
    Metric(False, 0), Metric(False, 0, _at(.5)), Metric(False, 0, _at(.75)),
    *(Metric(False, area) for area in (1, 2, 3)), *(Metric(True, 0, most=most) for most in _PARAMS.maxDets),
    *(Metric(True, area) for area in (1, 2, 3))), strict=True))


class _Curve(NamedTuple):
    """One class, area and threshold: the true positives by falling score, and what lies between them.

    images, rank: (n,) of the true positives; before: (n,) how many of the area's counted detections lie up to each;
    extra_images, extra_sign, extra_before: detections whose counting differs from that at most thresholds.
    """

    images: np.ndarray
    rank: np.ndarray
    before: np.ndarray
    extra_images: np.ndarray
    extra_sign: np.ndarray
    extra_before: np.ndarray


class _Area(NamedTuple):
    """One class and area: images (d,) of its counted detections by falling score, and a curve a threshold."""

    images: np.ndarray
    curves: list[_Curve]


@dataclass(frozen=True)
class ClassMatches:
    """One class: its D detections by falling score, as pycocotools sorts them, and its objects.

    Args:
        image, rank: (D,) position of the image; place of the detection within its image, the best first.
        found, counted: (areas, thresholds, D) true positive; neither matched with nor itself something to ignore.
        truth: (areas, images) objects to be found.
    """

    image: np.ndarray
    rank: np.ndarray
    found: np.ndarray
    counted: np.ndarray
    truth: np.ndarray

    @classmethod
    def by_score(cls, score: np.ndarray, image: np.ndarray, rank: np.ndarray, found: np.ndarray, counted: np.ndarray,
                 truth: np.ndarray) -> ClassMatches:
        """From detections in the order of images, within an image by falling score; equal scores keep that order."""
        order = np.argsort(-score, kind='mergesort')  # pycocotools' own
        return cls(image[order], rank[order], (found & counted)[..., order], counted[..., order], truth)

    def area(self, area: int) -> _Area:
        """What the curves of an area need, with the detections counted at most thresholds taken out of the loop."""
        usual = 2 * self.counted[area].sum(0) > len(THRESHOLDS)
        before = np.cumsum(usual)
        curves = []
        for found, counted in zip(self.found[area], self.counted[area], strict=True):
            places, extra = np.flatnonzero(found), np.flatnonzero(counted != usual)
            curves.append(_Curve(self.image[places], self.rank[places], before[places], self.image[extra],
                                 np.where(counted[extra], 1., -1.)[:, None],
                                 np.searchsorted(extra, places, side='right')))
        return _Area(self.image[usual], curves)


@dataclass(frozen=True, eq=False)
class Matches:
    """What pycocotools matched in a test set, once and for all weights of its images. It pickles.

    Args:
        images: their ids, rising; weights are in this order.
        classes: class name -> its matches.
    """

    images: np.ndarray
    classes: dict[str, ClassMatches]

    @classmethod
    def of(cls, ann_file: str | Path, detections: list[dict]) -> Matches:
        """Match detections (COCO results format, boxes xywh in pixels) with a test set's objects."""
        evaluation = evaluated(ann_file, detections)
        names = {category['id']: category['name'] for category in evaluation.cocoGt.dataset['categories']}
        ids = [int(k) for k in evaluation.params.catIds]
        cells = np.empty((len(ids), len(AREAS), len(evaluation.params.imgIds)), object)
        cells.reshape(-1)[:] = evaluation.evalImgs
        unique = len(set(names.values())) == len(names)
        return cls(np.array(evaluation.params.imgIds), {
            names[k] if unique else f'{names[k]} ({k})': _class_matches(own)
            for k, own in zip(ids, cells, strict=True)})

    def numbers(self, weights: Sequence[float] | np.ndarray | None = None) -> dict[str, float | None]:
        """COCO's 12 numbers in percent; None where no object of that size is left. Weights: default one each."""
        found = {name: self._mean(metric, *self._exact(weights)) for name, metric in _MEANING.items()}
        return {name: None if value < 0 else 100 * value for name, value in found.items()}

    def class_ap(self, weights: Sequence[float] | np.ndarray | None = None) -> dict[str, float | None]:
        """AP of each class in percent (IoU 0.5 to 0.95, all sizes); None where it has no object."""
        precision, _ = self._exact(weights)
        values = precision[0].mean((0, 1))
        return {name: None if value < 0 else 100 * float(value)
                for name, value in zip(self.classes, values, strict=True)}

    def _exact(self, weights: Sequence[float] | np.ndarray | None) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """pycocotools' arrays, -1 for "no such object": precision (A, T, R, K) and recall (A, T, K) by detections."""
        key = None if weights is None else tuple(map(float, weights))
        if key is not None and (len(key) != len(self.images) or min(key, default=0) < 0):
            raise SettingError(f'{len(self.images)} weights of 0 or more are needed, one an image, not {len(key)}')
        return _exact_arrays(self, key)

    def _mean(self, metric: Metric, precision: np.ndarray, recall: dict[int, np.ndarray]) -> float:
        values = (recall[metric.most] if metric.recall else precision)[metric.area, metric.thresholds]
        values = values[..., None][values[..., None] > -1]  # the order in which pycocotools takes its mean
        return float(np.mean(values)) if len(values) else -1.

    @functools.cached_property
    def _areas(self) -> list[list[_Area]]:
        return [[one.area(area) for area in range(len(AREAS))] for one in self.classes.values()]

    @property
    def _longest(self) -> int:
        return max((len(one.image) for one in self.classes.values()), default=0)

    def __getstate__(self) -> dict:
        return {'images': self.images, 'classes': self.classes}  # what is derived is quickly made again


def _class_matches(cells: np.ndarray) -> ClassMatches:
    """From pycocotools' results of one class, (areas, images), None where an image has neither object nor detection."""
    own = [i for i, cell in enumerate(cells[0]) if cell is not None]
    counts = [len(cells[0, i]['dtScores']) for i in own]
    matched, ignored = (
        np.array([np.concatenate([np.zeros((len(THRESHOLDS), 0)), *(cells[area, i][key] for i in own)], axis=1) != 0
                  for area in range(len(AREAS))]) for key in ('dtMatches', 'dtIgnore'))
    truth = np.zeros((len(AREAS), cells.shape[1]), np.int32)
    for area in range(len(AREAS)):
        truth[area, own] = [np.count_nonzero(np.asarray(cells[area, i]['gtIgnore']) == 0) for i in own]
    return ClassMatches.by_score(
        np.array([score for i in own for score in cells[0, i]['dtScores']], float),
        np.repeat(np.array(own, np.intp), counts), np.array([rank for n in counts for rank in range(n)], np.int16),
        matched, ~ignored, truth)


def _points(curve: _Curve, seen: np.ndarray, weights: np.ndarray, truth: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A precision-recall curve at its true positives, for B weightings at once.

    Elsewhere precision only falls, so the envelope and the first place that reaches a recall lie at true positives.

    Args:
        seen: (d + 1, B) weight of the area's first 0 ... d counted detections.
        weights: (images, B). truth: (B,) weight of the objects; 0 gives NaN.
    Returns: envelope of the precision (n, B); how many of the 101 recalls are reached up to each (n, B); weights of
        the true positives (n, B).
    """
    own = weights[curve.images]
    hits = np.cumsum(own, axis=0)
    all_seen = seen[curve.before]
    if len(curve.extra_images):
        extra = np.zeros((len(curve.extra_images) + 1, weights.shape[1]))
        np.cumsum(weights[curve.extra_images] * curve.extra_sign, axis=0, out=extra[1:])
        all_seen += extra[curve.extra_before]
    all_seen += np.spacing(1)
    np.divide(hits, all_seen, out=all_seen)
    np.maximum.accumulate(all_seen[::-1], axis=0, out=all_seen[::-1])
    with np.errstate(invalid='ignore', divide='ignore'):
        reached = np.searchsorted(RECALLS, hits / truth, side='right')
    return all_seen, reached, own


def _seen(area: _Area, weights: np.ndarray) -> np.ndarray:
    seen = np.zeros((len(area.images) + 1, weights.shape[1]))
    np.cumsum(weights[area.images], axis=0, out=seen[1:])
    return seen


@functools.lru_cache(maxsize=2)
def _exact_arrays(matches: Matches, weights: tuple[float, ...] | None) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    column = np.ones((len(matches.images), 1)) if weights is None else np.array(weights)[:, None]
    shape = (len(AREAS), len(THRESHOLDS), len(RECALLS), len(matches.classes))
    precision = -np.ones(shape)
    recall = {most: -np.ones((*shape[:2], shape[3])) for most in _PARAMS.maxDets}
    for k, (one, areas) in enumerate(zip(matches.classes.values(), matches._areas, strict=True)):
        for a, area in enumerate(areas):
            truth = one.truth[a] @ column
            if truth[0] == 0:
                continue
            seen = _seen(area, column)
            for t, curve in enumerate(area.curves):
                envelope, reached, own = _points(curve, seen, column, truth)
                precision[a, t, :, k] = 0
                if len(reached):
                    precision[a, t, :reached[-1, 0], k] = np.repeat(envelope[:, 0], np.diff(reached[:, 0], prepend=0))
                for most, values in recall.items():
                    values[a, t, k] = own[curve.rank < most].sum() / truth[0]
    return precision, recall


def _resampled(matches: Matches, weights: np.ndarray, metrics: Sequence[str]) -> np.ndarray:
    """Numbers as fractions for B weightings (images, B): (metrics, B); NaN where no object of that size is left."""
    meanings = [_MEANING[name] for name in metrics]
    total, valid = np.zeros((len(metrics), weights.shape[1])), np.zeros((len(metrics), weights.shape[1]))
    for one, areas in zip(matches.classes.values(), matches._areas, strict=True):
        for a in sorted({meaning.area for meaning in meanings}):
            wanted = [(line, meaning, range(len(THRESHOLDS))[meaning.thresholds])
                      for line, meaning in enumerate(meanings) if meaning.area == a]
            truth = one.truth[a] @ weights
            there = truth > 0
            for line, *_ in wanted:
                valid[line] += there
            if not there.any():
                continue
            seen = _seen(areas[a], weights)
            for t in sorted({t for *_, thresholds in wanted for t in thresholds}):
                curve = areas[a].curves[t]
                if not len(curve.images):
                    continue
                envelope, reached, own = _points(curve, seen, weights, truth)
                reached[1:] -= reached[:-1].copy()
                area_under = np.einsum('nb,nb->b', envelope, reached) / len(RECALLS)
                for line, meaning, thresholds in wanted:
                    if t in thresholds:
                        value = own[curve.rank < meaning.most].sum(0) / np.where(there, truth, 1) \
                            if meaning.recall else area_under
                        total[line] += np.where(there, value, 0) / len(thresholds)
    return np.divide(total, valid, out=np.full_like(total, np.nan), where=valid > 0)


def draws(images: int, resamples: int, seed: int, chunk: int) -> Iterator[np.ndarray]:
    """How often each image stands in each resample, (images, up to `chunk`) at a time; the chunk changes no draw."""
    rng = np.random.default_rng(seed)
    for first in range(0, resamples, chunk):
        yield np.stack([np.bincount(rng.integers(images, size=images), minlength=images)
                        for _ in range(min(chunk, resamples - first))], axis=1).astype(float)


def resampled(runs: Sequence[Matches], metrics: Sequence[str] = METRICS, resamples: int = 1000,
              seed: int = 0) -> np.ndarray:
    """Numbers in percent on the same redrawn images for each run: (runs, metrics, resamples).

    Errors: SettingError where the runs were not tested on the same images and objects, or a metric is unknown.
    """
    if unknown := [name for name in metrics if name not in _MEANING]:
        raise SettingError(f'{unknown[0]} is none of COCO\'s numbers: {", ".join(METRICS)}')
    for run in runs:
        _check_same_test(runs[0], run)
    images = len(runs[0].images)
    chunk = int(np.clip(_CELLS // max(1, images, *(run._longest for run in runs)), 1, 256))
    return 100 * np.concatenate([[_resampled(run, weights, metrics) for run in runs]
                                 for weights in draws(images, resamples, seed, chunk)], axis=2)


def _check_same_test(a: Matches, b: Matches) -> None:
    if a is not b and not (np.array_equal(a.images, b.images) and list(a.classes) == list(b.classes) and all(
            np.array_equal(a.classes[name].truth, b.classes[name].truth) for name in a.classes)):
        raise SettingError('the runs were not tested on the same images and objects, so they cannot be paired by image')


def limits(value: float, drawn: np.ndarray, images: int, level: float = 0.95) -> tuple[float, float]:
    """A t interval about `value` with the bootstrap's standard error, made larger by sqrt(n / (n - 1)) for n images.

    Plain percentiles cover too little: 91 % at 15 images, 94 % at 40, 93 % at 100, where this covers 95, 96
    and 94 % (two exchangeable detectors, mAP, 1,000 test sets each). Off the null both agree. NaN (a resample without
    such an object) is left out.
    """
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < 2 or images < 2 or np.isnan(value):
        return np.nan, np.nan
    half = float(stdtrit(images - 1, (1 + level) / 2) * np.sqrt(images / (images - 1)) * drawn.std())
    return value - half, value + half


def paired(a: Matches, b: Matches, resamples: int = 1000, seed: int = 0, metrics: Sequence[str] = METRICS,
           level: float = 0.95) -> pd.DataFrame:
    """Paired bootstrap over test images: how a - b would come out on other images, for these two checkpoints.

    Returns: a line a metric: metric, difference (percent), low, high; NaN where the set has no object of that size.
    Errors: SettingError where a and b were not tested on the same images and objects.
    """
    drawn = resampled([a, b], metrics, resamples, seed)
    own, other = a.numbers(), b.numbers()
    return _lines(metrics, 'difference', [np.nan if own[name] is None else own[name] - other[name] for name in metrics],
                  drawn[0] - drawn[1], len(a.images), level)


def alone(run: Matches, resamples: int = 1000, seed: int = 0, metrics: Sequence[str] = METRICS,
          level: float = 0.95) -> pd.DataFrame:
    """Bootstrap over test images of one run's own numbers: metric, value (percent), low, high."""
    own = run.numbers()
    table = _lines(metrics, 'value', [np.nan if own[name] is None else own[name] for name in metrics],
                   resampled([run], metrics, resamples, seed)[0], len(run.images), level)
    return table.assign(low=table.low.clip(lower=0), high=table.high.clip(upper=100))


def _lines(metrics: Sequence[str], column: str, values: list[float], drawn: np.ndarray, images: int,
           level: float) -> pd.DataFrame:
    ends = [limits(value, own, images, level) for value, own in zip(values, drawn, strict=True)]
    return pd.DataFrame({'metric': list(metrics), column: values, 'low': [low for low, _ in ends],
                         'high': [high for _, high in ends]})
