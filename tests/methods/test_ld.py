"""LD (amdlib.methods.ld): by hand, against loops over anchors and sides, regions, what it must not depend on."""
from __future__ import annotations

import itertools
import math

import pytest
import torch

from amdlib.methods.ld import LDLoss, regions, side_error

from .oracle import F64, LN3, assert_same_terms, grid, step_of
from .outputs import assert_same, drawn, head_of, made_boxes

# --- Sides ------------------------------------------------------------------------------------------------------------

def test_a_side_by_hand():
    """Two bins, at T = 10: teacher 3/4 and 1/4, student halves; one of four sides differs."""
    s, t = torch.zeros(1, 8), torch.zeros(1, 8)
    t[0, 2] = 10 * LN3
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert side_error(s, t, 10.0).item() == pytest.approx(100 * by_hand / 2 / 4, rel=1e-5)


def test_sides_against_sums():
    s, t = drawn(3, 4 * 5), drawn(3, 4 * 5, seed=1, scale=4).detach()
    total = 0
    for k, side in itertools.product(range(3), range(4)):
        p, q = (torch.exp(one[k, 5 * side:5 * side + 5] / 10) for one in (s, t))
        p, q = p / p.sum(), q / q.sum()
        total = total + (k + 1) * 100 * sum(q[i] * torch.log(q[i] / p[i]) for i in range(5)) / 5 / 4
    assert_same((side_error(s, t, 10.0) * torch.tensor([1, 2, 3])).sum(), total, s)


def test_sides_are_blind_to_a_constant_and_equal_ones_are_no_loss():
    s, t = drawn(3, 8), drawn(3, 8, seed=1)
    moved = s + torch.tensor([3.0, 3, -1, -1, 0, 0, 5, 5])
    assert torch.allclose(side_error(moved, t, 10.0), side_error(s, t, 10.0), atol=1e-12)
    assert side_error(t, t, 10.0).abs().max() < 1e-15
    assert side_error(s[:0], t[:0], 10.0).shape == (0,)


# --- Regions ----------------------------------------------------------------------------------------------------------

def test_regions_by_hand():
    """Three anchors, all candidates of one box, with IoU 1, 1/2 and 0: alpha is 1/2 + 1/2."""
    anchors = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 20], [30, 30, 40, 40.]])
    main, valuable = regions([anchors], anchors[:1])
    assert main.tolist() == [True, False, False]
    assert valuable.tolist() == [0, 0.5, 0]
    main, valuable = regions([anchors], anchors[:1], least=0.6)
    assert not valuable.any()
    # centres are 5 px apart, the diagonal of both is sqrt(500): 1/2 - 25/500
    for least, found in ((0.44, [0, 0.5, 0]), (0.46, [0, 0, 0])):
        assert regions([anchors], anchors[:1], diou=True, least=least)[1].tolist() == found


def test_the_centre_of_a_main_anchor_lies_in_the_box():
    box = torch.tensor([[0, 0, 10, 10.]])
    beside = torch.tensor([[2, 2, 18.5, 8], [30, 30, 40, 40], [50, 50, 60, 60.]])       # centre (10.25, 5)
    main, valuable = regions([beside], box)
    assert not main.any()
    assert not valuable.any()               # its IoU is above alpha, too


def overlap(a, b):
    width, height = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1))
    both = width * height
    return both / (sum((one[2] - one[0]) * (one[3] - one[1]) for one in (a, b)) - both)


@pytest.mark.parametrize('diou', [False, True])
def test_regions_against_loops(diou):
    levels, boxes = ANCHORS, made_boxes(3, seed=4, side=48.0)
    main, valuable = set(), {}
    anchors = [anchor for level in levels for anchor in level.tolist()]
    for box in boxes.tolist():
        def apart(anchor, box=box):
            return sum((anchor[i] + anchor[i + 2] - box[i] - box[i + 2]) ** 2 / 4 for i in (0, 1)) ** 0.5
        candidates, start = [], 0
        for level in levels:
            places = range(start, start + len(level))
            candidates += sorted(places, key=lambda place: apart(anchors[place]))[:9]
            start += len(level)
        found = [overlap(anchors[place], box) for place in candidates]
        mean = sum(found) / len(found)
        alpha = mean + (sum((one - mean) ** 2 for one in found) / (len(found) - 1)) ** 0.5
        for place, anchor in enumerate(anchors):
            own = bound = overlap(anchor, box)
            if diou:
                sides = [max(anchor[i + 2], box[i + 2]) - min(anchor[i], box[i]) for i in (0, 1)]
                bound = own - apart(anchor) ** 2 / (sides[0] ** 2 + sides[1] ** 2)
            if alpha / 4 <= bound < alpha:
                valuable[place] = max(own, valuable.get(place, 0))
            centre = [(anchor[i] + anchor[i + 2]) / 2 for i in (0, 1)]
            if place in candidates and own >= alpha and all(box[i] + 0.01 < centre[i] < box[i + 2] - 0.01
                                                            for i in (0, 1)):
                main.add(place)
    assert main
    assert len(valuable) > len(main)
    found = regions(levels, boxes, diou)
    assert set(found[0].nonzero()[:, 0].tolist()) == main
    assert {i: pytest.approx(value) for i, value in enumerate(found[1].tolist()) if value} == valuable


def test_no_box_and_one_position_have_no_regions():
    for levels, boxes in ((ANCHORS, torch.zeros(0, 4)), ([ANCHORS[0][:1]], torch.tensor([[0, 0, 9, 9.]]))):
        main, valuable = regions(levels, boxes)
        assert len(main) == len(valuable) == sum(map(len, levels))
        assert not main.any()
        assert not valuable.any()


# --- The loss of a step -----------------------------------------------------------------------------------------------

ANCHORS = [grid(5, 7, 8, (16., 16.)).double(), grid(3, 4, 16, (32., 32.)).double()]
SIZES = [(5, 7), (3, 4)]
BOXES = [made_boxes(2, seed=1, side=48.0), made_boxes(1, seed=2, side=48.0)]


def shown(boxes=BOXES, classes=3, bins=5):
    n = len(boxes)
    sides = [[[drawn(n, width, *size, seed=seed + 10 * i + place, scale=scale) for place, size in enumerate(SIZES)]
              for i, width in enumerate((classes, 4 * bins))] for seed, scale in ((0, 1.0), (100, 3.0))]
    return step_of([], [], strides=[8, 16], boxes=boxes, anchors=ANCHORS, heads_s=tuple(sides[0]),
                   heads_t=tuple([one.detach() for one in maps] for maps in sides[1]),
                   teacher_head=head_of(classes, reg_max=bins - 1), leaves=[one for maps in sides[0] for one in maps])


def kl(s, t, temperature):
    p, q = (torch.exp(one / temperature) for one in (s, t))
    p, q = p / p.sum(), q / q.sum()
    return temperature ** 2 * (q * torch.log(q / p)).sum() / len(p)


@pytest.mark.parametrize('diou', [False, True])
def test_terms_against_loops(diou):
    step = shown()
    (z_s, d_s), (z_t, d_t) = step.heads_s, step.heads_t
    main = valuable = classes = 0 * sum(one.sum() for one in step.leaves)       # a level may have neither region
    found = [regions(ANCHORS, boxes, diou) for boxes in BOXES]
    for level, (h, w) in enumerate(SIZES):
        scores = []
        for n, i, j in itertools.product(range(2), range(h), range(w)):
            place = 35 * level + i * w + j
            error = sum(kl(d_s[level][n, 5 * side:5 * side + 5, i, j], d_t[level][n, 5 * side:5 * side + 5, i, j], 10)
                        for side in range(4))
            if found[n][0][place]:
                main = main + max(1 / (1 + math.exp(-z)) for z in z_s[level][n, :, i, j].tolist()) * error / 4
                scores.append(kl(z_s[level][n, :, i, j], z_t[level][n, :, i, j], 2))
            valuable = valuable + found[n][1][place] * error / 16
        classes = classes + (sum(scores) / len(scores) if scores else 0)
    loss = LDLoss([(2, 2)] * 2, main_weight=0.3, valuable_weight=0.5, class_weight=0.7, diou=diou)
    assert_same_terms(loss.weighted_losses(step), {'main': 0.3 * main, 'valuable': 0.5 * valuable,
                                                   'class': 0.7 * classes}, step.leaves)


def test_regions_are_summed_over_the_batch_and_classes_a_mean():
    step, loss = shown(), LDLoss([(2, 2)] * 2)
    once = loss.weighted_losses(step)
    step.heads_s, step.heads_t = ([[torch.cat([one, one]) for one in maps] for maps in heads]
                                  for heads in (step.heads_s, step.heads_t))
    step.boxes = [*BOXES, *BOXES]
    twice = loss.weighted_losses(step)
    for name, weight in (('main', 'main_weight'), ('valuable', 'valuable_weight'), ('class', 'class_weight')):
        n = (*LDLoss.WEIGHT_EXPONENTS[weight], 0)[2]
        assert twice[name].item() == pytest.approx(2 ** n * once[name].item())


def test_no_boxes_one_class_and_no_gradient_to_the_teacher():
    step = shown(boxes=[torch.zeros(0, 4)] * 2)
    terms = LDLoss([(2, 2)] * 2).weighted_losses(step)
    assert [term.item() for term in terms.values()] == [0, 0, 0]
    sum(terms.values()).backward()
    step = shown(classes=1)
    for one in (*step.heads_t[0], *step.heads_t[1]):
        one.requires_grad_()
    terms = LDLoss([(2, 2)] * 2).weighted_losses(step)
    assert terms['class'] == 0                      # among one class there is nothing to tell apart
    sum(terms.values()).backward()
    assert all(one.grad is None for maps in step.heads_t for one in maps)
    assert all(one.grad is None or not one.grad.any() for one in step.heads_s[0])   # scores weigh, and are detached
    assert all(one.grad.abs().sum() > 0 for one in step.heads_s[1])


def test_equal_heads_are_no_loss():
    step = shown()
    step.heads_s = tuple([one.clone() for one in maps] for maps in step.heads_t)
    assert all(term.abs() < 1e-12 for term in LDLoss([(2, 2)] * 2).weighted_losses(step).values())


def test_other_bins_are_refused():
    step = shown()
    step.heads_t = step.heads_t[0], [drawn(2, 4 * 7, *size) for size in SIZES]
    step.teacher_head.reg_max = 6
    with pytest.raises(ValueError, match='the same classes of the same anchors'):
        LDLoss([(2, 2)] * 2).weighted_losses(step)


def test_defaults_are_the_published_ones():
    loss = LDLoss([(2, 2)])
    assert (loss.main_weight, loss.valuable_weight, loss.class_weight) == (0.25, 0.25, 10)
    assert (loss.temperature, loss.class_temperature, loss.diou) == (10, 2, False)


@pytest.mark.parametrize(('offered', 'why'), [
    ({'heads', 'anchors', 'sigmoid', 'distributions'}, ''),
    ({'heads', 'anchors', 'sigmoid', 'branches'}, 'the sides of a box as distributions: the student has none'),
    ({'heads', 'anchors', 'distributions'}, 'a score of its own')])
def test_what_it_needs(offered, why):
    assert why in LDLoss.cannot(offered, offered)
    assert bool(LDLoss.cannot(offered, offered)) == bool(why)


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(valuable_weight=-1), 'valuable_weight=-1'), (dict(temperature=0), 'temperature=0: expected a finite number')])
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        LDLoss([(2, 2)], **arguments)


def test_boxes_in_single_precision_are_taken():
    main, valuable = regions(ANCHORS, BOXES[0].float())
    assert main.any()
    assert valuable.dtype == F64
