"""Charts: numbers in, matplotlib Figure out; only `save` touches files."""
from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from amdlib.files import whole
from amdlib.paper.pairs import find_group
from amdlib.paper.tables import table_numbered

# Now, and not with the first figure: chosen inside an rc_context, a notebook's backend would lose its interactive mode
# at the context's end, and show no figure but the first.
plt.switch_backend(matplotlib.get_backend())

# Okabe and Ito's colours: told apart by colour-blind readers and in grey
COLOURS = {'ours': '#0072B2', 'paper': '#E69F00'}
# a level's colour and marker; 'all' pools them
LEVELS = {0: ('#0072B2', 'o'), 1: ('#E69F00', 's'), 2: ('#009E73', '^'), 3: ('#CC79A7', 'D'), 4: ('#56B4E9', 'v'),
          'all': ('black', 'x')}
STYLE = {'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
         'axes.grid.axis': 'y', 'grid.alpha': 0.3, 'axes.axisbelow': True, 'svg.hashsalt': 'amd'}


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png (200 dots an inch) and `stem`.svg."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):  # the svg's ids are salted when it is written
        for kind, how in (('png', {'dpi': 200, 'metadata': {'Software': None}}), ('svg', {'metadata': {'Date': None}})):
            with whole(stem.with_suffix(f'.{kind}')) as beside:
                figure.savefig(beside, format=kind, **how)


def differences(cells: pd.DataFrame) -> Figure:
    """Difference in mAP to the row that each is compared with, a panel a group, here with its 95 % interval and in the
    paper (cells: `tables.tidy`)."""
    table = table_numbered(cells.table.iloc[0])
    cells = cells[cells.metric == 'mAP']
    labels = dict(zip(cells.row, cells.label, strict=True))
    # beside an ablation's differences the baseline's would be all that one sees
    cells = cells[cells.difference.notna() & (cells.row != 'baseline')]
    over = [labels.get(row, row) for row in dict.fromkeys(cells.reference)] or [labels.get(table.reference,
                                                                                           table.reference)]
    groups = list(cells.group.unique()) or ['']     # where nothing is compared, an empty panel
    with plt.rc_context(STYLE):
        width = max(3.4, 0.8 + 0.62 * len(cells) + 0.2 * len(groups))
        figure, axes = plt.subplots(1, len(groups), figsize=(width, 2.8), sharey=True, squeeze=False,
                                    layout='constrained')
        for axis, group in zip(axes[0], groups, strict=True):
            lines = cells[cells.group == group]
            if lines.empty:
                continue
            at = range(len(lines))
            axis.bar([x - 0.2 for x in at], lines.difference, 0.38, yerr=_ends(lines), color=COLOURS['ours'],
                     capsize=2, label=f'here{_meaning(cells)}')
            axis.bar([x + 0.2 for x in at], lines.paper_difference, 0.38, color=COLOURS['paper'],
                     label='paper (COCO)')
            axis.axhline(0, color='black', linewidth=0.8)
            axis.set_xticks(list(at), [label.replace(' ', '\n', 1) for label in lines.label])
            axis.set_title(find_group(group).student_label, fontsize=9)
        axes[0][0].set_ylabel(f'mAP minus {" or ".join(over)} (points)')
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=2, frameon=False)
    return figure


def _ends(lines: pd.DataFrame) -> list[pd.Series] | None:
    """How far intervals reach below and above; None where no line has one."""
    return None if lines.low.isna().all() else [lines.difference - lines.low, lines.high - lines.difference]


def _meaning(cells: pd.DataFrame) -> str:
    """Of the intervals of a tidy table."""
    asked = [words for question, words in (('B', 'seeds'), ('A', 'test images')) if question in set(cells.question)]
    return f' (95 % over {" or ".join(asked)})' if asked else ''


def intervals(lines: pd.DataFrame, x_label: str) -> Figure:
    """Differences with their intervals, a line each, from top to bottom.

    Args:
        lines: comparison (text), difference, low, high; without an interval the difference is drawn alone.
    """
    with plt.rc_context({**STYLE, 'axes.grid.axis': 'x'}):
        figure, axis = plt.subplots(figsize=(6, 0.8 + 0.32 * max(1, len(lines))), layout='constrained')
        at = range(len(lines))
        axis.errorbar(lines.difference, list(at), xerr=_ends(lines), fmt='o', markersize=4, capsize=3,
                      color=COLOURS['ours'])
        axis.axvline(0, color='black', linewidth=0.8)
        axis.set_yticks(list(at), lines.comparison)
        axis.set_ylim(len(lines) - 0.5, -0.5)
        axis.set_xlabel(x_label)
    return figure


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
        share.set(ylabel='masked positions (% of all)', ylim=(0, None))
        inside.set(ylabel='of these inside boxes (%)')
        for axis in (share, inside):
            axis.set_xlabel('threshold phi (Eq. 4)')
        dashes = Line2D([], [], color='grey', linestyle='--', linewidth=1, label='as many at random')
        figure.legend(handles=[*share.get_lines(), dashes], loc='outside lower center', ncols=3, frameon=False)
    return figure


def sweep(table: pd.DataFrame, x_label: str = 'threshold phi (Eq. 4)') -> Figure:
    """Fig. 4: mAP and mAR over an option's value and, where the table has it, the share of masked positions.

    Args:
        table: value, metric ('mAP', 'mAR', 'masked_share'), ours (percent); difference to the value `reference`, low
            and high of its interval (NaN draws no bar), question.
    """
    with plt.rc_context(STYLE):
        figure, scores = plt.subplots(figsize=(4.2, 3.2), layout='constrained')
        drawn = [_sweep_line(scores, table[table.metric == metric], colour, marker, '-', metric)
                 for metric, colour, marker in (('mAP', '#0072B2', 'o'), ('mAR', '#E69F00', 's'))]
        scores.set(xlabel=x_label, ylabel='mAP and mAR (%)')
        masked = table[table.metric == 'masked_share']
        if not masked.empty:
            shares = scores.twinx()
            shares.spines['right'].set_visible(True)
            shares.grid(False)
            drawn.append(_sweep_line(shares, masked, '#009E73', '^', '--', 'masked (right axis)'))
            shares.set(ylabel='masked positions (%)', ylim=(0, None))
        compared = table[table.low.notna()]
        title = '' if compared.empty else f'bars: difference to {compared.reference.iloc[0]}{_meaning(compared)}'
        figure.legend(handles=drawn, loc='outside lower center', ncols=3, frameon=False, title=title or None)
    return figure


def _sweep_line(axis: Axes, lines: pd.DataFrame, colour: str, marker: str, dashes: str,
                label: str) -> ErrorbarContainer:
    lines = lines.sort_values('value')
    return axis.errorbar(lines.value, lines.ours, yerr=_ends(lines), color=colour, marker=marker, markersize=4,
                         linestyle=dashes, linewidth=1.5, capsize=3, label=label)


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
    return [name for name in scalars if name.startswith('loss_') and '_fpn_' in name]


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
