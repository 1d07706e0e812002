"""batch.py: order, bound, failures, cards and interrupts of many runs; a script stands in for the child that trains."""
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
import torch

from amdlib import batch, notebooks, results
from amdlib.batch import BatchError, default_jobs, run_missing, with_teachers
from amdlib.experiments import Run, read_settings, sweep_runs, table_runs
from amdlib.notebooks import NotebookError
from amdlib.results import State

# knows its run by the log that it writes to: <run>/console.log or, of a notebook, <run>.log
CHILD = """#!/bin/sh
log=$(readlink /proc/$$/fd/1)
case "$log" in
    */console.log) place=$(dirname "$log"); name=$(basename "$place"); notebook= ;;
    *) name=$(basename "$log" .log); place=$RUNS/$name; notebook=${log%.log}.ipynb; mkdir -p "$place" ;;
esac
echo "$$" > "$place/pid"
echo "$MASTER_PORT" > "$place/port"
printf '%s\\n' "$@" > "$place/arguments"
echo "start $name $CUDA_VISIBLE_DEVICES" >> "$EVENTS"
for failing in $FAILING; do
    if [ "$failing" = "$name" ]; then echo "boom"; echo "end $name" >> "$EVENTS"; exit 3; fi
done
if [ "$HANGING" = "$name" ]; then
    echo '{"phase": "train", "step": 3, "steps": 9, "pid": '$$', "host": "'$(uname -n)'"}' > "$place/progress.json"
    exec sleep 600
fi
sleep "$CHILD_S"
if [ -z "$notebook" ] || [ ! -f "$place/record.json" ]; then   # a notebook only shows what is done
    echo '{"numbers": {"mAP": 12.34}, "wall_s": 61}' > "$place/record.json"
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


@pytest.fixture
def children(tmp_path, monkeypatch):
    script = tmp_path / 'child'
    script.write_text(CHILD)
    script.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(script))
    monkeypatch.setattr(batch, 'POLL_S', 0.01)
    monkeypatch.setenv('EVENTS', str(tmp_path / 'events'))
    monkeypatch.setenv('RUNS', str(tmp_path / 'results' / 'mini' / 'runs'))
    monkeypatch.setenv('FAILING', '')
    monkeypatch.setenv('HANGING', '')
    monkeypatch.setenv('CHILD_S', '0.15')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def state(run, dataset, results_dir):
        place = results.run_folder(run, dataset, results_dir)
        record = place / 'record.json'
        return State('done', '', json.loads(record.read_text())) if record.exists() else results.unfinished(place)
    monkeypatch.setattr(batch.results, 'state', state)
    return Children(tmp_path, monkeypatch)


@pytest.fixture
def go(dataset, tmp_path):
    """run_missing below tmp_path; returns what it said."""
    def run(runs, **more):
        said = []
        try:
            run_missing(runs, dataset, results_dir=tmp_path / 'results', say=said.append, **{'jobs': 2, **more})
        finally:
            run.said = said
        return said
    return run


def _done(run, dataset, tmp_path):
    """Leaves its record; returns the record's file."""
    place = results.run_folder(run, dataset, tmp_path / 'results')
    place.mkdir(parents=True)
    (place / 'record.json').write_text('{"numbers": {"mAP": 50.0}, "wall_s": 1}')
    return place / 'record.json'


# ---- order and bound --------------------------------------------------------------------------------------------

def test_with_teachers_names_each_run_once_and_teachers_first():
    student, other = Run.of('retinanet-amd', 'mini'), Run.of('retinanet-mgd', 'mini', 1)
    teacher = Run.of('retinanet-teacher', 'mini')
    assert with_teachers([student, other, student]) == [teacher, student, other]
    assert with_teachers([student, teacher]) == [teacher, student]
    assert with_teachers([Run.of('retinanet-baseline', 'mini')]) == [Run.of('retinanet-baseline', 'mini')]
    with_epochs = Run.of('retinanet-amd', 'mini', 0, {'epochs': 2})   # another schedule, another teacher
    assert with_teachers([student, with_epochs])[:2] == [teacher, Run.of('retinanet-teacher', 'mini', 0, {'epochs': 2})]


def test_students_start_when_their_teacher_is_done(children, go):
    said = go(table_runs('table1', 'mini', 'retinanet') + table_runs('table1', 'mini', 'reppoints'), jobs=3)
    events = [tuple(event[:2]) for event in children.events()]
    for group in ('retinanet', 'reppoints'):
        taught = events.index(('end', f'{group}-teacher-s0'))
        for method in ('fkd', 'fgd', 'mgd', 'amd'):
            assert events.index(('start', f'{group}-{method}-s0')) > taught
    # baselines need no teacher and do not wait for one
    assert events.index(('start', 'retinanet-baseline-s0')) < events.index(('end', 'retinanet-teacher-s0'))
    assert sorted(children.started()) == sorted(set(children.started())) and len(events) == 2 * 12
    assert said[0] == '0 of 12 runs are done, 12 to do, 3 at once'
    assert said[-1].startswith('[12/12] ') and said[-1].endswith('12.3 mAP in 1:01')


@pytest.mark.parametrize('jobs', [1, 2, 4])
def test_at_most_so_many_jobs_at_once_and_no_fewer(children, go, jobs):
    go([Run.of('retinanet-baseline', 'mini', seed) for seed in range(6)], jobs=jobs)
    assert children.most_at_once() == jobs


def test_default_jobs(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    assert default_jobs() == 3
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    for cores, jobs in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(os, 'sched_getaffinity', lambda _, cores=cores: set(range(cores)))
        assert default_jobs() == jobs


def test_what_is_done_is_not_started(children, go, dataset, tmp_path):
    runs = table_runs('table1', 'mini', 'retinanet')
    for run in runs[:4]:
        _done(run, dataset, tmp_path)
    said = go(runs)
    assert sorted(children.started()) == ['retinanet-amd-s0', 'retinanet-mgd-s0']
    assert said[0] == '4 of 6 runs are done, 2 to do, 2 at once' and said[-1].startswith('[6/6]')
    children.events_file.write_text('')
    assert go(runs) == ['6 of 6 runs are done, 0 to do, 2 at once'] and children.started() == []


def test_force_starts_what_is_done_and_tells_the_child(children, go, dataset, tmp_path):
    run = Run.of('retinanet-baseline', 'mini')
    _done(run, dataset, tmp_path)
    go([run], force=True)
    assert children.started() == [run.id]
    assert '--force' in (results.run_folder(run, dataset, tmp_path / 'results') / 'arguments').read_text().split('\n')


def test_stale_runs_are_named_and_run_again(children, go, monkeypatch):
    states = iter([State('stale', 'made with other data (abc, now def)')])
    plain = batch.results.state
    monkeypatch.setattr(batch.results, 'state', lambda *words: next(states, None) or plain(*words))
    said = go([Run.of('retinanet-baseline', 'mini')])
    assert said[0] == 'retinanet-baseline-s0 is stale (made with other data (abc, now def)): it is run again'
    assert children.started() == ['retinanet-baseline-s0']


def test_a_killed_run_is_said_to_go_on(children, go, monkeypatch):
    plain = batch.results.state
    run = Run.of('retinanet-baseline', 'mini')
    for force, again in ((False, 'it goes on where it can'), (True, 'it is run again')):
        states = iter([State('failed', 'killed at step 3 of 9')])
        monkeypatch.setattr(batch.results, 'state', lambda *words, states=states: next(states, None) or plain(*words))
        assert go([run], force=force)[0] == f'{run.id} is failed (killed at step 3 of 9): {again}'


def test_the_child_gets_the_whole_run_as_the_command_line_takes_it(children, go, dataset, tmp_path):
    """Parsed by the command line's own parser and made a run again, it is the same run."""
    from amdlib.__main__ import _parser
    run = Run.of('retinanet-amd', 'mini', 3, {'phi': 0.7, 'spatial': 'random', 'epochs': 2, 'amp': 'bf16', 'gpus': 2,
                                              'compile_teacher': True})
    _done(run.teacher(), dataset, tmp_path)
    go([run], data='a folder/with space', device='cpu', workers=3)
    words = (results.run_folder(run, dataset, tmp_path / 'results') / 'arguments').read_text().splitlines()
    assert words[:2] == ['-m', 'amdlib']
    parsed = _parser().parse_args(words[2:])
    assert Run.of(parsed.row, parsed.profile, parsed.seed, read_settings(parsed.settings)) == run
    assert (parsed.data, parsed.device, parsed.results) == ('a folder/with space', 'cpu', tmp_path / 'results')
    assert not parsed.force and parsed.workers == 3


# ---- runs that a notebook makes ---------------------------------------------------------------------------------

@pytest.fixture
def swept(tmp_path):
    """Runs of a sweep, each with the place of its executed notebook."""
    place = tmp_path / 'results' / 'mini' / 'sweep_phi'
    runs = sweep_runs('retinanet-amd', 'phi', '0.7 1.0', 'mini', '3', {'epochs': 2})
    return {run: place / f'{run.id}.ipynb' for run in runs}


def test_a_run_with_a_notebook_is_made_by_it_as_the_command_line_takes_it(children, go, dataset, tmp_path, swept):
    """Parsed by the command line's own parser, and its text made values as papermill gets them, it is the same run."""
    from amdlib.__main__ import _parser
    said = go([], executed=swept, data='a folder/with space', device='cpu')
    changed, plain = swept
    teacher = changed.teacher()
    assert children.started()[0] == teacher.id and set(children.started()) == {teacher.id, changed.id, plain.id}
    assert said[-1].startswith('[3/3] ')
    defaults = papermill.inspect_notebook(str(batch.EXPERIMENT))
    for run, notebook in swept.items():
        place = results.run_folder(run, dataset, tmp_path / 'results')
        words = (place / 'arguments').read_text().splitlines()
        assert words[:2] == ['-m', 'amdlib']
        parsed = _parser().parse_args(words[2:])
        assert (parsed.command, parsed.name, Path(parsed.output)) == ('notebook', 'experiment', notebook)
        assert (parsed.profile, parsed.data, parsed.device, parsed.results) == (
            'mini', 'a folder/with space', 'cpu', tmp_path / 'results')
        given = {name: notebooks._literal(text, defaults[name]['default'])
                 for name, text in read_settings(parsed.settings).items()}
        assert Run.of(given['row'], 'mini', given['seed'], read_settings(given['settings'])) == run
        assert given['force'] is False
        assert notebook.with_suffix('.log').is_file() and not (place / 'console.log').exists()
    of_teacher = results.run_folder(teacher, dataset, tmp_path / 'results')
    assert (of_teacher / 'arguments').read_text().splitlines()[2] == 'run' and (of_teacher / 'console.log').is_file()


def test_a_run_is_executed_once_for_a_table_and_a_sweep_together(children, go, swept):
    go(list(swept), executed=swept)
    assert len(children.started()) == 3 and all(notebook.is_file() for notebook in swept.values())


def test_what_is_done_is_only_executed_where_it_is_not_shown_yet(children, go, dataset, tmp_path, swept):
    changed, plain = swept
    for run in (changed.teacher(), changed):
        record = _done(run, dataset, tmp_path)
    before = record.stat().st_mtime_ns
    said = go([], executed={changed: swept[changed]})
    assert children.started() == [changed.id] and said[0] == '1 of 2 runs are done, 1 to do, 2 at once'
    assert record.stat().st_mtime_ns == before and said[-1].endswith('50.0 mAP in 0:01')
    assert go([], executed={changed: swept[changed]}) == ['2 of 2 runs are done, 0 to do, 2 at once']
    later = swept[changed].stat().st_mtime + 1      # trained anew since
    os.utime(record, (later, later))
    go([], executed={changed: swept[changed]})
    assert children.started() == [changed.id] * 2
    assert go([changed])[0].startswith('2 of 2 runs are done')      # a table does not need the notebook


def test_force_reaches_the_notebook(children, go, dataset, tmp_path, swept):
    (changed, notebook), *_ = swept.items()
    for run in (changed.teacher(), changed):
        _done(run, dataset, tmp_path)
    go([], executed={changed: notebook}, force=True)
    words = (results.run_folder(changed, dataset, tmp_path / 'results') / 'arguments').read_text().splitlines()
    assert 'force=True' in words and '--force' not in words     # the latter is no flag of `notebook`


def test_a_failing_notebook_is_named_with_its_own_log(children, go, swept):
    (changed, notebook), (plain, _) = swept.items()
    children.fail(changed.id)
    with pytest.raises(BatchError) as told:
        go([], executed=swept)
    assert f'{changed.id}: exit 3, missing (never run); log: {notebook.with_suffix(".log")}' in str(told.value)
    assert plain.id in children.started() and not notebook.exists()


def test_a_changed_experiment_notebook_is_noticed_before_anything_starts(children, go, swept, tmp_path, monkeypatch):
    book = nbformat.v4.new_notebook(metadata={'kernelspec': {
        'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}})
    book.cells = [nbformat.v4.new_code_cell('row = 1\nseed = 2', metadata={'tags': ['parameters']})]
    nbformat.write(book, tmp_path / 'experiment.ipynb')
    monkeypatch.setattr(batch, 'EXPERIMENT', tmp_path / 'experiment.ipynb')
    with pytest.raises(NotebookError, match="experiment has no parameter 'settings', 'force'"):
        go([], executed=swept)
    assert children.started() == []


# ---- failures ---------------------------------------------------------------------------------------------------

def test_a_run_that_does_not_pass_its_check_has_failed(children, go):
    def check(run):
        checked.append(run.id)
        if run.row.is_teacher:
            raise ValueError('not what it should be')
    checked = []
    with pytest.raises(BatchError) as told:
        go([Run.of('retinanet-amd', 'mini'), Run.of('retinanet-baseline', 'mini')], check=check)
    assert set(checked) == {'retinanet-teacher-s0', 'retinanet-baseline-s0'}
    assert str(told.value).splitlines() == [
        '2 of 3 runs failed:', '  retinanet-teacher-s0: ValueError: not what it should be',
        '  retinanet-amd-s0: its teacher retinanet-teacher-s0 failed']
    assert any('retinanet-teacher-s0: FAILED, ValueError' in line for line in go.said)


def test_a_failed_run_does_not_stop_others_and_is_named_with_its_log(children, go, dataset, tmp_path):
    children.fail('retinanet-baseline-s1')
    with pytest.raises(BatchError) as told:
        go([Run.of('retinanet-baseline', 'mini', seed) for seed in range(4)], jobs=1)
    assert len(children.started()) == 4
    log = tmp_path / 'results' / 'mini' / 'runs' / 'retinanet-baseline-s1' / 'console.log'
    assert log.read_text() == 'boom\n'
    assert str(told.value).startswith('1 of 4 runs failed:\n  retinanet-baseline-s1: exit 3')
    assert str(log) in str(told.value)
    assert any('retinanet-baseline-s1: FAILED' in line for line in go.said)


def test_students_of_a_failed_teacher_are_reported_and_not_started(children, go):
    children.fail('retinanet-teacher-s0')
    with pytest.raises(BatchError) as told:
        go(table_runs('table1', 'mini', 'retinanet') + table_runs('table1', 'mini', 'reppoints'))
    assert [name for name in children.started() if name.startswith('retinanet')] == [
        'retinanet-teacher-s0', 'retinanet-baseline-s0']
    assert len([name for name in children.started() if name.startswith('reppoints')]) == 6
    assert str(told.value).startswith('5 of 12 runs failed:')
    for method in ('fkd', 'fgd', 'mgd', 'amd'):
        assert f'  retinanet-{method}-s0: its teacher retinanet-teacher-s0 failed' in str(told.value)


def test_a_child_that_ends_well_without_a_record_has_failed(children, go, monkeypatch):
    monkeypatch.setattr(batch.results, 'state', lambda *_: State('missing', 'never run'))
    with pytest.raises(BatchError, match='exit 0, missing'):
        go([Run.of('retinanet-baseline', 'mini')])


def test_a_killed_child_leaves_the_others_unharmed_and_the_next_call_makes_it_alone(children, go, monkeypatch, dataset,
                                                                                    tmp_path):
    runs = [Run.of('retinanet-baseline', 'mini', seed) for seed in range(4)]
    places = [results.run_folder(run, dataset, tmp_path / 'results') for run in runs]
    monkeypatch.setenv('HANGING', runs[1].id)

    def kill_the_hanging(self):
        if runs[1] in self.running and results.read_progress(places[1]):
            os.kill(self.running[runs[1]].process.pid, signal.SIGKILL)
    with monkeypatch.context() as patch, pytest.raises(BatchError) as told:
        patch.setattr(batch._Batch, '_print_progress', kill_the_hanging)
        go(runs)
    assert str(told.value) == (f'1 of 4 runs failed:\n  {runs[1].id}: exit -9, failed (killed at step 3 of 9); '
                               f'log: {places[1] / "console.log"}')
    assert [(place / 'record.json').is_file() for place in places] == [True, False, True, True]
    monkeypatch.setenv('HANGING', '')
    children.events_file.write_text('')
    said = go(runs)
    assert said[:2] == [f'{runs[1].id} is failed (killed at step 3 of 9): it goes on where it can',
                        '3 of 4 runs are done, 1 to do, 2 at once']
    assert children.started() == [runs[1].id] and (places[1] / 'record.json').is_file()


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
def test_an_interrupt_takes_all_children_along(children, go, monkeypatch, dataset, tmp_path, error):
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
    assert len(groups) == 2 and os.getpgrp() not in groups
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


@pytest.mark.parametrize('visible, expected', [(None, {'0', '1', '2'}), ('4,7,9', {'4', '7', '9'})])
@pytest.mark.parametrize('device', [None, 'cuda'])
def test_each_slot_has_a_card_of_its_own(children, go, monkeypatch, visible, expected, device):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setenv('CHILD_S', '0.4')
    go([Run.of('retinanet-baseline', 'mini', seed) for seed in range(3)], jobs=3, device=device)
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
    assert said[0].endswith('2 at once') and children.most_at_once() == 2
    assert set(_cards(children).values()) == ({'4,5', '6,7'} if visible else {'0,1', '2,3'})


def test_more_gpus_than_there_are_are_not_given_twice(children, go, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    go([Run.of('retinanet-baseline', 'mini', 0, {'gpus': 4})], jobs=None)
    assert list(_cards(children).values()) == ['0,1']    # the run itself then says that two are missing


@pytest.mark.parametrize('count, device', [(0, None), (1, None), (3, 'cuda:2'), (3, 'cpu')])
def test_cards_are_left_alone_where_there_is_one_or_the_user_chose(children, go, monkeypatch, count, device):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    go([Run.of('retinanet-baseline', 'mini')], device=device)
    assert _cards(children) == {'retinanet-baseline-s0': ''}


def test_children_share_the_cores(dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)))
    for jobs, threads in ((1, '8'), (3, '2'), (16, '1')):
        one = batch._Batch([], 0, dataset, None, jobs, False, None, tmp_path, {}, 20, print)
        assert one._environment(0)['OMP_NUM_THREADS'] == threads
    one = batch._Batch([], 0, dataset, None, 2, False, None, tmp_path, {}, 20, print)
    assert one._environment(0, gpus=2)['OMP_NUM_THREADS'] == '2'


def test_children_find_published_weights_as_their_parent_does(dataset, monkeypatch, tmp_path):
    """They work in the kit's folder, where relative paths would be others; a skipped check is skipped there too."""
    (tmp_path / 'w').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('AMD_WEIGHTS', 'w')
    monkeypatch.setenv('AMD_MIRRORS', 'https://there')
    monkeypatch.setenv('AMD_TEACHER_CHECK', '0')
    env = batch._Batch([], 0, dataset, None, 1, False, None, tmp_path, {}, 20, print)._environment(0)
    assert (env['AMD_WEIGHTS'], env['AMD_MIRRORS'], env['AMD_TEACHER_CHECK']) == (f'{tmp_path}/w', 'https://there', '0')


def test_each_child_has_a_port_of_its_own(children, go, dataset, tmp_path):
    """Two distributed runs on one machine would otherwise both ask for torch's default port."""
    runs = [Run.of('retinanet-baseline', 'mini', seed) for seed in range(3)]
    go(runs, jobs=3)
    ports = [int((results.run_folder(run, dataset, tmp_path / 'results') / 'port').read_text()) for run in runs]
    assert len(set(ports)) == 3 and all(1024 <= port < 65536 for port in ports)


# ---- progress ---------------------------------------------------------------------------------------------------

def test_progress_tells_every_running_runs_step(children, go, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv('CHILD_S', '0.5')
    run = Run.of('retinanet-baseline', 'mini')
    place = results.run_folder(run, dataset, tmp_path / 'results')
    place.mkdir(parents=True)
    results.write_json(place / 'progress.json', {'phase': 'train', 'step': 30, 'steps': 120, 's_per_step': 0.5,
                                                 'left_s': 45, 'pid': os.getpid(), 'host': platform.node()})
    said = go([run], line_every_s=0.1)
    assert any(line.startswith('[0/1] 0:00  retinanet-baseline-s0 train 30/120, 2.0 steps/s, 0:45 left')
               for line in said)


def test_progress_names_a_run_that_has_told_nothing_yet(children, go, monkeypatch):
    monkeypatch.setenv('CHILD_S', '0.5')
    said = go([Run.of('retinanet-baseline', 'mini')], line_every_s=0.1)
    assert '[0/1] 0:00  retinanet-baseline-s0 starting' in said
