"""Which runs of two rows are pairs, what their differences say, and verdicts in words.

Runs are paired by seed: at one seed all rows of an arm start from the same student and see the same pictures. A pair
from two processors is none, since the same seed gives other digits there. With several pairs the verdict is about the
method on another run (question B, `seeds`), with one about these checkpoints on other images (question A, `stats`).
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from amdlib.paper.tables import Table
from amdlib.show import seeds
from amdlib.show.intervals import OnImages
from amdlib.words import number, some

LEFT_OUT = 'left out of the comparison'
# how a verdict begins -> how a note groups it
_KINDS = {'not resolved': 'not resolved', 'better': 'better', 'worse': 'worse', 'the same': 'the same',
          'one seed': 'one run each'}


@dataclass(frozen=True)
class Pairs:
    """The runs of a row, each with its reference's of the same seed; `left_out`: why one has none, a text each."""
    runs: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, str]:
        """Of the two runs of a single pair."""
        ((own, other),) = self.runs
        return own['run'], other['run']

    def differences(self, metric: str) -> list[float]:
        """A difference a pair; NaN where the test set has no such object."""
        return [_number(own[metric]) - _number(other[metric]) for own, other in self.runs]


class Verdict(NamedTuple):
    """What is said of a cell's difference; `question` is 'B' (other runs), 'A' (other images) or '' (no interval)."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    question: str = ''
    verdict: str = ''


def pair_up(records: pd.DataFrame, group: str, row: str, over: str) -> Pairs:
    """The runs of two rows of a group, paired by seed (records: `Store.collect`)."""
    own, other = (records[(records.group == group) & (records.row == name)] for name in (row, over))
    found, left_out = [], []
    partners = {line['seed']: line for line in other.to_dict('records')}
    for line in own.to_dict('records') if partners else []:
        partner = partners.get(line['seed'])
        if partner is None:
            left_out.append(f'{line["run"]} ({over} has no seed {line["seed"]})')
        elif line['machine'] != partner['machine']:
            left_out.append(f'{line["run"]} (made on {line["machine"] or "an unknown processor"}, {partner["run"]} on '
                            f'{partner["machine"] or "an unknown one"})')
        else:
            found.append((line, partner))
    return Pairs(tuple(found), tuple(left_out))


def judge(pairs: Pairs, metric: str, on_images: OnImages | None = None) -> Verdict:
    """Judge one number of two rows from their pairs.

    Args:
        on_images: for question A, where there is one pair; None leaves that without an interval.
    """
    values = pairs.differences(metric)
    if not values or any(map(math.isnan, values)):
        return Verdict()
    if len(values) > 1:
        found = seeds.compare(values, metric)
        return Verdict(found.mean, found.low, found.high, found.n, 'B', found.verdict)
    (value,) = values
    if on_images is None:
        return Verdict(value, n=1, verdict=seeds.compare(values, metric).verdict)
    line = on_images.pair(*pairs.ids).loc[metric]
    same = value == line.low == line.high == 0
    told = 'the same' if same else 'better' if line.low > 0 else 'worse' if line.high < 0 else 'not resolved'
    return Verdict(value, float(line.low), float(line.high), 1, 'A',
                   f'{told} on other test images; one seed: says nothing about another run')


def interval(cell: Any) -> str:
    """`+0.4 [-0.3, +1.1]`; without an interval the difference alone."""
    text = number(cell.difference, '+.1f')
    return text if pd.isna(cell.low) else f'{text} [{cell.low:+.1f}, {cell.high:+.1f}]'


def explained(cells: pd.DataFrame, images: int) -> str:
    """What the intervals of a tidy table mean, in a sentence or two."""
    students = cells[~cells.row.isin(('teacher', 'untrained'))]
    fewest, most = (int(count) for count in (students if len(students) else cells).seeds.agg(['min', 'max']))
    told = f'{images} test images, {fewest} {"seed" if most == 1 else "seeds"}' if fewest == most else (
        f'{images} test images, {fewest} to {most} seeds')
    asked = set(cells.question)
    parts = []
    if 'B' in asked:
        parts.append('in brackets the 95 % t interval of differences paired by seed, which is about the method on '
                     'another run (question B). A verdict is that of its line alone: of twenty lines without a true '
                     'difference one is called better or worse by chance')
    if 'A' in asked:
        parts.append(('lines of one seed: ' if 'B' in asked else '') + "in brackets the 95 % interval over test images "
                     'alone (question A: these checkpoints on other images). What another run of the method would '
                     'give (question B) one seed does not say, so read no order into close numbers')
    if not parts and most == 1:
        parts.append('the spread between seeds is not known, so read no order into close numbers')
    return f'{told}: {"; ".join(parts)}.' if parts else f'{told}.'


def told(table: Table, cells: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """What one group of a table shows, a sentence a verdict, first what is not resolved.

    Args:
        cells: the group's mAP cells.
        labels: of rows, for those that differences are taken to.
    """
    lines = []
    for over, own in cells[cells.difference.notna() & (cells.row != 'baseline')].groupby('reference', sort=False):
        own = own.sort_values('difference', ascending=False)
        found: dict[str, list[str]] = {}
        for cell in own.itertuples():
            kind = next(kind for kind in _KINDS if cell.verdict.startswith(kind))
            n = [f'n = {cell.n}'] if cell.question == 'B' else []
            visible = [cell.verdict.partition(': ')[2]] if n and kind == 'not resolved' else []
            found.setdefault(_KINDS[kind] + (' on other test images' if cell.question == 'A' else ''), []).append(
                f'{cell.label} {interval(cell)}' + (f' ({", ".join(n + visible)})' if n else ''))
        what = 'gains over' if table.reference == 'baseline' else 'differences to'
        first = sorted(found, key=lambda name: not name.startswith('not resolved'))
        parts = '; '.join(f'{name}: {", ".join(found[name])}' for name in first)
        lines.append(f'{what} *{labels.get(over, over)}* in mAP: {parts}.')
    if left_out := list(dict.fromkeys(one for text in cells.left_out if text for one in text.split('; '))):
        lines.append(f'{LEFT_OUT}: {some(left_out, "; ")}.')
    return lines


def pooled(table: Table, records: pd.DataFrame) -> dict[tuple[str, str], seeds.Comparison]:
    """Differences in mAP pooled over a table's groups, by (row, over): to each group's reference (over ''), and of AMD
    to MGD where the table compares methods.

    Args:
        records: `Store.collect` of the table's runs.
    Returns: the comparisons that every group has two pairs or more of; {} for fewer than two groups.
    """
    groups = list(dict.fromkeys(records.group))
    wanted = [(row, '') for row in dict.fromkeys(records.row) if row not in ('teacher', 'untrained', table.reference)]
    found = {}
    for row, over in [*wanted, *([('amd', 'mgd')] if table.reference == 'baseline' else [])]:
        differences = {}
        for group in groups:
            arms = records.arm[(records.group == group) & (records.row == row)]
            pairs = pair_up(records, group, row, over or table.reference_of(row, *arms[:1])) if len(arms) else Pairs()
            differences[group] = pairs.differences('mAP')
        if len(groups) > 1 and all(len(own) > 1 for own in differences.values()):
            found[row, over] = seeds.pooled(differences)
    return found


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
