"""charts.py: what a chart shows is what the table holds."""
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from amdlib.show import charts

matplotlib.use('Agg')
METHODS = {'fkd': ('FKD', 1.5, 2.2), 'mgd': ('MGD', -0.5, 3.6), 'amd': ('AMD', 2.25, 3.9)}   # label, gain, paper's gain


def _line(table, group, row, label, metric='mAP', difference=None, paper_difference=None, sd=float('nan'),
          reference=None, question=''):
    half = sd if difference is not None else float('nan')
    return {'reference': reference or {'I': 'baseline'}.get(table, 'amd'), 'question': question,
            'low': difference - half if difference is not None else None,
            'high': difference + 2 * half if difference is not None else None, 'table': table,
            'group': group, 'row': row, 'label': label, 'metric': metric, 'difference': difference,
            'paper_difference': paper_difference, 'sd': sd, 'ours': 20.0}


def _tidy(groups, sd=float('nan'), **more):
    lines = [_line('I', group, row, label, metric, gain + (metric != 'mAP') * 50, paper, sd, **more)
             for group in groups for row, (label, gain, paper) in METHODS.items() for metric in ('mAP', 'AP_S')]
    alone = [_line('I', group, row, row, sd=sd) for group in groups for row in ('teacher', 'baseline')]
    return pd.DataFrame(alone + lines)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close('all')


@pytest.mark.parametrize('groups', [['retinanet'], ['retinanet', 'reppoints', 'faster_rcnn']])
def test_a_panel_a_group_with_labelled_axes(groups):
    figure = charts.differences(_tidy(groups))
    assert [axis.get_title() for axis in figure.axes] == [
        {'retinanet': 'RetinaNet', 'reppoints': 'RepPoints', 'faster_rcnn': 'Faster R-CNN'}[group] for group in groups]
    assert figure.axes[0].get_ylabel() == 'mAP minus baseline (points)'
    for axis in figure.axes:
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ['FKD', 'MGD', 'AMD']
        assert axis.get_ylim() == figure.axes[0].get_ylim()   # panels can be compared by eye
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        'here', 'paper (COCO, one run each)', 'chance alone, 95 %']


def _bars(axis):
    """Heights of the bars here and of the paper's, by the order of the lines."""
    bars = [bars[0] for bars in axis.containers if not isinstance(bars, ErrorbarContainer)]
    assert all(mine.get_x() < theirs.get_x() for mine, theirs in zip(bars[::2], bars[1::2], strict=True))
    return [bar.get_height() for bar in bars[::2]], [bar.get_height() for bar in bars[1::2]]


def test_bars_are_the_differences_of_map_alone_and_carry_their_values():
    (axis,) = charts.differences(_tidy(['retinanet'])).axes
    assert _bars(axis) == ([1.5, -0.5, 2.25], [2.2, 3.6, 3.9])
    assert [text.get_text() for text in axis.texts] == ['+1.5', '+2.2', '-0.5', '+3.6', '+2.2', '+3.9']


def test_an_ablations_bars_are_its_arms_without_the_baseline():
    """The baseline is many points below the full method: beside it the arms would all look alike."""
    cells = pd.DataFrame([
        _line('II', 'retinanet', 'baseline', 'baseline', difference=-20.0, paper_difference=-3.9),
        _line('II', 'retinanet', 'amd', 'full'),
        _line('II', 'retinanet', 'amd-channel', 'channel only', difference=-0.5, paper_difference=-0.3),
        _line('II', 'retinanet', 'amd-allmasked', 'same share, placed at random', difference=-0.0,
              paper_difference=float('nan'))])
    (axis,) = charts.differences(cells).axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ['channel only', 'same share,\nplaced at\nrandom']
    assert axis.get_ylabel() == 'mAP minus full (points)'
    ours, paper = _bars(axis)
    assert ours == [-0.5, 0]
    assert paper[0] == -0.3
    assert np.isnan(paper[1])
    # what is not in the paper is not a zero of its
    assert [text.get_text().strip() for text in axis.texts] == ['-0.5', '-0.3', '+0.0', 'not in the paper']


@pytest.mark.parametrize(('others', 'side'), [(5.0, 'bottom'), (-5.0, 'top')])
def test_what_the_paper_lacks_is_said_where_there_is_room(others, side):
    cells = pd.DataFrame([_line('I', 'retinanet', 'inherit', 'inherit', difference=-0.7, paper_difference=None),
                          _line('I', 'retinanet', 'mgd', 'MGD', difference=others, paper_difference=others)])
    (axis,) = charts.differences(cells).axes
    (said,) = [text for text in axis.texts if 'not in the paper' in text.get_text()]
    assert said.get_va() == side


@pytest.mark.parametrize(('question', 'words'), [
    ('B', 'here (95 % over seeds)'), ('A', 'here (95 % over test images)')])
def test_intervals_are_drawn_and_say_over_what_they_are(question, words):
    figure = charts.differences(_tidy(['retinanet'], sd=0.3, question=question))
    found = [part[2][0].get_segments()[0] for part in figure.axes[0].containers if isinstance(part, ErrorbarContainer)]
    assert [tuple(line[:, 1]) for line in found] == [
        pytest.approx((gain - 0.3, gain + 0.6)) for _, gain, _ in METHODS.values()]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == words
    assert ('of the test images' in texts[-1]) == (question == 'A')     # whose band leaves other runs out


@pytest.mark.parametrize('half', [0.1, 5.0])
def test_a_difference_within_chance_fills_no_frame(half):
    line = _line('II', 'retinanet', 'amd-channel', 'channel only', difference=0.05, paper_difference=0.1)
    cells = pd.DataFrame([{**line, 'low': 0.05 - half, 'high': 0.05 + half, 'question': 'B'}])
    (axis,) = charts.differences(cells).axes
    low, high = axis.get_ylim()
    bands = [patch.get_height() for patch in axis.patches if patch.get_alpha() == charts.CHANCE['alpha']]
    assert bands[0] == pytest.approx(2 * half)
    assert high - low >= max(2 * bands[0], charts.LEAST_SPAN)


def test_what_is_compared_with_another_start_says_so():
    cells = pd.concat([_tidy(['retinanet'], reference='inherit'),
                       pd.DataFrame([_line('I', 'retinanet', 'inherit', 'inherit', difference=5.0,
                                          paper_difference=float('nan'))])])
    assert charts.differences(cells).axes[0].get_ylabel() == 'mAP minus inherit or baseline (points)'


def test_intervals_of_planned_comparisons_stand_below_each_other():
    lines = pd.DataFrame({'comparison': ['AMD over MGD', 'AMD over inherit'], 'difference': [0.1, 2.0],
                          'low': [-0.4, 1.0], 'high': [0.6, 3.0], 'verdict': ['not resolved', 'better']})
    (axis,) = charts.intervals(lines, 'difference in mAP').axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ['AMD over MGD', 'AMD over inherit']
    assert axis.get_xlabel() == 'difference in mAP'
    (drawn,) = axis.containers
    assert drawn[0].get_xdata().tolist() == [0.1, 2.0]
    (middle,) = drawn[2]
    assert [tuple(line[:, 0]) for line in middle.get_segments()] == [pytest.approx((-0.4, 0.6)), pytest.approx((1, 3))]
    assert axis.yaxis_inverted()    # the first on top
    assert [text.get_text() for text in axis.texts] == ['+0.10 [-0.40, +0.60]  not resolved',
                                                        '+2.00 [+1.00, +3.00]  better']
    assert [(patch.get_x(), patch.get_width()) for patch in axis.patches] == [(-0.5, 1), (-1, 2)]   # chance alone


def test_save_writes_both_files_and_the_same_data_gives_the_same_bytes(tmp_path):
    for stem in ('one', 'two'):
        charts.save(charts.differences(_tidy(['retinanet', 'reppoints'])), tmp_path / stem)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['one.png', 'one.svg', 'two.png', 'two.svg']
    assert (tmp_path / 'one.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    assert '<svg' in (tmp_path / 'one.svg').read_text()
    for suffix in ('png', 'svg'):
        assert (tmp_path / f'one.{suffix}').read_bytes() == (tmp_path / f'two.{suffix}').read_bytes()


def test_a_figure_leaves_matplotlibs_settings_as_they_were():
    before = dict(plt.rcParams)
    charts.differences(_tidy(['retinanet']))
    assert dict(plt.rcParams) == before


# ---- curves -----------------------------------------------------------------------------------------------------

def test_mask_coverage_draws_shares_in_percent_beside_chance():
    lines = [{'level': level, 'stride_px': stride, 'phi': phi, 'masked_share': 0.5 - phi / 4, 'inside_share': phi / 2,
              'random_share': 0.25, 'random_sd': 0.01}
             for level, stride in ((0, 8.0), (1, 16.0), ('all', None)) for phi in (0.5, 1.0)]
    figure = charts.mask_coverage(pd.DataFrame(lines))
    share, inside = figure.axes
    assert [list(line.get_ydata()) for line in share.get_lines()] == [[37.5, 25.0]] * 3
    drawn, chance = inside.get_lines()[:2]
    assert list(drawn.get_ydata()) == [25.0, 50.0]
    assert list(chance.get_ydata()) == [25.0, 25.0]
    assert chance.get_linestyle() == '--'
    assert chance.get_color() == drawn.get_color()
    assert len({line.get_color() for line in share.get_lines()}) == 3
    assert all('phi' in axis.get_xlabel() and '%' in axis.get_ylabel() for axis in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        'level 0 (stride 8 px)', 'level 1 (stride 16 px)', 'all levels', 'as many at random ± 2 sd']


def _sweep(half=float('nan'), metrics=('mAP', 'mAR', 'masked_share')):
    return pd.DataFrame([{'value': value, 'metric': metric, 'ours': 10 * i + value, 'reference': 1.0, 'question': 'B',
                          'difference': value - 1 or float('nan'), 'low': value - 1 - half if value != 1 else None,
                          'high': value - 1 + 2 * half if value != 1 else None}
                         for i, metric in enumerate(metrics) for value in (1.0, 0.5, 1.5)]).astype(
                             {'low': float, 'high': float})


def test_sweep_has_an_axis_a_metric_with_values_in_order():
    figure = charts.sweep(_sweep())
    assert [axis.get_ylabel() for axis in figure.axes] == ['mAP (%)', 'mAR (%)', 'masked (%)']
    for i, axis in enumerate(figure.axes):
        assert [list(xy) for xy in axis.get_lines()[0].get_xydata()] == [[v, 10 * i + v] for v in (0.5, 1, 1.5)]
        assert [text.get_text() for text in axis.texts] == [f'{10 * i + v:.1f}' for v in (0.5, 1, 1.5)]
    scores, _, masked = figure.axes
    assert 'phi' in masked.get_xlabel()
    assert masked.get_lines()[0].get_color() == charts.COLOURS['masked']
    assert not figure.legends       # nothing is known of chance
    assert scores.get_ylim()[1] - scores.get_ylim()[0] >= charts.LEAST_SPAN


def test_sweep_of_another_option_with_several_seeds_shows_chance():
    figure = charts.sweep(_sweep(half=0.25, metrics=('mAP', 'mAR')), x_label='temperature T')
    axis, last = figure.axes
    assert last.get_xlabel() == 'temperature T'
    (middle,) = axis.containers[0][2]
    assert [tuple(line[:, 1]) for line in middle.get_segments() if len(line) and line[0, 0] != 1] == [
        (v - 0.25, v + 0.5) for v in (0.5, 1.5)]        # at the row's own value there is nothing to compare
    (band,) = [part for part in axis.collections if part is not middle]
    limits = band.get_paths()[0].get_extents()
    assert (limits.y0, limits.y1) == (1 - 0.375, 1 + 0.375)     # half an interval about the row's own value
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        'chance alone around 1.0; bars: difference to it (95 % over seeds)']


def test_the_papers_one_known_point_stands_in_the_frame_or_at_its_edge():
    near, far = charts.sweep(_sweep(metrics=('mAP', 'mAR')), paper={'mAP': 1.25, 'mAR': 58.8}).axes
    assert [list(line.get_ydata()) for line in near.get_lines()[1:]] == [[1.25, 1.25]]
    assert near.texts[-1].get_text().endswith('1.2')
    assert len(far.get_lines()) == 1
    assert far.texts[-1].get_text().endswith('58.8 ↑')


def test_lines_are_the_columns_told_apart_by_more_than_colour():
    curves = pd.DataFrame({f'level {i}': [i, i / 2] for i in range(1, 8)}, index=[0.5, 2.0])
    axis = charts.lines(curves, 'phi', 'share').axes[0]
    assert [line.get_label() for line in axis.get_lines()] == list(curves)      # none is left out
    assert axis.get_lines()[2].get_xydata().tolist() == [[0.5, 3], [2, 1.5]]
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.get_lines()}) == 7
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_ylim()[0]) == ('phi', 'share', 0)
    assert charts.lines(curves, 'step', 'loss', log_y=True).axes[0].get_yscale() == 'log'


# ---- one run ----------------------------------------------------------------------------------------------------

def _scalars(steps, distilled=True):
    """Detection 8 all along; the two levels' terms of AMD are 1 and 1, so the whole is 10."""
    terms = {'loss_cls': 5.0, 'loss_bbox': 3.0, **({'loss_amd_fpn_0': 1.0, 'loss_amd_fpn_1': 1.0} if distilled else {})}
    return pd.DataFrame([{'step': 10 * (i + 1), 'loss': sum(terms.values()), **terms} for i in range(steps)])


def test_terms_of_a_method_that_looks_at_steps_are_known_by_their_shares():
    scalars = pd.DataFrame([{'loss': 4.0, 'loss_cls': 1.0, 'loss_kd_cls': 2.0, 'share_kd_cls': 0.5,
                             'loss_kd_fpn_0': 1.0, 'share_fpn_0': 0.25}])
    assert charts.distillation_terms(scalars) == ['loss_kd_cls', 'loss_kd_fpn_0']


def test_losses_are_detection_and_the_sum_of_the_levels_over_steps():
    (axis,) = charts.losses(_scalars(12)).axes
    detection, distillation = axis.get_lines()
    assert list(detection.get_xdata()) == list(range(10, 130, 10))
    assert np.allclose(detection.get_ydata(), 8)
    assert np.allclose(distillation.get_ydata(), 2)
    assert (detection.get_label(), distillation.get_label()) == ('detection', 'distillation')
    assert detection.get_color() != distillation.get_color()
    assert distillation.get_linestyle() == '--'
    assert axis.get_yscale() == 'log'
    assert 'step' in axis.get_xlabel()
    assert 'loss' in axis.get_ylabel()


def test_losses_are_smoothed_over_five_logged_steps():
    scalars = _scalars(6, distilled=False).assign(loss=[1.0, 3.0, 5.0, 7.0, 9.0, 11.0])
    (line,) = charts.losses(scalars).axes[0].get_lines()
    assert list(line.get_ydata()) == [1, 2, 3, 4, 5, 7]


def test_losses_of_a_run_that_was_not_trained_are_an_empty_axis():
    figure = charts.losses(pd.DataFrame(columns=['step', 'loss']))
    assert not figure.axes[0].get_lines()
    figure.canvas.draw()    # and it can be shown
