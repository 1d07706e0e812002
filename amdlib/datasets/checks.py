"""What must hold of a data set before anything trains on it: each split by itself, and both against each other."""
from __future__ import annotations

import hashlib
import io
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from amdlib.datasets.dataset import fingerprint, progress, read_coco
from amdlib.errors import DataError
from amdlib.words import plural, some

OUTSIDE_TOLERANCE_PX = 1.0   # COCO's own boxes leave the image by fractions of a pixel
DEGENERATE_BELOW_PX = 1.0    # mmdet drops narrower or lower boxes when it trains
CHECK_ALL_BELOW = 5000       # images; in smaller splits every one is opened and its content fingerprinted
SAMPLE_IMAGES = 500          # larger splits: so many are opened, the others only looked up


def check(ann: str | Path, images: str | Path, split: str) -> list[str]:
    """Problems of one split, each with file, id and value; none if it is fine. Degenerate boxes are problems here."""
    try:
        found = _inspect(Path(ann), Path(images), split)
    except DataError as error:
        return error.problems
    return found.problems + [f'{ann}: degenerate {box}' for box in found.degenerate]


def examine(*splits: Path) -> dict:
    """Check every split, and each against the others: classes, notes, fingerprint and counts. Errors: DataError.

    Args:
        splits: COCO file and image folder of train, of test, and of val where there is one.
    """
    problems, found = [], {}
    for split, ann, images in zip(('train', 'test', 'val'), splits[0::2], splits[1::2], strict=False):
        try:
            found[split] = _inspect(ann, images, split)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    train = found['train']
    problems = [problem for split in found.values() for problem in split.problems]
    notes = [note for split in found.values() for note in split.notes]
    for split in found.values():
        if split.degenerate:   # COCO's own has some, so this is no error
            notes.append(f'{split.name}: {plural(len(split.degenerate), "degenerate box", "degenerate boxes")} '
                         f'kept in the file; mmdet skips them when it trains: {some(split.degenerate, "; ")}')
    for (first, ann, _), (second, other_ann, other_images) in itertools.combinations(
            zip(found.values(), splits[0::2], splits[1::2], strict=True), 2):
        if first is train and first.categories != second.categories:
            only = [f'{category} only in {mine.name}' for mine, other in ((first, second), (second, first))
                    for category in mine.categories if category not in other.categories]
            problems.append(f'{other_ann}: categories differ from {ann.name}: {some(only)}')
        shared = sorted(name for name, content in first.files.items() if second.files.get(name) == content)
        problems += [f'{other_images / name}: the image is in both {first.name} and {second.name}' for name in shared]
    if problems:
        raise DataError(problems)
    classes = [name for _, name in train.categories]
    unseen = [name for name in classes if not train.counts['classes'].get(name)]
    if unseen:
        notes.append(f'no training box of {plural(len(unseen), "class", "classes")}: {some(unseen)}')
    return {'classes': classes, 'notes': notes, 'fingerprint': fingerprint([one.content for one in found.values()]),
            'counts': {name: one.counts for name, one in found.items()}}


# ---- one split --------------------------------------------------------------------------------------------------

@dataclass
class _Findings:
    name: str
    problems: list[str] = field(default_factory=list)
    degenerate: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    categories: list[tuple[int, str]] = field(default_factory=list)
    files: dict[str, list] = field(default_factory=dict)   # file name -> [bytes, sha256 or None]
    content: str = ''                                      # fingerprint of this split
    counts: dict = field(default_factory=dict)


def _inspect(ann: Path, images: Path, split: str) -> _Findings:
    """Check one COCO file and its images. Errors: DataError where the file cannot be read at all."""
    coco = read_coco(ann)
    found = _Findings(split)
    _inspect_categories(ann, coco, found)
    sizes_px = _inspect_images(ann, images, coco, found)
    _inspect_annotations(ann, coco, sizes_px, found)
    used = {'images': ('id', 'file_name', 'width', 'height'), 'categories': ('id', 'name'),
            'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd')}
    # In the order of the file, since mmdet's sampler counts images in that order.
    lists = fingerprint([record.get(key) for key in keys] for part, keys in used.items() for record in coco[part])
    found.content = fingerprint([lists, sorted(found.files.items())])
    return found


def _inspect_categories(ann: Path, coco: dict, found: _Findings) -> None:
    found.categories = [(category['id'], category.get('name')) for category in coco['categories']]
    ids, names = zip(*found.categories, strict=True)
    found.problems += [f'{ann}: category id {i}: used more than once' for i in duplicates(ids)]
    found.problems += [f'{ann}: category name {name!r}: used more than once' for name in duplicates(map(str, names))]
    found.problems += [f'{ann}: category id {i}: name {name!r} is not a text' for i, name in found.categories
                       if not isinstance(name, str) or not name]
    if list(ids) != sorted(ids):   # mmdet labels by the order in the file
        found.problems.append(f'{ann}: categories are not in the order of their ids: {some(ids)}')


def _inspect_images(ann: Path, folder: Path, coco: dict, found: _Findings) -> dict[int, tuple[int, int]]:
    """Look at the image files. Returns (width, height) in pixels by image id, as the JSON has them."""
    found.problems += [f'{ann}: image id {i}: used more than once'
                       for i in duplicates(record['id'] for record in coco['images'])]
    found.problems += [f'{ann}: file_name {name!r}: used more than once'
                       for name in duplicates(str(record.get('file_name')) for record in coco['images'])]
    count = len(coco['images'])
    opened = set(range(count))
    if count >= CHECK_ALL_BELOW:
        opened = set(random.Random(0).sample(range(count), min(SAMPLE_IMAGES, count)))
        found.notes.append(f'{found.name}: all {count} image files are there; {len(opened)} of them were opened')
    sizes_px = {}
    for i, record in enumerate(progress(coco['images'], f'check {found.name} images')):
        size_px = sizes_px[record['id']] = record.get('width'), record.get('height')
        name = record.get('file_name')
        where = f'{ann}: image id {record["id"]}'
        if not all(type(side) is int and side > 0 for side in size_px):
            found.problems.append(f'{where}: width and height are {size_px}, expected two positive integers')
            del sizes_px[record['id']]
            continue
        if not isinstance(name, str) or not name:
            found.problems.append(f'{where}: file_name is {name!r}')
            continue
        try:
            size_bytes, content = (folder / name).stat().st_size, None
            if i in opened or not size_bytes:
                file = (folder / name).read_bytes()
                actual_px = image_size_px(folder / name, file)
                if actual_px != size_px:
                    found.problems.append(f'{where}: {folder / name} has {by(actual_px)} px, '
                                          f'the JSON says {by(size_px)}')
                content = hashlib.sha256(file).hexdigest() if count < CHECK_ALL_BELOW else None
            found.files[name] = [size_bytes, content]
        except FileNotFoundError:
            found.problems.append(f'{where}: {folder / name}: no such image')
        except (DataError, OSError) as error:
            found.problems.append(f'{where}: {error}')
    return sizes_px


def _inspect_annotations(ann: Path, coco: dict, sizes_px: dict[int, tuple[int, int]], found: _Findings) -> None:
    names = dict(found.categories)
    image_ids = {record['id'] for record in coco['images']}
    classes, counts = Counter(), Counter(images=len(coco['images']), boxes=0, small=0, medium=0, large=0, crowd=0)
    found.problems += [f'{ann}: annotation id {i}: used more than once'
                       for i in duplicates(record['id'] for record in coco['annotations'])]
    for record in coco['annotations']:
        where = f'{ann}: annotation id {record["id"]}'
        image_id, category_id, bbox, area = (record.get(key) for key in ('image_id', 'category_id', 'bbox', 'area'))
        faults = []
        if type(image_id) is not int or image_id not in image_ids:
            faults.append(f'unknown image id {image_id!r}')
        if type(category_id) is not int or category_id not in names:
            faults.append(f'unknown category id {category_id!r}')
        if record.get('iscrowd') not in (0, 1):
            faults.append(f'iscrowd is {record.get("iscrowd")!r}, expected 0 or 1')
        if not _is_number(area) or area < 0:
            faults.append(f'area is {area!r}, expected a number of square pixels')
        if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
            faults.append(f'bbox is {bbox!r}, expected [x, y, width, height]')
        elif min(bbox[2:]) < 0:
            faults.append(f'bbox {bbox} has a negative size')
        elif image_id in sizes_px and _outside_px(bbox, sizes_px[image_id]) > OUTSIDE_TOLERANCE_PX:
            faults.append(f'bbox {bbox} leaves the image of {by(sizes_px[image_id])} px')
        if faults:
            found.problems += [f'{where}: {fault}' for fault in faults]
            continue
        if min(bbox[2:]) < DEGENERATE_BELOW_PX or area == 0:
            found.degenerate.append(f'annotation id {record["id"]}: bbox {bbox}, area {area}')
        if record['iscrowd']:
            counts['crowd'] += 1
            continue
        counts['boxes'] += 1
        counts['small' if area < 32 ** 2 else 'medium' if area < 96 ** 2 else 'large'] += 1
        classes[names[category_id]] += 1
    if any(record['id'] == 0 for record in coco['annotations']):
        found.notes.append(f'{found.name}: annotation id 0 is never matched by pycocotools; number them from 1')
    found.counts = {**counts, 'classes': dict(classes)}


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _outside_px(bbox_xywh_px: Sequence[float], size_px: tuple[int, int]) -> float:
    (x, y, width, height), (image_width, image_height) = bbox_xywh_px, size_px
    return max(-x, -y, x + width - image_width, y + height - image_height)


# ---- what formats check too -------------------------------------------------------------------------------------

def image_size_px(path: Path, file: bytes) -> tuple[int, int]:
    """(width, height) as OpenCV, and so mmdet, loads the image: after the orientation tag. Errors: DataError."""
    try:
        with Image.open(io.BytesIO(file)) as image:
            if not file.endswith((b'\xff\xd9', b'IEND\xaeB`\x82')):   # no end of a JPEG or PNG: is it cut short?
                image.load()
            turned = 'exif' in image.info and image.getexif().get(0x0112, 1) >= 5
            return image.size[::-1] if turned else image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow names the object that it read from, which says nothing to the reader.
        raise DataError(f'{path}: not readable as an image: {re.sub(" <_io.*>", "", str(error))}') from None


def duplicates(values: Iterable) -> list:
    """Those that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def by(size_px: Sequence) -> str:
    """`40x30`."""
    return 'x'.join(map(str, size_px))
