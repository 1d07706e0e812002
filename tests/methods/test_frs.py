"""FRS (amdlib.methods.frs): by hand, against loops over cells, its first steps."""
from __future__ import annotations

import itertools
import math

import pytest
import torch

from amdlib.methods.frs import FRSLoss, mean_by, richness

from .oracle import F64, LN3, assert_same_terms, features, pixel_conv3x3, randomised, step_of
from .outputs import head_of, scored

SIZES, STRIDES = ((4, 6), (2, 3), (1, 1)), (8, 16, 32)


def shown(levels=(0, 1), classes=3, sizes=SIZES, **sides):
    """A step that compares the features of some levels of a head of three."""
    maps_s, maps_t = scored(classes=classes, sizes=sizes)
    pairs = [features(h=h, w=w, seed=h, **sides) for h, w in (sizes[level] for level in levels)]
    return step_of([pair[0] for pair in pairs], [pair[1] for pair in pairs], strides=[STRIDES[i] for i in levels],
                   heads_s=(maps_s,), heads_t=(maps_t,), teacher_head=head_of(classes, STRIDES))


def settled(channels, **options):
    """A loss past its first steps, each parameter drawn anew."""
    loss = randomised(FRSLoss(channels, **options))
    loss.warm_up.steps = loss.warm_up.ramp_steps
    return loss


def test_by_hand():
    """Scores 3/4 and 1/2 of the teacher's best anchor, the student's 1/2 throughout; adapt passes 0."""
    z_t = torch.tensor([[[[LN3, 0.0]], [[-9.0, -9.0]]]])
    assert torch.allclose(richness(z_t), torch.tensor([[[0.75, 0.5]]]))
    f_t = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    step = step_of([torch.zeros(1, 2, 1, 2)], [f_t], strides=[8], heads_s=([torch.zeros_like(z_t)],), heads_t=([z_t],),
                   teacher_head=head_of(1, (8,)))
    loss = FRSLoss([(2, 2)], feature_weight=0.1, score_weight=0.5, ramp_steps=0)
    torch.nn.init.zeros_(loss.adapt[0].bias)
    terms = loss.weighted_losses(step)
    assert terms['feature'].item() == pytest.approx(0.1 * (0.75 * (1 + 9) + 0.5 * (4 + 16)) / 1.25)
    assert terms['score'].item() == pytest.approx(0.5 * 2 * math.log(2))     # two anchors, ln 2 each


@pytest.mark.parametrize('levels', [(0, 1), (1, 2), (2,)])
def test_against_loops(levels):
    step = shown(levels)
    loss = settled([(3, 4)] * len(levels), feature_weight=0.3, score_weight=0.7)
    p, feature, score = dict(loss.named_parameters()), 0, 0
    for place, level in enumerate(levels):
        s, t = step.heads_s[0][level], step.heads_t[0][level]
        adapted = pixel_conv3x3(step.f_s[place], p[f'adapt.{place}.weight'], p[f'adapt.{place}.bias'])
        error = cross = mass = 0
        for n, i, j in itertools.product(range(2), *map(range, SIZES[level])):
            best = max(1 / (1 + math.exp(-z)) for z in t[n, :, i, j].tolist())
            p_s, p_t = (1 / (1 + torch.exp(-z[n, :, i, j])) for z in (s, t))
            error = error + best * ((adapted[n, :, i, j] - step.f_t[place][n, :, i, j]) ** 2).sum()
            cross = cross - best * (p_t * torch.log(p_s) + (1 - p_t) * torch.log(1 - p_s)).sum()
            mass = mass + best
        feature, score = feature + error / mass, score + cross / mass
    assert_same_terms(loss.weighted_losses(step), {'feature': 0.3 * feature, 'score': 0.7 * score},
                      [*step.f_s, *(step.heads_s[0][level] for level in levels), *p.values()])


def test_weights_grow_as_declared():
    """feature with the channels and not with the cells; score with neither, the classes being the data's."""
    error, mask = torch.rand(2, 3, 4, 6, dtype=F64), torch.rand(2, 4, 6, dtype=F64)
    once = mean_by(mask, error)
    assert mean_by(mask.repeat(1, 2, 3), error.repeat(1, 5, 2, 3)).item() == pytest.approx(5 * once.item())
    assert mean_by(mask.repeat(3, 1, 1), error.repeat(3, 1, 1, 1)).item() == pytest.approx(once.item())
    assert FRSLoss.WEIGHT_EXPONENTS == {'feature_weight': (1, 0), 'score_weight': (0, 0)}


def test_a_flat_mask_is_the_mean_and_no_score_at_all_is_none():
    error = torch.rand(2, 3, 4, 6, dtype=F64)
    assert mean_by(torch.full((2, 4, 6), 0.01, dtype=F64), error).item() == pytest.approx(3 * error.mean().item())
    assert mean_by(torch.zeros(2, 4, 6, dtype=F64), error) == 0


def test_both_terms_rise_over_the_first_steps_and_go_on_after_a_resume():
    step = shown()
    loss = randomised(FRSLoss([(3, 4)] * 2, ramp_steps=4))
    found = [loss.weighted_losses(step) for _ in range(3)]
    resumed = FRSLoss([(3, 4)] * 2, ramp_steps=4).double()
    resumed.load_state_dict(loss.state_dict())
    found += [resumed.weighted_losses(step) for _ in range(3)]
    for name in ('feature', 'score'):
        values = [terms[name].item() for terms in found]
        assert values == pytest.approx([values[-1] * factor for factor in (0, 0.25, 0.5, 0.75, 1, 1)])
    assert FRSLoss([(3, 4)]).warm_up.ramp_steps == 500


def test_one_class_one_position_and_no_gradient_to_the_teacher():
    step = shown((2,), classes=1)
    for one in step.heads_t[0]:
        one.requires_grad_()
    loss = settled([(3, 4)])
    sum(loss.weighted_losses(step).values()).backward()
    assert all(one.grad is None for one in step.heads_t[0])
    assert all(one.grad.abs().sum() > 0 for one in (step.f_s[0], step.heads_s[0][2], *loss.parameters()))


def test_other_classes_are_refused():
    step = shown()
    step.heads_t = ([one[:, :2] for one in step.heads_t[0]],)
    with pytest.raises(ValueError, match='must score the same classes'):
        FRSLoss([(3, 4)] * 2).double().weighted_losses(step)
