import pytest

from .folders import make_coco, make_voc


@pytest.fixture
def coco(tmp_path):
    return make_coco(tmp_path / 'pets')


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path / 'Cells')
