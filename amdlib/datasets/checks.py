"""What must hold of a data set before anything trains on it: each split by itself, and both against each other."""
from __future__ import annotations

import hashlib
import io
import itertools
import random
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from PIL import Image

from amdlib.datasets.dataset import TRAINED_FROM_PX, fingerprint, progress, read_coco
from amdlib.errors import DataError
from amdlib.words import plural, some

OUTSIDE_TOLERANCE_PX = 1.0   # COCO's own boxes leave the image by fractions of a pixel
DEGENERATE_BELOW_PX = 1.0    # mmdet drops narrower or lower boxes when it trains
CHECK_ALL_BELOW = 5000       # images; in smaller splits every one is opened and its content fingerprinted
MOST_AREA = 2.0              # of a box's own: more is not the area of that box
LONGEST = 100                # characters of a class's name
LARGEST = 1e9                # pixels and square pixels: a number beyond is a mistake
SAMPLE_IMAGES = 500          # larger splits: so many are opened, the others only looked up


def check(ann: str | Path, images: str | Path, split: str) -> list[str]:
    """Problems of one split, each with file, id and value; none if it is fine. Degenerate boxes are problems here."""
    try:
        found = _inspect(Path(ann), Path(images), split)
    except DataError as error:
        return error.problems
    return found.problems + [f'{ann}: degenerate {box}' for box in found.degenerate]


def examine(*splits: Path, negatives: bool = False) -> dict:
    """Check every split, and each against the others: classes, notes, fingerprint and counts. Errors: DataError.

    Args:
        splits: COCO file and image folder of train, of test, and of val where there is one.
        negatives: images without a box are trained on.
    """
    problems, found = [], {}
    for split, ann, images in zip(('train', 'test', 'val'), splits[0::2], splits[1::2], strict=False):
        try:
            found[split] = _inspect(ann, images, split, negatives)
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
        problems += [f'{other_images / name}: the image is in both {first.name} and {second.name}'
                     + (f', there as {twin}' if twin != name else '') for name, twin in _shared(first, second)]
    if problems:
        raise DataError(problems)
    classes = [name for _, name in train.categories]
    unseen = [name for name in classes if not train.counts['classes'].get(name)]
    if unseen:
        notes.append(f'no training box of {plural(len(unseen), "class", "classes")}: {some(unseen)}')
    content = [*(one.content for one in found.values()), *(['negatives'] if negatives else [])]
    return {'classes': classes, 'notes': notes, 'fingerprint': fingerprint(content),
            'counts': {name: one.counts for name, one in found.items()}}


def _shared(first: _Findings, second: _Findings) -> list[tuple[str, str]]:
    """Images of the second split that the first one has too, and by which name there: by content, whatever the names;
    where contents were not read, by name and size."""
    by_content = {content: name for name, (_, content) in first.files.items() if content}
    found = []
    for name, (size_bytes, content) in sorted(second.files.items()):
        if first.files.get(name) == [size_bytes, content]:
            found.append((name, name))
        elif content in by_content:
            found.append((name, by_content[content]))
    return found


# ---- one split --------------------------------------------------------------------------------------------------

@dataclass
class _Findings:
    name: str
    negatives: bool = False                                # whether images without a box are trained on
    problems: list[str] = field(default_factory=list)
    degenerate: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    categories: list[tuple[int, str]] = field(default_factory=list)
    files: dict[str, list] = field(default_factory=dict)   # file name -> [bytes, sha256 or None]
    content: str = ''                                      # fingerprint of this split
    counts: dict = field(default_factory=dict)


def _inspect(ann: Path, images: Path, split: str, negatives: bool = False) -> _Findings:
    """Check one COCO file and its images. Errors: DataError where the file cannot be read at all."""
    coco = read_coco(ann)
    found = _Findings(split, negatives)
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
    found.problems += [f'{ann}: category id {i}: name {_cut(name)} is not a text of one line, {LONGEST} characters at '
                       'most' for i, name in found.categories
                       if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST]
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
        if not all(type(side) is int and 0 < side < LARGEST for side in size_px):
            found.problems.append(f'{where}: width and height are {_cut(size_px)}, expected two positive integers')
            del sizes_px[record['id']]
            continue
        if why := _no_file_name(name):
            found.problems.append(f'{where}: file_name is {name!r}, {why}')
            continue
        try:
            told, content = (folder / name).stat(), None
            if not stat.S_ISREG(told.st_mode):
                raise DataError(f'{folder / name}: no regular file')
            size_bytes = told.st_size
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
            faults.append(f'area is {_cut(area)}, expected a number of square pixels')
        if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
            faults.append(f'bbox is {_cut(bbox)}, expected [x, y, width, height]')
        elif min(bbox[2:]) < 0:
            faults.append(f'bbox {bbox} has a negative size')
        elif image_id in sizes_px and _outside_px(bbox, sizes_px[image_id]) > OUTSIDE_TOLERANCE_PX:
            faults.append(f'bbox {bbox} leaves the image of {by(sizes_px[image_id])} px')
        elif not faults and area > MOST_AREA * bbox[2] * bbox[3] + 1:    # of a mask it is smaller
            faults.append(f'area is {area}, the box has {bbox[2] * bbox[3]:g} square pixels')
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
    usable = counts['boxes'] - (len(found.degenerate) if found.name == 'train' else 0)
    if coco['annotations'] and usable <= 0 and not found.problems:
        found.problems.append(f'{ann}: no box that counts: {counts["crowd"]} crowd or difficult, '
                              f'{len(found.degenerate)} degenerate')
    empty = image_ids - {record.get('image_id') for record in coco['annotations']
                         if isinstance(record.get('image_id'), int)}
    narrow = {i for i, size_px in sizes_px.items() if min(size_px) < TRAINED_FROM_PX} - (
        set() if found.negatives else empty)
    if found.name == 'train':
        found.notes += [f'train: {plural(len(some_of), "image", "images")} {why}'
                        + (', trained on as asked' if trained else
                           f': mmdet trains without {"it" if len(some_of) == 1 else "them"}')
                        for some_of, why, trained in (
                            (empty - narrow, 'without a box', found.negatives),
                            (narrow, f'narrower than {TRAINED_FROM_PX} px', False)) if some_of]
    if any(record['id'] == 0 for record in coco['annotations']):
        found.notes.append(f'{found.name}: annotation id 0 is never matched by pycocotools; number them from 1')
    found.counts = {**counts, 'classes': dict(classes)}


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST     # NaN is not


def _cut(value: object) -> str:
    """As it is written, but not for pages."""
    try:
        text = repr(value)
    except ValueError:      # an integer of thousands of digits
        return 'a number of thousands of digits'
    return text if len(text) <= 80 else f'{text[:77]}...'


def _no_file_name(name: object) -> str:
    """Why a text cannot be the name of a file below the images' folder; '' where it can."""
    if not isinstance(name, str) or not name:
        return 'expected a text'
    if '\0' in name or not name.isprintable() and any('\ud800' <= letter <= '\udfff' for letter in name):
        return 'which no file can be called'
    path = PurePosixPath(name)
    return 'which leads out of the folder of the images' if path.is_absolute() or '..' in path.parts else ''


def _outside_px(bbox_xywh_px: Sequence[float], size_px: tuple[int, int]) -> float:
    (x, y, width, height), (image_width, image_height) = bbox_xywh_px, size_px
    return max(-x, -y, x + width - image_width, y + height - image_height)


# ---- what formats check too -------------------------------------------------------------------------------------

def image_size_px(path: Path, file: bytes) -> tuple[int, int]:
    """(width, height) as OpenCV, and so mmdet, loads the image: after the orientation tag. Errors: DataError."""
    try:
        with Image.open(io.BytesIO(file)) as image:     # refuses what would fill the memory, and tells why
            if not file.endswith((b'\xff\xd9', b'IEND\xaeB`\x82')):   # no end of a JPEG or PNG: is it cut short?
                image.load()
        found = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
        if found is None:
            raise ValueError('OpenCV, with which mmdet loads it, cannot')
        return found.shape[1], found.shape[0]
    except (OSError, ValueError, SyntaxError, cv2.error, Image.DecompressionBombError) as error:
        # Pillow names the object that it read from, which says nothing to the reader.
        raise DataError(f'{path}: not readable as an image: {re.sub(" <_io.*>", "", str(error))}') from None


def duplicates(values: Iterable) -> list:
    """Those that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def by(size_px: Sequence) -> str:
    """`40x30`."""
    return 'x'.join(map(str, size_px))
