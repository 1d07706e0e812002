"""verify.py: what is recomputed, what cannot be, and that each kind of disagreement is named with both values."""
import shutil

import pandas as pd
import pytest

from amdlib.errors import RunError, SettingError
from amdlib.files import read_json, write_json
from amdlib.runs import calibrate, evidence
from amdlib.runs.keeping import keep
from amdlib.runs.run import Run, table_runs
from amdlib.show import tables, verify
from amdlib.show.verify import DISAGREES, NOT_HERE, RECOMPUTED, lines, told

from .records import finish


def _found(store, count):
    truth = read_json(store.dataset.test_ann)['annotations'][:count]
    return [{**{key: one[key] for key in ('image_id', 'category_id', 'bbox')}, 'score': 0.9 - i / 100}
            for i, one in enumerate(truth)]


@pytest.fixture
def made(store):
    """A store with the runs of Table VI, one seed, and the table; teacher, full, within."""
    runs = [Run.of('faster_rcnn-teacher', store.profile), *table_runs('table6', store.profile)]
    for i, run in enumerate(runs):
        finish(store, run, _found(store, 4 - i), id=run.id)
        folder = store.run_folder(run)
        record = read_json(folder / 'record.json')
        write_json(folder / 'record.json', {**record, **evidence.of(folder, record['numbers'])})
    tables.Comparison('table6', store, runs[1:]).write()
    return store, runs


def state_of(findings, file, field):
    (found,) = [one for one in findings if one.file.startswith(file) and one.field == field]
    return found.state


def disagreeing(store, *words, **more):
    return [str(one) for one in verify.verify(store, *words, **more) if one.state == DISAGREES]


def edit(folder, **changes):
    write_json(folder / 'record.json', {**read_json(folder / 'record.json'), **changes})


@pytest.mark.parametrize('jobs', [1, 2])
def test_all_that_is_here_is_recomputed(made, jobs):
    store, runs = made
    found = verify.verify(store, jobs=jobs)
    assert {one.state for one in found} == {RECOMPUTED}
    # data; 12 numbers a run, weights, detections; two teachers; of the table six metrics: value and sd of two lines,
    # difference (of one line) and its interval
    of_table = sum(one.count for one in found if one.file == 'table6.csv')
    assert told(found) == f'{1 + 3 * (12 + 2) + 2 + of_table} recomputed, 0 not: their evidence is not here, 0 disagree'
    cells = pd.read_csv(store.folder / 'table6.csv')
    assert of_table == 3 * len(cells) + 2 * cells.low.notna().sum()
    assert cells.low.notna().any()
    assert lines(found) == []


def test_a_number_that_was_edited_is_named_with_both_values(made):
    store, runs = made
    folder = store.run_folder(runs[1])
    numbers = read_json(folder / 'record.json')['numbers']
    edit(folder, numbers={**numbers, 'mAP': 99.9})
    found = disagreeing(store)
    name = 'runs/faster_rcnn-amd-s0/record.json'
    assert f'{name}: mAP: disagrees: recorded 99.9, by detections.json.gz {numbers["mAP"]}' in found
    assert f'{name}: numbers: disagrees: they are not those of numbers_digest' in found
    assert [line for line in found if line.startswith('table6.csv')][0].startswith(
        'table6.csv: faster_rcnn amd mAP ours: disagrees: ')
    digest = evidence.numbers_digest({**numbers, 'mAP': 99.9})
    edit(folder, numbers_digest=digest)     # a forger makes the digest fit; the detections still tell
    assert any('recorded 99.9' in line for line in disagreeing(store, [runs[1].id]))


@pytest.mark.parametrize(('file', 'content', 'told_of'), [
    ('weights.pth', b'x', 'weights_sha256: disagrees: recorded '),
    ('detections.json.gz', None, 'mAP: disagrees: recorded '),
    ('detections.json.gz', b'cut', 'numbers: disagrees: detections.json.gz cannot be evaluated: '),
    ('record.json', b'{"half": ', 'record: disagrees: Expecting value'),
    ('record.json', b'[1]', 'record: disagrees: '), ('record.json', b'{}', 'record: disagrees: it holds no numbers')])
def test_files_that_are_others_are_named(made, file, content, told_of):
    store, runs = made
    path = store.run_folder(runs[2]) / file
    if content is None:
        write_json(path, _found(store, 1)[:0])
    else:
        path.write_bytes(content)
    found = disagreeing(store)
    assert any(line.startswith(f'runs/{runs[2].id}/record.json: {told_of}') for line in found), found


def test_another_teacher_is_named(made):
    store, runs = made
    edit(store.run_folder(runs[1]), teacher={'id': runs[0].id, 'weights_sha256': 'f' * 64})
    (line,) = disagreeing(store)
    assert line.startswith(f'runs/{runs[1].id}/record.json: teacher: disagrees: it learned from ffffffffffff, ')
    shutil.rmtree(store.run_folder(runs[0]))
    found = verify.verify(store)
    assert state_of(found, f'runs/{runs[1].id}/', 'teacher') == NOT_HERE


@pytest.mark.parametrize('column', ['ours', 'difference', 'low', 'high'])
def test_a_cell_of_a_table_that_was_edited_is_named(made, column):
    store, _ = made
    cells = pd.read_csv(store.folder / 'table6.csv')
    at = cells.index[(cells.row == 'amd-within') & (cells.metric == 'mAP')][0]
    before = cells.loc[at, column]
    cells.loc[at, column] = before + 0.00002
    cells.to_csv(store.folder / 'table6.csv', index=False)
    (line,) = disagreeing(store)
    assert line.startswith(f'table6.csv: faster_rcnn amd-within mAP {column}: disagrees: {cells.loc[at, column]} here')


def test_of_committed_records_the_rest_is_not_here_and_never_called_verified(made):
    store, runs = made
    keep(store)
    shutil.rmtree(store.folder / 'runs')
    found = verify.verify(store, committed=True)
    for run, state in zip(runs, (RECOMPUTED, RECOMPUTED, NOT_HERE), strict=True):   # rows of Table I have them
        assert state_of(found, f'records/{run.id}/', 'numbers') == state
    assert {one.state for one in found if one.field == 'weights_sha256'} == {NOT_HERE}
    assert state_of(found, 'table6.csv', 'numbers') == RECOMPUTED       # values, from the records
    told_lines = lines(found)
    assert any(line.startswith('evidence not here: detections, for numbers of records/faster_rcnn-amd-within-s0/')
               for line in told_lines)
    assert not any(DISAGREES in line for line in told_lines)
    assert '0 disagree' in told(found)


def test_data_that_are_others_are_named_and_numbers_then_not_recomputed(made):
    store, runs = made
    annotations = read_json(store.dataset.test_ann)
    annotations['annotations'][0]['bbox'][0] += 1
    before = store.dataset.test_ann.read_text()
    try:
        write_json(store.dataset.test_ann, annotations)
        found = verify.verify(store)
    finally:
        store.dataset.test_ann.write_text(before)
    assert state_of(found, 'data set', 'fingerprint') == DISAGREES
    for run in runs:
        edit(store.run_folder(run), data={'fingerprint': 'another', 'name': 'x', 'notes': []})
    found = verify.verify(store, [runs[0].id])
    assert state_of(found, f'runs/{runs[0].id}/', 'numbers') == NOT_HERE


def test_runs_and_tables_may_be_chosen(made):
    store, runs = made
    found = verify.verify(store, [runs[0].id])
    assert {one.file for one in found} == {f'data set {store.dataset.name}', f'runs/{runs[0].id}/record.json'}
    found = verify.verify(store, names=['table6'])
    assert {one.file for one in found if 'record' in one.file} == {f'runs/{run.id}/record.json' for run in runs[1:]}
    assert 'table6.csv' in {one.file for one in found}
    with pytest.raises(RunError, match='no-such-run: no record in .*; here are faster_rcnn-amd-s0'):
        verify.verify(store, ['no-such-run'])
    with pytest.raises(RunError, match='no table1.csv here; make it with make reproduce-table1'):
        verify.verify(store, names=['table1'])
    with pytest.raises(SettingError, match='unknown table'):
        verify.verify(store, names=['table9'])


def test_a_factor_is_recomputed_and_must_be_the_best(made):
    store, runs = made
    line = {'group': 'faster_rcnn', 'arm': 'alone', 'method': 'amd', 'seeds': '100', 'data': store.dataset.fingerprint}
    numbers = [read_json(store.run_folder(run) / 'record.json')['numbers']['mAP'] for run in runs[1:]]
    made_lines = pd.DataFrame([
        {**line, 'factor': factor, 'val_map': value, 'chosen': value == max(numbers), 'runs': run.id}
        for factor, value, run in zip((0.1, 1.0), numbers, runs[1:], strict=True)])
    calibrate.write(store, made_lines[list(calibrate.COLUMNS)])
    assert disagreeing(store) == []
    made_lines.val_map += [0, 1.0]
    made_lines.chosen = ~made_lines.chosen
    calibrate.write(store, made_lines[list(calibrate.COLUMNS)])
    found = disagreeing(store)
    assert any('faster_rcnn alone amd 1: disagrees' in line for line in found)


@pytest.mark.parametrize('content', [b'', b'\xff\x00\xfe', b'a,b\n1,2\n', b'table,runs\nVI,gone-s0\nVI\n'])
def test_damaged_tables_are_named_and_hide_nothing(made, content):
    store, runs = made
    names = {'table6.csv', 'calibration.csv', 'fig4.csv', 'significance.csv', 'bed.csv'}
    for name in names:
        (store.folder / name).write_bytes(content)
    found = verify.verify(store)
    assert state_of(found, f'runs/{runs[0].id}/', 'numbers') == RECOMPUTED
    bad = {one.file for one in found if one.state == DISAGREES}
    assert bad <= names
    assert {'calibration.csv', 'significance.csv', 'table6.csv'} <= bad
