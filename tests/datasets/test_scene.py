import hashlib

import numpy as np
import pytest

from amdlib.datasets.scene import ShapesSpec, scene


def test_a_scene_is_the_same_every_time_and_everywhere():
    digest = hashlib.sha256()
    for split, index in (('train', 0), ('train', 7), ('train', 999), ('test', 0), ('test', 299)):
        image, boxes_xywh_px, labels = scene(ShapesSpec(), split, index)
        again = scene(ShapesSpec(), split, index)
        assert all(np.array_equal(a, b) for a, b in zip((image, boxes_xywh_px, labels), again, strict=True))
        for part in (image, boxes_xywh_px.astype('<i8'), labels.astype('<i8')):
            digest.update(part.tobytes())
    # If this differs, pixels have changed: raise the number in store.MADE_BY, so that nobody keeps the old ones.
    assert digest.hexdigest()[:16] == '983f63ab8320777b'


@pytest.fixture(scope='module')
def scenes():
    spec = ShapesSpec()
    return [scene(spec, 'train', index) for index in range(200)]


def test_scenes_are_as_specified(scenes):
    spec = ShapesSpec()
    counts = [len(labels) for _, _, labels in scenes]
    assert min(counts) >= spec.objects[0] - 1
    assert max(counts) == spec.objects[1]
    assert 4.5 < np.mean(counts) < 6.5
    boxes_xywh_px = np.concatenate([boxes for _, boxes, _ in scenes])
    labels = np.concatenate([labels for _, _, labels in scenes])
    assert boxes_xywh_px[:, :2].min() >= 0
    assert (boxes_xywh_px[:, :2] + boxes_xywh_px[:, 2:]).max() <= spec.image_px
    assert boxes_xywh_px[:, 2:].min() >= 5
    areas = boxes_xywh_px[:, 2:].prod(1)
    assert 0.4 < np.mean(areas < 32 ** 2) < 0.75                                 # COCO's small
    large = [int((boxes[:, 2:].prod(1) >= 96 ** 2).sum()) for _, boxes, _ in scenes]
    assert max(large) == 1
    assert 0.1 < np.mean(large) < 0.25
    assert np.bincount(labels).min() > 0.15 * len(labels)
    for image, _, _ in scenes:
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8


def test_objects_overlap(scenes):
    def overlaps(boxes_xywh_px):
        x0, y0 = boxes_xywh_px[:, :2].T
        x1, y1 = (boxes_xywh_px[:, :2] + boxes_xywh_px[:, 2:]).T
        across = np.minimum(x1[:, None], x1) > np.maximum(x0[:, None], x0)
        along = np.minimum(y1[:, None], y1) > np.maximum(y0[:, None], y0)
        return (across & along).sum() > len(boxes_xywh_px)
    assert np.mean([overlaps(boxes) for _, boxes, _ in scenes]) > 0.5


def test_colour_does_not_tell_the_class(scenes):
    """The mean colour in a box's middle differs less between classes than its standard error allows for (4 of them)."""
    centres, labels = [], []
    for image, boxes, scene_labels in scenes:
        for (x, y, width, height), label in zip(boxes, scene_labels, strict=True):
            centres.append(image[y + height // 2, x + width // 4])
            labels.append(label)
    centres, labels = np.array(centres, float), np.array(labels)
    for label in range(5):
        own = centres[labels == label]
        assert np.all(abs(own.mean(0) - centres.mean(0)) < 4 * own.std(0) / np.sqrt(len(own)))


def test_a_box_is_tight_around_what_is_visible():
    """On a flat background without noise the only object's box is the box of the pixels that differ from it."""
    spec = ShapesSpec(objects=(1, 1), large_percent=0, texture=0, noise=0, strokes=(0, 0))
    for index in range(20):
        image, boxes_xywh_px, _ = scene(spec, 'test', index)
        differs = (image != np.median(image, axis=(0, 1))).any(2)
        rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
        (x, y, width, height), = boxes_xywh_px
        drawn_xyxy_px = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert abs(drawn_xyxy_px - [x, y, x + width, y + height]).max() <= 1   # the blur widens it by one pixel


def test_hardly_any_box_is_a_sliver(scenes):
    """An object that others would hide too far is not drawn, so few boxes shrink below the smallest side."""
    sides_px = np.concatenate([boxes[:, 2:] for _, boxes, _ in scenes])
    assert np.mean(sides_px.min(1) < 8) < 0.02


def test_splits_share_no_scene():
    assert not np.array_equal(scene(ShapesSpec(), 'train', 3)[0], scene(ShapesSpec(), 'test', 3)[0])


def test_spec_refuses_unknown_classes():
    with pytest.raises(ValueError, match='hexagon'):
        ShapesSpec(classes=('disc', 'hexagon'))
