"""store.py: where a run lies, whether its record counts and why not, and tables of runs."""
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from amdlib.errors import DataError, RunError, SettingError
from amdlib.files import ROOT, read_json, write_json
from amdlib.paper.profiles import PROFILES
from amdlib.runs import config, fingerprints
from amdlib.runs.progress import FILE as PROGRESS
from amdlib.runs.recipe import Means
from amdlib.runs.run import Run
from amdlib.runs.store import State, Store, open_store, read_scalars, told_machine
from tests.conftest import BAD

from .conftest import MINE, NUMBERS


@pytest.fixture
def amd(tiny):
    return Run.of('retinanet-amd', tiny)


def edit(folder, **changes):
    """Change a record in place; a key is taken out where its value is ...."""
    record = {**read_json(folder / 'record.json'), **changes}
    write_json(folder / 'record.json', {key: value for key, value in record.items() if value is not ...})


# ---- done, stale, missing ---------------------------------------------------------------------------------------

def test_a_run_without_traces_is_missing(store, amd):
    assert store.state(amd) == State('missing', 'never run')
    assert str(store.state(amd)) == 'missing (never run)'


def test_a_run_with_a_fitting_record_is_done(store, amd, finish):
    finish(amd.teacher())
    finish(amd)
    found = store.state(amd)
    assert (found.name, found.why, found.note, str(found)) == ('done', '', '', 'done')
    assert found.record['numbers'] == store.record(amd)['numbers'] == NUMBERS


def test_folders_are_named_after_profile_data_and_run(store, amd, dataset):
    assert store.run_folder(amd) == store.results / 'mini' / 'runs' / 'retinanet-amd-s0'
    assert store.weights(amd) == store.run_folder(amd) / 'weights.pth'
    other = Store(PROFILES['small'], replace(dataset, name='bccd'), Path('r'))
    assert other.folder == Path('r/small/bccd')


@pytest.mark.parametrize(('change', 'why'), [
    ({'settings_hash': '0' * 16, 'settings_key': '0' * 16}, 'made with other settings'),
    ({'files': {'backbone': 'f' * 64}}, 'made with other settings'),
    ({'data': {'fingerprint': 'd' * 16}}, 'made with other data (dddddddddddddddd, now '),
    ({'code_fingerprint': '0' * 16}, 'made with other code'),
    ({'teacher_sha': 'o' * 64}, 'its teacher was trained anew')])
def test_a_record_made_otherwise_is_stale_and_says_why(store, amd, finish, change, why):
    finish(amd.teacher())
    finish(amd, **change)
    found = store.state(amd)
    assert found.name == 'stale'
    assert found.why.startswith(why)
    assert not re.search(', (made|its)', found.why)     # nothing else is amiss
    assert str(found) == f'stale ({found.why})'
    assert found.record['numbers'] == NUMBERS


def test_other_settings_have_a_folder_of_their_own(store, amd, tiny, finish):
    finish(amd.teacher())
    finish(amd)
    assert store.state(Run.of('retinanet-amd', tiny, 0, {'phi': 0.7})).name == 'missing'
    assert store.state(Run.of('retinanet-amd', replace(tiny, lr=0.5))).name == 'stale'


def test_data_that_changed_make_stale_a_run_its_teacher_and_students(store, amd, dataset, finish):
    finish(amd.teacher())
    finish(amd)
    found = replace(store, dataset=replace(dataset, fingerprint='f' * 16)).state(amd)
    assert found.name == 'stale'
    assert f'made with other data ({dataset.fingerprint}, now {"f" * 16})' in found.why
    assert 'its teacher is stale' in found.why


@pytest.mark.parametrize('name', ['weights.pth', 'detections.json.gz'])
def test_a_record_without_what_it_speaks_of_is_stale(store, amd, finish, name):
    finish(amd.teacher())
    (finish(amd) / name).unlink()
    assert str(store.state(amd)) == f'stale ({name} is missing)'


def test_a_student_whose_teacher_is_gone_is_stale(store, amd, finish):
    finish(amd)
    assert str(store.state(amd)) == 'stale (its teacher is missing)'


@pytest.mark.parametrize('content', [b'{"settings_hash": ', b'', b'\xff\xfe'])
def test_a_record_that_cannot_be_read_is_stale(store, amd, finish, content):
    (finish(amd) / 'record.json').write_bytes(content)
    found = store.state(amd)
    assert found.name == 'stale'
    assert 'record.json cannot be read' in found.why


@pytest.mark.parametrize('left_out', ['files', 'data', 'code_fingerprint', 'teacher', 'versions', 'code', 'numbers'])
def test_a_record_of_another_format_is_stale(store, amd, finish, left_out):
    finish(amd.teacher())
    edit(finish(amd), **{left_out: ...})
    found = store.state(amd)
    assert found.name == 'stale'
    assert 'record of another format' in found.why


def test_a_record_of_another_place_is_looked_at_where_it_lies(store, amd, finish, tmp_path):
    finish(amd.teacher())
    moved = finish(amd).rename(tmp_path / 'elsewhere')
    assert store.state(amd).name == 'missing'
    assert store.state(amd, moved).name == 'done'


# ---- what a state costs -----------------------------------------------------------------------------------------

@pytest.fixture
def no_config(monkeypatch):
    """No Config may be made."""
    def config_made(*_, **__):
        pytest.fail('a Config was made')
    monkeypatch.setattr(config, 'config', config_made)


def test_the_state_of_what_is_done_needs_no_config(store, amd, finish, no_config):
    finish(amd.teacher())
    finish(amd)
    assert store.state(amd).name == 'done'
    assert store.state(Run.of('retinanet-mgd', amd.profile)).name == 'missing'
    assert len(store.collect([amd, amd.teacher()])) == 2


def test_another_key_with_the_same_hash_is_still_done(store, amd, finish, monkeypatch):
    """The code that makes a Config was tidied since."""
    finish(amd.teacher())
    folder = finish(amd, settings_key='0' * 16)
    assert store.state(amd).name == 'done'
    edit(folder, settings_key=...)      # an older record
    assert store.state(amd).name == 'done'
    edit(folder, settings_hash='0' * 16)
    assert store.state(amd).why == 'made with other settings'


# ---- versions and attested code ---------------------------------------------------------------------------------

def test_other_versions_are_noted_and_make_nothing_stale(store, amd, finish):
    now = fingerprints.versions()
    finish(amd.teacher())
    finish(amd, versions={**now, 'torch': '2.13.0'})
    found = store.state(amd)
    assert (found.name, found.note) == ('done', f'made with torch 2.13.0, now {now["torch"]}')
    assert store.collect([amd]).note.tolist() == [found.note]
    finish(amd, versions={**now, 'torch': '2.13.0'}, code_fingerprint='0' * 16)
    assert (store.state(amd).name, store.state(amd).note) == ('stale', found.note)


def test_attested_code_is_the_same_code(store, amd, finish, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, 'ATTESTED', tmp_path / 'attested.json')
    finish(amd.teacher())
    finish(amd, code_fingerprint='0' * 16)
    assert store.state(amd).why == 'made with other code'
    write_json(tmp_path / 'attested.json', [{'fingerprints': {'amd': {
        'old': '0' * 16, 'new': fingerprints.code_fingerprint(amd)}}}])
    assert store.state(amd).name == 'done'


@pytest.mark.parametrize('name', ['record.json', 'progress.json', '.hashes.json'])
@pytest.mark.parametrize('content', BAD)
def test_one_bad_file_never_hides_the_other_runs(store, amd, finish, tiny, name, content):
    other = Run.of('retinanet-mgd', tiny)
    finish(amd.teacher())
    for run in (amd, other):
        finish(run, row=run.row.id, seed=0, settings={}, machine={}, id=run.id)
    if name == 'progress.json':
        (store.run_folder(amd) / 'record.json').unlink()
    (store.run_folder(amd) / name).write_bytes(BAD[content])
    wanted = {'record.json': 'stale', 'progress.json': 'missing', '.hashes.json': 'done'}[name]
    assert store.state(amd).name == store.with_kept().state(amd).name == wanted
    assert store.state(other).name == 'done'
    assert store.collect([other]).run.tolist() == [other.id]
    assert len(store.record_files()) == 3 - (name == 'progress.json')
    store.scalars(amd)


# ---- unfinished -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('progress', 'state'), [
    ({'pid': os.getpid()}, 'running (step 3 of 9)'),
    ({'pid': 'dead'}, 'failed (killed at step 3 of 9)'),
    ({'pid': os.getpid(), 'started': 1.0}, 'failed (killed at step 3 of 9)'),   # the number is used again
    ({'pid': 'dead', 'host': 'another machine'}, 'running (step 3 of 9)'),
    ({'host': 'another machine', 'updated': '2026-01-01T00:00:00+00:00'},
     'failed (at step 3 of 9 on another machine, which has said nothing for '),
    ({'host': 'another machine', 'updated': '2026-01-01T00:00:00+00:00', 's_per_step': 1e9}, 'running (step 3 of 9)'),
    ({'phase': 'failed', 'error': 'ValueError: bad'}, 'failed (ValueError: bad)'),
    ({'phase': 'done'}, 'missing (its record is gone)'),
    ({'host': 'another machine', 's_per_step': 'x'}, 'missing (never run)'), ({'step': None}, 'missing (never run)'),
    ({'phase': [3]}, 'missing (never run)')])
def test_an_unfinished_run_is_running_or_failed(store, amd, progress, state):
    if progress.get('pid') == 'dead':
        ended = subprocess.Popen([sys.executable, '-c', ''])
        ended.wait()
        progress = {**progress, 'pid': ended.pid}
    store.run_folder(amd).mkdir(parents=True)
    write_json(store.run_folder(amd) / PROGRESS, {
        'phase': 'train', 'step': 3, 'steps': 9, 'pid': os.getpid(), 'host': platform.node(),
        'started': psutil.Process().create_time(), **progress})
    assert str(store.state(amd)).startswith(state)


def test_a_log_that_is_damaged_is_named(store, amd, finish):
    finish(amd.teacher())
    file = finish(amd) / 'scalars.jsonl'
    for content in ('{"step": 1, "loss": 2}\n{"step": 2, "lo', '[1]\n', '3', '{"step": 1}'):
        file.write_text(content)
        with pytest.raises(RunError, match='scalars.jsonl cannot be read'):
            store.scalars(amd)


# ---- many runs --------------------------------------------------------------------------------------------------

def test_results_that_are_no_folder_are_refused(tmp_path):
    (tmp_path / 'results').write_text('')
    with pytest.raises(SettingError, match='results: no folder for results'):
        open_store(results=tmp_path / 'results')


def test_collect_refuses_stale_and_missing_runs_by_name(store, amd, tiny, finish):
    other, missing = Run.of('retinanet-mgd', tiny), Run.of('retinanet-fgd', tiny)
    finish(amd.teacher())
    finish(amd)
    finish(other, code_fingerprint='0' * 16)
    with pytest.raises(RunError) as caught:
        store.collect([amd, other, missing])
    text = str(caught.value)
    assert text.startswith('2 of 3 runs')
    assert 'retinanet-mgd-s0 (stale: made with other code)' in text
    assert 'retinanet-fgd-s0 (missing: never run)' in text
    assert 'retinanet-amd' not in text


def test_collect_gives_a_line_a_run(store, amd, tiny, finish):
    runs = [amd.teacher(), amd, Run.of('retinanet-amd', tiny, 1)]
    for run in runs:
        finish(run)
    table = store.collect(runs)
    assert table[['group', 'row', 'label', 'seed']].to_numpy().tolist() == [
        ['retinanet', 'teacher', 'Teacher', 0], ['retinanet', 'amd', 'AMD', 0], ['retinanet', 'amd', 'AMD', 1]]
    assert table.mAP.tolist() == [10.5] * 3
    assert table.AP_S.isna().all()
    assert table.run.tolist() == [run.id for run in runs]
    assert table.settings_hash.nunique() == 3
    assert table.arm.tolist() == [run.arm for run in runs]


def test_what_computed_a_runs_digits_is_told_in_a_line(store, amd, finish):
    finish(amd.teacher())
    for more, told in (({}, ''), ({'machine': {'cpu': 'X5', 'instructions': 'AVX2'}, 'device': 'CPU'}, 'X5, AVX2'),
                       ({'machine': {'cpu': 'X5', 'instructions': 'AVX2'}, 'device': 'H100'}, 'X5, AVX2, H100')):
        assert told_machine({'device': 'CPU', **more}) == told
    assert store.collect([amd.teacher()]).machine.tolist() == [told_machine(store.record(amd.teacher()))]


def test_the_split_that_is_reported(store, tiny):
    assert store.reported(Run.of('retinanet-baseline', tiny)) == store.dataset.test_ann
    assert store.reported(Run.of('retinanet-baseline', tiny, 0, {'split': 'val'})) == store.dataset.val_ann


def test_a_dry_runs_numbers_go_into_no_table(store, tiny):
    run = Run.of('retinanet-baseline', replace(tiny, dry_run=True))
    with pytest.raises(RunError, match='retinanet-baseline-s0: made with random weights in a dry run'):
        store.collect([run])


def test_what_is_not_done_is_told_with_the_command_that_makes_it(store, tiny, mine):
    run = Run.of('retinanet-amd', tiny, 1, {'phi': 0.7})
    with pytest.raises(RunError) as told:
        store.record(run)
    assert str(told.value) == ('retinanet-amd+phi=0.7-s1 is missing (never run): make it with python -m amdlib run '
                               'retinanet-amd --profile mini --seed 1 --set phi=0.7')
    own = Run.of(f'retinanet-{mine}', tiny)
    assert f'amdlib run retinanet-{mine} --profile mini' in store.command(own)
    assert replace(store, profile=PROFILES['small']).command(own).endswith(' --data <folder>')


def test_the_state_of_a_loss_from_outside_follows_its_file(store, tiny, amd, mine, finish):
    run = Run.of(f'retinanet-{mine}', tiny)
    for one in (run.teacher(), run, amd):
        finish(one)
    assert [store.state(one).name for one in (run, amd)] == ['done', 'done']
    file = Path(mine.rpartition(':')[0])
    file.write_text(f'# only words\n{MINE}')
    assert store.state(run).name == 'done'
    file.write_text(MINE.replace('.sum()', '.mean()'))
    assert [str(store.state(one)) for one in (run, amd, amd.teacher())] == [
        'stale (made with other code)', 'done', 'done']
    file.write_text(MINE.replace('weight=1e-5', 'weight=2e-5'))
    assert 'made with other settings' in store.state(Run.of(f'retinanet-{mine}', tiny)).why


# ---- what a run left --------------------------------------------------------------------------------------------

def test_scalars_are_a_line_a_logged_step(store, amd):
    lines = [{'step': 10, 'loss': 2.5, 'loss_amd_fpn_0': 0.5, 'lr': 0.001}, {'step': 20, 'loss': 1.5, 'lr': 0.002}]
    store.run_folder(amd).mkdir(parents=True)
    (store.run_folder(amd) / 'scalars.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    scalars = store.scalars(amd)
    assert scalars.step.tolist() == [10, 20]
    assert scalars.loss.tolist() == [2.5, 1.5]
    assert scalars.loss_amd_fpn_0.isna().tolist() == [False, True]     # a term that a step lacks is no 0


@pytest.mark.parametrize('content', [None, ''])
def test_a_run_that_was_not_trained_has_no_scalars(tmp_path, content):
    if content is not None:
        (tmp_path / 'scalars.jsonl').write_text(content)
    scalars = read_scalars(tmp_path)
    assert scalars.empty
    assert list(scalars) == ['step', 'loss']


def test_detections_come_back(store, amd, finish):
    found = [{'image_id': 1, 'category_id': 2, 'bbox': [1.5, 2.0, 3.0, 4.25], 'score': 0.5}]
    write_json(finish(amd) / 'detections.json.gz', found)
    assert store.detections(amd) == found


# ---- a store for others -----------------------------------------------------------------------------------------

def test_a_store_comes_back_from_json(store, through_json, tmp_path):
    full = replace(store, means=Means('cpu', 2, None, True), data=tmp_path)
    for one in (store, full, Store(PROFILES['small'], store.dataset, Path('r').absolute())):
        assert Store.from_dict(through_json(one.to_dict())) == one


def test_relative_folders_are_absolute_for_others(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = replace(store, results=Path('r'), data=Path('a set')).to_dict()
    assert (values['results'], values['data']) == (f'{tmp_path}/r', f'{tmp_path}/a set')


def test_a_store_is_opened_from_what_it_gives_a_notebook(dataset, tmp_path, monkeypatch, through_json):
    made = []

    def prepare(*words, **more):
        made.append((words, more))
        return dataset
    monkeypatch.setattr('amdlib.runs.store.prepare', prepare)
    store = open_store('small', tmp_path, tmp_path / 'results', jobs=2, device='cpu')
    assert store == Store(PROFILES['small'], dataset, tmp_path / 'results', Means('cpu', 2), tmp_path)
    given = through_json(store.parameters())
    assert open_store(given['profile'], given['data'], **given['how']) == store
    assert made == [(('folder', tmp_path), {'first_images': None})] * 2
    chosen = open_store('small', tmp_path, split=0.8, drop_broken=True)
    assert made[-1] == (('folder', tmp_path), {'first_images': None, 'split': 0.8, 'drop_broken': True})
    assert Store.from_dict(through_json(chosen.to_dict())) == chosen
    given = through_json(chosen.parameters())
    assert open_store(given['profile'], given['data'], **given['how']) == chosen
    assert chosen.command(Run.of('retinanet-amd', 'small')).endswith('--data <folder> --split 0.8 --drop-broken')
    mini = open_store()
    assert (mini.profile, mini.results, mini.means, mini.data) == (PROFILES['mini'], ROOT / 'results', Means(), None)
    assert made[-1] == (('shapes', None), {'first_images': None})


def test_the_same_store_with_other_means(store):
    other = store.with_means(jobs=2, device='cpu')
    assert (other.means, other.dataset) == (Means('cpu', 2), store.dataset)
    assert store.means == Means()


@pytest.mark.parametrize(('call', 'error', 'told'), [
    (lambda: open_store('tiny'), SettingError, "'tiny'"),
    (lambda: open_store(jobs=-1), SettingError, 'jobs=-1: expected a number of 1 or more'),
    (lambda: open_store(job=1), SettingError, 'unknown job; expected some of: device, jobs'),
    (lambda: open_store('small'), DataError, 'no data folder is given'),
    (lambda: open_store('mini', 'x'), DataError, 'mini makes its own data')])
def test_what_a_store_cannot_be_opened_with(call, error, told):
    with pytest.raises(error, match=told):
        call()
