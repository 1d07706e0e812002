"""coco.py: the 12 numbers by hand and as pycocotools has them; the metric that computes them from what it writes."""
import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from amdlib.engine.coco import CocoNumbers
from amdlib.evaluation import METRICS, coco_numbers
from amdlib.files import read_json


def truth_file(path, boxes_xywh_px):
    """One image of 400x400 px with these boxes, class 1."""
    path.write_text(json.dumps({
        'images': [{'id': 7, 'file_name': 'a.png', 'width': 400, 'height': 400}],
        'categories': [{'id': 1, 'name': 'disc'}],
        'annotations': [{'id': i + 1, 'image_id': 7, 'category_id': 1, 'bbox': list(box), 'iscrowd': 0,
                         'area': box[2] * box[3]} for i, box in enumerate(boxes_xywh_px)]}))
    return path


def detection(box, score=0.9):
    return {'image_id': 7, 'category_id': 1, 'bbox': list(box), 'score': score}


LARGE, MEDIUM, SMALL = (100, 100, 200, 200), (10, 10, 50, 50), (350, 350, 20, 20)


def test_perfect_detections_score_100_and_absent_sizes_have_no_number(tmp_path):
    numbers = coco_numbers(truth_file(tmp_path / 'a.json', [LARGE]), [detection(LARGE)])
    assert list(numbers) == list(METRICS)
    absent = {name: numbers.pop(name) for name in ('AP_S', 'AP_M', 'AR_S', 'AR_M')}
    assert set(absent.values()) == {None}
    assert numbers == pytest.approx(dict.fromkeys(numbers, 100.0))


def test_no_detections_score_0_and_absent_sizes_still_have_no_number(tmp_path):
    numbers = coco_numbers(truth_file(tmp_path / 'a.json', [SMALL, LARGE]), [])
    assert {name for name, value in numbers.items() if value is None} == {'AP_M', 'AR_M'}
    assert all(value == 0 for value in numbers.values() if value is not None)


def test_numbers_by_hand(tmp_path):
    """One large box found with an overlap of 0.72 counts at five of ten thresholds; the medium one is not found."""
    found = [detection((100, 100, 200, 144))]
    only = coco_numbers(truth_file(tmp_path / 'a.json', [LARGE]), found)
    assert (only['mAP'], only['AP50'], only['AP75'], only['AP_L'], only['mAR']) == pytest.approx((50, 100, 0, 50, 50))
    both = coco_numbers(truth_file(tmp_path / 'b.json', [LARGE, MEDIUM]), found)
    assert (both['AP_M'], both['AP_L'], both['mAR'], both['AP_S']) == (0, pytest.approx(50), pytest.approx(25), None)
    assert both['AP50'] == pytest.approx(100 * 51 / 101)  # precision 1 at recall 0 ... 0.5 of 101 points


def random_detections(ann_file, seed=0):
    rng = np.random.default_rng(seed)
    truth = json.loads(Path(ann_file).read_text())
    found = []
    for ann in truth['annotations']:
        for _ in range(3):
            box = [round(float(v), 2) for v in np.array(ann['bbox']) + rng.normal(0, 3, 4)]
            found.append({'image_id': ann['image_id'], 'category_id': int(rng.choice([ann['category_id'], 1])),
                          'bbox': [box[0], box[1], max(box[2], 1.0), max(box[3], 1.0)],
                          'score': round(float(rng.random()), 6)})
    return found


def test_numbers_are_pycocotools_own(dataset):
    found = random_detections(dataset.test_ann)
    numbers = coco_numbers(dataset.test_ann, found)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.test_ann))
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0 < numbers['mAP'] < 100
    assert list(numbers.values()) == [100 * v if v >= 0 else None for v in evaluation.stats]
    assert METRICS.index('mAR') == 8  # AR at 100 detections


def test_numbers_leave_the_detections_as_they_are_and_print_nothing(dataset, capsys):
    found = random_detections(dataset.test_ann)
    before = copy.deepcopy(found)
    coco_numbers(dataset.test_ann, found)
    assert found == before
    assert capsys.readouterr().out == ''


def test_the_metric_computes_its_numbers_from_the_detections_that_it_writes(dataset, tmp_path):
    """All true boxes but one class, shifted by less than 0.01 px in the last digit: known recall, and files agree."""
    truth = json.loads(Path(dataset.test_ann).read_text())
    ids = [category['id'] for category in truth['categories']]
    metric = CocoNumbers(str(dataset.test_ann), str(tmp_path / 'detections.json.gz'))
    metric.dataset_meta = {'classes': dataset.classes}
    left_out = truth['annotations'][0]['category_id']
    for image in truth['images']:
        own = [one for one in truth['annotations'] if one['image_id'] == image['id'] and one['category_id'] != left_out]
        xywh = np.array([one['bbox'] for one in own], float).reshape(-1, 4) + 0.001
        metric.process({}, [{
            'img_id': image['id'], 'ori_shape': (image['height'], image['width']),
            'gt_instances': {}, 'pred_instances': {
                'bboxes': torch.tensor(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])),
                'labels': torch.tensor([ids.index(one['category_id']) for one in own]),
                'scores': torch.linspace(0.9, 0.12345678, len(own))}}])
    numbers = metric.evaluate(len(truth['images']))
    present = {one['category_id'] for one in truth['annotations']}
    assert numbers['coco/mAP'] == pytest.approx(100 * (len(present) - 1) / len(present))
    found = read_json(tmp_path / 'detections.json.gz')
    assert {f'coco/{name}': value for name, value in coco_numbers(dataset.test_ann, found).items()} == numbers
    assert sorted(map(tuple, (one['bbox'] for one in found))) == sorted(
        tuple(map(float, one['bbox'])) for one in truth['annotations'] if one['category_id'] != left_out)
    assert all(one['score'] == round(one['score'], 6) for one in found)
