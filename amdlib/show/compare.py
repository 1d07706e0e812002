"""Two runs side by side: COCO's 12 numbers with intervals over test images, sizes, classes and types of error."""
from __future__ import annotations

import functools
import html

import pandas as pd

from amdlib.datasets import coco_images
from amdlib.errors import SettingError
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show.error_types import TYPES, side_by_side
from amdlib.show.intervals import OnImages
from amdlib.show.tables import as_markdown
from amdlib.show.verdicts import interval
from amdlib.words import number


class TwoRuns:
    """One run minus another, from their records and stored detections; in a notebook two tables and what they mean.

    It answers question A alone: these two checkpoints, on other test images.

    Args:
        resamples: of the test images.
    Errors: RunError, at the first use, for a run that is not done.
    """

    def __init__(self, run: Run, other: Run, store: Store, resamples: int = 1000) -> None:
        self.run, self.other, self.store, self.resamples = run, other, store, resamples

    @functools.cached_property
    def numbers(self) -> pd.DataFrame:
        """By metric, in percent: a column a run (its id), difference, low, high."""
        records = {run.id: self.store.record(run) for run in (self.run, self.other)}
        found = OnImages(self.store, (self.run, self.other), self.resamples).pair(self.run.id, self.other.id)
        own = pd.DataFrame({run: record['numbers'] for run, record in records.items()}, dtype=float)
        return own.reindex(found.index).join(found)

    @functools.cached_property
    def errors(self) -> pd.DataFrame:
        """By part ('size', 'class', 'error: dAP', 'error: count') and name: a column a run, difference."""
        return side_by_side(self.store.reported(self.run),
                            {run.id: self.store.detections(run) for run in (self.run, self.other)})

    @property
    def notes(self) -> list[str]:
        """What is found and what it does not say, in words."""
        told = self.numbers.dropna(subset=['low', 'high'])
        better, worse = list(told.index[told.low > 0]), list(told.index[told.high < 0])
        cost = self.errors.loc['error: dAP'].difference.reindex(list(TYPES)).dropna()
        lines = [f'{self.run.id} minus {self.other.id}, {len(coco_images(self.store.reported(self.run)))} test images. '
                 f'Better: {", ".join(better) or "none"}; worse: {", ".join(worse) or "none"}; not resolved: '
                 f'{", ".join(name for name in told.index if name not in (*better, *worse)) or "none"}.']
        if len(cost) and cost.abs().max():
            kind = cost.abs().idxmax()
            lines.append(f'Errors differ most in *{kind}*: repairing it would bring the first {cost[kind]:+.1f} points '
                         'of AP50 more than the second.')
        lines.append('Intervals are over test images alone, each number for itself: another run of either may come out '
                     'otherwise.')
        machines = {run.id: self.store.collect([run]).machine.iloc[0] for run in (self.run, self.other)}
        if len(set(machines.values())) > 1:
            lines.append('Made on different processors (' + '; '.join(f'{run}: {machine}' for run, machine in
                                                                      machines.items()) + '): no pair of a table.')
        if self.run.seed != self.other.seed:
            lines.append(f'Seeds {self.run.seed} and {self.other.seed}: the students start from different weights.')
        return lines

    def readable(self) -> list[pd.DataFrame]:
        """The two tables as texts."""
        first = pd.DataFrame({'': self.numbers.index, **{run.id: self.numbers[run.id].map(number).values
                                                         for run in (self.run, self.other)},
                              'difference': [interval(line) for line in self.numbers.itertuples()]})
        parts = self.errors.reset_index()
        parts = parts[parts.part != 'size']     # among the numbers already
        second = pd.DataFrame({'': parts.part, 'name': parts.name, **{
            name: [number(value, form) for value, form in zip(parts[name], _forms(parts, name), strict=True)]
            for name in (self.run.id, self.other.id, 'difference')}})
        return [first, second]

    def __repr__(self) -> str:
        return '\n\n'.join([*map(as_markdown, self.readable()), '\n'.join(f'- {line}' for line in self.notes)])

    def _repr_html_(self) -> str:
        return ''.join([*(table.to_html(index=False) for table in self.readable()),
                        *(f'<p>{html.escape(line)}</p>' for line in self.notes)])


def compare_runs(run: Run, other: Run, store: Store, resamples: int = 1000) -> TwoRuns:
    """Set two finished runs side by side.

    Errors: RunError for one that is not done; SettingError for a single run, or two evaluated on different splits.
    """
    if run == other:
        raise SettingError(f'{run.id}: expected two runs, given the same twice')
    for one in (run, other):
        store.record(one)
    return TwoRuns(run, other, store, resamples)


def _forms(parts: pd.DataFrame, name: str) -> list[str]:
    sign = '+' if name == 'difference' else ''
    return [f'{sign}.0f' if part == 'error: count' else f'{sign}.1f' for part in parts.part]
