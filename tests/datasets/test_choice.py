"""What of a folder is taken: one split divided, images without boxes, images that cannot be read, the layout meant."""
import json
import shutil

import pytest

from amdlib.datasets import prepare, trained_images
from amdlib.errors import SettingError

from . import layouts
from .folders import edit, files_below, make_coco, problems_of, set_in
from .layouts import PICTURES, UNSPLIT, joined


def many(root, count=10, copies=3):
    """One split of pictures that differ, and copies of the first under other names."""
    pictures = [(f'{i}.jpg', (40, 40), [('no', (1, 2, 20, 30))]) for i in range(count)]
    layouts.yolo_classes(root, {'all': pictures})
    for i in range(copies):
        shutil.copy(root / 'images/0.jpg', root / f'images/copy{i}.jpg')
        shutil.copy(root / 'labels/0.txt', root / f'labels/copy{i}.txt')
    return root


def file_names(ann):
    return [image['file_name'] for image in json.loads(ann.read_text())['images']]


def test_one_split_is_divided_by_the_pictures_content(tmp_path):
    root = many(tmp_path / 'pets')
    before, parts = files_below(root), set()
    for seed in range(6):
        data = prepare('folder', root, tmp_path / 'cache', split=0.7, split_seed=seed)
        train, test = map(file_names, (data.train_ann, data.test_ann))
        assert sorted(train + test) == sorted(path.name for path in (root / 'images').iterdir())
        twins = {'0.jpg', 'copy0.jpg', 'copy1.jpg', 'copy2.jpg'}
        assert twins <= set(train) or twins <= set(test)
        assert 9 <= len(train) <= 12    # 9.1 of 13, and what belongs to the last
        told = f'split here: trained on {len(train)} images, reported on {len(test)} (0.7, seed {seed}; 3 copies stay'
        assert told in ' '.join(data.notes)
        parts.add(tuple(train))
    assert len(parts) > 3
    assert files_below(root) == before


def test_what_roboflow_made_of_one_picture_stays_together(tmp_path):
    root = tmp_path / 'pets'
    layouts.yolo_classes(root, {'all': [(f'{i}_jpg.rf.{made}.jpg', (40, 40), [('no', (1, 2, 20, 30))])
                                        for i in range(6) for made in 'abc']})
    for seed in range(4):
        data = prepare('folder', root, tmp_path / 'cache', split=0.5, split_seed=seed)
        train, test = ({name[0] for name in file_names(ann)} for ann in (data.train_ann, data.test_ann))
        assert not train & test
        assert '12 copies stay with their picture' in ' '.join(data.notes)


def test_a_split_has_a_name_a_fingerprint_and_files_of_its_own(tmp_path):
    root = many(tmp_path / 'pets')
    sets = [prepare('folder', root, tmp_path / 'cache', **choice) for choice in (
        {'split': 0.5}, {'split': 0.8}, {'split': 0.8, 'split_seed': 1})]
    assert [data.name for data in sets] == ['pets-split0.5', 'pets-split0.8', 'pets-split0.8-seed1']
    assert len({data.fingerprint for data in sets}) == 3
    assert all(data.train_ann.is_file() for data in sets)
    assert prepare('folder', root, tmp_path / 'cache', split=0.5) == sets[0]
    moved = root.parent / 'elsewhere/pets'
    shutil.copytree(root, moved, copy_function=shutil.copyfile)
    assert prepare('folder', moved, tmp_path / 'other', split=0.5).fingerprint == sets[0].fingerprint


def test_one_split_is_told_and_a_split_folder_is_not_divided(coco, tmp_path):
    root = many(tmp_path / 'sets/pets')
    message = problems_of(prepare, 'folder', root, tmp_path / 'cache')
    assert 'one split only (YOLO layout: classes.txt, 3 classes, images); --split 0.8 (SPLIT=0.8) trains' in message
    assert 'split=0.8: the folder has splits of its own: trained on train2017, reported on val2017' in problems_of(
        prepare, 'folder', coco, tmp_path / 'cache', split=0.8)
    assert 'split=0.5: of 4 images, 1 different one, none is left to report on' in problems_of(
        prepare, 'folder', many(tmp_path / 'same', 1), tmp_path / 'cache', split=0.5)
    for path in (root / 'labels').glob('[1-9].txt'):
        path.write_text('')
    assert 'split=0.9: a part without a box; another split_seed' in problems_of(
        prepare, 'folder', root, tmp_path / 'cache', split=0.9)


@pytest.mark.parametrize(('choice', 'told'), [
    ({'split': 0.0}, 'split=0.0: expected the share'), ({'split': 1.0}, 'split=1.0: expected'),
    ({'split': float('nan')}, 'split=nan: expected'), ({'split': True}, 'split=True: expected'),
    ({'split': '0.8'}, "split='0.8': expected"), ({'split_seed': 'x'}, "split_seed='x': expected a number"),
    ({'negatives': 'all'}, "negatives='all': expected keep or drop")])
def test_a_choice_that_is_none(coco, tmp_path, choice, told):
    with pytest.raises(SettingError, match=told.replace('.', r'\.')):
        prepare('folder', coco, tmp_path, **choice)


def test_what_is_made_here_is_taken_whole(tmp_path):
    assert 'split, drop_broken: for a folder of yours' in problems_of(
        prepare, 'shapes', None, tmp_path, split=0.8, drop_broken=True)


# ---- images without a box ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(('negatives', 'trained', 'images', 'note'), [
    (None, 2, (3, 2), 'train: 1 image without a box: mmdet trains without it'),
    ('keep', 3, (3, 2), 'train: 1 image without a box, trained on as asked'),
    ('drop', 2, (2, 1), 'train: 1 image without a box left out, as asked')])
def test_images_without_a_box(tmp_path, negatives, trained, images, note):
    root = tmp_path / 'pets'
    layouts.yolo(root, PICTURES)
    (root / 'labels/val/v.1.txt').unlink()
    data = prepare('folder', root, tmp_path / 'cache', **({'negatives': negatives} if negatives else {}))
    assert (len(file_names(data.train_ann)), len(file_names(data.test_ann))) == images
    assert data.negatives is (negatives == 'keep')
    assert len(trained_images(data.train_ann, data.negatives)) == trained
    assert note in data.notes
    assert len([one for one in data.notes if 'without a box' in one]) == (2 if negatives == 'drop' else 1)


def test_images_without_a_box_are_in_the_fingerprint(tmp_path):
    layouts.yolo(tmp_path / 'pets', PICTURES)
    found = {negatives: prepare('folder', tmp_path / 'pets', tmp_path / 'cache', negatives=negatives)
             for negatives in (None, 'keep', 'drop')}
    assert len({data.fingerprint for data in found.values()}) == 3
    assert [data.name for data in found.values()] == ['pets', 'pets-negatives-keep', 'pets-negatives-drop']


# ---- images that cannot be read ---------------------------------------------------------------------------------

@pytest.mark.parametrize('layout', UNSPLIT)
def test_broken_images_are_left_out_by_name(layout, tmp_path):
    root = tmp_path / 'pets'
    UNSPLIT[layout](root, joined(PICTURES))
    (broken,) = root.rglob('v.1.png')
    broken.write_bytes(broken.read_bytes()[:60])
    told = problems_of(prepare, 'folder', root, tmp_path / 'cache', split=0.6)
    assert told.startswith('1 image cannot be read; --drop-broken (DROP_BROKEN=1) leaves it out')
    assert 'v.1.png: not readable as an image' in told
    before = files_below(root)
    data = prepare('folder', root, tmp_path / 'cache', split=0.6, drop_broken=True)
    names = [*file_names(data.train_ann), *file_names(data.test_ann)]
    assert len(names) == 4
    assert not any('v.1' in name for name in names)
    note, = [one for one in data.notes if 'unreadable' in one]
    assert '1 unreadable image left out: ' in note
    assert f'{broken}: not readable as an image' in note
    assert files_below(root) == before


def test_images_that_are_not_there_are_left_out_too(coco, tmp_path):
    (coco / 'train2017/train2017_2.png').unlink()
    data = prepare('folder', coco, tmp_path / 'cache', drop_broken=True)
    assert (data.name, file_names(data.train_ann)) == ('pets-readable', ['train2017_1.png'])
    assert f'train: 1 unreadable image left out: {coco}/train2017/train2017_2.png: no such image' in data.notes
    assert data.test_images == coco / 'val2017'
    assert {one['image_id'] for one in json.loads(data.train_ann.read_text())['annotations']} == {1}


def test_another_fault_is_told_of_the_users_file_all_the_same(coco, tmp_path):
    ann = edit(coco, set_in('annotations', 0, bbox=[35, 2, 9, 9]))
    assert problems_of(prepare, 'folder', coco, tmp_path / 'cache', drop_broken=True) == (
        f'{ann}: annotation id 1: bbox [35, 2, 9, 9] leaves the image of 40x30 px')


# ---- the layout that is meant -----------------------------------------------------------------------------------

def test_a_folder_that_fits_two_layouts(tmp_path):
    root = make_coco(tmp_path / 'pets')
    layouts.yolo(root, PICTURES)
    told = problems_of(prepare, 'folder', root, tmp_path / 'cache')
    assert told == f'{root}: fits more than one layout: coco, yolo; say which is meant: --layout coco (LAYOUT=coco)'
    assert prepare('folder', root, tmp_path / 'cache', layout='yolo').classes == layouts.CLASSES
    assert prepare('folder', root, tmp_path / 'cache', layout='coco').classes == ('cat', 'dog')
    assert "layout 'voc': expected" not in problems_of(prepare, 'folder', root, tmp_path / 'cache', layout='voc')
    assert "layout 'tfrecord': expected coco, csv, cvat, voc, yolo" in problems_of(
        prepare, 'folder', root, tmp_path / 'cache', layout='tfrecord')
