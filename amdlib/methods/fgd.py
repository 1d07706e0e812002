"""FGD (Yang et al., Focal and global knowledge distillation for detectors, 2022).

Parameters are named as in the authors' code, so that their checkpoints load, strictly.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amdlib.methods.amd import spatial_attention
from amdlib.methods.level import LevelLoss, align_channels, check_integer, check_number, squared_error


class FGDLoss(LevelLoss):
    """Focal and global distillation: foreground, background, attention and relation terms, each divided by N.

    foreground and background (`alpha_fgd`, `beta_fgd`): squared error weighted by the teacher's spatial and channel
    attention and by `box_masks`. attention (`gamma_fgd` over positions, `gamma_channel_fgd` over channels): L1
    distance of the two sides' attentions. relation (`lambda_fgd`): squared error after a global-context block on each
    side. `temp` is the temperature.
    Needs `boxes` and `image_shapes`. The defaults are those of the public code's class; its configs set others for
    each pair of detectors (`PUBLISHED`).
    Shapes and errors: see `LevelLoss`; `ValueError` where boxes or image shapes are missing or malformed, or
    `teacher_channels` is below 2 (the context blocks halve them).
    Source: Yang et al. 2022; initial values of the parameters as in the authors' code.
    """

    LABEL = 'FGD'
    # alpha, beta: sums over channels, normalised by the area of a box and the count of background positions (exact up
    # to the border that box_masks adds to a box). lambda: a plain sum.
    # DEVIATION FGD's gamma: sums over positions and over channels, each with its own weight here, which are one in the
    # authors' code.
    WEIGHT_EXPONENTS = {'alpha_fgd': (1, 0), 'beta_fgd': (1, 0), 'gamma_fgd': (0, 1), 'gamma_channel_fgd': (1, 0),
                        'lambda_fgd': (1, 1)}
    # The authors' public configs, one a pair of detectors; all have temp=0.5.
    PUBLISHED = {
        'retinanet': {'alpha_fgd': 1e-3, 'beta_fgd': 5e-4, 'gamma_fgd': 5e-4, 'gamma_channel_fgd': 5e-4,
                      'lambda_fgd': 5e-6},
        'reppoints': {'alpha_fgd': 1.6e-3, 'beta_fgd': 8e-4, 'gamma_fgd': 8e-4, 'gamma_channel_fgd': 8e-4,
                      'lambda_fgd': 8e-6},
        'faster_rcnn': {'alpha_fgd': 5e-5, 'beta_fgd': 2.5e-5, 'gamma_fgd': 5e-5, 'gamma_channel_fgd': 5e-5,
                        'lambda_fgd': 5e-7}}

    def __init__(self, student_channels: int, teacher_channels: int, temp: float = 0.5, alpha_fgd: float = 1e-3,
                 beta_fgd: float = 5e-4, gamma_fgd: float = 1e-3, lambda_fgd: float = 5e-6,
                 gamma_channel_fgd: float = 1e-3) -> None:
        super().__init__(student_channels, teacher_channels)
        check_integer('teacher_channels', teacher_channels, at_least=2)
        check_number('temp', temp, above=0)
        for name, weight in (('alpha_fgd', alpha_fgd), ('beta_fgd', beta_fgd), ('gamma_fgd', gamma_fgd),
                             ('gamma_channel_fgd', gamma_channel_fgd), ('lambda_fgd', lambda_fgd)):
            check_number(name, weight, at_least=0)
        self.temp = temp
        self.alpha_fgd = alpha_fgd
        self.beta_fgd = beta_fgd
        self.gamma_fgd = gamma_fgd
        self.gamma_channel_fgd = gamma_channel_fgd
        self.lambda_fgd = lambda_fgd

        self.align = align_channels(student_channels, teacher_channels)
        self.conv_mask_s, self.channel_add_conv_s = _context_block(teacher_channels)
        self.conv_mask_t, self.channel_add_conv_t = _context_block(teacher_channels)

    def weighted_loss(self, f_s: Tensor, f_t: Tensor, boxes: Sequence[Tensor] | None = None,
                      image_shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        foreground, background = box_masks(boxes, image_shapes, f_t)
        f_s = self.align(f_s)
        spatial_s, spatial_t = spatial_attention(f_s, self.temp), spatial_attention(f_t, self.temp)
        channel_s, channel_t = channel_attention(f_s, self.temp), channel_attention(f_t, self.temp)
        n = len(f_t)

        # (N, H, W): the teacher's channel attention is summed away before the masks divide the positions.
        error = ((f_s - f_t).square() * channel_t[:, :, None, None]).sum(dim=1) * spatial_t
        attention = (self.gamma_fgd * (spatial_s - spatial_t).abs().sum()
                     + self.gamma_channel_fgd * (channel_s - channel_t).abs().sum())
        relation = squared_error(_with_context(f_t, self.conv_mask_t, self.channel_add_conv_t),
                                 _with_context(f_s, self.conv_mask_s, self.channel_add_conv_s))
        return (self.alpha_fgd * (error * foreground).sum() / n + self.beta_fgd * (error * background).sum() / n
                + attention / n + self.lambda_fgd * relation)

    def extra_repr(self) -> str:
        return (f'temp={self.temp}, alpha_fgd={self.alpha_fgd}, beta_fgd={self.beta_fgd}, '
                f'gamma_fgd={self.gamma_fgd}, gamma_channel_fgd={self.gamma_channel_fgd}, '
                f'lambda_fgd={self.lambda_fgd}')


def channel_attention(feature: Tensor, temperature: float) -> Tensor:
    """Attention of a feature over its channels, C softmax(mean over positions of abs(F) / T); its mean is 1.

    Shapes: (N, C, H, W) -> (N, C).
    Source: FGD; FKD's channel mask is the same.
    """
    return feature.shape[1] * torch.softmax(feature.abs().mean(dim=(2, 3)) / temperature, dim=1)


def box_masks(boxes: Sequence[Tensor] | None, image_shapes: Sequence[tuple[int, int]] | None,
              feature: Tensor) -> tuple[Tensor, Tensor]:
    """FGD's weight of each position in the foreground and in the background term.

    A foreground position weighs 1 / area of the smallest box over it, in cells of the level; the others share a
    background weight of 1 / their number. Boxes: a list of N tensors (n, 4), xyxy in pixels of the input image, n = 0
    included; image_shapes: N times (height, width) in pixels before padding; feature: (N, C, H, W) of the level, whose
    dtype and device the masks take. No gradient.
    Shapes: two masks (N, H, W).
    Errors: `ValueError` where boxes or image shapes are missing, not N, or malformed.
    Source: FGD's public code: a box covers the cells floor(x1) ... ceil(x2), both included, so it is up to one cell
    wider than it seems, and its area counts cells beyond the border of the map.
    """
    _check_boxes(boxes, image_shapes, len(feature))
    with torch.no_grad():
        foreground = torch.stack([_foreground(*pair, feature) for pair in zip(boxes, image_shapes, strict=True)])
        background = (foreground <= 0).to(feature.dtype)
        # An image without background keeps zeros: nothing is divided by zero.
        background = background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    return foreground, background


def _foreground(boxes_xyxy_px: Tensor, image_shape: tuple[int, int], feature: Tensor) -> Tensor:
    """Foreground weights of one image, (H, W): the largest 1 / area over a position, 0 where there is no box."""
    h, w = feature.shape[2:]
    boxes = boxes_xyxy_px.detach().to(feature.device)
    # Divided, then multiplied, in the boxes' own dtype: floor and ceil see the public code's roundings.
    columns = boxes[:, 0::2] / image_shape[1] * w
    rows = boxes[:, 1::2] / image_shape[0] * h
    x1, x2 = columns[:, 0].floor().long(), columns[:, 1].ceil().long() + 1
    y1, y2 = rows[:, 0].floor().long(), rows[:, 1].ceil().long() + 1
    weight = 1 / (y2 - y1).to(feature.dtype) / (x2 - x1).to(feature.dtype)
    inside = _cells(y1, y2, h)[:, :, None] & _cells(x1, x2, w)[:, None, :]                      # (n, H, W)
    # The first layer is a map without boxes: the maximum over n = 0 boxes is 0, and no weight is negative.
    layers = torch.cat([weight.new_zeros(1, h, w), torch.where(inside, weight[:, None, None], 0)])
    return layers.amax(dim=0)


def _cells(start: Tensor, stop: Tensor, size: int) -> Tensor:
    """Which of `size` cells a Python slice start:stop takes, for n slices at once: (n,), (n,) -> (n, size), bool.

    The public code slices with these numbers, so a negative one counts from the end: a box that leaves the image on
    the left or at the top covers nothing, or, wholly outside, the opposite side. Boxes clipped to their image, as
    detectors are given them, never get there.
    """
    start = torch.where(start < 0, (start + size).clamp(min=0), start)
    stop = torch.where(stop < 0, stop + size, stop)
    cell = torch.arange(size, device=start.device)
    return (cell >= start[:, None]) & (cell < stop[:, None])


def _check_boxes(boxes: Sequence[Tensor] | None, image_shapes: Sequence[tuple[int, int]] | None, n: int) -> None:
    if boxes is None or image_shapes is None:
        raise ValueError(f'FGD needs boxes and image_shapes, got boxes={boxes!r}, image_shapes={image_shapes!r}')
    if len(boxes) != n or len(image_shapes) != n:
        raise ValueError(f'expected boxes and image_shapes of {n} images, got {len(boxes)} and {len(image_shapes)}')
    for i, (b, shape) in enumerate(zip(boxes, image_shapes, strict=True)):
        if b.dim() != 2 or b.shape[1] != 4 or not b.is_floating_point():
            raise ValueError(f'boxes[{i}]: expected a floating-point tensor of shape (n, 4), got {b.dtype} '
                             f'{tuple(b.shape)}')
        if len(shape) != 2 or min(shape) <= 0:
            raise ValueError(f'image_shapes[{i}]={shape!r}: expected a positive (height, width)')


def _context_block(channels: int) -> tuple[nn.Conv2d, nn.Sequential]:
    """Parameters of one side's global-context block: where to look (kaiming), what to add (zero at first)."""
    where = nn.Conv2d(channels, 1, kernel_size=1)
    what = nn.Sequential(nn.Conv2d(channels, channels // 2, kernel_size=1), nn.LayerNorm([channels // 2, 1, 1]),
                         nn.ReLU(), nn.Conv2d(channels // 2, channels, kernel_size=1))
    nn.init.kaiming_normal_(where.weight, mode='fan_in', nonlinearity='relu')
    nn.init.zeros_(where.bias)
    nn.init.zeros_(what[3].weight)
    nn.init.zeros_(what[3].bias)
    return where, what


def _with_context(feature: Tensor, where: nn.Conv2d, what: nn.Sequential) -> Tensor:
    """The feature plus what its context, a weighted mean over positions, adds to each channel: (N, C, H, W) twice."""
    attention = torch.softmax(where(feature).flatten(2), dim=2)                     # (N, 1, H*W)
    context = feature.flatten(2) @ attention.transpose(1, 2)                        # (N, C, 1)
    return feature + what(context.unsqueeze(-1))
