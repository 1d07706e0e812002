"""Every layout that is read: the same pictures and boxes come out, and the folder stays as it was."""
import pytest

from amdlib.datasets import prepare

from .folders import files_below
from .layouts import CLASSES, PICTURES, SPLIT, UNSPLIT, boxes_of, coco, joined


@pytest.fixture(scope='session')
def wanted(tmp_path_factory):
    """The fingerprint of the boxes as they are in COCO's own layout."""
    home = tmp_path_factory.mktemp('wanted')
    coco(home / 'pets', PICTURES)
    return boxes_of(prepare('folder', home / 'pets', home / 'cache'))


@pytest.mark.parametrize('layout', SPLIT)
def test_every_layout_gives_the_same_boxes(layout, wanted, tmp_path, caplog):
    root = tmp_path / 'Meine Bilder'
    SPLIT[layout](root, PICTURES)
    before = files_below(root)
    dataset = prepare('folder', root, tmp_path / 'cache')
    assert boxes_of(dataset) == wanted
    assert sorted(dataset.classes) == sorted(CLASSES)
    assert dataset.name == 'meine-bilder'
    assert files_below(root) == before
    assert f'{root}: ' in caplog.text     # what was found
    assert 'train: 1 image without a box: mmdet trains without it' in dataset.notes
    assert prepare('folder', root, tmp_path / 'cache') == dataset


@pytest.mark.parametrize('layout', UNSPLIT)
def test_every_layout_in_one_split_is_divided_alike(layout, tmp_path):
    """By the pictures' content: neither names nor order nor layout count."""
    found = []
    for number, make in enumerate((coco_in_one, UNSPLIT[layout])):
        root = tmp_path / f'{number}' / 'pets'
        make(root, joined(PICTURES))
        found.append(boxes_of(prepare('folder', root, tmp_path / f'{number}/cache', split=0.6)))
    assert found[0] == found[1]


def coco_in_one(root, splits):
    coco(root, {'train': splits['all']})
