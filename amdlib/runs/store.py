"""The store: a profile's runs on a data set in a results folder; records, and which of them count.

A run's folder, `<results>/<profile>[/<data set>]/runs/<run id>/`, holds `record.json` (what was run, with what, and
the 12 COCO numbers), `detections.json.gz` (COCO results format; the numbers are computed from this file),
`weights.pth` (the plain detector), `scalars.jsonl` (losses by step) and `progress.json`. A record counts only while
settings, data, teacher, weight files and code are those that would be used now, and the run's files are those that it
speaks of (`runs.evidence`); otherwise it is stale and says why.

What stands behind committed numbers is committed too, in `records/<run id>/` beside `runs/` (`runs.keeping`): the
record, what was logged, of some runs the detections, no weights. A store `with_kept()` reads these where a run is not
done here.
"""
from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from amdlib.datasets import CHOICES, Choice, Dataset, prepare
from amdlib.errors import RunError, SettingError
from amdlib.files import ROOT, read_csv, read_json, remove_halves, sha256
from amdlib.paper.profiles import Profile, find_profile
from amdlib.runs import evidence, fingerprints
from amdlib.runs.progress import quiet_s, read_progress, training_process
from amdlib.runs.recipe import Means
from amdlib.runs.record import read_record
from amdlib.runs.run import Run
from amdlib.weights import published
from amdlib.words import minutes

RECORD, DETECTIONS, WEIGHTS, SCALARS = 'record.json', 'detections.json.gz', 'weights.pth', 'scalars.jsonl'
UNFINISHED = 'unfinished.json'  # what an interrupted run was made with
FEATURES = 'features'           # folder of a teacher's kept features
KEPT, KEPT_DETECTIONS, KEPT_SCALARS = 'records', 'detections.json.xz', 'scalars.csv.gz'
GONE_S = 900        # after which a run on another machine that tells nothing counts as killed
MADE_ELSEWHERE = 'not made here: its kept record is shown'


@dataclass(frozen=True)
class State:
    """Where a run stands: done, stale, failed, running or missing, and why; `note`: what a reader should know."""
    name: str
    why: str = ''
    record: dict[str, Any] | None = None
    note: str = ''

    def __str__(self) -> str:
        return f'{self.name}{f" ({self.why})" if self.why else ""}'


@dataclass(frozen=True)
class Store:
    """The runs of a profile on a data set."""
    profile: Profile
    dataset: Dataset
    results: Path = ROOT / 'results'
    means: Means = Means()      # with which what is missing is made
    data: Path | None = None    # the folder that the data set was given as
    kept: bool = False          # for reading: where a run is not done here, its kept record counts
    choice: Choice = Choice()   # how that folder was read

    @property
    def folder(self) -> Path:
        """Where tables, figures and runs live: results/mini, results/small/bccd."""
        own = self.results / self.profile.name
        return own if self.profile.name == self.dataset.name else own / self.dataset.name

    def run_folder(self, run: Run) -> Path:
        """The folder of one run."""
        return self.folder / 'runs' / run.id

    def kept_folder(self, run: Run) -> Path:
        """Where a run's committed record lies, or would."""
        return self.folder / KEPT / run.id

    def state(self, run: Run, folder: Path | None = None) -> State:
        """Compare a run's record with what would be run now; no model Config is built where its key says enough.

        Args:
            folder: of the run, where it is not the usual one.
        """
        return self._state_in(run, folder) if folder else self._found(run)[1]

    def home(self, run: Run) -> Path:
        """The folder that a run is read from: its own, or that of its kept record where that counts and it does not."""
        return self._found(run)[0]

    def _found(self, run: Run) -> tuple[Path, State]:
        own, kept = self.run_folder(run), self.kept_folder(run)
        found = self._state_in(run, own)
        if found.name != 'done' and self.kept and (kept / RECORD).is_file():
            elsewhere = self._state_in(run, kept, whole=False)
            if elsewhere.name == 'done':
                return kept, replace(elsewhere, note=', '.join(filter(None, [MADE_ELSEWHERE, elsewhere.note])))
        return own, found

    def _state_in(self, run: Run, folder: Path, whole: bool = True) -> State:
        """`state` from one folder; `whole`: weights and detections are to be there."""
        left = unfinished(folder)
        if left.name == 'running' or not (folder / RECORD).is_file():
            return left
        again = _begun_again(folder)    # and not ended: the record is still the old one
        try:
            record = read_record(folder / RECORD)
            reasons = self._reasons(record, run)
            reasons += [f'{name} is missing' for name in (WEIGHTS, DETECTIONS)
                        if whole and not (folder / name).is_file()]
            reasons += evidence.disagreements(record, folder if whole else None)
            line_of(run, record)    # what tables read of it is there
            note = ', '.join(filter(None, [fingerprints.other_versions(record['versions']),
                                           again and f'made again, which {left}']))
        except (OSError, ValueError) as error:
            return State('stale', f'{RECORD} cannot be read: {error}')
        except (KeyError, TypeError, AttributeError) as error:
            return State('stale', f'record of another format: {error} is missing or of another kind')
        if reasons:
            return left if again else State('stale', ', '.join(reasons), record, note)
        return State('done', '', record, note)

    def _reasons(self, record: dict[str, Any], run: Run) -> list[str]:
        """Why a record does not count."""
        reasons = []
        if not (self._same_settings(record, run) and _same_files(run, record['files'])):
            reasons.append('made with other settings')
        if record['data']['fingerprint'] != self.dataset.fingerprint:
            reasons.append(f'made with other data ({record["data"]["fingerprint"]}, now {self.dataset.fingerprint})')
        if not fingerprints.same_code(record['code_fingerprint'], fingerprints.code_fingerprint(run)):
            reasons.append('made with other code')
        if teacher := run.teacher():
            taught = self.state(teacher)
            if taught.name != 'done':
                reasons.append(f'its teacher is {taught.name}')
            elif taught.record['weights_sha256'] != record['teacher']['weights_sha256']:
                reasons.append('its teacher was trained anew')
        return reasons

    def _same_settings(self, record: dict[str, Any], run: Run) -> bool:
        if record.get('settings_key') == fingerprints.settings_key(run, self.dataset):
            return True
        from amdlib.runs.config import config, settings_hash  # the code that makes a Config has changed since
        return record['settings_hash'] == settings_hash(config(run, self.dataset))

    def record(self, run: Run) -> dict[str, Any]:
        """The record of a run that is done. Errors: RunError saying how to make it."""
        found = self.state(run)
        if found.name != 'done':
            raise RunError(f'{run.id} is {found}: make it with {self.command(run)}')
        return found.record

    def detections(self, run: Run) -> list[dict[str, Any]]:
        """Detections of a run, COCO results format. Errors: RunError where only its record was kept."""
        return read_json(self.detections_file(run))

    def detections_file(self, run: Run) -> Path:
        """The file with a run's detections. Errors: as of `detections`."""
        home = self.home(run)
        if home != self.kept_folder(run):
            return home / DETECTIONS
        if not (home / KEPT_DETECTIONS).is_file():
            raise RunError(f'{run.id} was not made here and its detections were not kept: make it with '
                           f'{self.command(run)}')
        return home / KEPT_DETECTIONS

    def reported(self, run: Run) -> Path:
        """Annotations of the split on which a run is evaluated."""
        return self.annotations(run.recipe.split)

    def annotations(self, split: str) -> Path:
        """Annotations of 'test' or 'val'."""
        return self.dataset.test_ann if split == 'test' else self.dataset.val_ann

    def weights(self, run: Run) -> Path:
        """The file with a run's plain detector."""
        return self.run_folder(run) / WEIGHTS

    def scalars(self, run: Run) -> pd.DataFrame:
        """What a run logged: step, loss and its terms, lr, grad_norm; empty for a run that was not trained."""
        return read_scalars(self.home(run))

    def collect(self, runs: Iterable[Run]) -> pd.DataFrame:
        """One line a run: row, seed, the 12 numbers in percent, and what is behind them.

        Errors: RunError naming every run that is not done; a stale record is never mixed in, nor one of a dry run.
        """
        runs = list(runs)
        if dry := [run.id for run in runs if run.profile.dry_run]:
            raise RunError(f'{", ".join(dry)}: made with random weights in a dry run; such numbers go into no table')
        states = {run: self.state(run) for run in runs}
        if bad := [f'{run.id} ({found.name}{": " + found.why if found.why else ""})'
                   for run, found in states.items() if found.name != 'done']:
            raise RunError(f'{len(bad)} of {len(runs)} runs have no valid record: ' + '; '.join(bad))
        return pd.DataFrame([line_of(run, found.record, found.note) for run, found in states.items()])

    def command(self, run: Run) -> str:
        """The command that makes a run; of a study's, all that it lacks."""
        if run.row.group.own:
            return f'python -m amdlib run {run.profile.name}.toml'
        words = ['python -m amdlib run', run.row.reference, '--profile', run.profile.name, '--seed', str(run.seed),
                 *(f'--set {key}={value}' for key, value in run.settings.items()),
                 *([] if self.profile.data == 'shapes' else ['--data <folder>', *self.choice.words()])]
        return ' '.join(words)

    def record_files(self, pattern: str = '*') -> list[Path]:
        """The records that lie here, by name; with `kept` the kept ones of runs that left none here.

        Args:
            pattern: of a run's id, such as 'retinanet-*'.
        """
        kept = record_files(self.folder / KEPT, pattern) if self.kept else {}
        return [file for _, file in sorted({**kept, **record_files(self.folder / 'runs', pattern)}.items())]

    def run_of(self, file: Path) -> Run | None:
        """The run of a record; None for a record of another format, of a row or setting that is none by now, or whose
        settings name files (it does not say where those lie)."""
        try:
            record = read_record(file)
            run = Run.of(record['row'], self.profile, record['seed'], record['settings'])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return run if run.id == file.parent.name else None

    def with_kept(self, kept: bool = True) -> Store:
        """The same store, for reading: kept records count where a run is not done here."""
        return replace(self, kept=kept)

    def with_means(self, **changes: Any) -> Store:
        """The same store with other means, such as `jobs=2`."""
        return replace(self, means=replace(self.means, **changes))

    def parameters(self) -> dict[str, Any]:
        """What a notebook passes to `open_store`: profile, data, and in `how` results, means and the choice."""
        return {'profile': self.profile.name, 'data': self.data and str(self.data.absolute()),
                'how': {'results': str(self.results.absolute()), **self.means.to_dict(), **self.choice.given()}}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a job file."""
        return {'profile': self.profile.to_dict(), 'dataset': self.dataset.to_dict(),
                'results': str(self.results.absolute()), 'means': self.means.to_dict(),
                'data': self.data and str(self.data.absolute()), 'choice': self.choice.given()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Store:
        """The store of `to_dict`."""
        return cls(Profile.from_dict(values['profile']), Dataset.from_dict(values['dataset']), Path(values['results']),
                   Means.from_dict(values['means']), values['data'] and Path(values['data']),
                   choice=Choice(**values['choice']))


def open_store(profile: str | Profile = 'mini', data: str | Path | None = None, results: str | Path | None = None,
               **how: Any) -> Store:
    """The store of a profile; its data set is made or checked first.

    Args:
        data: folder of the data set, for the profiles that take one.
        results: folder for results; default: results/ of the kit.
        how: of `Means`, such as device, jobs or workers; of `Choice`, such as split=0.8.
    Errors: SettingError; DataError.
    """
    profile = find_profile(profile) if isinstance(profile, str) else profile
    choice = Choice(**{name: how.pop(name) for name in CHOICES if name in how})
    means = Means.from_dict(how)
    place = Path(results).absolute() if results else ROOT / 'results'
    if place.exists() and not place.is_dir():
        raise SettingError(f'{place}: no folder for results')
    dataset = prepare(profile.data, Path(data).absolute() if data else None, first_images=profile.first_images,
                      **choice.given())
    return Store(profile, dataset, place, means, data and Path(data).absolute(), choice=choice)


def line_of(run: Run, record: Mapping[str, Any], note: str = '') -> dict[str, Any]:
    """A run's line of `Store.collect`, from its record."""
    return {'group': run.row.group.name, 'row': run.row.name, 'label': run.row.label, 'arm': run.arm, 'seed': run.seed,
            **record['numbers'], 'run': run.id, 'settings_hash': record['settings_hash'],
            'data': record['data']['fingerprint'], 'commit': record['code']['commit'],
            'clean': record['code']['clean'], 'train_s': record['train_s'], 'device': record['device'],
            'machine': told_machine(record), 'note': note}


def record_files(folder: Path, pattern: str = '*') -> dict[str, Path]:
    """The records of a folder of runs, by the run's id, in its order."""
    return {file.parent.name: file for file in sorted(folder.glob(f'{pattern}/{RECORD}'))}


def read_scalars(folder: Path) -> pd.DataFrame:
    """What was logged in a run's folder; see `Store.scalars`. Errors: RunError for a damaged file."""
    if (folder / KEPT_SCALARS).is_file():
        return read_csv(folder / KEPT_SCALARS, ('step', 'loss'))
    file = folder / SCALARS
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        if not all({'step', 'loss'} <= line.keys() for line in lines):
            raise ValueError('a line without step or loss')
    except (ValueError, AttributeError) as error:
        raise RunError(f'{file} cannot be read: {error}') from None
    return pd.DataFrame(lines, columns=None if lines else ['step', 'loss'])


def tidy(folder: Path) -> None:
    """Remove what only an unfinished run needs from the folder of a done one, and what killed processes left half."""
    for rest in [folder / UNFINISHED, *(folder / 'mmengine').glob('*.pth'), *(folder / 'mmengine').glob('.*.pth.*'),
                 folder / 'mmengine' / 'last_checkpoint']:
        rest.unlink(missing_ok=True)
    shutil.rmtree(folder / 'mmengine' / 'stopped', ignore_errors=True)      # see `runs.stopping`
    remove_all_halves(folder)


def remove_all_halves(folder: Path) -> None:
    """`files.remove_halves` of a run's folder and those in it that are written to."""
    for part in (folder, folder / 'mmengine', folder / FEATURES):
        remove_halves(part)


def unfinished(folder: Path) -> State:
    """The state of a run whose folder has no record, or one that is being made again."""
    progress = read_progress(folder)
    if not progress:
        return State('missing', 'never run')
    if progress['phase'] == 'done':
        return State('missing', 'its record is gone')
    if progress['phase'] == 'failed':
        return State('failed', progress.get('error', ''))
    at = f'step {progress["step"]} of {progress["steps"]}'
    if progress['phase'] == 'stopped':
        return State('failed', f'stopped after {at}')
    if progress['host'] == platform.node() and not training_process(folder):
        return State('failed', f'killed at {at}')
    silent_s = quiet_s(progress)
    if progress['host'] != platform.node() and silent_s > max(GONE_S, 10 * (progress.get('s_per_step') or 0)):
        return State('failed', f'at {at} on {progress["host"]}, which has said nothing for {minutes(silent_s)}')
    return State('running', at)


def _begun_again(folder: Path) -> bool:
    """Whether a run that has a record was begun once more since, and has not ended."""
    with contextlib.suppress(OSError):
        return (folder / UNFINISHED).stat().st_mtime_ns > (folder / RECORD).stat().st_mtime_ns
    return False


def told_machine(record: Mapping[str, Any]) -> str:
    """What a record's digits were computed by; no pair of runs from two of them is compared."""
    device = record['device']
    return ', '.join([*map(str, record.get('machine', {}).values()), *([] if device == 'CPU' else [device])])


def file_hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the weight files that a run's settings name."""
    return {key: sha256(path) for key, path in run.recipe.files().items()}


def _same_files(run: Run, recorded: dict[str, str]) -> bool:
    """Published files are known by the digits in their names: they need not lie here to tell a record's state."""
    given, addresses = file_hashes(run), run.published_files()
    return recorded.keys() == given.keys() | addresses.keys() and all(
        recorded[key] == value for key, value in given.items()) and all(
        recorded[key].startswith(published.digits(published.file_name(url))) for key, url in addresses.items())
