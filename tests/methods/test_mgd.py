"""MGD (amdlib.methods.mgd): by hand, against loops over pixels, and against its public code."""
from __future__ import annotations

import copy
import re

import pytest
import torch

from amdlib.methods.amd import AMDLoss
from amdlib.methods.mgd import MGDLoss

from .oracle import (
    ALIGN,
    F64,
    TILES,
    assert_as_public,
    assert_loads_strictly,
    assert_same_value_and_gradients,
    call,
    cases_of,
    conv1x1,
    declared,
    features,
    growth,
    no_generation,
    pixel_conv3x3,
    randomised,
)


def test_mgd_by_hand():
    loss = MGDLoss(1, 1, alpha_mgd=0.1, lambda_mgd=0.5, seed=0).double()
    with torch.no_grad():
        for conv, weight, bias in ((loss.generation[0], 1, 0), (loss.generation[2], 2, 1)):     # x -> 2 relu(x) + 1
            conv.weight.zero_()
            conv.weight[0, 0, 1, 1] = weight
            conv.bias.fill_(bias)
    kept = (torch.rand(2, generator=torch.Generator().manual_seed(0)) <= 0.5).tolist()
    f_gen = [2 * x * k + 1 for x, k in zip((5, 3), kept, strict=True)]
    value = loss(torch.tensor([[[[5., 3.]]]], dtype=F64), torch.tensor([[[[2., 0.]]]], dtype=F64))
    assert value.item() == pytest.approx(0.1 * ((2 - f_gen[0]) ** 2 + (0 - f_gen[1]) ** 2))


@pytest.mark.parametrize('c_s', [3, 4])
def test_mgd_against_loops(c_s):
    f_s, f_t = features(c_s=c_s)
    loss = randomised(MGDLoss(c_s, 4, alpha_mgd=0.3, lambda_mgd=0.4, seed=6))
    p = dict(loss.named_parameters())
    kept = (torch.rand((2, 1, 6, 10), generator=torch.Generator().manual_seed(6)) <= 1 - 0.4).double()
    x = (conv1x1(f_s, p, 'align') if 'align.weight' in p else f_s) * kept
    x = torch.relu(pixel_conv3x3(x, p['generation.0.weight'], p['generation.0.bias']))
    x = pixel_conv3x3(x, p['generation.2.weight'], p['generation.2.bias'])
    assert_same_value_and_gradients(call(loss, f_s, f_t), 0.3 * ((f_t - x) ** 2).sum() / 2, f_s, loss)


def test_amd_without_both_of_its_parts_is_mgd():
    f_s, f_t = features()
    mgd = randomised(MGDLoss(3, 4, seed=2))
    amd = AMDLoss(3, 4, spatial='random', channel='none').double()
    amd.load_state_dict(mgd.state_dict())               # parameters and generator
    for _ in range(2):
        assert torch.equal(amd(f_s, f_t), mgd(f_s, f_t))


def test_mgd_masks_continue_after_a_resume_and_restart_with_reseed():
    f_s, f_t = features()
    loss = randomised(MGDLoss(3, 4, seed=2))
    first = loss(f_s, f_t)
    state = copy.deepcopy(loss.state_dict())
    expected = [loss(f_s, f_t).item() for _ in range(3)]
    resumed = MGDLoss(3, 4, seed=9).double()
    resumed.load_state_dict(state)
    assert [resumed(f_s, f_t).item() for _ in range(3)] == expected
    assert len({first.item(), *expected}) == 4
    resumed.reseed(2)
    assert torch.equal(resumed(f_s, f_t), first)


@TILES
def test_alpha_grows_as_declared(tiles):
    f_s, f_t = features(c_s=4)
    assert growth(MGDLoss, 'alpha_mgd', tiles, f_s, f_t, prepare=no_generation) == declared(MGDLoss, 'alpha_mgd', tiles)


def test_published_checkpoints_load_strictly():
    assert_loads_strictly(MGDLoss, {**ALIGN, 'generation.0.weight': (256, 256, 3, 3), 'generation.0.bias': (256,),
                                    'generation.2.weight': (256, 256, 3, 3), 'generation.2.bias': (256,)})


@pytest.mark.parametrize('case', cases_of('mgd'))
def test_values_and_gradients_of_the_public_code(case):
    assert_as_public(case, MGDLoss(**cases_of('mgd')[case]))


def test_names_of_the_state():
    assert list(MGDLoss(4, 4).state_dict()) == ['random_mask._extra_state', 'generation.0.weight', 'generation.0.bias',
                                                'generation.2.weight', 'generation.2.bias']


def test_defaults_are_the_public_codes():
    loss = MGDLoss(3, 4)
    assert (loss.alpha_mgd, loss.random_mask.mask_ratio) == (2e-5, 0.65)


def test_published_weights():
    # as the authors' configs have them, alpha and lambda; AMD's are assumed to be the same
    assert {pair: tuple(published.values()) for pair, published in MGDLoss.PUBLISHED.items()} == {
        'retinanet': (2e-5, 0.65), 'reppoints': (2e-5, 0.65), 'faster_rcnn': (5e-7, 0.45)}
    assert {pair: {'alpha': published['alpha_mgd'], 'mask_ratio': published['lambda_mgd']}
            for pair, published in MGDLoss.PUBLISHED.items()} == AMDLoss.PUBLISHED


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(alpha_mgd=-1), 'alpha_mgd=-1'), (dict(lambda_mgd=-0.1), 'lambda_mgd=-0.1'), (dict(seed='a'), "seed='a'"),
])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MGDLoss(**dict(dict(student_channels=3, teacher_channels=4), **arguments))
