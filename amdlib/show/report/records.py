"""The runs that the report knows, from their records; and whether a table's numbers are what these say."""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from amdlib.errors import KitError, RunError
from amdlib.files import digest, read_csv
from amdlib.runs import evidence, fingerprints
from amdlib.runs.record import read_record
from amdlib.runs.run import Run
from amdlib.runs.store import DETECTIONS, KEPT, KEPT_DETECTIONS, RECORD, State, Store
from amdlib.words import log


@dataclass(eq=False)
class Entry:
    """A run as the report knows it: its record, or why there is none.

    Args:
        folder: that its record lies in. run: None where no row or setting of today makes it.
        used: what names it, tables and figures by their stem.
    """
    id: str
    record: dict[str, Any] | None = None
    unreadable: str = ''
    folder: Path | None = None
    run: Run | None = None
    disagrees: str = ''
    note: str = ''
    used: list[str] = field(default_factory=list)
    state: State | None = None      # where it counts for verdicts; None for records of an older format

    @property
    def elsewhere(self) -> bool:
        """Whether it was not made here and its record was kept."""
        return bool(self.folder) and self.folder.parent.name == KEPT

    @property
    def page(self) -> str:
        """Its page, from the site's root; '' where there is none."""
        name = self.id if len(self.id.encode()) < 240 else digest(self.id)     # as long as a file's name may be
        return f'runs/{name}.html' if self.record else ''

    @property
    def counts(self) -> bool:
        return self.state is not None and self.state.name == 'done'

    @property
    def split(self) -> str:
        """That it was evaluated on."""
        return 'val' if self.record['settings'].get('split') == 'val' else 'test'

    @functools.cached_property
    def detections_file(self) -> Path | None:
        """Its detections, where they lie here and are those of its record."""
        files = [self.folder / name for name in (DETECTIONS, KEPT_DETECTIONS)] if self.folder else []
        return None if self.disagrees else next((file for file in files if file.is_file()), None)


def read_entries(store: Store, known: Iterable[Run] = ()) -> dict[str, Entry]:
    """Every run that has a record here, kept ones too, by its id; one that cannot be read says why.

    Args:
        known: runs of a study, of whose pair no record says enough.
    """
    store, entries, by_id = store.with_kept(), {}, {run.id: run for run in known}
    for file in store.record_files():
        entry = entries[file.parent.name] = Entry(file.parent.name, folder=file.parent)
        try:
            record = read_record(file, whole=True)
            entry.disagrees = '; '.join(evidence.disagreements(record, file.parent))
            entry.note = fingerprints.other_versions(record['versions'])
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:     # of another kind
            entry.unreadable = str(error)
            continue
        entry.record = record
        with contextlib.suppress(KitError):     # of a row that is none by now
            entry.run = by_id.get(entry.id) or store.run_of(file)
        if entry.run and 'code_fingerprint' in record:
            entry.state = store.state(entry.run)
    return entries


def mark_used(entries: dict[str, Entry], named: Mapping[str, Iterable[str]]) -> list[Entry]:
    """The runs behind tables and figures in their order, then the others that lie there; each knows what names it."""
    ordered: dict[str, Entry] = {}
    for stem, runs in named.items():
        for run in runs:
            entry = ordered.setdefault(run, entries.get(run) or Entry(run, unreadable=f'there is no {RECORD}'))
            entry.used.append(stem)
    return list({**ordered, **{run: entry for run, entry in entries.items() if run not in ordered}}.values())


# ---- a table's numbers ------------------------------------------------------------------------------------------

def read_cells(file: Path, columns: set[str]) -> tuple[pd.DataFrame | None, str]:
    """A table's cells, and why there are none."""
    if not file.is_file():
        return None, 'Not made yet'
    try:
        cells = pd.read_csv(file, dtype=dict.fromkeys(('run', 'runs', 'settings_hash', 'data', 'commit'), str))
    except ValueError as error:     # pandas' errors of parsing are ValueErrors
        return None, f'{file.name} cannot be read ({error})'
    cells = cells if 'runs' in cells else cells.rename(columns={'run': 'runs'})
    if missing := columns - set(cells.columns):
        return None, f'{file.name} has no column {", ".join(sorted(missing))}'
    return cells, ''


def lines_of(file: Path, kinds: Mapping[str, type], **how: Any) -> list[dict[str, Any]]:
    """A csv's lines; none where it is not there, or cannot be read, which is said.

    Args:
        kinds: of the columns that it must have.
        how: pandas' own words.
    """
    try:
        return read_csv(file, kinds, dtype=dict(kinds), **how).to_dict('records') if file.is_file() else []
    except RunError as error:
        log.info(f'left out: {error}')
        return []


def runs_of(cells: pd.DataFrame) -> list[str]:
    """The runs behind cells, each once."""
    return list(dict.fromkeys(run for text in cells.runs.dropna() for run in text.split()))


def problem(cell: Any, entries: Mapping[str, Entry]) -> str:
    """Where a cell of a table is not what the records of its runs say: why; otherwise ''."""
    runs = cell.runs.split()
    if gone := [run for run in runs if run not in entries or entries[run].unreadable]:
        return f'no readable record of {", ".join(gone)}'
    behind = [entries[run].record for run in runs]
    if wrong := [f'of {run} {entries[run].disagrees}' for run in runs if entries[run].disagrees]:
        return '; '.join(wrong)
    for name, now in (('settings_hash', {record['settings_hash'] for record in behind}),
                      ('data', {record['data']['fingerprint'] for record in behind})):
        if set(getattr(cell, name, ' '.join(now)).split()) != now:
            return f'its run was made with other {name.partition("_")[0]}: the table is older'
    if all(getattr(cell, 'metric', None) in record['numbers'] for record in behind):
        numbers = pd.Series([record['numbers'][cell.metric] for record in behind], dtype=float)
        for name, column, now in (('value', 'ours', numbers.mean()), ('sd', 'sd', numbers.std())):
            if differs(told := getattr(cell, column, now), now):
                return f'the {name} is {told:.6f} here, by the records {now:.6f}'
    return ''


def differs(told: float, now: float) -> bool:
    """Whether a number of a file, which has six decimals, is another than the records make it."""
    return pd.isna(told) != pd.isna(now) or abs(told - now) > 1e-5


def machines(entries: Iterable[Entry]) -> dict[str, int]:
    """How many of these runs each machine made."""
    found: dict[str, int] = {}
    for entry in entries:
        own = entry.record.get('machine')
        name = ', '.join([*map(str, own.values() if isinstance(own, dict) else ()),
                          *([] if entry.record['device'] == 'CPU' and own else [entry.record['device']])])
        found[name] = found.get(name, 0) + 1
    return found
