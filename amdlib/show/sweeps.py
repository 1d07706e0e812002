"""Sweeps: one row over the values of one of its method's options; records in, tidy and readable tables out.

A *tidy* sweep has one line a value and metric: option, value, seeds, metric, ours and sd (over seeds, percent); the
difference to the row's own value of the option (`reference`), with low, high, n, question and verdict as in a table
(`verdicts`); and the runs behind it (group, row, runs, settings_hash, data, commit).
"""
from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from amdlib.datasets import coco_images
from amdlib.paper.pairs import find_group
from amdlib.paper.printed import paper_value
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show.intervals import OnImages
from amdlib.show.tables import LIMITS, FromRecords, as_markdown, version_notes, write_csv, write_markdown
from amdlib.show.values import assumptions
from amdlib.show.verdicts import Pairs, explained, interval, judge, pair_up
from amdlib.words import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ('mAP', 'mAR')


class Sweep(FromRecords):
    """A row over the values of an option, from the records of its runs; in a notebook it shows a line a value.

    Args:
        runs: of `sweep_runs`; all of them must be done.
        shares: 0 to 1 by value of the option, each a metric of its own, such as the masked share.
        resamples: of the test images, where there is one seed; 0 leaves its differences without an interval.
    """

    def __init__(self, runs: Iterable[Run], store: Store, option: str,
                 shares: Mapping[str, pd.Series] | None = None, resamples: int = 1000) -> None:
        super().__init__(option, runs, store)
        self.option, self.shares = option, shares
        self.on_images = OnImages(store, self.runs, resamples) if resamples else None

    @functools.cached_property
    def notes(self) -> str:
        """Markdown: what the numbers can and cannot show, and what was found."""
        return reading_notes(self.cells, self.store, self.records)

    def write(self, name: str, title: str) -> Path:
        """Write `<name>.csv`, `.md` and the figure into the store's folder; return the `.md`."""
        from amdlib.show import charts
        written = write(self.cells, self.notes, self.store.folder / name, title)
        charts.save(self.figure(), self.store.folder / name)
        return written

    def _tidy(self, records: pd.DataFrame) -> pd.DataFrame:
        return tidy(self.runs, records, self.option, self.shares, self.on_images)

    def _draw(self) -> Figure:
        """mAP and mAR, and the share of masked positions where there is one, over the option."""
        from amdlib.show import charts  # matplotlib, which a sweep on the command line does not need
        return charts.sweep(self.cells, 'threshold phi (Eq. 4)' if self.option == 'phi' else self.option,
                            printed_best(self.cells))

    def __repr__(self) -> str:
        return as_markdown(wide(self.cells))

    def _repr_html_(self) -> str:
        return wide(self.cells).to_html(index=False)


def tidy(runs: Sequence[Run], records: pd.DataFrame, option: str, shares: Mapping[str, pd.Series] | None = None,
         on_images: OnImages | None = None) -> pd.DataFrame:
    """Tidy cells of a sweep from `Store.collect`'s records, in the order of the values.

    Args:
        shares: as of `Sweep`.
        on_images: intervals of differences where there is one seed; None leaves them without.
    """
    value_of, usual = {run.id: run.value(option) for run in runs}, runs[0].row.value(option)
    by_value = records.assign(row=records.run.map(value_of).map(str))
    lines = []
    for value, own in records.groupby(records.run.map(value_of)):
        pairs = pair_up(by_value, own.group.iloc[0], str(value), str(usual)) if value != usual else Pairs()
        behind = {'group': own.group.iloc[0], 'row': own.row.iloc[0], 'runs': ' '.join(own.run),
                  'settings_hash': ' '.join(sorted(set(own.settings_hash))), 'data': own.data.iloc[0],
                  'commit': ' '.join(sorted({str(c) for c in own.commit}))}
        cell = {'option': option, 'value': value, 'seeds': len(own)}
        lines += [{**cell, 'metric': metric, 'ours': own[metric].astype(float).mean(),
                   'sd': own[metric].astype(float).std(), 'reference': usual if pairs.runs else '',
                   **judge(pairs, metric, on_images)._asdict(), 'left_out': '; '.join(pairs.left_out), **behind}
                  for metric in METRICS]
        lines += [{**cell, 'metric': name, 'ours': 100 * float(share[value]), 'sd': float('nan'), **behind}
                  for name, share in (shares or {}).items()]
    return pd.DataFrame(lines).astype(dict.fromkeys(('difference', 'low', 'high'), float))


def printed_best(cells: pd.DataFrame) -> dict[str, float]:
    """By metric the one point of Fig. 4 that is known, its best: AMD's line of Table I. {} for other sweeps."""
    if (cells.group.iloc[0], cells.option.iloc[0]) != ('reppoints', 'phi'):
        return {}
    return {metric: paper_value('I', 'reppoints', 'amd', metric) for metric in METRICS}


def wide(cells: pd.DataFrame) -> pd.DataFrame:
    """A sweep for reading: a line a value."""
    def told(own: pd.DataFrame) -> str:
        (cell,) = own.itertuples()
        return number(cell.ours) + (f' ± {cell.sd:.1f}' if cell.seeds > 1 and pd.notna(cell.sd) else '')
    option, lines = cells.option.iloc[0], []
    usual = next((value for value in cells.reference if value != '' and pd.notna(value)), None)
    for value, own in cells.groupby('value'):
        line = {option: value, **{metric: told(own[own.metric == metric]) for metric in own.metric}}
        if usual is not None:   # beside mAP
            of_map = own[own.metric == 'mAP'].iloc[0]
            line = {option: value, 'mAP': line['mAP'], f'to {option} = {usual}': interval(of_map), **line}
        lines.append(line)
    return pd.DataFrame(lines).rename(columns={'masked_share': 'masked positions, %'})


def reading_notes(cells: pd.DataFrame, store: Store, records: pd.DataFrame) -> str:
    """Markdown: what a sweep can and cannot show, and what was found.

    Args:
        records: `Store.collect` of the runs behind the cells.
    """
    option, group = cells.option.iloc[0], cells.group.iloc[0]
    best = cells[cells.metric == 'mAP'].sort_values('ours')
    lowest, highest = (value if isinstance(value, str) else f'{value:g}' for value in best.value.iloc[[0, -1]])
    lines = [store.profile.can_show, explained(best, len(coco_images(store.dataset.test_ann))),
             f'{find_group(group).student_label}: highest mAP {best.ours.iloc[-1]:.1f} at {option} = {highest}, lowest '
             f'{best.ours.iloc[0]:.1f} at {lowest}.']
    if told := [f'{cell.value} {interval(cell)} ({cell.verdict})' for cell in best.itertuples() if cell.verdict]:
        (usual,) = set(best.reference) - {''}
        lines.append(f"mAP minus that at the row's own value, {option} = {usual}: {'; '.join(told)}.")
    if best_printed := printed_best(cells):
        told = ' and '.join(f'{value:.1f} {metric}' for metric, value in best_printed.items())
        lines.append(f"The paper's best point (COCO, RepPoints): {told}; its value of phi was lost.")
    lines += [*version_notes(records), assumptions(), *(f'Data: {note}.' for note in store.dataset.notes)]
    return '\n'.join(f'- {line}' for line in lines)


def write(cells: pd.DataFrame, notes: str, stem: Path, title: str) -> Path:
    """Write `stem`.csv (every cell, full precision) and `stem`.md (for reading); return the latter."""
    write_csv(cells, stem.with_suffix('.csv'))
    return write_markdown(stem.with_suffix('.md'), [
        f'# {title}', f'{cells.row.iloc[0]} of {cells.group.iloc[0]} over {cells.option.iloc[0]}; all numbers in '
        'percent.', as_markdown(wide(cells)), LIMITS, notes])
