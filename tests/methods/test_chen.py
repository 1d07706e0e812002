"""Chen (amdlib.methods.chen): by hand, against loops over proposals and anchors, no proposals, no boxes."""
from __future__ import annotations

import itertools
import math

import pytest
import torch

from amdlib.methods.chen import STDS, ChenLoss, bounded_error, moved_as, moves, nearest_box, soft_error
from amdlib.methods.gid import positive

from .oracle import F64, LN3, assert_close, assert_same_terms, conv1x1, features, grid, randomised, step_of
from .outputs import Coder, assert_same, drawn, head_of, made_boxes, scored

# --- Parts ------------------------------------------------------------------------------------------------------------

def test_soft_scores_by_hand():
    """Teacher 3/4 and 1/4, student halves, the second of them the background."""
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[LN3, 0.0]])
    assert soft_error(s, t, torch.tensor([1.0, 1.5])).item() == pytest.approx((0.75 + 1.5 * 0.25) * math.log(2))


def test_soft_scores_against_sums_and_a_constant():
    s, t, weights = drawn(5, 4), drawn(5, 4, seed=1, scale=3).detach(), torch.tensor([1, 1, 1, 1.5], dtype=F64)
    p, q = (torch.exp(z) / torch.exp(z).sum(dim=1, keepdim=True) for z in (s, t))
    assert_same(soft_error(s, t, weights).sum(), -(weights * q * torch.log(p)).sum(), s)
    assert torch.allclose(soft_error(s + 7, t - 3, weights), soft_error(s, t, weights), atol=1e-12)


def test_boxes_are_bounded_by_the_teachers():
    targets = torch.zeros(4, 4)
    moves_s = torch.tensor([[2.0], [1.0], [1.0], [1.0]]).expand(4, 4).clone().requires_grad_()     # 16, 4, 4, 4
    moves_t = torch.tensor([[1.0], [1.0], [1.1], [3.0]]).expand(4, 4)                               # 4, 4, 4.84, 36
    for margin, expected in ((0.0, [16, 0, 0, 0]), (0.01, [16, 4, 0, 0]), (1.0, [16, 4, 4, 0])):
        error = bounded_error(moves_s, moves_t, targets, margin)
        assert error.tolist() == expected
        gradient, = torch.autograd.grad(error.sum(), moves_s)
        assert gradient.abs().sum(dim=1).bool().tolist() == [one > 0 for one in expected]


def test_moves_lead_from_box_to_box():
    start, end = made_boxes(7), made_boxes(7, seed=1)
    assert_close(Coder.decode(start, moves(start, end)), end)
    assert not moves(start, start).any()
    by_hand = moves(torch.tensor([[0, 0, 10, 20.]]), torch.tensor([[5, 5, 15, 15.]]))
    assert by_hand[0].tolist() == pytest.approx([0.5, 0, 0, math.log(0.5)])


def test_a_proposals_box_by_hand():
    proposals = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 21], [19, 0, 30, 10.]])
    boxes, labels = torch.tensor([[0, 0, 10, 10], [20, 0, 30, 10.]]), torch.tensor([2, 0])
    has, targets, classes = nearest_box(proposals, boxes, labels)
    assert has.tolist() == [True, True, False, True]            # IoU 1, 0.5, 0.48, 0.91
    assert classes.tolist() == [2, 2, 2, 0]
    assert torch.equal(targets, moves(proposals, boxes[[0, 0, 0, 1]]))
    has, targets, classes = nearest_box(proposals, boxes[:0], labels[:0])
    assert not has.any()
    assert (targets.shape, classes.shape) == ((4, 4), (4,))


def test_moves_of_a_class_or_of_all():
    deltas = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(moved_as(deltas, torch.tensor([2, 0])), torch.stack([deltas[0, 2], deltas[1, 0]]))
    assert torch.equal(moved_as(deltas[:, :1], torch.tensor([2, 0])), deltas[:, 0])


# --- The loss of a step -----------------------------------------------------------------------------------------------

ANCHORS = [grid(4, 6, 8, (12., 12.), (16., 8.)).double(), grid(2, 3, 16, (20., 20.), (24., 16.)).double()]
BOXES = [torch.cat([made_boxes(1, side=40.0), ANCHORS[1][4:5] + 0.5]), made_boxes(1, seed=3, side=40.0)]
LABELS = [torch.tensor([1, 0]), torch.tensor([2])]


def shown(classes=3, boxes=BOXES, labels=LABELS, proposals=None, c_s=3):
    """Proposals near the boxes and far from them; a student that moves them by class, a teacher for all alike."""
    if proposals is None:
        proposals = [torch.cat([one + 0.7, one - 1.1, made_boxes(2, seed=9, side=40.0)]) for one in boxes]
    n = sum(map(len, proposals))
    (z_s, z_t), (d_s, d_t) = scored(2, 1), scored(2, 4, seed=100, scale=0.3)
    scores = {'student': drawn(n, classes + 1, seed=3), 'teacher': drawn(n, classes + 1, seed=4).detach()}
    deltas = {'student': drawn(n, classes, 4, seed=5, scale=0.3), 'teacher': drawn(n, 1, 4, seed=6, scale=0.3).detach()}
    levels = [features(c_s=c_s, h=h, w=w, seed=h) for h, w in ((4, 6), (2, 3))]
    f_s, f_t = map(list, zip(*levels, strict=True))
    return step_of(f_s, f_t, strides=[8, 16], boxes=boxes, labels=labels, proposals=proposals, anchors=ANCHORS,
                   heads_s=(z_s, d_s), heads_t=(z_t, d_t), teacher_head=head_of(1), roi_scores=scores.get,
                   roi_deltas=deltas.get, leaves=[*f_s, *z_s, *d_s, scores['student'], deltas['student']])


@pytest.mark.parametrize('c_s', [3, 4])
def test_terms_against_loops(c_s):
    step = shown(c_s=c_s)
    loss = randomised(ChenLoss([(c_s, 4)] * 2, score_weight=0.3, box_weight=0.5, hint_weight=0.7, background=2.0))
    p = dict(loss.named_parameters())
    (s, t), (d_s, d_t) = (map(of, ('student', 'teacher')) for of in (step.roi_scores, step.roi_deltas))
    score = box = rpn_score = rpn_box = objects = count = place = 0
    for image, proposals in enumerate(step.proposals):
        for proposal in proposals:
            q, log_p = t[place].softmax(dim=0), s[place].log_softmax(dim=0)
            score = score - sum((2 if k == 3 else 1) * q[k] * log_p[k] for k in range(4))
            has, target, label = (one[0] for one in nearest_box(proposal[None], BOXES[image], LABELS[image]))
            if has:
                errors = [sum(((d[i] - target[i]) / STDS[i]) ** 2 for i in range(4))
                          for d in (d_s[place, label], d_t[place, 0])]
                box = box + (errors[0] if errors[0] + 0.01 > errors[1] else 0)
            place += 1
    bounded = 0
    for level, (h, w) in enumerate(((4, 6), (2, 3))):
        for n, i, j, a in itertools.product(range(2), range(h), range(w), range(2)):
            z_s, z_t = (heads[0][level][n, a, i, j] for heads in (step.heads_s, step.heads_t))
            p_s, p_t = (1 / (1 + torch.exp(-z)) for z in (z_s, z_t))
            rpn_score = rpn_score - p_t * torch.log(p_s) - (1 - p_t) * torch.log(1 - p_s)
            objects = objects + p_t
            anchor = ANCHORS[level][(i * w + j) * 2 + a]
            if positive(torch.cat(ANCHORS), BOXES[n], 0.7).split([48, 12])[level][(i * w + j) * 2 + a]:
                target = nearest_box(anchor[None], BOXES[n], LABELS[n])[1][0]
                errors = [((heads[1][level][n, 4 * a:4 * a + 4, i, j] - target) ** 2).sum()
                          for heads in (step.heads_s, step.heads_t)]
                within = errors[0] + 0.01 > errors[1]
                rpn_box, bounded, count = rpn_box + (errors[0] if within else 0), bounded + (not within), count + 1
    assert 0 < bounded < count
    hint = sum(((conv1x1(f_s, p, f'adapt.{i}') - f_t) ** 2).mean()
               for i, (f_s, f_t) in enumerate(zip(step.f_s, step.f_t, strict=True))) / 2
    assert_same_terms(loss.weighted_losses(step), {
        'rpn_score': 0.3 * rpn_score / objects, 'rpn_box': 0.5 * rpn_box / count, 'score': 0.3 * score / place,
        'box': 0.5 * box / place, 'hint': 0.7 * hint}, [*step.leaves, *p.values()])


def test_no_proposals_no_boxes_one_class_no_gradient_to_the_teacher():
    loss = ChenLoss([(3, 4)] * 2).double()
    step = shown(boxes=[torch.zeros(0, 4)] * 2, labels=[torch.zeros(0, dtype=torch.long)] * 2,
                 proposals=[torch.zeros(0, 4)] * 2)
    terms = loss.weighted_losses(step)
    assert [terms[name].item() for name in ('rpn_box', 'score', 'box')] == [0, 0, 0]
    assert all(term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    step = shown(classes=1, labels=[label * 0 for label in LABELS])
    teachers = [*step.heads_t[0], *step.heads_t[1], step.roi_scores('teacher'), step.roi_deltas('teacher')]
    for one in teachers:
        one.requires_grad_()
    sum(loss.weighted_losses(step).values()).backward()
    assert all(one.grad is None for one in teachers)
    assert all(one.grad.abs().sum() > 0 for one in (*step.f_s, *step.heads_s[0], step.roi_scores('student')))
    assert sum(one.grad.abs().sum() for one in step.heads_s[1]) > 0


def test_a_teacher_that_knows_the_boxes_leaves_no_error_but_beyond_its_own():
    """Where the student is the better by more than the margin, nothing pulls it."""
    step = shown()
    targets = [nearest_box(*image) for image in zip(step.proposals, BOXES, LABELS, strict=True)]
    exact = torch.cat([one[1] for one in targets])
    step.roi_deltas = {'student': exact[:, None].expand(-1, 3, 4).clone().requires_grad_(),
                       'teacher': exact[:, None] + 0.5}.get
    assert ChenLoss([(3, 4)] * 2).double().weighted_losses(step)['box'] == 0
    step.roi_deltas = {'student': exact[:, None].expand(-1, 3, 4) + 0.5, 'teacher': exact[:, None]}.get
    assert ChenLoss([(3, 4)] * 2).double().weighted_losses(step)['box'] > 1


def test_defaults_are_the_published_ones():
    loss = ChenLoss([(3, 4)])
    assert (loss.box_weight, loss.hint_weight, loss.background, loss.margin) == (0.5, 0.5, 1.5, 0.01)
    assert loss.score_weight == (1 - 0.5) / 0.5             # mu = .5, beside the whole of the hard loss


@pytest.mark.parametrize(('offered', 'why'), [
    ({'heads', 'anchors', 'sigmoid', 'proposals'}, ''), ({'heads', 'anchors', 'sigmoid'}, 'proposals of a first stage'),
    ({'heads', 'anchors', 'proposals'}, 'a score of its own')])
def test_what_it_needs(offered, why):
    assert why in ChenLoss.cannot(offered, offered)
    assert bool(ChenLoss.cannot(offered, offered)) == bool(why)


@pytest.mark.parametrize('arguments', [dict(score_weight=-1), dict(margin=-0.1), dict(background=float('nan'))])
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ChenLoss([(3, 4)], **arguments)
