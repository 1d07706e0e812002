"""Two narrow detectors in configs of a user's, and a folder of his pictures."""
from __future__ import annotations

import shutil

import pytest

NARROW = """
_base_ = 'mmdet::{base}'
model = dict(
    backbone=dict(depth=18, base_channels={width}, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[{width}, {width2}, {width4}, {width8}], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=1))
"""


def narrow(base, width):
    return NARROW.format(base=base, width=width, **{f'width{n}': n * width for n in (2, 4, 8)})


@pytest.fixture(scope='session')
def home(tmp_path_factory, dataset):
    """A folder with `data` in COCO layout and configs of narrow detectors."""
    root = tmp_path_factory.mktemp('user')
    (root / 'data' / 'annotations').mkdir(parents=True)
    for split, ann, images in (('train', dataset.train_ann, dataset.train_images),
                               ('test', dataset.test_ann, dataset.test_images)):
        shutil.copy(ann, root / 'data' / 'annotations' / f'instances_{split}.json')
        shutil.copytree(images, root / 'data' / split)
    for name, base, width in (('small', 'gfl/gfl_r50_fpn_1x_coco.py', 8), ('large', 'gfl/gfl_r50_fpn_1x_coco.py', 16),
                              ('caffe', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 16)):
        (root / f'{name}.py').write_text(narrow(base, width))
    return root


@pytest.fixture
def asked(home, tmp_path):
    """What a study of these is, with changes."""
    def make(**changes):
        return {'data': str(home / 'data'), 'student': str(home / 'small.py'), 'teacher': str(home / 'large.py'),
                'scratch': True, 'size': 64, 'epochs': 1, 'batch_size': 4, 'results': str(tmp_path / 'results'),
                **changes}
    return make
