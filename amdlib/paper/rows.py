"""Rows: every cell of the tables that is trained; the variants of AMD that Tables II to VI and the controls need."""
from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path

from amdlib import methods
from amdlib.errors import SettingError
from amdlib.paper.pairs import GROUPS, Group
from amdlib.paper.printed import paper_lines


@dataclass(frozen=True)
class Row:
    """One cell of a table: a detector to train, alone or with a distillation method."""
    group: Group
    name: str                   # 'teacher', 'baseline', a method, or a variant of one; key of data/paper_tables.csv
    label: str                  # in words, where no table of the paper prints another
    method: str | None = None   # name of a method, or the path/to/file.py:ClassName of one; None = trained alone
    options: dict = field(default_factory=dict, hash=False)     # of the method's class, at the paper's scale
    taught_by: str = ''         # name of the row whose detector it learns or inherits from
    shuffled: bool = False      # a control: every picture gets the teacher's features of another one

    @property
    def id(self) -> str:
        """`retinanet-amd`; part of the run's folder."""
        return f'{self.group.name}-{self.name}'

    @property
    def reference(self) -> str:
        """What `find_row` takes: the id, or for a method from outside the path of its file too."""
        return f'{self.group.name}-{self.method}' if self.method and methods.is_outside(self.method) else self.id

    @property
    def is_teacher(self) -> bool:
        return self.name in ('teacher', 'untrained')

    @property
    def kind(self) -> str:
        """'teacher', 'baseline' (trained alone), 'inherit' (alone, from the teacher's neck and head) or 'method'."""
        return 'method' if self.method else 'teacher' if self.is_teacher else self.name

    def value(self, option: str) -> object:
        """The value of one of the method's options at the paper's scale: the row's or the class's default."""
        return self.options.get(option, methods.options_of(self.method)[option].default)


@dataclass(frozen=True)
class Variant:
    """What a row changes in the full method."""
    name: str
    label: str
    options: dict = field(default_factory=dict)
    only: str | None = None     # the only pair that has it
    taught_by: str = 'teacher'
    shuffled: bool = False


VARIANTS = (
    Variant('amd-channel', 'channel only', {'spatial': 'random'}),      # ASSUMPTION random masks: see docs
    Variant('amd-mask', 'mask only', {'channel': 'none'}),
    Variant('amd-mbconv', 'MBConv', {'generation': 'mbconv'}, 'retinanet'),
    Variant('amd-conv1', 'Dense Conv x1', {'generation': 'conv1'}, 'retinanet'),
    Variant('amd-within', 'clue within', {'channel_position': 'within'}, 'faster_rcnn'),
    # controls of ours: what masking does, whether it matters where, and whether it matters what the teacher knows
    Variant('amd-unmasked', 'nothing masked', {'spatial': 'none'}),
    Variant('amd-allmasked', 'everything masked', {'spatial': 'all'}),
    Variant('amd-permuted', 'same share, placed at random', {'spatial': 'permuted'}),
    Variant('amd-inverted', 'same share, least attention', {'spatial': 'inverted'}),
    Variant('amd-shuffled', "another picture's features", shuffled=True),
    Variant('amd-untrained', 'untrained teacher', taught_by='untrained'),
    # ours, after the paper's future work: attention whose positions interact
    Variant('amd-spread', 'ours: attention spread to alike positions', {'spatial': 'spread'}),
    Variant('amd-smoothed', 'ours: attention smoothed over neighbours and levels', {'spatial': 'smoothed'}),
)


def _method_row(group: Group, method: str, name: str, label: str = '') -> Row:
    cls = methods.find_method(method)
    return Row(group, name, label or cls.LABEL or cls.__name__, method,
               dict(cls.PUBLISHED.get(group.published_weights, {})), 'teacher')


SHUFFLED = '-shuffled'      # behind a method's name: the control in which every picture gets another one's features


@functools.cache
def cannot(group: Group, name: str) -> str:
    """Why a method of the package, or its control, has no row in a pair; '' where it has one, and for other rows."""
    method = name.removesuffix(SHUFFLED)
    cls = methods.find_method(method) if method in methods.names() else None
    if cls is None or not methods.looks_at_steps(cls):
        return ''
    return cls.cannot(group.offers, group.teacher_offers or group.offers)


def _rows(group: Group) -> list[Row]:
    printed = [key for _, key in paper_lines('I') if key in methods.names()]
    found = [_method_row(group, name, name) for name in dict.fromkeys([*printed, *methods.names()])
             if not cannot(group, name)]
    full = next(row for row in found if row.name == 'amd')
    return [Row(group, 'teacher', 'Teacher'), Row(group, 'untrained', 'Teacher, untrained'),
            Row(group, 'baseline', 'baseline'), Row(group, 'inherit', 'inherit', taught_by='teacher'), *found,
            *(Row(group, one.name, one.label, full.method, {**full.options, **one.options}, one.taught_by, one.shuffled)
              for one in VARIANTS if one.only in (None, group.name))]


ROWS: dict[str, Row] = {row.id: row for group in GROUPS.values() for row in _rows(group)}


def find_row(reference: str) -> Row:
    """The row with this id, such as `retinanet-amd`, or `retinanet-path/to/file.py:ClassName` for a loss of your own;
    `retinanet-pkd-shuffled` is the control of any method.

    Errors: SettingError listing the ids, or what is wrong with the class.
    """
    if reference in ROWS:
        return ROWS[reference]
    name, _, method = reference.partition('-')
    if name in GROUPS and methods.is_outside(method):
        return outside_row(GROUPS[name], method)
    if name in GROUPS and (row := _unlisted(GROUPS[name], method)):
        return row
    raise SettingError(f'unknown row {reference!r}; expected one of: {", ".join(ROWS)}; or '
                       'GROUP-path/to/file.py:ClassName for a loss of your own')


@functools.cache
def row_of(group: Group, name: str) -> Row:
    """The row of this name in a pair, the paper's or the user's. Errors: SettingError."""
    if not group.own:
        return find_row(f'{group.name}-{name}')
    if methods.is_outside(name):
        return outside_row(group, name)
    found = {row.name: row for row in _rows(group)}
    if name not in found and (row := _unlisted(group, name)):
        return row
    if name not in found:
        raise SettingError(f'unknown row {name!r}; expected one of: {", ".join(found)}; or path/to/file.py:ClassName')
    return found[name]


def _unlisted(group: Group, name: str) -> Row | None:
    """A method's control, which stands in no list of rows; None for another name. Errors: SettingError."""
    if why := cannot(group, name):
        raise SettingError(f'there is no {group.name}-{name}: {name.removesuffix(SHUFFLED)} {why}')
    method = name.removesuffix(SHUFFLED)
    if method == name or method not in methods.names():
        return None
    row = _method_row(group, method, name)
    return replace(row, label=f"{row.label}: another picture's features", shuffled=True)


def outside_row(group: Group, method: str) -> Row:
    """The row of a method from a file of the user's. Errors: SettingError for a class that is no method."""
    method = methods.absolute(method)
    path, _, cls = method.rpartition(':')
    return _method_row(group, method, f'{Path(path).stem}.{cls}')
