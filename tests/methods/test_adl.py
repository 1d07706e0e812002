"""ADL (amdlib.methods.adl): by hand, against sums of logarithms, what counts more and what it must not depend on."""
from __future__ import annotations

import itertools
import math

import pytest
import torch

from amdlib.methods.adl import ADLLoss, adaptive_kl

from .oracle import LN3, assert_same_terms, step_of
from .outputs import assert_same, drawn, head_of, scored


def test_by_hand():
    """Teacher 3/4, student 1/2."""
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    factor = 1 - math.exp(-(kl + 1.5 * entropy))
    s, t = torch.tensor([0.0]), torch.tensor([LN3])
    assert adaptive_kl(s, t, 1.5, 1.0).item() == pytest.approx(factor * kl, rel=1e-6)
    assert adaptive_kl(s, t, 1.5, 2.0).item() == pytest.approx(factor ** 2 * kl, rel=1e-6)
    assert adaptive_kl(s, t, 0.0, 0.0).item() == pytest.approx(kl, rel=1e-6)


@pytest.mark.parametrize(('beta', 'gamma'), [(1.5, 1.0), (0.0, 2.0), (0.7, 0.5)])
def test_against_sums(beta, gamma):
    s, t = drawn(5, 4), drawn(5, 4, seed=1, scale=3).detach()
    p, q = (1 / (1 + torch.exp(-z)) for z in (s, t))
    kl = q * torch.log(q / p) + (1 - q) * torch.log((1 - q) / (1 - p))
    entropy = -q * torch.log(q) - (1 - q) * torch.log(1 - q)
    expected = (1 - torch.exp(-(kl + beta * entropy))) ** gamma * kl
    assert_same(adaptive_kl(s, t, beta, gamma).sum(), expected.sum(), s)


def test_equal_scores_are_no_loss_and_have_no_gradient():
    for gamma in (0.0, 0.5, 1.0, 2.0):
        t = drawn(5, 4, scale=5).detach()
        s = t.clone().requires_grad_()
        value = adaptive_kl(s, t, 1.5, gamma).sum()
        assert value == 0
        assert torch.autograd.grad(value, s)[0].abs().max() < 1e-12


def test_exchanged_classes_are_the_same():
    """A sigmoid tells two apart, alike on both sides."""
    s, t = drawn(5, 4), drawn(5, 4, seed=1)
    assert torch.allclose(adaptive_kl(-s, -t, 1.5, 1.0), adaptive_kl(s, t, 1.5, 1.0), atol=1e-12)


def test_what_is_sure_on_both_sides_counts_less():
    s, t = torch.tensor([-7.0, -1.0]), torch.tensor([-8.0, -2.0])
    sure, unsure = adaptive_kl(s, t, 1.5, 1.0) / adaptive_kl(s, t, 0.0, 0.0)
    assert sure < 0.02
    assert unsure > 0.2


def test_scores_far_out_stay_finite():
    s, t = torch.tensor([-300.0, 300.0, 0.0, 300.0], requires_grad=True), torch.tensor([300.0, -300.0, 300.0, 300.0])
    for gamma in (0.5, 1.0):
        value = adaptive_kl(s, t, 1.5, gamma).sum()
        assert value.isfinite()
        assert torch.autograd.grad(value, s)[0].isfinite().all()


# --- The loss of a step -----------------------------------------------------------------------------------------------

def shown(maps_s, maps_t, classes=3):
    return step_of([], [], has={'heads'}, heads_s=(maps_s,), heads_t=(maps_t,), teacher_head=head_of(classes))


def test_anchors_against_loops():
    maps_s, maps_t = scored()
    total = objects = 0
    for s, t in zip(maps_s, maps_t, strict=True):
        for n, i, j, a in itertools.product(range(2), range(s.shape[2]), range(s.shape[3]), range(6)):
            total = total + adaptive_kl(s[n, a, i, j], t[n, a, i, j], 0.9, 1.2)
            objects = objects + (1 / (1 + math.exp(-t[n, a, i, j]))) ** 1.4
    loss = ADLLoss([(3, 4)], weight=0.3, beta=0.9, gamma=1.2, theta=1.4)
    assert_same_terms(loss.weighted_losses(shown(maps_s, maps_t)), {'score': 0.3 * total / objects}, maps_s)


def test_the_background_does_not_dilute_and_the_batch_is_a_mean():
    (maps_s, maps_t), loss = scored(), ADLLoss([(3, 4)])
    alone = loss.weighted_losses(shown(maps_s, maps_t))['score']
    twice = loss.weighted_losses(shown([torch.cat([m, m]) for m in maps_s], [torch.cat([m, m]) for m in maps_t]))
    assert twice['score'].item() == pytest.approx(alone.item())
    empty = [torch.full_like(maps_s[0], -40.0)]
    more = loss.weighted_losses(shown(maps_s + empty, maps_t + empty))['score']
    assert more.item() == pytest.approx(alone.item())


def test_one_class_one_position_and_no_gradient_to_the_teacher():
    maps_s, maps_t = scored(classes=1, anchors=1, sizes=((1, 1),))
    maps_t[0].requires_grad_()
    ADLLoss([(3, 4)]).weighted_losses(shown(maps_s, maps_t, classes=1))['score'].backward()
    assert maps_t[0].grad is None
    assert maps_s[0].grad.abs().sum() > 0


def test_other_classes_are_refused():
    (maps_s, _), (_, maps_t) = scored(), scored(classes=1)
    with pytest.raises(ValueError, match='the same classes'):
        ADLLoss([(3, 4)]).weighted_losses(shown(maps_s, maps_t, classes=1))


def test_defaults_are_the_published_ones():
    loss = ADLLoss([(3, 4)])
    assert (loss.beta, loss.gamma, loss.theta) == (1.5, 1.0, 1.8)


@pytest.mark.parametrize(('offered', 'why'), [
    ({'heads', 'sigmoid'}, ''), ({'heads', 'sigmoid', 'proposals'}, "the student's first stage does not"),
    ({'heads'}, 'a score of its own')])
def test_what_it_needs(offered, why):
    assert why in ADLLoss.cannot(offered, offered)
    assert bool(ADLLoss.cannot(offered, offered)) == bool(why)


@pytest.mark.parametrize(('arguments', 'message'), [(dict(weight=-1), 'weight=-1'), (dict(theta=0), 'theta=0')])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        ADLLoss([(3, 4)], **arguments)
