"""Two results folders side by side: what two machines, versions or commits made of the same runs."""
from __future__ import annotations

import functools
import html
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amdlib.errors import RunError
from amdlib.evaluation import METRICS
from amdlib.runs.record import read_record
from amdlib.runs.store import Store, told_machine
from amdlib.show.tables import as_markdown
from amdlib.words import number, plural, some

# what may explain a difference: name -> how a record tells it
CAUSES = {'settings': lambda record: record['settings_hash'], 'data': lambda record: record['data']['fingerprint'],
          'teacher': lambda record: (record['teacher'] or {}).get('weights_sha256'),
          'machine': told_machine, 'threads': lambda record: record.get('threads'),
          'versions': lambda record: record['versions'], 'code': lambda record: record['code_fingerprint']}


class TwoFolders:
    """The runs that two stores share, number by number; in a notebook a line a run and what it means.

    Kept records count where a run does not lie there. Read at its first use.
    Errors: RunError where they share no run.
    """

    def __init__(self, store: Store, other: Store) -> None:
        self.stores = store.with_kept(), other.with_kept()

    @functools.cached_property
    def runs(self) -> pd.DataFrame:
        """By run: mAP of both, difference, largest difference in any of the 12 numbers (`most`), whether the weights
        are the same file, and what else differs between the records (`other`, see CAUSES)."""
        first, second = map(_records, self.stores)
        shared = [run for run in first if run in second]
        if not shared:
            raise RunError(f'{self.stores[0].folder} and {self.stores[1].folder} share no run: '
                           f'{some(sorted(first)) or "none"}; {some(sorted(second)) or "none"}')
        lines = []
        for run in shared:
            both = first[run], second[run]
            gaps = [abs(a - b) for a, b in zip(*([record['numbers'][name] for name in METRICS] for record in both),
                                               strict=True) if a is not None and b is not None]
            values = [record['numbers']['mAP'] for record in both]
            lines.append({
                'run': run, 'mAP A': values[0], 'mAP B': values[1],
                'difference': np.nan if None in values else values[1] - values[0], 'most': max(gaps, default=0.0),
                'same weights file': both[0]['weights_sha256'] == both[1]['weights_sha256'],
                'other': ', '.join(name for name, of in CAUSES.items() if of(both[0]) != of(both[1]))})
        return pd.DataFrame(lines)

    @property
    def notes(self) -> list[str]:
        """What was found, in words: for each set of causes how many runs are alike, and how far apart the others."""
        only = [sorted(set(_records(one)) - set(self.runs.run)) for one in self.stores]
        lines = []
        for causes, own in self.runs.groupby('other', sort=False):
            alike = int((own.most == 0).sum())
            told = f'{plural(len(own), "run", "runs")}, {f"other {causes}" if causes else "nothing else different"}: '
            told += f'{alike} alike to the last digit' if alike == len(own) else (
                f'{alike} alike to the last digit; mAP moved by {number(own.difference.abs().max(), ".2f")} at most '
                f'({own.run[own.difference.abs().idxmax()]}), {number(own.difference.abs().mean(), ".2f")} on average')
            lines.append(f'{told}.')
        if not self.runs[(self.runs.other == '') & (self.runs.most > 0)].empty:
            lines.append('Runs that nothing in their records tells apart should be alike: one of them is not '
                         'reproducible.')
        return lines + [f'Only in {name}: {some(runs)}.' for name, runs in zip('AB', only, strict=True) if runs]

    def readable(self) -> pd.DataFrame:
        """The table as texts."""
        shown = self.runs.copy()
        for column in ('mAP A', 'mAP B'):
            shown[column] = shown[column].map(lambda value: number(value, '.2f'))
        shown['difference'] = shown.difference.map(lambda value: number(value, '+.2f'))
        shown['most'] = shown.most.map(lambda value: number(value, '.2f'))
        shown['same weights file'] = shown['same weights file'].map({True: 'yes', False: 'no'})
        return shown.rename(columns={'most': 'most in any number', 'other': 'also different'})

    def __repr__(self) -> str:
        return '\n\n'.join([as_markdown(self.readable()), '\n'.join(f'- {line}' for line in self.notes)])

    def _repr_html_(self) -> str:
        return self.readable().to_html(index=False) + ''.join(f'<p>{html.escape(line)}</p>' for line in self.notes)


def compare_folders(first: Path, second: Path, store: Store) -> TwoFolders:
    """Two results folders (such as `results/`) at the profile and data set of a store.

    Errors: RunError for a folder that holds no runs of it.
    """
    both = [replace(store, results=folder.absolute()) for folder in (first, second)]
    for one in both:
        if not one.with_kept().record_files():
            raise RunError(f'{one.folder}: no records in it; expected a results folder with runs of the profile '
                           f'{store.profile.name}')
    return TwoFolders(*both)


def _records(store: Store) -> dict[str, Mapping[str, Any]]:
    """Records by run; those that cannot be read are left out."""
    found = {}
    for file in store.record_files():
        try:
            record = read_record(file)
            record['numbers']['mAP'], record['weights_sha256'], [of(record) for of in CAUSES.values()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        found[file.parent.name] = record
    return found
