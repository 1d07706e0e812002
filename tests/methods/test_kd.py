"""KD (amdlib.methods.kd): by hand, against sums of logarithms, and what it must not depend on."""
from __future__ import annotations

import math

import pytest
import torch

from amdlib.methods.kd import per_anchor, sigmoid_kd, softmax_kd

from .oracle import F64, LN3
from .outputs import assert_same, drawn


def test_sigmoid_by_hand():
    # teacher 3/4, student 1/2: -(3/4 ln 1/2 + 1/4 ln 1/2)
    s, t = torch.tensor([[0.0]]), torch.tensor([[LN3]])
    assert sigmoid_kd(s, t).item() == pytest.approx(math.log(2))
    assert sigmoid_kd(2 * s, 2 * t, temperature=2.0).item() == pytest.approx(4 * math.log(2))
    # the teacher's own score leaves its entropy
    assert sigmoid_kd(t, t).item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_softmax_by_hand():
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[LN3, 0.0]])
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert softmax_kd(s, t).item() == pytest.approx(by_hand)
    assert softmax_kd(3 * s, 3 * t, temperature=3.0).item() == pytest.approx(9 * by_hand)


@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_both_against_sums(temperature):
    s, t = drawn(5, 4), drawn(5, 4, seed=1, scale=3).detach()
    p_s, p_t = (1 / (1 + torch.exp(-z / temperature)) for z in (s, t))
    summed = temperature ** 2 * sum(-p_t[:, k] * torch.log(p_s[:, k]) - (1 - p_t[:, k]) * torch.log(1 - p_s[:, k])
                                    for k in range(4))
    assert_same(sigmoid_kd(s, t, temperature).sum(), summed.sum(), s)
    p_s, p_t = (torch.exp(z / temperature) / torch.exp(z / temperature).sum(dim=1, keepdim=True) for z in (s, t))
    summed = temperature ** 2 * sum(p_t[:, k] * torch.log(p_t[:, k] / p_s[:, k]) for k in range(4))
    assert_same(softmax_kd(s, t, temperature).sum(), summed.sum(), s)


def test_equal_scores_have_no_gradient_and_softmax_no_loss():
    t = drawn(5, 4)
    for kd in (sigmoid_kd, softmax_kd):
        s = t.detach().clone().requires_grad_()
        value = kd(s, t.detach()).sum()
        assert torch.autograd.grad(value, s)[0].abs().max() < 1e-15
    assert softmax_kd(t, t).abs().max() < 1e-15


def test_softmax_is_blind_to_a_constant_and_one_class_teaches_nothing():
    s, t = drawn(5, 4), drawn(5, 4, seed=1)
    shifted = softmax_kd(s + 7, t - 3)
    assert torch.allclose(shifted, softmax_kd(s, t), atol=1e-12)
    assert softmax_kd(s[:, :1], t[:, :1]).abs().max() == 0
    assert sigmoid_kd(s[:, :1], t[:, :1]).min() > 0


def test_scores_far_out_stay_finite():
    s, t = torch.tensor([[-300.0, 300.0]], requires_grad=True), torch.tensor([[300.0, -300.0]])
    for kd in (sigmoid_kd, softmax_kd):
        value = kd(s, t).sum()
        assert value.isfinite()
        assert torch.autograd.grad(value, s)[0].isfinite().all()


def test_no_sample_is_no_loss():
    assert softmax_kd(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_rows_are_in_the_order_of_the_anchors():
    """mmdet's: by row, by column, by anchor of the cell; a map's channels are anchors times classes."""
    n, a, k, sizes = 2, 3, 4, [(2, 3), (1, 2)]
    maps = [torch.arange(n * a * k * h * w, dtype=F64).view(n, a * k, h, w) for h, w in sizes]
    rows = per_anchor(maps, k)
    assert rows.shape == (2, 18 + 6, 4)
    place = 0
    for one, (h, w) in zip(maps, sizes, strict=True):
        for i in range(h):
            for j in range(w):
                for anchor in range(a):
                    assert torch.equal(rows[:, place], one[:, anchor * k:(anchor + 1) * k, i, j])
                    place += 1
