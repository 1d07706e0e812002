"""What several test modules share: a tiny made set, a tiny profile, their store, one batch and one training step."""
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import mmengine.config.config
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import amdlib.engine  # noqa: F401  (registers with mmdet)
from amdlib.datasets import prepare
from amdlib.datasets.formats.shapes import ShapesSpec
from amdlib.files import ROOT
from amdlib.paper.profiles import PROFILES, Network
from amdlib.runs.store import Store
from amdlib.words import log

SHARED = ROOT.parent / 'shared'     # paper, data and cluster; not part of the repository
# a loss of a user's in a file, such as `retinanet-own.py:Own`
OWN = """
from amdlib.methods.level import LevelLoss


class Own(LevelLoss):
    WEIGHT_EXPONENTS = {'weight': (1, 1)}

    def __init__(self, student_channels, teacher_channels, weight=1e-5):
        super().__init__(student_channels, teacher_channels)
        self.weight = weight

    def weighted_loss(self, f_s, f_t, boxes, image_shapes):
        return self.weight * (f_s - f_t).pow(2).sum()
"""
# what may lie where JSON of the kit's is expected
BAD = {'empty': b'', 'binary': bytes(range(256)), 'half': b'{"numbers": ', 'null': b'null', 'number': b'3',
       'text': b'"done"', 'list': b'[{}]', 'empty object': b'{}', 'nested': b'[' * 100000,
       'not utf-8': b'{"a": "\xff"}',
       'numbers a text': b'{"numbers": "x", "versions": 3, "data": [], "files": 0}', 'digits': b'9' * 5000}

torch.set_num_threads(1)


def shared(name: str) -> Path:
    """A file or folder of the shared material; the test is skipped where it is absent."""
    if not (SHARED / name).exists():
        pytest.skip(f'no shared/{name} beside the repository')
    return SHARED / name


@pytest.fixture(autouse=True, scope='session')
def _plain_configs():
    """mmengine lays a config out as text half a dozen times a run, which takes longer than a tiny run's steps."""
    laid_out = mmengine.config.config.FormatCode
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    yield
    mmengine.config.config.FormatCode = laid_out


@pytest.fixture(autouse=True)
def _quiet():
    """mmdet's types are found by their bare names; neither mmengine's log nor others' deprecations fill the output.

    What the kit says is there for caplog, whoever has shown it before.
    """
    init_default_scope('mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')
    MessageHub.get_current_instance().update_info('epoch', 0)   # pictures are seeded by it, also outside of a runner
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='mmengine|mmdet|mmcv|torch')
        warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
        yield


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
    """A made set of 8 training, 4 test and 3 validation images."""
    return prepare('shapes', cache=tmp_path_factory.mktemp('data'),
                   shapes=ShapesSpec(train_images=8, test_images=4, val_images=3))


@pytest.fixture(scope='session')
def tiny():
    """The profile `mini` with 64x64 images, the narrowest networks and one epoch: a step takes a tenth of a second.

    As at `small`, the teacher looks at pictures beside the student, and its features are not scaled: see `bed`.
    """
    return replace(PROFILES['mini'], image_px=(64, 64), batch_size=2, epochs={'student': 1}, student=Network(18, 8),
                   teacher=Network(18, 16), neck_channels=64, head_convs=1, fc_channels=16, proposals=20, workers=0,
                   shipped='', arm='inherit', reference_rms=None, keep_features=False)


@pytest.fixture(scope='session')
def bed(tiny):
    """`tiny` with what `mini` has beyond it: teachers that may be shipped, kept and scaled features, students that
    start alone."""
    mini = PROFILES['mini']
    return replace(tiny, shipped='data/teachers/tiny', arm=mini.arm, reference_rms=mini.reference_rms,
                   keep_features=mini.keep_features)


@pytest.fixture
def store(tiny, dataset, tmp_path):
    """An empty store of the tiny profile."""
    return Store(tiny, dataset, tmp_path / 'results')


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
