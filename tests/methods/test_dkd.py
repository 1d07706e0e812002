"""DKD (amdlib.methods.dkd): by hand, against sums of probabilities, and that the parts make up KD."""
from __future__ import annotations

import math

import pytest
import torch

from amdlib.methods.dkd import decoupled
from amdlib.methods.kd import softmax_kd

from .oracle import LN3
from .outputs import assert_same, drawn


def test_by_hand():
    s = torch.tensor([[0.0, 0.0, 0.0]])
    t = torch.log(torch.tensor([[2.0, 1.5, 0.5]]))      # probabilities 1/2, 3/8, 1/8
    target, others = decoupled(s, t, torch.tensor([0]))
    assert target.item() == pytest.approx(0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3)), rel=1e-6)
    assert others.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    for one, other in zip(decoupled(3 * s, 3 * t, torch.tensor([0]), 3.0), (target, others), strict=True):
        assert one.item() == pytest.approx(9 * other.item(), rel=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_against_sums(temperature):
    s, t, labels = drawn(5, 4), drawn(5, 4, seed=1).detach(), torch.tensor([3, 0, 1, 1, 2])
    target, others = 0, 0
    for i, label in enumerate(labels.tolist()):
        p_s, p_t = (torch.exp(z[i] / temperature) / torch.exp(z[i] / temperature).sum() for z in (s, t))
        target = target + p_t[label] * torch.log(p_t[label] / p_s[label])
        target = target + (1 - p_t[label]) * torch.log((1 - p_t[label]) / (1 - p_s[label]))
        for k in set(range(4)) - {label}:
            q_s, q_t = p_s[k] / (1 - p_s[label]), p_t[k] / (1 - p_t[label])
            others = others + q_t * torch.log(q_t / q_s)
    found = decoupled(s, t, labels, temperature)
    assert_same(found[0].sum(), temperature ** 2 * target, s)
    assert_same(found[1].sum(), temperature ** 2 * others, s)


def test_the_parts_make_up_kd():
    """KD = target + (1 - the teacher's probability of the target) * others: the paper's Eq. 5."""
    s, t, labels = drawn(5, 4), drawn(5, 4, seed=1), torch.tensor([3, 0, 1, 1, 2])
    target, others = decoupled(s, t, labels)
    rest = 1 - t.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(target + rest * others, softmax_kd(s, t), atol=1e-12)


def test_two_classes_have_one_other_which_teaches_nothing():
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[LN3, 0.0]])
    target, others = decoupled(s, t, torch.tensor([0]))
    assert target.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert others.item() == 0


@pytest.mark.parametrize('label', [0, 1])
def test_probabilities_of_0_are_no_infinity(label):
    """exp(-200) is 0 in float32."""
    s, t = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True), torch.tensor([[-200.0, 0.0, 200.0]])
    for one, other in ((s, t), (s, s.detach())):
        value = sum(decoupled(one, other, torch.tensor([label]))).sum()
        assert value.isfinite()
        assert torch.autograd.grad(value, s)[0].isfinite().all()


def test_equal_scores_and_a_constant_are_no_loss():
    t, labels = drawn(5, 4), torch.tensor([3, 0, 1, 1, 2])
    assert all(part.abs().max() < 1e-12 for part in decoupled(t + 5, t, labels))


def test_no_proposal_is_no_loss():
    assert [part.shape for part in decoupled(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0).long())] == [(0,)] * 2
