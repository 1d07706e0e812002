"""A page a run: numbers, curves, what its config changes, its command, files and errors, and whom it is set beside."""
from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amdlib.errors import KitError
from amdlib.evaluation import METRICS
from amdlib.files import digest
from amdlib.paper.rows import row_of
from amdlib.runs.recipe import own_settings, parse
from amdlib.runs.run import Run, teacher_of
from amdlib.runs.store import Store, read_scalars
from amdlib.show import charts
from amdlib.show.error_types import TYPES
from amdlib.show.intervals import OnImages
from amdlib.show.report import detections, drawings
from amdlib.show.report.detections import Seen
from amdlib.show.report.provenance import where
from amdlib.show.report.records import Entry, machines
from amdlib.words import log

FILES = ('record.json', 'console.log', 'detections.json.gz', 'detections.json.xz', 'weights.pth', 'scalars.jsonl',
         'scalars.csv.gz')      # of a run's folder, that its page links to
COLUMNS = ('teacher', 'baseline', 'mgd', 'amd')     # of the gallery, by row
LONG = 200                                          # characters of a config's value that are shown


@dataclass(frozen=True)
class Beside:
    """A run minus another of the same seed, by metric, in percent.

    Args:
        numbers: (metric, this run's, the other's, difference, low, high); the interval is over test images, None
            where it was not made.
        apart: why the two are no pair of a table, or ''.
    """
    other: Entry
    numbers: list[tuple[str, float | None, float | None, float | None, float | None, float | None]]
    apart: str = ''

    @property
    def has_intervals(self) -> bool:
        return any(low is not None for *_, low, _ in self.numbers)


class Runs:
    """What the pages of runs share: the entries by run, what detections show, intervals over test images."""

    def __init__(self, store: Store, entries: Mapping[str, Entry], images: Sequence[dict[str, Any]],
                 compared: Iterable[tuple[str, str]] = ()) -> None:
        self.store, self.entries, self.images = store, entries, images
        self.by_run = {entry.run: entry for entry in entries.values() if entry.run}
        self.seen = detections.see(entries.values(), store, images)
        self.pairs = {entry.id: self._partners(entry) for entry in entries.values() if entry.run}
        self.intervals = self._intervals(compared)

    def companion(self, run: Run, name: str) -> Entry | None:
        """The run of another row with the same group, seed and, where they concern it, settings; None: not here.

        Options of a run's own method are not another's: they are left out.
        """
        shared = {key: value for key, value in run.settings.items() if key not in dict(run.recipe.options)}
        try:
            if name == 'teacher':
                return self.by_run.get(run.teacher() or teacher_of(run.row.group, run.profile, shared))
            row = row_of(run.row.group, name)
            return self.by_run.get(Run.of(row, run.profile, run.seed, own_settings(row, shared)))
        except KitError:    # a setting that the other row has not
            return None

    def _partners(self, entry: Entry) -> list[Entry]:
        """Whom a run is set beside: what starts alike and is not distilled; MGD, for AMD; what it varies."""
        run, start = entry.run, 'inherit' if entry.run.arm == 'inherit' else 'baseline'
        names = {'baseline': ['teacher'], 'inherit': ['baseline'],
                 'method': [start, *(['mgd'] if run.row.method == 'amd' else []), run.row.method]}.get(run.row.kind, [])
        found = dict.fromkeys(self.companion(run, name) for name in names)
        return [one for one in found if one and one is not entry]

    def _intervals(self, compared: Iterable[tuple[str, str]]) -> dict[tuple[str, str], pd.DataFrame]:
        """Of pairs whose detections are here: those of each group's first seed, and those that are asked for. A pair
        takes seconds at its first time; what was found before is shown for every pair."""
        reading = self.store.with_kept()
        able = {entry.id: entry.run for entry in self.entries.values() if entry.counts and entry.id in self.seen}
        pairs = [(run, other.id) for run, others in self.pairs.items() for other in others]
        pairs = [(run, other) for run, other in pairs if {run, other} <= able.keys()
                 and self.entries[run].split == self.entries[other].split]
        first = {}
        for run in able.values():
            first[run.row.group] = min(run.seed, first.get(run.row.group, run.seed))
        wanted = [*compared, *(pair for pair in pairs if able[pair[0]].seed == first[able[pair[0]].row.group])]
        on_images = OnImages(reading, able.values())
        return on_images.pairs(wanted) | on_images.known(pairs)

    def beside(self, entry: Entry, other: Entry) -> Beside:
        """A run's numbers minus another's."""
        found, numbers = self.intervals.get((entry.id, other.id)), []
        for metric in METRICS:
            own, its = (one.record['numbers'].get(metric) for one in (entry, other))
            ends = [None, None] if found is None else [
                None if pd.isna(value) else float(value) for value in found.loc[metric, ['low', 'high']]]
            numbers.append((metric, own, its, None if None in (own, its) else own - its, *ends))
        both = [next(iter(machines([one]))) for one in (entry, other)]
        apart = f'made on different machines, {both[0]} and {both[1]}: no pair of a table' if both[0] != both[1] else ''
        return Beside(other, numbers, apart)

    def page(self, entry: Entry) -> dict[str, Any]:
        """What the page of a run shows."""
        run, baseline = entry.run, self.companion(entry.run, 'baseline') if entry.run else None
        teacher = self.entries.get(entry.record['teacher']['id']) if entry.record['teacher'] else None
        return {
            'entry': entry, 'record': entry.record, 'command': command(entry, self.store),
            'teacher': teacher if teacher and teacher.record else None, 'machine': next(iter(machines([entry]))),
            'curves': curves(entry.folder), 'config': config(entry), 'files': files(entry.folder),
            'changed': None if not baseline or baseline is entry else changes(entry, baseline), 'baseline': baseline,
            'beside': [self.beside(entry, other) for other in self.pairs.get(entry.id, [])],
            'errors': errors([one for one in dict.fromkeys([entry.id, *(
                one.id for one in (baseline, teacher) if one)]) if one in self.seen], self.seen)
            if entry.id in self.seen else None,
            'columns': self.gallery(entry), 'stale': entry.state and not entry.counts and str(entry.state),
            'seeded': run and [one for one in self.by_run.values() if one.run.row == run.row
                               and one.run.settings == run.settings and one is not entry]}

    def gallery(self, entry: Entry, *others: Entry) -> list[tuple[str, Entry]]:
        """Whose boxes stand side by side on a run's page: teacher, baseline, MGD, AMD of its seed, and itself."""
        if entry.id not in self.seen or not self.seen[entry.id].boxes:
            return []
        found: dict[str, str] = {}
        for name in COLUMNS if entry.run else ():
            one = entry if entry.run.row.name == name else self.companion(entry.run, name)
            if one:
                found[one.id] = one.record['label']
        for one in (entry, *others):
            found.setdefault(one.id, one.record['label'])
        return [(label, self.entries[run]) for run, label in found.items() if run in self.seen]


# ---- parts of a page --------------------------------------------------------------------------------------------

def command(entry: Entry, store: Store) -> str:
    """The command that repeats a run, quoted for a shell."""
    record = entry.record
    if entry.run and entry.run.row.group.own:
        return store.command(entry.run)
    settings = entry.run.settings if entry.run else record['settings']
    words = ['python', '-m', 'amdlib', 'run', entry.run.row.reference if entry.run else record['row'], '--profile',
             store.profile.name, '--seed', str(record['seed'])]
    for key, value in settings.items():
        words += ['--set', _setting(key, value)]
    return shlex.join(words) + (' '.join(['', '--data <folder>', *store.choice.words()]) if where(store) else '')


def _setting(key: str, value: Any) -> str:
    """KEY=VALUE that is read as this value again."""
    plain = f'{key}={value}'
    return plain if parse([plain]) == {key: value} else f'{key}={value!r}'


def files(folder: Path) -> list[tuple[str, str]]:
    """The files of a run that its page links to, from the folder of pages: name and path."""
    return [(name, f'../../{folder.parent.name}/{folder.name}/{name}') for name in FILES if (folder / name).is_file()]


def curves(folder: Path) -> list[tuple[str, Any, list[drawings.Curve]]]:
    """Title, chart and curves of what was logged: losses (logarithmic), learning rate; [] for nothing."""
    try:
        logged = read_scalars(folder)
        x = logged['step'].to_numpy(float)
        terms = charts.distillation_terms(logged)
        distilled = logged[terms].to_numpy(float).sum(axis=1)
        parts = {'detection': logged['loss'].to_numpy(float) - distilled}
        if terms:
            parts['distillation'] = distilled
            parts |= {_term(name): logged[name].to_numpy(float) for name in terms if len(terms) > 1}
        rates = {'learning rate': logged['lr'].to_numpy(float)} if 'lr' in logged else {}
    except (KitError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):     # damaged
        log.info(f'{folder.name}: what it logged is left out, it cannot be read')
        return []
    found = []
    for title, own, label, log_y in (('Losses', parts, 'weighted loss', True),
                                     ('Learning rate', rates, 'learning rate', False)):
        made = [drawings.Curve(name, *drawings.smooth(x, y), style) for style, (name, y) in enumerate(own.items())]
        made = [curve for curve in made if len(curve.y)]
        if made:
            told = f'{title} over {made[0].x[-1]:.0f} training steps: ' + '; '.join(curve.told for curve in made[:2])
            if drawn := drawings.chart(made, told, label, log_y):
                found.append((title, drawn, made))
    return found


def _term(name: str) -> str:
    """`loss_amd_fpn_0` -> `amd, level 0`; `loss_kd_cls` -> `kd_cls`."""
    term, _, level = name.removeprefix('loss_').partition('_fpn_')
    return f'{term}, level {level}' if level else term


def errors(shown: Sequence[str], seen: Mapping[str, Seen]) -> dict[str, Any]:
    """TIDE's errors of several runs side by side, with the scale of their bars."""
    costs = [seen[run].errors[kind][1] for run in shown for kind in TYPES]
    return {'runs': shown, 'most': max([cost for cost in costs if cost is not None], default=0.),
            'lines': [(kind, [seen[run].errors[kind] for run in shown]) for kind in TYPES],
            'ap50': [seen[run].ap50 for run in shown]}


def config(entry: Entry) -> str:
    """The whole mmengine config that a run was made with, as text; '' for records of an older format."""
    found = entry.record.get('config')
    return json.dumps(found, indent=1) if isinstance(found, dict) else ''


def changes(entry: Entry, baseline: Entry) -> list[tuple[str, str, str]] | None:
    """Where a run's config differs from its baseline's: key, the baseline's value, the run's; None where one record
    holds none. A distilled student is compared as the detector it is; the teacher's detector stands on its own page."""
    both = [one.record.get('config') for one in (baseline, entry)]
    if not all(isinstance(one, dict) for one in both):
        return None
    old, new = (dict(_flat(_unwrapped(one))) for one in both)
    return [(key, _short(old.get(key)), _short(new.get(key))) for key in dict.fromkeys([*new, *old])
            if old.get(key) != new.get(key)]


def _unwrapped(cfg: dict[str, Any]) -> dict[str, Any]:
    model = cfg.get('model')
    if not isinstance(model, dict) or not isinstance(model.get('student'), dict):
        return cfg
    around = {key: value for key, value in model.items() if key not in ('student', 'teacher')}
    return {**cfg, 'model': model['student'], 'distiller': around}


def _flat(values: Any, path: str = '') -> Iterable[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _flat(value, f'{path}.{key}' if path else str(key))
    else:
        yield path, values


def _short(value: Any) -> str:
    text = '–' if value is None else str(value)
    return text if len(text) <= LONG else f'{text[:LONG]}… ({len(text)} characters, {digest(text)})'


def in_order(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Entries with a page by row, each row's by settings and seed."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.record:
            found.setdefault(entry.record['row'], []).append(entry)
    return {row: sorted(own, key=lambda entry: (str(entry.record['settings']), entry.record['seed']))
            for row, own in found.items()}


def means(own: Sequence[Entry]) -> tuple[int, float, float]:
    """How many of a row's runs have no settings of their own, and mean and spread of their mAP."""
    values = np.array([entry.record['numbers']['mAP'] for entry in own if not entry.record['settings']
                       and entry.record['numbers']['mAP'] is not None], float)
    return len(values), float(values.mean()) if len(values) else np.nan, float(values.std(ddof=1)) if len(
        values) > 1 else np.nan
