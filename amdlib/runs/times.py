"""How long runs take, as the records of runs that were made say."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from amdlib.files import read_json
from amdlib.runs.run import Run
from amdlib.runs.store import Store


def expected_s(runs: Iterable[Run], store: Store) -> tuple[float, list[Run]]:
    """Seconds that runs take one after another, and those that no record says anything of.

    An epoch of a run takes the median of the recorded runs of its row, or else of its group's students (a teacher's: of
    its own row only). Kept records count; what other machines took is not told apart.
    """
    store = store.with_kept()
    by_row, by_group = defaultdict(list), defaultdict(list)
    for file in store.record_files():
        made, wall_s = store.run_of(file), _wall_s(file)
        if made and wall_s:
            by_row[made.row.id].append(wall_s / made.epochs)
            if not made.row.is_teacher:
                by_group[made.row.group.name].append(wall_s / made.epochs)
    total_s, unknown = 0.0, []
    for run in runs:
        known = by_row[run.row.id] or ([] if run.row.is_teacher else by_group[run.row.group.name])
        total_s += median(known) * run.epochs if known else 0.0
        unknown += [] if known else [run]
    return total_s, unknown


def _wall_s(file: Path) -> float | None:
    try:
        return float(read_json(file)['wall_s'])
    except (OSError, ValueError, KeyError, TypeError):
        return None
