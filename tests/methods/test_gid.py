"""GID (amdlib.methods.gid): by hand, against loops over pairs and anchors, few instances."""
from __future__ import annotations

import itertools
import math

import pytest
import torch

from amdlib.methods.fgfi import iou
from amdlib.methods.gid import GIDLoss, decoded, distances, general_instances, positive, relation_error

from .oracle import F64, assert_close, assert_same_terms, conv1x1, grid, randomised, step_of
from .outputs import assert_same, drawn, head_of, made_boxes, scored

# --- Instances --------------------------------------------------------------------------------------------------------

def found_by_hand(p_s, p_t, boxes_s, boxes_t, shape=(80, 80), **options):
    p_s, p_t = (torch.tensor(p, dtype=F64) for p in (p_s, p_t))
    boxes_s, boxes_t = (torch.tensor(boxes, dtype=F64) for boxes in (boxes_s, boxes_t))
    return general_instances(p_s, p_t, boxes_s, boxes_t, shape, **options).tolist()


def test_the_box_is_that_of_the_surer_side_and_the_largest_difference_comes_first():
    ours, theirs = [[0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 12, 12], [20, 20, 32, 32]]
    # largest scores: student .9 and .2, teacher .3 and .5; differences .6 and .3
    assert found_by_hand([[.1, .9], [.2, .1]], [[.3, .2], [.1, .5]], ours, theirs) == [ours[0], theirs[1]]
    assert found_by_hand([[.1, .9], [.2, .1]], [[.8, .2], [.1, .9]], ours, theirs) == [theirs[1], ours[0]]
    assert found_by_hand([[.1, .9], [.2, .1]], [[.3, .2], [.1, .5]], ours, theirs, kept=1) == [ours[0]]
    assert found_by_hand([[.1, .9], [.2, .1]], [[.8, .2], [.1, .9]], ours, theirs, considered=1) == [theirs[1]]


def test_what_overlaps_a_better_one_by_more_than_the_threshold_goes():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 20], [0, 8, 10, 30], [40, 40, 41, 41], [70, 70, 99, 99]]
    scores = [[.9], [.8], [.7], [.6], [.5]]
    found = found_by_hand(scores, [[0.0]] * 5, boxes, boxes)
    # the second overlaps the first by 1/2, the third by 1/15; then one of exactly 1/80 of a side; one is clipped
    assert found == [boxes[0], boxes[2], boxes[3], [70, 70, 80, 80]]
    assert found_by_hand(scores, [[0.0]] * 5, boxes, boxes, shape=(160, 81)) == [boxes[0], boxes[2], [70, 70, 81, 99]]


def test_instances_against_a_plain_loop():
    boxes_s, boxes_t = made_boxes(60), made_boxes(60, seed=1)
    p_s, p_t = drawn(60, 3).sigmoid(), drawn(60, 3, seed=1).sigmoid()
    order = sorted(range(60), key=lambda i: -abs(max(p_t[i].tolist()) - max(p_s[i].tolist())))
    kept = []
    for i in order:
        box = boxes_t[i] if max(p_t[i].tolist()) > max(p_s[i].tolist()) else boxes_s[i]
        if len(kept) < 10 and all(iou(box[None], other[None]) <= 0.3 for other in kept):
            kept.append(box)
    found = general_instances(p_s, p_t, boxes_s, boxes_t, (64, 64))
    assert torch.equal(found, torch.stack(kept))
    assert not found.requires_grad


# --- Terms ------------------------------------------------------------------------------------------------------------

def test_distances_by_hand():
    f = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])      # 5, 8 and 5 apart, 6 in the mean
    assert torch.allclose(distances(f), torch.tensor([[0, 5, 8], [5, 0, 5], [8, 5, 0]]) / 6)


def test_relation_against_loops_and_what_it_does_not_see():
    f_s, f_t = drawn(4, 2, 3, 3), drawn(4, 2, 3, 3, seed=1).detach()

    def apart(f):
        pairs = {(i, j): torch.sqrt(((f[i] - f[j]) ** 2).sum()) for i, j in itertools.permutations(range(4), 2)}
        mean = sum(pairs.values()) / 12
        return {pair: value / mean for pair, value in pairs.items()}
    s, t = apart(f_s), apart(f_t)
    total = sum((s[pair] - t[pair]) ** 2 / 2 if abs(s[pair] - t[pair]) < 1 else abs(s[pair] - t[pair]) - 0.5
                for pair in s)
    assert_same(relation_error(f_s, f_t), total / 12, f_s)
    moved = relation_error(5 * f_s + 3, 0.1 * f_t)              # scale and shift of a side
    assert moved.item() == pytest.approx(relation_error(f_s, f_t).item())
    assert relation_error(7 * f_t, f_t) < 1e-20


@pytest.mark.parametrize('m', [0, 1, 2])
def test_fewer_than_three_instances_have_no_relation(m):
    f_s, f_t = drawn(m, 2, 3, 3), drawn(m, 2, 3, 3, seed=1).detach()
    value = relation_error(f_s, f_t)
    assert value == 0
    assert torch.autograd.grad(value, f_s)[0].shape == f_s.shape


def test_instances_of_one_feature_have_finite_gradients():
    f_s = torch.ones(3, 2, dtype=F64, requires_grad=True)
    gradient, = torch.autograd.grad(relation_error(f_s, drawn(3, 2).detach()), f_s)
    assert gradient.isfinite().all()


def test_positive_anchors_by_hand():
    anchors = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 40, 40], [50, 50, 60, 60.]])
    assert positive(anchors, torch.tensor([[0, 0, 10, 10.]])).tolist() == [True, True, False, False]
    assert positive(anchors, torch.tensor([[0, 0, 20, 20.]])).tolist() == [False, True, False, False]
    assert positive(anchors, torch.tensor([[0, 0, 25, 25.]])).tolist() == [False, False, True, False]  # nearest: 0.39
    assert positive(anchors, torch.tensor([[70, 70, 80, 80.]])).tolist() == [False] * 4                 # touches none
    assert positive(anchors, torch.zeros(0, 4)).tolist() == [False] * 4


# --- The loss of a step -----------------------------------------------------------------------------------------------

ANCHORS = [grid(4, 6, 8, (8., 8.), (16., 8.)).double(), grid(2, 3, 16, (16., 16.), (24., 16.)).double()]


def shown(c_s=2, n=2, classes=3):
    """A step with a head of two levels, where what is pooled of a box is a function of its corners."""
    (maps_s, maps_t), (deltas_s, deltas_t) = scored(n, classes), scored(n, 4, seed=100, scale=0.2)
    pools = {'student': drawn(4, c_s * 100, seed=7), 'teacher': drawn(4, 200, seed=8).detach()}

    def pooled(side, boxes, size):
        step.asked.append(boxes)
        return (torch.cat(boxes) / 50 @ pools[side]).view(-1, c_s if side == 'student' else 2, size, size)
    step = step_of([], [], strides=[8, 16], heads_s=(maps_s, deltas_s), heads_t=(maps_t, deltas_t), anchors=ANCHORS,
                   teacher_head=head_of(classes), image_shapes=[(32, 48)] * n, roi_features=pooled, asked=[],
                   leaves=[*maps_s, *deltas_s, pools['student']])
    return step


@pytest.mark.parametrize(('c_s', 'adapt'), [(2, False), (2, True), (3, False)])
def test_terms_against_loops(c_s, adapt):
    step = shown(c_s)
    loss = randomised(GIDLoss([(c_s, 2)] * 2, feature_weight=0.3, relation_weight=0.5, score_weight=0.7,
                              box_weight=0.9, adapt=adapt))
    terms = loss.weighted_losses(step)
    p = dict(loss.named_parameters())
    assert bool(p) == (adapt or c_s != 2)
    boxes = step.asked[0]
    assert all(one is other for one, other in zip(*step.asked, strict=True))
    assert all(3 <= len(one) <= 10 for one in boxes)
    f_s, f_t = (step.roi_features(side, boxes, 10) for side in ('student', 'teacher'))
    f_s = conv1x1(f_s, p, 'align') if p else f_s
    score = box = count = 0
    for level, (h, w) in enumerate(((4, 6), (2, 3))):
        sides = [(heads[0][level], heads[1][level]) for heads in (step.heads_s, step.heads_t)]
        masks = [positive(torch.cat(ANCHORS), one).split([48, 12])[level] for one in boxes]
        for n, i, j, a in itertools.product(range(2), range(h), range(w), range(2)):
            if not masks[n][(i * w + j) * 2 + a]:
                continue
            (z_s, d_s), (z_t, d_t) = ((z[n, 3 * a:3 * a + 3, i, j], d[n, 4 * a:4 * a + 4, i, j]) for z, d in sides)
            p_s, p_t = 1 / (1 + torch.exp(-z_s)), 1 / (1 + torch.exp(-z_t))
            score = score - (p_t * torch.log(p_s) + (1 - p_t) * torch.log(1 - p_s)).sum()
            box, count = box + (d_s - d_t).abs().sum(), count + 1
    assert count > 0
    assert loss.told['instances'] == sum(map(len, boxes)) / 2
    assert_same_terms(terms, {'feature': 0.3 * ((f_s - f_t) ** 2).sum() / (len(f_t) * 100),
                              'relation': 0.5 * relation_error(f_s, f_t), 'score': 0.7 * score / count,
                              'box': 0.9 * box / count}, [*step.leaves, *p.values()])


def test_the_instances_are_those_of_the_decoded_boxes():
    step = shown(n=1)
    GIDLoss([(2, 2)]).double().weighted_losses(step)
    scores, boxes = [], []
    for heads in (step.heads_s, step.heads_t):
        z, d = (torch.cat([one[0].view(2, width, -1).permute(2, 0, 1).reshape(-1, width) for one in maps]).detach()
                for maps, width in zip(heads, (3, 4), strict=True))
        scores.append(torch.sigmoid(z))
        boxes.append(decoded(step.teacher_head, torch.cat(ANCHORS), d[None])[0])
    assert_close(step.asked[0][0], general_instances(*scores, *boxes, (32, 48)))


def test_no_instance_one_class_and_no_gradient_to_the_teacher():
    step = shown(classes=1)
    for one in (*step.heads_t[0], *step.heads_t[1]):
        one.requires_grad_()
    sum(GIDLoss([(2, 2)]).double().weighted_losses(step).values()).backward()
    assert all(one.grad is None for maps in step.heads_t for one in maps)
    assert all(one.grad.isfinite().all() and one.grad.abs().sum() > 0 for one in step.leaves)
    for one in step.heads_s[1]:             # moved out of the picture
        one.data.fill_(-50)
    step.heads_t = step.heads_t[0], [one.detach() for one in step.heads_s[1]]
    terms = GIDLoss([(2, 2)]).double().weighted_losses(step)
    assert [term.item() for term in terms.values()] == [0, 0, 0, 0]
    sum(terms.values()).backward()


def test_feature_grows_with_channels_alone():
    assert GIDLoss.WEIGHT_EXPONENTS['feature_weight'] == (1, 0)
    assert math.isclose(GIDLoss([(2, 2)]).feature_weight, 5e-4)


@pytest.mark.parametrize(('offered', 'why'), [
    ({'heads', 'anchors', 'sigmoid', 'branches'}, ''), ({'heads', 'anchors', 'sigmoid', 'proposals'}, ''),
    ({'heads', 'anchors', 'sigmoid'}, 'needs boxes that are moved anchors'),
    ({'heads', 'anchors', 'branches'}, 'a score of its own')])
def test_what_it_needs(offered, why):
    assert why in GIDLoss.cannot(offered, offered)
    assert bool(GIDLoss.cannot(offered, offered)) == bool(why)
