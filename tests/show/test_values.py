"""Every value of the method's page (shared material) against the Configs that train at profile `paper`."""
import copy
import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper

from amdlib.engine.taps import tap
from amdlib.files import ROOT
from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import paper_groups, paper_value
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.show.values import as_text, assumptions, paper_values

PAGE = ROOT.parent / 'shared' / 'paper' / 'method.md'     # written apart from the kit; docs/method.md is made after it
needs_page = pytest.mark.skipif(not PAGE.is_file(), reason=f"no method's page {PAGE}")
ONE_STAGE, TWO_STAGE = ('retinanet', 'reppoints'), ('faster_rcnn',)


@pytest.fixture(scope='module')
def values():
    """(what, name, group) -> Value."""
    return {(value.what, value.name, value.group): value for value in paper_values()}


def table(title):
    """The cells of a table of the page, by the first one of each line."""
    section = PAGE.read_text().partition(f'## {title}\n')[2].partition('\n## ')[0]
    lines = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in section.splitlines()
             if line.startswith('|')]
    return {cells[0].strip(): cells[1:] for cells in lines[2:]}


def stated(what, pattern, column=0):
    """The groups of `pattern` in a cell of the table of values."""
    cell = table('Values')[what][column]
    found = re.search(pattern, cell)
    assert found, f'{what}: the page reads {cell!r}'
    return found.groups()


@needs_page
def test_no_line_of_the_page_is_left_out(values):
    assert set(table('Values')) <= {what for what, _, _ in values}
    assert set(table('Detectors and teachers (mmdet 3.3.0\'s own configs and model zoo)')) == set(paper_groups())


@needs_page
def test_schedule(values):
    epochs, optimizer, momentum, decay, width, height, first, second = stated(
        'schedule', r'(\d+) epochs, (\w+), momentum ([\d.]+), weight decay (\S+), single scale \((\d+)x(\d+)\), '
                    r'steps at (\d+) and (\d+)')
    wanted = {'epochs': int(epochs), 'optimizer': optimizer, 'momentum': float(momentum), 'weight decay': float(decay),
              'image scale': (int(width), int(height)), 'steps': (int(first), int(second))}
    for group in paper_groups():
        assert {name: values['schedule', name, group].value for name in wanted} == wanted


@needs_page
def test_values_of_the_method(values):
    one_stage, two_stage = stated('alpha', r'MGD, which this method extends, has (\S+) and (\S+)')
    for groups, alpha in ((ONE_STAGE, one_stage), (TWO_STAGE, two_stage)):
        assert {values['alpha', 'alpha', group].value for group in groups} == {float(alpha)}
    (temperature,), (phi,) = stated('T', r'\[assumed ([\d.]+)\]', 1), stated('phi', r'\[assumed ([\d.]+);', 1)
    reduction, expansion = (re.search(pattern, PAGE.read_text()).group(1)
                            for pattern in (r'SE reduction (\d+)', r'expansion \[assumed (\d+)\]'))
    for group in paper_groups():
        assert values['T', 'T', group].value == float(temperature)
        assert values['phi', 'phi', group].value == float(phi)
        assert values['channel clue', 'SE reduction', group].value == int(reduction)
        assert values['MBConv', 'expansion', group].value == int(expansion)
        # "Ada-Mask off" masks with MGD's ratio
        assert values['random masks', 'ratio', group].value == values['MGD baseline', 'ratio', group].value


@needs_page
def test_levels_and_inheriting(values):
    module, one_stage, two_stage = stated(
        'distilled levels',
        r'`(\S+)` of student and teacher: (\w+) for RetinaNet and RepPoints, (\w+) for Faster R-CNN')
    counts = {'four': 4, 'five': 5}
    for groups, word in ((ONE_STAGE, one_stage), (TWO_STAGE, two_stage)):
        for group in groups:
            assert values['distilled levels', 'levels', group].value == counts[word]
            assert values['distilled levels', 'module', group].value == module
    assert stated('inheriting', r"(one-stage) students start from the teacher's (neck) and (head)")
    assert {values['inheriting', 'parts', group].value for group in ONE_STAGE} == {('neck', 'bbox_head')}
    assert {values['inheriting', 'parts', group].value for group in TWO_STAGE} == {()}


@needs_page
def test_clipping(values):
    norm, kind = stated('gradient clipping', r'max norm (\d+), L(\d)')
    for group in paper_groups():
        assert values['gradient clipping', 'max norm', group].value == float(norm)
        assert values['gradient clipping', 'norm', group].value == float(kind)


@needs_page
def test_values_of_the_rivals(values):
    alpha_1, ratio_1, alpha_2, ratio_2 = map(float, stated(
        'MGD baseline', r'alpha (\S+), ratio (\S+) one-stage; (\S+), (\S+) two-stage'))
    for groups, alpha, ratio in ((ONE_STAGE, alpha_1, ratio_1), (TWO_STAGE, alpha_2, ratio_2)):
        assert {(values['MGD baseline', 'alpha', group].value, values['MGD baseline', 'ratio', group].value)
                for group in groups} == {(alpha, ratio)}
    temperature, *weights = stated('FGD baseline', r'T ([\d.]+)\. RetinaNet: alpha (\S+), beta (\S+), gamma (\S+), '
                                                   r'lambda (\S+)\. RepPoints: (\S+), (\S+), (\S+), (\S+)\. '
                                                   r'Faster R-CNN: (\S+), (\S+), (\S+), (\S+)$')
    for i, group in enumerate(('retinanet', 'reppoints', 'faster_rcnn')):
        assert values['FGD baseline', 'T', group].value == float(temperature)
        assert [values['FGD baseline', name, group].value for name in ('alpha', 'beta', 'gamma', 'lambda')] == [
            float(word) for word in weights[4 * i:4 * i + 4]]
    numbers = map(float, stated('FKD baseline', r'masked feature (\S+), channel (\S+), spatial (\S+), non-local (\S+), '
                                                r'both temperatures ([\d.]+);'))
    wanted = dict(zip(('masked feature', 'channel', 'spatial', 'non-local', 'spatial temperature'), numbers,
                      strict=True))
    wanted['channel temperature'] = wanted['spatial temperature']
    for group in paper_groups():
        assert {name: values['FKD baseline', name, group].value for name in wanted} == wanted


@needs_page
def test_detectors_teachers_and_their_aps(values):
    for group, cells in table("Detectors and teachers (mmdet 3.3.0's own configs and model zoo)").items():
        student, teacher, checkpoint, box_ap = cells
        name, student_ap = re.fullmatch(r'`(\S+)` \(([\d.]+)\)', student).groups()
        wanted = {'student': name, 'teacher': teacher.strip('`'), 'checkpoint': checkpoint.strip('`')}
        assert {key: values['detectors', key, group].value for key in wanted} == wanted
        assert paper_value('I', group, 'teacher', 'mAP') == float(box_ap)
        assert paper_value('I', group, 'baseline', 'mAP') == float(student_ap)


@needs_page
def test_sources_are_the_pages(values):
    """The tag of the page's last column; one line of it, the schedule, has two."""
    for (what, name, _), value in values.items():
        if what not in table('Values'):
            continue
        source = table('Values')[what][1]
        if name == 'steps':
            assert 'steps [convention' in source
            assert value.source == 'convention'
        elif value.source == 'public code':
            assert 'code' in source
        else:
            assert source.startswith(f'[{value.source}'), (what, name)


def test_the_printed_table_names_every_value_once(values):
    text = as_text(list(values.values()))
    assert len(text.splitlines()) == 1 + len({(value.what, value.name, value.value) for value in values.values()})
    assert re.search(r'^alpha +2e-05 +assumed +AMDLoss +retinanet, reppoints$', text, re.MULTILINE)


# ---- what no number shows ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('side', ['student_config', 'teacher_config'])
def test_what_is_tapped_in_reppoints_is_before_the_necks_group_norm(side):
    neck = MODELS.build(copy.deepcopy(get_config(getattr(GROUPS['reppoints'], side)).model.neck))
    maps = [torch.rand(1, c, 32 // 2 ** i, 32 // 2 ** i) for i, c in enumerate(neck.in_channels)]
    with torch.no_grad(), tap(neck, [f'fpn_convs.{i}.conv' for i in range(5)]) as tapped:
        outputs = neck(tuple(maps))
    for i, (before, after) in enumerate(zip(tapped, outputs, strict=True)):
        module = neck.fpn_convs[i]
        assert isinstance(module.norm, torch.nn.GroupNorm)
        assert not torch.allclose(before, after)
        assert torch.allclose(module.norm(before), after, atol=1e-6)


@pytest.mark.parametrize('clipped', [True, False])
def test_gradient_clipping_is_live(dataset, tiny, train_batch, clipped):
    """A step with a huge loss through the optimizer wrapper of the paper's own Config; without clip_grad it is not."""
    cfg = config(Run.of('retinanet-amd', tiny, 0, {'alpha': 1e6}), dataset)
    wrapper_cfg = copy.deepcopy(config(Run.of('retinanet-amd', 'paper')).optim_wrapper)
    if not clipped:
        del wrapper_cfg['clip_grad']
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    wrapper, seen = build_optim_wrapper(model, wrapper_cfg), []
    step = wrapper.optimizer.step

    def measure(*words, **more):
        seen.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item())
        return step(*words, **more)
    wrapper.optimizer.step = measure
    model.train_step(train_batch(cfg), wrapper)
    assert len(seen) == 1
    if clipped:
        assert seen[0] == pytest.approx(35, rel=1e-3)
    else:
        assert seen[0] > 3500


def test_every_assumed_value_is_told(values):
    """By `list`, under every table and in the notebook of a run."""
    told = assumptions()
    assumed = {(value.name, value.value) for value in values.values() if value.source == 'assumed'}
    assert {name for name, _ in assumed} == {'alpha', 'T', 'phi', 'ratio', 'expansion'}
    for name, value in assumed:
        assert re.search(rf'\b{name}\b[^;]*\b{value:g}\b', told), (name, value)
    assert 'alpha 2e-05 (RetinaNet, RepPoints), 5e-07 (Faster R-CNN); T 0.5; phi 1;' in told
