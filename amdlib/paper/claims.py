"""What the paper's Section IV claims, as data: one row of a table over another; and what the plan asks beside it."""
from __future__ import annotations

from dataclasses import dataclass

from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import paper_groups, paper_value
from amdlib.paper.rows import ROWS
from amdlib.paper.tables import TABLES, Table


@dataclass(frozen=True)
class Claim:
    """That one row is better than another in some number; `section` of the paper, '' where it says nothing of it."""
    says: str
    row: str
    over: str
    section: str = ''
    metric: str = 'mAP'
    planned: str = ''                   # name of the planned comparison that judges it; '' = exploratory
    only: tuple[str, ...] = ()          # groups it is about; none = all of the paper's that have both rows

    @property
    def groups(self) -> tuple[str, ...]:
        """The detector pairs that it is about."""
        return tuple(group for group in self.only or paper_groups()
                     if {f'{group}-{self.row}', f'{group}-{self.over}'} <= ROWS.keys())

    def tables(self, group: str) -> list[Table]:
        """The tables that have both rows for a group, those first that have them without being asked for controls."""
        both = {self.row, self.over}
        found = [table for table in TABLES.values() if group in table.groups and not table.ours]
        return [table for table in found if both <= {*table.lines}] + [
            table for table in found if both - {*table.lines} and both <= {*table.lines, *table.controls}]

    def printed(self, group: str) -> tuple[str, float] | None:
        """Number of the table in which the paper prints both, and its difference in points; None where none does, or
        where it makes no such claim."""
        for table in self.tables(group) if self.section else ():
            own, other = (paper_value(table.number, group, row, self.metric) for row in (self.row, self.over))
            if own is not None and other is not None:
                return table.number, round(own - other, 1)
        return None


CLAIMS = (
    Claim('AMD is better than MGD', 'amd', 'mgd', 'IV-B', planned='AMD over MGD'),
    Claim('Masked where attention is high, AMD is better than with the same share at random', 'amd', 'amd-permuted',
          planned='AMD over same share at random', only=('retinanet',)),
    Claim('The student is better with AMD than alone', 'amd', 'baseline', 'IV-B', planned='AMD over baseline'),
    Claim('The student is better with MGD than alone', 'mgd', 'baseline', 'IV-B', planned='MGD over baseline'),
    Claim('The student is better with FGD than alone', 'fgd', 'baseline', 'IV-B', planned='FGD over baseline'),
    Claim('The student is better with FKD than alone', 'fkd', 'baseline', 'IV-B', planned='FKD over baseline'),
    Claim('The student is better with FitNet than alone', 'fitnet', 'baseline', planned='FitNet over baseline',
          only=('retinanet',)),
    Claim('AMD is better than MGD, each with its own calibrated weights', 'amd', 'mgd',
          planned='AMD over MGD, calibrated', only=('retinanet',)),
    Claim("AMD adds to a start from the teacher's neck and head", 'amd', 'inherit', planned='AMD over inherit',
          only=('retinanet',)),
    Claim('AMD is better than FGD', 'amd', 'fgd', 'IV-B'),
    Claim('AMD is better than FKD', 'amd', 'fkd', 'IV-B'),
    Claim('The student surpasses its teacher', 'amd', 'teacher', 'IV-B', only=('retinanet',)),
    Claim('Attention places the mask better than chance', 'amd', 'amd-channel', 'IV-C'),
    Claim('Attention helps small objects', 'amd', 'amd-channel', 'IV-C', 'AP_S'),
    Claim('The channel clue helps', 'amd', 'amd-mask', 'IV-C'),
    Claim('The channel clue helps small objects', 'amd', 'amd-mask', 'IV-C', 'AP_S'),
    Claim('Two convolutions generate better than MBConv', 'amd', 'amd-mbconv', 'IV-C'),
    Claim('Two convolutions generate better than one', 'amd', 'amd-conv1', 'IV-C'),
    Claim('The clue belongs after the generation block, not within', 'amd', 'amd-within', 'IV-C'),
)
assert all(set(claim.only) <= set(GROUPS) for claim in CLAIMS)
