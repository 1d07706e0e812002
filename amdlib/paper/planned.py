"""The comparisons that docs/plan.md names, as data: what was to be asked before the reported seeds were trained."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Planned:
    """A difference in mAP between two rows of a group, paired by seed; the seeds are 0 to n - 1 and no others."""
    name: str                   # as docs/plan.md has it
    row: str
    over: str
    arm: str = 'alone'          # how one-stage students of methods start
    seeds: int = 5
    calibrated: bool = False    # weights of the methods by the committed factors instead of by the rule
    primary: bool = False

    @property
    def all_seeds(self) -> range:
        return range(self.seeds)


GROUP, PROFILE, METRIC = 'retinanet', 'mini', 'mAP'     # that the plan is about
PRIMARY_ROWS = ('baseline', 'inherit', 'mgd', 'amd', 'amd-permuted')    # trained with 8 seeds, the others with 5

PLANNED = (
    Planned('AMD over MGD', 'amd', 'mgd', seeds=8, primary=True),
    # from here on one family, judged by Holm's rule
    Planned('AMD over MGD, calibrated', 'amd', 'mgd', seeds=8, calibrated=True),
    Planned('AMD over inherit', 'amd', 'inherit', 'inherit', seeds=8),
    Planned('AMD over same share at random', 'amd', 'amd-permuted', seeds=8),
    Planned('AMD over baseline', 'amd', 'baseline', seeds=8),
    Planned('MGD over baseline', 'mgd', 'baseline', seeds=8),
    Planned('FGD over baseline', 'fgd', 'baseline'),
    Planned('FKD over baseline', 'fkd', 'baseline'),
    Planned('FitNet over baseline', 'fitnet', 'baseline'),
)
