"""What a data set can have wrong with it, file by file: each fault ends in a line with file, field, value and what was
expected, and leaves everything as it was."""
import json
import os
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from amdlib.datasets import prepare

from .folders import edit, files_below, make_coco, make_voc, problems_of, repeat, set_in, write_xml

TRAIN, VAL = 'train2017', 'val2017'
ANN = f'instances_{TRAIN}.json: annotation id 1: '
IMAGE = f'instances_{TRAIN}.json: image id 1: '
HUGE = int('9' * 400)


def in_json(change, suffix=TRAIN):
    return lambda root: edit(root, change, suffix)


def text(content, name=f'annotations/instances_{TRAIN}.json'):
    return lambda root: (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def picture(content, name=f'{TRAIN}_1.png'):
    """Puts these bytes, or what a function makes of the old ones, in the place of a picture."""
    def change(root):
        path = root / TRAIN / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    return change


def called(name, make):
    """A first picture of another name, made by a function of its path."""
    def change(root):
        make(root / TRAIN / name)
        edit(root, set_in('images', 0, file_name=name))
    return change


def fifo(name):
    def change(root):
        (root / name).unlink()
        os.mkfifo(root / name)
    return change


def loop(root):
    path = root / TRAIN / f'{TRAIN}_1.png'
    path.unlink()
    path.symlink_to(path)


def folder_instead(root):
    path = root / TRAIN / f'{TRAIN}_1.png'
    path.unlink()
    path.mkdir()


def twin(root):
    (root / VAL / 'copy.png').write_bytes((root / TRAIN / f'{TRAIN}_1.png').read_bytes())
    edit(root, set_in('images', 0, file_name='copy.png'), VAL)


def half_jpeg(path, end=b''):
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    whole = cv2.imencode('.jpg', noise)[1].tobytes()
    path.write_bytes(whole[:len(whole) // 2] + end)


def damaged_png(old):
    """A byte of the pixels changed: the checksum no longer fits."""
    at = old.index(b'IDAT') + 8
    return old[:at] + bytes([old[at] ^ 255]) + old[at + 1:]


def drawn_as(kind):
    return lambda path: Image.new('RGB', (40, 30), (9, 9, 9)).save(path, format=kind)


COCO = {
    # the JSON itself
    'json empty': (text(''), 'not readable as JSON'),
    'json half': (text('{"images": ['), 'not readable as JSON'),
    'json binary': (text(bytes(range(256))), 'not readable as JSON'),
    'json a list': (text('[1]'), 'expected an object with images, annotations and categories'),
    'json nested too deep': (text('[' * 100000), 'not readable as JSON'),
    'json number of 5000 digits': (text('{"images": [' + '9' * 5000 + ']}'), 'not readable as JSON'),
    'json a fifo': (fifo(f'annotations/instances_{TRAIN}.json'), 'no regular file'),
    'json lacks a list': (in_json(lambda content: content.pop('categories')), "no list 'categories'"),
    'json with no images': (in_json(lambda content: content.update(images=[])), "'images' is empty"),
    'entry that is none': (in_json(lambda content: content['images'].append(3)), 'images entry 2: expected an object'),
    'id a text': (in_json(set_in('images', 0, id='1')), 'images entry 0: expected an object with an integer id'),
    'id of 400 digits': (in_json(set_in('annotations', 0, id=HUGE)), 'annotations entry 0: expected an object with an'),
    # categories
    'category id twice': (in_json(repeat('categories', name='x')), 'category id 1: used more than once'),
    'category name twice': (in_json(repeat('categories', id=9)), "category name 'cat': used more than once"),
    'category name a number': (in_json(set_in('categories', 0, name=5)), 'category id 1: name 5 is not a text'),
    'category name of two lines': (in_json(set_in('categories', 0, name='a\nb')),
        "name 'a\\nb' is not a text of one line"),
    'category name with a surrogate': (in_json(set_in('categories', 0, name='a\ud800')), 'is not a text of one line'),
    'category name a page': (in_json(set_in('categories', 0, name='a' * 1000)), '100 characters at most'),
    'categories out of order': (in_json(lambda content: content['categories'].reverse()), 'not in the order of their'),
    'categories of another split': (in_json(set_in('categories', 1, name='wolf'), VAL), 'categories differ from'),
    # images
    'image id twice': (in_json(repeat('images', file_name='x.png')), 'image id 1: used more than once'),
    'file name twice': (in_json(set_in('images', 1, file_name=f'{TRAIN}_1.png')),
        f"file_name '{TRAIN}_1.png': used more"),
    'file name missing': (in_json(set_in('images', 0, file_name=None)), f'{IMAGE}file_name is None, expected a text'),
    'file name absolute': (in_json(set_in('images', 0, file_name='/etc/passwd')),
                           f"{IMAGE}file_name is '/etc/passwd', which leads out of the folder of the images"),
    'file name leads out': (in_json(set_in('images', 0, file_name=f'../{VAL}/{VAL}_1.png')),
        'which leads out of the folder'),
    'file name with NUL': (in_json(set_in('images', 0, file_name='a\0b')), "'a\\x00b', which no file can be called"),
    'file name with a surrogate': (in_json(set_in('images', 0, file_name='a\ud800')), 'which no file can be called'),
    'file name too long': (in_json(set_in('images', 0, file_name='a' * 300)), f'{IMAGE}'),
    'no such image': (in_json(set_in('images', 0, file_name='x.png')), 'x.png: no such image'),
    'width a text': (in_json(set_in('images', 0, width='40')),
        "width and height are ('40', 30), expected two positive"),
    'width of 400 digits': (in_json(set_in('images', 0, width=HUGE)), 'expected two positive integers'),
    'another size': (in_json(set_in('images', 0, width=41)), 'has 40x30 px, the JSON says 41x30'),
    # pictures
    'picture empty': (picture(b''), 'not readable as an image'),
    'picture a text': (picture(b'hello'), 'not readable as an image'),
    'picture half': (picture(lambda old: old[:len(old) // 2]), 'not readable as an image'),
    'picture damaged': (picture(damaged_png), 'not readable as an image'),
    'picture a fifo': (fifo(f'{TRAIN}/{TRAIN}_1.png'), 'no regular file'),
    'picture a folder': (folder_instead,
                         'no regular file'),
    'picture a link to itself': (loop, 'Too many levels of symbolic links'),
    'jpeg half': (called('half.jpg', half_jpeg), 'not readable as an image'),
    'picture as ico': (called('a.ico', drawn_as('ICO')), 'OpenCV, with which mmdet loads it, cannot'),
    'picture as pcx': (called('a.pcx', drawn_as('PCX')), 'OpenCV, with which mmdet loads it, cannot'),
    'picture as tga': (called('a.tga', drawn_as('TGA')), 'OpenCV, with which mmdet loads it, cannot'),
    'picture as dds': (called('a.dds', drawn_as('DDS')), 'OpenCV, with which mmdet loads it, cannot'),
    'picture in both splits by another name': (twin,
        f'copy.png: the image is in both train and test, there as {TRAIN}_1.png'),
    # boxes
    'annotation id twice': (in_json(repeat('annotations')), 'annotation id 1: used more than once'),
    'box of no image': (in_json(set_in('annotations', 0, image_id=9)), f'{ANN}unknown image id 9'),
    'box of no class': (in_json(set_in('annotations', 0, category_id=9)), f'{ANN}unknown category id 9'),
    'box of true image': (in_json(set_in('annotations', 0, image_id=True)), f'{ANN}unknown image id True'),
    'box of three numbers': (in_json(set_in('annotations', 0, bbox=[1, 2, 3])),
        f'{ANN}bbox is [1, 2, 3], expected [x, y'),
    'box of texts': (in_json(set_in('annotations', 0, bbox=['1', 2, 3, 4])), f"{ANN}bbox is ['1', 2, 3, 4], expected"),
    'box with NaN': (in_json(set_in('annotations', 0, bbox=[float('nan'), 2, 3, 4])), f'{ANN}bbox is [nan, 2, 3, 4]'),
    'box of 400 digits': (in_json(set_in('annotations', 0, bbox=[1, 2, HUGE, 4])), f'{ANN}bbox is [1, 2, 9999'),
    'box of negative size': (in_json(set_in('annotations', 0, bbox=[9, 9, -3, 4])), f'{ANN}bbox [9, 9, -3, 4] has a'),
    'box outside': (in_json(set_in('annotations', 0, bbox=[35, 2, 10, 10])), f'{ANN}bbox [35, 2, 10, 10] leaves the'),
    'area missing': (in_json(lambda content: content['annotations'][0].pop('area')), f'{ANN}area is None, expected a'),
    'area of 400 digits': (in_json(set_in('annotations', 0, area=HUGE)), f'{ANN}area is 9999'),
    'area of another box': (in_json(set_in('annotations', 0, area=900)), f'{ANN}area is 900, the box has 100 square'),
    'iscrowd a text': (in_json(set_in('annotations', 0, iscrowd='no')), f"{ANN}iscrowd is 'no', expected 0 or 1"),
    'all boxes crowd': (in_json(lambda content: [one.update(iscrowd=1) for one in content['annotations']], VAL),
                        f'instances_{VAL}.json: no box that counts: 3 crowd or difficult, 0 degenerate'),
    'all training boxes degenerate': (
        in_json(lambda content: [one.update(bbox=[1, 1, 0.5, 5], area=2) for one in content['annotations']]),
        f'instances_{TRAIN}.json: no box that counts: 1 crowd or difficult, 3 degenerate'),
    # the folder
    'no train': (lambda root: (root / f'annotations/instances_{TRAIN}.json').unlink(), 'no instances_train*.json'),
    'no images': (lambda root: (root / TRAIN).rename(root / 'elsewhere'),
        f'no folder with the images of {TRAIN}; tried'),
    'two of a split': (lambda root: (root / 'annotations/instances_train.json').write_text('{}'),
        'more than one file for train'),
}

def assert_refused(root, case):
    """Once spoilt it is refused in these words, and nothing is changed or left half-written."""
    spoil, told = case
    spoil(root)
    cache, before, content = root.parent / 'cache', sorted(root.rglob('*')), files_below(root)
    message = problems_of(prepare, 'folder', root, cache)
    assert told in message, message
    assert message.count('\n') <= 20
    assert sorted(root.rglob('*')) == before
    assert files_below(root) == content
    assert [path.name for path in cache.glob('*')] in ([f'.{root.name}.lock'], [])


@pytest.mark.parametrize('case', COCO)
def test_a_fault_of_a_data_set_in_coco_layout(tmp_path, case):
    assert_refused(make_coco(tmp_path / 'pets'), COCO[case])


def xml(content):
    return lambda root: (root / 'Annotations/train1.xml').write_bytes(content)


VOC = {
    'xml half': (xml(b'<annotation><object>'), 'train1.xml: not readable as XML'),
    'xml binary': (xml(bytes(range(256))), 'train1.xml: not readable as XML'),
    'xml missing': (lambda root: (root / 'Annotations/train1.xml').unlink(), 'train1.xml: no such file'),
    'box no number': (lambda root: write_xml(root, 'train1', [('a', ('x', 1, 9, 9), 0)]),
        'expected a name and four numbers'),
    'box NaN': (lambda root: write_xml(root, 'train1', [('a', ('nan', 1, 9, 9), 0)]),
        'expected a name and four numbers'),
    'box without a class': (lambda root: write_xml(root, 'train1', [('', (1, 1, 9, 9), 0)]),
        'expected a name and four'),
    'list empty': (lambda root: (root / 'ImageSets/Main/train.txt').write_text(''), 'train.txt: empty'),
    'listed twice': (lambda root: (root / 'ImageSets/Main/train.txt').write_text('train1\ntrain1\n'),
        'listed more than once'),
    'no test list': (lambda root: [(root / f'ImageSets/Main/{name}.txt').unlink() for name in ('test', 'val')],
                     'needs train.txt and test.txt'),
    'image missing': (lambda root: (root / 'JPEGImages/train1.jpg').unlink(), 'no such image in JPEGImages'),
    'image twice': (lambda root: Image.new('RGB', (4, 3)).save(root / 'JPEGImages/train1.png'), 'more than one image'),
    'all difficult': (lambda root: write_xml(root, 'test1', [('b', (1, 1, 40, 30), 1), ('a', (2, 2, 9, 9), 1)]),
                      'no box that counts: 2 crowd or difficult'),
    'no usable box': (lambda root: write_xml(root, 'train1', [('a', (5, 5, 5, 9), 0)]),
        'no image in it has a usable box'),
}


@pytest.mark.parametrize('case', VOC)
def test_a_fault_of_a_data_set_in_voc_layout(tmp_path, case):
    assert_refused(make_voc(tmp_path / 'cells'), VOC[case])


def test_what_is_odd_but_whole_is_taken(tmp_path):
    """A list with a mark of its encoding, names with blanks, an orientation that is none, a picture without boxes."""
    root = make_voc(tmp_path / 'cells')
    tag = Image.Exif()
    tag[0x0112] = 9
    Image.new('RGB', (40, 30), (1, 2, 3)).save(root / 'JPEGImages/one more.jpg', exif=tag)
    write_xml(root, 'one more', [('a', (1, 1, 40, 30), 0)])
    Image.new('RGB', (40, 30), (4, 5, 6)).save(root / 'JPEGImages/none.jpg')
    write_xml(root, 'none', [])
    (root / 'ImageSets/Main/train.txt').write_bytes('\ufefftrain1\none more\nnone  1\n'.encode())
    dataset = prepare('folder', root, tmp_path / 'cache')
    train = json.loads(dataset.train_ann.read_text())
    assert [image['file_name'] for image in train['images']] == ['train1.jpg', 'one more.jpg', 'none.jpg']
    assert 'train: 1 image without a box: mmdet trains without it' in dataset.notes
    assert not any(re.search('clipped|wrong image size', note) for note in dataset.notes)


@pytest.mark.parametrize('value', [0, 1, 3, 6, 8, 9, 65535])
def test_an_orientation_is_what_opencv_makes_of_it(tmp_path, value):
    """Whatever the tag says, boxes belong to the picture as it is loaded in training."""
    root = make_coco(tmp_path / 'pets')
    tag = Image.Exif()
    tag[0x0112] = value
    path = root / TRAIN / 'turned.jpg'
    Image.new('RGB', (40, 30)).save(path, exif=tag)
    height, width = cv2.imread(str(path)).shape[:2]
    edit(root, set_in('images', 0, file_name='turned.jpg', width=width, height=height))
    edit(root, lambda content: content.update(annotations=[one | {'bbox': [1, 1, 9, 9], 'area': 81, 'iscrowd': 0}
                                                           for one in content['annotations']]))
    assert prepare('folder', root, tmp_path / 'cache').name == 'pets'
