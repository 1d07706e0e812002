"""Tables beside the paper's numbers: records in, tidy and readable tables out.

A *tidy* table has one line a cell: table, group, row, label, metric, ours and sd (over seeds, percent), seeds,
difference (to the table's reference row), paper, paper_difference, and the runs behind it (runs, settings_hash, data,
commit).
"""
from __future__ import annotations

import functools
import re
from pathlib import Path

import pandas as pd

from amdlib.data import Dataset, coco_images
from amdlib.experiments import (GROUPS, TABLES, Group, Profile, Run, Table, assumptions, find_profile, find_table,
                                table_numbered)
from amdlib.results import ROOT


@functools.cache
def paper_table(number: str) -> pd.DataFrame:
    """One of the paper's tables ('I' to 'VI') from data/paper_tables.csv, in percent; NaN = not reported."""
    table = pd.read_csv(ROOT / 'data' / 'paper_tables.csv')
    return table[table['table'] == number].reset_index(drop=True)


def paper_value(number: str, group: str, label: str, metric: str) -> float | None:
    """The paper's number in percent, None where it reports none; the baseline's are those of Table I everywhere.

    A teacher's mAP stands in its name: 'RetinaNet-ResNeXt101 (41.0)'.
    """
    paper = paper_table('I' if label in ('Teacher', 'baseline') else number).set_index(['group', 'row'])
    if label == 'Teacher':
        named = re.search(r'\(([\d.]+)\)', paper.loc[(group, 'baseline'), 'teacher'])
        return float(named.group(1)) if metric == 'mAP' else None
    if (group, label) not in paper.index or metric not in paper or pd.isna(value := paper.loc[(group, label), metric]):
        return None
    return float(value)


def tidy(table: str | Table, records: pd.DataFrame) -> pd.DataFrame:
    """The tidy table of `results.collect`'s records: one line a cell, means over seeds, in percent."""
    table = find_table(table) if isinstance(table, str) else table
    labels = dict(table.lines)
    lines = []
    for (group, row), runs in records.groupby(['group', 'row'], sort=False):
        reference = records[(records.group == group) & (records.row == table.reference)]
        compared = row not in ('teacher', table.reference)
        for metric in table.metrics:
            printed = paper_value(table.number, group, labels[row], metric)
            printed_reference = paper_value(table.number, group, labels[table.reference], metric)
            values = runs[metric].astype(float)
            lines.append({
                'table': table.number, 'group': group, 'row': row, 'label': labels[row], 'metric': metric,
                'ours': values.mean(), 'sd': values.std(), 'seeds': len(runs),
                'difference': values.mean() - reference[metric].astype(float).mean() if compared else None,
                'paper': printed,
                'paper_difference': printed - printed_reference
                if compared and None not in (printed, printed_reference) else None,
                'runs': ' '.join(runs.run), 'settings_hash': ' '.join(sorted(set(runs.settings_hash))),
                'data': runs.data.iloc[0], 'commit': ' '.join(sorted({str(c) for c in runs.commit}))})
    return pd.DataFrame(lines).astype({'difference': float, 'paper': float, 'paper_difference': float})


def wide(cells: pd.DataFrame, group: str) -> pd.DataFrame:
    """One group of a tidy table for reading: a line a row; mAP, difference and paper in full, other numbers as
    'ours (paper)'."""
    table = table_numbered(cells.table.iloc[0])
    lines = []
    for (_, label), own in cells[cells.group == group].groupby(['row', 'label'], sort=False):
        by_metric = own.set_index('metric')
        m = by_metric.loc['mAP']
        spread = f' ± {m.sd:.1f}' if m.seeds > 1 else ''
        line = {'': label, 'mAP': f'{number(m.ours)}{spread}', table.difference: number(m.difference, '+.1f'),
                'paper mAP': number(m.paper), f'paper {table.difference}': number(m.paper_difference, '+.1f')}
        for metric in table.metrics[1:]:
            c = by_metric.loc[metric]
            line[metric] = number(c.ours) + (f' ({number(c.paper)})' if pd.notna(c.paper) else '')
        lines.append(line)
    return pd.DataFrame(lines)


def number(value: float | None, form: str = '.1f') -> str:
    """A number for reading; an en dash where there is none."""
    return '–' if pd.isna(value) else format(value, form)


def beside_paper(run: Run, record: dict) -> pd.DataFrame:
    """The 12 numbers of a run in percent, beside the paper's where a table has this row (and nothing is changed)."""
    tables = [table for table in TABLES.values() if run.row in table.rows() and not run.settings
              and (run.row.name != 'baseline' or table.name == 'table1')]
    lines = []
    for metric, ours in record['numbers'].items():
        printed = {table.number: paper_value(table.number, run.row.group.name, table.label(run.row), metric)
                   for table in tables}
        where = [number for number, value in printed.items() if value is not None]
        lines.append({'': metric, 'here': number(ours), 'paper': number(printed[where[0]] if where else None),
                      'Table': ' '.join(where) or '–'})
    return pd.DataFrame(lines).set_index('')


# ---- sweeps -----------------------------------------------------------------------------------------------------

SWEPT_METRICS = ('mAP', 'mAR')


def sweep(runs: list[Run], records: pd.DataFrame, option: str, others: dict[str, pd.Series] | None = None,
          ) -> pd.DataFrame:
    """Tidy cells of a sweep: option, value, metric, ours and sd (over seeds, percent), seeds, runs, settings_hash, ...

    Args:
        others: shares (0 to 1) by value of the option, each a metric of its own, such as the masked share.
    """
    value_of = {run.id: run.value(option) for run in runs}
    lines = []
    for value, own in records.groupby(records.run.map(value_of)):
        behind = {'group': own.group.iloc[0], 'row': own.row.iloc[0], 'runs': ' '.join(own.run),
                  'settings_hash': ' '.join(sorted(set(own.settings_hash))), 'data': own.data.iloc[0],
                  'commit': ' '.join(sorted({str(c) for c in own.commit}))}
        cell = {'option': option, 'value': value, 'seeds': len(own)}
        lines += [{**cell, 'metric': metric, 'ours': own[metric].astype(float).mean(),
                   'sd': own[metric].astype(float).std(), **behind} for metric in SWEPT_METRICS]
        lines += [{**cell, 'metric': name, 'ours': 100 * float(share[value]), 'sd': float('nan'), **behind}
                  for name, share in (others or {}).items()]
    return pd.DataFrame(lines)


def sweep_wide(cells: pd.DataFrame) -> pd.DataFrame:
    """A sweep for reading: a line a value."""
    def told(own: pd.DataFrame) -> str:
        (cell,) = own.itertuples()
        return number(cell.ours) + (f' ± {cell.sd:.1f}' if cell.seeds > 1 and pd.notna(cell.sd) else '')
    lines = [{cells.option.iloc[0]: value, **{metric: told(own[own.metric == metric])
                                              for metric in own.metric}} for value, own in cells.groupby('value')]
    return pd.DataFrame(lines).rename(columns={'masked_share': 'masked positions, %'})


def sweep_notes(runs: list[Run], cells: pd.DataFrame, profile: Profile, dataset: Dataset) -> str:
    """Markdown: what a sweep can and cannot show, and what was found."""
    option, best = cells.option.iloc[0], cells[cells.metric == 'mAP'].sort_values('ours')
    lowest, highest = (value if isinstance(value, str) else f'{value:g}' for value in best.value.iloc[[0, -1]])
    images, seeds = len(coco_images(dataset.test_ann)), int(cells.seeds.min())
    lines = [profile.can_show, f'{images} test images, {seeds} seed{"s" if seeds > 1 else ""} a value' + (
        '.' if seeds > 1 else ': the spread between seeds is not known, so a curve of this kind is partly chance.'),
        f'{GROUPS[cells.group.iloc[0]].student_label}: highest mAP {best.ours.iloc[-1]:.1f} at {option} = '
        f'{highest}, lowest {best.ours.iloc[0]:.1f} at {lowest}.']
    if len({run.row.group.name for run in runs} & {'reppoints'}) and option == 'phi':
        lines.append("The paper's best point (COCO, RepPoints): 42.7 mAP and 58.8 mAR; its value of phi was lost.")
    lines += [assumptions(), *(f'Data: {note}.' for note in dataset.notes)]
    return '\n'.join(f'- {line}' for line in lines)


# ---- words ------------------------------------------------------------------------------------------------------

def detector(run: Run) -> str:
    """What a run trains, in words: `RetinaNet, ResNet-18 (width 16)`."""
    group, profile, is_teacher = run.row.group, run.profile, run.row.is_teacher
    network = profile.teacher if is_teacher else profile.student
    name = group.teacher_label if is_teacher else group.student_label
    if network is None:
        return f'{name}, {"ResNeXt-101" if is_teacher else "ResNet-50"}'
    # DEVIATION no-masks, see experiments
    return f'{name.replace("Cascade Mask", "Cascade")}, ResNet-{network.depth} (width {network.width})'


def group_title(group: str, profile: str) -> str:
    """A group's heading: which student learns from which teacher."""
    student, teacher = (detector(Run.of(f'{group}-{name}', profile)) for name in ('baseline', 'teacher'))
    note = ' without masks: the data have none' if 'Cascade R-CNN' in teacher else ''
    return f'{student}, taught by {teacher}{note}'


def reading_notes(cells: pd.DataFrame, profile: Profile, dataset: Dataset) -> str:
    """Markdown: what these numbers can and cannot show, and what was found, in plain words."""
    table, images = table_numbered(cells.table.iloc[0]), len(coco_images(dataset.test_ann))
    seeds = int(cells.loc[cells.row != 'teacher', 'seeds'].min())
    lines = [profile.can_show, f'{images} test images, {seeds} seed{"s" if seeds > 1 else ""}' + (
        '.' if seeds > 1 else ': the spread between seeds is not known, so read no order into close numbers.')]
    of_map = cells[cells.metric == 'mAP'].set_index(['group', 'row'])
    for group in cells.group.unique():
        lines += _found(table, of_map.loc[group], GROUPS[group])
    lines += [assumptions(), *(f'Data: {note}.' for note in dataset.notes)]
    return '\n'.join(f'- {line}' for line in lines)


def _found(table: Table, rows: pd.DataFrame, group: Group) -> list[str]:
    """What one group of a table shows; rows: its mAP cells by row."""
    compared = rows[rows.difference.notna() & (rows.index != 'baseline')].sort_values('difference', ascending=False)
    ranked = ', '.join(f'{row.label} {row.difference:+.1f}' for row in compared.itertuples())
    reference = rows.loc[table.reference]
    if table.reference == 'baseline':
        ahead = f'the teacher is {rows.loc["teacher", "ours"] - reference.ours:+.1f} mAP from the baseline '
        return [f'{group.student_label}: {ahead}({reference.ours:.1f}); gains: {ranked}.']
    lines = [f'{group.student_label}: differences in mAP to *{reference.label}* ({reference.ours:.1f}): {ranked}.']
    if {'amd-allmasked', 'baseline'} <= set(rows.index):
        gain = rows.loc['amd-allmasked', 'ours'] - rows.loc['baseline', 'ours']
        started = ("a start from the teacher's neck and head, chance, and" if group.one_stage else 'chance and')
        lines.append('*everything masked* is a control: the student gets no gradient from the distillation, so its '
                     f"difference from the baseline ({gain:+.1f} mAP) does not come from the teacher's features. What "
                     f'is left: {started} gradient clipping, which counts the gradients of the generation block too.')
    return lines


# ---- files ------------------------------------------------------------------------------------------------------

LIMITS = '## What this can and cannot show'


def write(cells: pd.DataFrame, notes: str, place: Path, profile: str) -> Path:
    """Write `<table>.csv` (every cell, full precision) and `.md` (for reading) into `place`; return the latter."""
    table = table_numbered(cells.table.iloc[0])
    place.mkdir(parents=True, exist_ok=True)
    cells.to_csv(place / f'{table.name}.csv', index=False, float_format='%.6f')
    means = 'gain in mAP over the baseline' if table.reference == 'baseline' else 'difference in mAP to that row'
    parts = [f'# Table {table.number}, profile `{find_profile(profile).name}`',
             f'{table.title}. COCO numbers in percent; in brackets the paper\'s. *{table.difference}*: {means}.']
    for group in cells.group.unique():
        parts += [f'**{group_title(group, profile)}**', wide(cells, group).to_markdown(index=False,
                                                                                     disable_numparse=True)]
    parts += [LIMITS, notes]
    (place / f'{table.name}.md').write_text('\n\n'.join(parts) + '\n')
    return place / f'{table.name}.md'


def write_sweep(cells: pd.DataFrame, notes: str, stem: Path, title: str) -> Path:
    """Write `stem`.csv (every cell, full precision) and `stem`.md (for reading); return the latter."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    cells.to_csv(stem.with_suffix('.csv'), index=False, float_format='%.6f')
    parts = [f'# {title}', f'{cells.row.iloc[0]} of {cells.group.iloc[0]} over {cells.option.iloc[0]}; all numbers in '
             'percent.', sweep_wide(cells).to_markdown(index=False, disable_numparse=True), LIMITS, notes]
    stem.with_suffix('.md').write_text('\n\n'.join(parts) + '\n')
    return stem.with_suffix('.md')
