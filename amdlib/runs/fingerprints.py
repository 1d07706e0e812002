"""What makes a run stale. Its code fingerprint covers what decides its numbers and nothing else:

    engine/                         whole, of which distiller.py and step.py for rows with a method, processes.py for
                                    several GPUs
    weights/reading.py, evaluation.py, mmcv_ext.py
                                    whole
    the method's file               whole, and of its siblings the definitions that it imports, and what those need

Of these comments, docstrings, annotations, the words of errors, what is logged, and a method's label and published
weights (which are settings) do not count. Settings, data, teacher and weight files are fingerprinted on their own.
"""
from __future__ import annotations

import ast
import contextlib
import functools
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amdlib import methods
from amdlib.files import ROOT, digest, read_json

if TYPE_CHECKING:
    from amdlib.datasets import Dataset
    from amdlib.paper.pairs import Group
    from amdlib.runs.run import Run

PACKAGE = ROOT / 'amdlib'
ATTESTED = ROOT / 'results' / 'attested.json'       # written by runs.attest alone
SAYING = ('amdlib.errors', 'amdlib.files', 'amdlib.words')  # modules that decide no number
SAYING_CALLS = ('log.info', 'log.warning', 'warnings.warn')
DECIDING = ('torch', 'torchvision', 'mmdet', 'mmengine', 'pycocotools')    # whose versions a state tells


# ---- code -------------------------------------------------------------------------------------------------------

def code_fingerprint(run: Run) -> str:
    """16 hex digits over the code that decides this run's numbers."""
    return fingerprint_of(run.row.method, run.recipe.gpus > 1)


def fingerprint_of(method: str | None, processes: bool = False, package: Path = PACKAGE) -> str:
    """The code fingerprint of runs with this method (None: trained alone), in one process or several.

    Args:
        package: another copy of `amdlib/`, such as of another commit.
    """
    parts = [_text(file) for file in whole_files(method is not None, processes, package)]
    if method is not None:
        parts += _method_parts(method, package)
    return digest('\n'.join(parts))


def whole_files(distilled: bool, processes: bool, package: Path = PACKAGE) -> list[Path]:
    """The files that count as a whole."""
    left_out = {name for name, counts in (('distiller.py', distilled), ('step.py', distilled),
                                          ('processes.py', processes)) if not counts}
    engine = sorted(file for file in (package / 'engine').glob('*.py') if file.name not in left_out)
    return [package / 'mmcv_ext.py', package / 'evaluation.py', package / 'weights' / 'reading.py', *engine]


def _method_parts(method: str, package: Path) -> list[str]:
    file = methods.method_file(method) if methods.is_outside(method) else package / 'methods' / f'{method}.py'
    found: dict[tuple[Path, str], str] = {}
    _collect(file, None, package, found)
    # by content: neither the order of definitions nor where a file lies counts
    return sorted(text for text in found.values())


def _collect(file: Path, names: set[str] | None, package: Path, found: dict[tuple[Path, str], str]) -> None:
    """Put the definitions of these names (None: all) in a file, and what they need of its siblings, into `found`."""
    tree = _parsed(file)
    imported = _of_siblings(tree, file, package)
    defined: dict[str, list[ast.stmt]] = {}
    for node in (part for statement in tree.body for part in _parts(statement)):
        for name in _names(node):
            defined.setdefault(name, []).append(node)
    wanted = [*(defined if names is None else names), *(name for name in imported if names is None or name[0] == '*')]
    if names is None:
        found[file, ''] = '\n'.join(ast.unparse(node) for node in tree.body if not _names(node))
    while wanted:
        name = wanted.pop()
        if name in imported:
            sibling, original = imported[name]
            if (sibling, original or '') not in found:
                _collect(sibling, original and {original}, package, found)
        elif name in defined and (file, name) not in found:
            found[file, name] = '\n'.join(ast.unparse(node) for node in defined[name])
            wanted += [used.id for node in defined[name] for used in ast.walk(node) if isinstance(used, ast.Name)]


@functools.cache
def _of_siblings(tree: ast.Module, file: Path, package: Path) -> dict[str, tuple[Path, str | None]]:
    """What a file imports of methods, wherever in it: by name the file and the name there (None: all of it).

    Without a name of its own (`import amdlib.methods.amd`, `import *`) it stands under `*` and the module's.
    """
    found: dict[str, tuple[Path, str | None]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        module = getattr(node, 'module', None) or ''
        if getattr(node, 'level', 0) == 1 and file.parent == package / 'methods':
            module = f'amdlib.methods.{module}'.rstrip('.')
        for alias in node.names:
            whole = module in ('', 'amdlib.methods')    # `import amdlib.methods.amd`, `from amdlib.methods import amd`
            path = f'{module}.{alias.name}'.lstrip('.') if whole else module
            sibling = package / 'methods' / f'{path.removeprefix("amdlib.methods.")}.py'
            if path.startswith('amdlib.methods.') and sibling.is_file():
                nameless = alias.name == '*' or not module and not alias.asname
                name = f'*{path}' if nameless else alias.asname or alias.name
                found[name] = sibling, None if whole or nameless else alias.name
    return found


def _parts(node: ast.stmt) -> list[ast.stmt]:
    """A statement; of an import one for each name, since only those that are used count."""
    if not isinstance(node, (ast.Import, ast.ImportFrom)):
        return [node]
    more = {'module': node.module, 'level': node.level} if isinstance(node, ast.ImportFrom) else {}
    return [type(node)(names=[alias], **more) for alias in node.names]


def _names(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.partition('.')[0] for alias in node.names]
    if isinstance(node, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
        return list(dict.fromkeys(name for part in ast.walk(node) if isinstance(part, ast.stmt) and part is not node
                                  for name in _names(part)))
    targets = getattr(node, 'targets', [getattr(node, 'target', None)])
    return [one.id for target in targets if target is not None for one in ast.walk(target) if isinstance(one, ast.Name)]


def _text(file: Path) -> str:
    return _unparse(*_version(file))


def _parsed(file: Path) -> ast.Module:
    return _parse(*_version(file))


def _version(file: Path) -> tuple[Path, int, int]:
    state = file.stat()
    return file, state.st_mtime_ns, state.st_size


@functools.cache
def _unparse(file: Path, mtime_ns: int, size: int) -> str:
    return ast.unparse(_parse(file, mtime_ns, size))    # unlike ast.dump, the same on every version of Python


@functools.cache
def _parse(file: Path, _mtime_ns: int, _size: int) -> ast.Module:
    return ast.fix_missing_locations(_Deciding().visit(ast.parse(file.read_text(encoding='utf-8'))))


class _Deciding(ast.NodeTransformer):
    """Leaves of a module what decides: no docstrings, annotations, words of errors, nor what is logged."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant):
            return None
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in SAYING_CALLS:
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=error, cause=None)

    def visit_Assign(self, node: ast.Assign | ast.AnnAssign) -> ast.AST | None:
        """Labels tell; published weights and their exponents are settings."""
        return None if _names(node) in (['LABEL'], ['PUBLISHED'], ['WEIGHT_EXPONENTS']) else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        kinds = ('ClassVar', 'InitVar', 'KW_ONLY')  # what they say to a dataclass does decide
        node.annotation = ast.Name(next((kind for kind in kinds if kind in ast.unparse(node.annotation)), '_'))
        return self.visit_Assign(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module in (*SAYING, '__future__') else node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def same_code(recorded: str, now: str) -> bool:
    """Whether code of fingerprint `recorded` gives the digits of `now`: it is the same, or attested to."""
    return recorded == now or recorded in _attested().get(now, ())


def _attested() -> dict[str, set[str]]:
    """By fingerprint all those of which it was attested that the digits are the same."""
    if not ATTESTED.is_file():
        return {}
    return _alike(ATTESTED, ATTESTED.stat().st_mtime_ns)


@functools.cache
def _alike(file: Path, _mtime_ns: int) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for line in read_json(file):
        for pair in line['fingerprints'].values():      # what gives the digits of a third gives each other's
            joined = set().union(*(known.get(one, {one}) for one in pair.values()))
            known.update(dict.fromkeys(joined, joined))
    return known


# ---- settings without a Config ----------------------------------------------------------------------------------

def settings_key(run: Run, dataset: Dataset) -> str:
    """16 hex digits over all that a run's Config is made from, the code that makes it included.

    The same key means the same settings hash; with another one the Config must be built to tell.
    """
    own = [_text(PACKAGE / 'runs' / 'adapt.py')] if run.row.group.own else []
    made_by = [_text(PACKAGE / 'runs' / 'config.py'), *own, metadata.version('mmdet'), metadata.version('mmengine')]
    profile = run.profile.to_dict()
    for telling in ('can_show', 'workers', 'log_every'):
        profile.pop(telling)
    group = run.row.group
    return digest(json.dumps([
        made_by, run.row.id, run.seed, {key: value for key, value in run.settings.items()
                                        if key not in run.recipe.files()}, run.profile.workers > 0, profile,
        run.options() if run.row.method else None, list(dataset.classes),
        [group.student_config, group.teacher_config, group.levels, group.one_stage],
        [run.row.taught_by, run.row.shuffled, run.inherits, run.levels, run.reference_rms],
        [run.epochs, run.batch_size, run.images_per_update],
        *_of_own_pair(group)], sort_keys=True, default=str))


def _of_own_pair(group: Group) -> list:
    """What configs of the user's say, which no version of mmdet tells."""
    if not group.own:
        return []
    from amdlib.runs.originals import config_digest
    return [config_digest(group.student_config), config_digest(group.teacher_config), group.places]


# ---- surroundings -----------------------------------------------------------------------------------------------

def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {'python': platform.python_version()}
    for name in (*DECIDING, 'mmcv-lite', 'mmcv', 'numpy', 'opencv-python-headless'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def other_versions(recorded: dict[str, str]) -> str:
    """`made with torch 2.13.0, now 2.14.1`; empty where the deciding packages are the same."""
    now = versions()
    other = [f'{name} {recorded.get(name, "?")}, now {now.get(name, "none")}' for name in DECIDING
             if recorded.get(name) != now.get(name)]
    return f'made with {"; ".join(other)}' if other else ''


def machine() -> dict[str, Any]:
    """What else decides digits: processor, and the instruction set that torch uses."""
    import torch
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        told = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)}
        cpu = ' '.join(told[key] for key in ('model name', 'cpu family', 'model', 'stepping') if key in told) or cpu
    return {'cpu': cpu, 'instructions': torch.backends.cpu.get_cpu_capability()}


def driver() -> str | None:
    """Version of the NVIDIA driver; None without one."""
    try:
        words = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0] if told else None


def commit() -> dict[str, str | bool | None]:
    """The commit that the kit stands on, and whether its sources had uncommitted changes (None: no git)."""
    def git(*words: str) -> str:
        done = subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()
    try:
        return {'commit': git('rev-parse', 'HEAD'),
                'clean': git('status', '--porcelain', '--', 'amdlib', 'requirements.lock') == ''}
    except (OSError, subprocess.CalledProcessError):
        return {'commit': None, 'clean': None}
