"""calibrate.py: which runs are made, where the grid goes on, what is chosen and who takes it; nothing is trained."""
import math
from dataclasses import replace

import pandas as pd
import pytest

from amdlib.errors import RunError, SettingError
from amdlib.paper.pairs import GROUPS
from amdlib.paper.tables import TABLES
from amdlib.runs import calibrate
from amdlib.runs.calibrate import COLUMNS, FIRST_SEED, GRID, calibrated_factor, default_methods, factors, with_factors
from amdlib.runs.progress import ProgressReport
from amdlib.runs.run import Run


@pytest.fixture
def trained(store, finish, monkeypatch):
    """What a run reaches, given as a function of it -> batches of runs that were asked for; a mAP of None: its loss
    overflows."""
    def answer(map_of):
        batches = []

        def run_missing(runs, given, *, force=False):
            runs = list(runs)
            batches.append(runs)
            failed = []
            for run in runs:
                value = map_of(run)
                if not given.run_folder(run.teacher()).exists():
                    finish(run.teacher())
                if value is None:
                    given.run_folder(run).mkdir(parents=True, exist_ok=True)
                    ProgressReport(given.run_folder(run), run.id)('failed', 0, 1, error=(
                        'RunError: the loss is not finite: loss_amd_fpn_0 = inf'))
                    failed.append(run.id)
                elif given.state(run).name != 'done':
                    finish(run, numbers={'mAP': value})
            if failed:
                raise RunError(f'{failed} failed')
        monkeypatch.setattr(calibrate, 'run_missing', run_missing)
        return batches
    return answer


def peak(at):
    """A mAP that is highest at this factor."""
    return lambda run: 50 - abs(math.log10(run.recipe.factor / at))


def test_the_grid_is_two_decades_in_even_steps():
    assert GRID[-1] / GRID[0] == 100
    assert list(GRID) == sorted(GRID)
    assert [calibrate._next(factor) for factor in GRID[:-1]] == list(GRID[1:])
    assert [calibrate._next(factor, down=True) for factor in GRID[1:]] == list(GRID[:-1])


def test_what_is_compared_is_calibrated():
    table = TABLES['table1'].with_controls()
    assert set(default_methods()) == {row.method for row in table.rows('retinanet') if row.method}


def test_a_best_value_inside_is_chosen_from_one_batch(store, trained):
    batches = trained(peak(0.1))
    made = calibrate.calibrate(store, ['retinanet'], 'alone', ['amd'], [100, 101])
    (runs,) = batches
    assert len(runs) == len(GRID) * 2
    assert {run.seed for run in runs} == {100, 101}
    assert {run.recipe.split for run in runs} == {'val'}
    assert {run.recipe.factor for run in runs} == set(GRID)
    assert {run.arm for run in runs} == {'alone'}
    assert list(made.columns) == list(COLUMNS)
    assert list(made.factor[made.chosen]) == [0.1]
    assert made.val_map[made.chosen].item() == 50
    assert calibrated_factor(store, 'retinanet', 'alone', 'amd') == 0.1


@pytest.mark.parametrize(('best', 'tried'), [(0.003, [0.001, 0.003]), (3.0, [3.0, 10.0]), (0.3, []), (0.01, [0.003]),
                                             (1.0, [3.0])])
def test_a_best_value_at_an_end_extends_the_grid(store, trained, best, tried):
    batches = trained(peak(best))
    made = calibrate.calibrate(store, ['retinanet'], 'alone', ['mgd'])
    assert list(made.factor) == sorted([*GRID, *tried])
    assert list(made.factor[made.chosen]) == [best]
    assert len(batches) == 1 + len(tried)
    assert len(made) == sum(map(len, batches))      # none is asked for twice


def test_it_stops_somewhere_and_says_so(store, trained, caplog):
    trained(peak(1e-9))
    made = calibrate.calibrate(store, ['retinanet'], 'alone', ['mgd'])
    assert made.factor[made.chosen].item() == calibrate.LEAST
    assert 'at the end of the grid)' in caplog.text


def test_of_equal_values_the_nearest_to_the_rule_is_chosen(store, trained):
    trained(lambda run: 40.0 if run.recipe.factor in (0.03, 0.1, 0.3) else 30.0)
    made = calibrate.calibrate(store, ['retinanet'], 'alone', ['amd'])
    assert made.factor[made.chosen].item() == 0.3


def test_a_loss_that_overflows_is_no_value_and_no_failure(store, trained):
    trained(lambda run: None if run.recipe.factor >= 0.3 else peak(0.1)(run))
    made = calibrate.calibrate(store, ['retinanet'], 'alone', ['amd'])
    assert list(made.factor[made.val_map.isna()]) == [0.3, 1.0]
    assert made.factor[made.chosen].item() == 0.1
    assert '| amd | 49.0 | 49.5 | **50.0** | – | – |' in (store.folder / 'calibration.md').read_text()


def test_where_nothing_trains_it_says_so(store, trained):
    trained(lambda run: None)
    with pytest.raises(RunError, match='retinanet-amd, alone: no factor of 0.01, 0.03, 0.1, 0.3, 1 can be trained'):
        calibrate.calibrate(store, ['retinanet'], 'alone', ['amd'])


def test_every_other_failure_is_one(store, monkeypatch):
    def run_missing(runs, given, *, force=False):
        raise RunError('the disk is full')
    monkeypatch.setattr(calibrate, 'run_missing', run_missing)
    with pytest.raises(RunError, match='the disk is full'):
        calibrate.calibrate(store, ['retinanet'], 'alone', ['amd'])
    assert not (store.folder / 'calibration.csv').exists()


def test_arms_have_factors_of_their_own(store, trained):
    trained(lambda run: peak(0.03 if run.arm == 'inherit' else 0.3)(run))
    for arm in ('alone', 'inherit'):
        calibrate.calibrate(store, ['retinanet'], arm, ['amd'])
    assert {arm: calibrated_factor(store, 'retinanet', arm, 'amd') for arm in ('alone', 'inherit')} == {
        'alone': 0.3, 'inherit': 0.03}
    assert calibrated_factor(store, 'retinanet', None, 'amd') == calibrated_factor(
        store, 'retinanet', store.profile.arm, 'amd')


def test_two_stage_students_have_one_arm(store, trained):
    trained(peak(0.1))
    calibrate.calibrate(store, ['faster_rcnn'], None, ['amd'])
    assert calibrated_factor(store, 'faster_rcnn', 'alone', 'amd') == 0.1
    with pytest.raises(SettingError, match='faster_rcnn is a two-stage pair'):
        calibrate.calibrate(store, ['faster_rcnn'], 'inherit', ['amd'])


def test_amds_variants_and_controls_take_its_factor(store, trained):
    trained(peak(0.03))
    calibrate.calibrate(store, ['retinanet'], 'alone', ['amd'])
    for name in ('amd', 'amd-permuted', 'amd-allmasked', 'amd-mask', 'amd-shuffled'):
        assert calibrated_factor(store, 'retinanet', 'alone', name) == 0.03
    with pytest.raises(RunError, match='no factor was chosen .* --group retinanet --arm alone --methods mgd'):
        calibrated_factor(store, 'retinanet', 'alone', 'mgd')


def test_lines_of_others_stay_and_ones_own_are_replaced(store, trained):
    trained(lambda run: peak(0.03 if run.row.method == 'amd' else 0.3)(run))
    calibrate.calibrate(store, ['retinanet'], 'alone', ['amd', 'mgd'])
    calibrate.calibrate(store, ['reppoints'], 'alone', ['amd'])
    calibrate.calibrate(store, ['retinanet'], 'alone', ['mgd'], [100, 101])
    known = pd.read_csv(store.folder / 'calibration.csv', dtype={'seeds': str})
    assert known.groupby(['group', 'method']).size().to_dict() == {
        ('reppoints', 'amd'): 5, ('retinanet', 'amd'): 5, ('retinanet', 'mgd'): 5}
    assert set(known.seeds[(known.group == 'retinanet') & (known.method == 'mgd')]) == {'100 101'}
    assert factors(store, 'retinanet', 'alone') == {'amd': 0.03, 'mgd': 0.3}
    told = (store.folder / 'calibration.md').read_text()
    assert [line for line in told.splitlines() if line.startswith('## ')] == [
        f'## {GROUPS[name].student_label}, alone' for name in ('retinanet', 'reppoints')]


def test_runs_get_the_chosen_factor_of_their_method_and_arm(store, trained):
    trained(lambda run: peak({('amd', 'alone'): 0.03, ('mgd', 'alone'): 0.3}.get((run.row.method, run.arm), 0.1))(run))
    for arm in ('alone', 'inherit'):
        calibrate.calibrate(store, ['retinanet'], arm, ['amd', 'mgd'])
    rows = ('teacher', 'baseline', 'inherit', 'amd', 'mgd', 'amd-permuted')
    for arm, wanted in (('alone', [1, 1, 1, 0.03, 0.3, 0.03]), ('inherit', [1, 1, 1, 0.1, 0.1, 0.1])):
        runs = [Run.of(f'retinanet-{row}', store.profile, 2, {
            'epochs': 3, **({'inherit': arm == 'inherit'} if row in ('amd', 'mgd', 'amd-permuted') else {})})
            for row in rows]
        found = with_factors(runs, store)
        assert [run.recipe.factor for run in found] == wanted
        assert [(run.row, run.seed, run.epochs, run.arm) for run in found] == [
            (run.row, run.seed, run.epochs, run.arm) for run in runs]
    with pytest.raises(RunError, match='retinanet-fgd: no factor was chosen for it'):
        with_factors([Run.of('retinanet-fgd', store.profile)], store)
    with pytest.raises(SettingError, match='calibrated and factor=0.5: give one of them'):
        with_factors([Run.of('retinanet-amd', store.profile, 0, {'factor': 0.5})], store)


def test_factors_of_other_data_do_not_count(store, trained):
    trained(peak(0.03))
    calibrate.calibrate(store, ['retinanet'], 'alone', ['amd'])
    other = replace(store, dataset=replace(store.dataset, fingerprint='0' * 16))
    assert factors(other, 'retinanet', 'alone') == {}


def test_settings_hold_for_every_run(store, trained):
    batches = trained(peak(0.1))
    calibrate.calibrate(store, ['retinanet'], 'alone', ['amd'], settings={'optimizer': 'sgd'})
    assert {run.recipe.optimizer for run in batches[0]} == {'sgd'}


@pytest.mark.parametrize(('words', 'message'), [
    ({'groups': ['yolo']}, "unknown group 'yolo'"), ({'arm': 'warm'}, "arm='warm': expected one of alone, inherit"),
    ({'methods': ['amdd']}, "unknown row 'retinanet-amdd'"), ({'methods': ['baseline']}, 'distils nothing'),
    ({'methods': ['amd-mask']}, 'retinanet-amd-mask takes the factor of amd'), ({'seeds': []}, 'seeds none'),
    ({'seeds': [0]}, f'seeds 0: those below {FIRST_SEED} are reported')])
def test_a_mistake_is_told_before_anything_is_trained(store, trained, words, message):
    batches = trained(peak(0.1))
    with pytest.raises(SettingError, match=message):
        calibrate.calibrate(store, **{'groups': ['retinanet'], 'arm': 'alone', 'methods': ['amd'], **words})
    assert batches == []


def test_a_file_of_another_kind_is_told(store):
    store.folder.mkdir(parents=True)
    (store.folder / 'calibration.csv').write_text('a,b\n1,2\n')
    with pytest.raises(RunError, match='calibration.csv has no column group, arm'):
        factors(store, 'retinanet')
