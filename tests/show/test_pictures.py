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


def test_feature_maps_are_multiples_of_their_mean_on_one_scale_with_their_contrast():
    shown = [_picture(1), _picture(2)]
    even, bright = torch.full((2, 4, 6), 7.0), torch.ones(2, 4, 6)
    bright[:, :2, :2] = 3.0         # the first box
    bright[:, :, 5] = 1000.0        # in the padding: does not count
    figure = pictures.feature_maps(shown, {'Teacher': even, 'AMD': bright})
    assert [axis.get_title() for axis in figure.axes[:3]] == ['image', 'Teacher', 'AMD']
    assert [axis.get_ylabel() for axis in figure.axes[:6:3]] == ['image 1', 'image 2']
    for axis, contrast in zip((figure.axes[i] for i in (1, 2, 4, 5)), ('1.00', '3.00') * 2, strict=True):
        values, extent = _shown(axis, 0)
        assert values[:, :5].mean() == pytest.approx(1)
        assert axis.get_images()[0].get_clim() == pytest.approx((20 / 28, 60 / 28))
        assert extent == (0, 48, 32, 0)
        assert axis.get_xlabel() == contrast
    assert 'Eq. 2' in figure.axes[-1].get_xlabel()
    assert len(figure.axes) == 7


def test_a_map_without_any_contrast_is_drawn():
    values, _ = _shown(pictures.feature_maps([_picture()], {'AMD': torch.ones(1, 4, 6)}).axes[1], 0)
    assert (values == 1).all()


def test_detections_are_right_or_wrong_and_what_is_missed_is_dashed():
    shown = [_picture(1), _picture(2)]
    found = [[{'bbox': [0.0, 0.0, 16.0, 15.0], 'score': 0.8, 'label': 'disc'},
              {'bbox': [0.0, 0.0, 16.0, 16.0], 'score': 0.9, 'label': 'disc'},       # found already by then
              {'bbox': [21.0, 5.0, 1.0, 1.0], 'score': 0.7, 'label': 'disc'},        # a ring
              {'bbox': [0.0, 0.0, 4.0, 4.0], 'score': 0.29, 'label': 'ring'}], []]
    figure = pictures.detections(shown, found, score=0.3)
    first, second = figure.axes
    dashed = [patch for patch in first.patches if patch.get_linestyle() == '--']
    assert [(patch.get_xy(), patch.get_width(), patch.get_height()) for patch in dashed] == [((21, 5), 1, 1)]
    drawn = {colour: [(patch.get_xy(), patch.get_height()) for patch in first.patches
                      if patch.get_edgecolor() == to_rgba(colour)] for colour in (pictures.RIGHT, pictures.WRONG)}
    assert drawn == {pictures.RIGHT: [((0, 0), 16)], pictures.WRONG: [((0, 0), 15), ((21, 5), 1)]}
    assert [text.get_text() for text in first.texts] == ['disc 0.90', 'disc 0.80', 'disc 0.70']
    assert (first.get_images()[0].get_array() == shown[0].rgb).all()
    assert [axis.get_title() for axis in figure.axes] == ['image 1: 1 of 2 found', 'image 2: 0 of 2 found']
    assert not second.texts
    assert first.get_xlim() == (0, 40)
    assert first.get_ylim() == (32, 0)


def test_ground_truth_has_its_classes():
    (axis,) = pictures.ground_truth([_picture(3)]).axes
    assert [text.get_text() for text in axis.texts] == ['disc', 'ring']
    assert axis.get_title() == 'image 3'


# ---- one picture at a time --------------------------------------------------------------------------------------

def test_maps_that_are_compared_share_a_scale_and_masks_are_orange():
    figure = pictures.maps({'one': torch.arange(6.).view(2, 3), 'other': torch.tensor([[7.0]]),
                            'masked': torch.tensor([[True, False]]), 'error': torch.tensor([[100.0, 200.0]])},
                           unlike=['error'])
    first, second, mask, error = [axis for axis in figure.axes if axis.get_title()]
    assert first.get_images()[0].get_array().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first.get_images()[0].get_clim() == second.get_images()[0].get_clim() == (0, 7)
    assert error.get_images()[0].get_clim() == (100, 200)
    (drawn,) = mask.get_images()
    assert [tuple(colour) for colour in drawn.cmap(drawn.norm(drawn.get_array()))[0]] == [
        to_rgba(charts.COLOURS['masked']), to_rgba('white')]
    assert len(figure.axes) == 4 + 2    # a colour bar for what is shared, one for the error
    assert (first.get_xlabel(), first.get_ylabel()) == ('column j', 'row i')
    assert list(first.get_xticks()) == [0, 1, 2]
    assert list(second.get_xticks()) == [0]


def test_mask_view_draws_attention_mask_and_shares_with_phi_marked():
    keep = torch.ones(4, 6)
    keep[1, 2] = 0
    coverage = pd.DataFrame({'phi': [0.5, 1.0, 2.0], 'masked_share': [0.5, 0.1, 0.0],
                             'inside_share': [0.4, 1.0, float('nan')], 'random_share': [0.3] * 3,
                             'random_sd': [0.05] * 3})
    left, _, middle, right = pictures.mask_view(_picture(), torch.full((4, 6), 0.5), keep, coverage, 1.0).axes
    assert left.get_images()[-1].get_array().tolist() == [[0.5] * 6] * 4
    assert np.argwhere(~np.ma.getmaskarray(np.ma.masked_invalid(middle.get_images()[-1].get_array()))).tolist() == [
        [1, 2]]
    share, inside, chance, marked = right.get_lines()
    assert list(chance.get_ydata()) == [30] * 3
    (band,) = right.collections
    assert band.get_datalim(right.transData).intervaly.tolist() == pytest.approx([20, 40])
    assert middle.get_xlabel() == '5 % masked, 0 % in boxes (chance 20 %)'
    assert list(share.get_ydata()) == [50, 10, 0]
    assert list(inside.get_ydata())[:2] == [40, 100]
    assert list(marked.get_xdata()) == [1, 1]
    assert '%' in right.get_ylabel()
    assert 'phi' in right.get_xlabel()


@pytest.mark.parametrize(('least', 'largest', 'ends'), [
    (0.6, 1.8, (0.5, 2)), (0.2, 1.5, (0.2, 5)), (1e-6, 3.0, (0.1, 10)), (0.0, 20.0, (0.05, 20))])
def test_the_mean_is_the_middle_of_the_colours_and_they_reach_as_far_as_the_map(least, largest, ends):
    coverage = pd.DataFrame({name: [0.5] for name in ('phi', 'masked_share', 'inside_share', 'random_share',
                                                      'random_sd')})
    left, *_ = pictures.mask_view(_picture(), torch.tensor([[least, largest]]), torch.ones(1, 2), coverage, 1.0).axes
    assert left.get_images()[-1].get_clim() == pytest.approx(ends)


def test_mask_grid_has_a_panel_a_setting_and_says_how_much_is_masked():
    half, none = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2)
    figure = pictures.mask_grid(_picture(), {'T = 1': {'phi = 1': half, 'phi = 2': none},
                                          'T = 2': {'phi = 1': none, 'phi = 2': none}})
    assert [axis.get_xlabel() for axis in figure.axes] == [
        '50 % masked\n0 % in boxes (chance 0 %)', *['0 % masked'] * 3]
    assert [axis.get_title() for axis in figure.axes[:2]] == ['phi = 1', 'phi = 2']
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ['T = 1', 'T = 2']
