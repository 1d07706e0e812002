"""Equal tuning: one factor on all weights of a method, for each detector pair and arm, from one grid.

The rule of scale (`paper.profiles.scale_weights`) carries published weights to another size; what it leaves open is one
number a method. It is chosen on validation pictures and on seeds that are never reported, in the same way for all.
AMD's variants and controls take AMD's factor. The runs are ordinary ones, so an interrupted calibration goes on.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from amdlib.errors import RunError, SettingError
from amdlib.files import read_csv, whole, write_text
from amdlib.methods import is_outside
from amdlib.paper.pairs import Group, find_group
from amdlib.paper.profiles import Profile
from amdlib.paper.rows import Row, find_row
from amdlib.paper.tables import TABLES
from amdlib.runs.batch import run_missing
from amdlib.runs.recipe import own_settings
from amdlib.runs.run import ARMS, Run, arm_settings
from amdlib.runs.store import Store
from amdlib.words import log, number

GRID = (0.01, 0.03, 0.1, 0.3, 1.0)      # two decades; a best value at an end goes on in the same steps
LEAST, MOST = 1e-4, 100.0               # where it stops going on
FIRST_SEED = 100                        # seeds from here on are kept apart from the reported ones
FILE = 'calibration.csv'
COLUMNS = ('group', 'arm', 'method', 'factor', 'val_map', 'seeds', 'chosen', 'data', 'runs')


def default_methods() -> list[str]:
    """The methods that are compared: those of Table I and of its controls, each in full."""
    table = TABLES['table1'].with_controls()
    return [row.name for row in table.rows(table.groups[0]) if row.name == row.method]


def calibrate(store: Store, groups: Iterable[str], arm: str | None = None, methods: Iterable[str] = (),
              seeds: Iterable[int] = (FIRST_SEED,), settings: Mapping[str, Any] | None = None, *,
              force: bool = False) -> pd.DataFrame:
    """Choose the factor of each method in each group, on the validation split; train what is missing for it.

    Writes calibration.csv and calibration.md into the store's folder; lines of other groups, arms and methods stay.

    Args:
        arm: 'alone' or 'inherit'; None: the profile's. Students of two stages know 'alone' only.
        methods: none = those of `default_methods`.
        seeds: of 100 or more.
        settings: of every run, beside the factor.
    Returns: the lines that were made (columns COLUMNS).
    Errors: SettingError for an unknown group, arm or method, or a seed below 100; RunError for runs that fail. A run
        whose loss overflows counts as no value.
    """
    rows, seeds = check(store.profile, groups, arm, methods, seeds), sorted(set(seeds))
    searches = [_Search(row, own, store, seeds, dict(settings or {})) for row, own in rows]
    while waiting := [run for search in searches for run in search.missing()]:  # all in one batch: cores stay busy
        _run(waiting, store, force)
        for search in searches:
            search.extend()
    made = pd.DataFrame([line for search in searches for line in search.lines()], columns=list(COLUMNS))
    for search in searches:
        log.info(search.told())
    write(store, made)
    return made


def check(profile: Profile, groups: Iterable[str], arm: str | None = None, methods: Iterable[str] = (),
          seeds: Iterable[int] = (FIRST_SEED,)) -> list[tuple[Row, str]]:
    """What `calibrate` is asked for, as rows with their arm. Errors: its SettingErrors, before data are made for it."""
    methods, seeds = list(methods) or default_methods(), sorted(set(seeds))
    if not seeds or seeds[0] < FIRST_SEED:
        raise SettingError(f'seeds {", ".join(map(str, seeds)) or "none"}: those below {FIRST_SEED} are reported; '
                           f'factors are chosen on seeds of {FIRST_SEED} or more')
    return [(_row(group, method), arm_of(group, profile, arm)) for group in map(find_group, groups)
            for method in methods]


class _Search:
    """The factor of one method in one group and arm."""

    def __init__(self, row: Row, arm: str, store: Store, seeds: list[int], settings: dict[str, Any]) -> None:
        self.row, self.arm, self.store, self.seeds = row, arm, store, seeds
        self.settings = {**own_settings(row, settings), **arm_settings(row, store.profile, arm), 'split': 'val'}
        self.grid = sorted(GRID)
        self.tried: set[float] = set()

    def runs(self, factor: float) -> list[Run]:
        return [Run.of(self.row, self.store.profile, seed, {**self.settings, 'factor': factor}) for seed in self.seeds]

    def missing(self) -> list[Run]:
        """The runs of factors that were not tried yet; they are, after the next batch."""
        new = [factor for factor in self.grid if factor not in self.tried]
        self.tried.update(new)
        return [run for factor in new for run in self.runs(factor)]

    def value(self, factor: float) -> float:
        """Mean mAP on the validation pictures; NaN where a run's loss overflowed."""
        found = [self.store.state(run) for run in self.runs(factor)]
        if any(state.name != 'done' for state in found):
            return float('nan')
        return sum(state.record['numbers']['mAP'] or 0.0 for state in found) / len(found)

    def best(self) -> float:
        """The factor with the highest value; of equal ones the nearest to 1. Errors: RunError where none has any."""
        values = {factor: value for factor in self.grid if (value := self.value(factor)) == value}
        if not values:
            raise RunError(f'{self.row.id}, {self.arm}: no factor of {", ".join(map(_short, self.grid))} can be '
                           'trained with: the loss overflows')
        return max(values, key=lambda factor: (values[factor], -max(factor, 1 / factor)))

    def extend(self) -> None:
        """A step more where the best value lies at an end of the grid."""
        best = self.best()
        for end, other in ((self.grid[0], _next(self.grid[0], down=True)), (self.grid[-1], _next(self.grid[-1]))):
            if best == end and LEAST <= other <= MOST:
                self.grid = sorted([*self.grid, other])
                log.info(f'{self.row.id}, {self.arm}: {_short(best)} is best and at the end of the grid: '
                         f'{_short(other)} too')

    def lines(self) -> list[dict[str, Any]]:
        best = self.best()
        return [{'group': self.row.group.name, 'arm': self.arm, 'method': self.row.method, 'factor': factor,
                 'val_map': self.value(factor), 'seeds': ' '.join(map(str, self.seeds)), 'chosen': factor == best,
                 'data': self.store.dataset.fingerprint, 'runs': ' '.join(run.id for run in self.runs(factor))}
                for factor in self.grid]

    def told(self) -> str:
        best = self.best()
        at_end = ', at the end of the grid' if best in (self.grid[0], self.grid[-1]) else ''
        return (f'{self.row.id}, {self.arm}: factor {_short(best)} ({self.value(best):.1f} mAP on val, '
                f'{number(self.value(1.0))} by the rule alone{at_end})')


def _run(runs: list[Run], store: Store, force: bool) -> None:
    """Train them; a loss that overflows is an answer, every other failure is one."""
    try:
        run_missing(runs, store, force=force)
    except RunError:
        states = [store.state(run) for run in runs]
        if any(state.name != 'done' and 'loss is not finite' not in state.why for state in states):
            raise


def arm_of(group: Group, profile: Profile, arm: str | None) -> str:
    """The arm that is meant for a group. Errors: SettingError for an unknown one, or one that the group has not."""
    if arm not in (None, *ARMS):
        raise SettingError(f'arm={arm!r}: expected one of {", ".join(ARMS)}')
    if not group.one_stage:
        if arm == 'inherit':
            raise SettingError(f'arm=inherit: {group.name} is a two-stage pair, its students of methods start alone')
        return 'alone'
    return arm or profile.arm


def _row(group: Group, method: str) -> Row:
    row = find_row(f'{group.name}-{method}')
    if not row.method:
        raise SettingError(f'{row.id} distils nothing, so it has no factor')
    if row.name != row.method and not is_outside(row.method):
        raise SettingError(f'{row.id} takes the factor of {row.method}: calibrate that')
    return row


def _next(factor: float, down: bool = False) -> float:
    """The neighbour in ... 0.01, 0.03, 0.1, 0.3, 1 ..."""
    mantissa, exponent = f'{factor:.0e}'.split('e')
    places = int(exponent)
    if down:
        return float(f'1e{places}') if mantissa == '3' else float(f'3e{places - 1}')
    return float(f'3e{places}') if mantissa == '1' else float(f'1e{places + 1}')


def _short(factor: float) -> str:
    return f'{factor:g}'


# ---- the table --------------------------------------------------------------------------------------------------

def read(store: Store) -> pd.DataFrame:
    """The store's calibration; without lines where there is none. Errors: RunError for a file of another kind."""
    file = store.folder / FILE
    if not file.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    return read_csv(file, COLUMNS, dtype={'seeds': str, 'data': str, 'runs': str})


def write(store: Store, made: pd.DataFrame) -> Path:
    """Put lines into calibration.csv, in place of older ones of their group, arm and method, and write the .md."""
    store.folder.mkdir(parents=True, exist_ok=True)
    key = ['group', 'arm', 'method']
    known = read(store)
    old = known[~known[key].apply(tuple, axis=1).isin(set(made[key].apply(tuple, axis=1)))] if len(known) else known
    every = pd.concat([part for part in (old, made) if len(part)], ignore_index=True)
    with whole(store.folder / FILE) as beside:
        every.to_csv(beside, index=False)
    write_text(store.folder / 'calibration.md', as_markdown(every))
    return store.folder / FILE


def as_markdown(lines: pd.DataFrame) -> str:
    """A table a group and arm: methods by factor, the chosen one in bold."""
    parts = ['# Calibration', '', f'mAP on the validation pictures by the factor on all weights of a method, mean over '
             f'seeds that are reported nowhere ({"; ".join(sorted(set(lines.seeds)))}); the chosen one in bold. The '
             "rule alone is factor 1. AMD's variants and controls take AMD's factor.", '']
    for (group, arm), own in lines.groupby(['group', 'arm'], sort=False):
        factors = sorted(set(own.factor))
        parts += [f'## {find_group(group).student_label}, {arm}', '',
                  f'| method | {" | ".join(map(_short, factors))} |', f'| --- |{" ---: |" * len(factors)}']
        for method, of_method in own.groupby('method', sort=False):
            cells = {line.factor: f'**{number(line.val_map)}**' if line.chosen else number(line.val_map)
                     for line in of_method.itertuples()}
            parts.append(f'| {method} | {" | ".join(cells.get(factor, "") for factor in factors)} |')
        parts.append('')
    return '\n'.join(parts)


def factors(store: Store, group: str, arm: str | None = None) -> dict[str, float]:
    """The chosen factors of a group and arm, by method; only those chosen on the data set as it is now.

    Errors: SettingError for an unknown group or arm.
    """
    arm, known = arm_of(find_group(group), store.profile, arm), read(store)
    own = known[(known.group == group) & (known.arm == arm) & known.chosen.astype(bool)
                & (known.data == store.dataset.fingerprint)]
    return dict(zip(own.method, own.factor.astype(float), strict=True))


def with_factors(runs: Iterable[Run], store: Store) -> list[Run]:
    """The same runs with the chosen factor of each method on its weights; what distils nothing stays as it is.

    Errors: RunError for a method whose factor was not chosen, saying how to; SettingError for a run that has one.
    """
    found = []
    for run in runs:
        if run.row.method:
            if 'factor' in run.settings:
                raise SettingError(f'{run.id}: calibrated and factor={run.recipe.factor:g}: give one of them')
            factor = calibrated_factor(store, run.row.group.name, run.arm, run.row.name)
            run = Run.of(run.row, run.profile, run.seed, {**run.settings, 'factor': factor})
        found.append(run)
    return found


def calibrated_factor(store: Store, group: str, arm: str | None, method: str) -> float:
    """The chosen factor of a method, or of the method of a variant or control ('amd-permuted').

    Errors: RunError saying how to make it, where it is not there; SettingError for an unknown group, arm or row.
    """
    row = find_row(f'{group}-{method}')
    found = factors(store, group, arm)
    if not row.method or row.method not in found:
        raise RunError(f'{row.id}: no factor was chosen for it on these data: make it with `python -m amdlib calibrate '
                       f'--group {group} --arm {arm or store.profile.arm} --methods {row.method or method}`')
    return found[row.method]
