"""A data set as the rest of the kit sees it, and the COCO files that it consists of."""
from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from amdlib import files
from amdlib.errors import DataError

BAR_FROM = 500   # images; fewer are done before a bar could be read

TRAINED_FROM_PX = 32    # the shorter side from which mmdet's configs train on an image (filter_cfg)


@dataclass(frozen=True)
class Dataset:
    """A COCO file and an image folder a split, and a fingerprint."""
    name: str                 # the folder's name in lower case; part of results' paths
    train_ann: Path           # COCO JSON
    train_images: Path
    test_ann: Path            # the split that is reported
    test_images: Path
    classes: tuple[str, ...]  # in the order of category ids
    fingerprint: str          # 16 hex digits over annotations and images; the same wherever the set lies
    notes: tuple[str, ...]    # what a reader of the results must know
    val_ann: Path | None = None         # the split on which factors are chosen, where there is one
    val_images: Path | None = None
    negatives: bool = False             # whether images without a box are trained on

    @property
    def trained_count(self) -> int:
        """On how many images mmdet trains an epoch (`trained_images`); its file is read once, as long as it stays."""
        return _trained_count(self.train_ann, self.train_ann.stat().st_mtime_ns, self.negatives)

    def to_dict(self) -> dict:
        """As JSON can hold it, for a job file."""
        return {key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> Dataset:
        """What `to_dict` gave."""
        paths = {key: values[key] and Path(values[key]) for key in values if key.endswith(('_ann', '_images'))}
        return cls(**{**values, **paths, 'classes': tuple(values['classes']), 'notes': tuple(values['notes'])})


def coco_images(ann_file: str | Path) -> list[dict]:
    """The images of a COCO file."""
    return json.loads(Path(ann_file).read_text())['images']


def trained_images(ann_file: str | Path, negatives: bool = False) -> list[dict]:
    """Those of a COCO file on which mmdet trains: it leaves out narrow ones, and without `negatives` those that have no
    annotation."""
    return trained_of(json.loads(Path(ann_file).read_text()), negatives)


@functools.cache
def _trained_count(ann_file: Path, _mtime_ns: int, negatives: bool) -> int:
    return len(trained_images(ann_file, negatives))


def trained_of(coco: dict, negatives: bool = False) -> list[dict]:
    """The same of a COCO file's content."""
    annotated = {box['image_id'] for box in coco['annotations']}
    return [image for image in coco['images']
            if (negatives or image['id'] in annotated) and min(image['width'], image['height']) >= TRAINED_FROM_PX]


def read_lists(ann: Path) -> dict:
    """A COCO file with its three lists, none of them empty, whatever is in them. Errors: DataError."""
    try:
        if ann.exists() and not ann.is_file():
            raise DataError(f'{ann}: no regular file')
        coco = json.loads(ann.read_bytes())
    except FileNotFoundError:
        raise DataError(f'{ann}: no such file') from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f'{ann}: not readable as JSON: {error}') from None
    if not isinstance(coco, dict):
        raise DataError(f'{ann}: expected an object with images, annotations and categories, got {str(coco)[:80]}')
    problems = []
    for part in ('images', 'annotations', 'categories'):
        if not isinstance(coco.get(part), list):
            problems.append(f'{ann}: no list {part!r}; it has {sorted(coco)}')
        elif not coco[part]:
            problems.append(f'{ann}: {part!r} is empty')
    if problems:
        raise DataError(problems)
    return coco


def read_coco(ann: Path) -> dict:
    """A COCO file whose lists are not empty and whose every entry has an id. Errors: DataError."""
    coco = read_lists(ann)
    problems = [f'{ann}: {part} entry {i}: expected an object with an integer id, got {str(record)[:80]}'
                for part in ('images', 'annotations', 'categories') for i, record in enumerate(coco[part])
                if not isinstance(record, dict) or type(record.get('id')) is not int
                or abs(record['id']) >= 2 ** 53]        # torch and numpy hold no larger ones
    if problems:
        raise DataError(problems)
    return coco


def write_coco(path: Path, images: Iterable[tuple[dict, list[dict]]], names: Sequence[str]) -> None:
    """Write a COCO file; ids count from 1 (pycocotools never matches annotation 0).

    Args:
        images: COCO's record of each (file_name, width, height) with its boxes (name, bbox as xywh in px, iscrowd).
        names: the classes, in the order of their ids.
    """
    category_id = {name: i for i, name in enumerate(names, 1)}
    coco = {'images': [], 'annotations': [], 'categories': [{'id': i, 'name': name} for name, i in category_id.items()]}
    for image_id, (image, boxes) in enumerate(images, 1):
        coco['images'].append({'id': image_id, **image})
        for box in boxes:
            coco['annotations'].append({
                'id': len(coco['annotations']) + 1, 'image_id': image_id, 'category_id': category_id[box['name']],
                'bbox': box['bbox'], 'area': plain(box['bbox'][2] * box['bbox'][3]), 'iscrowd': box.get('iscrowd', 0)})
    write_compact(path, coco)


def write_compact(path: Path, content: dict) -> None:
    """Write JSON whole, without line breaks: COCO's files are large."""
    files.write_text(path, json.dumps(content))


def plain(value: float) -> int | float:
    """Whole numbers without a fraction, as annotators write them."""
    return int(value) if value == int(value) else value


def fingerprint(parts: Iterable) -> str:
    """16 hex digits (sha256) of JSON values; the order of the parts counts, that of the keys in them does not."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, separators=(',', ':')).encode() + b'\n')
    return digest.hexdigest()[:16]


def progress(images: Sequence, what: str) -> Iterable:
    """The same, with a bar for who waits."""
    return tqdm(images, desc=what, unit=' images', disable=len(images) < BAR_FROM, mininterval=1, leave=False)
