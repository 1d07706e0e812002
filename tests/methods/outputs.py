"""What the tests of methods on head outputs share: scores, boxes, anchors in float64, and how values are compared."""
from __future__ import annotations

import types

import torch

from .oracle import F64, assert_close


def drawn(*shape, seed=0, scale=1.0):
    """Normal numbers in float64, as a leaf that takes a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, dtype=F64, generator=generator)).requires_grad_()


def made_boxes(n, seed=0, side=64.0):
    """n boxes xyxy of 4 px or more within a square picture."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand((n, 2), dtype=F64, generator=generator) * (side / 2)
    return torch.cat([low, low + 4 + torch.rand((n, 2), dtype=F64, generator=generator) * (side / 2 - 4)], dim=1)


def assert_same(found, expected, *leaves):
    """Values and gradients agree to 1e-9; of a leaf that one of them does not know, the gradient is 0."""
    assert_close(found, expected)
    of_found, of_expected = (torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
                             for value in (found, expected))
    for one, other in zip(of_found, of_expected, strict=True):
        assert_close(one, other, floor=1e-6)


class Coder:
    """Boxes as anchors moved by deltas: centre in sides of the anchor, sides as logarithms."""

    @staticmethod
    def decode(anchors, deltas):
        centre, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
        centre, sides = centre + deltas[:, :2] * sides, sides * deltas[:, 2:].exp()
        return torch.cat([centre - sides / 2, centre + sides / 2], dim=1)


def head_of(classes, strides=(8, 16), **parts):
    """What methods look up of a teacher's dense head."""
    return types.SimpleNamespace(cls_out_channels=classes, bbox_coder=Coder(), prior_generator=types.SimpleNamespace(
        strides=[(stride, stride) for stride in strides]), **parts)


def scored(n=2, classes=3, anchors=2, sizes=((4, 6), (2, 3)), seed=0, scale=2.0):
    """Maps of all levels for both sides, `classes` numbers an anchor; the student's are leaves."""
    maps_s, maps_t = ([drawn(n, anchors * classes, *size, seed=seed + 10 * side + i, scale=scale)
                       for i, size in enumerate(sizes)] for side in range(2))
    return maps_s, [one.detach() for one in maps_t]
