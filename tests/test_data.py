import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from amdlib.data import DataError, ShapesSpec, check, fingerprint, prepare, scene

SHARED = Path(os.environ.get('AMD_SHARED', Path(__file__).parents[2] / 'shared')) / 'data'
needs_bccd = pytest.mark.skipif(not (SHARED / 'bccd').is_dir(), reason='AMD_SHARED has no data/bccd')
needs_tiny_coco = pytest.mark.skipif(not (SHARED / 'tiny_coco').is_dir(), reason='AMD_SHARED has no data/tiny_coco')

FEW = ShapesSpec(train_images=6, test_images=3)


def quiet(*_):
    pass


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def make_coco(root: Path, train='train2017', test='val2017') -> Path:
    """Two images of 40x30 px in each split, two classes, three boxes."""
    (root / 'annotations').mkdir(parents=True)
    for number, suffix in enumerate((train, test)):
        (root / suffix).mkdir()
        coco = {'categories': [{'id': 1, 'name': 'cat'}, {'id': 7, 'name': 'dog'}], 'images': [], 'annotations': [
            {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1, 2, 10, 10], 'area': 100, 'iscrowd': 0},
            {'id': 2, 'image_id': 1, 'category_id': 7, 'bbox': [0, 0, 40, 30], 'area': 1200, 'iscrowd': 0},
            {'id': 3, 'image_id': 2, 'category_id': 7, 'bbox': [5, 5, 9.5, 8], 'area': 76.0, 'iscrowd': 1}]}
        for i in (1, 2):
            name = f'{suffix}_{i}.png'
            Image.new('RGB', (40, 30), (number, i, 0)).save(root / suffix / name)
            coco['images'].append({'id': i, 'file_name': name, 'width': 40, 'height': 30})
        (root / 'annotations' / f'instances_{suffix}.json').write_text(json.dumps(coco))
    return root


VOC_OBJECT = ('<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}'
              '</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>')


def write_xml(root: Path, stem: str, objects, size=(40, 30), filename=None) -> None:
    body = ''.join(VOC_OBJECT.format(name=name, box=box, difficult=difficult) for name, box, difficult in objects)
    (root / 'Annotations' / f'{stem}.xml').write_text(
        f'<annotation><filename>{filename or stem + ".jpg"}</filename><size><width>{size[0]}</width>'
        f'<height>{size[1]}</height><depth>3</depth></size>{body}</annotation>')


def make_voc(root: Path, splits=('train', 'val', 'test')) -> Path:
    """One image of 40x30 px a split, with a box of class 'b' and one of class 'a'."""
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for i, split in enumerate(splits):
        Image.new('RGB', (40, 30), (40 * i, 0, 0)).save(root / 'JPEGImages' / f'{split}1.jpg')
        write_xml(root, f'{split}1', [('b', (1, 1, 40, 30), 0), ('a', (11, 6, 21, 26), 0)])
        (root / 'ImageSets/Main' / f'{split}.txt').write_text(f'{split}1\n')
    return root


@pytest.fixture
def coco(tmp_path):
    return make_coco(tmp_path / 'pets')


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path / 'Cells')


def edit(root: Path, change, suffix='train2017') -> Path:
    """Change the JSON of a split in place; returns its path."""
    ann = root / 'annotations' / f'instances_{suffix}.json'
    content = json.loads(ann.read_text())
    change(content)
    ann.write_text(json.dumps(content))
    return ann


def problems_of(call, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        call(*args, **{'log': quiet, **kwargs})
    return str(caught.value)


# --- mini: the files

def test_mini_is_a_coco_set(tmp_path):
    lines = []
    dataset = prepare('mini', cache=tmp_path, shapes=FEW, log=lines.append)
    assert (dataset.name, dataset.classes) == ('mini', FEW.classes)
    assert dataset.fingerprint == '0a4247488e75e6fe'
    for ann, images, split, count in ((dataset.train_ann, dataset.train_images, 'train', 6),
                                      (dataset.test_ann, dataset.test_images, 'test', 3)):
        assert check(ann, images, split) == []
        coco = COCO(ann)
        assert len(coco.imgs) == count
        for index, record in enumerate(coco.imgs.values()):
            image, boxes_xywh_px, labels = scene(FEW, split, index)
            drawn = cv2.imread(str(images / record['file_name']))[..., ::-1]
            assert np.array_equal(drawn, image)
            annotations = coco.loadAnns(coco.getAnnIds([record['id']]))
            assert [a['bbox'] for a in annotations] == boxes_xywh_px.tolist()
            names = [coco.cats[a['category_id']]['name'] for a in annotations]
            assert names == [FEW.classes[label] for label in labels]
            assert all(a['area'] == a['bbox'][2] * a['bbox'][3] and a['iscrowd'] == 0 for a in annotations)
    text = '\n'.join(lines)
    assert all(word in text for word in ('images', 'small', 'medium', 'large', dataset.fingerprint, 'triangle'))


def test_mini_at_full_size_is_made_in_time(tmp_path):
    start = time.perf_counter()
    dataset = prepare('mini', cache=tmp_path, log=quiet)
    made_s = time.perf_counter() - start
    assert made_s < 40   # about 7 on one free core
    assert len(list(dataset.train_images.iterdir())) == 1000 and len(list(dataset.test_images.iterdir())) == 300
    start = time.perf_counter()
    assert prepare('mini', cache=tmp_path, log=quiet) == dataset
    assert time.perf_counter() - start < made_s / 10
    assert not list(tmp_path.glob('.mini.*-*'))


def test_mini_is_kept_when_whole_and_made_again_when_not(tmp_path):
    dataset = prepare('mini', cache=tmp_path, shapes=FEW, log=quiet)
    before = files_below(dataset.train_ann.parent)
    image = sorted(dataset.train_images.iterdir())[0]

    os.utime(image, (1, 1))   # touched, but the same
    inode = image.stat().st_ino
    assert prepare('mini', cache=tmp_path, shapes=FEW, log=quiet) == dataset
    assert image.stat().st_ino == inode

    for damage in (lambda: image.unlink(), lambda: image.write_bytes(image.read_bytes()[:999]),
                   lambda: dataset.test_ann.write_text('{'), lambda: dataset.test_ann.unlink(),
                   lambda: Image.new('RGB', (128, 128)).save(image)):
        damage()
        lines = []
        assert prepare('mini', cache=tmp_path, shapes=FEW, log=lines.append) == dataset
        assert any('damaged or incomplete' in line for line in lines)
        after = files_below(dataset.train_ann.parent)
        assert after.keys() == before.keys()
        assert all(after[name] == before[name] for name in before if name != 'manifest.json')   # it holds times


def test_mini_follows_its_spec(tmp_path):
    first = prepare('mini', cache=tmp_path, shapes=FEW, log=quiet)
    second = prepare('mini', cache=tmp_path, shapes=ShapesSpec(train_images=5, test_images=3), log=quiet)
    assert first.fingerprint != second.fingerprint
    assert len(list(second.train_images.iterdir())) == 5


def test_a_moved_cache_keeps_its_fingerprint(tmp_path):
    first = prepare('mini', cache=tmp_path / 'a', shapes=FEW, log=quiet)
    shutil.copytree(tmp_path / 'a', tmp_path / 'b', copy_function=shutil.copyfile)   # new times
    assert prepare('mini', cache=tmp_path / 'b', shapes=FEW, log=quiet).fingerprint == first.fingerprint


def test_a_killed_call_leaves_nothing_that_counts(tmp_path):
    many = ShapesSpec(train_images=2000, test_images=2)
    process = multiprocessing.get_context('fork').Process(target=prepare, args=('mini', None, tmp_path, quiet, many))
    process.start()
    while process.is_alive() and len(list(tmp_path.glob('.mini.new-*/train/*'))) < 5:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / 'mini').exists() and list(tmp_path.glob('.mini.new-*'))
    dataset = prepare('mini', cache=tmp_path, shapes=FEW, log=quiet)
    assert len(list(dataset.train_images.iterdir())) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.mini.lock', 'mini']


def test_two_calls_at_once_make_one_set(tmp_path):
    spec = ShapesSpec(train_images=60, test_images=20)
    context = multiprocessing.get_context('fork')
    with context.Pool(3) as pool:
        calls = [pool.apply_async(prepare, ('mini', None, tmp_path, quiet, spec)) for _ in range(3)]
        results = [call.get(60) for call in calls]
    assert results[0] == results[1] == results[2]
    assert check(results[0].train_ann, results[0].train_images, 'train') == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.mini.lock', 'mini']


def test_a_folder_of_the_user_is_never_replaced(tmp_path):
    (tmp_path / 'mini').mkdir()
    (tmp_path / 'mini/thesis.txt').write_text('the only copy')
    assert prepare('mini', cache=tmp_path, shapes=FEW, log=quiet).train_ann.parent.name == 'mini-prepared'
    assert files_below(tmp_path / 'mini') == {'thesis.txt': b'the only copy'}


@pytest.mark.parametrize('profile, data, message', [
    ('huge', None, "profile 'huge'"), ('mini', Path('x'), 'mini makes its own data'), ('small', None, 'DATA=<folder>'),
    ('paper', None, 'DATA=<folder>'), ('small', Path('nowhere'), 'nowhere: no such folder')])
def test_wrong_calls(profile, data, message, tmp_path):
    assert message in problems_of(prepare, profile, data, tmp_path)
    assert not list(tmp_path.iterdir())


# --- COCO layout

def test_coco_layout(coco, tmp_path):
    before = files_below(coco)
    dataset = prepare('small', coco, tmp_path / 'cache', log=quiet)
    assert (dataset.name, dataset.classes) == ('pets', ('cat', 'dog'))
    assert dataset.train_images == coco / 'train2017' and dataset.test_images == coco / 'val2017'
    assert dataset.notes == ('trained on train2017, reported on val2017',)
    assert files_below(coco) == before
    assert prepare('small', coco.parent / 'pets', tmp_path / 'cache', log=quiet) == dataset


def test_coco_layout_one_level_below_and_with_a_test_split(tmp_path):
    make_coco(tmp_path / 'outer/Pets', 'train', 'test')
    shutil.copy(tmp_path / 'outer/Pets/annotations/instances_test.json',
                tmp_path / 'outer/Pets/annotations/instances_val.json')
    dataset = prepare('small', tmp_path / 'outer', tmp_path / 'cache', log=quiet)
    assert dataset.test_ann.name == 'instances_test.json' and dataset.name == 'pets'
    assert 'val is not used: nothing is tuned or selected' in dataset.notes


def test_images_may_lie_in_one_folder(coco, tmp_path):
    (coco / 'images').mkdir()
    for folder in ('train2017', 'val2017'):
        for path in (coco / folder).iterdir():
            path.rename(coco / 'images' / path.name)
        (coco / folder).rmdir()
    assert prepare('small', coco, tmp_path / 'cache', log=quiet).train_images == coco / 'images'


def test_layouts_that_are_not_clear(coco, voc, tmp_path):
    cache = tmp_path / 'cache'
    message = problems_of(prepare, 'small', tmp_path, cache)
    assert 'more than one data set' in message and 'pets' in message and 'Cells' in message
    (tmp_path / 'empty').mkdir()
    assert 'expected annotations/instances_train*.json' in problems_of(prepare, 'small', tmp_path / 'empty', cache)
    annotations = coco / 'annotations'
    shutil.copy(annotations / 'instances_train2017.json', annotations / 'instances_train2014.json')
    message = problems_of(prepare, 'small', coco, cache)
    assert 'instances_train2014.json, instances_train2017.json; keep one' in message
    (annotations / 'instances_train2014.json').unlink()
    (coco / 'val2017').rename(coco / 'pictures')
    message = problems_of(prepare, 'small', coco, cache)
    assert 'no folder with the images of val2017; tried val2017, images/val2017, val, images/val, images' in message
    (annotations / 'instances_val2017.json').unlink()
    assert 'no instances_val*.json or instances_test*.json' in problems_of(prepare, 'small', coco, cache)
    assert 'instances_val2017.json: missing' in problems_of(prepare, 'paper', coco, cache)


def set_in(part, index, **values):
    return lambda content: content[part][index].update(values)


def repeat(part, **values):
    return lambda content: content[part].append(content[part][0] | values)


@pytest.mark.parametrize('change, message', [
    (set_in('images', 0, file_name='gone.png'), 'image id 1: {root}/train2017/gone.png: no such image'),
    (set_in('images', 0, file_name=None), 'image id 1: file_name is None'),
    (set_in('images', 0, file_name='text.png'), 'text.png: not readable as an image: cannot identify image file'),
    (set_in('images', 0, file_name='short.jpg'), 'short.jpg: not readable as an image: image file is truncated'),
    (set_in('images', 1, width=41), 'image id 2: {root}/train2017/train2017_2.png has 40x30 px, the JSON says 41x30'),
    (set_in('images', 1, height='30'), "image id 2: width and height are (40, '30')"),
    (repeat('images'), 'image id 1: used more than once'),
    (repeat('images', id=5), "file_name 'train2017_1.png': used more than once"),
    (repeat('annotations'), 'annotation id 1: used more than once'),
    (set_in('images', 0, id='1'), "images entry 0: expected an object with an integer id, got {{'id': '1'"),
    (set_in('annotations', 1, image_id=99), 'annotation id 2: unknown image id 99'),
    (set_in('annotations', 1, category_id=3), 'annotation id 2: unknown category id 3'),
    (set_in('annotations', 1, category_id=[1]), 'annotation id 2: unknown category id [1]'),
    (set_in('annotations', 0, bbox=[35, 2, 9, 9]), 'annotation id 1: bbox [35, 2, 9, 9] leaves the image of 40x30 px'),
    (set_in('annotations', 0, bbox=[-1.5, 2, 10, 10]), 'bbox [-1.5, 2, 10, 10] leaves the image'),
    (set_in('annotations', 0, bbox=[8, 2, -4, 10]), 'annotation id 1: bbox [8, 2, -4, 10] has a negative size'),
    (set_in('annotations', 0, bbox=[1, 2, 10]), 'annotation id 1: bbox is [1, 2, 10], expected [x, y, width, height]'),
    (set_in('annotations', 0, bbox=[1, 2, 10, float('nan')]), 'bbox is [1, 2, 10, nan]'),
    (set_in('annotations', 0, area=None), 'annotation id 1: area is None'),
    (set_in('annotations', 0, iscrowd=None), 'annotation id 1: iscrowd is None'),
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
    assert message.format(root=coco) in text and str(ann) in text and '_io' not in text
    assert message.format(root=coco) in problems_of(prepare, 'small', coco, tmp_path / 'cache')
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == ['.pets.lock']   # nothing half-written


def test_a_good_split_has_no_problems(coco):
    assert check(coco / 'annotations/instances_train2017.json', coco / 'train2017', 'train') == []


def test_boxes_may_leave_the_image_by_a_pixel(coco):
    ann = edit(coco, set_in('annotations', 0, bbox=[-1, 2, 10, 29]))
    assert check(ann, coco / 'train2017', 'train') == []


@pytest.mark.parametrize('text, message', [('{"images": [', 'not readable as JSON: Expecting value'),
                                           ('[1, 2]', 'expected an object with images'), (None, 'no such file')])
def test_broken_json(coco, tmp_path, text, message):
    ann = coco / 'annotations/instances_val2017.json'
    ann.write_text(text) if text else ann.unlink()
    assert check(ann, coco / 'val2017', 'test')[0].startswith(f'{ann}: {message}')
    if text:
        assert f'{ann}: {message}' in problems_of(prepare, 'small', coco, tmp_path / 'cache')


def test_degenerate_boxes_are_a_note_in_coco_layout(coco, tmp_path):
    ann = edit(coco, set_in('annotations', 0, bbox=[3, 4, 0.5, 10], area=5))
    assert check(ann, coco / 'train2017', 'train') == [
        f'{ann}: degenerate annotation id 1: bbox [3, 4, 0.5, 10], area 5']
    notes = prepare('small', coco, tmp_path / 'cache', log=quiet).notes
    assert any('train: 1 degenerate box kept' in note and '[3, 4, 0.5, 10]' in note for note in notes)


def test_splits_must_fit_each_other(coco, tmp_path):
    edit(coco, set_in('categories', 1, name='wolf'), 'val2017')
    message = problems_of(prepare, 'small', coco, tmp_path / 'cache')
    assert 'instances_val2017.json: categories differ from instances_train2017.json: ' in message
    assert "(7, 'dog') only in train, (7, 'wolf') only in test" in message
    edit(coco, set_in('categories', 1, name='dog'), 'val2017')
    shutil.copy(coco / 'train2017/train2017_1.png', coco / 'val2017')
    edit(coco, set_in('images', 0, file_name='train2017_1.png'), 'val2017')
    message = problems_of(prepare, 'small', coco, tmp_path / 'cache')
    assert 'val2017/train2017_1.png: the image is in both train and test' in message


def test_equal_names_of_different_images_are_no_leak(coco, tmp_path):
    (coco / 'val2017/val2017_1.png').rename(coco / 'val2017/train2017_1.png')
    edit(coco, set_in('images', 0, file_name='train2017_1.png'), 'val2017')
    prepare('small', coco, tmp_path / 'cache', log=quiet)


def test_the_message_shows_twenty_problems_and_counts_the_rest(coco):
    edit(coco, lambda content: content['annotations'].extend(
        content['annotations'][0] | {'id': i, 'category_id': 99} for i in range(10, 40)))
    with pytest.raises(DataError) as caught:
        prepare('small', coco, coco.parent / 'cache', log=quiet)
    assert len(caught.value.problems) == 30
    assert str(caught.value).count('\n') == 20 and str(caught.value).endswith('... and 10 more')


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
    monkeypatch.setattr('amdlib.data.CHECK_ALL_BELOW', 2)
    monkeypatch.setattr('amdlib.data.SAMPLE_IMAGES', 1)
    dataset = prepare('small', coco, tmp_path / 'cache', log=quiet)
    assert 'train: all 2 image files are there; 1 of them were opened' in dataset.notes
    (coco / 'train2017/train2017_1.png').unlink()
    assert 'train2017_1.png: no such image' in problems_of(prepare, 'small', coco, tmp_path / 'cache')


def test_annotation_id_0_is_a_note(coco, tmp_path):
    edit(coco, set_in('annotations', 0, id=0), 'val2017')
    notes = prepare('small', coco, tmp_path / 'cache', log=quiet).notes
    assert any('annotation id 0 is never matched' in note for note in notes)


@needs_tiny_coco
def test_tiny_coco_as_paper(tmp_path):
    dataset = prepare('paper', SHARED / 'tiny_coco', tmp_path, log=quiet)
    assert dataset.name == 'coco' and len(dataset.classes) == 80 and dataset.classes[0] == 'person'
    assert dataset.train_images.name == 'train2017' and dataset.test_ann.name == 'instances_val2017.json'
    assert dataset.fingerprint == 'de0c1d07867b6ef4'


# --- fingerprints

def test_fingerprint_is_by_content():
    assert fingerprint([{'a': 1, 'b': [2.5]}]) == fingerprint([{'b': [2.5], 'a': 1}])
    assert fingerprint([1, 2]) != fingerprint([2, 1]) != fingerprint([[2, 1]])
    assert len(fingerprint([])) == 16 and set(fingerprint([])) <= set('0123456789abcdef')


def test_fingerprint_follows_content_and_not_place_or_time(coco, tmp_path):
    def current(root, cache):
        return prepare('small', root, tmp_path / cache, log=quiet).fingerprint
    first = current(coco, 'cache')
    shutil.copytree(coco, tmp_path / 'elsewhere/Moved', copy_function=shutil.copyfile)
    assert current(tmp_path / 'elsewhere', 'cache') == first
    edit(coco, lambda content: content.update(info='reformatted, with nothing new that counts'))
    assert current(coco, 'cache') == first
    edit(coco, set_in('annotations', 0, bbox=[1, 2, 10, 11]))
    assert (second := current(coco, 'cache')) != first
    Image.new('RGB', (40, 30), (9, 9, 9)).save(coco / 'val2017/val2017_2.png')
    assert current(coco, 'cache') not in (first, second)


def test_a_second_call_opens_no_image(coco, tmp_path, monkeypatch):
    dataset = prepare('small', coco, tmp_path / 'cache', log=quiet)
    monkeypatch.setattr('amdlib.data._inspect', None)
    assert prepare('small', coco, tmp_path / 'cache', log=quiet) == dataset


# --- Pascal VOC layout

def test_voc_is_converted(voc, tmp_path):
    before = files_below(voc)
    dataset = prepare('small', voc, tmp_path / 'cache', log=quiet)
    assert (dataset.name, dataset.classes) == ('cells', ('a', 'b'))
    assert dataset.train_ann == tmp_path / 'cache/cells/train.json'
    assert dataset.train_images == dataset.test_images == voc / 'JPEGImages'
    assert dataset.notes == ('trained on train (1 images), reported on test (1 images)',
                             'val (1 images) is not used: nothing is tuned or selected')
    assert files_below(voc) == before
    assert sorted(files_below(tmp_path / 'cache')) == [
        '.cells.lock', 'cells/manifest.json', 'cells/test.json', 'cells/train.json']
    content = json.loads(dataset.train_ann.read_text())
    assert content['categories'] == [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}]
    assert content['images'] == [{'id': 1, 'file_name': 'train1.jpg', 'width': 40, 'height': 30}]
    assert content['annotations'] == [   # 1-based corners (1, 1, 40, 30) and (11, 6, 21, 26)
        {'id': 1, 'image_id': 1, 'category_id': 2, 'bbox': [0, 0, 39, 29], 'area': 1131, 'iscrowd': 0},
        {'id': 2, 'image_id': 1, 'category_id': 1, 'bbox': [10, 5, 10, 20], 'area': 200, 'iscrowd': 0}]


def test_voc_reports_on_val_without_a_test_split(tmp_path):
    dataset = prepare('small', make_voc(tmp_path / 'x', ('train', 'val')), tmp_path / 'cache', log=quiet)
    assert dataset.notes == ('trained on train (1 images), reported on val (1 images)',)
    assert json.loads(dataset.test_ann.read_text())['images'][0]['file_name'] == 'val1.jpg'


def test_dirty_voc_is_mended_and_said_so(voc, tmp_path):
    write_xml(voc, 'train1', [
        ('a', (5, 5, 5, 5), 0), ('a', (30, 20, 60, 50), 0), ('a', (100, 2, 120, 9), 0), ('b', (2, 2, 9, 9), 1),
        ('b', ('3.5', '4', '9', '9'), 0)], size=(0, 30), filename='other.jpg')
    lines = []
    dataset = prepare('small', voc, tmp_path / 'cache', log=lines.append)
    notes = ' | '.join(dataset.notes)
    assert ('2 degenerate boxes dropped: train1.xml object 1 (a) xmin=5 ymin=5 xmax=5 ymax=5; '
            'train1.xml object 3 (a) xmin=100 ymin=2 xmax=120 ymax=9') in notes
    assert '1 box clipped to the image: train1.xml object 2 (a) xmin=30 ymin=20 xmax=60 ymax=50' in notes
    assert '1 XML file with a wrong image size' in notes and 'train1.xml says 0x30, the image has 40x30 px' in notes
    assert '1 difficult object ignored (iscrowd)' in notes
    assert any('degenerate boxes dropped' in line for line in lines)
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


@pytest.mark.parametrize('change, message', [
    (remove('Annotations/train1.xml'), 'train.txt: {root}/Annotations/train1.xml: no such file'),
    (remove('JPEGImages/test1.jpg'), 'test.txt: test1: no such image in JPEGImages'),
    (write('JPEGImages/test1.jpg', 'x'), 'test1.jpg: not readable as an image'),
    (write('JPEGImages/test1.png', 'x'), 'test1: more than one image: test1.jpg, test1.png'),
    (write('ImageSets/Main/train.txt', 'ghost\n'), 'train.txt: ghost: no such image'),
    (write('ImageSets/Main/train.txt', '\n'), 'train.txt: empty'),
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
    assert message.format(root=voc) in problems_of(prepare, 'small', voc, tmp_path / 'cache')
    assert not [name for name in files_below(tmp_path) if 'cache' in name and '.lock' not in name]


def test_voc_is_converted_again_when_it_changes(voc, tmp_path):
    first = prepare('small', voc, tmp_path / 'cache', log=quiet)
    write_xml(voc, 'train1', [('b', (1, 1, 20, 20), 0), ('a', (11, 6, 21, 26), 0)])
    second = prepare('small', voc, tmp_path / 'cache', log=quiet)
    assert json.loads(second.train_ann.read_text())['annotations'][0]['bbox'] == [0, 0, 19, 19]
    assert second.fingerprint != first.fingerprint
    second.train_ann.write_text('{}')
    assert prepare('small', voc, tmp_path / 'cache', log=quiet) == second
    assert check(second.train_ann, second.train_images, 'train') == []


def test_data_kept_in_the_cache_folder_is_left_alone(tmp_path):
    voc = make_voc(tmp_path / 'cache/cells')
    before = files_below(voc)
    for _ in range(2):
        dataset = prepare('small', voc, tmp_path / 'cache', log=quiet)
        assert dataset.train_ann == tmp_path / 'cache/cells-prepared/train.json'
        assert files_below(voc) == before


def test_a_cache_that_cannot_be_written(coco, tmp_path):
    (tmp_path / 'file').write_text('')
    assert 'choose another cache folder' in problems_of(prepare, 'small', coco, tmp_path / 'file')


@needs_bccd
def test_bccd(tmp_path):
    lines = []
    dataset = prepare('small', SHARED / 'bccd', tmp_path, log=lines.append)
    assert (dataset.name, dataset.classes) == ('bccd', ('Platelets', 'RBC', 'WBC'))
    assert dataset.fingerprint == '7a450e0a9580fbc5'
    assert dataset.notes[1:] == (
        'val (87 images) is not used: nothing is tuned or selected',
        '1 degenerate box dropped: BloodImage_00343.xml object 4 (RBC) xmin=181 ymin=329 xmax=181 ymax=329')
    train, test = COCO(dataset.train_ann), COCO(dataset.test_ann)
    assert (len(train.imgs), len(train.anns), len(test.imgs), len(test.anns)) == (205, 2804, 72, 945)
    assert not {image['file_name'] for image in train.imgs.values()} & {i['file_name'] for i in test.imgs.values()}
    assert prepare('small', SHARED / 'bccd/BCCD', tmp_path, log=quiet) == dataset
    assert not list(tmp_path.rglob('*.jpg'))
