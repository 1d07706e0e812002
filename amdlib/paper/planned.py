"""The comparisons that docs/plan.md names, as data: what was to be asked before the reported seeds were trained."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Planned:
    """A difference in mAP between two rows of a group, paired by seed; the seeds are 0 to n - 1 and no others."""
    name: str                   # as docs/plan.md has it
    row: str
    over: str
    arm: str = 'alone'          # how one-stage students of methods start
    seeds: int = 5
    calibrated: bool = False    # weights of the methods by the committed factors instead of by the rule
    kind: str = 'named'         # 'primary', 'named' or 'exploratory'
    settings: dict[str, Any] = field(default_factory=dict, hash=False)  # that change the bed; each row takes its own

    @property
    def all_seeds(self) -> range:
        return range(self.seeds)


GROUP, PROFILE, METRIC = 'retinanet', 'mini', 'mAP'     # that the plan is about
PRIMARY_ROWS = ('baseline', 'inherit', 'mgd', 'amd', 'amd-permuted')    # trained with 8 seeds, the others with 5

PLANNED = (
    Planned('AMD over MGD', 'amd', 'mgd', seeds=8, kind='primary'),
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

_BEDS = {
    'teacher 1': {'teachers': 'fresh', 'teacher_seed': 1}, 'teacher 2': {'teachers': 'fresh', 'teacher_seed': 2},
    'SGD': {'optimizer': 'sgd'}, 'levels 0 to 2': {'levels': (0, 1, 2)}, 'half the reference': {'reference': 0.25},
    'twice the reference': {'reference': 1.0}, 'one constant for all levels': {'one_scale': True}}

# judged a line alone: the primary comparison on other beds; controls; the other arm; the paper's future work
EXPLORATORY = tuple(replace(one, kind='exploratory') for one in (
    *(Planned(f'{label} over MGD, {bed}', row, 'mgd', seeds=3, settings=settings) for bed, settings in _BEDS.items()
      for label, row in (('AMD', 'amd'), *((('FGD', 'fgd'),) if settings.keys() & {'reference', 'one_scale'} else ()))),
    *(Planned(f'AMD over same share at random, {bed}', 'amd', 'amd-permuted', seeds=3, settings=settings)
      for bed, settings in _BEDS.items() if 'teacher_seed' in settings),
    *(Planned(f'AMD over {label}', 'amd', f'amd-{row}') for row, label in (
        ('inverted', 'same share, least attention'), ('allmasked', 'everything masked'), ('unmasked', 'nothing masked'),
        ('shuffled', "another picture's features"), ('untrained', 'an untrained teacher'))),
    Planned('MGD over inherit', 'mgd', 'inherit', 'inherit', seeds=8),
    Planned('AMD over MGD, inherit', 'amd', 'mgd', 'inherit', seeds=8),
    Planned('spread attention over AMD', 'amd-spread', 'amd'),
    Planned('smoothed attention over AMD', 'amd-smoothed', 'amd'),
))
