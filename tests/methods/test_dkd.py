"""DKD (amdlib.methods.dkd): by hand, against sums of probabilities, and that the parts make up KD."""
from __future__ import annotations

import math

import pytest
import torch

from amdlib.methods.dkd import DKDLoss, decoupled, targets
from amdlib.methods.kd import softmax_kd

from .oracle import F64, LN3, assert_same_terms, step_of
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


# --- The loss of a step -----------------------------------------------------------------------------------------------

BOXES = [torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.long)]


def shown(s, t, proposals):
    return step_of([], [], has={'boxes', 'proposals'}, roi_scores=lambda side: s if side == 'student' else t,
                   proposals=proposals, boxes=BOXES, labels=LABELS)


def test_a_proposals_target_by_hand():
    proposals = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 21], [19, 0, 30, 10], [50, 50, 60, 60.]])
    assert targets(proposals, BOXES[0], LABELS[0], 3).tolist() == [2, 2, 3, 0, 3]       # IoU 1, 0.5, 0.48, 0.91, 0
    assert targets(proposals, BOXES[1], LABELS[1], 3).tolist() == [3] * 5


def test_terms_of_a_step():
    proposals = [torch.tensor([[0, 0, 9, 10], [21, 0, 30, 10.]]), torch.tensor([[0, 0, 9, 10.]])]
    s, t = drawn(3, 4), drawn(3, 4, seed=1).detach()
    found = DKDLoss([(3, 4)], alpha=0.5, beta=2.0, temperature=1.5).weighted_losses(shown(s, t, proposals))
    target, others = decoupled(s, t, torch.tensor([2, 0, 3]), 1.5)
    assert_same_terms(found, {'target': 0.5 * target.sum() / 3, 'others': 2.0 * others.sum() / 3}, [s])


def test_no_proposals_no_boxes_no_gradient_to_the_teacher():
    s, t = drawn(0, 4), drawn(0, 4)
    terms = DKDLoss([(3, 4)]).weighted_losses(shown(s, t, [torch.zeros(0, 4)] * 2))
    assert [term.item() for term in terms.values()] == [0, 0]
    s, t = drawn(2, 2), drawn(2, 2, seed=1)                 # one class and the background
    step = shown(s, t, [torch.zeros(0, 4), torch.tensor([[0, 0, 9, 9], [1, 1, 8, 8]], dtype=F64)])
    sum(DKDLoss([(3, 4)]).weighted_losses(step).values()).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0


def test_defaults_are_the_published_ones():
    loss = DKDLoss([(3, 4)])
    assert (loss.alpha, loss.beta, loss.temperature) == (1.0, 0.25, 1.0)
