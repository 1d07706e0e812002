"""pictures.py: what is drawn over an image lies where it belongs."""
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba

from amdlib.methods.amd import keep_mask
from amdlib.show import charts, pictures
from amdlib.show.coverage import region_scores
from amdlib.show.features import Picture

matplotlib.use('Agg')


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close('all')


# ---- attention, masks and features over images ------------------------------------------------------------------

def _picture(image_id=1, padded_px=(32, 48)):
    generator = np.random.default_rng(image_id)
    return Picture(image_id, 'a.png', generator.integers(0, 255, (32, 40, 3), dtype=np.uint8),
                   torch.zeros(3, *padded_px), torch.tensor([[0., 0., 16., 16.], [21., 5., 22., 6.]]), ('disc', 'ring'))


def _shown(axis, image):
    """Of an axis one image, from below: values and extent."""
    part = axis.get_images()[image]
    return part.get_array(), tuple(part.get_extent())


def test_attention_lies_over_the_padded_image_and_the_axis_shows_the_image():
    shown = [_picture(1), _picture(2)]
    attention = torch.rand(2, 4, 6) + 0.5
    figure = pictures.attention_over_images(shown, attention, keep_mask(attention, 1.0),
                                         region_scores(attention, shown), 1.0)
    truth, heat, masked = figure.axes[:3]
    assert (truth.get_images()[0].get_array() == shown[0].rgb).all()
    values, extent = _shown(heat, 1)
    assert np.allclose(values, attention[0])
    assert extent == (0, 48, 32, 0)
    covered, extent = _shown(masked, 1)
    assert (np.ma.getmaskarray(np.ma.masked_invalid(covered)) == (attention[0] <= 1).numpy()).all()
    assert extent == (0, 48, 32, 0)
    assert all(axis.get_xlim() == (0, 40) and axis.get_ylim() == (32, 0) for axis in figure.axes[:6])
    assert figure.axes[3].get_ylabel() == 'image 2'
    assert masked.get_title() == 'masked where A > 1'
    assert figure.axes[-1].get_xlabel() == 'attention A (mean 1)'


def test_boxes_carry_their_class_and_their_score():
    shown = [_picture(1)]
    attention = torch.full((1, 4, 6), 2.0)
    attention[0, :2, :2] = 0.04        # the first box; the second holds no position
    figure = pictures.attention_over_images(shown, attention, keep_mask(attention, 1.0),
                                         region_scores(attention, shown), 1.0)
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes[:3]] == [
        ['disc', 'ring'], ['<0.1', '–'], []]
    corners = [(patch.get_xy(), patch.get_width(), patch.get_height()) for patch in figure.axes[2].patches]
    assert corners == [((0, 0), 16, 16), ((21, 5), 1, 1)]


def test_feature_maps_have_a_line_an_image_a_column_a_run_and_their_own_range():
    shown = [_picture(1), _picture(2)]
    maps = {'Teacher': 10 * torch.rand(2, 4, 6) + 5, 'AMD': torch.rand(2, 4, 6)}
    maps['Teacher'][0, :, 5] = 1000.0     # in the padding: does not count
    figure = pictures.feature_maps(shown, maps)
    assert [axis.get_title() for axis in figure.axes[:3]] == ['image', 'Teacher', 'AMD']
    assert [axis.get_ylabel() for axis in figure.axes[:6:3]] == ['image 1', 'image 2']
    for axis in (figure.axes[i] for i in (1, 2, 4, 5)):
        values, extent = _shown(axis, 0)
        assert values[:, :5].min() == 0
        assert values[:, :5].max() == pytest.approx(1)
        assert extent == (0, 48, 32, 0)
    assert 'Eq. 2' in figure.axes[-1].get_xlabel()
    assert len(figure.axes) == 7


def test_a_map_without_any_contrast_is_drawn():
    values, _ = _shown(pictures.feature_maps([_picture()], {'AMD': torch.ones(1, 4, 6)}).axes[1], 0)
    assert (values == 0).all()


def test_detections_show_what_is_sure_enough_and_the_truth_dashed():
    shown = [_picture(1), _picture(2)]
    found = [[{'bbox': [2.0, 3.0, 10.0, 5.0], 'score': 0.9, 'label': 'disc'},
              {'bbox': [0.0, 0.0, 4.0, 4.0], 'score': 0.29, 'label': 'ring'}], []]
    figure = pictures.detections(shown, found, score=0.3)
    first, second = figure.axes
    dashed = [patch for patch in first.patches if patch.get_linestyle() == '--']
    assert [(patch.get_xy(), patch.get_width(), patch.get_height()) for patch in dashed] == [
        ((0, 0), 16, 16), ((21, 5), 1, 1)]      # ground truth
    (drawn,) = [patch for patch in first.patches if patch.get_edgecolor() == to_rgba(charts.COLOURS['paper'])]
    assert (drawn.get_xy(), drawn.get_width(), drawn.get_height()) == ((2, 3), 10, 5)
    assert [text.get_text() for text in first.texts] == ['disc 0.90']
    assert (first.get_images()[0].get_array() == shown[0].rgb).all()
    assert [axis.get_title() for axis in figure.axes] == ['a.png', 'a.png']
    assert not second.texts
    assert first.get_xlim() == (0, 40)
    assert first.get_ylim() == (32, 0)


# ---- one picture at a time --------------------------------------------------------------------------------------

def test_maps_show_their_values_on_scales_of_their_own():
    figure = pictures.maps({'one': torch.arange(6.).view(2, 3), 'a single position': torch.tensor([[7.0]])})
    first, second = [axis for axis in figure.axes if axis.get_title()]
    assert first.get_images()[0].get_array().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first.get_images()[0].get_clim() == (0, 5)
    assert (first.get_xlabel(), first.get_ylabel()) == ('column j', 'row i')
    assert list(first.get_xticks()) == [0, 1, 2]
    assert list(second.get_xticks()) == [0]


def test_mask_view_draws_attention_mask_and_shares_with_phi_marked():
    keep = torch.ones(4, 6)
    keep[1, 2] = 0
    coverage = pd.DataFrame({'phi': [0.5, 1.0, 2.0], 'masked_share': [0.5, 0.1, 0.0],
                             'inside_share': [0.4, 1.0, float('nan')]})
    left, _, middle, right = pictures.mask_view(_picture(), torch.full((4, 6), 0.5), keep, coverage, 1.0).axes
    assert left.get_images()[-1].get_array().tolist() == [[0.5] * 6] * 4
    assert np.argwhere(~np.ma.getmaskarray(np.ma.masked_invalid(middle.get_images()[-1].get_array()))).tolist() == [
        [1, 2]]
    share, inside, marked = right.get_lines()
    assert list(share.get_ydata()) == [50, 10, 0]
    assert list(inside.get_ydata())[:2] == [40, 100]
    assert list(marked.get_xdata()) == [1, 1]
    assert '%' in right.get_ylabel()
    assert 'phi' in right.get_xlabel()


def test_mask_grid_has_a_panel_a_setting_and_says_how_much_is_masked():
    half, none = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2)
    figure = pictures.mask_grid(_picture(), {'T = 1': {'phi = 1': half, 'phi = 2': none},
                                          'T = 2': {'phi = 1': none, 'phi = 2': none}})
    assert [axis.get_xlabel() for axis in figure.axes] == ['50 % masked', *['0 % masked'] * 3]
    assert [axis.get_title() for axis in figure.axes[:2]] == ['phi = 1', 'phi = 2']
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ['T = 1', 'T = 2']
