"""The one picture for a reader of half a minute: what AMD masks, and what its claims came to here."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from amdlib.methods.amd import keep_mask, spatial_attention
from amdlib.runs.run import Run, row_runs
from amdlib.runs.store import Store
from amdlib.show import features, pictures
from amdlib.show.charts import COLOURS, STYLE, save
from amdlib.show.features import FIRST_GROUP, Picture
from amdlib.show.report.claims import Judged


def write(store: Store, lines: Sequence[Judged], stem: Path) -> None:
    """Draw it into `stem`.png and `stem`.svg: the first picture of `features.representative` and the finest level of
    the first pair's teacher; of the claims those that are judged by the plan. Errors: as of `features.load_detector`.
    """
    teacher, amd = row_runs(FIRST_GROUP, ['teacher', 'amd'], store.profile)
    picture = features.pictures(store, features.representative(store.dataset, 1))[0]
    (f_t, *_) = features.scaled_features(features.load_detector(teacher, store), [picture], teacher.row.group.levels,
                                         features.scales(teacher, store))
    attention = spatial_attention(f_t, amd.value('temperature'))
    figure = draw(picture, attention[0], keep_mask(attention, amd.value('phi'))[0, 0], amd,
                  [line for line in lines if line.kind != 'exploratory' and line.low is not None])
    save(figure, stem)
    plt.close(figure)


def draw(picture: Picture, attention: torch.Tensor, kept: torch.Tensor, amd: Run, lines: Sequence[Judged]) -> Figure:
    """Image, attention and mask (H, W) above; below each claim's difference with its interval beside the paper's."""
    with plt.rc_context({**STYLE, 'axes.grid.axis': 'x'}):
        figure = plt.figure(figsize=(8, 3.5 + 0.42 * max(1, len(lines))), layout='constrained')
        upper, lower = figure.subfigures(2, 1, height_ratios=[2.5, 1.0 + 0.42 * max(1, len(lines))])
        axes = upper.subplots(1, 3)
        pictures.attention_map(axes[1], picture, attention, LogNorm(0.25, max(4.0, float(attention.max()))))
        pictures.masked_positions(axes[2], picture, kept)
        axes[0].imshow(picture.rgb, interpolation='none')
        axes[0].set(xticks=[], yticks=[])
        axes[0].grid(False)
        axes[0].spines[:].set_visible(False)
        for axis, title in zip(axes, ('a scene', "the teacher's attention A over it",
                                      f"orange: masked, A > {amd.value('phi'):g}"),
                               strict=True):
            axis.set_title(title, fontsize=9)
        _claims(lower.subplots(), lines)
    return figure


def _claims(axis: Axes, lines: Sequence[Judged]) -> None:
    at = range(len(lines))
    found = [line.difference for line in lines]
    axis.errorbar(found, list(at), xerr=[[line.difference - line.low for line in lines],
                                         [line.high - line.difference for line in lines]],
                  fmt='o', markersize=4, capsize=3, color=COLOURS['ours'], label='here, 95 % interval')
    told = [(line.paper, y) for y, line in zip(at, lines, strict=True) if line.paper is not None]
    if told:
        axis.plot(*zip(*told, strict=True), 'D', markersize=4, color=COLOURS['paper'],
                  label='paper: COCO, one run')
    for y, line in zip(at, lines, strict=True):
        told = f'{line.difference:+.2f} [{line.low:+.2f}, {line.high:+.2f}]\n{line.outcome[1]}'
        axis.text(1.02, y, told, fontsize=8, va='center', transform=axis.get_yaxis_transform())
    axis.axvline(0, color='black', linewidth=0.8)
    axis.set_yticks(list(at), [textwrap.fill(line.claim.says, 36) for line in lines])
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.set_xlabel('difference in mAP' + (f', {min(line.n for line in lines)} seeds or more' if lines else ''))
    axis.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
