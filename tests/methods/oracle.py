"""What the tests of the methods share: features and boxes, loops over pixels, the public code's values, growth.

goldens/losses.npz holds what the public code returned in float64; goldens/make_losses.py made it.
"""
from __future__ import annotations

import itertools
import json
import math
import pathlib
import types

import numpy as np
import pytest
import torch

LN3 = math.log(3)

F64 = torch.float64

IMAGE_SHAPES = [(48, 80), (40, 72)]


def assert_close(found, expected, tolerance=1e-9, floor=0.0):
    """Largest difference below `tolerance` times the largest expected value (at least `floor`)."""
    expected = torch.as_tensor(expected, dtype=found.dtype)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * max(expected.abs().max(), floor)


def features(n=2, c_s=3, c=4, h=6, w=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    f_s = torch.randn(n, c_s, h, w, dtype=F64, generator=generator).requires_grad_()
    return f_s, torch.randn(n, c, h, w, dtype=F64, generator=generator)


def boxes_of(n):
    """n boxes an image in two images of IMAGE_SHAPES, float32."""
    generator = torch.Generator().manual_seed(n)
    result = []
    for height, width in IMAGE_SHAPES:
        corners = torch.rand((n, 2, 2), generator=generator).sort(dim=1).values * torch.tensor([width, height])
        result.append(corners.flatten(1))
    return result


def randomised(loss, seed=0):
    """The loss in float64 with every parameter drawn anew, so that nothing hides behind a zero initial value."""
    generator = torch.Generator().manual_seed(seed)
    loss.double()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, dtype=F64, generator=generator) + 0.1)
    return loss


def call(loss, f_s, f_t, boxes=None):
    return loss(f_s, f_t, boxes if boxes is not None else boxes_of(3), IMAGE_SHAPES)


def assert_same_value_and_gradients(found, expected, f_s, loss):
    inputs = [f_s, *loss.parameters()]
    assert found.shape == ()
    assert_close(found, expected)
    of_found = torch.autograd.grad(found, inputs)
    of_expected = torch.autograd.grad(expected, inputs)
    floor = 1e-6 * max(g.abs().max() for g in of_expected)         # some gradients are zero but for rounding
    for f, e in zip(of_found, of_expected, strict=True):
        assert_close(f, e, floor=floor)


# --- Loops ------------------------------------------------------------------------------------------------------------

def conv1x1(x, p, name):
    return torch.einsum('nchw,kc->nkhw', x, p[f'{name}.weight'][:, :, 0, 0]) + p[f'{name}.bias'][:, None, None]


def pixel_conv3x3(x, weight, bias):
    n, _, h, w = x.shape
    pixels = []
    for i, j in itertools.product(range(h), range(w)):
        total = bias.expand(n, -1)
        for di, dj in itertools.product((-1, 0, 1), repeat=2):
            if 0 <= i + di < h and 0 <= j + dj < w:
                total = total + x[:, :, i + di, j + dj] @ weight[:, :, di + 1, dj + 1].T
        pixels.append(total)
    return torch.stack(pixels, dim=2).view(n, -1, h, w)


def assert_mean_of_images(loss):
    """A batch's loss is the mean of its images', each with its own boxes and size."""
    f_s, f_t = features()
    boxes = boxes_of(4)
    singles = [loss(f_s[i:i + 1], f_t[i:i + 1], boxes[i:i + 1], IMAGE_SHAPES[i:i + 1]) for i in range(2)]
    assert_close(call(loss, f_s, f_t, boxes), torch.stack(singles).mean().detach())


def loop_attention(x, temperature):
    """Spatial (H, W) and channel (C) attention of one image's feature (C, H, W), by sums of exponentials."""
    c, h, w = x.shape
    over_positions = torch.exp(sum(x[k].abs() for k in range(c)) / c / temperature)
    over_channels = torch.exp(torch.stack([x[k].abs().sum() / (h * w) for k in range(c)]) / temperature)
    return h * w * over_positions / over_positions.sum(), c * over_channels / over_channels.sum()


# --- Growth with the size of the feature ------------------------------------------------------------------------------

TILES = pytest.mark.parametrize('tiles', [(2, 1, 1), (1, 2, 1), (1, 1, 3)])


def growth(method, weight, tiles, f_s, f_t, boxes=None, prepare=lambda loss: None, images=1):
    """How much larger the one term is when the features are tiled (channels, rows, columns) and `images` times."""
    values = []
    for repeat in ((1, 1, 1, 1), (images, *tiles)):
        s, t = f_s.detach().repeat(*repeat), f_t.repeat(*repeat)
        loss = method(s.shape[1], t.shape[1], **{w: float(w == weight) for w in method.WEIGHT_EXPONENTS}).double()
        with torch.no_grad():
            prepare(loss)
        values.append(loss(s, t, boxes(*t.shape[2:]) if boxes else [torch.zeros(0, 4)] * len(t),
                           IMAGE_SHAPES * (len(t) // 2)).item())
    return values[1] / values[0]


def declared(method, weight, tiles, images=1):
    a, b, *n = method.WEIGHT_EXPONENTS[weight]
    return pytest.approx(tiles[0] ** a * (tiles[1] * tiles[2]) ** b * images ** (n[0] if n else 0))


def no_generation(loss):
    for parameter in loss.generation.parameters():
        parameter.zero_()


# --- Public code ------------------------------------------------------------------------------------------------------

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / 'goldens' / 'losses.npz')

ABOUT = json.loads(str(GOLDEN['about']))


def golden(case, kind):
    """Tensors below case/kind/ by public name, in float64 (boxes in float32, in the order of the images)."""
    prefix = f'{case}/{kind}/'
    found = {key.removeprefix(prefix): torch.from_numpy(GOLDEN[key]) for key in GOLDEN.files if key.startswith(prefix)}
    return found if kind == 'boxes' else {key: value.double() for key, value in found.items()}


def assert_as_public(case, loss, own_name=lambda public: public):
    """Value and gradients of a loss with the public code's inputs and parameters, `own_name` of each."""
    loss = loss.double()
    state = {own_name(k): v for kind in ('param', 'buffer') for k, v in golden(case, kind).items()}
    missing, unexpected = loss.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith('num_batches_tracked') for key in missing)
    f_s = torch.from_numpy(GOLDEN[f'{case}/f_s']).double().requires_grad_()
    f_t = torch.from_numpy(GOLDEN[f'{case}/f_t']).double()
    value = loss(f_s, f_t, list(golden(case, 'boxes').values()) or None, ABOUT['image_shapes'])
    value.backward()

    assert_close(value.detach(), GOLDEN[f'{case}/loss'].item())
    assert_close(f_s.grad, torch.from_numpy(GOLDEN[f'{case}/grad_f_s']))
    gradients = {own_name(k): v for k, v in golden(case, 'grad').items()}
    assert gradients.keys() == dict(loss.named_parameters()).keys()
    # A bias before a softmax has no gradient but rounding: 1e-15 of the largest one, hence the floor.
    floor = 1e-6 * max(g.abs().max() for g in gradients.values())
    for name, parameter in loss.named_parameters():
        assert_close(parameter.grad, gradients[name], floor=floor)


def cases_of(prefix):
    """The public code's cases of one method and their arguments."""
    return {case: {k: v for k, v in facts.items() if k != 'loss'} for case, facts in ABOUT['cases'].items()
            if case.startswith(prefix)}


def assert_loads_strictly(method, shapes):
    """A published checkpoint with these parameters loads strictly, with and without alignment."""
    state = {key: torch.rand(shape) for key, shape in shapes.items()}
    loss = method(128, 256)
    assert loss.load_state_dict(state, strict=True) == ([], [])
    assert all(torch.equal(loss.state_dict()[key], value) for key, value in state.items())
    without_align = {key: value for key, value in state.items() if not key.startswith('align')}
    assert method(256, 256).load_state_dict(without_align, strict=True) == ([], [])


ALIGN = {'align.weight': (256, 128, 1, 1), 'align.bias': (256,)}


# --- Whole steps ------------------------------------------------------------------------------------------------------

def step_of(f_s, f_t, **shown):
    """A step of these features, a list of levels each, and what else it shows."""
    return types.SimpleNamespace(f_s=f_s, f_t=f_t, levels=range(len(f_s)), **shown)


def grid(h, w, stride, *sides):
    """Anchors of a level, one an entry of `sides` (width, height) around each position: (h * w * A, 4)."""
    centres = [(j * stride, i * stride) for i in range(h) for j in range(w)]
    return torch.tensor([[x - a / 2, y - b / 2, x + a / 2, y + b / 2] for x, y in centres for a, b in sides])


def assert_same_terms(terms, expected, inputs):
    """Values and gradients of a step's terms, to 1e-9 of the largest; equal names."""
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert_close(term.detach(), expected[name].item())
    of_found, of_expected = (torch.autograd.grad(sum(some.values()), inputs, allow_unused=True)
                             for some in (terms, expected))
    floor = 1e-6 * max(g.abs().max() for g in of_expected if g is not None)
    for f, e in zip(of_found, of_expected, strict=True):
        assert (f is None) == (e is None)
        if f is not None:
            assert_close(f, e, floor=floor)
