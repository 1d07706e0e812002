"""targets.py: which notebook tells what, what is trained for it, what is left out where runs fail, and the status."""
import ast
import os

import nbformat
import papermill
import pytest

from amdlib import batch, notebooks, results
from amdlib.experiments import TABLES, Run, SettingError, table_runs
from amdlib.notebooks import NotebookError
from amdlib.results import State
from amdlib.targets import NOTEBOOKS, TARGETS, TargetError, find_targets, reproduce, status

NAMES = ['table1', 'table2', 'table3', 'table4', 'table5', 'table6', 'fig1', 'fig3', 'fig4', 'method', 'explore_masks']


# ---- which there are --------------------------------------------------------------------------------------------

def test_every_table_and_figure_is_a_target():
    assert list(TARGETS) == NAMES
    assert all(name == target.name for name, target in TARGETS.items())
    assert {TARGETS[name].title for name in TABLES} == {
        f'Table {table.number}: {table.title}' for table in TABLES.values()}


@pytest.mark.parametrize('target', TARGETS.values(), ids=TARGETS)
def test_a_targets_notebook_is_there_and_takes_what_every_target_is_given(target):
    known = papermill.inspect_notebook(str(NOTEBOOKS / f'{target.notebook}.ipynb'))
    assert {'profile', 'data', 'results_dir', 'settings', *target.parameters} <= set(known)
    if len(target.groups) > 1:
        assert 'group' in known


@pytest.mark.parametrize('target', TARGETS.values(), ids=TARGETS)
def test_without_being_told_a_target_and_its_notebook_mean_the_same_runs(target):
    """The defaults of the notebook, given to the target, change none of its runs."""
    known = papermill.inspect_notebook(str(NOTEBOOKS / f'{target.notebook}.ipynb'))
    defaults = {name: ast.literal_eval(parameter['default']) for name, parameter in known.items()}
    assert target.runs('mini', defaults) == target.runs('mini', {})


def test_every_stored_notebook_but_the_experiment_belongs_to_a_target():
    stored = {path.stem for path in NOTEBOOKS.glob('*.ipynb')}
    assert stored == {target.notebook for target in TARGETS.values()} | {batch.EXPERIMENT.stem}


def test_find_targets_by_name_and_all():
    assert [target.name for target in find_targets(['fig4', 'table1'])] == ['fig4', 'table1']
    assert [target.name for target in find_targets(['all'])] == NAMES
    assert [target.name for target in find_targets(['all'], 'retinanet')] == [
        'table1', 'table2', 'table5', 'fig1', 'fig3', 'fig4', 'method', 'explore_masks']
    assert [target.name for target in find_targets(['all'], 'faster_rcnn')] == [
        'table1', 'table4', 'table6', 'fig1', 'fig3', 'fig4', 'method', 'explore_masks']


def test_an_unknown_target_is_refused_with_those_there_are():
    with pytest.raises(SettingError) as told:
        find_targets(['table1', 'table7'])
    assert "unknown target 'table7'" in str(told.value) and all(name in str(told.value) for name in [*NAMES, 'all'])


def test_a_targets_runs_by_hand():
    ids = {name: [run.id for run in TARGETS[name].runs('mini', {'group': 'retinanet', 'values': '0.7 1.0'})]
           for name in ('fig1', 'fig3', 'fig4', 'method', 'explore_masks')}
    assert ids == {
        'fig1': ['retinanet-teacher-s0'], 'explore_masks': ['retinanet-teacher-s0'],
        'fig3': [f'retinanet-{row}-s0' for row in ('teacher', 'baseline', 'fgd', 'mgd', 'amd')],
        'fig4': ['retinanet-amd+phi=0.7-s0', 'retinanet-amd-s0'],
        'method': ['retinanet-teacher-s0', 'retinanet-baseline-s0']}
    of_fig4 = TARGETS['fig4'].runs('mini', {})
    assert len(of_fig4) == 7 and of_fig4[3] == Run.of('reppoints-amd', 'mini')     # phi = 1.0
    assert TARGETS['table1'].runs('mini', {'seeds': '0 1', 'settings': 'epochs=2'}) == table_runs(
        'table1', 'mini', None, '0 1', {'epochs': 2})
    given = {'settings': 'epochs=2', 'jobs': '3', 'force': 'True'}
    assert {run.epochs for run in TARGETS['method'].runs('mini', given)} == {2}


# ---- reproduce --------------------------------------------------------------------------------------------------

class Workshop:
    """Stand-ins for the batch that trains and the notebooks that are executed."""

    def __init__(self, monkeypatch):
        self.failing, self.batches, self.executed, self.done = set(), [], [], set()
        self.broken = set()
        monkeypatch.setattr(batch, 'run_missing', self.run_missing)
        monkeypatch.setattr(notebooks, 'execute', self.execute)
        monkeypatch.setattr(results, 'state', lambda run, *_: State('done' if run.id in self.done else 'missing'))

    def run_missing(self, runs, dataset, data=None, **more):
        self.batches.append({'runs': list(runs), 'data': data, **more})
        wanted = batch.with_teachers([*runs, *more['executed']])
        failed = {run.id for run in wanted if run.id in self.failing or run.teacher()
                  and run.teacher().id in self.failing}
        self.done |= {run.id for run in wanted} - failed
        if failed:
            raise batch.BatchError(f'{len(failed)} of {len(wanted)} runs failed: {" ".join(sorted(failed))}')

    def execute(self, notebook, output, parameters):
        given = {name: value for name, value in parameters.items() if value not in ('', None)}   # others change nothing
        self.executed.append((notebook.stem, output, given))
        if output.stem in self.broken:
            raise NotebookError(f'cell [3] of {notebook.name} failed')

    def outputs(self):
        return [output.stem for _, output, _ in self.executed]


@pytest.fixture
def workshop(monkeypatch):
    return Workshop(monkeypatch)


@pytest.fixture
def make(dataset, tmp_path):
    """Names, what is given -> what was said; results lie below tmp_path."""
    def call(names, given=None, data=None):
        said = []
        given = given or {}
        reproduce(find_targets(names, given.get('group')), 'mini', dataset, data, tmp_path, given, say=said.append)
        return said
    return call


def test_several_targets_are_one_batch_and_shared_rows_one_run(workshop, make, tmp_path):
    said = make(['table1', 'table2', 'table5'], {'jobs': '3', 'device': 'cpu', 'settings': 'epochs=2', 'seeds': '0'})
    (one,) = workshop.batches
    assert (one['jobs'], one['device'], one['force'], one['results_dir']) == (3, 'cpu', False, tmp_path)
    started = batch.with_teachers(one['runs'])
    assert len(started) == len(set(started)) == 18 + 4 + 2      # Table II adds four arms, Table V two blocks
    assert {run.epochs for run in started} == {2}
    place = tmp_path / 'mini'
    assert [(stem, output, parameters.get('table')) for stem, output, parameters in workshop.executed] == [
        ('table1', place / 'table1.ipynb', None), ('ablation', place / 'table2.ipynb', 'table2'),
        ('table5', place / 'table5.ipynb', None)]
    assert said == ['\nTable I: The methods compared (table1.ipynb)',
                    '\nTable II: The parts of AMD: RetinaNet (ablation.ipynb)',
                    '\nTable V: Generation blocks (table5.ipynb)']


def test_each_notebook_gets_what_it_knows(workshop, make, tmp_path):
    make(['table1', 'method', 'fig4'], {'group': 'retinanet', 'seeds': '0 1', 'values': '0.7', 'images': '5'},
         data=tmp_path / 'set')
    shared = {'profile': 'mini', 'data': str(tmp_path / 'set'), 'results_dir': str(tmp_path), 'group': 'retinanet'}
    assert {stem: parameters for stem, _, parameters in workshop.executed} == {
        'table1': {**shared, 'seeds': '0 1'}, 'method': shared,
        'fig4': {**shared, 'seeds': '0 1', 'values': '0.7', 'images': '5'}}
    assert workshop.batches[0]['data'] == tmp_path / 'set'


def test_every_run_of_a_sweep_is_an_executed_notebook_in_the_batch(workshop, make, tmp_path):
    make(['table1', 'fig4'], {'group': 'retinanet', 'values': '0.7 1.0'})
    place = tmp_path / 'mini' / 'sweep_phi'
    assert {run.id: path for run, path in workshop.batches[0]['executed'].items()} == {
        'retinanet-amd+phi=0.7-s0': place / 'retinanet-amd+phi=0.7-s0.ipynb',
        'retinanet-amd-s0': place / 'retinanet-amd-s0.ipynb'}


def test_force_trains_once_and_not_again_in_the_notebooks(workshop, make):
    make(['table1', 'table2'], {'force': 'True'})
    assert workshop.batches[0]['force'] is True
    assert not [stem for stem, _, parameters in workshop.executed if 'force' in parameters]


def test_a_single_target_trains_in_its_own_notebook(workshop, make):
    make(['table6'], {'force': 'True', 'jobs': '2'})
    assert workshop.batches == [] and workshop.outputs() == ['table6']
    (_, _, parameters), = workshop.executed
    assert (parameters['force'], parameters['jobs']) == ('True', '2')


def test_what_lacks_a_run_is_named_and_the_rest_is_made(workshop, make):
    workshop.failing = {'retinanet-amd-mask-s0', 'retinanet-amd+phi=0.7-s0'}
    with pytest.raises(TargetError) as told:
        make(['table1', 'table2', 'table5', 'fig1', 'fig4'], {'values': '0.7 1.0', 'group': 'retinanet'})
    assert workshop.outputs() == ['table1', 'table5', 'fig1']
    first, *lines = str(told.value).splitlines()
    assert first.startswith('2 of ') and 'retinanet-amd-mask-s0' in first
    assert lines == ['table2: not made, it lacks retinanet-amd-mask-s0',
                     'fig4: not made, it lacks retinanet-amd+phi=0.7-s0']


def test_a_failed_teacher_leaves_out_all_that_it_teaches(workshop, make):
    workshop.failing = {'faster_rcnn-teacher-s0'}
    with pytest.raises(TargetError) as told:
        make(['table2', 'table4', 'table6'])
    assert workshop.outputs() == ['table2']
    assert [line.partition(':')[0] for line in str(told.value).splitlines()[1:]] == ['table4', 'table6']
    assert 'table6: not made, it lacks faster_rcnn-amd-s0, faster_rcnn-amd-within-s0' in str(told.value)


def test_a_failed_notebook_does_not_stop_the_others(workshop, make):
    workshop.broken = {'table2'}
    with pytest.raises(TargetError) as told:
        make(['table1', 'table2', 'table5'])
    assert workshop.outputs() == ['table1', 'table2', 'table5']
    assert str(told.value) == 'table2: cell [3] of ablation.ipynb failed'
    with pytest.raises(TargetError, match='table2: cell'):      # alone as well
        make(['table2'])


@pytest.mark.parametrize('given', [{'epoch': '1'}, {'settings': 'epochs=1', 'phi': '0.7'}])
def test_a_parameter_that_no_notebook_has_is_refused_before_anything_starts(workshop, make, given):
    name = list(given)[-1]
    with pytest.raises(NotebookError, match=f"has no parameter '{name}'; it has: .*settings"):
        make(['table1', 'table2'], given)
    assert workshop.batches == workshop.executed == []


def test_a_group_that_a_target_lacks_is_refused_before_anything_starts(workshop, make):
    with pytest.raises(SettingError, match="table3 has no group 'retinanet'"):
        make(['table1', 'table3'], {'group': 'retinanet'})
    assert workshop.batches == workshop.executed == []


# ---- status -----------------------------------------------------------------------------------------------------

@pytest.fixture
def standing(monkeypatch, dataset, tmp_path):
    """Run id -> its state; every done run has a record that ended at 1000 s."""
    def stand(**by_row):
        states = {f'retinanet-{row.replace("_", "-")}-s0': found for row, found in by_row.items()}
        monkeypatch.setattr(results, 'state', lambda run, *_: states.get(run.id, State('missing', 'never run')))
        for run_id, found in states.items():
            if found.name == 'done':
                record = tmp_path / 'mini' / 'runs' / run_id / 'record.json'
                record.parent.mkdir(parents=True, exist_ok=True)
                record.touch()
                os.utime(record, (1000, 1000))
    return stand


@pytest.fixture
def told(dataset, tmp_path):
    def call(*names, given=None):
        said = []
        status(find_targets(names), 'mini', dataset, tmp_path, given or {}, say=said.append)
        return '\n'.join(said).splitlines()
    return call


def done(mean_ap):
    return State('done', '', {'numbers': {'mAP': mean_ap}})


def test_status_tells_every_run_with_its_state_reason_and_targets(standing, told):
    standing(teacher=done(50.04), baseline=State('stale', 'made with other code', {'numbers': {'mAP': 1.0}}),
             amd=State('running', 'step 3 of 9'), amd_mbconv=State('failed', 'killed at step 2 of 9'))
    lines = told('table5', 'method')
    assert [line.split() for line in lines[:5]] == [
        ['retinanet-teacher-s0', 'done', '50.0', 'mAP', '[method]'],
        ['retinanet-amd-mbconv-s0', 'failed', 'killed', 'at', 'step', '2', 'of', '9', '[table5]'],
        ['retinanet-amd-conv1-s0', 'missing', 'never', 'run', '[table5]'],
        ['retinanet-amd-s0', 'running', 'step', '3', 'of', '9', '[table5]'],
        ['retinanet-baseline-s0', 'stale', 'made', 'with', 'other', 'code', '[method]']]
    assert lines[5:7] == ['', '5 runs: 1 done, 1 failed, 1 missing, 1 running, 1 stale']
    assert [line.split() for line in lines[7:]] == [
        ['table5', '0', 'of', '3', 'runs', 'done;', 'not', 'executed', 'yet'],
        ['method', '1', 'of', '2', 'runs', 'done;', 'not', 'executed', 'yet']]


def test_a_run_that_several_targets_need_stands_there_once_and_a_teacher_says_so(standing, told):
    standing()
    lines = told('table2', 'table5')
    assert lines[0].split() == ['retinanet-teacher-s0', 'missing', 'never', 'run', '[as', 'a', 'teacher]']
    (shared,) = [line for line in lines if line.startswith('retinanet-amd-s0 ')]
    assert shared.endswith('[table2 table5]')
    assert f'{1 + 6 + 2} runs: 9 missing' in lines


def _executed(path, at_s):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(), path)
    os.utime(path, (at_s, at_s))


def test_status_tells_whether_a_targets_notebook_was_executed_failed_or_is_older(standing, told, tmp_path):
    standing(teacher=done(50), baseline=done(40))
    place = tmp_path / 'mini'
    assert told('method')[-1].endswith('2 of 2 runs done; not executed yet')
    _executed(place / 'method.ipynb', 1001)
    assert told('method')[-1].endswith('2 of 2 runs done; executed')
    _executed(place / 'method.ipynb', 999)
    assert told('method')[-1].endswith('; executed before retinanet-teacher-s0, retinanet-baseline-s0 ended')
    _executed(place / 'method.failed.ipynb', 1002)
    assert told('method')[-1].endswith(f'; its notebook failed: {place / "method.failed.ipynb"}')


def test_status_follows_what_is_given(standing, told):
    standing(teacher=done(50))
    lines = told('fig1', given={'group': 'faster_rcnn', 'settings': 'epochs=2'})
    assert lines[0].split()[:2] == ['faster_rcnn-teacher+epochs=2-s0', 'missing']
