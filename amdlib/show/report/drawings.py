"""Inline SVG: curves, intervals, bars; colours and dashes come from the sheet, so that both schemes can be read."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from amdlib.show.report.pages import signed

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 380, 220, 62, 34, 8, 10
POINTS = 120    # of a curve: more than a screen shows


@dataclass(frozen=True)
class Curve:
    """A line of a chart; `style` is its number in the sheet (`.curve-0` to `.curve-7`)."""
    label: str
    x: np.ndarray
    y: np.ndarray
    style: int

    @property
    def told(self) -> str:
        """In words, where it begins and ends."""
        return f'{self.label} from {self.y[0]:.3g} to {self.y[-1]:.3g}'


def smooth(x: np.ndarray, y: np.ndarray, most: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, `most` points at the most; what is not finite is left out."""
    known = np.isfinite(x) & np.isfinite(y)
    parts = np.array_split(np.flatnonzero(known), max(1, min(most, int(known.sum()))))
    return (np.array([values[part].mean() for part in parts if len(part)]) for values in (x, y))


def chart(curves: Sequence[Curve], label: str, y_label: str, log_y: bool = False) -> Markup:
    """Curves over training steps; what cannot be drawn on a logarithmic axis (0) is left out."""
    curves = [curve for curve in curves if len(curve.y) and (not log_y or (curve.y > 0).any())]
    if not curves:
        return Markup('')
    scale = np.log10 if log_y else np.asarray
    shown = [scale(curve.y[curve.y > 0]) if log_y else curve.y for curve in curves]
    low, high = min(part.min() for part in shown), max(part.max() for part in shown)
    low, high = (low, high) if log_y else (min(low, 0.), high)
    low, high = (low - 0.05 * (high - low), high + 0.05 * (high - low)) if high > low else (low - 0.5, high + 0.5)
    low = low if log_y else max(low, 0.)
    most = max(curve.x[-1] for curve in curves) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        return (LEFT + (WIDTH - LEFT - RIGHT) * x / most, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (y - low)
                / (high - low))
    parts = []
    for value, text in _ticks(low, high, log_y):
        _, y = at(0, value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                     f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in _ticks(0, most, False):
        x, _ = at(value, low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{text}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
                 f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">training step</text>'
                 f'<text transform="translate(11 {(HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
                 f'{Markup.escape(y_label)}</text>')
    for curve in curves:
        drawn = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if not log_y or y > 0]
        points = ' '.join('{:.1f},{:.1f}'.format(*at(x, float(scale(y)))) for x, y in drawn)
        parts.append(f'<polyline class="curve-{curve.style}" points="{points}"/>')
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        label, WIDTH, HEIGHT, Markup(''.join(parts)))


def _ticks(low: float, high: float, log_y: bool) -> list[tuple[float, str]]:
    """Places on an axis with what to write there."""
    if log_y:
        decades = range(math.floor(low), math.ceil(high) + 1)
        values = [(math.log10(m) + k, m * 10. ** k) for k in decades for m in ((1, 2, 5) if high - low < 3 else (1,))]
        return [(place, f'{value:g}') for place, value in values if low <= place <= high]
    step = 10 ** math.floor(math.log10((high - low) or 1))
    step *= next(m for m in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (step * m) <= 8)
    return [(k * step, f'{k * step:.4g}') for k in range(math.ceil(low / step - 1e-9), int(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Scale:
    """One axis in points of percent that intervals below each other share."""
    low: float
    high: float

    @classmethod
    def of(cls, lines: Iterable[tuple[float | None, float | None, float | None, float | None]]) -> Scale:
        """That holds zero and of every line the difference, its interval's ends, the paper's, the band of chance."""
        values: list[float | None] = []
        for difference, low, high, paper in lines:
            half = None if low is None or high is None else (high - low) / 2
            values += [difference, low, high, paper, half, half and -half]
        known = [value for value in values if value is not None and math.isfinite(value)] + [0.]
        room = 0.06 * ((max(known) - min(known)) or 1)
        return cls(min(known) - room, max(known) + room)

    def at(self, value: float) -> float:
        """In percent of the width."""
        return 100 * (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places in percent of the width with what to write there."""
        return [(self.at(value), signed(value) if value % 1 else f'{value:+.0f}'.replace('-', '−').replace('+0', '0'))
                for value, _ in _ticks(self.low, self.high, False)]

    def interval(self, value: float | None, low: float | None = None, high: float | None = None,
                 paper: float | None = None) -> Markup:
        """A point with its interval, around zero the band of chance alone, as wide, and the paper's as an open diamond;
        it stands beside its numbers, so it is hidden from who hears the page."""
        def known(number: float | None) -> bool:
            return number is not None and math.isfinite(number)
        parts = []
        if known(low) and known(high):
            left, right = (self.at(side * (high - low) / 2) for side in (-1, 1))
            parts.append(f'<rect class="chance" x="{left:.2f}%" width="{right - left:.2f}%" height="100%"/>')
            parts.append(f'<line class="range" x1="{self.at(low):.2f}%" x2="{self.at(high):.2f}%" y1="50%" y2="50%"/>')
        if known(value):
            parts.append(f'<circle class="point" cx="{self.at(value):.2f}%" cy="50%" r="4.5"/>')
        if known(paper):
            parts.append(f'<svg x="{self.at(paper):.2f}%" y="50%" overflow="visible"><path class="paper" '
                         'd="M0-5.5L5.5 0 0 5.5-5.5 0Z"/></svg>')
        return Markup(f'<svg class="interval" aria-hidden="true">{"".join(parts)}</svg>')


def bar(value: float | None, most: float) -> Markup:
    """A bar of 0 to `most` beside its number."""
    width = 100 * max(0., value or 0.) / most if most > 0 else 0.
    return Markup(f'<svg class="bar" aria-hidden="true"><rect width="{width:.1f}%" height="100%"/></svg>')
