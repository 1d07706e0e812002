"""What folders lack or have too much of is mended or left out, and told."""
import json
import shutil
from dataclasses import replace

import cv2
import pytest
from PIL import Image

from amdlib.datasets import check, prepare
from amdlib.datasets.writing import write_folder

from . import layouts
from .folders import edit, files_below, make_coco, problems_of, set_in
from .layouts import PICTURES, boxes_of, labels, line, put, text


def prepared(root, **choice):
    before = files_below(root)
    dataset = prepare('folder', root, root.parent / 'cache', **choice)
    assert files_below(root) == before
    assert check(dataset.train_ann, dataset.train_images, 'train') == []
    return dataset


def boxes(dataset):
    """Boxes of the training split by the picture's name."""
    coco = json.loads(dataset.train_ann.read_text())
    return {image['file_name']: [one['bbox'] for one in coco['annotations'] if one['image_id'] == image['id']]
            for image in coco['images']}


# ---- COCO -------------------------------------------------------------------------------------------------------

def without(part, *keys):
    return lambda content: [one.pop(key) for one in content[part] for key in keys]


def test_area_and_iscrowd_are_filled_in(coco):
    same = prepare('folder', coco, coco.parent / 'cache')
    assert same.train_ann == coco / 'annotations/instances_train2017.json'     # nothing was lacking
    edit(coco, without('annotations', 'area'))
    edit(coco, without('annotations', 'iscrowd'), 'val2017')
    dataset = prepared(coco)
    assert dataset.train_ann == coco.parent / 'cache/pets/train.json'
    assert [one['area'] for one in json.loads(dataset.train_ann.read_text())['annotations']] == [100, 1200, 76.0]
    assert [one['iscrowd'] for one in json.loads(dataset.test_ann.read_text())['annotations']] == [0, 0, 0]
    assert dataset.notes[1:3] == ('train: area of 3 boxes filled in: width x height',
                                  'test: iscrowd of 3 boxes filled in: 0')
    edit(coco, lambda content: [one.update(iscrowd=int(one['id'] == 3)) for one in content['annotations']], 'val2017')
    edit(coco, lambda content: [one.update(area=one['bbox'][2] * one['bbox'][3]) for one in content['annotations']])
    assert prepare('folder', coco, coco.parent / 'cache') == same     # mended by the user: read where it lies


def test_ids_that_are_texts_become_numbers(coco):
    def change(content):
        for part in ('images', 'annotations', 'categories'):
            for one in content[part]:
                one['id'] = f'{part}-{one["id"]}'
        for one in content['annotations']:
            one.update(image_id=f'images-{one["image_id"]}', category_id=f'categories-{one["category_id"]}')
    plain = boxes_of(prepare('folder', coco, coco.parent / 'cache'))
    edit(coco, change)
    edit(coco, change, 'val2017')
    dataset = prepared(coco)
    assert boxes_of(dataset) == plain
    assert 'train: ids of categories that are no numbers, counted from 1' in dataset.notes
    assert json.loads(dataset.train_ann.read_text())['categories'] == [
        {'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]


def test_sizes_are_those_of_the_pictures(coco):
    edit(coco, without('images', 'width', 'height'))
    dataset = prepared(coco)
    assert 'train: width and height taken from 2 pictures' in dataset.notes
    assert {(one['width'], one['height']) for one in json.loads(dataset.train_ann.read_text())['images']} == {(40, 30)}


def test_the_empty_super_class_of_roboflow_is_left_out(tmp_path):
    layouts.coco_roboflow(tmp_path / 'pets', PICTURES)
    dataset = prepared(tmp_path / 'pets')
    assert "the empty super-class 'cells' left out" in dataset.notes
    assert dataset.classes == layouts.CLASSES
    # a class that is used, or that others do not belong to, stays
    for name, change in (('used', set_in('annotations', 0, category_id=0)), ('alone', set_in('categories', 2,
                                                                                             supercategory='none'))):
        root = tmp_path / name
        shutil.copytree(tmp_path / 'pets', root)
        for split in ('train', 'valid'):
            ann = root / split / '_annotations.coco.json'
            content = json.loads(ann.read_text())
            change(content)
            ann.write_text(json.dumps(content))
        assert prepare('folder', root, tmp_path / 'cache').classes[0] == 'cells'


def test_pictures_are_found_by_their_names_and_a_split_by_its_folder(tmp_path):
    """The same name in both splits, folders moved since, other capitals."""
    root = tmp_path / 'pets'
    for split in ('train', 'val'):
        pictures = [('a/B.JPG', (40, 40), [('no', (1, 1, 9, 9))])]
        put(root / f'pictures/{split}/A/b.jpg', f'{split}.jpg', (40, 40))
        text(root / f'{split}.json', json.dumps(layouts.coco_content(pictures)))
    dataset = prepared(root)
    assert list(boxes(dataset)) == ['pictures/train/A/b.jpg']
    assert json.loads(dataset.test_ann.read_text())['images'][0]['file_name'] == 'pictures/val/A/b.jpg'


def test_images_of_cocos_layout_that_were_moved_are_found(coco):
    (coco / 'train2017').rename(coco / 'pictures')
    assert prepared(coco).train_images == coco


# ---- YOLO -------------------------------------------------------------------------------------------------------

def yolo(root, lines, names='[a, b]', more='', size=(40, 20)):
    """A training picture with these lines, and one to report on."""
    for split, words in (('train', lines), ('val', '0 .5 .5 .5 .5')):
        put(root / f'images/{split}/{split}.jpg', f'{split}.jpg', size)
        text(root / f'labels/{split}/{split}.txt', words)
    text(root / 'data.yaml', f'train: images/train\nval: images/val\nnames: {names}\n{more}')
    return root


def test_values_slightly_outside_are_clipped_and_told(tmp_path):
    dataset = prepared(yolo(tmp_path / 'pets', '0 .5 .5 1.0000004 1\n\n0 .95 .5 .2 .5 \n1 0.1 .1 -0 .2'))
    assert boxes(dataset) == {'train.jpg': [[0, 0, 40, 20], [34, 5, 6, 10]]}
    assert "1 box clipped to the image: train.txt line 3: '0 .95 .5 .2 .5'" in dataset.notes
    assert "1 degenerate box dropped: train.txt line 4: '1 0.1 .1 -0 .2'" in dataset.notes
    assert 'no training box of 1 class: b' in dataset.notes     # it stays a class all the same
    assert dataset.classes == ('a', 'b')


def test_polygons_and_keypoints_become_boxes(tmp_path):
    dataset = prepared(yolo(tmp_path / 'pets', '0 .1 .1 .3 .2 .2 .6\n1 .1 .1 .2 .1 .2 .2 .1 .2'))
    assert boxes(dataset) == {'train.jpg': [[4, 2, 8, 10], [4, 2, 4, 2]]}
    assert '2 polygons replaced by the boxes around them: train.txt line 1' in ' '.join(dataset.notes)
    root = yolo(tmp_path / 'pose', '0 .5 .5 .5 .5 .1 .1 2 .2 .2 1', more='kpt_shape: [2, 3]\n')
    dataset = prepared(root)
    assert boxes(dataset) == {'train.jpg': [[10, 5, 20, 10]]}
    assert '1 box with keypoints taken without them' in ' '.join(dataset.notes)


def test_class_numbers_may_have_gaps_and_be_written_as_fractions(tmp_path):
    dataset = prepared(yolo(tmp_path / 'pets', '7.0 .5 .5 .5 .5', '{7: yes, 0: no}'))
    assert dataset.classes == ('no', 'yes')
    assert 'no training box of 1 class: no' in dataset.notes
    assert 'class 3 is none of data.yaml, which has 0 to 7' in problems_of(
        prepare, 'folder', yolo(tmp_path / 'other', '3 .5 .5 .5 .5', '{7: yes, 0: no}'), tmp_path / 'cache')


def test_a_picture_is_labelled_as_it_is_loaded(tmp_path):
    """After its orientation tag, which training obeys too."""
    root = yolo(tmp_path / 'pets', '0 .5 .25 1 .5')
    tag = Image.Exif()
    tag[0x0112] = 6
    path = root / 'images/train/train.jpg'
    Image.new('RGB', (40, 20), (1, 2, 3)).save(path, exif=tag)
    assert cv2.imread(str(path)).shape[:2] == (40, 20)
    assert boxes(prepared(root)) == {'train.jpg': [[0, 0, 20, 20]]}


def test_files_that_belong_to_no_picture_are_told_or_passed_over(tmp_path):
    root = yolo(tmp_path / 'pets', '0 .5 .5 .5 .5')
    text(root / 'labels/train/gone.txt', '')
    text(root / 'labels/train/classes.txt', 'a\nb')
    (root / 'images/train/._train.jpg').write_bytes(b'Mac OS X')
    text(root / 'images/train/README.txt', 'hello')
    text(root / 'labels/train.cache', 'x')
    text(root / 'labels/train/._train.txt', 'Mac OS X')
    text(root / 'notes.json', '{"categories": [{"id": 0, "name": "a"}], "info": {}}')      # of Label Studio
    dataset = prepared(root)
    assert list(boxes(dataset)) == ['train.jpg']
    assert f'1 label file without an image: {root}/labels/train/gone.txt' in dataset.notes


def test_a_split_that_is_the_same_as_another_is_none(tmp_path):
    """As in coco128.yaml."""
    root = yolo(tmp_path / 'pets', '0 .5 .5 .5 .5')
    text(root / 'data.yaml', 'train: images\nval: images\nnames: [a]')
    assert 'val is the same as train in data.yaml: one split); --split' in problems_of(
        prepare, 'folder', root, tmp_path / 'cache')
    assert 'val is the same as train in data.yaml: one split' in prepared(root, split=0.5).notes


def test_a_split_of_roboflows_that_is_not_there_is_told(tmp_path):
    layouts.yolo_roboflow(tmp_path / 'pets', PICTURES)
    assert 'data.yaml names ..\\test\\images for test, which is not there' in prepared(tmp_path / 'pets').notes


# ---- Pascal VOC, CVAT -------------------------------------------------------------------------------------------

def test_voc_may_train_on_what_it_calls_trainval(tmp_path):
    root = tmp_path / 'pets'
    layouts.voc(root, {'trainval': PICTURES['train'], 'test': PICTURES['val'], 'val': PICTURES['train']})
    assert prepared(root).notes[0] == 'trained on trainval (3 images), reported on test (2 images)'


def test_pictures_without_an_xml_file_were_not_labelled(tmp_path):
    root = tmp_path / 'pets'
    layouts.voc_beside(root, PICTURES)
    put(root / 'train/later.jpg', 'later.jpg', (40, 40))
    dataset = prepared(root)
    assert '1 image without a label file left out: train/later.jpg' in dataset.notes
    assert 'later.jpg' not in boxes(dataset)


def test_a_stem_that_two_folders_have(tmp_path):
    root = tmp_path / 'pets'
    for folder in ('a', 'b'):
        put(root / f'images/{folder}/1.jpg', f'{folder}.jpg', (40, 40))
        layouts.xml(root / f'annotations/{folder}/1.xml', '1.jpg', (40, 40), [('no', (1, 1, 9, 9 + ord(folder) % 7))])
    dataset = prepared(root, split=0.5)
    assert {**boxes(dataset), **boxes(replace(dataset, train_ann=dataset.test_ann))} == {
        'images/a/1.jpg': [[1, 1, 8, 14]], 'images/b/1.jpg': [[1, 1, 8, 8]]}


def test_shapes_of_cvat(tmp_path):
    root = tmp_path / 'pets'
    layouts.cvat(root, PICTURES)
    file = root / 'annotations.xml'
    file.write_text(file.read_text().replace('<box label="no" occluded="0" xtl="3.00"', (
        '<polygon label="no" points="5.00,6.00;15.50,7.00;9.00,20.00"/><points label="no" points="1,2"/>'
        '<tag label="no"/><box label="no" rotation="90" xtl="10" ytl="10" xbr="30" ybr="20"/>'
        '<box label="no" occluded="0" xtl="3.00"'), 1))
    dataset = prepared(root)
    assert boxes(dataset)['images/train/ein Bild.jpg'][:3] == [
        [5, 6, 10.5, 14], [15, 5, 10, 20], [3, 4, 20, 10]]
    notes = ' '.join(dataset.notes)
    assert '1 polygon replaced by the boxes around them: ein Bild.jpg polygon 1 (no)' in notes
    assert '1 turned box replaced by the upright boxes around them' in notes
    assert '1 shape without a box left out: ein Bild.jpg points 2 (no)' in notes


# ---- written as COCO --------------------------------------------------------------------------------------------

def test_a_folder_is_written_in_coco_layout(tmp_path):
    layouts.yolo(tmp_path / 'pets', PICTURES)
    dataset = prepared(tmp_path / 'pets')
    (tmp_path / 'there').mkdir()
    folder = write_folder(dataset, tmp_path / 'there')
    assert sorted(files_below(folder)) == [
        'annotations/instances_test.json', 'annotations/instances_train.json', 'test/größe.jpeg', 'test/v.1.png',
        'train/ein Bild.jpg', 'train/tür/IMG 2.JPG', 'train/tür/leer.png']
    again = prepare('folder', folder, tmp_path / 'other')
    assert (boxes_of(again), again.fingerprint) == (boxes_of(dataset), dataset.fingerprint)
    before = files_below(folder)
    assert 'expected a folder that is empty or not there' in problems_of(write_folder, dataset, folder)
    assert files_below(folder) == before


def test_many_labels_of_one_picture_are_read_in_order(tmp_path):
    """Six digits of a part give back whole pixels, at any size."""
    size, wanted = (1999, 1499), [(7 * i, 5 * i, 7 * i + 11 * i % 97 + 2, 5 * i + 13) for i in range(1, 90)]
    root = yolo(tmp_path / 'pets', '\n'.join(line('no', corners, size) for corners in wanted), '[a, b, c]', size=size)
    labels(root / 'labels/val/val.txt', size, [('no', wanted[0])])
    assert boxes(prepared(root))['train.jpg'] == [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in wanted]


@pytest.mark.parametrize('kind', ['train', 'val', 'test'])
def test_a_folder_in_cocos_layout_with_one_split_is_divided(tmp_path, kind):
    root = make_coco(tmp_path / 'pets', kind)
    edit(root, lambda content: content['annotations'][2].update(iscrowd=0), kind)
    dataset = prepare('folder', root, tmp_path / 'cache', split=0.5)
    assert dataset.notes[0] == f'one split, {kind}'
    assert len(json.loads(dataset.train_ann.read_text())['images']) == 1
