"""evidence.py: a record whose files or numbers are others does not count, whoever asks; a file is hashed once."""
import json
import os
import shutil

import pytest

from amdlib.errors import RunError
from amdlib.files import read_json, sha256, write_json
from amdlib.runs import evidence
from amdlib.runs.run import Run
from amdlib.runs.train import train

from .conftest import NUMBERS


@pytest.fixture
def amd(tiny, finish):
    """A run that is done, with all that a record says of its evidence."""
    run = Run.of('retinanet-amd', tiny)
    folder = finish(run.teacher())
    folder = finish(run, **evidence.of(folder, NUMBERS))
    return run, folder


def edit_numbers(folder):
    record = read_json(folder / 'record.json')
    write_json(folder / 'record.json', {**record, 'numbers': {**record['numbers'], 'mAP': 99.9}})


def other_detections(folder):
    write_json(folder / 'detections.json.gz', [{'image_id': 1}])


def cut_detections(folder):
    (folder / 'detections.json.gz').write_bytes((folder / 'detections.json.gz').read_bytes()[:-4])


def one_byte(folder):
    (folder / 'weights.pth').write_bytes(b'x')


@pytest.mark.parametrize(('change', 'why'), [
    (edit_numbers, 'its numbers are not those that were recorded'),
    (other_detections, 'detections.json.gz is not the file that was recorded'),
    (cut_detections, 'detections.json.gz is not the file that was recorded'),
    (one_byte, 'weights.pth is not the file that was recorded')])
def test_a_run_whose_evidence_disagrees_is_not_done(store, amd, change, why):
    run, folder = amd
    assert store.state(run).name == 'done'      # what is remembered from this look hides no change
    change(folder)
    found = store.state(run)
    assert (found.name, found.why) == ('stale', why)
    with pytest.raises(RunError, match=why):
        store.collect([run])


def test_weights_of_two_runs_that_were_swapped_are_seen_in_both(store, amd, finish, tiny):
    run, folder = amd
    other = finish(Run.of('retinanet-mgd', tiny))
    (other / 'weights.pth').write_bytes(b'other')
    record = read_json(other / 'record.json')
    write_json(other / 'record.json', {**record, 'weights_sha256': sha256(other / 'weights.pth')})
    assert store.state(Run.of('retinanet-mgd', tiny)).name == 'done'
    for one, name in ((folder, 'a'), (other, 'b')):
        os.rename(one / 'weights.pth', folder / name)
    os.rename(folder / 'a', other / 'weights.pth')
    os.rename(folder / 'b', folder / 'weights.pth')
    assert [store.state(Run.of(f'retinanet-{name}', tiny)).why for name in ('amd', 'mgd')] == [
        'weights.pth is not the file that was recorded'] * 2


def test_a_student_does_not_learn_from_a_teacher_whose_weights_are_others(store, amd):
    run, _ = amd
    one_byte(store.run_folder(run.teacher()))
    assert store.state(run).why == 'its teacher is stale'


def test_a_record_from_before_it_held_its_evidence_counts(store, finish, tiny):
    run = Run.of('retinanet-teacher', tiny)
    other_detections(finish(run))
    assert store.state(run).name == 'done'


def test_a_file_is_hashed_once_and_again_when_it_changes(amd, monkeypatch):
    _, folder = amd
    hashed = []
    monkeypatch.setattr(evidence, 'sha256', lambda path: hashed.append(path.name) or sha256(path))
    file = folder / 'weights.pth'
    for _ in range(3):
        assert evidence.hash_of(file) == sha256(file)
        evidence._known.clear()     # as in another process
    assert hashed == ['weights.pth']
    file.write_bytes(b'another')
    assert evidence.hash_of(file) == sha256(file)
    assert hashed == ['weights.pth'] * 2


@pytest.mark.parametrize('content', ['', '[1]', '{"weights.pth": 1}', '{"weights.pth": [1, 2]}', '\0'])
def test_what_is_remembered_may_be_damaged(amd, content):
    _, folder = amd
    evidence._known.clear()
    (folder / evidence.REMEMBERED).write_text(content)
    assert evidence.hash_of(folder / 'weights.pth') == sha256(folder / 'weights.pth')
    assert json.loads((folder / evidence.REMEMBERED).read_text())['weights.pth'][3] == sha256(folder / 'weights.pth')


def test_a_trained_run_records_its_evidence(tiny, store):
    run = Run.of('retinanet-teacher', tiny)
    record, folder = train(run, store), store.run_folder(run)
    assert record['detections_sha256'] == sha256(folder / 'detections.json.gz')
    assert record['numbers_digest'] == evidence.numbers_digest(record['numbers'])
    assert evidence.disagreements(read_json(folder / 'record.json'), folder) == []
    shutil.copyfile(folder / 'detections.json.gz', folder / 'weights.pth')
    assert train(run, store)['weights_sha256'] == record['weights_sha256']      # it was made again
    assert store.state(run).name == 'done'
