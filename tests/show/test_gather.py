"""gather.py: halves of a study become one table; a mixture, a damaged file, two digits for one run are refused."""
import shutil
from dataclasses import replace

import pytest

from amdlib.errors import RunError
from amdlib.files import read_json, write_json
from amdlib.runs import evidence
from amdlib.runs.run import Run, table_runs
from amdlib.show import tables
from amdlib.show.gather import gather

from .records import finish

SEEDS = (0, 1)


def detected(store, count):
    truth = read_json(store.dataset.test_ann)['annotations'][:count]
    return [{**{key: one[key] for key in ('image_id', 'category_id', 'bbox')}, 'score': 0.9 - i / 100}
            for i, one in enumerate(truth)]


def make(store, run, count, **changes):
    finish(store, run, detected(store, count), id=run.id, format=2, threads=1, steps=4,
           machine={'cpu': 'one', 'instructions': 'AVX2'}, **changes)
    edit(store, run, **evidence.of(store.run_folder(run), read_json(store.run_folder(run) / 'record.json')['numbers']))


def edit(store, run, **changes):
    file = store.run_folder(run) / 'record.json'
    write_json(file, {**read_json(file), **changes})


@pytest.fixture(scope='module')
def halves(tiny, dataset, tmp_path_factory):
    """Two labs' folders with a seed each of Table VI, of one teacher; made once, copied for each test."""
    from amdlib.runs.store import Store
    home = tmp_path_factory.mktemp('labs')
    stores = [Store(tiny, dataset, home / name) for name in 'ab']
    for seed, store in zip(SEEDS, stores, strict=True):
        make(store, Run.of('faster_rcnn-teacher', tiny), 4)
        for i, run in enumerate(table_runs('table6', tiny, seeds=[seed])):
            make(store, run, 3 - i)
    return stores


@pytest.fixture
def labs(halves, tmp_path):
    for one in halves:
        shutil.copytree(one.results, tmp_path / one.results.name)
    return [replace(one, results=tmp_path / one.results.name) for one in halves]


@pytest.fixture
def seed_of(tiny):
    return lambda seed: table_runs('table6', tiny, seeds=[seed])


def files(store):
    return {path: path.read_bytes() for path in store.results.rglob('*')
            if path.is_file() and path.name not in ('.lock', '.hashes.json')}


def refused(labs, *told):
    """Nothing is taken, and each reason is told."""
    mine, theirs = labs
    before = files(mine)
    with pytest.raises(RunError) as error:
        gather([theirs.results], mine)
    assert files(mine) == before
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == len(told), lines
    for line, text in zip(lines, told, strict=True):
        assert text in line


def test_two_halves_become_one_table(labs, seed_of):
    mine, theirs = labs
    source = files(theirs)
    assert gather([theirs.results], mine) == sorted(seed_of(1), key=lambda run: run.id)
    found = mine.collect([*seed_of(0), *seed_of(1)])
    assert found.seed.tolist() == [0, 0, 1, 1]
    for run in seed_of(1):
        assert mine.record(run) == theirs.record(run)
    assert len(tables.tidy('table6', found))
    assert gather([theirs.results], mine) == []     # once more: all were here
    assert files(theirs) == source


def test_an_empty_folder_takes_all_teachers_first(labs, store, seed_of):
    made = gather([one.results for one in labs], store)
    assert len(made) == 1 + 4
    assert all(store.state(run).name == 'done' for run in made)


def test_what_lies_half_done_here_is_replaced(labs, seed_of):
    mine, theirs = labs
    run = seed_of(1)[0]
    folder = mine.run_folder(run)
    (folder / 'mmengine').mkdir(parents=True)
    (folder / 'mmengine' / 'epoch_1.pth').write_text('half')
    (folder / 'unfinished.json').write_text('{}')
    gather([theirs.results], mine)
    assert mine.state(run).name == 'done'
    assert not list(folder.glob('mmengine/*.pth'))


@pytest.mark.parametrize(('change', 'told'), [
    ({'settings_hash': '0' * 16, 'settings_key': '0' * 16}, 'is stale (made with other settings)'),
    ({'data': {'name': 'x', 'fingerprint': 'f' * 16}}, 'is stale (made with other data (ffffffffffffffff, now'),
    ({'code_fingerprint': 'f' * 16}, 'is stale (made with other code)'),
    ({'profile': 'paper'}, 'made with the profile paper'),
    ({'seed': 5}, 'no record of a run that can be told from it here'),
    ({'numbers_digest': '0' * 16}, 'is stale (its numbers are not those that were recorded)'),
    ({'numbers': {}}, 'no record of a run that can be told from it here')])
def test_a_mixture_is_refused(labs, seed_of, change, told):
    edit(labs[1], seed_of(1)[0], **change)
    refused(labs, told)


def test_a_seed_of_two_kinds_of_machine_is_refused_and_a_seed_of_each_is_not(labs, seed_of):
    mine, theirs = labs
    other = {'cpu': 'another', 'instructions': 'AVX512'}
    for run in seed_of(1):
        edit(theirs, run, machine=other)
    gather([theirs.results], mine)
    more = [run for run in table_runs('table1', mine.profile, 'faster_rcnn') if run.row.name == 'mgd']
    make(theirs, more[0], 2)
    edit(theirs, more[0], machine=other)
    refused(labs, 'faster_rcnn, seed 0: rows of 2 kinds of machine: ')


def test_numbers_that_do_not_follow_from_the_detections_are_refused(labs, seed_of):
    """Though record and digest agree with each other, and the hashes were remembered."""
    mine, theirs = labs
    run = seed_of(1)[0]
    numbers = {**theirs.record(run)['numbers'], 'mAP': 99.0}
    edit(theirs, run, numbers=numbers, numbers_digest=evidence.numbers_digest(numbers))
    refused(labs, f'{run.id}/record.json: mAP: disagrees: recorded 99.0, by detections.json.gz ')


def test_weights_that_were_exchanged_are_refused(labs, seed_of):
    (labs[1].run_folder(seed_of(1)[0]) / 'weights.pth').write_bytes(b'other')
    refused(labs, 'weights.pth is not the file that was recorded')


def test_two_digits_for_one_run_are_refused(labs, seed_of):
    mine, theirs = labs
    make(theirs, seed_of(0)[0], 1)
    refused(labs, f'{seed_of(0)[0].id}: made twice with different digits, in ')


def test_students_of_another_teacher_are_refused(labs, seed_of):
    mine, theirs = labs
    teacher = Run.of('faster_rcnn-teacher', mine.profile)
    weights = theirs.run_folder(teacher) / 'weights.pth'
    weights.write_bytes(weights.read_bytes() + b'x')
    from amdlib.files import sha256
    edit(theirs, teacher, weights_sha256=sha256(weights))
    for run in seed_of(1):
        edit(theirs, run, teacher={'id': teacher.id, 'weights_sha256': sha256(weights)})
    refused(labs, *[f'learned from another {teacher.id} than that in '] * 2)


def test_a_folder_without_runs_of_the_profile_says_so(labs, tmp_path):
    with pytest.raises(RunError, match='no records in it; expected a results folder with runs of the profile mini'):
        gather([tmp_path / 'none'], labs[0])
