"""slurm.py, entry.py, missing.py: what is submitted, how a script reads, who has a run, what the queue says of it."""
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from amdlib.errors import RunError, SettingError, Stopped
from amdlib.files import read_json, write_json
from amdlib.runs import entry, jobs, missing, slurm
from amdlib.runs.run import Run, table_runs
from amdlib.runs.store import State
from amdlib.words import timestamp
from tests.conftest import BAD

from .slurm import Fake

HOSTILE = ["it's", 'a b', '$(touch harm)', '`touch harm`', '"; touch harm; "', '%A_%a %%', '*?[x]', 'a\nb', '#!', '-x',
           '\\', '{1..3}', '~', '!!', 'ä']


@pytest.fixture
def fake(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith('SLURM_')]:
        monkeypatch.delenv(name)
    return Fake(tmp_path / 'slurm', monkeypatch)


@pytest.fixture
def runs(tiny):
    """A teacher, its two students, and a run that needs no teacher."""
    return [Run.of(f'retinanet-{name}', tiny) for name in ('amd', 'baseline', 'mgd')]


def order(store, file):
    """The runs of a script, by entry."""
    inside = re.search(r'folders=\(\n(.*?)\n\)', file.read_text(), re.DOTALL).group(1)
    return [folder.rsplit('/', 1)[1] for folder in shlex.split(inside)]


# ---- the table --------------------------------------------------------------------------------------------------

def test_the_table_has_what_a_scheduler_asks(store, runs, finish, through_json):
    done = Run.of('retinanet-baseline', store.profile, 7)
    finish(done, profile='tiny', row=done.row.id, seed=7, settings={}, format=2, wall_s=3600.0,
           peak_memory_bytes=3 * 2 ** 30, peak_gpu_memory_bytes=None)
    entries = missing.missing([*runs, done], store)
    table = through_json([one.to_dict() for one in entries])
    assert [one['run'] for one in table] == [
        'retinanet-teacher-s0', 'retinanet-amd-s0', 'retinanet-baseline-s0', 'retinanet-mgd-s0']
    assert [one['after'] for one in table] == [None, 'retinanet-teacher-s0', None, 'retinanet-teacher-s0']
    teacher, amd, baseline, _ = table
    assert set(amd['inputs']) >= {teacher['outputs'][0], teacher['outputs'][1], str(store.dataset.train_ann)}
    assert amd['outputs'][0] == str(store.run_folder(runs[0]) / 'record.json')
    assert (baseline['hours'], baseline['memory_gib'], baseline['gpu_memory_gib']) == (1.0, 3.0, None)
    assert (teacher['hours'], teacher['memory_gib']) == (None, None)    # of no teacher a record tells
    job = read_json(amd['command'][amd['command'].index('job') + 1])
    assert Run.from_dict(job['run']) == runs[0]
    assert amd['command'][-1] == '--queued'
    text = missing.readable(entries)
    assert 'retinanet-baseline-s0  missing  1.0 h, 3.0 GiB' in text.replace('60 min', '1.0 h')
    assert text.splitlines()[1].endswith('after retinanet-teacher-s0')


def test_what_runs_or_is_done_is_not_missing(store, runs, monkeypatch):
    states = {'retinanet-teacher-s0': 'done', 'retinanet-amd-s0': 'running', 'retinanet-mgd-s0': 'stale'}
    monkeypatch.setattr(type(store), 'state', lambda _, run: State(states.get(run.id, 'missing')))
    entries = missing.missing(runs, store)
    assert [(one.run.id, one.after) for one in entries] == [('retinanet-baseline-s0', None), ('retinanet-mgd-s0', None)]
    assert missing.readable([]) == 'nothing is missing'


# ---- submitting -------------------------------------------------------------------------------------------------

def test_students_are_an_array_after_their_teachers(store, runs, fake, said):
    told = said(slurm.submit, runs, store.with_means(jobs=3), 'table1', '--partition=gpu --time=4:00:00')
    place = store.folder / 'slurm' / 'table1-1'
    assert order(store, place / 'batch.sh') == [
        'retinanet-teacher-s0', 'retinanet-baseline-s0', 'retinanet-amd-s0', 'retinanet-mgd-s0']
    assert fake.asked('sbatch') == [['--parsable', '--array=0-1%3', 'batch.sh'],
                                    ['--parsable', '--array=2-3%3', '--dependency=afterany:12_0', 'batch.sh']]
    assert [read_json(store.run_folder(run) / 'slurm.json')['job'] for run in (runs[0].teacher(), runs[1], *runs[::2])
            ] == ['12_0', '12_1', '13_2', '13_3']
    assert told[-1] == 'submitted as job 13: 2 runs, after 12_0'
    text = (place / 'batch.sh').read_text()
    assert '#SBATCH --partition=gpu --time=4:00:00\n' in text
    assert '#   sbatch --array=0-1%3 batch.sh\n' in text
    assert '#   sbatch --array=2-3%3 --dependency=afterany:JOB_0 batch.sh  ' in text


def test_a_script_alone_submits_nothing(store, runs, fake):
    file = slurm.submit(runs, store, 'table1', hand_in=False)
    assert file.is_file()
    assert fake.asked('sbatch') == []
    assert not (store.run_folder(runs[0]) / 'slurm.json').exists()
    assert slurm.submit(runs, store, 'table1', hand_in=False).parent.name == 'table1-2'


def test_what_is_in_the_queue_is_not_submitted_again(store, runs, fake, said):
    slurm.submit(runs, store, 'a')
    fake.queue('12_0|RUNNING|None', '12_1|PENDING|Resources', '13_2|PENDING|Dependency', '13_3|PENDING|Dependency',
               '99_0|RUNNING|None')
    assert said(slurm.submit, runs, store, 'b') == ['4 runs are in the queue already', 'nothing is to be submitted']
    assert fake.asked('squeue')[-1] == ['--noheader', '--array', '--jobs=12,13', '--format=%i|%T|%r']
    more = Run.of('retinanet-fgd', store.profile)       # waits for the teacher's entry of the other batch
    slurm.submit([*runs, more], store, 'b')
    assert fake.asked('sbatch')[-1] == ['--parsable', '--array=0-0', '--dependency=afterany:12_0', 'batch.sh']
    fake.queue('12_0|RUNNING|None', '13_2|PENDING|Dependency', '14_0|PENDING|Dependency')    # two are lost
    slurm.submit([*runs, more], store, 'c')
    assert order(store, store.folder / 'slurm' / 'c-1' / 'batch.sh') == ['retinanet-baseline-s0', 'retinanet-mgd-s0']


def test_two_batches_at_once_submit_no_run_twice(store, runs, fake, monkeypatch):
    monkeypatch.setenv('SBATCH_S', '0.3')
    fake.queue(*(f'{number}_{task}|PENDING|Priority' for number in (12, 13, 14, 15) for task in range(4)))
    both = [threading.Thread(target=slurm.submit, args=(runs, store, name)) for name in ('a', 'b')]
    for one in both:
        one.start()
    for one in both:
        one.join()
    scripts = list((store.folder / 'slurm').glob('*/batch.sh'))
    assert len(scripts) == 1
    assert len(fake.asked('sbatch')) == 2


def test_a_refusal_of_sbatch_is_told_in_a_line(store, runs, fake):
    (fake.folder / 'sbatch').write_text('#!/bin/sh\necho "sbatch: error: invalid partition" >&2\nexit 1\n')
    with pytest.raises(RunError, match='^sbatch: sbatch: error: invalid partition$'):
        slurm.submit(runs, store, 'table1', '--partition=none')
    assert not (store.run_folder(runs[0]) / 'slurm.json').exists()


@pytest.mark.parametrize('options', ['--array=0-3', '-a 3', '--dependency=x', '--wrap=ls', '--comment="a', 'gpu',
                                     '--comment="a\nb"'])
def test_options_that_are_none_are_refused_before_anything(store, runs, fake, options):
    with pytest.raises(SettingError, match='options of Slurm'):
        slurm.submit(runs, store, 'table1', options)
    assert not store.folder.exists()


def test_without_slurm_it_says_so(store, runs, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(RunError, match="^sbatch is not here: expected Slurm's commands on this machine$"):
        slurm.submit(runs, store, 'table1')


# ---- the script -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', HOSTILE)
def test_an_entry_gets_its_job_file_whatever_the_folders_are_called(store, runs, fake, tmp_path, monkeypatch, name):
    child = tmp_path / f'python {name}'
    child.write_text('#!/bin/bash\nprintf "%s\\0" "$@" "$OMP_NUM_THREADS" "$PWD"\n')
    child.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(child))
    store = replace(store, results=tmp_path / name)
    file = slurm.submit(runs, store, 'table1', hand_in=False)
    for number, run in enumerate(order(store, file)):
        subprocess.run(['bash', file], check=True, cwd=file.parent, env={
            **os.environ, 'SLURM_ARRAY_TASK_ID': str(number), 'SLURM_CPUS_PER_TASK': '3'})
        folder = store.folder / 'runs' / run
        assert (folder / 'console.log').read_text().split('\0')[:-1] == [
            '-m', 'amdlib', 'job', f'{folder}/job.json', '--queued', '3', str(jobs.notebooks.ROOT)]
    assert not list(tmp_path.rglob('harm'))
    heads = [line for line in file.read_text().splitlines() if line.startswith('#SBATCH')]
    assert not any(name in line for line in heads)      # Slurm reads these in its own way


# ---- an entry ---------------------------------------------------------------------------------------------------

@pytest.fixture
def trained(monkeypatch, store, runs):
    """What would have been trained; every teacher is there."""
    done = []
    monkeypatch.setattr('amdlib.runs.train.train', lambda run, store, wait: done.append((run.id, wait)))
    monkeypatch.setattr(type(store), 'state', lambda _, run: State('done'))
    for run in runs:
        store.run_folder(run).mkdir(parents=True)
    return done


def within(monkeypatch, job, task=None):
    monkeypatch.setenv('SLURM_JOB_ID', '77')
    for name, value in (('JOB', job), ('TASK', task)):
        if value:
            monkeypatch.setenv(f'SLURM_ARRAY_{name}_ID', value)


def test_an_entry_trains_the_run_that_is_its_own(store, runs, fake, trained, monkeypatch):
    within(monkeypatch, '12', '3')
    write_json(store.run_folder(runs[0]) / 'slurm.json', {'job': '12_3', 'script': 's', 'submitted': 't'})
    entry.train_queued(runs[0], store)
    assert trained == [(runs[0].id, True)]
    assert read_json(store.run_folder(runs[0]) / 'slurm.json') == {'job': '12_3', 'script': 's', 'submitted': 't'}
    assert fake.asked('squeue') == []       # nobody else has it


@pytest.mark.parametrize('has_it', [True, False])
def test_a_run_is_left_to_the_entry_that_has_it_until_that_is_lost(store, runs, fake, trained, monkeypatch, said,
                                                                   has_it):
    within(monkeypatch, '13', '0')
    write_json(store.run_folder(runs[0]) / 'slurm.json', {'job': '12_3'})
    fake.queue('12_4|RUNNING|None', *['12_3|PENDING|Resources'] * has_it)
    told = said(entry.train_queued, runs[0], store)
    assert told == ['entry 12_3 has this run: nothing is to do for 13_0'] * has_it
    assert trained == [(runs[0].id, True)] * (not has_it)
    assert read_json(store.run_folder(runs[0]) / 'slurm.json')['job'] == ('12_3' if has_it else '13_0')


def test_outside_of_slurm_nobody_is_asked(store, runs, fake, trained):
    entry.train_queued(runs[0], store)
    assert trained == [(runs[0].id, True)]
    assert fake.asked('squeue') == []


def test_an_entry_asks_for_its_teacher_instead_of_training_it(store, runs, fake, trained, monkeypatch):
    monkeypatch.setattr(type(store), 'state', lambda _, run: State('failed', 'RunError: no'))
    with pytest.raises(RunError, match=r'amd-s0: its teacher retinanet-teacher-s0 is failed \(RunError: no\)$'):
        entry.train_queued(runs[0], store)
    assert trained == []


@pytest.mark.parametrize(('number', 'again'), [(signal.SIGUSR1, [['requeue', '12_3']]), (signal.SIGTERM, [])])
def test_a_time_limit_queues_again_and_a_cancel_does_not(store, runs, fake, trained, monkeypatch, number, again):
    within(monkeypatch, '12', '3')

    def train(run, store, wait):
        os.kill(os.getpid(), number)
        raise Stopped('stopped')
    monkeypatch.setattr('amdlib.runs.train.train', train)
    before = signal.getsignal(number)
    with pytest.raises(Stopped):
        entry.train_queued(runs[0], store)
    assert fake.asked('scontrol') == again
    assert signal.getsignal(number) == before


# ---- the queue --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('found', 'progress', 'queue', 'name', 'why'), [
    (State('done'), {'phase': 'done'}, '12_3|RUNNING|None', 'done', ''),
    (State('missing', 'never run'), None, '12_3|PENDING|Resources', 'waiting', 'entry 12_3: Resources'),
    (State('missing', 'never run'), None, '12_3|RUNNING|None', 'running', 'entry 12_3 is running, no step yet'),
    (State('missing', 'never run'), None, '12_4|RUNNING|None', 'failed',
     'entry 12_3 is in the queue no more: never run'),
    (State('running', 'step 3 of 9'), {'phase': 'train', 'left_s': 90.0}, '12_3|RUNNING|None', 'running',
     'step 3 of 9, 1:30 left'),
    (State('running', 'step 3 of 9'), {'phase': 'train'}, '', 'failed',
     'entry 12_3 is in the queue no more: step 3 of 9'),
    (State('failed', 'stopped after step 3 of 9'), {'phase': 'stopped'}, '12_3|PENDING|BeginTime', 'requeued',
     'after step 3 of 9, entry 12_3: BeginTime'),
    (State('running', 'step 3 of 9'), {'phase': 'train'}, '12_3|PENDING|BeginTime', 'requeued',    # a node is gone
     'after step 3 of 9, entry 12_3: BeginTime'),
    (State('failed', 'killed at step 3 of 9'), {'phase': 'train', 'updated': '2020'}, '12_3|PENDING|Priority',
     'waiting', 'entry 12_3: Priority'),     # what an earlier entry has left
    (State('failed', 'RunError: no'), {'phase': 'failed'}, '', 'failed', 'RunError: no'),
    (State('stale', 'made with other code'), {'phase': 'done'}, '', 'stale', 'made with other code'),
    (State('stale', 'made with other code'), {'phase': 'done'}, '12_3|PENDING|Priority', 'waiting',
     'entry 12_3: Priority')])
def test_a_state_is_what_the_folder_says_and_the_queue_adds(store, runs, fake, found, progress, queue, name, why):
    folder = store.run_folder(runs[0])
    write_json_in(folder, 'slurm.json', {'job': '12_3', 'submitted': '2026-01-01'})
    if progress:
        write_json(folder / 'progress.json', {'step': 3, 'steps': 9, 'host': 'h', 'updated': timestamp(), **progress})
    fake.queue(queue)
    seen = slurm.states({runs[0]: found}, store)[runs[0]]
    assert (seen.name, seen.why) == (name, why)


def write_json_in(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / name, content)


def test_a_failed_run_shows_the_last_lines_of_its_log(store, runs, fake):
    folder = store.run_folder(runs[0])
    write_json_in(folder, 'slurm.json', {'job': '12_3'})
    (folder / 'console.log').write_bytes(b'first\n\xff two\nthree\nfour\nerror: no cat\n')
    seen = slurm.states({runs[0]: State('failed', 'no')}, store)[runs[0]]
    assert seen.why == 'no\n    | \ufffd two\n    | three\n    | four\n    | error: no cat'


def test_runs_that_nobody_submitted_ask_no_queue(store, runs, fake):
    found = {run: State('missing', 'never run') for run in runs}
    assert slurm.states(found, store) == found
    assert fake.asked('squeue') == []


def test_a_queue_that_has_forgotten_knows_nothing_and_one_that_fails_is_told(fake):
    fake.refuse('slurm_load_jobs error: Invalid job id specified')
    assert slurm.ask(['12_3']) == {}
    fake.refuse('slurm_load_jobs error: Unable to contact slurm controller')
    with pytest.raises(RunError, match='^squeue: slurm_load_jobs error: Unable to contact'):
        slurm.ask(['12_3'])


@pytest.mark.parametrize('content', BAD.values(), ids=BAD)
def test_a_damaged_claim_is_none(tmp_path, content):
    (tmp_path / 'slurm.json').write_bytes(content)
    assert slurm.read_claim(tmp_path) == {}
    (tmp_path / 'slurm.json').write_text(json.dumps({'job': ['12_3']}))
    assert slurm.read_claim(tmp_path) == {}


def test_tables_of_every_detector_wait_for_all_missing_teachers(store, tiny, fake):
    slurm.submit(table_runs('table1', tiny), store, 'table1')
    (_, (*_, after, _)) = fake.asked('sbatch')
    assert after == '--dependency=afterany:12_0:12_1:12_2'
