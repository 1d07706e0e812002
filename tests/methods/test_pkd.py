"""PKD (amdlib.methods.pkd): by hand, as Pearson's correlation, and what it does not see."""
from __future__ import annotations

import re

import pytest
import torch

from amdlib.methods.pkd import PKDLoss

from .oracle import F64, assert_close, assert_same_terms, conv1x1, features, randomised, step_of


def levels(count, **sizes):
    """Features of both sides on so many levels."""
    pairs = [features(seed=level, **sizes) for level in range(count)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def total(loss, f_s, f_t):
    return sum(loss(step_of(f_s, f_t)).values())


def test_pkd_by_hand():
    """(1, 2, 3) and (2, 2, 5): r = sqrt(3) / 2."""
    f_s, f_t = (torch.tensor([[[row]]], dtype=F64) for row in ([1., 2., 3.], [2., 2., 5.]))
    loss = PKDLoss([(1, 1)], weight=4.0)
    assert loss(step_of([f_s], [f_t]))['fpn_0'].item() == pytest.approx(4 * (1 - 3 ** .5 / 2), rel=1e-5)
    assert loss(step_of([f_s], [-f_s]))['fpn_0'].item() == pytest.approx(2 * 4, rel=1e-5)
    assert loss(step_of([f_s], [f_s]))['fpn_0'].item() == 0


@pytest.mark.parametrize('c_s', [3, 4])
def test_pkd_against_pearsons_correlation(c_s):
    """1/2 mean((z_S - z_T)^2) = (|z_S|^2 + |z_T|^2) / 2n - z_S . z_T / n, channel by channel; the small number on the
    deviations is in it."""
    f_s, f_t = levels(2, c_s=c_s)
    loss = randomised(PKDLoss([(c_s, 4)] * 2, weight=0.3))
    p, expected = dict(loss.named_parameters()), {}
    for level, (s, t) in enumerate(zip(f_s, f_t, strict=True)):
        s = conv1x1(s, p, f'align.{level}') if p else s
        channels = []
        for k in range(4):
            a, b = s[:, k].flatten(), t[:, k].flatten()
            a, b = a - a.mean(), b - b.mean()
            n = len(a)
            sd_a, sd_b = (((x @ x) / n).sqrt() for x in (a, b))
            shrunk_a, shrunk_b = sd_a / (sd_a + 1e-6), sd_b / (sd_b + 1e-6)
            r = (a @ b) / n / (sd_a * sd_b)
            channels.append((shrunk_a ** 2 + shrunk_b ** 2) / 2 - shrunk_a * shrunk_b * r)
        expected[f'fpn_{level}'] = 0.3 * torch.stack(channels).mean()
    assert_same_terms(loss(step_of(f_s, f_t)), expected, [*f_s, *loss.parameters()])


def test_it_is_blind_to_scale_and_shift_of_a_channel():
    """So the constants of the test bed do nothing to it."""
    f_s, f_t = levels(1, c_s=4)
    loss = PKDLoss([(4, 4)]).double()
    factor, shift = torch.tensor([.5, 2., 7., 30.], dtype=F64).view(1, 4, 1, 1), torch.arange(4.).view(1, 4, 1, 1)
    plain, other = total(loss, f_s, f_t), total(loss, [factor * f_s[0] + shift], [3 * f_t[0] - shift])
    assert other.item() == pytest.approx(plain.item(), rel=1e-5)
    assert total(loss, [-f_s[0]], f_t).item() == pytest.approx(2 * 10 - plain.item(), rel=1e-5)


def test_it_depends_on_the_batch():
    """Both sides agree that one image is the brighter one: alone, each image has no say in that."""
    f_s, f_t = ([one[0] + torch.tensor([0., 5.], dtype=F64).view(2, 1, 1, 1)] for one in levels(1, c_s=4))
    loss = PKDLoss([(4, 4)]).double()
    singles = [total(loss, [f_s[0][i:i + 1]], [f_t[0][i:i + 1]]) for i in range(2)]
    assert total(loss, f_s, f_t) < 0.5 * sum(singles) / 2


def test_the_first_levels_only():
    f_s, f_t = levels(5, c_s=4)
    assert list(PKDLoss([(4, 4)] * 5).double()(step_of(f_s, f_t))) == [f'fpn_{i}' for i in range(4)]
    assert list(PKDLoss([(4, 4)] * 5, finest=2).double()(step_of(f_s, f_t))) == ['fpn_0', 'fpn_1']


@pytest.mark.parametrize('sizes', [dict(n=1, h=1, w=1), dict(n=2, h=1, w=1)])
def test_one_position_is_finite(sizes):
    f_s, f_t = levels(1, c_s=4, **sizes)
    value = total(PKDLoss([(4, 4)]).double(), f_s, f_t)
    value.backward()
    assert value.isfinite()
    assert f_s[0].grad.isfinite().all()
    assert (value == 0) == (sizes['n'] == 1)


def test_constant_channels_are_finite():
    f_s, f_t = levels(1, c_s=4)
    loss = PKDLoss([(4, 4)]).double()
    flat = torch.ones_like(f_s[0]).requires_grad_()
    value = total(loss, [flat], f_t)
    value.backward()
    assert value.item() == pytest.approx(10 / 2, rel=1e-4)
    assert flat.grad.isfinite().all()
    assert total(loss, [flat], [flat]) == 0


@pytest.mark.parametrize('tiles', [(2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 3)])
def test_its_weight_belongs_to_every_size(tiles):
    f_s, f_t = (one[0].detach() for one in levels(1, c_s=4))
    assert_close(*(total(PKDLoss([(s.shape[1],) * 2]).double(), [s], [t])
                   for s, t in ((f_s, f_t), (f_s.repeat(*tiles), f_t.repeat(*tiles)))))


def test_published_values():
    assert PKDLoss([(3, 4)]).weight == 10.0
    assert PKDLoss.PUBLISHED == {'faster_rcnn': {'weight': 6.0}}


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(weight=-1), 'weight=-1: expected a finite number of 0 or more'),
    (dict(finest=0), 'finest=0: expected an integer of 1 or more')])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PKDLoss([(3, 4)], **arguments)
