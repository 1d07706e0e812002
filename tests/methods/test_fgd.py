"""FGD (amdlib.methods.fgd): by hand, against loops over pixels and boxes, and against its public code."""
from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from amdlib.methods.fgd import FGDLoss, box_masks, channel_attention

from .oracle import (
    ABOUT,
    ALIGN,
    F64,
    IMAGE_SHAPES,
    LN3,
    TILES,
    assert_as_public,
    assert_close,
    assert_loads_strictly,
    assert_mean_of_images,
    assert_same_value_and_gradients,
    boxes_of,
    call,
    cases_of,
    conv1x1,
    declared,
    features,
    golden,
    growth,
    loop_attention,
    randomised,
)

# --- Masks of boxes ---------------------------------------------------------------------------------------------------

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
    assert foreground.sum() == 0
    assert torch.allclose(background, torch.full((4, 6), 1 / 24))


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
    assert torch.equal(there[0], back[0])
    assert torch.equal(there[1], back[1])


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


@pytest.mark.parametrize(('boxes', 'image_shapes', 'message'), [
    (None, [(8, 8)], 'FGD needs boxes and image_shapes'),
    ([torch.zeros(0, 4)], None, 'FGD needs boxes and image_shapes'),
    ([], [(8, 8)], 'of 1 images, got 0 and 1'), ([torch.zeros(1, 5)], [(8, 8)], 'boxes[0]'),
    ([torch.zeros(4)], [(8, 8)], 'boxes[0]'), ([torch.zeros(1, 4).long()], [(8, 8)], 'torch.int64'),
    ([torch.zeros(1, 4)], [(8, 8, 3)], 'image_shapes[0]=(8, 8, 3)'),
    ([torch.zeros(1, 4)], [(0, 8)], 'image_shapes[0]=(0, 8)'),
])
def test_fgd_boxes_are_checked(boxes, image_shapes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FGDLoss(3, 4)(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2), boxes, image_shapes)


# --- The loss ---------------------------------------------------------------------------------------------------------

def test_fgd_channel_attention_by_hand():
    feature = torch.tensor([[[[4., 0.]], [[0., 0.]]]])                         # means (2, 0)
    assert torch.allclose(channel_attention(feature, 2 / LN3), torch.tensor([[1.5, 0.5]]))


def hand_fgd(f_s, f_t, boxes, **weights):
    loss = FGDLoss(2, 2, temp=2 / LN3, **{**dict.fromkeys(FGDLoss.WEIGHT_EXPONENTS, 0), **weights})
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
    # abs(1.5 - 1) + abs(0.5 - 1) over the positions, the same over the channels
    assert hand_fgd(f_s, f_t, left, gamma_fgd=3) == pytest.approx(3)
    assert hand_fgd(f_s, f_t, left, gamma_channel_fgd=5) == pytest.approx(5)
    assert hand_fgd(f_s, f_t, left, gamma_fgd=3, gamma_channel_fgd=5) == pytest.approx(8)
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
        total = total + loss.gamma_fgd * (spatial_s - spatial_t).abs().sum()
        total = total + loss.gamma_channel_fgd * (channel_s - channel_t).abs().sum()
        total = total + loss.lambda_fgd * ((with_context(x[b], 's') - with_context(f_t[b], 't')) ** 2).sum()
    return total / n


@pytest.mark.parametrize(('c_s', 'count'), [(3, 0), (4, 2), (3, 80)])
def test_fgd_against_loops(c_s, count):
    f_s, f_t = features(c_s=c_s)
    loss = randomised(FGDLoss(c_s, 4, 0.6, alpha_fgd=0.3, beta_fgd=0.5, gamma_fgd=0.7, lambda_fgd=0.02,
                              gamma_channel_fgd=0.9))
    boxes = boxes_of(count)
    boxes[1] = boxes[1][:count // 2]
    assert_same_value_and_gradients(call(loss, f_s, f_t, boxes), loop_fgd(loss, f_s, f_t, boxes), f_s, loss)


def test_fgd_initial_values_are_the_public_ones():
    loss = FGDLoss(3, 256)
    for side in 'st':
        where, what = getattr(loss, f'conv_mask_{side}'), getattr(loss, f'channel_add_conv_{side}')
        assert where.bias.item() == 0
        assert where.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.2)
        assert what[3].weight.abs().sum() == 0
        assert what[3].bias.abs().sum() == 0
        assert what[0].weight.abs().sum() > 0
        assert what[1].weight.shape == (128, 1, 1)


# --- Growth with the size of the feature ------------------------------------------------------------------------------

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


@TILES
def test_attention_term_grows_as_declared_in_its_channel_part(tiles):
    _, f_t = features(c_s=4)                # the student shows the same in other channels: equal spatial means
    wanted = declared(FGDLoss, 'gamma_channel_fgd', tiles)
    assert growth(FGDLoss, 'gamma_channel_fgd', tiles, f_t.flip(1), f_t) == wanted


@TILES
@pytest.mark.parametrize('weight', ['beta_fgd', 'lambda_fgd'])
def test_terms_grow_as_declared(weight, tiles):
    f_s, f_t = features(c_s=4)
    assert growth(FGDLoss, weight, tiles, f_s, f_t) == declared(FGDLoss, weight, tiles)


# --- The public code -------------------------------------------------------------------------------------------------

def test_published_checkpoints_load_strictly():
    context = {'0.weight': (128, 256, 1, 1), '0.bias': (128,), '1.weight': (128, 1, 1), '1.bias': (128, 1, 1),
               '3.weight': (256, 128, 1, 1), '3.bias': (256,)}
    shapes = {**ALIGN, **{f'conv_mask_{s}.weight': (1, 256, 1, 1) for s in 'st'},
              **{f'conv_mask_{s}.bias': (1,) for s in 'st'},
              **{f'channel_add_conv_{s}.{k}': v for s in 'st' for k, v in context.items()}}
    assert_loads_strictly(FGDLoss, shapes)


@pytest.mark.parametrize('case', cases_of('fgd'))
def test_values_and_gradients_of_the_public_code(case):
    assert_as_public(case, FGDLoss(**cases_of('fgd')[case]))


def test_goldens_cover_what_they_should():
    counts = [len(boxes) for case in ABOUT['cases'] for boxes in golden(case, 'boxes').values()]
    assert (max(counts), min(counts)) == (80, 0)


# --- Defaults and errors ---------------------------------------------------------------------------------------------

def test_defaults_are_the_public_codes():
    loss = FGDLoss(3, 4)
    assert (loss.temp, loss.alpha_fgd, loss.beta_fgd, loss.gamma_fgd, loss.lambda_fgd) == (0.5, 1e-3, 5e-4, 1e-3, 5e-6)
    assert loss.gamma_channel_fgd == loss.gamma_fgd     # one weight there


def test_published_weights():
    # as the authors' configs have them, alpha, beta, gamma of both parts, lambda
    assert {pair: tuple(published.values()) for pair, published in FGDLoss.PUBLISHED.items()} == {
        'retinanet': (1e-3, 5e-4, 5e-4, 5e-4, 5e-6), 'reppoints': (1.6e-3, 8e-4, 8e-4, 8e-4, 8e-6),
        'faster_rcnn': (5e-5, 2.5e-5, 5e-5, 5e-5, 5e-7)}
    assert all(tuple(published) == tuple(FGDLoss.WEIGHT_EXPONENTS) for published in FGDLoss.PUBLISHED.values())


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(temp=0), 'temp=0'), (dict(alpha_fgd=-1), 'alpha_fgd=-1'), (dict(beta_fgd=-1), 'beta_fgd=-1'),
    (dict(gamma_fgd=-1), 'gamma_fgd=-1'), (dict(gamma_channel_fgd=-1), 'gamma_channel_fgd=-1'),
    (dict(lambda_fgd=float('nan')), 'lambda_fgd=nan'),
    (dict(teacher_channels=1), 'teacher_channels=1'),
])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FGDLoss(**dict(dict(student_channels=3, teacher_channels=4), **arguments))


def test_batch_is_the_mean_of_its_images():
    assert_mean_of_images(randomised(FGDLoss(3, 4)))
