"""planned.py: the plan's runs, in which order they are trained, and that factors are chosen first."""
from dataclasses import replace

import pytest

from amdlib.errors import SettingError
from amdlib.paper.planned import EXPLORATORY, PLANNED
from amdlib.runs import calibrate, planned
from amdlib.runs.planned import all_runs, planned_runs, train_plan


@pytest.fixture
def store(store):
    """Of a profile whose students start alone."""
    return replace(store, profile=replace(store.profile, arm='alone'))


@pytest.fixture
def chosen(monkeypatch):
    """Factors by method, as if they had been chosen."""
    factors = {}
    monkeypatch.setattr(calibrate, 'factors', lambda store, group, arm: dict(factors))
    return factors


def test_a_comparisons_runs_are_those_of_its_arm_and_seeds(store, chosen):
    chosen |= {'amd': 0.1, 'mgd': 0.3}
    for one in PLANNED:
        runs = planned_runs(one, store)
        assert [run.seed for run in runs] == 2 * list(range(one.seeds))
        assert {run.row.name for run in runs} == {one.row, one.over}
        assert {run.arm for run in runs if run.row.method} == {one.arm}
        assert {run.recipe.factor for run in runs if run.row.method == 'amd'} <= {0.1 if one.calibrated else 1.0}


def test_what_needs_factors_has_no_runs_without_them(store, chosen):
    (calibrated,) = (one for one in PLANNED if one.calibrated)
    assert planned_runs(calibrated, store) == []
    chosen['amd'] = 0.1
    assert planned_runs(calibrated, store) == []


def test_all_runs_come_once_the_primary_comparison_first_and_seed_by_seed(store, chosen):
    chosen |= {'amd': 0.1, 'mgd': 0.3}
    runs = all_runs(store)
    assert len(runs) == len(set(runs)) == len({run.id for run in runs})
    assert set(runs) == {run for one in PLANNED for run in planned_runs(one, store)}
    first = runs[:4 * 8]
    assert [run.seed for run in first] == sorted(4 * list(range(8)))
    assert {run.row.name for run in first[:4]} == {'amd', 'mgd', 'amd-permuted', 'baseline'}
    assert [run.row.name for run in runs[:2]] == ['amd', 'mgd']
    assert {run.seed for run in runs[-3:]} == {4}       # what has five seeds comes last
    assert {run.row.name for run in runs[-3:]} == {'fgd', 'fkd', 'fitnet'}


def test_exploratory_runs_follow_the_planned_ones_each_with_the_settings_of_its_bed(store, chosen):
    planned_ones, every = all_runs(store), all_runs(store, exploratory=True)
    assert every[:len(planned_ones)] == planned_ones
    assert len(every) == len(set(every))
    added = every[len(planned_ones):]
    assert set(added) == {run for one in EXPLORATORY for run in planned_runs(one, store)} - set(planned_ones)
    assert {run.teacher().seed for run in added if run.row.method} == {0, 1, 2}
    for one in EXPLORATORY:     # a profile that ships no teachers trains them fresh whatever is said
        own = {key: value for key, value in one.settings.items() if key != 'teachers'}
        assert all(run.settings.items() >= own.items() for run in planned_runs(one, store) if run.row.method)


@pytest.mark.parametrize(('known', 'asked'), [({}, ['amd', 'mgd']), ({'amd': 0.1}, ['mgd']),
                                              ({'amd': 0.1, 'mgd': 1.0}, None)])
def test_factors_that_are_missing_are_chosen_before_anything_is_trained(store, chosen, monkeypatch, known, asked):
    chosen |= known
    happened = []

    def choose(store, groups, arm, methods, settings):
        happened.append((groups, arm, methods, settings))
        chosen.update(dict.fromkeys(methods, 0.3))
    monkeypatch.setattr(calibrate, 'calibrate', choose)
    monkeypatch.setattr(planned, 'run_missing', lambda runs, store: happened.append(runs))
    train_plan(store, 'reppoints', {'epochs': 2})
    *calibrated, trained = happened
    assert calibrated == ([] if asked is None else [(['reppoints'], 'alone', asked, {'epochs': 2})])
    assert trained == all_runs(store, 'reppoints', {'epochs': 2})
    assert {run.row.group.name for run in trained} == {'reppoints'}
    assert {run.recipe.epochs for run in trained} == {2}
    assert {run.recipe.factor for run in trained} == {1.0, *chosen.values()}


def test_an_unknown_group_is_refused(store):
    with pytest.raises(SettingError, match='unknown'):
        train_plan(store, 'yolo')
