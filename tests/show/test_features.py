"""features.py: pictures as in evaluation, features as in distillation."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import Runner

from amdlib.datasets import Dataset
from amdlib.engine.distiller import Distiller
from amdlib.errors import DataError, RunError
from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import paper_groups
from amdlib.paper.profiles import PROFILES
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.show import features
from amdlib.show.features import Picture

from .records import finish


def picture(boxes=(), image_px=(4, 4), padded_px=None, labels=None, image_id=1):
    """A black image with these boxes; sizes are (height, width)."""
    return Picture(image_id, f'{image_id}.png', np.zeros((*image_px, 3), np.uint8),
                   torch.zeros(3, *(padded_px or image_px)), torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                   tuple(labels or ['disc'] * len(boxes)))


# ---- pictures ---------------------------------------------------------------------------------------------------

def seen_by(row, profile, dataset):
    cfg = config(Run.of(row, profile), dataset)
    pixels = {key: value for key, value in cfg.model.data_preprocessor.items() if key != 'pad_mask'}
    return json.dumps([cfg.test_dataloader.dataset.pipeline, pixels])


@pytest.mark.parametrize('profile', PROFILES)
def test_the_papers_groups_see_images_alike(dataset, profile):
    """`pictures` takes the pipeline and the preprocessor of one row for all."""
    seen = {seen_by(f'{group}-{row}', profile, dataset) for group in paper_groups() for row in ('teacher', 'baseline')}
    assert len(seen) == 1


@pytest.mark.parametrize('profile', ['mini', 'small'])
@pytest.mark.parametrize('group', GROUPS)
def test_teacher_and_student_of_a_group_see_images_alike(dataset, group, profile):
    """At the smaller profiles, whatever mmdet's configs of the two normalise with; `paper` needs a pair that agrees."""
    assert seen_by(f'{group}-teacher', profile, dataset) == seen_by(f'{group}-baseline', profile, dataset)


def test_pictures_are_what_evaluation_sees(store, dataset, tiny):
    run = Run.of('retinanet-baseline', tiny)
    cfg = config(run, dataset)
    batch = next(iter(Runner.build_dataloader(cfg.test_dataloader, seed=0)))
    expected = MODELS.build(cfg.model.data_preprocessor)(batch)
    made = features.pictures(store, image_ids=[sample.img_id for sample in batch['data_samples']])
    assert torch.equal(torch.stack([one.pixels for one in made]), expected['inputs'])
    assert made[0].rgb.shape == (64, 64, 3)
    assert made[0].rgb.dtype == np.uint8
    mean, std = (torch.tensor(cfg.model.data_preprocessor[key]) for key in ('mean', 'std'))
    normalised = (torch.from_numpy(made[0].rgb).float() - mean) / std      # rgb, not bgr
    assert torch.allclose(made[0].pixels, normalised.permute(2, 0, 1), atol=1e-5)


def test_boxes_are_in_pixels_of_the_resized_image_and_crowds_are_left_out(store, dataset, tmp_path):
    coco = json.loads(dataset.test_ann.read_text())
    own = [truth for truth in coco['annotations'] if truth['image_id'] == 1]
    own[0]['iscrowd'] = 1
    ann = tmp_path / 'crowd.json'
    ann.write_text(json.dumps(coco))
    (one,) = features.pictures(replace(store, dataset=replace(dataset, test_ann=ann)), image_ids=[1])
    names = {category['id']: category['name'] for category in coco['categories']}
    expected = [(x / 2, y / 2, (x + w) / 2, (y + h) / 2) for x, y, w, h in (truth['bbox'] for truth in own[1:])]
    assert len(own) > 1
    assert one.boxes_xyxy_px.tolist() == [pytest.approx(box) for box in expected]
    assert one.labels == tuple(names[truth['category_id']] for truth in own[1:])


def test_pictures_are_chosen_by_id_or_by_their_boxes(store, dataset, tmp_path):
    coco = json.loads(dataset.test_ann.read_text())
    first, second, third, _ = (image['id'] for image in coco['images'])
    coco['annotations'] = [truth for truth in coco['annotations'] if truth['image_id'] != first]
    ann = tmp_path / 'empty.json'
    ann.write_text(json.dumps(coco))
    changed = replace(store, dataset=replace(dataset, test_ann=ann))

    def ids(**how):
        return [one.image_id for one in features.pictures(changed, **how)]
    assert ids(count=2) == [second, third]                       # the first has no box
    assert ids(image_ids=[third, first]) == [third, first]       # in the order asked for, boxes or not
    assert len(ids(split='train')) == 8
    with pytest.raises(DataError, match='no image with id 99'):
        ids(image_ids=[third, 99])
    ann.write_text(json.dumps({**coco, 'annotations': []}))
    with pytest.raises(DataError, match='no image has a box'):
        ids()
    with pytest.raises(DataError, match="split 'val': expected train or test"):
        ids(split='val')


def _set(tmp_path, images):
    """Of 10 x 10 images, by id with their boxes; one that begins with 'crowd' is a crowd."""
    truths = [{'image_id': image, 'bbox': box[-4:], 'iscrowd': int(box[0] == 'crowd')}
              for image, boxes in images.items() for box in boxes]
    ann = tmp_path / 'test.json'
    ann.write_text(json.dumps({'images': [{'id': image, 'width': 10, 'height': 10} for image in images],
                               'annotations': truths}))
    return Dataset('any', ann, tmp_path, ann, tmp_path, ('disc',), '', ())


def test_images_to_show_are_chosen_by_how_much_their_boxes_cover(tmp_path):
    found = _set(tmp_path, {
        7: [(0, 0, 10, 8), (0, 0, 10, 10)],             # all of it
        3: [(0, 0, 5, 5), (1, 1, 4, 4)],                # 25 %: one lies in the other
        9: [(0, 0, 10, 5)],                             # 50 %, but a single box
        4: [(0, 0, 1, 1), (8, 8, 5, 5)],                # 5 %: the rest lies outside
        5: [(0, 0, 10, 3), (0, 7, 10, 3)],              # 60 %
        6: [],
        8: [('crowd', 0, 0, 10, 5), (0, 0, 1, 1), (5, 5, 1, 1)]})     # 2 %
    assert features.representative(found, 2) == [3, 5]
    assert features.representative(found, 99) == [3, 5, 4, 8, 7, 9]
    with pytest.raises(DataError, match='no image has a box'):
        features.representative(_set(tmp_path, {1: [('crowd', 0, 0, 5, 5)]}), 1)


# ---- detectors and features -------------------------------------------------------------------------------------

def test_a_run_that_is_not_done_is_named_with_the_command_that_makes_it(store):
    run = Run.of('retinanet-amd', 'mini', 2, {'phi': 0.7})
    with pytest.raises(RunError, match=r'retinanet-amd\+phi=0.7-s2 is missing \(never run\): make it with '
                                       r'python -m amdlib run retinanet-amd --profile mini --seed 2 --set phi=0.7$'):
        features.load_detector(run, store)


def test_a_done_run_is_loaded_frozen_whether_teacher_or_student(store):
    for row in ('retinanet-teacher', 'retinanet-amd'):
        run = Run.of(row, store.profile)
        detector = finish(store, run)
        loaded = features.load_detector(run, store)
        assert type(loaded) is type(detector)
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        for name, value in detector.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


def test_a_stale_run_is_loaded_only_on_request(store):
    run = Run.of('retinanet-baseline', store.profile)
    finish(store, run)
    other = replace(store, dataset=replace(store.dataset, fingerprint='another'))
    with pytest.raises(RunError, match=r'retinanet-baseline-s0 is stale \(made with other data .*\): make it with'):
        features.load_detector(run, other)
    assert features.load_detector(run, other, stale_ok=True)
    store.weights(run).unlink()
    with pytest.raises(RunError, match='weights.pth is missing'):
        features.load_detector(run, other, stale_ok=True)


def test_features_are_those_that_distillation_compares(store, dataset, tiny, monkeypatch):
    cfg = config(Run.of('retinanet-amd', tiny), dataset)
    torch.manual_seed(0)
    distiller = MODELS.build(cfg.model).eval()
    assert isinstance(distiller, Distiller)
    made = features.pictures(store)
    expected = distiller.teacher_features(torch.stack([one.pixels for one in made]))
    monkeypatch.setattr(features, 'CHUNK', 3)       # 4 images: the last chunk is smaller
    found = features.level_features(distiller.teacher, made, range(5))
    assert [tuple(level.shape) for level in found] == [(4, 64, side, side) for side in (8, 4, 2, 1, 1)]
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
        assert not mine.requires_grad
    (third,) = features.level_features(distiller.teacher, made, [2])
    assert torch.equal(third, found[2])
    for g, level in zip(features.magnitudes(distiller.teacher, made, range(5)), found, strict=True):
        assert torch.equal(g, level.abs().mean(dim=1))


def test_features_need_pictures_of_one_size_and_known_levels(dataset, tiny):
    model = MODELS.build(config(Run.of('retinanet-teacher', tiny), dataset).model)
    with pytest.raises(ValueError, match=r'one padded size, got \[\(32, 32\), \(32, 64\)\]'):
        features.level_features(model, [picture(padded_px=(32, 64)), picture(padded_px=(32, 32))], [0])
    with pytest.raises(ValueError, match='one padded size, got no pictures'):
        features.level_features(model, [], [0])
    with pytest.raises(ValueError, match='RetinaNet has no module neck.fpn_convs.7.conv'):
        features.level_features(model, [picture(padded_px=(64, 64))], [0, 7])


def test_pictures_for_other_detectors_are_refused(store, monkeypatch):
    """A group whose detectors normalise otherwise, such as mmdet's caffe-style ones, gets pictures of its own."""
    (made,) = features.pictures(store, count=1)
    cfg = config(Run.of('retinanet-teacher', store.profile), store.dataset)
    cfg.model.data_preprocessor.update(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
    model = MODELS.build(cfg.model)
    with pytest.raises(ValueError, match=r'image \d+ was normalised .* RetinaNet expects \(\(102.98.*make pictures for '
                                         'its group'):
        features.level_features(model, [made], [0])
    assert features.level_features(model, [replace(made, normalised=None)], [0])
