"""batch.py: order, bound, failures, cards and interrupts of many runs; a script stands in for the child that trains."""
import datetime
import json
import os
import platform
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch

from amdlib.errors import RunError
from amdlib.files import read_json, write_json
from amdlib.paper.profiles import PROFILES
from amdlib.runs import batch, jobs
from amdlib.runs.batch import PARAMETERS, run_missing
from amdlib.runs.progress import read_progress
from amdlib.runs.run import Run, sweep_runs, table_runs
from amdlib.runs.store import State, Store, unfinished
from amdlib.weights.published import Sources

# is started as `python -m amdlib job <folder of the run>/job.json --ends-with-stdin`
CHILD = """#!/bin/sh
[ "$1 $2 $3 $5" = "-m amdlib job --ends-with-stdin" ] || exit 9
folder=$(dirname "$4"); name=$(basename "$folder")
notebook=$(sed -n 's/^ "output": "\\(.*\\)",$/\\1/p' "$4")
echo "$$" > "$folder/pid"
echo "$MASTER_PORT" > "$folder/port"
echo "start $name $CUDA_VISIBLE_DEVICES" >> "$EVENTS"
for failing in $FAILING; do
    if [ "$failing" = "$name" ]; then echo "boom"; echo "error: no cat"; echo "end $name" >> "$EVENTS"; exit 3; fi
done
if [ "$HANGING" = "$name" ]; then
    echo '{"phase": "train", "step": 3, "steps": 9, "pid": '$$', "host": "'$(uname -n)'"}' > "$folder/progress.json"
    exec sleep 600
fi
sleep "$CHILD_S"
if [ -z "$notebook" ] || [ ! -f "$folder/record.json" ]; then   # a notebook only shows what is done
    echo '{"numbers": {"mAP": 12.34}, "wall_s": 61}' > "$folder/record.json"
fi
if [ "$notebook" ]; then echo '{}' > "$notebook"; fi
echo "end $name" >> "$EVENTS"
"""


class Children:
    """What the stand-ins did."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.patch = folder, monkeypatch
        self.events_file = folder / 'events'
        self.events_file.touch()

    def events(self) -> list[list[str]]:
        return [line.split() for line in self.events_file.read_text().splitlines()]

    def started(self) -> list[str]:
        return [name for what, name, *_ in self.events() if what == 'start']

    def most_at_once(self) -> int:
        now = most = 0
        for what, *_ in self.events():
            now += 1 if what == 'start' else -1
            most = max(most, now)
        return most

    def fail(self, *names: str) -> None:
        self.patch.setenv('FAILING', ' '.join(names))


def notebook_with(path: Path, parameters: str) -> Path:
    book = nbformat.v4.new_notebook(metadata={'kernelspec': {
        'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}})
    book.cells = [nbformat.v4.new_code_cell(parameters, metadata={'tags': ['parameters']})]
    nbformat.write(book, path)
    return path


@pytest.fixture
def children(tmp_path, monkeypatch):
    script = tmp_path / 'child'
    script.write_text(CHILD)
    script.chmod(0o755)
    experiment = notebook_with(tmp_path / 'experiment.ipynb', '\n'.join(f'{name} = None' for name in PARAMETERS))
    monkeypatch.setattr(batch, 'EXPERIMENT', experiment)
    monkeypatch.setattr(sys, 'executable', str(script))
    monkeypatch.setattr(batch._Batch, '_forked', lambda *_: None)   # see test_forking.py
    monkeypatch.setattr(batch, 'POLL_S', 0.01)
    monkeypatch.setenv('EVENTS', str(tmp_path / 'events'))
    monkeypatch.setenv('FAILING', '')
    monkeypatch.setenv('HANGING', '')
    monkeypatch.setenv('CHILD_S', '0.15')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def state(store, run):
        record = store.run_folder(run) / 'record.json'
        return State('done', '', json.loads(record.read_text())) if record.exists() else unfinished(record.parent)
    monkeypatch.setattr(Store, 'state', state)
    return Children(tmp_path, monkeypatch)


@pytest.fixture
def mini(store):
    """The store of `mini`, on the tiny data set."""
    return replace(store, profile=PROFILES['mini'])


@pytest.fixture
def go(mini, said):
    """run_missing with these means; returns what it said."""
    def run(runs, jobs=2, means=None, **more):
        return said(run_missing, runs, mini.with_means(jobs=jobs, **(means or {})), **more)
    return run


def _done(run, store):
    """Leaves its record; returns the record's file."""
    folder = store.run_folder(run)
    folder.mkdir(parents=True)
    (folder / 'record.json').write_text('{"numbers": {"mAP": 50.0}, "wall_s": 1}')
    return folder / 'record.json'


# ---- order and bound --------------------------------------------------------------------------------------------

def test_students_start_when_their_teacher_is_done(children, go):
    runs = table_runs('table1', 'mini', 'retinanet') + table_runs('table1', 'mini', 'reppoints')
    said = go(runs, jobs=3)
    events = [tuple(event[:2]) for event in children.events()]
    for run in runs:
        if run.teacher():
            assert events.index(('start', run.id)) > events.index(('end', run.teacher().id))
    # baselines need no teacher and do not wait for one
    assert events.index(('start', 'retinanet-baseline-s0')) < events.index(('end', 'retinanet-teacher-s0'))
    assert sorted(children.started()) == sorted(run.id for run in runs)
    assert said[0] == f'0 of {len(runs)} runs are done, {len(runs)} to do, 3 at once'
    assert re.fullmatch(rf'\[{len(runs)}/{len(runs)}\] .*: 12\.3 mAP in 1:01', said[-1])


@pytest.mark.parametrize('jobs', [1, 2, 4])
def test_at_most_so_many_jobs_at_once_and_no_fewer(children, go, jobs):
    go([Run.of('retinanet-baseline', 'mini', seed) for seed in range(6)], jobs=jobs)
    assert children.most_at_once() == jobs


def test_what_is_done_is_not_started(children, go, mini):
    runs = table_runs('table1', 'mini', 'retinanet')
    for run in runs[:-2]:
        _done(run, mini)
    said = go(runs)
    assert sorted(children.started()) == sorted(run.id for run in runs[-2:])
    assert said[0] == f'{len(runs) - 2} of {len(runs)} runs are done, 2 to do, 2 at once'
    assert said[-1].startswith(f'[{len(runs)}/{len(runs)}]')
    children.events_file.write_text('')
    assert go(runs) == [f'{len(runs)} of {len(runs)} runs are done, 0 to do, 2 at once']
    assert children.started() == []


def test_a_killed_or_stale_run_is_named_and_what_becomes_of_it(children, go, monkeypatch):
    plain, run = Store.state, Run.of('retinanet-baseline', 'mini')
    for found, force, again in ((State('stale', 'made with other data (abc, now def)'), False, 'it is run again'),
                                (State('failed', 'killed at step 3 of 9'), False, 'it goes on where it can'),
                                (State('failed', 'killed at step 3 of 9'), True, 'it is run again')):
        states = iter([found])
        monkeypatch.setattr(Store, 'state', lambda *words, states=states: next(states, None) or plain(*words))
        assert go([run], force=force)[0] == f'{run.id} is {found.name} ({found.why}): {again}'
    assert children.started() == [run.id] * 3


# ---- what a child is told ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('force', [False, True])
def test_a_child_gets_the_whole_run_and_its_store(children, go, mini, tmp_path, force):
    run = Run.of('retinanet-amd', 'mini', 3, {'phi': 0.7, 'spatial': 'random', 'epochs': 2, 'amp': 'bf16', 'gpus': 2,
                                              'compile_teacher': True})
    for done in (run.teacher(), run) if force else (run.teacher(),):
        _done(done, mini)
    means = {'device': 'cpu', 'workers': 3, 'sources': Sources((tmp_path,), ('https://there',), tmp_path / 'cache'),
             'teacher_check_images': 0}
    go([run], jobs=1, means=means, force=force)
    job = read_json(mini.run_folder(run) / 'job.json')
    assert (job['do'], job['force']) == ('run', force)
    assert Run.from_dict(job['run']) == run
    assert Store.from_dict(job['store']) == mini.with_means(jobs=1, **means)
    assert (mini.run_folder(run) / 'console.log').is_file()


def test_a_loss_from_outside_goes_with_the_others(children, go, mini, mine):
    run = Run.of(f'retinanet-{mine}', 'mini', 1, {'power': 1})
    go([run], jobs=3)
    assert children.started() == [run.teacher().id, run.id]
    assert Run.from_dict(read_json(mini.run_folder(run) / 'job.json')['run']) == run


# ---- runs that a notebook makes ---------------------------------------------------------------------------------

@pytest.fixture
def swept(mini):
    """Runs of a sweep, each with the file of its executed notebook."""
    runs = sweep_runs('retinanet-amd', 'phi', [0.7, 1.0], 'mini', [3], {'epochs': 2})
    return {run: mini.folder / 'sweep_phi' / f'{run.id}.ipynb' for run in runs}


def test_a_run_with_a_notebook_is_made_by_it(children, go, mini, mine, tmp_path):
    run = Run.of(f'retinanet-{mine}', 'mini', 3, {'epochs': 2, 'power': 1})
    notebook = mini.folder / 'sweep_power' / f'{run.id}.ipynb'
    said = go([], executed={run: notebook}, means={'device': 'cpu', 'workers': 3})
    teacher = run.teacher()
    assert children.started() == [teacher.id, run.id]
    assert said[-1].startswith('[2/2] ')
    job = read_json(mini.run_folder(run) / 'job.json')
    assert (job['do'], job['notebook'], job['output'], job['device']) == (
        'notebook', str(batch.EXPERIMENT), str(notebook), 'cpu')
    given = job['parameters']
    assert set(given) == set(PARAMETERS)
    assert Run.of(given['row'], given['profile'], given['seed'], given['settings']) == run
    assert (given['force'], given['data']) == (False, None)
    means = mini.with_means(jobs=2, device='cpu', workers=3).means.to_dict()     # none of them is lost on the way
    assert given['how'] == json.loads(json.dumps({'results': str(mini.results), **means}))
    assert notebook.with_suffix('.log').is_file()
    assert not (mini.run_folder(run) / 'console.log').exists()
    assert read_json(mini.run_folder(teacher) / 'job.json')['do'] == 'run'
    assert (mini.run_folder(teacher) / 'console.log').is_file()


def test_a_run_is_executed_once_for_a_table_and_a_sweep_together(children, go, swept):
    go(list(swept), executed=swept)
    assert len(children.started()) == 3
    assert all(notebook.is_file() for notebook in swept.values())


def test_what_is_done_is_only_executed_where_it_is_not_shown_yet(children, go, mini, swept):
    changed, _ = swept
    for run in (changed.teacher(), changed):
        record = _done(run, mini)
    before = record.stat().st_mtime_ns
    said = go([], executed={changed: swept[changed]})
    assert children.started() == [changed.id]
    assert said[0] == '1 of 2 runs are done, 1 to do, 2 at once'
    assert said[-1].endswith('50.0 mAP in 0:01')
    assert record.stat().st_mtime_ns == before
    assert go([], executed={changed: swept[changed]}) == ['2 of 2 runs are done, 0 to do, 2 at once']
    later = swept[changed].stat().st_mtime + 1      # trained anew since
    os.utime(record, (later, later))
    go([], executed={changed: swept[changed]})
    assert children.started() == [changed.id] * 2
    assert go([changed])[0].startswith('2 of 2 runs are done')      # a table does not need the notebook


def test_force_reaches_the_notebook(children, go, mini, swept):
    (changed, notebook), *_ = swept.items()
    for run in (changed.teacher(), changed):
        _done(run, mini)
    go([], executed={changed: notebook}, force=True)
    assert read_json(mini.run_folder(changed) / 'job.json')['parameters']['force'] is True


def test_a_failing_notebook_is_named_with_its_own_log(children, go, swept):
    (changed, notebook), (plain, _) = swept.items()
    children.fail(changed.id)
    with pytest.raises(RunError) as told:
        go([], executed=swept)
    log = notebook.with_suffix('.log')
    assert f'{changed.id}: exit 3, missing (never run); log: {log}: error: no cat' in str(told.value)
    assert plain.id in children.started()
    assert not notebook.exists()


def test_a_changed_experiment_notebook_is_noticed_before_anything_starts(children, go, swept):
    notebook_with(batch.EXPERIMENT, 'row = 1\nseed = 2')
    with pytest.raises(RunError, match="experiment has no parameter 'settings', 'force'"):
        go([], executed=swept)
    assert children.started() == []
    go(list(swept))     # without it
    assert len(children.started()) == 3


# ---- failures ---------------------------------------------------------------------------------------------------

def test_a_run_that_does_not_pass_its_check_has_failed(children, go, caplog):
    def check(run):
        checked.append(run.id)
        if run.row.is_teacher:
            raise ValueError('not what it should be')
    checked = []
    with pytest.raises(RunError) as told:
        go([Run.of('retinanet-amd', 'mini'), Run.of('retinanet-baseline', 'mini')], check=check)
    assert set(checked) == {'retinanet-teacher-s0', 'retinanet-baseline-s0'}
    assert str(told.value).splitlines() == [
        '2 of 3 runs failed:', '  retinanet-teacher-s0: ValueError: not what it should be',
        '  retinanet-amd-s0: its teacher retinanet-teacher-s0 failed']
    assert 'retinanet-teacher-s0: FAILED, ValueError' in caplog.text


def test_a_failed_run_does_not_stop_others_and_is_named_with_its_log(children, go, mini, caplog):
    children.fail('retinanet-baseline-s1')
    with pytest.raises(RunError) as told:
        go([Run.of('retinanet-baseline', 'mini', seed) for seed in range(4)], jobs=1)
    assert len(children.started()) == 4
    log = mini.folder / 'runs' / 'retinanet-baseline-s1' / 'console.log'
    assert log.read_text() == 'boom\nerror: no cat\n'
    assert str(told.value).startswith('1 of 4 runs failed:\n  retinanet-baseline-s1: exit 3')
    assert str(log) in str(told.value)
    assert 'retinanet-baseline-s1: FAILED' in caplog.text


def test_students_of_a_failed_teacher_are_reported_and_not_started(children, go):
    children.fail('retinanet-teacher-s0')
    runs = table_runs('table1', 'mini', 'retinanet') + table_runs('table1', 'mini', 'reppoints')
    students = [run for run in runs if run.teacher() and run.row.group.name == 'retinanet']
    with pytest.raises(RunError) as told:
        go(runs)
    assert set(children.started()) == {run.id for run in runs} - {run.id for run in students}
    assert str(told.value).startswith(f'{len(students) + 1} of {len(runs)} runs failed:')
    for run in students:
        assert f'  {run.id}: its teacher retinanet-teacher-s0 failed' in str(told.value)


def test_a_child_that_ends_well_without_a_record_has_failed(children, go, monkeypatch):
    monkeypatch.setattr(Store, 'state', lambda *_: State('missing', 'never run'))
    with pytest.raises(RunError, match='exit 0, missing'):
        go([Run.of('retinanet-baseline', 'mini')])


def test_a_killed_child_leaves_the_others_unharmed_and_the_next_call_makes_it_alone(children, go, monkeypatch, mini):
    runs = [Run.of('retinanet-baseline', 'mini', seed) for seed in range(4)]
    folders = [mini.run_folder(run) for run in runs]
    monkeypatch.setenv('HANGING', runs[1].id)

    def kill_the_hanging(self):
        if runs[1] in self.running and read_progress(folders[1]):
            os.kill(self.running[runs[1]].process.pid, signal.SIGKILL)
    with monkeypatch.context() as patch:
        patch.setattr(batch._Batch, '_print_progress', kill_the_hanging)
        with pytest.raises(RunError) as told:
            go(runs)
    assert str(told.value) == (f'1 of 4 runs failed:\n  {runs[1].id}: exit -9, failed (killed at step 3 of 9); '
                               f'log: {folders[1] / "console.log"}')
    assert [(folder / 'record.json').is_file() for folder in folders] == [True, False, True, True]
    monkeypatch.setenv('HANGING', '')
    children.events_file.write_text('')
    said = go(runs)
    assert said[:2] == [f'{runs[1].id} is failed (killed at step 3 of 9): it goes on where it can',
                        '3 of 4 runs are done, 1 to do, 2 at once']
    assert children.started() == [runs[1].id]
    assert (folders[1] / 'record.json').is_file()


def _alive(group: int) -> list[str]:
    """Processes of this group that are no zombies."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, its_group = stat.read_text().rpartition(')')[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != 'Z':
            found.append(stat.parent.name)
    return found


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_takes_all_children_along(children, go, monkeypatch, error):
    monkeypatch.setenv('CHILD_S', '600')
    groups = []

    def interrupt(self):
        if len(children.started()) == 2:
            groups.extend(child.process.pid for child in self.running.values())
            assert all(_alive(group) for group in groups)
            raise error
    monkeypatch.setattr(batch._Batch, '_print_progress', interrupt)
    with pytest.raises(error):
        go([Run.of('retinanet-baseline', 'mini', seed) for seed in range(3)])
    assert len(groups) == 2
    assert os.getpgrp() not in groups
    until = time.monotonic() + 10
    while any(_alive(group) for group in groups) and time.monotonic() < until:
        time.sleep(0.02)
    left = {group: _alive(group) for group in groups}
    for group, pids in left.items():
        if pids:
            os.killpg(group, signal.SIGKILL)
    assert left == {group: [] for group in groups}
    assert len(children.started()) == 2   # nothing new is begun


# ---- cards and threads ------------------------------------------------------------------------------------------

def _cards(children) -> dict[str, str]:
    return {event[1]: ' '.join(event[2:]) for event in children.events() if event[0] == 'start'}


@pytest.mark.parametrize(('visible', 'expected'), [(None, {'0', '1', '2'}), ('4,7,9', {'4', '7', '9'})])
@pytest.mark.parametrize('device', [None, 'cuda'])
def test_each_slot_has_a_card_of_its_own(children, go, monkeypatch, visible, expected, device):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setenv('CHILD_S', '0.4')
    go([Run.of('retinanet-baseline', 'mini', seed) for seed in range(3)], jobs=3, means={'device': device})
    assert children.most_at_once() == 3
    assert set(_cards(children).values()) == expected


def test_more_jobs_than_cards_share_them_evenly(children, go, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    go([Run.of('retinanet-baseline', 'mini', seed) for seed in range(4)], jobs=4)
    assert sorted(_cards(children).values()) == ['0', '0', '1', '1']


@pytest.mark.parametrize('visible', [None, '4,5,6,7'])
def test_each_run_on_several_gpus_has_cards_of_its_own(children, go, monkeypatch, visible):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setenv('CHILD_S', '0.4')
    said = go([Run.of('retinanet-baseline', 'mini', seed, {'gpus': 2}) for seed in range(3)], jobs=None)
    assert said[0].endswith('2 at once')
    assert children.most_at_once() == 2
    assert set(_cards(children).values()) == ({'4,5', '6,7'} if visible else {'0,1', '2,3'})


def test_more_gpus_than_there_are_are_not_given_twice(children, go, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    go([Run.of('retinanet-baseline', 'mini', 0, {'gpus': 4})], jobs=None)
    assert list(_cards(children).values()) == ['0,1']    # the run itself then says that two are missing


@pytest.mark.parametrize(('count', 'device'), [(0, None), (1, None), (3, 'cuda:2'), (3, 'cpu')])
def test_cards_are_left_alone_where_there_is_one_or_the_user_chose(children, go, monkeypatch, count, device):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    go([Run.of('retinanet-baseline', 'mini')], means={'device': device})
    assert _cards(children) == {'retinanet-baseline-s0': ''}


@pytest.fixture
def batch_of(mini):
    """Runs, jobs -> a batch of them, of which none is started."""
    return lambda runs=(), jobs=2: batch._Batch(list(runs), len(runs), mini, jobs, False, {}, 20)


def test_children_share_the_cores(batch_of, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)))
    for jobs_at_once, gpus, threads in ((1, 1, '8'), (3, 1, '2'), (16, 1, '1'), (2, 2, '2')):
        assert batch_of(jobs=jobs_at_once)._environment(0, gpus)['OMP_NUM_THREADS'] == threads


def test_each_child_has_a_port_of_its_own(children, go, mini):
    """Two distributed runs on one machine would otherwise both ask for torch's default port."""
    runs = [Run.of('retinanet-baseline', 'mini', seed) for seed in range(3)]
    go(runs, jobs=3)
    ports = [int((mini.run_folder(run) / 'port').read_text()) for run in runs]
    assert len(set(ports)) == 3
    assert all(1024 <= port < 65536 for port in ports)


# ---- progress ---------------------------------------------------------------------------------------------------

@pytest.fixture
def line(batch_of, mini, said):
    """What a batch says after 100 s: its two runs, of 100 steps each, and what those whose children began 50 s ago
    tell (seconds ago, step); a run that goes on had made `before` of its steps."""
    def say(*told, before=0.0, phase='train'):
        runs = [Run.of('retinanet-baseline', mini.profile, seed, {'epochs': 50}) for seed in (0, 1)]    # 8 images by 4
        one, now = batch_of(runs), time.monotonic()
        assert set(one.steps.values()) == {100}
        one.began_s, one.printed_s, one.before[runs[0]] = now - 100, 0, before
        for run, (ago_s, step) in zip(runs, told, strict=False):
            mini.run_folder(run).mkdir(parents=True, exist_ok=True)
            updated = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago_s)
            write_json(mini.run_folder(run) / 'progress.json', {
                'phase': phase, 'step': step, 'steps': 100, 's_per_step': 0.5, 'left_s': (100 - step) / 2,
                'host': platform.node(), 'updated': updated.isoformat()})
        one.running = {run: batch._Running(None, 0, Path(), now - 50) for run, _ in zip(runs, told, strict=False)}
        (text,) = said(one._print_progress)
        return text
    return say


def test_progress_tells_every_running_run_and_the_time_left_in_all(line):
    assert line((0, 50), (0, 30)) == (
        '[0/2] 1:40, about 2:30 left in all  retinanet-baseline+epochs=50-s0 train 50/100, 2.0 steps/s, 0:25 left | '
        'retinanet-baseline+epochs=50-s1 train 30/100, 2.0 steps/s, 0:35 left')


def test_time_left_counts_the_runs_that_wait(line):
    assert line((0, 50)).startswith('[0/2] 1:40, about 5:00 left in all  ')
    assert line((0, 1)).startswith('[0/2] 1:40  ')      # too little is known


def test_a_run_that_is_tested_has_made_its_steps(line):
    assert line((0, 3), phase='test').startswith('[0/2] 1:40, about 1:40 left in all  ')


def test_a_run_that_goes_on_has_not_made_its_first_steps_now(line):
    """20 of 100 + 50 steps in 100 s."""
    assert line((0, 70), before=0.5).startswith('[0/2] 1:40, about 10:50 left in all  ')


def test_a_run_that_was_to_go_on_and_begins_anew_makes_all_its_steps(line):
    assert line((0, 20), before=0.5).startswith('[0/2] 1:40  ')


def test_a_child_that_hangs_is_told_and_one_that_has_told_nothing(batch_of, line):
    assert line((45, 50)).endswith('train 50/100, 2.0 steps/s, 0:25 left')
    # what an earlier process has left says nothing of this one
    assert line((3600, 50)) == '[0/2] 1:40  retinanet-baseline+epochs=50-s0 starting'


def test_since_when_a_child_hangs(line, monkeypatch):
    monkeypatch.setattr(batch, '_Running', lambda *words, running=batch._Running: running(*words[:3], words[3] - 600))
    assert line((432, 50)).endswith('retinanet-baseline+epochs=50-s0 train 50/100, no step for 7:12')


def test_a_killed_runs_steps_are_known_when_it_goes_on(children, go, mini, monkeypatch):
    run, seen = Run.of('retinanet-baseline', 'mini'), []
    mini.run_folder(run).mkdir(parents=True)
    monkeypatch.setattr(batch._Batch, '_print_progress', lambda self: seen.append(self.before[run]))
    for force, before in ((False, 0.25), (True, 0.0)):
        write_json(mini.run_folder(run) / 'progress.json', {
            'phase': 'train', 'step': 30, 'steps': 120, 'pid': 0, 'host': platform.node()})
        go([run], force=force)
        assert seen[-1] == before


def test_a_detector_that_is_only_evaluated_has_no_steps(tiny, weight_file):
    assert Run.of('retinanet-teacher', 'paper').steps(1000) == 0
    assert Run.of('retinanet-teacher', tiny, 0, {'checkpoint': str(weight_file)}).steps(9) == 0
    assert Run.of('retinanet-teacher', tiny).steps(9) == 5
    assert Run.of('retinanet-amd', 'paper').steps(1000) == 24 * 500


def test_progress_names_a_run_that_has_told_nothing_yet(children, go, monkeypatch):
    monkeypatch.setenv('CHILD_S', '0.5')
    said = go([Run.of('retinanet-baseline', 'mini')], line_every_s=0.1)
    assert '[0/1] 0:00  retinanet-baseline-s0 starting' in said


# ---- really -----------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_batch_really_trains_beside_a_loss_from_outside(store, tiny, mine, monkeypatch):
    monkeypatch.setattr(batch, 'POLL_S', 0.1)
    runs = [Run.of('retinanet-baseline', tiny), Run.of(f'retinanet-{mine}', tiny, 1, {'power': 1})]
    run_missing(runs, store.with_means(jobs=2, device='cpu'))
    table = store.collect([*runs, runs[1].teacher()])
    assert table.row.tolist() == ['baseline', 'own.Mine', 'teacher']
    for run in runs:
        assert store.record(run)['numbers']
        assert 'mAP' in (store.run_folder(run) / 'console.log').read_text()
    assert jobs.FILE in os.listdir(store.run_folder(runs[0]))
