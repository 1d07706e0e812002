"""Question B: the method on another run. Differences of runs paired by seed, and what may be said from n of them.

The t interval judges; the exact sign-flip test stands beside it and trusts no normal distribution, but n seeds cannot
give it a p below 2 / 2^n. A verdict that is not resolved says what difference n seeds could have shown.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import nctdtr, nctdtrinc, stdtr, stdtrit

from amdlib.errors import SettingError
from amdlib.show.stats import Matches, resampled

LEVEL, POWER = 0.95, 0.80
MOST_SEEDS = 40  # the sign-flip test lists 2^(n / 2) sums


@dataclass(frozen=True)
class Comparison:
    """What n differences paired by seed say; all in the differences' own unit.

    Args:
        n: seeds (of all groups, where they are pooled; `groups` then has them apart).
        mean, sd: of the differences; sd is within groups.
        low, high: t interval of 95 %.
        p, p_sign_flip: two-sided, of the t test and of all 2^n ways to set signs. smallest_p: the least of the latter.
        visible: the smallest true difference that n seeds of this spread show with 80 % power.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float
    p_sign_flip: float
    smallest_p: float
    visible: float
    unit: str = 'mAP'
    groups: dict[str, Comparison] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """In words, from the t interval."""
        return self.told()

    def told(self, p: float | None = None) -> str:
        """The verdict; `p`, as adjusted for the family it belongs to, must then be below 5 % too."""
        if self.n == 1:
            return 'one seed: says nothing about another run'
        if self.sd == 0:
            return f'the same in all {self.n} seeds' if self.mean == 0 else 'better' if self.mean > 0 else 'worse'
        if (self.low > 0 or self.high < 0) and (p is None or p < 1 - LEVEL):
            return 'better' if self.mean > 0 else 'worse'
        return (f'not resolved at n = {self.n}: less than {_short(self.visible)} {self.unit} could not have been seen'
                + ('' if p is None or self.low <= 0 <= self.high else f' (alone yes, in its family p = {p:.2g})'))


class Interval(NamedTuple):
    """A mean difference over seeds, and its interval over seeds and images together.

    sd_seeds, sd_images: what chance of the runs and what the images have in common for all runs add to it.
    """

    mean: float
    low: float
    high: float
    n: int
    sd_seeds: float
    sd_images: float


def compare(differences: Sequence[float], unit: str = 'mAP') -> Comparison:
    """Judge differences, one a seed. One seed gives no interval. Errors: SettingError without any, or with NaN."""
    values = _checked(differences)
    n = len(values)
    if n == 1:
        return Comparison(1, float(values[0]), np.nan, np.nan, np.nan, 1., 1., 1., np.nan, unit)
    sd = _sd(values)
    return Comparison(n, float(values.mean()), sd, *_judged(values.mean(), sd / np.sqrt(n), n - 1),
                      *_sign_flips(values / n), _visible(sd / np.sqrt(n), n - 1), unit)


def pooled(by_group: Mapping[str, Sequence[float]], unit: str = 'mAP') -> Comparison:
    """Judge the mean over groups, each with the same weight whatever its seeds, from the spread within the groups.

    It speaks about these groups: how another group would behave is no part of the interval. Degrees of freedom are
    Welch's, so groups need not spread alike. Errors: SettingError where a group has a single seed.
    """
    groups = {name: _checked(differences) for name, differences in by_group.items()}
    if len(groups) < 2:
        raise SettingError(f'pooling needs two groups or more, not {", ".join(groups) or "none"}')
    if single := [name for name, values in groups.items() if len(values) < 2]:
        raise SettingError(f'{single[0]} has one seed: its spread is not known, so it cannot be pooled')
    parts = np.array([_sd(values)**2 / len(values) / len(groups)**2 for values in groups.values()])
    left = np.array([len(values) - 1 for values in groups.values()])
    mean, se = float(np.mean([values.mean() for values in groups.values()])), float(np.sqrt(parts.sum()))
    freedom = parts.sum()**2 / (parts**2 / left).sum() if se else float(left.sum())
    sd = float(np.sqrt(sum(_sd(values)**2 * (len(values) - 1) for values in groups.values()) / left.sum()))
    flips = _sign_flips(np.concatenate([values / len(values) / len(groups) for values in groups.values()]))
    return Comparison(int((left + 1).sum()), mean, sd, *_judged(mean, se, freedom), *flips, _visible(se, freedom), unit,
                      {name: compare(values, unit) for name, values in groups.items()})


def headline(pairs: Sequence[tuple[Matches, Matches]], metric: str = 'mAP', resamples: int = 1000,
             seed: int = 0) -> Interval:
    """The mean difference in `metric` of pairs of runs, one pair a seed, with seeds and images both redrawn.

    Each resample of images is seen by all seeds. Redrawing seeds is summed up exactly instead of drawn: few seeds
    have few resamples, all of them too narrow. See `both`.
    Errors: SettingError for a single pair, for different test sets, or where the set has no object of that size.
    """
    drawn = resampled([run for pair in pairs for run in pair], (metric,), resamples, seed)[:, 0]
    numbers = [[run.numbers()[metric] for run in pair] for pair in pairs]
    if any(value is None for pair in numbers for value in pair):
        raise SettingError(f'the test set has no object that {metric} speaks of')
    drawn = (drawn[0::2] - drawn[1::2])
    return both([a - b for a, b in numbers], drawn[:, ~np.isnan(drawn).any(0)], len(pairs[0][0].images))


def both(differences: Sequence[float], drawn: np.ndarray, images: int) -> Interval:
    """The interval of `headline` from the differences (n,) and the same on redrawn images (n, resamples).

    A difference is mean + seed + image + seed x image. Its spread over seeds holds seed and seed x image, which shrink
    with n; the spread of the seeds' mean over redrawn images holds image and seed x image. The latter is counted once:
    what redrawing adds to the spread over seeds is taken off. Percentiles of seeds and images redrawn would not do:
    they cannot leave the n differences (cover 76 % at n = 3 where the seeds' chance rules) and count seed x image
    thrice (98 % at n = 8 where that rules). So a t interval: each variance brings the quantile of its own freedom,
    which covers 95 to 97 % for n of 3 to 8; one freedom for both, Satterthwaite's, covers 92 % at n = 3.
    Source: Owen, The pigeonhole bootstrap (2007); Cochran and Cox, Experimental Designs (1957), for the quantile.
    """
    values = _checked(differences)
    n = len(values)
    if n < 2:
        raise SettingError('one seed cannot say how another would come out: two pairs of runs or more')
    by_seed = _sd(values)**2 / n
    crossed = (drawn - drawn.mean(0)).var(axis=1).sum() / (n - 1) / n
    by_image = max(0., drawn.mean(0).var() - crossed) * images / (images - 1)
    variance, mean = by_seed + by_image, float(values.mean())
    seeds_t, images_t = stdtrit([n - 1, images - 1], (1 + LEVEL) / 2)
    half = float((by_seed * seeds_t + by_image * images_t) / np.sqrt(variance)) if variance else 0.
    return Interval(mean, mean - half, mean + half, n, float(np.sqrt(by_seed)), float(np.sqrt(by_image)))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of a family, in its order: below 5 % rejects, with 5 % for any false one among all."""
    p = np.asarray(pvalues, float)
    order = np.argsort(p, kind='stable')
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted[np.argsort(order, kind='stable')].tolist()


def family(comparisons: Mapping[str, Comparison], others: int = 0) -> pd.DataFrame:
    """The planned comparisons, a line each, with p of the t test adjusted by Holm and verdicts that hold for all.

    Args:
        others: how many more belong to the family and cannot be judged yet; they count as never rejected.
    """
    adjusted = holm([*(one.p for one in comparisons.values()), *[1.] * others])[:len(comparisons)]
    return pd.DataFrame([{
        'comparison': name, 'n': one.n, 'difference': one.mean, 'sd': one.sd, 'low': one.low, 'high': one.high,
        'p': one.p, 'p_holm': p, 'p_sign_flip': one.p_sign_flip, 'smallest_p': one.smallest_p, 'visible': one.visible,
        'verdict': one.told(p)} for (name, one), p in zip(comparisons.items(), adjusted, strict=True)])


def power(difference: float, sd: float, n: int) -> float:
    """Share of experiments with n seeds whose interval lies on the true difference's side of 0, where paired
    differences spread by `sd`. Errors: SettingError for fewer than two seeds or no spread."""
    if n < 2 or not sd > 0:
        raise SettingError(f'n={n}, sd={sd}: expected two seeds or more and a spread above 0')
    quantile = stdtrit(n - 1, (1 + LEVEL) / 2)
    return float(1 - nctdtr(n - 1, abs(difference) * np.sqrt(n) / sd, quantile))


def visible(sd: float, n: int) -> float:
    """The smallest true difference that n seeds show with 80 % power, where paired differences spread by `sd`.
    Errors: SettingError for fewer than two seeds or no spread."""
    if n < 2 or not sd > 0:
        raise SettingError(f'n={n}, sd={sd}: expected two seeds or more and a spread above 0')
    return _visible(sd / np.sqrt(n), n - 1)


def _checked(differences: Sequence[float]) -> np.ndarray:
    values = np.asarray(differences, float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise SettingError(f'one finite difference a seed is needed, not {values.tolist()}')
    return values


def _sd(values: np.ndarray) -> float:
    """Standard deviation; exactly 0 for equal values, where the mean's last digit would leave a trace."""
    return float(values.std(ddof=1)) if np.ptp(values) else 0.


def _judged(mean: float, se: float, freedom: float) -> tuple[float, float, float]:
    """Interval and two-sided p."""
    if not se:
        return float(mean), float(mean), float(mean == 0)
    half = se * stdtrit(freedom, (1 + LEVEL) / 2)
    return float(mean - half), float(mean + half), float(2 * stdtr(freedom, -abs(mean) / se))


def _visible(se: float, freedom: float) -> float:
    """The true mean at which 80 % of experiments have their whole interval on its side of 0."""
    return float(se * nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, (1 + LEVEL) / 2)))


def _sign_flips(parts: np.ndarray) -> tuple[float, float]:
    """Two-sided p of a sum among all 2^n sums with signs set freely, and the smallest p that n parts can have."""
    n = len(parts)
    if n > MOST_SEEDS:
        raise SettingError(f'{n} seeds: the exact sign-flip test is made for {MOST_SEEDS} at most')
    first, second = (_all_sums(half) for half in (parts[:n // 2], parts[n // 2:]))
    second.sort()
    reached = abs(parts.sum()) - 1e-9 * abs(parts).sum()  # equal sums differ in their last digits
    if reached <= 0:
        return 1., 2.**(1 - n)
    count = (len(second) - np.searchsorted(second, reached - first)).sum() + np.searchsorted(
        second, -reached - first, side='right').sum()
    return float(count / 2.**n), 2.**(1 - n)


def _all_sums(parts: np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for part in parts:
        sums = np.concatenate([sums - part, sums + part])
    return sums


def _short(value: float) -> str:
    return f'{value:.1f}' if value >= .1 else f'{value:.1g}'
