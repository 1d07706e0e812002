"""KD (amdlib.methods.kd): by hand, against sums of logarithms, and what it must not depend on."""
from __future__ import annotations

import itertools
import math

import pytest
import torch

from amdlib.methods.dist import DISTLoss
from amdlib.methods.kd import KDLoss, per_anchor, sigmoid_kd, softmax_kd

from .oracle import F64, LN3, assert_same_terms, step_of
from .outputs import assert_same, drawn, head_of, scored


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


# --- The loss of a step -----------------------------------------------------------------------------------------------

CHANNELS = [(3, 4)]


def of_anchors(maps_s, maps_t, classes=3):
    return step_of([], [], has={'heads'}, heads_s=(maps_s,), heads_t=(maps_t,), teacher_head=head_of(classes))


def of_proposals(s, t):
    return step_of([], [], has={'heads', 'proposals'}, roi_scores=lambda side: s if side == 'student' else t)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_anchors_against_loops(temperature):
    maps_s, maps_t = scored()
    total = objects = 0
    for s, t in zip(maps_s, maps_t, strict=True):
        for n, i, j, a in itertools.product(range(2), range(s.shape[2]), range(s.shape[3]), range(2)):
            z_s, z_t = (z[n, 3 * a:3 * a + 3, i, j] for z in (s, t))
            p_s, p_t = (1 / (1 + torch.exp(-z / temperature)) for z in (z_s, z_t))
            total = total - temperature ** 2 * (p_t * torch.log(p_s) + (1 - p_t) * torch.log(1 - p_s)).sum()
            objects = objects + max(1 / (1 + math.exp(-z)) for z in z_t.tolist())
    found = KDLoss(CHANNELS, weight=0.3, temperature=temperature).weighted_losses(of_anchors(maps_s, maps_t))
    assert_same_terms(found, {'score': 0.3 * total / objects}, maps_s)


def test_proposals_are_a_mean():
    s, t = drawn(5, 4), drawn(5, 4, seed=1).detach()
    found = KDLoss(CHANNELS, weight=0.3, temperature=2.0).weighted_losses(of_proposals(s, t))
    assert_same_terms(found, {'score': 0.3 * sum(softmax_kd(s[i], t[i], 2.0) for i in range(5)) / 5}, [s])


def test_the_background_does_not_dilute_and_the_batch_is_a_mean():
    maps_s, maps_t = scored()
    loss = KDLoss(CHANNELS)
    alone = loss.weighted_losses(of_anchors(maps_s, maps_t))['score']
    twice = loss.weighted_losses(of_anchors([torch.cat([m, m]) for m in maps_s], [torch.cat([m, m]) for m in maps_t]))
    assert twice['score'].item() == pytest.approx(alone.item())
    empty = [torch.full_like(maps_s[0], -40.0)]
    more = loss.weighted_losses(of_anchors(maps_s + empty, maps_t + empty))['score']
    assert more.item() == pytest.approx(alone.item())


def test_nothing_to_score_is_no_loss_and_the_teacher_gets_no_gradient():
    s, t = drawn(0, 4), drawn(0, 4)
    assert KDLoss(CHANNELS).weighted_losses(of_proposals(s, t))['score'] == 0
    (s, t), (maps_s, maps_t) = (drawn(5, 4), drawn(5, 4)), scored(classes=1)
    for one in maps_t:
        one.requires_grad_()
    for step, of_teacher in ((of_proposals(s, t), [t]), (of_anchors(maps_s, maps_t, classes=1), maps_t)):
        KDLoss(CHANNELS).weighted_losses(step)['score'].backward()
        assert all(one.grad is None for one in of_teacher)
    assert all(one.grad.abs().sum() > 0 for one in maps_s)


def test_other_classes_are_refused():
    """Also where torch would broadcast one class over all."""
    with pytest.raises(ValueError, match=r'the same classes .* \(5, 4\) and \(5, 1\)'):
        KDLoss(CHANNELS).weighted_losses(of_proposals(drawn(5, 4), drawn(5, 1)))


@pytest.mark.parametrize(('student', 'teacher', 'why'), [
    ({'heads', 'sigmoid'}, {'heads', 'sigmoid'}, ''), ({'heads', 'proposals'}, {'heads', 'proposals'}, ''),
    ({'heads', 'sigmoid'}, {'heads', 'sigmoid', 'proposals'}, 'one scores anchors, the other proposals'),
    ({'heads', 'sigmoid'}, {'heads'}, 'a score of its own: the teacher has none'),
    (set(), {'heads', 'sigmoid'}, 'the student has none')])
def test_what_cannot_be_compared(student, teacher, why):
    assert why in KDLoss.cannot(student, teacher)
    assert bool(KDLoss.cannot(student, teacher)) == bool(why)
    assert DISTLoss.cannot(student, teacher) == KDLoss.cannot(student, teacher)


@pytest.mark.parametrize(('arguments', 'message'), [(dict(weight=-1), 'weight=-1'),
                                                    (dict(temperature=0), 'temperature=0: expected a finite number')])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        KDLoss(CHANNELS, **arguments)
