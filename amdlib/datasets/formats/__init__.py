"""Data formats, one file each: a class after `Source`, and `recognise`, which sees whether a folder is in that format.

A new file here is a new format; nothing else needs to know of it. What is the same for every format is one floor up.
"""
from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

from amdlib.errors import DataError
from amdlib.words import some


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

    def made(self, home: Path) -> Sequence[Path]:
        """What is written here, below `home`."""

    def splits(self, home: Path) -> tuple[Path, ...]:
        """COCO file and image folder of train, then of test (the split that is reported), then of val if there is."""

    def make(self, folder: Path) -> list[str]:
        """Write it into an empty folder; returns notes for readers of the results. Errors: DataError."""


def names() -> tuple[str, ...]:
    """The formats: the files of this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def recognise(data: Path) -> Source:
    """The data set at `data` or one level below, in whichever format.

    Each format's module has `LAYOUT`, the words for what it looks for ('' where it is never found in a folder), and
    `recognise(root: Path) -> Source | None`, which raises DataError for a folder that is in the format but broken.
    Errors: DataError, also for none and for more than one data set.
    """
    roots = [data, *sorted(path for path in data.iterdir() if path.is_dir())]
    modules = [importlib.import_module(f'{__name__}.{name}') for name in names()]
    found = [(root, source) for module in modules for root in roots if (source := _tried(module, root)) is not None]
    if len(found) > 1:
        raise DataError(f'{data}: more than one data set: {some(root for root, _ in found)}; name one of them')
    if not found:
        layouts = ' or '.join(module.LAYOUT for module in modules if module.LAYOUT)
        raise DataError(f'{data}: no data set here or one level below; expected {layouts}')
    (_, source), = found
    if isinstance(source, DataError):
        raise source
    return source


def _tried(module: ModuleType, root: Path) -> Source | DataError | None:
    """A broken data set is one too: where there are several, that is told first."""
    try:
        return module.recognise(root)
    except DataError as error:
        return error


def folder_name(root: Path) -> str:
    """A name for the data set in a folder."""
    name = re.sub(r'[^a-z0-9._-]+', '-', root.name.lower()).strip('-.') or 'data'
    return 'mini-data' if name == 'mini' else name   # 'mini' is the set that is made here
