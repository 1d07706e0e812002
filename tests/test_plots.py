"""plots.py: what a figure shows is what the table holds."""
import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from amdlib import plots

matplotlib.use('Agg')
METHODS = {'fkd': ('FKD', 1.5, 2.2), 'mgd': ('MGD', -0.5, 3.6), 'amd': ('AMD', 2.25, 3.9)}   # label, gain, paper's gain


def _tidy(groups, sd=float('nan')):
    lines = [{'group': group, 'row': row, 'label': label, 'metric': metric, 'gain': gain + (metric != 'mAP') * 50,
              'paper_gain': paper, 'sd': sd, 'ours': 20.0}
             for group in groups for row, (label, gain, paper) in METHODS.items() for metric in ('mAP', 'AP_S')]
    alone = [{'group': group, 'row': row, 'label': row, 'metric': 'mAP', 'gain': None, 'paper_gain': None, 'sd': sd,
              'ours': 20.0} for group in groups for row in ('teacher', 'baseline')]
    return pd.DataFrame(alone + lines)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close('all')


@pytest.mark.parametrize('groups', [['retinanet'], ['retinanet', 'reppoints', 'faster_rcnn']])
def test_a_panel_a_group_with_labelled_axes(groups):
    figure = plots.gains(_tidy(groups))
    assert [axis.get_title() for axis in figure.axes] == [
        {'retinanet': 'RetinaNet', 'reppoints': 'RepPoints', 'faster_rcnn': 'Faster R-CNN'}[group] for group in groups]
    assert 'mAP' in figure.axes[0].get_ylabel() and 'gain' in figure.axes[0].get_ylabel()
    for axis in figure.axes:
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ['FKD', 'MGD', 'AMD']
        assert axis.get_ylim() == figure.axes[0].get_ylim()   # panels can be compared by eye
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['here', 'paper (COCO)']


def test_bars_are_the_gains_of_map_alone():
    ours, paper = plots.gains(_tidy(['retinanet'])).axes[0].containers
    assert [bar.get_height() for bar in ours] == [1.5, -0.5, 2.25]
    assert [bar.get_height() for bar in paper] == [2.2, 3.6, 3.9]
    assert all(mine.get_x() < theirs.get_x() for mine, theirs in zip(ours, paper, strict=True))


def test_several_seeds_have_error_bars_and_say_what_they_are():
    figure = plots.gains(_tidy(['retinanet'], sd=0.3))
    (bars,) = [part for part in figure.axes[0].containers if isinstance(part, ErrorbarContainer)]
    (middle,) = bars[2]
    assert [tuple(line[:, 1]) for line in middle.get_segments()] == [
        pytest.approx((gain - 0.3, gain + 0.3)) for _, gain, _ in METHODS.values()]
    assert 'sd' in figure.legends[0].get_texts()[0].get_text()


def test_save_writes_both_files_and_the_same_bytes_twice(tmp_path):
    figure = plots.gains(_tidy(['retinanet', 'reppoints']))
    for stem in ('one', 'two'):
        plots.save(figure, tmp_path / stem)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['one.png', 'one.svg', 'two.png', 'two.svg']
    assert (tmp_path / 'one.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    assert '<svg' in (tmp_path / 'one.svg').read_text()
    for suffix in ('png', 'svg'):
        assert (tmp_path / f'one.{suffix}').read_bytes() == (tmp_path / f'two.{suffix}').read_bytes()


def test_a_figure_leaves_matplotlibs_settings_as_they_were():
    before = dict(plt.rcParams)
    plots.gains(_tidy(['retinanet']))
    assert dict(plt.rcParams) == before
