"""Before a student trains at `paper`: does its teacher find what the model zoo says that it finds?

A wrong file, another order of the classes or broken data would else show after days. So the teacher is evaluated on the
first few hundred images of the reported split, once; the result stays in the folder of the teacher's run.

    AMD_TEACHER_CHECK   number of images, default 300; 0 trains without this check
"""
from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

from amdlib import results, weights
from amdlib.data import Dataset
from amdlib.experiments import Run, SettingError, config

IMAGES = 300
# How far the mAP of IMAGES images may lie from that of all 5000; for another number it goes as 1 / sqrt(images). In a
# simulation of detectors (80 classes with a long tail as in COCO) 300 images gave 1.5 to 2.3 more than all, since AP of
# a class with few objects is biased upwards, with a standard deviation of 1.0 to 1.3: these bounds are four of them
# away. Weights of another model, classes in another order or images that are not read cost far more.
BELOW_PCT, ABOVE_PCT = 4.0, 8.0
FILE = 'teacher_check.json'


class TeacherError(weights.WeightsError):
    """A teacher is not as good as published; the message has both values and likely causes."""


def check(teacher: Run, dataset: Dataset, place: Path, checkpoint: str | Path | None, file_sha256: str | None,
          evaluate: Callable[[Config, str | Path], dict], say=print) -> dict | None:
    """Compare the mAP of a teacher's `checkpoint` on the first images with the published one.

    Args:
        teacher: the teacher's own run.
        place: its folder; `teacher_check.json` there spares a second evaluation of the same weights on the same data.
        file_sha256: of the published or given file; `checkpoint` may be the copy that the teacher's run has kept.
        evaluate: a teacher's Config, checkpoint -> COCO's numbers in percent.

    Returns what was found, for the record; None where teachers are not published ones (profiles other than `paper`).
    Errors: TeacherError.
    """
    if not teacher.profile.published:
        return None
    images, published = _images_wanted(), teacher.row.group.teacher_map_pct
    if not images:
        say(f'{teacher.id}: its mAP is NOT checked (--skip-teacher-check or AMD_TEACHER_CHECK=0)')
        return {'images': 0, 'map_pct': None, 'published_map_pct': published}
    key = {'file_sha256': file_sha256, 'data': dataset.fingerprint, 'images': images}
    found = _kept(place / FILE)
    if {name: found.get(name) for name in key} != key:
        say(f'{teacher.id}: mAP on the first {images} images, before anything is trained with it')
        found = {**key, 'map_pct': _first_images_map_pct(teacher, dataset, images, checkpoint, evaluate)}
        place.mkdir(parents=True, exist_ok=True)
        results.write_json(place / FILE, found)
    scatter = math.sqrt(IMAGES / images)
    low, high = published - BELOW_PCT * scatter, published + ABOVE_PCT * scatter
    if not low <= (found['map_pct'] or 0.0) <= high:
        raise TeacherError(
            f'{teacher.id}: {Path(checkpoint).name} has {found["map_pct"] or 0.0:.1f} mAP on the first {images} images '
            f'of {dataset.test_ann.name}; published are {published} on all, expected here {low:.1f} to '
            f'{high:.1f}. Likely causes: the file of another model; classes in another order; '
            f'red and blue exchanged; images in {dataset.test_images} that do not belong to the annotations. '
            '--skip-teacher-check (make: SKIP_TEACHER_CHECK=1) trains all the same')
    say(f'{teacher.id}: {found["map_pct"]:.1f} mAP on the first {images} images (published, on all: {published})')
    return {'images': images, 'map_pct': found['map_pct'], 'published_map_pct': published}


def _images_wanted() -> int:
    text = os.environ.get('AMD_TEACHER_CHECK', '') or str(IMAGES)
    if not text.isdigit():
        raise SettingError(f'AMD_TEACHER_CHECK={text}: expected a number of images, 0 for no check')
    return int(text)


def _kept(path: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return {}


def _first_images_map_pct(teacher: Run, dataset: Dataset, images: int, checkpoint, evaluate) -> float | None:
    with tempfile.TemporaryDirectory() as folder:
        cfg = config(teacher, dataset, folder)
        ann = Path(folder) / 'first.json'
        results.write_json(ann, first_images(json.loads(Path(dataset.test_ann).read_text()), images))
        cfg.test_dataloader.dataset.ann_file = cfg.test_evaluator.ann_file = str(ann)
        return evaluate(cfg, checkpoint)['mAP']


def first_images(coco: dict, count: int) -> dict:
    """COCO's lists with the first images and what is annotated in them."""
    kept = coco['images'][:count]
    ids = {image['id'] for image in kept}
    return {**coco, 'images': kept, 'annotations': [one for one in coco['annotations'] if one['image_id'] in ids]}
