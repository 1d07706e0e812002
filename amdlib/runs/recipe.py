"""Settings. A `Recipe` holds all that a run takes besides row, profile and seed; `Means` what changes no number.

A setting is added here, in one line, and acts where `config` or the engine reads it; command line, make, notebooks and
batches take it from here. Text becomes values once, in `parse`; from there on settings are values.
"""
from __future__ import annotations

import ast
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from amdlib import methods
from amdlib.errors import SettingError
from amdlib.paper.profiles import Profile
from amdlib.paper.rows import Row
from amdlib.runs.originals import published_url
from amdlib.weights import published
from amdlib.weights.published import Sources

PRECISIONS = ('off', 'bf16', 'fp16')
EVERY = ('teacher', 'baseline', 'inherit', 'method')
STUDENTS, TAUGHT = EVERY[1:], EVERY[2:]
CHOICES = {'amp': PRECISIONS, 'half_teacher': PRECISIONS, 'optimizer': ('adamw', 'sgd'), 'split': ('test', 'val'),
           'teachers': ('shipped', 'fresh')}


def _setting(default: Any, kind: str, text: str, of: tuple[str, ...] = EVERY, with_teacher: bool = False) -> Any:
    """A field of Recipe: `kind` int, float, bool, choice, levels or file; `of` the kinds of rows that have it;
    `with_teacher`: a student's teacher is trained with the same value."""
    return field(default=default, metadata={'kind': kind, 'text': text, 'of': of, 'with_teacher': with_teacher})


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; None = the profile's or the row's own. Those that differ stand in the run's name."""
    epochs: int | None = _setting(None, 'int', "passes over the images; the profile's", with_teacher=True)
    batch_size: int | None = _setting(None, 'int', "images a step and GPU; the profile's", with_teacher=True)
    lr: float | None = _setting(None, 'float', 'learning rate, taken as it is, not scaled', with_teacher=True)
    gpus: int = _setting(1, 'int', 'GPUs that train one run together', with_teacher=True)
    accumulate: int = _setting(1, 'int', 'steps whose gradients are added up', with_teacher=True)
    amp: str = _setting('off', 'choice', 'mixed precision: bf16 or fp16', with_teacher=True)
    tf32: bool = _setting(False, 'bool', 'TF32 products on a GPU', with_teacher=True)
    channels_last: bool = _setting(False, 'bool', 'memory layout', with_teacher=True)
    fused: bool = _setting(False, 'bool', 'fused optimizer', with_teacher=True)
    compile_teacher: bool = _setting(False, 'bool', "torch.compile of the teacher's backbone", ('method',))
    half_teacher: str = _setting('off', 'choice', "the frozen teacher's pass in bf16 or fp16", ('method',))
    # weight files, at `paper` also the folder that holds the published one; their content is hashed into the record
    backbone: str | None = _setting(None, 'file', 'first weights of the backbone')
    checkpoint: str | None = _setting(None, 'file', 'a whole detector, evaluated and not trained', ('teacher',))
    teacher_backbone: str | None = _setting(None, 'file', "first weights of the teacher's backbone", TAUGHT)
    teacher_checkpoint: str | None = _setting(None, 'file', 'a whole teacher instead of a trained one', TAUGHT)
    teachers: str = _setting('shipped', 'choice', 'shipped, or fresh: trained here', ('teacher', *TAUGHT),
                             with_teacher=True)
    teacher_seed: int = _setting(0, 'int', "the teacher's seed", TAUGHT)
    inherit: bool | None = _setting(None, 'bool', "start from the teacher's neck and head; the profile's arm",
                                    ('method',))
    factor: float = _setting(1.0, 'float', 'on all weights of the method', ('method',))
    share: float | None = _setting(None, 'float', 'of the loss that distillation starts as; pairs of your own',
                                   ('method',))
    reference: float | None = _setting(None, 'float', "RMS that the teacher's features are scaled to; the profile's",
                                       ('method',))
    one_scale: bool = _setting(False, 'bool', 'one constant for all levels instead of one a level', ('method',))
    levels: tuple[int, ...] | None = _setting(None, 'levels', 'of the pyramid that are distilled', ('method',))
    optimizer: str | None = _setting(None, 'choice', "adamw or sgd; the profile's", STUDENTS)
    split: str = _setting('test', 'choice', 'on which it is evaluated: test or val', STUDENTS)
    options: tuple[tuple[str, Any], ...] = ()   # of the method's class, at the paper's scale

    @classmethod
    def of(cls, row: Row, profile: Profile, values: Mapping[str, Any]) -> Recipe:
        """Validated; SettingError for an unknown key, or a value of the wrong kind or out of range."""
        kinds = {key: kind for key, (kind, rows) in _KNOWN.items() if row.kind in rows}
        own = methods.options_of(row.method) if row.method else {}
        plain, options = {}, {}
        for key, value in values.items():
            if key in kinds:
                plain[key] = _checked(row, profile, key, kinds[key], value)
            elif key in own:
                options[key] = _as_kind(key, type(own[key].default).__name__, value)
            else:
                raise SettingError(f'{row.id} has no setting {key!r}; it has: {", ".join([*kinds, *own])}')
        if plain.get('share') and plain.get('factor', 1.0) != 1.0:
            raise SettingError(f'{row.id}: share sets the weights; factor={plain["factor"]} would do nothing')
        if options:     # a value out of range is told before a teacher is trained for it
            try:
                method = methods.find_method(row.method)
                channels = ([(16, 16)],) if methods.looks_at_steps(method) else (16, 16)
                method(*channels, **{**row.options, **options})
            except ValueError as error:
                raise SettingError(f'{row.id}: {error}') from None
        # phi=1.0 is the row itself: trained once, whoever asks
        changed = {key: value for key, value in options.items() if value != row.value(key)}
        return cls(**plain, options=tuple(sorted(changed.items())))

    def changed(self) -> dict[str, Any]:
        """What differs from the default, sorted by name."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != 'options'}
        return dict(sorted({**{key: value for key, value in plain.items() if value != _DEFAULTS[key]},
                            **dict(self.options)}.items()))

    def for_teacher(self) -> dict[str, Any]:
        """What a student's teacher is trained with: what both share, and the settings called `teacher_...`."""
        return _for_teacher(self.changed())

    def files(self) -> dict[str, str]:
        """The weight files that are given, by setting."""
        return {key: value for key, value in self.changed().items() if key in FILES}


_DEFAULTS = {one.name: one.default for one in fields(Recipe) if one.name != 'options'}
_KNOWN = {one.name: (one.metadata['kind'], one.metadata['of']) for one in fields(Recipe) if one.name != 'options'}
SETTINGS = {one.name: one.metadata['text'] for one in fields(Recipe) if one.name != 'options'}      # name -> help
FILES = tuple(key for key, (kind, _) in _KNOWN.items() if kind == 'file')
WITH_TEACHER = tuple(one.name for one in fields(Recipe) if one.metadata.get('with_teacher'))


@dataclass(frozen=True)
class Means:
    """How and with what: device, processes, where published weights lie. None of it changes a number."""
    device: str | None = None           # cpu, cuda or cuda:N; None: a GPU where there is one
    jobs: int | None = None             # runs at once; None: one a GPU, or one a core (four at most)
    workers: int | None = None          # processes that load pictures, a GPU; None: the profile's
    tensorboard: bool = False
    sources: Sources = Sources()        # of published weights
    teacher_check_images: int = 300     # on which a published teacher's mAP is checked; 0: not checked

    def __post_init__(self) -> None:
        for name, least in (('jobs', 1), ('workers', 0), ('teacher_check_images', 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise SettingError(f'{name}={value!r}: expected a number of {least} or more')
        kind, _, card = (self.device or 'cpu').partition(':')
        bad_card = str(self.device).endswith(':') or card and (kind == 'cpu' or not card.isdigit())
        if kind not in ('cpu', 'cuda') or bad_card:
            raise SettingError(f'device={self.device!r}: expected cpu, cuda or cuda:N')

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a job file."""
        return {**{one.name: getattr(self, one.name) for one in fields(self)}, 'sources': self.sources.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Means:
        """The Means of `to_dict`; what is left out has its default. Errors: SettingError for an unknown name."""
        if unknown := values.keys() - {one.name for one in fields(cls)}:
            raise SettingError(f'unknown {", ".join(sorted(unknown))}; expected some of: '
                               f'{", ".join(one.name for one in fields(cls))}')
        given = dict(values)
        if isinstance(given.get('sources'), Mapping):
            given['sources'] = Sources.from_dict(given['sources'])
        return cls(**given)


def parse(text: str | Iterable[str]) -> dict[str, Any]:
    """'phi=0.7 epochs=2', or the words of it, as values by name: the one place where text becomes settings.

    What reads as a Python literal is one (0.7, True, [1, 2]), everything else is text; a value with spaces is quoted as
    in a shell. Errors: SettingError for a word without `=`.
    """
    found = {}
    for word in _words(text) if isinstance(text, str) else text:
        key, separator, value = word.partition('=')
        if not separator or not key:
            raise SettingError(f'{word!r}: expected KEY=VALUE')
        found[key] = _literal(value)
    return found


def numbers(text: str) -> list[Any]:
    """'0.5 0.7' or '0,1,2' as values, each of its own kind."""
    return [_literal(word) for word in text.replace(',', ' ').split()]


def own_settings(row: Row, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings for a whole table those that concern this row, by the row's names for them.

    Errors: SettingError for one that no row has.
    """
    given = {key: value for key, value in settings.items() if value not in (None, '')}     # empty ones do not count
    if unknown := [key for key in given if key not in _KNOWN or 'method' not in _KNOWN[key][1]]:
        known = [key for key, (_, rows) in _KNOWN.items() if 'method' in rows]
        raise SettingError(f'a table has no setting {unknown[0]!r}; it has: {", ".join(known)}')
    if row.is_teacher:
        return _for_teacher(given)
    return {key: value for key, value in given.items() if row.kind in _KNOWN[key][1]
            and (key != 'inherit' or row.group.one_stage)}


def absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings for a process in another folder."""
    return {key: str(Path(value).absolute()) if key in FILES and value else value for key, value in settings.items()}


def _for_teacher(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a student's settings those of its teacher, by the teacher's names for them."""
    return {key.removeprefix('teacher_'): value for key, value in settings.items()
            if key in WITH_TEACHER or key.startswith('teacher_') and key != 'teacher_seed'}


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise SettingError(f'{text!r}: {str(error).lower()}; expected KEY=VALUE words, quoted as in a shell') from None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _checked(row: Row, profile: Profile, key: str, kind: str, value: Any) -> Any:
    if value is None or value == _DEFAULTS[key]:
        return _DEFAULTS[key]
    if kind == 'choice':
        known = CHOICES[key]
        # as mmdet's --amp: half precision is float16
        word = {'True': 'fp16', 'False': 'off'}.get(str(value), value) if known is PRECISIONS else value
        if word not in known:
            raise SettingError(f'{key}={value!r}: expected one of {", ".join(known)}')
        return _choice(profile, key, word)
    if kind == 'levels':
        found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if not found or not all(level in row.group.levels for level in found):
            raise SettingError(f'{key}={value!r}: expected some of {", ".join(map(str, row.group.levels))}')
        found = tuple(level for level in row.group.levels if level in found)
        return None if found == row.group.levels else found
    if kind == 'file':
        return str(_file(row, profile, key, Path(str(value))).resolve())
    value = _as_kind(key, kind, value)
    most = {'int': 2 ** 31, 'float': math.inf}.get(kind)
    if most and not 0 < value < most:      # teacher_seed's 0 is its default
        raise SettingError(f'{key}={value!r}: expected a positive number{" below 2**31" if kind == "int" else ""}')
    if key == 'share' and (value >= 1 or not row.group.own):
        raise SettingError(f'{row.id}: share={value}: ' + ('expected a number below 1' if row.group.own else
                           "a pair of the paper's takes the weights as published, or by factor"))
    if key == 'inherit' and not row.group.one_stage:
        if value:
            raise SettingError(f'{row.id}: inherit={value}: a two-stage student of a method starts alone')
        return None
    return value


def _choice(profile: Profile, key: str, word: str) -> str | None:
    """A choice as this profile has it. Errors: SettingError where it does not."""
    if key == 'teachers' and not profile.shipped:
        if profile.published:
            raise SettingError(f'teachers={word}: teachers of profile {profile.name} are published, none is trained')
        return _DEFAULTS[key]       # they are trained here whatever is said
    if key == 'optimizer' and profile.lr is None:
        if word != 'sgd':
            raise SettingError(f'optimizer={word}: profile {profile.name} trains with the SGD of mmdet')
        return None
    return word


def _as_kind(key: str, kind: str, value: Any) -> Any:
    if kind == 'float' and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2 ** 1000 else math.inf
    if type(value).__name__ != kind and kind != 'NoneType':
        raise SettingError(f'{key}={value!r}: expected {kind}')
    return value


def _file(row: Row, profile: Profile, key: str, path: Path) -> Path:
    """A weight file, or the published one in a folder."""
    if path.is_dir() and profile.published:
        url = published_url(row, key)
        if (found := published.in_folder(path, url)) is None:
            raise SettingError(f'{key}={path}: the folder has no {published.file_name(url)}')
        return found
    if not path.is_file():
        raise SettingError(f'{key}={path}: {"a folder, expected a file" if path.is_dir() else "no such file"}')
    return path
