"""CWD (amdlib.methods.cwd): by hand, against loops over channels, and what it does not see."""
from __future__ import annotations

import itertools
import re

import pytest
import torch

from amdlib.methods.cwd import CWDLoss

from .oracle import (
    LN3,
    TILES,
    assert_close,
    assert_mean_of_images,
    assert_same_value_and_gradients,
    call,
    conv1x1,
    declared,
    features,
    growth,
    randomised,
)


def test_cwd_by_hand():
    """Softmax of (ln 3, 0) is (3/4, 1/4): KL to (1/2, 1/2) is 3/4 ln(3/2) + 1/4 ln(1/2) = 3/4 ln 3 - ln 2."""
    f_t, f_s = torch.tensor([[[[LN3, 0.]]]]), torch.zeros(1, 1, 1, 2)
    divergence = 0.75 * LN3 - torch.tensor(2.).log().item()
    assert CWDLoss(1, 1, weight=3.0)(f_s, f_t).item() == pytest.approx(3 * divergence)
    assert CWDLoss(1, 1, weight=3.0, tau=2.0)(f_s, 2 * f_t).item() == pytest.approx(3 * 4 * divergence)
    assert CWDLoss(2, 2, weight=3.0)(f_s.repeat(5, 2, 1, 1), f_t.repeat(5, 2, 1, 1)).item() == pytest.approx(
        3 * divergence)                                     # a mean over channels and images


@pytest.mark.parametrize('c_s', [3, 4])
def test_cwd_against_loops(c_s):
    f_s, f_t = features(c_s=c_s)
    loss = randomised(CWDLoss(c_s, 4, weight=0.3, tau=0.7))
    p = dict(loss.named_parameters())
    aligned = conv1x1(f_s, p, 'align') if p else f_s
    expected = 0
    for b, k in itertools.product(range(2), range(4)):
        t, s = (torch.exp(f[b, k] / 0.7) / torch.exp(f[b, k] / 0.7).sum() for f in (f_t, aligned))
        expected = expected + sum(t[i, j] * torch.log(t[i, j] / s[i, j]) for i in range(6) for j in range(10))
    assert_same_value_and_gradients(call(loss, f_s, f_t), 0.3 * 0.49 / 8 * expected, f_s, loss)


def test_equal_maps_cost_nothing_and_different_ones_something():
    f_s, f_t = features(c_s=4)
    loss = CWDLoss(4, 4).double()
    assert loss(f_t, f_t).item() == 0
    assert loss(f_s, f_t) > 0


def test_a_constant_of_a_channel_and_the_order_of_positions_change_nothing():
    f_s, f_t = features(c_s=4)
    loss, places = CWDLoss(4, 4).double(), torch.randperm(60)
    plain = loss(f_s, f_t).detach()
    shift = torch.randn(1, 4, 1, 1, dtype=torch.float64)
    assert_close(loss(f_s + shift, f_t - 2 * shift).detach(), plain)
    moved = [f.flatten(2)[..., places].view_as(f) for f in (f_s, f_t)]
    assert_close(loss(*moved).detach(), plain)


def test_it_is_not_blind_to_scale():
    """So the constants of the test bed act on it, as another tau."""
    f_s, f_t = features(c_s=4)
    plain, half = CWDLoss(4, 4).double()(f_s, f_t), CWDLoss(4, 4).double()(f_s / 2, f_t / 2)
    assert abs(half / plain - 1) > 0.1
    assert_close((4 * half).detach(), CWDLoss(4, 4, tau=2.0).double()(f_s, f_t).item())


def test_one_position_says_nothing():
    f_s, f_t = features(c_s=4, h=1, w=1)
    value = CWDLoss(4, 4)(f_s, f_t)
    value.backward()
    assert value.item() == 0
    assert not f_s.grad.any()


def test_batch_is_the_mean_of_its_images():
    assert_mean_of_images(randomised(CWDLoss(3, 4)))


@TILES
def test_weight_grows_as_declared(tiles):
    f_s, f_t = features(c_s=4)
    assert growth(CWDLoss, 'weight', tiles, f_s, f_t) == declared(CWDLoss, 'weight', tiles)


def test_defaults():
    loss = CWDLoss(3, 4)
    assert (loss.weight, loss.tau) == (10.0, 1.0)


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(weight=-1), 'weight=-1: expected a finite number of 0 or more'),
    (dict(tau=0), 'tau=0: expected a finite number above 0')])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CWDLoss(3, 4, **arguments)
