"""FitNet (amdlib.methods.fitnet): by hand and against loops over pixels."""
from __future__ import annotations

import itertools
import re

import pytest
import torch

from amdlib.methods.fitnet import FitNetLoss

from .oracle import (
    TILES,
    assert_mean_of_images,
    assert_same_value_and_gradients,
    call,
    conv1x1,
    declared,
    features,
    growth,
    randomised,
)


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


def test_batch_is_the_mean_of_its_images():
    assert_mean_of_images(randomised(FitNetLoss(3, 4)))


@TILES
def test_alpha_grows_as_declared(tiles):
    f_s, f_t = features(c_s=4)
    assert growth(FitNetLoss, 'alpha', tiles, f_s, f_t) == declared(FitNetLoss, 'alpha', tiles)


def test_default():
    assert FitNetLoss(3, 4).alpha == 2e-5


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(alpha=-1), 'alpha=-1: expected a finite number of 0 or more'),
    (dict(student_channels=0), 'student_channels=0'),
])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FitNetLoss(**dict(dict(student_channels=3, teacher_channels=4), **arguments))
