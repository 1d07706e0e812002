"""Folders whose labels become COCO files: what is the same for every format that is converted.

Images stay where they lie. Boxes are clipped to their image; those below 1 px after it are dropped and reported.
"""
from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from amdlib.datasets.checks import DEGENERATE_BELOW_PX, image_size_px
from amdlib.datasets.dataset import plain, progress, write_coco
from amdlib.datasets.formats import folder_name, split_of
from amdlib.errors import DataError, ImageError
from amdlib.words import plural, some

IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
NAMED = 20      # images that are left out, in a note
ODD = {   # what is mended or left out, and told: one, many, what was done
    'dropped': ('degenerate box', 'degenerate boxes', 'dropped'),
    'clipped': ('box', 'boxes', 'clipped to the image'),
    'resized': ('XML file', 'XML files', "with a wrong image size; the image's own is used"),
    'polygons': ('polygon', 'polygons', 'replaced by the boxes around them'),
    'turned': ('turned box', 'turned boxes', 'replaced by the upright boxes around them'),
    'keypoints': ('box with keypoints', 'boxes with keypoints', 'taken without them'),
    'other': ('shape', 'shapes', 'without a box left out'),
    'unlabelled': ('image', 'images', 'without a label file left out'),
    'alone': ('label file', 'label files', 'without an image'),
}


@dataclass(frozen=True)
class Box:
    """A label as its file has it."""
    name: str
    corners_px: Sequence[float]     # x0, y0, x1, y1 of the image as it is loaded, counted from 0
    told: str                       # where it stands, and its values
    iscrowd: int = 0


@dataclass(frozen=True)
class Part:
    """A split as it was found."""
    name: str       # the user's word for it
    images: Path    # the folder from which its images are named
    origin: Path    # the list, file or folder that makes it
    found: Any = None   # what else its format must know


Odd = Mapping[str, list[str]]


class Converted:
    """A `Source` of labels that are converted. A format says which images a split has (`entries`) and what one label
    has in it (`boxes`).

    Args:
        parts: the splits, as `by_role` gives them.
        files: the user's, see `Source`.
        found: in words, what was found.
    """
    self_made = False
    classes: Sequence[str] = ()         # in the order of their ids; (): those that occur, by name
    decimals: int | None = None         # of a pixel that are kept; None: all

    def __init__(self, root: Path, recipe: str, parts: Mapping[str, Part], files: Iterable[Path], found: str) -> None:
        self.root, self.recipe, self.parts, self.files, self.found = root, recipe, parts, tuple(files), found
        self.name = folder_name(root)

    def entries(self, part: Part, problems: list[str], odd: Odd) -> list[tuple[Path, Any]]:
        """The images of a split, each with its label, whatever that is; None for an image without a box."""
        raise NotImplementedError

    def boxes(self, label: Any, size_px: tuple[int, int], odd: Odd) -> list[Box]:
        """What one label has. Errors: DataError with file, line and value."""
        raise NotImplementedError

    @property
    def origins(self) -> dict[str, Path]:
        return {f'{split}.json': part.origin for split, part in self.parts.items()}

    def made(self, home: Path) -> tuple[Path, ...]:
        return tuple(home / f'{split}.json' for split in self.parts)

    def splits(self, home: Path) -> tuple[Path, ...]:
        return tuple(path for split, part in self.parts.items() for path in (home / f'{split}.json', part.images))

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        problems, odd, records, broken = [], {kind: [] for kind in ODD}, {}, []
        for split, part in self.parts.items():
            records[split] = []
            entries = self.entries(part, problems, odd)
            for path, label in progress(entries, f'convert {split}'):
                try:
                    size_px = picture_size_px(path)
                    found = [] if label is None else self.boxes(label, size_px, odd)
                except ImageError as error:
                    (broken if drop_broken else problems).append(str(error))
                    continue
                except DataError as error:
                    problems += error.problems
                    continue
                image = {'file_name': path.relative_to(part.images).as_posix(), 'width': size_px[0],
                         'height': size_px[1]}
                records[split].append((image, [box for one in found if (box := self._inside(one, size_px, odd))]))
            if entries and not any(boxes for _, boxes in records[split]):
                problems.append(f'{part.origin}: no image in it has a usable box')
        if problems:
            raise DataError(problems)
        boxes = [box for split in records.values() for _, boxes in split for box in boxes]
        for split in records:
            write_coco(folder / f'{split}.json', records[split], self.classes or sorted({box['name'] for box in boxes}))
        return [*self._roles({split: len(images) for split, images in records.items()}), *odd_notes(odd),
                *broken_note(broken), *self._difficult(sum(box['iscrowd'] for box in boxes))]

    def _inside(self, box: Box, size_px: tuple[int, int], odd: Odd) -> dict | None:
        """The box as `write_coco` takes it; None where too little of it lies in the image."""
        corners_px = [round(corner, self.decimals) if self.decimals else corner for corner in box.corners_px]
        inside_px = [min(max(corner, 0), limit) for corner, limit in zip(corners_px, size_px * 2, strict=True)]
        x0, y0, x1, y1 = inside_px
        if min(x1 - x0, y1 - y0) < DEGENERATE_BELOW_PX:
            odd['dropped'].append(box.told)
            return None
        if inside_px != corners_px:
            odd['clipped'].append(box.told)
        sides = [round(side, self.decimals) if self.decimals else side for side in (x1 - x0, y1 - y0)]
        return {'name': box.name, 'bbox': [plain(value) for value in (x0, y0, *sides)], 'iscrowd': box.iscrowd}

    def _roles(self, counts: Mapping[str, int]) -> list[str]:
        told = {split: f'{part.name} ({counts[split]} images)' for split, part in self.parts.items()}
        if len(told) == 1:
            return [f'one split, {told["train"]}']
        notes = [f'trained on {told["train"]}, reported on {told["test"]}']
        return [*notes, f'factors chosen on {told["val"]}'] if 'val' in told else notes

    def _difficult(self, count: int) -> list[str]:
        return [f'{plural(count, "difficult object", "difficult objects")} ignored (iscrowd)'] if count else []


def odd_notes(odd: Odd) -> list[str]:
    """What was mended or left out, a note a kind."""
    return [f'{plural(len(odd[kind]), one, many)} {done}: {some(odd[kind], "; ")}'
            for kind, (one, many, done) in ODD.items() if odd[kind]]


def broken_note(broken: Sequence[str]) -> list[str]:
    """Which images are left out because they cannot be read."""
    return [f'{plural(len(broken), "unreadable image", "unreadable images")} left out: '
            f'{some(broken, "; ", NAMED)}'] if broken else []


# ---- files as they are found ------------------------------------------------------------------------------------

def picture_size_px(path: Path) -> tuple[int, int]:
    """(width, height) of an image file as it is loaded. Errors: ImageError."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f'{path}: no regular file')
        return image_size_px(path, path.read_bytes())
    except FileNotFoundError:
        raise ImageError(f'{path}: no such image') from None
    except OSError as error:
        raise ImageError(f'{path}: {error.strerror}') from None
    except ValueError as error:     # the check's, and of names that no file can have
        raise ImageError(getattr(error, 'problems', f'{str(path)!r}: {error}')) from None


def pictures_below(folder: Path) -> list[Path]:
    """The image files in a folder and below, by path; hidden ones, as macOS leaves them, are none."""
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES
                  and not path.name.startswith('.') and not path.is_dir())


class Pictures:
    """The images below a folder, found by what their labels call them."""

    def __init__(self, root: Path) -> None:
        self.root, self.by_name = root, {}
        for path in pictures_below(root):
            self.by_name.setdefault(path.name.lower(), []).append(path)

    def find(self, written: str, beside: Path, split: str | None) -> list[Path]:
        """Those that a path may mean which was written on another machine or from another folder, with / or \\, in
        capitals or not: the one that shares most of its end, then one below `beside`, then one below a folder of the
        split's name. Several: it is not clear."""
        asked = PurePosixPath(written.strip().replace('\\', '/').lower()).parts[::-1]

        def fit(path: Path) -> tuple[int, bool, bool]:
            below = path.relative_to(self.root)
            pairs = zip(asked, str(below).lower().split('/')[::-1], strict=False)
            shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            return shared, path.is_relative_to(beside), split in map(split_of, below.parts[:-1])
        fits = [(fit(path), path) for path in (self.by_name.get(asked[0], []) if asked else [])]
        best = max((found for found, _ in fits), default=None)
        return [path for found, path in fits if found == best]


def read_text(path: Path) -> str:
    """A text as editors leave it: UTF-8 or UTF-16 with or without a mark, else of Windows. Errors: DataError."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f'{path}: no regular file')
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f'{path}: no such file') from None
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from None
    return as_text(content)


def as_text(content: bytes) -> str:
    """See `read_text`."""
    try:
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode('utf-16' if marked else 'utf-8-sig')
    except UnicodeDecodeError:
        return content.decode('cp1252', 'replace')
