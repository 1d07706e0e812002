"""folders.py: two results folders side by side, by hand."""
from dataclasses import replace

import pytest

from amdlib.errors import RunError
from amdlib.evaluation import METRICS
from amdlib.files import read_json, write_json
from amdlib.runs.keeping import keep
from amdlib.runs.run import Run
from amdlib.show.folders import compare_folders

from .records import finish

HERE, THERE = {'cpu': 'a', 'instructions': 'AVX2'}, {'cpu': 'b', 'instructions': 'AVX512'}


def numbers(value):
    return {**dict.fromkeys(METRICS, value), 'AP_L': None}


@pytest.fixture
def folders(store, tmp_path):
    """Two folders with three baselines: one alike, one from another machine, one that nothing tells apart."""
    other = replace(store, results=tmp_path / 'other')
    for seed, (first, second, machine) in enumerate(((10.0, 10.0, HERE), (10.0, 12.5, THERE), (10.0, 10.25, HERE))):
        run = Run.of('retinanet-baseline', store.profile, seed)
        finish(store, run, numbers=numbers(first), machine=HERE, threads=1)
        finish(other, run, numbers=numbers(second), machine=machine, threads=1)
    finish(store, Run.of('retinanet-baseline', store.profile, 7))
    return store, other


def test_two_folders_side_by_side(folders):
    store, other = folders
    both = compare_folders(store.results, other.results, store)
    lines = both.runs.set_index('run')
    assert lines.index.tolist() == [f'retinanet-baseline-s{seed}' for seed in (0, 1, 2)]
    assert lines.difference.tolist() == [0, 2.5, 0.25]
    assert lines.most.tolist() == [0, 2.5, 0.25]
    assert lines.other.tolist() == ['', 'machine', '']
    assert lines['same weights file'].all()
    notes = both.notes
    assert notes[0] == ('2 runs, nothing else different: 1 alike to the last digit; mAP moved by 0.25 at most '
                        '(retinanet-baseline-s2), 0.12 on average.')
    assert notes[1].startswith('1 run, other machine: 0 alike to the last digit; mAP moved by 2.50 at most')
    assert 'one of them is not reproducible' in notes[2]
    assert notes[3] == 'Only in A: retinanet-baseline-s7.'
    assert '| retinanet-baseline-s1 | 10.00   | 12.50   | +2.50' in repr(both)
    assert '<td>+2.50</td>' in both._repr_html_()


def test_what_else_differs_is_named(folders):
    store, other = folders
    file = other.run_folder(Run.of('retinanet-baseline', store.profile)) / 'record.json'
    record = read_json(file)
    write_json(file, {**record, 'settings_hash': 'x', 'versions': {'torch': '1'}, 'weights_sha256': 'w'})
    line = compare_folders(store.results, other.results, store).runs.iloc[0]
    assert line.other == 'settings, versions'
    assert not line['same weights file']


def test_kept_records_count_and_damaged_ones_do_not(folders):
    store, other = folders
    keep(other)
    (other.folder / 'runs').rename(other.folder / 'gone')
    assert len(compare_folders(store.results, other.results, store).runs) == 3
    (store.run_folder(Run.of('retinanet-baseline', store.profile)) / 'record.json').write_text('{')
    assert len(compare_folders(store.results, other.results, store).runs) == 2


def test_folders_without_a_run_in_common_say_what_is_there(folders, tmp_path):
    store, other = folders
    third = replace(store, results=tmp_path / 'third')
    finish(third, Run.of('reppoints-baseline', store.profile))
    with pytest.raises(RunError, match='share no run: retinanet-baseline-s0, .*; reppoints-baseline-s0'):
        compare_folders(store.results, third.results, store).runs   # noqa: B018
    with pytest.raises(RunError, match='none.mini: no records in it; expected a results folder with runs'):
        compare_folders(store.results, tmp_path / 'none', store)
