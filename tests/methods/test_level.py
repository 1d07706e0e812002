"""The contract of all methods (amdlib.methods.level), and what methods share: random masks, checks of arguments."""
from __future__ import annotations

import ast
import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn

from amdlib import methods
from amdlib.methods.amd import AMDLoss
from amdlib.methods.fgd import FGDLoss
from amdlib.methods.level import LevelLoss, RandomMask, check_choice, check_integer, check_number, random_keep_mask

from .oracle import assert_close, call, features, randomised

LOSSES = [method for method in map(methods.find_method, methods.names()) if not methods.looks_at_steps(method)]


# --- The contract, for every method -----------------------------------------------------------------------------------

@pytest.mark.parametrize('method', LOSSES)
def test_student_side_learns_and_teacher_does_not(method):
    f_s, f_t = features()
    f_t.requires_grad_()
    loss = randomised(method(3, 4))
    call(loss, f_s, f_t).backward()
    assert f_t.grad is None
    assert f_s.grad.abs().sum() > 0
    assert all(p.grad is not None for p in loss.parameters())


@pytest.mark.parametrize('method', LOSSES)
@pytest.mark.parametrize('channels', [(3, 4), (4, 4)])
def test_one_image_of_one_position(method, channels):
    f_s, f_t = torch.randn(1, channels[0], 1, 1, requires_grad=True), torch.randn(1, channels[1], 1, 1)
    loss = method(*channels)
    value = loss(f_s, f_t, [torch.tensor([[10., 10., 90., 60.]])], [(128, 128)])
    value.backward()
    assert value.isfinite()
    assert f_s.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize('method', LOSSES)
def test_equal_features_have_finite_gradients(method):
    f_s = torch.ones(1, 4, 2, 2, requires_grad=True)
    loss = method(4, 4)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.zero_()
    value = loss(f_s, torch.zeros(1, 4, 2, 2), [torch.zeros(0, 4)], [(8, 8)])
    value.backward()
    assert f_s.grad.isfinite().all()


@pytest.mark.parametrize('method', LOSSES)
def test_float16_features_do_not_overflow(method):
    f_t = torch.full((1, 4, 8, 8), 3e4, dtype=torch.float16)
    f_t[..., 0, 0] = 0      # CWD sees no constant
    value = method(4, 4)(torch.zeros_like(f_t), f_t, [torch.tensor([[0., 0., 4., 4.]])], [(8, 8)])
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert value > 0


@pytest.mark.parametrize('method', LOSSES)
def test_autocast_changes_nothing(method):
    f_s, f_t = (f.float() for f in features())
    loss = method(3, 4)
    outside = call(copy.deepcopy(loss), f_s, f_t)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = call(loss, f_s, f_t)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize('method', LOSSES)
def test_copies_give_the_same_loss(method):
    f_s, f_t = features()
    loss = randomised(method(3, 4))
    clones = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), method(3, 4).double()]
    clones[2].load_state_dict(loss.state_dict())
    value = call(loss, f_s, f_t)
    assert all(torch.equal(call(clone, f_s, f_t), value) for clone in clones)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
@pytest.mark.parametrize('method', LOSSES)
def test_gpu_gives_the_same_loss(method):
    f_s, f_t = features()
    on_cpu = randomised(method(3, 4))
    on_gpu = copy.deepcopy(on_cpu).cuda()
    assert_close(call(on_gpu, f_s.cuda(), f_t.cuda()).cpu(), call(on_cpu, f_s, f_t).item())


@pytest.mark.parametrize('method', LOSSES)
@pytest.mark.parametrize(('s', 't'), [((2, 3, 4, 5), (2, 4, 5, 4)), ((2, 3, 4, 5), (3, 4, 4, 5)),
                                  ((2, 4, 4, 5), (2, 4, 4, 5))])
def test_shapes_that_do_not_fit_are_named(method, s, t):
    with pytest.raises(ValueError, match=rf'{re.escape(str(s))}.*{re.escape(str(t))}'):
        method(3, 4)(torch.zeros(s), torch.zeros(t))


@pytest.mark.parametrize('method', LOSSES)
def test_float64_stays_float64(method):
    assert call(method(3, 4).double(), *features()).dtype == torch.float64


@pytest.mark.parametrize('method', LOSSES)
def test_every_weight_declares_its_growth(method):
    loss = method(3, 4)
    assert method.WEIGHT_EXPONENTS
    assert all(isinstance(getattr(loss, weight), float) for weight in method.WEIGHT_EXPONENTS)


@pytest.mark.parametrize('method', LOSSES)
def test_published_options_are_taken(method):
    for published in method.PUBLISHED.values():
        loss = method(3, 4, **published)
        assert all(getattr(loss, weight) == published[weight] for weight in method.WEIGHT_EXPONENTS)


def test_a_label_is_never_the_parents():
    class Variant(AMDLoss):
        pass

    class Named(AMDLoss):
        LABEL = 'AMD+'
    assert (AMDLoss.LABEL, Variant.LABEL, Named.LABEL) == ('AMD', 'Variant', 'AMD+')


def test_a_method_without_weighted_loss_is_told():
    with pytest.raises(NotImplementedError, match='LevelLoss does not define weighted_loss'):
        LevelLoss(1, 1)(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))


def test_features_must_be_of_floating_point():
    with pytest.raises(ValueError, match='floating-point'):
        AMDLoss(1, 1)(torch.zeros(1, 1, 2, 2, dtype=torch.long), torch.zeros(1, 1, 2, 2))


def test_reseed_reaches_every_random_mask():
    class Two(LevelLoss):
        def __init__(self):
            super().__init__(1, 1)
            self.parts = nn.ModuleList([RandomMask(0.5, seed=1), RandomMask(0.5, seed=2)])
    probe, two = torch.zeros(1, 1, 6, 6), Two()
    two.reseed(3)
    assert all(torch.equal(part(probe), RandomMask(0.5, seed=3)(probe)) for part in two.parts)
    FGDLoss(3, 4).reseed(3)                                 # nothing there is random


# --- Random masks -----------------------------------------------------------------------------------------------------

def test_random_mask_is_the_public_draw():
    uniform = torch.rand((2, 1, 3, 5), generator=torch.Generator().manual_seed(7))
    mask = random_keep_mask(torch.zeros(2, 4, 3, 5), 0.65, torch.Generator().manual_seed(7))
    assert torch.equal(mask, (uniform <= 0.35).float())


def test_random_mask_does_not_depend_on_dtype():
    masks = [random_keep_mask(torch.zeros(1, 1, 8, 8, dtype=dtype), 0.5, torch.Generator().manual_seed(1))
             for dtype in (torch.float16, torch.float32, torch.float64)]
    assert [m.dtype for m in masks] == [torch.float16, torch.float32, torch.float64]
    assert torch.equal(masks[0].double(), masks[2])
    assert torch.equal(masks[1].double(), masks[2])


@pytest.mark.parametrize(('ratio', 'kept'), [(0, 1.0), (0.65, 0.35), (1, 0.0)])
def test_random_mask_ratio_is_the_masked_share(ratio, kept):
    mask = random_keep_mask(torch.zeros(4, 1, 100, 100), ratio, torch.Generator().manual_seed(0))
    assert mask.mean().item() == pytest.approx(kept, abs=0.01)


def test_random_masks_continue_after_a_resume():
    mask, probe = RandomMask(0.5, seed=3), torch.zeros(1, 1, 6, 6)
    mask(probe)
    buffer = io.BytesIO()
    torch.save(mask.state_dict(), buffer)
    expected = [mask(probe) for _ in range(3)]
    resumed = RandomMask(0.5, seed=99)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(torch.equal(resumed(probe), e) for e in expected)


def test_seed_fixes_the_masks_and_reseed_restarts_them():
    probe = torch.zeros(1, 1, 6, 6)
    a, b, other = RandomMask(0.5, seed=3), RandomMask(0.5, seed=3), RandomMask(0.5, seed=4)
    torch.manual_seed(0)
    first = a(probe)
    torch.manual_seed(1)                                    # the global generator plays no part
    assert torch.equal(first, b(probe))
    assert not torch.equal(first, other(probe))
    assert not torch.equal(first, a(probe))
    a.reseed(3)
    assert torch.equal(first, a(probe))


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_draw_the_same_masks_independently(clone):
    mask, probe = RandomMask(0.5, seed=3), torch.zeros(1, 1, 6, 6)
    mask(probe)
    twin = clone(mask)
    expected = [mask(probe) for _ in range(2)]
    assert all(torch.equal(twin(probe), e) for e in expected)


# --- Arguments, imports -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('check', 'value', 'message'), [
    (lambda v: check_choice('x', v, ('a', 'b')), 'c', "x='c': expected one of 'a', 'b'"),
    (lambda v: check_integer('x', v, at_least=1), 0, 'x=0: expected an integer of 1 or more'),
    (lambda v: check_integer('x', v, at_least=0), True, 'x=True'),
    (lambda v: check_integer('x', v, at_least=0), 1.0, 'x=1.0'),
    (lambda v: check_number('x', v), 'a', "x='a': expected a finite number"),
    (lambda v: check_number('x', v), float('nan'), 'x=nan'),
    (lambda v: check_number('x', v, above=0), 0, 'x=0: expected a finite number above 0'),
    (lambda v: check_number('x', v, at_least=0, at_most=1), 1.5, 'a finite number of 0 or more and of 1 or less'),
])
def test_checks(check, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check(value)


def test_random_masks_check_their_arguments():
    with pytest.raises(ValueError, match='torch.Generator'):
        random_keep_mask(torch.zeros(1, 1, 2, 2), 0.5, 7)
    with pytest.raises(ValueError, match='mask_ratio=1.5'):
        RandomMask(1.5)
    with pytest.raises(ValueError, match='seed=-1'):
        RandomMask(0.5, seed=-1)


@pytest.mark.parametrize('name', [*methods.CONTRACTS, *methods.names()])
def test_the_mathematics_imports_torch_alone(name):
    tree = ast.parse((methods.FOLDER / f'{name}.py').read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    imported |= {'.' * node.level + (node.module or '') for node in imports if isinstance(node, ast.ImportFrom)}
    siblings = {module for module in imported if module.startswith('amdlib.methods.')}
    assert imported - siblings <= {'__future__', 'collections.abc', 'math', 'typing', 'torch', 'torch.nn'}
    assert all(node in tree.body for node in imports)       # where the fingerprint of a run looks for them
