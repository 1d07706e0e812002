"""Tables beside the paper's numbers: records in, tidy and readable tables out; and words for a run.

A *tidy* table has one line a cell: table, group, row, label, metric, ours and sd (over seeds, percent), seeds; the
difference to the row `reference` (mean over n pairs of one seed each), low and high of its 95 % interval, the question
that this answers (`verdicts`), verdict, left_out (runs that have no partner); paper, paper_difference; and the runs
behind it (runs, settings_hash, data, commit). A row that the paper lacks is a line without its numbers.
"""
from __future__ import annotations

import functools
import html
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mmengine.config import ConfigDict

from amdlib.datasets import Dataset, coco_images
from amdlib.errors import RunError
from amdlib.evaluation import coco_numbers
from amdlib.files import write_text
from amdlib.paper.pairs import Group, find_group
from amdlib.paper.printed import paper_label, paper_value
from amdlib.paper.profiles import Profile
from amdlib.paper.rows import ROWS, Row
from amdlib.paper.tables import TABLES, Table, find_table, table_numbered
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show.intervals import OnImages
from amdlib.show.values import assumptions
from amdlib.show.verdicts import Pairs, explained, interval, judge, pair_up, pooled, told
from amdlib.words import log, minutes, number, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMITS = '## What this can and cannot show'


class FromRecords(ABC):
    """What is made of the records of runs: tidy cells and a figure.

    What lies in the store is read at the first use, so one that was made before training shows what came of it.

    Args:
        name: of what it shows, for errors.
    """

    def __init__(self, name: str, runs: Iterable[Run], store: Store) -> None:
        self.name, self.runs, self.store = name, list(runs), store

    @functools.cached_property
    def records(self) -> pd.DataFrame:
        """A line a run: `Store.collect`. Errors: RunError naming every run that is not done."""
        return self.store.collect(self.runs)

    @functools.cached_property
    def cells(self) -> pd.DataFrame:
        """The records' tidy numbers."""
        return self._tidy(self.records)

    def figure(self) -> Figure:
        """The cells as a figure, drawn once: a notebook shows every figure that is drawn."""
        return self._figure

    @functools.cached_property
    def _figure(self) -> Figure:
        return self._draw()

    def check(self) -> None:
        """RunError where a number does not follow from the stored detections, or the records are others by now."""
        check_numbers(self.runs, self.store)
        if not self._tidy(self.store.collect(self.runs)).equals(self.cells):
            raise RunError(f'{self.name}: its runs have other records by now; make it again')

    @abstractmethod
    def _tidy(self, records: pd.DataFrame) -> pd.DataFrame:
        """Tidy numbers of `Store.collect`'s records."""

    @abstractmethod
    def _draw(self) -> Figure:
        """A new figure of the cells."""


class Comparison(FromRecords):
    """One of the paper's tables from the records of runs; in a notebook it shows a part a group.

    Args:
        table: its name, or the table itself.
        runs: of `table_runs`; all of them must be done.
        resamples: of the test images, for lines of one seed, some seconds each at the first time; 0 leaves them
            without an interval.
    """

    def __init__(self, table: str | Table, store: Store, runs: Iterable[Run], resamples: int = 1000) -> None:
        self.table = find_table(table) if isinstance(table, str) else table
        super().__init__(self.table.name, runs, store)
        self.on_images = OnImages(store, self.runs, resamples) if resamples else None

    @functools.cached_property
    def notes(self) -> str:
        """Markdown: what the numbers can and cannot show, and what was found."""
        return reading_notes(self.cells, self.store, self.records)

    def write(self) -> Path:
        """Write the table (`.csv`, `.md`) and its figure into the store's folder; return the `.md`."""
        from amdlib.show import charts
        written = write(self.cells, self.notes, self.store, self.variant)
        charts.save(self.figure(), written.with_suffix(''))
        return written

    @property
    def variant(self) -> str:
        """What sets the runs apart from those that the table shows by default: 'inherit' or 'alone', 'calibrated',
        both, or ''."""
        taught = [run for run in self.runs if run.row.method]
        arms = {run.arm for run in taught if run.row.group.one_stage} - {self.store.profile.arm}
        return '_'.join([*sorted(arms), *(['calibrated'] if any(run.recipe.factor != 1 for run in taught) else [])])

    def _tidy(self, records: pd.DataFrame) -> pd.DataFrame:
        return tidy(self.table, records, self.on_images)

    def _draw(self) -> Figure:
        """Differences in mAP with their intervals, here and in the paper."""
        from amdlib.show import charts  # matplotlib, which a table on the command line does not need
        return charts.differences(self.cells)

    def __repr__(self) -> str:
        return readable(self.cells, self.store.profile)

    def _repr_html_(self) -> str:
        return ''.join(f'<p><b>{html.escape(group_title(group, self.store.profile))}</b></p>'
                       f'{wide(self.cells, group).to_html(index=False)}' for group in self.cells.group.unique())


# ---- tidy and for reading ---------------------------------------------------------------------------------------

def tidy(table: str | Table, records: pd.DataFrame, on_images: OnImages | None = None) -> pd.DataFrame:
    """The tidy table of `Store.collect`'s records: one line a cell, means over seeds, in percent.

    Args:
        on_images: intervals for lines of one seed; None leaves them without.
    Errors: SettingError for an unknown table; RunError where two runs are the same line and seed.
    """
    table = find_table(table) if isinstance(table, str) else table
    if (twice := records.duplicated(['group', 'row', 'seed'], keep=False)).any():
        raise RunError(f'{", ".join(records.run[twice])}: they are the same line of the table, with the same seed')
    by_line = records.groupby(['group', 'row'], sort=False)
    references = {(group, row): table.reference_of(row, runs.arm.iloc[0]) for (group, row), runs in by_line}
    compared = {line: over for line, over in references.items() if line[1] not in ('teacher', 'untrained', over)}
    paired = {line: pair_up(records, *line, over) for line, over in compared.items()}
    if on_images:   # all at once: it takes a while, and tells how far it is
        on_images.pairs([one.ids for one in paired.values() if len(one.runs) == 1])
    lines = []
    for (group, row), runs in by_line:
        pairs = paired.get((group, row), Pairs())
        for metric in table.metrics:
            printed = paper_value(table.number, group, row, metric)
            printed_reference = paper_value(table.number, group, table.reference, metric)
            values = runs[metric].astype(float)
            lines.append({
                'table': table.number, 'group': group, 'row': row,
                'label': paper_label(table.number, group, row) or runs.label.iloc[0], 'metric': metric,
                'ours': values.mean(), 'sd': values.std(), 'seeds': len(runs),
                'reference': compared.get((group, row), ''),
                **judge(pairs, metric, on_images)._asdict(), 'left_out': '; '.join(pairs.left_out),
                'paper': printed,
                'paper_difference': printed - printed_reference
                if (group, row) in compared and None not in (printed, printed_reference) else None,
                'runs': ' '.join(runs.run), 'settings_hash': ' '.join(sorted(set(runs.settings_hash))),
                'data': runs.data.iloc[0], 'commit': ' '.join(sorted({str(c) for c in runs.commit}))})
    return pd.DataFrame(lines).astype(dict.fromkeys(('difference', 'low', 'high', 'paper', 'paper_difference'), float))


def wide(cells: pd.DataFrame, group: str) -> pd.DataFrame:
    """One group of a tidy table for reading: a line a row; mAP, difference with its interval and paper in full, other
    numbers as 'ours (paper)'."""
    table = table_numbered(cells.table.iloc[0])
    lines = []
    for (_, label), own in cells[cells.group == group].groupby(['row', 'label'], sort=False):
        by_metric = own.set_index('metric')
        m = by_metric.loc['mAP']
        spread = f' ± {m.sd:.1f}' if m.seeds > 1 else ''
        line = {'': label, 'mAP': f'{number(m.ours)}{spread}', table.difference: interval(m),
                'paper mAP': number(m.paper), f'paper {table.difference}': number(m.paper_difference, '+.1f')}
        for metric in table.metrics[1:]:
            c = by_metric.loc[metric]
            line[metric] = number(c.ours) + (f' ({number(c.paper)})' if pd.notna(c.paper) else '')
        lines.append(line)
    return pd.DataFrame([*lines, *({'': label, table.difference: why} for label, why in table.gaps(group).items())]
                        ).fillna(number(None))


def readable(cells: pd.DataFrame, profile: Profile) -> str:
    """Markdown: every group of a tidy table under its title."""
    return '\n\n'.join(f'**{group_title(group, profile)}**\n\n{as_markdown(wide(cells, group))}'
                       for group in cells.group.unique())


def as_markdown(frame: pd.DataFrame) -> str:
    """A table of texts as Markdown, its numbers as they are written."""
    return frame.to_markdown(index=False, disable_numparse=True)


def reference_label(table: Table) -> str:
    """How a table prints the line that its differences are taken to."""
    return table.label(ROWS[f'{table.groups[0]}-{table.reference}'])


# ---- one run ----------------------------------------------------------------------------------------------------

def overview(runs: Iterable[Run], store: Store) -> pd.DataFrame:
    """A line a run: what it trains, for how long, and where it stands."""
    def now(run: Run) -> str:
        found = store.state(run)
        return f'{found.name}{f" ({found.note})" if found.note else ""}'
    return pd.DataFrame([{'run': run.id, 'detector': detector(run), 'epochs': run.epochs,
                          'method': Path(run.row.method or 'none').name, 'now': now(run)} for run in runs])


def beside_paper(run: Run, record: dict[str, Any]) -> pd.DataFrame:
    """The 12 numbers of a run in percent, beside the paper's where a table has this row (and nothing is changed)."""
    tables = [table for table in TABLES.values() if run.row in table.rows() and not run.settings
              and (run.row.name != 'baseline' or table.name == 'table1')]
    lines = []
    for metric, ours in record['numbers'].items():
        printed = {table.number: paper_value(table.number, run.row.group.name, run.row.name, metric)
                   for table in tables}
        where = [number for number, value in printed.items() if value is not None]
        lines.append({'': metric, 'here': number(ours), 'paper': number(printed[where[0]] if where else None),
                      'Table': ' '.join(where) or '–'})
    return pd.DataFrame(lines).set_index('')


def behind(run: Run, store: Store) -> pd.DataFrame:
    """What is behind a run's numbers: settings, data, commit, device, time, folder. Errors: RunError if not done."""
    record, note = store.record(run), store.state(run).note
    return pd.Series({
        'settings': record['settings_hash'], 'data': record['data']['fingerprint'], 'commit': record['code']['commit'],
        'device': record['device'], 'training': minutes(record['train_s']), 'folder': store.run_folder(run).name,
        **({'versions': note} if note else {})}).to_frame('')


def check_numbers(runs: Iterable[Run], store: Store) -> None:
    """RunError where a number of a run does not follow, to the last digit, from its stored detections."""
    runs, wrong = list(runs), []
    for run in runs:
        recorded = store.record(run)['numbers']
        again = coco_numbers(store.reported(run), store.detections(run))
        wrong += [f'{run.id}: {metric} is {recorded.get(metric)} in its record, by its detections {value}'
                  for metric, value in again.items() if recorded.get(metric) != value]
    if wrong:
        raise RunError('\n'.join(wrong))
    log.info(f'{plural(len(runs), "run", "runs")}: every number follows from the stored detections')


# ---- words ------------------------------------------------------------------------------------------------------

# a Config is made with the classes of a data set; no word here depends on them
_ANY_DATA = Dataset('any', Path(), Path(), Path(), Path(), ('object',), '', ())


@functools.cache
def _trained(group: Group, profile: Profile, is_teacher: bool) -> ConfigDict:
    """The detector that is trained as student or teacher."""
    name = 'teacher' if is_teacher else 'baseline'
    return config(Run(Row(group, name, name), profile), _ANY_DATA).model


def detector(run: Run) -> str:
    """What a run trains, in words, from its Config: `RetinaNet, ResNet-18 (width 16)`."""
    group, is_teacher = run.row.group, run.row.is_teacher
    model = _trained(group, run.profile, is_teacher)
    name = group.teacher_label if is_teacher else group.student_label
    if 'mask_head' not in model.get('roi_head', {}):    # DEVIATION no-masks, see runs/config.py
        name = name.replace('Cascade Mask', 'Cascade')
    backbone = model.backbone
    size = backbone.get('depth') or backbone.get('arch')
    width = f' (width {backbone.base_channels})' if 'base_channels' in backbone else ''
    return f'{name}, {backbone.type}{f"-{size}" if isinstance(size, int | str) else ""}{width}'


def group_title(group: str, profile: str | Profile) -> str:
    """A group's heading: which student learns from which teacher."""
    student, teacher = (detector(Run.of(f'{group}-{name}', profile)) for name in ('baseline', 'teacher'))
    without = 'Mask' in find_group(group).teacher_label and 'Mask' not in teacher
    return f'{student}, taught by {teacher}{" without masks: the data have none" if without else ""}'


def version_notes(records: pd.DataFrame) -> list[str]:
    """Which of `Store.collect`'s runs were made with other versions of what decides numbers; none: []."""
    return [f'{plural(len(own), "run", "runs")} {note}: {", ".join(own.run)}.'
            for note, own in records.groupby('note', sort=False) if note]


def reading_notes(cells: pd.DataFrame, store: Store, records: pd.DataFrame) -> str:
    """Markdown: what these numbers can and cannot show, and what was found, in plain words.

    Args:
        records: `Store.collect` of the runs behind the cells.
    """
    table = table_numbered(cells.table.iloc[0])
    lines = [store.profile.can_show, explained(cells, len(coco_images(store.dataset.test_ann)))]
    of_map = cells[cells.metric == 'mAP'].set_index('row', drop=False)
    for group in cells.group.unique():
        name = find_group(group).student_label
        inherits = 'inherit' in set(records.arm[(records.group == group) & (records.row == 'amd-allmasked')])
        lines += [f'{name}: {line}' for line in _found(table, of_map[of_map.group == group], inherits)]
    if together := pooled(table, records):
        of_row = of_map.groupby(level=0).label.first()
        parts = [f'{of_row[row]}{f" over {of_row[over]}" if over else ""} {number(one.mean, "+.1f")} [{one.low:+.1f}, '
                 f'{one.high:+.1f}] ({one.verdict if one.verdict.startswith("not") else f"n = {one.n}, {one.verdict}"})'
                 for (row, over), one in together.items()]
        lines.append(f'all groups pooled, each with the same weight, {table.difference} in mAP: {"; ".join(parts)}.')
    lines += [*version_notes(records), assumptions(), *(f'Data: {note}.' for note in store.dataset.notes)]
    return '\n'.join(f'- {line}' for line in lines)


def _found(table: Table, rows: pd.DataFrame, inherits: bool) -> list[str]:
    """What one group of a table shows.

    Args:
        rows: its mAP cells by row.
        inherits: whether *everything masked* starts from the teacher's neck and head.
    """
    lines = []
    if table.reference == 'baseline' and 'baseline' in rows.index:
        baseline = rows.loc['baseline', 'ours']
        lines.append(f'the teacher is {number(rows.loc["teacher", "ours"] - baseline, "+.1f")} mAP from the baseline '
                     f'({number(baseline)}).' if 'teacher' in rows.index else f'baseline {number(baseline)} mAP.')
    labels = {name: rows.loc[name, 'label'] if name in rows.index else name for name in rows.reference if name}
    found = told(table, rows, labels)
    for name in dict.fromkeys(rows.reference):
        if name and name not in rows.index:
            found.append(f'*{name}* is not among the runs, so nothing is compared with it here.')
    if not found and table.reference not in rows.index:
        found.append(f'*{reference_label(table)}* is not among the runs, so nothing is compared with it here.')
    lines += found
    if table.reference != 'baseline' and {'amd-allmasked', 'baseline'} <= set(rows.index):
        gain = rows.loc['amd-allmasked', 'ours'] - rows.loc['baseline', 'ours']
        started = "a start from the teacher's neck and head, chance, and" if inherits else 'chance and'
        lines.append('*everything masked* is a control: the student gets no gradient from the distillation, so its '
                     f"difference from the baseline ({number(gain, '+.1f')} mAP) does not come from the teacher's "
                     f'features. What is left: {started} gradient clipping, which counts the gradients of the '
                     'generation block too.')
    return lines


# ---- files ------------------------------------------------------------------------------------------------------

_WORDS = {'alone': 'students that start alone', 'inherit': "students that start from the teacher's neck and head",
          'calibrated': 'weights by the calibrated factors'}
VARIANTS = {'_'.join(parts): ', '.join(_WORDS[part] for part in parts) for parts in (
    ('calibrated',), ('inherit',), ('inherit', 'calibrated'), ('alone',), ('alone', 'calibrated'))}


def write(cells: pd.DataFrame, notes: str, store: Store, variant: str = '') -> Path:
    """Write `<table>.csv` (every cell, full precision) and `.md` (for reading) into the store's folder; return the
    latter.

    Args:
        variant: of VARIANTS; the files are then called after it too, `<table>_<variant>.csv`.
    """
    table, profile = table_numbered(cells.table.iloc[0]), store.profile
    stem = f'{table.name}_{variant}' if variant else table.name
    means = 'gain in mAP over the baseline that starts alike' if table.reference == 'baseline' else (
        'difference in mAP to that row')
    write_csv(cells, store.folder / f'{stem}.csv')
    return write_markdown(store.folder / f'{stem}.md', [
        f'# Table {table.number}, profile `{profile.name}`' + (f': {VARIANTS[variant]}' if variant else ''),
        f'{table.title}. COCO numbers in percent; in brackets the paper\'s. *{table.difference}*: {means}, '
        'in brackets its 95 % interval.',
        readable(cells, profile), LIMITS, notes])


def write_csv(frame: pd.DataFrame, path: Path, index: bool = False) -> None:
    """Write a table of numbers; fractions to six decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, frame.to_csv(index=index, float_format='%.6f'))


def write_markdown(path: Path, parts: Iterable[str]) -> Path:
    """Write a page of these parts; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, '\n\n'.join(parts) + '\n')
    return path
