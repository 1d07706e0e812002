"""What several test modules share: a tiny mini set, a tiny profile, one batch and one training step."""
import warnings

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import amdlib.distill
import amdlib.train  # noqa: F401  (both register with mmdet)
from amdlib import data
from amdlib.experiments import PROFILES, Network, shorter

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet():
    """mmdet's types are found by their bare names; neither mmengine's log nor others' deprecations fill the output."""
    init_default_scope('mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mmengine|mmdet|mmcv|torch')
        yield


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
    """A mini set of 8 training and 4 test images."""
    shapes = data.ShapesSpec(train_images=8, test_images=4)
    return data.prepare('mini', cache=tmp_path_factory.mktemp('data'), log=lambda *_: None, shapes=shapes)


@pytest.fixture(scope='session')
def tiny():
    """The profile `mini` with 64x64 images, the narrowest networks and one epoch: a step takes a tenth of a second."""
    return shorter(PROFILES['mini'], image_px=(64, 64), batch_size=2, epochs={'student': 1}, student=Network(18, 8),
                   teacher=Network(18, 16), neck_channels=64, head_convs=1, fc_channels=16, proposals=20, workers=0)


@pytest.fixture(scope='session')
def train_batch():
    """Config -> the first batch of its training data."""
    return lambda cfg: next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))


@pytest.fixture(scope='session')
def train_step(train_batch):
    """Model, Config -> what one training step logs."""
    def step(model, cfg):
        model.train()
        return model.train_step(train_batch(cfg), build_optim_wrapper(model, cfg.optim_wrapper))
    return step
