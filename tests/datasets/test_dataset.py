import json
from dataclasses import replace
from pathlib import Path

from amdlib.datasets import Dataset, coco_images
from amdlib.datasets.dataset import fingerprint, read_coco, write_coco


def test_a_data_set_goes_through_json():
    dataset = Dataset('pets', Path('/a/train.json'), Path('/a/train'), Path('/a/test.json'), Path('/a/test'),
                      ('cat', 'dog'), '0123456789abcdef', ('trained on train',))
    for one in (dataset, replace(dataset, val_ann=Path('/a/val.json'), val_images=Path('/a/val'))):
        assert Dataset.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_a_written_file_is_read_back(tmp_path):
    images = [({'file_name': 'a.png', 'width': 9, 'height': 8}, [{'name': 'dog', 'bbox': [0, 1, 2.5, 4]}]),
              ({'file_name': 'b.png', 'width': 9, 'height': 8}, [{'name': 'cat', 'bbox': [0, 0, 1, 1], 'iscrowd': 1}])]
    write_coco(tmp_path / 'x.json', images, ['cat', 'dog'])
    assert read_coco(tmp_path / 'x.json') == {
        'images': [{'id': 1, **images[0][0]}, {'id': 2, **images[1][0]}],
        'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
        'annotations': [
            {'id': 1, 'image_id': 1, 'category_id': 2, 'bbox': [0, 1, 2.5, 4], 'area': 10, 'iscrowd': 0},
            {'id': 2, 'image_id': 2, 'category_id': 1, 'bbox': [0, 0, 1, 1], 'area': 1, 'iscrowd': 1}]}
    assert [image['file_name'] for image in coco_images(tmp_path / 'x.json')] == ['a.png', 'b.png']


def test_fingerprint_is_by_content():
    assert fingerprint([{'a': 1, 'b': [2.5]}]) == fingerprint([{'b': [2.5], 'a': 1}])
    assert fingerprint([1, 2]) != fingerprint([2, 1]) != fingerprint([[2, 1]])
    assert len(fingerprint([])) == 16
    assert set(fingerprint([])) <= set('0123456789abcdef')
