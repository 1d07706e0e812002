"""What a user meets first: Makefile, environment files, README, and what git keeps."""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from setuptools import find_packages

from amdlib.cli import parser
from amdlib.cli.arguments import choice, numbers, settings
from amdlib.runs.targets import TARGETS

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / 'Makefile').read_text()
README, REPRODUCE = ((ROOT / name).read_text() for name in ('README.md', 'docs/reproduce.md'))
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def listed(name):
    """The words of one of the Makefile's lists."""
    found = re.search(rf'^{name}:? *:?=? *((?:.*\\\n)*.*)$', MAKEFILE, re.MULTILINE).group(1)
    return found.replace('\\', '').split()


PICTURED = [name for name in TARGETS if name.startswith(('table', 'fig', 'significance', 'zoo'))]
PHONY = [name for name in listed('.PHONY') if name != 'always']
GOALS = [*PHONY, *(f'reproduce-{name}' for name in PICTURED)]
VARIABLES = listed('KNOWN')
pytestmark = pytest.mark.skipif(shutil.which('make') is None, reason='no make here')


def make(*words, **environment):
    kept = {name: value for name, value in os.environ.items()
            if name not in VARIABLES and not name.startswith(('MAKE', 'MFLAGS'))}   # of the make that runs the tests
    return subprocess.run(['make', '--no-print-directory', *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, env={**kept, **environment})


def planned(target, *words):
    """The words of the amdlib command that a target would run, without `PYTHON -m amdlib`."""
    shown = make('-n', target, *words)
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if ' -m amdlib' in line]
    return shlex.split(line.partition(' -m amdlib')[2])


# ---- make -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words', [(), ('help',)])
def test_help_is_the_default_and_explains_every_target_and_variable(words):
    told = make(*words)
    assert told.returncode == 0
    targets, _, variables = told.stdout.partition('\nVariables')
    assert sorted(re.findall(r'^  (\S+)  +\w.*', targets, re.MULTILINE)) == sorted(GOALS)
    assert re.findall(r'^  (\S+)  +\w.*', variables, re.MULTILINE) == VARIABLES


def test_every_target_is_phony_and_has_a_recipe():
    assert set(re.findall(r'^([a-z0-9-]+):', MAKEFILE, re.MULTILINE)) == set(PHONY)


def test_every_known_variable_is_used():
    recipes = MAKEFILE.partition('\nunexport')[2] + MAKEFILE.partition('\n#?')[0]
    assert [name for name in VARIABLES if not re.search(rf'(call \w+,|value |\$\(){name}\b', recipes)] == []


@pytest.mark.parametrize('target', GOALS)
def test_every_target_can_be_planned(target):
    shown = make('-n', target)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip()


@pytest.mark.parametrize('target', sorted(set(GOALS) - {'help', 'setup', 'lock', 'clean'}))
def test_every_target_sets_up_first(target, tmp_path):
    shown = make('-n', target, f'VENV={tmp_path}/venv').stdout
    assert f"-I amdlib/setup_venv.py '{tmp_path}/venv'\n" in shown


@pytest.mark.parametrize('name', PICTURED)
def test_reproduce_passes_nothing_on_but_the_profile_when_nothing_is_given(name):
    assert planned(f'reproduce-{name}') == ['reproduce', name, '--profile=mini']


def test_sweep_phi_is_figure_4_with_values():
    assert planned('sweep-phi') == ['reproduce', 'fig4', '--profile=mini']
    assert planned('sweep-phi', 'VALUES=0.5  1.0 ', 'GROUP=retinanet') == [
        'reproduce', 'fig4', '--profile=mini', '--group=retinanet', '--values=0.5  1.0 ']


def parsed(target, *words):
    return parser().parse_args(planned(target, *words))


ASKED = ('PROFILE=small', 'DATA=a folder/bccd', 'GROUP=retinanet', 'SEEDS=0 1  2', 'VALUES=0.5 0.7',
         "SETTINGS=epochs=2 'backbone=a folder/x.pth' amp=True", 'METHOD=a folder/own.py:Own', 'ARM=inherit',
         'CONTROLS=1')
HOW = ('DEVICE=cuda:1', 'JOBS=3', 'FORCE=1', 'WEIGHTS=a folder', 'MIRRORS=https://one two', 'WORKERS=2',
       'TENSORBOARD=1', 'SKIP_TEACHER_CHECK=1')


@pytest.mark.parametrize(('target', 'wanted'), [
    ('reproduce-table1', ['table1']), ('sweep-phi', ['fig4']), ('reproduce-fig4', ['fig4']), ('status', [])])
def test_every_variable_is_passed_on(target, wanted):
    given = parsed(target, *ASKED, *HOW)
    assert (given.targets, given.profile, given.data, given.group) == (wanted, 'small', 'a folder/bccd', 'retinanet')
    assert (numbers(given.seeds), numbers(given.values)) == ([0, 1, 2], [0.5, 0.7])
    assert settings(given) == {'epochs': 2, 'backbone': 'a folder/x.pth', 'amp': True}
    assert given.methods == ['a folder/own.py:Own']
    assert (given.arm, given.controls) == ('inherit', True)
    if target != 'status':
        assert (given.device, given.jobs, given.force, given.weights) == ('cuda:1', 3, True, 'a folder')
        assert (given.mirrors, given.workers) == (['https://one two'], 2)
        assert given.tensorboard
        assert given.skip_teacher_check


def test_on_slurm_hands_in_what_would_be_trained():
    options = '--partition=gpu --time=4:00:00'
    for target, wanted in (('reproduce-table1', ['table1']), ('reproduce-all', ['all']), ('sweep-phi', ['fig4'])):
        given = parsed(target, *ASKED, *HOW, 'ON=slurm', f'SLURM={options}')
        assert (given.command, given.targets, given.on, given.slurm) == ('batch', wanted, 'slurm', options)
        assert (given.jobs, given.weights, settings(given)['epochs']) == (3, 'a folder', 2)
    assert parsed('reproduce-table1', 'SLURM=-p gpu').command == 'batch'     # nobody gives that and trains here
    assert parsed('status', 'ON=slurm').on == 'slurm'


HOSTILE = ["a'b", '"; touch harm; "', '`touch harm`', '$(touch harm)', '$(shell touch harm)', '$HOME', 'a;touch harm',
           "'; touch harm; '", 'a\\', '-x', '--force', '#a', 'a, b', '(c)', '$$', '%', '*', '~', '!!', '|touch harm',
           '> harm', 'a ', '{1..3}', '$(error harm)']


@pytest.mark.parametrize('value', HOSTILE)
def test_a_value_reaches_the_program_as_it_is(pretended, value):
    """Neither make nor the shell looks into it; on make's command line and from the environment."""
    words = ['--profile=mini', f'--data={value}', f'--settings={value}', f'--method={value}']
    given = {name: value for name in ('DATA', 'SETTINGS', 'METHOD')}
    assert pretended('reproduce-table1', *(f'{name}={text}' for name, text in given.items())) == (
        0, [['-m', 'amdlib', 'reproduce', 'table1', *words]])
    pretended.folder.joinpath('asked').unlink()
    assert pretended('reproduce-table1', **given) == (0, [['-m', 'amdlib', 'reproduce', 'table1', *words]])
    assert pretended('export', f'RUN={value}')[1][-1] == ['-m', 'amdlib', 'export', '--profile=mini', '--', value]
    assert not (pretended.folder / 'harm').exists()


def test_words_for_jupyter_lab_are_single_words(pretended):
    assert pretended('lab', 'LAB=--port 8889 $(touch harm) a;b') == (
        0, [['-m', 'amdlib', 'lab', '--', '--port', '8889', '$(touch', 'harm)', 'a;b']])


@pytest.mark.parametrize('words', [('reproduce-table1', 'EPOCH=1'), ('help', 'phi=1'), ('status', 'PHI=1')])
def test_an_unknown_variable_is_an_error_that_names_the_known_ones(words):
    told = make(*words)
    assert told.returncode == 2
    assert told.stdout == ''
    assert f'unknown variable {words[1].partition("=")[0]}; known are: {" ".join(VARIABLES)}' in told.stderr


def test_what_only_the_environment_sets_is_obeyed_and_said():
    told = subprocess.run(['make', '-n', 'status'], cwd=ROOT, capture_output=True, text=True,
                          env={'PATH': os.environ['PATH'], 'SEEDS': '0 1', 'PHI': '3'})
    assert told.stderr == 'note: SEEDS comes from the environment\n'
    assert "--seeds='0 1'" in told.stdout
    assert make('-n', 'status', 'SEEDS=0 1').stderr == ''


def test_a_line_break_in_a_value_is_refused():
    told = make('-n', 'status', 'DATA=a\nb')
    assert told.returncode == 2
    assert 'DATA has a line break' in told.stderr


@pytest.fixture
def pretended(tmp_path):
    """A virtual environment whose python writes down what it is asked for and fails where told; Makefile beside it."""
    shutil.copy(ROOT / 'Makefile', tmp_path)
    for name in ('requirements.lock', 'pyproject.toml'):
        (tmp_path / name).touch()
    python = tmp_path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!{sys.executable}\nimport json, os, sys\nprint(json.dumps(sys.argv[1:]), file=open("asked", '
                      '"a"))\nsys.exit(3 if sys.argv[3] == os.environ["FAILING"] else 0)\n')
    python.chmod(0o755)
    (tmp_path / '.venv' / '.setup-done').touch()

    def call(*words, failing='', **environment):
        ended = subprocess.run(['make', '--no-print-directory', *words], cwd=tmp_path, capture_output=True, text=True,
                               timeout=60, env={'PATH': os.environ['PATH'], 'FAILING': failing, **environment})
        assert (tmp_path / 'asked').is_file(), ended.stderr
        return ended.returncode, [json.loads(line) for line in (tmp_path / 'asked').read_text().splitlines()]
    call.folder = tmp_path
    return call


@pytest.mark.parametrize('target', ['data', 'status', 'reproduce-table1', 'report', 'verify'])
def test_what_of_a_folder_is_taken(target):
    given = parsed(target, 'PROFILE=small', 'DATA=d', 'SPLIT=0.8', 'SPLIT_SEED=3', 'NEGATIVES=keep', 'DROP_BROKEN=1',
                   'LAYOUT=yolo')
    assert choice(given) == {'split': 0.8, 'split_seed': 3, 'negatives': 'keep', 'drop_broken': True, 'layout': 'yolo'}
    assert choice(parsed(target, 'DROP_BROKEN=0')) == {}


def test_reproduce_all_makes_everything_and_then_the_report(pretended):
    assert pretended('reproduce-all', 'PROFILE=small', 'DATA=d', 'GROUP=retinanet') == (0, [
        ['-m', 'amdlib', 'reproduce', 'all', '--profile=small', '--data=d', '--group=retinanet'],
        ['-m', 'amdlib', 'report', '--profile=small', '--data=d']])


@pytest.mark.parametrize('failing', ['reproduce', 'report'])
def test_reproduce_all_reports_what_there_is_after_a_failure_and_fails(pretended, failing):
    status, asked = pretended('reproduce-all', failing=failing)
    assert status == 2      # make's own, of a recipe that failed
    assert [words[2] for words in asked] == ['reproduce', 'report']


def test_a_failed_target_fails(pretended):
    assert pretended('reproduce-table3', failing='reproduce') == (
        2, [['-m', 'amdlib', 'reproduce', 'table3', '--profile=mini']])


@pytest.mark.parametrize(('text', 'wanted'), [('0', [0]), ('0 1', [0, 1]), ('0,1,2', [0, 1, 2]), (' 4  5 ', [4, 5])])
def test_seeds_with_spaces_or_commas(text, wanted):
    assert numbers(parsed('reproduce-table1', f'SEEDS={text}').seeds) == wanted


@pytest.mark.parametrize('force', ['0', ''])
def test_force_0_is_no_force(force):
    assert not parsed('reproduce-table1', f'FORCE={force}').force


def test_variables_may_come_from_the_environment():
    shown = make('-n', 'reproduce-table1', GROUP='reppoints', PROFILE='paper').stdout
    assert "--profile='paper'" in shown
    assert "--group='reppoints'" in shown


@pytest.mark.parametrize(('target', 'words'), [
    ('doctor', ['doctor']), ('list', ['list']), ('weights', ['weights']), ('attest', ['attest', '--']),
    ('data', ['data', '--profile=small', '--data=x y']), ('status', ['status', '--profile=small', '--data=x y']),
    ('report', ['report', '--profile=small', '--data=x y'])])
def test_other_targets_of_the_command_line(target, words):
    found = planned(target, *(['PROFILE=small', 'DATA=x y'] if '--profile=small' in words else []))
    assert found == words
    parser().parse_args(found)


@pytest.mark.parametrize(('target', 'words', 'planned_words'), [
    ('bed', ['GROUP=retinanet', 'SETTINGS=epochs=2'], ['bed', '--profile=mini', '--group=retinanet',
                                                       '--settings=epochs=2', '--write']),
    ('calibrate', ['GROUP=retinanet', 'ARM=inherit', 'METHODS=amd mgd', 'SEEDS=100 101'], [
        'calibrate', '--profile=mini', '--group=retinanet', '--arm=inherit', '--methods=amd mgd', '--seeds=100 101']),
    ('teachers', ['GROUP=retinanet', 'SEEDS=1', 'FORCE=1'], ['teachers', '--profile=mini', '--group=retinanet',
                                                             '--seeds=1', '--force']),
    ('backbone', [], ['pretrain', '--profile=mini'])])
def test_the_test_bed(target, words, planned_words):
    assert planned(target, *words) == planned_words
    parser().parse_args(planned_words)


def test_a_notebook_takes_settings():
    given = parsed('notebook', 'NAME=explore_masks', 'SETTINGS=epochs=2 amp=bf16', 'DEVICE=cpu')
    assert (given.name, given.set, given.device) == ('explore_masks', ['settings=epochs=2 amp=bf16'], 'cpu')


def test_cost_takes_the_recipe_of_the_runs():
    given = parsed('cost', 'PROFILE=paper', 'SETTINGS=gpus=8 amp=bf16 tf32=True', 'MEASURE=1', 'SWITCHES=1',
                   'DEVICE=cpu')
    assert settings(given) == {'gpus': 8, 'amp': 'bf16', 'tf32': True}
    assert (given.measure, given.switches, given.device, given.data) == (True, True, 'cpu', None)
    assert planned('cost') == ['cost', '--profile=mini']


def test_an_old_python_is_told_what_is_needed(tmp_path):
    old = tmp_path / 'python3.9'
    older = ('import runpy, sys; sys.version_info = (3, 9, 18); sys.argv = sys.argv[2:]; '
             "runpy.run_path(sys.argv[0], run_name='__main__')")
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{older}" "$@"\n')
    old.chmod(0o755)
    told = make('setup', f'PYTHON={old}', f'VENV={tmp_path}/venv')
    assert told.returncode != 0
    assert not (tmp_path / 'venv').exists()
    assert re.search('error: .* is Python 3.9; the kit needs 3.11 or newer: make setup PYTHON=', told.stderr)


@pytest.mark.parametrize('target', ['setup', 'demo'])
def test_without_gpu_packages_nothing_is_set_up(pretended, target):
    """Though an environment is there; a login shell's own variable of that name asks for nothing."""
    folder = pretended.folder
    (folder / 'amdlib').mkdir()
    shutil.copy(ROOT / 'amdlib' / 'setup_venv.py', folder / 'amdlib')
    before = sorted(folder.rglob('*'))
    told = make(target, 'CPU=1', '-C', str(folder))
    assert told.returncode != 0
    assert 'error: CPU=1: no lock without GPU packages' in told.stderr
    assert sorted(folder.rglob('*')) == before
    assert pretended('status', CPU='x86_64')[0] == 0


def test_an_unknown_python_is_named(tmp_path):
    told = make('setup', 'PYTHON=python9.99', f'VENV={tmp_path}/venv')
    assert told.returncode != 0
    assert 'python9.99' in told.stderr
    assert not (tmp_path / 'venv').exists()


# ---- environment ------------------------------------------------------------------------------------------------

def _locked():
    """Name -> [(Requirement, hashes)], from requirements.lock."""
    text = re.sub(r'^ *#.*\n', '', (ROOT / 'requirements.lock').read_text(), flags=re.MULTILINE)
    found = {}
    for line in text.replace('\\\n', ' ').splitlines():
        needed, *hashes = line.split('--hash=')
        requirement = Requirement(needed.strip())
        found.setdefault(requirement.name.lower().replace('_', '-'), []).append((requirement, hashes))
    return found


def test_the_lock_pins_every_package_with_hashes():
    locked = _locked()
    assert len(locked) > 100
    for name, entries in locked.items():
        for requirement, hashes in entries:
            assert re.fullmatch(r'==[\w.+!]+', str(requirement.specifier)), name
            assert requirement.url is None, name
            assert hashes, name
            assert all(re.fullmatch(r'sha256:[0-9a-f]{64}', one.strip()) for one in hashes), name


def test_the_lock_names_no_index_file_or_url():
    lines = (ROOT / 'requirements.lock').read_text().splitlines()
    assert not [line for line in lines if not line.lstrip().startswith('#')
                and ('://' in line or '@' in line or line.startswith(('-', '.', '/')))]


def test_the_lock_holds_what_the_kit_needs_at_versions_it_allows():
    locked = _locked()
    optional = PROJECT['optional-dependencies']
    for text in [*PROJECT['dependencies'], *optional['dev'], *optional['export']]:
        requirement = Requirement(text)
        for pinned, _ in locked[requirement.name]:
            version = str(pinned.specifier).removeprefix('==')
            assert requirement.specifier.contains(version), f'{text}: {version}'
    assert str(locked['torch'][0][0].specifier) == '==2.14.1'
    assert all(Version(str(pinned.specifier)[2:]) < Version('81') for pinned, _ in locked['setuptools'])
    assert 'opencv-python' not in locked   # it needs libGL; the headless build does not


def test_the_package_holds_every_folder_and_the_templates():
    tool = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']
    found = find_packages(ROOT, **tool['packages']['find'])
    folders = {path.parent for path in (ROOT / 'amdlib').rglob('*.py')}
    assert set(found) == {'.'.join(folder.relative_to(ROOT).parts) for folder in folders}
    others = {path for path in (ROOT / 'amdlib').rglob('*.*') if path.is_file() and path.suffix not in ('.py', '.pyc')}
    assert others == {path for name, patterns in tool['package-data'].items() for pattern in patterns
                      for path in ROOT.joinpath(*name.split('.')).glob(pattern)}


def test_conda_has_the_interpreter_and_leaves_the_pins_to_the_lock():
    text = (ROOT / 'environment.yml').read_text()
    packages = re.findall(r'^  - (\S+)$', text, re.MULTILINE)
    (python,) = [one for one in packages if one.startswith('python')]
    assert Version(python.partition('=')[2]) >= Version(PROJECT['requires-python'].removeprefix('>='))
    assert not {one.partition('=')[0] for one in packages} & set(_locked()) - {'pip'}
    assert 'make setup VENV="$CONDA_PREFIX"' in text


def test_ci_runs_the_readmes_test_command():
    script = ROOT / '.ci' / 'run'
    assert os.access(script, os.X_OK)
    assert 'set -euo pipefail' in script.read_text()
    assert script.read_text().splitlines()[-1] == 'make test'
    assert subprocess.run(['bash', '-n', str(script)]).returncode == 0


# ---- README -----------------------------------------------------------------------------------------------------

def _commands(text):
    """Commands in code, inline and in blocks."""
    blocks = re.findall(r'```\w*\n(.*?)```', text, re.DOTALL)
    inline = re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL))
    return [line.strip() for block in blocks for line in block.splitlines()] + inline


def test_every_make_command_of_the_readme_exists():
    found = [line.split() for line in _commands(README + REPRODUCE) if line.startswith('make ')]
    assert {'reproduce-table1', 'test', 'help', 'list'} <= {words[1] for words in found}
    for _, target, *words in found:
        assert target in GOALS
        names = {word.partition('=')[0] for word in words if '=' in word}
        assert names <= set(VARIABLES), names


def test_every_variable_that_the_readme_names_exists():
    named = {name for text in _commands(README + REPRODUCE) for name in re.findall(r'^([A-Z_]{4,})(?:=|$)', text)}
    assert {'FORCE', 'SEEDS', 'WEIGHTS', 'SETTINGS', 'METHOD'} <= named
    # words in capitals that are no variables of make
    others = {'BCCD', 'COCO', 'PROFILES', 'WEIGHT_EXPONENTS', 'PUBLISHED'}
    assert named - others <= set(VARIABLES), named - set(VARIABLES)


def test_every_command_of_the_command_line_that_is_named_exists(capsys):
    sentence = re.search(r'`python -m amdlib list`.*?\n\n', REPRODUCE, re.DOTALL).group(0)
    commands = [text.removeprefix('python -m amdlib ').split()[0] for text in re.findall(r'`([^`]+)`', sentence)
                if re.match(r'(python -m amdlib )?[a-z]+( |$)', text)]
    assert {'list', 'show', 'run', 'data', 'table', 'notebook', 'doctor'} <= set(commands)
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([command, '--help'])
        assert ended.value.code == 0
    for flag in re.findall(r'`(--[a-z-]+)`', sentence):
        with pytest.raises(SystemExit):
            parser().parse_args(['run', '--help'])
        assert flag in capsys.readouterr().out


def test_the_page_of_parts_lists_every_file():
    table = (ROOT / 'docs' / 'parts.md').read_text().partition('\n## The folders\n')[2].partition('\n## ')[0]
    cells = [line.split('|')[1] for line in table.splitlines() if line.startswith('| `')]
    named = [name for cell in cells for name in re.findall(r'`([^`]+)`', cell)]
    assert len(named) >= 15
    for name in named:
        assert any((ROOT / folder / name).exists() for folder in ('', 'amdlib', 'notebooks')), name
    told = {Path(name).name for name in named}
    modules = {path.name for path in (ROOT / 'amdlib').glob('*.py')} - {'__init__.py', '__main__.py'}
    folders = {path.parent.name for path in (ROOT / 'amdlib').glob('*/__init__.py')}
    assert modules | folders | {path.name for path in (ROOT / 'notebooks').glob('*.ipynb')} <= told


# ---- git --------------------------------------------------------------------------------------------------------

def _git(*words):
    return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True)


needs_git = pytest.mark.skipif(shutil.which('git') is None or _git('rev-parse', '--git-dir').returncode != 0,
                               reason='no git checkout')


@needs_git
@pytest.mark.parametrize('path', [
    'results/mini/runs/retinanet-amd-s0/weights.pth', 'results/mini/runs/a/record.json', 'results/small/bccd/runs/a/x',
    'results/mini/table1.ipynb', 'results/small/bccd/table1.failed.ipynb', 'data/mini/train.json',
    'results/mini/sweep_phi/reppoints-amd+phi=0.7-s0.ipynb', 'results/mini/sweep_phi/reppoints-amd+phi=0.7-s0.log',
    'data/coco/train2017/a.jpg', 'data/teachers/mini/.backbone.new', '.venv/bin/python', 'amdlib/__pycache__/amd.pyc'])
def test_git_ignores_runs_data_and_environments(path):
    assert _git('check-ignore', '--no-index', '-q', path).returncode == 0


@needs_git
@pytest.mark.parametrize('path', ['results/mini/table1.md', 'results/mini/table1.csv', 'results/small/bccd/table1.png',
                                  'results/mini/fig4.csv', 'results/mini/fig1.svg', 'results/mini/fig3.png',
                                  'data/paper_tables.csv', 'data/teachers/mini/retinanet-teacher-s0-0123abcd.pth',
                                  'data/teachers/mini/retinanet-teacher-s0-0123abcd.json', 'results/mini/bed.md',
                                  'results/mini/calibration.csv', 'notebooks/table1.ipynb', 'tests/goldens/a.json',
                                  'results/mini/report.html', 'results/mini/notebooks/method.html'])
def test_git_keeps_tables_figures_and_goldens(path):
    assert _git('check-ignore', '--no-index', '-q', path).returncode == 1


@needs_git
def test_no_tracked_file_is_large_and_no_tracked_notebook_has_outputs():
    tracked = [ROOT / name for name in _git('ls-files', '-z').stdout.split('\0') if name]
    there = [path for path in tracked if path.is_file()]
    assert len(there) > 20
    shipped = [path for path in there if path.is_relative_to(ROOT / 'data' / 'teachers')]
    records = [path for path in there if 'records' in path.relative_to(ROOT).parts[:3]]
    assert all(sum(path.stat().st_size for path in some) < 25e6 for some in (shipped, records))
    assert not [f'{path}: {path.stat().st_size} bytes' for path in there if path.stat().st_size > 2 ** 20
                and path not in (*shipped, *records)]
    for path in there:
        if path.suffix == '.ipynb':
            cells = json.loads(path.read_text())['cells']
            assert not [cell['id'] for cell in cells if cell.get('outputs') or cell.get('execution_count')], path


@needs_git
def test_no_tracked_file_names_a_home_folder():
    """Paths of somebody's machine have no place here; the kit's own are relative."""
    hits = _git('grep', '-nIE', r'(^|[^A-Za-z0-9_.-])/(home|Users)/[a-z]+/').stdout
    assert hits == ''
