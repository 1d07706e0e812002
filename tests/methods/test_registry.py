"""Methods by name (amdlib.methods): the package's own, and classes from a user's file."""
from __future__ import annotations

import pickle
import re
import subprocess
import sys

import pytest
import torch

from amdlib import methods
from amdlib.errors import SettingError
from amdlib.methods.amd import AMDLoss
from amdlib.methods.level import LevelLoss
from amdlib.methods.step import StepLoss

MINE = '''
import torch
from amdlib.methods.level import LevelLoss


class Mine(LevelLoss):
    """Mean squared difference of the channels' means."""

    WEIGHT_EXPONENTS = {'strength': (0, 0)}

    def __init__(self, student_channels, teacher_channels, strength=1.0, power=2):
        super().__init__(student_channels, teacher_channels)
        self.strength, self.power = strength, power

    def weighted_loss(self, f_s, f_t, boxes, image_shapes):
        return self.strength * (f_s.mean(1) - f_t.mean(1)).abs().pow(self.power).mean()
'''


@pytest.fixture
def mine(tmp_path):
    """Text of a file -> the name of its class Mine."""
    def write(text=MINE, cls='Mine'):
        path = tmp_path / 'my_losses.py'
        path.write_text(text)
        return f'{path}:{cls}'
    return write


def refusal(name):
    with pytest.raises(SettingError) as error:
        methods.find_method(name)
    return str(error.value)


# --- The package's own -----------------------------------------------------------------------------------------------

def test_names_are_the_files():
    files = {path.stem for path in methods.FOLDER.glob('*.py')} - {'__init__', *methods.CONTRACTS}
    assert set(methods.names()) == files
    assert list(methods.names()) == sorted(files)


def test_a_new_file_is_a_new_method(monkeypatch, tmp_path):
    for name in ('amd.py', 'level.py', 'step.py', '__init__.py', '_draft.py', 'not-a-name.py', 'notes.txt'):
        (tmp_path / name).touch()
    monkeypatch.setattr(methods, 'FOLDER', tmp_path)
    assert methods.names() == ('amd',)


@pytest.mark.parametrize('name', methods.names())
def test_every_name_finds_its_class(name):
    found = methods.find_method(name)
    assert issubclass(found, StepLoss if methods.looks_at_steps(found) else LevelLoss)
    assert found.__module__ == f'amdlib.methods.{name}'
    assert found.LABEL.lower() == name
    assert methods.method_file(name) == methods.FOLDER / f'{name}.py'
    assert methods.absolute(name) == name
    assert not methods.is_outside(name)


def test_options_are_those_of_the_constructor():
    options = methods.options_of('amd')
    assert not {'student_channels', 'teacher_channels', 'seed', 'self'} & set(options)
    assert (options['phi'].default, options['spatial'].default) == (1.0, 'adaptive')
    assert all(set(methods.find_method(name).WEIGHT_EXPONENTS) <= set(methods.options_of(name))
               for name in methods.names())


@pytest.mark.parametrize('name', ['AMD', 'level', '__init__', 'xyz', ''])
def test_unknown_names_are_told_with_the_known(name):
    message = f'unknown method {name!r}; expected one of {", ".join(methods.names())}, or path/to/file.py:ClassName'
    assert refusal(name) == message
    with pytest.raises(SettingError, match='unknown method'):
        methods.method_file(name)


@pytest.mark.parametrize(('code', 'found'), [
    ('import amdlib.methods as m; m.names(), m.method_file("amd"), m.absolute("a/b.py:C")', []),
    ('import amdlib.methods as m; [m.find_method(name) for name in m.names()]', ['torch'])])
def test_what_the_registry_imports(code, found):
    code += '; import sys; print([name for name in ("torch", "mmdet", "mmengine", "mmcv") if name in sys.modules])'
    told = subprocess.run([sys.executable, '-c', code], cwd=methods.FOLDER.parent.parent, check=True, text=True,
                          capture_output=True).stdout
    assert told.strip() == str(found)


def test_a_file_of_the_package_has_one_loss(monkeypatch):
    monkeypatch.setattr('amdlib.methods.fgd.Another', type('Another', (AMDLoss,), {'__module__': 'amdlib.methods.fgd'}),
                        raising=False)
    assert re.search('fgd.py: expected exactly one subclass of LevelLoss or StepLoss, found FGDLoss, Another',
                     refusal('fgd'))


# --- From outside ----------------------------------------------------------------------------------------------------

def test_a_class_from_a_file(mine, tmp_path):
    name = mine()
    found = methods.find_method(name)
    assert issubclass(found, LevelLoss)
    assert found.LABEL == 'Mine'
    assert list(methods.options_of(name)) == ['strength', 'power']
    assert methods.method_file(name) == tmp_path / 'my_losses.py'
    assert methods.is_outside(name)
    value = found(1, 1, strength=3.0)(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0))
    assert value.item() == 12


def test_a_relative_path_is_the_same_method(mine, monkeypatch, tmp_path):
    name = mine()
    monkeypatch.chdir(tmp_path)
    assert methods.absolute('my_losses.py:Mine') == methods.absolute('./my_losses.py:Mine') == name
    assert methods.find_method('my_losses.py:Mine') is methods.find_method(name)


def test_its_losses_pickle(mine):
    loss = methods.find_method(mine())(1, 1, strength=3.0)
    twin = pickle.loads(pickle.dumps(loss))
    assert (type(twin), twin.strength) == (type(loss), 3.0)


def test_an_edit_counts_at_once_and_no_cache_is_left_behind(mine, tmp_path):
    name = mine()
    first = methods.find_method(name)
    assert methods.find_method(name) is first
    mine(MINE.replace('strength=1.0', 'strength=2.0'))                      # as long as before, in the same second
    assert methods.options_of(name)['strength'].default == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ['my_losses.py']


def test_files_of_one_name_are_told_apart(tmp_path):
    names = []
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'loss.py').write_text(MINE.replace('strength=1.0', f'strength={len(names)}.5'))
        names.append(f'{tmp_path}/{folder}/loss.py:Mine')
    assert [methods.options_of(name)['strength'].default for name in names] == [0.5, 1.5]
    losses = [methods.find_method(name)(1, 1) for name in names]
    assert [pickle.loads(pickle.dumps(loss)).strength for loss in losses] == [0.5, 1.5]


def test_a_path_may_hold_a_colon(tmp_path):
    (tmp_path / 'a:b').mkdir()
    (tmp_path / 'a:b' / 'loss.py').write_text(MINE)
    assert methods.find_method(f'{tmp_path}/a:b/loss.py:Mine').__name__ == 'Mine'


def test_a_variant_of_a_method_keeps_its_weights(mine):
    name = mine('from amdlib.methods.amd import AMDLoss\n\n\nclass Mine(AMDLoss):\n'
                '    def mask(self, f_t):\n        return super().mask(f_t) * 0\n')
    found = methods.find_method(name)
    assert (found.LABEL, found.PUBLISHED) == ('Mine', AMDLoss.PUBLISHED)
    assert list(methods.options_of(name)) == list(methods.options_of('amd'))


# --- What is told of a file from outside -----------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['file.py', 'folder/file', 'file.txt:Mine', 'file.py:', 'file.py:not a name', ':Mine'])
def test_malformed_names_are_told(name):
    assert methods.is_outside(name)
    assert 'expected path/to/file.py:ClassName' in refusal(name)
    with pytest.raises(SettingError, match='expected path/to/file.py:ClassName'):
        methods.absolute(name)


def test_a_missing_file_is_told(tmp_path):
    told = refusal(f'{tmp_path}/none.py:Mine')
    assert f'{tmp_path}/none.py: no such file' in told
    (tmp_path / 'folder.py').mkdir()
    assert 'folder.py: a folder; expected a Python file' in refusal(f'{tmp_path}/folder.py:Mine')


@pytest.mark.parametrize(('text', 'message'), [
    ('class Mine(:\n', 'cannot be run: SyntaxError'),
    ('import torch\n\nimport no_such_module_of_mine\n', 'cannot be run: ModuleNotFoundError in line 3: No module'),
    ('1 / 0\n', 'cannot be run: ZeroDivisionError in line 1: division by zero'),
])
def test_a_file_that_cannot_be_run_is_told(mine, text, message):
    name, modules = mine(text), set(sys.modules)
    assert message in refusal(name)
    assert not [key for key in set(sys.modules) - modules if 'my_losses' in key]
    assert methods.find_method(mine()).__name__ == 'Mine'                   # mended


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('class Mine(', 'class Yours(', "has no class 'Mine'; its subclasses of LevelLoss and StepLoss: Yours"),
    ('class Mine(LevelLoss)', 'class Mine(torch.nn.Module)',
     'Mine is no subclass of LevelLoss or StepLoss; expected a class that'),
    ('class Mine(LevelLoss)', 'Mine = 3\n\n\nclass Yours(LevelLoss)', 'Mine is no subclass of LevelLoss'),
    ('def weighted_loss', 'def loss', 'Mine does not define weighted_loss; expected weighted_loss(self, f_s, f_t,'),
    ('f_t, boxes, image_shapes)', 'f_t)', 'Mine.weighted_loss(self, f_s, f_t): too many positional arguments; exp'),
    ('f_t, boxes, image_shapes)', 'f_t, boxes, image_shapes, more)', "missing a required argument: 'more'; expected"),
    ('student_channels, teacher_channels, strength', 'channels, strength',
     'expected __init__(self, student_channels, teacher_channels, ...options)'),
    ('student_channels, teacher_channels, strength', 'teacher_channels, student_channels, strength',
     'expected __init__(self, student_channels, teacher_channels, ...options)'),
    ('student_channels, teacher_channels, strength', '*, student_channels, teacher_channels, strength',
     'expected __init__(self, student_channels, teacher_channels, ...options)'),
    ('strength=1.0, power=2', 'strength, power', 'the option strength has no default; expected one'),
    ("WEIGHT_EXPONENTS = {'strength': (0, 0)}", '', 'has no WEIGHT_EXPONENTS; expected for each weight the exponents'),
    ("{'strength': (0, 0)}", '{}', 'has no WEIGHT_EXPONENTS; expected for each weight the exponents (a, b)'),
    ("{'strength': (0, 0)}", "{'strong': (0, 0)}",
     "WEIGHT_EXPONENTS names 'strong', which is no option with a number as default; those are: strength, power"),
    ("{'strength': (0, 0)}", "{'strength': 1}",
     "WEIGHT_EXPONENTS['strength'] = 1: expected two or three numbers, (a, b) or (a, b, n)"),
    ("{'strength': (0, 0)}", "{'strength': (1, 1, 1, 1)}", '= (1, 1, 1, 1): expected two or three numbers'),
    ("{'strength': (0, 0)}", "{'strength': (1, '1')}", "= (1, '1'): expected two or three numbers, (a, b)"),
    ('strength=1.0, power=2', 'strength=1.0, edge_weight=1.0, power=2',
     "WEIGHT_EXPONENTS lacks 'edge_weight'; expected"),
    ('    WEIGHT_EXP', "    PUBLISHED = {'retinanet': {'gain': 2.0}}\n    WEIGHT_EXP",
     "PUBLISHED['retinanet'] names 'gain', which is no option; those are: strength, power"),
])
def test_a_broken_contract_is_told(mine, old, new, message):
    assert old in MINE
    told = refusal(mine(MINE.replace(old, new)))
    assert message in told
    assert 'my_losses.py:Mine' in told


STEP = '''
from amdlib.methods.step import StepLoss


class Mine(StepLoss):
    WEIGHT_EXPONENTS = {'strength': (0, 0)}
    NEEDS = frozenset({'heads'})

    def __init__(self, channels, strength=1.0):
        super().__init__(channels)
        self.strength = strength

    def weighted_losses(self, step):
        return {'all': self.strength * step.heads_s[0][0].mean()}
'''


def test_a_class_that_looks_at_steps(mine):
    name = mine(STEP)
    found = methods.find_method(name)
    assert methods.looks_at_steps(found)
    assert not methods.looks_at_steps(methods.find_method('amd'))
    assert list(methods.options_of(name)) == ['strength']
    assert found.LABEL == 'Mine'


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('def weighted_losses', 'def losses', 'Mine does not define weighted_losses; expected weighted_losses(self, step)'),
    ('(self, step)', '(self)', 'Mine.weighted_losses(self): too many positional arguments; expected'),
    ('(self, channels,', '(self, pairs,', 'expected __init__(self, channels, ...options)'),
    ('strength=1.0', 'strength', 'the option strength has no default'),
    ("frozenset({'heads'})", "{'heads'}", "NEEDS = {'heads'}: expected a frozenset out of 'boxes', 'anchors', 'heads'"),
    ("frozenset({'heads'})", "frozenset({'head'})", "NEEDS = frozenset({'head'}): expected a frozenset out of"),
    ("{'strength': (0, 0)}", '{}', 'has no WEIGHT_EXPONENTS'),
])
def test_a_broken_contract_of_steps_is_told(mine, old, new, message):
    assert old in STEP
    assert message in refusal(mine(STEP.replace(old, new)))


def test_further_arguments_are_allowed(mine):
    name = mine(MINE.replace('power=2)', 'power=2, **others)'))
    assert list(methods.options_of(name)) == ['strength', 'power']


def test_the_contract_itself_is_no_method(mine):
    assert 'LevelLoss does not define weighted_loss' in refusal(mine(cls='LevelLoss'))
    assert 'StepLoss does not define weighted_losses' in refusal(mine(STEP, 'StepLoss'))
