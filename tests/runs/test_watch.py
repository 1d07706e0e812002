"""watch.py: what is counted, when it warns and when it must not, a resumed run, and that it changes nothing."""
import logging
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from amdlib.engine import training
from amdlib.errors import RunError
from amdlib.files import read_json
from amdlib.methods import find_method
from amdlib.methods.step import StepLoss, WarmUp
from amdlib.runs import watch
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.runs.train import train
from amdlib.runs.watch import CLIP_STEPS, MASK_STEPS, RATIO_STEPS, SETTLED, BedWatch, baseline_of, take_summary

slow = pytest.mark.slow


class Steps:
    """Stands in for mmengine's Runner: feeds a hook one step after another."""

    def __init__(self, hook, folder='', max_norm=35.0, model=None, begin=0):
        self.hook, self.iter, self.work_dir, self.updates = hook, begin, folder, True
        self.norm = 1.0
        self.model = model or nn.Identity()
        self.optim_wrapper = SimpleNamespace(clip_grad_kwargs={'max_norm': max_norm} if max_norm else None,
                                             should_update=lambda: self.updates)
        self.message_hub = SimpleNamespace(get_scalar=lambda name: SimpleNamespace(current=lambda: self.norm))

    def __call__(self, count=1, norm=1.0, **outputs):
        self.norm = norm
        for _ in range(count):
            self.hook.after_train_iter(self, 0, None, {name: torch.tensor(value) for name, value in outputs.items()})
            self.iter += 1


@pytest.fixture
def hook():
    return BedWatch('retinanet-amd-s0')


def warned(caplog):
    return [record.getMessage() for record in caplog.records if 'warning' in record.getMessage()]


# ---- what is counted --------------------------------------------------------------------------------------------

def test_every_step_is_counted_not_only_those_that_are_logged(hook):
    steps = Steps(hook)
    for norm in (34.9, 35.0, 35.1, 1000.0):
        steps(norm=norm)
    assert hook.summary()['clipped_share'] == 0.5
    assert hook.summary()['steps'] == 4


def test_a_step_that_changes_no_weight_and_one_that_overflowed_do_not_count(hook):
    steps = Steps(hook)
    steps(norm=100.0)
    steps.updates = False
    steps(3, norm=1.0)
    steps.updates = True
    steps(norm=float('inf'))
    assert list(hook.clipped) == [1]


def test_without_clipping_nothing_is_counted(hook):
    Steps(hook, max_norm=None)(5)
    assert hook.summary()['clipped_share'] is None


def test_the_median_ratio_is_that_after_step_100(hook):
    steps = Steps(hook)
    steps(SETTLED, ratio=1000.0)
    assert hook.summary()['ratio_median'] is None       # not known yet, so not said
    steps(3, ratio=2.0)
    steps(2, ratio=4.0)
    assert hook.summary()['ratio_median'] == 2.0


def test_gradients_by_step_and_their_ratio(hook):
    steps = Steps(hook)
    steps(grad_detection=2.0, grad_distillation=100.0)
    steps(99)
    steps(grad_detection=2.0, grad_distillation=6.0)
    steps(99)
    steps(grad_detection=0.0, grad_distillation=6.0)    # has no ratio
    assert hook.gradients == [[1, 2.0, 100.0], [101, 2.0, 6.0], [201, 0.0, 6.0]]
    assert hook.summary()['gradient_ratio_median'] == 3.0


def test_masks_and_shares_by_level_are_means_over_steps(hook):
    steps = Steps(hook)
    steps(masked_fpn_0=0.5, share_fpn_0=0.1, masked_fpn_1=1.0, share_fpn_1=0.2)
    steps(masked_fpn_0=0.25, share_fpn_0=0.3, masked_fpn_1=0.0, share_fpn_1=0.2)
    told = hook.summary()
    assert told['masked'] == {'0': 0.375, '1': 0.5}
    assert told['share'] == pytest.approx({'0': 0.2, '1': 0.2})


def test_over_time_has_ten_parts_that_cover_the_run(hook):
    steps = Steps(hook)
    for part in range(10):
        steps(20, norm=100.0 if part == 0 else 1.0, ratio=float(part))
    told = hook.summary()['over_time']
    assert [part['step'] for part in told] == list(range(20, 201, 20))
    assert [part['ratio'] for part in told] == list(range(10))
    assert [part['clipped_share'] for part in told] == [1.0, *[0.0] * 9]


@pytest.mark.parametrize('loss', [float('nan'), float('inf')])
def test_a_loss_that_is_not_finite_stops_the_run(hook, loss):
    steps = Steps(hook)
    steps(loss=1.0)
    with pytest.raises(RunError, match=f'the loss is not finite .{loss:g}. at step 2'):
        steps(loss=loss)


def test_a_student_trained_alone_has_clipping_only(hook, caplog):
    Steps(hook)(300, loss=1.0)
    told = hook.summary()
    assert (told['clipped_share'], told['ratio_median'], told['masked'], told['share']) == (0.0, None, {}, {})
    assert warned(caplog) == told['warnings'] == []


def test_the_summary_goes_through_a_file_once(hook, tmp_path):
    steps = Steps(hook, tmp_path)
    steps(3, ratio=1.0)
    hook.after_train(steps)
    assert take_summary(tmp_path) == hook.summary()
    assert take_summary(tmp_path) is None
    assert take_summary(tmp_path / 'gone') is None


# ---- when it warns ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('ratio', 'told'), [(0.05, True), (0.11, False), (9.9, False), (12.0, True)])
def test_distillation_far_from_detection_is_told_once(hook, caplog, ratio, told):
    Steps(hook)(SETTLED + RATIO_STEPS + 200, ratio=ratio)
    assert len(warned(caplog)) == told
    if told:
        assert f'retinanet-amd-s0: warning: distillation is {ratio:.3g} times the detection loss' in warned(caplog)[0]
        assert hook.summary()['warnings'] == [warned(caplog)[0].partition('warning: ')[2]]


def test_the_first_hundred_steps_may_be_wild(hook, caplog):
    steps = Steps(hook)
    steps(SETTLED, ratio=1e4)
    steps(RATIO_STEPS * 2, ratio=1.0)
    assert warned(caplog) == []


@pytest.mark.parametrize(('clipped', 'told'), [(40, False), (50, True)])
def test_more_than_a_fifth_of_the_last_200_clipped_is_told_once(hook, caplog, clipped, told):
    steps = Steps(hook)
    for _ in range(3):
        steps(CLIP_STEPS - clipped, norm=1.0)
        steps(clipped, norm=99.0)
    assert len(warned(caplog)) == told
    assert all('of the last 200 updates were clipped' in text for text in warned(caplog))


@pytest.mark.parametrize(('share', 'positions', 'told'), [
    (1.0, 16, 'wholly'), (0.0, 16, 'not at all'), (1.0, 15, ''), (0.0, 4, ''), (0.01, 256, ''), (0.99, 256, '')])
def test_a_level_masked_wholly_or_not_at_all_is_told(hook, caplog, share, positions, told):
    hook.positions = {2: positions}
    Steps(hook)(MASK_STEPS * 2, masked_fpn_2=share)
    assert len(warned(caplog)) == bool(told)
    assert all(f'level 2 ({positions} positions) is masked {told}' in text for text in warned(caplog))


def test_a_control_that_masks_all_by_design_is_not_told():
    of = {row: BedWatch.of(Run.of(f'retinanet-{row}', 'mini')) for row in (
        'baseline', 'mgd', 'amd', 'amd-allmasked', 'amd-unmasked', 'amd-permuted')}
    assert {row for row, hook in of.items() if hook.may_mask_all_or_none} == {'amd-allmasked', 'amd-unmasked'}
    assert {row for row, hook in of.items() if hook.may_teach_nothing} == {'amd-allmasked'}


def test_its_masks_are_not_looked_at(caplog):
    hook = BedWatch('a', may_mask_all_or_none=True)
    hook.positions = {0: 256}
    Steps(hook)(MASK_STEPS * 2, masked_fpn_0=1.0)
    assert warned(caplog) == []


def _first_step(hook, spatial='adaptive', begin=0, **options):
    """One forward pass of AMD on two levels, as a Distiller would make it."""
    torch.manual_seed(0)
    losses = nn.ModuleDict({f'loss_amd_fpn_{i}': find_method('amd')(16, 16, spatial=spatial, **options)
                            for i in (0, 1)})
    model = nn.Module()
    model.distill_losses = losses
    steps = Steps(hook, model=model, begin=begin)
    hook.before_train(steps)
    features = [torch.rand(2, 16, size, size, requires_grad=True) for size in (8, 4)]
    total = sum(loss(feature, torch.rand(2, 16, *feature.shape[2:]))
                for loss, feature in zip(losses.values(), features, strict=True))
    steps()
    assert not any(loss._forward_hooks for loss in losses.values())
    total.backward()    # the graph is still there
    return [feature.grad for feature in features]


def test_a_term_that_teaches_nothing_at_the_first_step_is_told(hook, caplog):
    gradients = _first_step(hook, spatial='all')
    assert not any(gradient.any() for gradient in gradients)
    assert [text.partition('warning: ')[2] for text in warned(caplog)] == [
        f'loss_amd_fpn_{i} gives the student no gradient at the first step' for i in (0, 1)]
    assert hook.positions == {0: 64, 1: 16}


def test_a_term_of_weight_0_is_told_and_one_that_teaches_is_not(hook, caplog):
    _first_step(hook, alpha=0.0)
    assert len(warned(caplog)) == 2
    caplog.clear()
    _first_step(BedWatch('b'))
    assert warned(caplog) == []


class Late(StepLoss):
    """Two terms, one of which teaches nothing, after some steps in which neither does."""

    def __init__(self, off_steps):
        super().__init__([(16, 16)] * 2)
        self.warm_up = WarmUp(off_steps)

    def weighted_losses(self, step):
        factor = self.warm_up()
        return {'near': factor * step.f_s[1].square().sum(), 'told': factor * step.f_s[0].detach().sum()}


@pytest.mark.parametrize('off_steps', [0, 3])
def test_every_term_of_a_step_is_looked_at_when_it_begins(hook, caplog, off_steps):
    model, loss = nn.Module(), Late(off_steps)
    model.distill_losses = nn.ModuleDict({'loss_late': loss})
    steps = Steps(hook, model=model)
    hook.before_train(steps)
    for i in range(off_steps + 2):
        hook.before_train_iter(steps, i)
        f_s = [torch.rand(2, 16, size, size, requires_grad=True) for size in (8, 4)]
        loss(SimpleNamespace(f_s=f_s, tapped=f_s, levels=(0, 1)))
        steps()
        assert not loss._forward_hooks
        assert len(warned(caplog)) == int(i >= off_steps)
    assert warned(caplog)[0].endswith('loss_late_told gives the student no gradient at the first step')
    assert hook.positions == {0: 64, 1: 16}


def test_everything_masked_is_exempt_and_so_is_the_first_step_after_a_resume(caplog):
    _first_step(BedWatch('a', True, True), spatial='all')
    resumed = BedWatch('b')
    _first_step(resumed, spatial='all', begin=8)
    assert warned(caplog) == []
    assert resumed.positions == {0: 64, 1: 16}


# ---- from the records -------------------------------------------------------------------------------------------

@pytest.fixture
def finished(finish, monkeypatch):
    """Row, mAP -> a run that is done with that number."""
    def make(run, mean_ap, **changes):
        finish(run, numbers={'mAP': mean_ap}, **changes)
    return make


@pytest.mark.parametrize(('taught', 'alone', 'told'), [(30.0, 29.9, False), (30.0, 30.0, True), (20.0, 30.0, True)])
def test_a_teacher_that_is_not_above_the_baseline_is_told(tiny, store, finished, caplog, taught, alone, told):
    run = Run.of('retinanet-amd', tiny)
    finished(run.teacher(), taught)
    finished(baseline_of(run), alone)
    assert bool(watch.warn_of_teacher(run, store)) == told
    assert len(warned(caplog)) == told
    if told:
        assert f'({taught:.1f} mAP) is not above the student that is trained alone' in warned(caplog)[0]


def test_what_is_not_there_yet_is_not_judged(tiny, store, finished):
    run = Run.of('retinanet-amd', tiny)
    assert watch.warn_of_teacher(run, store) is None
    finished(run.teacher(), 1.0)
    assert watch.warn_of_teacher(run, store) is None
    finished(baseline_of(run), 9.0)
    assert watch.warn_of_teacher(run, store)
    assert watch.warn_of_teacher(Run.of('retinanet-amd-untrained', tiny), store) is None    # is meant to know nothing
    assert watch.warn_of_teacher(baseline_of(run), store) is None


def test_the_baseline_of_a_run_has_its_schedule_but_nothing_of_its_method(tiny):
    run = Run.of('retinanet-amd', tiny, 3, {'epochs': 7, 'factor': 0.1, 'phi': 0.7, 'split': 'val', 'inherit': True,
                                            'optimizer': 'sgd'})
    assert (baseline_of(run).id, baseline_of(run).settings) == (
        'retinanet-baseline+epochs=7+optimizer=sgd-s3', {'epochs': 7, 'optimizer': 'sgd'})


# ---- resumed, in other processes, and beside a real run ---------------------------------------------------------

def test_a_resumed_run_goes_on_counting(hook, tmp_path):
    whole, first = BedWatch('a'), hook
    values = [{'norm': 100.0 if i % 3 else 1.0, 'ratio': 1.0 + i % 7, 'masked_fpn_0': i % 2 / 2, 'share_fpn_0': 0.5}
              for i in range(260)]
    steps = Steps(whole)
    for value in values:
        steps(**value)
    steps = Steps(first)
    for value in values[:210]:
        steps(**value)
    checkpoint = {}
    first.before_save_checkpoint(steps, checkpoint)
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    second = BedWatch('a')
    second.after_load_checkpoint(steps, torch.load(tmp_path / 'epoch_1.pth', weights_only=True))
    steps = Steps(second, begin=210)
    for value in values[210:]:
        steps(**value)
    assert second.summary() == whole.summary()
    assert len(whole.summary()['warnings']) == 1        # of clipping: told before the resume, and not again


def test_a_checkpoint_without_it_is_taken(hook):
    hook.after_load_checkpoint(None, {'state_dict': {}})
    assert hook.summary()['steps'] == 0


def test_it_goes_to_another_process(hook):
    Steps(hook)(3, ratio=1.0)
    assert pickle.loads(pickle.dumps(hook)).summary() == hook.summary()


@slow
def test_it_sums_up_a_real_run_and_changes_no_bit(tiny, dataset, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    run = Run.of('retinanet-amd', tiny)
    watched = Store(tiny, dataset, tmp_path / 'watched')
    bed = train(run, watched)['bed']
    assert bed['steps'] == 4
    assert bed['positions'] == {'0': 64, '1': 16, '2': 4, '3': 1, '4': 1}
    assert set(bed['masked']) == set(bed['share']) == {'0', '1', '2', '3', '4'}
    assert 0 <= bed['clipped_share'] <= 1
    assert read_json(watched.run_folder(run) / 'record.json')['bed'] == bed
    assert not list(watched.run_folder(run).rglob(watch.FILE))
    alone = Store(tiny, dataset, tmp_path / 'alone')
    task = training.Task
    monkeypatch.setattr('amdlib.runs.train.Task', lambda *words: task(*words[:-1]))
    assert train(run, alone)['bed'] is None
    weights = [torch.load(store.weights(run), weights_only=True)['state_dict'] for store in (watched, alone)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@slow
def test_it_comes_back_from_the_first_of_several_processes(tiny, store, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    bed = train(Run.of('retinanet-baseline', tiny, settings={'gpus': 2}), store)['bed']
    assert bed['steps'] == 2        # 8 images, two a step and process
    assert bed['clipped_share'] in (0.0, 0.5, 1.0)
    assert (bed['ratio_median'], bed['masked'], bed['positions']) == (None, {}, {})
