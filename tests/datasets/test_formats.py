import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from amdlib.datasets import check, checks, formats, prepare, store
from amdlib.datasets.formats.coco import TenthOfCoco, coco_2017
from amdlib.errors import DataError
from tests.conftest import shared

from .folders import edit, files_below, make_coco, make_voc, problems_of, set_in, write_xml


def notes_of(dataset):
    """All but that these pictures are too narrow to train on."""
    return tuple(note for note in dataset.notes if 'narrower than' not in note)


# ---- the folder of formats --------------------------------------------------------------------------------------

LINES_FORMAT = """
import csv
from amdlib.datasets.dataset import write_coco

LAYOUT = 'lines.txt beside its images'
LABELS = '.lines'


class Lines:
    recipe = 'lines'
    self_made = False
    found = 'lines'
    origins = {}

    def __init__(self, root):
        self.root, self.name, self.files = root, root.name, (root / 'lines.txt', root)

    def made(self, home):
        return home / 'train.json', home / 'test.json'

    def splits(self, home):
        return home / 'train.json', self.root, home / 'test.json', self.root

    def make(self, folder, drop_broken=False):
        boxes = list(csv.DictReader(open(self.root / 'lines.txt')))
        for split in ('train', 'test'):
            write_coco(folder / f'{split}.json', [
                ({'file_name': box['file'], 'width': 40, 'height': 30},
                 [{'name': box['class'], 'bbox': [int(box[side]) for side in 'xywh']}])
                for box in boxes if box['split'] == split], sorted({box['class'] for box in boxes}))
        return ['from lines']


def recognise(root):
    return Lines(root) if (root / 'lines.txt').is_file() else None
"""


@pytest.fixture
def _lines_format(tmp_path, monkeypatch):
    """One file more in the folder of formats, and nothing else."""
    (tmp_path / 'formats').mkdir()
    (tmp_path / 'formats/lines.py').write_text(LINES_FORMAT)
    monkeypatch.setattr(formats, '__path__', [*formats.__path__, str(tmp_path / 'formats')])
    yield
    sys.modules.pop('amdlib.datasets.formats.lines', None)
    vars(formats).pop('lines', None)


@pytest.mark.usefixtures('_lines_format', 'coco')
def test_a_new_format_is_one_new_file(tmp_path):
    root = tmp_path / 'notes'
    root.mkdir()
    text = 'split,file,class,x,y,w,h\ntrain,a.png,cat,1,2,10,20\ntest,b.png,dog,0,0,40,30\n'
    (root / 'lines.txt').write_text(text)
    for i, name in enumerate(('a.png', 'b.png')):
        Image.new('RGB', (40, 30), (i, 0, 0)).save(root / name)
    dataset = prepare('folder', root, tmp_path / 'cache')
    assert (dataset.name, dataset.classes) == ('notes', ('cat', 'dog'))
    assert notes_of(dataset) == ('from lines', 'no training box of 1 class: dog')
    assert json.loads(dataset.train_ann.read_text())['annotations'][0]['bbox'] == [1, 2, 10, 20]
    assert prepare('folder', root, tmp_path / 'cache') == dataset
    (root / 'lines.txt').write_text(text.replace('cat', 'cow'))
    assert prepare('folder', root, tmp_path / 'cache').classes == ('cow', 'dog')
    # the messages know it too
    assert 'more than one data set' in problems_of(prepare, 'folder', tmp_path, tmp_path / 'cache')
    (tmp_path / 'empty').mkdir()
    assert 'lines.txt beside its images' in problems_of(prepare, 'folder', tmp_path / 'empty', tmp_path / 'cache')


def test_formats_are_the_files_of_the_folder(tmp_path):
    folder = Path(formats.__file__).parent
    assert set(formats.names()) == {path.stem for path in folder.glob('*.py')} - {'__init__'}
    modules = [importlib.import_module(f'amdlib.datasets.formats.{name}') for name in formats.names()]
    (tmp_path / 'empty').mkdir()
    told = problems_of(prepare, 'folder', tmp_path / 'empty', tmp_path / 'cache')
    assert 'no data set here or one level below; it has no file\nexpected is one of:\n- COCO layout: ' in told
    assert all(module.LAYOUT in told for module in modules)


@pytest.mark.parametrize(('files', 'near'), [
    (['a.jpg', 'b.jpg', 'a.txt', 'b.txt'], 'data.yaml with names'), (['a.jpg', 'a.xml'], 'XML file beside each image'),
    (['a.json', 'images/a.jpg'], 'COCO layout'), (['boxes.csv', 'x/y/a.jpg'], 'train.csv')])
def test_where_nothing_fits_it_is_said_what_lies_there_and_what_is_nearest(tmp_path, files, near):
    root = tmp_path / 'pets'
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('x')
    told = problems_of(prepare, 'folder', root, tmp_path / 'cache')
    assert f'it has {len(files)} files: ' in told
    assert all(name in told for name in files[:2])
    assert near in told.partition('\nnearest is:\n')[2]
    assert len(told.splitlines()) < 5


def test_several_data_sets_are_told_before_what_is_wrong_with_one(coco, voc, tmp_path):
    (coco / 'annotations/instances_val2017.json').unlink()
    shutil.rmtree(voc / 'JPEGImages')
    message = problems_of(prepare, 'folder', tmp_path, tmp_path / 'cache')
    assert message == f'{tmp_path}: more than one data set: {coco}, {voc}; name one of them'


# ---- COCO layout ------------------------------------------------------------------------------------------------

def test_coco_layout(coco, tmp_path):
    before = files_below(coco)
    dataset = prepare('folder', coco, tmp_path / 'cache')
    assert (dataset.name, dataset.classes) == ('pets', ('cat', 'dog'))
    assert dataset.train_images == coco / 'train2017'
    assert dataset.test_images == coco / 'val2017'
    assert notes_of(dataset) == ('trained on train2017, reported on val2017',)
    assert files_below(coco) == before
    assert prepare('folder', coco.parent / 'pets', tmp_path / 'cache') == dataset


def test_coco_layout_one_level_below_and_with_a_test_split(tmp_path):
    pets = make_coco(tmp_path / 'outer/Pets', 'train', 'test', 'val')
    dataset = prepare('folder', tmp_path / 'outer', tmp_path / 'cache')
    assert dataset.test_ann.name == 'instances_test.json'
    assert dataset.name == 'pets'
    assert notes_of(dataset) == ('trained on train, reported on test', 'factors chosen on val')
    assert (dataset.val_ann, dataset.val_images) == (pets / 'annotations/instances_val.json', pets / 'val')
    (pets / 'val/val_1.png').unlink()
    shutil.copy(pets / 'test/test_1.png', pets / 'val')
    edit(pets, set_in('images', 0, file_name='test_1.png'), 'val')
    assert 'val/test_1.png: the image is in both test and val' in problems_of(
        prepare, 'folder', tmp_path / 'outer', tmp_path / 'cache')
    edit(pets, set_in('categories', 0, name='cow'), 'val')
    assert 'instances_val.json: categories differ from instances_train.json' in problems_of(
        prepare, 'folder', tmp_path / 'outer', tmp_path / 'cache')


def test_images_may_lie_in_one_folder(coco, tmp_path):
    (coco / 'images').mkdir()
    for folder in ('train2017', 'val2017'):
        for path in (coco / folder).iterdir():
            path.rename(coco / 'images' / path.name)
        (coco / folder).rmdir()
    assert prepare('folder', coco, tmp_path / 'cache').train_images == coco / 'images'


def test_layouts_that_are_not_clear(coco, voc, tmp_path):
    cache = tmp_path / 'cache'
    message = problems_of(prepare, 'folder', tmp_path, cache)
    assert 'more than one data set' in message
    assert 'pets' in message
    assert 'Cells' in message
    (tmp_path / 'empty').mkdir()
    assert '- COCO layout: annotations/' in problems_of(prepare, 'folder', tmp_path / 'empty', cache)
    annotations = coco / 'annotations'
    shutil.copy(annotations / 'instances_train2017.json', annotations / 'instances_train2014.json')
    message = problems_of(prepare, 'folder', coco, cache)
    assert 'annotations/instances_train2014.json, annotations/instances_train2017.json; keep one' in message
    (annotations / 'instances_train2014.json').unlink()
    (annotations / 'instances_val2017.json').unlink()
    assert 'one split only (COCO layout: annotations/instances_train2017.json)' in problems_of(
        prepare, 'folder', coco, cache)
    assert 'instances_val2017.json: missing' in problems_of(prepare, 'coco', coco, cache)


def test_tiny_coco_as_paper(tmp_path):
    dataset = prepare('coco', shared('data/tiny_coco'), tmp_path)
    assert dataset.name == 'coco'
    assert len(dataset.classes) == 80
    assert dataset.classes[0] == 'person'
    assert dataset.train_images.name == 'train2017'
    assert dataset.test_ann.name == 'instances_val2017.json'
    assert dataset.fingerprint == 'de0c1d07867b6ef4'


def test_the_first_annotated_images_of_coco(tmp_path):
    root = make_coco(tmp_path / 'coco')
    edit(root, lambda content: content.update(annotations=[one for one in content['annotations']
                                                           if one['image_id'] != 1]))
    for suffix in ('train2017', 'val2017'):
        edit(root, set_in('annotations', -1, iscrowd=0), suffix)
    taken = prepare('first_of_coco', root, tmp_path / 'cache', first_images=(1, 2))
    assert taken.name == 'dryrun'
    assert taken.train_ann == tmp_path / 'cache/dryrun/train.json'
    assert taken.train_images == root / 'train2017'
    assert taken.classes == ('cat', 'dog')
    train, test = (json.loads(path.read_text()) for path in (taken.train_ann, taken.test_ann))
    assert [image['id'] for image in train['images']] == [2]
    assert len(test['images']) == 2
    assert {one['image_id'] for one in train['annotations']} == {2}
    assert taken.notes[:2] == ('a dry run: numbers made with these images mean nothing',
                               'the first 1 annotated images of instances_train2017.json')
    again = prepare('first_of_coco', root, tmp_path / 'cache', first_images=(1, 1))
    assert len(json.loads(again.test_ann.read_text())['images']) == 1
    assert again.fingerprint != taken.fingerprint
    with pytest.raises(DataError, match='1 annotated image, a dry run takes 2'):
        prepare('first_of_coco', root, tmp_path / 'cache', first_images=(2, 2))
    with pytest.raises(DataError, match='first_images is None'):
        prepare('first_of_coco', root, tmp_path / 'cache')


def many_of_coco(root, ids, suffix='train2017'):
    """Images of these ids with a box each, in that order, in place of a split of `make_coco`."""
    edit(root, lambda content: content.update(
        images=[{'id': i, 'file_name': f'{i}.png', 'width': 40, 'height': 40} for i in ids],
        annotations=[{'id': i, 'image_id': i, 'category_id': 1, 'bbox': [1, 2, 10, 10], 'area': 100, 'iscrowd': 0}
                     for i in ids]), suffix)
    for i in ids:
        Image.new('RGB', (40, 40), (i % 256, i // 256, 9)).save(root / suffix / f'{i}.png')


def test_a_tenth_of_coco_is_drawn_by_ids_and_seed_alone(tmp_path):
    def tenth(name, ids):
        root = make_coco(tmp_path / name)
        many_of_coco(root, ids)
        taken = prepare('tenth_of_coco', root, tmp_path / f'cache-{name}')
        coco = json.loads(taken.train_ann.read_text())
        images = [image['id'] for image in coco['images']]
        assert {one['image_id'] for one in coco['annotations']} == set(images)
        return taken, images
    ids = list(range(5, 125))
    taken, images = tenth('coco', ids)
    assert images == [6, 14, 34, 38, 44, 61, 68, 72, 92, 97, 110, 111]      # here and on every machine
    assert (taken.name, taken.test_ann.name, taken.test_images.name) == ('tenth', 'instances_val2017.json', 'val2017')
    assert taken.train_ann == tmp_path / 'cache-coco' / 'tenth' / 'train.json'
    assert taken.notes[0] == ('trained on 12 of the 120 images of instances_train2017.json with annotations, drawn by '
                              'their ids (seed 0), reported on all of instances_val2017.json')
    assert tenth('reversed', ids[::-1])[1] == images[::-1]
    other = replace(TenthOfCoco(coco_2017(tmp_path / 'coco')), seed=1)
    (tmp_path / 'other').mkdir()
    assert '(seed 1)' in other.make(tmp_path / 'other')[0]
    found = checks.examine(*other.splits(tmp_path / 'other'))
    assert found['fingerprint'] != taken.fingerprint == prepare(
        'tenth_of_coco', tmp_path / 'coco', tmp_path / 'cache-coco').fingerprint
    assert store.recipe(other) != store.recipe(TenthOfCoco(other.whole))


def test_a_tenth_of_coco_counts_what_is_trained_on_and_tells_what_is_missing(tmp_path):
    root, cache = make_coco(tmp_path / 'coco'), tmp_path / 'cache'
    assert '0 images to train on, of which a tenth is none' in problems_of(prepare, 'tenth_of_coco', root, cache)
    many_of_coco(root, range(5, 125))
    edit(root, lambda content: content.update(annotations=content['annotations'][:60]))
    taken = prepare('tenth_of_coco', root, cache)
    images = [image['id'] for image in json.loads(taken.train_ann.read_text())['images']]
    assert len(images) == 6
    assert set(images) <= set(range(5, 65))
    (root / 'train2017' / '124.png').unlink()       # not of the tenth
    assert prepare('tenth_of_coco', root, cache).fingerprint == taken.fingerprint
    (root / 'train2017' / f'{images[0]}.png').unlink()
    (root / 'val2017' / 'val2017_2.png').unlink()
    told = problems_of(prepare, 'tenth_of_coco', root, cache)
    assert f'{images[0]}.png' in told
    assert 'val2017_2.png' in told
    assert 'instances_train2017.json' in told       # the user's file, not ours
    assert 'SPLIT' in problems_of(prepare, 'tenth_of_coco', root, cache, split=0.8).upper()


# ---- Pascal VOC layout ------------------------------------------------------------------------------------------

def test_voc_is_converted(voc, tmp_path):
    before = files_below(voc)
    dataset = prepare('folder', voc, tmp_path / 'cache')
    assert (dataset.name, dataset.classes) == ('cells', ('a', 'b'))
    assert dataset.train_ann == tmp_path / 'cache/cells/train.json'
    assert dataset.train_images == dataset.test_images == voc / 'JPEGImages'
    assert notes_of(dataset) == ('trained on train (1 images), reported on test (1 images)',
                             'factors chosen on val (1 images)')
    assert files_below(voc) == before
    assert sorted(files_below(tmp_path / 'cache')) == [
        '.cells.lock', 'cells/manifest.json', 'cells/test.json', 'cells/train.json', 'cells/val.json']
    assert (dataset.val_ann, dataset.val_images) == (tmp_path / 'cache/cells/val.json', voc / 'JPEGImages')
    content = json.loads(dataset.train_ann.read_text())
    assert content['categories'] == [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}]
    assert content['images'] == [{'id': 1, 'file_name': 'train1.jpg', 'width': 40, 'height': 30}]
    assert content['annotations'] == [   # 1-based corners (1, 1, 40, 30) and (11, 6, 21, 26)
        {'id': 1, 'image_id': 1, 'category_id': 2, 'bbox': [0, 0, 39, 29], 'area': 1131, 'iscrowd': 0},
        {'id': 2, 'image_id': 1, 'category_id': 1, 'bbox': [10, 5, 10, 20], 'area': 200, 'iscrowd': 0}]


def test_voc_reports_on_val_without_a_test_split(tmp_path):
    dataset = prepare('folder', make_voc(tmp_path / 'x', ('train', 'val')), tmp_path / 'cache')
    assert notes_of(dataset) == ('trained on train (1 images), reported on val (1 images)',)
    assert dataset.val_ann is dataset.val_images is None
    assert json.loads(dataset.test_ann.read_text())['images'][0]['file_name'] == 'val1.jpg'


def test_dirty_voc_is_mended_and_said_so(voc, tmp_path, caplog):
    write_xml(voc, 'train1', [
        ('a', (5, 5, 5, 5), 0), ('a', (30, 20, 60, 50), 0), ('a', (100, 2, 120, 9), 0), ('b', (2, 2, 9, 9), 1),
        ('b', ('3.5', '4', '9', '9'), 0)], size=(0, 30), filename='other.jpg')
    dataset = prepare('folder', voc, tmp_path / 'cache')
    notes = ' | '.join(dataset.notes)
    assert ('2 degenerate boxes dropped: train1.xml object 1 (a) xmin=5 ymin=5 xmax=5 ymax=5; '
            'train1.xml object 3 (a) xmin=100 ymin=2 xmax=120 ymax=9') in notes
    assert '1 box clipped to the image: train1.xml object 2 (a) xmin=30 ymin=20 xmax=60 ymax=50' in notes
    assert '1 XML file with a wrong image size' in notes
    assert 'train1.xml says 0x30, the image has 40x30 px' in notes
    assert '1 difficult object ignored (iscrowd)' in notes
    assert any('degenerate boxes dropped' in line for line in caplog.messages)
    annotations = json.loads(dataset.train_ann.read_text())['annotations']
    assert [(a['bbox'], a['iscrowd']) for a in annotations] == [
        ([29, 19, 11, 11], 0), ([1, 1, 7, 7], 1), ([2.5, 3, 5.5, 5], 0)]
    assert check(dataset.train_ann, dataset.train_images, 'train') == []


def replace_in(path, old, new):
    def change(root):
        (root / path).write_text((root / path).read_text().replace(old, new))
    return change


def remove(path):
    return lambda root: (root / path).unlink()


def write(path, text):
    return lambda root: (root / path).write_text(text)


@pytest.mark.parametrize(('change', 'message'), [
    (remove('Annotations/train1.xml'), 'train.txt: {root}/Annotations/train1.xml: no such file'),
    (remove('JPEGImages/test1.jpg'), 'test.txt: test1: no such image in JPEGImages'),
    (write('JPEGImages/test1.jpg', 'x'), 'test1.jpg: not readable as an image'),
    (write('JPEGImages/test1.png', 'x'), 'test1: more than one image: test1.jpg, test1.png'),
    (write('ImageSets/Main/train.txt', 'ghost\n'), 'train.txt: ghost: no such image'),
    (write('ImageSets/Main/train.txt', '\n'), 'train.txt: empty'),
    (write('ImageSets/Main/val.txt', '\n'), 'val.txt: empty'),
    (remove('ImageSets/Main/train.txt'), 'needs train.txt and test.txt, or else val.txt; it has val.txt, test.txt'),
    (write('ImageSets/Main/train.txt', 'train1\ntrain1\n'), 'train.txt: train1 is listed more than once'),
    (write('ImageSets/Main/train.txt', 'test1\n'), 'test1.jpg: the image is in both train and test'),
    (lambda root: write_xml(root, 'test1', []), 'test.txt: no image in it has a usable box'),
    (lambda root: shutil.rmtree(root / 'JPEGImages'), 'JPEGImages: no such folder'),
    (replace_in('Annotations/test1.xml', '</annotation>', ''), 'test1.xml: not readable as XML: no element'),
    (replace_in('Annotations/test1.xml', '<xmax>21', '<xmax>wide'), 'object 2 (a) xmin=11 ymin=6 xmax=wide ymax=26'),
    (replace_in('Annotations/test1.xml', '<name>a</name>', ''), 'test1.xml object 2 () xmin=11'),
])
def test_each_problem_of_voc_is_named(voc, tmp_path, change, message):
    change(voc)
    assert message.format(root=voc) in problems_of(prepare, 'folder', voc, tmp_path / 'cache')
    assert not [name for name in files_below(tmp_path) if 'cache' in name and '.lock' not in name]


def test_bccd(tmp_path):
    dataset = prepare('folder', shared('data/bccd'), tmp_path)
    assert (dataset.name, dataset.classes) == ('bccd', ('Platelets', 'RBC', 'WBC'))
    assert dataset.fingerprint == 'f5343ea6ca5a4be3'
    assert dataset.notes[1:] == (
        'factors chosen on val (87 images)',
        '2 degenerate boxes dropped: BloodImage_00343.xml object 4 (RBC) xmin=181 ymin=329 xmax=181 ymax=329; '
        'BloodImage_00338.xml object 13 (RBC) xmin=504 ymin=337 xmax=504 ymax=337')
    train, test, val = (COCO(path) for path in (dataset.train_ann, dataset.test_ann, dataset.val_ann))
    assert (len(train.imgs), len(train.anns), len(test.imgs), len(test.anns)) == (205, 2804, 72, 945)
    names = [{image['file_name'] for image in split.imgs.values()} for split in (train, test, val)]
    assert len(set.union(*names)) == sum(map(len, names)) == 205 + 72 + 87
    assert prepare('folder', shared('data/bccd') / 'BCCD', tmp_path) == dataset
    assert not list(tmp_path.rglob('*.jpg'))
