"""Files written whole or not at all, locks, and hashes."""
from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from amdlib.errors import RunError
from amdlib.words import log

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` when the block ends well, removed when it does not.

    So a reader, and whoever comes after a kill or a full disk, sees the old file or the new one and never half of it.
    """
    path = Path(path)
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove_halves(folder: str | Path) -> None:
    """Remove what `whole` of processes that were killed has left in a folder; those that live go on."""
    for half in Path(folder).glob('.*.*'):
        process = half.suffix[1:]
        if process.isdecimal() and half.is_file() and not psutil.pid_exists(int(process)):
            half.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole."""
    with whole(path) as beside:
        beside.write_text(text, encoding='utf-8')


def write_json(path: str | Path, content: dict | list) -> None:
    """Write JSON whole; compressed where the name ends in `.gz` or `.xz`, the same bytes for the same content."""
    packed = Path(path).suffix in ('.gz', '.xz')
    text = json.dumps(content, indent=None if packed else 1).encode()
    with whole(path) as beside:
        beside.write_bytes({'.gz': lambda: gzip.compress(text, mtime=0), '.xz': lambda: lzma.compress(text, preset=9)}
                           .get(Path(path).suffix, lambda: text)())


def read_json(path: str | Path):
    """The content of a JSON file, also of one that `write_json` compressed. Errors: OSError; ValueError."""
    if Path(path).is_fifo():    # which would be waited for
        raise OSError(f'{path}: no regular file')
    content = Path(path).read_bytes()
    try:
        unpack = {'.gz': gzip.decompress, '.xz': lzma.decompress}.get(Path(path).suffix, bytes)
        return json.loads(unpack(content))
    except (EOFError, lzma.LZMAError) as error:
        raise ValueError(f'{path}: cut short') from error
    except RecursionError:
        raise ValueError(f'{path}: nested too deep') from None


def read_csv(path: str | Path, columns: Iterable[str] = (), **how: Any):
    """A table, as a DataFrame.

    Args:
        columns: that it must have.
        how: pandas' own words.
    Errors: OSError; RunError for a file of another kind.
    """
    import pandas as pd
    try:
        found = pd.read_csv(path, **how)
    except ValueError as error:     # pandas' errors of parsing are ValueErrors
        raise RunError(f'{path} cannot be read: {error}') from None
    if missing := [name for name in columns if name not in found]:
        raise RunError(f'{path} has no column {", ".join(missing)}')
    return found


@contextlib.contextmanager
def locked(path: str | Path, waiting: str, refused: Exception | None = None) -> Iterator[bool]:
    """Hold the lock file `path` while the block runs; the system frees the lock of a process that was killed. Gives
    whether another process had it.

    Args:
        waiting: what is logged where another process holds it.
        refused: raised then, instead of waiting.
    Errors: OSError where the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, waited = FileLock(path), False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if refused:
            raise refused from None
        log.info(waiting)
        lock.acquire()
        waited = True
    try:
        yield waited
    finally:
        lock.release()


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def digest(text: str) -> str:
    """16 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """A Config's content as JSON has it."""
    return json.loads(json.dumps(value))
