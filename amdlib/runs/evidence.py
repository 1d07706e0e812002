"""Whether a run's files are those that its record speaks of: cheap enough for every look at a run.

A record holds the SHA-256 of its weights and of its detections, and a digest of its numbers. A file is hashed once and
remembered, in `.hashes.json` beside it, by inode, size and time of change. `show.verify` recomputes the numbers.
"""
from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amdlib.files import digest, read_json, sha256, write_json

REMEMBERED = '.hashes.json'
FILES = {'weights_sha256': 'weights.pth', 'detections_sha256': 'detections.json.gz'}     # by the record's field

_known: dict[tuple, str] = {}   # of this process, by path, inode, size and time of change


def of(folder: Path, numbers: Mapping[str, float | None]) -> dict[str, str]:
    """What a new record says beside the hash of its weights."""
    return {'detections_sha256': sha256(folder / FILES['detections_sha256']), 'numbers_digest': numbers_digest(numbers)}


def numbers_digest(numbers: Mapping[str, float | None]) -> str:
    """16 hex digits over all numbers, to the last digit."""
    return digest(json.dumps(dict(sorted(numbers.items()))))


def disagreements(record: Mapping[str, Any], folder: Path | None) -> list[str]:
    """What of a run's evidence is not what its record says; files that are not there are not looked at.

    Args:
        folder: of the run; None: its files are not to be looked at.
    """
    found = []
    if 'numbers_digest' in record and numbers_digest(record['numbers']) != record['numbers_digest']:
        found.append('its numbers are not those that were recorded')
    for field, name in FILES.items():
        if folder and field in record and (folder / name).is_file() and hash_of(folder / name) != record[field]:
            found.append(f'{name} is not the file that was recorded')
    return found


def hash_of(path: Path) -> str:
    """SHA-256 of a file in a run's folder, remembered until the file changes."""
    told = path.stat()
    stamp = [told.st_ino, told.st_size, told.st_mtime_ns]
    key = (str(path), *stamp)
    if key not in _known:
        remembered = _read(path.parent)
        if (remembered.get(path.name) or [])[:3] == stamp:
            _known[key] = remembered[path.name][3]
        else:
            _known[key] = sha256(path)
            with contextlib.suppress(OSError):      # a folder that cannot be written is hashed again next time
                write_json(path.parent / REMEMBERED, {**remembered, path.name: [*stamp, _known[key]]})
    return _known[key]


def _read(folder: Path) -> dict[str, list]:
    """What is remembered; nothing where the file is damaged."""
    try:
        found = read_json(folder / REMEMBERED)
        return {name: value for name, value in found.items() if isinstance(value, list) and len(value) == 4}
    except (OSError, ValueError, AttributeError):
        return {}
