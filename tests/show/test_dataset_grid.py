import cv2
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from amdlib.datasets import prepare
from amdlib.show import dataset_grid
from tests.datasets import layouts
from tests.datasets.folders import make_coco


def shown(figure):
    """The panels with a picture, by its name."""
    return {axis.get_title().split('\n')[0]: axis for axis in figure.axes if axis.images}


@pytest.fixture
def figure(tmp_path):
    layouts.yolo(tmp_path / 'pets', layouts.PICTURES)
    return dataset_grid.grid(prepare('folder', tmp_path / 'pets', tmp_path / 'cache'))


def test_pictures_of_each_split_are_drawn_with_their_boxes(figure):
    panels = shown(figure)
    assert set(panels) == {'ein Bild.jpg', 'tür/IMG 2.JPG', 'tür/leer.png', 'v.1.png', 'größe.jpeg'}
    assert panels['ein Bild.jpg'].get_title() == 'ein Bild.jpg\n64x48, 2 boxes'
    assert panels['tür/leer.png'].get_title().endswith('0 boxes')
    corners = [(box.get_x() + 0.5, box.get_y() + 0.5, box.get_width(), box.get_height())
               for box in panels['ein Bild.jpg'].patches if isinstance(box, Rectangle)]
    assert corners == [(3, 4, 20, 10), (30, 10, 34, 38)]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(layouts.CLASSES)
    colours = {text.get_text(): to_rgb(patch.get_facecolor()) for text, patch in zip(
        legend.get_texts(), legend.get_patches(), strict=True)}
    assert to_rgb(panels['v.1.png'].patches[0].get_edgecolor()) == colours['no']
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == ['train', 'test (reported)']


def test_large_pictures_are_drawn_small_and_crowds_dashed(tmp_path):
    root = make_coco(tmp_path / 'pets')
    dataset = prepare('folder', root, tmp_path / 'cache')
    image = root / 'train2017/train2017_2.png'
    cv2.imwrite(str(image), cv2.resize(cv2.imread(str(image)), (4000, 3000)))
    axis = shown(dataset_grid.grid(dataset))['train2017_2.png']
    assert max(axis.images[0].get_array().shape) == dataset_grid.LONGEST_PX
    assert [box.get_linestyle() for box in axis.patches] == ['--']


def test_pictures_stand_at_even_distances():
    assert dataset_grid._lines(1000) == [[0, 100, 200, 300, 400], [500, 600, 700, 800, 900]]
    assert dataset_grid._lines(7) == [[0, 1, 2, 3, 4], [5, 6]]
