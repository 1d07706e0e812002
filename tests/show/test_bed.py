"""show/bed.py: what it says of records by hand, and of what is not there."""
import shutil

import numpy as np
import pandas as pd
import pytest

from amdlib.errors import SettingError
from amdlib.runs.keeping import keep
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.runs.watch import PIECES
from amdlib.show import seeds
from amdlib.show.bed import KEYS, UNKNOWN, Bed, write

from .records import finish

MASKED = {'0': 0.3, '1': 0.4, '2': 0.5}


def told(clipped=0.0, ratio=2.0, gradient=1.5, masked=None, warnings=()):
    """What BedWatch leaves in a record."""
    return {'steps': 400, 'clipped_share': clipped, 'ratio_median': ratio, 'gradient_ratio_median': gradient,
            'masked': masked or {}, 'share': {level: 0.1 for level in masked or {}},
            'positions': {'0': 64, '1': 16, '2': 4}, 'warnings': list(warnings),
            'over_time': [{'step': 40 * (i + 1), 'ratio': ratio and ratio * (i + 1), 'gradient_ratio': gradient,
                           'clipped_share': clipped} for i in range(PIECES)]}


@pytest.fixture
def made(tiny, dataset, tmp_path):
    """A store, and what writes a run's record: row name, mAP, seed, settings, bed."""
    store = Store(tiny, dataset, tmp_path / 'results')

    def write(name, mean_ap, seed=0, settings=None, bed=None, **changes):
        run = Run.of(f'retinanet-{name}', tiny, seed, settings or {})
        finish(store, run, numbers={'mAP': mean_ap}, bed=bed, **changes)
        return run
    return store, write


@pytest.fixture
def good(made):
    """A bed that can be read: two seeds of every row that it asks for."""
    store, write = made
    write('teacher', 52.0)
    for seed in (0, 1):
        write('baseline', 40.0 + seed, seed, bed=told(0.01, None, None))
        write('baseline', 40.5 + seed, seed, {'epochs': 2}, told(0.01, None, None))
        write('inherit', 45.0 + seed, seed, bed=told(0.01, None, None))
        write('mgd', 47.0 + seed, seed, bed=told(0.02, 3.0, 2.0, MASKED))
        write('amd', 48.0 + 2 * seed, seed, bed=told(0.03, 4.0, 3.0, MASKED))
    return store


def held(bed):
    return dict(zip(bed.checks.check, bed.checks.holds, strict=True))


def test_of_an_empty_store_nothing_is_guessed(made):
    store, _ = made
    bed = Bed(store, 'retinanet')
    assert set(bed.checks.holds) == set(bed.checks.found) == {UNKNOWN}
    assert bed.verdict == 'Nothing is known yet.'
    text = bed.markdown()
    assert 'No student is done yet.' in text
    assert 'Not known yet: retinanet-teacher-s0 is missing (never run).' in text
    assert bed.tidy().value[bed.tidy().quantity == 'mAP'].isna().all()


def test_a_bed_that_can_be_read(good):
    bed = Bed(good, 'retinanet', masks=False)
    assert list(bed.checks.holds) == ['yes'] * 7 + ['']
    assert bed.verdict == 'This bed can be read.'
    found = dict(zip(bed.checks.check, bed.checks.found, strict=True))
    assert found['the teacher over the baseline'] == '+11.5'       # 52 over 40 and 41
    assert found['the teacher over inherit'] == '+6.5'
    assert found['clipped updates, the run with most'] == '3%'
    assert found['distillation over detection, the run with most'] == '4'
    differences = [48.0 - 47.0, 50.0 - 48.0]
    assert found['the smallest difference between AMD and MGD that the seeds show'] == (
        f'{seeds.compare(differences).visible:.2f}')


def test_standing_and_spread_by_hand(good):
    bed = Bed(good, 'retinanet', masks=False)
    standing = bed.standing.set_index('row')
    assert list(standing.seeds) == [1, 2, 2]
    assert standing.mAP['baseline'] == 40.5
    assert standing.sd['baseline'] == pytest.approx(np.sqrt(0.5))
    spread = bed.spread.set_index(['row', 'settings', 'over'])
    amd = spread.loc[('amd', '', 'mgd')]
    assert (amd.pairs, amd.difference) == (2, 1.5)
    assert amd.sd_difference == pytest.approx(np.sqrt(0.5))
    assert amd.visible_8 == pytest.approx(seeds.visible(np.sqrt(0.5), 8))
    assert amd.visible_8 < amd.visible_5 < amd.visible_3 < amd.visible
    over = {line.row: line.over for line in bed.spread.itertuples() if line.row in ('mgd', 'inherit', 'baseline')}
    assert over == {'mgd': 'inherit', 'inherit': 'baseline', 'baseline': ''}     # it starts from the teacher's head
    assert ('amd', '', 'amd-permuted') in spread.index                           # asked for, and not there yet
    assert np.isnan(spread.loc[('amd', '', 'amd-permuted')].difference)


def test_students_that_start_alone_are_compared_with_the_baseline(made):
    store, write = made
    write('teacher', 52.0)
    write('baseline', 40.0)
    write('mgd', 43.0, settings={'inherit': False, 'factor': 0.1, 'lambda_mgd': 0.5})
    (line,) = [line for line in Bed(store, 'retinanet', masks=False).spread.itertuples() if line.row == 'mgd']
    assert (line.over, line.difference, line.pairs) == ('baseline', 3.0, 1)
    assert line.settings == 'factor=0.1 inherit=False lambda_mgd=0.5'


@pytest.mark.parametrize(('changes', 'check'), [
    ({'bed': told(0.3, 4.0, 3.0, MASKED)}, 'clipped updates, the run with most'),
    ({'bed': told(0.0, 0.05, 3.0, MASKED)}, 'distillation over detection, the run with least'),
    ({'bed': told(0.0, 40.0, 3.0, MASKED)}, 'distillation over detection, the run with most'),
    ({'bed': told(0.0, 4.0, 3.0, {'0': 1.0, '1': 0.4})},
     'levels of 16 positions or more that AMD masks wholly or not at all')])
def test_what_makes_it_hollow_is_told(good, made, changes, check):
    made[1]('amd', 48.0, 2, **changes)
    bed = Bed(good, 'retinanet', masks=False)
    assert held(bed)[check] == 'no'
    assert bed.verdict == f'Differences here mean little yet: {check}.'


@pytest.mark.parametrize(('mean_ap', 'baseline', 'inherit'), [(47.0, 'no', 'no'), (48.6, 'yes', 'yes'),
                                                              (48.4, 'no', 'no')])
def test_a_teacher_without_a_lead(good, made, mean_ap, baseline, inherit):
    made[1]('teacher', mean_ap)
    holds = held(Bed(good, 'retinanet', masks=False))
    assert (holds['the teacher over the baseline'], holds['the teacher over inherit']) == (baseline, inherit)


def test_a_control_may_be_masked_wholly_and_a_small_level_too(good, made):
    made[1]('amd-allmasked', 48.0, bed=told(0.9, 90.0, 0.0, {'0': 1.0, '1': 1.0}))
    made[1]('amd', 48.0, 2, bed=told(masked={'0': 0.3, '1': 0.4, '2': 1.0}))
    assert 'no' not in held(Bed(good, 'retinanet', masks=False)).values()


def test_what_does_not_count_is_left_out_and_named(good, made):
    store, write = made
    write('mgd', 99.0, 100)                                 # a seed of calibration
    write('mgd', 99.0, 2, {'split': 'val'})
    write('fgd', 99.0, code_fingerprint='of other code')
    folder = store.folder / 'runs' / 'retinanet-odd-s0'
    folder.mkdir()
    (folder / 'record.json').write_text('{"row": "retinanet-odd", "seed": 0, "settings": {}}')
    bed = Bed(store, 'retinanet', masks=False)
    assert 99.0 not in set(bed.spread.mAP)
    assert 'retinanet-fgd-s0 (stale)' in bed.markdown()
    assert 'retinanet-odd-s0 (not one of the rows and settings of now)' in bed.markdown()


def test_a_pair_from_two_processors_is_none(made):
    store, write = made
    write('teacher', 52.0)
    write('baseline', 40.0, machine={'cpu': 'one'})
    write('inherit', 44.0, machine={'cpu': 'another'})
    spread = Bed(store, 'retinanet', masks=False).spread
    assert 'difference' not in spread or spread.difference.isna().all()


def test_while_they_train_begin_middle_and_end(good):
    line = Bed(good, 'retinanet', masks=False).training.set_index(['row', 'settings']).loc[('amd', '')]
    assert (line.seeds, line.clipped_share, line.ratio_median) == (2, 0.03, 4.0)
    assert (line.ratio_begin, line.ratio_middle, line.ratio_end) == (4.0, 24.0, 40.0)


def test_records_from_before_it_was_watched_are_no_error(made):
    store, write = made
    write('teacher', 52.0)
    write('amd', 48.0)
    bed = Bed(store, 'retinanet', masks=False)
    assert bed.masked.empty
    assert held(bed)['clipped updates, the run with most'] == UNKNOWN


def test_the_teachers_mask_by_level(made):
    store, write = made
    write('teacher', 52.0)
    lift = Bed(store, 'retinanet').lift
    assert list(lift.level) == [0, 1, 2, 3, 4, 'all']
    assert list(lift.phi.unique()) == [1.0]
    assert ((lift.masked_share >= 0) & (lift.masked_share <= 1)).all()
    assert lift.masked_share[lift.level == 4].item() == 0       # one position: A is 1


def test_a_teacher_whose_scale_is_not_known_has_no_mask_yet(bed, dataset, tmp_path):
    store = Store(bed, dataset, tmp_path / 'results')
    finish(store, Run.of('retinanet-teacher', bed), numbers={'mAP': 52.0})
    assert "the teacher's record does not hold its features' RMS" in Bed(store, 'retinanet').markdown()
    finish(store, Run.of('retinanet-teacher', bed), numbers={'mAP': 52.0}, feature_rms=[1.0] * 5)
    one, two = Bed(store, 'retinanet').lift, Bed(store, 'retinanet', {'reference': 50.0}).lift
    assert not one.masked_share.equals(two.masked_share)        # T is the same, features are larger


def test_kept_records_are_enough_but_for_the_teachers_masks(good):
    parts = ('checks', 'standing', 'spread', 'training', 'masked')
    before = {part: getattr(Bed(good, 'retinanet'), part) for part in parts}
    keep(good)
    shutil.rmtree(good.folder / 'runs')
    after = Bed(good.with_kept(), 'retinanet')
    for part, table in before.items():
        assert getattr(after, part).equals(table), part
    assert after.lift is None
    assert 'Not known here: retinanet-teacher-s0 was not made here, its record alone was kept.' in after.markdown()


def test_it_is_written_for_reading_and_for_computing(good):
    path = write([Bed(good, 'retinanet'), Bed(good, 'reppoints')])
    text = path.read_text()
    assert text.startswith('# Can this bed tell anything? Profile `mini`\n')
    assert text.count('### What must hold') == 2
    assert '| the teacher over the baseline ' in text
    cells = pd.read_csv(path.with_suffix('.csv'))
    assert list(cells.columns) == ['group', 'part', *KEYS, 'quantity', 'value']
    (value,) = cells.value[(cells.part == 'standing') & (cells.row == 'baseline') & (cells.quantity == 'teacher_lead')
                           & (cells.group == 'retinanet')]
    assert float(value) == 11.5


def test_no_group_is_an_error():
    with pytest.raises(SettingError, match='no group'):
        write([])
