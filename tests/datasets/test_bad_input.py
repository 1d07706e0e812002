"""What a data set can have wrong with it, file by file: each fault ends in a line with file, field, value and what was
expected, and leaves everything as it was."""
import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from amdlib.datasets import prepare

from . import layouts
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
    'id a list': (in_json(set_in('images', 0, id=[1])), 'images entry 0: expected an object with an integer id'),
    'text id twice': (in_json(lambda content: [one.update(id='a') for one in content['images']]),
        "images entry 1: id 'a' is used more than once"),
    'text id of no image': (in_json(lambda content: content['images'][0].update(id='a')), f"{ANN}unknown image id '1'"),
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
    'area a text': (in_json(set_in('annotations', 0, area='9')), f"{ANN}area is '9', expected a"),
    'no area of no box': (in_json(set_in('annotations', 0, area=None, bbox=None)), f'{ANN}area is None, expected a'),
    'area of 400 digits': (in_json(set_in('annotations', 0, area=HUGE)), f'{ANN}area is 9999'),
    'area of another box': (in_json(set_in('annotations', 0, area=900)), f'{ANN}area is 900, the box has 100 square'),
    'iscrowd a text': (in_json(set_in('annotations', 0, iscrowd='no')), f"{ANN}iscrowd is 'no', expected 0 or 1"),
    'all boxes crowd': (in_json(lambda content: [one.update(iscrowd=1) for one in content['annotations']], VAL),
                        f'instances_{VAL}.json: no box that counts: 3 crowd or difficult, 0 degenerate'),
    'all training boxes degenerate': (
        in_json(lambda content: [one.update(bbox=[1, 1, 0.5, 5], area=2) for one in content['annotations']]),
        f'instances_{TRAIN}.json: no box that counts: 1 crowd or difficult, 3 degenerate'),
    # the folder
    'no train': (lambda root: (root / f'annotations/instances_{TRAIN}.json').unlink(),
        f'one split only (COCO layout: annotations/instances_{VAL}.json); --split 0.8 (SPLIT=0.8) trains'),
    'no images': (lambda root: (root / TRAIN).rename(root.parent / 'elsewhere'), f'{TRAIN}_1.png: no such image'),
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
    'xml a fifo': (fifo('Annotations/train1.xml'), 'train1.xml: no regular file'),
    'xml missing': (lambda root: (root / 'Annotations/train1.xml').unlink(), 'train1.xml: no such file'),
    'box no number': (lambda root: write_xml(root, 'train1', [('a', ('x', 1, 9, 9), 0)]),
        'expected a name and four numbers'),
    'box NaN': (lambda root: write_xml(root, 'train1', [('a', ('nan', 1, 9, 9), 0)]),
        'expected a name and four numbers'),
    'box without a class': (lambda root: write_xml(root, 'train1', [('', (1, 1, 9, 9), 0)]),
        'expected a name and four'),
    'list empty': (lambda root: (root / 'ImageSets/Main/train.txt').write_text(''), 'train.txt: empty'),
    'listed name too long': (lambda root: (root / 'ImageSets/Main/train.txt').write_text('a' * 300), 'no such image'),
    'listed twice': (lambda root: (root / 'ImageSets/Main/train.txt').write_text('train1\ntrain1\n'),
        'listed more than once'),
    'no test list': (lambda root: [(root / f'ImageSets/Main/{name}.txt').unlink() for name in ('test', 'val')],
                     'one split only (Pascal VOC layout: train.txt)'),
    'no train list': (lambda root: (root / 'ImageSets/Main/train.txt').unlink(), 'needs train.txt and test.txt'),
    'picture a fifo': (fifo('JPEGImages/train1.jpg'), 'train1.jpg: no regular file'),
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


def put(name, content):
    """A file with this content; in it {old} is what it had."""
    def change(root):
        path = root / name
        old = path.read_bytes() if path.is_file() else b''
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode().replace(b'{old}', old))
    return change


def exchanged(name, old, new):
    def change(root):
        before = (root / name).read_text()
        assert old in before
        (root / name).write_text(before.replace(old, new))
    return change


BOX = 'labels/train/ein Bild.txt'
YOLO = {
    # data.yaml
    'yaml half': (put('pets.yaml', 'train: [images\nnames: ['), 'pets.yaml: not readable as YAML: while parsing'),
    'yaml nested too deep': (put('pets.yaml', 'train: x\nnames: ' + '[' * 5000), 'not readable as YAML'),
    'yaml two': (put('data.yml', 'train: images/train\nnames: [a]'),
        'more than one file with classes and splits: pets.yaml'),
    'names a number': (exchanged('pets.yaml', 'names:', 'names: 3\nother:'),
        "names is '3', expected a list, a mapping or"),
    'names lists': (put('pets.yaml', 'train: images/train\nnames: [[a], b]'),
        "names is {0: ['a'], 1: 'b'}, expected a list"),
    'names by words': (exchanged('pets.yaml', '  1: no', '  one: no'), 'expected a list or a mapping from numbers'),
    'name twice': (exchanged('pets.yaml', '1: no', '1: Löwe'), "names: 'Löwe' is there more than once"),
    'name empty': (exchanged('pets.yaml', '1: no', '1: '), 'names: class 1 has no name'),
    'nc of others': (put('pets.yaml', '{old}nc: 5\n'), "nc is '5', names has 3"),
    'train gone': (exchanged('pets.yaml', 'images/train', 'pictures/all'),
                   'pets.yaml: train: pictures/all: no such folder or file in'),
    'val gone': (exchanged('pets.yaml', 'images/val', 'valid'),
        'pets.yaml names valid for val, which is not there); --split'),
    'train a mapping': (put('pets.yaml', 'train: {a: b}\nnames: [a]'),
        "train is {'a': 'b'}, expected a path or a list"),
    'no path': (put('pets.yaml', 'train:\nval: ~\nnames: [a]'), 'pets.yaml: no path for train, val or test'),
    # text files
    'class beyond': (put(BOX, '{old}3 .5 .5 .1 .1'),
                     f"{BOX}: line 3: '3 .5 .5 .1 .1': class 3 is none of pets.yaml, which has 0 to 2"),
    'class negative': (put(BOX, '-1 .5 .5 .1 .1'), "line 1: '-1 .5 .5 .1 .1': class -1 is none of"),
    'class a name': (put(BOX, 'no .5 .5 .1 .1'), "line 1: 'no .5 .5 .1 .1': expected a class's number"),
    'class a fraction': (put(BOX, '0.5 .5 .5 .1 .1'), 'class 0.5 is none of'),
    'class of 400 digits': (put(BOX, '9' * 400 + ' .5 .5 .1 .1'), 'is none of pets.yaml'),
    'box of pixels': (put(BOX, '0 32 24 10 10'),
        "32 is no part of the image's width or height, expected 0 to 1; pixels?"),
    'box far out': (put(BOX, '0 .5 1.2 .1 .1'), "1.2 is no part of the image's width or height, expected 0 to 1"),
    'box NaN': (put(BOX, '0 nan .5 .1 .1'), "nan is no part of the image's"),
    'box of three': (put(BOX, '0 .5 .5 .1'),
        'expected a class and 4 numbers of a box, or 6 or more of a polygon, got 3'),
    'box with a score': (put(BOX, '0 .5 .5 .1 .1 .9'), 'got 5'),
    'box of negative size': (put(BOX, '0 .5 .5 -.05 .1'), 'a width or height below 0'),
    'text binary': (put(BOX, bytes(range(256))), "ein Bild.txt: line 1: '"),
    'text a folder': (lambda root: [(root / BOX).unlink(), (root / BOX).mkdir()], 'ein Bild.txt: no regular file'),
    'text a fifo': (fifo(BOX), 'ein Bild.txt: no regular file'),
    'no text at all': (lambda root: (root / 'labels').rename(root / 'texts'),
        'images/train: none of its 3 images has a text '
                       'file; looked for such as'),
    'no usable box': (lambda root: [path.write_text('') for path in (root / 'labels/val').iterdir()],
        'images/val: no image in it has a usable box'),
    # pictures
    'picture of a stem twice': (lambda root: Image.new('RGB', (4, 3)).save(root / 'images/train/ein Bild.png'),
                                'ein Bild.txt: belongs to more than one image: ein Bild.jpg, ein Bild.png'),
    'picture half': (put('images/train/ein Bild.jpg', b'\xff\xd8\xff\xe0'), 'ein Bild.jpg: not readable as an image'),
    'picture a fifo': (fifo('images/train/ein Bild.jpg'), 'ein Bild.jpg: no regular file'),
    'picture in both': (lambda root: shutil.copy(root / 'images/train/ein Bild.jpg', root / 'images/val/v.1.png'),
                        'v.1.png: the image is in both train and test, there as ein Bild.jpg'),
    'no picture': (lambda root: [path.unlink() for path in (root / 'images/val').iterdir()],
        'images/val: no image in it'),
}


@pytest.mark.parametrize('case', YOLO)
def test_a_fault_of_a_data_set_in_yolo_layout(tmp_path, case):
    layouts.yolo(tmp_path / 'pets', layouts.PICTURES)
    assert_refused(tmp_path / 'pets', YOLO[case])


OTHERS = {
    'labels without names': ('yolo_classes', lambda root: (root / 'classes.txt').unlink(),
                             'labels of YOLO without data.yaml or classes.txt: the names of classes are not known'),
    'a list empty': ('yolo_lists', put('train.txt', '\n'), 'train.txt: no image in it'),
    'a list with another': ('yolo_lists', put('train.txt', 'images/ein Bild.jpg\nimages/x.jpg\n'),
                            "train.txt: line 2: 'images/x.jpg': no such image below"),
    'a list that leads out': ('yolo_lists', put('train.txt', '/etc/passwd\n'), "line 1: '/etc/passwd': no such image"),
    'a list with one twice': ('yolo_lists', put('train.txt', 'images/ein Bild.jpg\n./images/ein Bild.jpg'),
                              'images/ein Bild.jpg is listed more than once'),
    'xml without a picture': ('voc_beside', lambda root: (root / 'train/ein Bild.jpg').unlink(),
                              'train/ein Bild.xml: no image called ein Bild.* in'),
    'xml of two pictures': ('voc_beside', lambda root: Image.new('RGB', (4, 3)).save(root / 'train/ein Bild.png'),
                            'ein Bild.xml: more than one image'),
    'xml beside half': ('voc_beside', put('train/ein Bild.xml', '<annotation><object>'), 'not readable as XML'),
    'xml beside of words': ('voc_beside', exchanged('train/ein Bild.xml', '<xmin>4<', '<xmin>four<'),
                            'ein Bild.xml object 1 (no) xmin=four ymin=5 xmax=24 ymax=15: expected a name and four'),
    'coco of another picture': ('coco_roboflow',
        lambda root: (root / 'train/ein Bild.jpg').rename(root / 'train/x.jpg'),
                                'train/_annotations.coco.json: image id 1: '),
    'coco half': ('coco_any_name', put('labels_train_v2.json', '{"images": ['),
        'labels_train_v2.json: not readable as JSON'),
    'coco twice': ('coco_any_name', put('train.json', '{"images": []}'),
        'more than one file for train: labels_train_v2.json'),
    'coco not clear': ('coco_any_name', lambda root: [shutil.copytree(root / 'my pictures', root / name / 'my pictures')
                                                      for name in 'ab'],
        "file_name 'C:\\\\work\\\\my pictures\\\\ein "),
    'coco without images': ('coco_fiftyone', put('train/labels.json', '{"categories": [], "annotations": []}'),
                            "train/labels.json: no list 'images'"),
    'cvat half': ('cvat', put('annotations.xml', '<annotations><image'), 'annotations.xml: not readable as XML'),
    'cvat without a picture': ('cvat', lambda root: (root / 'images/val/v.1.png').unlink(),
                               "annotations.xml: image 'v.1.png': no such image below"),
    'cvat of a video': ('cvat_files', put('train/annotations.xml', '<annotations><track/></annotations>'),
                        'train/annotations.xml: no element image; of a video, export as CVAT for images'),
    'cvat of words': ('cvat', exchanged('annotations.xml', 'xtl="3.00"', 'xtl="left"'),
                      'ein Bild.jpg box 1 (no) xtl=left ytl=4.00 xbr=23.00 ybr=14.00: expected a label and numbers'),
    'cvat without a label': ('cvat', exchanged('annotations.xml', 'box label="no" ', 'box '),
        'expected a label and numbers'),
    'cvat of another label': ('cvat', exchanged('annotations.xml', 'box label="no" ', 'box label="yes" '),
                              "image 'ein Bild.jpg': yes: none of the file's labels"),
    'csv of words': ('csv', exchanged('train.csv', ',3,4,', ',left,4,'),
                     "train.csv: line 1: left, 4, 23, 14, 'no': expected four numbers and a class"),
    'csv without a class': ('csv', exchanged('train.csv', '14,no', '14,'), "'': expected four numbers and a class"),
    'csv too short': ('csv', put('train.csv', '{old}\nimages/x.jpg,1,2'),
        'train.csv: line 5: 3 columns, expected 6 or more'),
    'csv without a picture': ('csv', put('train.csv', '{old}\nimages/x.jpg,1,2,3,4,no'),
                              "train.csv: line 5: 'images/x.jpg' is no image below"),
}


@pytest.mark.parametrize('case', OTHERS)
def test_a_fault_of_a_data_set_in_another_layout(tmp_path, case):
    layout, *fault = OTHERS[case]
    layouts.SPLIT[layout](tmp_path / 'pets', layouts.PICTURES)
    assert_refused(tmp_path / 'pets', fault)


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
