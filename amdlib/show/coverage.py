"""Which positions of a feature map lie where, and what a mask on them covers.

Positions are compared with boxes by their centres: position (i, j) of a map of H x W over a padded image of
H_pad x W_pad pixels stands at y = (i + 0.5) H_pad / H, x = (j + 0.5) W_pad / W. Positions in the padding are not
counted; the attention's softmax runs over them too, as in training.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import BoolTensor, Tensor

from amdlib.methods.amd import keep_mask, spatial_attention
from amdlib.show.features import Picture, padded_size_px

# ---- which positions lie where ----------------------------------------------------------------------------------

def inside_boxes(picture: Picture, height: int, width: int) -> BoolTensor:
    """Positions of a `height` x `width` map whose centre lies in any ground-truth box, (H, W).

    A box holds its left and upper edge, not its right and lower one: so it holds as many centres as its size says.
    """
    x, y = _centres_px(picture, height, width)
    left, top, right, bottom = picture.boxes_xyxy_px.T[:, :, None]
    columns, rows = (left <= x) & (x < right), (top <= y) & (y < bottom)     # (n, W), (n, H)
    return (rows[:, :, None] & columns[:, None, :]).any(dim=0)


def inside_image(picture: Picture, height: int, width: int) -> BoolTensor:
    """Positions of a `height` x `width` map whose centre lies in the image, not in its padding, (H, W)."""
    x, y = _centres_px(picture, height, width)
    image_height, image_width = picture.rgb.shape[:2]
    return (y < image_height)[:, None] & (x < image_width)[None, :]


def _centres_px(picture: Picture, height: int, width: int) -> tuple[Tensor, Tensor]:
    padded_height, padded_width = picture.pixels.shape[1:]
    return ((torch.arange(width) + 0.5) * (padded_width / width),
            (torch.arange(height) + 0.5) * (padded_height / height))


def _inside(pictures: Sequence[Picture], height: int, width: int) -> tuple[BoolTensor, BoolTensor]:
    """Which positions of each picture lie in the image, and which of those in a box: (N, H, W) twice."""
    image = torch.stack([inside_image(picture, height, width) for picture in pictures])
    return image, image & torch.stack([inside_boxes(picture, height, width) for picture in pictures])


class Covered(NamedTuple):
    """Of the positions in one image, 0 to 1 each."""
    masked: float
    in_boxes: float     # of the masked ones; NaN where none is
    chance: float       # the same for as many at random: the share of all positions that lies in boxes


def covered_by(keep_mask: Tensor, picture: Picture) -> Covered:
    """What one mask (H, W), 1 = kept, covers of its image."""
    image, boxes = _inside([picture], *keep_mask.shape)
    masked = (keep_mask == 0) & image[0]
    return Covered(*(float(some.sum()) / float(of.sum()) if of.any() else float('nan') for some, of in (
        (masked, image), (masked & boxes[0], masked), (boxes, image))))


# ---- what lies there --------------------------------------------------------------------------------------------

def mask_coverage(f_t: Sequence[Tensor], pictures: Sequence[Picture], phis: Iterable[float],
                  temperature: float = 0.5, levels: Sequence[int] | None = None) -> pd.DataFrame:
    """How much the adaptive mask covers, and how much of that is ground truth: a line a level and threshold.

    Args:
        f_t: the teacher's feature of each level, (N, C, H, W) for N pictures.
        levels: their numbers; None counts from 0.
    Returns: level ('all' pools them), stride_px, phi, positions (in the images), masked (of these), masked_share;
        inside_share: of the masked positions, which share lies in boxes (NaN where none is masked);
        random_share, random_sd: expectation and standard deviation of that share if as many positions were drawn in
        each image and level without regard to what they show (hypergeometric); lift: inside_share / random_share.
    Errors: ValueError where pictures and features do not belong together.
    Source: Eq. 2 to 4, and what Section IV-D says of phi: "A larger value indicates that only the points with higher
    attention scores of the teacher model are masked, and most of the pixel points are in the object-specific
    ground-truth region. In contrast, it is likely that masked points appear in the background region when decreasing".
    """
    levels, phis = list(range(len(f_t)) if levels is None else levels), list(dict.fromkeys(map(float, phis)))
    if len(levels) != len(f_t):
        raise ValueError(f'expected a level for each of {len(f_t)} features, got {levels}')
    _, padded_width = padded_size_px(pictures)
    lines = []
    for level, feature in zip(levels, f_t, strict=True):
        _check_one_map_a_picture(feature, pictures)
        image, boxes = _inside(pictures, *feature.shape[2:])
        attention = spatial_attention(feature, temperature)
        for phi in phis:
            masked = (keep_mask(attention, phi)[:, 0] == 0) & image
            drawn, total, hits = (_count(where) for where in (masked, image, boxes))
            expected, variance = _hypergeometric(total, hits, drawn)
            lines.append({'level': level, 'stride_px': padded_width / feature.shape[3], 'phi': phi,
                          'positions': total.sum(), 'masked': drawn.sum(), 'inside': _count(masked & boxes).sum(),
                          'expected': expected.sum(), 'variance': variance.sum()})
    counted = pd.DataFrame(lines)
    pooled = counted.drop(columns=['level', 'stride_px']).groupby('phi', sort=False).sum().reset_index()
    return _shares(pd.concat([counted, pooled.assign(level='all')], ignore_index=True))


def _shares(counted: pd.DataFrame) -> pd.DataFrame:
    masked = counted.masked.where(counted.masked > 0)       # NaN, not a division by 0
    inside, expected = counted.inside / masked, counted.expected / masked
    table = counted[['level', 'stride_px', 'phi', 'positions', 'masked']]
    return table.assign(masked_share=counted.masked / counted.positions, inside_share=inside, random_share=expected,
                        random_sd=np.sqrt(counted.variance) / masked, lift=inside / expected.where(expected > 0))


def _hypergeometric(total: np.ndarray, hits: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the number of hits among `drawn` of `total` positions, drawn without putting back."""
    share = hits / np.maximum(total, 1)
    return drawn * share, drawn * share * (1 - share) * (total - drawn) / np.maximum(total - 1, 1)


def _count(where: Tensor) -> np.ndarray:
    return where.sum(dim=(1, 2)).numpy()


def _check_one_map_a_picture(maps: Tensor, pictures: Sequence[Picture]) -> None:
    if len(maps) != len(pictures):
        raise ValueError(f'expected a map for each of {len(pictures)} pictures, got shape {tuple(maps.shape)}')


def region_scores(attention: Tensor, pictures: Sequence[Picture]) -> pd.DataFrame:
    """The attention that each ground-truth box gets, a line a box: the "region-specific attention scores" of Fig. 1.

    Args:
        attention: (N, H, W), mean 1 (`spatial_attention`).
    Returns: image_id, box (from 0), class, its corners in pixels, positions (whose centre it holds), attention (their
        mean; NaN where it holds none), and of the whole image: inside_share, the share of the image's attention that
        lies in boxes, and area_share, the share of its positions that does: what even attention would give.
    """
    _check_one_map_a_picture(attention, pictures)
    image, boxes = _inside(pictures, *attention.shape[1:])
    lines = []
    for picture, score, in_image, in_boxes in zip(pictures, attention, image, boxes, strict=True):
        whole = {'inside_share': float(score[in_boxes].sum() / score[in_image].sum()),
                 'area_share': float(in_boxes.sum() / in_image.sum())}
        for i, (box, label) in enumerate(zip(picture.boxes_xyxy_px, picture.labels, strict=True)):
            held = score[inside_boxes(replace(picture, boxes_xyxy_px=box[None]), *score.shape) & in_image]
            lines.append({'image_id': picture.image_id, 'box': i, 'class': label,
                          **dict(zip(('x1_px', 'y1_px', 'x2_px', 'y2_px'), box.tolist(), strict=True)),
                          'positions': len(held), 'attention': float(held.mean()), **whole})
    return pd.DataFrame(lines)


def contrast(g: Tensor, pictures: Sequence[Picture], resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """How far objects stand out of a magnitude (N, H, W): its mean in ground-truth boxes / its mean outside of them.

    Returns: inside, outside (means over the positions of all images), contrast, and low, high: its 95 % interval over
        images drawn with putting back (percentiles of the bootstrap; it does not know the spread between seeds).
    """
    _check_one_map_a_picture(g, pictures)
    image, boxes = _inside(pictures, *g.shape[1:])
    sums = np.stack([((g * where).sum(dim=(1, 2))).numpy() for where in (boxes, image & ~boxes)]).astype(float)
    counts = np.stack([_count(where) for where in (boxes, image & ~boxes)])
    drawn = np.random.default_rng(seed).integers(len(pictures), size=(resamples, len(pictures)))
    with np.errstate(invalid='ignore', divide='ignore'):    # no position inside, or none outside: NaN
        inside, outside = sums.sum(axis=1) / counts.sum(axis=1)
        again = sums[:, drawn].sum(axis=2) / counts[:, drawn].sum(axis=2)
        low, high = np.percentile(again[0] / again[1], [2.5, 97.5])
        numbers = {'inside': inside, 'outside': outside, 'contrast': inside / outside, 'low': low, 'high': high}
    return {name: float(value) for name, value in numbers.items()}
