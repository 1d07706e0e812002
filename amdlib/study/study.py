"""A study of the user's: what is asked, what of it is trained, and the table that came of it."""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from amdlib import methods as all_methods
from amdlib.datasets import Dataset, prepare
from amdlib.engine.taps import AUTO
from amdlib.errors import SettingError
from amdlib.files import read_json, write_json
from amdlib.methods.step import NEEDS, OFFERED
from amdlib.paper.pairs import GROUPS
from amdlib.paper.profiles import PROFILES, Profile
from amdlib.paper.rows import Row, row_of
from amdlib.runs import adapt
from amdlib.runs.originals import get_config
from amdlib.runs.recipe import Means, Recipe, own_settings
from amdlib.runs.run import Run, teacher_of
from amdlib.runs.store import Store
from amdlib.show.intervals import OnImages
from amdlib.show.report import site
from amdlib.show.report.drawings import Scale
from amdlib.show.stats import METRICS
from amdlib.show.tables import as_markdown, write_markdown
from amdlib.show.verdicts import Verdict, interval, judge, pair_up
from amdlib.study.own_loss import named
from amdlib.study.pair import Pair, config_name, pair
from amdlib.study.paper_table import PaperTable
from amdlib.study.studied import Studied
from amdlib.words import log, number, show_log

if TYPE_CHECKING:
    from amdlib.methods import Method

FAST = {'amp': 'bf16', 'channels_last': True, 'fused': True, 'tf32': True}  # on a GPU, unless exactness is asked for
SPEED = 'speed.json'
ANY_PAIR = replace(GROUPS['retinanet'], own=True, offers=(*NEEDS, *OFFERED))    # options are tried on it
REFERENCE_RMS = 0.5     # ASSUMPTION reference: as at `mini`, see docs/assumptions.md
CAN_SHOW = 'A pair of your own on data of your own. One seed says nothing about another run of the method.'


@dataclass(frozen=True)
class Study(Studied):
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
        baseline: False leaves it out, and with it the gains.
        controls: 'inherit' and the masks' controls, such as 'amd-permuted', by the names of rows.
        settings: of every run, as for `run --set`.
        options: of single methods and controls, by their names: options of the method's class, or settings. A control
            has those of its method too.
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
    baseline: bool = True
    controls: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    options: Mapping[str, Mapping[str, Any]] | None = None
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
        self._check_options()
        if not self.name.replace('-', '').replace('_', '').isalnum():
            raise SettingError(f'name={self.name!r}: expected letters, digits, - and _')

    def _check_options(self) -> None:
        """SettingError for options of what the study lacks, and for one that is unknown or out of range."""
        if not isinstance(self.options or {}, Mapping):
            raise SettingError(f'options={self.options!r}: expected a table a method, such as [options.amd]')
        for name, own in (self.options or {}).items():
            if name not in (known := (*self.methods, *self.controls)):
                raise SettingError(f'options.{name}: no such method or control here; expected one of: '
                                   f'{", ".join(known)}')
            if not isinstance(own, Mapping):
                raise SettingError(f'options.{name}={own!r}: expected names and values, such as phi = 0.7')
            try:    # before the detectors are built: with a pair that offers all that methods ask for
                Recipe.of(row_of(replace(ANY_PAIR, name=config_name(self.student)), name), PROFILES['small'], own)
            except SettingError as error:
                raise SettingError(f'options.{name}: {error}') from None

    @classmethod
    def of(cls, values: Mapping[str, Any], home: Path = Path()) -> Study | PaperTable:
        """From plain values by the names above, or with `paper` by those of `PaperTable`; paths relative to `home`.

        Errors: SettingError.
        """
        if 'paper' in values:
            return PaperTable.of(values, home)
        given = cls._given(values, ('methods', 'seeds', 'controls'),
                           ('data', 'teacher_weights', 'student_backbone', 'results'), home)
        if lacking := [key for key in ('data', 'student', 'teacher') if not given.get(key)]:
            raise SettingError(f'a study needs {", ".join(lacking)}')
        for key in ('features', 'teacher_features'):
            if given.get(key, AUTO) != AUTO:
                given[key] = tuple(given[key].split(',') if isinstance(given[key], str) else given[key])
        given['methods'] = tuple(named(method, home) for method in given.get('methods', ('amd',)))
        if isinstance(given.get('options'), Mapping):
            given['options'] = {named(method, home): own for method, own in given['options'].items()}
        for key in ('student', 'teacher'):
            if not isinstance(given[key], str):
                raise SettingError(f'{key}: {type(given[key]).__name__}: a run trains in a process of its own, which '
                                   'builds its detector anew: expected a config, mmdet::folder/name.py or a file')
            if '::' not in given[key]:
                given[key] = str((home / given[key]).absolute())
        return cls(**given)

    # ---- what is trained --------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return self.name

    @functools.cached_property
    def store(self) -> Store:
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
        """The teacher, the baseline, controls, methods."""
        names = dict.fromkeys(['teacher', *['baseline'] * self.baseline, *self.controls, *self.methods])
        return [row_of(self.pair.group, name) for name in names]

    def runs(self) -> list[Run]:
        given = {'lr': self.lr, 'backbone': self.student_backbone, 'teacher_checkpoint': self.teacher_weights,
                 'share': self.share, **(FAST if self.is_fast else {}), **(self.settings or {})}
        found = {}
        for row in self.rows:
            for seed in self.seeds:
                if row.is_teacher:
                    run = teacher_of(row.group, self.profile, given)
                else:
                    run = Run.of(row, self.profile, seed, {**own_settings(row, given), **self._own_options(row)})
                found[run] = None
        return list(found)

    def _own_options(self, row: Row) -> dict[str, Any]:
        """What is asked for this row alone; of its method's, for a control, what does not make it that control."""
        if not self.options or row.method is None:
            return {}
        whole = row_of(row.group, row.method).options
        return {**{key: value for key, value in self.options.get(row.method, {}).items()
                   if row.options.get(key) == whole.get(key)}, **self.options.get(row.name, {})}

    @property
    def is_fast(self) -> bool:
        """Whether the ways of `FAST` are taken: as asked, as at the first run, or where there is a GPU."""
        if self.exact is not None:
            return not self.exact
        with contextlib.suppress(OSError, ValueError, KeyError):
            return bool(read_json(self.store.folder / SPEED)['fast'])
        return torch.cuda.is_available()

    def _begun(self, means: Mapping[str, Any]) -> Store:
        if self.exact is None and not (self.store.folder / SPEED).exists():     # what began so goes on so
            self.store.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.store.folder / SPEED, {'fast': self.is_fast and means.get('device') != 'cpu'})
        return self._store(means)

    def _store(self, means: Mapping[str, Any]) -> Store:
        return replace(super()._store(means), profile=self.profile)

    # ---- what came of it --------------------------------------------------------------------------------------------

    def table(self, resamples: int = 1000) -> pd.DataFrame:
        """A line a row: mAP, its difference to the baseline with a 95 % interval, the verdict, other numbers.

        With one seed the interval is about these checkpoints on other pictures, with several about the method on
        another run. Errors: RunError naming every run that is not done.
        """
        lines = []
        for row, own, found in self._judged(resamples):
            gain, verdict = (interval(pd.Series(found._asdict())), found.verdict) if found else ('', '')
            lines.append({      # where a terminal is narrow the last columns are left out
                '': self._label(row), 'mAP': number(own.mAP.astype(float).mean(), '.1f'), 'gain': gain,
                'verdict': verdict, **{name: number(own[name].astype(float).mean(), '.1f') for name in METRICS[1:]}})
        return pd.DataFrame(lines)

    def _judged(self, resamples: int) -> list[tuple[Row, pd.DataFrame, Verdict | None]]:
        """A row, the records of its runs, and its difference to the baseline, where it is compared with that."""
        store, runs = self._store({}), self.runs()
        records, on_images = store.collect(runs), OnImages(store, runs, resamples)
        return [(row, records[records.row == row.name],
                 judge(pair_up(records, row.group.name, row.name, 'baseline'), 'mAP', on_images)
                 if self.baseline and row.kind not in ('teacher', 'baseline') else None) for row in self.rows]

    def _label(self, row: Row) -> str:
        """Its label, with the options that it has of its own."""
        own = ', '.join(f'{key}={value}' for key, value in self._own_options(row).items())
        return f'{row.label} ({own})' if own else row.label

    def readable(self) -> str:
        return as_markdown(self.table())

    def write(self) -> Path:
        return write_markdown(self.store.folder / 'table.md', [
            f'# {self._headline}', self.readable(), '\n'.join(f'- {note}' for note in self._notes),
            f'```\n{self.describe()}\n```'])

    def report(self) -> Path:
        drawn = [{'label': self._label(row), **found._asdict()} for row, _, found in self._judged(1000)
                 if found and pd.notna(found.low)]
        return site.build(self._store({}), front=site.Front('study.html', tuple(self.runs()), {
            'title': self._headline, 'table': self.table(), 'notes': self._notes, 'described': self.describe(),
            'drawn': drawn, 'scale': Scale.of(
                (line['difference'], line['low'], line['high'], None) for line in drawn), 'drawn_alt': '; '.join(
                f'{line["label"]} {line["difference"]:+.2f} [{line["low"]:+.2f}, {line["high"]:+.2f}], '
                f'{line["verdict"]}' for line in drawn)}))

    @property
    def _headline(self) -> str:
        return f'{self.pair.group.student_label} <- {self.pair.group.teacher_label}, {self.store.dataset.name}'

    @property
    def _notes(self) -> list[str]:
        return [*self.store.dataset.notes, *self.warnings(), CAN_SHOW]

    def describe(self) -> str:
        """The pair, the ways that are taken, and how the Configs differ from the user's."""
        student = Run.of(row_of(self.pair.group, 'baseline'), self.profile)
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
    _tell()
    return prepare('folder', folder, Path('results', 'data').absolute(), **choice)


def distill(data: str | Path, student: str, teacher: str, *methods: str | type[Method], **more: Any) -> Study:
    """Train a study and return it: `distill('photos', 'mmdet::gfl/...', 'teacher.py', 'amd', epochs=12).table()`.

    Args:
        methods: names, or what `own_loss.method` has decorated; default: AMD.
        more: of `Study` and `Means`, such as teacher_weights, size, seeds=(0, 1, 2), split=0.8, jobs=2.
    """
    _tell()
    means = {one.name: more.pop(one.name) for one in fields(Means) if one.name in more}
    asked = {'data': str(data), 'student': student, 'teacher': teacher, **more}
    return Study.of({**asked, 'methods': methods or ('amd',)}).run(**means)


def _tell() -> None:
    """Show what the kit says, unless somebody has said where."""
    if not log.handlers:
        show_log()
