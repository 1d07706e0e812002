"""The one picture for a reader of half a minute: what AMD masks, and what its claims came to here."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from amdlib.methods.amd import keep_mask, spatial_attention
from amdlib.runs.run import Run, row_runs
from amdlib.runs.store import Store
from amdlib.show import features, pictures
from amdlib.show.charts import CHANCE, COLOURS, STYLE, draw_intervals, save
from amdlib.show.features import FIRST_GROUP, Picture
from amdlib.show.report.claims import Judged


def write(store: Store, lines: Sequence[Judged], stem: Path) -> None:
    """Draw it into `stem`.png: the first picture of `features.representative` and the finest level of the first pair's
    teacher; of the claims those that the plan has judged. Errors: as of `features.load_detector` and `scales`."""
    teacher, amd = row_runs(FIRST_GROUP, ['teacher', 'amd'], store.profile)
    picture = features.pictures(store, features.representative(store.dataset, 1))[0]
    f_t, *_ = features.level_features(features.load_detector(teacher, store), [picture], teacher.row.group.levels,
                                      features.scales(teacher, store))
    attention = spatial_attention(f_t, amd.value('temperature'))
    figure = draw(picture, attention[0], keep_mask(attention, amd.value('phi'))[0, 0], amd,
                  [line for line in lines if line.kind != 'exploratory' and line.low is not None])
    save(figure, stem, ['png'])
    plt.close(figure)


def draw(picture: Picture, attention: torch.Tensor, kept: torch.Tensor, amd: Run, lines: Sequence[Judged]) -> Figure:
    """Image, attention and mask (H, W) above; below each claim's difference with its interval beside the paper's."""
    rows = max(1, len(lines))
    with plt.rc_context({**STYLE, 'axes.grid.axis': 'x'}):
        figure = plt.figure(figsize=(8, 3.5 + 0.42 * rows), layout='constrained')
        upper, lower = figure.subfigures(2, 1, height_ratios=[2.5, 1.0 + 0.42 * rows])
        axes = upper.subplots(1, 3)
        least, largest = float(attention.min()), float(attention.max())
        farthest = max(largest, 1 / max(least, pictures.ATTENTION_FLOOR))     # of the colours' middle, 1
        pictures.image(axes[0], picture)
        pictures.attention_map(axes[1], picture, attention, LogNorm(1 / farthest, farthest))
        pictures.masked_positions(axes[2], picture, kept)
        for axis, title in zip(axes, ('a scene', f"the teacher's attention A: {least:.1f} to {largest:.1f} (yellow)",
                                      f'orange: masked, A > {amd.value("phi"):g}'), strict=True):
            axis.set_title(title, fontsize=9)
        axis = lower.subplots()
        few, most = (pick((line.n for line in lines), default=0) for pick in (min, max))
        draw_intervals(axis, pd.DataFrame(
            [{'comparison': textwrap.fill(line.claim.says, 42), 'difference': line.difference, 'low': line.low,
              'high': line.high, 'verdict': f'\n{line.outcome[1]}'} for line in lines],
            columns=['comparison', 'difference', 'low', 'high', 'verdict']),
            'difference in mAP' + (f', {few if few == most else f"{few} to {most}"} seeds' if lines else ''))
        told = [(line.paper, y) for y, line in enumerate(lines) if line.paper is not None]
        axis.plot([paper for paper, _ in told], [y for _, y in told], 'D', markersize=4, color=COLOURS['paper'],
                  label='paper: COCO, one run')
        axis.legend(handles=[*axis.get_legend_handles_labels()[0], Patch(**CHANCE, label='chance alone, 95 %')],
                    loc='lower left', bbox_to_anchor=(0, 1), ncols=3, fontsize=8, frameon=False)
    return figure
