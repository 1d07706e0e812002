"""AMD (amdlib.methods.amd): every equation by hand, then the whole loss against loops over pixels, gradients too."""
from __future__ import annotations

import copy
import itertools
import math
import re

import numpy as np
import pytest
import torch

from amdlib.methods import amd
from amdlib.methods.amd import (
    AdaptiveMask,
    AMDLoss,
    ChannelClue,
    GenerationBlock,
    InvertedMask,
    PermutedMask,
    SmoothedMask,
    SpreadMask,
    keep_mask,
    spatial_attention,
)
from amdlib.methods.level import random_keep_mask

from .oracle import LN3, assert_close, pixel_conv3x3


def features(n=2, c_s=3, c=4, h=3, w=5):
    torch.manual_seed(0)        # parameters drawn next are fixed too: of few channels, all may lie behind a dead ReLU
    f_s = torch.randn(n, c_s, h, w, dtype=torch.float64, requires_grad=True)
    return f_s, torch.randn(n, c, h, w, dtype=torch.float64)


def centre_tap(conv, weight, bias=0.0):
    """Make a 3x3 convolution of one channel multiply by `weight` and add `bias`."""
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, :, 1, 1] = weight
        conv.bias.fill_(bias)


# --- Eq. 2-4: attention and mask --------------------------------------------------------------------------------------

def test_attention_by_hand():
    f_t = torch.tensor([[[[1., 0.]], [[-3., 0.]]]])         # two channels, one row, two columns
    # Eq. 2: G = ((1 + 3) / 2, 0) = (2, 0). Eq. 3 with T = 2 / ln 3: softmax(ln 3, 0) = (3/4, 1/4), times H*W = 2.
    assert torch.allclose(spatial_attention(f_t, 2 / LN3), torch.tensor([[[1.5, 0.5]]]))


def test_attention_has_mean_one_in_each_image():
    _, f_t = features(n=3)
    attention = spatial_attention(f_t, 0.5)
    assert attention.shape == (3, 3, 5)
    assert_close(attention.mean(dim=(1, 2)), torch.ones(3))


def test_attention_depends_on_magnitude_not_sign():
    _, f_t = features()
    assert torch.equal(spatial_attention(f_t, 0.5), spatial_attention(-f_t, 0.5))


def test_high_temperature_flattens_and_low_temperature_sharpens():
    _, f_t = features(n=1)
    assert torch.allclose(spatial_attention(f_t, 1e9), torch.ones(1, 3, 5, dtype=torch.float64))
    sharp = spatial_attention(f_t, 1e-4)
    assert sharp.max() == pytest.approx(15)
    assert sharp.flatten().argmax() == f_t.abs().mean(1).flatten().argmax()
    peaks = [spatial_attention(f_t, t).max() for t in (4, 2, 1, 0.5)]
    assert peaks == sorted(peaks)


def test_attention_of_half_precision_is_float32():
    f_t = features()[1].half()
    assert spatial_attention(f_t, 0.5).dtype == torch.float32
    assert torch.equal(spatial_attention(f_t, 0.5), spatial_attention(f_t.float(), 0.5))


def test_mask_hides_what_the_teacher_attends_to():
    attention = torch.tensor([[[1.5, 0.5, 1.0]]])
    mask = keep_mask(attention, 1.0)
    assert mask.shape == (1, 1, 1, 3)
    assert mask.flatten().tolist() == [0, 1, 1]             # 1 = kept; A = phi is kept


def test_larger_phi_masks_less():
    attention = spatial_attention(features()[1], 0.5)
    masked = [(keep_mask(attention, phi) == 0).sum().item() for phi in (0, 0.5, 1, 1.5, 1e9)]
    assert masked == sorted(masked, reverse=True)
    assert masked[0] == attention.numel()
    assert masked[-1] == 0


def test_mask_carries_no_gradient():
    attention = torch.rand(1, 2, 2, requires_grad=True)
    assert not keep_mask(attention, 0.5).requires_grad


def test_state_dict_without_generator_loads_strictly_and_leaves_it():
    loss, probe = AMDLoss(3, 4, spatial='random', seed=3), torch.zeros(1, 1, 6, 6)
    published = AMDLoss(3, 4).state_dict()
    assert not any(key.endswith('_extra_state') for key in published)
    expected = copy.deepcopy(loss).random_mask(probe)
    assert loss.load_state_dict(published, strict=True) == ([], [])
    assert torch.equal(loss.random_mask(probe), expected)
    with pytest.raises(RuntimeError, match='generation.0.weight'):      # other missing entries are still missed
        loss.load_state_dict({k: v for k, v in published.items() if k != 'generation.0.weight'}, strict=True)


# --- Eq. 6: clue and generation ---------------------------------------------------------------------------------------

def test_clue_by_hand():
    clue = ChannelClue(2)
    with torch.no_grad():
        clue.w1.weight.copy_(torch.tensor([[1., 1.]]))
        clue.w2.weight.copy_(torch.tensor([[LN3], [-LN3]]))
    feature = torch.tensor([[[[0.2, 0.8]], [[1.5, -0.5]]]])
    # GAP = (0.5, 0.5); W1 -> 1; relu -> 1; W2 -> (ln 3, -ln 3); sigmoid -> (3/4, 1/4).
    assert torch.allclose(clue(feature), torch.tensor([0.75, 0.25])[None, :, None, None])
    assert torch.allclose(clue(-feature), torch.full((1, 2, 1, 1), 0.5))        # relu(-1) = 0, sigmoid(0) = 1/2


@pytest.mark.parametrize(('channels', 'reduction', 'hidden'), [(256, 16, 16), (32, 16, 2), (8, 16, 1)])
def test_clue_reduction(channels, reduction, hidden):
    assert ChannelClue(channels, reduction).w1.weight.shape == (hidden, channels)


def test_generation_blocks_by_hand():
    x = torch.tensor([[[[-1., 2.]]]])
    conv2 = GenerationBlock(1, 'conv2')
    centre_tap(conv2[0], 3)
    centre_tap(conv2[2], 2, bias=1)
    assert conv2(x).flatten().tolist() == [1, 13]           # relu(-3, 6) = (0, 6); 2 x + 1
    conv1 = GenerationBlock(1, 'conv1')
    centre_tap(conv1[0], 3, bias=1)
    assert conv1(x).flatten().tolist() == [-2, 7]           # no ReLU
    mbconv = GenerationBlock(1, 'mbconv')
    expand, _, depthwise, _, se, project = mbconv
    assert expand.out_channels == 4
    assert depthwise.groups == 4
    with torch.no_grad():
        expand.weight.fill_(1)
        expand.bias.zero_()
        se.w1.weight.fill_(0)                               # the SE layer halves everything
        project.weight.fill_(1)
        project.bias.zero_()
    centre_tap(depthwise, 3)
    assert mbconv(x).flatten().tolist() == [0, 12]          # 4 channels of 3 relu(x) / 2


def test_generation_sees_neighbours_not_itself_alone():
    for kind, reach in (('conv2', 2), ('conv1', 1)):
        x = torch.zeros(1, 2, 7, 7)
        block = GenerationBlock(2, kind).double()
        changed = x.double().clone()
        changed[:, :, 3, 3] = 5
        moved = (block(changed) - block(x.double())).abs().sum(dim=1)[0] > 0
        rows = moved.any(dim=1).nonzero().flatten().tolist()
        assert rows
        assert min(rows) >= 3 - reach
        assert max(rows) <= 3 + reach


# --- Eq. 5-8: the loss by hand ----------------------------------------------------------------------------------------

def hand_loss(**arguments):
    """One channel, one row, two columns: F_T = (2, 0), so A = (1.5, 0.5) and M = (0, 1); clue = 3/4.

    The generation block is x -> 2 relu(x) + 1.
    """
    loss = AMDLoss(1, 1, alpha=0.1, temperature=2 / LN3, **arguments).double()
    centre_tap(loss.generation[0], 1)
    centre_tap(loss.generation[2], 2, bias=1)
    if loss.clue is not None:
        with torch.no_grad():
            loss.clue.w1.weight.fill_(1)                    # GAP(F_T) = 1
            loss.clue.w2.weight.fill_(LN3)
    f_s = torch.tensor([[[[5., 3.]]]], dtype=torch.float64)
    f_t = torch.tensor([[[[2., 0.]]]], dtype=torch.float64)
    return loss(f_s, f_t).item()


@pytest.mark.parametrize(('arguments', 'f_gen'), [
    (dict(), (0.75, 5.25)),                                 # F_mask = (0, 3) -> (1, 7), times 3/4
    (dict(channel_position='within'), (1, 5.5)),            # F_mask = (0, 3), times 3/4 = (0, 2.25) -> (1, 5.5)
    (dict(channel='none'), (1, 7)),
    (dict(channel='none', spatial='none'), (11, 7)),        # F_mask = (5, 3)
    (dict(channel='none', spatial='all'), (1, 1)),          # F_mask = (0, 0)
    (dict(channel='none', phi=0.4), (1, 1)),                # both above phi
    (dict(channel='none', phi=1.6), (11, 7)),               # none above phi
    (dict(channel='none', spatial='random', mask_ratio=0), (11, 7)),
    (dict(channel='none', spatial='random', mask_ratio=1), (1, 1)),
])
def test_loss_by_hand(arguments, f_gen):
    assert hand_loss(**arguments) == pytest.approx(0.1 * ((2 - f_gen[0]) ** 2 + (0 - f_gen[1]) ** 2), rel=1e-12)


# --- The loss against loops over pixels -------------------------------------------------------------------------------

def pixel_clue(x, w1, w2):
    _, c, h, w = x.shape
    means = torch.stack([sum(x[:, k, i, j] for i in range(h) for j in range(w)) / (h * w) for k in range(c)], dim=1)
    return 1 / (1 + torch.exp(-(torch.relu(means @ w1.T) @ w2.T)))


def pixel_loss(loss, f_s, f_t, kept):
    """Eq. 1-8 pixel by pixel; `kept` None = adaptive, else (N, H, W) of 0 and 1."""
    n, c, h, w = f_t.shape
    p = dict(loss.named_parameters())
    if kept is None:
        kept = torch.zeros(n, h, w, dtype=torch.float64)
        for b in range(n):
            exponentials = {(i, j): math.exp(sum(abs(f_t[b, k, i, j].item()) for k in range(c)) / c / loss.temperature)
                            for i in range(h) for j in range(w)}
            for (i, j), e in exponentials.items():
                kept[b, i, j] = 0 if h * w * e / sum(exponentials.values()) > loss.phi else 1
    x = f_s
    if 'align.weight' in p:
        x = torch.einsum('nchw,kc->nkhw', f_s, p['align.weight'][:, :, 0, 0]) + p['align.bias'][:, None, None]
    x = x * kept[:, None]
    clue = None
    if loss.clue is not None:
        clue = pixel_clue(f_t, p['clue.w1.weight'], p['clue.w2.weight'])[:, :, None, None]
    if loss.generation.kind == 'mbconv':
        x = torch.relu(torch.einsum('nchw,kc->nkhw', x, p['generation.0.weight'][:, :, 0, 0])
                       + p['generation.0.bias'][:, None, None])
        diagonal = torch.zeros(4 * c, 4 * c, 3, 3, dtype=torch.float64)
        diagonal = diagonal + torch.eye(4 * c, dtype=torch.float64)[:, :, None, None] * p['generation.2.weight']
        x = torch.relu(pixel_conv3x3(x, diagonal, p['generation.2.bias']))
        x = x * pixel_clue(x, p['generation.4.w1.weight'], p['generation.4.w2.weight'])[:, :, None, None]
        x = torch.einsum('nchw,kc->nkhw', x, p['generation.5.weight'][:, :, 0, 0])
        x = x + p['generation.5.bias'][:, None, None]
    else:
        x = pixel_conv3x3(x, p['generation.0.weight'], p['generation.0.bias'])
        if loss.generation.kind == 'conv2':
            x = torch.relu(x)
            if clue is not None and loss.channel_position == 'within':
                x = x * clue
            x = pixel_conv3x3(x, p['generation.2.weight'], p['generation.2.bias'])
    if clue is not None and loss.channel_position == 'after':
        x = x * clue
    total = 0
    for b, k, i, j in itertools.product(range(n), range(c), range(h), range(w)):
        total = total + (f_t[b, k, i, j] - x[b, k, i, j]) ** 2
    return loss.alpha * total / n


@pytest.mark.parametrize(('c_s', 'spatial', 'channel', 'generation', 'position'), [
    (3, 'adaptive', 'se', 'conv2', 'after'), (4, 'adaptive', 'se', 'conv2', 'within'),
    (3, 'random', 'se', 'conv2', 'after'), (4, 'adaptive', 'none', 'conv2', 'after'),
    (3, 'adaptive', 'se', 'conv1', 'after'), (3, 'adaptive', 'se', 'mbconv', 'after'),
    (3, 'none', 'none', 'conv1', 'after'), (3, 'all', 'se', 'conv2', 'after'),
])
def test_loss_and_gradients_against_loops(c_s, spatial, channel, generation, position):
    f_s, f_t = features(c_s=c_s)
    loss = AMDLoss(c_s, 4, spatial=spatial, channel=channel, generation=generation, channel_position=position, seed=5,
                   se_reduction=2).double()
    kept = {'adaptive': None, 'none': torch.ones(2, 3, 5), 'all': torch.zeros(2, 3, 5),
            'random': (torch.rand((2, 1, 3, 5), generator=torch.Generator().manual_seed(5)) <= 0.35)[:, 0]}[spatial]
    if kept is not None:
        kept = kept.double()
    inputs = [f_s, *loss.parameters()]
    found = loss(f_s, f_t)
    expected = pixel_loss(loss, f_s, f_t, kept)
    assert found.shape == ()
    assert_close(found, expected)
    for g, e in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert_close(g, e)


# --- Who learns, batches, sizes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('spatial', amd.SPATIAL)
def test_student_side_learns_unless_all_is_masked(spatial):
    f_s, f_t = features()
    f_t.requires_grad_()
    loss = AMDLoss(3, 4, spatial=spatial).double()
    loss(f_s, f_t).backward()
    assert f_t.grad is None
    assert all(p.grad is not None for p in loss.parameters())
    assert (f_s.grad.abs().sum() > 0) == (spatial != 'all')          # nothing of the student is left under a full mask
    assert loss.clue.w1.weight.grad.abs().sum() > 0
    assert loss.generation[2].weight.grad.abs().sum() > 0


def test_batch_is_the_mean_of_its_images():
    f_s, f_t = features(n=4)
    loss = AMDLoss(3, 4).double()
    singles = torch.stack([loss(f_s[i:i + 1], f_t[i:i + 1]) for i in range(4)])
    assert_close(loss(f_s, f_t), singles.mean().item())


@pytest.mark.parametrize(('spatial', 'generation'), list(itertools.product(amd.SPATIAL, amd.GENERATION)))
def test_one_image_of_one_position(spatial, generation):
    loss = AMDLoss(3, 4, spatial=spatial, generation=generation)
    f_s, f_t = torch.randn(1, 3, 1, 1, requires_grad=True), torch.randn(1, 4, 1, 1)
    value = loss(f_s, f_t)
    value.backward()
    assert value.isfinite()
    assert f_s.grad.isfinite().all()
    if spatial == 'adaptive':
        assert loss.mask(f_t).item() == 1                   # A is 1 there, not above phi = 1


def test_float16_features_do_not_overflow():
    loss = AMDLoss(4, 4, alpha=1.0)
    f_s, f_t = torch.zeros(1, 4, 8, 8, dtype=torch.float16), torch.full((1, 4, 8, 8), 3e4, dtype=torch.float16)
    value = loss(f_s, f_t)                                  # 3e4 squared alone is beyond float16
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert value > 1e9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
@pytest.mark.parametrize('spatial', amd.SPATIAL)
def test_gpu_gives_the_same_loss(spatial):
    f_s, f_t = features()
    on_cpu = AMDLoss(3, 4, spatial=spatial).double()
    on_gpu = copy.deepcopy(on_cpu).cuda()
    assert_close(on_gpu(f_s.cuda(), f_t.cuda()).cpu(), on_cpu(f_s, f_t).item())


# --- Growth with the size of the feature ------------------------------------------------------------------------------

@pytest.mark.parametrize(('tiles', 'growth'), [((2, 1, 1), 2), ((1, 2, 1), 2), ((1, 1, 3), 3)])
def test_alpha_grows_as_declared(tiles, growth):
    f_s, f_t = (f.detach() for f in features(c_s=4))
    values = []
    for repeat in ((1, 1, 1), tiles):
        s, t = f_s.repeat(1, *repeat), f_t.repeat(1, *repeat)
        loss = AMDLoss(s.shape[1], t.shape[1]).double()
        with torch.no_grad():
            for p in loss.generation.parameters():          # the generated feature is 0: the error is F_T itself
                p.zero_()
        values.append(loss(s, t).item())
    a, b = AMDLoss.WEIGHT_EXPONENTS['alpha']
    assert values[1] / values[0] == pytest.approx(growth)
    assert growth == tiles[0] ** a * (tiles[1] * tiles[2]) ** b


# --- Defaults and errors ----------------------------------------------------------------------------------------------

def test_defaults():
    loss = AMDLoss(3, 32)
    assert (loss.alpha, loss.temperature, loss.phi) == (2e-5, 0.5, 1.0)
    assert (loss.adaptive_mask.temperature, loss.adaptive_mask.phi) == (0.5, 1.0)
    assert AMDLoss(3, 32, spatial='random').random_mask.mask_ratio == 0.65
    assert (loss.spatial, loss.channel) == ('adaptive', 'se')
    assert (loss.generation.kind, loss.channel_position) == ('conv2', 'after')
    assert loss.clue.w1.weight.shape == (2, 32)             # reduction 16
    assert loss.align.weight.shape == (32, 3, 1, 1)
    assert isinstance(AMDLoss(4, 4).align, torch.nn.Identity)


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(student_channels=0), 'student_channels=0'), (dict(teacher_channels=2.5), 'teacher_channels=2.5'),
    (dict(alpha=-1), 'alpha=-1'), (dict(alpha=float('nan')), 'alpha=nan'), (dict(alpha='x'), "alpha='x'"),
    (dict(temperature=0), 'temperature=0: expected a finite number above 0'),
    (dict(phi=-0.1), 'phi=-0.1: expected a finite number of 0 or more'), (dict(phi=float('inf')), 'phi=inf'),
    (dict(spatial='attention'), "spatial='attention': expected one of 'adaptive', 'random', 'none', 'all'"),
    (dict(channel='eca'), "channel='eca': expected one of 'se', 'none'"),
    (dict(generation='conv3'), "generation='conv3': expected one of 'conv2', 'conv1', 'mbconv'"),
    (dict(channel_position='before'), "channel_position='before': expected one of 'after', 'within'"),
    (dict(mask_ratio=1.5), 'mask_ratio=1.5'), (dict(mask_ratio=True), 'mask_ratio=True'),
    (dict(se_reduction=0), 'se_reduction=0'), (dict(seed=-1), 'seed=-1'), (dict(seed=1.0), 'seed=1.0'),
    (dict(generation='conv1', channel_position='within'), "'within' needs two convolutions"),
    (dict(generation='mbconv', channel_position='within'), "'within' needs C channels"),
])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AMDLoss(**dict(dict(student_channels=3, teacher_channels=4), **arguments))


def test_position_of_no_clue_does_not_matter():
    AMDLoss(3, 4, generation='conv1', channel='none', channel_position='within')


@pytest.mark.parametrize(('s', 't'), [
    ((2, 3, 4, 5), (2, 4, 4, 6)), ((2, 3, 4, 5), (1, 4, 4, 5)), ((2, 4, 4, 5), (2, 4, 4, 5)),
    ((2, 3, 4, 5), (2, 5, 4, 5)), ((3, 4, 5), (4, 4, 5)), ((0, 3, 4, 5), (0, 4, 4, 5)),
])
def test_shapes_that_do_not_fit_are_named(s, t):
    with pytest.raises(ValueError, match=rf'{re.escape(str(s))}.*{re.escape(str(t))}'):
        AMDLoss(3, 4)(torch.zeros(s), torch.zeros(t))


def test_functions_check_their_arguments():
    with pytest.raises(ValueError, match=r'\(2, 3, 4\)'):
        spatial_attention(torch.zeros(2, 3, 4), 0.5)
    with pytest.raises(ValueError, match='temperature=-1'):
        spatial_attention(torch.zeros(1, 1, 2, 2), -1)
    with pytest.raises(ValueError, match=r'\(1, 1, 2, 2\)'):
        keep_mask(torch.zeros(1, 1, 2, 2), 1.0)


# --- The parts -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('spatial', amd.SPATIAL)
def test_masks_by_name(spatial):
    _, f_t = features()
    loss = AMDLoss(3, 4, spatial=spatial, seed=3, phi=0.9, temperature=0.3)
    adaptive = AdaptiveMask(0.3, 0.9)
    kept = {'adaptive': keep_mask(spatial_attention(f_t, 0.3), 0.9), 'permuted': PermutedMask(adaptive, 3)(f_t),
            'inverted': InvertedMask(adaptive)(f_t), 'spread': SpreadMask(adaptive)(f_t),
            'smoothed': SmoothedMask(adaptive)(f_t), 'none': torch.ones(2, 1, 3, 5),
            'all': torch.zeros(2, 1, 3, 5),
            'random': random_keep_mask(f_t, 0.65, torch.Generator().manual_seed(3))}[spatial]
    assert torch.equal(loss.mask(f_t), kept.double())


# G / T = ln (9, 3, 1, 1), so A = (36, 12, 4, 4) / 14 = (2.57, 0.86, 0.29, 0.29)
QUARTERS = torch.tensor([[[[2., 1.], [0., 0.]]]])


@pytest.mark.parametrize(('phi', 'adaptive', 'inverted'), [
    (0.5, [0, 0, 1, 1], [1, 1, 0, 0]), (1.0, [0, 1, 1, 1], [1, 1, 0, 1]),   # of equal ones the first
    (0.0, [0, 0, 0, 0], [0, 0, 0, 0]), (3.0, [1, 1, 1, 1], [1, 1, 1, 1])])
def test_masks_of_the_same_share_by_hand(phi, adaptive, inverted):
    by_attention = AdaptiveMask(1 / LN3, phi)
    assert by_attention(QUARTERS).flatten().tolist() == adaptive
    assert InvertedMask(by_attention)(QUARTERS).flatten().tolist() == inverted
    permuted = PermutedMask(by_attention)
    drawn = {tuple(permuted(QUARTERS).flatten().tolist()) for _ in range(100)}
    assert drawn == set(itertools.permutations(adaptive))       # every place of that many


def test_masks_of_the_same_share_have_it_in_each_image():
    f_t = torch.randn(16, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    f_t *= torch.linspace(0.2, 4, 16)[:, None, None, None]      # so that shares differ
    by_attention = AdaptiveMask(0.5, 1.0)
    adaptive, attention = by_attention(f_t), spatial_attention(f_t, 0.5)
    masked = (1 - adaptive).sum(dim=(1, 2, 3))
    assert len(set(masked.tolist())) > 4
    for mask in (PermutedMask(by_attention, 1), InvertedMask(by_attention)):
        keep = mask(f_t)
        assert keep.shape == adaptive.shape
        assert torch.equal((1 - keep).sum(dim=(1, 2, 3)), masked)
        assert not torch.equal(keep, adaptive)
    for image, hidden in zip(attention, keep[:, 0] == 0, strict=True):
        assert image[hidden].max() <= image[~hidden].min()      # all of least attention


def test_a_permuted_mask_draws_from_a_generator_of_its_own_that_resumes():
    f_t = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    loss, other = (AMDLoss(4, 4, spatial='permuted', seed=seed) for seed in (3, 4))
    before = torch.get_rng_state()
    first, state = loss.mask(f_t), copy.deepcopy(loss.state_dict())
    assert 'permuted_mask._extra_state' in state
    second = loss.mask(f_t)
    assert not torch.equal(first, second)
    assert not torch.equal(other.mask(f_t), first)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.mask(f_t), second)
    loss.reseed(3)
    assert torch.equal(loss.mask(f_t), first)
    torch.rand(7)
    assert torch.equal(loss.mask(f_t), second)      # whatever else is drawn
    torch.set_rng_state(before)
    loss.mask(f_t)
    assert torch.equal(torch.get_rng_state(), before)


# --- Ours: attention whose positions interact ------------------------------------------------------------------------

def test_attention_spread_to_alike_positions_by_hand():
    """Four channels, so similarities are divided by 2. Positions 0 and 1 are (2, 0, 0, 0), 2 and 3 are (0, 0, 1, 0) and
    (0, 0, 0, 1): F^T F / 2 = 2 between the first two, 1/2 of the others with themselves and 0 elsewhere."""
    f_t = torch.zeros(1, 4, 2, 2, dtype=torch.float64)
    f_t[0, 0, 0, :], f_t[0, 2, 1, 0], f_t[0, 3, 1, 1] = 2, 1, 1
    high, low = math.exp(0.5 / 0.5), math.exp(0.25 / 0.5)       # of G / T
    own = [4 * part / (2 * high + 2 * low) for part in (high, high, low, low)]
    alike, self = math.exp(2), math.exp(0.5)
    first = (2 * alike * own[0] + 2 * own[2]) / (2 * alike + 2)
    last = (2 * own[0] + (self + 1) * own[2]) / (3 + self)
    spread = torch.tensor([first, first, last, last]).double()
    found = SpreadMask(AdaptiveMask(0.5, 1.0)).attention(f_t).flatten()
    assert found.tolist() == pytest.approx((spread / spread.mean()).tolist(), rel=1e-6)


@pytest.mark.parametrize('image', range(3))
def test_attention_spread_to_alike_positions_as_a_matrix(image):
    f_t = torch.randn(3, 8, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = SpreadMask(AdaptiveMask(0.5, 1.0))
    places, own = f_t[image].flatten(1).numpy(), spatial_attention(f_t, 0.5)[image].flatten().numpy()
    weights = np.exp(places.T @ places / np.sqrt(8))
    spread = weights / weights.sum(1, keepdims=True) @ own
    assert mask.attention(f_t)[image].flatten().tolist() == pytest.approx((spread / spread.mean()).tolist(), rel=1e-9)


def test_attention_smoothed_over_neighbours_by_hand():
    """Neighbourhoods end at the border: of a row of four positions a corner has two, the others three."""
    f_t = torch.tensor([0., 0, 0, LN3]).reshape(1, 1, 1, 4)     # A = (4, 4, 4, 12) / 6 at temperature 1
    smooth = torch.tensor([2 / 3, 2 / 3, (2 / 3 + 2 / 3 + 2) / 3, (2 / 3 + 2) / 2])
    mask = SmoothedMask(AdaptiveMask(1.0, 1.0))
    assert mask.attention(f_t).flatten().tolist() == pytest.approx((smooth / smooth.mean()).tolist(), rel=1e-6)
    assert mask(f_t).flatten().tolist() == [1, 1, 0, 0]


def test_attention_smoothed_over_levels_by_hand():
    """An even level changes a level's smoothed attention a to (a + 1) / 2, two even ones to (a + 2) / 3."""
    f_t = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    loss = AMDLoss(4, 4, spatial='smoothed')
    alone = loss.smoothed_mask.attention(f_t)
    own = torch.nn.functional.avg_pool2d(spatial_attention(f_t, 0.5), 3, 1, 1, count_include_pad=False)
    assert torch.allclose(alone, own / own.mean(dim=(1, 2), keepdim=True))
    finer, coarser = torch.ones(2, 4, 12, 12), torch.ones(2, 4, 3, 3)
    for around, others in (((finer, None), 1), ((None, coarser), 1), ((finer, coarser), 2)):
        loss.look_around(*around)
        wanted = (own + others) / (1 + others)
        wanted /= wanted.mean(dim=(1, 2), keepdim=True)
        assert torch.allclose(loss.smoothed_mask.attention(f_t), wanted, atol=1e-6)
    loss.look_around(None, None)
    assert torch.equal(loss.smoothed_mask.attention(f_t), alone)


@pytest.mark.parametrize('spatial', ['spread', 'smoothed'])
@pytest.mark.parametrize('shape', [(2, 4, 1, 1), (1, 4, 1, 5), (2, 4, 3, 2)])
def test_interacting_attention_has_a_mean_of_one(spatial, shape):
    f_t = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    attention = AMDLoss(4, 4, spatial=spatial).get_submodule(f'{spatial}_mask').attention(f_t)
    assert attention.shape == (shape[0], *shape[2:])
    assert attention.mean(dim=(1, 2)).tolist() == pytest.approx([1.0] * shape[0], rel=1e-5)


@pytest.mark.parametrize('spatial', [one for one in amd.SPATIAL if one != 'smoothed'])
def test_other_masks_look_at_their_own_level_alone(spatial):
    f_s, f_t = features()
    losses = [AMDLoss(3, 4, spatial=spatial, seed=2).double() for _ in range(2)]
    losses[1].load_state_dict(losses[0].state_dict())
    losses[1].look_around(torch.randn(2, 4, 6, 10).double(), None)
    assert losses[0](f_s, f_t) == losses[1](f_s, f_t)


@pytest.mark.parametrize('spatial', amd.SPATIAL)
def test_the_masked_share_is_told(spatial):
    f_s, f_t = features()
    loss = AMDLoss(3, 4, spatial=spatial, seed=2).double()
    twin = copy.deepcopy(loss)
    loss(f_s, f_t)
    assert set(loss.told) == {'masked'}
    assert loss.told['masked'].item() == pytest.approx(1 - twin.mask(f_t).mean().item())


def test_every_position_of_the_clue_is_known():
    assert set(amd.GENERATED) == set(itertools.product(amd.CHANNEL, amd.CHANNEL_POSITION))


@pytest.mark.parametrize('spatial', amd.SPATIAL)
def test_older_checkpoints_load_strictly(spatial):
    # They hold the generator of random masks whatever `spatial` was; it counts where masks are random.
    loss, older = AMDLoss(3, 4, spatial=spatial), AMDLoss(3, 4, spatial='random', seed=7)
    assert loss.load_state_dict(older.state_dict(), strict=True) == ([], [])
    assert ('random_mask._extra_state' in loss.state_dict()) == (spatial == 'random')
    if spatial == 'random':
        probe = torch.zeros(2, 4, 6, 6)
        assert torch.equal(loss.mask(probe), older.mask(probe))
    with pytest.raises(RuntimeError, match='other_mask._extra_state'):          # other entries are still told
        loss.load_state_dict({**older.state_dict(), 'other_mask._extra_state': torch.zeros(1)}, strict=True)


def test_older_checkpoints_load_strictly_within_a_model():
    model = torch.nn.ModuleDict({'level_0': AMDLoss(3, 4)})
    older = torch.nn.ModuleDict({'level_0': AMDLoss(3, 4, spatial='random')})
    assert model.load_state_dict(older.state_dict(), strict=True) == ([], [])


def test_names_of_parameters():
    own = ['generation.0.weight', 'generation.0.bias', 'generation.2.weight', 'generation.2.bias']
    assert list(AMDLoss(3, 4).state_dict()) == ['align.weight', 'align.bias', *own, 'clue.w1.weight', 'clue.w2.weight']
    assert list(AMDLoss(4, 4, spatial='random', channel='none').state_dict()) == ['random_mask._extra_state', *own]
