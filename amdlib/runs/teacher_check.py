"""Before a student trains at `paper`: does its teacher find what the model zoo says that it finds?

A wrong file, another order of the classes or broken data would else show after days. So the teacher is evaluated on the
first few hundred images of the reported split, once; the result stays in the folder of the teacher's run.
"""
from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amdlib.errors import WeightsError
from amdlib.files import read_json, write_json
from amdlib.paper.printed import paper_value
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.words import log

IMAGES = 300
# How far the mAP of IMAGES images may lie from that of all 5000; for another number it goes as 1 / sqrt(images). In a
# simulation of detectors (80 classes with a long tail as in COCO) 300 images gave 1.5 to 2.3 more than all, since AP of
# a class with few objects is biased upwards, with a standard deviation of 1.0 to 1.3: these bounds are four of them
# away. Weights of another model, classes in another order or images that are not read cost far more.
BELOW_PCT, ABOVE_PCT = 4.0, 8.0
FILE = 'teacher_check.json'


def check(run: Run, store: Store, taught_by: Mapping[str, Any] | None, files: Mapping[str, str],
          hashes: Mapping[str, str], evaluate: Callable[..., dict], watch: Callable[..., None]) -> dict | None:
    """Compare the mAP of a published or given teacher on the first images with the published one.

    Args:
        run: a student, with its teacher's record in `taught_by`, or the teacher itself, with its files and hashes.
        evaluate: a teacher's Config, checkpoint, watch -> COCO's numbers in percent.
    Returns: what was found, for the record; None where teachers are not published ones (profiles other than `paper`).
    Errors: WeightsError.
    """
    teacher = run.teacher() or run
    checkpoint = store.weights(teacher) if taught_by else files.get('checkpoint')
    file_sha256 = (taught_by['files'] if taught_by else hashes).get('checkpoint')
    if not run.profile.published or file_sha256 is None:
        return None
    images = store.means.teacher_check_images
    published = paper_value('I', teacher.row.group.name, 'teacher', 'mAP')
    if not images or published is None:
        log.info(f'{teacher.id}: its mAP is NOT checked '
                 f'({"--skip-teacher-check" if not images else "none is published for it"})')
        return {'images': 0, 'map_pct': None, 'published_map_pct': published}
    folder = store.run_folder(teacher)
    key = {'file_sha256': file_sha256, 'data': store.dataset.fingerprint, 'images': images}
    found = _kept(folder / FILE)
    if {name: found.get(name) for name in key} != key:
        log.info(f'{teacher.id}: mAP on the first {images} images, before anything is trained with it')
        found = {**key, 'map_pct': _first_images_map_pct(teacher, store, images, checkpoint, evaluate, watch)}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, found)
    scatter = math.sqrt(IMAGES / images)
    low, high = published - BELOW_PCT * scatter, published + ABOVE_PCT * scatter
    if not low <= (found['map_pct'] or 0.0) <= high:
        raise WeightsError(
            f'{teacher.id}: {Path(checkpoint).name} has {found["map_pct"] or 0.0:.1f} mAP on the first {images} images '
            f'of {store.dataset.test_ann.name}; published are {published} on all, expected here {low:.1f} to '
            f'{high:.1f}. Likely causes: the file of another model; classes in another order; '
            f'red and blue exchanged; images in {store.dataset.test_images} that do not belong to the annotations. '
            '--skip-teacher-check (make: SKIP_TEACHER_CHECK=1) trains all the same')
    log.info(f'{teacher.id}: {found["map_pct"]:.1f} mAP on the first {images} images (published, on all: {published})')
    return {'images': images, 'map_pct': found['map_pct'], 'published_map_pct': published}


def _kept(path: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        return read_json(path)
    return {}


def _first_images_map_pct(teacher: Run, store: Store, images: int, checkpoint: str | Path, evaluate: Callable,
                          watch: Callable) -> float | None:
    with tempfile.TemporaryDirectory() as folder:
        cfg = config(teacher, store.dataset, folder)
        ann = Path(folder) / 'first.json'
        write_json(ann, first_images(read_json(store.dataset.test_ann), images))
        cfg.test_dataloader.dataset.ann_file = cfg.test_evaluator.ann_file = str(ann)
        return evaluate(cfg, checkpoint, watch)['mAP']


def first_images(coco: dict, count: int) -> dict:
    """COCO's lists with the first images and what is annotated in them."""
    kept = coco['images'][:count]
    ids = {image['id'] for image in kept}
    return {**coco, 'images': kept, 'annotations': [one for one in coco['annotations'] if one['image_id'] in ids]}
