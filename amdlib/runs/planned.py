"""The runs that docs/plan.md asks for (`paper.planned`), in the order of their value."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from amdlib.paper.pairs import find_group
from amdlib.paper.planned import EXPLORATORY, GROUP, PLANNED, Planned
from amdlib.paper.rows import Row, find_row
from amdlib.runs import calibrate
from amdlib.runs.batch import run_missing
from amdlib.runs.calibrate import with_factors
from amdlib.runs.run import Run, table_run
from amdlib.runs.store import Store


def planned_runs(one: Planned, store: Store, group: str = GROUP,
                 settings: Mapping[str, Any] | None = None) -> list[Run]:
    """Both rows of a planned comparison with every planned seed; [] where it needs factors that were not chosen.

    Args:
        settings: of every run, beside those of the comparison.
    """
    settings = {**(settings or {}), **one.settings}
    rows = [find_row(f'{group}-{name}') for name in (one.row, one.over)]
    runs = [table_run(row, store.profile, seed, settings, one.arm) for row in rows for seed in one.all_seeds]
    if not one.calibrated:
        return runs
    return with_factors(runs, store) if _methods(rows) <= calibrate.factors(store, group, one.arm).keys() else []


def all_runs(store: Store, group: str = GROUP, settings: Mapping[str, Any] | None = None,
             exploratory: bool = False) -> list[Run]:
    """Every run of the plan that can be named by now, each once; with the exploratory comparisons', these last.

    First those that share arm, weights and number of seeds with the primary comparison, and so on in the plan's order;
    among them seed by seed, since all rows of a seed are to come from one machine.
    """
    alike: dict[tuple, list[Run]] = {}
    for one in (*PLANNED, *(EXPLORATORY if exploratory else ())):
        bed = (one.kind == 'exploratory', one.arm, one.calibrated, one.seeds, str(one.settings))
        alike.setdefault(bed, []).extend(planned_runs(one, store, group, settings))
    return list(dict.fromkeys(run for runs in alike.values() for run in sorted(runs, key=lambda run: run.seed)))


def train_plan(store: Store, group: str = GROUP, settings: Mapping[str, Any] | None = None,
               exploratory: bool = False) -> None:
    """Choose the factors that the plan needs and that are not chosen, then train what is missing of it.

    Args: as of `all_runs`.

    Errors: SettingError for an unknown group or setting; RunError at the end, naming the runs that failed.
    """
    find_group(group)
    for arm in dict.fromkeys(one.arm for one in PLANNED if one.calibrated):
        needed = _methods(find_row(f'{group}-{name}') for one in PLANNED if one.calibrated and one.arm == arm
                          for name in (one.row, one.over))
        if missing := sorted(needed - calibrate.factors(store, group, arm).keys()):
            calibrate.calibrate(store, [group], arm, missing, settings=settings)
    run_missing(all_runs(store, group, settings, exploratory), store)


def _methods(rows: Iterable[Row]) -> set[str]:
    return {row.method for row in rows if row.method}
