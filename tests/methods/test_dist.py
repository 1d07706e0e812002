"""DIST (amdlib.methods.dist): by hand, against sums, and what a correlation does not see."""
from __future__ import annotations

import math

import pytest
import torch

from amdlib.methods.dist import DISTLoss, pearson, relations

from .oracle import F64, assert_same_terms, step_of
from .outputs import assert_same, drawn, head_of, scored


def summed(x, y):
    """Pearson's r of two lists of 0-d tensors."""
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    cross = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return cross / torch.sqrt(sum((a - mean_x) ** 2 for a in x)) / torch.sqrt(sum((b - mean_y) ** 2 for b in y))


def test_by_hand():
    s = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]], dtype=F64)
    t = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 5.0]], dtype=F64)
    over_classes, over_samples = relations(s, t)
    # rows: r = 1, and of (1, 0, -1) with (-2, -1, 3): -5 / sqrt(2 * 14)
    assert over_classes.item() == pytest.approx((0 + 1 + 5 / math.sqrt(28)) / 2)
    # columns: the teacher is constant in the first two (r = 0); in the third the student falls and the teacher rises
    assert over_samples.item() == pytest.approx((1 + 1 + 2) / 3)


def test_against_sums():
    s, t = drawn(6, 4), drawn(6, 4, seed=1).detach()
    over_classes, over_samples = relations(s.sigmoid(), t.sigmoid())
    p_s, p_t = 1 / (1 + torch.exp(-s)), 1 / (1 + torch.exp(-t))
    assert_same(over_classes, sum(1 - summed(list(p_s[i]), list(p_t[i])) for i in range(6)) / 6, s)
    assert_same(over_samples, sum(1 - summed(list(p_s[:, k]), list(p_t[:, k])) for k in range(4)) / 4, s)


def test_scale_and_shift_are_not_seen():
    s, t = drawn(6, 4), drawn(6, 4, seed=1)
    for one, other in zip(relations(s, t), relations(3 * s + 2, 0.5 * t - 1), strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-12)
    assert all(value.abs() < 1e-12 for value in relations(t, 5 * t + 1))
    assert all(value.item() == pytest.approx(2) for value in relations(-t, t))


@pytest.mark.parametrize(('n', 'classes'), [(0, 4), (1, 4), (6, 1), (1, 1)])
def test_a_relation_needs_two(n, classes):
    s, t = drawn(n, classes), drawn(n, classes, seed=1).detach()
    over_classes, over_samples = relations(s.sigmoid(), t.sigmoid())
    assert (over_classes == 0) == (classes == 1 or n == 0)
    assert (over_samples == 0) == (n < 2)
    gradient, = torch.autograd.grad(over_classes + over_samples, s)
    assert gradient.isfinite().all()


def test_constant_scores_have_r_0_and_finite_gradients():
    s, t = torch.full((3, 4), 0.5, dtype=F64, requires_grad=True), drawn(3, 4).detach()
    assert pearson(s, t, dim=1).tolist() == [0, 0, 0]
    gradient, = torch.autograd.grad(sum(relations(s, t)), s)
    assert gradient.isfinite().all()


def test_small_probabilities_correlate_as_well():
    """Sigmoid scores of the background are of 1e-4 and less, also in float32."""
    s, t = drawn(6, 4).float(), drawn(6, 4, seed=1).float()
    for one, other in zip(relations(1e-5 * s.exp(), 1e-5 * t.exp()), relations(s.exp(), t.exp()), strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-4)


@pytest.mark.parametrize('proposals', [True, False])
def test_terms_of_a_step(proposals):
    """Of proposals with a softmax, of all anchors and images together with a sigmoid."""
    maps_s, maps_t = scored()
    s, t = drawn(6, 4), drawn(6, 4, seed=1).detach()
    if proposals:
        step = step_of([], [], has={'proposals'}, roi_scores=lambda side: s if side == 'student' else t)
        p_s, p_t, leaves = s.exp() / s.exp().sum(dim=1, keepdim=True), t.exp() / t.exp().sum(dim=1, keepdim=True), [s]
    else:
        step = step_of([], [], has={'heads'}, heads_s=(maps_s,), heads_t=(maps_t,), teacher_head=head_of(3))
        p_s, p_t = (torch.cat([1 / (1 + torch.exp(-one.view(2, 2, 3, -1).transpose(2, 3).reshape(-1, 3)))
                               for one in maps]) for maps in (maps_s, maps_t))      # in another order of anchors
        leaves = maps_s
    n, classes = p_s.shape
    found = DISTLoss([(3, 4)], beta=0.5, gamma=2.0).weighted_losses(step)
    assert_same_terms(found, {
        'classes': 0.5 * sum(1 - summed(list(p_s[i]), list(p_t[i])) for i in range(n)) / n,
        'samples': 2.0 * sum(1 - summed(list(p_s[:, k]), list(p_t[:, k])) for k in range(classes)) / classes}, leaves)


def test_the_teacher_gets_no_gradient():
    s, t = drawn(6, 4), drawn(6, 4, seed=1)
    step = step_of([], [], has={'proposals'}, roi_scores=lambda side: s if side == 'student' else t)
    sum(DISTLoss([(3, 4)]).weighted_losses(step).values()).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0
