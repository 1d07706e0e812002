"""keeping.py: what is kept of runs, and how a store reads it where the runs themselves are not."""
import shutil

import pandas as pd
import pytest

from amdlib.errors import RunError
from amdlib.files import read_json, write_json
from amdlib.runs.batch import run_missing
from amdlib.runs.keeping import keep
from amdlib.runs.run import Run
from amdlib.runs.store import MADE_ELSEWHERE, SCALARS
from amdlib.runs.train import train

from .conftest import NUMBERS

FOUND = [{'image_id': 1, 'category_id': 1, 'bbox': [1.5, 2.0, 3.0, 4.0], 'score': 0.123456}]


@pytest.fixture
def done(store, finish):
    """Writes runs that are done, teachers first, with what they found and logged."""
    def write(*runs):
        for run in runs:
            folder = finish(run, row=run.row.id, seed=run.seed, settings=run.settings, machine={}, id=run.id)
            write_json(folder / 'detections.json.gz', FOUND)
            (folder / SCALARS).write_text('{"step": 10, "loss": 1.23456789}\n{"step": 20, "loss": 1e-9}\n')
        return runs
    return write


@pytest.fixture
def runs(tiny, done):
    """Teacher, AMD with two seeds, a sweep's value."""
    amd = Run.of('retinanet-amd', tiny)
    return done(amd.teacher(), amd, Run.of('retinanet-amd', tiny, 1), Run.of('retinanet-amd', tiny, 0, {'phi': 0.5}))


def forget(store):
    shutil.rmtree(store.folder / 'runs')


def test_records_and_logs_are_kept_and_detections_of_table_1s_first_seed_alone(store, runs):
    teacher, amd, second, other = runs
    assert set(keep(store)) == set(runs)
    files = {path.relative_to(store.folder / 'records').as_posix() for path in store.folder.rglob('records/*/*')}
    assert files == {f'{run.id}/{name}' for run in runs for name in ('record.json', 'scalars.csv.gz')} | {
        f'{run.id}/detections.json.xz' for run in (teacher, amd)}
    assert read_json(store.kept_folder(amd) / 'record.json') == read_json(store.run_folder(amd) / 'record.json')
    before = {file: file.read_bytes() for file in store.folder.rglob('records/*/*')}
    (store.kept_folder(amd) / 'detections.json.gz').write_bytes(b'of another format')
    keep(store)
    assert {file: file.read_bytes() for file in store.folder.rglob('records/*/*')} == before


def test_a_store_with_kept_reads_them_where_the_runs_are_not(store, runs):
    teacher, amd, second, _ = runs
    keep(store)
    reading = store.with_kept()
    assert reading.state(amd).note == ''        # it is here
    assert reading.home(amd) == store.run_folder(amd)
    forget(store)
    assert [store.state(run).name for run in runs] == ['missing'] * 4
    assert [reading.state(run).name for run in runs] == ['done'] * 4
    assert reading.state(amd).note == MADE_ELSEWHERE
    records = reading.collect([amd, second])
    assert records.seed.tolist() == [0, 1]
    assert records.mAP.tolist() == [NUMBERS['mAP']] * 2
    assert reading.detections(amd) == FOUND
    assert reading.scalars(amd).equals(pd.DataFrame({'step': [10, 20], 'loss': [1.2346, 1e-9]}))
    assert [file.parent.name for file in reading.record_files('*amd*')] == sorted(run.id for run in runs[1:])
    assert store.record_files() == []


def test_detections_that_were_not_kept_say_how_to_make_them(store, runs):
    keep(store)
    forget(store)
    with pytest.raises(RunError, match='retinanet-amd-s1 was not made here and its detections were not kept: make it '
                                       'with python -m amdlib run retinanet-amd --profile mini --seed 1'):
        store.with_kept().detections(runs[2])


def test_a_kept_record_of_other_settings_does_not_count_and_is_dropped(store, runs, said):
    keep(store)
    forget(store)
    file = store.kept_folder(runs[1]) / 'record.json'
    write_json(file, {**read_json(file), 'code_fingerprint': '0' * 16})
    assert store.with_kept().state(runs[1]).name == 'missing'
    assert any(runs[1].id in line and 'dropped' in line for line in said(keep, store))
    assert not file.parent.exists()
    assert store.with_kept().state(runs[2]).name == 'done'


def test_a_student_does_not_count_without_its_teacher(store, runs):
    keep(store)
    forget(store)
    shutil.rmtree(store.kept_folder(runs[0]))
    assert store.with_kept().state(runs[1]).name != 'done'


def test_runs_that_do_not_count_are_not_kept(store, runs):
    file = store.run_folder(runs[1]) / 'record.json'
    write_json(file, {**read_json(file), 'settings_hash': '0' * 16, 'settings_key': '0' * 16})
    (store.run_folder(runs[2]) / 'record.json').write_text('{')
    assert set(keep(store)) == {runs[0], runs[3]}


def test_nothing_is_trained_from_kept_records(store, runs, monkeypatch):
    """A kept record is no run: training sees none, whatever store it is given."""
    keep(store)
    forget(store)
    asked = []

    def finished(run, store, force):
        asked.append(store.state(run).name)
        return {'numbers': NUMBERS}
    monkeypatch.setattr('amdlib.runs.train._finished', finished)
    train(runs[0], store.with_kept())
    monkeypatch.setattr('amdlib.runs.batch._Batch.go', lambda batch: asked.append(batch.waiting))
    run_missing(runs[1:], store.with_kept())
    assert asked == ['missing', [runs[0], *runs[1:]]]
