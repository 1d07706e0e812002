"""Figures: data in, matplotlib Figure out; only `save` touches files."""
from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from amdlib.experiments import GROUPS

# Okabe and Ito's colours: told apart by colour-blind readers and in grey
COLOURS = {'ours': '#0072B2', 'paper': '#E69F00'}
STYLE = {'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
         'axes.grid.axis': 'y', 'grid.alpha': 0.3, 'axes.axisbelow': True, 'svg.hashsalt': 'amd'}


def gains(tidy: pd.DataFrame) -> Figure:
    """Gain in mAP over the baseline, a panel a group: this kit's beside the paper's (tidy: `results.table1`)."""
    cells = tidy[(tidy.metric == 'mAP') & tidy.gain.notna()]
    groups = list(cells.group.unique())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(groups), figsize=(1.2 + 2.4 * len(groups), 2.8), sharey=True, squeeze=False,
                                    layout='constrained')
        for axis, group in zip(axes[0], groups, strict=True):
            lines = cells[cells.group == group]
            places = range(len(lines))
            spread = lines.sd if lines.sd.notna().all() else None
            axis.bar([x - 0.2 for x in places], lines.gain, 0.38, yerr=spread, color=COLOURS['ours'],
                     label='here' if spread is None else 'here (± sd over seeds)')
            axis.bar([x + 0.2 for x in places], lines.paper_gain, 0.38, color=COLOURS['paper'], label='paper (COCO)')
            axis.axhline(0, color='black', linewidth=0.8)
            axis.set_xticks(list(places), lines.label)
            axis.set_title(GROUPS[group].student_label, fontsize=9)
        axes[0][0].set_ylabel('gain over baseline (mAP, points)')
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=2, frameon=False)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png (200 dots an inch) and `stem`.svg."""
    with plt.rc_context(STYLE):  # the svg's ids are salted when it is written
        figure.savefig(stem.with_suffix('.png'), dpi=200, metadata={'Software': None})
        figure.savefig(stem.with_suffix('.svg'), metadata={'Date': None})
