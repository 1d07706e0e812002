"""Bound what a weight file takes in memory before it is read."""
from __future__ import annotations

import zipfile
from pathlib import Path

from amdlib.errors import WeightsError

MOST = 4    # times as large as its file may be what a checkpoint unpacks to; torch packs nothing


def check_size(path: str | Path) -> None:
    """WeightsError for a zip archive that unpacks to far more than it is: a kilobyte can unpack to a gigabyte.

    Other files, and those that are not there, are left to `read_weights`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    packed = Path(path).stat().st_size
    if unpacked > MOST * packed:
        raise WeightsError(f'{path} ({packed} bytes) unpacks to {unpacked} bytes: a checkpoint is not packed, so this '
                           'is none, or one that was zipped once more: unzip it')
