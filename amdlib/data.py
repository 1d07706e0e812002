"""Make, convert, check and fingerprint data sets.

`prepare` turns a profile into a `Dataset`: two COCO files, two image folders and a fingerprint.

    mini    scenes of shapes, made by `shapes`
    small   a real data set in COCO layout, or in Pascal VOC layout (annotations converted, images left where they lie)
    paper   COCO 2017
    dryrun  the first annotated images of COCO 2017

Whatever is written goes to a hidden sibling first and is renamed, under a lock, so that an interrupted call leaves
nothing half-written and two calls at once make a set once. `manifest.json`, in each folder written here, says what the
folder was made from; a later call reuses it only while neither the recipe nor any file has changed.
"""
from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import textwrap
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from amdlib import KitError
from amdlib.shapes import ShapesSpec, png, scene

OUTSIDE_TOLERANCE_PX = 1.0   # COCO's own boxes leave the image by fractions of a pixel
DEGENERATE_BELOW_PX = 1.0    # mmdet drops narrower or lower boxes when it trains
CHECK_ALL_BELOW = 5000       # images; in smaller splits every one is opened and its content fingerprinted
SAMPLE_IMAGES = 500          # larger splits: so many are opened, the others only looked up
SHOWN_PROBLEMS = 20
IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
_MADE_BY = 'amdlib.data 1'   # raise the number when what is written, or what is checked, changes


class DataError(KitError, ValueError):
    """A data set that cannot be used. `problems` lists all reasons; the message shows 20 and counts the rest."""

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        lines = self.problems[:SHOWN_PROBLEMS]
        if len(self.problems) > len(lines):
            lines.append(f'... and {len(self.problems) - len(lines)} more')
        super().__init__('\n'.join(lines))


@dataclass(frozen=True)
class Dataset:
    name: str                 # the folder's name in lower case; part of results' paths
    train_ann: Path           # COCO JSON
    train_images: Path
    test_ann: Path            # the split that is reported
    test_images: Path
    classes: tuple[str, ...]  # in the order of category ids
    fingerprint: str          # 16 hex digits over annotations and images; the same wherever the set lies
    notes: tuple[str, ...]    # what a reader of the results must know


def prepare(profile: str, data: Path | None = None, cache: Path = Path('data'), log=print,
            shapes: ShapesSpec | None = None, first_images: tuple[int, int] | None = None) -> Dataset:
    """Make or find the data set of a profile, check it, and print what is in it through `log`.

    profile: 'mini' (`data` must be None), 'small' (`data`: a folder in COCO or VOC layout, or the parent of one)
        'paper' or 'dryrun' (`data`: exactly COCO 2017's layout).
    cache: what is written goes to `cache`/<name>, or to `cache`/<name>-prepared where the former holds something else.
    shapes: another mini set than the default one, e.g. a smaller one for a test.
    first_images: how many of train and test the profile dryrun takes.
    Raises DataError with file, id and value of each problem.
    """
    if profile not in ('mini', 'small', 'paper', 'dryrun'):
        raise DataError(f'profile {profile!r}: expected mini, small, paper or dryrun')
    cache = Path(cache).resolve()
    if profile == 'mini':
        if data is not None:
            raise DataError(f'profile mini makes its own data; DATA={data} belongs to small or paper')
        source = _Shapes(shapes or ShapesSpec())
    elif data is None:
        raise DataError(f'profile {profile} needs a data folder: DATA=<folder>')
    elif not Path(data).is_dir():
        raise DataError(f'{data}: no such folder')
    elif profile == 'paper':
        source = _coco_2017(Path(data).resolve())
    elif profile == 'dryrun':
        source = _FirstOfCoco(_coco_2017(Path(data).resolve()), first_images)
    else:
        source = _recognise(Path(data).resolve())
    return _prepare(source, cache, log)


def check(ann: Path, images: Path, split: str) -> list[str]:
    """Problems of one split, each with file, id and value; none if it is fine. Degenerate boxes are problems here."""
    try:
        found = _inspect(Path(ann), Path(images), split)
    except DataError as error:
        return error.problems
    return found.problems + [f'{ann}: degenerate {box}' for box in found.degenerate]


def coco_images(ann_file: Path) -> list[dict]:
    """The images of a COCO file."""
    return json.loads(Path(ann_file).read_text())['images']


def fingerprint(parts: Iterable) -> str:
    """16 hex digits (sha256) of JSON values; the order of the parts counts, that of the keys in them does not."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, separators=(',', ':')).encode() + b'\n')
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# From a source to a Dataset

def _prepare(source, cache: Path, log) -> Dataset:
    with _lock(cache, source.name, log):
        home = cache / source.name
        if not _is_ours(home) or any(path.is_relative_to(home) for path in source.files):
            home = cache / f'{source.name}-prepared'   # the user keeps data in the cache folder: never replace that
            if not _is_ours(home):
                raise DataError(f'{home}: not written by this kit, so not replaced; move it or choose another cache')
        _remove_stale(home)
        manifest = _read_manifest(home)
        if manifest.get('state') != _state(source, home):
            manifest = _remake(source, home, manifest, log)
    dataset = Dataset(source.name, *source.splits(home), classes=tuple(manifest['classes']),
                      fingerprint=manifest['fingerprint'], notes=tuple(manifest['notes']))
    _print_summary(dataset, manifest['counts'], log)
    return dataset


def _remake(source, home: Path, manifest: dict, log) -> dict:
    """Write and check everything anew in a sibling folder, rename it to `home` and return its manifest."""
    if source.self_made and manifest.get('recipe') == source.recipe:
        # Copied or touched files have new times: keep them where their content is still what was made.
        try:
            found = _examine(source, home, manifest['notes'])
        except DataError:
            found = {}
        if found.get('fingerprint') == manifest['fingerprint']:
            found['state'] = _state(source, home)
            _write_json(home / 'manifest.json', found)
            return found
        log(f'{home} is damaged or incomplete: making it again')
    else:
        log(f'{source.name}: first call, or something has changed: {"making" if source.self_made else "checking"} it')
    with _replacing(home) as folder:
        manifest = _examine(source, folder, source.make(folder))
        manifest['state'] = _state(source, folder)
        _write_json(folder / 'manifest.json', manifest)
    return manifest


def _state(source, home: Path) -> str:
    """Changes with the recipe and with the name, size or time of any file: cheap, since no file is opened."""
    return fingerprint([source.recipe, *_file_states([*source.files, *source.made(home)])])


def _examine(source, folder: Path, notes: Sequence[str]) -> dict:
    """Check both splits against themselves and each other. Returns the manifest; raises DataError."""
    train_ann, train_images, test_ann, test_images = source.splits(folder)
    problems, found = [], {}
    for split, ann, images in (('train', train_ann, train_images), ('test', test_ann, test_images)):
        try:
            found[split] = _inspect(ann, images, split)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    train, test = found['train'], found['test']
    problems = train.problems + test.problems
    notes = [*notes, *train.notes, *test.notes]
    for split in (train, test):
        if split.degenerate:   # COCO's own has some, so this is no error
            notes.append(f'{split.name}: {_plural(len(split.degenerate), "degenerate box", "degenerate boxes")} '
                         f'kept in the file; mmdet skips them when it trains: {_some(split.degenerate, "; ")}')
    if train.categories != test.categories:
        only = [f'{category} only in {mine.name}' for mine, other in ((train, test), (test, train))
                for category in mine.categories if category not in other.categories]
        problems.append(f'{test_ann}: categories differ from {train_ann.name}: {_some(only)}')
    shared = sorted(name for name, content in train.files.items() if test.files.get(name) == content)
    problems += [f'{test_images / name}: the image is in both train and test' for name in shared]
    if problems:
        raise DataError(problems)
    classes = [name for _, name in train.categories]
    unseen = [name for name in classes if not train.counts['classes'].get(name)]
    if unseen:
        notes.append(f'no training box of {_plural(len(unseen), "class", "classes")}: {_some(unseen)}')
    # dict.fromkeys: a set that is looked at again brings the notes of the first time along.
    return {'made_by': _MADE_BY, 'recipe': source.recipe, 'classes': classes, 'notes': list(dict.fromkeys(notes)),
            'fingerprint': fingerprint([train.content, test.content]),
            'counts': {'train': train.counts, 'test': test.counts}}


def _print_summary(dataset: Dataset, counts: dict, log) -> None:
    log(f'{dataset.name}: {len(dataset.classes)} classes, fingerprint {dataset.fingerprint}')
    log(f'{"split":<7}{"images":>8}{"boxes":>9}{"small":>9}{"medium":>9}{"large":>9}{"crowd":>7}')
    for split, count in counts.items():
        log(f'{split:<7}{count["images"]:>8}{count["boxes"]:>9}{count["small"]:>9}{count["medium"]:>9}'
            f'{count["large"]:>9}{count["crowd"]:>7}')
    per_class = (f'{name} {counts["train"]["classes"].get(name, 0)}/{counts["test"]["classes"].get(name, 0)}'
                 for name in dataset.classes)
    log(textwrap.fill('boxes per class (train/test): ' + ', '.join(per_class), 110, subsequent_indent='  '))
    for note in dataset.notes:
        log(textwrap.fill(f'note: {note}', 110, subsequent_indent='  '))


# ---------------------------------------------------------------------------------------------------------------------
# Checks

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
    """Check one COCO file and its images. Raises DataError where the file cannot be read at all."""
    coco = _read_coco(ann)
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


def _read_coco(ann: Path) -> dict:
    try:
        coco = json.loads(ann.read_bytes())
    except FileNotFoundError:
        raise DataError(f'{ann}: no such file') from None
    except (ValueError, OSError) as error:
        raise DataError(f'{ann}: not readable as JSON: {error}') from None
    if not isinstance(coco, dict):
        raise DataError(f'{ann}: expected an object with images, annotations and categories, got {str(coco)[:80]}')
    problems = []
    for part in ('images', 'annotations', 'categories'):
        if not isinstance(coco.get(part), list):
            problems.append(f'{ann}: no list {part!r}; it has {sorted(coco)}')
        elif not coco[part]:
            problems.append(f'{ann}: {part!r} is empty')
        else:
            problems += [f'{ann}: {part} entry {i}: expected an object with an integer id, got {str(record)[:80]}'
                         for i, record in enumerate(coco[part])
                         if not isinstance(record, dict) or type(record.get('id')) is not int]
    if problems:
        raise DataError(problems)
    return coco


def _duplicates(values: Iterable) -> list:
    return [value for value, count in Counter(values).items() if count > 1]


def _inspect_categories(ann: Path, coco: dict, found: _Findings) -> None:
    found.categories = [(category['id'], category.get('name')) for category in coco['categories']]
    ids, names = zip(*found.categories, strict=True)
    found.problems += [f'{ann}: category id {i}: used more than once' for i in _duplicates(ids)]
    found.problems += [f'{ann}: category name {name!r}: used more than once' for name in _duplicates(map(str, names))]
    found.problems += [f'{ann}: category id {i}: name {name!r} is not a text' for i, name in found.categories
                       if not isinstance(name, str) or not name]
    if list(ids) != sorted(ids):   # mmdet labels by place in the file
        found.problems.append(f'{ann}: categories are not in the order of their ids: {_some(ids)}')


def _inspect_images(ann: Path, folder: Path, coco: dict, found: _Findings) -> dict[int, tuple[int, int]]:
    """Look at the image files. Returns (width, height) in pixels by image id, as the JSON has them."""
    found.problems += [f'{ann}: image id {i}: used more than once'
                       for i in _duplicates(record['id'] for record in coco['images'])]
    found.problems += [f'{ann}: file_name {name!r}: used more than once'
                       for name in _duplicates(str(record.get('file_name')) for record in coco['images'])]
    count = len(coco['images'])
    opened = set(range(count))
    if count >= CHECK_ALL_BELOW:
        opened = set(random.Random(0).sample(range(count), min(SAMPLE_IMAGES, count)))
        found.notes.append(f'{found.name}: all {count} image files are there; {len(opened)} of them were opened')
    sizes_px = {}
    for i, record in enumerate(_progress(coco['images'], f'check {found.name} images')):
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
                actual_px = _image_size_px(folder / name, file)
                if actual_px != size_px:
                    found.problems.append(f'{where}: {folder / name} has {_by(actual_px)} px, '
                                          f'the JSON says {_by(size_px)}')
                content = hashlib.sha256(file).hexdigest() if count < CHECK_ALL_BELOW else None
            found.files[name] = [size_bytes, content]
        except FileNotFoundError:
            found.problems.append(f'{where}: {folder / name}: no such image')
        except (DataError, OSError) as error:
            found.problems.append(f'{where}: {error}')
    return sizes_px


def _image_size_px(path: Path, file: bytes) -> tuple[int, int]:
    """(width, height) as OpenCV, and so mmdet, loads the image: after the orientation tag. Raises DataError."""
    try:
        with Image.open(io.BytesIO(file)) as image:
            if not file.endswith((b'\xff\xd9', b'IEND\xaeB`\x82')):   # no end of a JPEG or PNG: is it cut short?
                image.load()
            turned = 'exif' in image.info and image.getexif().get(0x0112, 1) >= 5
            return image.size[::-1] if turned else image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow names the object that it read from, which says nothing to the reader.
        raise DataError(f'{path}: not readable as an image: {re.sub(" <_io.*>", "", str(error))}') from None


def _inspect_annotations(ann: Path, coco: dict, sizes_px: dict, found: _Findings) -> None:
    names = dict(found.categories)
    image_ids = {record['id'] for record in coco['images']}
    classes, counts = Counter(), Counter(images=len(coco['images']), boxes=0, small=0, medium=0, large=0, crowd=0)
    found.problems += [f'{ann}: annotation id {i}: used more than once'
                       for i in _duplicates(record['id'] for record in coco['annotations'])]
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
            faults.append(f'bbox {bbox} leaves the image of {_by(sizes_px[image_id])} px')
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


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _outside_px(bbox_xywh_px: Sequence[float], size_px: tuple[int, int]) -> float:
    (x, y, width, height), (image_width, image_height) = bbox_xywh_px, size_px
    return max(-x, -y, x + width - image_width, y + height - image_height)


# ---------------------------------------------------------------------------------------------------------------------
# Sources: where the files of a data set are, and how those that are lacking are made. `files` are the user's,
# `made(home)` are written here, and `recipe` names everything else that decides what is written.

@dataclass
class _Coco:
    name: str
    train: tuple[Path, Path]   # annotations, images
    test: tuple[Path, Path]
    notes: list[str]
    recipe = f'{_MADE_BY} coco'
    self_made = False

    @property
    def files(self):
        return *self.train, *self.test

    def made(self, home):
        return ()

    def splits(self, home):
        return *self.train, *self.test

    def make(self, folder):
        return self.notes


def _coco_2017(root: Path) -> _Coco:
    paths = [root / 'annotations/instances_train2017.json', root / 'train2017',
             root / 'annotations/instances_val2017.json', root / 'val2017']
    missing = [f'{path}: missing; profile paper expects the layout of COCO 2017' for path in paths if not path.exists()]
    if missing:
        raise DataError(missing)
    return _Coco('coco', tuple(paths[:2]), tuple(paths[2:]), ['trained on train2017, reported on val2017'])


@dataclass
class _FirstOfCoco:
    """The first images of COCO 2017 that have annotations; lists of their own, pictures where they lie."""
    whole: _Coco
    counts: tuple[int, int]     # train, test
    name = 'dryrun'
    self_made = False

    @property
    def files(self):    # not the folders: they hold thousands of pictures that do not matter here
        return self.whole.train[0], self.whole.test[0]

    @property
    def recipe(self):
        return f'{_MADE_BY} first {self.counts} of {self.whole.train[1].parent}'

    def made(self, home):
        return home / 'train.json', home / 'test.json'

    def splits(self, home):
        train, test = self.made(home)
        return train, self.whole.train[1], test, self.whole.test[1]

    def make(self, folder):
        notes = ['a dry run: numbers made with these images mean nothing']
        for ann, made, count in zip(self.files, self.made(folder), self.counts, strict=True):
            coco = _read_coco(ann)
            annotated = {one['image_id'] for one in coco['annotations']}
            images = [image for image in coco['images'] if image['id'] in annotated][:count]
            if len(images) < count:
                raise DataError(f'{ann}: {_plural(len(images), "annotated image", "annotated images")}, '
                                f'a dry run takes {count}')
            ids = {image['id'] for image in images}
            _write_json(made, {'images': images, 'categories': coco['categories'], 'annotations': [
                one for one in coco['annotations'] if one['image_id'] in ids]})
            notes.append(f'the first {count} annotated images of {ann.name}')
        return notes


def _recognise(data: Path):
    """COCO or VOC layout at `data` or one level below."""
    roots = [data, *sorted(path for path in data.iterdir() if path.is_dir())]
    coco = [root for root in roots if any((root / 'annotations').glob('instances_*.json'))]
    voc = [root for root in roots if (root / 'Annotations').is_dir() and (root / 'ImageSets/Main').is_dir()]
    if len(coco) + len(voc) > 1:
        raise DataError(f'{data}: more than one data set: {_some([*coco, *voc])}; name one of them')
    if coco:
        return _coco_layout(coco[0])
    if voc:
        return _Voc(voc[0])
    raise DataError(f'{data}: no data set here or one level below; expected annotations/instances_train*.json '
                    '(COCO layout) or Annotations/, ImageSets/Main/ and JPEGImages/ (Pascal VOC layout)')


def _coco_layout(root: Path) -> _Coco:
    anns = {}
    for split in ('train', 'val', 'test'):
        found = sorted((root / 'annotations').glob(f'instances_{split}*.json'))
        if len(found) > 1:
            raise DataError(f'{root / "annotations"}: more than one file for {split}: '
                            f'{_some(path.name for path in found)}; keep one')
        if found:
            anns[split] = found[0]
    reported = 'test' if 'test' in anns else 'val'
    for split in ('train', reported):
        if split not in anns:
            other = '' if split == 'train' else ' or instances_test*.json'
            raise DataError(f'{root / "annotations"}: no instances_{split}*.json{other}')
    suffix = {split: path.stem.removeprefix('instances_') for split, path in anns.items()}
    notes = [f'trained on {suffix["train"]}, reported on {suffix[reported]}']
    if len(anns) == 3:
        notes.append(f'{suffix["val"]} is not used: nothing is tuned or selected')
    train, test = ((anns[split], _image_folder(root, suffix[split], split)) for split in ('train', reported))
    return _Coco(_folder_name(root), train, test, notes)


def _image_folder(root: Path, suffix: str, split: str) -> Path:
    """The folder of a split's images, by the suffix of its JSON (train2017), else its split (train), else images/."""
    tried = [root / suffix, root / 'images' / suffix, root / split, root / 'images' / split, root / 'images']
    for folder in tried:
        if folder.is_dir():
            return folder
    raise DataError(f'{root}: no folder with the images of {suffix}; tried '
                    f'{", ".join(str(path.relative_to(root)) for path in dict.fromkeys(tried))}')


def _folder_name(root: Path) -> str:
    name = re.sub(r'[^a-z0-9._-]+', '-', root.name.lower()).strip('-.') or 'data'
    return 'mini-data' if name == 'mini' else name   # 'mini' is the set that is made here


class _Voc:
    """Pascal VOC layout, converted to COCO JSON.

    Coordinates: VOC counts pixels from 1, so 1 is taken off each of xmin, ymin, xmax, ymax, and width = xmax - xmin, as
    mmdet's own converter does. Boxes are clipped to the image; those below 1 px after it are dropped and reported.
    Objects marked difficult become iscrowd: neither training nor evaluation counts them. Classes are sorted by name,
    ids count from 1.
    """
    self_made = False

    def __init__(self, root: Path):
        self.root, self.name, self.recipe = root, _folder_name(root), f'{_MADE_BY} voc'
        self.images = root / 'JPEGImages'
        lists = {split: root / 'ImageSets/Main' / f'{split}.txt' for split in ('train', 'val', 'test')}
        self.lists = {split: path for split, path in lists.items() if path.is_file()}
        if not self.images.is_dir():
            raise DataError(f'{self.images}: no such folder')
        if 'train' not in self.lists or len(self.lists) < 2:
            raise DataError(f'{root / "ImageSets/Main"}: needs train.txt and test.txt, or else val.txt; '
                            f'it has {_some(path.name for path in self.lists.values()) or "neither"}')
        if 'test' not in self.lists:
            self.lists['test'] = self.lists.pop('val')   # what follows reports on val.txt
        self.files = root / 'Annotations', *self.lists.values(), self.images

    def made(self, home):
        return home / 'train.json', home / 'test.json'

    def splits(self, home):
        return home / 'train.json', self.images, home / 'test.json', self.images

    def make(self, folder):
        stems, problems = self._read_lists()
        images = {}
        for path in sorted(self.images.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                images.setdefault(path.stem, []).append(path)
        records, odd = {}, {'dropped': [], 'clipped': [], 'resized': []}
        for split in ('train', 'test'):
            records[split] = []
            for stem in _progress(stems[split], f'convert {split}'):
                try:
                    image, boxes, odd_here = _read_voc(self.root / 'Annotations' / f'{stem}.xml', images.get(stem, []))
                except DataError as error:
                    problems += [f'{self.lists[split].name}: {line}' for line in error.problems]
                    continue
                records[split].append((image, boxes))
                for kind in odd:
                    odd[kind] += odd_here[kind]
            if stems[split] and not any(boxes for _, boxes in records[split]):
                problems.append(f'{self.lists[split]}: no image in it has a usable box')
        if problems:
            raise DataError(problems)
        boxes = [box for split in records.values() for _, boxes in split for box in boxes]
        for split in records:
            _write_json(folder / f'{split}.json', _coco_json(records[split], sorted({box['name'] for box in boxes})))
        return self._notes(stems, odd, sum(box['iscrowd'] for box in boxes))

    def _read_lists(self) -> tuple[dict[str, list[str]], list[str]]:
        """Names of the images by split, without suffix; problems."""
        stems, problems = {}, []
        for split, path in self.lists.items():
            lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
            stems[split] = [line.split()[0] for line in lines if line.strip()]
            if split != 'val' and not stems[split]:
                problems.append(f'{path}: empty')
            problems += [f'{path}: {stem} is listed more than once' for stem in _duplicates(stems[split])]
        return stems, problems

    def _notes(self, stems: dict, odd: dict, difficult: int) -> list[str]:
        notes = [f'trained on train ({len(stems["train"])} images), '
                 f'reported on {self.lists["test"].stem} ({len(stems["test"])} images)']
        if stems.get('val'):
            notes.append(f'val ({len(stems["val"])} images) is not used: nothing is tuned or selected')
        for kind, one, many, what in (
                ('dropped', 'degenerate box', 'degenerate boxes', 'dropped'),
                ('clipped', 'box', 'boxes', 'clipped to the image'),
                ('resized', 'XML file', 'XML files', "with a wrong image size; the image's own is used")):
            if odd[kind]:
                notes.append(f'{_plural(len(odd[kind]), one, many)} {what}: {_some(odd[kind], "; ")}')
        if difficult:
            notes.append(f'{_plural(difficult, "difficult object", "difficult objects")} ignored (iscrowd)')
        return notes


def _read_voc(xml: Path, images: list[Path]) -> tuple[dict, list[dict], dict[str, list[str]]]:
    """One XML file and its image.

    images: those named as the XML file is, whatever name the XML states; there must be one.
    Returns COCO's image record, boxes (name, bbox as xywh in px, iscrowd) and what was odd. Raises DataError.
    """
    if len(images) != 1:
        raise DataError(f'{xml.stem}: more than one image: {_some(p.name for p in images)}' if images else
                        f'{xml.stem}: no such image in JPEGImages')
    try:
        tree = ElementTree.parse(xml).getroot()
        width, height = size_px = _image_size_px(images[0], images[0].read_bytes())
    except FileNotFoundError:
        raise DataError(f'{xml}: no such file') from None
    except (ElementTree.ParseError, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError(f'{xml}: not readable as XML: {error}') from None
    odd, problems, boxes = {'dropped': [], 'clipped': [], 'resized': []}, [], []
    stated = tree.findtext('size/width', 'none').strip(), tree.findtext('size/height', 'none').strip()
    if stated != (str(width), str(height)):
        odd['resized'].append(f'{xml.name} says {_by(stated)}, the image has {_by(size_px)} px')
    for number, item in enumerate(tree.findall('object'), 1):
        name = item.findtext('name', '').strip()
        corners = {key: item.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')}
        shown = f'{xml.name} object {number} ({name}) ' + ' '.join(f'{key}={text}' for key, text in corners.items())
        try:
            corners_px = [float(text) - 1 for text in corners.values()]
        except (TypeError, ValueError):
            corners_px = [math.nan]
        if not name or not all(map(math.isfinite, corners_px)):
            problems.append(f'{xml.parent / shown}: expected a name and four numbers')
            continue
        inside_px = [min(max(corner, 0), limit) for corner, limit in zip(corners_px, size_px * 2, strict=True)]
        x0, y0, x1, y1 = inside_px
        if min(x1 - x0, y1 - y0) < DEGENERATE_BELOW_PX:
            odd['dropped'].append(shown)
            continue
        if inside_px != corners_px:
            odd['clipped'].append(shown)
        boxes.append({'name': name, 'bbox': [_plain(value) for value in (x0, y0, x1 - x0, y1 - y0)],
                      'iscrowd': int(item.findtext('difficult', '0').strip() == '1')})
    if problems:
        raise DataError(problems)
    return {'file_name': images[0].name, 'width': width, 'height': height}, boxes, odd


def _coco_json(records: Iterable[tuple[dict, list[dict]]], names: Sequence[str]) -> dict:
    """Images with their boxes -> COCO's three lists; ids count from 1 (pycocotools never matches annotation 0)."""
    category_id = {name: i for i, name in enumerate(names, 1)}
    coco = {'images': [], 'annotations': [], 'categories': [{'id': i, 'name': name} for name, i in category_id.items()]}
    for image_id, (image, boxes) in enumerate(records, 1):
        coco['images'].append({'id': image_id, **image})
        for box in boxes:
            coco['annotations'].append({
                'id': len(coco['annotations']) + 1, 'image_id': image_id, 'category_id': category_id[box['name']],
                'bbox': box['bbox'], 'area': _plain(box['bbox'][2] * box['bbox'][3]), 'iscrowd': box.get('iscrowd', 0)})
    return coco


# ---------------------------------------------------------------------------------------------------------------------
# The mini set

@dataclass
class _Shapes:
    spec: ShapesSpec
    name = 'mini'
    files = ()
    self_made = True

    @property
    def recipe(self):
        return f'{_MADE_BY} shapes {fingerprint([asdict(self.spec)])}'

    def made(self, home):
        return self.splits(home)

    def splits(self, home):
        return home / 'train.json', home / 'train', home / 'test.json', home / 'test'

    def make(self, folder):
        for split, count in (('train', self.spec.train_images), ('test', self.spec.test_images)):
            (folder / split).mkdir()
            records = []
            for index in _progress(range(count), f'draw {split}'):
                image, boxes_xywh_px, labels = scene(self.spec, split, index)
                name = f'{split}_{index:05d}.png'
                (folder / split / name).write_bytes(png(image))
                boxes = [{'name': self.spec.classes[label], 'bbox': box}
                         for box, label in zip(boxes_xywh_px.tolist(), labels.tolist(), strict=True)]
                records.append(({'file_name': name, 'width': image.shape[1], 'height': image.shape[0]}, boxes))
            _write_json(folder / f'{split}.json', _coco_json(records, self.spec.classes))
        return [f'trained on train ({self.spec.train_images} images), reported on test ({self.spec.test_images})']


# ---------------------------------------------------------------------------------------------------------------------
# Files

@contextmanager
def _lock(cache: Path, name: str, log):
    """One process at a time prepares a data set; the system frees the lock of a process that was killed."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = open(cache / f'.{name}.lock', 'w')
    except OSError as error:
        raise DataError(f'{cache}: cannot be written ({error.strerror}); choose another cache folder') from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f'{name}: waiting for another process that prepares it')
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remove_stale(home: Path) -> None:
    """Remove what calls that were killed have left; only under the lock."""
    for stale in [*home.parent.glob(f'.{home.name}.new-*'), *home.parent.glob(f'.{home.name}.old-*')]:
        shutil.rmtree(stale)
    for stale in home.glob('.manifest.json.*'):
        stale.unlink()


@contextmanager
def _replacing(home: Path):
    """A new folder beside `home` that takes its place when the block ends without an error."""
    new, old = (home.with_name(f'.{home.name}.{age}-{os.getpid()}') for age in ('new', 'old'))
    new.mkdir()
    try:
        yield new
        if home.exists():
            home.rename(old)
        new.rename(home)
    finally:
        for left in (new, old):
            if left.exists():
                shutil.rmtree(left)


def _write_json(path: Path, value) -> None:
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def _read_manifest(home: Path) -> dict:
    """The manifest of a folder that some version of this module wrote, else {}."""
    try:
        manifest = json.loads((home / 'manifest.json').read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and str(manifest.get('made_by')).startswith('amdlib.data ') else {}


def _is_ours(home: Path) -> bool:
    """Whether `home` may be replaced: nothing is there, or what this module wrote."""
    return not home.exists() or bool(_read_manifest(home)) or home.is_dir() and not any(home.iterdir())


def _file_states(paths: Iterable[Path]) -> Iterable[list]:
    """Name, size and time of each file in the paths, which may be folders."""
    for root in paths:
        entries = sorted(_walk(root))
        yield [root.name, len(entries)]
        yield from entries


def _walk(root: Path, below: str = '') -> Iterable[list]:
    if not root.is_dir():
        if root.exists():
            status = root.stat()
            yield [below, status.st_size, status.st_mtime_ns]
        return
    for entry in os.scandir(root):
        if entry.is_dir():
            yield from _walk(Path(entry.path), f'{below}{entry.name}/')
        else:
            status = entry.stat()
            yield [below + entry.name, status.st_size, status.st_mtime_ns]


def _progress(items: Sequence, what: str):
    return tqdm(items, desc=what, unit=' images', disable=len(items) < SAMPLE_IMAGES, mininterval=1, leave=False)


# ---------------------------------------------------------------------------------------------------------------------
# Words

def _plural(count: int, one: str, many: str) -> str:
    return f'{count} {one if count == 1 else many}'


def _some(values: Iterable, separator: str = ', ', limit: int = 5) -> str:
    texts = [str(value) for value in values]
    more = [f'and {len(texts) - limit} more'] if len(texts) > limit else []
    return separator.join(texts[:limit] + more)


def _by(size_px: Sequence) -> str:
    return 'x'.join(map(str, size_px))


def _plain(value: float) -> int | float:
    return int(value) if value == int(value) else value
