"""Images without a box: what is asked of a data set is what happens in training."""
from dataclasses import replace

import pytest
from mmdet.registry import DATASETS

from amdlib.datasets import prepare, trained_images
from amdlib.runs.config import config, settings_hash
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.runs.train import train
from tests.datasets import layouts


@pytest.fixture
def small(tiny):
    return replace(tiny, name='small', data='folder', image_px=(64, 64), batch_size=1)


@pytest.fixture
def prepared(tmp_path):
    """Choice -> a set of three training pictures of which one has no box."""
    layouts.yolo(tmp_path / 'pets', layouts.PICTURES)
    return lambda **choice: prepare('folder', tmp_path / 'pets', tmp_path / 'cache', **choice)


@pytest.mark.parametrize(('negatives', 'trained'), [(None, 2), ('keep', 3), ('drop', 2)])
@pytest.mark.parametrize('row', ['retinanet-amd', 'faster_rcnn-teacher'])
def test_training_has_the_images_that_are_counted(small, prepared, negatives, trained, row):
    data = prepared(negatives=negatives)
    cfg = config(Run.of(row, small), data)
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == trained == len(
        trained_images(data.train_ann, data.negatives))
    assert len(DATASETS.build(cfg.test_dataloader.dataset)) == 2


def test_training_on_them_is_a_setting(small, prepared):
    run = Run.of('retinanet-amd', small)
    plain, kept, dropped = (settings_hash(config(run, prepared(negatives=negatives)))
                            for negatives in (None, 'keep', 'drop'))
    assert kept != plain == dropped


@pytest.mark.slow
@pytest.mark.parametrize('row', ['retinanet-amd', 'faster_rcnn-fgd'])
def test_an_epoch_with_images_without_a_box(small, prepared, tmp_path, row):
    store = Store(small, prepared(negatives='keep'), tmp_path / 'results')
    run = Run.of(row, small)
    assert train(run, store)['steps'] == 3
    scalars = store.scalars(run)
    assert scalars.loss.notna().all()
