"""The house itself: what lies on which floor, how large a module may be, and ways that are closed."""
import ast
import re

import pytest

from amdlib import methods
from amdlib.files import ROOT

PACKAGE = ROOT / 'amdlib'
MODULES = sorted(PACKAGE.rglob('*.py'))
every_module = pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
# a module imports from its own floor's folder and from floors below; folders of one floor do not know each other
FLOORS = (('errors', 'evaluation', 'files', 'terminal', 'words', 'mmcv_ext'), ('methods',),
          ('paper', 'datasets', 'weights'),
          ('engine',), ('runs',), ('show',), ('scale',), ('study',),
          ('cli', 'doctor', 'setup_venv', '__main__', '__init__'))
TOGETHER = {0, len(FLOORS) - 1}     # the single modules below all and above all know each other
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def part_of(path):
    """The folder of the package in which a module lies, or the module."""
    below = path.relative_to(PACKAGE)
    return below.parts[0] if len(below.parts) > 1 else below.stem


def imported(tree):
    """The parts of the package that a module imports, wherever in it; what is imported for annotations too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        else:
            continue
        yield from (name.split('.')[1] for name in names if name.startswith('amdlib.'))


def read(path):
    return ast.parse(path.read_text(encoding='utf-8'))


# ---- floors -----------------------------------------------------------------------------------------------------

def test_every_part_of_the_package_has_its_floor():
    assert {part_of(path) for path in MODULES} == set(FLOOR)


@every_module
def test_imports_point_downwards_only(path):
    own = part_of(path)
    for other in set(imported(read(path))) & set(FLOOR):    # __version__ and the like are no parts
        if FLOOR[other] == FLOOR[own] and FLOOR[own] not in TOGETHER:
            assert other == own, f'{own} imports {other}, on its own floor'
        assert FLOOR[other] <= FLOOR[own], f'{own} imports {other}, which is above it'


@every_module
def test_what_a_module_takes_from_the_package_is_there(path):
    """Also where it is imported late, in a function."""
    for node in ast.walk(read(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'amdlib' and not node.level:
            home = ROOT / node.module.replace('.', '/')
            assert home.with_suffix('.py').is_file() or (home / '__init__.py').is_file(), node.module


def test_a_method_needs_torch_alone():
    known = {'torch', 'amdlib', 'collections', 'typing', 'math', '__future__'}
    for name in (*methods.names(), *methods.CONTRACTS):
        tree = read(methods.FOLDER / f'{name}.py')
        taken = {(node.module if isinstance(node, ast.ImportFrom) else alias.name).partition('.')[0]
                 for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
        assert taken <= known
        assert set(imported(tree)) <= {'methods'}


def test_the_engine_knows_no_run_row_profile_or_store():
    words = {'Run', 'Row', 'Profile', 'Store', 'Dataset', 'Recipe'}
    for path in (PACKAGE / 'engine').glob('*.py'):
        used = {node.id for node in ast.walk(read(path)) if isinstance(node, ast.Name)}
        assert not used & words, path.name


# ---- modules ----------------------------------------------------------------------------------------------------

@every_module
def test_no_module_is_too_long(path):
    assert path.name == 'mmcv_ext.py' or len(path.read_text().splitlines()) <= 400


@every_module
def test_a_modules_name_says_what_it_holds(path):
    assert path.stem not in ('utils', 'common', 'helpers', 'misc', 'base')
    assert not re.search(r'_(v?\d+|new|old)$', path.stem)


@pytest.mark.parametrize('folder', sorted({path.parent for path in MODULES} - {PACKAGE}), ids=lambda path: path.name)
def test_a_folder_says_what_belongs_there(folder):
    told = ast.get_docstring(read(folder / '__init__.py'))
    assert told
    assert len(told.splitlines()) <= 8


# ---- closed ways ------------------------------------------------------------------------------------------------

def sources():
    """What is written by hand: the package, tests, notebooks, Makefile; not this file."""
    for folder in ('amdlib', 'tests', 'notebooks', '.ci'):
        for path in (ROOT / folder).rglob('*'):
            if path.suffix in ('.py', '.ipynb', '.sh', '.yml', '.html') and '.ipynb_checkpoints' not in path.parts:
                yield path
    yield ROOT / 'Makefile'


def test_no_variable_of_the_environment_is_the_kits_own():
    """What a process is to do stands in its arguments or in a job file."""
    name = re.compile(r'\b' + 'AMD' + r'_[A-Z]+\b')
    assert [str(path.relative_to(ROOT)) for path in sources() if name.search(path.read_text(encoding='utf-8'))] == []


@every_module
def test_no_signature_takes_a_data_set_and_a_results_folder(path):
    """They travel as one Store."""
    for node in ast.walk(read(path)):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            names = {arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            assert not (names & {'dataset', 'data_set'} and names & {'results', 'results_dir', 'results_folder'}), (
                getattr(node, 'name', 'lambda'))


@every_module
def test_what_is_said_is_logged(path):
    """No function takes a way to say something; only command line and progress print."""
    for node in ast.walk(read(path)):
        if isinstance(node, ast.FunctionDef):
            names = {arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)}
            assert not names & {'say', 'log'}, node.name


def test_errors_are_few():
    """A new kind only where somebody catches it; those that exist are in errors.py."""
    package = [path for path in MODULES if path.stem != 'mmcv_ext']     # which is copied elsewhere
    kinds = {node.name for path in package for node in ast.walk(read(path)) if isinstance(node, ast.ClassDef)
             and any(re.search('(Error|Exception)$', ast.unparse(base)) for base in node.bases)
             and not node.name.startswith('_')}
    own = {node.name for node in read(PACKAGE / 'errors.py').body if isinstance(node, ast.ClassDef)}
    assert kinds == own


def test_tests_are_laid_out_as_the_package():
    folders = {path.name for path in (ROOT / 'tests').iterdir() if path.is_dir() and any(path.glob('test_*.py'))}
    packages = {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').is_file()}
    assert folders - {'browser', 'notebooks', 'torture'} == packages
