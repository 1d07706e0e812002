"""targets.py: which notebook tells what, what is trained for it, what is left out where runs fail, and the status."""
import ast
import os

import nbformat
import papermill
import pytest

from amdlib.errors import RunError, SettingError
from amdlib.paper.pairs import GROUPS
from amdlib.paper.tables import PHI, TABLES
from amdlib.runs import batch, listing, notebooks
from amdlib.runs.run import Run, row_runs, table_runs, with_teachers
from amdlib.runs.store import State, Store
from amdlib.runs.targets import TARGETS, Given, find_targets, reproduce, status
from tests.show.records import finish

every_target = pytest.mark.parametrize('target', TARGETS.values(), ids=TARGETS)


# ---- which there are --------------------------------------------------------------------------------------------

def test_every_table_is_a_target():
    assert list(TARGETS)[:len(TABLES)] == list(TABLES)
    assert all(name == target.name for name, target in TARGETS.items())
    for name, table in TABLES.items():
        assert TARGETS[name].title == table.heading
        assert TARGETS[name].groups == table.groups


@every_target
def test_a_targets_notebook_is_there_and_takes_what_every_target_is_given(target):
    known = papermill.inspect_notebook(str(target.file))
    assert {'profile', 'data', 'how', 'settings', *target.parameters} <= set(known)
    if len(target.groups) > 1:
        assert 'group' in known


@every_target
def test_without_being_told_a_target_and_its_notebook_mean_the_same_runs(target, store):
    """The defaults of the notebook, given to the target, change none of its runs."""
    known = papermill.inspect_notebook(str(target.file))
    defaults = {name: ast.literal_eval(known[name]['default']) for name in ('group', 'seeds', 'values', 'settings')
                if name in known}
    given = Given(**{name: tuple(value) if isinstance(value, list) else value for name, value in defaults.items()})
    assert target.runs(store, given) == target.runs(store, Given())


def test_find_targets_by_name_and_all():
    assert [target.name for target in find_targets(['fig4', 'table1'])] == ['fig4', 'table1']
    assert find_targets(['all']) == [target for target in TARGETS.values() if not target.ours]
    assert find_targets(['zoo']) == [TARGETS['zoo']]
    for group in GROUPS:
        of_others = {name for name, table in TABLES.items() if group not in table.groups}
        assert [target.name for target in find_targets(['all'], group)] == [
            name for name in TARGETS if name not in {*of_others, 'zoo'}]


@pytest.mark.parametrize(('call', 'words'), [
    (lambda: find_targets(['table1', 'table7']), ["unknown target 'table7'", *TARGETS, 'all']),
    (lambda: find_targets(['all'], 'retina'), ["'retina'", *GROUPS]),
    (lambda: find_targets(['table1'], 'retina'), ["'retina'", *GROUPS]), (lambda: Given(group='retina'), ["'retina'"])])
def test_what_is_unknown_is_refused_with_what_there_is(call, words):
    with pytest.raises(SettingError) as told:
        call()
    assert [word for word in words if word not in str(told.value)] == []


def test_a_targets_runs_by_hand(store):
    given = Given('retinanet', values=(0.7, 1.0))
    ids = {name: [run.id for run in TARGETS[name].runs(store, given)]
           for name in ('fig1', 'fig3', 'fig4', 'method', 'explore_masks')}
    assert ids == {
        'fig1': ['retinanet-teacher-s0'], 'explore_masks': ['retinanet-teacher-s0'],
        'fig3': [f'retinanet-{row}-s0' for row in ('teacher', 'baseline', 'fgd', 'mgd', 'amd')],
        'fig4': ['retinanet-amd+phi=0.7-s0', 'retinanet-amd-s0'],
        'method': ['retinanet-teacher-s0', 'retinanet-baseline-s0']}
    of_fig4 = TARGETS['fig4'].runs(store, Given())
    assert [run.value('phi') for run in of_fig4] == list(PHI)
    assert Run.of('reppoints-amd', store.profile) in of_fig4
    given = Given(seeds=(0, 1), settings={'epochs': 2})
    assert TARGETS['table1'].runs(store, given) == table_runs('table1', store.profile, None, (0, 1), {'epochs': 2})
    assert {run.epochs for run in TARGETS['method'].runs(store, given)} == {2}


def test_arm_and_controls_reach_the_runs_and_the_notebooks(store):
    given = Given('retinanet', arm='inherit', controls=True)
    assert given.parameters() == {'group': 'retinanet', 'seeds': [0], 'arm': 'inherit', 'controls': True}
    assert TARGETS['table1'].runs(store, given) == table_runs('table1', store.profile, 'retinanet', arm='inherit',
                                                             controls=True)
    assert {run.arm for run in TARGETS['fig4'].runs(store, given)} == {'inherit'}


def test_calibrated_reaches_the_runs_and_the_notebooks(store, monkeypatch):
    monkeypatch.setattr('amdlib.runs.targets.with_factors', lambda runs, given: [('weighted', run) for run in runs])
    given = Given('retinanet', calibrated=True)
    assert given.parameters() == {'group': 'retinanet', 'seeds': [0], 'calibrated': True}
    for name in ('table1', 'fig4'):
        assert TARGETS[name].runs(store, given) == [
            ('weighted', run) for run in TARGETS[name].runs(store, Given('retinanet'))]


def test_a_loss_of_ones_own_is_a_line_of_a_table(store, mine):
    runs = TARGETS['table1'].runs(store, Given('retinanet', methods=(mine,)))
    assert runs[-1] == Run.of(f'retinanet-{mine}', store.profile)
    assert runs[:-1] == TARGETS['table1'].runs(store, Given('retinanet'))


# ---- reproduce --------------------------------------------------------------------------------------------------

class Workshop:
    """Stand-ins for the batch that trains, the notebooks, and their execution."""

    def __init__(self, monkeypatch, folder):
        self.failing, self.batches, self.executed, self.done = set(), [], [], set()
        self.broken = set()
        monkeypatch.setattr(batch, 'run_missing', self.run_missing)
        monkeypatch.setattr(notebooks, 'execute', self.execute)
        monkeypatch.setattr(notebooks, 'NOTEBOOKS', folder)
        monkeypatch.setattr(Store, 'state', lambda _, run: State('done' if run.id in self.done else 'missing'))
        folder.mkdir()
        for target in TARGETS.values():
            names = ['profile', 'data', 'how', 'group', 'settings', *target.parameters]
            names += ['seeds', 'methods', 'force', 'arm', 'controls'] if target.name in TABLES else []
            names += ['seeds', 'values', 'arm'] if target.sweep else []
            book = nbformat.v4.new_notebook(metadata={'kernelspec': {
                'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}})
            book.cells = [nbformat.v4.new_code_cell('\n'.join(f'{name} = None' for name in names),
                                                    metadata={'tags': ['parameters']})]
            nbformat.write(book, target.file)

    def run_missing(self, runs, store, *, force, executed):
        self.batches.append({'runs': list(runs), 'force': force, 'executed': executed})
        wanted = with_teachers([*runs, *executed])
        failed = {run.id for run in wanted if run.id in self.failing or run.teacher()
                  and run.teacher().id in self.failing}
        self.done |= {run.id for run in wanted} - failed
        if failed:
            raise RunError(f'{len(failed)} of {len(wanted)} runs failed: {" ".join(sorted(failed))}')

    def execute(self, notebook, output, parameters):
        given = {name: value for name, value in parameters.items() if value is not None}    # None changes nothing
        self.executed.append((notebook.stem, output, given))
        if output.stem in self.broken:
            raise RunError(f'cell [3] of {notebook.name} failed')

    def outputs(self):
        return [output.stem for _, output, _ in self.executed]


@pytest.fixture
def workshop(monkeypatch, tmp_path):
    return Workshop(monkeypatch, tmp_path / 'notebooks')


@pytest.fixture
def make(store, said):
    """Names, what is given -> what was said."""
    def call(names, **given):
        given = Given(**given)
        return said(reproduce, find_targets(names, given.group), call.store, given)
    call.store = store
    return call


def test_several_targets_are_one_batch_and_shared_rows_one_run(workshop, make, store):
    names = ['table1', 'table2', 'table5']
    said = make(names, settings={'epochs': 2})
    (one,) = workshop.batches
    assert one['force'] is False
    started = with_teachers(one['runs'])
    assert sorted(run.row.id for run in started) == sorted({row.id for name in names for row in TABLES[name].rows()})
    assert {run.epochs for run in started} == {2}
    assert [(stem, output, parameters.get('table')) for stem, output, parameters in workshop.executed] == [
        ('table1', store.folder / 'table1.ipynb', None), ('ablation', store.folder / 'table2.ipynb', 'table2'),
        ('table5', store.folder / 'table5.ipynb', None)]
    assert said[:3] == ['\nTable I: The methods compared (table1.ipynb)',
                        '\nTable II: The parts of AMD: RetinaNet (ablation.ipynb)',
                        '\nTable V: Generation blocks (table5.ipynb)']
    assert said[3].startswith(f'\nopen {store.folder}: ')


def test_each_notebook_gets_what_it_knows(workshop, make, store, mine):
    make.store = store.with_means(device='cpu')
    make(['table1', 'method', 'fig4'], group='retinanet', seeds=(0, 1), values=(0.7,), methods=(mine,))
    shared = {'profile': 'mini', 'group': 'retinanet', 'how': {'results': str(store.results),
                                                              **make.store.means.to_dict()}}
    assert {stem: parameters for stem, _, parameters in workshop.executed} == {
        'table1': {**shared, 'seeds': [0, 1], 'methods': [mine]}, 'method': shared,
        'fig4': {**shared, 'seeds': [0, 1], 'values': [0.7]}}


def test_every_run_of_a_sweep_is_an_executed_notebook_in_the_batch(workshop, make, store):
    make(['table1', 'fig4'], group='retinanet', values=(0.7, 1.0))
    folder = store.folder / 'sweep_phi'
    assert {run.id: path for run, path in workshop.batches[0]['executed'].items()} == {
        'retinanet-amd+phi=0.7-s0': folder / 'retinanet-amd+phi=0.7-s0.ipynb',
        'retinanet-amd-s0': folder / 'retinanet-amd-s0.ipynb'}


def test_force_trains_once_and_not_again_in_the_notebooks(workshop, make):
    make(['table1', 'table2'], force=True)
    assert workshop.batches[0]['force'] is True
    assert not [stem for stem, _, parameters in workshop.executed if 'force' in parameters]


def test_a_single_target_trains_in_its_own_notebook(workshop, make, store):
    make.store = store.with_means(jobs=2)
    make(['table6'], force=True)
    assert (workshop.batches, workshop.outputs()) == ([], ['table6'])
    ((_, _, parameters),) = workshop.executed
    assert (parameters['force'], parameters['how']['jobs']) == (True, 2)


def test_what_lacks_a_run_is_named_and_the_rest_is_made(workshop, make):
    workshop.failing = {'retinanet-amd-mask-s0', 'retinanet-amd+phi=0.7-s0'}
    with pytest.raises(RunError) as told:
        make(['table1', 'table2', 'table5', 'fig1', 'fig4'], values=(0.7, 1.0), group='retinanet')
    assert workshop.outputs() == ['table1', 'table5', 'fig1']
    first, *lines = str(told.value).splitlines()
    assert first.startswith('2 of ')
    assert 'retinanet-amd-mask-s0' in first
    assert lines == ['table2: not made, it lacks retinanet-amd-mask-s0',
                     'fig4: not made, it lacks retinanet-amd+phi=0.7-s0']


def test_a_failed_teacher_leaves_out_all_that_it_teaches(workshop, make):
    workshop.failing = {'faster_rcnn-teacher-s0'}
    with pytest.raises(RunError) as told:
        make(['table2', 'table4', 'table6'])
    assert workshop.outputs() == ['table2']
    assert [line.partition(':')[0] for line in str(told.value).splitlines()[1:]] == ['table4', 'table6']
    assert 'table6: not made, it lacks faster_rcnn-amd-s0, faster_rcnn-amd-within-s0' in str(told.value)


def test_a_failed_notebook_does_not_stop_the_others(workshop, make):
    workshop.broken = {'table2'}
    with pytest.raises(RunError) as told:
        make(['table1', 'table2', 'table5'])
    assert workshop.outputs() == ['table1', 'table2', 'table5']
    assert str(told.value) == 'table2: cell [3] of ablation.ipynb failed'
    with pytest.raises(RunError, match='table2: cell'):      # alone as well
        make(['table2'])


@pytest.mark.parametrize(('names', 'given'), [
    (['fig1', 'fig4'], {'controls': True}), (['fig1', 'method'], {'arm': 'inherit'}),
    (['table1', 'table2'], {'values': (0.7,)}), (['fig1', 'method'], {'seeds': (0, 1)}),
    (['fig1', 'fig4'], {'methods': ('mine',)})])
def test_what_no_notebook_takes_is_refused_before_anything_starts(workshop, make, mine, names, given):
    given = {name: (mine,) if name == 'methods' else value for name, value in given.items()}
    with pytest.raises(RunError, match=f"has no parameter '{list(given)[0]}'; it has: .*settings"):
        make(names, **given)
    assert workshop.batches == workshop.executed == []


def test_a_group_that_a_target_lacks_is_refused_before_anything_starts(workshop, make):
    with pytest.raises(SettingError, match="table3 has no group 'retinanet'"):
        make(['table1', 'table3'], group='retinanet')
    assert workshop.batches == workshop.executed == []


# ---- status -----------------------------------------------------------------------------------------------------

@pytest.fixture
def standing(workshop, monkeypatch, store):
    """Run id -> its state; every done run has a record that ended at 1000 s."""
    def stand(**by_row):
        states = {f'retinanet-{row.replace("_", "-")}-s0': found for row, found in by_row.items()}
        monkeypatch.setattr(Store, 'state', lambda _, run: states.get(run.id, State('missing', 'never run')))
        for run_id, found in states.items():
            if found.name == 'done':
                record = store.folder / 'runs' / run_id / 'record.json'
                record.parent.mkdir(parents=True, exist_ok=True)
                record.touch()
                os.utime(record, (1000, 1000))
    return stand


@pytest.fixture
def told(store, said):
    def call(*names, **given):
        return '\n'.join(said(status, find_targets(names), store, Given(**given))).splitlines()
    return call


def done(mean_ap, note=''):
    return State('done', '', {'numbers': {'mAP': mean_ap}}, note)


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
    assert [line.split() for line in lines[7:9]] == [
        ['table5', '0', 'of', '3', 'runs', 'done;', 'not', 'executed', 'yet'],
        ['method', '1', 'of', '2', 'runs', 'done;', 'not', 'executed', 'yet']]
    assert lines[9:] == ['', '1 of 5 done, no run to tell the time from, next: make reproduce-table5']


def test_status_ends_with_the_time_that_is_left_by_the_runs_that_were_made(standing, told, store, monkeypatch):
    standing()
    finish(store, Run.of('retinanet-baseline', store.profile, 3), wall_s=600.0)     # of one epoch
    finish(store, Run.of('retinanet-amd', store.profile, 3), wall_s=1200.0)
    monkeypatch.setattr(listing, 'default_jobs', lambda _device: 2)
    assert told('method', group='retinanet', settings={'epochs': 2})[-1] == (
        '0 of 2 done, about 10 min (2 at once) for 1 of 2, no run to tell from for the others, next: make '
        'reproduce-method GROUP=retinanet')     # a teacher is trained otherwise than students
    assert '0 of 5 done, about 30 min (2 at once) for 4 of 5, ' in told('fig3')[-1]     # FGD's and MGD's: the median
    assert ', no run to tell the time from, ' in told('fig3', group='reppoints')[-1]
    standing(teacher=done(50), baseline=done(40))
    _executed(store.folder / 'method.ipynb', 1001)
    assert told('method')[-1] == '2 of 2 done, next: make report'


def test_status_counts_runs_that_were_never_run_where_they_are_many(standing, told):
    standing(teacher=done(50))
    lines = told('table2', 'table5', 'fig4')
    (never,) = [line for line in lines if ' never run: ' in line]
    count = int(never.split()[0])
    assert count > 8
    assert f'1 of {count + 1} done' in lines[-1]
    assert never.endswith(f', and {count - 5} more')
    assert not [line for line in lines if line.startswith('retinanet-amd-s0 ')]


def test_status_tells_of_other_versions(standing, told):
    standing(teacher=done(50, 'made with torch 2.13.0, now 2.14.1'))
    assert told('fig1')[0].endswith('done     50.0 mAP (made with torch 2.13.0, now 2.14.1)  [fig1]')


def test_a_run_that_several_targets_need_stands_there_once_and_a_teacher_says_so(standing, told, store, monkeypatch):
    standing()
    monkeypatch.setattr(listing, 'LISTED', 99)
    lines = told('table2', 'table5')
    assert lines[0].split() == ['retinanet-teacher-s0', 'missing', 'never', 'run', '[as', 'a', 'teacher]']
    (shared,) = [line for line in lines if line.startswith('retinanet-amd-s0 ')]
    assert shared.endswith('[table2 table5]')
    runs = with_teachers([*table_runs('table2', store.profile), *table_runs('table5', store.profile)])
    assert f'{len(runs)} runs: {len(runs)} missing' in lines


def _executed(path, at_s):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(), path)
    os.utime(path, (at_s, at_s))


def test_status_tells_whether_a_targets_notebook_was_executed_failed_or_is_older(standing, told, store):
    standing(teacher=done(50), baseline=done(40))
    assert told('method')[-3].endswith('2 of 2 runs done; not executed yet')
    _executed(store.folder / 'method.ipynb', 1001)
    assert told('method')[-3].endswith('2 of 2 runs done; executed')
    _executed(store.folder / 'method.ipynb', 999)
    assert told('method')[-3].endswith('; executed before retinanet-teacher-s0, retinanet-baseline-s0 ended')
    failed = store.folder / 'method.failed.ipynb'
    _executed(failed, 1002)
    assert told('method')[-3].endswith(f'; its notebook failed: {failed}')


def test_status_follows_what_is_given(standing, told, store):
    standing(teacher=done(50))
    lines = told('fig1', group='faster_rcnn', settings={'epochs': 2})
    (run,) = row_runs('faster_rcnn', ['teacher'], store.profile, 0, {'epochs': 2})
    assert lines[0].split()[:2] == [run.id, 'missing']
