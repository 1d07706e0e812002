"""Pascal VOC: an XML file an image, in VOC's own folders or, as labelImg and Roboflow leave them, beside the images.

Coordinates: VOC counts pixels from 1, so 1 is taken off each of xmin, ymin, xmax, ymax, and width = xmax - xmin, as
mmdet's own converter does. Objects marked difficult become iscrowd: neither training nor evaluation counts them.
Classes are sorted by name, ids count from 1.
"""
from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from amdlib.datasets.checks import by, duplicates
from amdlib.datasets.converted import IMAGE_SUFFIXES, Box, Converted, Odd, Part, pictures_below
from amdlib.datasets.formats import by_role, one_each, split_of
from amdlib.errors import DataError
from amdlib.words import some

LAYOUT = ('Pascal VOC layout: Annotations/, ImageSets/Main/ and JPEGImages/; or an XML file beside each image, in '
          'train/ and valid/ or in one folder')
LABELS = '.xml'
XML_FOLDERS = ('annotations', 'annotation', 'labels', 'xml', 'xmls')


class _Xml(Converted):
    """What a VOC file has."""

    def boxes(self, label: Path, size_px: tuple[int, int], odd: Odd) -> list[Box]:
        if label.exists() and not label.is_file():
            raise DataError(f'{label}: no regular file')
        try:
            tree = ElementTree.parse(label).getroot()
        except FileNotFoundError:
            raise DataError(f'{label}: no such file') from None
        except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
            raise DataError(f'{label}: not readable as XML: {error}') from None
        stated = tuple(tree.findtext(f'size/{side}', 'none').strip() for side in ('width', 'height'))
        if stated != tuple(map(str, size_px)):
            odd['resized'].append(f'{label.name} says {by(stated)}, the image has {by(size_px)} px')
        problems, boxes = [], []
        for number, item in enumerate(tree.findall('object'), 1):
            name = item.findtext('name', '').strip()
            corners = {key: item.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')}
            values = ' '.join(f'{key}={text}' for key, text in corners.items())
            told = f'{label.name} object {number} ({name}) {values}'
            try:
                corners_px = [float(text) - 1 for text in corners.values()]
            except (TypeError, ValueError):
                corners_px = [math.nan]
            if not name or not all(map(math.isfinite, corners_px)):
                problems.append(f'{label.parent / told}: expected a name and four numbers')
                continue
            boxes.append(Box(name, corners_px, told, int(item.findtext('difficult', '0').strip() == '1')))
        if problems:
            raise DataError(problems)
        return boxes


class Voc(_Xml):
    """VOC's own folders: a list of names a split."""

    def __init__(self, root: Path) -> None:
        images = root / 'JPEGImages'
        lists = {split: root / 'ImageSets/Main' / f'{split}.txt' for split in ('train', 'val', 'test')}
        lists = {split: path for split, path in lists.items() if path.is_file()}
        if 'train' not in lists and (both := root / 'ImageSets/Main/trainval.txt').is_file():
            lists = {'train': both, **({'test': lists['test']} if 'test' in lists else {})}
        if not images.is_dir():
            raise DataError(f'{images}: no such folder')
        if len(lists) != 1 and 'train' not in lists:
            raise DataError(f'{root / "ImageSets/Main"}: needs train.txt and test.txt, or else val.txt; '
                            f'it has {some(path.name for path in lists.values()) or "neither"}')
        if 'test' not in lists and len(lists) == 2:
            lists['test'] = lists.pop('val')    # what follows reports on val.txt
        parts = by_role(root, {split: Part(path.stem, images, path) for split, path in lists.items()})
        super().__init__(root, 'voc', parts, (root / 'Annotations', *lists.values(), images),
                         f'Pascal VOC layout: {some(path.name for path in lists.values())}')

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        self.images: dict[str, list[Path]] = {}     # by stem
        for path in sorted((self.root / 'JPEGImages').iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self.images.setdefault(path.stem, []).append(path)
        return super().make(folder, drop_broken)

    def entries(self, part: Part, problems: list[str], odd: Odd) -> list[tuple[Path, Path]]:
        """Those of the list: each has one image, named as its XML file is, whatever name the XML states."""
        lines = part.origin.read_text(encoding='utf-8-sig', errors='replace').splitlines()
        stems = [self._stem(line.strip()) for line in lines if line.strip()]
        if not stems:
            problems.append(f'{part.origin}: empty')
        problems += [f'{part.origin}: {stem} is listed more than once' for stem in duplicates(stems)]
        entries = []
        for stem in stems:
            images, xml = self.images.get(stem, []), self.root / 'Annotations' / f'{stem}.xml'
            if len(images) != 1:
                why = 'more than one image: ' + some(path.name for path in images) if images else 'no such image'
                problems.append(f'{part.origin.name}: {stem}: {why} in JPEGImages')
            elif not os.path.exists(xml):
                problems.append(f'{part.origin.name}: {xml}: no such file')
            else:
                entries.append((images[0], xml))
        return entries

    def _stem(self, line: str) -> str:
        """A name in a list may have blanks; some lists have a number behind it."""
        return line if os.path.isfile(self.root / 'Annotations' / f'{line}.xml') else line.split()[0]


class Beside(_Xml):
    """XML files beside their images, or in a folder of their own; images without one were not labelled."""

    def __init__(self, root: Path, folders: dict[str, Path]) -> None:
        parts = by_role(root, {split: Part(folder.name, folder, folder) for split, folder in folders.items()})
        where = some(folder.name for folder in folders.values())
        super().__init__(root, 'voc', parts, folders.values(), f'Pascal VOC layout: an XML file an image, in {where}')

    def entries(self, part: Part, problems: list[str], odd: Odd) -> list[tuple[Path, Any]]:
        images = pictures_below(part.images)
        by_stem: dict[str, list[Path]] = {}
        for image in images:
            by_stem.setdefault(image.stem, []).append(image)
        entries, labelled = [], set()
        for xml in filter(_is_voc, sorted(part.images.rglob('*.xml'))):
            own = by_stem.get(xml.stem, [])
            near = [image for image in own if image.parent == xml.parent] or [
                image for image in own if image.parent.name == xml.parent.name] or own
            if len(near) != 1:
                problems.append(f'{xml}: ' + (f'more than one image: {some(near)}' if near else
                                              f'no image called {xml.stem}.* in {part.images}'))
            elif near[0] in labelled:
                problems.append(f'{xml}: {near[0]} has another XML file')
            else:
                labelled.add(near[0])
                entries.append((near[0], xml))
        odd['unlabelled'] += [str(image.relative_to(self.root)) for image in images if image not in labelled]
        return entries


def recognise(root: Path) -> Converted | None:
    """By its two folders of annotations, else by an XML file of VOC's kind. Errors: DataError where a list or the
    images are lacking."""
    if (root / 'Annotations').is_dir() and (root / 'ImageSets/Main').is_dir():
        return Voc(root)
    if below := one_each(root, ((split, folder) for folder in sorted(root.iterdir()) if folder.is_dir()
                                and (split := split_of(folder.name)) and any(map(_is_voc, _xml_files(folder, True))))):
        return Beside(root, below)
    return Beside(root, {'train': root}) if any(map(_is_voc, _xml_files(root))) else None


def _xml_files(folder: Path, split: bool = False) -> Iterable[Path]:
    """By which a folder is known: those in it and, of a split, below it, else in a folder for them."""
    yield from folder.glob('*.xml')
    for child in folder.iterdir():
        if child.is_dir() and (split or child.name.lower() in XML_FOLDERS):
            yield from child.rglob('*.xml')


def _is_voc(xml: Path) -> bool:
    """Whether a file begins as VOC's do, and not as CVAT's, whose first word is annotations."""
    if not xml.is_file():
        return False
    with open(xml, 'rb') as file:
        return re.search(rb'<annotation[\s>]', file.read(1000)) is not None
