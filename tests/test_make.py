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

import papermill
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from amdlib.__main__ import _parser
from amdlib.experiments import read_settings
from amdlib.targets import TARGETS

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / 'Makefile').read_text()
README = (ROOT / 'README.md').read_text()
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
PHONY = re.search(r'^\.PHONY: ((?:.*\\\n)*.*)$', MAKEFILE, re.MULTILINE).group(1).replace('\\', '').split()
PICTURED = [name for name in TARGETS if name.startswith(('table', 'fig'))]      # what the paper shows
VARIABLES = sorted({name for name in re.findall(r'\$\(([A-Z][A-Z_]+)\)', MAKEFILE) if not name.startswith('AMD_')}
                   - {'PY', 'SETUP', 'AMDLIB', 'WHERE', 'SET', 'OWN', 'RECIPE', 'REPRODUCE',
                      'MAKEFILE_LIST'})    # its own
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
    for target in PHONY:
        assert re.search(rf'^  {target}  +\w.*', targets, re.MULTILINE), target
    for variable in VARIABLES:
        assert re.search(rf'^  {variable}  +\w.*', variables, re.MULTILINE), variable


def test_every_target_is_phony_and_has_a_recipe():
    assert set(re.findall(r'^([a-z0-9-]+):', MAKEFILE, re.MULTILINE)) == set(PHONY)


@pytest.mark.parametrize('target', PHONY)
def test_every_target_can_be_planned(target):
    shown = make('-n', target)
    assert shown.returncode == 0 and shown.stdout.strip(), shown.stderr


@pytest.mark.parametrize('target', sorted(set(PHONY) - {'help', 'setup', 'lock', 'clean'}))
def test_every_target_sets_up_first(target, tmp_path):
    shown = make('-n', target, f'VENV={tmp_path}/venv').stdout
    assert f'{tmp_path}/venv/bin/python -m pip install' in shown
    for flag in ('--require-hashes', '--only-binary :all:', '--no-deps', '-r requirements.lock'):
        assert flag in shown


def test_every_table_and_figure_has_a_target():
    assert {target for target in PHONY if target.startswith('reproduce-')} == {
        *(f'reproduce-{name}' for name in PICTURED), 'reproduce-all'}
    assert PICTURED == ['table1', 'table2', 'table3', 'table4', 'table5', 'table6', 'fig1', 'fig3', 'fig4']


@pytest.mark.parametrize('name', PICTURED)
def test_reproduce_passes_nothing_on_but_the_profile_when_nothing_is_given(name):
    assert planned(f'reproduce-{name}') == ['reproduce', name, '--profile', 'mini']


def test_sweep_phi_is_figure_4_with_values():
    assert planned('sweep-phi') == ['reproduce', 'fig4', '--profile', 'mini']
    assert planned('sweep-phi', 'PHI=0.5  1.0 ', 'GROUP=retinanet') == [
        'reproduce', 'fig4', '--profile', 'mini', '--set', 'group=retinanet', '--set', 'values=0.5 1.0']


GIVEN = ('PROFILE=small', 'DATA=a folder/bccd', 'GROUP=retinanet', 'SEEDS=0 1  2', 'EPOCHS=2', 'DEVICE=cuda:1',
         'JOBS=3', 'FORCE=1', 'BACKBONE=r18.pth', 'TEACHER_BACKBONE=r50.pth', 'TEACHER=a folder/x.pth', 'PHI=0.5 0.7',
         'SETTINGS=batch_size=4 amp=True')
PARAMETERS = {'group': 'retinanet', 'seeds': '0 1 2', 'device': 'cuda:1', 'jobs': '3', 'force': 'True',
              'values': '0.5 0.7', 'settings': "'epochs=2' 'backbone=r18.pth' 'teacher_backbone=r50.pth' "
                          "'teacher_checkpoint=a folder/x.pth' batch_size=4 amp=True"}


@pytest.mark.parametrize('target, wanted', [
    ('reproduce-table1', ['table1']), ('sweep-phi', ['fig4']), ('reproduce-fig4', ['fig4']), ('status', [])])
def test_every_variable_is_passed_on(target, wanted):
    parsed = _parser().parse_args(planned(target, *GIVEN))
    assert (parsed.targets, parsed.profile, parsed.data) == (wanted, 'small', 'a folder/bccd')
    assert read_settings(parsed.settings) == PARAMETERS
    assert read_settings(PARAMETERS['settings']) == {
        'epochs': '2', 'backbone': 'r18.pth', 'teacher_backbone': 'r50.pth', 'teacher_checkpoint': 'a folder/x.pth',
        'batch_size': '4', 'amp': 'True'}


def test_every_variable_that_is_passed_on_is_known_to_a_notebook():
    known = papermill.inspect_notebook(str(ROOT / 'notebooks' / 'fig4.ipynb'))
    assert set(PARAMETERS) <= set(known)
    assert set(PARAMETERS) - {'values'} <= set(papermill.inspect_notebook(str(ROOT / 'notebooks' / 'table1.ipynb')))


@pytest.fixture
def pretended(tmp_path):
    """A virtual environment whose python writes down what it is asked for and fails where told; Makefile beside it."""
    shutil.copy(ROOT / 'Makefile', tmp_path)
    for name in ('requirements.lock', 'pyproject.toml'):
        (tmp_path / name).touch()
    python = tmp_path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> asked\n[ "$3" != "$FAILING" ] || exit 3\n')
    python.chmod(0o755)
    (tmp_path / '.venv' / '.setup-done').touch()

    def call(*words, failing=''):
        ended = subprocess.run(['make', '--no-print-directory', *words], cwd=tmp_path, capture_output=True, text=True,
                               timeout=60, env={'PATH': os.environ['PATH'], 'FAILING': failing})
        return ended.returncode, (tmp_path / 'asked').read_text().splitlines()
    return call


def test_reproduce_all_makes_everything_and_then_the_report(pretended):
    assert pretended('reproduce-all', 'PROFILE=small', 'DATA=d', 'GROUP=retinanet') == (0, [
        '-m amdlib reproduce all --profile small --data d --set group=retinanet',
        '-m amdlib report --profile small --data d'])


@pytest.mark.parametrize('failing', ['reproduce', 'report'])
def test_reproduce_all_reports_what_there_is_after_a_failure_and_fails(pretended, failing):
    status, asked = pretended('reproduce-all', failing=failing)
    assert status == 2      # make's own, of a recipe that failed
    assert [line.split()[2] for line in asked] == ['reproduce', 'report']


def test_a_failed_target_fails(pretended):
    assert pretended('reproduce-table3', failing='reproduce') == (2, ['-m amdlib reproduce table3 --profile mini'])


@pytest.mark.parametrize('seeds, passed', [('0', '0'), ('0 1', '0 1'), ('0,1,2', '0,1,2'), (' 4  5 ', '4 5')])
def test_seeds_with_spaces_or_commas(seeds, passed):
    assert planned('reproduce-table1', f'SEEDS={seeds}')[-2:] == ['--set', f'seeds={passed}']


@pytest.mark.parametrize('force', ['0', ''])
def test_force_0_is_no_force(force):
    assert '--set' not in planned('reproduce-table1', f'FORCE={force}')


def test_variables_may_come_from_the_environment():
    shown = make('-n', 'reproduce-table1', GROUP='reppoints', PROFILE='paper').stdout
    assert '--profile paper' in shown and '--set "group=reppoints"' in shown


@pytest.mark.parametrize('target, words', [
    ('doctor', ['doctor']), ('list', ['list']), ('weights', ['weights']),
    ('data', ['data', '--profile', 'small', '--data', 'x y']),
    ('status', ['status', '--profile', 'small', '--data', 'x y']),
    ('report', ['report', '--profile', 'small', '--data', 'x y'])])
def test_other_targets_of_the_command_line(target, words):
    found = planned(target, *(['PROFILE=small', 'DATA=x y'] if '--profile' in words else []))
    assert found == words
    _parser().parse_args(found)


def test_cost_takes_the_recipe_of_the_runs():
    parsed = _parser().parse_args(planned('cost', 'PROFILE=paper', 'GPUS=8', 'AMP=bf16', 'TEACHER=a b/x.pth',
                                          'SETTINGS=tf32=True fused=True', 'MEASURE=1', 'SWITCHES=1', 'DEVICE=cpu'))
    assert read_settings(parsed.settings) == {'gpus': '8', 'amp': 'bf16', 'tf32': 'True', 'fused': 'True'}
    assert (parsed.measure, parsed.switches, parsed.device, parsed.data) == (True, True, 'cpu', None)
    assert planned('cost') == ['cost', '--profile', 'mini']


def test_an_old_python_is_told_what_is_needed(tmp_path):
    old = tmp_path / 'python3.9'
    older = 'import sys; sys.version_info = (3, 9, 18); exec(sys.argv[1])'
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{older}" "$2"\n')
    old.chmod(0o755)
    told = make('setup', f'PYTHON={old}', f'VENV={tmp_path}/venv')
    assert told.returncode != 0 and not (tmp_path / 'venv').exists()
    assert f'error: {old} is Python 3.9; the kit needs 3.11 or newer: make setup PYTHON=' in told.stderr


def test_an_unknown_python_is_named(tmp_path):
    told = make('setup', 'PYTHON=python9.99', f'VENV={tmp_path}/venv')
    assert told.returncode != 0 and 'python9.99' in told.stderr and not (tmp_path / 'venv').exists()


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
            assert hashes and all(re.fullmatch(r'sha256:[0-9a-f]{64}', one.strip()) for one in hashes), name


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


def test_conda_has_the_interpreter_and_leaves_the_pins_to_the_lock():
    text = (ROOT / 'environment.yml').read_text()
    packages = re.findall(r'^  - (\S+)$', text, re.MULTILINE)
    (python,) = [one for one in packages if one.startswith('python')]
    assert Version(python.partition('=')[2]) >= Version(PROJECT['requires-python'].removeprefix('>='))
    assert not {one.partition('=')[0] for one in packages} & set(_locked()) - {'pip'}
    assert 'make setup VENV="$CONDA_PREFIX"' in text


def test_a_conda_environment_is_used_and_not_replaced(tmp_path):
    shown = make('-n', 'setup', f'VENV={tmp_path}').stdout
    assert f'test -d {tmp_path}/conda-meta || ' in shown


def test_ci_runs_the_readmes_test_command():
    script = ROOT / '.ci' / 'run'
    assert os.access(script, os.X_OK) and 'set -euo pipefail' in script.read_text()
    assert script.read_text().splitlines()[-1] == 'make test'
    assert subprocess.run(['bash', '-n', str(script)]).returncode == 0


# ---- README -----------------------------------------------------------------------------------------------------

def _commands(text):
    """Commands in code, inline and in blocks."""
    blocks = re.findall(r'```\w*\n(.*?)```', text, re.DOTALL)
    inline = re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL))
    return [line.strip() for block in blocks for line in block.splitlines()] + inline


def test_every_make_command_of_the_readme_exists():
    found = [line.split() for line in _commands(README) if line.startswith('make ')]
    assert {'reproduce-table1', 'test', 'help', 'list'} <= {words[1] for words in found}
    for _, target, *settings in found:
        assert target in PHONY
        names = {setting.partition('=')[0] for setting in settings if '=' in setting}
        assert names <= set(VARIABLES), names


def test_every_variable_that_the_readme_names_exists():
    named = {name for text in _commands(README) for name in re.findall(r'^([A-Z_]{4,})(?:=|$)', text)}
    assert {'FORCE', 'SEEDS', 'WEIGHTS', 'GPUS', 'ACCUMULATE'} <= named
    # words in capitals that are no variables of make
    others = {'BCCD', 'COCO', 'PROFILES', 'WEIGHT_EXPONENTS', 'AMD_CACHE'}
    assert named - others <= set(VARIABLES), named - set(VARIABLES)


def test_every_command_of_the_command_line_in_the_readme_exists(capsys):
    sentence = re.search(r'`python -m amdlib list`.*?\n\n', README, re.DOTALL).group(0)
    commands = [text.removeprefix('python -m amdlib ').split()[0] for text in re.findall(r'`([^`]+)`', sentence)
                if re.match(r'(python -m amdlib )?[a-z]+( |$)', text)]
    assert {'list', 'show', 'run', 'data', 'table', 'notebook', 'doctor'} <= set(commands)
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            _parser().parse_args([command, '--help'])
        assert ended.value.code == 0
    for flag in re.findall(r'`(--[a-z-]+)`', sentence):
        with pytest.raises(SystemExit):
            _parser().parse_args(['run', '--help'])
        assert flag in capsys.readouterr().out


def test_every_file_that_the_readme_lists_exists():
    table = README.partition('\n## Parts\n')[2].partition('\n## ')[0]
    cells = [line.split('|')[1] for line in table.splitlines() if line.startswith('| `')]
    named = [name for cell in cells for name in re.findall(r'`([^`]+)`', cell)]
    assert len(named) >= 15
    for name in named:
        assert any((ROOT / folder / name).exists() for folder in ('', 'amdlib', 'notebooks')), name
    listed = {Path(name).name for name in named}
    assert {path.name for path in (ROOT / 'amdlib').glob('*.py')} - {'__init__.py'} <= listed   # and every module is
    assert {path.name for path in (ROOT / 'notebooks').glob('*.ipynb')} <= listed


def test_every_place_that_the_readmes_table_of_deviations_names_exists():
    table = README.partition('\n## Assumptions and deviations\n')[2].partition('\n## ')[0]
    source = '\n'.join(path.read_text() for path in (ROOT / 'amdlib').glob('*.py'))
    for line in [line for line in table.splitlines() if line.startswith('| ')][1:]:
        for name in re.findall(r'`([^`]+)`', line.split('|')[4]):
            assert (ROOT / 'amdlib' / name).exists() or re.search(rf'\b{name}\b', source), name


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
    'data/coco/train2017/a.jpg', '.venv/bin/python', 'amdlib/__pycache__/amd.pyc'])
def test_git_ignores_runs_data_and_environments(path):
    assert _git('check-ignore', '--no-index', '-q', path).returncode == 0


@needs_git
@pytest.mark.parametrize('path', ['results/mini/table1.md', 'results/mini/table1.csv', 'results/small/bccd/table1.png',
                                  'results/mini/fig4.csv', 'results/mini/fig1.svg', 'results/mini/fig3.png',
                                  'data/paper_tables.csv', 'notebooks/table1.ipynb', 'tests/goldens/a.json'])
def test_git_keeps_tables_figures_and_goldens(path):
    assert _git('check-ignore', '--no-index', '-q', path).returncode == 1


@needs_git
def test_no_tracked_file_is_large_and_no_tracked_notebook_has_outputs():
    tracked = [ROOT / name for name in _git('ls-files', '-z').stdout.split('\0') if name]
    there = [path for path in tracked if path.is_file()]
    assert len(there) > 20
    assert not [f'{path}: {path.stat().st_size} bytes' for path in there if path.stat().st_size > 2 ** 20]
    for path in there:
        if path.suffix == '.ipynb':
            cells = json.loads(path.read_text())['cells']
            assert not [cell['id'] for cell in cells if cell.get('outputs') or cell.get('execution_count')], path


@needs_git
def test_no_tracked_file_names_a_home_folder():
    """Paths of somebody's machine have no place here; the kit's own are relative."""
    hits = _git('grep', '-nIE', r'(^|[^A-Za-z0-9_.-])/(home|Users)/[a-z]+/').stdout
    assert hits == ''
