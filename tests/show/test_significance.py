"""significance.py: planned comparisons on the runs that are there; what seeds could show."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from amdlib.runs import calibrate
from amdlib.runs.run import Run
from amdlib.runs.store import State, Store
from amdlib.show import seeds, significance
from amdlib.show.significance import Plan

from .records import line


@pytest.fixture
def store(store):
    """Of a profile whose students start alone."""
    return replace(store, profile=replace(store.profile, arm='alone'))


@pytest.fixture
def filled(store, monkeypatch):
    """(row, arm) -> mAP by seed; the store then has these runs."""
    def fill(scores):
        made = {}
        for (row, arm, *more), own in scores.items():
            settings = {**({'inherit': True} if arm == 'inherit' and row != 'inherit' else {}), **dict(more)}
            for seed, score in enumerate(own):
                run = Run.of(f'retinanet-{row}', store.profile, seed, settings)
                made[run.id] = line('retinanet', row, seed, float(score), arm=arm) | {'run': run.id}
        monkeypatch.setattr(Store, 'state', lambda _, run: State('done' if run.id in made else 'missing'))
        monkeypatch.setattr(Store, 'collect', lambda _, runs: pd.DataFrame([made[run.id] for run in runs]))
        return store
    return fill


def test_results_are_the_primary_alone_and_a_family(filled):
    amd, mgd, baseline = (50, 51, 52.5), (49, 51, 51), (40, 41, 39)
    plan = Plan(filled({('amd', 'alone'): amd, ('mgd', 'alone'): mgd, ('baseline', 'alone'): baseline,
                        ('fgd', 'alone'): (50,)}))
    results = plan.results().set_index('comparison')
    assert results.index.tolist() == ['AMD over MGD', 'AMD over baseline', 'MGD over baseline']
    primary = seeds.compare(np.subtract(amd, mgd))
    assert results.loc['AMD over MGD', ['difference', 'low', 'p_holm']].tolist() == pytest.approx(
        [primary.mean, primary.low, primary.p])     # not adjusted: it stands alone
    family = [seeds.compare(np.subtract(own, baseline)).p for own in (amd, mgd)]
    assert results.p_holm[1:].tolist() == pytest.approx(seeds.holm([*family, *[1.] * 6])[:2])     # planned: eight
    assert results.verdict.str.fullmatch('unfinished, so far: .*').all()     # three of eight seeds
    assert results.kind.tolist() == ['primary', 'named', 'named']
    done = plan.done().set_index('comparison')
    assert done.pairs[done.kind != 'exploratory'].tolist() == [3, 0, 0, 0, 3, 3, 1, 0, 0]
    assert done['left out']['AMD over MGD, calibrated'] == 'not calibrated yet'
    assert plan.one_pair() == (Run.of('retinanet-amd', plan.store.profile), Run.of('retinanet-mgd', plan.store.profile))
    assert '<td>AMD over MGD</td>' in plan._repr_html_()


def test_arms_are_kept_apart_and_factors_are_runs_of_their_own(filled, monkeypatch):
    monkeypatch.setattr(calibrate, 'factors', lambda store, group, arm: {'amd': 0.1, 'mgd': 0.3})
    plan = Plan(filled({('amd', 'inherit'): (54, 55), ('inherit', 'inherit'): (52, 52),
                        ('amd', 'alone', ('factor', 0.1)): (53, 53.5), ('mgd', 'alone', ('factor', 0.3)): (52, 52)}))
    assert plan.results().set_index('comparison').difference.to_dict() == {
        'AMD over MGD, calibrated': 1.25, 'AMD over inherit': 2.5}


def test_a_run_whose_loss_is_not_finite_is_left_out_and_named(filled, monkeypatch):
    plan = Plan(filled({('fgd', 'alone'): (50, 51, 52, 50, 51), ('baseline', 'alone'): (40, 41, 42, 41, 40)}))
    usual = Store.state
    gone = Run.of('retinanet-fgd', plan.store.profile, 3)
    monkeypatch.setattr(Store, 'state', lambda store, run: State('failed', 'RunError: loss is not finite (nan)')
                        if run == gone else usual(store, run))
    line = plan.done().set_index('comparison').loc['FGD over baseline']
    assert (line.pairs, line['runs to do'], line['left out']) == (4, 0, f'{gone.id} (its loss is not finite)')
    (verdict,) = plan.results().verdict
    assert verdict == 'better'      # complete, though one is left out


def test_seeds_beyond_the_plan_do_not_count(filled):
    plan = Plan(filled({('fgd', 'alone'): range(50, 60), ('baseline', 'alone'): [40] * 10}))
    assert plan.done().set_index('comparison').pairs['FGD over baseline'] == 5


def test_an_empty_store_says_nothing(store):
    plan = Plan(store)
    assert (len(plan.results()), plan.headline(), plan.one_pair()) == (0, None, None)
    assert set(plan.done().pairs) == {0}


def test_an_exploratory_comparison_is_judged_alone_on_the_bed_that_its_settings_make(filled):
    twice = ('reference', 1.0)
    plan = Plan(filled({('amd', 'alone', twice): (50, 51, 52.5), ('mgd', 'alone', twice): (49, 49.5, 51.5),
                        ('amd', 'alone'): (40, 41), ('mgd', 'alone'): (45, 44)}))
    results = plan.results().set_index('comparison')
    assert results.kind.to_dict() == {'AMD over MGD': 'primary', 'AMD over MGD, twice the reference': 'exploratory'}
    line, alone = results.loc['AMD over MGD, twice the reference'], seeds.compare([1, 1.5, 1])
    assert (line.difference, line.p_holm, line.verdict) == (alone.mean, alone.p, 'better')   # all three seeds are there


def test_what_numbers_of_seeds_can_show():
    curves = significance.power_curves(0.3, (0.2, 0.3), most=8)
    assert curves.index.tolist() == list(range(2, 9))
    assert (curves.iloc[:, 0] > curves.iloc[:, 1]).all()
    assert curves.iloc[-1, 0] == pytest.approx(100 * seeds.power(0.3, 0.2 * 2 ** .5, 8))
    n = significance.seeds_needed(0.3, 0.3)
    assert seeds.visible(0.3 * 2 ** .5, n) <= 0.3 < seeds.visible(0.3 * 2 ** .5, n - 1)
    assert significance.seeds_needed(0.01, 1, most=5) is None


def test_the_papers_leads_and_how_often_chance_turns_one():
    assert significance.paper_leads() == {'RetinaNet': 0.3, 'RepPoints': 0.4, 'Faster R-CNN': 0.3}
    drawn = np.random.default_rng(0).normal(0, 0.3, (2, 100_000))
    assert significance.reversed_by_chance(0.3, 0.3) == pytest.approx(100 * (drawn[0] + 0.3 < drawn[1]).mean(), abs=1)


def test_a_simulated_experiment_is_the_same_each_time():
    one = significance.simulated(0.3, 0.3, 5, seed=1)
    assert one == significance.simulated(0.3, 0.3, 5, seed=1)
    assert one.n == 5
