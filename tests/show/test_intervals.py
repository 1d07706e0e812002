"""intervals.py: resampled once, kept by content, and those of stats."""
import pytest

from amdlib.errors import SettingError
from amdlib.evaluation import METRICS
from amdlib.files import read_json, write_json
from amdlib.runs.run import Run
from amdlib.runs.store import DETECTIONS
from amdlib.show import intervals
from amdlib.show.intervals import KEPT, OnImages
from amdlib.show.stats import Matches, paired


def found(store, score, count):
    """Some true boxes of the test set, and a false one."""
    truth = read_json(store.dataset.test_ann)['annotations']
    right = [{**{key: one[key] for key in ('image_id', 'category_id', 'bbox')}, 'score': score}
             for one in truth[:count]]
    return [*right, {**right[0], 'bbox': [0, 0, 9, 9], 'score': 0.5}]


@pytest.fixture
def runs(store):
    """Two runs of which nothing is read but their detections."""
    made = [Run.of('retinanet-baseline', store.profile), Run.of('retinanet-inherit', store.profile)]
    for run, count in zip(made, (2, 5), strict=True):
        store.run_folder(run).mkdir(parents=True)
        write_json(store.run_folder(run) / DETECTIONS, found(store, 0.9, count))
    return made


def test_an_interval_is_the_paired_bootstraps(store, runs):
    first, second = runs
    table = OnImages(store, runs, resamples=50).pair(second.id, first.id)
    matches = [Matches.of(store.dataset.test_ann, store.detections(run)) for run in (second, first)]
    by_hand = paired(*matches, resamples=50).set_index('metric')
    assert table.index.tolist() == list(METRICS)
    assert table.equals(by_hand.astype(float)[['difference', 'low', 'high']].rename_axis(None))


def test_a_pair_is_resampled_once_for_these_detections(store, runs, monkeypatch, caplog):
    pair = (runs[1].id, runs[0].id)
    table = OnImages(store, runs, resamples=20).pair(*pair)
    assert caplog.messages == [f'interval over test images, 1 of 1: {pair[0]} minus {pair[1]}']
    assert [path.name for path in store.folder.iterdir() if not path.name.startswith('.')] == ['runs']
    with monkeypatch.context() as patched:
        patched.setattr(intervals, 'paired', None)      # whoever asks again gets what was kept
        assert OnImages(store, runs, resamples=20).pair(*pair).equals(table)
    other = OnImages(store, runs, resamples=30).pair(*pair)
    write_json(store.run_folder(runs[1]) / DETECTIONS, found(store, 0.9, 3))
    assert not OnImages(store, runs, resamples=20).pair(*pair).equals(table)
    assert len(read_json(store.folder / KEPT)) == 3
    assert not other.low.equals(table.low)


def test_a_damaged_file_costs_time_alone(store, runs):
    pair = (runs[1].id, runs[0].id)
    table = OnImages(store, runs, resamples=20).pair(*pair)
    (store.folder / KEPT).write_text('{"half')
    assert OnImages(store, runs, resamples=20).pair(*pair).equals(table)


def test_runs_of_two_splits_are_no_pair(store, runs):
    other = Run.of('retinanet-baseline', store.profile, 0, {'split': 'val'})
    with pytest.raises(SettingError, match='evaluated on different splits'):
        OnImages(store, [*runs, other], resamples=20).pair(runs[0].id, other.id)
