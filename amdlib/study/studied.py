"""What is trained together and judged: what a study of the user's and a table of the paper's have in common."""
from __future__ import annotations

import functools
import re
import tomllib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from amdlib.datasets import CHOICES
from amdlib.errors import SettingError
from amdlib.files import read_json
from amdlib.paper.rows import Row
from amdlib.runs import listing, slurm
from amdlib.runs.batch import run_missing
from amdlib.runs.run import Run, with_teachers
from amdlib.runs.store import Store
from amdlib.study.prediction import Prediction, predict
from amdlib.study.trying import try_steps

if TYPE_CHECKING:
    from amdlib.methods import Method


class Studied(ABC):
    """Data, pairs, methods, a schedule, seeds: `Study`, or `PaperTable`; both are frozen dataclasses of these keys."""

    @property
    @abstractmethod
    def store(self) -> Store:
        """Where its runs lie; the data set is made or checked first."""

    @abstractmethod
    def runs(self) -> list[Run]:
        """Every row with every seed; teachers have one."""

    @abstractmethod
    def table(self) -> Any:
        """What came of it, from the records. Errors: RunError naming every run that is not done."""

    @abstractmethod
    def readable(self) -> str:
        """The same as Markdown."""

    @abstractmethod
    def write(self) -> Path:
        """Write the table beside the runs, with what it can and cannot show; return its `.md`."""

    @abstractmethod
    def report(self) -> Path:
        """Write a site of it, with a page a run, as `show.report` does; return its first page."""

    @abstractmethod
    def describe(self) -> str:
        """What would be trained, in words."""

    @property
    @abstractmethod
    def title(self) -> str:
        """In a word."""

    # ---- from plain values ------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def of(cls, values: Mapping[str, Any], home: Path = Path()) -> Studied:
        """From plain values by its names; paths are relative to `home`. Errors: SettingError."""

    @classmethod
    def read(cls, file: str | Path) -> Studied:
        """A TOML file with its names as keys. Errors: SettingError naming file and key."""
        file = Path(file)
        try:
            values = tomllib.loads(file.read_text(encoding='utf-8-sig'))
        except (OSError, ValueError) as error:
            raise SettingError(f'{file}: not readable as TOML: {error}') from None
        try:
            return cls.of({'name': file.stem, **values}, file.absolute().parent)
        except SettingError as error:
            raise SettingError(f'{file}: {error}') from None

    @classmethod
    def _given(cls, values: Mapping[str, Any], lists: Iterable[str], paths: Iterable[str],
               home: Path) -> dict[str, Any]:
        """What is given by its names: choices of the data together, lists as tuples, paths from `home`."""
        known = {one.name for one in fields(cls)}
        given = {key.replace('-', '_'): value for key, value in values.items()}
        choice = {key: given.pop(key) for key in CHOICES if key in given}
        if unknown := sorted(given.keys() - known):
            raise SettingError(f'a study has no {unknown[0]!r}; it has: {", ".join(sorted(known | set(CHOICES)))}')
        for key in lists:
            if isinstance(value := given.get(key), str):
                given[key] = tuple(value.split(','))
            elif value is not None:
                given[key] = tuple(value) if isinstance(value, Iterable) else (value,)
        for key in paths:
            if given.get(key):
                given[key] = str((home / given[key]).absolute())
        return {**given, 'choice': {**(given.get('choice') or {}), **choice}}

    # ---- what is done with it ---------------------------------------------------------------------------------------

    def run(self, **means: Any) -> Studied:
        """Train what is missing; `means` of `Means`, such as jobs=2."""
        run_missing(self.runs(), self._begun(means))
        return self

    def submit(self, options: str = '', hand_in: bool = True, **means: Any) -> Path | None:
        """Hand what is missing to Slurm, see `slurm.submit`; `means` of `Means`, where jobs limits an array."""
        return slurm.submit(self.runs(), self._begun(means), self.title, options, hand_in)

    def _begun(self, means: Mapping[str, Any]) -> Store:
        """Its store with these means, for training."""
        return self._store(means)

    def _store(self, means: Mapping[str, Any]) -> Store:
        return self.store.with_means(**means) if means else self.store

    def status(self, queued: bool = False) -> list[str]:
        """A line a run: its state and why, `queued` as Slurm's queue has it too; how many are done and what is left."""
        runs, store = self.runs(), self._store({})
        states = {run: store.state(run) for run in with_teachers(runs)}
        states = slurm.states(states, store) if queued else states
        return [*listing.lines(states, {self.title: runs}), '', listing.left(states, store, queued)]

    def try_steps(self) -> pd.DataFrame:
        """Five steps of every row with the first seed, see `trying.try_steps`; nothing is kept."""
        first: dict[Row, Run] = {}
        for run in with_teachers(self.runs()):
            first.setdefault(run.row, run)
        return try_steps([run for run in first.values() if run.trains], self._store({}))

    def warnings(self) -> list[str]:
        """What was told while its runs trained, a line a kind and row, with the runs that it was told of."""
        told: dict[tuple[str, str], list[str]] = {}
        for run in self.runs():
            record = self._store({}).state(run).record or {}
            for text in (record.get('bed') or {}).get('warnings', []):
                told.setdefault((run.row.label, re.split(r'[\d(]', text)[0]), []).append(f'{text} [seed {run.seed}]')
        return [f'warning, {label}: {texts[0]}{f", and so in {len(texts) - 1} more" if len(texts) > 1 else ""}'
                for (label, _), texts in told.items()]

    # ---- a detector of it -------------------------------------------------------------------------------------------

    def export(self, row: str | type[Method], seed: int | None = None,
               output: str | Path | None = None) -> dict[str, Path]:
        """A row's detector as files for stock mmdet (see `scale.export`): config, weights, card.

        Args:
            row: such as 'amd', 'baseline', a loss of yours or its name; with several pairs 'retinanet-amd'.
            seed: of the student; default: the first.
        Errors: SettingError for a row that it lacks; RunError where it is not done.
        """
        from amdlib.scale.export import export
        row, names = getattr(row, 'LABEL', row), {run.row.name for run in self.runs()}
        wanted = [run for run in self.runs() if row in (run.row.name, run.row.id, run.row.label)
                  and seed in (None, run.seed)]
        if not wanted:
            raise SettingError(f'the study has no {row!r}{"" if seed is None else f" of seed {seed}"}; it has: '
                               f'{", ".join(sorted(names))}')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')     # mmdet's of its own old names
            return export(wanted[0].id, self._store({}), made=wanted[0], output=output)

    @functools.cached_property
    def _exported(self) -> dict[tuple[str, int | None], dict[str, Path]]:
        """What `predict` has written, by row and seed."""
        return {}

    def test_pictures(self) -> list[Path]:
        """The files that it is tested on."""
        dataset = self.store.dataset
        return [dataset.test_images / image['file_name'] for image in read_json(dataset.test_ann)['images']]

    def predict(self, picture: str | Path | np.ndarray, row: str | type[Method] | None = None, seed: int | None = None,
                score: float = 0.3) -> Prediction:
        """What a row's detector finds in a picture, above a score.

        Args:
            picture: a file, or pixels (H, W, 3) BGR.
            row: such as 'baseline'; default: the first method.
        Errors: as of `export`; DataError for what is no picture.
        """
        row = getattr(row, 'LABEL', row) or next(run.row.name for run in self.runs() if run.row.kind == 'method')
        if (row, seed) not in self._exported:
            self._exported[row, seed] = self.export(row, seed)
        written = self._exported[row, seed]
        return predict(picture, written['config'], written['weights'], row, score)
