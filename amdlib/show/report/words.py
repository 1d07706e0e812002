"""What a picture shows, in words made of its numbers: for who hears the page, and for who is in a hurry."""
from __future__ import annotations

from pathlib import Path

import pandas as pd

from amdlib.paper.pairs import find_group
from amdlib.paper.tables import Table
from amdlib.show.report.claims import Judged
from amdlib.show.report.pages import percent, signed
from amdlib.words import some


def of_table(table: Table, cells: pd.DataFrame) -> str:
    """Differences in mAP of a table's picture."""
    told = []
    for group, own in cells[(cells.metric == 'mAP') & cells.difference.notna()].groupby('group', sort=False):
        name = find_group(group).student_label if len(table.groups) > 1 else ''
        lines = [f'{line.label} {signed(line.difference)}{_ends(line)}' for line in own.itertuples()
                 if line.row != 'baseline']
        told.append(f'{f"{name}: " if name else ""}{some(lines, limit=12)}')
    return f'mAP, {table.difference}, with its 95 % interval where it has one: {"; ".join(told) or "nothing compared"}.'


def of_claims(lines: list[Judged]) -> str:
    """Differences and verdicts of the picture above the claims."""
    return '. '.join(f'{line.claim.says}: {signed(line.difference)}{_ends(line)}, in the paper '
                     f'{"not compared" if line.paper is None else signed(line.paper)}, {line.outcome[1]}'
                     for line in lines) + '.'


def _ends(line: object) -> str:
    low, high = getattr(line, 'low', None), getattr(line, 'high', None)
    return '' if pd.isna(low) or pd.isna(high) else f' ({signed(low)} to {signed(high)})'


def of_figure(stem: str, cells: pd.DataFrame | None, folder: Path, caption: str) -> str:
    """What a figure shows; its caption, where its numbers are not there or of another form."""
    try:
        return {'fig1': _attention, 'fig3': _contrast, 'fig4': _sweep, 'mask_coverage': _coverage}[stem](cells, folder)
    except (KeyError, AttributeError, ValueError, TypeError, OSError):
        return caption


def _attention(cells: pd.DataFrame, _folder: Path) -> str:
    known = cells.attention.dropna()
    return (f'In the {len(known)} boxes shown the teacher’s attention is {known.mean():.1f} times that of an average '
            f'position, from {known.min():.1f} to {known.max():.1f}.')


def _contrast(cells: pd.DataFrame, _folder: Path) -> str:
    finest = cells[cells.level == cells.level.min()].sort_values('contrast', ascending=False)
    told = ', '.join(f'{line.label if "label" in cells else line.runs} {line.contrast:.2f}'
                     for line in finest.itertuples())
    return f'Magnitude inside of boxes over that outside, at the finest level: {told}.'


def _sweep(cells: pd.DataFrame, _folder: Path) -> str:
    own = cells[cells.metric == 'mAP'].dropna(subset='ours').sort_values('ours')
    least, best = own.iloc[0], own.iloc[-1]
    if len(own) == 1:
        return f'One value so far: mAP {percent(best.ours)} at phi = {best.value:g}.'
    resolved = 'reference' in own and ((own.low > 0) | (own.high < 0)).any()
    chance = '' if resolved else '; no value is told from the others by more than chance'
    return (f'Of {len(own)} values of phi, mAP lies from {percent(least.ours)} at {least.value:g} to '
            f'{percent(best.ours)} at {best.value:g}{chance}.')


def _coverage(cells: pd.DataFrame, _folder: Path) -> str:
    own = cells[cells.level.astype(str) == 'all'] if 'all' in set(cells.level.astype(str)) else cells
    at = own.iloc[(own.phi - 1).abs().argmin()]
    return (f'At phi = {at.phi:g}, {100 * at.masked_share:.0f} % of positions are masked, and '
            f'{100 * at.inside_share:.0f} % of the masked ones lie in boxes.')
