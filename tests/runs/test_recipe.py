"""recipe.py: settings by their kinds, what a row has of them, text as values, and the means that change no number."""
import json
from dataclasses import fields

import pytest

from amdlib import methods
from amdlib.errors import SettingError, WeightsError
from amdlib.paper.profiles import PROFILES
from amdlib.paper.rows import ROWS
from amdlib.runs.recipe import EVERY, SETTINGS, Means, Recipe, absolute, numbers, own_settings, parse
from amdlib.weights.published import Sources

MINI = PROFILES['mini']


def of(row='retinanet-amd', **values):
    return Recipe.of(ROWS[row], MINI, values)


# ---- one place for each setting ---------------------------------------------------------------------------------

def test_every_field_is_a_setting_with_words_for_its_help():
    assert list(SETTINGS) == [one.name for one in fields(Recipe) if one.name != 'options']
    assert all(SETTINGS.values())
    assert all(set(one.metadata['of']) <= set(EVERY) for one in fields(Recipe) if one.name != 'options')


@pytest.mark.parametrize('row', ['retinanet-teacher', 'retinanet-baseline', 'retinanet-amd'])
def test_a_row_refuses_the_settings_of_other_kinds_and_lists_its_own(row):
    known = [one.name for one in fields(Recipe) if one.name != 'options' and ROWS[row].kind in one.metadata['of']]
    own = list(methods.options_of(ROWS[row].method)) if ROWS[row].method else []
    with pytest.raises(SettingError) as told:
        of(row, ph=1.0)
    assert str(told.value) == f"{row} has no setting 'ph'; it has: {', '.join([*known, *own])}"
    for other in SETTINGS.keys() - set(known):
        with pytest.raises(SettingError, match=f'{row} has no setting {other!r}'):
            of(row, **{other: 'x'})


def test_nothing_given_is_the_row_itself():
    assert of() == Recipe()
    assert Recipe().changed() == {}
    defaults = {name: getattr(Recipe(), name) for name in SETTINGS if name != 'checkpoint'}    # a teacher's
    assert of(**defaults) == Recipe()


# ---- values -----------------------------------------------------------------------------------------------------

def test_values_are_kept_by_name_in_order_and_by_kind():
    recipe = of(phi=2, epochs=3, amp='bf16', spatial='random', lr=1)
    assert list(recipe.changed().items()) == [
        ('amp', 'bf16'), ('epochs', 3), ('lr', 1.0), ('phi', 2.0), ('spatial', 'random')]
    assert recipe.options == (('phi', 2.0), ('spatial', 'random'))
    assert type(recipe.lr) is type(dict(recipe.options)['phi']) is float


@pytest.mark.parametrize('same', [
    {'phi': 1.0}, {'phi': 1}, {'temperature': 0.5}, {'alpha': 2e-5}, {'mask_ratio': 0.65},
    {'spatial': 'adaptive', 'generation': 'conv2'},
    {'gpus': 1, 'accumulate': 1, 'amp': 'off', 'tf32': False, 'channels_last': False, 'fused': False,
     'compile_teacher': False, 'half_teacher': 'off', 'factor': 1, 'one_scale': False, 'split': 'test',
     'teachers': 'shipped', 'teacher_seed': 0, 'levels': (0, 1, 2, 3, 4)}], ids=str)
def test_the_rows_own_value_is_no_change(same):
    assert of(**same) == Recipe()


def test_the_profiles_own_value_is_a_change():
    """A profile's schedule may be another tomorrow."""
    assert of(epochs=5).changed() == {'epochs': 5}


@pytest.mark.parametrize('levels', [(0, 1, 2), [2, 1, 0, 1], 'levels=0,1,2', 'levels=[0, 2, 1]'], ids=str)
def test_levels_are_a_set_in_the_pyramids_order(levels):
    given = parse([levels])['levels'] if isinstance(levels, str) else levels
    assert of(levels=given).levels == (0, 1, 2)
    assert of(levels=3).levels == (3,)
    assert of(levels=(4, 3, 2, 1, 0)) == Recipe()


def test_half_precision_without_a_kind_is_float16_as_in_mmdet():
    assert of(amp=True) == of(amp='fp16')
    assert of(amp=False) == Recipe()


@pytest.mark.parametrize(('values', 'words'), [
    ({'student_channels': 3}, ["'student_channels'", 'phi']), ({'seed': 3}, ["'seed'"]),
    ({'phi': 'high'}, ["phi='high'", 'float']), ({'phi': True}, ['phi=True', 'float']),
    ({'epochs': 1.5}, ['epochs=1.5', 'int']), ({'epochs': True}, ['epochs=True', 'int']),
    ({'epochs': '3'}, ["epochs='3'", 'int']),       # text becomes values once, before
    ({'epochs': 0}, ['epochs=0', 'positive']), ({'lr': -1}, ['lr=-1', 'positive']),
    ({'lr': float('inf')}, ['lr=inf', 'positive']), ({'lr': float('nan')}, ['lr=nan', 'positive']),
    ({'gpus': 0}, ['gpus=0', 'positive']), ({'tf32': 1}, ['tf32=1', 'bool']),
    ({'amp': 1}, ['amp=1', 'off, bf16, fp16']), ({'half_teacher': 'half'}, ["half_teacher='half'", 'bf16']),
    ({'spatial': 3}, ['spatial=3', 'str']), ({'spatial': 'some'}, ['retinanet-amd', "spatial='some'", 'adaptive']),
    ({'mask_ratio': 2.0}, ['retinanet-amd', 'mask_ratio=2.0']), ({'phi': -1.0, 'mask_ratio': 3.0}, ['retinanet-amd']),
    ({'factor': 0}, ['factor=0', 'positive']), ({'reference': -1.0}, ['reference=-1', 'positive']),
    ({'levels': (0, 7)}, ['levels=(0, 7)', '0, 1, 2, 3, 4']), ({'levels': ()}, ['levels=()', 'some of']),
    ({'levels': 1e308}, ['levels=1e+308', 'some of']), ({'levels': [[1]]}, ['levels=[[1]]', 'some of']),
    ({'lr': 10 ** 400}, ['lr=inf', 'positive']), ({'epochs': 2 ** 31}, ['epochs=2147483648', 'below 2**31']),
    ({'optimizer': 'adam'}, ["optimizer='adam'", 'adamw, sgd']), ({'split': 'train'}, ["split='train'", 'test, val']),
    ({'inherit': 1}, ['inherit=1', 'bool']), ({'teacher_seed': -1}, ['teacher_seed=-1', 'positive']),
    ({'teachers': 'old'}, ["teachers='old'", 'shipped, fresh']),
    ({'teacher_checkpoint': 'no/such.pth'}, ['teacher_checkpoint=no/such.pth', 'no such file']),
    ({'backbone': '.'}, ['backbone=.', 'a folder, expected a file'])], ids=lambda value: str(value)[:40])
def test_a_value_that_does_not_fit_is_refused_with_what_would(values, words):
    with pytest.raises(SettingError) as told:
        of(**values)
    assert [word for word in words if word not in str(told.value)] == []


def test_a_weight_file_becomes_absolute(weight_file, monkeypatch):
    monkeypatch.chdir(weight_file.parent)
    recipe = of(backbone=weight_file.name, teacher_checkpoint=str(weight_file))
    assert recipe.files() == {'backbone': str(weight_file), 'teacher_checkpoint': str(weight_file)}
    assert of('retinanet-baseline', backbone=weight_file) == of('retinanet-baseline', backbone=str(weight_file))


# ---- a table's settings, a teacher's settings -------------------------------------------------------------------

def test_a_table_gives_each_row_what_it_has_under_its_own_name():
    given = {'epochs': 3, 'compile_teacher': True, 'teacher_backbone': 'x.pth', 'backbone': '', 'lr': None}
    assert own_settings(ROWS['retinanet-teacher'], given) == {'epochs': 3, 'backbone': 'x.pth'}
    assert own_settings(ROWS['retinanet-baseline'], given) == {'epochs': 3}
    assert own_settings(ROWS['retinanet-amd'], given) == {'epochs': 3, 'compile_teacher': True,
                                                          'teacher_backbone': 'x.pth'}
    # a backbone is the students'; of the teacher it is called so
    assert own_settings(ROWS['retinanet-teacher'], {'backbone': 'x.pth'}) == {}
    # how it starts is a question of one-stage students of a method
    assert own_settings(ROWS['retinanet-amd'], {'inherit': True}) == {'inherit': True}
    for row in ('retinanet-baseline', 'retinanet-inherit', 'retinanet-teacher', 'faster_rcnn-amd'):
        assert own_settings(ROWS[row], {'inherit': True}) == {}
    # and a teacher is reported on one split and has a seed of its own
    assert own_settings(ROWS['retinanet-teacher'], {'split': 'val', 'teacher_seed': 3}) == {}
    assert own_settings(ROWS['retinanet-inherit'], {'split': 'val', 'teacher_seed': 3, 'factor': 0.1}) == {
        'split': 'val', 'teacher_seed': 3}


@pytest.mark.parametrize('key', ['phi', 'checkpoint', 'epoch'])
def test_a_table_refuses_what_no_row_of_it_takes(key):
    with pytest.raises(SettingError, match=f'a table has no setting {key!r}; it has: epochs, .*teacher_checkpoint'):
        own_settings(ROWS['retinanet-baseline'], {key: 1})


def test_a_teacher_is_trained_with_what_both_share(weight_file):
    recipe = of(epochs=2, lr=0.01, batch_size=3, amp='bf16', phi=0.5, gpus=2, half_teacher='bf16', backbone=weight_file,
                teacher_backbone=weight_file)
    assert recipe.for_teacher() == {'amp': 'bf16', 'backbone': str(weight_file), 'batch_size': 3, 'epochs': 2,
                                    'gpus': 2, 'lr': 0.01}
    shared = {one.name for one in fields(Recipe) if one.metadata.get('with_teacher')}
    assert {'epochs', 'batch_size', 'lr', 'gpus', 'amp'} <= shared
    assert not {'backbone', 'checkpoint', 'compile_teacher', 'half_teacher'} & shared


def test_settings_for_a_process_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute({'backbone': 'a/b.pth', 'epochs': 2, 'checkpoint': None}) == {
        'backbone': f'{tmp_path}/a/b.pth', 'epochs': 2, 'checkpoint': None}


# ---- text -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('text', 'values'), [
    ('', {}), ('phi=0.7 epochs=2', {'phi': 0.7, 'epochs': 2}), ('amp=True lr=1e-3', {'amp': True, 'lr': 1e-3}),
    ('spatial=random', {'spatial': 'random'}), ("backbone='a folder/it.pth'", {'backbone': 'a folder/it.pth'}),
    ('x=', {'x': ''}), ('x=a=b', {'x': 'a=b'}), ('x=[1,2]', {'x': [1, 2]}), ('x=None', {'x': None}),
    ('x=01', {'x': '01'}), (['phi=0.7', 'a=b c'], {'phi': 0.7, 'a': 'b c'})], ids=str)
def test_text_becomes_values_here(text, values):
    found = parse(text)
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize('text', ['phi', '=3', ['=3'], "x='open"])
def test_text_that_is_no_setting_is_refused(text):
    with pytest.raises(SettingError, match='KEY=VALUE'):
        parse(text)


def test_numbers_keep_their_kinds():
    assert numbers('0.5, 1 1.5') == [0.5, 1, 1.5]
    assert [type(value) for value in numbers('0 1.0 a')] == [int, float, str]
    assert numbers(' , ') == []


# ---- means ------------------------------------------------------------------------------------------------------

def test_means_come_back_from_json(tmp_path):
    means = Means('cuda:1', 3, 0, True, Sources((tmp_path,), ('https://there',), tmp_path / 'cache'), 0)
    assert Means.from_dict(json.loads(json.dumps(means.to_dict()))) == means
    assert Means.from_dict({}) == Means()
    assert Means.from_dict({'jobs': 2}) == Means(jobs=2)


@pytest.mark.parametrize(('values', 'told'), [
    ({'jobs': -1}, 'jobs=-1: expected a number of 1 or more'), ({'jobs': 0}, 'jobs=0'), ({'jobs': True}, 'jobs=True'),
    ({'jobs': '2'}, "jobs='2'"), ({'workers': -1}, 'workers=-1: expected a number of 0 or more'),
    ({'teacher_check_images': 1.5}, 'teacher_check_images=1.5'),
    ({'device': 'gpu'}, "device='gpu': expected cpu, cuda or cuda:N"), ({'device': 'cpu:0'}, "device='cpu:0'"),
    ({'device': 'cuda:'}, "device='cuda:'"), ({'device': 'cuda:x'}, "device='cuda:x'"), ({'job': 1}, 'unknown job')],
    ids=str)
def test_means_that_are_none_are_refused(values, told):
    with pytest.raises(SettingError, match=told):
        Means.from_dict(values)


@pytest.mark.parametrize('device', [None, 'cpu', 'cuda', 'cuda:0', 'cuda:12'])
def test_devices(device):
    assert Means(device=device).device == device


def test_a_folder_of_weights_that_is_not_there_is_told(tmp_path):
    with pytest.raises(WeightsError, match=f'WEIGHTS={tmp_path}/nowhere: no such folder'):
        Sources.of(f'{tmp_path}/nowhere')


@pytest.mark.parametrize('name', methods.names())
def test_no_option_of_a_method_is_called_as_a_setting(name):
    """The setting would win, and the option could not be set."""
    assert not set(methods.options_of(name)) & {one.name for one in fields(Recipe)}
