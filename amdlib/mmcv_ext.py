"""The compiled half of mmcv (`mmcv._ext`) on torchvision's kernels: mmdet without compiling anything.

`import mmcv_ext` before `mmcv.ops` or mmdet is all that is needed; it installs itself. It needs torch, torchvision
and mmcv-lite alone, so that the file can be copied into any other mmdet project. A compiled mmcv that works is left
in place and used. Operators that are not served raise `OperatorUnavailable` when they are called.

Signatures, argument order and results are those of mmcv 2.1.0 (its pybind.cpp and CPU kernels; the CUDA kernels of
roi_pool, sigmoid_focal_loss, deform_roi_pool, ms_deform_attn, carafe and masked_im2col, which have no CPU ones): what
comes out is written into the tensors that the caller passes, gradients of features and weights are added to what they
hold. Where torchvision differs from mmcv, the code says so.

Tensors are computed in float32, or float64 if they are float64; half precision is converted on the way in and out
(torchvision's CPU kernels refuse it), autocast is suspended. RoIs are (n, 5): image index, x1, y1, x2, y2 in pixels
of the input image.
"""
from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
import warnings
from typing import NamedTuple

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

__all__ = ['OPERATORS', 'OperatorUnavailable', 'backend', 'install']

OPERATORS = {}
"""The operators that are served, by the name under which mmcv.ops asks for them."""

_NAME = 'mmcv._ext'
_MAX_ELEMENTS = 1 << 24  # of one temporary; larger work is done in pieces
_FLT_MIN = float(np.finfo(np.float32).tiny)


class OperatorUnavailable(NotImplementedError):
    """An operator of compiled mmcv was called that has no counterpart here."""


def _operator(function):
    """Serve ``function`` under its name, without autograd (mmcv.ops has its own) and without autocast."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return function(*args, **kwargs)

    OPERATORS[function.__name__] = call
    return call


def _full(*tensors: Tensor) -> list[Tensor]:
    """``tensors`` in the one precision of computation: float64 if the first is float64, else float32."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return [tensor.to(dtype) for tensor in tensors]


# ---------------------------------------------------------------------------------------------------------------------
# Non-maximum suppression


@_operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept ones of boxes (n, 4), best first; widths and heights are x2 - x1 + offset.

    Of boxes with equal scores the first comes first. (mmcv leaves their order to an unstable sort.)
    """
    boxes, scores = _full(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv's threshold is a float32 and torchvision's a double: an IoU of 0.6 would exceed 0.6 otherwise.
    return torch.ops.torchvision.nms(boxes, scores, float(np.float32(iou_threshold)))


@_operator
def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float,
            method: int, offset: int) -> Tensor:
    """Soft-NMS: fill the first k rows of dets (n, 5) with box and decayed score, best first, and return k indices.

    method: 0 naive, 1 linear, 2 gaussian. A box is dropped once its decayed score is below ``min_score``, but the best
    of all is kept whatever its score.
    """
    device, dtype = boxes.device, dets.dtype
    boxes, scores = (value.detach().cpu().float().numpy() for value in (boxes, scores))
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    threshold, lowest = np.float32(iou_threshold), np.float32(min_score)
    queue, decayed = np.arange(len(boxes)), scores.copy()  # the boxes that are left, and their scores; both shrink
    picked, picked_scores = [], []
    with np.errstate(all='ignore'):  # boxes without area: 0 / 0 is no overlap, as in mmcv
        while len(queue):
            best = int(decayed.argmax())
            if np.isnan(decayed[best]):  # argmax prefers NaN; mmcv picks it only where it stands first
                best = 0 if np.isnan(decayed[0]) else int(np.nanargmax(decayed))
            i = queue[best]
            picked.append(i)
            picked_scores.append(decayed[best])
            # As mmcv does, the first takes the place of the picked: the order decides between equal scores.
            queue[best], decayed[best] = queue[0], decayed[0]
            queue, decayed = queue[1:], decayed[1:]
            width = np.maximum(0, np.minimum(x2[i], x2[queue]) - np.maximum(x1[i], x1[queue]) + offset)
            height = np.maximum(0, np.minimum(y2[i], y2[queue]) - np.maximum(y1[i], y1[queue]) + offset)
            overlap = width * height
            iou = overlap / (areas[i] + areas[queue] - overlap)
            if method == 0:
                decay = np.where(iou >= threshold, np.float32(0), np.float32(1))
            elif method == 1:
                decay = np.where(iou >= threshold, 1 - iou, np.float32(1))
            elif method == 2:
                decay = np.exp(-(iou * iou) / np.float32(sigma))
            else:
                raise ValueError(f'softnms: method is 0 (naive), 1 (linear) or 2 (gaussian), not {method}')
            decayed = decayed * decay
            # mmcv fills the place of a dropped box with the last of the queue: again for the order of equal scores.
            drop = decayed < lowest
            left = len(queue) - int(drop.sum())
            holes, movers = np.flatnonzero(drop[:left]), left + np.flatnonzero(~drop[left:])[::-1]
            queue[holes], decayed[holes] = queue[movers], decayed[movers]
            queue, decayed = queue[:left], decayed[:left]
    inds = torch.as_tensor(np.array(picked, dtype=np.int64))
    rows = torch.cat([torch.from_numpy(boxes)[inds], torch.tensor(np.array(picked_scores, np.float32))[:, None]], dim=1)
    dets[:len(picked)] = rows.to(dets.device, dtype)
    return inds.to(device)


@_operator
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of the boxes dets (n, 5: x1, y1, x2, y2, score): each kept box with those that it suppresses, best first.

    A box is suppressed where its IoU is the threshold or more. (In `nms` it must be more.)
    """
    boxes, scores = dets[:, :4].float().numpy(), dets[:, 4]
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    queue, groups = scores.sort(descending=True, stable=True).indices.numpy(), []
    with np.errstate(all='ignore'):  # boxes without area, as in softnms
        while len(queue):
            best, rest = queue[0], queue[1:]
            width = np.maximum(0, np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]))
            height = np.maximum(0, np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]))
            overlap = width * height
            drop = overlap / (areas[best] + areas[rest] - overlap) >= np.float32(iou_threshold)
            groups.append([int(best), *rest[drop].tolist()])
            queue = rest[~drop]
    return groups


# ---------------------------------------------------------------------------------------------------------------------
# RoI align, RoI pool and deformable RoI pool


def _grid(rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool):
    """Sampling points of RoI align along y and x.

    Returns for either axis the coordinates (n, bins, g) in pixels of the feature map and which of them count
    (n, 1, g): g is the largest number of samples a bin that any RoI has.
    """
    axes = []
    for low, high, bins in ((2, 4, size[0]), (1, 3, size[1])):
        start, end = (rois[:, i] * spatial_scale - (0.5 if aligned else 0.) for i in (low, high))
        length = end - start if aligned else (end - start).clamp(min=1)
        step = length / bins
        samples = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil()
        g = torch.arange(max(int(samples.max()), 1), device=rois.device)
        of_bin = start[:, None] + torch.arange(bins, device=rois.device) * step[:, None]
        within = (g + 0.5) * step[:, None] / samples[:, None].clamp(min=1)
        axes.append((of_bin[:, :, None] + within[:, None], (g < samples[:, None])[:, None]))
    return axes


def _neighbours(position: Tensor, size: int):
    """Pixels below and above each position along one axis of ``size`` pixels and their weights, of RoI align.

    Up to one pixel outside, the border is repeated; farther out the weights are 0. All of ``position``'s shape.
    """
    inside = (position >= -1) & (position <= size)
    position = torch.where(inside, position, 0).clamp(0, size - 1)
    low = position.floor()
    share = position - low
    return (low.long(), (low.long() + 1).clamp(max=size - 1)), ((1 - share) * inside, share * inside)


def _bin_max(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Largest of values (n, bins y, g, bins x, g', C) in each bin, first in row order among equals, where ``counts``.

    Returns the values (n, C, bins y, bins x) and their numbers within the g * g' samples.
    """
    values = values.masked_fill(~counts[..., None], -torch.inf).permute(0, 5, 1, 3, 2, 4).flatten(4)
    return values.max(dim=4)


def _pieces(count: int, elements_each: int):
    """Slices of range(count) that keep a temporary of ``elements_each`` elements an item below _MAX_ELEMENTS."""
    step = max(1, _MAX_ELEMENTS // max(1, elements_each))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _collapsed(rois: Tensor, sampling_ratio: int, aligned: bool) -> Tensor:
    """rois for torchvision's CPU kernel, which cannot count the samples of one with x2 < x1 or y2 < y1.

    mmcv's CPU kernel refuses such a RoI and its CUDA kernel takes it: mirrored where sampling_ratio is given, with no
    samples where it is not, as one without extent. Without `aligned` its sides are 1 everywhere.
    """
    inverted = (rois[:, 3:] < rois[:, 1:3]).any(dim=1)
    if not aligned or sampling_ratio > 0 or rois.device.type != 'cpu' or not inverted.any():
        return rois
    return torch.where(inverted[:, None], rois[:, [0, 1, 2, 1, 2]], rois)


@_operator
def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                      aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                      pool_mode: int, aligned: bool) -> None:
    """RoI align of input (N, C, H, W) into output (n, C, aligned_height, aligned_width); pool_mode 0 max, 1 average.

    Max also fills argmax_y and argmax_x, of output's shape, with the position of the largest sample. A RoI without
    extent has no samples if sampling_ratio <= 0 and gives -10000 at (-1, -1), as in mmcv's CPU kernel.
    """
    full, rois = _full(input, rois)
    if pool_mode == 1:
        rois = _collapsed(rois, sampling_ratio, aligned)
        output.copy_(torch.ops.torchvision.roi_align(full, rois, spatial_scale, aligned_height, aligned_width,
                                                     sampling_ratio, aligned))
        return
    if not output.numel():
        return
    # torchvision has no maximum.
    (height, width), channels_last = full.shape[2:], full.permute(0, 2, 3, 1).contiguous()
    (ys, count_y), (xs, count_x) = _grid(rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
    for part in _pieces(len(rois), full.size(1) * ys[0].numel() * xs[0].numel()):
        image = rois[part, 0].long()[:, None, None, None, None]
        rows, row_weights = _neighbours(ys[part], height)
        columns, column_weights = _neighbours(xs[part], width)
        values = 0
        for row, row_weight in zip(rows, row_weights):
            for column, column_weight in zip(columns, column_weights):
                weight = row_weight[:, :, :, None, None] * column_weight[:, None, None]
                values = values + weight[..., None] * channels_last[image, row[:, :, :, None, None],
                                                                    column[:, None, None]]
        counts = (count_y[part, :, :, None, None] & count_x[part, None, None]).expand(values.shape[:-1])
        best, number = _bin_max(values, counts)
        empty = best == -torch.inf
        for argmax, positions, of_axis, shape in (
                (argmax_y, ys[part], number // xs.size(2), (1, 1, -1, 1)),
                (argmax_x, xs[part], number % xs.size(2), (1, 1, 1, -1))):
            bins = torch.arange(positions.size(1), device=rois.device).view(shape)
            images = torch.arange(len(positions), device=rois.device).view(-1, 1, 1, 1)
            argmax[part] = positions[images, bins, of_axis].masked_fill(empty, -1).to(argmax.dtype)
        output[part] = best.masked_fill(empty, -10000).to(output.dtype)


@_operator
def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Add to grad_input (N, C, H, W) what grad_output (n, C, aligned_height, aligned_width) gives."""
    grad, rois, argmax_y, argmax_x = _full(grad_output, rois, argmax_y, argmax_x)
    if not grad.numel():
        return
    images, channels, height, width = grad_input.shape
    if pool_mode == 1:
        rois = _collapsed(rois, sampling_ratio, aligned)
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad, rois, spatial_scale, aligned_height, aligned_width, images, channels, height, width, sampling_ratio,
            aligned)
        return
    grad = grad * (argmax_y != -1)  # mmcv's mark of an empty bin
    plane = (rois[:, :1].long() * channels + torch.arange(channels, device=rois.device))[:, :, None, None]
    total = grad.new_zeros(grad_input.numel())
    for row, row_weight in zip(*_neighbours(argmax_y, height)):
        for column, column_weight in zip(*_neighbours(argmax_x, width)):
            index = (plane * height + row) * width + column
            total.index_add_(0, index.flatten(), (grad * row_weight * column_weight).flatten())
    grad_input += total.view_as(grad_input)


@_operator
def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int,
                     pooled_width: int, spatial_scale: float) -> None:
    """RoI max pooling of input (N, C, H, W) into output (n, C, pooled_height, pooled_width).

    argmax, int and of output's shape, gets the flat position in the map, -1 for an empty bin. A RoI spans x1 to x2 + 1
    in input pixels and is not rounded to the map, unlike torchvision's. One without extent leaves output and argmax
    as the caller passed them, as in mmcv.
    """
    full, rois = _full(input, rois)
    if not output.numel():
        return
    (height, width), channels_last = full.shape[2:], full.permute(0, 2, 3, 1).contiguous()
    start, end = rois[:, 1:3] * spatial_scale, (rois[:, 3:] + 1) * spatial_scale
    axes = []
    for axis, bins, size in ((1, pooled_height, height), (0, pooled_width, width)):
        first, step = start[:, axis, None], (end - start)[:, axis, None] / bins
        edge = torch.arange(bins + 1, device=rois.device)
        low = (edge[:-1] * step + first).floor().clamp(0, size)
        high = (edge[1:] * step + first).ceil().clamp(0, size)
        pixel = low[:, :, None] + torch.arange(max(int((high - low).max()), 1), device=rois.device)
        axes.append((pixel.clamp(max=size - 1).long(), pixel < high[:, :, None]))
    (rows, count_y), (columns, count_x) = axes
    solid = ((end - start) > 0).all(dim=1)
    for part in _pieces(len(rois), full.size(1) * rows[0].numel() * columns[0].numel()):
        image, row, column = torch.broadcast_tensors(rois[part, 0].long()[:, None, None, None, None],
                                                     rows[part, :, :, None, None], columns[part, None, None])
        counts = count_y[part, :, :, None, None] & count_x[part, None, None]
        best, number = _bin_max(channels_last[image, row, column], counts)
        position = (row * width + column).permute(0, 1, 3, 2, 4).flatten(3)[:, None]
        position = position.expand(*best.shape, -1).gather(4, number[..., None])[..., 0]
        empty, keep = best == -torch.inf, solid[part, None, None, None]
        output[part] = torch.where(keep, best.masked_fill(empty, 0).to(output.dtype), output[part])
        argmax[part] = torch.where(keep, position.masked_fill(empty, -1).to(argmax.dtype), argmax[part])


@_operator
def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int,
                      pooled_width: int, spatial_scale: float) -> None:
    """Add to grad_input (N, C, H, W) each element of grad_output at the place argmax names."""
    grad, rois = _full(grad_output, rois)
    if not grad.numel():
        return
    channels, pixels = grad_input.size(1), grad_input[0, 0].numel()
    plane = (rois[:, :1].long() * channels + torch.arange(channels, device=rois.device))[:, :, None, None]
    index = plane * pixels + argmax.clamp(min=0)
    total = grad.new_zeros(grad_input.numel())
    total.index_add_(0, index.flatten(), (grad * (argmax >= 0)).flatten())
    grad_input += total.view_as(grad_input)


def _shifted_grid(rois: Tensor, offset: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int,
                  gamma: float):
    """Sampling points of deformable RoI pooling: those of aligned RoI align, each bin moved by its offset.

    offset (n, 2, *size), x before y, in units of gamma times the RoI's width and height, or empty. Returns y
    (n, *size, g), x (n, *size, g') in pixels of the map, the weight of each sample (n, 1, 1, g, g', 1, 1), 0 for those
    that do not count, and what an offset of one moves a bin, (n, 1, 1) along x and along y.
    """
    (ys, count_y), (xs, count_x) = _grid(rois, size, spatial_scale, sampling_ratio, aligned=True)
    unit_x, unit_y = ((gamma * spatial_scale * (rois[:, i + 2] - rois[:, i])).view(-1, 1, 1) for i in (1, 2))
    shift_x, shift_y = offset.unbind(dim=1) if offset.numel() else (rois.new_zeros(len(rois), *size),) * 2
    ys = ys[:, :, None] + (unit_y * shift_y)[..., None]
    xs = xs[:, None] + (unit_x * shift_x)[..., None]
    counts = (count_y[..., None] & count_x[:, :, None])[:, None].to(rois.dtype)
    counts = (counts / counts.sum(dim=(3, 4), keepdim=True).clamp(min=1))[..., None, None]
    return ys, xs, counts, unit_x, unit_y


def _corners(rois: Tensor, ys: Tensor, xs: Tensor, height: int, width: int):
    """Of each sampling point the four pixels around it, as rows of the maps with channels last, and their weights.

    Then what mmcv takes for their derivatives along x and along y, where it does not clamp the other coordinate at the
    border. All are (n, bins, bins, g, g', 2, 2) or of a shape that fits.
    """
    axes = []
    for position, size in ((ys, height), (xs, width)):
        pixels, weights = _neighbours(position, size)
        inside = ((position >= -1) & (position <= size)).to(position.dtype)
        free = ((pixels[1] - position) * inside, (position - pixels[0]) * inside)
        axes.append([torch.stack(pair, dim=-1) for pair in (pixels, weights, free, (-inside, inside))])
    rows, weight_y, free_y, slope_y = (value[..., :, None, :, None] for value in axes[0])
    columns, weight_x, free_x, slope_x = (value[..., None, :, None, :] for value in axes[1])
    image = rois[:, 0].long().view(-1, 1, 1, 1, 1, 1, 1)
    return (image * height + rows) * width + columns, weight_y * weight_x, free_y * slope_x, slope_y * free_x


def _bags(input: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of pixels of input (N, C, H, W), differentiable: index, weight (n, y, x, ...) -> (n, C, y, x)."""
    rows = input.permute(0, 2, 3, 1).reshape(-1, input.size(1))
    sums = F.embedding_bag(index.flatten(3).flatten(0, 2), rows, mode='sum',
                           per_sample_weights=weight.flatten(3).flatten(0, 2))
    return sums.view(*index.shape[:3], -1).permute(0, 3, 1, 2)


@_operator
def deform_roi_pool_forward(input: Tensor, rois: Tensor, offset: Tensor, output: Tensor, pooled_height: int,
                            pooled_width: int, spatial_scale: float, sampling_ratio: int, gamma: float) -> None:
    """RoI align (average, aligned) of input (N, C, H, W) with bins moved by `offset`, into output (n, C, *bins)."""
    full, rois, offset = _full(input, rois, offset)
    if not output.numel():
        return
    ys, xs, counts, *_ = _shifted_grid(rois, offset, (pooled_height, pooled_width), spatial_scale, sampling_ratio,
                                       gamma)
    for part in _pieces(len(rois), 4 * ys[0].numel() * xs.size(3)):
        index, weight, *_ = _corners(rois[part], ys[part], xs[part], *full.shape[2:])
        output[part] = _bags(full, index, weight * counts[part]).to(output.dtype)


@_operator
def deform_roi_pool_backward(grad_output: Tensor, input: Tensor, rois: Tensor, offset: Tensor, grad_input: Tensor,
                             grad_offset: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float,
                             sampling_ratio: int, gamma: float) -> None:
    """Add the gradients of input and offset to theirs. At the border mmcv's for an offset is not the derivative."""
    grad, full, rois, offset = _full(grad_output, input, rois, offset)
    if not grad.numel():
        return
    ys, xs, counts, *units = _shifted_grid(rois, offset, (pooled_height, pooled_width), spatial_scale, sampling_ratio,
                                           gamma)
    for part in _pieces(len(rois), 4 * ys[0].numel() * xs.size(3)):
        index, weight, *along = _corners(rois[part], ys[part], xs[part], *full.shape[2:])
        leaves = [full.detach().requires_grad_(), (weight * counts[part]).requires_grad_()]
        with torch.enable_grad():
            output = _bags(leaves[0], index, leaves[1])
        of_input, of_weight = torch.autograd.grad(output, leaves, grad[part])
        grad_input += of_input
        if offset.numel():
            felt = of_weight * counts[part]
            moved = [unit[part] * (share * felt).flatten(3).sum(dim=3) for unit, share in zip(units, along)]
            grad_offset[part] += torch.stack(moved, dim=1).to(grad_offset.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Deformable convolution


class _Geometry(NamedTuple):
    """Of a convolution; pairs are (y, x)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def output_size(self, input: Tensor) -> tuple[int, int]:
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip(
            input.shape[2:], self.kernel, self.stride, self.padding, self.dilation))

    def check(self, input: Tensor, offset: Tensor, mask: Tensor | None) -> None:
        for name, tensor, values in (('offset', offset, 2), ('mask', mask, 1)):
            expected = (len(input), values * self.deform_groups * self.taps, *self.output_size(input))
            if tensor is not None and tensor.shape != expected:
                raise ValueError(f'deformable convolution of {tuple(input.shape)}: {name} must be {expected}, '
                                 f'not {tuple(tensor.shape)}')

    def read(self, input: Tensor, tensor: Tensor) -> Tensor:
        """An offset or mask that is larger than the output as mmcv's modulated kernels read it, who do not look at its
        size: as if the first values of each picture were of the output's height and width. (DyHead passes a coarser
        level with the offsets of a finer one.) Others as they are."""
        out = self.output_size(input)
        count = tensor.size(1) * out[0] * out[1]
        if tensor.shape[2:] == out or tensor[:1].numel() < count:
            return tensor
        return tensor.flatten(1)[:, :count].unflatten(1, (tensor.size(1), *out))


def _sample_points(offset: Tensor, input: Tensor, geometry: _Geometry):
    """Where each tap of each deformable group samples: y and x, in pixels, and whether that touches the map.

    offset (N, 2 * G * K, H', W') holds (y, x) for each of G groups and K taps. All results are (N, G, K, H', W').
    """
    out, taps = offset.shape[2:], torch.arange(geometry.taps, device=offset.device)
    shifts = offset.view(len(offset), geometry.deform_groups, len(taps), 2, *out).unbind(dim=3)
    of_tap = (taps // geometry.kernel[1], taps % geometry.kernel[1])
    points, inside = [], True
    for axis in (0, 1):
        cell = torch.arange(out[axis], device=offset.device) * geometry.stride[axis] - geometry.padding[axis]
        cell = cell.view((-1, 1) if axis == 0 else (1, -1))
        points.append(shifts[axis] + (of_tap[axis] * geometry.dilation[axis]).view(-1, 1, 1) + cell)
        inside = inside & (points[axis] > -1) & (points[axis] < input.size(2 + axis))
    return *points, inside


def _columns(input: Tensor, offset: Tensor, mask: Tensor | None, geometry: _Geometry) -> Tensor:
    """What the kernel's taps see, by bilinear interpolation, differentiable: (N * H' * W', K, C).

    A sample is a weighted sum of four pixels, that is of four rows of the map with channels last, which is what
    embedding_bag computes in one pass. Forward and backward take a third to a tenth of what torchvision's kernel
    takes on a CPU, which finds the coordinates anew for each channel.
    """
    images, channels, height, width = input.shape
    groups = geometry.deform_groups
    y, x, inside = (value.permute(0, 3, 4, 2, 1) for value in _sample_points(offset, input, geometry))
    scale = inside if mask is None else inside * mask.view(
        images, groups, -1, *mask.shape[2:]).permute(0, 3, 4, 2, 1)
    # `where` also stops the gradient: mmcv has none for a sample that lies outside or on coordinate -1.
    weights, pixels = [], []
    for position, size in ((y, height), (x, width)):
        position = torch.where(inside, position, 0)
        low = position.detach().floor()
        share = position - low
        weights.append(torch.stack([(1 - share) * (low >= 0), share * (low < size - 1)], dim=-1))
        pixels.append(torch.stack([low.clamp(min=0), (low + 1).clamp(max=size - 1)], dim=-1).long())
    weight = weights[0][..., :, None] * weights[1][..., None, :] * scale[..., None, None]
    image = torch.arange(images, device=input.device).view(-1, 1, 1, 1, 1, 1, 1)
    group = torch.arange(groups, device=input.device).view(-1, 1, 1)
    row = ((image * height + pixels[0][..., :, None]) * width + pixels[1][..., None, :]) * groups + group
    rows = input.permute(0, 2, 3, 1).reshape(-1, channels // groups)
    columns = F.embedding_bag(row.reshape(-1, 4), rows, mode='sum', per_sample_weights=weight.reshape(-1, 4))
    return columns.view(-1, geometry.taps, channels)


def _kernel_arguments(weight: Tensor, offset: Tensor, mask: Tensor | None, geometry: _Geometry):
    """The tail of torchvision's deform_conv2d: weight, offset, mask, bias (zeros) and geometry."""
    use_mask, mask = mask is not None, offset.new_zeros(len(offset), 0) if mask is None else mask
    return (weight, offset, mask, weight.new_zeros(len(weight)), *geometry.stride, *geometry.padding,
            *geometry.dilation, geometry.groups, geometry.deform_groups, use_mask)


def _deform_kernel(input, offset, mask, weight, geometry):
    """`_deform` by torchvision's kernel."""
    return torch.ops.torchvision.deform_conv2d(input, *_kernel_arguments(weight, offset, mask, geometry))


def _deform_kernel_gradients(grad, input, offset, mask, weight, geometry):
    """`_deform_gradients` by torchvision's kernel."""
    of_input, of_weight, of_offset, of_mask, _ = torch.ops.torchvision._deform_conv2d_backward(
        grad, input, *_kernel_arguments(weight, offset, mask, geometry))
    # mmcv has no gradient for samples on coordinate -1, torchvision has; offsets of 0 with padding 1 put them there.
    *_, inside = _sample_points(offset, input, geometry)
    of_offset.view(*inside.shape[:3], 2, *inside.shape[3:]).masked_fill_(~inside[:, :, :, None], 0)
    return of_input, of_offset, of_mask if mask is not None else None, of_weight


def _deform_gather(input, offset, mask, weight, geometry):
    """`_deform` by `_columns` and a matrix product."""
    out = offset.shape[2:]
    flat = _flat_weight(weight, geometry)
    output = input.new_empty(len(input), len(weight), *out)
    for part in _pieces(len(input), input.size(1) * geometry.taps * out.numel()):
        columns = _columns(input[part], offset[part], None if mask is None else mask[part], geometry)
        product = torch.matmul(_by_group(columns, geometry), flat)  # (groups, N * H' * W', C_out / groups)
        output[part] = product.permute(1, 0, 2).reshape(-1, *out, len(weight)).permute(0, 3, 1, 2)
    return output


def _deform_gather_gradients(grad, input, offset, mask, weight, geometry):
    """`_deform_gradients` by `_columns`, whose gradients are autograd's."""
    flat = _flat_weight(weight, geometry)
    of_flat = torch.zeros_like(flat)
    wholes = [torch.zeros_like(value) for value in (input, offset, mask) if value is not None]
    for part in _pieces(len(input), input.size(1) * geometry.taps * grad.shape[2:].numel()):
        leaves = [value[part].detach().requires_grad_() for value in (input, offset, mask) if value is not None]
        with torch.enable_grad():
            columns = _columns(*leaves[:2], leaves[2] if mask is not None else None, geometry)
        rows = grad[part].permute(0, 2, 3, 1).reshape(-1, geometry.groups, len(weight) // geometry.groups)
        rows = rows.permute(1, 0, 2)
        of_flat += _by_group(columns.detach(), geometry).transpose(1, 2) @ rows
        of_columns = (rows @ flat.transpose(1, 2)).view(geometry.groups, *columns.shape[:2], -1)
        of_columns = of_columns.permute(1, 2, 0, 3).reshape(columns.shape)
        for whole, gradient in zip(wholes, torch.autograd.grad(columns, leaves, of_columns)):
            whole[part] = gradient
    of_weight = of_flat.view(geometry.groups, *geometry.kernel, weight.size(1), -1).permute(0, 4, 3, 1, 2)
    return *wholes[:2], wholes[2] if mask is not None else None, of_weight.reshape(weight.shape)


def _flat_weight(weight, geometry):
    """weight (C_out, C / groups, h, w) as (groups, h * w * C / groups, C_out / groups)."""
    grouped = weight.reshape(geometry.groups, -1, *weight.shape[1:])
    return grouped.permute(0, 3, 4, 2, 1).flatten(1, 3)


def _by_group(columns, geometry):
    """columns (rows, K, C) as (groups, rows, K * C / groups)."""
    return columns.view(*columns.shape[:2], geometry.groups, -1).permute(2, 0, 1, 3).flatten(2)


def _deform(input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Deformable convolution without bias: input (N, C, H, W), weight (C_out, C / groups, h, w) -> (N, C_out, H', W').

    offset (N, 2 * deform_groups * h * w, H', W') in pixels, (y, x) by turns; mask (N, deform_groups * h * w, H', W').
    """
    geometry.check(input, offset, mask)
    compute = _deform_gather if input.device.type == 'cpu' else _deform_kernel
    return compute(input, offset, mask, weight, geometry)


def _deform_gradients(grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor,
                      geometry: _Geometry) -> tuple:
    """Gradients of `_deform` for input, offset, mask (None without one) and weight, given that of its output."""
    geometry.check(input, offset, mask)
    compute = _deform_gather_gradients if input.device.type == 'cpu' else _deform_kernel_gradients
    return compute(grad, input, offset, mask, weight, geometry)


def _state(*tensors: Tensor) -> tuple:
    """What tells whether tensors are the same, unchanged ones."""
    return tuple((tensor.data_ptr(), tensor._version, tensor.shape) for tensor in tensors)


@_operator
def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
                        kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
                        group: int, deformable_group: int, im2col_step: int) -> None:
    """`_deform` into output. columns, ones and im2col_step are mmcv's working memory and are not used."""
    geometry = _Geometry((kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    input, offset, weight = _full(input, offset, weight)
    output.copy_(_deform(input, offset, None, weight, geometry))


@_operator
def deform_conv_backward_input(input: Tensor, offset: Tensor, gradOutput: Tensor, gradInput: Tensor,
                               gradOffset: Tensor, weight: Tensor, columns: Tensor, kW: int, kH: int, dW: int, dH: int,
                               padW: int, padH: int, dilationW: int, dilationH: int, group: int,
                               deformable_group: int, im2col_step: int) -> None:
    """Add the gradient of input to gradInput and write that of offset into gradOffset.

    The weight's gradient comes from the same pass and is left on ``columns`` for deform_conv_backward_parameters,
    which mmcv calls next with the same tensors.
    """
    geometry = _Geometry((kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    grad, full, full_offset, weight = _full(gradOutput, input, offset, weight)
    of_input, of_offset, _, of_weight = _deform_gradients(grad, full, full_offset, None, weight, geometry)
    gradInput += of_input
    gradOffset.copy_(of_offset)
    columns.left_for_parameters = _state(input, offset, gradOutput), of_weight


@_operator
def deform_conv_backward_parameters(input: Tensor, offset: Tensor, gradOutput: Tensor, gradWeight: Tensor,
                                    columns: Tensor, ones: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int,
                                    padH: int, dilationW: int, dilationH: int, group: int, deformable_group: int,
                                    scale: float, im2col_step: int) -> None:
    """Add ``scale`` times the gradient of the weight to gradWeight."""
    state, of_weight = columns.__dict__.pop('left_for_parameters', (None, None))
    if state != _state(input, offset, gradOutput):
        geometry = _Geometry((kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
        grad, input, offset, weight = _full(gradOutput, input, offset, torch.zeros_like(gradWeight))
        *_, of_weight = _deform_gradients(grad, input, offset, None, weight, geometry)
    gradWeight += scale * of_weight


@_operator
def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                  mask: Tensor, output: Tensor, columns: Tensor, kernel_h: int, kernel_w: int,
                                  stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
                                  dilation_w: int, group: int, deformable_group: int, with_bias: bool) -> None:
    """`_deform` with mask and, if with_bias, bias (C_out,) into output. ones and columns are not used."""
    geometry = _Geometry((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group,
                         deformable_group)
    input, offset, mask, weight, bias = _full(input, offset, mask, weight, bias)
    offset, mask = (geometry.read(input, value) for value in (offset, mask))
    result = _deform(input, offset, mask, weight, geometry)
    output.copy_(result + bias[:, None, None] if with_bias else result)


@_operator
def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                   mask: Tensor, columns: Tensor, grad_input: Tensor, grad_weight: Tensor,
                                   grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor,
                                   kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
                                   dilation_h: int, dilation_w: int, group: int, deformable_group: int,
                                   with_bias: bool) -> None:
    """Add the gradients of input, weight and bias to theirs, write those of offset and mask into theirs."""
    geometry = _Geometry((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group,
                         deformable_group)
    grad, input, offset, mask, weight = _full(grad_output, input, offset, mask, weight)
    offset, mask = (geometry.read(input, value) for value in (offset, mask))
    of_input, of_offset, of_mask, of_weight = _deform_gradients(grad, input, offset, mask, weight, geometry)
    grad_input += of_input
    grad_weight += of_weight
    for whole, found in ((grad_offset, of_offset), (grad_mask, of_mask)):
        if whole.shape != found.shape:  # `read` took the first values of each picture
            found = F.pad(found.flatten(1), (0, whole[0].numel() - found[0].numel())).view_as(whole)
        whole.copy_(found)
    if with_bias:
        grad_bias += grad.sum(dim=(0, 2, 3))


# ---------------------------------------------------------------------------------------------------------------------
# Deformable attention


def _attend(value: Tensor, shapes: list, starts: list, locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable attention of some queries, differentiable: (N, Q, heads * C).

    value (N, pixels of all levels, heads, C); of each level (h, w) and its first pixel; locations (N, Q, heads, levels,
    points, 2) as (x, y) in units of the level's size, its corner at 0; weights without the last dimension.
    """
    images, _, heads, channels = value.shape
    total = 0
    for level, ((height, width), start) in enumerate(zip(shapes, starts)):
        plane = value[:, start:start + height * width].permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        place, weight = (of[:, :, :, level].transpose(1, 2).flatten(0, 1) for of in (locations, weights))
        pixel = place * place.new_tensor([width, height]) - 0.5
        inside = ((pixel > -1) & (pixel < pixel.new_tensor([width, height]))).all(dim=-1, keepdim=True)
        # `where` stops the gradient of samples on coordinate -1, as in mmcv; 2 times the map away there is no pixel.
        sampled = F.grid_sample(plane, torch.where(inside, 2 * place - 1, -5), align_corners=False)
        total = total + (sampled * weight[:, None]).sum(dim=3)
    return total.view(images, heads * channels, -1).transpose(1, 2)


def _some_queries(value: Tensor, locations: Tensor):
    """Pieces of the queries of deformable attention, by the size of what one level's samples take."""
    return _pieces(locations.size(1), len(value) * value.shape[2:].numel() * locations.size(4))


@_operator
def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                           sampling_locations: Tensor, attention_weights: Tensor, im2col_step: int) -> Tensor:
    """`_attend` of all queries. mmcv asks for it on a GPU; on a CPU its own modules compute in PyTorch."""
    full, places, weights = _full(value, sampling_locations, attention_weights)
    levels = value_spatial_shapes.tolist(), value_level_start_index.tolist()
    output = value.new_empty(len(value), places.size(1), value.shape[2:].numel())
    for part in _some_queries(full, places):
        output[:, part] = _attend(full, *levels, places[:, part], weights[:, part]).to(output.dtype)
    return output


@_operator
def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                            sampling_locations: Tensor, attention_weights: Tensor, grad_output: Tensor,
                            grad_value: Tensor, grad_sampling_loc: Tensor, grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """Add the gradient of value to grad_value and write those of locations and weights into theirs."""
    full, places, weights, grad = _full(value, sampling_locations, attention_weights, grad_output)
    levels = value_spatial_shapes.tolist(), value_level_start_index.tolist()
    for part in _some_queries(full, places):
        leaves = [of.detach().requires_grad_() for of in (full, places[:, part], weights[:, part])]
        with torch.enable_grad():
            output = _attend(leaves[0], *levels, *leaves[1:])
        of_value, of_places, of_weights = torch.autograd.grad(output, leaves, grad[:, part])
        grad_value += of_value
        grad_sampling_loc[:, part] = of_places.to(grad_sampling_loc.dtype)
        grad_attn_weight[:, part] = of_weights.to(grad_attn_weight.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# CARAFE and masked convolution


def _reassemble(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """CARAFE, differentiable: features (N, C, H, W), masks (N, groups * k * k, s * H, s * W) -> (N, C, s * H, s * W).

    A pixel is the sum of the k * k pixels around its place in the small map, weighted by its mask; zeros lie outside.
    """
    images, channels, height, width = features.shape
    around = F.unfold(features, kernel_size, padding=kernel_size // 2)
    around = around.view(images, group_size, channels // group_size, -1, height, width)
    masks = masks.view(images, group_size, -1, height, scale_factor, width, scale_factor)
    return torch.einsum('ngckhw,ngkhswt->ngchswt', around, masks).reshape(
        images, channels, height * scale_factor, width * scale_factor)


@_operator
def carafe_forward(features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor, rmasks: Tensor,
                   output: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> None:
    """`_reassemble` into output. rfeatures keeps the features for the backward pass; routput and rmasks, mmcv's
    working memory, are not used."""
    full, full_masks = _full(features, masks)
    for part in _pieces(len(full), full[:1].numel() * kernel_size ** 2):
        output[part] = _reassemble(full[part], full_masks[part], kernel_size, group_size, scale_factor).to(output.dtype)
    rfeatures.copy_(features)


@_operator
def carafe_backward(top_grad: Tensor, rfeatures: Tensor, masks: Tensor, rtop_grad: Tensor, rbottom_grad_hs: Tensor,
                    rbottom_grad: Tensor, rmask_grad: Tensor, bottom_grad: Tensor, mask_grad: Tensor, kernel_size: int,
                    group_size: int, scale_factor: int) -> None:
    """Write the gradients of features and masks into bottom_grad and mask_grad; rfeatures are `carafe_forward`'s."""
    grad, features, masks = _full(top_grad, rfeatures, masks)
    for part in _pieces(len(features), features[:1].numel() * kernel_size ** 2):
        leaves = [value[part].detach().requires_grad_() for value in (features, masks)]
        with torch.enable_grad():
            output = _reassemble(*leaves, kernel_size, group_size, scale_factor)
        for whole, found in zip((bottom_grad, mask_grad), torch.autograd.grad(output, leaves, grad[part])):
            whole[part] = found.to(whole.dtype)


@_operator
def masked_im2col_forward(im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, col: Tensor, kernel_h: int, kernel_w: int,
                          pad_h: int, pad_w: int) -> None:
    """What a kernel with stride 1 sees of im (1, C, H, W) at m places, into col (C * kernel_h * kernel_w, m)."""
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns].reshape(col.shape))


@_operator
def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int,
                          channels: int) -> None:
    """Put col (C, m) at m places of im (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col


# ---------------------------------------------------------------------------------------------------------------------
# Focal loss


def _focal_parts(input: Tensor, target: Tensor, weight: Tensor, alpha: float):
    """Probabilities (n, C), which class is the target's (n, C), and each element's signed share of the loss."""
    if target.numel() and int(target.max()) > input.size(1):
        raise ValueError(f'sigmoid_focal_loss: target {int(target.max())} of {input.size(1)} classes '
                         '(the number of classes itself is background)')
    positive = target[:, None] == torch.arange(input.size(1), device=input.device)
    share = -torch.where(positive, input.new_tensor(alpha), input.new_tensor(1 - alpha))
    if weight.numel():
        # By the target's class, as in mmcv, which for background reads past the end of weight; 1 here.
        share = share * F.pad(weight, (0, 1), value=1.)[target][:, None]
    return 1 / (1 + torch.exp(-input)), positive, share


@_operator
def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Focal loss of logits input (n, C) into output (n, C); target (n,), C = background; weight (C,) or empty."""
    full, weight = _full(input, weight)
    p, positive, share = _focal_parts(full, target, weight, alpha)
    likely, other = torch.where(positive, p, 1 - p), torch.where(positive, 1 - p, p)
    output.copy_(share * other ** gamma * likely.clamp(min=_FLT_MIN).log())


@_operator
def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """The derivative of each element of sigmoid_focal_loss_forward by its logit, into grad_input (n, C)."""
    full, weight = _full(input, weight)
    p, positive, share = _focal_parts(full, target, weight, alpha)
    likely, other = torch.where(positive, p, 1 - p), torch.where(positive, 1 - p, p)
    slope = other - gamma * likely * likely.clamp(min=_FLT_MIN).log()
    grad_input.copy_(share * other ** gamma * torch.where(positive, slope, -slope))


# ---------------------------------------------------------------------------------------------------------------------
# The module


def get_compiler_version() -> str:
    """For mmcv's environment report."""
    return f'none ({backend()})'


def get_compiling_cuda_version() -> str:
    """For mmcv's environment report."""
    return 'none'


class _Missing:
    """Stands for an operator that is not served: refuses when it is called."""

    def __init__(self, name: str):
        self.__name__ = name

    def __call__(self, *args, **kwargs):
        raise OperatorUnavailable(
            f'mmcv operator {self.__name__!r} is not served by {backend()}: install a compiled mmcv, built for torch '
            f'{torch.__version__} (pip uninstall mmcv-lite; pip install mmcv==2.1.0)')

    def __repr__(self):
        return f'<mmcv operator {self.__name__}, not served>'


class _Extension(types.ModuleType):
    """mmcv._ext: the served operators; any other public name is an operator that refuses."""

    def __getattr__(self, name: str):
        if name.startswith('_'):  # questions of inspect, copy, pickle and doctest
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        return _Missing(name)


def _compiled():
    """The working mmcv._ext of a compiled mmcv, or None."""
    if importlib.util.find_spec(_NAME) is None:
        return None
    try:
        return importlib.import_module(_NAME)
    except (ImportError, OSError) as error:  # built for another torch
        warnings.warn(f'the compiled mmcv does not load and is not used: {error}', stacklevel=3)
        return None


def install() -> types.ModuleType:
    """Put the operators into sys.modules as mmcv._ext, unless one is there or a compiled mmcv works; return it."""
    module = sys.modules.get(_NAME) or _compiled()
    if module is None:
        module = _Extension(_NAME, __doc__)
        module._backend = f'torchvision {torchvision.__version__.split("+")[0]} kernels'
        module.__dict__.update(OPERATORS, get_compiler_version=get_compiler_version,
                               get_compiling_cuda_version=get_compiling_cuda_version)
        module.__spec__ = importlib.util.spec_from_loader(_NAME, loader=None)
        sys.modules[_NAME] = module
    mmcv._ext = module
    return module


def backend() -> str:
    """The back end in use, in one line."""
    return vars(sys.modules[_NAME]).get('_backend', f'compiled mmcv {mmcv.__version__}')


install()
