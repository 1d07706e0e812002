"""Recompute what is claimed: every number of a record from its detections and the ground truth, the hashes of weights,
teacher and data from the files, every table from the records of its runs.

Each claim ends as `RECOMPUTED`, as `NOT_HERE` (what it would take is not on this machine, so nothing is said of it) or
as `DISAGREES`, with file, field and both values. Whether a run would be made otherwise by now (`Store.state`) is not
asked: that is about the future, this is about what was recorded.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from amdlib.datasets import checks
from amdlib.errors import KitError, RunError
from amdlib.evaluation import coco_numbers
from amdlib.files import read_csv, read_json, sha256
from amdlib.paper.tables import TABLES, find_table, table_numbered
from amdlib.runs import calibrate, evidence
from amdlib.runs.record import read_record
from amdlib.runs.run import Run
from amdlib.runs.store import DETECTIONS, KEPT, KEPT_DETECTIONS, WEIGHTS, Store, line_of, record_files
from amdlib.show import tables
from amdlib.show.significance import Plan
from amdlib.show.stats import Matches, paired
from amdlib.words import log, plural, some

RECOMPUTED, NOT_HERE, DISAGREES = 'recomputed', 'evidence not here', 'disagrees'
DECIMALS = 6        # of the fractions in a table's csv
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError)      # what is no detections
PICTURED = ('fig1.csv', 'fig1_levels.csv', 'fig3.csv', 'mask_coverage.csv', 'bed.csv')     # not from records alone


@dataclass(frozen=True)
class Finding:
    """What came of one claim, or of several alike: `count` of them."""
    file: str           # below the results' folder
    field: str
    state: str          # RECOMPUTED, NOT_HERE or DISAGREES
    told: str = ''      # both values, or what is not here
    count: int = 1

    def __str__(self) -> str:
        return f'{self.file}: {self.field}: {self.state}{f": {self.told}" if self.told else ""}'


def verify(store: Store, runs: Iterable[str] = (), names: Iterable[str] = (), committed: bool = False,
           jobs: int = 1) -> list[Finding]:
    """Verify runs and tables; nothing asked for: all that lies in the store's folder.

    Args:
        runs: ids of runs.
        names: of tables, whose runs are verified too.
        committed: kept records and tables alone, though runs lie here.
        jobs: processes that recompute numbers.
    Errors: RunError for a run or a table that is not here; SettingError for an unknown table.
    """
    folder, every = store.folder, {}
    for place in (KEPT, *([] if committed else ['runs'])):      # a run that lies here counts, not its kept record
        every |= record_files(folder / place)
    records = {run: _record(file) for run, file in every.items()}
    csvs = {find_table(name).name: [
        file for stem in (name, *(f'{name}_{variant}' for variant in tables.VARIANTS))
        if (file := folder / f'{stem}.csv').is_file()] for name in names or TABLES}
    wanted = list(runs)
    for name in names:
        if not csvs[name]:
            raise RunError(f'{folder}: no {name}.csv here; make it with make reproduce-{name}')
        wanted += [run for file in csvs[name] for text in read_csv(file, ('runs',)).runs for run in text.split()]
    if unknown := [run for run in runs if run not in every]:
        raise RunError(f'{unknown[0]}: no record in {folder}; here are {some(sorted(every)) or "none"}')
    chosen = list(dict.fromkeys(wanted)) if wanted or names else sorted(every)
    found = [_data(store), *_runs([run for run in chosen if run in every], every, records, store, jobs)]
    if names or not runs:
        found += [finding for files in csvs.values() for file in files
                  for finding in _of_a_file(file.name, _table(file, records, store))]
    if not names and not runs:
        for name, claims in ((calibrate.FILE, _calibration(store, records)), ('fig4.csv', _sweep(store, records)),
                             ('significance.csv', _planned(store)),
                             *((name, _pictured(folder / name)) for name in PICTURED if (folder / name).is_file())):
            found += _of_a_file(name, claims)
    return found


def lines(findings: Iterable[Finding]) -> list[str]:
    """What disagrees, a line each; then what could not be recomputed, alike ones together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for one in findings:
        if one.state == NOT_HERE:
            alike.setdefault((one.field, one.told), []).append(one.file)
    return [*(str(one) for one in findings if one.state == DISAGREES),
            *(f'{NOT_HERE}: {told}, for {field} of {some(files)}' for (field, told), files in alike.items())]


def told(findings: Iterable[Finding]) -> str:
    """In a line: how many claims were recomputed, how many could not be, how many disagree."""
    counts = {state: sum(one.count for one in findings if one.state == state)
              for state in (RECOMPUTED, NOT_HERE, DISAGREES)}
    return (f'{counts[RECOMPUTED]} recomputed, {counts[NOT_HERE]} not: their evidence is not here, '
            f'{counts[DISAGREES]} disagree')


def _record(file: Path) -> dict[str, Any] | str:
    """A record, or why it cannot be read."""
    try:
        record = read_record(file)
        if 'numbers' not in record:
            raise ValueError('it holds no numbers')
        return record
    except (OSError, ValueError) as error:
        return f'{error}'


def _data(store: Store) -> Finding:
    """The fingerprint of the data set, from all its files."""
    own, file = store.dataset, f'data set {store.dataset.name}'
    val = (own.val_ann, own.val_images) if own.val_ann else ()
    now = checks.examine(own.train_ann, own.train_images, own.test_ann, own.test_images, *val,
                         negatives=own.negatives)['fingerprint']
    return Finding(file, 'fingerprint', RECOMPUTED) if now == own.fingerprint else Finding(
        file, 'fingerprint', DISAGREES, f'its manifest says {own.fingerprint}, its files {now}')


# ---- runs -------------------------------------------------------------------------------------------------------

def _runs(runs: list[str], every: Mapping[str, Path], records: Mapping[str, Any], store: Store,
          jobs: int) -> Iterator[Finding]:
    """Number by number, and hash by hash; progress is told."""
    detections = {run: file for run in runs if (file := _detections_of(every[run].parent))}
    to_do = [run for run in detections if isinstance(records[run], dict)
             and records[run].get('data', {}).get('fingerprint') == store.dataset.fingerprint]
    again: dict[str, dict[str, float | None] | str] = {}
    several = jobs > 1 and len(to_do) > 1
    with ProcessPoolExecutor(min(jobs, len(to_do))) if several else contextlib.nullcontext() as pool:
        words = [(str(_reported(records[run], store)), str(detections[run])) for run in to_do]
        if to_do:
            log.info(f'from detections: the numbers of {plural(len(to_do), "run", "runs")}')
        results = map(_numbers, words) if pool is None else pool.map(_numbers, words)
        for done, (run, result) in enumerate(zip(to_do, results, strict=True), 1):
            again[run] = result
            log.info(f'[{done}/{len(to_do)}] {run}: {"numbers recomputed" if isinstance(result, dict) else result}')
    for run in runs:
        file = every[run].relative_to(store.folder).as_posix()
        if isinstance(records[run], str):
            yield Finding(file, 'record', DISAGREES, records[run])
            continue
        yield from _numbers_of(file, records[run], again.get(run), detections.get(run), store)
        yield from _hashes_of(file, run, every[run].parent, records)


def _detections_of(folder: Path) -> Path | None:
    return next((file for name in (DETECTIONS, KEPT_DETECTIONS) if (file := folder / name).is_file()), None)


def _reported(record: Mapping[str, Any], store: Store) -> Path:
    """Annotations of the split that a record is of."""
    return store.annotations(record.get('settings', {}).get('split', 'test'))


def _numbers(words: tuple[str, str]) -> dict[str, float | None] | str:
    """The 12 numbers of a file of detections, or why there are none."""
    truth, detections = words
    try:
        return coco_numbers(truth, read_json(detections))
    except UNREADABLE as error:
        return f'{Path(detections).name} cannot be evaluated: {type(error).__name__}: {error}'


def _numbers_of(file: str, record: Mapping[str, Any], again: dict | str | None, detections: Path | None,
                store: Store) -> Iterator[Finding]:
    recorded = record['numbers']
    if 'numbers_digest' in record and evidence.numbers_digest(recorded) != record['numbers_digest']:
        yield Finding(file, 'numbers', DISAGREES, 'they are not those of numbers_digest')
    if again is None:
        data = record.get('data', {}).get('fingerprint')
        yield Finding(file, 'numbers', NOT_HERE, 'detections' if detections is None else
                      f'data {data}, here are {store.dataset.fingerprint}', len(recorded))
    elif isinstance(again, str):
        yield Finding(file, 'numbers', DISAGREES, again, len(recorded))
    else:
        wrong = [name for name in {**recorded, **again} if recorded.get(name) != again.get(name)]
        yield Finding(file, 'numbers', RECOMPUTED, count=len(again) - len(wrong))
        for name in wrong:
            yield Finding(file, name, DISAGREES,
                          f'recorded {recorded.get(name)}, by {detections.name} {again.get(name)}')


def _hashes_of(file: str, run: str, folder: Path, records: Mapping[str, Any]) -> Iterator[Finding]:
    record = records[run]
    for field, name in (('weights_sha256', WEIGHTS), ('detections_sha256', DETECTIONS)):
        if field in record:
            yield _hash(file, field, record[field], folder / name)
    if taught := record.get('teacher'):
        name, learned_from = taught.get('id'), taught.get('weights_sha256')
        teacher = records.get(name)
        if not isinstance(teacher, dict):
            yield Finding(file, 'teacher', NOT_HERE, f'a record of {name}')
        elif teacher.get('weights_sha256') != learned_from:
            yield Finding(file, 'teacher', DISAGREES, f'it learned from {str(learned_from)[:12]}, '
                          f'{name} is {str(teacher.get("weights_sha256"))[:12]}')
        else:
            yield Finding(file, 'teacher', RECOMPUTED)


def _hash(file: str, field: str, recorded: str, of: Path) -> Finding:
    if not of.is_file():
        return Finding(file, field, NOT_HERE, of.name)
    now = sha256(of)
    return Finding(file, field, RECOMPUTED) if now == recorded else Finding(
        file, field, DISAGREES, f'recorded {recorded[:12]}, {of.name} has {now[:12]}')


def _of_a_file(name: str, claims: Iterator[Finding]) -> Iterator[Finding]:
    """What a csv claims, or that it is none of its kind."""
    try:
        yield from claims
    except (KitError, LookupError, *UNREADABLE) as error:
        yield Finding(name, 'file', DISAGREES, f'it cannot be read: {type(error).__name__}: {error}')


# ---- tables -----------------------------------------------------------------------------------------------------

def _table(file: Path, records: Mapping[str, Any], store: Store) -> Iterator[Finding]:
    """A table's values, spreads, differences and their intervals, from the records of its runs; intervals over images
    (of lines of one seed) from their detections."""
    name, cells = file.name, read_csv(file, dtype={'runs': str})
    table = table_numbered(cells.table.iloc[0])
    runs = list(dict.fromkeys(run for text in cells.runs for run in text.split()))
    if bad := [run for run in runs if not isinstance(records.get(run), dict)]:
        yield Finding(name, 'numbers', NOT_HERE, f'records of {some(bad)}', len(cells))
        return
    lines = [line_of(Run.of(records[run]['row'], store.profile, records[run]['seed'], records[run]['settings']),
                     records[run]) for run in runs]
    again = tables.tidy(table, pd.DataFrame(lines)).set_index(['group', 'row', 'metric'])
    on_images, found = _OnImages(records, store), []
    for cell in cells.itertuples():
        now = again.loc[(cell.group, cell.row, cell.metric)]
        where = f'{cell.group} {cell.row} {cell.metric}'
        for field in ('ours', 'sd', 'difference', *(['low', 'high'] if now.question == 'B' else [])):
            found.append(_compared(name, f'{where} {field}', getattr(cell, field), now[field]))
        if now.question == 'B' or pd.isna(cell.low):
            continue
        over = again.loc[(cell.group, cell.reference, cell.metric)].runs
        if (drawn := on_images.pair(cell.runs, over)) is None:
            yield Finding(f'{name} {where}', 'interval', NOT_HERE, 'detections')
            continue
        for field, value in drawn.loc[cell.metric, ['low', 'high']].items():
            found.append(_compared(name, f'{where} {field}', getattr(cell, field), value, 'detections'))
    yield from (one for one in found if one.state == DISAGREES)
    yield Finding(name, 'numbers', RECOMPUTED, count=sum(one.state == RECOMPUTED for one in found))


class _OnImages:
    """Intervals over images of pairs of runs, from the detections that are here."""

    def __init__(self, records: Mapping[str, Any], store: Store) -> None:
        self.records, self.store = records, store
        self.matches: dict[str, Matches | None] = {}
        self.pairs: dict[tuple[str, str], pd.DataFrame | None] = {}

    def pair(self, run: str, over: str) -> pd.DataFrame | None:
        """By metric low and high; None where a file is not here, or was made with other data."""
        if (run, over) not in self.pairs:
            both = [self._of(run), self._of(over)]
            self.pairs[run, over] = None if None in both else paired(*both).set_index('metric')
            log.info(f'{run} over {over}: interval {NOT_HERE if None in both else RECOMPUTED}')
        return self.pairs[run, over]

    def _of(self, run: str) -> Matches | None:
        if run not in self.matches:
            record = self.records[run]
            files = [_detections_of(self.store.folder / place / run) for place in ('runs', KEPT)]
            file = next(filter(None, files), None)
            same = record['data']['fingerprint'] == self.store.dataset.fingerprint
            self.matches[run] = None
            if file and same:
                with contextlib.suppress(*UNREADABLE):      # that file's own line says so
                    self.matches[run] = Matches.of(_reported(record, self.store), read_json(file))
        return self.matches[run]


def _compared(file: str, field: str, claimed: float, now: float, by: str = 'records') -> Finding:
    """A number of a csv beside what the records, or the detections, make of it by now."""
    none = pd.isna(claimed), pd.isna(now)
    same = all(none) or not any(none) and abs(claimed - now) <= 0.51 * 10 ** -DECIMALS
    return Finding(file, field, RECOMPUTED) if same else Finding(
        file, field, DISAGREES, f'{claimed} here, by the {by} {now}')


def _calibration(store: Store, records: Mapping[str, Any]) -> Iterator[Finding]:
    """The mean over seeds behind each factor, and that the best one was chosen."""
    for (group, arm, method), own in calibrate.read(store).groupby(['group', 'arm', 'method'], sort=False):
        best = own.val_map.max()
        if not own.val_map[own.chosen.astype(bool)].eq(best).all():
            yield Finding(calibrate.FILE, f'{group} {arm} {method}', DISAGREES, 'the chosen factor is not the best one')
        for line in own.itertuples():
            field, behind = f'{group} {arm} {method} {line.factor:g}', [records.get(run) for run in line.runs.split()]
            if not all(isinstance(record, dict) for record in behind):
                yield Finding(f'{calibrate.FILE} {field}', 'val_map', NOT_HERE, 'records of its runs')
                continue
            now = sum(record['numbers']['mAP'] or 0.0 for record in behind) / len(behind)
            yield _compared(calibrate.FILE, field, line.val_map, now)


def _sweep(store: Store, records: Mapping[str, Any]) -> Iterator[Finding]:
    """Means and spreads of Fig. 4 from the records of its runs."""
    file = store.folder / 'fig4.csv'
    for cell in read_csv(file).itertuples() if file.is_file() else ():
        behind, field = [records.get(run) for run in cell.runs.split()], f'{cell.value} {cell.metric}'
        if not all(isinstance(record, dict) and cell.metric in record['numbers'] for record in behind):
            pictured = all(isinstance(record, dict) for record in behind)
            yield Finding(f'{file.name} {field}', 'ours', NOT_HERE,
                          'its notebook makes it anew' if pictured else 'records of its runs')
            continue
        values = pd.Series([record['numbers'][cell.metric] for record in behind], dtype=float)
        for name, now in (('ours', values.mean()), ('sd', values.std())):
            yield _compared(file.name, f'{field} {name}', getattr(cell, name), now)


def _pictured(file: Path) -> Iterator[Finding]:
    yield Finding(file.name, 'numbers', NOT_HERE, 'its notebook makes it anew, from weights and pictures',
                  len(read_csv(file)))


def _planned(store: Store) -> Iterator[Finding]:
    """The planned comparisons, from the records that count; the headline where all detections are here."""
    file, both = store.folder / 'significance.csv', store.folder / 'significance_headline.csv'
    if not file.is_file():
        return
    plan = Plan(store.with_kept())
    again = plan.results().set_index('comparison')
    claims = []
    for line in read_csv(file).to_dict('records'):
        name = line['comparison']
        same = name in again.index and again.loc[name, 'n'] == line['n']
        claims.append((file, name, line, again.loc[name] if same else None))
    if both.is_file():
        headline = plan.headline()
        claims += [(both, 'headline', read_csv(both).iloc[0], headline and pd.Series(headline._asdict()))]
    for of, name, line, now in claims:
        fields = ('mean' if of == both else 'difference', 'low', 'high')
        if now is None:
            yield Finding(f'{of.name} {name}', 'numbers', NOT_HERE, 'all its records, of code as it is now'
                          if of == file else 'all its detections', len(fields))
            continue
        for field in fields:
            yield _compared(of.name, f'{name} {field}', line[field], now[field])
