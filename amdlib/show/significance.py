"""The planned comparisons (docs/plan.md) on the runs that are there, and what numbers of seeds could show at all."""
from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from amdlib.errors import RunError
from amdlib.paper.pairs import GROUPS
from amdlib.paper.planned import EXPLORATORY, METRIC, PLANNED, Planned
from amdlib.paper.printed import paper_value
from amdlib.runs.planned import planned_runs
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show import seeds
from amdlib.show.intervals import OnImages
from amdlib.show.verdicts import Pairs, pair_up
from amdlib.words import number

NOT_FINITE = 'loss is not finite'   # as the error of such a run says


class Plan:
    """What docs/plan.md asks, answered from the runs of a group that are done; in a notebook a line a comparison.

    Read at its first use. Seeds beyond the planned ones do not count, whatever lies there.
    """

    def __init__(self, store: Store, group: str = 'retinanet', settings: Mapping[str, Any] | None = None) -> None:
        self.store, self.group, self.settings = store, group, settings

    @functools.cached_property
    def pairs(self) -> dict[Planned, Pairs]:
        """The pairs of runs behind each comparison."""
        found = {}
        for one in (*PLANNED, *EXPLORATORY):
            done = [run for run in self.runs(one) if self.store.state(run).name == 'done']
            records = self.store.collect(done)
            found[one] = pair_up(records, self.group, one.row, one.over) if done else Pairs()
        return found

    def runs(self, one: Planned) -> list[Run]:
        """All that a comparison needs."""
        return planned_runs(one, self.store, self.group, self.settings)

    def states(self, one: Planned) -> tuple[list[str], list[str]]:
        """Ids of a comparison's runs whose loss was not finite, and of those that are not done for another reason."""
        overflowed, waiting = [], []
        for run in self.runs(one):
            found = self.store.state(run)
            if found.name != 'done':
                (overflowed if found.name == 'failed' and NOT_FINITE in found.why else waiting).append(run.id)
        return overflowed, waiting

    def done(self) -> pd.DataFrame:
        """How far it is: a line a comparison, with what was left out and why."""
        lines = []
        for one, pairs in self.pairs.items():
            overflowed, waiting = self.states(one)
            left_out = [f'{run} (its {NOT_FINITE})' for run in overflowed] + [
                text for text in pairs.left_out if not overflowed or ' has no seed ' not in text]
            lines.append({
                'comparison': one.name, 'kind': one.kind, 'arm': one.arm,
                'seeds planned': one.seeds, 'pairs': len(pairs.runs), 'runs to do': len(waiting),
                'left out': '; '.join(left_out) or ('' if self.runs(one) else 'not calibrated yet')})
        return pd.DataFrame(lines)

    def results(self) -> pd.DataFrame:
        """A line a comparison with two pairs or more: the primary one by itself, the named ones as one family (Holm),
        each exploratory one alone.

        The family has its planned size from the beginning; a comparison whose seeds are not complete says so.
        """
        parts = []
        named = [one for one in PLANNED if one.kind == 'named']
        for family in ([one for one in PLANNED if one not in named], named, *([one] for one in EXPLORATORY)):
            judged = {one.name: seeds.compare(self.pairs[one].differences(METRIC)) for one in family
                      if len(self.pairs[one].runs) > 1}
            if judged:
                parts.append(seeds.family(judged, len(family) - len(judged)).assign(kind=family[0].kind))
        if not parts:
            return pd.DataFrame(columns=['comparison', 'n', 'difference', 'low', 'high', 'verdict', 'kind'])
        found = pd.concat(parts, ignore_index=True)
        by_name = {one.name: one for one in self.pairs}
        unfinished = [bool(self.states(by_name[name])[1]) for name in found.comparison]
        return found.assign(verdict=[f'unfinished, so far: {told}' if more else told for told, more in zip(
            found.verdict, unfinished, strict=True)])

    def headline(self, resamples: int = 1000) -> seeds.Interval | None:
        """The primary difference, its interval over seeds and images together; None without two pairs, or where the
        detections of a run are not here."""
        one = next(one for one in PLANNED if one.kind == 'primary')
        pairs = self.pairs[one]
        if len(pairs.runs) < 2:
            return None
        images = OnImages(self.store, self.runs(one))
        try:
            found = [tuple(images.matches(run['run']) for run in pair) for pair in pairs.runs]
        except RunError:    # only records were kept
            return None
        return seeds.headline(found, METRIC, resamples)

    def one_pair(self) -> tuple[Run, Run] | None:
        """The first comparison's first pair of runs, for question A; None where there is none."""
        for one, pairs in self.pairs.items():
            for own, other in pairs.runs:
                by_id = {run.id: run for run in self.runs(one)}
                return by_id[own['run']], by_id[other['run']]
        return None

    def _repr_html_(self) -> str:
        return as_text(self.results()).to_html(index=False)


def as_text(results: pd.DataFrame) -> pd.DataFrame:
    """`Plan.results` for reading."""
    return pd.DataFrame([{
        'comparison': line.comparison, 'kind': line.kind, 'n': line.n,
        'difference': f'{number(line.difference, "+.2f")} [{line.low:+.2f}, {line.high:+.2f}]',
        'p (t)': f'{line.p_holm:.2g}', 'p (signs; smallest)': f'{line.p_sign_flip:.2g} ({line.smallest_p:.2g})',
        'verdict': line.verdict} for line in results.itertuples()])


def simulated(difference: float, spread: float, n: int, seed: int = 0) -> seeds.Comparison:
    """An example: n paired differences of two methods whose runs spread by `spread` each, independently."""
    drawn = np.random.default_rng(seed).normal(0, spread, (2, n))
    return seeds.compare(drawn[0] + difference - drawn[1])


def power_curves(difference: float, spreads: Iterable[float], most: int = 30) -> pd.DataFrame:
    """Chance in percent to see a true difference with n seeds, a column a spread of single runs (n: the index)."""
    return pd.DataFrame({f'runs spread by {spread:g} mAP': [100 * seeds.power(difference, spread * 2 ** .5, n)
                                                          for n in range(2, most + 1)] for spread in spreads},
                        index=range(2, most + 1))


def seeds_needed(difference: float, spread: float, most: int = 200) -> int | None:
    """How many seeds show a true difference with 80 % power where single runs spread by `spread`."""
    return next((n for n in range(2, most + 1) if seeds.power(difference, spread * 2 ** .5, n) >= seeds.POWER), None)


def paper_leads() -> dict[str, float]:
    """The paper's AMD minus MGD in mAP, one run each, by student (Table I)."""
    return {group.student_label: round(paper_value('I', group.name, 'amd', 'mAP') - value, 1)
            for group in GROUPS.values() if (value := paper_value('I', group.name, 'mgd', 'mAP')) is not None}


def reversed_by_chance(difference: float, spread: float) -> float:
    """How often, of a hundred pairs of single runs, the method that is better by `difference` comes out worse."""
    from scipy.special import ndtr
    return 100 * float(ndtr(-abs(difference) / (spread * 2 ** .5)))
