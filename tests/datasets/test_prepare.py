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

from amdlib.datasets import ShapesSpec, check, formats, prepare, store
from amdlib.datasets.checks import examine
from amdlib.datasets.scene import scene

from .folders import edit, files_below, make_voc, problems_of, set_in, write_xml

FEW = ShapesSpec(train_images=6, test_images=3, val_images=2)


def test_mini_is_a_coco_set(tmp_path, caplog):
    dataset = prepare('shapes', cache=tmp_path, shapes=FEW)
    assert (dataset.name, dataset.classes) == ('mini', FEW.classes)
    assert dataset.fingerprint == '70a0c4646040c8ec'
    # beside the third split, train and test are what they were
    assert examine(dataset.train_ann, dataset.train_images, dataset.test_ann, dataset.test_images)['fingerprint'] == (
        '0a4247488e75e6fe')
    for ann, images, split, count in ((dataset.train_ann, dataset.train_images, 'train', 6),
                                      (dataset.test_ann, dataset.test_images, 'test', 3),
                                      (dataset.val_ann, dataset.val_images, 'val', 2)):
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
    text = '\n'.join(caplog.messages)
    assert all(word in text for word in ('images', 'small', 'medium', 'large', dataset.fingerprint, 'triangle'))


def test_mini_at_full_size_is_made_in_time(tmp_path):
    start = time.process_time()
    dataset = prepare('shapes', cache=tmp_path)
    made_s = time.process_time() - start
    assert made_s < 80   # of the processor; about 12
    assert len(list(dataset.train_images.iterdir())) == 1000
    assert len(list(dataset.test_images.iterdir())) == 1000
    assert len(list(dataset.val_images.iterdir())) == 300
    start = time.process_time()
    assert prepare('shapes', cache=tmp_path) == dataset
    assert time.process_time() - start < made_s / 10
    assert not list(tmp_path.glob('.mini.*-*'))


def test_mini_is_kept_when_whole_and_made_again_when_not(tmp_path, caplog):
    dataset = prepare('shapes', cache=tmp_path, shapes=FEW)
    before = files_below(dataset.train_ann.parent)
    image = sorted(dataset.train_images.iterdir())[0]

    os.utime(image, (1, 1))   # touched, but the same
    inode = image.stat().st_ino
    assert prepare('shapes', cache=tmp_path, shapes=FEW) == dataset
    assert image.stat().st_ino == inode

    for damage in (lambda: image.unlink(), lambda: image.write_bytes(image.read_bytes()[:999]),
                   lambda: dataset.test_ann.write_text('{'), lambda: dataset.test_ann.unlink(),
                   lambda: Image.new('RGB', (128, 128)).save(image)):
        damage()
        caplog.clear()
        assert prepare('shapes', cache=tmp_path, shapes=FEW) == dataset
        assert any('damaged or incomplete' in line for line in caplog.messages)
        after = files_below(dataset.train_ann.parent)
        assert after.keys() == before.keys()
        assert all(after[name] == before[name] for name in before if name != 'manifest.json')   # it holds times


def test_mini_follows_its_spec(tmp_path):
    first = prepare('shapes', cache=tmp_path, shapes=FEW)
    second = prepare('shapes', cache=tmp_path, shapes=ShapesSpec(train_images=5, test_images=3, val_images=2))
    assert first.fingerprint != second.fingerprint
    assert len(list(second.train_images.iterdir())) == 5


def test_a_moved_cache_keeps_its_fingerprint(tmp_path):
    first = prepare('shapes', cache=tmp_path / 'a', shapes=FEW)
    shutil.copytree(tmp_path / 'a', tmp_path / 'b', copy_function=shutil.copyfile)   # new times
    assert prepare('shapes', cache=tmp_path / 'b', shapes=FEW).fingerprint == first.fingerprint


def test_a_killed_call_leaves_nothing_that_counts(tmp_path):
    many = ShapesSpec(train_images=2000, test_images=2)
    process = multiprocessing.get_context('fork').Process(target=prepare, args=('shapes', None, tmp_path, many))
    process.start()
    while process.is_alive() and len(list(tmp_path.glob('.mini.new-*/train/*'))) < 5:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / 'mini').exists()
    assert list(tmp_path.glob('.mini.new-*'))
    dataset = prepare('shapes', cache=tmp_path, shapes=FEW)
    assert len(list(dataset.train_images.iterdir())) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.mini.lock', 'mini']


def test_two_calls_at_once_make_one_set(tmp_path):
    spec = ShapesSpec(train_images=60, test_images=20, val_images=5)
    context = multiprocessing.get_context('fork')
    with context.Pool(3) as pool:
        calls = [pool.apply_async(prepare, ('shapes', None, tmp_path, spec)) for _ in range(3)]
        results = [call.get(60) for call in calls]
    assert results[0] == results[1] == results[2]
    assert check(results[0].train_ann, results[0].train_images, 'train') == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.mini.lock', 'mini']


def test_a_folder_of_the_user_is_never_replaced(tmp_path):
    (tmp_path / 'mini').mkdir()
    (tmp_path / 'mini/thesis.txt').write_text('the only copy')
    assert prepare('shapes', cache=tmp_path, shapes=FEW).train_ann.parent.name == 'mini-prepared'
    assert files_below(tmp_path / 'mini') == {'thesis.txt': b'the only copy'}


@pytest.mark.parametrize(('kind', 'data', 'message'), [
    ('huge', None, "'huge': expected shapes, folder, coco, first_of_coco"),
    ('shapes', Path('x'), 'mini makes its own data; DATA=x belongs to'),
    ('folder', None, 'DATA=<folder> with a data set in COCO, Pascal VOC, YOLO or another'),
    ('coco', None, 'DATA=<folder> with COCO 2017'), ('first_of_coco', None, 'DATA=<folder> with COCO 2017'),
    ('folder', Path('nowhere'), 'nowhere: no such folder'),
    ('folder', Path(__file__), 'test_prepare.py: a file; give the folder that it lies in')])
def test_wrong_calls(kind, data, message, tmp_path):
    assert message in problems_of(prepare, kind, data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_fingerprint_follows_content_and_not_place_or_time(coco, tmp_path):
    def current(root, cache):
        return prepare('folder', root, tmp_path / cache).fingerprint
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
    dataset = prepare('folder', coco, tmp_path / 'cache')
    monkeypatch.setattr('amdlib.datasets.checks.examine', None)
    assert prepare('folder', coco, tmp_path / 'cache') == dataset


def test_voc_is_converted_again_when_it_changes(voc, tmp_path):
    first = prepare('folder', voc, tmp_path / 'cache')
    write_xml(voc, 'train1', [('b', (1, 1, 20, 20), 0), ('a', (11, 6, 21, 26), 0)])
    second = prepare('folder', voc, tmp_path / 'cache')
    assert json.loads(second.train_ann.read_text())['annotations'][0]['bbox'] == [0, 0, 19, 19]
    assert second.fingerprint != first.fingerprint
    second.train_ann.write_text('{}')
    assert prepare('folder', voc, tmp_path / 'cache') == second
    assert check(second.train_ann, second.train_images, 'train') == []


def test_data_kept_in_the_cache_folder_is_left_alone(tmp_path):
    voc = make_voc(tmp_path / 'cache/cells')
    before = files_below(voc)
    for _ in range(2):
        dataset = prepare('folder', voc, tmp_path / 'cache')
        assert dataset.train_ann == tmp_path / 'cache/cells-prepared/train.json'
        assert files_below(voc) == before


def test_a_cache_that_cannot_be_written(coco, tmp_path):
    (tmp_path / 'file').write_text('')
    assert 'choose another cache folder' in problems_of(prepare, 'folder', coco, tmp_path / 'file')


@pytest.mark.parametrize(('files', 'state'), [
    (['annotations/instances_train2017.json', 'annotations/instances_val2017.json', 'train2017/a.jpg', 'val2017/b.jpg'],
     'ae56103e80738d74'),
    (['annotations/instances_train.json', 'annotations/instances_val.json', 'annotations/instances_test.json',
      'images/a.jpg'], '545e11c7d4d82283'),
    (['Annotations/a.xml', 'ImageSets/Main/train.txt', 'ImageSets/Main/val.txt', 'ImageSets/Main/test.txt',
      'JPEGImages/a.jpg'], '40af34d53cbb18bc'),
    (['Annotations/a.xml', 'ImageSets/Main/train.txt', 'ImageSets/Main/val.txt', 'JPEGImages/a.jpg'],
     'faf1c157e21b563d')])
def test_states_of_earlier_versions_stay_valid(tmp_path, files, state):
    """Or every set that is prepared would be made and checked anew."""
    root = tmp_path / 'pets'
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'x' * 7)
        os.utime(root / name, (1, 1))
    assert store.state(formats.recognise(root), tmp_path / 'home') == state


@pytest.mark.parametrize('kind', ['shapes', 'voc', 'coco'])
def test_manifests_of_earlier_versions_stay_valid(kind, voc, coco, tmp_path):
    """What is written down is what version 1 wrote: a change needs another number, and makes every set anew."""
    data = {'shapes': None, 'voc': voc, 'coco': coco}[kind]
    dataset = prepare('folder' if data else 'shapes', data, tmp_path / 'cache', None if data else FEW)
    manifest = json.loads((tmp_path / 'cache' / dataset.name / 'manifest.json').read_text())
    assert list(manifest) == ['made_by', 'recipe', 'classes', 'notes', 'fingerprint', 'counts', 'state']
    assert manifest['made_by'] == 'amdlib.data 2'
    assert manifest['recipe'] == f'amdlib.data 2 {kind}' + (' ca5d43ce3ab0732d' if kind == 'shapes' else '')
