"""FGFI (amdlib.methods.fgfi): by hand, against loops over anchors and cells, its first steps."""
from __future__ import annotations

import re

import pytest
import torch

from amdlib.methods.fgfi import FGFILoss, iou, near_boxes

from .oracle import assert_close, assert_same_terms, features, grid, pixel_conv3x3, randomised, step_of

SIDES = [(8., 8.), (16., 8.)]


def shown(n=2, boxes=None, **sizes):
    """A step with two levels of strides 8 and 16 and two anchors a position."""
    pairs = [features(n=n, h=h, w=w, seed=h, **sizes) for h, w in ((6, 10), (3, 5))]
    boxes = boxes or [torch.tensor([[10., 5., 30., 20.], [50., 30., 60., 44.]]), torch.tensor([[1., 1., 75., 40.]])]
    return step_of([pair[0] for pair in pairs], [pair[1] for pair in pairs], boxes=boxes[:n],
                   anchors=[grid(6, 10, 8, *SIDES), grid(3, 5, 16, *SIDES)])


def identity(loss):
    """adapt passes a positive feature of as many channels on as it is."""
    with torch.no_grad():
        for adapt in loss.adapt:
            adapt[0].weight.zero_()
            for k in range(len(adapt[0].weight)):
                adapt[0].weight[k, k, 1, 1] = 1
    return loss


def test_iou_by_hand():
    a = torch.tensor([[0., 0., 2., 2.], [0., 0., 1., 1.], [5., 5., 5., 5.]])
    b = torch.tensor([[0., 0., 2., 2.], [1., 1., 3., 3.], [9., 9., 9., 9.]])
    assert torch.allclose(iou(a, b), torch.tensor([[1., 1 / 7, 0.], [1 / 4, 0., 0.], [0., 0., 0.]]))
    assert iou(a, b[:0]).shape == (3, 0)


def test_a_box_that_is_an_anchor_switches_its_cell_on():
    anchors = grid(2, 3, 8, (8., 8.))
    found = near_boxes(anchors, anchors[4:5], (2, 3), 0.5)
    assert found.tolist() == [[False, False, False], [False, True, False]]
    assert near_boxes(anchors, anchors[[0, 5]], (2, 3), 0.5).nonzero().tolist() == [[0, 0], [1, 2]]     # the union
    assert not near_boxes(anchors, torch.zeros(0, 4), (2, 3), 0.5).any()
    assert not near_boxes(anchors, torch.tensor([[500., 500., 600., 600.]]), (2, 3), 0.5).any()     # none touches it


def test_fgfi_by_hand():
    """Two of three cells near the box, errors 1 + 4 and 9 + 16 over their channels: 0.2 * 30 / (2 * 2)."""
    f_t = torch.tensor([[[[1., 3., 7.]], [[2., 4., 7.]]]])
    step = step_of([torch.zeros(1, 2, 1, 3)], [f_t], boxes=[torch.tensor([[0., 0., 8., 4.]])],
                   anchors=[torch.tensor([[0., 0., 8., 4.], [0., 0., 8., 6.], [0., 0., 90., 90.]])])
    loss = identity(FGFILoss([(2, 2)], weight=0.2, off_steps=0))
    assert loss(step)['fpn_0'].item() == pytest.approx(0.2 * 30 / 4)


@pytest.mark.parametrize('c_s', [3, 4])
def test_fgfi_against_loops(c_s):
    step = shown(c_s=c_s)
    loss = randomised(FGFILoss([(c_s, 4)] * 2, weight=0.3, off_steps=0))
    p, expected = dict(loss.named_parameters()), {}
    for level, (s, t, anchors) in enumerate(zip(step.f_s, step.f_t, step.anchors, strict=True)):
        h, w = t.shape[2:]
        adapted = pixel_conv3x3(s, p[f'adapt.{level}.0.weight'], p[f'adapt.{level}.0.bias']).clamp(min=0)
        cells = set()
        for b, boxes in enumerate(step.boxes):
            for box in boxes:
                overlaps = []
                for anchor in anchors:
                    width = min(anchor[2], box[2]) - max(anchor[0], box[0])
                    height = min(anchor[3], box[3]) - max(anchor[1], box[1])
                    both = max(width.item(), 0) * max(height.item(), 0)
                    areas = [((one[2] - one[0]) * (one[3] - one[1])).item() for one in (anchor, box)]
                    overlaps.append(both / (sum(areas) - both))
                cells |= {(b, i // 2 // w, i // 2 % w) for i, one in enumerate(overlaps) if one > 0.5 * max(overlaps)}
        assert 0 < len(cells) < 2 * h * w
        expected[f'fpn_{level}'] = 0.3 / (2 * len(cells)) * sum(
            (t[b, k, i, j] - adapted[b, k, i, j]) ** 2 for b, i, j in cells for k in range(4))
    assert_same_terms(loss(step), expected, [*step.f_s, *loss.parameters()])


def test_no_boxes_cost_nothing():
    step = shown(boxes=[torch.zeros(0, 4)] * 2)
    loss = FGFILoss([(3, 4)] * 2, off_steps=0).double()
    value = sum(loss(step).values())
    value.backward()
    assert value.item() == 0
    assert not any(one.grad.any() for one in step.f_s)


def test_one_position():
    f_s, f_t = features(n=1, h=1, w=1)
    loss = FGFILoss([(3, 4)], off_steps=0).double()
    value = loss(step_of([f_s], [f_t], boxes=[torch.tensor([[0., 0., 4., 4.]])], anchors=[grid(1, 1, 8, (8., 8.))]))
    value['fpn_0'].backward()
    assert value['fpn_0'] > 0
    assert f_s.grad.isfinite().all()


def test_images_in_another_order_change_nothing():
    step = shown()
    loss = randomised(FGFILoss([(3, 4)] * 2, off_steps=0))
    turned = step_of([one.flip(0) for one in step.f_s], [one.flip(0) for one in step.f_t], boxes=step.boxes[::-1],
                     anchors=step.anchors)
    assert_close(sum(loss(turned).values()).detach(), sum(loss(step).values()).item())


def test_it_is_off_at_first_and_a_resumed_run_goes_on():
    step, loss = shown(), FGFILoss([(3, 4)] * 2, off_steps=3).double()
    first = [sum(loss(step).values()).item() for _ in range(2)]
    resumed = FGFILoss([(3, 4)] * 2, off_steps=3).double()
    resumed.load_state_dict(loss.state_dict())
    assert resumed.waits == 1
    assert [*first, sum(resumed(step).values()).item()] == [0, 0, 0]
    assert sum(resumed(step).values()) > 0


@pytest.mark.parametrize(('channels', 'rows'), [(2, 1), (1, 2), (3, 2)])
def test_its_weight_grows_with_the_channels_alone(channels, rows):
    """Rows are repeated with the anchors that see the box, so that as large a share of the cells is near it."""
    def value(channels, rows):
        f_t = features(h=2, w=3)[1].abs().repeat(1, channels, rows, 1)
        loss = identity(FGFILoss([(f_t.shape[1],) * 2], off_steps=0)).double()
        return loss(step_of([torch.zeros_like(f_t)], [f_t], boxes=[torch.tensor([[0., 0., 7., 6.]])] * 2,
                            anchors=[grid(2, 3, 8, (8., 8.)).repeat(rows, 1)]))['fpn_0'].item()
    a, b = FGFILoss.WEIGHT_EXPONENTS['weight']
    assert value(channels, rows) == pytest.approx(channels ** a * rows ** b * value(1, 1))


def test_defaults():
    loss = FGFILoss([(64, 64)])
    assert (loss.weight, loss.overlap, loss.warm_up.off_steps) == (0.01, 0.5, 400)
    assert loss.adapt[0][0].weight.std().item() == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(weight=-1), 'weight=-1: expected a finite number of 0 or more'),
    (dict(overlap=1.5), 'overlap=1.5: expected a finite number of 0 or more and of 1 or less'),
    (dict(off_steps=-1), 'off_steps=-1: expected an integer of 0 or more')])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FGFILoss([(3, 4)], **arguments)

