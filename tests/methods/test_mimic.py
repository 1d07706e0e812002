"""Mimic (amdlib.methods.mimic): by hand and against sums."""
from __future__ import annotations

import itertools

import pytest
import torch

from amdlib.methods.mimic import MimicLoss, imitation

from .oracle import assert_same_terms, conv1x1, randomised, step_of
from .outputs import drawn

PROPOSALS = [torch.zeros(2, 4), torch.ones(1, 4)]


def shown(f_s, f_t):
    """A step whose pooled features these are, of the teacher's proposals and no others."""
    def pooled(side, boxes, size=7):
        assert all(one is other for one, other in zip(boxes, PROPOSALS, strict=True))
        return f_s if side == 'student' else f_t
    return step_of([], [], proposals_t=PROPOSALS, roi_features=pooled)


def test_by_hand():
    f_s, f_t = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 5.0]]]])
    assert imitation(f_s, f_t).item() == (4 + 9) / (2 * 2)
    assert MimicLoss([(1, 1)], weight=0.1).weighted_losses(shown(f_s, f_t))['feature'].item() == pytest.approx(0.325)
    assert imitation(f_t, f_t) == 0


@pytest.mark.parametrize('c_s', [2, 3])
def test_against_sums(c_s):
    f_s, f_t = drawn(3, c_s, 2, 2), drawn(3, 3, 2, 2, seed=1).detach()
    loss = randomised(MimicLoss([(c_s, 3)] * 2, weight=0.3))
    p = dict(loss.named_parameters())
    assert bool(p) == (c_s != 3)
    aligned = conv1x1(f_s, p, 'align') if p else f_s
    total = sum((f_t[m, c, i, j] - aligned[m, c, i, j]) ** 2
                for m, c, i, j in itertools.product(range(3), range(3), range(2), range(2)))
    assert_same_terms(loss.weighted_losses(shown(f_s, f_t)), {'feature': 0.3 * total / (2 * 36)}, [f_s, *p.values()])


def test_no_proposals_and_no_gradient_to_the_teacher():
    f_s, f_t = drawn(0, 3, 7, 7), drawn(0, 3, 7, 7)
    assert MimicLoss([(3, 3)]).weighted_losses(shown(f_s, f_t))['feature'] == 0
    f_s, f_t = drawn(3, 3, 1, 1), drawn(3, 3, 1, 1, seed=1)
    MimicLoss([(3, 3)]).weighted_losses(shown(f_s, f_t))['feature'].backward()
    assert f_t.grad is None
    assert torch.allclose(f_s.grad, (f_s - f_t).detach() / 9)


def test_levels_of_other_channels_are_refused():
    with pytest.raises(ValueError, match='expected the same of all levels'):
        MimicLoss([(3, 4), (4, 4)])
