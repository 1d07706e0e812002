"""Pictures: attention, masks, features and detections over images; data in, matplotlib Figure out."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from amdlib.show.charts import COLOURS, LEVELS, STYLE
from amdlib.show.coverage import inside_image
from amdlib.show.features import Picture

BOX_COLOUR, MASK_COLOUR = '#F0E442', '#D55E00'
ATTENTION_FLOOR = 0.1   # attention below is shown alike


# ---- several images ---------------------------------------------------------------------------------------------

def attention_over_images(pictures: Sequence[Picture], attention: Tensor, keep_mask: Tensor, scores: pd.DataFrame,
                          phi: float) -> Figure:
    """Fig. 1: a line an image, with ground truth; attention with the score of every box; masked positions.

    Args:
        attention: (N, H, W), mean 1. keep_mask: (N, 1, H, W), 1 = kept. scores: `coverage.region_scores`.
        phi: the threshold that made the mask, for the title.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(pictures), 3, figsize=(7.2, 0.5 + 2.2 * len(pictures)), squeeze=False,
                                    layout='constrained')
        norm = LogNorm(ATTENTION_FLOOR, max(10.0, float(attention.max())))
        for line, picture, scored, kept in zip(axes, pictures, attention, keep_mask, strict=True):
            own = scores[scores.image_id == picture.image_id]
            _image(line[0], picture)
            _boxes(line[0], picture, picture.labels)
            line[0].set_ylabel(f'image {picture.image_id}')
            heat = attention_map(line[1], picture, scored, norm)
            _boxes(line[1], picture, [_score(score) for score in own.attention])
            masked_positions(line[2], picture, kept[0])
        for axis, title in zip(axes[0], ('ground truth', 'attention, and its mean in each box',
                                         f'masked where A > {phi:g}'), strict=True):
            axis.set_title(title, fontsize=9)
        figure.colorbar(heat, ax=axes[:, 1], location='bottom', extend='min', aspect=25, pad=0.02, format='%g',
                        label='attention A (mean 1)')
    return figure


def feature_maps(pictures: Sequence[Picture], maps: dict[str, Tensor]) -> Figure:
    """Fig. 3: a line an image, a column a run; every map from its own least value (in the image) to its largest.

    Args:
        maps: by the run's label, magnitudes (N, H, W) (`features.magnitudes`).
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(pictures), 1 + len(maps), squeeze=False, layout='constrained',
                                    figsize=(1.25 * (1 + len(maps)), 0.8 + 1.25 * len(pictures)))
        for n, (line, picture) in enumerate(zip(axes, pictures, strict=True)):
            _image(line[0], picture)
            _boxes(line[0], picture)
            line[0].set_ylabel(f'image {picture.image_id}')
            for axis, magnitudes in zip(line[1:], maps.values(), strict=True):
                own = magnitudes[n]
                seen = own[inside_image(picture, *own.shape)]
                drawn = _map(axis, picture, (own - seen.min()) / (seen.max() - seen.min()).clamp(min=1e-12), vmin=0,
                             vmax=1, cmap='cividis')
        for axis, title in zip(axes[0], ('image', *maps), strict=True):
            axis.set_title(title, fontsize=9)
        figure.get_layout_engine().set(h_pad=0.07)
        figure.colorbar(drawn, ax=axes, location='bottom', aspect=40, pad=0.02, shrink=0.6,
                        label='magnitude G (Eq. 2), from the least (0) to the largest (1) value of each map')
    return figure


def detections(pictures: Sequence[Picture], found: Sequence[list[dict]], score: float) -> Figure:
    """Detections with at least this score, and ground truth dashed; a panel a picture.

    Args:
        found: for each picture its detections: 'bbox' (xywh in pixels of the picture), 'score', 'label'.
    """
    with plt.rc_context({**STYLE, 'axes.grid': False}):
        figure, axes = plt.subplots(1, len(pictures), figsize=(2.4 * len(pictures), 2.6), squeeze=False,
                                    layout='constrained')
        for axis, picture, own in zip(axes[0], pictures, found, strict=True):
            _image(axis, picture)
            for x1, y1, x2, y2 in picture.boxes_xyxy_px.tolist():
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor='white', linewidth=2))
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor='black', linestyle='--'))
            for detection in own:
                if detection['score'] >= score:
                    x, y, width, height = detection['bbox']
                    axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=COLOURS['paper'],
                                             linewidth=1.5))
                    axis.text(x, y, f'{detection["label"]} {detection["score"]:.2f}', fontsize=6, va='bottom',
                              bbox=dict(facecolor='white', alpha=0.7, linewidth=0, pad=0.5))
            axis.set_title(picture.file_name, fontsize=8)
            axis.set_axis_off()
    return figure


# ---- one picture at a time: the method's notebook and the explorer of masks -------------------------------------

def maps(values: dict[str, Tensor]) -> Figure:
    """Bare maps (H, W) side by side, by title, each on a colour scale of its own."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(values), figsize=(0.3 + 2.3 * len(values), 2.5), squeeze=False,
                                    layout='constrained')
        for axis, (title, shown) in zip(axes[0], values.items(), strict=True):
            drawn = axis.imshow(shown.numpy(), cmap='cividis')
            axis.set_title(title, fontsize=9)
            axis.set_xlabel('column j')
            axis.grid(False)
            for ticks, size in ((axis.set_xticks, shown.shape[1]), (axis.set_yticks, shown.shape[0])):
                ticks(sorted({0, size // 2, size - 1}))     # positions have whole numbers
            figure.colorbar(drawn, ax=axis, aspect=15)
        axes[0][0].set_ylabel('row i')
    return figure


def mask_view(picture: Picture, attention: Tensor, keep_mask: Tensor, coverage: pd.DataFrame, phi: float) -> Figure:
    """Attention over one image, what is masked of it, and both shares over the threshold, with `phi` marked.

    Args:
        attention: (H, W), mean 1. keep_mask: (H, W), 1 = kept. coverage: lines of one level of
            `coverage.mask_coverage`.
    """
    with plt.rc_context(STYLE):     # laid out by hand: a layout engine would take half of a slider's time
        figure = plt.figure(figsize=(8.4, 2.6))
        left, scale, middle, right = (figure.add_axes(corner) for corner in (
            (0.01, 0.08, 0.26, 0.8), (0.28, 0.08, 0.012, 0.8), (0.375, 0.08, 0.26, 0.8), (0.715, 0.18, 0.275, 0.66)))
        heat = attention_map(left, picture, attention, LogNorm(ATTENTION_FLOOR, max(10.0, float(attention.max()))))
        _boxes(left, picture)
        left.set_title(f'attention, image {picture.image_id}', fontsize=9)
        figure.colorbar(heat, cax=scale, extend='min', format='%g', label='attention A (mean 1)')
        masked_positions(middle, picture, keep_mask)
        middle.set_title(f'masked where A > {phi:g}', fontsize=9)
        right.plot(coverage.phi, 100 * coverage.masked_share, color=LEVELS[0][0], label='masked, of all')
        right.plot(coverage.phi, 100 * coverage.inside_share, color=LEVELS[1][0], linestyle='--',
                   label='in boxes, of the masked')
        right.axvline(phi, color='black', linewidth=1, linestyle=':')
        right.set(xlabel=f'threshold phi (Eq. 4), here {phi:g}', ylabel='positions (%)', ylim=(0, 105))
        right.legend(loc='lower right', bbox_to_anchor=(1.03, 1), ncols=2, frameon=False, fontsize=8, borderpad=0,
                     columnspacing=1, handlelength=1.5)
    return figure


def mask_grid(picture: Picture, masks: dict[str, dict[str, Tensor]]) -> Figure:
    """Masked positions of one image: a line and a column a setting, by title; masks (H, W), 1 = kept."""
    columns = list(next(iter(masks.values())))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(masks), len(columns), figsize=(1.5 * len(columns), 0.2 + 1.5 * len(masks)),
                                    squeeze=False, layout='constrained')
        for line, (title, by_column) in zip(axes, masks.items(), strict=True):
            line[0].set_ylabel(title)
            for axis, column in zip(line, columns, strict=True):
                masked_positions(axis, picture, by_column[column])
                share = 1 - float(by_column[column].mean())
                axis.set_xlabel(f'{100 * share:.0f} % masked', fontsize=8)
        for axis, column in zip(axes[0], columns, strict=True):
            axis.set_title(column, fontsize=9)
    return figure


# ---- parts of them ----------------------------------------------------------------------------------------------

def attention_map(axis: Axes, picture: Picture, attention: Tensor, norm: Normalize) -> AxesImage:
    """Attention (H, W) of one image, over the image in grey."""
    _image(axis, picture, grey=True)
    return _map(axis, picture, attention, norm=norm, cmap='viridis', alpha=0.7)


def masked_positions(axis: Axes, picture: Picture, keep_mask: Tensor) -> None:
    """The image in grey with its masked positions (0 in the (H, W) mask) covered, and its boxes."""
    _image(axis, picture, grey=True)
    _map(axis, picture, torch.where(keep_mask == 0, 1.0, torch.nan), cmap=ListedColormap([MASK_COLOUR]), alpha=0.75)
    _boxes(axis, picture)


def _image(axis: Axes, picture: Picture, grey: bool = False) -> None:
    height, width = picture.rgb.shape[:2]
    # where shown in grey, it is washed out, so that what lies on it is told by colour
    shown = 0.5 + 0.5 * picture.rgb.mean(axis=2) / 255 if grey else picture.rgb
    axis.imshow(shown, interpolation='none', cmap='gray', vmin=0, vmax=1, extent=(0, width, height, 0))
    _bare(axis, picture)


def _map(axis: Axes, picture: Picture, values: Tensor, **how: Any) -> AxesImage:
    """Values (H, W) over the padded image, of which the axis shows the image itself."""
    padded_height, padded_width = picture.pixels.shape[1:]
    drawn = axis.imshow(values.numpy(), interpolation='none', extent=(0, padded_width, padded_height, 0), **how)
    _bare(axis, picture)
    return drawn


def _bare(axis: Axes, picture: Picture) -> None:
    """An axis without frame, as large as the image."""
    height, width = picture.rgb.shape[:2]
    axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    axis.spines[:].set_visible(False)
    axis.grid(False)


def _boxes(axis: Axes, picture: Picture, texts: Sequence[str] | None = None) -> None:
    dark = [withStroke(linewidth=2.5, foreground='black')]
    for i, (x1, y1, x2, y2) in enumerate(picture.boxes_xyxy_px.tolist()):
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX_COLOUR, linewidth=1,
                                 path_effects=[withStroke(linewidth=2, foreground='black')]))
        if texts is not None:
            axis.text((x1 + x2) / 2, (y1 + y2) / 2, texts[i], color='white', fontsize=7, ha='center', va='center',
                      path_effects=dark, clip_on=True)


def _score(score: float) -> str:
    """As it stands in a box; a box without any position has none."""
    return '–' if pd.isna(score) else f'{score:.1f}' if score >= 0.1 else '<0.1'
