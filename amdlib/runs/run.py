"""A run: a row at a profile with a seed and a recipe; and the runs behind a table, a figure or a sweep."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amdlib import methods
from amdlib.errors import SettingError
from amdlib.files import ROOT
from amdlib.paper.pairs import Group
from amdlib.paper.profiles import Profile, find_profile, scale_weights
from amdlib.paper.rows import Row, find_row, row_of
from amdlib.paper.tables import Table, find_table
from amdlib.runs.originals import published_url
from amdlib.runs.recipe import SETTINGS, Recipe, own_settings
from amdlib.weights import published
from amdlib.weights.published import Sources

ARMS = ('alone', 'inherit')     # how a one-stage student of a method starts


@dataclass(frozen=True)
class Run:
    """A row at a profile with a seed and, if any, settings that differ from the row's and the profile's."""
    row: Row
    profile: Profile
    seed: int = 0
    recipe: Recipe = Recipe()

    @classmethod
    def of(cls, row: str | Row, profile: str | Profile, seed: int = 0,
           settings: Mapping[str, Any] | None = None) -> Run:
        """Validated; SettingError for an unknown row, profile or key, or a value of the wrong kind."""
        row = find_row(row) if isinstance(row, str) else row
        profile = find_profile(profile) if isinstance(profile, str) else profile
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2 ** 31:
            raise SettingError(f'seed={seed!r}: expected an integer of 0 to 2**31 - 1')
        run = cls(row, profile, seed, Recipe.of(row, profile, settings or {}))
        run._check_weights()
        return run

    def _check_weights(self) -> None:
        """SettingError for a weight that carrying over to the profile makes infinite."""
        if self.recipe.options or self.recipe.factor != 1:
            for name, value in self.options().items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise SettingError(f'{self.id}: {name} is {value} at profile {self.profile.name}: expected a '
                                       'smaller value or factor')

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the row's and the profile's own, by name."""
        return self.recipe.changed()

    @property
    def id(self) -> str:
        """Name of the run's folder: `retinanet-amd+phi=0.7-s0`."""
        return ''.join([self.row.id, *(f'+{key}={_short(value)}' for key, value in self.settings.items()),
                        f'-s{self.seed}'])

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        by = self.profile.epochs
        keys = (self.row.id, 'teacher' if self.row.is_teacher else self.row.group.name, 'student')
        return self.recipe.epochs or next(by[key] for key in keys if key in by)

    @property
    def batch_size(self) -> int:
        """Images a step and GPU."""
        return self.recipe.batch_size or self.profile.batch_size

    @property
    def images_per_update(self) -> int:
        """Images behind one change of the weights: batch size x GPUs x accumulated steps."""
        return self.batch_size * self.recipe.gpus * self.recipe.accumulate

    def teacher(self) -> Run | None:
        """The run behind this run's teacher: its own seed, and what of the recipe concerns it."""
        if not self.row.taught_by:
            return None
        settings = self.recipe.for_teacher()
        if self.row.taught_by == 'untrained':
            settings = {}
        elif self.profile.shipped and self.recipe.teachers == 'shipped':    # no setting of the student reaches it
            settings = {key: value for key, value in settings.items() if f'teacher_{key}' in SETTINGS}
        return Run.of(row_of(self.row.group, self.row.taught_by), self.profile, self.recipe.teacher_seed, settings)

    @property
    def inherits(self) -> tuple[str, ...]:
        """The parts of the teacher's detector from which this run's starts, where name and shape match."""
        group = self.row.group
        if self.row.kind == 'inherit':
            return ('neck', 'bbox_head') if group.one_stage else ('neck', 'rpn_head')
        wanted = self.profile.arm == 'inherit' if self.recipe.inherit is None else self.recipe.inherit
        # ASSUMPTION inherit: FGD and MGD do so for one-stage students; applied to every method alike
        return ('neck', 'bbox_head') if self.row.method and wanted and group.one_stage else ()

    @property
    def trains(self) -> bool:
        """Whether there is anything to train: not where a detector is given, or left with random weights."""
        return self.row.name != 'untrained' and 'checkpoint' not in {**self.recipe.files(), **self.published_files()}

    def steps(self, images: int) -> int:
        """How many it makes on so many images, 0 where it trains nothing: a step takes batch size x GPUs of them, an
        epoch's last one what is left."""
        an_epoch = math.ceil(math.ceil(images / self.recipe.gpus) / self.batch_size)
        return self.epochs * an_epoch if self.trains else 0

    @property
    def arm(self) -> str:
        """How it starts: 'alone', or 'inherit'."""
        return 'inherit' if self.inherits else 'alone'

    @property
    def reference_rms(self) -> float | None:
        """What the teacher's features are scaled to before the loss sees them; None: not scaled."""
        return (self.recipe.reference or self.profile.reference_rms) if self.row.method else None

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels of the pyramid that are distilled."""
        return self.recipe.levels or self.row.group.levels

    def value(self, option: str) -> Any:
        """One of the method's options at the paper's scale, as this run has it."""
        return dict(self.recipe.options).get(option, self.row.value(option))

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the method's class: the row's, changed by the settings, scaled to the profile."""
        return scale_weights(methods.find_method(self.row.method), {**self.row.options, **dict(self.recipe.options)},
                             self.profile, self.batch_size, self.recipe.factor)

    def published_files(self) -> dict[str, str]:
        """Addresses of published or shipped weights that this run takes where its settings name no file, by setting.

        At `paper` a teacher is a published detector and a student starts from a published backbone; where a profile
        ships its own, these.
        """
        key = 'checkpoint' if self.row.is_teacher else 'backbone'
        if key in self.recipe.files() or self.row.name == 'untrained':
            return {}
        if self.profile.published:
            return {key: published_url(self.row, key)}
        if not self.profile.shipped or self.row.is_teacher and self.settings:   # it is trained, as they say
            return {}
        name = f'{self.row.group.name}-teacher-s{self.seed}' if self.row.is_teacher else 'backbone'
        file = shipped_file(self.profile.shipped, name)
        return {key: str(file)} if file else {}

    def find_files(self, sources: Sources) -> dict[str, str]:
        """Paths of all weight files that this run takes, published ones fetched where need be, each checked.

        Errors: WeightsError for a file that is not what its name says, or that is not to be had.
        """
        given = {key: str(published.check(Path(path))) for key, path in self.recipe.files().items()}
        return {**given, **{key: str(published.find(url, sources) if '://' in url else published.check(ROOT / url))
                            for key, url in self.published_files().items()}}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a job file."""
        own = {'pair': asdict(self.row.group)} if self.row.group.own else {}
        return {'row': self.row.reference, 'profile': self.profile.to_dict(), 'seed': self.seed,
                'settings': self.settings, **own}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """The run of `to_dict`."""
        row = values['row']
        if 'pair' in values:
            pair = Group.from_dict(values['pair'])
            row = row_of(pair, row.removeprefix(f'{pair.name}-'))
        return cls.of(row, Profile.from_dict(values['profile']), values['seed'], values['settings'])


def table_runs(table: str | Table, profile: str | Profile, group: str | None = None, seeds: Iterable[int] = (0,),
               settings: Mapping[str, Any] | None = None, methods: Iterable[str] = (), arm: str | None = None,
               controls: bool = False) -> list[Run]:
    """The runs behind a table: its rows in every group (or in one) with every seed; teachers have seed 0 only.

    Args:
        settings: each row takes those that it has (`teacher_backbone` is a teacher's `backbone`).
        methods: losses of your own, `path/to/file.py:ClassName` each, as lines beside the table's.
        arm: how one-stage students of the methods start: 'alone', or 'inherit' (from the teacher's neck and head);
            default: the profile's.
        controls: the table's controls as further lines.
    Errors: SettingError for an unknown table, group, arm or setting, a dry run, or no seeds.
    """
    table = (find_table(table) if isinstance(table, str) else table).with_methods(list(methods))
    table = table.with_controls() if controls else table
    profile = find_profile(profile) if isinstance(profile, str) else profile
    if profile.dry_run:
        raise SettingError(f'profile {profile.name} makes no tables: its networks are random and its numbers mean '
                           'nothing')
    seeds = _seeds(seeds)
    return list(dict.fromkeys(table_run(row, profile, seed, settings, arm) for row in table.rows(group)
                              for seed in seeds))


def table_run(row: Row, profile: Profile, seed: int = 0, settings: Mapping[str, Any] | None = None,
              arm: str | None = None) -> Run:
    """A row as a table with these settings has it: a teacher is the one that the table's students learn from.

    Errors: SettingError for an unknown setting or arm.
    """
    if row.name == 'teacher':
        return teacher_of(row.group, profile, settings)
    return Run.of(row, profile, 0 if row.is_teacher else seed, _settings(row, profile, settings, arm))


def arm_settings(row: Row, profile: Profile, arm: str | None) -> dict[str, Any]:
    """What of a row's settings puts it into an arm; {} for rows that know no other, and for the profile's own.

    Errors: SettingError for an unknown arm.
    """
    if arm not in (None, *ARMS):
        raise SettingError(f'arm={arm!r}: expected one of {", ".join(ARMS)}')
    if arm in (None, profile.arm) or not (row.method and row.group.one_stage):
        return {}
    return {'inherit': arm == 'inherit'}


def row_runs(group: str, names: Iterable[str], profile: str | Profile, seed: int = 0,
             settings: Mapping[str, Any] | None = None) -> list[Run]:
    """Rows of one group by their names in it ('teacher', 'amd'), with the settings of a table; teachers have seed 0.

    Errors: SettingError for an unknown row or setting.
    """
    rows = [find_row(f'{group}-{name}') for name in dict.fromkeys(names)]
    profile = find_profile(profile) if isinstance(profile, str) else profile
    return [table_run(row, profile, seed, settings) for row in rows]


def sweep_runs(row: str, option: str, values: Iterable[Any], profile: str | Profile, seeds: Iterable[int] = (0,),
               settings: Mapping[str, Any] | None = None, arm: str | None = None) -> list[Run]:
    """One row with several values of one of its method's options, such as 0.5, 0.7 and 1.0 of phi.

    Args:
        arm: as of `table_runs`.
    Errors: SettingError for an unknown row, option or arm, or values that are not of its kind.
    """
    found, values = find_row(row), list(values)
    profile = find_profile(profile) if isinstance(profile, str) else profile
    if not values:
        raise SettingError(f'no values of {option} given: expected some, such as 0.5 1.0')
    own = _settings(found, profile, settings, arm)
    runs = [Run.of(found, profile, seed, {**own, option: value}) for value in values for seed in _seeds(seeds)]
    return list(dict.fromkeys(runs))


def teacher_of(group: Group, profile: Profile, settings: Mapping[str, Any] | None = None) -> Run:
    """The teacher that the students of a table with these settings learn from."""
    student = row_of(group, 'amd')
    return Run.of(student, profile, 0, own_settings(student, settings or {})).teacher()


def with_teachers(runs: Iterable[Run]) -> list[Run]:
    """The runs and the teachers that they need, each once, teachers first."""
    runs = list(dict.fromkeys(runs))
    teachers = dict.fromkeys(teacher for run in runs if (teacher := run.teacher()))
    return [*teachers, *(run for run in runs if run not in teachers)]


def shipped_file(folder: str, name: str) -> Path | None:
    """The file of this name, `<name>-<first digits of its SHA-256>.pth`, that the kit ships; None where it does not.

    Its path is relative to the kit's folder. Errors: SettingError where there are several.
    """
    found = sorted((ROOT / folder).glob(f'{name}-????????.pth'))
    if len(found) > 1:
        raise SettingError(f'{folder}: more than one {name}: {", ".join(file.name for file in found)}; keep one')
    return found[0].relative_to(ROOT) if found else None


def _settings(row: Row, profile: Profile, settings: Mapping[str, Any] | None, arm: str | None) -> dict[str, Any]:
    if arm and (settings or {}).get('inherit') is not None:
        raise SettingError(f'arm={arm} and inherit={settings["inherit"]}: give one of them')
    return {**own_settings(row, settings or {}), **arm_settings(row, profile, arm)}


def _seeds(seeds: Iterable[int]) -> list[int]:
    found = sorted(set([seeds] if isinstance(seeds, int) else seeds))
    if not found or not all(isinstance(seed, int) for seed in found):
        raise SettingError(f'seeds {seeds!r}: expected numbers, such as 0 1 2')
    return found


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return '-'.join(map(str, value))
    return Path(value).stem if isinstance(value, str) and '/' in value else str(value)
