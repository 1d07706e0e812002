"""A study: data, a pair of detectors, methods, a schedule, seeds; what of it is trained, and what came of it."""
from __future__ import annotations

import contextlib
import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from amdlib import methods as all_methods
from amdlib.datasets import CHOICES, Dataset, prepare
from amdlib.engine.taps import AUTO
from amdlib.errors import SettingError
from amdlib.files import read_json, write_json
from amdlib.methods.level import LevelLoss
from amdlib.paper.profiles import Profile
from amdlib.paper.rows import Row, row_of
from amdlib.runs import adapt, slurm
from amdlib.runs.batch import run_missing
from amdlib.runs.originals import get_config
from amdlib.runs.recipe import Means, own_settings
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show.intervals import OnImages
from amdlib.show.stats import METRICS
from amdlib.show.tables import as_markdown, write_markdown
from amdlib.show.verdicts import interval, judge, pair_up
from amdlib.study.own_loss import name_of
from amdlib.study.pair import Pair, pair
from amdlib.study.prediction import Prediction, predict
from amdlib.study.trying import try_steps
from amdlib.words import number, some

FAST = {'amp': 'bf16', 'channels_last': True, 'fused': True, 'tf32': True}  # on a GPU, unless exactness is asked for
SPEED = 'speed.json'
REFERENCE_RMS = 0.5     # ASSUMPTION reference: as at `mini`, see docs/assumptions.md
CAN_SHOW = 'A pair of your own on data of your own. One seed says nothing about another run of the method.'


@dataclass(frozen=True)
class Study:
    """What is asked; None: as the student's config has it.

    Args:
        data: a folder in a format that `datasets` reads.
        student, teacher: configs of mmdet (`mmdet::folder/name.py`) or files of the user's; they stay whole.
        methods: names, or 'path/to/file.py:ClassName', each a row.
        teacher_weights: any mmdet checkpoint of the teacher; None: it is trained here first.
        student_backbone: a file with first weights of the student's backbone.
        scratch: nothing is pre-trained, whatever the configs say.
        features, teacher_features: what of both is compared: 'auto', the maps that the head receives, or names of
            modules, one a level.
        share: distillation starts as this share of the loss, instead of with the published weights by rule.
        exact: None: on a GPU the faster ways are taken (`FAST`), decided at the first run; True: they never are.
        epochs, teacher_epochs, batch_size, lr: of the schedule, whose shape stays the config's.
        size: of the longer side of pictures, in px.
        seeds: of the students.
        controls: 'inherit' and the masks' controls, such as 'amd-permuted', by the names of rows.
        settings: of every run, as for `run --set`.
        choice: how the folder is read, such as split=0.8.
        results: where runs and tables go; None: `results` where the user works.
        name: of the study; part of the results' path.
    Errors: SettingError for what is unknown or does not fit.
    """
    data: str
    student: str
    teacher: str
    methods: tuple[str, ...] = ('amd',)
    teacher_weights: str | None = None
    student_backbone: str | None = None
    scratch: bool = False
    features: str | tuple[str, ...] = AUTO
    teacher_features: str | tuple[str, ...] = AUTO
    share: float | None = None
    exact: bool | None = None
    epochs: int | None = None
    teacher_epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    size: int | None = None
    seeds: tuple[int, ...] = (0,)
    controls: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    choice: Mapping[str, Any] | None = None
    results: str | None = None
    name: str = 'study'

    def __post_init__(self) -> None:
        for name in ('epochs', 'teacher_epochs', 'batch_size', 'size'):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingError(f'{name}={value!r}: expected a whole number above 0')
        if not self.seeds or not all(type(seed) is int and 0 <= seed < 2 ** 31 for seed in self.seeds):
            raise SettingError(f'seeds={self.seeds!r}: expected whole numbers, such as 0, 1, 2')
        for name in self.methods:
            all_methods.find_method(name)
        if not self.name.replace('-', '').replace('_', '').isalnum():
            raise SettingError(f'name={self.name!r}: expected letters, digits, - and _')

    @classmethod
    def of(cls, values: Mapping[str, Any], home: Path = Path()) -> Study:
        """From plain values by the names above; paths are relative to `home`. Errors: SettingError."""
        known = {one.name for one in fields(cls)}
        given = {key.replace('-', '_'): value for key, value in values.items()}
        choice = {key: given.pop(key) for key in CHOICES if key in given}
        if unknown := sorted(given.keys() - known):
            raise SettingError(f'a study has no {unknown[0]!r}; it has: {", ".join(sorted(known | set(CHOICES)))}')
        if lacking := [key for key in ('data', 'student', 'teacher') if not given.get(key)]:
            raise SettingError(f'a study needs {", ".join(lacking)}')
        for key in ('methods', 'seeds', 'controls', 'features', 'teacher_features'):
            if given.get(key, AUTO) != AUTO:
                value = given[key].split(',') if isinstance(given[key], str) else given[key]
                given[key] = tuple(value) if isinstance(value, Iterable) else (value,)
        for key in ('data', 'teacher_weights', 'student_backbone', 'results'):
            if given.get(key):
                given[key] = str((home / given[key]).absolute())
        given['methods'] = tuple(str((home / name).absolute()) if all_methods.is_outside(name) else name
                                 for name in map(name_of, given.get('methods', ('amd',))))
        for key in ('student', 'teacher'):
            if '::' not in given[key]:
                given[key] = str((home / given[key]).absolute())
        return cls(**given, choice={**(given.pop('choice', None) or {}), **choice})

    @classmethod
    def read(cls, file: str | Path) -> Study:
        """A TOML file with the names above as keys. Errors: SettingError."""
        file = Path(file)
        try:
            values = tomllib.loads(file.read_text(encoding='utf-8-sig'))
        except (OSError, ValueError) as error:
            raise SettingError(f'{file}: not readable as TOML: {error}') from None
        return cls.of({'name': file.stem, **values}, file.absolute().parent)

    # ---- what is trained --------------------------------------------------------------------------------------------

    @functools.cached_property
    def store(self) -> Store:
        """Where its runs lie; the data set is made or checked first."""
        results = Path(self.results or 'results').absolute()
        dataset = prepare('folder', self.data, results / 'data', **(self.choice or {}))
        return Store(self._profile(), dataset, results, Means(), Path(self.data))

    @functools.cached_property
    def pair(self) -> Pair:
        """The two detectors, looked at."""
        return pair(self.student, self.teacher, self.store.dataset.classes, self.teacher_weights, self.scratch,
                    self.features, self.teacher_features)

    @functools.cached_property
    def profile(self) -> Profile:
        """The same with what is known once the detectors were looked at."""
        channels = [teacher for _, teacher in self.pair.channels]
        return replace(self._profile(), neck_channels=round(sum(channels) / len(channels)))

    def _profile(self) -> Profile:
        cfg = get_config(self.student)
        own_px = adapt.image_px(self.student)
        image_px = own_px if self.size is None else (self.size, self.size)
        epochs = self.epochs or adapt.epochs_of(self.student)
        return Profile(
            self.name, image_px, 'folder', self.batch_size or cfg.train_dataloader.batch_size,
            {'student': epochs, 'teacher': self.teacher_epochs or self.epochs or adapt.epochs_of(self.teacher)},
            lr_images=cfg.get('auto_scale_lr', {}).get('base_batch_size', 16), workers=0, arm='alone',
            reference_rms=REFERENCE_RMS, can_show=CAN_SHOW)

    @property
    def rows(self) -> list[Row]:
        """Baseline, controls, methods; the teacher comes along with them."""
        names = dict.fromkeys(['teacher', 'baseline', *self.controls, *map(all_methods.absolute, self.methods)])
        return [row_of(self.pair.group, name) for name in names]

    def runs(self) -> list[Run]:
        """Every row with every seed; the teacher has seed 0."""
        given = {'lr': self.lr, 'backbone': self.student_backbone, 'teacher_checkpoint': self.teacher_weights,
                 'share': self.share, **(FAST if self.is_fast else {}), **(self.settings or {})}
        found = {}
        for row in self.rows:
            for seed in self.seeds:
                if row.is_teacher:
                    run = Run.of(row_of(self.pair.group, 'amd'), self.profile, 0,
                                 own_settings(row_of(self.pair.group, 'amd'), given)).teacher()
                else:
                    run = Run.of(row, self.profile, seed, own_settings(row, given))
                found[run] = None
        return list(found)

    @property
    def is_fast(self) -> bool:
        """Whether the ways of `FAST` are taken: as asked, as at the first run, or where there is a GPU."""
        if self.exact is not None:
            return not self.exact
        with contextlib.suppress(OSError, ValueError, KeyError):
            return bool(read_json(self.store.folder / SPEED)['fast'])
        return torch.cuda.is_available()

    def run(self, **means: Any) -> Study:
        """Train what is missing; `means` of `Means`, such as jobs=2."""
        run_missing(self.runs(), self._begun(means))
        return self

    def submit(self, options: str = '', hand_in: bool = True, **means: Any) -> Path | None:
        """Hand what is missing to Slurm, see `slurm.submit`; `means` of `Means`, where jobs limits an array."""
        return slurm.submit(self.runs(), self._begun(means), self.name, options, hand_in)

    def _begun(self, means: Mapping[str, Any]) -> Store:
        """Its store with these means; whether it is fast is written down before anything is trained."""
        if self.exact is None and not (self.store.folder / SPEED).exists():     # what began so goes on so
            self.store.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.store.folder / SPEED, {'fast': self.is_fast and means.get('device') != 'cpu'})
        return self._store(means)

    def _store(self, means: Mapping[str, Any]) -> Store:
        store = replace(self.store, profile=self.profile)
        return store.with_means(**means) if means else store

    # ---- what came of it --------------------------------------------------------------------------------------------

    def table(self, resamples: int = 1000) -> pd.DataFrame:
        """A line a row: mAP, its difference to the baseline with a 95 % interval, the verdict, other numbers.

        With one seed the interval is about these checkpoints on other pictures, with several about the method on
        another run. Errors: RunError naming every run that is not done.
        """
        store = self._store({})
        runs = self.runs()
        records = store.collect(runs)
        on_images = OnImages(store, runs, resamples)
        lines = []
        for row in self.rows:
            own = records[records.row == row.name]
            line = {'': row.label, 'mAP': number(own.mAP.astype(float).mean(), '.1f')}
            if row.kind not in ('teacher', 'baseline'):
                found = judge(pair_up(records, row.group.name, row.name, 'baseline'), 'mAP', on_images)
                line |= {'gain': interval(pd.Series(found._asdict())), 'verdict': found.verdict}
            lines.append(line | {name: number(own[name].astype(float).mean(), '.1f') for name in METRICS[1:]})
        return pd.DataFrame(lines).fillna('')

    def write(self) -> Path:
        """Write the table, what it compares and what it can show, beside the runs; return its path."""
        table, dataset = self.table(), self.store.dataset
        notes = [*(f'- {note}' for note in [*dataset.notes, *self.warnings()]), f'- {CAN_SHOW}']
        return write_markdown(self.store.folder / 'table.md', [
            f'# {self.pair.group.student_label} <- {self.pair.group.teacher_label}, {dataset.name}', as_markdown(table),
            '\n'.join(notes), self.describe()])

    def warnings(self) -> list[str]:
        """What was told while its runs trained, a line a kind and row, with the runs that it was told of."""
        told: dict[tuple[str, str], list[str]] = {}
        for run in self.runs():
            record = self._store({}).state(run).record or {}
            for text in (record.get('bed') or {}).get('warnings', []):
                told.setdefault((run.row.label, re.split(r'[\d(]', text)[0]), []).append(f'{text} [seed {run.seed}]')
        return [f'warning, {label}: {texts[0]}{f", and so in {len(texts) - 1} more" if len(texts) > 1 else ""}'
                for (label, _), texts in told.items()]

    def export(self, row: str, seed: int | None = None, output: str | Path | None = None) -> dict[str, Path]:
        """A row's detector as files for stock mmdet (see `scale.export`): config, weights, card.

        Args:
            row: such as 'amd', 'baseline' or the name of a loss of yours.
            seed: of the student; default: the first.
        Errors: SettingError for a row that the study lacks; RunError where it is not done.
        """
        from amdlib.scale.export import export
        names = {run.row.name for run in self.runs()}
        wanted = [run for run in self.runs() if run.row.name == row and seed in (None, run.seed)]
        if not wanted:
            raise SettingError(f'the study has no {row!r}{"" if seed is None else f" of seed {seed}"}; it has: '
                               f'{", ".join(sorted(names))}')
        return export(wanted[0].id, self._store({}), made=wanted[0], output=output)

    @functools.cached_property
    def _exported(self) -> dict[tuple[str, int | None], dict[str, Path]]:
        """What `predict` has written, by row and seed."""
        return {}

    def test_pictures(self) -> list[Path]:
        """The files that it is tested on."""
        dataset = self.store.dataset
        return [dataset.test_images / image['file_name'] for image in read_json(dataset.test_ann)['images']]

    def predict(self, picture: str | Path | np.ndarray, row: str | None = None, seed: int | None = None,
                score: float = 0.3) -> Prediction:
        """What a row's detector finds in a picture, above a score.

        Args:
            picture: a file, or pixels (H, W, 3) BGR.
            row: such as 'baseline'; default: the first method.
        Errors: as of `export`; DataError for what is no picture.
        """
        row = row or next(one.name for one in self.rows if one.kind == 'method')
        if (row, seed) not in self._exported:
            self._exported[row, seed] = self.export(row, seed)
        written = self._exported[row, seed]
        return predict(picture, written['config'], written['weights'], row, score)

    def status(self, queued: bool = False) -> list[str]:
        """A line a run: its state and why; `queued`: as Slurm's queue has it too."""
        store = self._store({})
        states = {run: store.state(run) for run in self.runs()}
        lines = []
        for run, found in (slurm.states(states, store) if queued else states).items():
            told = f'{number(found.record["numbers"]["mAP"])} mAP' if found.name == 'done' else found.why
            lines.append(f'{run.id}  {found.name}  {told}')
        return lines

    def try_steps(self) -> pd.DataFrame:
        """Five steps of every row with the first seed, see `trying.try_steps`; nothing is kept."""
        first = {run.row: run for run in reversed(self.runs()) if run.trains}
        return try_steps(reversed(first.values()), self._store({}))

    def describe(self) -> str:
        """The pair, the ways that are taken, and how the Configs differ from the user's."""
        student = next(run for run in self.runs() if run.row.kind == 'baseline')
        fast = ' '.join(f'{key}={value}' for key, value in FAST.items())
        return '\n'.join([self.pair.describe(), f'speed: {fast} (exact = true leaves them out)' if self.is_fast else
                          'speed: exact, float32', '', 'changed in the student\'s config:',
                          *(f'  {line}' for line in adapt.changes(student, self.store.dataset))])


def data(folder: str | Path, **choice: Any) -> Dataset:
    """A folder of labelled pictures as a study reads it, checked, and logged what is in it.

    Args:
        choice: how it is read, such as split=0.8.
    Errors: DataError with file and value of each problem; SettingError for a choice that is none.
    """
    return prepare('folder', folder, Path('results', 'data').absolute(), **choice)


def distill(data: str | Path, student: str, teacher: str, *methods: str | type[LevelLoss], **more: Any) -> Study:
    """Train a study and return it: `distill('photos', 'mmdet::gfl/...', 'teacher.py', 'amd', epochs=12).table()`.

    Args:
        methods: names, or what `own_loss.method` has decorated; default: AMD.
        more: of `Study` and `Means`, such as teacher_weights, size, seeds=(0, 1, 2), split=0.8, jobs=2.
    """
    means = {one.name: more.pop(one.name) for one in fields(Means) if one.name in more}
    asked = {'data': str(data), 'student': student, 'teacher': teacher, **more}
    return Study.of({**asked, 'methods': methods or ('amd',)}).run(**means)


def missing(study: Study) -> str:
    """Which runs are to do, in words."""
    left = [run.id for run in study.runs() if study._store({}).state(run).name != 'done']
    return f'{len(left)} to do: {some(left)}' if left else 'all done'
