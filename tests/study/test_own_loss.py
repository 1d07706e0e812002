"""own_loss.py: a function or a class of a file or of a cell as a method."""
import linecache
import os
import subprocess
import sys

import pytest
import torch

import amdlib
from amdlib.errors import SettingError
from amdlib.files import ROOT
from amdlib.methods import find_method, looks_at_steps
from amdlib.study.own_loss import method, named
from amdlib.study.study import Study

FILE = '''
import amdlib

@amdlib.method
def closer(f_s, f_t):
    """Squares."""
    return (f_s - f_t).square().mean()
'''
CELL = '''
import amdlib
from torch.nn import functional as F
SLOPE = 2.0
seen = []
seen.append(1 / 0)

@amdlib.method
def hinge(f_s, f_t, boxes, image_shapes):
    return SLOPE * F.relu(f_t - f_s).mean()  # a comment stays
'''


def test_a_function_is_a_method_with_a_weight_and_aligned_channels(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(FILE)
    found = find_method(f'{file}:closer')
    loss = found(4, 6, weight=3.0)
    f_s, f_t = torch.rand(2, 4, 3, 3, requires_grad=True), torch.rand(2, 6, 3, 3, requires_grad=True)
    value = loss(f_s, f_t)
    torch.testing.assert_close(value, 3 * (loss.align(f_s) - f_t).square().mean())
    value.backward()
    assert f_t.grad is None
    assert f_s.grad.abs().sum() > 0
    assert (found.LABEL, found.__doc__, named(found)) == ('closer', 'Squares.', f'{file}:closer')
    assert find_method(named(found)).WEIGHT_EXPONENTS == {'weight': (0, 0)}


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """What a cell of a notebook that is run leaves, by its name; only what is defined in it is done here."""
    monkeypatch.chdir(tmp_path)

    def run(text, name):
        file = '/tmp/ipykernel_1/123.py'
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        space = {'__name__': '__main__'}
        exec(compile(text, file, 'exec'), space)
        return space[name]
    return run


def test_a_loss_of_a_cell_is_written_to_a_file_that_stands_alone(cell, tmp_path, asked):
    found = cell(CELL.replace('seen.append(1 / 0)\n', 'seen.append(1)\n'), 'hinge')
    file = tmp_path / 'results' / 'losses' / 'hinge.py'
    assert named(found) == f'{file}:hinge'
    text = file.read_text()
    assert 'seen' not in text       # what the cell does besides is not done again in every run
    assert '# a comment stays' in text
    f = torch.zeros(1, 2, 2, 2)
    assert float(find_method(named(found))(2, 2)(f, f + 1, None, None)) == 2
    study = Study.of(asked(methods=[found, 'amd']))
    assert [run.row.name for run in study.runs()] == ['teacher', 'baseline', 'hinge.hinge', 'amd']


SCRIPT = '''
import amdlib
from amdlib.study.own_loss import named
from amdlib.methods import find_method

@amdlib.method
def closer(f_s, f_t):
    return (f_s - f_t).abs().mean()

print('once', find_method(named(closer)).__name__)
'''


def test_a_loss_of_a_script_is_read_without_running_the_script_again(tmp_path):
    (tmp_path / 'mine.py').write_text(SCRIPT)
    told = subprocess.run([sys.executable, 'mine.py'], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)},
                          capture_output=True, text=True, check=True).stdout
    assert told == 'once closer\n'
    assert 'print' not in (tmp_path / 'results' / 'losses' / 'closer.py').read_text()


STEP_CELL = '''
import amdlib
from amdlib.methods.step import StepLoss

@amdlib.method
class Whole(StepLoss):
    """Of all levels at once."""
    WEIGHT_EXPONENTS = {'weight': (0, 0)}

    def __init__(self, channels, weight=1.0):
        super().__init__(channels)
        self.weight = weight

    def weighted_losses(self, step):
        return {'all': self.weight * sum((s - t).abs().mean() for s, t in zip(step.f_s, step.f_t))}
'''


def test_a_loss_of_steps_comes_from_a_cell_too(cell, tmp_path, asked):
    found = cell(STEP_CELL, 'Whole')
    assert named(found) == f'{tmp_path / "results" / "losses" / "Whole.py"}:Whole'
    assert looks_at_steps(find_method(named(found)))
    study = Study.of(asked(methods=[found], options={found: {'weight': 2.0}}))
    assert [run.id for run in study.runs()][2:] == ['small-Whole.Whole+weight=2.0-s0']
    assert study.try_steps().problem.tolist() == ['', '', '']


def test_what_a_cell_takes_from_elsewhere_is_told_at_once(cell):
    found = cell('import amdlib\n@amdlib.method\ndef lost(f_s, f_t=amdlib.__version__):\n    return f_s\n', 'lost')
    assert named(found).endswith('lost.py:lost')
    lost = cell('import amdlib as kit\n\nclass A:\n    pass\n\nfrom amdlib.methods.level import LevelLoss as Base\n'
                'Base2 = (Base, A)[0]\n@kit.method\nclass Mine(Base2):\n    WEIGHT_EXPONENTS = {"w": (0, 0)}\n'
                '    def __init__(self, student_channels, teacher_channels, w=1.0):\n'
                '        super().__init__(student_channels, teacher_channels)\n'
                '    def weighted_loss(self, f_s, f_t, boxes=None, image_shapes=None):\n        return f_s.mean()\n',
                'Mine')
    with pytest.raises(SettingError, match="NameError in line 9: name 'Base2' is not defined"):
        named(lost)


@pytest.mark.parametrize(('loss', 'told'), [
    (3, 'expected a function of two features'), (lambda a: a, r'expected \(f_s, f_t\) or'),
    (dict, 'expected a function')])
def test_what_is_no_loss_is_refused(loss, told):
    with pytest.raises(SettingError, match=told):
        method(loss)


def test_a_class_that_was_not_decorated_is_no_name():
    with pytest.raises(SettingError, match='what @amdlib.method has decorated'):
        named(amdlib.MGDLoss)


@pytest.mark.parametrize('first', ['import amdlib.study.study, amdlib.study.pair, amdlib.methods, amdlib.datasets', ''])
def test_names_do_not_clash_with_modules_whatever_is_imported_first(first):
    code = (f'{first}\nimport amdlib\nprint(*(type(getattr(amdlib, name)).__name__ '
            "for name in ('data', 'pair', 'method', 'distill', 'Study')))")
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ['function'] * 4 + ['ABCMeta']
