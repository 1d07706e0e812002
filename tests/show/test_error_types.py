"""error_types.py: a hand-made case for each of TIDE's types, what its repair brings, and that none lowers AP."""
import json

import numpy as np
import pytest

from amdlib.errors import SettingError
from amdlib.evaluation import coco_numbers
from amdlib.show.error_types import TYPES, find_errors, side_by_side
from tests.show.test_stats import random_run, random_truth

DISC, SQUARE = 1, 2


def truth(path, *objects, crowd=()):
    """One image with (class, xywh) objects; annotation ids from 1."""
    path = path / 'truth.json'
    path.write_text(json.dumps({
        'images': [{'id': 7, 'file_name': 'a.png', 'width': 1000, 'height': 1000}],
        'categories': [{'id': DISC, 'name': 'disc'}, {'id': SQUARE, 'name': 'square'}],
        'annotations': [{'id': i + 1, 'image_id': 7, 'category_id': kind, 'bbox': list(box), 'iscrowd': int(i in crowd),
                         'area': box[2] * box[3]} for i, (kind, box) in enumerate(objects)]}))
    return path


def detection(kind, box, score):
    return {'image_id': 7, 'category_id': kind, 'bbox': list(box), 'score': score}


A, B = (100, 100, 100, 100), (500, 500, 100, 100)
HALF_A, QUARTER_B = (100, 100, 100, 60), (500, 500, 100, 25)   # IoU 0.6 and 0.25
NOWHERE = (800, 100, 50, 50)


def costs(found):
    """The types that occur: name -> (count, dAP)."""
    return {name: (line['count'], pytest.approx(line['dAP'], abs=1e-9)) for name, line in found.types.iterrows()
            if line['count'] or line['dAP']}


def test_nothing_wrong_costs_nothing(tmp_path):
    found = find_errors(truth(tmp_path, (DISC, A)), [detection(DISC, HALF_A, .9)])
    assert found.ap == pytest.approx(100)
    assert (found.labels, found.missed, costs(found)) == (['correct'], [], {})
    assert tuple(found.types.index) == TYPES


def test_classification_the_right_box_with_another_class(tmp_path):
    """The disc is called a square; put right it is found. It is not missed: the error covers it."""
    found = find_errors(truth(tmp_path, (DISC, A), (SQUARE, B)),
                        [detection(SQUARE, HALF_A, .9), detection(SQUARE, B, .8)])
    assert found.labels == ['classification', 'correct']
    assert found.ap == pytest.approx(25)  # disc 0, square 1/2 behind the false one
    assert costs(found) == {'classification': (1, 75)}


def test_localisation_near_an_object_of_its_class(tmp_path):
    found = find_errors(truth(tmp_path, (DISC, A), (DISC, B)), [detection(DISC, QUARTER_B, .9), detection(DISC, A, .8)])
    assert found.labels == ['localisation', 'correct']
    assert found.ap == pytest.approx(.5 * 100 * 51 / 101)  # precision 1/2 at recalls 0 ... 0.5
    assert costs(found) == {'localisation': (1, 100 - found.ap)}


def test_both_near_an_object_of_another_class_is_taken_away(tmp_path):
    """Whom it meant is not known, so the square stays missed."""
    found = find_errors(truth(tmp_path, (DISC, A), (SQUARE, B)),
                        [detection(DISC, QUARTER_B, .9), detection(DISC, A, .8)])
    assert found.labels == ['both', 'correct']
    assert found.missed == [2]
    assert found.ap == pytest.approx(25)
    assert costs(found) == {'both': (1, 25), 'missed': (1, 25)}


def test_duplicate_of_a_found_object(tmp_path):
    found = find_errors(truth(tmp_path, (DISC, A), (DISC, B)),
                        [detection(DISC, A, .9), detection(DISC, HALF_A, .8), detection(DISC, B, .7)])
    assert found.labels == ['correct', 'duplicate', 'correct']
    assert found.ap == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert costs(found) == {'duplicate': (1, 100 - found.ap)}


def test_background_far_from_everything(tmp_path):
    found = find_errors(truth(tmp_path, (DISC, A)), [detection(DISC, A, .8), detection(DISC, NOWHERE, .9)])
    assert found.labels == ['correct', 'background']
    assert costs(found) == {'background': (1, 50)}


def test_missed_objects_are_no_longer_asked_for(tmp_path):
    found = find_errors(truth(tmp_path, (DISC, A), (DISC, B)), [detection(DISC, A, .9)])
    assert found.missed == [2]
    assert found.ap == pytest.approx(100 * 51 / 101)
    assert costs(found) == {'missed': (1, 100 - found.ap)}


def test_of_several_that_fit_after_the_repair_the_highest_score_stays(tmp_path):
    """Two squares over a disc that is found with a lower score: one takes its place, the other goes."""
    path = truth(tmp_path, (DISC, A), (DISC, B))
    found = find_errors(path, [detection(SQUARE, A, .9), detection(SQUARE, HALF_A, .8), detection(DISC, B, .7),
                               detection(DISC, NOWHERE, .6), detection(DISC, A, .5)])
    assert found.labels == ['classification', 'classification', 'correct', 'background', 'correct']
    assert found.ap == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert costs(found) == {'classification': (2, 100 - found.ap), 'background': (1, 100 - found.ap)}


def test_where_two_types_fit_the_first_in_the_list_counts(tmp_path):
    """Over a found disc and a square; over a square and near a disc; near both."""
    path = truth(tmp_path, (DISC, A), (SQUARE, (100, 100, 100, 90)), (SQUARE, B), (DISC, (500, 500, 100, 25)))
    found = find_errors(path, [detection(DISC, A, .9), detection(DISC, A, .8), detection(DISC, (500, 500, 100, 90), .7),
                               detection(DISC, (500, 500, 100, 49), .6)])
    assert found.labels == ['correct', 'duplicate', 'classification', 'correct']
    assert find_errors(path, [detection(DISC, (500, 500, 100, 45), .6)], foreground=.6).labels == ['localisation']


def test_crowds_are_neither_errors_nor_missed(tmp_path):
    found = find_errors(truth(tmp_path, (DISC, A), (DISC, B), crowd=(1,)),
                        [detection(DISC, A, .9), detection(DISC, B, .8), detection(SQUARE, B, .7)])
    assert found.labels == ['correct', 'ignored', 'background']
    assert (found.ap, found.missed) == (pytest.approx(100), [])


def test_a_class_of_which_all_are_missed_leaves_the_mean(tmp_path):
    path = truth(tmp_path, (DISC, A), (SQUARE, B))
    assert costs(find_errors(path, [detection(DISC, A, .9)])) == {'missed': (1, 50)}
    nothing = find_errors(path, [])
    assert (nothing.ap, nothing.labels, nothing.missed) == (0, [], [1, 2])
    assert costs(nothing) == {'missed': (2, 100)}


def test_without_objects_there_is_no_ap(tmp_path):
    found = find_errors(truth(tmp_path), [detection(DISC, A, .9)])
    assert (found.ap, found.labels) == (None, ['background'])
    assert found.types.dAP.isna().all()


@pytest.mark.parametrize('seed', range(6))
def test_repairing_a_type_never_lowers_ap_and_ap_is_cocos(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path = random_truth(tmp_path / 'truth.json', rng, images=30, classes=3)
    run = random_run(path, rng)
    found = find_errors(path, run)
    assert found.ap == coco_numbers(path, run)['AP50']
    assert (found.types['count'] > 0).all()
    assert (found.types.dAP >= -1e-12).all()
    assert (found.types.dAP > 0).sum() >= 4
    at_75 = find_errors(path, run, foreground=.75)
    assert at_75.ap == coco_numbers(path, run)['AP75']
    assert (at_75.types.dAP >= -1e-12).all()


def test_thresholds_must_be_in_order(tmp_path):
    with pytest.raises(SettingError, match='0 < background < foreground < 1'):
        find_errors(truth(tmp_path), [], foreground=.1, background=.5)


def test_two_runs_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    path = random_truth(tmp_path / 'truth.json', rng, images=6, classes=2)
    runs = {'AMD': random_run(path, rng), 'MGD': random_run(path, rng)}
    table = side_by_side(path, runs)
    assert list(table.columns) == ['AMD', 'MGD', 'difference']
    assert table.loc[('size', 'AP_M'), 'AMD'] == coco_numbers(path, runs['AMD'])['AP_M']
    assert table.loc['class', 'MGD'].mean() == pytest.approx(coco_numbers(path, runs['MGD'])['mAP'])
    assert list(table.loc['error: dAP'].index) == list(table.loc['error: count'].index) == list(TYPES)
    assert table.difference.equals(table.AMD - table.MGD)
    assert list(side_by_side(path, {'AMD': runs['AMD']}).columns) == ['AMD']
