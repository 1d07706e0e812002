"""explore.py: small measurements against numbers by hand, and still figures of masks."""
import json
import math
import os
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from amdlib.files import ROOT, write_json
from amdlib.methods.amd import AMDLoss
from amdlib.paper.profiles import PROFILES
from amdlib.runs.run import Run
from amdlib.runs.store import State, Store
from amdlib.show import explore, features

from .records import finish

matplotlib.use('Agg')


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close('all')


@pytest.fixture(scope='module')
def feature():
    return torch.randn(1, 8, 4, 6, generator=torch.Generator().manual_seed(0))


# ---- small measurements -----------------------------------------------------------------------------------------

def test_sharpness_of_a_single_peak_is_what_the_softmax_says():
    f_t = torch.zeros(1, 2, 2, 2)
    f_t[0, :, 0, 0] = math.log(5)     # at T = 1 the peak has 5 of 8 parts, the others one each
    (line,) = explore.sharpness(f_t, [1.0], phi=1.0).to_dict('records')
    entropy = -(5 / 8 * math.log(5 / 8) + 3 / 8 * math.log(1 / 8))
    assert line == pytest.approx({'temperature': 1.0, 'smallest_A': 0.5, 'largest_A': 2.5, 'masked_share': 0.25,
                                  'effective_positions': math.exp(entropy)})


def test_a_higher_temperature_spreads_the_attention(feature):
    found = explore.sharpness(feature, [0.05, 0.5, 5.0, 1e6], phi=1.0)
    assert found.effective_positions.is_monotonic_increasing
    assert found.largest_A.is_monotonic_decreasing
    assert found.effective_positions.iloc[-1] == pytest.approx(24)
    assert found.largest_A.iloc[-1] == pytest.approx(1)


def test_learning_to_generate_begins_at_the_loss_and_lowers_it(feature):
    loss = AMDLoss(4, 8, alpha=0.5)
    f_s = feature[:, :4]
    with torch.no_grad():
        before = loss(f_s, feature).item()
    curve = explore.learn_to_generate(loss, f_s, feature, steps=20)
    assert len(curve) == 21
    assert curve[0] == pytest.approx(before)
    with torch.no_grad():
        assert curve[-1] == pytest.approx(loss(f_s, feature).item())
        assert curve[-1] < 0.9 * curve[0]
    assert f_s.grad is None
    assert feature.grad is None


def test_fits_are_compared_on_one_scale_from_one_seed(feature):
    state = torch.get_rng_state()
    variants = {'one': {}, 'same': {'spatial': 'adaptive'}, 'all': {'spatial': 'all'}}
    fitted, curves = explore.compare_fits(feature, feature, {'alpha': 7.0, 'phi': 1.0}, variants, steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(curves) == list(fitted) == list(variants)
    assert list(curves.index) == [0, 1, 2, 3, 4, 5]
    assert curves.one.equals(curves.same)
    assert not curves.one.equals(curves['all'])
    with torch.no_grad():
        left = (feature - fitted['all'].generate(feature, feature)).square().sum() / feature.square().sum()
    assert curves['all'].iloc[-1] == pytest.approx(left.item())     # alpha is not in it


# ---- a table in words -------------------------------------------------------------------------------------------

def _coverage(**levels):
    """Lines of `features.mask_coverage` by level: (phi, masked, inside, random, sd) each."""
    return pd.DataFrame([{'level': int(level[1:]), 'stride_px': 8.0, 'phi': phi, 'positions': 100, 'masked': masked,
                          'masked_share': masked / 100, 'inside_share': inside, 'random_share': chance, 'random_sd': sd}
                         for level, lines in levels.items() for phi, masked, inside, chance, sd in lines])


def test_words_tell_levels_that_agree_with_the_paper_from_those_that_do_not():
    nan = float('nan')
    agrees = [(0.5, 40, 0.5, 0.4, 0.01), (1.0, 20, 0.7, 0.4, 0.02)]
    differs = [(0.5, 40, 0.5, 0.4, 0.01), (1.0, 20, 0.3, 0.4, 0.02)]
    chance = [(0.5, 40, 0.4, 0.4, 0.02), (1.0, 20, 0.43, 0.4, 0.02)]      # 1.5 sd
    empty = [(0.5, 0, nan, nan, nan), (1.0, 0, nan, nan, nan)]
    told = explore.coverage_in_words(_coverage(l0=agrees, l1=differs, l2=chance, l3=empty), 1.0).splitlines()
    assert '20.0% of the positions' in told[0]
    assert '70.0% of those' in told[0]
    assert '40.0% ± 2.0%' in told[0]
    assert 'from phi = 0.5 to 1 the share in boxes goes from 50.0% to 30.0%' in told[1]
    assert told[3] == '- Level 3 (stride 8 px): nothing is masked at phi = 1.'
    assert 'more often than at random on 1 of 4 levels' in told[4]
    assert 'a larger phi on 2 of 4' in told[4]
    assert not [line for line in told if 'nan' in line]


def test_words_refuse_a_threshold_that_was_not_measured():
    with pytest.raises(ValueError, match=r'phi=0.7: expected one of the table, \[0.5\]'):
        explore.coverage_in_words(_coverage(l0=[(0.5, 1, 1.0, 0.5, 0.1)]), 0.7)


# ---- runs -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def trained(dataset, tmp_path_factory):
    """A store of profile mini with runs that look as if done."""
    store = Store(PROFILES['mini'], dataset, tmp_path_factory.mktemp('results'))
    for row in ('retinanet-baseline', 'retinanet-teacher', 'faster_rcnn-teacher'):
        finish(store, Run.of(row, 'mini'))
    return store


def test_done_runs_come_teachers_first_without_stale_ones(trained):
    record = trained.record(Run.of('retinanet-teacher', 'mini'))
    for name, changed in (('retinanet-fkd-s0', {'row': 'retinanet-fkd', 'teacher': {'weights_sha256': 'another'}}),
                          ('retinanet-gone-s0', {'row': 'retinanet-gone'}),
                          ('retinanet-mine.MyLoss-s0', {'row': 'retinanet-mine.MyLoss'})):
        folder = trained.folder / 'runs' / name
        folder.mkdir()
        write_json(folder / 'record.json', {**record, **changed})
    (trained.folder / 'runs' / 'retinanet-fgd-s0').mkdir()
    (trained.folder / 'runs' / 'retinanet-fgd-s0' / 'record.json').write_text('{"half": ')
    assert [run.id for run in explore.done_runs(trained)] == [
        'retinanet-teacher-s0', 'faster_rcnn-teacher-s0', 'retinanet-baseline-s0']


@pytest.mark.parametrize('short', ['amd', 'mylossfromoutside'])
def test_loss_terms_split_what_was_logged_and_are_empty_where_nothing_was(store, monkeypatch, short):
    run = Run.of('retinanet-amd', store.profile)
    assert explore.loss_terms(run, store).empty
    monkeypatch.setattr(Store, 'state', lambda *_: State('done'))
    folder = store.run_folder(run)
    folder.mkdir(parents=True)
    assert explore.loss_terms(run, store).empty     # of a time when losses were not kept
    (folder / 'scalars.jsonl').write_text(''.join(json.dumps(
        {'step': step, 'loss': 10.0, 'loss_cls': 3.0, 'loss_bbox': 1.0, f'loss_{short}_fpn_0': 4.0,
         f'loss_{short}_fpn_1': 2.0, 'share_fpn_0': 0.4}) + '\n' for step in (10, 20)))
    assert explore.loss_terms(run, store).to_dict('records') == [
        {'step': step, 'detection': 4.0, 'distillation': 6.0} for step in (10, 20)]


# ---- masks ------------------------------------------------------------------------------------------------------

def test_the_figure_stands_images_without_boxes_and_levels_without_masks(trained):
    (picture,) = features.pictures(trained, count=1)
    bare = features.Picture(picture.image_id, picture.file_name, picture.rgb, picture.pixels, torch.zeros(0, 4), ())
    for size in (1, 2, 16):
        figure = explore.mask_figure(bare, torch.ones(1, 8, size, size), phi=1.0, temperature=0.5)
        figure.canvas.draw()
    grid = explore.mask_grid(bare, {'T = 1': (torch.ones(1, 8, 1, 1), 1.0), 'T = 2': (torch.ones(1, 8, 2, 2), 2.0)},
                             [0.5, 1.0, 2.0])
    assert [axis.get_xlabel() for axis in grid.axes] == ['100 % masked', '0 % masked', '0 % masked'] * 2


@pytest.mark.slow     # an interpreter of its own imports mmdet again
def test_a_notebook_shows_every_figure_and_not_the_first_alone():
    """What IPython shows after a cell depends on the backend being interactive; see the head of charts.py."""
    code = ('from IPython.core.interactiveshell import InteractiveShell; InteractiveShell.instance()\n'
            'import matplotlib, torch; from amdlib.show import pictures\n'
            "for _ in range(2):\n    pictures.maps({'a': torch.eye(3)}); print(matplotlib.is_interactive())")
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'MPLBACKEND': 'module://matplotlib_inline.backend_inline'},
                          cwd=ROOT)
    assert done.stdout.split() == ['True', 'True'], done.stderr
