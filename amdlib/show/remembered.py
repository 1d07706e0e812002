"""Answers that take seconds, kept in a hidden file of a store's folder; it may be deleted."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from amdlib.files import locked, read_json, write_json


class Remembered:
    """Answers by key, in one JSON file; a key holds hashes of all that an answer follows from."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[str, Any]:
        """All that is kept."""
        try:
            found = read_json(self.file)
            return found if isinstance(found, dict) else {}
        except (FileNotFoundError, ValueError):     # nothing is lost but time
            return {}

    def keep(self, found: dict[str, Any]) -> None:
        """Add some; several processes may do so at once."""
        with locked(self.file.with_suffix('.lock'), 'waiting for another process that keeps what it found'):
            write_json(self.file, {**self.read(), **found})
