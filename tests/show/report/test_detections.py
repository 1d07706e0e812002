"""detections.py: a rule for images that knows no result; right, wrong and missed boxes of a case by hand."""
import gzip
import json

import pytest

from amdlib.show.report.detections import Box, boxes_on, chosen, see, told
from amdlib.show.report.records import Entry


def test_images_are_chosen_evenly_and_by_their_ids_alone():
    images = [{'id': i} for i in range(1, 1001)]
    found = [image['id'] for image in chosen(images)]
    assert found == [63, 188, 313, 438, 563, 688, 813, 938]
    assert chosen(images[::-1]) == chosen(images)
    assert chosen(images[:3]) == images[:3]
    assert chosen([]) == []


def test_boxes_of_a_case_by_hand(tmp_path):
    ann = tmp_path / 'ann.json'
    ann.write_text(json.dumps({
        'images': [{'id': 7, 'width': 100, 'height': 100}, {'id': 8, 'width': 100, 'height': 100}],
        'categories': [{'id': 1, 'name': 'disc'}, {'id': 2, 'name': 'ring'}],
        'annotations': [{'id': i, 'image_id': 7, 'category_id': kind, 'bbox': box, 'area': box[2] * box[3],
                         'iscrowd': crowd}
                        for i, kind, box, crowd in ((1, 1, [0, 0, 10, 10], 0), (2, 2, [50, 50, 10, 10], 0),
                                                    (3, 1, [70, 0, 30, 30], 1))]}))
    found = [{'image_id': 7, 'category_id': kind, 'bbox': box, 'score': score} for kind, box, score in (
        (1, [0, 0, 10, 9], 0.9), (1, [0, 0, 10, 10], 0.8), (2, [50, 50, 10, 4], 0.7), (1, [75, 5, 5, 5], 0.6),
        (2, [50, 50, 10, 10], 0.29))]       # a hit, it again, too small, in a crowd, below the score that is drawn
    boxes = boxes_on(ann, found, [7, 8])
    assert boxes[8] == []
    assert sorted((box.kind, box.label, box.score) for box in boxes[7]) == sorted([
        ('found', 'disc', 0.9), ('false', 'disc', 0.8), ('false', 'ring', 0.7), ('missed', 'ring', None)], key=str)
    assert told(boxes[7], 'AMD', 7) == 'AMD, image 7: 1 of 2 objects found, 2 wrong boxes'
    assert Box('false', (0, 0, 1, 1), 'ring', 0.7).told == 'ring 0.70: wrong'
    assert boxes_on(ann, [], [7])[7] == [Box('missed', (0, 0, 10, 10), 'disc', None),
                                         Box('missed', (50, 50, 10, 10), 'ring', None)]


@pytest.mark.parametrize('content', [b'', b'{}', b'[1]', b'[{"image_id": 1}]', gzip.compress(b'[]', mtime=0)[:-9]])
def test_detections_that_cannot_be_read_are_told_and_left_out(store, caplog, content):
    file = store.folder / 'detections.json.gz'
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    entry = Entry('a', {'data': {'fingerprint': store.dataset.fingerprint}, 'settings': {}})
    entry.detections_file = file
    assert see([entry], store, [{'id': 1}]) == {}
    assert 'a: its detections are left out, they cannot be read' in caplog.text
