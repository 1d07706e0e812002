"""AMD's rivals (amdlib.losses): by hand, against loops over pixels and boxes, and against their public code.

tests/goldens/losses.npz holds what the public code returned in float64; tests/goldens/make_losses.py made it.
"""
import copy
import itertools
import json
import math
import pathlib
import pickle
import re

import numpy as np
import pytest
import torch

from amdlib.amd import AMDLoss
from amdlib.losses import FGDLoss, FKDLoss, FitNetLoss, MGDLoss, NonLocalBlock, box_masks, channel_attention

LN3 = math.log(3)
LOSSES = [FitNetLoss, FKDLoss, FGDLoss, MGDLoss]
F64 = torch.float64
IMAGE_SHAPES = [(48, 80), (40, 72)]


def assert_close(found, expected, tolerance=1e-9, floor=0.0):
    """Largest difference below ``tolerance`` times the largest expected value (at least ``floor``)."""
    expected = torch.as_tensor(expected, dtype=found.dtype)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * max(expected.abs().max(), floor)


def features(n=2, c_s=3, c=4, h=6, w=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    f_s = torch.randn(n, c_s, h, w, dtype=F64, generator=generator).requires_grad_()
    return f_s, torch.randn(n, c, h, w, dtype=F64, generator=generator)


def boxes_of(n):
    """n boxes an image in two images of IMAGE_SHAPES, float32."""
    generator = torch.Generator().manual_seed(n)
    result = []
    for height, width in IMAGE_SHAPES:
        corners = torch.rand((n, 2, 2), generator=generator).sort(dim=1).values * torch.tensor([width, height])
        result.append(corners.flatten(1))
    return result


def randomised(loss, seed=0):
    """The loss in float64 with every parameter drawn anew, so that nothing hides behind a zero initial value."""
    generator = torch.Generator().manual_seed(seed)
    loss.double()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, dtype=F64, generator=generator) + 0.1)
    return loss


def call(loss, f_s, f_t, boxes=None):
    return loss(f_s, f_t, boxes if boxes is not None else boxes_of(3), IMAGE_SHAPES)


def assert_same_value_and_gradients(found, expected, f_s, loss):
    inputs = [f_s, *loss.parameters()]
    assert found.shape == ()
    assert_close(found, expected)
    of_found = torch.autograd.grad(found, inputs)
    of_expected = torch.autograd.grad(expected, inputs)
    floor = 1e-6 * max(g.abs().max() for g in of_expected)         # some gradients are zero but for rounding
    for f, e in zip(of_found, of_expected, strict=True):
        assert_close(f, e, floor=floor)


def conv1x1(x, p, name):
    return torch.einsum('nchw,kc->nkhw', x, p[f'{name}.weight'][:, :, 0, 0]) + p[f'{name}.bias'][:, None, None]


def pixel_conv3x3(x, weight, bias):
    n, _, h, w = x.shape
    pixels = []
    for i, j in itertools.product(range(h), range(w)):
        total = bias.expand(n, -1)
        for di, dj in itertools.product((-1, 0, 1), repeat=2):
            if 0 <= i + di < h and 0 <= j + dj < w:
                total = total + x[:, :, i + di, j + dj] @ weight[:, :, di + 1, dj + 1].T
        pixels.append(total)
    return torch.stack(pixels, dim=2).view(n, -1, h, w)


def loop_attention(x, temperature):
    """Spatial (H, W) and channel (C) attention of one image's feature (C, H, W), by sums of exponentials."""
    c, h, w = x.shape
    over_positions = torch.exp(sum(x[k].abs() for k in range(c)) / c / temperature)
    over_channels = torch.exp(torch.stack([x[k].abs().sum() / (h * w) for k in range(c)]) / temperature)
    return h * w * over_positions / over_positions.sum(), c * over_channels / over_channels.sum()


# --- All methods -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', LOSSES)
def test_student_side_learns_and_teacher_does_not(method):
    f_s, f_t = features()
    f_t.requires_grad_()
    loss = randomised(method(3, 4))
    call(loss, f_s, f_t).backward()
    assert f_t.grad is None and f_s.grad.abs().sum() > 0
    assert all(p.grad is not None for p in loss.parameters())


@pytest.mark.parametrize('method', [FitNetLoss, FGDLoss])
def test_batch_is_the_mean_of_its_images(method):
    f_s, f_t = features()
    boxes = boxes_of(4)
    loss = randomised(method(3, 4))
    singles = [loss(f_s[i:i + 1], f_t[i:i + 1], boxes[i:i + 1], IMAGE_SHAPES[i:i + 1]) for i in range(2)]
    assert_close(call(loss, f_s, f_t, boxes), torch.stack(singles).mean().detach())


@pytest.mark.parametrize('method', LOSSES)
@pytest.mark.parametrize('channels', [(3, 4), (4, 4)])
def test_one_image_of_one_position(method, channels):
    f_s, f_t = torch.randn(1, channels[0], 1, 1, requires_grad=True), torch.randn(1, channels[1], 1, 1)
    loss = method(*channels)
    value = loss(f_s, f_t, [torch.tensor([[10., 10., 90., 60.]])], [(128, 128)])
    value.backward()
    assert value.isfinite() and f_s.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize('method', LOSSES)
def test_equal_features_have_finite_gradients(method):
    f_s = torch.ones(1, 4, 2, 2, requires_grad=True)
    loss = method(4, 4)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.zero_()
    value = loss(f_s, torch.zeros(1, 4, 2, 2), [torch.zeros(0, 4)], [(8, 8)])
    value.backward()
    assert f_s.grad.isfinite().all()


@pytest.mark.parametrize('method', LOSSES)
def test_float16_features_do_not_overflow(method):
    f_t = torch.full((1, 4, 8, 8), 3e4, dtype=torch.float16)
    value = method(4, 4)(torch.zeros_like(f_t), f_t, [torch.tensor([[0., 0., 4., 4.]])], [(8, 8)])
    assert value.dtype == torch.float32 and value.isfinite() and value > 0


@pytest.mark.parametrize('method', LOSSES)
def test_autocast_changes_nothing(method):
    f_s, f_t = (f.float() for f in features())
    loss = method(3, 4)
    outside = call(copy.deepcopy(loss), f_s, f_t)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = call(loss, f_s, f_t)
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


@pytest.mark.parametrize('method', LOSSES)
def test_copies_give_the_same_loss(method):
    f_s, f_t = features()
    loss = randomised(method(3, 4))
    clones = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), method(3, 4).double()]
    clones[2].load_state_dict(loss.state_dict())
    value = call(loss, f_s, f_t)
    assert all(torch.equal(call(clone, f_s, f_t), value) for clone in clones)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
@pytest.mark.parametrize('method', LOSSES)
def test_gpu_gives_the_same_loss(method):
    f_s, f_t = features()
    on_cpu = randomised(method(3, 4))
    on_gpu = copy.deepcopy(on_cpu).cuda()
    assert_close(call(on_gpu, f_s.cuda(), f_t.cuda()).cpu(), call(on_cpu, f_s, f_t).item())


@pytest.mark.parametrize('method', LOSSES)
@pytest.mark.parametrize('s, t', [((2, 3, 4, 5), (2, 4, 5, 4)), ((2, 3, 4, 5), (3, 4, 4, 5)),
                                  ((2, 4, 4, 5), (2, 4, 4, 5))])
def test_shapes_that_do_not_fit_are_named(method, s, t):
    with pytest.raises(ValueError) as error:
        method(3, 4)(torch.zeros(s), torch.zeros(t))
    assert str(s) in str(error.value) and str(t) in str(error.value)


@pytest.mark.parametrize('method, arguments, message', [
    (FitNetLoss, dict(alpha=-1), 'alpha=-1: expected a finite number of 0 or more'),
    (FitNetLoss, dict(student_channels=0), 'student_channels=0'),
    (FKDLoss, dict(feature_weight=-1), 'feature_weight=-1'), (FKDLoss, dict(channel_weight='1'), "channel_weight='1'"),
    (FKDLoss, dict(spatial_weight=-1), 'spatial_weight=-1'), (FKDLoss, dict(nonlocal_weight=-1), 'nonlocal_weight=-1'),
    (FKDLoss, dict(spatial_temperature=0), 'spatial_temperature=0'),
    (FKDLoss, dict(channel_temperature=0), 'channel_temperature=0'), (FKDLoss, dict(channel_mask=1), 'channel_mask=1'),
    (FKDLoss, dict(channel_mask=True), 'expected equal channels'),
    (FKDLoss, dict(nonlocal_reduction=0), 'nonlocal_reduction=0'), (FKDLoss, dict(nonlocal_pool=0), 'nonlocal_pool=0'),
    (FGDLoss, dict(temp=0), 'temp=0'), (FGDLoss, dict(alpha_fgd=-1), 'alpha_fgd=-1'),
    (FGDLoss, dict(beta_fgd=-1), 'beta_fgd=-1'), (FGDLoss, dict(gamma_fgd=-1), 'gamma_fgd=-1'),
    (FGDLoss, dict(lambda_fgd=float('nan')), 'lambda_fgd=nan'),
    (FGDLoss, dict(teacher_channels=1), 'teacher_channels=1'),
    (MGDLoss, dict(alpha_mgd=-1), 'alpha_mgd=-1'), (MGDLoss, dict(lambda_mgd=-0.1), 'lambda_mgd=-0.1'),
    (MGDLoss, dict(seed='a'), "seed='a'"),
])
def test_arguments_are_checked(method, arguments, message):
    with pytest.raises(ValueError) as error:
        method(**dict(dict(student_channels=3, teacher_channels=4), **arguments))
    assert message in str(error.value)


def test_defaults_are_the_published_values():
    loss = FKDLoss(3, 4)
    assert (loss.feature_weight, loss.channel_weight) == (7e-5, 4e-3)
    assert (loss.spatial_weight, loss.nonlocal_weight) == (4e-3, 7e-5)
    assert (loss.spatial_temperature, loss.channel_temperature) == (0.5, 0.5)
    loss = FGDLoss(3, 4)
    assert (loss.temp, loss.alpha_fgd, loss.beta_fgd, loss.gamma_fgd, loss.lambda_fgd) == (0.5, 1e-3, 5e-4, 1e-3, 5e-6)
    loss = MGDLoss(3, 4)
    assert (loss.alpha_mgd, loss.random_mask.mask_ratio) == (2e-5, 0.65)
    assert FitNetLoss(3, 4).alpha == 2e-5


# --- FitNet ----------------------------------------------------------------------------------------------------------

def test_fitnet_by_hand():
    f_s, f_t = torch.tensor([[[[1., 2.]]]]), torch.tensor([[[[3., 5.]]]])
    assert FitNetLoss(1, 1, alpha=0.1)(f_s, f_t).item() == pytest.approx(0.1 * (4 + 9))
    both = torch.cat([f_s, f_s]), torch.cat([f_t, f_t])
    assert FitNetLoss(1, 1, alpha=0.1)(*both).item() == pytest.approx(0.1 * (4 + 9))        # divided by N


@pytest.mark.parametrize('c_s', [3, 4])
def test_fitnet_against_loops(c_s):
    f_s, f_t = features(c_s=c_s)
    loss = randomised(FitNetLoss(c_s, 4, alpha=0.3))
    p = dict(loss.named_parameters())
    aligned = conv1x1(f_s, p, 'align') if p else f_s
    expected = 0.3 / 2 * sum((f_t[b, k, i, j] - aligned[b, k, i, j]) ** 2
                             for b, k, i, j in itertools.product(range(2), range(4), range(6), range(10)))
    assert_same_value_and_gradients(call(loss, f_s, f_t), expected, f_s, loss)


# --- FKD -------------------------------------------------------------------------------------------------------------

def zeroed_fkd(**arguments):
    loss = FKDLoss(1, 1, **{**dict.fromkeys(FKDLoss.WEIGHT_EXPONENTS, 0), **arguments})
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.zero_()
    return loss.double()


def test_fkd_by_hand():
    f_s = torch.tensor([[[[0., 0.]]]], dtype=F64)
    f_t = torch.tensor([[[[2., 0.]]]], dtype=F64)
    t = 2 / LN3
    # Teacher's attention (1.5, 0.5), student's (1, 1): mean (1.25, 0.75). Error (2, 0).
    assert zeroed_fkd(feature_weight=1, spatial_temperature=t)(f_s, f_t).item() == pytest.approx(math.sqrt(4 * 1.25))
    assert zeroed_fkd(channel_weight=1)(f_s, f_t).item() == pytest.approx(1)            # mean over positions: 1
    assert zeroed_fkd(spatial_weight=1)(f_s, f_t).item() == pytest.approx(2)            # mean over channels: (2, 0)
    assert zeroed_fkd(nonlocal_weight=1)(f_s, f_t).item() == pytest.approx(2)           # the block is the identity
    assert zeroed_fkd(feature_weight=1, channel_weight=1, spatial_weight=1, nonlocal_weight=1,
                      spatial_temperature=t)(f_s, f_t).item() == pytest.approx(math.sqrt(5) + 5)


def test_fkd_non_local_by_hand():
    block = NonLocalBlock(1, reduction=1, pool=2).double().eval()
    with torch.no_grad():
        for conv, weight in ((block.theta, 2), (block.phi, 3), (block.g, 5), (block.conv_out, 1)):
            conv.weight.fill_(weight)
        block.bn.weight.fill_(1)
    x = torch.tensor([[[[1., 4., 2., 3.], [0., 1., 1., 1.]]]], dtype=F64)
    # 2x2 pools hold 4 and 3, so phi = (12, 9) and g = (20, 15); y = 2 x (12 * 20 + 9 * 15) / 2 = 375 x.
    assert_close(block(x), x + 375 * x / math.sqrt(1 + block.bn.eps))


def loop_non_local(x, p, side, pool):
    h, w = x.shape[2:]
    rows, columns = min(pool, h), min(pool, w)
    theta, phi, g = (conv1x1(x, p, f'{side}.{name}') for name in ('theta', 'phi', 'g'))
    y = torch.zeros_like(theta)
    windows = [(slice(i, i + rows), slice(j, j + columns))
               for i in range(0, h - rows + 1, rows) for j in range(0, w - columns + 1, columns)]
    for window in windows:
        phi_max, g_max = (z[(..., *window)].flatten(2).max(dim=2).values[:, :, None, None] for z in (phi, g))
        y = y + (theta * phi_max).sum(dim=1, keepdim=True) * g_max / len(windows)
    y = torch.einsum('nchw,kc->nkhw', y, p[f'{side}.conv_out.weight'][:, :, 0, 0])
    mean, variance = y.mean(dim=(0, 2, 3), keepdim=True), y.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    y = (y - mean) / (variance + 1e-5).sqrt()
    return x + y * p[f'{side}.bn.weight'][:, None, None] + p[f'{side}.bn.bias'][:, None, None]


@pytest.mark.parametrize('c_s, channel_mask, size', [(3, False, (6, 10)), (4, False, (3, 9)), (4, True, (6, 10))])
def test_fkd_against_loops(c_s, channel_mask, size):
    f_s, f_t = features(c_s=c_s, h=size[0], w=size[1])
    loss = randomised(FKDLoss(c_s, 4, 0.3, 0.5, 0.7, 1.1, spatial_temperature=0.4, channel_temperature=0.6,
                              channel_mask=channel_mask))
    p = dict(loss.named_parameters())
    adapted = conv1x1(f_s, p, 'adaptation_layers')
    feature = channel = 0
    for b in range(2):
        weight = ((loop_attention(f_s[b], 0.4)[0] + loop_attention(f_t[b], 0.4)[0]) / 2).detach()
        if channel_mask:
            by_channel = (loop_attention(f_s[b], 0.6)[1] + loop_attention(f_t[b], 0.6)[1]).detach() / 2
            weight = weight * by_channel[:, None, None]
        feature = feature + (weight * (f_t[b] - adapted[b]) ** 2).sum()
        pooled = f_s[b].flatten(1).mean(dim=1) @ p['channel_wise_adaptation.weight'].T
        pooled = pooled + p['channel_wise_adaptation.bias']
        channel = channel + ((f_t[b].flatten(1).mean(dim=1) - pooled) ** 2).sum()
    spatial = pixel_conv3x3(f_s.mean(dim=1, keepdim=True), p['spatial_wise_adaptation.weight'],
                            p['spatial_wise_adaptation.bias'])
    spatial = ((f_t.mean(dim=1, keepdim=True) - spatial) ** 2).sum()
    student = conv1x1(loop_non_local(f_s, p, 'student_non_local', 4), p, 'non_local_adaptation')
    non_local = ((loop_non_local(f_t, p, 'teacher_non_local', 4) - student) ** 2).sum()
    expected = 0.3 * feature ** 0.5 + 0.5 * channel ** 0.5 + 0.7 * spatial ** 0.5 + 1.1 * non_local ** 0.5
    assert_same_value_and_gradients(call(loss, f_s, f_t), expected, f_s, loss)


@pytest.mark.parametrize('weight', ['feature_weight', 'channel_weight', 'spatial_weight', 'nonlocal_weight'])
def test_fkd_batch_is_the_root_of_the_sum_of_squares(weight):
    f_s, f_t = features()
    weights = {name: float(name == weight) for name in FKDLoss.WEIGHT_EXPONENTS}
    loss = randomised(FKDLoss(3, 4, **weights)).eval()          # eval: batch norm would mix the images
    singles = [loss(f_s[i:i + 1], f_t[i:i + 1]) for i in range(2)]
    assert_close(loss(f_s, f_t), math.hypot(*(v.item() for v in singles)))


def test_fkd_attention_carries_no_gradient():
    f_s, f_t = features()
    assert not FKDLoss(3, 4).double().attention(f_s, f_t).requires_grad


# --- FGD -------------------------------------------------------------------------------------------------------------

def masks_of(boxes, image_shape=(40, 60), size=(4, 6), dtype=torch.float32):
    foreground, background = box_masks([torch.tensor(boxes, dtype=torch.float32).view(-1, 4)], [image_shape],
                                       torch.zeros((1, 1, *size), dtype=dtype))
    return foreground[0], background[0]


def test_fgd_masks_by_hand():
    # A cell is 10 px. Box 1 covers columns 1..3 and rows 0..1 (area 6), box 2 columns 3..5 and row 1..2 (area 6, both
    # borders included), box 3 lies within box 1 and covers columns 1..2, row 0..1 (area 4).
    foreground, background = masks_of([[12, 2, 28, 9], [35, 12, 48, 18], [12, 1, 19, 9]])
    assert torch.allclose(foreground * 12, torch.tensor([[0, 3, 3, 2, 0, 0], [0, 3, 3, 2, 2, 2], [0, 0, 0, 2, 2, 2],
                                                         [0, 0, 0, 0, 0, 0.]]))
    # 13 cells are left for the background.
    assert torch.allclose(background * 13, torch.tensor([[1, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0],
                                                         [1, 1, 1, 1, 1, 1.]]))


def test_fgd_masks_without_boxes_are_all_background():
    foreground, background = masks_of([])
    assert foreground.sum() == 0 and torch.allclose(background, torch.full((4, 6), 1 / 24))


def test_fgd_box_over_the_whole_image_leaves_no_background():
    foreground, background = masks_of([[0, 0, 60, 40]])
    assert torch.allclose(foreground, torch.full((4, 6), 1 / (5 * 7)))     # its area counts a border outside the map
    assert background.sum() == 0


def test_fgd_point_covers_one_cell_or_two():
    assert (masks_of([[20, 20, 20, 20]])[0] > 0).sum() == 1                    # on a corner of cells: floor = ceil
    assert (masks_of([[25, 20, 25, 20]])[0] > 0).sum() == 2                    # within a column: floor and ceil differ


def test_fgd_order_of_boxes_does_not_matter():
    boxes = boxes_of(20)
    _, f_t = features()
    there, back = box_masks(boxes, IMAGE_SHAPES, f_t), box_masks([b.flip(0) for b in boxes], IMAGE_SHAPES, f_t)
    assert torch.equal(there[0], back[0]) and torch.equal(there[1], back[1])


def loop_masks(boxes, image_shape, h, w):
    """The public code's rule, box by box, with Python's own slices; float64."""
    foreground = torch.zeros(h, w, dtype=F64)
    for box in boxes:
        x1, x2 = (box[i] / image_shape[1] * w for i in (0, 2))
        y1, y2 = (box[i] / image_shape[0] * h for i in (1, 3))
        x1, y1, x2, y2 = int(x1.floor()), int(y1.floor()), int(x2.ceil()), int(y2.ceil())
        part = foreground[y1:y2 + 1, x1:x2 + 1]
        if part.numel():
            foreground[y1:y2 + 1, x1:x2 + 1] = part.clamp(min=1 / (y2 + 1 - y1) / (x2 + 1 - x1))
    background = (foreground == 0).double()
    return foreground, background / max(background.sum(), 1)


ODD_BOXES = [(-40, 10, 20, 30), (30, -20, 50, 20), (60, 30, 100, 70), (-30, -30, -10, -10), (90, 10, 120, 20),
             (-30, 10, -10, 20), (10, -30, 20, -9), (20, 20, 20, 20), (10, 10, 10, 30), (40, 30, 20, 10),
             (40, 30, 39, 29), (-20, 8, -60, 16), (79.9, 47.9, 80, 48), (-8, -8, -8, -8), (1e6, 1e6, 2e6, 2e6),
             (-60, 10, -30, 30), (10, -40, 30, -20), (-1e6, -1e6, 1e6, 1e6)]


@pytest.mark.parametrize('boxes', [[b] for b in ODD_BOXES] + [ODD_BOXES[:-1]], ids=str)
def test_fgd_masks_of_odd_boxes_against_slices(boxes):
    boxes, size = torch.tensor(boxes, dtype=torch.float32), (6, 10)
    found = box_masks([boxes], IMAGE_SHAPES[:1], torch.zeros((1, 1, *size), dtype=F64))
    for f, e in zip(found, loop_masks(boxes, IMAGE_SHAPES[0], *size), strict=True):
        assert_close(f[0], e, tolerance=1e-12)


@pytest.mark.parametrize('count', [1, 7, 80])
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (13, 21)])
def test_fgd_masks_against_slices(count, size):
    boxes = boxes_of(count)
    found = box_masks(boxes, IMAGE_SHAPES, torch.zeros((2, 1, *size), dtype=F64))
    for b in range(2):
        for f, e in zip(found, loop_masks(boxes[b], IMAGE_SHAPES[b], *size), strict=True):
            assert_close(f[b], e, tolerance=1e-12)


def test_fgd_channel_attention_by_hand():
    feature = torch.tensor([[[[4., 0.]], [[0., 0.]]]])                         # means (2, 0)
    assert torch.allclose(channel_attention(feature, 2 / LN3), torch.tensor([[1.5, 0.5]]))


def hand_fgd(f_s, f_t, boxes, **weights):
    loss = FGDLoss(2, 2, temp=2 / LN3, **dict(dict(alpha_fgd=0, beta_fgd=0, gamma_fgd=0, lambda_fgd=0), **weights))
    return loss(torch.tensor(f_s)[None], torch.tensor(f_t)[None], [torch.tensor(boxes).view(-1, 4)], [(10, 20)]).item()


def test_fgd_by_hand():
    # Two channels over one row of two cells of 10 px; the teacher shows (4, 0) and (0, 0), the student nothing.
    f_s, f_t = [[[0., 0.]], [[0., 0.]]], [[[4., 0.]], [[0., 0.]]]
    # G = (2, 0) and channel means (2, 0): both attentions are (1.5, 0.5), the student's (1, 1). Error: 16 once.
    left = [[1., 1., 9., 9.]]                       # columns 0..1 and rows 0..1: weight 1/4 on both cells
    assert hand_fgd(f_s, f_t, left, alpha_fgd=1) == pytest.approx(16 * 1.5 * 1.5 / 4)
    assert hand_fgd(f_s, f_t, left, beta_fgd=1) == 0
    assert hand_fgd(f_s, f_t, [], alpha_fgd=1) == 0
    assert hand_fgd(f_s, f_t, [], beta_fgd=1) == pytest.approx(16 * 1.5 * 1.5 / 2)
    assert hand_fgd(f_s, f_t, left, gamma_fgd=1) == pytest.approx(1 + 1)
    assert hand_fgd(f_s, f_t, left, lambda_fgd=1) == pytest.approx(16)         # at first the context adds nothing


def loop_fgd(loss, f_s, f_t, boxes):
    n, c, h, w = f_t.shape
    p = dict(loss.named_parameters())
    x = conv1x1(f_s, p, 'align') if 'align.weight' in p else f_s

    def with_context(image, side):
        scores = torch.exp(conv1x1(image[None], p, f'conv_mask_{side}')[0, 0])
        context = torch.stack([(image[k] * scores).sum() / scores.sum() for k in range(c)])
        name = f'channel_add_conv_{side}'
        z = p[f'{name}.0.weight'][:, :, 0, 0] @ context + p[f'{name}.0.bias']
        z = (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()
        z = torch.relu(z * p[f'{name}.1.weight'].flatten() + p[f'{name}.1.bias'].flatten())
        return image + (p[f'{name}.3.weight'][:, :, 0, 0] @ z + p[f'{name}.3.bias'])[:, None, None]

    total = 0
    for b in range(n):
        spatial_s, channel_s = loop_attention(x[b], loss.temp)
        spatial_t, channel_t = loop_attention(f_t[b], loss.temp)
        foreground, background = loop_masks(boxes[b], IMAGE_SHAPES[b], h, w)
        for k, i, j in itertools.product(range(c), range(h), range(w)):
            error = (x[b, k, i, j] - f_t[b, k, i, j]) ** 2 * channel_t[k] * spatial_t[i, j]
            total = total + error * (loss.alpha_fgd * foreground[i, j] + loss.beta_fgd * background[i, j])
        total = total + loss.gamma_fgd * ((channel_s - channel_t).abs().sum() + (spatial_s - spatial_t).abs().sum())
        total = total + loss.lambda_fgd * ((with_context(x[b], 's') - with_context(f_t[b], 't')) ** 2).sum()
    return total / n


@pytest.mark.parametrize('c_s, count', [(3, 0), (4, 2), (3, 80)])
def test_fgd_against_loops(c_s, count):
    f_s, f_t = features(c_s=c_s)
    loss = randomised(FGDLoss(c_s, 4, 0.6, alpha_fgd=0.3, beta_fgd=0.5, gamma_fgd=0.7, lambda_fgd=0.02))
    boxes = boxes_of(count)
    boxes[1] = boxes[1][:count // 2]
    assert_same_value_and_gradients(call(loss, f_s, f_t, boxes), loop_fgd(loss, f_s, f_t, boxes), f_s, loss)


def test_fgd_initial_values_are_the_public_ones():
    loss = FGDLoss(3, 256)
    for side in 'st':
        where, what = getattr(loss, f'conv_mask_{side}'), getattr(loss, f'channel_add_conv_{side}')
        assert where.bias.item() == 0 and where.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.2)
        assert what[3].weight.abs().sum() == 0 and what[3].bias.abs().sum() == 0
        assert what[0].weight.abs().sum() > 0 and what[1].weight.shape == (128, 1, 1)


@pytest.mark.parametrize('boxes, image_shapes, message', [
    (None, [(8, 8)], 'FGD needs boxes and image_shapes'),
    ([torch.zeros(0, 4)], None, 'FGD needs boxes and image_shapes'),
    ([], [(8, 8)], 'of 1 images, got 0 and 1'), ([torch.zeros(1, 5)], [(8, 8)], 'boxes[0]'),
    ([torch.zeros(4)], [(8, 8)], 'boxes[0]'), ([torch.zeros(1, 4).long()], [(8, 8)], 'torch.int64'),
    ([torch.zeros(1, 4)], [(8, 8, 3)], 'image_shapes[0]=(8, 8, 3)'),
    ([torch.zeros(1, 4)], [(0, 8)], 'image_shapes[0]=(0, 8)'),
])
def test_fgd_boxes_are_checked(boxes, image_shapes, message):
    with pytest.raises(ValueError) as error:
        FGDLoss(3, 4)(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2), boxes, image_shapes)
    assert message in str(error.value)


# --- MGD -------------------------------------------------------------------------------------------------------------

def test_mgd_by_hand():
    loss = MGDLoss(1, 1, alpha_mgd=0.1, lambda_mgd=0.5, seed=0).double()
    with torch.no_grad():
        for conv, weight, bias in ((loss.generation[0], 1, 0), (loss.generation[2], 2, 1)):     # x -> 2 relu(x) + 1
            conv.weight.zero_()
            conv.weight[0, 0, 1, 1] = weight
            conv.bias.fill_(bias)
    kept = (torch.rand(2, generator=torch.Generator().manual_seed(0)) <= 0.5).tolist()
    f_gen = [2 * x * k + 1 for x, k in zip((5, 3), kept, strict=True)]
    value = loss(torch.tensor([[[[5., 3.]]]], dtype=F64), torch.tensor([[[[2., 0.]]]], dtype=F64))
    assert value.item() == pytest.approx(0.1 * ((2 - f_gen[0]) ** 2 + (0 - f_gen[1]) ** 2))


@pytest.mark.parametrize('c_s', [3, 4])
def test_mgd_against_loops(c_s):
    f_s, f_t = features(c_s=c_s)
    loss = randomised(MGDLoss(c_s, 4, alpha_mgd=0.3, lambda_mgd=0.4, seed=6))
    p = dict(loss.named_parameters())
    kept = (torch.rand((2, 1, 6, 10), generator=torch.Generator().manual_seed(6)) <= 1 - 0.4).double()
    x = (conv1x1(f_s, p, 'align') if 'align.weight' in p else f_s) * kept
    x = torch.relu(pixel_conv3x3(x, p['generation.0.weight'], p['generation.0.bias']))
    x = pixel_conv3x3(x, p['generation.2.weight'], p['generation.2.bias'])
    assert_same_value_and_gradients(call(loss, f_s, f_t), 0.3 * ((f_t - x) ** 2).sum() / 2, f_s, loss)


def test_amd_without_both_of_its_parts_is_mgd():
    f_s, f_t = features()
    mgd = randomised(MGDLoss(3, 4, seed=2))
    amd = AMDLoss(3, 4, spatial='random', channel='none').double()
    amd.load_state_dict(mgd.state_dict())               # parameters and generator
    for _ in range(2):
        assert torch.equal(amd(f_s, f_t), mgd(f_s, f_t))


def test_mgd_masks_continue_after_a_resume_and_restart_with_reseed():
    f_s, f_t = features()
    loss = randomised(MGDLoss(3, 4, seed=2))
    first = loss(f_s, f_t)
    state = copy.deepcopy(loss.state_dict())
    expected = [loss(f_s, f_t).item() for _ in range(3)]
    resumed = MGDLoss(3, 4, seed=9).double()
    resumed.load_state_dict(state)
    assert [resumed(f_s, f_t).item() for _ in range(3)] == expected and len({first.item(), *expected}) == 4
    resumed.reseed(2)
    assert torch.equal(resumed(f_s, f_t), first)


# --- Growth with the size of the feature -----------------------------------------------------------------------------

def growth(method, weight, tiles, f_s, f_t, boxes=None, prepare=lambda loss: None):
    """How much larger the one term is when the features are tiled (channels, rows, columns) times."""
    values = []
    for repeat in ((1, 1, 1), tiles):
        s, t = f_s.detach().repeat(1, *repeat), f_t.repeat(1, *repeat)
        loss = method(s.shape[1], t.shape[1], **{w: float(w == weight) for w in method.WEIGHT_EXPONENTS}).double()
        with torch.no_grad():
            prepare(loss)
        values.append(loss(s, t, boxes(*t.shape[2:]) if boxes else [torch.zeros(0, 4)] * 2, IMAGE_SHAPES).item())
    return values[1] / values[0]


def declared(method, weight, tiles):
    a, b = method.WEIGHT_EXPONENTS[weight]
    return pytest.approx(tiles[0] ** a * (tiles[1] * tiles[2]) ** b)


TILES = pytest.mark.parametrize('tiles', [(2, 1, 1), (1, 2, 1), (1, 1, 3)])


def no_generation(loss):
    for parameter in loss.generation.parameters():
        parameter.zero_()


def identity_adaptation(loss):
    for parameter in loss.parameters():
        parameter.zero_()
    torch.nn.init.dirac_(loss.adaptation_layers.weight)
    torch.nn.init.dirac_(loss.non_local_adaptation.weight)
    torch.nn.init.dirac_(loss.spatial_wise_adaptation.weight)
    torch.nn.init.eye_(loss.channel_wise_adaptation.weight)


def test_every_weight_declares_its_growth():
    for method in (AMDLoss, *LOSSES):
        loss = method(3, 4)
        assert method.WEIGHT_EXPONENTS and all(isinstance(getattr(loss, w), float) for w in method.WEIGHT_EXPONENTS)


@TILES
@pytest.mark.parametrize('method, weight, prepare', [
    (FitNetLoss, 'alpha', lambda loss: None), (MGDLoss, 'alpha_mgd', no_generation),
    *((FKDLoss, weight, identity_adaptation) for weight in FKDLoss.WEIGHT_EXPONENTS),
    (FGDLoss, 'beta_fgd', lambda loss: None), (FGDLoss, 'lambda_fgd', lambda loss: None),
], ids=lambda x: x if isinstance(x, str) else None)
def test_terms_grow_as_declared(method, weight, prepare, tiles):
    f_s, f_t = features(c_s=4)
    assert growth(method, weight, tiles, f_s, f_t, prepare=prepare) == declared(method, weight, tiles)


@TILES
def test_foreground_grows_as_declared(tiles):
    f_s, f_t = features(c_s=4)

    def up_to_the_last_cell(h, w):          # without the border that would count cells outside the map
        return [torch.tensor([[0, 0, width * (w - 1) / w - 0.01, height * (h - 1) / h - 0.01]], dtype=F64)
                for height, width in IMAGE_SHAPES]
    assert growth(FGDLoss, 'alpha_fgd', tiles, f_s, f_t, up_to_the_last_cell) == declared(FGDLoss, 'alpha_fgd', tiles)


@TILES
def test_attention_term_grows_as_declared_in_its_spatial_part(tiles):
    _, f_t = features(c_s=4)                # the student shows the same elsewhere: equal channel means
    assert growth(FGDLoss, 'gamma_fgd', tiles, f_t.flip(3), f_t) == declared(FGDLoss, 'gamma_fgd', tiles)


def test_attention_term_grows_with_channels_in_its_channel_part():
    _, f_t = features(c_s=4)                # the student shows the same in other channels: equal spatial means
    assert growth(FGDLoss, 'gamma_fgd', (2, 1, 1), f_t.flip(1), f_t) == pytest.approx(2)
    assert growth(FGDLoss, 'gamma_fgd', (1, 2, 1), f_t.flip(1), f_t) == pytest.approx(1)


# --- Published code and checkpoints ----------------------------------------------------------------------------------

PUBLISHED = {
    'mgd': (MGDLoss, {'align.weight': (256, 128, 1, 1), 'align.bias': (256,),
                      'generation.0.weight': (256, 256, 3, 3), 'generation.0.bias': (256,),
                      'generation.2.weight': (256, 256, 3, 3), 'generation.2.bias': (256,)}),
    'fgd': (FGDLoss, {'align.weight': (256, 128, 1, 1), 'align.bias': (256,),
                      **{f'conv_mask_{s}.{k}': v for s in 'st' for k, v in (
                          ('weight', (1, 256, 1, 1)), ('bias', (1,)))},
                      **{f'channel_add_conv_{s}.{k}': v for s in 'st' for k, v in (
                          ('0.weight', (128, 256, 1, 1)), ('0.bias', (128,)), ('1.weight', (128, 1, 1)),
                          ('1.bias', (128, 1, 1)), ('3.weight', (256, 128, 1, 1)), ('3.bias', (256,)))}}),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_checkpoints_load_strictly(name):
    method, shapes = PUBLISHED[name]
    state = {key: torch.rand(shape) for key, shape in shapes.items()}
    loss = method(128, 256)
    assert loss.load_state_dict(state, strict=True) == ([], [])
    assert all(torch.equal(loss.state_dict()[key], value) for key, value in state.items())
    without_align = {key: value for key, value in state.items() if not key.startswith('align')}
    assert method(256, 256).load_state_dict(without_align, strict=True) == ([], [])


GOLDEN = np.load(pathlib.Path(__file__).parent / 'goldens' / 'losses.npz')
ABOUT = json.loads(str(GOLDEN['about']))


def golden(case, kind):
    """Tensors below case/kind/ by public name, in float64 (boxes in float32, in the order of the images)."""
    prefix = f'{case}/{kind}/'
    found = {key.removeprefix(prefix): torch.from_numpy(GOLDEN[key]) for key in GOLDEN.files if key.startswith(prefix)}
    return found if kind == 'boxes' else {key: value.double() for key, value in found.items()}


def own_name(public):
    """mmrazor keeps the FBKD parameters in two connectors and wraps convolutions and pools; here one module has all."""
    name = re.sub(r'^(student|teacher)\.', '', public)
    return re.sub(r'non_local\.(g|phi|theta|conv_out)(?:\.0)*(?:\.(?=conv|bn))?(conv|bn)', lambda m: (
        'non_local.bn' if m[2] == 'bn' else f'non_local.{m[1]}'), name)


def golden_loss(case, facts):
    if case.startswith(('fgd', 'mgd')):
        return {'f': FGDLoss, 'm': MGDLoss}[case[0]](**{k: v for k, v in facts.items() if k != 'loss'})
    return FKDLoss(facts['channels'], facts['channels'], nonlocal_reduction=facts['reduction'],
                   nonlocal_pool=2 * facts['maxpool_stride'])


@pytest.mark.parametrize('case', ABOUT['cases'])
def test_values_and_gradients_of_the_public_code(case):
    facts = ABOUT['cases'][case]
    loss = golden_loss(case, facts).double()
    state = {own_name(k): v for kind in ('param', 'buffer') for k, v in golden(case, kind).items()}
    missing, unexpected = loss.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith('num_batches_tracked') for key in missing)
    f_s = torch.from_numpy(GOLDEN[f'{case}/f_s']).double().requires_grad_()
    f_t = torch.from_numpy(GOLDEN[f'{case}/f_t']).double()
    value = loss(f_s, f_t, list(golden(case, 'boxes').values()) or None, ABOUT['image_shapes'])
    value.backward()

    assert_close(value.detach(), GOLDEN[f'{case}/loss'].item())
    assert_close(f_s.grad, torch.from_numpy(GOLDEN[f'{case}/grad_f_s']))
    gradients = {own_name(k): v for k, v in golden(case, 'grad').items()}
    assert gradients.keys() == dict(loss.named_parameters()).keys()
    # A bias before a softmax has no gradient but rounding: 1e-15 of the largest one, hence the floor.
    floor = 1e-6 * max(g.abs().max() for g in gradients.values())
    for name, parameter in loss.named_parameters():
        assert_close(parameter.grad, gradients[name], floor=floor)


def test_goldens_cover_what_they_should():
    counts = [len(boxes) for case in ABOUT['cases'] for boxes in golden(case, 'boxes').values()]
    assert max(counts) == 80 and min(counts) == 0
    assert {case.split('_')[0] for case in ABOUT['cases']} == {'fgd', 'mgd', 'fbkd'}
