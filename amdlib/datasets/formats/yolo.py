"""YOLO: a text file an image, a line a box: class, then centre and size as parts of the image's width and height.

`data.yaml` (Ultralytics, Roboflow) names classes and splits, or a list of classes lies beside (labelImg, Label Studio)
and folders are the splits. A polygon's line becomes the box around it. An image without a text file, or with an empty
one, has no box. Class ids follow the file; classes that do not occur stay.
"""
from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from amdlib.datasets.checks import duplicates
from amdlib.datasets.converted import IMAGE_SUFFIXES, Box, Converted, Odd, Part, pictures_below, read_text
from amdlib.datasets.formats import by_role, one_each, split_of
from amdlib.errors import DataError
from amdlib.words import plural, some

LAYOUT = 'YOLO layout: data.yaml with names and train, or classes.txt; images/ with labels/'
LABELS = '.txt'
KEYS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'test': 'test'}    # of data.yaml
BEYOND = 0.1        # of the image, by which a box may leave it; a number further off is none of YOLO's
CLASS_LISTS = ('classes.txt', 'obj.names', 'labels/classes.txt', 'data/obj.names')


@dataclass(frozen=True)
class _Spec:
    """What `data.yaml` says."""
    file: Path
    names: dict[int, str]
    splits: dict[str, list[str]]    # paths as they are written
    base: str = ''                  # of them, where `path` says one
    keypoint_values: int = 0        # that follow a box


class Yolo(Converted):
    """Text files of the user's, COCO files made of them."""
    decimals = 2        # six digits of a part are no finer

    def __init__(self, root: Path, names: dict[int, str], parts: dict[str, Part], file: Path, keypoint_values: int = 0,
                 lacking: Sequence[str] = ()) -> None:
        places = [place for part in parts.values() for one in part.found for place in (one, _labels(one))]
        found = [file.name, plural(len(names), 'class', 'classes'), *(part.name for part in parts.values())]
        super().__init__(root, 'yolo', by_role(root, parts), dict.fromkeys([file, *places]),
                         f'YOLO layout: {"; ".join([", ".join(found), *lacking])}')
        self.names, self.file, self.keypoint_values, self.lacking = names, file, keypoint_values, lacking
        self.classes = [names[number] for number in sorted(names)]

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        return [*super().make(folder, drop_broken), *self.lacking]

    def entries(self, part: Part, problems: list[str], odd: Odd) -> list[tuple[Path, Path | None]]:
        images = [image for one in part.found for image in (
            pictures_below(one) if one.is_dir() else self._listed(one, problems))]
        labels = {image: _label_of(image) for image in images}
        there = Counter(filter(None, labels.values()))
        problems += [f'{label}: belongs to more than one image: '
                     f'{some(image.name for image in images if labels[image] == label)}'
                     for label, count in there.items() if count > 1]
        if not images:
            problems.append(f'{part.origin}: no image in it')
        elif not there:
            problems.append(f'{part.origin}: none of its {plural(len(images), "image", "images")} has a text file; '
                            f'looked for such as {_labels(images[0]).with_suffix(".txt")}')
        for folder, beside in dict.fromkeys((label.parent, image.parent) for image, label in labels.items() if label):
            stems = {path.stem for path in beside.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
            odd['alone'] += [str(path) for path in sorted(folder.glob('[!.]*.txt')) if folder != beside
                             and path.stem not in {*stems, 'classes'} and str(path) not in odd['alone']]
        return list(labels.items())

    def _listed(self, file: Path, problems: list[str]) -> list[Path]:
        """The images of a text file with a path a line."""
        images = []
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if not line.strip():
                continue
            path = _where(line, file.parent, self.root)
            if path is None or not path.is_relative_to(self.root):
                problems.append(f'{file}: line {number}: {line.strip()[:80]!r}: no such image below {self.root}')
            else:
                images.append(path)
        problems += [f'{file}: {path.relative_to(self.root)} is listed more than once' for path in duplicates(images)]
        return images

    def boxes(self, label: Path, size_px: tuple[int, int], odd: Odd) -> list[Box]:
        boxes, problems = [], []
        for number, line in enumerate(read_text(label).splitlines(), 1):
            if not line.strip():
                continue
            shown = f'line {number}: {line.strip()[:80]!r}'
            words = line.split()
            try:
                name, parts = self._read(words)
            except ValueError as error:
                problems.append(f'{label}: {shown}: {error}')
                continue
            told = f'{label.name} {shown}'
            if len(parts) > 4:
                xs, ys = parts[0::2], parts[1::2]
                corners = min(xs), min(ys), max(xs), max(ys)
                odd['polygons'].append(told)
            else:
                x, y, width, height = parts
                corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
                if len(words) > 5:
                    odd['keypoints'].append(told)
            boxes.append(Box(name, [part * side for part, side in zip(corners, size_px * 2, strict=True)], told))
        if problems:
            raise DataError(problems)
        return boxes

    def _read(self, words: list[str]) -> tuple[str, list[float]]:
        """Class, and a box's four parts or a polygon's pairs. Errors: ValueError with what was expected."""
        try:
            number, *parts = map(float, words)
        except ValueError:
            raise ValueError("expected a class's number, then parts of the image's width and height") from None
        if self.keypoint_values and len(parts) == 4 + self.keypoint_values:
            parts = parts[:4]
        if len(parts) != 4 and (len(parts) < 6 or len(parts) % 2):
            raise ValueError(f'expected a class and 4 numbers of a box, or 6 or more of a polygon, got {len(parts)}')
        if number not in self.names:
            known = f'{min(self.names)} to {max(self.names)}'
            raise ValueError(f'class {words[0]} is none of {self.file.name}, which has {known}')
        far = [word for word, part in zip(words[1:], parts, strict=False) if not -BEYOND <= part <= 1 + BEYOND]
        if far:
            pixels = '; pixels?' if all(abs(part) > 1 for part in parts) else ''
            raise ValueError(f"{far[0]} is no part of the image's width or height, expected 0 to 1{pixels}")
        if len(parts) == 4 and min(parts[2:]) < 0:
            raise ValueError('a width or height below 0')
        return self.names[int(number)], parts


def recognise(root: Path) -> Yolo | None:
    """By data.yaml, else by a list of classes beside labels. Errors: DataError for a file that cannot be read, and for
    splits that are not there."""
    specs = [spec for suffix in ('yaml', 'yml', 'data') for path in sorted(root.glob(f'*.{suffix}'))
             if (spec := _spec(root, path))]
    if len(specs) > 1:
        raise DataError(f'{root}: more than one file with classes and splits: {some(one.file.name for one in specs)}; '
                        'keep one')
    if specs:
        return _by_spec(root, specs[0])
    lists = [path for name in CLASS_LISTS if (path := root / name).is_file()]
    if not lists and not (root / 'labels').is_dir():
        return None
    folders = _split_folders(root)
    if not any(_label_of(image) for folder in folders.values() for image in pictures_below(folder)):
        return None
    if not lists:
        raise DataError(f'{root}: labels of YOLO without data.yaml or classes.txt: the names of classes are not known')
    parts = {split: Part(folder.relative_to(root).as_posix(), folder, folder, (folder,))
             for split, folder in folders.items()}
    return Yolo(root, _names(lists[0], read_text(lists[0]).splitlines()), parts, lists[0])


# ---- data.yaml --------------------------------------------------------------------------------------------------

def _spec(root: Path, file: Path) -> _Spec | None:
    """What a file says, where it has names and a split; obj.data of Darknet says it in lines of key = value."""
    text = read_text(file)
    if not all(re.search(rf'^\s*["\']?({key})["\']?\s*[:=]', text, re.MULTILINE) for key in ('names', '|'.join(KEYS))):
        return None
    if file.suffix == '.data':
        values = {key.strip(): value.strip() for key, _, value in (line.partition('=') for line in text.splitlines())}
    else:
        try:
            values = yaml.load(text, Loader=yaml.BaseLoader)    # texts alone: a class may be called `no`
        except (yaml.YAMLError, RecursionError) as error:
            raise DataError(f'{file}: not readable as YAML: {" ".join(str(error).split())}') from None
    if not isinstance(values, dict) or 'names' not in values:
        return None
    names = values['names']
    if isinstance(names, str):
        if (listed := _where(names, file.parent, root)) is None:
            raise DataError(f'{file}: names is {names[:80]!r}, expected a list, a mapping or a file')
        names = read_text(listed).splitlines()
    names = _names(file, names)
    if str(values.get('nc') or len(names)) != str(len(names)):
        raise DataError(f'{file}: nc is {values["nc"]!r}, names has {len(names)}')
    splits: dict[str, list[str]] = {}
    for key, split in KEYS.items():
        given = values.get(key)
        paths = given if isinstance(given, list) else [given]
        paths = [path for path in paths if path not in (None, '', 'null', '~')]
        if not all(isinstance(path, str) for path in paths):
            raise DataError(f'{file}: {key} is {str(given)[:80]}, expected a path or a list of paths')
        if paths:
            splits.setdefault(split, paths)
    base, shape = values.get('path') or '', values.get('kpt_shape')
    try:
        keypoint_values = math.prod(map(int, shape)) if shape else 0
    except (TypeError, ValueError):
        raise DataError(f'{file}: kpt_shape is {str(shape)[:80]}, expected two numbers') from None
    return _Spec(file, names, splits, base if isinstance(base, str) else '', keypoint_values)


def _names(file: Path, given: object) -> dict[int, str]:
    """Class names by number. Errors: DataError for what is no text, and for a name that two have."""
    if isinstance(given, list):
        while given and given[-1] in ('', None):    # a file's last lines
            given = given[:-1]
        given = dict(enumerate(given))
    try:
        names = {int(number): name.strip() for number, name in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise DataError(f'{file}: names is {str(given)[:80]}, expected a list or a mapping from numbers') from None
    problems = [f'{file}: names: class {number} has no name' for number, name in names.items() if not name]
    problems += [f'{file}: names: {name!r} is there more than once' for name in duplicates(names.values())]
    if problems or not names:
        raise DataError(problems or f'{file}: names is empty')
    return names


def _by_spec(root: Path, spec: _Spec) -> Yolo:
    parts, lacking = {}, []
    for split, written in spec.splits.items():
        found = [_where(path, root / spec.base.replace('\\', '/'), root) for path in written]
        missing = [path for path, place in zip(written, found, strict=True) if place is None]
        if missing:
            lacking.append(f'{spec.file.name} names {some(missing)} for {split}, which is not there')
            if split == 'train' or len(missing) < len(written):
                raise DataError(f'{spec.file}: {split}: {some(missing)}: no such folder or file in {root}')
        elif same := [name for name, part in parts.items() if part.found == found]:
            lacking.append(f'{split} is the same as {same[0]} in {spec.file.name}: one split')
        else:
            images = root if any(place.is_file() for place in found) else Path(os.path.commonpath(found))
            parts[split] = Part(split, images, found[0], found)
    if not parts:
        raise DataError(f'{spec.file}: {"; ".join(lacking) or "no path for train, val or test"}')
    return Yolo(root, spec.names, parts, spec.file, spec.keypoint_values, lacking)


# ---- where files are --------------------------------------------------------------------------------------------

def _where(written: str, base: Path, root: Path) -> Path | None:
    """Where a path leads: from `base`, from `root`, else the longest end of it that lies below `root`, since it was
    written on another machine or from another folder."""
    parts = PurePosixPath(written.strip().replace('\\', '/')).parts
    ends = (root.joinpath(*parts[i:]) for i in range(len(parts)) if i == 0 or parts[i] != '..')
    found = next((path for path in (base.joinpath(*parts), *ends) if os.path.exists(path)), None)
    return found and Path(os.path.normpath(found))


def _split_folders(root: Path) -> dict[str, Path]:
    """The images of each split, where folders alone say it: images/train or train/images, else one."""
    for base in (root / 'images', root):
        children = sorted(base.iterdir()) if base.is_dir() else []
        folders = one_each(root, ((split, child / 'images' if (child / 'images').is_dir() else child)
                                  for child in children if child.is_dir() and (split := split_of(child.name))))
        if folders:
            return folders
    return {'train': root / 'images' if (root / 'images').is_dir() else root}


def _labels(path: Path) -> Path:
    """The same path in labels/, for the last images/ in it; itself where there is none."""
    parts = list(path.parts)
    for i in reversed(range(len(parts))):
        if parts[i].lower() in ('images', 'jpegimages'):
            return Path(*parts[:i], 'labels', *parts[i + 1:])
    return path


def _label_of(image: Path) -> Path | None:
    """An image's text file: in labels/, else beside it."""
    return next((path for path in (_labels(image).with_suffix('.txt'), image.with_suffix('.txt'))
                 if os.path.exists(path)), None)
