"""Tables: a line a box, with the image's path, corners in pixels counted from 0, and the class.

With a header columns go by their names, in any order (Roboflow, TensorFlow); without one they are path, xmin, ymin,
xmax, ymax, class. A line with a path alone is an image without a box; images that no line names are left out and told.
Classes are sorted by name.
"""
from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from amdlib.datasets.converted import IMAGE_SUFFIXES, Box, Converted, Odd, Part, Pictures, as_text, read_text
from amdlib.datasets.formats import by_role, one_each, split_of
from amdlib.errors import DataError
from amdlib.words import some

LAYOUT = 'csv: train.csv with path, xmin, ymin, xmax, ymax, class'
LABELS = '.csv'
COLUMNS = {
    'path': ('path', 'filename', 'file_name', 'image', 'image_path', 'file'), 'xmin': ('xmin', 'x_min', 'x1'),
    'ymin': ('ymin', 'y_min', 'y1'), 'xmax': ('xmax', 'x_max', 'x2'), 'ymax': ('ymax', 'y_max', 'y2'),
    'class': ('class', 'label', 'name', 'class_name', 'category')}


class Table(Converted):
    """Tables of the user's, COCO files made of them."""

    def __init__(self, root: Path, files: dict[str, Path]) -> None:
        parts = {split: Part(str(file.relative_to(root)), root, file, split if len(files) > 1 else None)
                 for split, file in files.items()}
        told = f'csv: {some(file.relative_to(root) for file in files.values())}'
        super().__init__(root, 'csv', by_role(root, parts), (*files.values(), root), told)

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        self.pictures, self.named = Pictures(self.root), set()
        return super().make(folder, drop_broken)

    def entries(self, part: Part, problems: list[str], odd: Odd) -> list[tuple[Path, list[tuple[str, dict[str, str]]]]]:
        lines: dict[Path, list[tuple[str, dict[str, str]]]] = {}
        asked: dict[str, list[Path]] = {}
        for where, line in _lines(part.origin):
            name = line['path']
            if name not in asked:
                asked[name] = self.pictures.find(name, part.origin.parent, part.found)
            if len(asked[name]) == 1:
                lines.setdefault(asked[name][0], []).append((where, line))
            else:
                problems.append(f'{where}: {name!r} ' + (f'may be {some(asked[name])}' if asked[name] else
                                                         f'is no image below {self.root}'))
        self.named |= set(lines)
        if part is list(self.parts.values())[-1]:
            odd['unlabelled'] += [str(path.relative_to(self.root)) for paths in self.pictures.by_name.values()
                                  for path in paths if path not in self.named]
        return list(lines.items())

    def boxes(self, label: list[tuple[str, dict[str, str]]], size_px: tuple[int, int], odd: Odd) -> list[Box]:
        boxes, problems = [], []
        for where, line in label:
            values = [line[key] for key in ('xmin', 'ymin', 'xmax', 'ymax')]
            if not any(values):
                continue
            try:
                corners_px = [float(value) for value in values]
            except ValueError:
                corners_px = [math.nan]
            if not line['class'] or not all(map(math.isfinite, corners_px)):
                problems.append(f'{where}: {", ".join(values)}, {line["class"]!r}: expected four numbers and a class')
                continue
            boxes.append(Box(line['class'], corners_px, f'{where}: {", ".join(values)}'))
        if problems:
            raise DataError(problems)
        return boxes


def recognise(root: Path) -> Table | None:
    """By a table with those columns: one a split by its name or its folder's, else one. Errors: DataError where a split
    has two."""
    files = [path for path in _csv_files(root) if path.is_file() and _columns(_first(path))]
    split = [(name, path) for path in files
             if (name := split_of(path.stem) or split_of(str(path.relative_to(root).parent)))]
    anns = one_each(root, split or (('train', path) for path in files))
    return Table(root, anns) if anns else None


def _csv_files(root: Path) -> Iterator[Path]:
    folders = [root, *(folder for folder in sorted(root.iterdir()) if folder.is_dir() and split_of(folder.name))]
    yield from (path for folder in folders for path in sorted(folder.glob('*.csv')) if path.is_file())


def _first(file: Path) -> list[str]:
    """The words of the first line, whatever separates them."""
    with open(file, 'rb') as opened:
        head = opened.read(2000)
    lines = as_text(head).splitlines()
    return _split(lines[0]) if lines else []


def _split(line: str) -> list[str]:
    """The words of a line: separated by commas, else by semicolons or tabs, as spreadsheets of some countries do."""
    separator = max(',;\t', key=line.count)
    try:
        return [word.strip() for word in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:   # a field without end
        return []


def _columns(words: list[str]) -> dict[str, int]:
    """Which column is what, by the words of a first line; {} where it is no such table."""
    lower = [word.lower() for word in words]
    named = {key: lower.index(name) for key, names in COLUMNS.items() for name in names if name in lower}
    if len(named) == len(COLUMNS):
        return named
    first = len(words) == len(COLUMNS) and Path(words[0]).suffix.lower() in IMAGE_SUFFIXES
    return dict(zip(COLUMNS, range(len(words)), strict=True)) if first else {}


def _lines(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line with where it stands. Errors: DataError for a line of another length."""
    lines = [(number, _split(line)) for number, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    columns = _columns(lines[0][1]) if lines else {}
    has_header = bool(columns) and Path(lines[0][1][columns['path']]).suffix.lower() not in IMAGE_SUFFIXES
    short = [f'{file}: line {number}: {len(words)} columns, expected {max(columns.values()) + 1} or more'
             for number, words in lines if 1 != len(words) <= max(columns.values(), default=0)]
    if short:
        raise DataError(short)
    for number, words in lines[has_header:]:
        yield f'{file}: line {number}', {key: words[column] if column < len(words) else ''
                                         for key, column in columns.items()}
