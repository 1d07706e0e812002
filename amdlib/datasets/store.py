"""Prepared data sets on the disk: which folder, whether it still holds, and how it is replaced.

Whatever is written goes to a hidden sibling first and is renamed, so that an interrupted call leaves nothing
half-written; `prepare` holds a lock meanwhile. `manifest.json`, in each folder written here, says what that was
made from.
"""
from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from amdlib.datasets.dataset import fingerprint, write_compact
from amdlib.datasets.formats import Source
from amdlib.errors import DataError

MADE_BY = 'amdlib.data 2'   # raise the number when what is written, or what is checked, changes


def home_of(source: Source, cache: Path) -> Path:
    """The folder for what is written: `cache`/<name>, or `cache`/<name>-prepared where a user keeps data in the former.

    Errors: DataError where the latter is not from here either.
    """
    home = cache / source.name
    if _is_ours(home) and not any(path.is_relative_to(home) for path in source.files):
        return home
    home = cache / f'{source.name}-prepared'
    if not _is_ours(home):
        raise DataError(f'{home}: not written by this kit, so not replaced; move it or choose another cache')
    return home


def recipe(source: Source) -> str:
    """All that decides what is written, but for the user's files."""
    return f'{MADE_BY} {source.recipe}'


def state(source: Source, home: Path) -> str:
    """Changes with the recipe and with the name, size or time of any file: cheap, since no file is opened."""
    return fingerprint([recipe(source), *_file_states([*source.files, *source.made(home)])])


def read_manifest(home: Path) -> dict:
    """The manifest of a folder that some version of this module wrote, else {}."""
    try:
        manifest = json.loads((home / 'manifest.json').read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and str(manifest.get('made_by')).startswith('amdlib.data ') else {}


def write_manifest(source: Source, folder: Path, found: dict) -> None:
    """Write down what the checks found in the data set that lies in `folder`, and in which state it is."""
    write_compact(folder / 'manifest.json',
                  {'made_by': MADE_BY, 'recipe': recipe(source), **found, 'state': state(source, folder)})


def remove_stale(home: Path) -> None:
    """Remove what calls that were killed have left; only under the lock."""
    for stale in [*home.parent.glob(f'.{home.name}.new-*'), *home.parent.glob(f'.{home.name}.old-*')]:
        shutil.rmtree(stale)
    for stale in home.glob('.manifest.json.*'):
        stale.unlink()


@contextlib.contextmanager
def replacing(home: Path) -> Iterator[Path]:
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


def _is_ours(home: Path) -> bool:
    """Whether `home` may be replaced: nothing is there, or what this module wrote."""
    return not home.exists() or bool(read_manifest(home)) or home.is_dir() and not any(home.iterdir())


def _file_states(paths: Iterable[Path]) -> Iterator[list]:
    """Name, size and time of each file in the paths, which may be folders."""
    for root in paths:
        entries = sorted(_walk(root))
        yield [root.name, len(entries)]
        yield from entries


def _walk(root: Path, below: str = '', above: tuple = ()) -> Iterator[list]:
    if not root.is_dir():
        if root.exists():
            status = root.stat()
            yield [below, status.st_size, status.st_mtime_ns]
        return
    own = root.stat()
    above = (*above, (own.st_dev, own.st_ino))
    for entry in os.scandir(root):
        try:
            status = entry.stat()
        except OSError:     # a link that leads nowhere, or to itself: whoever reads it says so
            yield [below + entry.name, 0, 0]
            continue
        if not entry.is_dir():
            yield [below + entry.name, status.st_size, status.st_mtime_ns]
        elif (status.st_dev, status.st_ino) not in above:
            yield from _walk(Path(entry.path), f'{below}{entry.name}/', above)
