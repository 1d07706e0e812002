"""How long runs take and how much memory, as the records of runs that were made say."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from amdlib.files import read_json
from amdlib.runs.run import Run
from amdlib.runs.store import Store


@dataclass(frozen=True)
class Takes:
    """What a run is expected to take; None where no record says anything."""
    wall_s: float | None = None
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None     # of one GPU


def expected(runs: Iterable[Run], store: Store) -> dict[Run, Takes]:
    """What each run takes: the median of the recorded runs of its row, or else of its group's students (a teacher's: of
    its own row only), in seconds an epoch; of memory the most.

    Kept records count; what other machines took is not told apart.
    """
    store = store.with_kept()
    by_row, by_group = defaultdict(list), defaultdict(list)
    for file in store.record_files():
        made, took = store.run_of(file), _took(file)
        if made and took:
            by_row[made.row.id].append((made, took))
            if not made.row.is_teacher:
                by_group[made.row.group.name].append((made, took))
    found = {}
    for run in runs:
        known = by_row[run.row.id] or ([] if run.row.is_teacher else by_group[run.row.group.name])
        found[run] = Takes(median(took.wall_s / made.epochs for made, took in known) * run.epochs, *(
            max((size for _, took in known if (size := getattr(took, name))), default=None)
            for name in ('memory_bytes', 'gpu_memory_bytes'))) if known else Takes()
    return found


def expected_s(runs: Iterable[Run], store: Store) -> tuple[float, list[Run]]:
    """Seconds that runs take one after another, and those that no record says anything of."""
    runs = list(runs)
    found = expected(runs, store)
    return sum(found[run].wall_s or 0.0 for run in runs), [run for run in runs if found[run].wall_s is None]


def _took(file: Path) -> Takes | None:
    try:
        record = read_json(file)
        return Takes(float(record['wall_s']), *(_size(record, name) for name in (
            'peak_memory_bytes', 'peak_gpu_memory_bytes')))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(record: dict[str, Any], name: str) -> int | None:
    return None if record.get(name) is None else int(record[name])
