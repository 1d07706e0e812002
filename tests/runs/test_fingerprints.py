"""fingerprints.py: what decides a number makes rows stale and nothing else does, in both directions."""
import ast
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from amdlib import methods
from amdlib.datasets import Dataset
from amdlib.files import write_json
from amdlib.paper.profiles import PROFILES
from amdlib.paper.rows import ROWS
from amdlib.runs import fingerprints
from amdlib.runs.fingerprints import PACKAGE, code_fingerprint, fingerprint_of, same_code, settings_key
from amdlib.runs.run import Run

from .test_config import CHANGES

METHODS = set(methods.names())
AT_STEPS = {name for name in METHODS if methods.looks_at_steps(methods.find_method(name))}
AT_LEVELS = METHODS - AT_STEPS
KINDS = {method or 'alone': (method, False) for method in (None, *methods.names())}
KINDS |= {'alone x2': (None, True), 'amd x2': ('amd', True)}    # in several processes
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob('*.py'))


def of(*names):
    """The kinds of rows with these methods, in one process and in several."""
    return {kind for kind in KINDS if kind.removesuffix(' x2') in names}


EVERY, DISTILLED, SEVERAL = set(KINDS), of(*METHODS), {kind for kind in KINDS if kind.endswith('x2')}


def stale_by(file):
    """The rows that an assignment at the end of a file makes stale: the table of what decides a number."""
    folder, _, name = file.rpartition('/')
    match folder, name:
        case 'engine', 'distiller.py' | 'step.py':      # which gives losses of levels their boxes too
            return DISTILLED
        case 'engine', 'processes.py':
            return SEVERAL
        case ('engine', _) | ('weights', 'reading.py') | ('', 'evaluation.py' | 'mmcv_ext.py'):
            return EVERY
        case 'methods', _ if name.removesuffix('.py') in METHODS:
            return of(name.removesuffix('.py'))
    return set()    # __init__, cli, doctor, errors, files, words; datasets, paper, runs, scale, show, weights' others


# ---- a copy of the package, edited ------------------------------------------------------------------------------

def prints(package):
    return {kind: fingerprint_of(*of_what, package=package) for kind, of_what in KINDS.items()}


@pytest.fixture(scope='module')
def copied(tmp_path_factory):
    """A copy of the package, and its fingerprints."""
    package = tmp_path_factory.mktemp('kit') / 'amdlib'
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns('__pycache__'))
    return package, prints(package)


@pytest.fixture
def stale(copied):
    """File, how its text changes -> the kinds of rows that become stale. Taken back at the end of a test."""
    package, before = copied
    kept = {}

    def edit(file, change):
        path = package / file
        text = path.read_text() if path.exists() else ''
        kept.setdefault(path, text)
        changed = change(text)
        assert changed != text
        path.write_text(changed)
        return {kind for kind, found in prints(package).items() if found != before[kind]}
    yield edit
    for path, text in kept.items():
        path.write_text(text)
        if not text:
            path.unlink()


def put(old, new):
    def change(text):
        assert text.count(old) >= 1, old
        return text.replace(old, new, 1)
    return change


def inside(name, line='_harmless = 1'):
    """Put a line at the beginning of a definition."""
    def change(text):
        node = next(node for node in ast.parse(text).body if getattr(node, 'name', None) == name)
        lines = text.splitlines()
        first = node.body[0]
        return '\n'.join([*lines[:first.lineno - 1], ' ' * first.col_offset + line, *lines[first.lineno - 1:]])
    return change


def append(more):
    return lambda text: f'{text}\n{more}\n'


def test_the_copy_has_the_fingerprints_of_the_package(copied):
    assert copied[1] == prints(PACKAGE)
    assert len(set(copied[1].values())) == len(KINDS)


@pytest.mark.parametrize('row', ROWS)
def test_a_rows_kind(row):
    for gpus in (1, 2):
        run = Run.of(row, 'mini', 0, {'gpus': gpus})
        assert code_fingerprint(run) == fingerprint_of(ROWS[row].method, gpus > 1)


# ---- what makes stale -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('file', FILES)
def test_an_edit_makes_stale_what_the_table_says(stale, file):
    assert stale(file, append('_harmless = 1')) == stale_by(file)


@pytest.mark.parametrize('name', sorted(METHODS))
def test_an_edit_of_a_methods_class_is_seen_by_that_method(stale, name):
    assert stale(f'methods/{name}.py', inside(methods.find_method(name).__name__)) == of(name)


@pytest.mark.parametrize(('file', 'name', 'users'), [
    ('methods/level.py', 'LevelLoss', AT_LEVELS),
    ('methods/step.py', 'StepLoss', AT_STEPS),
    ('methods/level.py', 'align_channels', {'amd', 'fgd', 'mgd', 'fitnet', 'cwd', 'pkd', 'defeat', 'gid',
                                              'mimic'}),
    ('methods/level.py', 'squared_error', {'amd', 'fgd', 'mgd', 'fitnet'}),
    ('methods/level.py', 'DrawnMask', AT_LEVELS),             # LevelLoss.reseed knows it
    ('methods/level.py', 'RandomMask', {'amd', 'mgd'}),
    ('methods/level.py', 'random_keep_mask', {'amd', 'mgd'}),       # which RandomMask draws by
    ('methods/amd.py', 'spatial_attention', {'amd', 'fgd', 'fkd'}),
    ('methods/amd.py', 'GenerationBlock', {'amd', 'mgd'}),
    ('methods/amd.py', '_conv3x3', {'amd', 'mgd'}),         # which GenerationBlock is made of
    ('methods/amd.py', 'keep_mask', {'amd'}),
    ('methods/amd.py', 'AMDLoss', {'amd'}),
    ('methods/fgd.py', 'channel_attention', {'fgd', 'fkd'}),
    ('methods/fgd.py', 'box_masks', {'fgd', 'defeat'}),
    ('methods/fgfi.py', 'iou', {'fgfi', 'gid', 'crosskd', 'dkd', 'ld', 'chen'}),
    ('methods/kd.py', 'per_anchor', {'kd', 'dist', 'dkd', 'gid', 'crosskd', 'ld', 'chen', 'adl'})])
def test_a_shared_definition_is_seen_by_those_that_use_it(stale, file, name, users):
    assert stale(file, inside(name)) == of(*users)


@pytest.mark.parametrize(('file', 'change', 'expected'), [
    ('evaluation.py', put('100 * float(value)', '50 * float(value)'), EVERY),           # every number halved
    ('methods/fgd.py', append('class Other(FGDLoss):\n    pass'), of('fgd')),
    ('methods/amd.py', append('def other(f_t):\n    return f_t'), of('amd')),
    ('methods/amd.py', put('from torch import Tensor, nn', 'from torch import Tensor, fft, nn'), of('amd')),
    ('methods/amd.py', put('from torch import Tensor, nn', 'from other import Tensor, nn'), of('amd', 'mgd')),
    ('methods/level.py', append('def other(f_t):\n    return f_t'), set()),             # nobody uses it yet
    ('methods/new.py', append('from amdlib.methods.amd import AMDLoss\nclass New(AMDLoss):\n    pass'), set()),
    ('engine/new.py', append('import torch'), EVERY),
    ('show/new.py', append('import torch'), set()),
    ('methods/level.py', put("raise ValueError(f'expected two", "raise KeyError(f'expected two"),
     of(*AT_LEVELS)),
])
def test_changes_and_whom_they_concern(stale, file, change, expected):
    assert stale(file, change) == expected


@pytest.mark.parametrize('name', sorted(METHODS))
@pytest.mark.parametrize('told', ['LABEL', 'PUBLISHED', 'WEIGHT_EXPONENTS'])
def test_what_acts_through_a_runs_options_is_no_code(stale, name, told):
    """So a pair or a label may be added: where an option changes, the settings do."""
    cls = methods.find_method(name).__name__
    assert stale(f'methods/{name}.py', inside(cls, f"{told} = {{'another': 1}}")) == set()


class Retold(ast.NodeTransformer):
    """The same program with other words: docstrings, errors, annotations, and lines that are logged."""

    def visit_Expr(self, node):
        return ast.Expr(ast.Constant('Other words.')) if isinstance(node.value, ast.Constant) else node

    def visit_Raise(self, node):
        if isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [ast.Constant('other words')], []
        return node

    def visit_arg(self, node):
        node.annotation = ast.Name('Other')
        return node

    def visit_AnnAssign(self, node):
        if not re.search('ClassVar|InitVar', ast.unparse(node.annotation)):
            node.annotation = ast.Name('Other')
        return node

    def visit_FunctionDef(self, node):
        node.returns = ast.Name('Other')
        node.body.insert(0, ast.parse("log.info('begun')").body[0])
        return self.generic_visit(node)


@pytest.mark.parametrize('file', [file for file in FILES if stale_by(file)] + ['methods/level.py'])
def test_words_are_no_code(stale, file):
    assert stale(file, lambda text: text + '\n# a comment') == set()
    assert stale(file, lambda text: ast.unparse(ast.fix_missing_locations(Retold().visit(ast.parse(text))))) == set()


# ---- methods from outside ---------------------------------------------------------------------------------------

def test_a_loss_from_outside_is_known_by_its_content(mine, tmp_path):
    before, runs = fingerprint_of(mine), prints(PACKAGE)
    file = Path(mine.rpartition(':')[0])
    moved = tmp_path / 'other.py'
    moved.write_text(f'# a copy\n{file.read_text()}')
    assert fingerprint_of(f'{moved}:Mine') == before
    file.write_text(file.read_text().replace('return self.weight *', 'return 2 * self.weight *'))
    assert fingerprint_of(mine) != before
    assert fingerprint_of(f'{moved}:Mine') == before
    assert prints(PACKAGE) == runs
    assert before not in runs.values()


FORMS = ['from amdlib.methods.amd import spatial_attention as used', 'from amdlib.methods.amd import *',
         'from amdlib.methods import amd as used', 'import amdlib.methods.amd', 'import amdlib.methods.amd as used',
         'def used(x):\n    from amdlib.methods.amd import spatial_attention\n    return spatial_attention(x, 1)']


@pytest.mark.parametrize('form', FORMS)
def test_what_a_loss_from_outside_takes_from_the_package_counts(copied, stale, mine, form):
    file = Path(mine.rpartition(':')[0])
    file.write_text(f'{form}\n{file.read_text()}')
    before = fingerprint_of(mine, package=copied[0])
    stale('methods/amd.py', inside('spatial_attention'))
    assert fingerprint_of(mine, package=copied[0]) != before
    before = fingerprint_of(mine, package=copied[0])
    stale('methods/fgd.py', inside('channel_attention'))
    assert fingerprint_of(mine, package=copied[0]) == before


@pytest.mark.parametrize('form', ['from .amd import spatial_attention', 'from . import amd',
                                  'try:\n    from .amd import spatial_attention\nexcept ImportError:\n    pass'])
def test_relative_imports_in_the_package_count(copied, stale, form):
    stale('methods/new.py', append(f'{form}\nclass New:\n    pass'))
    before = fingerprint_of('new', package=copied[0])
    stale('methods/amd.py', inside('spatial_attention'))
    assert fingerprint_of('new', package=copied[0]) != before


# ---- attested code ----------------------------------------------------------------------------------------------

def test_attested_code_counts_along_chains_and_between_what_was_compared_with_the_same(tmp_path, monkeypatch):
    def line(**pairs):
        return {'fingerprints': {name: {'old': pair[0], 'new': pair[1]} for name, pair in pairs.items()}}
    monkeypatch.setattr(fingerprints, 'ATTESTED', tmp_path / 'attested.json')
    assert same_code('a', 'a')
    assert not same_code('a', 'b')
    write_json(tmp_path / 'attested.json', [line(amd='ab', alone='xy'), line(amd='bc'), line(amd='cd', fgd='pq'),
                                               line(alone='xz')])
    assert all(same_code(old, new) for old, new in ('ab', 'ac', 'ad', 'bd', 'da', 'xy', 'xz', 'yz', 'zy', 'pq', 'dd'))
    assert not any(same_code(old, new) for old, new in ('ax', 'xb', 'az', 'aq', 'pd'))
    write_json(tmp_path / 'attested.json', [line(amd='ab')])
    assert not same_code('a', 'c')      # read again when it changes


# ---- settings without a Config ----------------------------------------------------------------------------------

def key_of(profile, dataset, row='retinanet-amd', seed=0, settings=None):
    return settings_key(Run.of(row, profile, seed, settings), dataset)


@pytest.mark.parametrize('changes', CHANGES, ids=str)
def test_what_changes_the_hash_changes_the_key(dataset, tiny, changes):
    of_profile = {key: value for key, value in changes.items() if key not in ('settings', 'seed', 'row')}
    of_run = {key: value for key, value in changes.items() if key not in of_profile}
    base = {'row': of_run['row']} if of_profile and 'row' in of_run else {}
    assert key_of(replace(tiny, **of_profile), dataset, **of_run) != key_of(tiny, dataset, **base)


def test_what_changes_no_number_changes_no_key(dataset, tiny, tmp_path):
    wanted = key_of(tiny, dataset)
    assert len(wanted) == 16
    moved = replace(dataset, train_ann=tmp_path / 'moved.json', fingerprint='0' * 16)     # known on its own
    assert key_of(tiny, moved) == wanted
    assert key_of(replace(tiny, can_show='other words', log_every=3), dataset) == wanted
    assert key_of(replace(tiny, workers=3), dataset) == key_of(replace(tiny, workers=1), dataset) != wanted


@pytest.mark.parametrize('change', [{'shuffled': True}, {'taught_by': 'untrained'}], ids=str)
def test_what_a_row_is_taught_is_part_of_the_key(dataset, tiny, change):
    run = Run.of('retinanet-amd', tiny)
    assert settings_key(replace(run, row=replace(run.row, **change)), dataset) != settings_key(run, dataset)


def test_a_given_files_name_is_no_part_of_the_key(dataset, tiny, weight_file):
    other = weight_file.with_name('other.pth')
    other.write_bytes(b'other')
    given = [key_of(tiny, dataset, settings={'backbone': str(file)}) for file in (weight_file, other)]
    assert given[0] == given[1]     # its content is compared instead


def test_other_classes_and_other_code_change_the_key(dataset, tiny, monkeypatch):
    wanted = key_of(tiny, dataset)
    assert key_of(tiny, replace(dataset, classes=dataset.classes[::-1])) != wanted
    monkeypatch.setattr(fingerprints, '_text', lambda file: 'another way to make a Config')
    assert key_of(tiny, dataset) != wanted


@pytest.mark.parametrize('profile', PROFILES)
def test_runs_of_one_profile_have_keys_of_their_own(profile):
    data = Dataset('cells', *[Path('/d')] * 4, ('rbc', 'wbc'), '0' * 16, ())
    keys = [settings_key(Run.of(row, profile, seed), data) for row in ROWS for seed in (0, 1)]
    assert len(set(keys)) == len(keys)


# ---- surroundings -----------------------------------------------------------------------------------------------

def test_versions_that_differ_are_told():
    now = fingerprints.versions()
    assert {'python', 'numpy', *fingerprints.DECIDING} <= set(now)
    assert fingerprints.other_versions(now) == ''
    assert fingerprints.other_versions({**now, 'numpy': '0.1', 'python': '2.7'}) == ''
    assert fingerprints.other_versions({**now, 'torch': '2.13.0'}) == f'made with torch 2.13.0, now {now["torch"]}'
    assert fingerprints.other_versions({**now, 'torch': '2', 'mmdet': '3'}) == (
        f'made with torch 2, now {now["torch"]}; mmdet 3, now {now["mmdet"]}')
    del now['mmengine']
    assert fingerprints.other_versions(now).startswith('made with mmengine ?, now ')


def test_the_machine_is_told():
    machine = fingerprints.machine()
    assert set(machine) == {'cpu', 'instructions'}
    assert all(machine.values())


def test_the_commit_and_whether_sources_are_changed(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b', *words], check=True,
                       capture_output=True)
    monkeypatch.setattr(fingerprints, 'ROOT', tmp_path)
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert fingerprints.commit() == {'commit': None, 'clean': None}
    for file in ('amdlib/a.py', 'notebooks/a.ipynb', 'requirements.lock'):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text('1')
    git('init')
    git('add', '.')
    git('commit', '-m', 'first')
    found = fingerprints.commit()
    assert re.fullmatch('[0-9a-f]{40}', found['commit'])
    assert found['clean'] is True
    (tmp_path / 'notebooks' / 'a.ipynb').write_text('2')    # saved by JupyterLab: no source
    assert fingerprints.commit() == found
    (tmp_path / 'amdlib' / 'a.py').write_text('2')
    assert fingerprints.commit() == {**found, 'clean': False}
