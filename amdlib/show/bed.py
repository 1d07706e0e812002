"""Whether the test bed can tell anything: what must hold before a difference between methods means something.

It reads the records that are there, of one detector pair, on the reported split and seeds; what is not there yet is
said as such. `checks` is the answer; the other tables are what it rests on.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amdlib.errors import SettingError
from amdlib.paper.pairs import find_group
from amdlib.paper.rows import find_row
from amdlib.runs.calibrate import FIRST_SEED
from amdlib.runs.recipe import own_settings
from amdlib.runs.run import Run, teacher_of
from amdlib.runs.store import Store
from amdlib.runs.watch import FEW_POSITIONS, HARDLY, MOST_CLIPPED, RATIO, SETTLED, baseline_of
from amdlib.show import coverage, features, seeds, tables, verdicts
from amdlib.words import number, some

OVER_BASELINE, OVER_INHERIT, LONGER = 8.0, 3.0, 2.0     # mAP: of the teacher, and by a quarter more steps
PLANNED_SEEDS = (3, 5, 8)
PAIRS = (('amd', 'mgd'), ('amd', 'amd-permuted'))       # beside each row over the one that starts alike
MEASURED_ON = 100                                       # test pictures, of the teacher's mask
UNKNOWN = 'not known yet'
KEYS = ('check', 'row', 'settings', 'over', 'level')    # columns that say what a line is about


class Bed:
    """The test bed of one detector pair; in a notebook its checks.

    Args:
        settings: of every run, as for a table; runs with further ones have lines of their own.
        masks: look at the teacher's masks too, which takes its detector.
    """

    def __init__(self, store: Store, group: str, settings: Mapping[str, Any] | None = None, masks: bool = True) -> None:
        self.store, self.group, self.settings, self.with_masks = store, find_group(group), dict(settings or {}), masks

    # ---- the runs that are there

    @functools.cached_property
    def _found(self) -> tuple[list[tuple[Run, dict[str, Any]]], list[str]]:
        """Runs of the group with a record that counts, and those whose record does not, why in brackets."""
        done, other = [], []
        for file in self.store.record_files(f'{self.group.name}-*'):
            run = self.store.run_of(file)
            if run is None:
                other.append(f'{file.parent.name} (not one of the rows and settings of now)')
                continue
            state = self.store.state(run)
            if state.name == 'done':
                done.append((run, state.record))
            else:
                other.append(f'{file.parent.name} ({state.name})')
        return done, other

    @functools.cached_property
    def students(self) -> list[tuple[Run, dict[str, Any]]]:
        """Students on the reported split and seeds."""
        return [(run, record) for run, record in self._found[0] if not run.row.is_teacher
                and run.recipe.split == 'test' and run.seed < FIRST_SEED]

    def _run(self, name: str, **more: Any) -> Run:
        """A row with the bed's settings, and more."""
        row = find_row(f'{self.group.name}-{name}')
        return Run.of(row, self.store.profile, 0, {**own_settings(row, self.settings), **more})

    def _own(self, name: str, **more: Any) -> list[tuple[Run, dict[str, Any]]]:
        """The runs of a row with the bed's settings, and more."""
        wanted = self._run(name, **more).settings
        return [(run, record) for run, record in self.students if run.row.name == name and run.settings == wanted]

    @functools.cached_property
    def teacher(self) -> tuple[Run, dict[str, Any] | None]:
        """The teacher of the bed's students, and its record where it is done."""
        run = teacher_of(self.group, self.store.profile, self.settings)
        found = self.store.state(run)
        return run, found.record if found.name == 'done' else None

    @property
    def _teacher_is_here(self) -> bool:
        """Or its record alone was kept."""
        return self.store.weights(self.teacher[0]).is_file()

    # ---- the tables

    @functools.cached_property
    def standing(self) -> pd.DataFrame:
        """Teacher, baseline and inherit: seeds, mAP and its spread, and the teacher's lead."""
        run, record = self.teacher
        taught = _map_of([record]) if record else []
        lines = [_line({'row': 'teacher', 'settings': _text(run)}, taught)]
        for name in ('baseline', 'inherit'):
            own = _map_of(record for _, record in self._own(name))
            lead = taught[0] - np.mean(own) if taught and own else None
            lines.append({**_line({'row': name, 'settings': ''}, own), 'teacher_lead': lead})
        return pd.DataFrame(lines)

    @functools.cached_property
    def spread(self) -> pd.DataFrame:
        """A line a row, settings and comparison: seeds, mAP and its spread; the difference paired by seed, its spread,
        and the smallest true one that its seeds, or 3, 5 and 8, show with 80 % power."""
        lines = []
        for (name, text), own in self._groups().items():
            first = own[0][0]
            alike = 'inherit' if first.arm == 'inherit' and first.row.method else 'baseline'
            for over in [alike, *(other for row, other in PAIRS if row == name)]:
                line = _line({'row': name, 'settings': text, 'over': '' if name == over else over},
                             _map_of(record for _, record in own))
                lines.append({**line, **({} if name == over else self._paired(own, over))})
        return pd.DataFrame(lines)

    def _paired(self, own: list[tuple[Run, dict]], over: str) -> dict[str, Any]:
        row, first = find_row(f'{self.group.name}-{over}'), own[0][0]
        settings = first.settings if row.method else baseline_of(first, over).settings
        other = [(run, record) for run, record in self.students if run.row.name == over and run.settings == settings]
        if not other:
            return {}
        records = self.store.collect([run for run, _ in (*own, *other)])
        pairs = verdicts.pair_up(records, self.group.name, own[0][0].row.name, over)
        values = [value for value in pairs.differences('mAP') if value == value]
        if not values:
            return {}
        found = seeds.compare(values)
        shown = {f'visible_{n}': seeds.visible(found.sd, n) for n in PLANNED_SEEDS
                 } if found.n > 1 and found.sd > 0 else {}
        return {'pairs': found.n, 'difference': found.mean, 'sd_difference': found.sd, 'visible': found.visible,
                **shown}

    @functools.cached_property
    def training(self) -> pd.DataFrame:
        """A line a row and settings: clipped updates, distillation over detection in loss and in gradient (medians
        after step 100, means over seeds), both at the beginning, middle and end, and how many warnings there were."""
        lines = []
        for (name, text), own in self._groups().items():
            beds = [record['bed'] for _, record in own if record.get('bed')]
            line = {'row': name, 'settings': text, 'seeds': len(beds)}
            for key in ('clipped_share', 'ratio_median', 'gradient_ratio_median'):
                line[key] = _mean(bed[key] for bed in beds)
            for key in ('ratio', 'gradient_ratio'):
                for when, part in (('begin', 0), ('middle', 5), ('end', -1)):
                    line[f'{key}_{when}'] = _mean(bed['over_time'][part][key] for bed in beds)
            lines.append({**line, 'warnings': sum(len(bed['warnings']) for bed in beds)})
        return pd.DataFrame(lines)

    @functools.cached_property
    def masked(self) -> pd.DataFrame:
        """A line a row, settings and level that has a mask: positions, the share masked in training, and the level's
        share of the total loss."""
        lines = []
        for (name, text), own in self._groups().items():
            beds = [record['bed'] for _, record in own if record.get('bed')]
            for level in sorted({level for bed in beds for level in bed['masked']}):
                lines.append({'row': name, 'settings': text, 'level': int(level),
                              'positions': _mean(bed['positions'].get(level) for bed in beds),
                              'masked_share': _mean(bed['masked'].get(level) for bed in beds),
                              'share_of_loss': _mean(bed['share'].get(level) for bed in beds)})
        return pd.DataFrame(lines)

    @functools.cached_property
    def lift(self) -> pd.DataFrame | None:
        """What the teacher's own mask covers, level by level ('all' pools them): on test pictures, at the bed's scale
        and AMD's T and phi. None where the teacher, or the scale of its features, is not there yet."""
        run, record = self.teacher
        student = self._run('amd')
        if record is None or not self._teacher_is_here or student.reference_rms is not None and not record.get(
                'feature_rms'):
            return None
        pictures = features.pictures(self.store, count=MEASURED_ON, group=self.group.name)
        found = features.magnitudes(features.load_detector(run, self.store), pictures, student.levels,
                                    features.scales(run, self.store, student))
        return coverage.mask_coverage([g[:, None] for g in found], pictures, [student.value('phi')],
                                      student.value('temperature'), student.levels)

    def _groups(self) -> dict[tuple[str, str], list[tuple[Run, dict[str, Any]]]]:
        """Students by row and settings."""
        found: dict[tuple[str, str], list] = {}
        for run, record in self.students:
            found.setdefault((run.row.name, _text(run)), []).append((run, record))
        return found

    # ---- the answer

    @functools.cached_property
    def checks(self) -> pd.DataFrame:
        """What must hold: check, found (in words), wanted, holds ('yes', 'no', 'not known yet')."""
        leads = self.standing.set_index('row').get('teacher_lead', pd.Series(dtype=float))
        full = [record['bed'] for name in self._methods() for _, record in self._own(name) if record.get('bed')]
        every = full + [record['bed'] for _, record in self._own('baseline') if record.get('bed')]
        clipped = [bed['clipped_share'] for bed in every if bed['clipped_share'] is not None]
        ratios = [bed['ratio_median'] for bed in full if bed['ratio_median'] is not None]
        longer = self._longer()
        levels = {(level, share) for _, record in self._own('amd') if record.get('bed')
                  for level, share in record['bed']['masked'].items()
                  if record['bed']['positions'].get(level, 0) >= FEW_POSITIONS}
        whole = sorted({level for level, share in levels if not HARDLY < share < 1 - HARDLY})
        return pd.DataFrame([
            _check('the schedule is long enough: the baseline with a quarter more steps',
                   longer, f'less than {LONGER:g} mAP away', lambda value: abs(value) < LONGER, '+.1f'),
            _check('the teacher over the baseline', leads.get('baseline'), f'{OVER_BASELINE:g} mAP or more',
                   lambda value: value >= OVER_BASELINE, '+.1f'),
            _check('the teacher over inherit', leads.get('inherit'), f'{OVER_INHERIT:g} mAP or more',
                   lambda value: value >= OVER_INHERIT, '+.1f'),
            _check('clipped updates, the run with most', max(clipped, default=None), f'{MOST_CLIPPED:.0%} or fewer',
                   lambda value: value <= MOST_CLIPPED, '.0%'),
            _check('distillation over detection, the run with least', min(ratios, default=None),
                   f'{RATIO[0]:g} or more', lambda value: value >= RATIO[0], '.2g'),
            _check('distillation over detection, the run with most', max(ratios, default=None),
                   f'{RATIO[1]:g} or less', lambda value: value <= RATIO[1], '.2g'),
            _check(f'levels of {FEW_POSITIONS} positions or more that AMD masks wholly or not at all',
                   len(whole) if levels else None, 'none', lambda value: value == 0, '.0f'),
            _check('the smallest difference between AMD and MGD that the seeds show', self._visible(), '',
                   None, '.2f')])

    def _methods(self) -> list[str]:
        """Rows of methods in full."""
        return list(dict.fromkeys(run.row.name for run, _ in self.students if run.row.name == run.row.method))

    def _longer(self) -> float | None:
        """What a quarter more steps brings the baseline, over seeds that have both."""
        usual = {run.seed: record['numbers']['mAP'] for run, record in self._own('baseline')}
        epochs = math.ceil(1.25 * self._run('baseline').epochs)
        more = [record['numbers']['mAP'] - usual[run.seed] for run, record in self._own('baseline', epochs=epochs)
                if run.seed in usual]
        return _mean(more)

    def _visible(self) -> float | None:
        own = self._own('amd')
        found = self._paired(own, 'mgd').get('visible') if own else None
        return None if found is None or np.isnan(found) else found

    # ---- for reading

    @property
    def title(self) -> str:
        return tables.group_title(self.group.name, self.store.profile)

    def parts(self) -> dict[str, tuple[pd.DataFrame | None, str]]:
        """Every table by name, and what is said where it is empty."""
        run, record = self.teacher
        return {'checks': (self.checks, ''), 'standing': (self.standing, ''),
                'spread': (self.spread, 'No student is done yet.'),
                'training': (self.training, 'No student is done yet.'),
                'masked': (self.masked, 'No student with a mask is done yet.'),
                'lift': (self.lift if self.with_masks else None, 'Not looked at.' if not self.with_masks else
                         f'Not known here: {run.id} was not made here, its record alone was kept.'
                         if record and not self._teacher_is_here else
                         "Not known yet: the teacher's record does not hold its features' RMS." if record else
                         f'Not known yet: {run.id} is {self.store.state(run)}.')}

    def markdown(self) -> str:
        """All of it."""
        told = [f'## {self.title}', f'**{self.verdict}**']
        for name, (table, empty) in self.parts().items():
            told += [f'### {TITLES[name]}',
                     empty if table is None or table.empty else tables.as_markdown(_shown(table))]
        if left := self._found[1]:
            told.append(f'Left out: {some(left, limit=8)}.')
        return '\n\n'.join(told)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        by = {answer: list(self.checks.check[self.checks.holds == answer]) for answer in ('no', UNKNOWN)}
        if len(by[UNKNOWN]) == len(self.checks):
            return 'Nothing is known yet.'
        if by['no']:
            return f'Differences here mean little yet: {"; ".join(by["no"])}.'
        return f'Not known yet: {"; ".join(by[UNKNOWN])}.' if by[UNKNOWN] else 'This bed can be read.'

    def tidy(self) -> pd.DataFrame:
        """A line a number: group, part, what it is about (KEYS), quantity, value."""
        lines = []
        for name, (table, _) in self.parts().items():
            for line in ([] if table is None else table.to_dict('records')):
                about = {key: line.pop(key, '') for key in KEYS}
                lines += [{'group': self.group.name, 'part': name, **about, 'quantity': quantity, 'value': value}
                          for quantity, value in line.items()]
        return pd.DataFrame(lines, columns=['group', 'part', *KEYS, 'quantity', 'value'])

    def _repr_html_(self) -> str:
        return f'<p><b>{self.title}</b>: {self.verdict}</p>{_shown(self.checks).to_html(index=False)}'


TITLES = {'checks': 'What must hold', 'standing': 'Teacher, baseline, inherit (mAP)',
          'spread': 'Spread over seeds, and the smallest difference that seeds show with 80 % power (mAP)',
          'training': f'While they train (medians after step {SETTLED}; begin, middle and end of the run)',
          'masked': 'Masked in training, level by level',
          'lift': f"The teacher's mask on {MEASURED_ON} test pictures: share in boxes over that of chance"}


def write(beds: Iterable[Bed]) -> Path:
    """Write bed.md and bed.csv of several pairs into their store's folder; return the former."""
    beds = list(beds)
    if not beds:
        raise SettingError('no group to write about')
    store = beds[0].store
    tables.write_csv(pd.concat([bed.tidy() for bed in beds], ignore_index=True), store.folder / 'bed.csv')
    return tables.write_markdown(store.folder / 'bed.md', [
        f'# Can this bed tell anything? Profile `{store.profile.name}`', *(bed.markdown() for bed in beds)])


def _line(about: dict[str, Any], values: list[float]) -> dict[str, Any]:
    return {**about, 'seeds': len(values), 'mAP': _mean(values), 'sd': float(np.std(values, ddof=1)) if len(values) > 1
            else None}


def _check(what: str, found: float | None, wanted: str, holds: Any, form: str) -> dict[str, Any]:
    known = found is not None and found == found
    return {'check': what, 'found': number(found, form) if known else UNKNOWN, 'wanted': wanted,
            'holds': UNKNOWN if not known else '' if holds is None else 'yes' if holds(found) else 'no'}


def _map_of(records: Iterable[Mapping[str, Any]]) -> list[float]:
    return [record['numbers']['mAP'] for record in records if record['numbers']['mAP'] is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _text(run: Run) -> str:
    return ' '.join(f'{key}={value}' for key, value in run.settings.items())


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: numbers short, names in words, columns without a value left out."""
    shown = table.dropna(axis=1, how='all')
    shown = shown.loc[:, [column for column in shown if not (shown[column] == '').all()]]
    texts = {column: [_cell(column, value) for value in shown[column]] for column in shown}
    return pd.DataFrame({column.replace('_', ' '): values for column, values in texts.items()})


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return number(None)
    if 'share' in column:
        return f'{value:.1%}' if column != 'lift' else f'{value:.2f}'
    whole = column in ('seeds', 'pairs', 'level', 'positions', 'masked', 'warnings', 'stride_px')
    return f'{value:.0f}' if whole else f'{value:.2f}' if column != 'mAP' else f'{value:.1f}'
