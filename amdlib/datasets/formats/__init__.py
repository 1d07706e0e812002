"""Data formats, one file each: a class after `Source`, and `recognise`, which sees whether a folder is in that format.

A new file here is a new format; nothing else needs to know of it. What is the same for every format is one floor up.
"""
from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeVar

from amdlib.errors import DataError
from amdlib.words import plural, some

SEEN = 20000    # files that are looked at, to say what lies in a folder of no known layout
Found = TypeVar('Found')


class Source(Protocol):
    """Where the files of a data set are, and how those that are lacking are made."""

    @property
    def name(self) -> str:
        """The data set's name in lower case: part of the paths of what is written here and of the results."""

    @property
    def files(self) -> Sequence[Path]:
        """The user's files and folders; when one of them changes, everything is made and checked anew."""

    @property
    def recipe(self) -> str:
        """Names everything else that decides what is written."""

    @property
    def self_made(self) -> bool:
        """Whether all of it, images too, is made here, and so can be made again."""

    @property
    def found(self) -> str:
        """In words, what was found of which layout; '' where nothing had to be."""

    @property
    def origins(self) -> Mapping[str, Path]:
        """By the name of a file that is written here, the user's that is named in its place where it has faults."""

    def made(self, home: Path) -> Sequence[Path]:
        """What is written here, below `home`."""

    def splits(self, home: Path) -> tuple[Path, ...]:
        """COCO file and image folder of train, then of test (the split that is reported), then of val if there is; of
        one alone where the folder is not split."""

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        """Write it into an empty folder; returns notes for readers of the results. Errors: DataError.

        Args:
            drop_broken: images that cannot be read are left out, and named in the notes.
        """


def names() -> tuple[str, ...]:
    """The formats: the files of this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def recognise(data: Path, layout: str | None = None) -> Source:
    """The data set at `data`, else the one a level below, in whichever format.

    Each format's module has `LAYOUT`, the words for what it looks for ('' where it is never found in a folder),
    `LABELS`, the suffix of its label files, and `recognise(root: Path) -> Source | None`, which raises DataError for a
    folder that is in the format but broken.

    Args:
        layout: the name of the one format that is meant, where a folder fits several.
    Errors: DataError, also for none and for more than one data set.
    """
    modules = {name: importlib.import_module(f'{__name__}.{name}') for name in names()}
    modules = {name: module for name, module in modules.items() if module.LAYOUT}
    if layout is not None and layout not in modules:
        raise DataError(f'layout {layout!r}: expected {", ".join(modules)}')
    asked = modules if layout is None else {layout: modules[layout]}
    found = []
    for roots in ([data], sorted(path for path in data.iterdir() if path.is_dir())):
        found = found or [(root, name, source) for name, module in asked.items() for root in roots
                          if (source := _tried(module, root)) is not None]
    if not found:
        raise DataError(_not_found(data, asked))
    if len({root for root, _, _ in found}) > 1:
        raise DataError(f'{data}: more than one data set: {some(root for root, _, _ in found)}; name one of them')
    if len(found) > 1:
        raise DataError(f'{found[0][0]}: fits more than one layout: {some(name for _, name, _ in found)}; '
                        f'say which is meant: --layout {found[0][1]} (LAYOUT={found[0][1]})')
    (_, _, source), = found
    if isinstance(source, DataError):
        raise source
    return source


def _tried(module: ModuleType, root: Path) -> Source | DataError | None:
    """A broken data set is one too: where there are several, that is told first."""
    try:
        return module.recognise(root)
    except DataError as error:
        return error


def _not_found(data: Path, modules: Mapping[str, ModuleType]) -> list[str]:
    """What lies there instead, and which layout it comes nearest to."""
    files = [path.relative_to(data) for path in itertools.islice(data.rglob('*'), SEEN)
             if not path.is_dir() and not path.name.startswith('.')]
    by_suffix = Counter(path.suffix.lower() or 'without suffix' for path in files)
    told = [f'{count} {suffix} ({some((path for path in sorted(files) if path.suffix.lower() == suffix), limit=2)})'
            for suffix, count in by_suffix.most_common(6)]
    near = next((own for suffix, _ in by_suffix.most_common() if (own := [
        module.LAYOUT for module in modules.values() if module.LABELS == suffix])), [])
    has = f'it has {plural(len(files), "file", "files")}: {"; ".join(told)}' if files else 'it has no file'
    return [f'{data}: no data set here or one level below; {has}', 'nearest is:' if near else 'expected is one of:',
            *(f'- {layout}' for layout in near or (module.LAYOUT for module in modules.values()))]


# ---- what formats need too --------------------------------------------------------------------------------------

def folder_name(root: Path) -> str:
    """A name for the data set in a folder."""
    name = re.sub(r'[^a-z0-9._-]+', '-', root.name.lower()).strip('-.') or 'data'
    return 'mini-data' if name == 'mini' else name   # 'mini' is the set that is made here


def split_of(name: str) -> str | None:
    """train, val or test, where the name of a file or folder says so: instances_train2017, valid."""
    words = r'(?<![a-z])(?:(train(?:ing|val)?)|(val(?:id(?:ation)?)?|dev|eval)|test(?:ing)?)(?![a-z])'
    found = re.search(words, name.lower())
    return found and ('train' if found[1] else 'val' if found[2] else 'test')


def one_each(folder: Path, found: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files or folders by split. Errors: DataError where a split has more than one."""
    by_split: dict[str, list[Path]] = {'train': [], 'val': [], 'test': []}
    for split, path in found:
        by_split[split].append(path)
    for split, paths in by_split.items():
        if len(paths) > 1:
            raise DataError(f'{folder}: more than one file for {split}: '
                            f'{some(path.relative_to(folder) for path in paths)}; keep one')
    return {split: paths[0] for split, paths in by_split.items() if paths}


def by_role(root: Path, found: Mapping[str, Found]) -> dict[str, Found]:
    """The splits in the order of `Source.splits`: test is reported, and val only where there is no test; one alone is
    to be split. Errors: DataError where there is none to train on."""
    if len(found) == 1:
        return {'train': next(iter(found.values()))}
    if 'train' not in found:
        raise DataError(f'{root}: no split to train on; it has {some(found)}')
    reported = 'test' if 'test' in found else 'val'
    roles = {'train': 'train', 'test': reported, **({'val': 'val'} if len(found) == 3 else {})}
    return {role: found[split] for role, split in roles.items()}
