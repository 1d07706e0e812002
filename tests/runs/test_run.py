"""run.py: runs by name, their teachers and files; the runs behind tables, figures and sweeps; runs as JSON."""
import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest

from amdlib import methods
from amdlib.errors import SettingError, WeightsError
from amdlib.files import ROOT
from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import paper_groups
from amdlib.paper.profiles import DRY_RUN, PROFILES
from amdlib.paper.rows import ROWS, find_row
from amdlib.paper.tables import TABLES
from amdlib.runs import run as run_module
from amdlib.runs.recipe import Means
from amdlib.runs.run import Run, row_runs, sweep_runs, table_runs, with_teachers
from amdlib.weights import published
from amdlib.weights.published import Sources

METHOD_ROWS = [row.id for row in ROWS.values() if row.method]


# ---- one run ----------------------------------------------------------------------------------------------------

def test_ids_are_unique_stable_and_carry_the_settings():
    assert Run.of('retinanet-amd', 'mini').id == 'retinanet-amd-s0'
    assert Run.of('reppoints-amd', 'mini', 2, {'phi': 0.7}).id == 'reppoints-amd+phi=0.7-s2'
    first, second = {'phi': 0.7, 'epochs': 3}, {'epochs': 3, 'phi': 0.7}
    assert Run.of('retinanet-amd', 'mini', 0, first) == Run.of('retinanet-amd', 'mini', 0, second)
    assert Run.of('retinanet-amd', 'mini', 0, first).id == 'retinanet-amd+epochs=3+phi=0.7-s0'
    runs = [Run.of(row, 'mini', seed, settings) for row in METHOD_ROWS for seed in (0, 1)
            for settings in ({}, {'epochs': 3}, {'lr': 0.001})]
    assert len({run.id for run in runs}) == len(set(runs)) == len(runs)


def test_a_file_stands_in_the_name_without_its_folder(weight_file):
    run = Run.of('retinanet-baseline', 'mini', 0, {'backbone': str(weight_file)})
    assert run.id == 'retinanet-baseline+backbone=r18-s0'


def test_a_setting_that_is_the_rows_own_value_is_the_row_itself():
    assert Run.of('retinanet-amd', 'mini', 0, {'mask_ratio': 0.65}) == Run.of('retinanet-amd', 'mini')
    assert Run.of('faster_rcnn-amd', 'mini', 0, {'mask_ratio': 0.65}).id == 'faster_rcnn-amd+mask_ratio=0.65-s0'
    assert Run.of('retinanet-amd-channel', 'mini', 0, {'spatial': 'random'}).id == 'retinanet-amd-channel-s0'


def test_a_runs_value_of_an_option_is_the_settings_the_rows_or_the_class_own():
    assert Run.of('retinanet-amd', 'mini', 0, {'phi': 0.7}).value('phi') == 0.7
    assert Run.of('retinanet-amd', 'mini').value('phi') == ROWS['retinanet-amd'].value('phi') == 1.0
    assert Run.of('faster_rcnn-amd', 'mini').value('mask_ratio') == 0.45        # of the row, at the paper's scale
    assert Run.of('faster_rcnn-amd', 'mini').value('alpha') == 5e-7
    assert ROWS['faster_rcnn-amd-within'].value('channel_position') == 'within'
    assert ROWS['faster_rcnn-amd'].value('channel_position') == 'after'


@pytest.mark.parametrize('row', METHOD_ROWS)
def test_the_paper_profile_leaves_weights_as_they_are(row):
    options = Run.of(row, 'paper').options()
    assert set(ROWS[row].options) <= set(options)
    assert all(value == ROWS[row].value(name) for name, value in options.items())


def test_a_weight_given_as_a_setting_is_on_the_papers_scale_too(tiny):
    row, given = Run.of('retinanet-amd', tiny).options(), Run.of('retinanet-amd', tiny, 0, {'alpha': 4e-5}).options()
    assert given['alpha'] == pytest.approx(2 * row['alpha'])


@pytest.mark.parametrize('profile', [*PROFILES.values(), DRY_RUN], ids=lambda profile: profile.name)
@pytest.mark.parametrize('row', ROWS)
def test_epochs_are_the_rows_its_kinds_or_the_students(profile, row):
    run, by = Run.of(row, profile), profile.epochs
    kind = 'teacher' if ROWS[row].is_teacher else ROWS[row].group.name
    assert run.epochs == by.get(row, by.get(kind, by['student']))
    assert replace(run, recipe=replace(run.recipe, epochs=99)).epochs == 99


def test_images_behind_an_update():
    run = Run.of('retinanet-baseline', 'paper', 0, {'gpus': 4, 'accumulate': 2})
    assert (run.batch_size, run.images_per_update) == (2, 16)
    assert Run.of('retinanet-baseline', 'paper', 0, {'batch_size': 3}).images_per_update == 3


# ---- teachers ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('row', ['retinanet-amd', 'retinanet-inherit'])
def test_a_trained_teacher_takes_the_recipe_and_a_seed_of_its_own(row):
    shared = {'epochs': 2, 'lr': 0.01, 'batch_size': 3, 'amp': True}
    run = Run.of(row, 'small', 3, shared)
    assert run.teacher() == Run.of('retinanet-teacher', 'small', 0, shared)
    other = Run.of(row, 'small', 3, {**shared, 'teacher_seed': 4})
    assert other.teacher() == Run.of('retinanet-teacher', 'small', 4, shared)
    assert other.id == run.id.replace('-s3', '+teacher_seed=4-s3')


def test_which_rows_have_a_teacher():
    assert Run.of('faster_rcnn-fgd', 'mini').teacher().id == 'faster_rcnn-teacher-s0'
    assert Run.of('retinanet-inherit', 'mini').teacher().id == 'retinanet-teacher-s0'
    for row in ('baseline', 'teacher', 'untrained'):
        assert Run.of(f'retinanet-{row}', 'mini').teacher() is None


def test_no_setting_of_a_student_reaches_a_shipped_teacher(weight_file):
    shared = {'epochs': 2, 'lr': 0.01, 'batch_size': 3}
    shipped = Run.of('retinanet-teacher', 'mini')
    for row, settings in (('amd', {**shared, 'phi': 0.5}), ('amd', {'factor': 0.1, 'split': 'val'}),
                          ('inherit', {**shared, 'optimizer': 'sgd'})):
        assert Run.of(f'retinanet-{row}', 'mini', 3, settings).teacher() == shipped
    seeded = Run.of('retinanet-amd', 'mini', 0, {**shared, 'teacher_seed': 2})
    assert seeded.teacher() == replace(shipped, seed=2)
    fresh = Run.of('retinanet-amd', 'mini', 0, {**shared, 'teachers': 'fresh'})
    assert fresh.teacher() == Run.of('retinanet-teacher', 'mini', 0, {**shared, 'teachers': 'fresh'})
    for key in ('checkpoint', 'backbone'):      # what is said of the teacher does
        given = Run.of('retinanet-amd', 'mini', 0, {**shared, f'teacher_{key}': str(weight_file)})
        assert given.teacher() == Run.of('retinanet-teacher', 'mini', 0, {key: str(weight_file)})


@pytest.mark.parametrize('profile', PROFILES)
def test_no_setting_reaches_an_untrained_teacher(profile, weight_file):
    settings = {'epochs': 2, 'lr': 0.01, 'teacher_checkpoint': str(weight_file), 'teacher_backbone': str(weight_file)}
    assert Run.of('retinanet-amd-untrained', profile, 3, settings).teacher() == Run.of('retinanet-untrained', profile)


def test_fresh_teachers_are_asked_for_where_some_are_shipped():
    assert Run.of('retinanet-amd', 'small', 0, {'teachers': 'fresh'}) == Run.of('retinanet-amd', 'small')
    with pytest.raises(SettingError, match='teachers=fresh: teachers of profile paper are published, none is trained'):
        Run.of('retinanet-amd', 'paper', 0, {'teachers': 'fresh'})


@pytest.fixture
def shipping(tmp_path, monkeypatch):
    """Puts a file below the kit's folder, as it ships them; returns its path relative to that."""
    monkeypatch.setattr(run_module, 'ROOT', tmp_path)

    def put(name, content=b'weights'):
        file = tmp_path / PROFILES['mini'].shipped / f'{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return str(file.relative_to(tmp_path))
    return put


def test_shipped_teachers_are_taken_unless_fresh_ones_are_asked_for(shipping, tmp_path, weight_file):
    teacher = Run.of('retinanet-teacher', 'mini')
    assert teacher.published_files() == {}      # none is shipped: it is trained
    file, second = shipping('retinanet-teacher-s0'), shipping('retinanet-teacher-s1', b'second')
    assert teacher.published_files() == {'checkpoint': file}
    assert teacher.find_files(Sources()) == {'checkpoint': str(tmp_path / file)}
    assert Run.of('retinanet-amd', 'mini', 5).teacher().published_files() == {'checkpoint': file}
    seeded = Run.of('retinanet-amd', 'mini', 5, {'teacher_seed': 1}).teacher()
    assert seeded.published_files() == {'checkpoint': second}
    for settings in ({'teachers': 'fresh'}, {'epochs': 3}, {'backbone': str(weight_file)},
                     {'checkpoint': str(weight_file)}):         # what a teacher is told to be, it is
        assert Run.of('retinanet-teacher', 'mini', 0, settings).published_files() == {}
    for run in (Run.of('retinanet-untrained', 'mini'), Run.of('reppoints-teacher', 'mini'),
                Run.of('retinanet-teacher', 'small'), Run.of('retinanet-baseline', 'mini')):
        assert run.published_files() == {}
    (tmp_path / file).write_bytes(b'damaged')
    with pytest.raises(WeightsError, match='damaged or another file'):
        teacher.find_files(Sources())
    shipping('retinanet-teacher-s0', b'another')
    with pytest.raises(SettingError, match='more than one retinanet-teacher-s0'):
        teacher.published_files()


def test_students_start_from_a_shipped_backbone(shipping, weight_file):
    file = shipping('backbone')
    for row in ('retinanet-baseline', 'retinanet-inherit', 'faster_rcnn-amd'):
        assert Run.of(row, 'mini').published_files() == {'backbone': file}
        assert Run.of(row, 'mini', 0, {'backbone': str(weight_file)}).published_files() == {}
    for row in ('retinanet-teacher', 'retinanet-untrained'):
        assert Run.of(row, 'mini').published_files() == {}


# ---- arms, levels, scales ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('profile', [*PROFILES.values(), DRY_RUN], ids=lambda profile: profile.name)
@pytest.mark.parametrize('group', GROUPS)
def test_how_a_student_starts(profile, group):
    one_stage = GROUPS[group].one_stage
    head = ('neck', 'bbox_head') if one_stage else ('neck', 'rpn_head')
    assert Run.of(f'{group}-inherit', profile).inherits == head
    for row in ('baseline', 'teacher', 'untrained'):
        assert (Run.of(f'{group}-{row}', profile).inherits, Run.of(f'{group}-{row}', profile).arm) == ((), 'alone')
    run = Run.of(f'{group}-amd', profile)
    assert run.arm == (profile.arm if one_stage else 'alone')
    assert run.inherits == (head if run.arm == 'inherit' else ())
    if one_stage:
        for wanted, arm in ((True, 'inherit'), (False, 'alone')):
            assert Run.of(f'{group}-amd', profile, 0, {'inherit': wanted}).arm == arm
    else:
        assert Run.of(f'{group}-amd', profile, 0, {'inherit': False}) == run
        with pytest.raises(SettingError, match='a two-stage student of a method starts alone'):
            Run.of(f'{group}-amd', profile, 0, {'inherit': True})


def test_an_arm_of_a_table_is_that_of_its_one_stage_methods():
    for settings, arm in (({'inherit': True}, None), ({}, 'inherit')):
        runs = table_runs('table1', 'mini', settings=settings, arm=arm)
        assert {run.id for run in runs if run.settings} == {
            f'{run.row.id}+inherit=True-s0' for run in runs if run.row.method and run.row.group.one_stage}
    assert table_runs('table1', 'mini', arm='alone') == table_runs('table1', 'mini')


def test_levels_and_scales_of_a_run():
    run = Run.of('retinanet-amd', 'mini', 1, {'levels': [2, 0, 1], 'reference': 0.25, 'one_scale': True})
    assert run.id == 'retinanet-amd+levels=0-1-2+one_scale=True+reference=0.25-s1'
    assert (run.levels, run.reference_rms) == ((0, 1, 2), 0.25)
    plain = Run.of('retinanet-amd', 'mini')
    assert (plain.levels, plain.reference_rms) == (GROUPS['retinanet'].levels, PROFILES['mini'].reference_rms)
    assert Run.of('retinanet-amd', 'mini', 0, {'levels': (0, 1, 2, 3, 4)}) == plain
    for profile in ('small', 'paper'):
        assert Run.of('retinanet-amd', profile).reference_rms is None
    for row in ('baseline', 'inherit', 'teacher'):      # no loss looks at features
        assert Run.of(f'retinanet-{row}', 'mini').reference_rms is None


@pytest.mark.parametrize('row', METHOD_ROWS)
def test_a_factor_is_on_every_weight(row):
    plain, less = Run.of(row, 'mini').options(), Run.of(row, 'mini', 0, {'factor': 0.1}).options()
    weights = methods.find_method(ROWS[row].method).WEIGHT_EXPONENTS
    assert less == {key: pytest.approx(value / 10) if key in weights else value for key, value in plain.items()}


def test_with_teachers_names_each_run_once_and_teachers_first():
    student, other = Run.of('retinanet-amd', 'mini'), Run.of('retinanet-mgd', 'mini', 1)
    teacher = Run.of('retinanet-teacher', 'mini')
    assert with_teachers([student, other, student]) == [teacher, student, other]
    assert with_teachers([student, teacher]) == [teacher, student]
    assert with_teachers([Run.of('retinanet-baseline', 'mini')]) == [Run.of('retinanet-baseline', 'mini')]
    fresh = {'epochs': 2, 'teachers': 'fresh'}      # another schedule, another teacher
    assert with_teachers([student, Run.of('retinanet-amd', 'mini', 0, fresh)])[:2] == [
        teacher, Run.of('retinanet-teacher', 'mini', 0, fresh)]
    control = Run.of('retinanet-amd-untrained', 'mini')
    assert with_teachers([control, student]) == [Run.of('retinanet-untrained', 'mini'), teacher, control, student]


# ---- published weights ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('row', ROWS)
def test_what_a_row_takes_from_the_zoo(row):
    nothing_shipped = replace(PROFILES['mini'], shipped='data/teachers/none')
    assert Run.of(row, nothing_shipped).published_files() == Run.of(row, 'small').published_files() == {}
    assert Run.of(row, DRY_RUN).published_files() == {}
    if ROWS[row].name == 'untrained':
        assert Run.of(row, 'paper').published_files() == {}
        return
    ((key, url),) = Run.of(row, 'paper').published_files().items()
    if ROWS[row].is_teacher:
        assert (key, url) == ('checkpoint', ROWS[row].group.teacher_url)
    else:
        assert key == 'backbone'
        assert url.startswith('https://')


@pytest.mark.parametrize('row', [row for row in ROWS.values() if row.group.name in paper_groups()
                                 and not row.is_teacher], ids=lambda row: row.id)
def test_the_papers_students_start_from_torchvisions_resnet50(row):
    assert Run.of(row, 'paper').published_files() == {
        'backbone': 'https://download.pytorch.org/models/resnet50-0676ba61.pth'}


def test_a_given_file_takes_the_place_of_the_published_one(weight_file, caplog):
    path = str(weight_file)
    run = Run.of('retinanet-amd', 'paper', 0, {'teacher_checkpoint': path, 'backbone': path})
    assert run.published_files() == run.teacher().published_files() == {}
    assert run.teacher().find_files(Sources()) == {'checkpoint': path}
    assert 'not checked' in caplog.text


def test_a_folder_stands_for_the_published_files_in_it(tmp_path):
    """One TEACHER= for all groups; the backbone likewise."""
    names = {group: published.file_name(GROUPS[group].teacher_url) for group in GROUPS}
    for name in names.values():
        (tmp_path / name.replace('%2B', '+')).write_bytes(b'x')
    (tmp_path / 'resnet50-0676ba61.pth').write_bytes(b'x')
    runs = table_runs('table1', 'paper', settings={'teacher_checkpoint': str(tmp_path), 'backbone': str(tmp_path)})
    for run in runs:
        teacher = str(tmp_path / names[run.row.group.name].replace('%2B', '+'))
        backbone = str(tmp_path / 'resnet50-0676ba61.pth')
        assert run.recipe.files() == {'teacher': {'checkpoint': teacher}, 'baseline': {'backbone': backbone}}.get(
            run.row.kind, {'backbone': backbone, 'teacher_checkpoint': teacher})
        assert run.teacher() is None or run.teacher() in runs
    (tmp_path / names['retinanet']).unlink()
    with pytest.raises(SettingError, match=f'teacher_checkpoint={tmp_path}: the folder has no {names["retinanet"]}'):
        Run.of('retinanet-amd', 'paper', 0, {'teacher_checkpoint': str(tmp_path)})
    with pytest.raises(SettingError, match='a folder, expected a file'):
        Run.of('retinanet-amd', 'mini', 0, {'teacher_checkpoint': str(tmp_path)})


# ---- the runs behind a result -----------------------------------------------------------------------------------

@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_a_tables_runs_are_its_rows(table):
    assert [run.row for run in table_runs(table, 'mini')] == table.rows()
    assert [run.row for run in table_runs(table.name, 'mini', table.groups[0])] == table.rows(table.groups[0])


def test_a_row_that_tables_share_is_one_run():
    """Baselines and full methods of Tables II to VI are Table I's."""
    by_table = {name: table_runs(name, 'mini') for name in TABLES}
    everything = [run for runs in by_table.values() for run in runs]
    needed = {row.id for table in TABLES.values() for row in table.rows()}
    assert {run.id for run in everything} == {f'{row}-s0' for row in needed}
    assert len(set(everything)) == len(needed) < len(everything)
    for run in everything:
        assert {name for name, runs in by_table.items() if run in runs} == {
            name for name, table in TABLES.items() if run.row in table.rows()}


def test_teachers_run_once_and_the_rest_with_every_seed():
    ids = [run.id for run in table_runs('table1', 'mini', 'retinanet', [1, 0, 1])]
    teacher, *others = TABLES['table1'].lines
    assert ids == [f'retinanet-{teacher}-s0', *(f'retinanet-{row}-s{seed}' for row in others for seed in (0, 1))]
    assert table_runs('table1', 'mini', 'retinanet', 1)[1].seed == 1


def test_a_tables_settings_reach_each_row_under_its_own_name(weight_file):
    runs = {run.row.name: run.settings for run in table_runs('table1', 'small', 'retinanet', [0], {
        'epochs': 3, 'teacher_backbone': str(weight_file), 'backbone': '', 'teacher_checkpoint': None})}
    assert runs['teacher'] == {'epochs': 3, 'backbone': str(weight_file)}
    assert runs['baseline'] == {'epochs': 3}
    assert runs['amd'] == {'epochs': 3, 'teacher_backbone': str(weight_file)}
    assert Run.of('retinanet-amd', 'small', 0, runs['amd']).teacher() == Run.of('retinanet-teacher', 'small', 0,
                                                                               runs['teacher'])


def test_rows_of_a_group_by_their_names():
    runs = row_runs('faster_rcnn', ['teacher', 'amd', 'teacher'], 'mini', 2, {'epochs': 1, 'compile_teacher': True})
    assert [run.id for run in runs] == ['faster_rcnn-teacher-s0', 'faster_rcnn-amd+compile_teacher=True+epochs=1-s2']
    assert runs[1].teacher() == runs[0]


@pytest.mark.parametrize('settings', [{}, {'epochs': 3}, {'epochs': 3, 'teachers': 'fresh'}, {'teacher_seed': 2}],
                         ids=str)
@pytest.mark.parametrize('profile', ['mini', 'small'])
def test_the_teacher_in_a_table_is_the_one_that_its_students_learn_from(profile, settings):
    for runs in (table_runs('table1', profile, seeds=(0, 1), settings=settings),
                 row_runs('retinanet', ['teacher', 'inherit', 'amd'], profile, 0, settings)):
        teachers = {run for run in runs if run.row.name == 'teacher'}
        assert {run.teacher() for run in runs if run.row.taught_by} == teachers


def test_a_sweep_is_a_run_a_value_and_seed_and_holds_the_row_itself():
    runs = sweep_runs('reppoints-amd', 'phi', [0.5, 1.0, 1, 1.5], 'mini', [1, 0])
    assert [run.id for run in runs] == [
        'reppoints-amd+phi=0.5-s0', 'reppoints-amd+phi=0.5-s1', 'reppoints-amd-s0', 'reppoints-amd-s1',
        'reppoints-amd+phi=1.5-s0', 'reppoints-amd+phi=1.5-s1']       # 1.0 and 1 are one value, and Table I's run
    assert set(sweep_runs('reppoints-amd', 'phi', [1.0], 'mini')) < set(table_runs('table1', 'mini'))
    assert [run.settings for run in sweep_runs('retinanet-amd', 'spatial', ['random', 'none'], 'mini', [0], {
        'epochs': 2, 'lr': None})] == [{'epochs': 2, 'spatial': 'random'}, {'epochs': 2, 'spatial': 'none'}]


@pytest.mark.parametrize(('call', 'words'), [
    (lambda: Run.of('amd', 'mini'), ["'amd'", *ROWS]),
    (lambda: Run.of('retinanet-amd', 'large'), ["'large'", *PROFILES]),
    (lambda: Run.of('retinanet-amd', 'mini', -1), ['seed=-1']),
    (lambda: Run.of('retinanet-amd', 'mini', True), ['seed=True']),
    (lambda: Run.of('retinanet-amd', 'mini', 2 ** 31), ['seed=2147483648']),
    (lambda: Run.of('retinanet-baseline', 'mini', 0, {'phi': 1.0}), ["no setting 'phi'", 'epochs', 'backbone']),
    (lambda: Run.of('retinanet-amd', 'mini', 0, {'alpha': 1e308}), ['alpha is inf at profile mini', 'a smaller value']),
    (lambda: Run.of('retinanet-fgd', 'mini', 0, {'factor': 1e308, 'alpha_fgd': 1e5}), ['is inf at profile mini']),
    (lambda: table_runs('table1', 'mini', 'retina'), ["'retina'", *GROUPS]),
    (lambda: table_runs('table1', 'mini', seeds='0 1'), ["seeds '0 1'"]),
    (lambda: table_runs('table1', 'mini', seeds=[]), ['seeds []']),
    (lambda: table_runs('table1', 'mini', seeds=[-1]), ['seed=-1']),
    (lambda: table_runs('table1', DRY_RUN), ['dryrun makes no tables']),
    (lambda: table_runs('table9', 'mini'), ["'table9'", *TABLES]),
    (lambda: table_runs('table3', 'mini', 'retinanet'), ["table3 has no group 'retinanet'", 'reppoints']),
    (lambda: table_runs('table1', 'mini', settings={'phi': 0.7}), ["'phi'", 'epochs', 'teacher_checkpoint']),
    (lambda: row_runs('retinanet', ['adm'], 'mini'), ["'retinanet-adm'", *ROWS]),
    (lambda: sweep_runs('reppoints-adm', 'phi', [1], 'mini'), ["'reppoints-adm'", *ROWS]),
    (lambda: sweep_runs('reppoints-amd', 'fi', [1], 'mini'), ["no setting 'fi'", 'phi', 'temperature']),
    (lambda: sweep_runs('reppoints-baseline', 'phi', [1], 'mini'), ["reppoints-baseline has no setting 'phi'"]),
    (lambda: sweep_runs('reppoints-amd', 'phi', [], 'mini'), ['no values of phi given']),
    (lambda: sweep_runs('reppoints-amd', 'phi', [0.5, 'much'], 'mini'), ["phi='much'", 'float']),
    (lambda: sweep_runs('reppoints-amd', 'mask_ratio', [0.5, 2], 'mini'), ['reppoints-amd', 'mask_ratio', '2']),
])
def test_bad_input_is_refused_with_what_is_known(call, words):
    with pytest.raises(SettingError) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == []


# ---- as JSON ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('profile', [*PROFILES, 'dryrun'])
def test_a_run_comes_back_from_json(through_json, profile, weight_file):
    settings = {'epochs': 2, 'amp': True, 'backbone': str(weight_file)}
    narrow = {'levels': (0, 2), 'reference': 0.25, 'inherit': True, 'teacher_seed': 1, 'split': 'val', 'factor': 0.1}
    for run in (Run.of('retinanet-amd', profile, 1, {**settings, 'phi': 0.7, 'spatial': 'random'}),
                Run.of('retinanet-amd', profile, 1, narrow),
                Run.of('faster_rcnn-teacher', profile), Run.of('reppoints-baseline', profile, 0, settings)):
        back = Run.from_dict(through_json(run.to_dict()))
        assert back == run
        assert hash(back) == hash(run)
        assert back.id == run.id


# ---- a loss of one's own ----------------------------------------------------------------------------------------

def test_a_loss_from_outside_is_a_run_with_settings_of_its_own(mine, through_json):
    run = Run.of(f'retinanet-{mine}', 'mini', 1, {'power': 1, 'epochs': 2})
    assert run.id == 'retinanet-own.Mine+epochs=2+power=1-s1'
    assert run.teacher() == Run.of('retinanet-teacher', 'mini')
    assert run.value('weight') == 1e-5
    assert run.options() == {'power': 1, 'weight': pytest.approx(1e-5 * 256 / 64 * 1333 * 800 / 128 ** 2)}
    assert Run.from_dict(through_json(run.to_dict())) == run
    with pytest.raises(SettingError, match="has no setting 'phi'; it has: .*weight, power"):
        Run.of(f'retinanet-{mine}', 'mini', 0, {'phi': 1.0})


def test_a_loss_from_outside_in_tables_rows_and_sweeps(mine):
    for group in TABLES['table1'].groups:
        run = Run.of(f'{group}-{mine}', 'mini', 0, {'epochs': 1})
        table = table_runs('table1', 'mini', group, [0], {'epochs': 1}, [mine])
        assert table[-1] == run
        assert table[:-1] == table_runs('table1', 'mini', group, [0], {'epochs': 1})
        assert row_runs(group, ['teacher', mine], 'mini', 0, {'epochs': 1})[1] == run
        assert run.teacher() in table
    swept = sweep_runs(f'reppoints-{mine}', 'weight', [1e-5, 2e-5], 'mini')
    assert [one.id for one in swept] == ['reppoints-own.Mine-s0', 'reppoints-own.Mine+weight=2e-05-s0']
    assert swept[0] == Run.of(find_row(f'reppoints-{mine}'), 'mini')


# ---- what is loaded ---------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_runs_are_known_without_mmdet():
    """Command line, status and notebooks' first cells need no detector; mmengine and torch may be loaded."""
    code = ('import sys; import amdlib.paper.tables, amdlib.paper.profiles; '
            'from amdlib.runs import recipe, run, store, fingerprints, progress, targets; '
            'runs = run.table_runs("table1", "mini"); fingerprints.code_fingerprint(runs[-1]); runs[-1].options(); '
            'print(sorted({name.partition(".")[0] for name in sys.modules} & {"mmdet", "mmcv", "matplotlib"}), '
            '"amdlib.engine" in sys.modules)')
    ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == '[] False'


def test_means_are_no_part_of_a_run():
    assert not {'device', 'jobs', 'workers', 'tensorboard'} & set(Run.of('retinanet-amd', 'mini').to_dict()['settings'])
    assert set(Means().to_dict()) == {'device', 'jobs', 'workers', 'tensorboard', 'sources', 'teacher_check_images'}


# ---- arms and controls ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('own', 'other'), [('alone', 'inherit'), ('inherit', 'alone')])
def test_an_arm_is_a_setting_of_those_that_know_another(own, other):
    """The profile's own arm changes no name: the same runs, whoever asks."""
    profile = replace(PROFILES['mini'], arm=own)
    table = TABLES['table1'].with_controls()
    by_default = table_runs('table1', profile, controls=True)
    assert by_default == table_runs('table1', profile, arm=own, controls=True) == table_runs(table, profile)
    for run, usual in zip(table_runs('table1', profile, arm=other, controls=True), by_default, strict=True):
        if run.row.method and run.row.group.one_stage:
            assert (run.settings, run.arm, usual.arm) == ({'inherit': other == 'inherit'}, other, own)
        else:
            assert run == usual
    swept = sweep_runs('retinanet-amd', 'phi', [0.5], profile, arm=other)
    assert [(run.arm, run.value('phi')) for run in swept] == [(other, 0.5)]


def test_an_unknown_arm_or_one_told_twice_is_refused():
    with pytest.raises(SettingError, match="arm='both': expected one of alone, inherit"):
        table_runs('table1', 'mini', arm='both')
    with pytest.raises(SettingError, match='arm=alone and inherit=True: give one of them'):
        table_runs('table1', 'mini', arm='alone', settings={'inherit': True})
