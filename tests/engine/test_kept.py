"""kept.py: a teacher's features of every training picture, once; to the bit what a teacher beside a student gives."""
import copy
import json

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from PIL import Image

from amdlib.engine import kept
from amdlib.engine.kept import ARRAY, CARD, KeptFeatures, keep_features
from amdlib.engine.taps import tap
from amdlib.engine.training import train_and_test
from amdlib.errors import RunError
from amdlib.weights.writing import write_weights

LEVELS = (0, 1, 2, 3, 4)
WIDE = {'image_px': (96, 40)}       # pictures of 40 x 40 px, padded to 64 x 64


@pytest.fixture
def teacher(config_of, tmp_path):
    """What differs from the tiny profile -> a teacher's Config, its detector with random weights, and their file."""
    def make(row='retinanet-teacher', **changes):
        cfg, file = config_of(row, **changes), tmp_path / 'teacher.pth'
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        write_weights(file, model.state_dict(), {})
        return cfg, model.eval(), file
    return make


def pictures(cfg, flipped):
    """The training pictures, all of them as they are, or all flipped."""
    plain = copy.deepcopy(cfg.train_dataloader.dataset)
    for step in plain.pipeline:
        if step.type == 'RandomFlip':
            step.prob = float(flipped)
    return DATASETS.build(plain)


def by_hand(folder, images, shapes=((1, 1, 2), (1, 1, 1))):
    """A folder as `keep` leaves it, with the number of each value; returns the values."""
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(int(np.prod(shape)) for shape in shapes)
    values = np.arange(2 * images * size, dtype=np.float32).reshape(2 * images, size)
    np.save(folder / ARRAY, values)
    (folder / CARD).write_text(json.dumps({
        'levels': list(range(len(shapes))), 'image_ids': [10 * (i + 1) for i in range(images)], 'shapes': shapes,
        'image_px': [8, 16], 'feature_rms': [1.0] * len(shapes)}))
    return values


# ---- what is kept -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('row', 'changes'), [('retinanet-teacher', {}), ('retinanet-teacher', WIDE),
                                              ('faster_rcnn-teacher', WIDE)], ids=str)
def test_both_forms_are_what_the_teacher_gives_of_the_picture_and_of_the_flipped_one(teacher, tmp_path, row, changes):
    """By mmdet's own flip before normalising and padding."""
    cfg, model, file = teacher(row, **changes)
    levels = LEVELS if row[0] == 'r' else LEVELS[:4]
    keep_features(cfg, file, levels, tmp_path / 'kept', {})
    found, seen = KeptFeatures(tmp_path / 'kept'), 0
    for flipped in (False, True):
        for sample in pictures(cfg, flipped):
            batch = model.data_preprocessor({'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]})
            (data,) = batch['data_samples']
            assert data.flip == flipped
            with tap(model, [f'neck.fpn_convs.{i}.conv' for i in levels]) as wanted, torch.no_grad():
                model.extract_feat(batch['inputs'])
            features = found([data.img_id], [flipped], tuple(batch['inputs'].shape[2:]))
            assert all(torch.equal(one, other) for one, other in zip(features, wanted, strict=True))
            assert changes != WIDE or data.img_shape[:2] < tuple(batch['inputs'].shape[2:])
            seen += 1
    assert seen == 16


def test_the_rms_is_that_of_all_features_of_a_level(teacher, tmp_path):
    cfg, _, file = teacher()
    card = keep_features(cfg, file, LEVELS, tmp_path, {})
    found = KeptFeatures(tmp_path)
    ids = card['image_ids']
    levels = found(ids + ids, [False] * len(ids) + [True] * len(ids), tuple(card['image_px']))
    assert card['feature_rms'] == pytest.approx([level.double().square().mean().sqrt().item() for level in levels])
    assert len(set(card['feature_rms'])) == 5


def test_features_of_the_same_key_are_kept_once(teacher, tmp_path, monkeypatch):
    cfg, _, file = teacher()
    asked, original = [], kept.keep

    def keep(*words, **more):
        asked.append(1)
        return original(*words, **more)
    monkeypatch.setattr(kept, 'keep', keep)
    first = keep_features(cfg, file, LEVELS, tmp_path / 'kept', {'weights': 'a'})
    inode = (tmp_path / 'kept' / ARRAY).stat().st_ino
    assert keep_features(cfg, file, LEVELS, tmp_path / 'kept', {'weights': 'a'}) == json.loads(json.dumps(first))
    assert len(asked) == 1
    assert (tmp_path / 'kept' / ARRAY).stat().st_ino == inode
    for count, (key, levels) in enumerate([({'weights': 'b'}, LEVELS), ({'weights': 'b'}, LEVELS[:2])], 2):
        assert keep_features(cfg, file, levels, tmp_path / 'kept', key)['levels'] == list(levels)
        assert len(asked) == count
    assert sorted(path.name for path in (tmp_path / 'kept').iterdir()) == [ARRAY, CARD]


def test_what_is_interrupted_does_not_count(teacher, tmp_path, monkeypatch):
    cfg, _, file = teacher()
    keep_features(cfg, file, LEVELS, tmp_path / 'kept', {'weights': 'a'})

    def stop(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(kept, '_flipped', stop)
        with pytest.raises(KeyboardInterrupt):
            keep_features(cfg, file, LEVELS, tmp_path / 'kept', {'weights': 'b'})
    assert json.loads((tmp_path / 'kept' / CARD).read_text())['key']['weights'] == 'a'
    assert sorted(path.name for path in (tmp_path / 'kept').iterdir()) == [ARRAY, CARD]


def test_pictures_of_several_sizes_are_measured_and_not_kept(teacher, tmp_path):
    cfg, _, file = teacher()
    (tmp_path / 'images').mkdir()
    coco = {'categories': [{'id': 1, 'name': 'disc'}], 'images': [], 'annotations': []}
    for i, size in enumerate(((64, 64), (128, 40)), 1):
        Image.new('RGB', size, (40 * i, 0, 90)).save(tmp_path / 'images' / f'{i}.png')
        coco['images'].append({'id': i, 'file_name': f'{i}.png', 'width': size[0], 'height': size[1]})
        coco['annotations'].append({'id': i, 'image_id': i, 'category_id': 1, 'bbox': [1, 1, 15, 15], 'area': 225,
                                    'iscrowd': 0})
    (tmp_path / 'ann.json').write_text(json.dumps(coco))
    cfg.train_dataloader.dataset.update(ann_file=str(tmp_path / 'ann.json'),
                                        data_prefix={'img': str(tmp_path / 'images')}, metainfo={'classes': ('disc',)})
    with pytest.raises(RunError, match=r'of one size only; there are \(64, 64\) and \(32, 64\) px'):
        keep_features(cfg, file, LEVELS, tmp_path / 'kept', {})
    card = keep_features(cfg, file, LEVELS, tmp_path / 'kept', {}, measured_only=True)
    assert all(0 < value < 1e6 for value in card['feature_rms'])
    assert [path.name for path in (tmp_path / 'kept').iterdir()] == [CARD]


def test_measuring_alone_gives_the_same_rms(teacher, tmp_path):
    cfg, _, file = teacher()
    whole, alone = (keep_features(cfg, file, LEVELS, tmp_path / str(only), {}, only) for only in (False, True))
    assert whole['feature_rms'] == alone['feature_rms']


# ---- what is looked up ------------------------------------------------------------------------------------------

def test_features_are_looked_up_by_picture_form_and_level(tmp_path):
    values = by_hand(tmp_path, 3)
    fine, coarse = KeptFeatures(tmp_path)([30, 10], [True, False], (8, 16))
    assert fine.flatten(1).tolist() == [values[5, :2].tolist(), values[0, :2].tolist()]
    assert coarse.flatten(1).tolist() == [values[5, 2:].tolist(), values[0, 2:].tolist()]
    assert (fine.shape, coarse.shape) == ((2, 1, 1, 2), (2, 1, 1, 1))
    (only,) = KeptFeatures(tmp_path, levels=(1,))([30, 10], [True, False], (8, 16))
    assert torch.equal(only, coarse)
    fine += 1       # a copy: what is kept stays
    assert torch.equal(KeptFeatures(tmp_path)([30, 10], [True, False], (8, 16))[0] + 1, fine)


def test_unknown_pictures_sizes_and_levels_are_refused(tmp_path):
    by_hand(tmp_path, 3)
    found = KeptFeatures(tmp_path)
    with pytest.raises(RunError, match='no features are kept of the picture with id 40'):
        found([10, 40], [False, False], (8, 16))
    with pytest.raises(RunError, match=r'are of pictures of \(8, 16\) px, these have \(16, 8\)'):
        found([10], [False], (16, 8))
    with pytest.raises(RunError, match=r'no features are kept of level 2; kept are \[0, 1\]'):
        KeptFeatures(tmp_path, levels=(0, 2))


@pytest.mark.parametrize('images', [2, 3, 8, 9])
def test_shuffled_features_are_a_derangement_in_the_same_form(tmp_path, images):
    by_hand(tmp_path, images)
    plain, shuffled = KeptFeatures(tmp_path), KeptFeatures(tmp_path, shuffled=True)
    ids = list(plain.row_of)
    other = {image: next(one for one in ids if plain.row_of[one] == row) for image, row in shuffled.row_of.items()}
    assert sorted(other.values()) == ids
    assert all(image != its for image, its in other.items())
    assert KeptFeatures(tmp_path, shuffled=True).row_of == shuffled.row_of      # a fixed one
    for flip in (False, True):
        for image, its in other.items():
            for one, wanted in zip(shuffled([image], [flip], (8, 16)), plain([its], [flip], (8, 16)), strict=True):
                assert torch.equal(one, wanted)


def test_a_single_picture_cannot_be_shuffled(tmp_path):
    by_hand(tmp_path, 1)
    with pytest.raises(RunError, match='two training pictures or more'):
        KeptFeatures(tmp_path, shuffled=True)


# ---- training with them -----------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize(('row', 'changes', 'levels'), [
    ('retinanet-amd', {}, LEVELS), ('retinanet-fgd', WIDE, (0, 1, 2)), ('faster_rcnn-mgd', WIDE, LEVELS[:4])], ids=str)
def test_kept_features_change_no_bit(task_of, teacher, content, same_weights, tmp_path, row, changes, levels):
    group = row.partition('-')[0]
    cfg, _, file = teacher(f'{group}-teacher', **changes)
    card = keep_features(cfg, file, LEVELS if group == 'retinanet' else LEVELS[:4], tmp_path / 'kept', {})
    made = {}
    for name in ('kept', 'alone', 'shuffled'):
        settings = {'epochs': 2} | ({} if len(levels) > 3 else {'levels': levels})
        task = task_of(tmp_path / name, row, 0, settings, **changes)
        task.cfg.model.update(teacher_weights=str(file), alone=True, kept=None if name == 'alone' else str(
            tmp_path / 'kept'), shuffled=name == 'shuffled', scales=[card['feature_rms'][i] for i in levels])
        train_and_test(task)
        made[name] = content(task.folder)
    assert same_weights(made['kept'][0], made['alone'][0])
    assert made['kept'][1:] == made['alone'][1:]
    assert not same_weights(made['kept'][0], made['shuffled'][0])
