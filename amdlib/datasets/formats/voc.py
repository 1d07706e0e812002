"""Pascal VOC layout: annotations are converted to COCO files, images stay where they lie.

Coordinates: VOC counts pixels from 1, so 1 is taken off each of xmin, ymin, xmax, ymax, and width = xmax - xmin, as
mmdet's own converter does. Boxes are clipped to the image; those below 1 px after it are dropped and reported. Objects
marked difficult become iscrowd: neither training nor evaluation counts them. Classes are sorted by name, ids count
from 1.
"""
from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from amdlib.datasets.checks import DEGENERATE_BELOW_PX, by, duplicates, image_size_px
from amdlib.datasets.dataset import plain, progress, write_coco
from amdlib.datasets.formats import folder_name
from amdlib.errors import DataError
from amdlib.words import plural, some

LAYOUT = 'Annotations/, ImageSets/Main/ and JPEGImages/ (Pascal VOC layout)'
IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
ODD = {   # what is mended and told: one, many, what was done
    'dropped': ('degenerate box', 'degenerate boxes', 'dropped'),
    'clipped': ('box', 'boxes', 'clipped to the image'),
    'resized': ('XML file', 'XML files', "with a wrong image size; the image's own is used"),
}


class Voc:
    """Lists and XML files of the user's, two COCO files made of them."""
    recipe = 'voc'
    self_made = False

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, folder_name(root)
        self.images = root / 'JPEGImages'
        lists = {split: root / 'ImageSets/Main' / f'{split}.txt' for split in ('train', 'val', 'test')}
        self.lists = {split: path for split, path in lists.items() if path.is_file()}
        if not self.images.is_dir():
            raise DataError(f'{self.images}: no such folder')
        if 'train' not in self.lists or len(self.lists) < 2:
            raise DataError(f'{root / "ImageSets/Main"}: needs train.txt and test.txt, or else val.txt; '
                            f'it has {some(path.name for path in self.lists.values()) or "neither"}')
        if 'test' not in self.lists:
            self.lists['test'] = self.lists.pop('val')   # what follows reports on val.txt
        self.files = root / 'Annotations', *self.lists.values(), self.images

    def made(self, home: Path) -> tuple[Path, ...]:
        return tuple(home / f'{split}.json' for split in self._splits())

    def splits(self, home: Path) -> tuple[Path, ...]:
        return tuple(path for ann in self.made(home) for path in (ann, self.images))

    def _splits(self) -> list[str]:
        return [split for split in ('train', 'test', 'val') if split in self.lists]

    def make(self, folder: Path) -> list[str]:
        stems, problems = self._read_lists()
        images = {}
        for path in sorted(self.images.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                images.setdefault(path.stem, []).append(path)
        records, odd = {}, {kind: [] for kind in ODD}
        for split in self._splits():
            records[split] = []
            for stem in progress(stems[split], f'convert {split}'):
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
            write_coco(folder / f'{split}.json', records[split], sorted({box['name'] for box in boxes}))
        return self._notes(stems, odd, sum(box['iscrowd'] for box in boxes))

    def _read_lists(self) -> tuple[dict[str, list[str]], list[str]]:
        """Names of the images by split, without suffix; problems."""
        stems, problems = {}, []
        for split, path in self.lists.items():
            lines = path.read_text(encoding='utf-8-sig', errors='replace').splitlines()
            stems[split] = [self._stem(line.strip()) for line in lines if line.strip()]
            if not stems[split]:
                problems.append(f'{path}: empty')
            problems += [f'{path}: {stem} is listed more than once' for stem in duplicates(stems[split])]
        return stems, problems

    def _stem(self, line: str) -> str:
        """A name in a list may have blanks; some lists have a number behind it."""
        return line if (self.root / 'Annotations' / f'{line}.xml').is_file() else line.split()[0]

    def _notes(self, stems: dict[str, list[str]], odd: dict[str, list[str]], difficult: int) -> list[str]:
        notes = [f'trained on train ({len(stems["train"])} images), '
                 f'reported on {self.lists["test"].stem} ({len(stems["test"])} images)']
        if stems.get('val'):
            notes.append(f'factors chosen on val ({len(stems["val"])} images)')
        for kind, (one, many, done) in ODD.items():
            if odd[kind]:
                notes.append(f'{plural(len(odd[kind]), one, many)} {done}: {some(odd[kind], "; ")}')
        if difficult:
            notes.append(f'{plural(difficult, "difficult object", "difficult objects")} ignored (iscrowd)')
        return notes


def recognise(root: Path) -> Voc | None:
    """By its two folders of annotations. Errors: DataError where a list or the images are lacking."""
    return Voc(root) if (root / 'Annotations').is_dir() and (root / 'ImageSets/Main').is_dir() else None


def _read_voc(xml: Path, images: list[Path]) -> tuple[dict, list[dict], dict[str, list[str]]]:
    """One XML file and its image.

    Args:
        images: those named as the XML file is, whatever name the XML states; there must be one.
    Returns COCO's image record, boxes (name, bbox as xywh in px, iscrowd) and what was odd. Errors: DataError.
    """
    if len(images) != 1:
        raise DataError(f'{xml.stem}: more than one image: {some(p.name for p in images)}' if images else
                        f'{xml.stem}: no such image in JPEGImages')
    try:
        tree = ElementTree.parse(xml).getroot()
        width, height = size_px = image_size_px(images[0], images[0].read_bytes())
    except FileNotFoundError:
        raise DataError(f'{xml}: no such file') from None
    except (ElementTree.ParseError, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError(f'{xml}: not readable as XML: {error}') from None
    odd, problems, boxes = {kind: [] for kind in ODD}, [], []
    stated = tree.findtext('size/width', 'none').strip(), tree.findtext('size/height', 'none').strip()
    if stated != (str(width), str(height)):
        odd['resized'].append(f'{xml.name} says {by(stated)}, the image has {by(size_px)} px')
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
        boxes.append({'name': name, 'bbox': [plain(value) for value in (x0, y0, x1 - x0, y1 - y0)],
                      'iscrowd': int(item.findtext('difficult', '0').strip() == '1')})
    if problems:
        raise DataError(problems)
    return {'file_name': images[0].name, 'width': width, 'height': height}, boxes, odd
