"""plots.py: what a figure shows is what the table holds."""
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer

from amdlib import plots
from amdlib.amd import keep_mask
from amdlib.features import Picture, region_scores

matplotlib.use('Agg')
METHODS = {'fkd': ('FKD', 1.5, 2.2), 'mgd': ('MGD', -0.5, 3.6), 'amd': ('AMD', 2.25, 3.9)}   # label, gain, paper's gain


def _line(table, group, row, label, metric='mAP', difference=None, paper_difference=None, sd=float('nan')):
    return {'table': table, 'group': group, 'row': row, 'label': label, 'metric': metric, 'difference': difference,
            'paper_difference': paper_difference, 'sd': sd, 'ours': 20.0}


def _tidy(groups, sd=float('nan')):
    lines = [_line('I', group, row, label, metric, gain + (metric != 'mAP') * 50, paper, sd)
             for group in groups for row, (label, gain, paper) in METHODS.items() for metric in ('mAP', 'AP_S')]
    alone = [_line('I', group, row, row, sd=sd) for group in groups for row in ('teacher', 'baseline')]
    return pd.DataFrame(alone + lines)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close('all')


@pytest.mark.parametrize('groups', [['retinanet'], ['retinanet', 'reppoints', 'faster_rcnn']])
def test_a_panel_a_group_with_labelled_axes(groups):
    figure = plots.differences(_tidy(groups))
    assert [axis.get_title() for axis in figure.axes] == [
        {'retinanet': 'RetinaNet', 'reppoints': 'RepPoints', 'faster_rcnn': 'Faster R-CNN'}[group] for group in groups]
    assert figure.axes[0].get_ylabel() == 'mAP minus baseline (points)'
    for axis in figure.axes:
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ['FKD', 'MGD', 'AMD']
        assert axis.get_ylim() == figure.axes[0].get_ylim()   # panels can be compared by eye
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['here', 'paper (COCO)']


def test_bars_are_the_differences_of_map_alone():
    ours, paper = plots.differences(_tidy(['retinanet'])).axes[0].containers
    assert [bar.get_height() for bar in ours] == [1.5, -0.5, 2.25]
    assert [bar.get_height() for bar in paper] == [2.2, 3.6, 3.9]
    assert all(mine.get_x() < theirs.get_x() for mine, theirs in zip(ours, paper, strict=True))


def test_an_ablations_bars_are_its_arms_without_the_baseline():
    """The baseline is many points below the full method: beside it the arms would all look alike."""
    cells = pd.DataFrame([
        _line('II', 'retinanet', 'baseline', 'baseline', difference=-20.0, paper_difference=-3.9),
        _line('II', 'retinanet', 'amd', 'full'),
        _line('II', 'retinanet', 'amd-channel', 'channel only', difference=-0.5, paper_difference=-0.3),
        _line('II', 'retinanet', 'amd-allmasked', 'everything masked', difference=-2.0, paper_difference=float('nan'))])
    (axis,) = plots.differences(cells).axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ['channel\nonly', 'everything\nmasked']
    assert axis.get_ylabel() == 'mAP minus full (points)'
    ours, paper = axis.containers
    assert [bar.get_height() for bar in ours] == [-0.5, -2.0]
    assert paper[0].get_height() == -0.3 and np.isnan(paper[1].get_height())     # nothing is drawn for a missing one


def test_several_seeds_have_error_bars_and_say_what_they_are():
    figure = plots.differences(_tidy(['retinanet'], sd=0.3))
    (bars,) = [part for part in figure.axes[0].containers if isinstance(part, ErrorbarContainer)]
    (middle,) = bars[2]
    assert [tuple(line[:, 1]) for line in middle.get_segments()] == [
        pytest.approx((gain - 0.3, gain + 0.3)) for _, gain, _ in METHODS.values()]
    assert 'sd' in figure.legends[0].get_texts()[0].get_text()


def test_save_writes_both_files_and_the_same_data_gives_the_same_bytes(tmp_path):
    for stem in ('one', 'two'):
        plots.save(plots.differences(_tidy(['retinanet', 'reppoints'])), tmp_path / stem)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['one.png', 'one.svg', 'two.png', 'two.svg']
    assert (tmp_path / 'one.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    assert '<svg' in (tmp_path / 'one.svg').read_text()
    for suffix in ('png', 'svg'):
        assert (tmp_path / f'one.{suffix}').read_bytes() == (tmp_path / f'two.{suffix}').read_bytes()


def test_a_figure_leaves_matplotlibs_settings_as_they_were():
    before = dict(plt.rcParams)
    plots.differences(_tidy(['retinanet']))
    assert dict(plt.rcParams) == before


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
    pictures = [_picture(1), _picture(2)]
    attention = torch.rand(2, 4, 6) + 0.5
    figure = plots.attention_over_images(pictures, attention, keep_mask(attention, 1.0),
                                         region_scores(attention, pictures), 1.0)
    truth, heat, masked = figure.axes[:3]
    assert (truth.get_images()[0].get_array() == pictures[0].rgb).all()
    values, extent = _shown(heat, 1)
    assert np.allclose(values, attention[0]) and extent == (0, 48, 32, 0)
    covered, extent = _shown(masked, 1)
    assert (np.ma.getmaskarray(np.ma.masked_invalid(covered)) == (attention[0] <= 1).numpy()).all()
    assert extent == (0, 48, 32, 0)
    assert all(axis.get_xlim() == (0, 40) and axis.get_ylim() == (32, 0) for axis in figure.axes[:6])
    assert figure.axes[3].get_ylabel() == 'image 2' and masked.get_title() == 'masked where A > 1'
    assert figure.axes[-1].get_xlabel() == 'attention A (mean 1)'


def test_boxes_carry_their_class_and_their_score():
    pictures = [_picture(1)]
    attention = torch.full((1, 4, 6), 2.0)
    attention[0, :2, :2] = 0.04        # the first box; the second holds no position
    figure = plots.attention_over_images(pictures, attention, keep_mask(attention, 1.0),
                                         region_scores(attention, pictures), 1.0)
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes[:3]] == [
        ['disc', 'ring'], ['<0.1', '–'], []]
    corners = [(patch.get_xy(), patch.get_width(), patch.get_height()) for patch in figure.axes[2].patches]
    assert corners == [((0, 0), 16, 16), ((21, 5), 1, 1)]


def test_feature_maps_have_a_line_an_image_a_column_a_run_and_their_own_range():
    pictures = [_picture(1), _picture(2)]
    maps = {'Teacher': 10 * torch.rand(2, 4, 6) + 5, 'AMD': torch.rand(2, 4, 6)}
    maps['Teacher'][0, :, 5] = 1000.0     # in the padding: does not count
    figure = plots.feature_maps(pictures, maps)
    assert [axis.get_title() for axis in figure.axes[:3]] == ['image', 'Teacher', 'AMD']
    assert [axis.get_ylabel() for axis in figure.axes[:6:3]] == ['image 1', 'image 2']
    for axis in (figure.axes[i] for i in (1, 2, 4, 5)):
        values, extent = _shown(axis, 0)
        assert values[:, :5].min() == 0 and values[:, :5].max() == pytest.approx(1) and extent == (0, 48, 32, 0)
    assert 'Eq. 2' in figure.axes[-1].get_xlabel() and len(figure.axes) == 7     # one colour bar


def test_a_map_without_any_contrast_is_drawn():
    values, _ = _shown(plots.feature_maps([_picture()], {'AMD': torch.ones(1, 4, 6)}).axes[1], 0)
    assert (values == 0).all()


def test_mask_coverage_draws_shares_in_percent_beside_chance():
    lines = [{'level': level, 'stride_px': stride, 'phi': phi, 'masked_share': 0.5 - phi / 4, 'inside_share': phi / 2,
              'random_share': 0.25} for level, stride in ((0, 8.0), (1, 16.0), ('all', None)) for phi in (0.5, 1.0)]
    figure = plots.mask_coverage(pd.DataFrame(lines))
    share, inside = figure.axes
    assert [list(line.get_ydata()) for line in share.get_lines()] == [[37.5, 25.0]] * 3
    drawn, chance = inside.get_lines()[:2]
    assert list(drawn.get_ydata()) == [25.0, 50.0] and list(chance.get_ydata()) == [25.0, 25.0]
    assert chance.get_linestyle() == '--' and chance.get_color() == drawn.get_color()
    assert len({line.get_color() for line in share.get_lines()}) == 3
    assert all('phi' in axis.get_xlabel() and '%' in axis.get_ylabel() for axis in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        'level 0 (stride 8 px)', 'level 1 (stride 16 px)', 'all levels', 'as many at random']


def _sweep(sd=float('nan'), metrics=('mAP', 'mAR', 'masked_share')):
    return pd.DataFrame([{'value': value, 'metric': metric, 'ours': 10 * i + value, 'sd': sd}
                         for i, metric in enumerate(metrics) for value in (1.0, 0.5, 1.5)])


def test_sweep_draws_scores_to_the_left_and_the_masked_share_to_the_right_in_order():
    figure = plots.sweep(_sweep())
    scores, shares = figure.axes
    assert [[list(xy) for xy in line.get_xydata()] for line in scores.get_lines()] == [
        [[0.5, 0.5], [1, 1], [1.5, 1.5]], [[0.5, 10.5], [1, 11], [1.5, 11.5]]]
    (dashed,) = shares.get_lines()
    assert dashed.get_linestyle() == '--' and list(dashed.get_ydata()) == [20.5, 21, 21.5]
    assert 'phi' in scores.get_xlabel() and '%' in scores.get_ylabel() and 'masked' in shares.get_ylabel()
    assert len({line.get_color() for line in [*scores.get_lines(), dashed]}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['mAP', 'mAR', 'masked (right axis)']


def test_sweep_of_another_option_with_several_seeds():
    figure = plots.sweep(_sweep(sd=0.25, metrics=('mAP', 'mAR')), x_label='temperature T')
    (axis,) = figure.axes                                   # nothing to the right
    assert axis.get_xlabel() == 'temperature T'
    (middle,) = axis.containers[0][2]
    assert [tuple(line[:, 1]) for line in middle.get_segments()] == [(v - 0.25, v + 0.25) for v in (0.5, 1, 1.5)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['mAP ± sd', 'mAR ± sd']


# ---- one picture at a time --------------------------------------------------------------------------------------

def test_maps_show_their_values_on_scales_of_their_own():
    figure = plots.maps({'one': torch.arange(6.).view(2, 3), 'a single position': torch.tensor([[7.0]])})
    first, second = [axis for axis in figure.axes if axis.get_title()]
    assert first.get_images()[0].get_array().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first.get_images()[0].get_clim() == (0, 5)
    assert (first.get_xlabel(), first.get_ylabel()) == ('column j', 'row i')
    assert list(first.get_xticks()) == [0, 1, 2] and list(second.get_xticks()) == [0]


def test_lines_are_the_columns_told_apart_by_more_than_colour():
    curves = pd.DataFrame({f'level {i}': [i, i / 2] for i in range(1, 8)}, index=[0.5, 2.0])
    axis = plots.lines(curves, 'phi', 'share').axes[0]
    assert [line.get_label() for line in axis.get_lines()] == list(curves)      # none is left out
    assert axis.get_lines()[2].get_xydata().tolist() == [[0.5, 3], [2, 1.5]]
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.get_lines()}) == 7
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_ylim()[0]) == ('phi', 'share', 0)
    assert plots.lines(curves, 'step', 'loss', log_y=True).axes[0].get_yscale() == 'log'


def test_mask_view_draws_attention_mask_and_shares_with_phi_marked():
    keep = torch.ones(4, 6)
    keep[1, 2] = 0
    coverage = pd.DataFrame({'phi': [0.5, 1.0, 2.0], 'masked_share': [0.5, 0.1, 0.0],
                             'inside_share': [0.4, 1.0, float('nan')]})
    left, _, middle, right = plots.mask_view(_picture(), torch.full((4, 6), 0.5), keep, coverage, 1.0).axes
    assert left.get_images()[-1].get_array().tolist() == [[0.5] * 6] * 4
    assert np.argwhere(~np.ma.getmaskarray(np.ma.masked_invalid(middle.get_images()[-1].get_array()))).tolist() == [
        [1, 2]]
    share, inside, marked = right.get_lines()
    assert list(share.get_ydata()) == [50, 10, 0] and list(inside.get_ydata())[:2] == [40, 100]
    assert list(marked.get_xdata()) == [1, 1] and '%' in right.get_ylabel() and 'phi' in right.get_xlabel()


def test_mask_grid_has_a_panel_a_setting_and_says_how_much_is_masked():
    half, none = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2)
    figure = plots.mask_grid(_picture(), {'T = 1': {'phi = 1': half, 'phi = 2': none},
                                          'T = 2': {'phi = 1': none, 'phi = 2': none}})
    assert [axis.get_xlabel() for axis in figure.axes] == ['50 % masked', *['0 % masked'] * 3]
    assert [axis.get_title() for axis in figure.axes[:2]] == ['phi = 1', 'phi = 2']
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ['T = 1', 'T = 2']


# ---- one run ----------------------------------------------------------------------------------------------------

def _scalars(steps, distilled=True):
    """Detection 8 all along; the two levels' terms of AMD are 1 and 1, so the whole is 10."""
    terms = {'loss_cls': 5.0, 'loss_bbox': 3.0, **({'loss_amd_fpn_0': 1.0, 'loss_amd_fpn_1': 1.0} if distilled else {})}
    return pd.DataFrame([{'step': 10 * (i + 1), 'loss': sum(terms.values()), **terms} for i in range(steps)])


def test_losses_are_detection_and_the_sum_of_the_levels_over_steps():
    (axis,) = plots.losses(_scalars(12)).axes
    detection, distillation = axis.get_lines()
    assert list(detection.get_xdata()) == list(range(10, 130, 10))
    assert np.allclose(detection.get_ydata(), 8) and np.allclose(distillation.get_ydata(), 2)
    assert (detection.get_label(), distillation.get_label()) == ('detection', 'distillation')
    assert detection.get_color() != distillation.get_color() and distillation.get_linestyle() == '--'
    assert axis.get_yscale() == 'log' and 'step' in axis.get_xlabel() and 'loss' in axis.get_ylabel()


def test_losses_are_smoothed_over_five_logged_steps():
    scalars = _scalars(6, distilled=False).assign(loss=[1.0, 3.0, 5.0, 7.0, 9.0, 11.0])
    (line,) = plots.losses(scalars).axes[0].get_lines()
    assert list(line.get_ydata()) == [1, 2, 3, 4, 5, 7]


def test_losses_of_a_run_that_was_not_trained_are_an_empty_axis():
    figure = plots.losses(pd.DataFrame(columns=['step', 'loss']))
    assert not figure.axes[0].get_lines()
    figure.canvas.draw()    # and it can be shown


def test_detections_show_what_is_sure_enough_and_the_truth_dashed():
    pictures = [_picture(1), _picture(2)]
    found = [[{'bbox': [2.0, 3.0, 10.0, 5.0], 'score': 0.9, 'label': 'disc'},
              {'bbox': [0.0, 0.0, 4.0, 4.0], 'score': 0.29, 'label': 'ring'}], []]
    figure = plots.detections(pictures, found, score=0.3)
    first, second = figure.axes
    dashed = [patch for patch in first.patches if patch.get_linestyle() == '--']
    assert [(patch.get_xy(), patch.get_width(), patch.get_height()) for patch in dashed] == [
        ((0, 0), 16, 16), ((21, 5), 1, 1)]      # ground truth
    (drawn,) = [patch for patch in first.patches if patch.get_edgecolor() == to_rgba(plots.COLOURS['paper'])]
    assert (drawn.get_xy(), drawn.get_width(), drawn.get_height()) == ((2, 3), 10, 5)
    assert [text.get_text() for text in first.texts] == ['disc 0.90']
    assert (first.get_images()[0].get_array() == pictures[0].rgb).all()
    assert [axis.get_title() for axis in figure.axes] == ['a.png', 'a.png'] and not second.texts
    assert first.get_xlim() == (0, 40) and first.get_ylim() == (32, 0)     # the image, and no more
