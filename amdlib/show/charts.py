"""Charts: numbers in, matplotlib Figure out; only `save` touches files."""
from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from amdlib.files import whole
from amdlib.paper.pairs import find_group
from amdlib.paper.printed import PUBLISHED_SPREAD
from amdlib.paper.tables import table_numbered

# Now, and not with the first figure: chosen inside an rc_context, a notebook's backend would lose its interactive mode
# at the context's end, and show no figure but the first.
plt.switch_backend(matplotlib.get_backend())

# Okabe and Ito's colours: told apart by colour-blind readers and in grey
COLOURS = {'ours': '#0072B2', 'paper': '#E69F00', 'masked': '#D55E00'}
CHANCE = {'facecolor': '0.5', 'alpha': 0.35, 'linewidth': 0}    # the band of what chance alone gives
# the least that 95 of 100 differences of two runs of one config stay within, by the smaller published spread
PAPER_CHANCE = 1.96 * 2 ** 0.5 * PUBLISHED_SPREAD[0]
LEAST_SPAN = 2.0    # points of mAP that a frame shows at the least
# a level's colour and marker; 'all' pools them
LEVELS = {0: ('#0072B2', 'o'), 1: ('#E69F00', 's'), 2: ('#009E73', '^'), 3: ('#CC79A7', 'D'), 4: ('#56B4E9', 'v'),
          'all': ('black', 'x')}
STYLE = {'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
         'axes.grid.axis': 'y', 'grid.alpha': 0.3, 'axes.axisbelow': True, 'svg.hashsalt': 'amd'}


def save(figure: Figure, stem: Path, kinds: Iterable[str] = ('png', 'svg')) -> None:
    """Write `stem`.png (200 dots an inch) and `stem`.svg."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):  # the svg's ids are salted when it is written
        how = {'png': {'dpi': 200, 'metadata': {'Software': None}}, 'svg': {'metadata': {'Date': None}}}
        for kind in kinds:
            with whole(stem.with_suffix(f'.{kind}')) as beside:
                figure.savefig(beside, format=kind, **how[kind])


def differences(cells: pd.DataFrame) -> Figure:
    """Difference in mAP to the row that each is compared with, a panel a group: here with its 95 % interval, and in the
    paper, with what chance alone gives around 0; what the paper does not report says so (cells: `tables.tidy`)."""
    table = table_numbered(cells.table.iloc[0])
    cells = cells[cells.metric == 'mAP']
    labels = dict(zip(cells.row, cells.label, strict=True))
    # beside an ablation's differences the baseline's would be all that one sees
    cells = cells[cells.difference.notna() & (cells.row != 'baseline')]
    over = [labels.get(row, row) for row in dict.fromkeys(cells.reference)] or [labels.get(table.reference,
                                                                                           table.reference)]
    groups = list(cells.group.unique()) or ['']     # where nothing is compared, an empty panel
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(groups), figsize=(max(4.4, 0.8 + 0.85 * len(cells)), 3.3), sharey=True,
                                    squeeze=False, layout='constrained')
        _frame(axes[0][0], [0.0, *cells.difference, *cells.low, *cells.high, *cells.paper_difference],
               [*_halves(cells), PAPER_CHANCE])
        for axis, group in zip(axes[0], groups, strict=True):
            lines = cells[cells.group == group]
            if lines.empty:
                continue
            _pairs_of_bars(axis, lines)
            axis.set_title(find_group(group).student_label, fontsize=9)
        axes[0][0].set_ylabel(f'mAP minus {" or ".join(over)} (points)')
        bars = [Patch(color=COLOURS['ours'], label=f'here{_meaning(cells)}'),
                Patch(color=COLOURS['paper'], label='paper (COCO, one run each)'),
                Patch(**CHANCE, label=_chance(cells))]
        figure.legend(handles=bars, loc='outside lower center', ncols=3 if len(cells) > 6 else 1, frameon=False)
    return figure


def _pairs_of_bars(axis: Axes, lines: pd.DataFrame) -> None:
    """A pair of bars a line, here and in the paper, with their values, and over each what chance alone gives; into
    an axis whose limits are set."""
    low, high = axis.get_ylim()
    for x, (line, half) in enumerate(zip(lines.itertuples(), _halves(lines), strict=True)):
        ends = None if pd.isna(line.low) else [[line.difference - line.low], [line.high - line.difference]]
        axis.bar(x - 0.2, line.difference, 0.38, yerr=ends, capsize=2, color=COLOURS['ours'])
        axis.bar(x + 0.2, line.paper_difference, 0.38, color=COLOURS['paper'])
        _value(axis, x - 0.2, line.difference, *(() if pd.isna(line.low) else (line.low, line.high)))
        if pd.isna(line.paper_difference):
            axis.text(x + 0.2, 0, ' not in the paper ', rotation=90, ha='center', fontsize=6,
                      va='bottom' if high > -low else 'top')      # where there is room
        else:
            _value(axis, x + 0.2, line.paper_difference)
        for left, around in ((x - 0.39, half), (x + 0.01, PAPER_CHANCE * pd.notna(line.paper_difference))):
            axis.add_patch(Rectangle((left, -around), 0.38, 2 * around, **CHANCE, zorder=2.5))
    axis.axhline(0, color='black', linewidth=0.8)
    axis.set_xticks(range(len(lines)), [textwrap.fill(label, 13) for label in lines.label], fontsize=8)


def _value(axis: Axes, x: float, value: float, *ends: float) -> None:
    """A bar's value, beyond the bar and the ends of its interval."""
    beyond = min(value, *ends, 0) if value < 0 else max(value, *ends, 0)
    axis.annotate(f'{round(value, 1) + 0:+.1f}', (x, beyond), xytext=(0, -2 if value < 0 else 2), fontsize=7,
                  textcoords='offset points', ha='center', va='top' if value < 0 else 'bottom')


def _halves(lines: pd.DataFrame) -> list[float]:
    """Half of each line's interval: what a difference stays within in 95 of 100 cases where there truly is none."""
    return [0.0 if pd.isna(half) else float(half) for half in (lines.high - lines.low) / 2]


def _frame(axis: Axes, values: Iterable[float], halves: Iterable[float], margin: float = 0.12) -> None:
    """Limits of the axis that hold the values, and in which what is within chance stays small: twice the band of
    chance at the least."""
    seen = [value for value in values if pd.notna(value)] or [0.0]
    low, high = min(seen), max(seen)
    missing = max(0.0, LEAST_SPAN, *(4 * half for half in halves)) - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
    axis.set_ylim(low - margin * (high - low), high + margin * (high - low))


def _ends(lines: pd.DataFrame) -> list[pd.Series] | None:
    """How far intervals reach below and above; None where no line has one."""
    return None if lines.low.isna().all() else [lines.difference - lines.low, lines.high - lines.difference]


def _meaning(cells: pd.DataFrame) -> str:
    """Of the intervals of a tidy table."""
    asked = [words for question, words in (('B', 'seeds'), ('A', 'test images')) if question in set(cells.question)]
    return f' (95 % over {" or ".join(asked)})' if asked else ''


def _chance(cells: pd.DataFrame) -> str:
    """Of the band around 0 in a tidy table: with one seed it leaves out what another run would give."""
    return f'chance alone, 95 %{" (here of the test images)" if "A" in set(cells.question) else ""}'


def intervals(lines: pd.DataFrame, x_label: str) -> Figure:
    """Differences with their intervals, a line each, from top to bottom, and around 0 what chance alone gives.

    Args:
        lines: comparison (text), difference, low, high; without an interval the difference is drawn alone; verdict
            (text), where the lines have one.
    """
    with plt.rc_context({**STYLE, 'axes.grid.axis': 'x'}):
        figure, axis = plt.subplots(figsize=(7.2, 1.1 + 0.34 * max(1, len(lines))), layout='constrained')
        draw_intervals(axis, lines, x_label)
        figure.legend(handles=[Patch(**CHANCE, label='chance alone, 95 %')], loc='outside lower center', frameon=False)
    return figure


def draw_intervals(axis: Axes, lines: pd.DataFrame, x_label: str) -> None:
    """The same into an axis; beside it, to the right, each line in numbers, with its verdict."""
    at = range(len(lines))
    axis.errorbar(lines.difference, list(at), xerr=_ends(lines), fmt='o', markersize=4, capsize=3,
                  color=COLOURS['ours'], label='here, 95 % interval')
    for y, (line, half) in enumerate(zip(lines.itertuples(), _halves(lines), strict=True)):
        axis.add_patch(Rectangle((-half, y - 0.35), 2 * half, 0.7, **CHANCE))
        known = '' if pd.isna(line.low) else f' [{line.low:+.2f}, {line.high:+.2f}]'
        axis.text(1.02, y, f'{line.difference:+.2f}{known}  {getattr(line, "verdict", "")}', fontsize=8,
                  va='center', transform=axis.get_yaxis_transform())
    axis.axvline(0, color='black', linewidth=0.8)
    axis.set_yticks(list(at), lines.comparison)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.set_xlabel(x_label)


def mask_coverage(table: pd.DataFrame) -> Figure:
    """How much is masked, and how much of that lies in boxes, over the threshold (`coverage.mask_coverage`)."""
    with plt.rc_context(STYLE):
        figure, (share, inside) = plt.subplots(1, 2, figsize=(7.2, 3), layout='constrained')
        for level, lines in table.groupby('level', sort=False):
            colour, marker = LEVELS[level]
            label = 'all levels' if level == 'all' else f'level {level} (stride {lines.stride_px.iloc[0]:g} px)'
            look = {'color': colour, 'marker': marker, 'markersize': 4, 'linewidth': 2 if level == 'all' else 1.2}
            share.plot(lines.phi, 100 * lines.masked_share, **look, label=label)
            inside.plot(lines.phi, 100 * lines.inside_share, **look)
            inside.plot(lines.phi, 100 * lines.random_share, '--', color=colour, linewidth=1)
            inside.fill_between(lines.phi, 100 * (lines.random_share - 2 * lines.random_sd),
                                100 * (lines.random_share + 2 * lines.random_sd), color=colour, alpha=0.15, linewidth=0)
        share.set(ylabel='masked positions (% of all)', ylim=(0, 105))
        inside.set(ylabel='of these inside boxes (%)', ylim=(0, 105))
        for axis in (share, inside):
            axis.set_xlabel('threshold phi (Eq. 4)')
        dashes = Line2D([], [], color='grey', linestyle='--', linewidth=1, label='as many at random ± 2 sd')
        figure.legend(handles=[*share.get_lines(), dashes], loc='outside lower center', ncols=3, frameon=False)
    return figure


def sweep(table: pd.DataFrame, x_label: str = 'threshold phi (Eq. 4)',
          paper: Mapping[str, float] | None = None) -> Figure:
    """Fig. 4: mAP, mAR and, where the table has it, the share of masked positions over an option's value, each on an
    axis of its own, with what chance alone gives around the row's own value.

    Args:
        table: value, metric ('mAP', 'mAR', 'masked_share'), ours (percent); difference to the value `reference`, low
            and high of its interval (NaN draws no bar), question.
        paper: by metric, what the paper prints for its best value, which is lost.
    """
    metrics = list(dict.fromkeys(table.metric))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(metrics), 1, figsize=(4.6, 0.9 + 1.55 * len(metrics)), sharex=True,
                                    squeeze=False, layout='constrained')
        for axis, metric in zip(axes[:, 0], metrics, strict=True):
            lines = table[table.metric == metric].sort_values('value')
            colour = COLOURS['masked' if metric == 'masked_share' else 'ours']
            axis.errorbar(lines.value, lines.ours, yerr=_ends(lines), color=colour, marker='o', markersize=4,
                          linewidth=1.2, capsize=3)
            for line in lines.itertuples():
                axis.annotate(f'{line.ours:.1f}', (line.value, line.ours), xytext=(3, 3), textcoords='offset points',
                              fontsize=7)
            if metric == 'masked_share':
                axis.set(ylabel='masked (%)', ylim=(0, max(100, *lines.ours)))
                continue
            axis.set_ylabel(f'{metric} (%)')
            halves = pd.Series(_halves(lines), lines.index)
            _frame(axis, [*(lines.ours - halves), *(lines.ours + halves)], halves)
            _chance_around_reference(axis, lines)
            if paper:
                _printed(axis, paper[metric])
        axes[-1][0].set_xlabel(x_label)
        compared = table[table.low.notna()]
        if not compared.empty:
            told = f'chance alone around {compared.reference.iloc[0]}; bars: difference to it{_meaning(compared)}'
            figure.legend(handles=[Patch(**CHANCE, label=told)], loc='outside lower center', frameon=False, fontsize=8)
    return figure


def _chance_around_reference(axis: Axes, lines: pd.DataFrame) -> None:
    """The band in which a value does not differ from the row's own by more than chance."""
    compared = lines[lines.low.notna()]
    for own in lines.ours[lines.value == (compared.reference.iloc[0] if len(compared) else None)]:
        half = (compared.high - compared.low) / 2
        axis.fill_between(compared.value, own - half, own + half, **CHANCE)


def _printed(axis: Axes, value: float) -> None:
    """The paper's number: a line where it lies in the frame, else in which direction and where."""
    low, high = axis.get_ylim()
    told = f"paper's best (COCO; its value is lost): {value:.1f}"
    if low <= value <= high:
        axis.axhline(value, color=COLOURS['paper'], linestyle='--', linewidth=1.2)
    else:
        told = f'{told} {"↓" if value < low else "↑"}'
    axis.text(0.99, 0.02 if value < (low + high) / 2 else 0.98, told, transform=axis.transAxes, ha='right', fontsize=7,
              va='bottom' if value < (low + high) / 2 else 'top', color='#8A5F00')


def lines(curves: pd.DataFrame, x_label: str, y_label: str, log_y: bool = False) -> Figure:
    """A line a column, over the index."""
    dashes = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.6, 3), layout='constrained')
        for i, name in enumerate(curves):
            colour, marker = list(LEVELS.values())[i % len(LEVELS)]
            axis.plot(curves.index, curves[name], label=name, color=colour, linestyle=dashes[i % len(dashes)],
                      marker=marker if len(curves) < 20 else None, markersize=4)
        axis.set(xlabel=x_label, ylabel=y_label, yscale='log' if log_y else 'linear')
        if not log_y:
            axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    return figure


def distillation_terms(scalars: pd.DataFrame) -> list[str]:
    """The columns of a run's log that are terms of its distillation loss, whatever the method."""
    # of each such term the share is logged, and of no other
    return [name for name in scalars if name.startswith('loss_') and (
        '_fpn_' in name or name.replace('loss', 'share', 1) in scalars)]


def losses(scalars: pd.DataFrame) -> Figure:
    """Detection and distillation losses over steps, on a logarithmic axis (scalars: `Store.scalars`)."""
    distilled = distillation_terms(scalars)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5, 2.8), layout='constrained')
        if not scalars.empty:
            total = scalars.loss.rolling(5, min_periods=1).mean()
            distillation = scalars[distilled].sum(axis=1).rolling(5, min_periods=1).mean()
            axis.plot(scalars.step, total - distillation, color=COLOURS['ours'], label='detection')
            if distilled:
                axis.plot(scalars.step, distillation, color=COLOURS['paper'], linestyle='--', label='distillation')
            axis.set_yscale('log')
            axis.legend(frameon=False)
        axis.set_xlabel('training step')
        axis.set_ylabel('weighted loss')
    return figure


def makespans(cells: pd.DataFrame) -> Figure:
    """Hours until the last run has ended over nodes, both logarithmic: a line a way of preemption, with the least and
    the most of its draws, and what evenly divided work would take (cells: `scale.queue.makespans`)."""
    labels = {'none': 'no preemption', 'told': 'preempted, told before', 'killed': 'killed without a word'}
    colours = {'none': COLOURS['ours'], 'told': COLOURS['paper'], 'killed': COLOURS['masked']}
    with plt.rc_context({**STYLE, 'axes.grid.axis': 'both'}):
        figure, axis = plt.subplots(figsize=(5.4, 3.6), layout='constrained')
        for (way, lines), marker in zip(cells.groupby('way', sort=False), 'osD', strict=False):
            axis.fill_between(lines.nodes, lines.least, lines.most, color=colours[way], alpha=0.25, linewidth=0)
            axis.plot(lines.nodes, lines.hours, marker=marker, markersize=4, color=colours[way], label=labels[way])
        alone = cells[cells.way == 'none']
        axis.plot(alone.nodes, alone.node_hours / alone.nodes, color='0.4', linestyle=':', label='evenly divided')
        axis.set(xscale='log', yscale='log', xlabel='nodes', ylabel='hours until the last run has ended')
        ticks = [first * 10 ** power for power in range(6) for first in (1, 2, 5)]
        axis.set_xticks(ticks, map(str, ticks))
        axis.set_xlim(cells.nodes.min() / 1.15, cells.nodes.max() * 1.15)
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=8)
    return figure


def growth(found: pd.DataFrame) -> Figure:
    """CPU seconds over size, both logarithmic and in units of the smallest, a line a kind of size (found:
    `scale.scaling`)."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5, 3.4), layout='constrained')
        for (what, own), marker in zip(found.groupby('over', sort=False), 'osD^', strict=False):
            axis.plot(own['size'] / own['size'].min(), own.cpu_s / own.cpu_s.iloc[0], f'{marker}-',
                      label=f'{what}: {own.exponent.iloc[0]:.2f}')
        axis.plot([1, 4], [1, 4], ':', color='grey', label='proportional: 1')
        ticks = {f'{axis_}{kind}': value for axis_ in 'xy' for kind, value in (
            ('scale', 'log'), ('ticks', [1, 2, 4]), ('ticklabels', ['1', '2', '4']))}
        axis.set(**ticks, xlabel='size, smallest = 1', ylabel='CPU seconds, smallest = 1')
        axis.minorticks_off()
        axis.legend(title='exponent')
    return figure
