"""The contract of methods that look at whole steps (amdlib.methods.step), and their first steps."""
from __future__ import annotations

import copy
import io
import re

import pytest
import torch

from amdlib import methods
from amdlib.methods.step import NEEDS, StepLoss, WarmUp

from .oracle import step_of

LOSSES = [method for method in map(methods.find_method, methods.names()) if methods.looks_at_steps(method)]
STEP = step_of([torch.ones(1, 2, 1, 1)], [torch.ones(1, 2, 1, 1)])


class Own(StepLoss):
    NEEDS = frozenset({'anchors', 'proposals', 'boxes'})

    def __init__(self, channels=((2, 2),), terms=None):
        super().__init__(channels)
        self.terms = terms

    def weighted_losses(self, step):
        return self.terms


@pytest.mark.parametrize('method', LOSSES)
def test_every_weight_declares_its_growth_and_published_options_are_taken(method):
    loss = method([(3, 4), (3, 4)])
    assert method.WEIGHT_EXPONENTS
    assert all(isinstance(getattr(loss, weight), float) for weight in method.WEIGHT_EXPONENTS)
    for published in method.PUBLISHED.values():
        loss = method([(3, 4)], **published)
        assert all(getattr(loss, name) == value for name, value in published.items() if hasattr(loss, name))


@pytest.mark.parametrize('channels', [[], [(3,)], [(3, 4, 5)], [(0, 4)], [(3, 4.0)]])
def test_channels_are_pairs_of_every_level(channels):
    with pytest.raises(ValueError, match='channels'):
        Own(channels)


@pytest.mark.parametrize('terms', [None, {}, torch.zeros(()), {'a': 1.0}, {'a': torch.zeros(1)}])
def test_terms_that_are_none_are_refused(terms):
    with pytest.raises(ValueError, match=re.escape('Own: expected 0-d tensors by name, got')):
        Own(terms=terms)(STEP)


def test_it_is_computed_outside_of_autocast():
    class Product(Own):
        def weighted_losses(self, step):
            return {'all': (step.f_s[0].flatten(1) @ step.f_t[0].flatten(1).T).sum()}
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert Product()(STEP)['all'].dtype == torch.float32


def test_what_a_pair_lacks_is_said():
    everything = set(NEEDS)
    assert Own.cannot(everything, everything) == ''
    assert Own.cannot(everything, everything - {'anchors'}) == ''       # the student's are looked at on both sides
    assert Own.cannot(everything - {'anchors'}, everything) == (
        'needs a box of known size at every position: the student has none')
    assert Own.cannot(everything, everything - {'proposals'}) == (
        'needs proposals of a first stage: the teacher has none')


def test_a_method_without_weighted_losses_is_told():
    with pytest.raises(NotImplementedError, match='StepLoss does not define weighted_losses'):
        StepLoss([(2, 2)])(STEP)


# --- The first steps --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('off', 'ramp', 'factors'), [
    (0, 0, [1, 1, 1]), (2, 0, [0, 0, 1, 1]), (0, 4, [0, .25, .5, .75, 1, 1]), (1, 2, [0, 0, .5, 1, 1])])
def test_the_factor_of_the_first_steps(off, ramp, factors):
    warm_up, waits = WarmUp(off, ramp), factors.count(0)
    found = []
    for i in range(len(factors)):
        assert warm_up.waits == max(0, waits - i)
        found.append(warm_up())
    assert found == factors


def test_only_training_counts():
    warm_up = WarmUp(1).eval()
    assert [warm_up(), warm_up()] == [0, 0]
    assert [warm_up.train()(), warm_up()] == [0, 1]


def test_a_resumed_run_goes_on_counting():
    class Late(Own):
        def __init__(self):
            super().__init__()
            self.warm_up = WarmUp(3, 4)
    late, buffer = Late(), io.BytesIO()
    assert late.waits == 4
    for _ in range(5):
        late.warm_up()
    torch.save(late.state_dict(), buffer)
    resumed = Late()
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert (resumed.waits, resumed.warm_up()) == (late.waits, copy.deepcopy(late).warm_up()) == (0, .5)
