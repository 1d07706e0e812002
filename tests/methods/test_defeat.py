"""DeFeat (amdlib.methods.defeat): by hand, against loops over pixels, images without one of the kinds."""
from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from amdlib.methods.defeat import DeFeatLoss

from .oracle import (
    IMAGE_SHAPES,
    TILES,
    assert_close,
    assert_mean_of_images,
    assert_same_value_and_gradients,
    boxes_of,
    call,
    conv1x1,
    declared,
    features,
    growth,
    randomised,
)


def test_defeat_by_hand():
    """One of three positions in the box, errors 1, 4 and 9: 0.5 * 4 / 2 + 3 * (1 + 9) / 4; the box covers columns
    floor(4 / 4) to ceil(4 / 4) of cells of 4 px."""
    f_s, f_t = torch.zeros(1, 1, 1, 3), torch.tensor([[[[1., 2., 3.]]]])
    loss = DeFeatLoss(1, 1, alpha=0.5, beta=3.0)
    value = loss(f_s, f_t, [torch.tensor([[4., 0., 4., 0.]])], [(4, 12)])
    assert value.item() == pytest.approx(0.5 * 4 / 2 + 3 * (1 + 9) / 4)


@pytest.mark.parametrize('c_s', [3, 4])
def test_defeat_against_loops(c_s):
    f_s, f_t = features(c_s=c_s)
    loss = randomised(DeFeatLoss(c_s, 4, alpha=0.3, beta=0.7))
    p, boxes = dict(loss.named_parameters()), boxes_of(2)
    aligned = conv1x1(f_s, p, 'align') if p else f_s
    expected = 0
    for b, (height, width) in enumerate(IMAGE_SHAPES):
        inside = {(i, j) for x1, y1, x2, y2 in boxes[b].tolist() for i, j in itertools.product(range(6), range(10))
                  if math.floor(x1 / width * 10) <= j <= math.ceil(x2 / width * 10)
                  and math.floor(y1 / height * 6) <= i <= math.ceil(y2 / height * 6)}
        outside = set(itertools.product(range(6), range(10))) - inside
        assert inside
        assert outside
        for weight, cells in ((0.3, inside), (0.7, outside)):
            expected = expected + weight / (2 * len(cells)) * sum(
                (f_t[b, k, i, j] - aligned[b, k, i, j]) ** 2 for i, j in cells for k in range(4))
    assert_same_value_and_gradients(call(loss, f_s, f_t, boxes), expected / 2, f_s, loss)


@pytest.mark.parametrize('boxes', [torch.zeros(0, 4), torch.tensor([[0., 0., 80., 48.]])])
def test_images_of_one_kind_alone(boxes):
    """Without boxes it is ground alone, under one box objects alone."""
    f_s, f_t = (one[:1] for one in features(c_s=4))
    weight = 0.7 if len(boxes) == 0 else 0.3
    value = DeFeatLoss(4, 4, alpha=0.3, beta=0.7)(f_s, f_t, [boxes], IMAGE_SHAPES[:1])
    assert_close(value.detach(), weight / 2 * (f_t - f_s).square().sum(dim=1).mean().item())


def test_batch_is_the_mean_of_its_images():
    assert_mean_of_images(randomised(DeFeatLoss(3, 4)))


@TILES
@pytest.mark.parametrize('weight', ['alpha', 'beta'])
def test_weights_grow_as_declared(weight, tiles):
    f_s, f_t = features(c_s=4)

    def whole(_h, _w):      # all inside of a box, for the weight of objects; else nothing is
        return [torch.tensor([[0., 0., width, height]]) for height, width in IMAGE_SHAPES]
    found = growth(DeFeatLoss, weight, tiles, f_s, f_t, whole if weight == 'alpha' else None)
    assert found == declared(DeFeatLoss, weight, tiles)


def test_defaults_are_means_over_256_channels():
    loss = DeFeatLoss(3, 4)
    assert (loss.alpha, loss.beta) == (1 / 256, 4 / 256)


def test_boxes_are_needed():
    with pytest.raises(ValueError, match='boxes and image_shapes'):
        DeFeatLoss(4, 4)(*features(c_s=4))


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(alpha=-1), 'alpha=-1: expected a finite number of 0 or more'),
    (dict(beta=float('nan')), 'beta=nan: expected a finite number')])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DeFeatLoss(3, 4, **arguments)
