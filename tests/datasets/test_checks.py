import shutil

import cv2
import pytest
from PIL import Image

from amdlib.datasets import check, prepare
from amdlib.errors import DataError

from .folders import edit, problems_of, repeat, set_in


@pytest.mark.parametrize(('change', 'message'), [
    (set_in('images', 0, file_name='gone.png'), 'image id 1: {root}/train2017/gone.png: no such image'),
    (set_in('images', 0, file_name=None), 'image id 1: file_name is None'),
    (set_in('images', 0, file_name='text.png'), 'text.png: not readable as an image: cannot identify image file'),
    (set_in('images', 0, file_name='short.jpg'), 'short.jpg: not readable as an image: image file is truncated'),
    (set_in('images', 1, width=41), 'image id 2: {root}/train2017/train2017_2.png has 40x30 px, the JSON says 41x30'),
    (set_in('images', 1, height='30'), "image id 2: width and height are (40, '30')"),
    (repeat('images'), 'image id 1: used more than once'),
    (repeat('images', id=5), "file_name 'train2017_1.png': used more than once"),
    (repeat('annotations'), 'annotation id 1: used more than once'),
    (set_in('images', 0, id=1.5), "images entry 0: expected an object with an integer id, got {{'id': 1.5"),
    (set_in('annotations', 1, image_id=99), 'annotation id 2: unknown image id 99'),
    (set_in('annotations', 1, category_id=3), 'annotation id 2: unknown category id 3'),
    (set_in('annotations', 1, category_id=[1]), 'annotation id 2: unknown category id [1]'),
    (set_in('annotations', 0, bbox=[35, 2, 9, 9]), 'annotation id 1: bbox [35, 2, 9, 9] leaves the image of 40x30 px'),
    (set_in('annotations', 0, bbox=[-1.5, 2, 10, 10]), 'bbox [-1.5, 2, 10, 10] leaves the image'),
    (set_in('annotations', 0, bbox=[8, 2, -4, 10]), 'annotation id 1: bbox [8, 2, -4, 10] has a negative size'),
    (set_in('annotations', 0, bbox=[1, 2, 10]), 'annotation id 1: bbox is [1, 2, 10], expected [x, y, width, height]'),
    (set_in('annotations', 0, bbox=[1, 2, 10, float('nan')]), 'bbox is [1, 2, 10, nan]'),
    (set_in('annotations', 0, area=-1), 'annotation id 1: area is -1'),
    (set_in('annotations', 0, iscrowd=2), 'annotation id 1: iscrowd is 2'),
    (set_in('categories', 1, id=1), 'category id 1: used more than once'),
    (set_in('categories', 1, name='cat'), "category name 'cat': used more than once"),
    (set_in('categories', 1, name=None), 'category id 7: name None'),
    (lambda content: content['categories'].reverse(), 'categories are not in the order of their ids: 7, 1'),
    (lambda content: content['images'].clear(), "'images' is empty"),
    (lambda content: content['annotations'].clear(), "'annotations' is empty"),
    (lambda content: content.pop('categories'), "no list 'categories'; it has ['annotations', 'images']"),
])
def test_each_problem_is_named_with_file_id_and_value(coco, tmp_path, change, message):
    (coco / 'train2017/text.png').write_text('no image')
    Image.effect_noise((40, 30), 50).save(coco / 'train2017/short.jpg')
    whole = (coco / 'train2017/short.jpg').read_bytes()
    (coco / 'train2017/short.jpg').write_bytes(whole[:len(whole) - 200])
    ann = edit(coco, change)
    text = '\n'.join(check(ann, coco / 'train2017', 'train'))
    assert message.format(root=coco) in text
    assert str(ann) in text
    assert '_io' not in text
    assert message.format(root=coco) in problems_of(prepare, 'folder', coco, tmp_path / 'cache')
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == ['.pets.lock']   # nothing half-written


def test_a_good_split_has_no_problems(coco):
    assert check(coco / 'annotations/instances_train2017.json', coco / 'train2017', 'train') == []


def test_boxes_may_leave_the_image_by_a_pixel(coco):
    ann = edit(coco, set_in('annotations', 0, bbox=[-1, 2, 10, 29]))
    assert check(ann, coco / 'train2017', 'train') == []


@pytest.mark.parametrize(('text', 'message'), [('{"images": [', 'not readable as JSON: Expecting value'),
                                           ('[1, 2]', 'expected an object with images'), (None, 'no such file')])
def test_broken_json(coco, tmp_path, text, message):
    ann = coco / 'annotations/instances_val2017.json'
    ann.write_text(text) if text else ann.unlink()
    assert check(ann, coco / 'val2017', 'test')[0].startswith(f'{ann}: {message}')
    if text:
        assert f'{ann}: {message}' in problems_of(prepare, 'folder', coco, tmp_path / 'cache')


def test_degenerate_boxes_are_a_note_in_coco_layout(coco, tmp_path):
    ann = edit(coco, set_in('annotations', 0, bbox=[3, 4, 0.5, 10], area=5))
    assert check(ann, coco / 'train2017', 'train') == [
        f'{ann}: degenerate annotation id 1: bbox [3, 4, 0.5, 10], area 5']
    notes = prepare('folder', coco, tmp_path / 'cache').notes
    assert any('train: 1 degenerate box kept' in note and '[3, 4, 0.5, 10]' in note for note in notes)


def test_splits_must_fit_each_other(coco, tmp_path):
    edit(coco, set_in('categories', 1, name='wolf'), 'val2017')
    message = problems_of(prepare, 'folder', coco, tmp_path / 'cache')
    assert 'instances_val2017.json: categories differ from instances_train2017.json: ' in message
    assert "(7, 'dog') only in train, (7, 'wolf') only in test" in message
    edit(coco, set_in('categories', 1, name='dog'), 'val2017')
    shutil.copy(coco / 'train2017/train2017_1.png', coco / 'val2017')
    edit(coco, set_in('images', 0, file_name='train2017_1.png'), 'val2017')
    message = problems_of(prepare, 'folder', coco, tmp_path / 'cache')
    assert 'val2017/train2017_1.png: the image is in both train and test' in message


def test_equal_names_of_different_images_are_no_leak(coco, tmp_path):
    (coco / 'val2017/val2017_1.png').rename(coco / 'val2017/train2017_1.png')
    edit(coco, set_in('images', 0, file_name='train2017_1.png'), 'val2017')
    prepare('folder', coco, tmp_path / 'cache')


def test_the_message_shows_twenty_problems_and_counts_the_rest(coco):
    edit(coco, lambda content: content['annotations'].extend(
        content['annotations'][0] | {'id': i, 'category_id': 99} for i in range(10, 40)))
    with pytest.raises(DataError) as caught:
        prepare('folder', coco, coco.parent / 'cache')
    assert len(caught.value.problems) == 30
    assert str(caught.value).count('\n') == 20
    assert str(caught.value).endswith('... and 10 more')


def test_sizes_are_those_after_the_orientation_tag(coco):
    """OpenCV turns images that carry the tag, so their boxes belong to the turned image."""
    tag = Image.Exif()
    tag[0x0112] = 6
    path = coco / 'train2017/turned.jpg'
    Image.new('RGB', (30, 40)).save(path, exif=tag)
    assert cv2.imread(str(path)).shape[:2] == (30, 40)
    ann = edit(coco, set_in('images', 0, file_name='turned.jpg'))
    assert check(ann, coco / 'train2017', 'train') == []


def test_large_splits_are_sampled(coco, tmp_path, monkeypatch):
    monkeypatch.setattr('amdlib.datasets.checks.CHECK_ALL_BELOW', 2)
    monkeypatch.setattr('amdlib.datasets.checks.SAMPLE_IMAGES', 1)
    dataset = prepare('folder', coco, tmp_path / 'cache')
    assert 'train: all 2 image files are there; 1 of them were opened' in dataset.notes
    (coco / 'train2017/train2017_1.png').unlink()
    assert 'train2017_1.png: no such image' in problems_of(prepare, 'folder', coco, tmp_path / 'cache')


def test_annotation_id_0_is_a_note(coco, tmp_path):
    edit(coco, set_in('annotations', 0, id=0), 'val2017')
    notes = prepare('folder', coco, tmp_path / 'cache').notes
    assert any('annotation id 0 is never matched' in note for note in notes)
