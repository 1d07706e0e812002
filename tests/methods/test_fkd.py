"""FKD (amdlib.methods.fkd): by hand, against loops over pixels, and against the public code (mmrazor's FBKD)."""
from __future__ import annotations

import math
import re

import pytest
import torch

from amdlib.methods.fkd import FKDLoss, NonLocalBlock

from .oracle import (
    F64,
    LN3,
    TILES,
    assert_as_public,
    assert_close,
    assert_same_value_and_gradients,
    call,
    cases_of,
    conv1x1,
    declared,
    features,
    growth,
    loop_attention,
    pixel_conv3x3,
    randomised,
)


def zeroed_fkd(**arguments):
    loss = FKDLoss(1, 1, **{**dict.fromkeys(FKDLoss.WEIGHT_EXPONENTS, 0), **arguments})
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.zero_()
    return loss.double()


def test_fkd_by_hand():
    f_s = torch.tensor([[[[0., 0.]]]], dtype=F64)
    f_t = torch.tensor([[[[2., 0.]]]], dtype=F64)
    t = 2 / LN3
    # Teacher's attention (1.5, 0.5), student's (1, 1): mean (1.25, 0.75). Error (2, 0).
    assert zeroed_fkd(feature_weight=1, spatial_temperature=t)(f_s, f_t).item() == pytest.approx(math.sqrt(4 * 1.25))
    assert zeroed_fkd(channel_weight=1)(f_s, f_t).item() == pytest.approx(1)            # mean over positions: 1
    assert zeroed_fkd(spatial_weight=1)(f_s, f_t).item() == pytest.approx(2)            # mean over channels: (2, 0)
    assert zeroed_fkd(nonlocal_weight=1)(f_s, f_t).item() == pytest.approx(2)           # the block is the identity
    assert zeroed_fkd(feature_weight=1, channel_weight=1, spatial_weight=1, nonlocal_weight=1,
                      spatial_temperature=t)(f_s, f_t).item() == pytest.approx(math.sqrt(5) + 5)


def test_fkd_non_local_by_hand():
    block = NonLocalBlock(1, reduction=1, pool=2).double().eval()
    with torch.no_grad():
        for conv, weight in ((block.theta, 2), (block.phi, 3), (block.g, 5), (block.conv_out, 1)):
            conv.weight.fill_(weight)
        block.bn.weight.fill_(1)
    x = torch.tensor([[[[1., 4., 2., 3.], [0., 1., 1., 1.]]]], dtype=F64)
    # 2x2 pools hold 4 and 3, so phi = (12, 9) and g = (20, 15); y = 2 x (12 * 20 + 9 * 15) / 2 = 375 x.
    assert_close(block(x), x + 375 * x / math.sqrt(1 + block.bn.eps))


def loop_non_local(x, p, side, pool):
    h, w = x.shape[2:]
    rows, columns = min(pool, h), min(pool, w)
    theta, phi, g = (conv1x1(x, p, f'{side}.{name}') for name in ('theta', 'phi', 'g'))
    y = torch.zeros_like(theta)
    windows = [(slice(i, i + rows), slice(j, j + columns))
               for i in range(0, h - rows + 1, rows) for j in range(0, w - columns + 1, columns)]
    for window in windows:
        phi_max, g_max = (z[(..., *window)].flatten(2).max(dim=2).values[:, :, None, None] for z in (phi, g))
        y = y + (theta * phi_max).sum(dim=1, keepdim=True) * g_max / len(windows)
    y = torch.einsum('nchw,kc->nkhw', y, p[f'{side}.conv_out.weight'][:, :, 0, 0])
    mean, variance = y.mean(dim=(0, 2, 3), keepdim=True), y.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    y = (y - mean) / (variance + 1e-5).sqrt()
    return x + y * p[f'{side}.bn.weight'][:, None, None] + p[f'{side}.bn.bias'][:, None, None]


@pytest.mark.parametrize(('c_s', 'channel_mask', 'size'), [(3, False, (6, 10)), (4, False, (3, 9)), (4, True, (6, 10))])
def test_fkd_against_loops(c_s, channel_mask, size):
    f_s, f_t = features(c_s=c_s, h=size[0], w=size[1])
    loss = randomised(FKDLoss(c_s, 4, 0.3, 0.5, 0.7, 1.1, spatial_temperature=0.4, channel_temperature=0.6,
                              channel_mask=channel_mask))
    p = dict(loss.named_parameters())
    adapted = conv1x1(f_s, p, 'adaptation_layers')
    feature = channel = 0
    for b in range(2):
        weight = ((loop_attention(f_s[b], 0.4)[0] + loop_attention(f_t[b], 0.4)[0]) / 2).detach()
        if channel_mask:
            by_channel = (loop_attention(f_s[b], 0.6)[1] + loop_attention(f_t[b], 0.6)[1]).detach() / 2
            weight = weight * by_channel[:, None, None]
        feature = feature + (weight * (f_t[b] - adapted[b]) ** 2).sum()
        pooled = f_s[b].flatten(1).mean(dim=1) @ p['channel_wise_adaptation.weight'].T
        pooled = pooled + p['channel_wise_adaptation.bias']
        channel = channel + ((f_t[b].flatten(1).mean(dim=1) - pooled) ** 2).sum()
    spatial = pixel_conv3x3(f_s.mean(dim=1, keepdim=True), p['spatial_wise_adaptation.weight'],
                            p['spatial_wise_adaptation.bias'])
    spatial = ((f_t.mean(dim=1, keepdim=True) - spatial) ** 2).sum()
    student = conv1x1(loop_non_local(f_s, p, 'student_non_local', 4), p, 'non_local_adaptation')
    non_local = ((loop_non_local(f_t, p, 'teacher_non_local', 4) - student) ** 2).sum()
    expected = 0.3 * feature ** 0.5 + 0.5 * channel ** 0.5 + 0.7 * spatial ** 0.5 + 1.1 * non_local ** 0.5
    assert_same_value_and_gradients(call(loss, f_s, f_t), expected, f_s, loss)


@pytest.mark.parametrize('weight', ['feature_weight', 'channel_weight', 'spatial_weight', 'nonlocal_weight'])
def test_fkd_batch_is_the_root_of_the_sum_of_squares(weight):
    f_s, f_t = features()
    weights = {name: float(name == weight) for name in FKDLoss.WEIGHT_EXPONENTS}
    loss = randomised(FKDLoss(3, 4, **weights)).eval()          # eval: batch norm would mix the images
    singles = [loss(f_s[i:i + 1], f_t[i:i + 1]) for i in range(2)]
    assert_close(loss(f_s, f_t), math.hypot(*(v.item() for v in singles)))


def test_fkd_attention_carries_no_gradient():
    f_s, f_t = features()
    assert not FKDLoss(3, 4).double().attention(f_s, f_t).requires_grad


def identity_adaptation(loss):
    for parameter in loss.parameters():
        parameter.zero_()
    torch.nn.init.dirac_(loss.adaptation_layers.weight)
    torch.nn.init.dirac_(loss.non_local_adaptation.weight)
    torch.nn.init.dirac_(loss.spatial_wise_adaptation.weight)
    torch.nn.init.eye_(loss.channel_wise_adaptation.weight)


@TILES
@pytest.mark.parametrize('weight', FKDLoss.WEIGHT_EXPONENTS)
def test_terms_grow_as_declared(weight, tiles):
    f_s, f_t = features(c_s=4)
    assert growth(FKDLoss, weight, tiles, f_s, f_t, prepare=identity_adaptation) == declared(FKDLoss, weight, tiles)


@pytest.mark.parametrize('weight', FKDLoss.WEIGHT_EXPONENTS)
def test_norms_over_the_batch_grow_as_declared(weight):
    """With the square root of its images, unlike a mean over them."""
    f_s, f_t = features(c_s=4)
    found = growth(FKDLoss, weight, (1, 1, 1), f_s, f_t, prepare=identity_adaptation, images=3)
    assert found == declared(FKDLoss, weight, (1, 1, 1), images=3) == pytest.approx(3 ** .5)


def own_name(public):
    """mmrazor keeps the parameters in two connectors and wraps convolutions and pools; here one module has all."""
    name = re.sub(r'^(student|teacher)\.', '', public)
    return re.sub(r'non_local\.(g|phi|theta|conv_out)(?:\.0)*(?:\.(?=conv|bn))?(conv|bn)', lambda m: (
        'non_local.bn' if m[2] == 'bn' else f'non_local.{m[1]}'), name)


@pytest.mark.parametrize('case', cases_of('fbkd'))
def test_values_and_gradients_of_the_public_code(case):
    facts = cases_of('fbkd')[case]
    loss = FKDLoss(facts['channels'], facts['channels'], nonlocal_reduction=facts['reduction'],
                   nonlocal_pool=2 * facts['maxpool_stride'])
    assert_as_public(case, loss, own_name)


def test_defaults_are_the_public_codes():
    loss = FKDLoss(3, 4)
    assert (loss.feature_weight, loss.channel_weight) == (7e-5, 4e-3)
    assert (loss.spatial_weight, loss.nonlocal_weight) == (4e-3, 7e-5)
    assert (loss.spatial_temperature, loss.channel_temperature) == (0.5, 0.5)


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(feature_weight=-1), 'feature_weight=-1'), (dict(channel_weight='1'), "channel_weight='1'"),
    (dict(spatial_weight=-1), 'spatial_weight=-1'), (dict(nonlocal_weight=-1), 'nonlocal_weight=-1'),
    (dict(spatial_temperature=0), 'spatial_temperature=0'), (dict(channel_temperature=0), 'channel_temperature=0'),
    (dict(channel_mask=1), 'channel_mask=1'), (dict(channel_mask=True), 'expected equal channels'),
    (dict(nonlocal_reduction=0), 'nonlocal_reduction=0'), (dict(nonlocal_pool=0), 'nonlocal_pool=0'),
])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FKDLoss(**dict(dict(student_channels=3, teacher_channels=4), **arguments))
