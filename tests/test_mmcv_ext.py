"""amdlib.mmcv_ext against compiled mmcv's answers (goldens), mmcv's own test values and plain loops."""
import copy
import inspect
import itertools
import math
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amdlib import mmcv_ext

import mmcv  # isort: skip
from mmcv import ops  # isort: skip
from mmcv.ops.multi_scale_deform_attn import (  # isort: skip
    MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch)

sys.path.insert(0, str(Path(__file__).parent / 'goldens'))
import make_mmcv_ext

sys.path.pop(0)
pytestmark = pytest.mark.skipif(mmcv_ext.backend().startswith('compiled'), reason='a compiled mmcv is in use')
GOLDENS = make_mmcv_ext.load_goldens()


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(found, expected):
    """Largest difference in units of the largest expected magnitude; NaN belongs where NaN is expected."""
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = found.nan_to_num(), expected.nan_to_num()
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-12))


# --- compiled mmcv ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', GOLDENS)
def test_same_as_compiled_mmcv(case):
    op, tensors, options, expected = GOLDENS[case]
    found = make_mmcv_ext.evaluate(op, tensors, options)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        if name == 'inds' or op == 'nms':
            assert torch.equal(found[name], value), name
        else:
            assert relative(found[name], value) < (1e-12 if value.dtype == torch.float64 else 1e-6), name


def test_goldens_are_the_cases_of_their_script():
    listed = {name: (op, options) for name, op, _, options in make_mmcv_ext.cases()}
    assert listed.keys() == GOLDENS.keys()
    assert {op for op, *_ in GOLDENS.values()} == {
        'nms', 'soft_nms', 'nms_match', 'roi_align', 'deform_conv2d', 'modulated_deform_conv2d', 'deform_roi_pool',
        'ms_deform_attn', 'carafe', 'masked_conv2d'}


def test_arguments_are_those_of_mmcv():
    pybind = (Path(mmcv.__file__).parent / 'ops/csrc/pytorch/pybind.cpp').read_text()
    for name, function in mmcv_ext.OPERATORS.items():
        definition = re.search(rf'm\.def\("{name}",[^;]*;', pybind).group()
        assert list(inspect.signature(function).parameters) == re.findall(r'py::arg\("(\w+)"\)', definition), name


# --- nms and softnms -------------------------------------------------------------------------------------------------


def iou(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    overlap = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return overlap / (sum(areas) - overlap)


def random_boxes(count, seed):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 40, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 30, (count, 2))], axis=1).astype(np.float32)
    return torch.from_numpy(boxes), torch.from_numpy(rng.integers(1, 12, count).astype(np.float32) / 12)


@pytest.mark.parametrize(('offset', 'threshold', 'seed'), [*itertools.product((0, 1), (0.25, 0.5), (0, 1, 2))])
def test_nms_against_a_loop(offset, threshold, seed):
    boxes, scores = random_boxes(80, seed)
    kept = []
    for i in sorted(range(80), key=lambda i: -scores[i].item()):  # sorted is stable
        if not any(iou(boxes[i].tolist(), boxes[j].tolist(), offset) > threshold for j in kept):
            kept.append(i)
    dets, inds = ops.nms(boxes, scores, threshold, offset)
    assert inds.tolist() == kept
    assert 5 < len(kept) < 80
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])


def test_nms_offset_widens_the_boxes():
    boxes = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 4]])  # IoU 4/9 without, 50/100 with the offset
    scores = torch.tensor([0.9, 0.8])
    assert len(ops.nms(boxes, scores, 0.47, offset=0)[1]) == 2
    assert len(ops.nms(boxes, scores, 0.47, offset=1)[1]) == 1
    assert len(ops.nms(boxes, scores, 0.5, offset=1)[1]) == 2  # equal is not above


@pytest.mark.parametrize(('method', 'offset', 'seed'),
                         [*itertools.product(('naive', 'linear', 'gaussian'), (0, 1), (0, 1))])
def test_softnms_against_a_loop(method, offset, seed):
    boxes, scores = random_boxes(60, seed)
    scores = scores + torch.arange(60) * 1e-4  # no ties; their order is tested by the goldens
    left, expected = {i: scores[i].item() for i in range(60)}, []
    while left:
        best = max(left, key=left.get)
        expected.append((best, left.pop(best)))
        for i in list(left):
            overlap = iou(boxes[best].tolist(), boxes[i].tolist(), offset)
            if method == 'gaussian':
                left[i] *= math.exp(-overlap ** 2 / 0.5)
            elif overlap >= 0.3:
                left[i] *= 0 if method == 'naive' else 1 - overlap
            if left[i] < 0.1:
                del left[i]
    dets, inds = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.1, method, offset)
    assert inds.tolist() == [i for i, _ in expected]
    assert 5 < len(inds) < 60
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]), rtol=1e-5, atol=1e-6)
    assert torch.equal(dets[:, :4], boxes[inds])


def test_softnms_keeps_the_best_whatever_its_score():
    dets, inds = ops.soft_nms(torch.tensor([[0., 0, 1, 1], [5, 5, 6, 6]]), torch.tensor([1e-5, 1e-6]), min_score=0.1)
    assert inds.tolist() == [0]
    assert dets[0, 4] == torch.tensor(1e-5)


def test_softnms_keeps_a_score_that_equals_the_lowest():
    boxes = torch.tensor([[0., 0, 1, 1], [5, 5, 6, 6], [8, 8, 9, 9]])
    assert ops.soft_nms(boxes, torch.tensor([0.9, 0.5, 0.499]), min_score=0.5)[1].tolist() == [0, 1]


def test_softnms_refuses_an_unknown_method():
    with pytest.raises(ValueError, match='not 3'):
        mmcv_ext.softnms(torch.rand(2, 4), torch.rand(2), torch.rand(2, 5), 0.3, 0.5, 0.1, 3, 0)


def test_nms_match_against_a_loop():
    boxes, scores = random_boxes(60, 3)
    scores = scores + torch.arange(60) * 1e-4
    left, expected = sorted(range(60), key=lambda i: -scores[i].item()), []
    while left:
        group = [i for i in left if i == left[0] or iou(boxes[left[0]].tolist(), boxes[i].tolist(), 0) >= 0.4]
        expected.append(group)
        left = [i for i in left if i not in group]
    found = ops.nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.4)
    assert [group.tolist() for group in found] == expected
    assert max(map(len, expected)) > 2


# --- RoI align and pool ----------------------------------------------------------------------------------------------


def bilinear_clamped(plane, y, x):
    """RoI align's sample of plane (C, H, W): border repeated up to one pixel outside, 0 farther out."""
    height, width = plane.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return plane[:, 0, 0] * 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = plane[:, y0, x0] * (1 - (x - x0)) + plane[:, y0, x1] * (x - x0)
    bottom = plane[:, y1, x0] * (1 - (x - x0)) + plane[:, y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def roi_align_loop(input, rois, size, scale, ratio, mode, aligned):
    rows = []
    for image, x1, y1, x2, y2 in rois.tolist():
        shift = 0.5 if aligned else 0
        x1, y1, x2, y2 = (value * scale - shift for value in (x1, y1, x2, y2))
        height, width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
        step_y, step_x = height / size[0], width / size[1]
        count_y, count_x = (ratio, ratio) if ratio > 0 else (math.ceil(step_y), math.ceil(step_x))
        for i, j in itertools.product(range(size[0]), range(size[1])):
            samples = torch.stack([
                bilinear_clamped(input[int(image)], y1 + (i + (u + 0.5) / count_y) * step_y,
                                 x1 + (j + (v + 0.5) / count_x) * step_x)
                for u, v in itertools.product(range(count_y), range(count_x))])
            rows.append(samples.mean(dim=0) if mode == 'avg' else samples.max(dim=0).values)
    return torch.stack(rows).view(len(rois), *size, -1).permute(0, 3, 1, 2)


ROIS = torch.tensor([[0, 3.3, 2.1, 29.7, 20.2], [1, -9.1, -6.2, 14.3, 9.4], [0, 70, 70, 90, 95], [1, 5, 5, 5.4, 5.3],
                     [1, -20, -20, 80, 60], [0, 1, 1, 31, 23]], dtype=torch.float64)


@pytest.mark.parametrize(('mode', 'aligned', 'ratio'), [*itertools.product(('avg', 'max'), (True, False), (0, 2))])
def test_roi_align_against_a_loop(mode, aligned, ratio):
    input, grad = randn(2, 3, 6, 8), randn(6, 3, 2, 3, seed=1)
    found = []
    for function in (ops.roi_align, roi_align_loop):
        leaf = input.clone().requires_grad_()
        output = function(leaf, ROIS, (2, 3), 0.25, ratio, mode, aligned)
        output.backward(grad)
        found.append((output.detach(), leaf.grad))
    for ours, expected in zip(*found, strict=False):
        assert relative(ours, expected) < 1e-9


def test_an_inverted_roi_is_mirrored_or_has_no_samples():
    input, upright = randn(1, 2, 6, 8), torch.tensor([[0., 1, 1, 5, 4]], dtype=torch.float64)
    mirrored = upright[:, [0, 3, 2, 1, 4]]      # x2 before x1
    for mode, none in (('avg', 0), ('max', -10000)):
        straight, turned = (ops.roi_align(input, rois, 2, 1.0, 2, mode, True) for rois in (upright, mirrored))
        assert relative(turned.flip(3), straight) < 1e-12
        both = torch.cat([mirrored, upright, mirrored[:, [0, 1, 4, 3, 2]]])
        found = ops.roi_align(input, both, 2, 1.0, 0, mode, True)
        assert (found[[0, 2]] == none).all()
        assert relative(found[1:2], ops.roi_align(input, upright, 2, 1.0, 0, mode, True)) == 0


def deform_roi_pool_loop(input, rois, offset, size, scale, ratio, gamma):
    """Each bin is the aligned RoI align of a RoI that is moved by the bin's offset."""
    output = input.new_zeros(len(rois), input.size(1), *size)
    for n, i, j in itertools.product(range(len(rois)), *map(range, size)):
        _, x1, y1, x2, y2 = rois[n].tolist()
        x, y = (gamma * offset[n, :, i, j] * offset.new_tensor([x2 - x1, y2 - y1])).tolist()
        moved = (rois[n] + rois.new_tensor([0, x, y, x, y]))[None]
        output[n, :, i, j] = ops.roi_align(input, moved, size, scale, ratio, 'avg', True)[0, :, i, j]
    return output


@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool_against_moved_rois(ratio, monkeypatch):
    input, offset = randn(2, 3, 6, 8).requires_grad_(), randn(6, 2, 2, 3, seed=1)
    found = ops.deform_roi_pool(input, ROIS, offset, (2, 3), 0.25, ratio, 0.3)
    expected = deform_roi_pool_loop(input, ROIS, offset, (2, 3), 0.25, ratio, 0.3)
    grad = randn(6, 3, 2, 3, seed=2)
    assert relative(found.detach(), expected.detach()) < 1e-12
    ours, theirs = (torch.autograd.grad(output, input, grad)[0] for output in (found, expected))
    assert relative(ours, theirs) < 1e-12
    monkeypatch.setattr(mmcv_ext, '_MAX_ELEMENTS', 1)
    input = input.detach()
    assert relative(ops.deform_roi_pool(input, ROIS, offset, (2, 3), 0.25, ratio, 0.3), found.detach()) < 1e-12
    plain = ops.deform_roi_pool(input, ROIS, None, (2, 3), 0.25, ratio, 0.3)
    assert relative(plain, ops.roi_align(input, ROIS, (2, 3), 0.25, ratio, 'avg', True)) < 1e-12


def test_deform_roi_pools_gradients_within_the_map():
    rois = torch.tensor([[0, 2.3, 1.7, 6.1, 5.2], [1, 3., 2, 6, 7]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, o: ops.deform_roi_pool(x, rois, o, (2, 3), 1.0, 2, 0.1),
                                    (randn(2, 2, 9, 9).requires_grad_(), randn(2, 2, 2, 3, seed=1).requires_grad_()))


def roi_pool_loop(input, rois, size, scale):
    output = input.new_zeros(len(rois), input.size(1), *size)
    for n, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for i, j in itertools.product(range(size[0]), range(size[1])):
            top, left = y1 + i * (y2 - y1) / size[0], x1 + j * (x2 - x1) / size[1]
            bottom, right = y1 + (i + 1) * (y2 - y1) / size[0], x1 + (j + 1) * (x2 - x1) / size[1]
            cell = input[int(image), :, max(math.floor(top), 0):max(math.ceil(bottom), 0),
                         max(math.floor(left), 0):max(math.ceil(right), 0)]
            if cell.numel():
                output[n, :, i, j] = cell.amax(dim=(1, 2))
    return output


def test_roi_pool_against_a_loop():
    input, grad = randn(2, 3, 6, 8), randn(6, 3, 2, 3, seed=1)
    found = []
    for function in (ops.roi_pool, roi_pool_loop):
        leaf = input.clone().requires_grad_()
        output = function(leaf, ROIS, (2, 3), 0.25)
        output.backward(grad)
        found.append((output.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert relative(found[0][1], found[1][1]) < 1e-12
    assert (found[0][0][2] == 0).all()  # outside the map


def test_roi_pool_gives_the_values_of_mmcvs_own_test():
    # Numbers of open-mmlab/mmcv, tests/test_ops/test_roi_pool.py (made with its CUDA kernel).
    square = torch.tensor([[[[1., 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]]])
    two = torch.tensor([[[[1., 2], [3, 4]], [[4, 3], [2, 1]]]])
    last = [[0., 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]
    for input, end, output, grad in ((two[:, :1], 1., two[:, :1], torch.ones(1, 1, 2, 2)),
                                     (two, 1., two, torch.ones(1, 2, 2, 2)),
                                     (square, 3., [[[[4., 8], [12, 16]]]], [[last]])):
        leaf = input.clone().requires_grad_()
        found = ops.roi_pool(leaf, torch.tensor([[0., 0, 0, end, end]]), (2, 2), 1.0)
        found.sum().backward()
        assert torch.equal(found, torch.as_tensor(output))
        assert torch.equal(leaf.grad, torch.as_tensor(grad))


def test_roi_pool_takes_the_first_of_equals_and_leaves_rois_without_extent():
    output, argmax = torch.full((2, 1, 1, 1), 7.), torch.full((2, 1, 1, 1), 5, dtype=torch.int)
    mmcv_ext.roi_pool_forward(torch.ones(1, 1, 4, 4), torch.tensor([[0., 1, 1, 2, 2], [0, 3, 3, 1, 1]]), output,
                              argmax, 1, 1, 1.0)
    assert output.flatten().tolist() == [1, 7]
    assert argmax.flatten().tolist() == [5, 5]


def test_pieces_cover_everything_within_the_limit(monkeypatch):
    monkeypatch.setattr(mmcv_ext, '_MAX_ELEMENTS', 30)
    for count, each, longest in ((10, 10, 3), (10, 31, 1), (10, 0, 10), (0, 5, 0)):
        pieces = [range(count)[piece] for piece in mmcv_ext._pieces(count, each)]
        assert [i for piece in pieces for i in piece] == list(range(count))
        assert max(map(len, pieces), default=0) == longest


@pytest.mark.parametrize('op', ['align', 'pool'])
def test_rois_in_pieces_give_the_same(op, monkeypatch):
    input = randn(2, 3, 6, 8)
    arguments = ((2, 3), 0.25, 0, 'max', True) if op == 'align' else ((2, 3), 0.25)
    whole = getattr(ops, f'roi_{op}')(input, ROIS, *arguments)
    monkeypatch.setattr(mmcv_ext, '_MAX_ELEMENTS', 1)
    assert torch.equal(getattr(ops, f'roi_{op}')(input, ROIS, *arguments), whole)


# --- deformable convolution ------------------------------------------------------------------------------------------


def deform_loop(input, offset, mask, weight, geometry):
    """The definition, sample by sample, differentiable; no gradient for samples on or outside -1 and the size."""
    images, channels, height, width = input.shape
    (kh, kw), (sy, sx), (py, px), (dy, dx), groups, deform_groups = geometry
    out_channels, taps = len(weight), kh * kw
    rows = []
    for n, i, j in itertools.product(range(images), *map(range, offset.shape[2:])):
        samples = []
        for c, tap in itertools.product(range(channels), range(taps)):
            k = c // (channels // deform_groups) * taps + tap
            y = offset[n, 2 * k, i, j] + (i * sy - py + tap // kw * dy)
            x = offset[n, 2 * k + 1, i, j] + (j * sx - px + tap % kw * dx)
            value = input.new_zeros(())
            if -1 < y < height and -1 < x < width:
                y0, x0 = math.floor(y.item()), math.floor(x.item())
                for row, column in itertools.product((y0, y0 + 1), (x0, x0 + 1)):
                    if 0 <= row < height and 0 <= column < width:
                        share_y = 1 - (y - y0) if row == y0 else y - y0
                        share_x = 1 - (x - x0) if column == x0 else x - x0
                        value = value + share_y * share_x * input[n, c, row, column]
            samples.append(value if mask is None else value * mask[n, k, i, j])
        samples = torch.stack(samples).view(groups, -1)
        flat = weight.reshape(groups, out_channels // groups, -1)
        rows.append((flat @ samples[:, :, None]).flatten())
    return torch.stack(rows).view(images, *offset.shape[2:], out_channels).permute(0, 3, 1, 2)


# channels in, out, height, width, geometry
PLANS = {
    'plain': (2, 3, 4, 3, ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1)),
    'grouped': (4, 4, 4, 5, ((3, 2), (2, 1), (1, 2), (1, 2), 2, 2)),
    'point': (2, 2, 1, 1, ((1, 1), (1, 1), (0, 0), (1, 1), 1, 1)),
    'row': (2, 2, 1, 4, ((1, 3), (1, 1), (0, 1), (1, 1), 1, 2)),
}


def deform_inputs(plan, spread='far', images=2, dtype=torch.float64):
    channels, out_channels, height, width, geometry = PLANS[plan]
    geometry = mmcv_ext._Geometry(*geometry)
    input = randn(images, channels, height, width, seed=1, dtype=dtype)
    out, points = geometry.output_size(input), geometry.deform_groups * geometry.taps
    offset = randn(images, 2 * points, *out, seed=2, dtype=dtype)
    offset = {'zero': offset * 0, 'whole': (offset * 2).round(), 'far': offset * 2}[spread]
    mask = torch.sigmoid(randn(images, points, *out, seed=3, dtype=dtype))
    weight = randn(out_channels, channels // geometry.groups, *geometry.kernel, seed=4, dtype=dtype)
    return input, offset, mask, weight, randn(images, out_channels, *out, seed=5, dtype=dtype), geometry


def differentiate(function, inputs, grad):
    leaves = [value.clone().requires_grad_() for value in inputs]
    output = function(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, grad, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize('spread', ['zero', 'whole', 'far'])
@pytest.mark.parametrize('plan', PLANS)
def test_deform_conv_against_a_loop(plan, spread):
    input, offset, mask, weight, grad, geometry = deform_inputs(plan, spread)
    bias = randn(len(weight), seed=6)
    rest = geometry[1:]
    found = differentiate(lambda x, o, w: ops.deform_conv2d(x, o, w, *rest), (input, offset, weight), grad)
    expected = differentiate(lambda x, o, w: deform_loop(x, o, None, w, geometry), (input, offset, weight), grad)
    found += differentiate(lambda x, o, m, w, b: ops.modulated_deform_conv2d(x, o, m, w, b, *rest),
                           (input, offset, mask, weight, bias), grad)
    expected += differentiate(lambda x, o, m, w, b: deform_loop(x, o, m, w, geometry) + b[:, None, None],
                              (input, offset, mask, weight, bias), grad)
    assert len(found) == len(expected) == 10
    for ours, value in zip(found, expected, strict=False):
        assert relative(ours, value) < 1e-10


@pytest.mark.parametrize('spread', ['zero', 'whole', 'far'])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('plan', PLANS)
def test_both_ways_to_compute_deform_conv_agree(plan, masked, spread):
    """The CPU's way and torchvision's kernel, which serves CUDA."""
    input, offset, mask, weight, grad, geometry = deform_inputs(plan, spread)
    arguments = (input, offset, mask if masked else None, weight, geometry)
    assert relative(mmcv_ext._deform_gather(*arguments), mmcv_ext._deform_kernel(*arguments)) < 1e-10
    ours, kernels = (compute(grad, *arguments) for compute in (mmcv_ext._deform_gather_gradients,
                                                               mmcv_ext._deform_kernel_gradients))
    assert (ours[2] is None) == (kernels[2] is None) == (not masked)
    for a, b in zip(ours, kernels, strict=False):
        assert a is None or relative(a, b) < 1e-10


def test_deform_conv_with_zero_offsets_is_a_convolution():
    input, offset, _, weight, grad, geometry = deform_inputs('plain', 'zero')
    found = differentiate(lambda x, w: ops.deform_conv2d(x, offset, w, *geometry[1:]), (input, weight), grad)
    expected = differentiate(lambda x, w: nn.functional.conv2d(x, w, padding=1), (input, weight), grad)
    assert max(map(relative, found, expected)) < 1e-12


def test_deform_conv_in_pieces_gives_the_same(monkeypatch):
    input, offset, mask, weight, grad, geometry = deform_inputs('grouped', images=5)

    def run():
        return differentiate(lambda *leaves: ops.modulated_deform_conv2d(*leaves, None, *geometry[1:]),
                             (input, offset, mask, weight), grad)

    whole = run()
    monkeypatch.setattr(mmcv_ext, '_MAX_ELEMENTS', 1)
    assert max(map(relative, run(), whole)) < 1e-12


def test_deform_conv_computes_its_gradients_once(monkeypatch):
    calls, compute = [], mmcv_ext._deform_gradients
    monkeypatch.setattr(mmcv_ext, '_deform_gradients', lambda *args: calls.append(1) or compute(*args))
    input, offset, _, weight, grad, geometry = deform_inputs('plain')

    def gradients(*wanted):
        calls.clear()
        leaves = [value.clone().requires_grad_(name in wanted)
                  for name, value in (('input', input), ('offset', offset), ('weight', weight))]
        output = ops.deform_conv2d(*leaves, *geometry[1:])
        output.backward(grad, retain_graph=True)
        output.backward(grad)  # twice the same, added up
        return [leaf.grad for leaf in leaves]

    every = gradients('input', 'offset', 'weight')
    assert len(calls) == 2  # one for each backward
    _, _, of_weight = gradients('weight')
    assert len(calls) == 2
    assert relative(of_weight, every[2]) < 1e-12
    assert gradients('input')[1:] == [None, None]


def test_what_backward_input_leaves_serves_only_the_same_tensors():
    input, offset, _, weight, grad, geometry = deform_inputs('plain')
    tail = {'kW': 3, 'kH': 3, 'dW': 1, 'dH': 1, 'padW': 1, 'padH': 1, 'dilationW': 1, 'dilationH': 1, 'group': 1,
            'deformable_group': 1, 'im2col_step': 2}
    columns, expected, found = torch.empty(0), torch.zeros_like(weight), torch.zeros_like(weight)
    mmcv_ext.deform_conv_backward_input(input, offset, grad, torch.zeros_like(input), torch.zeros_like(offset), weight,
                                        columns, **tail)
    grad *= 3  # in place: same tensor, other values
    mmcv_ext.deform_conv_backward_parameters(input, offset, grad, found, columns, columns, scale=0.5, **tail)
    mmcv_ext.deform_conv_backward_parameters(input, offset, grad, expected, torch.empty(0), columns, scale=0.5, **tail)
    leaf = weight.clone().requires_grad_()
    ops.deform_conv2d(input, offset, leaf, *geometry[1:]).backward(grad)
    assert torch.equal(found, expected)
    assert relative(found, 0.5 * leaf.grad) < 1e-12


def test_deform_conv_gives_no_sample_for_nan_offsets():
    input, offset, _, weight, _, geometry = deform_inputs('plain')
    output = ops.deform_conv2d(input, offset * math.nan, weight, *geometry[1:])
    assert (output == 0).all()


@pytest.mark.parametrize(('channels', 'size'), [(16, 4), (18, 5)])
def test_deform_conv_names_a_wrong_offset(channels, size):
    with pytest.raises(ValueError, match=rf'offset must be \(1, 18, 4, 4\), not \(1, {channels}, {size}, {size}\)'):
        ops.deform_conv2d(torch.rand(1, 2, 4, 4), torch.rand(1, channels, size, size), torch.rand(2, 2, 3, 3), 1, 1)


def test_offsets_of_a_finer_level_are_read_as_they_lie_in_memory():
    input, weight, geometry = randn(2, 2, 3, 4), randn(3, 2, 3, 3, seed=1), ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    both = randn(2, 27, 6, 8, seed=2)
    offset, mask = both[:, :18], both[:, 18:]       # as in DyHead: no tensor of its own
    grad = randn(2, 3, 3, 4, seed=3)

    def read(tensor, channels):     # picture by picture, the first channels * 3 * 4 values
        return torch.stack([picture.reshape(-1)[:channels * 12].view(channels, 3, 4) for picture in tensor])

    def as_loop(x, o, m, w):
        return deform_loop(x, read(o, 18), read(m, 9), w, mmcv_ext._Geometry(*geometry))
    found, expected = (differentiate(function, (input, offset, mask, weight), grad) for function in (
        lambda *leaves: ops.modulated_deform_conv2d(*leaves, None, *geometry[1:]), as_loop))
    assert max(map(relative, found, expected)) < 1e-10
    assert (found[2].flatten(1)[:, 18 * 12:] == 0).all()
    with pytest.raises(ValueError, match=r'offset must be \(2, 18, 3, 4\), not \(2, 18, 2, 2\)'):
        ops.modulated_deform_conv2d(input, offset[:, :, :2, :2], mask, weight, None, *geometry[1:])


def test_dyhead_trains():
    from mmdet.models.necks import DyHead
    torch.manual_seed(0)
    levels = [torch.randn(2, 16, size, size, requires_grad=True) for size in (8, 4, 2)]
    neck = DyHead(16, 16, num_blocks=1, zero_init_offset=False)
    sum(level.square().sum() for level in neck(levels)).backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)


# --- deformable attention --------------------------------------------------------------------------------------------


SHAPES, STARTS = torch.tensor([[4, 3], [2, 1]]), torch.tensor([0, 12])


def attention_inputs(queries=5):
    places = torch.rand(2, queries, 2, 2, 3, 2, generator=torch.Generator().manual_seed(1)).double() * 2 - 0.5
    return randn(2, 14, 2, 3), places, torch.sigmoid(randn(2, queries, 2, 2, 3, seed=2))


def attend(value, places, weights):
    return MultiScaleDeformableAttnFunction.apply(value, SHAPES, STARTS, places, weights, 64)


def attend_loop(value, places, weights):
    output = []
    for n, q, head in itertools.product(range(len(value)), range(places.size(1)), range(value.size(2))):
        total = value.new_zeros(value.size(3))
        for level, point in itertools.product(range(len(SHAPES)), range(places.size(4))):
            (height, width), start = SHAPES[level].tolist(), int(STARTS[level])
            plane = value[n, start:start + height * width, head].view(height, width, -1)
            x, y = (places[n, q, head, level, point, axis] * size - 0.5 for axis, size in ((0, width), (1, height)))
            for row, column in itertools.product(range(height), range(width)):      # a tent around each pixel
                share = (1 - (y - row).abs()).clamp(min=0) * (1 - (x - column).abs()).clamp(min=0)
                total = total + weights[n, q, head, level, point] * share * plane[row, column]
        output.append(total)
    return torch.stack(output).view(len(value), places.size(1), -1)


def test_deformable_attention_against_a_loop(monkeypatch):
    leaves, grad = attention_inputs(), randn(2, 5, 6, seed=3)
    found, expected = (differentiate(function, leaves, grad) for function in (attend, attend_loop))
    assert max(map(relative, found, expected)) < 1e-10
    assert torch.autograd.gradcheck(attend, [leaf.clone().requires_grad_() for leaf in leaves])
    monkeypatch.setattr(mmcv_ext, '_MAX_ELEMENTS', 1)
    assert max(map(relative, differentiate(attend, leaves, grad), expected)) < 1e-10


@pytest.mark.parametrize('far', [100, math.inf, math.nan])
def test_deformable_attention_sees_nothing_outside(far):
    value, places, weights = attention_inputs()
    assert all((found == 0).all() for found in differentiate(attend, (value, places + far, weights), randn(2, 5, 6)))


def test_deformable_attention_is_mmcvs_own_on_a_cpu():
    """mmcv asks for the operator on a GPU alone; elsewhere it has a function of its own, which must be the same."""
    leaves, grad = attention_inputs(), randn(2, 5, 6, seed=3)
    own = differentiate(lambda v, p, w: multi_scale_deformable_attn_pytorch(v, SHAPES, p, w), leaves, grad)
    assert max(map(relative, differentiate(attend, leaves, grad), own)) < 1e-12


# --- CARAFE and masked convolution -----------------------------------------------------------------------------------


def carafe_loop(features, masks, kernel, groups, scale):
    images, channels, height, width = features.shape
    output = []
    for n, c, y, x in itertools.product(range(images), range(channels), range(height * scale), range(width * scale)):
        total = features.new_zeros(())
        for i, j in itertools.product(range(kernel), range(kernel)):
            row, column = y // scale + i - kernel // 2, x // scale + j - kernel // 2
            if 0 <= row < height and 0 <= column < width:
                mask = (c // (channels // groups) * kernel + i) * kernel + j
                total = total + features[n, c, row, column] * masks[n, mask, y, x]
        output.append(total)
    return torch.stack(output).view(images, channels, height * scale, width * scale)


def test_carafe_against_a_loop(monkeypatch):
    leaves, grad = (randn(2, 4, 2, 3), randn(2, 18, 4, 6, seed=1)), randn(2, 4, 4, 6, seed=2)
    expected = differentiate(lambda x, m: carafe_loop(x, m, 3, 2, 2), leaves, grad)
    for limit in (mmcv_ext._MAX_ELEMENTS, 1):
        monkeypatch.setattr(mmcv_ext, '_MAX_ELEMENTS', limit)
        found = differentiate(lambda x, m: ops.carafe(x, m, 3, 2, 2), leaves, grad)
        assert max(map(relative, found, expected)) < 1e-12


@pytest.mark.parametrize('share', [0, 0.5, 1])
def test_masked_convolution_is_a_convolution_where_the_mask_is(share):
    layer = ops.MaskedConv2d(3, 2, (3, 1), padding=(1, 0)).double()
    input = randn(1, 3, 5, 6)
    mask = (torch.rand(1, 5, 6, generator=torch.Generator().manual_seed(0)) < share).double()
    with torch.no_grad():
        assert relative(layer(input, mask), layer(input) * mask) < 1e-12


# --- focal loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('gamma', 'weighted'), [*itertools.product((0.5, 1.0, 2.0), (False, True))])
def test_focal_loss_against_its_definition(gamma, weighted):
    logits, target = randn(7, 4) * 3, torch.tensor([0, 1, 2, 3, 4, 4, 1])  # 4: background
    weight = torch.tensor([0.5, 2, 3, 0.1], dtype=torch.float64) if weighted else None

    def definition(logits):
        p, rows = torch.sigmoid(logits), []
        for n, c in itertools.product(range(7), range(4)):
            hit = target[n] == c
            loss = -0.25 * (1 - p[n, c]) ** gamma * p[n, c].log() if hit else \
                -0.75 * p[n, c] ** gamma * (1 - p[n, c]).log()
            rows.append(loss * (weight[target[n]] if weighted and target[n] < 4 else 1))
        return torch.stack(rows).view(7, 4)

    grad = randn(7, 4, seed=1)
    found = differentiate(lambda x: ops.sigmoid_focal_loss(x, target, gamma, 0.25, weight, 'none'), (logits,), grad)
    assert max(map(relative, found, differentiate(definition, (logits,), grad))) < 1e-10


@pytest.mark.parametrize(('logits', 'target', 'loss', 'grad'), [
    # Numbers of open-mmlab/mmcv, tests/test_ops/test_focal_loss.py (made with its CUDA kernel).
    ([[1., 0], [0, 1]], [0, 1], 0.13562961, [[-0.00657264, 0.11185755], [0.11185755, -0.00657264]]),
    ([[1., 0, -1], [0, 1, 2]], [2, 1], 1.10251057,
     [[0.28808805, 0.11185755, -0.09602935], [0.11185755, -0.00657264, 0.40376765]]),
    ([[1e-6, 2e-6, 3e-6], [4e-6, 5e-5, 6e-4], [7e-3, 8e-2, 9e-1]], [1, 2, 0], 0.42287254,
     [[0.07457182, -0.02485716, 0.07457201], [0.07457211, 0.07457669, -0.02483728],
      [-0.02462499, 0.08277918, 0.18050370]]),
])
def test_focal_loss_gives_the_values_of_mmcvs_own_test(logits, target, loss, grad):
    leaf = torch.tensor(logits, requires_grad=True)
    found = ops.sigmoid_focal_loss(leaf, torch.tensor(target), 2.0, 0.25, None, 'mean')
    found.backward()
    assert abs(found.item() - loss) < 1e-6
    assert relative(leaf.grad, torch.tensor(grad)) < 1e-6


def test_focal_loss_of_extreme_logits_is_finite():
    logits = torch.tensor([[-200., 200., 30.]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0]), 2.0, 0.25, None, 'sum')
    loss.backward()
    # log of at least the smallest float32, as in mmcv's kernel
    tiny = -math.log(torch.finfo(torch.float32).tiny)
    assert abs(loss.item() / ((0.25 + 0.75 + 0.75) * tiny) - 1) < 1e-6
    assert logits.grad.isfinite().all()


def test_focal_loss_refuses_a_target_above_background():
    with pytest.raises(ValueError, match='target 4 of 3 classes'):
        ops.sigmoid_focal_loss(torch.rand(2, 3), torch.tensor([0, 4]))


# --- empty inputs, precision -----------------------------------------------------------------------------------------


def test_empty_inputs():
    dets, inds = ops.nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert dets.shape == (0, 5)
    assert inds.shape == (0,)
    assert inds.dtype == torch.int64
    dets, inds = ops.soft_nms(torch.empty(0, 4), torch.empty(0))
    assert dets.shape == (0, 5)
    assert inds.shape == (0,)
    assert inds.dtype == torch.int64
    for function, arguments in ((ops.roi_align, (2, 1.0, 0, 'avg')), (ops.roi_align, (2, 1.0, 0, 'max')),
                                (ops.roi_pool, (2, 1.0))):
        for images in (0, 2):
            input = torch.rand(images, 3, 4, 4, requires_grad=True)
            output = function(input, torch.empty(0, 5), *arguments)
            output.sum().backward()
            assert output.shape == (0, 3, 2, 2)
            assert torch.equal(input.grad, torch.zeros_like(input))
    output = ops.deform_roi_pool(input, torch.empty(0, 5), torch.empty(0, 2, 2, 2), 2)
    output.sum().backward()
    assert output.shape == (0, 3, 2, 2)
    leaves = attention_inputs(queries=0)
    assert torch.equal(differentiate(attend, leaves, randn(2, 0, 6))[1], torch.zeros_like(leaves[0]))
    assert ops.carafe(torch.rand(0, 4, 2, 3), torch.rand(0, 9, 4, 6), 3, 1, 2).shape == (0, 4, 4, 6)
    assert ops.nms_match(torch.empty(0, 5), 0.5) == []
    logits = torch.rand(0, 3, requires_grad=True)
    ops.sigmoid_focal_loss(logits, torch.empty(0, dtype=torch.long), 2.0, 0.25, None, 'sum').backward()
    assert logits.grad.shape == (0, 3)
    # mmcv.ops refuses an empty batch for deformable convolution before it asks; the operator itself does not.
    input, offset, mask, weight, grad, geometry = deform_inputs('plain', images=0)
    assert mmcv_ext._deform(input, offset, mask, weight, geometry).shape == grad.shape == (0, 3, 4, 3)
    gradients = mmcv_ext._deform_gradients(grad, input, offset, mask, weight, geometry)
    assert all(torch.equal(found, torch.zeros_like(value))
               for found, value in zip(gradients, (input, offset, mask, weight), strict=False))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_float32_rounded(dtype):
    near = 2 * torch.finfo(dtype).eps
    input, offset, mask, weight, grad, geometry = (
        value.to(dtype) if isinstance(value, torch.Tensor) else value for value in deform_inputs('grouped'))
    rois = ROIS.to(dtype)
    target = torch.tensor([0, 3, 1])

    for function, tensors, outer in (
            (lambda x: ops.roi_align(x, rois.to(x.dtype), 2, 0.25, 0, 'avg'), (randn(2, 3, 6, 8),), randn(6, 3, 2, 2)),
            (lambda x: ops.roi_align(x, rois.to(x.dtype), 2, 0.25, 2, 'max'), (randn(2, 3, 6, 8),), None),
            (lambda x: ops.roi_pool(x, rois.to(x.dtype), 2, 0.25), (randn(2, 3, 6, 8),), randn(6, 3, 2, 2)),
            (lambda x, o, w: ops.deform_conv2d(x, o, w, *geometry[1:]), (input, offset, weight), grad),
            (lambda x, o, m, w: ops.modulated_deform_conv2d(x, o, m, w, None, *geometry[1:]),
             (input, offset, mask, weight), grad),
            (lambda x, o: ops.deform_roi_pool(x, rois.to(x.dtype), o, 2, 0.25), (randn(2, 3, 6, 8), randn(6, 2, 2, 2)),
             randn(6, 3, 2, 2)),
            (attend, attention_inputs(), randn(2, 5, 6)),
            (lambda x, m: ops.carafe(x, m, 3, 2, 2), (randn(2, 4, 2, 3), randn(2, 18, 4, 6)), randn(2, 4, 4, 6)),
            (lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none'), (randn(3, 3),), randn(3, 3))):
        half = [value.to(dtype) for value in tensors]
        full = [value.float() for value in half]
        if outer is None:  # in max mode mmcv keeps the positions in half precision, so that only the output compares
            assert relative(function(*half), function(*full)) < near
            continue
        found = differentiate(function, half, outer.to(dtype))
        expected = differentiate(function, full, outer.to(dtype).float())
        for value, other in zip(found, expected, strict=False):
            assert value.dtype == dtype
            assert relative(value, other) < near
    boxes, scores = random_boxes(40, 0)
    expected = ops.nms(boxes, scores.to(dtype).float(), 0.5)[1]
    assert torch.equal(ops.nms(boxes.to(dtype), scores.to(dtype), 0.5)[1], expected)
    assert torch.equal(mmcv_ext.softnms(boxes.to(dtype), scores.to(dtype), torch.empty(40, 5, dtype=dtype), 0.5, 0.5,
                                        0.1, 0, 0), ops.soft_nms(boxes, scores.to(dtype).float(), 0.5, 0.5, 0.1,
                                                                 'naive')[1])


@pytest.mark.parametrize('name', ['DCN', 'DCNv2'])
def test_autocast(name):
    """A layer under autocast: its offsets arrive in half precision, weights in float32."""
    from mmcv.cnn import build_conv_layer
    torch.manual_seed(0)
    layer = build_conv_layer({'type': name, 'deform_groups': 2}, 4, 6, 3, padding=1)
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    input = torch.randn(2, 4, 6, 6, requires_grad=True)
    results = []
    for enabled in (False, True):
        input.grad = None
        layer.zero_grad()
        with torch.autocast('cpu', dtype=torch.float16, enabled=enabled):
            output = layer(input)
            output.float().square().sum().backward()  # inside: the backward operators see autocast as well
        results.append([output.detach(), input.grad] + [value.grad for value in layer.parameters()])
    assert results[1][0].dtype == torch.float16
    assert layer.weight.grad.dtype == torch.float32
    for full, mixed in zip(*results, strict=False):
        assert 0 < relative(mixed, full) < 0.03


def test_autocast_does_not_lower_the_precision_of_float32_operands():
    input, offset, _, weight, _, geometry = deform_inputs('plain', dtype=torch.float32)
    plain = ops.deform_conv2d(input, offset, weight, *geometry[1:])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(ops.deform_conv2d(input, offset, weight, *geometry[1:]), plain)


# --- the module ------------------------------------------------------------------------------------------------------


def test_operators_that_are_not_served_refuse_by_name():
    from mmcv.ops import softmax_focal_loss
    with pytest.raises(mmcv_ext.OperatorUnavailable, match=r"'softmax_focal_loss_forward'.*pip install mmcv==2\.1\.0"):
        softmax_focal_loss(torch.rand(2, 3), torch.tensor([0, 1]))
    assert issubclass(mmcv_ext.OperatorUnavailable, NotImplementedError)


def test_the_module_stands_inspection():
    module = sys.modules['mmcv._ext']
    assert mmcv._ext is module
    assert not hasattr(module, '__wrapped__')
    assert not hasattr(module, '__file__')
    assert inspect.getmodule(module.nms) is mmcv_ext
    assert inspect.getdoc(module)
    assert pickle.loads(pickle.dumps(module.nms)) is module.nms
    missing = module.ball_query_forward
    assert callable(missing)
    assert copy.copy(missing).__name__ == 'ball_query_forward'
    with pytest.raises(mmcv_ext.OperatorUnavailable, match='ball_query_forward'):
        pickle.loads(pickle.dumps(missing))()


def test_install_twice_is_harmless():
    module = sys.modules['mmcv._ext']
    assert mmcv_ext.install() is module is mmcv_ext.install() is mmcv._ext
    assert re.fullmatch(r'torchvision \d+\.\d+\.\d+ kernels', mmcv_ext.backend())


def test_mmcvs_environment_report_names_the_back_end():
    assert ops.get_compiler_version() == f'none ({mmcv_ext.backend()})'
    assert ops.get_compiling_cuda_version() == 'none'


def run_alone(folder, code):
    """Standard output of ``code`` in a new interpreter that sees a copy of the module and neither amdlib nor mmdet."""
    shutil.copy(mmcv_ext.__file__, folder)
    prologue = 'import sys\nsys.modules["mmdet"] = sys.modules["amdlib"] = None\n'
    done = subprocess.run([sys.executable, '-c', prologue + code], cwd=folder, capture_output=True, text=True,
                          timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split('\n'), done.stderr


def test_the_file_alone_serves_mmcv(tmp_path):
    (shape, before, after, *_), _ = run_alone(tmp_path, '''
import mmcv_ext, torch, mmcv.ops
print(tuple(mmcv.ops.roi_align(torch.rand(1, 2, 4, 4), torch.tensor([[0., 0, 0, 3, 3]]), 2).shape))
print(mmcv_ext.backend())
import importlib.util  # a second copy, in another project's package, leaves the first in place
spec = importlib.util.spec_from_file_location('other', mmcv_ext.__file__)
other = importlib.util.module_from_spec(spec)
spec.loader.exec_module(other)
print(other.backend())
''')
    assert shape == '(1, 2, 2, 2)'
    assert before == after == mmcv_ext.backend()


@pytest.mark.parametrize(('text', 'expected'), [
    ('nms = print', f'compiled mmcv {mmcv.__version__}'),
    ('raise ImportError("undefined symbol: _ZN3c10")', mmcv_ext.backend()),
])
def test_a_compiled_mmcv_is_used_if_it_loads(tmp_path, text, expected):
    (tmp_path / 'compiled').mkdir()
    (tmp_path / 'compiled' / '_ext.py').write_text(text)
    (backend, same, *_), errors = run_alone(tmp_path, f'''
import mmcv
mmcv.__path__.append({str(tmp_path / 'compiled')!r})
import mmcv_ext
print(mmcv_ext.backend())
print(mmcv._ext.nms is print)
''')
    assert backend == expected
    assert same == str(text.startswith('nms'))
    assert ('undefined symbol' in errors) == text.startswith('raise')


# --- detectors of mmdet ----------------------------------------------------------------------------------------------

RESNET_18 = {'backbone.depth': 18, 'backbone.init_cfg': None, 'neck.in_channels': [64, 128, 256, 512]}
DETECTORS = {
    'retinanet': ('retinanet/retinanet_r18_fpn_1x_coco.py', {'backbone.init_cfg': None}),
    'faster_rcnn': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', RESNET_18),
    'reppoints': ('reppoints/reppoints-moment_r50_fpn_1x_coco.py', RESNET_18),
    'cascade_dcn': ('dcn/cascade-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', {'backbone.init_cfg': None}),
    'cascade_dcnv2': ('dcn/cascade-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
                      {'backbone.init_cfg': None, 'backbone.dcn.type': 'DCNv2'}),
}


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_train_and_predict(name):
    pytest.importorskip('mmdet')
    import mmdet
    from mmdet.apis import init_detector  # noqa: F401  (imports everything that asks for operators)
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.structures import InstanceData
    register_all_modules()
    path, changes = DETECTORS[name]
    config = Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / path)
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    size = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (64, 64))
    sample = DetDataSample(metainfo={**size, 'scale_factor': (1., 1.)})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[5., 6, 40, 50], [20, 10, 60, 30]]),
                                       labels=torch.tensor([1, 70]))
    samples = [sample, copy.deepcopy(sample)]
    images = torch.randn(2, 3, 64, 64)
    losses = model.loss(images, samples)
    total = sum(value.sum() if torch.is_tensor(value) else sum(item.sum() for item in value)
                for key, value in losses.items() if 'loss' in key)
    total.backward()
    deformable = [module for module in model.modules() if isinstance(module, (ops.DeformConv2d,
                                                                             ops.ModulatedDeformConv2d))]
    assert bool(deformable) == (name not in ('retinanet', 'faster_rcnn'))
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)
    assert all(module.weight.grad.abs().max() > 0 for module in deformable)
    with torch.no_grad():
        predicted = model.eval().predict(images, samples)
    assert len(predicted) == 2
    assert predicted[0].pred_instances.bboxes.shape[1] == 4


# --- CUDA ------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('case', GOLDENS)
def test_cuda_gives_the_same_as_compiled_mmcv_on_the_cpu(case):
    op, tensors, options, expected = GOLDENS[case]
    found = make_mmcv_ext.evaluate(op, {name: value.cuda() for name, value in tensors.items()}, options)
    for name, value in expected.items():
        limit = 1e-10 if value.dtype == torch.float64 else 1e-5
        assert found[name].shape == value.shape, name
        assert relative(found[name].cpu(), value) < limit, name
