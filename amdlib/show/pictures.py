"""Pictures: attention, masks, features and detections over images; data in, matplotlib Figure out.

A mask looks alike in all of them: orange is masked, kept positions are clear.
"""
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
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from amdlib.show.charts import COLOURS, STYLE
from amdlib.show.coverage import covered_by, inside_boxes, inside_image
from amdlib.show.features import Picture

BOX_COLOUR, RIGHT, WRONG = '#F0E442', COLOURS['ours'], '#CC79A7'
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
            image(line[0], picture)
            _boxes(line[0], picture, picture.labels)
            line[0].set_ylabel(f'image {picture.image_id}')
            heat = attention_map(line[1], picture, scored, norm)
            _boxes(line[1], picture, [_score(score) for score in own.attention])
            masked_positions(line[2], picture, kept[0])
            line[2].set_xlabel(_covered(picture, kept[0]), fontsize=8)
        for axis, title in zip(axes[0], ('ground truth', 'attention, and its mean in each box',
                                         f'masked where A > {phi:g}'), strict=True):
            axis.set_title(title, fontsize=9)
        figure.colorbar(heat, ax=axes[:, 1], location='bottom', extend='min', aspect=25, pad=0.02, format='%g',
                        label='attention A (mean 1)')
    return figure


def feature_maps(pictures: Sequence[Picture], maps: dict[str, Tensor]) -> Figure:
    """Fig. 3: a line an image, a column a run; each map as multiples of its mean over the image, so that one scale of
    colours holds for all, and below it how far objects stand out: its mean in boxes / its mean outside.

    Args:
        maps: by the run's label, magnitudes (N, H, W) (`features.magnitudes`).
    """
    relative = {}
    for label, magnitudes in maps.items():
        inside = [inside_image(picture, *own.shape) for picture, own in zip(pictures, magnitudes, strict=True)]
        relative[label] = [own / own[seen].mean().clamp(min=1e-12)
                           for own, seen in zip(magnitudes, inside, strict=True)]
    shown = torch.cat([own[inside_image(picture, *own.shape)] for columns in relative.values()
                       for picture, own in zip(pictures, columns, strict=True)])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(pictures), 1 + len(maps), squeeze=False, layout='constrained',
                                    figsize=(1.35 * (1 + len(maps)), 0.8 + 1.5 * len(pictures)))
        for n, (line, picture) in enumerate(zip(axes, pictures, strict=True)):
            image(line[0], picture)
            _boxes(line[0], picture)
            line[0].set_ylabel(f'image {picture.image_id}')
            line[0].set_xlabel('in boxes / outside:', fontsize=8)
            for axis, columns in zip(line[1:], relative.values(), strict=True):
                drawn = _map(axis, picture, columns[n], vmin=shown.min(), vmax=shown.max(), cmap='cividis')
                _boxes(axis, picture, width=0.5)
                boxes = inside_boxes(picture, *columns[n].shape)
                around = inside_image(picture, *columns[n].shape) & ~boxes
                axis.set_xlabel(f'{columns[n][boxes].mean() / columns[n][around].mean():.2f}', fontsize=8)
        for axis, title in zip(axes[0], ('image', *maps), strict=True):
            axis.set_title(title, fontsize=9)
        figure.colorbar(drawn, ax=axes, location='bottom', aspect=40, pad=0.02, shrink=0.6,
                        label='magnitude G (Eq. 2), in multiples of its mean over the image')
    return figure


def ground_truth(pictures: Sequence[Picture]) -> Figure:
    """The images with their boxes and classes, a panel a picture."""
    with plt.rc_context({**STYLE, 'axes.grid': False}):
        figure, axes = plt.subplots(1, len(pictures), figsize=(2.4 * len(pictures), 2.6), squeeze=False,
                                    layout='constrained')
        for axis, picture in zip(axes[0], pictures, strict=True):
            image(axis, picture)
            _boxes(axis, picture, picture.labels)
            axis.set_title(f'image {picture.image_id}', fontsize=9)
    return figure


def detections(pictures: Sequence[Picture], found: Sequence[list[dict]], score: float) -> Figure:
    """Detections with at least this score, and the ground truth that none of them finds dashed; a panel a picture.

    One is right where it overlaps an object of its class by half (IoU) that no surer one has found.

    Args:
        found: for each picture its detections: 'bbox' (xywh in pixels of the picture), 'score', 'label'.
    """
    with plt.rc_context({**STYLE, 'axes.grid': False}):
        figure, axes = plt.subplots(1, len(pictures), figsize=(2.4 * len(pictures), 3), squeeze=False,
                                    layout='constrained')
        for axis, picture, own in zip(axes[0], pictures, found, strict=True):
            image(axis, picture)
            sure = sorted((one for one in own if one['score'] >= score), key=lambda one: -one['score'])
            objects = _found_objects(picture, sure)
            for i, (x1, y1, x2, y2) in enumerate(picture.boxes_xyxy_px.tolist()):
                if i not in objects:
                    for look in ({'edgecolor': 'white', 'linewidth': 2}, {'edgecolor': 'black', 'linestyle': '--'}):
                        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **look))
            for rank, (detection, which) in enumerate(zip(sure, objects, strict=True)):
                (x, y, width, height), colour = detection['bbox'], WRONG if which is None else RIGHT
                axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1.5,
                                         path_effects=[withStroke(linewidth=2.5, foreground='white')]))
                axis.text(x, y, f'{detection["label"]} {detection["score"]:.2f}', fontsize=6, va='top', clip_on=True,
                          color='white', zorder=4 - rank / 1000, bbox={'facecolor': colour, 'linewidth': 0, 'pad': 0.5})
            right = len([which for which in objects if which is not None])
            axis.set_title(f'image {picture.image_id}: {right} of {len(picture.labels)} found', fontsize=8)
        drawn = [Patch(color=RIGHT, label='right'), Patch(color=WRONG, label='wrong'),
                 Patch(facecolor='white', edgecolor='black', linestyle='--', label='missed')]
        figure.legend(handles=drawn, loc='outside lower center', ncols=3, frameon=False)
    return figure


def _found_objects(picture: Picture, detections: Sequence[dict]) -> list[int | None]:
    """Which object of the picture each detection finds, from the surest to the least sure; None: none."""
    boxes = torch.tensor([one['bbox'] for one in detections]).reshape(-1, 4)
    overlaps = box_iou(box_convert(boxes, 'xywh', 'xyxy'), picture.boxes_xyxy_px.cpu())
    found: list[int | None] = []
    for detection, overlap in zip(detections, overlaps.tolist(), strict=True):
        free = [(share, i) for i, share in enumerate(overlap)
                if share >= 0.5 and i not in found and picture.labels[i] == detection['label']]
        found.append(max(free)[1] if free else None)
    return found


# ---- one picture at a time: the method's notebook and the explorer of masks -------------------------------------

def maps(values: dict[str, Tensor], unlike: Sequence[str] = (), log_scale: bool = False) -> Figure:
    """Bare maps (H, W) side by side, by title: all on one scale of colours, so that they can be compared.

    Args:
        values: a map of booleans is a mask, True where masked.
        unlike: titles of maps of another quantity, each on a scale of its own.
        log_scale: logarithmic, as of attention elsewhere.
    """
    shared = [title for title, shown in values.items() if shown.dtype != torch.bool and title not in unlike]
    least, largest = (pick([float(pick([values[title].min(), values[title].max()])) for title in shared] or [1])
                      for pick in (min, max))
    norm = LogNorm(ATTENTION_FLOOR, max(10.0, largest)) if log_scale else Normalize(least, largest)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(values), figsize=(0.6 + 2.1 * len(values), 2.6), squeeze=False,
                                    layout='constrained')
        for axis, (title, shown) in zip(axes[0], values.items(), strict=True):
            if shown.dtype == torch.bool:
                axis.imshow(shown.numpy(), cmap=ListedColormap(['white', COLOURS['masked']]), vmin=0, vmax=1)
                axis.spines[:].set_visible(True)
            else:
                drawn = axis.imshow(shown.numpy(), cmap='cividis', norm=norm if title in shared else None)
                if title in unlike or title == shared[-1]:
                    figure.colorbar(drawn, ax=axis, aspect=15)
            axis.set_title(title, fontsize=9)
            axis.set_xlabel('column j')
            axis.grid(False)
            for ticks, size in ((axis.set_xticks, shown.shape[1]), (axis.set_yticks, shown.shape[0])):
                ticks(sorted({0, size // 2, size - 1}))     # positions have whole numbers
        axes[0][0].set_ylabel('row i')
    return figure


def mask_view(picture: Picture, attention: Tensor, keep_mask: Tensor, coverage: pd.DataFrame, phi: float) -> Figure:
    """Attention over one image, what is masked of it, and over the threshold how much is masked and which share of that
    lies in boxes, beside as many positions at random, with `phi` marked.

    Args:
        attention: (H, W), mean 1. keep_mask: (H, W), 1 = kept. coverage: lines of one level of
            `coverage.mask_coverage`.
    """
    with plt.rc_context(STYLE):     # laid out by hand: a layout engine would take half of a slider's time
        figure = plt.figure(figsize=(8.4, 2.6))
        left, scale, middle, right = (figure.add_axes(corner) for corner in (
            (0.01, 0.08, 0.26, 0.8), (0.28, 0.08, 0.012, 0.8), (0.375, 0.08, 0.26, 0.8), (0.715, 0.18, 0.275, 0.66)))
        # as far below 1 as above, so that 1 is the middle of the colours, and no further than the map reaches
        most = max(2.0, float(attention.max()), min(1 / ATTENTION_FLOOR, 1 / float(attention.min().clamp(1e-9))))
        heat = attention_map(left, picture, attention, LogNorm(1 / most, most))
        _boxes(left, picture)
        left.set_title(f'attention, image {picture.image_id}', fontsize=9)
        figure.colorbar(heat, cax=scale, extend='min', ticks=[1 / most, 1, most], format='%.2g',
                        label='attention A (mean 1)').minorticks_off()
        masked_positions(middle, picture, keep_mask)
        middle.set_title(f'masked where A > {phi:g}', fontsize=9)
        middle.set_xlabel(_covered(picture, keep_mask), fontsize=8)
        right.plot(coverage.phi, 100 * coverage.masked_share, color=COLOURS['masked'], label='masked')
        right.plot(coverage.phi, 100 * coverage.inside_share, color=COLOURS['ours'], label='of these in boxes')
        right.plot(coverage.phi, 100 * coverage.random_share, color='grey', linestyle='--', label='at random ± 2 sd')
        right.fill_between(coverage.phi, *(100 * (coverage.random_share + side * 2 * coverage.random_sd)
                                           for side in (-1, 1)), color='grey', alpha=0.2, linewidth=0)
        right.axvline(phi, color='black', linewidth=1, linestyle=':')
        right.set(xlabel=f'threshold phi (Eq. 4), here {phi:g}', ylabel='positions (%)', ylim=(0, 105))
        right.legend(loc='lower right', bbox_to_anchor=(1.05, 1), ncols=3, frameon=False, fontsize=7, borderpad=0,
                     columnspacing=0.8, handlelength=1.2)
    return figure


def mask_grid(picture: Picture, masks: dict[str, dict[str, Tensor]]) -> Figure:
    """Masked positions of one image: a line and a column a setting, by title; masks (H, W), 1 = kept."""
    columns = list(next(iter(masks.values())))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(masks), len(columns), figsize=(1.7 * len(columns), 0.2 + 1.8 * len(masks)),
                                    squeeze=False, layout='constrained')
        for line, (title, by_column) in zip(axes, masks.items(), strict=True):
            line[0].set_ylabel(title)
            for axis, column in zip(line, columns, strict=True):
                masked_positions(axis, picture, by_column[column])
                axis.set_xlabel(_covered(picture, by_column[column], '\n'), fontsize=7)
        for axis, column in zip(axes[0], columns, strict=True):
            axis.set_title(column, fontsize=9)
    return figure


# ---- parts of them ----------------------------------------------------------------------------------------------

def attention_map(axis: Axes, picture: Picture, attention: Tensor, norm: Normalize) -> AxesImage:
    """Attention (H, W) of one image, over the image in grey."""
    image(axis, picture, grey=True)
    return _map(axis, picture, attention, norm=norm, cmap='viridis', alpha=0.7)


def masked_positions(axis: Axes, picture: Picture, keep_mask: Tensor) -> None:
    """The image in grey with its masked positions (0 in the (H, W) mask) covered, and its boxes."""
    image(axis, picture, grey=True)
    _map(axis, picture, torch.where(keep_mask == 0, 1.0, torch.nan), cmap=ListedColormap([COLOURS['masked']]),
         alpha=0.75)
    _boxes(axis, picture)


def _covered(picture: Picture, keep_mask: Tensor, separator: str = ', ') -> str:
    """How much of the image is masked, and how much of that lies in boxes, by the mask and by chance."""
    masked, in_boxes, chance = (f'{100 * share:.0f} %' for share in covered_by(keep_mask, picture))
    nothing = in_boxes == 'nan %' or not picture.labels
    return f'{masked} masked' + ('' if nothing else f'{separator}{in_boxes} in boxes (chance {chance})')


def image(axis: Axes, picture: Picture, grey: bool = False) -> None:
    """The image itself, without its padding; in grey as a ground for what is drawn over it."""
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


def _boxes(axis: Axes, picture: Picture, texts: Sequence[str] | None = None, width: float = 1) -> None:
    dark = [withStroke(linewidth=2.5, foreground='black')]
    for i, (x1, y1, x2, y2) in enumerate(picture.boxes_xyxy_px.tolist()):
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX_COLOUR, linewidth=width,
                                 path_effects=[withStroke(linewidth=2 * width, foreground='black')]))
        if texts is not None:
            axis.text((x1 + x2) / 2, (y1 + y2) / 2, texts[i], color='white', fontsize=7, ha='center', va='center',
                      path_effects=dark, clip_on=True)


def _score(score: float) -> str:
    """As it stands in a box; a box without any position has none."""
    return '–' if pd.isna(score) else f'{score:.1f}' if score >= 0.1 else '<0.1'
