"""seeds.py: paired seeds by hand and against scipy, verdicts in words, and intervals that cover."""
import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from amdlib.errors import SettingError
from amdlib.show import seeds, stats
from amdlib.show.seeds import both, compare, family, headline, holm, pooled
from amdlib.show.stats import Matches
from tests.show.test_stats import random_run, random_truth


def test_the_interval_and_p_are_scipys_paired_t_test():
    a, b = np.random.default_rng(0).normal([[50.], [49.5]], .5, (2, 8))
    own, test = compare(a - b), scipy_stats.ttest_rel(a, b)
    low, high = test.confidence_interval(.95)
    assert (own.n, own.mean, own.low, own.high, own.p) == pytest.approx((8, (a - b).mean(), low, high, test.pvalue))
    assert own.sd == pytest.approx((a - b).std(ddof=1))


def test_the_sign_flip_test_is_exact():
    values = np.random.default_rng(1).normal(.4, .5, 7)
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=7)]
    assert compare(values).p_sign_flip == np.mean([value >= abs(values.sum()) - 1e-9 for value in sums])
    test = scipy_stats.permutation_test((values,), np.mean, permutation_type='samples', n_resamples=np.inf)
    assert compare(values).p_sign_flip == pytest.approx(test.pvalue)


@pytest.mark.parametrize('n', [2, 3, 5, 8, 24])
def test_the_smallest_p_is_that_of_equal_signs(n):
    own = compare(np.random.default_rng(n).uniform(.1, 1, n))
    assert own.p_sign_flip == own.smallest_p == 2 / 2**n


def test_by_hand():
    own = compare([1, 2, 3])
    assert (own.mean, own.sd, own.smallest_p) == (2, 1, .25)
    assert own.low == pytest.approx(2 - 4.302653 / np.sqrt(3))
    assert compare([-1, 0, 1]).p_sign_flip == 1
    assert compare([1, 1, -1]).p_sign_flip == 1  # 8 sums: all are 1 or 3 away from 0


@pytest.mark.parametrize('n', [3, 5, 8])
def test_the_visible_difference_is_seen_four_times_in_five(n):
    """With the spread known to be what it is: 80 % of experiments at that difference have their interval above 0."""
    rng = np.random.default_rng(n)
    sample = rng.normal(0, 1, n)
    sample = (sample - sample.mean()) / sample.std(ddof=1)
    visible = compare(sample).visible
    trials = rng.normal(visible, 1, (20_000, n))
    above = trials.mean(1) - trials.std(1, ddof=1) / np.sqrt(n) * scipy_stats.t.ppf(.975, n - 1) > 0
    assert above.mean() == pytest.approx(.8, abs=.01)


def test_verdicts_in_words():
    assert compare([.5, .6, .7, .6]).verdict == 'better'
    assert compare([-.5, -.6, -.7, -.6]).verdict == 'worse'
    spread = np.array([-1, 1, -1, 1, -1, 1, -1, 1]) * .485
    assert compare(spread).verdict == 'not resolved at n = 8: less than 0.6 mAP could not have been seen'
    assert compare(spread / 10, unit='mAR').verdict.endswith('less than 0.06 mAR could not have been seen')
    assert compare([.1]).verdict == 'one seed: says nothing about another run'
    assert compare([0., 0, 0]).verdict == 'the same in all 3 seeds'
    assert compare([.3, .3, .3]).verdict == 'better'


def test_one_seed_has_no_interval():
    own = compare([.7])
    assert (own.n, own.mean, own.p, own.p_sign_flip) == (1, .7, 1, 1)
    assert np.isnan([own.sd, own.low, own.high, own.visible]).all()


@pytest.mark.parametrize('differences', [[], [np.nan, 1], [[1, 2]]])
def test_what_are_no_differences_is_refused(differences):
    with pytest.raises(SettingError, match='one finite difference a seed is needed'):
        compare(differences)


def test_too_many_seeds_for_the_exact_test():
    with pytest.raises(SettingError, match='41 seeds: the exact sign-flip test is made for 40 at most'):
        compare(np.arange(41))


def test_pooled_groups_have_the_same_weight():
    rng = np.random.default_rng(3)
    by_group = {'retinanet': rng.normal(.5, .4, 8), 'reppoints': rng.normal(.2, .8, 5),
                'faster_rcnn': rng.normal(0, .2, 5)}
    own = pooled(by_group)
    assert own.n == 18
    assert own.mean == pytest.approx(np.mean([values.mean() for values in by_group.values()]))
    assert own.groups == {name: compare(values) for name, values in by_group.items()}
    assert own.smallest_p == 2 / 2**18
    parts = np.concatenate([values / len(values) / 3 for values in by_group.values()])
    signs = np.array(list(itertools.product((-1, 1), repeat=17)))
    assert own.p_sign_flip == (abs(parts[0] + signs @ parts[1:]) >= abs(parts.sum()) - 1e-9).mean()


def test_pooling_two_equal_groups_is_welchs_test():
    a, b = np.random.default_rng(4).normal(0, [[1.], [3.]], (2, 6))
    test = scipy_stats.ttest_ind(a, -b, equal_var=False)
    low, high = test.confidence_interval(.95)
    own = pooled({'a': a, 'b': b})
    assert (own.low, own.high, own.p) == pytest.approx((low / 2, high / 2, test.pvalue))


def test_what_cannot_be_pooled():
    with pytest.raises(SettingError, match='reppoints has one seed'):
        pooled({'retinanet': [1, 2], 'reppoints': [1]})
    with pytest.raises(SettingError, match='two groups or more, not retinanet'):
        pooled({'retinanet': [1, 2]})


def test_holm_by_hand():
    """Sorted .01, .02, .03, .04 times 4, 3, 2, 1, never falling."""
    assert holm([.04, .01, .03, .02]) == pytest.approx([.06, .04, .06, .06])
    assert holm([.6, .7]) == [1, 1]
    assert holm([.03]) == [.03]
    assert holm([]) == []


def test_a_family_judges_by_adjusted_p():
    found = family({'AMD - MGD': compare([.5, .6, .7, .6]), 'AMD - inherit': compare([.1, .7, .5, .9]),
                    'AMD - baseline': compare([.1, -.2, .3, -.4])}).set_index('comparison')
    assert found.verdict['AMD - MGD'] == 'better'
    assert compare([.1, .7, .5, .9]).verdict == 'better'
    assert found.verdict['AMD - inherit'].startswith('not resolved at n = 4')
    assert found.verdict['AMD - inherit'].endswith('(alone yes, in its family p = 0.097)')
    assert found.verdict['AMD - baseline'].startswith('not resolved at n = 4')
    assert (found.p_holm >= found.p).all()


@pytest.mark.parametrize('n', [3, 5, 8])
def test_t_intervals_of_question_b_cover_zero(n):
    trials = np.random.default_rng(n).normal(0, .6, (3000, n))
    judged = [compare(differences) for differences in trials]
    covered = np.mean([one.low <= 0 <= one.high for one in judged])
    assert .93 <= covered <= .97
    assert np.mean([one.p_sign_flip <= .05 for one in judged]) <= .06
    assert np.mean(['not resolved' in one.verdict for one in judged]) == covered


@pytest.mark.parametrize('n', [3, 5, 8])
def test_pooled_intervals_cover_zero(n):
    """Three groups that spread unlike each other."""
    trials = np.random.default_rng(n).normal(0, [[.3], [.6], [1.2]], (2000, 3, n))
    covered = [one.low <= 0 <= one.high for one in (pooled(dict(zip('abc', groups, strict=True))) for groups in trials)]
    assert .93 <= np.mean(covered) <= .975


def crossed(rng, n, images=100, resamples=200, by_seed=.5, by_image=.5, by_both=.5):
    """Differences of n seeds on a test set, and on redrawn images: chance of seeds, of images, and of the two together.

    Each is given as the standard deviation that it gives one seed's difference.
    """
    scores = rng.normal(0, by_seed, (n, 1)) + np.sqrt(images) * (
        rng.normal(0, by_image, images) + rng.normal(0, by_both, (n, images)))
    weights = np.concatenate(list(stats.draws(images, resamples, int(rng.integers(1 << 31)), resamples)), axis=1)
    return scores.mean(1), scores @ weights / images, images


@pytest.mark.parametrize('n', [3, 5, 8])
@pytest.mark.parametrize('chances', [(.5, .5, .5), (.1, .5, .1), (.5, 0, .5), (.6, .1, .1)],
                         ids=['all', 'images', 'no images', 'seeds'])
def test_headline_intervals_cover_zero(n, chances):
    rng = np.random.default_rng(n)
    covered = [one.low <= 0 <= one.high for one in (
        both(*crossed(rng, n, 60, 150, *chances)) for _ in range(1000))]
    assert .93 <= np.mean(covered) <= .975  # by its making up to 97.2 at n = 3, never too little


def test_headline_takes_chance_apart():
    rng = np.random.default_rng(0)
    found = [both(*crossed(rng, 8, 200, 400, .3, .6, .9)) for _ in range(200)]
    assert np.mean([one.sd_seeds**2 for one in found]) == pytest.approx((.3**2 + .9**2) / 8, rel=.1)
    assert np.mean([one.sd_images**2 for one in found]) == pytest.approx(.6**2, rel=.1)


def test_headline_is_what_redrawing_both_gives_but_for_what_that_counts_thrice():
    """Seeds and images drawn, 20,000 times: variance by_seed (n - 1) / n + by_image + 2 x crossed."""
    rng = np.random.default_rng(1)
    n, images, resamples = 6, 50, 20_000
    values, drawn, _ = crossed(rng, n, images, resamples, .5, .5, .2)
    redrawn = np.take_along_axis(drawn, rng.integers(n, size=(n, resamples)), 0).mean(0).var()
    own = both(values, drawn, images)
    crossed_part = (drawn - drawn.mean(0)).var(1).sum() / (n - 1) / n
    expected = own.sd_seeds**2 * (n - 1) / n + own.sd_images**2 * (images - 1) / images + crossed_part * (
        1 + (n - 1) / n)
    assert redrawn == pytest.approx(expected, rel=.03)


@pytest.fixture
def pairs(tmp_path):
    """Three seeds' runs of two methods on one made test set; the second method finds half as much."""
    rng = np.random.default_rng(0)
    path = random_truth(tmp_path / 'truth.json', rng, images=15)
    runs = [[one for one in random_run(path, rng) if rng.random() < share] for _ in range(3) for share in (1, .5)]
    matches = [Matches.of(path, run) for run in runs]
    return list(zip(matches[0::2], matches[1::2], strict=True))


def test_headline_of_runs(pairs):
    own = headline(pairs, resamples=200)
    differences = [a.numbers()['mAP'] - b.numbers()['mAP'] for a, b in pairs]
    assert own.mean == pytest.approx(np.mean(differences))
    assert own.n == 3
    assert own.low < own.mean < own.high
    assert own.sd_seeds == pytest.approx(np.std(differences, ddof=1) / np.sqrt(3))
    assert own == headline(pairs, resamples=200)
    assert headline(pairs, 'AP50', 50).mean == pytest.approx(
        np.mean([a.numbers()['AP50'] - b.numbers()['AP50'] for a, b in pairs]))


def test_headline_needs_two_seeds(pairs):
    with pytest.raises(SettingError, match='two pairs of runs or more'):
        headline(pairs[:1], resamples=20)


def test_equal_differences_leave_only_the_images():
    own = both([.5, .5, .5], np.tile(np.random.default_rng(0).normal(.5, .2, 500), (3, 1)), 100)
    assert own.sd_seeds == 0
    assert own.high - own.low == pytest.approx(2 * scipy_stats.t.ppf(.975, 99) * own.sd_images)
    assert seeds.both([0, 0], np.zeros((2, 9)), 5)[1:3] == (0, 0)


# ---- power ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('n', [3, 8])
def test_power_is_how_often_the_interval_lies_on_the_right_side(n):
    trials = np.random.default_rng(n).normal(.4, .35, (20_000, n))
    above = trials.mean(1) - trials.std(1, ddof=1) / np.sqrt(n) * scipy_stats.t.ppf(.975, n - 1) > 0
    assert seeds.power(.4, .35, n) == seeds.power(-.4, .35, n) == pytest.approx(above.mean(), abs=.01)
    assert seeds.power(seeds.visible(.35, n), .35, n) == pytest.approx(seeds.POWER)


def test_power_agrees_with_what_a_comparison_could_have_seen():
    own = compare([.1, .5, .3, .9])
    assert seeds.visible(own.sd, own.n) == pytest.approx(own.visible)


@pytest.mark.parametrize(('sd', 'n'), [(.3, 1), (0, 4), (float('nan'), 4)])
def test_power_needs_two_seeds_and_a_spread(sd, n):
    for call in (lambda: seeds.power(.3, sd, n), lambda: seeds.visible(sd, n)):
        with pytest.raises(SettingError, match='expected two seeds or more and a spread above 0'):
            call()
