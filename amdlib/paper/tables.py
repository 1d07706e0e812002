"""The paper's tables, and ours: which rows each compares, to what differences are taken, which numbers are shown."""
from __future__ import annotations

from dataclasses import dataclass, replace

from amdlib.errors import SettingError
from amdlib.methods import find_method, names
from amdlib.paper.pairs import GROUPS, find_group
from amdlib.paper.printed import paper_label
from amdlib.paper.rows import SHUFFLED, Row, cannot, find_row, outside_row


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, or one of ours: its lines, each a row, the paper's or a control of ours."""
    name: str                       # of the make target and the files: 'table2'
    number: str                     # in the paper: 'II'; of a table of ours its name
    title: str
    groups: tuple[str, ...]
    lines: tuple[str, ...]          # names of rows, the same for every group
    reference: str                  # name of the row that differences are taken to
    difference: str                 # what that difference is called
    metrics: tuple[str, ...]
    notebook: str = ''              # that tells it; default: the one called as the table
    outside: tuple[str, ...] = ()   # methods of the user's, each a line more
    controls: tuple[str, ...] = ()  # names of rows that are shown where they are asked for
    ours: bool = False              # not the paper's: made where it is asked for by name, and no claim rests on it

    def rows(self, group: str | None = None) -> list[Row]:
        """The rows of every group of the table, or of one. Errors: SettingError for a group that it lacks."""
        if group and group not in self.groups:
            find_group(group)
            raise SettingError(f'{self.name} has no group {group!r}; expected one of: {", ".join(self.groups)}')
        return [row for name in ([group] if group else self.groups)
                for row in [*(find_row(f'{name}-{line}') for line in self.lines if not cannot(GROUPS[name], line)),
                            *(outside_row(GROUPS[name], method) for method in self.outside)]]

    def gaps(self, group: str) -> dict[str, str]:
        """By label the methods among its lines that a group has no row of, and why."""
        found = {line: cannot(GROUPS[group], line) for line in self.lines if line in names()}
        return {find_method(line).LABEL: why for line, why in found.items() if why}

    def label(self, row: Row) -> str:
        """As the paper's table prints it, or the row's own."""
        return paper_label(self.number, row.group.name, row.name) or row.label

    def with_controls(self) -> Table:
        """The table with its controls as lines."""
        return replace(self, lines=tuple(dict.fromkeys([*self.lines, *self.controls])))

    def reference_of(self, row: str, arm: str) -> str:
        """Name of the row that a line's difference is taken to.

        Where a table has gains over the baseline, a student that starts from its teacher's neck and head is compared
        with the one that starts so and is not distilled.
        Args:
            row: name of the line's row.
            arm: of its runs, 'alone' or 'inherit'.
        """
        starts_so = arm == 'inherit' and self.reference == 'baseline' and row not in ('baseline', 'inherit')
        return 'inherit' if starts_so else self.reference

    def with_methods(self, methods: tuple[str, ...] | list[str]) -> Table:
        """The table with a line more for each `path/to/file.py:ClassName`."""
        return replace(self, outside=tuple(methods)) if methods else self


PHI = (0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.5)   # ASSUMPTION phi's values: A has mean 1, so the sweep belongs around 1

# methods beside those of Table I and FitNet: on features, then on head outputs and proposals
ZOO = ('cwd', 'pkd', 'fgfi', 'defeat', 'frs', 'kd', 'dist', 'gid', 'crosskd', 'mimic', 'dkd', 'ld', 'chen', 'adl')

_ABLATION = ('baseline', 'amd', 'amd-channel', 'amd-mask', 'amd-unmasked', 'amd-allmasked')
_CONTROLS = ('amd-permuted', 'amd-inverted', 'amd-shuffled', 'amd-untrained')
_OURS = ('amd-spread', 'amd-smoothed')       # the paper's future work
_ABLATION_METRICS = ('mAP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')

TABLES: dict[str, Table] = {table.name: table for table in (
    Table('table1', 'I', 'The methods compared', ('retinanet', 'reppoints', 'faster_rcnn'),
          ('teacher', 'baseline', 'inherit', 'fkd', 'fgd', 'mgd', 'amd'), 'baseline', 'gain',
          ('mAP', 'AP_S', 'AP_M', 'AP_L', 'mAR', 'AR_S', 'AR_M', 'AR_L'),
          controls=('fitnet', 'amd-unmasked', 'amd-allmasked', *_CONTROLS)),
    *(Table(name, number, f'The parts of AMD: {GROUPS[group].student_label}', (group,), _ABLATION, 'amd', 'to full',
            _ABLATION_METRICS, notebook='ablation', controls=(*_CONTROLS, *_OURS))
      for name, number, group in (('table2', 'II', 'retinanet'), ('table3', 'III', 'reppoints'),
                                  ('table4', 'IV', 'faster_rcnn'))),
    Table('table5', 'V', 'Generation blocks', ('retinanet',), ('amd-mbconv', 'amd-conv1', 'amd'), 'amd',
          'to Dense Conv x2', _ABLATION_METRICS),
    Table('table6', 'VI', 'Position of the channel clue', ('faster_rcnn',), ('amd', 'amd-within'), 'amd', 'to After',
          _ABLATION_METRICS),
    # the methods that the paper cites and that reviewers ask for, in one harness: docs/zoo.md
    Table('zoo', 'zoo', 'The method zoo', ('retinanet', 'reppoints', 'faster_rcnn', 'gfl'),
          ('teacher', 'baseline', 'inherit', 'fitnet', 'fkd', 'fgd', 'mgd', 'amd', *ZOO), 'baseline', 'gain',
          ('mAP', 'AP_S', 'AP_M', 'AP_L', 'mAR'), ours=True, controls=tuple(f'{name}{SHUFFLED}' for name in ZOO)),
)}


def find_table(name: str) -> Table:
    """The table of this name; SettingError lists the names otherwise."""
    if name not in TABLES:
        raise SettingError(f'unknown table {name!r}; expected one of: {", ".join(TABLES)}')
    return TABLES[name]


def table_numbered(number: str) -> Table:
    """The table with the paper's number ('II'), as tidy cells have it."""
    (found,) = [table for table in TABLES.values() if table.number == number]
    return found
