"""CrossKD (amdlib.methods.crosskd): by hand, against loops, and where its gradient goes."""
from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from amdlib.methods.crosskd import CrossKDLoss, giou, in_place_of, score_error
from amdlib.methods.gid import decoded, positive

from .oracle import F64, LN3, assert_same_terms, grid, pixel_conv3x3, step_of
from .outputs import assert_same, drawn, head_of, made_boxes

# --- The parts --------------------------------------------------------------------------------------------------------

def test_a_feature_in_place_of_the_teachers_has_its_mean_and_deviation():
    h_s, h_t = drawn(2, 3, 4, 5, scale=5), drawn(2, 3, 4, 5, seed=1) + 2
    found = in_place_of(h_s, h_t)
    for k in range(3):
        assert found[:, k].mean().item() == pytest.approx(h_t[:, k].mean().item())
        assert found[:, k].std().item() == pytest.approx(h_t[:, k].std().item(), rel=1e-5)
    assert torch.allclose(in_place_of(7 * h_s - 3, h_t), found, atol=1e-5)
    assert torch.allclose(in_place_of(h_t, h_t), h_t, atol=1e-5)


def test_a_channel_that_is_constant_becomes_the_teachers_mean():
    """As dead channels are behind a ReLU; also where there is one position."""
    for shape in ((2, 3, 4, 5), (1, 3, 1, 1)):
        h_s, h_t = torch.zeros(shape, requires_grad=True), torch.rand(shape)
        found = in_place_of(h_s, h_t)
        assert torch.allclose(found, h_t.mean(dim=(0, 2, 3), keepdim=True).expand(shape))
        assert torch.autograd.grad(found.square().sum(), h_s)[0].isfinite().all()


def test_score_error_by_hand_and_against_sums():
    s, t = torch.tensor([[0.0, LN3]]), torch.tensor([[LN3, LN3]])
    assert score_error(s, t).item() == pytest.approx(0.25 * math.log(2))        # |1/2 - 3/4| ln 2, and 0
    s, t = drawn(5, 4), drawn(5, 4, seed=1).detach()
    p_s, p_t = 1 / (1 + torch.exp(-s)), 1 / (1 + torch.exp(-t))
    cross = -(p_t * torch.log(p_s) + (1 - p_t) * torch.log(1 - p_s))
    assert_same(score_error(s, t).sum(), (torch.sqrt((p_s - p_t) ** 2) * cross).sum(), s)


def test_giou_by_hand():
    a = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3.]])
    b = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 3, 1], [3, 3, 3, 3.]])
    assert torch.allclose(giou(a, b), torch.tensor([1, 1 / 7 - 2 / 9, -1 / 3, 0]))


def test_giou_against_one_box_at_a_time():
    a, b = made_boxes(20).requires_grad_(), made_boxes(20, seed=1)
    total = 0
    for x, y in zip(a, b, strict=True):
        wide, high = (torch.relu(torch.minimum(x[i + 2], y[i + 2]) - torch.maximum(x[i], y[i])) for i in (0, 1))
        around = ((torch.maximum(x[2], y[2]) - torch.minimum(x[0], y[0]))
                  * (torch.maximum(x[3], y[3]) - torch.minimum(x[1], y[1])))
        union = (x[2] - x[0]) * (x[3] - x[1]) + (y[2] - y[0]) * (y[3] - y[1]) - wide * high
        total = total + wide * high / union - (around - union) / around
    assert_same(giou(a, b).sum(), total, a)


# --- The loss of a step -----------------------------------------------------------------------------------------------

ANCHORS = [grid(4, 6, 8, (8., 8.), (16., 8.)).double(), grid(2, 3, 16, (16., 16.), (24., 16.)).double()]
BOXES = [torch.tensor([[4., 4., 15., 12.], [20., 10., 40., 26.]], dtype=F64), torch.zeros(0, 4, dtype=F64)]


def branch(convs, seed):
    torch.manual_seed(seed)
    return nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()) for _ in range(convs)).double()


def shown(convs=3, classes=2, boxes=None, student_convs=None, width=3):
    """A step of a head of two levels and two anchors a position, with the features inside both heads."""
    head = head_of(classes, cls_convs=branch(convs, 1), reg_convs=branch(convs, 2),
                   retina_cls=nn.Conv2d(3, 2 * classes, 3, padding=1).double(),
                   retina_reg=nn.Conv2d(3, 8, 3, padding=1).double())
    inside_s = {f'{name}.{i}': [drawn(2, width, *size, seed=20 * k + i + size[0]) for size in ((4, 6), (2, 3))]
                for k, name in enumerate(('cls_convs', 'reg_convs')) for i in range(student_convs or convs)}
    inside_t, heads_t = {}, ([], [])
    for level, size in enumerate(((4, 6), (2, 3))):
        for k, (name, output) in enumerate((('cls_convs', head.retina_cls), ('reg_convs', head.retina_reg))):
            h = drawn(2, 3, *size, seed=90 + level).detach()
            with torch.no_grad():
                for i, conv in enumerate(getattr(head, name)):
                    h = conv(h)
                    inside_t.setdefault(f'{name}.{i}', []).append(h)
                heads_t[k].append(output(h))
    return step_of([], [], strides=[8, 16], boxes=boxes or BOXES, anchors=ANCHORS, teacher_head=head,
                   inside_s=inside_s, inside_t=inside_t, heads_t=heads_t)


@pytest.mark.parametrize(('convs', 'after', 'taken'), [(3, 3, 1), (3, 1, 0), (4, 3, 2), (1, 3, 0)])
def test_terms_against_loops(convs, after, taken):
    """`taken`: the convolution whose output is the student's, counted from 0; behind it all are the teacher's."""
    step = shown(convs)
    head, positives = step.teacher_head, sum(int(positive(torch.cat(ANCHORS), one).sum()) for one in BOXES)
    score = box = 0
    leaves = [one for name in ('cls_convs', 'reg_convs') for one in step.inside_s[f'{name}.{taken}']]
    for level, (h, w) in enumerate(((4, 6), (2, 3))):
        outputs = []
        for name, output in (('cls_convs', head.retina_cls), ('reg_convs', head.retina_reg)):
            x, t = (inside[f'{name}.{taken}'][level] for inside in (step.inside_s, step.inside_t))
            channels = []
            for k in range(3):
                deviation_s, deviation_t = (torch.sqrt(((y[:, k] - y[:, k].mean()) ** 2).mean()) for y in (x, t))
                channels.append((x[:, k] - x[:, k].mean()) / (deviation_s + 1e-6) * deviation_t + t[:, k].mean())
            x = torch.stack(channels, dim=1)
            for conv in getattr(head, name)[taken + 1:]:
                x = torch.tanh(pixel_conv3x3(x, conv[0].weight, conv[0].bias))
            outputs.append(pixel_conv3x3(x, output.weight, output.bias))
        for n, i, j, a in itertools.product(range(2), range(h), range(w), range(2)):
            z, d = outputs[0][n, 2 * a:2 * a + 2, i, j], outputs[1][n, 4 * a:4 * a + 4, i, j]
            of_teacher = [maps[level][n, :, i, j] for maps in step.heads_t]
            z_t, d_t = of_teacher[0][2 * a:2 * a + 2], of_teacher[1][4 * a:4 * a + 4]
            p, p_t = 1 / (1 + torch.exp(-z)), 1 / (1 + torch.exp(-z_t))
            score = score - ((p - p_t).abs() * (p_t * torch.log(p) + (1 - p_t) * torch.log(1 - p))).sum()
            anchor = ANCHORS[level][(i * w + j) * 2 + a][None]
            ours, theirs = (decoded(head, anchor, one[None, None])[0] for one in (d, d_t))
            box = box + p_t.max() * (1 - giou(ours, theirs)[0])
    assert positives > 1
    found = CrossKDLoss([(3, 3)], score_weight=0.3, box_weight=0.7, after=after).weighted_losses(step)
    assert_same_terms(found, {'score': 0.3 * score / positives, 'box': 0.7 * box / positives}, leaves)


def test_the_gradient_passes_through_the_teachers_head_and_none_goes_into_it():
    step = shown()
    parts = (step.teacher_head.cls_convs, step.teacher_head.reg_convs, step.teacher_head.retina_cls,
             step.teacher_head.retina_reg)
    for part in parts:
        part.requires_grad_(False)
    sum(CrossKDLoss([(3, 3)]).weighted_losses(step).values()).backward()
    assert all(one.grad.abs().sum() > 0 for name in ('cls_convs.1', 'reg_convs.1') for one in step.inside_s[name])
    assert all(p.grad is None for part in parts for p in part.parameters())


def test_the_teachers_own_feature_is_no_error_and_has_no_gradient_in_the_scores():
    step = shown()
    step.inside_s = {name: [one.clone().requires_grad_() for one in found] for name, found in step.inside_t.items()}
    terms = CrossKDLoss([(3, 3)]).weighted_losses(step)
    assert terms['score'].abs() < 1e-4      # but for the deviation's 1e-6
    assert terms['box'].abs() < 1e-4


def test_no_boxes_divide_by_one_and_one_class_is_enough():
    step = shown(classes=1, boxes=[torch.zeros(0, 4, dtype=F64)] * 2)
    alone = CrossKDLoss([(3, 3)]).weighted_losses(step)
    assert all(term.isfinite() and term > 0 for term in alone.values())
    step.boxes = BOXES
    count = sum(int(positive(torch.cat(ANCHORS), one).sum()) for one in BOXES)
    for name, term in CrossKDLoss([(3, 3)]).weighted_losses(step).items():
        assert term.item() == pytest.approx(alone[name].item() / count)


def test_heads_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="the student's head has no cls_convs.1"):
        CrossKDLoss([(3, 3)]).weighted_losses(shown(student_convs=1))
    with pytest.raises(ValueError, match=r'\(2, 5, 4, 6\) and \(2, 3, 4, 6\)'):
        CrossKDLoss([(3, 3)]).weighted_losses(shown(width=5))


@pytest.mark.parametrize(('offered', 'why'), [
    ({'heads', 'anchors', 'sigmoid', 'branches'}, ''), ({'heads', 'anchors', 'sigmoid'}, 'two rows of convolutions'),
    ({'heads', 'anchors', 'branches'}, 'a score of its own')])
def test_what_it_needs(offered, why):
    assert why in CrossKDLoss.cannot(offered, offered)
    assert bool(CrossKDLoss.cannot(offered, offered)) == bool(why)
