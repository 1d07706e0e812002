"""pixels.py: a teacher gets to the last digits the pixels that its own preprocessor makes, padding included."""
import copy
import itertools

import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from torch import nn

from amdlib.engine import pixels

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
KINDS = {'imagenet': IMAGENET,
         'caffe': dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
         'rtmdet': dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], bgr_to_rgb=False, pad_value=114),
         'yolox': dict(pad_value=114.0),
         'gray': dict(mean=[127.5], std=[127.5], bgr_to_rgb=True)}


def pictures():
    generator = torch.Generator().manual_seed(0)
    data = {'inputs': [], 'data_samples': []}
    for shape in ((40, 64), (64, 52)):
        data['inputs'].append(torch.randint(256, (3, *shape), generator=generator, dtype=torch.uint8))
        data['data_samples'].append(DetDataSample(metainfo=dict(img_shape=shape)))
    return data


@pytest.mark.parametrize(('student', 'teacher'), list(itertools.permutations(KINDS, 2)))
def test_the_mapped_pixels_are_those_of_the_teachers_own_preprocessor(student, teacher):
    own, wanted = (DetDataPreprocessor(pad_size_divisor=32, **KINDS[kind]) for kind in (student, teacher))
    seen = own(pictures())
    mapped = pixels.between(own, wanted)(seen['inputs'], seen['data_samples'])
    expected = wanted(pictures())['inputs']
    assert mapped.shape == expected.shape == (2, 3, 64, 64)
    torch.testing.assert_close(mapped, expected, rtol=1e-5, atol=1e-4 * float(expected.abs().max()) / 100)


def test_the_same_pixels_need_no_map():
    one, other = (DetDataPreprocessor(**IMAGENET, pad_size_divisor=divisor) for divisor in (1, 32))
    assert pixels.between(one, other) is None


def test_a_preprocessor_of_another_kind_is_refused():
    with pytest.raises(ValueError, match='Identity normalises pixels in a way of its own'):
        pixels.between(DetDataPreprocessor(**IMAGENET), nn.Identity())


def test_a_distillers_teacher_sees_its_own_pixels(config_of, train_batch):
    """The features of a teacher with another normalisation are those that it has of the same pictures on its own."""
    cfg = config_of('retinanet-amd').model
    cfg.teacher.data_preprocessor.update(KINDS['caffe'])
    model = MODELS.build(cfg).train()
    data = train_batch(config_of())
    alone = model.teacher.data_preprocessor(copy.deepcopy(data))['inputs']
    seen = model.data_preprocessor(data, training=True)
    for found, expected in zip(model._features_of(seen['inputs'], seen['data_samples']), model.teacher_features(alone),
                               strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
