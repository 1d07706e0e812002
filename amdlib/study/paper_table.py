"""A table of the paper's as a study: what it compares is read from `paper`, and judged as `show.tables` does."""
from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amdlib.files import ROOT
from amdlib.paper.profiles import find_profile
from amdlib.paper.tables import Table, find_table
from amdlib.runs.calibrate import with_factors
from amdlib.runs.run import Run, table_runs
from amdlib.runs.store import Store, open_store
from amdlib.show.report import site
from amdlib.show.tables import Comparison
from amdlib.study.own_loss import named
from amdlib.study.studied import Studied


@dataclass(frozen=True)
class PaperTable(Studied):
    """A table of the paper's, or of ours, with these keys.

    Args:
        paper: its name, such as 'table1'.
        pairs: of detectors, such as 'retinanet'; none: all of the table's.
        methods: losses of the user's, a line more each.
        profile: size and schedule: mini, small or paper.
        data: a folder, for the profiles small and paper.
        seeds: of the students.
        controls: the table's controls as further lines.
        arm: how one-stage students of the methods start; None: the profile's.
        calibrated: the methods' weights by the factors that were chosen.
        settings, choice: as of `Study`.
        results: where runs and tables go; None: the kit's `results`.
        name: the file's, where it was read from one.
    Errors: SettingError for what is unknown or does not fit.
    """
    paper: str
    pairs: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    profile: str = 'mini'
    data: str | None = None
    seeds: tuple[int, ...] = (0,)
    controls: bool = False
    arm: str | None = None
    calibrated: bool = False
    settings: Mapping[str, Any] | None = None
    choice: Mapping[str, Any] | None = None
    results: str | None = None
    name: str = ''

    def __post_init__(self) -> None:
        find_profile(self.profile)
        for pair in self.pairs or (None,):
            self.compared.rows(pair)

    @classmethod
    def of(cls, values: Mapping[str, Any], home: Path = Path()) -> PaperTable:
        """From plain values by the names above; paths are relative to `home`. Errors: SettingError."""
        given = cls._given(values, ('pairs', 'methods', 'seeds'), ('data', 'results'), home)
        given['methods'] = tuple(named(method, home) for method in given.get('methods', ()))
        return cls(**given)

    @property
    def title(self) -> str:
        return self.paper

    @property
    def compared(self) -> Table:
        """The table with the lines that are asked for."""
        table = find_table(self.paper).with_methods(self.methods)
        return table.with_controls() if self.controls else table

    @functools.cached_property
    def store(self) -> Store:
        return open_store(self.profile, self.data, self.results or ROOT / 'results', **(self.choice or {}))

    def runs(self) -> list[Run]:
        found = [run for pair in self.pairs or (None,) for run in table_runs(
            self.compared, self.store.profile, pair, self.seeds, self.settings, arm=self.arm)]
        return with_factors(found, self.store) if self.calibrated else found

    def table(self, resamples: int = 1000) -> Comparison:
        """The paper's table beside the numbers found here, kept records counted.

        Args:
            resamples: of the test images, for intervals of lines of one seed; 0: none.
        """
        return Comparison(self.compared, self.store.with_kept(), self.runs(), resamples)

    def readable(self) -> str:
        return repr(self.table(0))

    def write(self) -> Path:
        return self.table().write()

    def report(self) -> Path:
        return site.build(self.store)

    def describe(self) -> str:
        table, rows = self.compared, [row for pair in self.pairs or (None,) for row in self.compared.rows(pair)]
        lines = [f'{table.heading}, profile {self.profile}, {self.store.dataset.name}']
        for group in dict.fromkeys(row.group for row in rows):
            lines.append(f'{group.student_label} <- {group.teacher_label}: '
                         f'{", ".join(table.label(row) for row in rows if row.group is group)}')
        return '\n'.join(lines)
