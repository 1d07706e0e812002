"""verdicts.py: pairs, what is said of them, and in which order."""
import math

import pandas as pd
import pytest

from amdlib.evaluation import METRICS
from amdlib.paper.tables import TABLES
from amdlib.show import seeds, tables, verdicts
from amdlib.show.verdicts import Pairs, judge, pair_up

from .records import line


class Images:
    """Stands in for the bootstrap: the same interval for every number."""

    def __init__(self, low, high):
        self.asked = []
        self.table = pd.DataFrame({'difference': 0.0, 'low': low, 'high': high}, index=list(METRICS))

    def pairs(self, wanted):
        self.asked += wanted

    def pair(self, run, other):
        self.asked.append((run, other))
        return self.table


def rows(**scores):
    """Row name (with _ for -) -> mAP by seed."""
    return pd.DataFrame([line('retinanet', row.replace('_', '-'), seed, float(score)) for row, own in scores.items()
                         for seed, score in enumerate(own)])


def test_several_pairs_ask_about_another_run():
    pairs = pair_up(rows(amd=(11, 14, 12), baseline=(8, 10, 9.5)), 'retinanet', 'amd', 'baseline')
    found, by_hand = judge(pairs, 'mAP'), seeds.compare([3, 4, 2.5], 'mAP')
    assert found == (by_hand.mean, by_hand.low, by_hand.high, 3, 'B', by_hand.verdict)
    assert judge(pairs, 'AP75', Images(0, 0)).question == 'B'       # the images are not even asked
    assert judge(pairs, 'AP_S') == verdicts.Verdict()               # no objects of that size
    assert 'AP_L could not have been seen' in judge(
        pair_up(rows(amd=(1, 4), baseline=(2, 2)), 'retinanet', 'amd', 'baseline'), 'AP_L').verdict


@pytest.mark.parametrize(('low', 'high', 'word'), [
    (1.0, 5.0, 'better'), (-5.0, -1.0, 'worse'), (-1.0, 5.0, 'not resolved'), (math.nan, math.nan, 'not resolved')])
def test_one_pair_asks_about_other_images_and_says_so(low, high, word):
    pairs, images = pair_up(rows(amd=(11,), baseline=(8,)), 'retinanet', 'amd', 'baseline'), Images(low, high)
    found = judge(pairs, 'mAP', images)
    assert (found.difference, found.n, found.question) == (3.0, 1, 'A')
    assert found.verdict == f'{word} on other test images; one seed: says nothing about another run'
    assert images.asked == [('retinanet-amd-s0', 'retinanet-baseline-s0')]
    without = judge(pairs, 'mAP')
    assert (without.difference, without.low, without.question) == (3.0, None, '')
    assert without.verdict == 'one seed: says nothing about another run'


def test_nothing_to_compare():
    assert judge(Pairs(), 'mAP') == verdicts.Verdict()
    assert pair_up(rows(amd=(1, 2)), 'retinanet', 'amd', 'baseline') == Pairs()     # without any there is none to name


def test_an_unknown_processor_is_no_known_one():
    records = rows(amd=(11, 12), baseline=(8, 9))
    records.loc[records.row == 'amd', 'machine'] = ''
    found = pair_up(records, 'retinanet', 'amd', 'baseline')
    assert found.runs == ()
    assert found.left_out[0] == 'retinanet-amd-s0 (made on an unknown processor, retinanet-baseline-s0 on a CPU)'
    assert len(pair_up(records.assign(machine=''), 'retinanet', 'amd', 'baseline').runs) == 2


def test_what_is_not_resolved_is_told_first():
    records = rows(baseline=(10, 10.1, 9.9), amd=(12, 12.2, 11.7), mgd=(10.5, 9.5, 10.6), fgd=(8, 8.2, 7.8),
                   fkd=(10, 10.1, 9.9))
    cells = tables.tidy('table1', records)
    (told,) = verdicts.told(TABLES['table1'], cells[cells.metric == 'mAP'], {'baseline': 'baseline'})
    assert told.startswith('gains over *baseline* in mAP: not resolved: MGD +0.2 [')
    assert told.index('not resolved') < told.index('better: AMD +2.0 [') < told.index('the same: FKD +0.0')
    assert told.index('the same') < told.index('worse: FGD -2.0 [')
    assert '(n = 3, less than ' in told
    assert told.endswith('(n = 3).')


def test_differences_are_pooled_over_groups_with_the_same_weight():
    first = rows(teacher=(20,), baseline=(8, 9, 9.5), amd=(11, 14, 12), mgd=(11, 13, 12), fgd=(10,))
    second = rows(baseline=(5, 6), amd=(5.5, 6.3), mgd=(5.2, 6.4)).assign(group='faster_rcnn')
    records = pd.concat([first, second], ignore_index=True)
    table = TABLES['table1']
    found = verdicts.pooled(table, records)
    assert list(found) == [('amd', ''), ('mgd', ''), ('amd', 'mgd')]        # fgd has one seed, and one group
    assert found['amd', ''].mean == pytest.approx(((3 + 5 + 2.5) / 3 + 0.4) / 2)
    assert found['amd', ''].n == 5
    assert found['amd', 'mgd'].mean == pytest.approx((1 / 3 + 0.1) / 2)
    assert verdicts.pooled(table, first) == {}


def test_pooled_over_groups_each_gain_is_over_the_student_that_starts_alike():
    inherit = rows(inherit=(10, 11), baseline=(5, 6), amd=(12, 12)).assign(arm='inherit')
    alone = rows(baseline=(5, 6), inherit=(9, 9), amd=(8, 9)).assign(group='faster_rcnn', arm='alone')
    found = verdicts.pooled(TABLES['table1'], pd.concat([inherit, alone], ignore_index=True))
    assert found['amd', ''].groups['retinanet'].mean == 1.5
    assert found['amd', ''].groups['faster_rcnn'].mean == 3


@pytest.mark.parametrize(('asked', 'words'), [
    ((), '4 test images, 1 seed: the spread between seeds is not known'),
    (('A',), '4 test images, 1 seed: in brackets the 95 % interval over test images alone (question A'),
    (('A', 'B'), '4 test images, 1 to 3 seeds: in brackets the 95 % t interval of differences paired by seed')])
def test_what_the_brackets_mean_is_explained(asked, words):
    scores = {'baseline': (8, 9, 9.5), 'amd': (11, 14, 12), 'mgd': (11,)} if 'B' in asked else {
        'baseline': (8,), 'mgd': (11,)}
    cells = tables.tidy('table1', rows(**scores), Images(1, 2) if asked else None)
    assert set(cells.question) - {''} == set(asked)
    assert verdicts.explained(cells, 4).startswith(words)
