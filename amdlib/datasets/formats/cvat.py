"""CVAT for images: one XML file for all, or for each split, with an element an image.

Coordinates count from 0. Of polygons and turned boxes the upright boxes around them are taken; shapes that surround
nothing (points, lines) and tags are left out and told. An image without a box is one: CVAT lists every image.
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from amdlib.datasets.converted import Box, Converted, Odd, Part, Pictures
from amdlib.datasets.formats import by_role, one_each, split_of
from amdlib.errors import DataError
from amdlib.words import some

LAYOUT = 'CVAT for images: annotations.xml with images/'
LABELS = '.xml'
COORDINATES = ('xtl', 'ytl', 'xbr', 'ybr', 'points')


class Cvat(Converted):
    """XML files of the user's, COCO files made of them."""
    decimals = 2        # as CVAT writes them

    def __init__(self, root: Path, parts: dict[str, Part], by_subset: bool = False) -> None:
        files = dict.fromkeys(part.origin for part in parts.values())
        told = f'CVAT for images: {some(file.relative_to(root) for file in files)}, {", ".join(parts)}'
        super().__init__(root, 'cvat', by_role(root, parts), (*files, root), told)
        self.by_subset = by_subset      # the splits lie in one file

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        self.pictures = Pictures(self.root)
        trees = {part.origin: _parsed(part.origin) for part in self.parts.values()}
        self.images = {file: tree.findall('image') for file, tree in trees.items()}
        labels = [label.findtext('name', '').strip() for tree in trees.values() for label in tree.iterfind('.//label')]
        self.classes = list(dict.fromkeys(filter(None, labels)))
        return super().make(folder, drop_broken)

    def entries(self, part: Part, problems: list[str], odd: Odd) -> list[tuple[Path, tuple[Path, ElementTree.Element]]]:
        entries = []
        if not self.images[part.origin]:
            problems.append(f'{part.origin}: no element image; of a video, export as CVAT for images')
        for item in self.images[part.origin]:
            if self.by_subset and split_of(item.get('subset', '')) != part.found:
                continue
            name = item.get('name', '')
            found = self.pictures.find(name, part.origin.parent, part.found)
            if len(found) == 1:
                entries.append((found[0], (part.origin, item)))
            else:
                problems.append(f'{part.origin}: image {name!r}: ' + (
                    f'may be {some(found)}' if found else f'no such image below {self.root}'))
        return entries

    def boxes(self, label: tuple[Path, ElementTree.Element], size_px: tuple[int, int], odd: Odd) -> list[Box]:
        file, image = label
        boxes, problems = [], []
        for number, item in enumerate((item for item in image if item.tag not in ('tag', 'attribute')), 1):
            told = f'{image.get("name")} {item.tag} {number} ({item.get("label")})'
            if item.tag not in ('box', 'polygon'):
                odd['other'].append(told)
                continue
            try:
                corners_px = _corners_px(item)
            except (TypeError, ValueError):
                corners_px = [math.nan]
            if not item.get('label') or not all(map(math.isfinite, corners_px)):
                values = ' '.join(f'{key}={value}' for key, value in item.items() if key in COORDINATES)
                problems.append(f'{file}: {told} {values[:80]}: expected a label and numbers')
                continue
            if item.tag == 'polygon':
                odd['polygons'].append(told)
            elif float(item.get('rotation') or 0):
                odd['turned'].append(told)
            boxes.append(Box(item.get('label', ''), corners_px, told))
        unknown = {box.name for box in boxes} - set(self.classes) if self.classes else None
        if unknown:
            problems.append(f"{file}: image {image.get('name')!r}: {some(sorted(unknown))}: none of the file's labels")
        if problems:
            raise DataError(problems)
        return boxes


def _corners_px(item: ElementTree.Element) -> list[float]:
    """x0, y0, x1, y1 around a box or polygon. Errors: ValueError; TypeError."""
    if item.tag == 'polygon':
        points = [tuple(map(float, point.split(','))) for point in item.get('points', '').split(';')]
    else:
        x0, y0, x1, y1 = (float(item.get(key)) for key in COORDINATES[:4])
        angle = math.radians(float(item.get('rotation') or 0))      # clockwise around the middle
        middle, half = ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2)
        across = abs(half[0] * math.cos(angle)) + abs(half[1] * math.sin(angle))
        along = abs(half[0] * math.sin(angle)) + abs(half[1] * math.cos(angle))
        points = [(middle[0] - across, middle[1] - along), (middle[0] + across, middle[1] + along)]
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def recognise(root: Path) -> Cvat | None:
    """By an XML file that begins as CVAT's do: one a split by its name or its folder's, or one whose images name their
    subset. Errors: DataError where it cannot be read, or a split has two."""
    files = [path for path in _xml_files(root) if _is_cvat(path)]
    split = [(name, path) for path in files
             if (name := split_of(path.stem) or split_of(str(path.relative_to(root).parent)))]
    anns = one_each(root, split or (('train', path) for path in files))
    if not anns:
        return None
    if len(files) == 1:
        (file,) = files
        subsets = {item.get('subset', ''): split_of(item.get('subset', '')) for item in _parsed(file).iterfind('image')}
        if len(subsets) > 1 and all(subsets.values()):
            found = one_each(root, ((split, file) for split in subsets.values()))
            return Cvat(root, {split: Part(split, root, file, split) for split in found}, by_subset=True)
    return Cvat(root, {split: Part(str(path.relative_to(root)), root, path, split if len(anns) > 1 else None)
                       for split, path in anns.items()})


def _xml_files(root: Path) -> Iterator[Path]:
    yield from sorted(root.glob('*.xml'))
    yield from (path for folder in sorted(root.iterdir()) if folder.is_dir() and split_of(folder.name)
                for path in sorted(folder.glob('*.xml')))


def _is_cvat(xml: Path) -> bool:
    """Whether a file begins as CVAT's do; VOC's word is annotation."""
    if not xml.is_file():
        return False
    with open(xml, 'rb') as file:
        return re.search(rb'<annotations[\s>]', file.read(1000)) is not None


def _parsed(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise DataError(f'{file}: not readable as XML: {error}') from None
