"""stats.py: pycocotools' numbers to the last bit, weights as if images stood so often, and intervals that cover."""
import contextlib
import copy
import io
import json
import pickle

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from amdlib.errors import SettingError
from amdlib.evaluation import METRICS, coco_numbers
from amdlib.show import stats
from amdlib.show.stats import AREAS, THRESHOLDS, ClassMatches, Matches


def random_truth(path, rng, images=10, classes=3):
    """A set with crowds, images without objects, sizes on both sides of COCO's limits; ids not in order, none is 0."""
    ids = rng.permutation(np.arange(100, 100 + images)).tolist()
    annotations = []
    for image in ids[1:]:
        for _ in range(rng.integers(1, 7)):
            width, height = np.round(np.exp(rng.normal(4, .9, 2)), 2).tolist()
            annotations.append({
                'id': len(annotations) + 1, 'image_id': image, 'category_id': int(rng.integers(1, classes + 1)) * 3,
                'bbox': [*np.round(rng.uniform(0, 300, 2), 2).tolist(), width, height],
                'area': width * height * float(rng.choice([1, .7])), 'iscrowd': int(rng.random() < .08)})
    path.write_text(json.dumps({
        'images': [{'id': i, 'file_name': f'{i}.png', 'width': 640, 'height': 480} for i in ids],
        'categories': [{'id': 3 * k, 'name': f'class {k}'} for k in range(1, classes + 1)],
        'annotations': annotations}))
    return path


def random_run(path, rng, ties_in_image=True):
    """Detections about the objects and elsewhere: shifted, of another class, twice; scores of few values, so tied."""
    truth = json.loads(path.read_text())
    kinds = [category['id'] for category in truth['categories']]
    found = []
    for one in truth['annotations']:
        for _ in range(rng.integers(0, 4)):
            box = np.array(one['bbox'])
            box = [*(box[:2] + rng.normal(0, .12, 2) * box[2:]), *(box[2:] * np.exp(rng.normal(0, .12, 2)))]
            found.append((one['image_id'], one['category_id'] if rng.random() < .8 else int(rng.choice(kinds)), box))
    for image in truth['images']:
        for _ in range(rng.integers(0, 5)):
            found.append((image['id'], int(rng.choice(kinds)), [*rng.uniform(0, 400, 2), *np.exp(rng.normal(4, 1, 2))]))
    scores = rng.integers(1, 12, len(found)) / 12
    if not ties_in_image:
        for image in truth['images']:
            own = [i for i, one in enumerate(found) if one[0] == image['id']]
            scores[own] = rng.permutation(60)[:len(own)] / 60
    return [{'image_id': image, 'category_id': kind, 'bbox': [round(float(v), 2) for v in box], 'score': float(score)}
            for (image, kind, box), score in zip(found, scores, strict=True)]


def pycocotools_numbers(truth, found):
    """Without the kit: of a COCO dict and detections."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(found)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: None if value < 0 else 100 * float(value)
            for name, value in zip(METRICS, evaluation.stats, strict=True)}


def with_images(truth, found, times):
    """The set in which image i (of rising ids) stands `times[i]` times, copies beside their originals in id order."""
    images, annotations, detections = [], [], []
    for image, count in zip(sorted(truth['images'], key=lambda one: one['id']), times, strict=True):
        for copied in range(count):
            new = image['id'] * 10 + copied
            images.append({**image, 'id': new})
            annotations += [{**one, 'image_id': new} for one in truth['annotations'] if one['image_id'] == image['id']]
            detections += [{**one, 'image_id': new} for one in found if one['image_id'] == image['id']]
    annotations = [{**one, 'id': i + 1} for i, one in enumerate(annotations)]
    return {**truth, 'images': images, 'annotations': annotations}, detections


@pytest.fixture(params=range(4))
def case(request, tmp_path):
    """rng, path, truth, detections without ties within an image, matches."""
    rng = np.random.default_rng(request.param)
    path = random_truth(tmp_path / 'truth.json', rng)
    found = random_run(path, rng, ties_in_image=False)
    return rng, path, json.loads(path.read_text()), found, Matches.of(path, found)


def test_weights_of_one_are_pycocotools_to_the_bit(case):
    rng, path, truth, found, matches = case
    assert matches.numbers() == pycocotools_numbers(truth, found) == coco_numbers(path, found)
    assert matches.numbers(np.ones(len(matches.images))) == matches.numbers()
    tied = random_run(path, rng)
    assert Matches.of(path, tied).numbers() == pycocotools_numbers(truth, tied)


def test_more_than_100_detections_an_image_and_none_at_all(tmp_path):
    rng = np.random.default_rng(5)
    path = random_truth(tmp_path / 'truth.json', rng, images=3, classes=1)
    many = [one for _ in range(40) for one in random_run(path, rng)]
    assert max(np.unique([one['image_id'] for one in many], return_counts=True)[1]) > 100
    assert Matches.of(path, many).numbers() == coco_numbers(path, many)
    assert Matches.of(path, []).numbers() == coco_numbers(path, [])


def test_weight_0_is_the_image_left_out_with_its_objects(case):
    rng, _, truth, found, matches = case
    for _ in range(4):
        times = rng.integers(0, 2, len(matches.images))
        times[rng.integers(len(times))] = 1
        left = with_images(truth, found, times)
        if left[1]:
            assert matches.numbers(times) == pycocotools_numbers(*left)


def test_nothing_left_is_no_number(case):
    *_, matches = case
    assert set(matches.numbers(np.zeros(len(matches.images))).values()) == {None}


def test_doubling_all_weights_changes_nothing(case):
    rng, *_, matches = case
    images = len(matches.images)
    for weights in (np.ones(images), rng.integers(0, 4, images), rng.random(images)):
        assert matches.numbers(2 * weights) == pytest.approx(matches.numbers(weights), rel=0, abs=1e-12)


def test_images_that_really_stand_several_times_agree_with_weights(case):
    """Scores tie between images; copies stand beside their originals, so a tie goes through an image and its copies."""
    rng, _, truth, found, matches = case
    assert len({one['score'] for one in found}) < len(found)
    for times in (np.full(len(matches.images), 2), *rng.integers(0, 4, (3, len(matches.images)))):
        assert matches.numbers(times) == pytest.approx(pycocotools_numbers(*with_images(truth, found, times)),
                                                       rel=0, abs=1e-10)


def test_a_tie_within_an_image_is_where_copies_and_weights_part(tmp_path):
    """Hit and false alarm with one score: copies go hit, false, hit, false; a weight of 2 keeps the number as it is."""
    path = tmp_path / 'truth.json'
    box = [10, 10, 50, 50]
    truth = {'images': [{'id': 1, 'width': 99, 'height': 99}], 'categories': [{'id': 1, 'name': 'disc'}],
             'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': box, 'area': 2500, 'iscrowd': 0}]}
    path.write_text(json.dumps(truth))
    found = [{'image_id': 1, 'category_id': 1, 'bbox': place, 'score': .5} for place in (box, [70, 70, 20, 20])]
    assert Matches.of(path, found).numbers([2])['mAP'] == pytest.approx(100)
    assert pycocotools_numbers(*with_images(truth, found, [2]))['mAP'] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_resamples_are_the_numbers_of_their_weights(case):
    *_, matches = case
    drawn = stats.resampled([matches], resamples=30, seed=3)[0]
    weights = np.concatenate(list(stats.draws(len(matches.images), 30, 3, chunk=30)), axis=1)
    for own, column in zip(drawn.T, weights.T, strict=True):
        exact = [np.nan if value is None else value for value in matches.numbers(column).values()]
        np.testing.assert_allclose(own, exact, rtol=0, atol=1e-10)
    some = stats.resampled([matches], ('AR10', 'AP75'), resamples=30, seed=3)[0]
    np.testing.assert_array_equal(some, drawn[[METRICS.index('AR10'), METRICS.index('AP75')]])


def test_chunks_change_no_draw(monkeypatch, case):
    *_, matches = case
    whole = stats.resampled([matches], resamples=25, seed=1)
    monkeypatch.setattr(stats, '_CELLS', 7 * max(len(matches.images), matches._longest))
    np.testing.assert_array_equal(stats.resampled([matches], resamples=25, seed=1), whole)
    assert {weights.shape[1] for weights in stats.draws(5, 25, 0, 7)} == {7, 4}
    assert all((weights.sum(0) == 5).all() for weights in stats.draws(5, 25, 0, 7))


def test_class_ap_averages_to_map(case):
    *_, matches = case
    own = matches.class_ap()
    assert list(own) == ['class 1', 'class 2', 'class 3']
    assert np.mean([value for value in own.values() if value is not None]) == pytest.approx(matches.numbers()['mAP'])


def test_matches_can_be_stored(case):
    *_, matches = case
    matches.numbers()
    assert pickle.loads(pickle.dumps(matches)).numbers() == matches.numbers()


def test_paired_bootstrap(case):
    rng, path, _, found, matches = case
    worse = Matches.of(path, [one for one in found if rng.random() < .5])
    table = stats.paired(matches, worse, resamples=200)
    assert list(table.columns) == ['metric', 'difference', 'low', 'high']
    assert tuple(table.metric) == METRICS
    line = table.set_index('metric').loc['mAP']
    assert line.difference == matches.numbers()['mAP'] - worse.numbers()['mAP']
    assert line.low < line.difference < line.high
    assert table.equals(stats.paired(matches, worse, resamples=200))
    other_way = stats.paired(worse, matches, resamples=200)
    np.testing.assert_allclose(other_way.low, -table.high, atol=1e-9)
    same = stats.paired(matches, matches, resamples=50)
    assert (same[['difference', 'low', 'high']].fillna(0) == 0).all(axis=None)
    own = stats.alone(matches, resamples=200, metrics=('AP50',)).iloc[0]
    assert own.low < own.value == matches.numbers()['AP50'] < own.high


def test_a_size_that_the_set_lacks_has_no_interval(tmp_path):
    path = tmp_path / 'truth.json'
    path.write_text(json.dumps({
        'images': [{'id': i, 'width': 99, 'height': 99} for i in (1, 2)], 'categories': [{'id': 1, 'name': 'disc'}],
        'annotations': [{'id': i, 'image_id': i, 'category_id': 1, 'bbox': [0, 0, 50, 50], 'area': 2500, 'iscrowd': 0}
                        for i in (1, 2)]}))
    found = Matches.of(path, [{'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 50, 50], 'score': .5}])
    table = stats.paired(found, Matches.of(path, []), resamples=50).set_index('metric')
    assert table.loc['AP_S'].isna().all()
    assert table.loc['AP_M'].notna().all()


def test_other_test_sets_and_metrics_are_refused(tmp_path, case):
    *_, matches = case
    path = random_truth(tmp_path / 'other.json', np.random.default_rng(99))
    with pytest.raises(SettingError, match='not tested on the same images'):
        stats.paired(matches, Matches.of(path, []))
    with pytest.raises(SettingError, match="AP90 is none of COCO's numbers: mAP"):
        stats.resampled([matches], ('AP90',))
    with pytest.raises(SettingError, match='10 weights of 0 or more are needed, one an image, not 3'):
        matches.numbers([1, 1, 1])


def exchangeable(rng, images, classes=2, objects=2.):
    """Two detectors of one kind on a test set of its own: what they find is drawn from the same law, objects shared."""
    hard = rng.normal(0, 1, images)
    runs = [{}, {}]
    for k in range(classes):
        counts = rng.poisson(objects, images)
        at = np.repeat(np.arange(images), counts)
        ease = rng.normal(0, 1, len(at)) - hard[at]
        for run in runs:
            shown = ease + rng.normal(0, 1, len(at))
            quality = .75 + .1 * shown + rng.normal(0, .1, len(at))
            false_at = np.repeat(np.arange(images), rng.poisson(1.5, images))
            score = np.concatenate([shown + rng.normal(.5, .7, len(at)), rng.normal(-1, 1, len(false_at))])
            image = np.concatenate([at, false_at])
            hit = np.concatenate([(shown > -1) & (quality >= THRESHOLDS[:, None]),
                                  np.zeros((len(THRESHOLDS), len(false_at)), bool)], axis=1)
            order = np.lexsort((-score, image))
            found = np.tile(hit[:, order], (len(AREAS), 1, 1))
            run[f'class {k}'] = ClassMatches.by_score(score[order], image[order], np.zeros(len(order), int), found,
                                                      np.ones_like(found), np.tile(counts, (len(AREAS), 1)))
    return [Matches(np.arange(images), run) for run in runs]


@pytest.mark.slow
def test_intervals_of_question_a_cover_zero_where_detectors_are_exchangeable():
    trials, images = 1000, 40
    covered = 0
    for trial in range(trials):
        line = stats.paired(*exchangeable(np.random.default_rng(trial), images), resamples=300, seed=trial,
                            metrics=('mAP',)).iloc[0]
        covered += line.low <= 0 <= line.high
    assert 93 <= 100 * covered / trials <= 97
