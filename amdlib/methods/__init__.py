"""The distillation methods: mathematics of one pyramid level, with published weights; torch alone, one file a method.

A method is one file here with exactly one `LevelLoss` of its own (`level.py` has the contract), found by the file's
name; or a class in a user's file, named `path/to/file.py:ClassName`. What detectors, data or runs are does not belong
here. Importing this package imports no torch; `find_method` does.
"""
from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING

from amdlib.errors import SettingError
from amdlib.files import digest

if TYPE_CHECKING:
    from amdlib.methods.level import LevelLoss

FOLDER = Path(__file__).parent
CONTRACT = 'level'                                              # the one file here that is no method
CHANNELS = ('student_channels', 'teacher_channels')
NOT_OPTIONS = (*CHANNELS, 'seed')                               # given by whoever builds a loss for a level
OUTSIDE = 'path/to/file.py:ClassName'

_loaded: dict[Path, tuple[bytes, types.ModuleType]] = {}        # files from outside: content, module made of it


def names() -> tuple[str, ...]:
    """Names of the package's own methods, in alphabetical order."""
    found = {path.stem for path in FOLDER.glob('*.py') if path.stem.isidentifier() and not path.stem.startswith('_')}
    return tuple(sorted(found - {CONTRACT}))


def is_outside(name: str) -> bool:
    """Whether a method's name means a file from outside, well formed or not."""
    return ':' in name or '/' in name or name.endswith('.py')


def absolute(name: str) -> str:
    """The name with an absolute path (`/folder/file.py:ClassName`); names of the package's own methods as they are.

    Errors: SettingError for a name that means a file and is not `path/to/file.py:ClassName`.
    """
    if not is_outside(name):
        return name
    path, cls = _split(name)
    return f'{path}:{cls}'


def method_file(name: str) -> Path:
    """The file that defines a method.

    Errors: SettingError for an unknown name or a file that is not there.
    """
    if not is_outside(name):
        if name not in names():
            raise SettingError(f'unknown method {name!r}; expected one of {", ".join(names())}, or {OUTSIDE}')
        return FOLDER / f'{name}.py'
    path, _ = _split(name)
    if not path.is_file():
        what = 'a folder' if path.is_dir() else 'no such file'
        raise SettingError(f'method {name!r}: {path}: {what}; expected a Python file that defines the class')
    return path


def find_method(name: str) -> type[LevelLoss]:
    """The class of a method: 'amd', or 'path/to/file.py:ClassName' for one from outside.

    A file from outside is run, once, and again where its content has changed since.
    Errors: SettingError for an unknown name; for a file that is not there or cannot be run, or that has no such class;
    for a class that does not keep the contract of `LevelLoss`.
    """
    path = method_file(name)
    if is_outside(name):
        found = _class_of(name, _run(name, path))
    else:
        found = _only_class(path, importlib.import_module(f'amdlib.methods.{name}'))
    _check(name, found)
    return found


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The options of a method: what its constructor takes but the channels and `seed`, by name.

    Errors: SettingError as of `find_method`.
    """
    return _options(find_method(name))


def _options(method: type[LevelLoss]) -> dict[str, inspect.Parameter]:
    return {name: parameter for name, parameter in inspect.signature(method).parameters.items()
            if name not in NOT_OPTIONS and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)}


def _split(name: str) -> tuple[Path, str]:
    path, _, cls = name.rpartition(':')
    if not path.endswith('.py') or not cls.isidentifier():
        raise SettingError(f'method {name!r}: expected {OUTSIDE}, or one of {", ".join(names())}')
    return Path(path).expanduser().resolve(), cls


def _run(name: str, path: Path) -> types.ModuleType:
    """The module of a file from outside.

    Neither importlib nor Python's cache beside the file, which takes an edit within a second for no edit.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise SettingError(f'method {name!r}: {path} cannot be read: {error.strerror}') from None
    if path in _loaded and _loaded[path][0] == source:
        return _loaded[path][1]
    module = types.ModuleType(f'method_{re.sub(r"[^0-9a-zA-Z]", "_", path.stem)}_{digest(str(path))[:8]}')
    module.__file__ = str(path)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module       # where pickle and dataclasses look a class up
    try:
        exec(compile(source, str(path), 'exec'), vars(module))
    except Exception as error:
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        at = f' in line {lines[-1]}' if lines else ''
        raise SettingError(f'method {name!r}: {path} cannot be run: {type(error).__name__}{at}: {error}') from error
    _loaded[path] = source, module
    return module


def _class_of(name: str, module: types.ModuleType) -> type[LevelLoss]:
    """The class that the name asks for."""
    from amdlib.methods.level import LevelLoss
    wanted = name.rpartition(':')[2]
    found = getattr(module, wanted, None)
    if found is None:
        there = [cls.__name__ for cls in _losses_of(module)]
        raise SettingError(f'method {name!r}: {module.__file__} has no class {wanted!r}; its subclasses of LevelLoss: '
                           f'{", ".join(there) or "none"}')
    if not (isinstance(found, type) and issubclass(found, LevelLoss)):
        raise SettingError(f'method {name!r}: {wanted} is no subclass of LevelLoss; expected a class that begins '
                           f'`class {wanted}(LevelLoss)`, with `from amdlib.methods.level import LevelLoss`')
    return found


def _only_class(path: Path, module: types.ModuleType) -> type[LevelLoss]:
    """The one loss that a file of the package defines."""
    found = _losses_of(module)
    if len(found) != 1:
        raise SettingError(f'{path}: expected exactly one subclass of LevelLoss, found '
                           f'{", ".join(cls.__name__ for cls in found) or "none"}')
    return found[0]


def _losses_of(module: types.ModuleType) -> list[type[LevelLoss]]:
    from amdlib.methods.level import LevelLoss
    return [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, LevelLoss)
            and value.__module__ == module.__name__]


def _check(name: str, method: type[LevelLoss]) -> None:
    """SettingError unless a class keeps the contract: told before a teacher is trained for it."""
    for problem in (_signature_problem(method), _exponents_problem(method), _published_problem(method)):
        if problem:
            raise SettingError(f'method {name!r}: {method.__name__}{problem}')


def _signature_problem(method: type[LevelLoss]) -> str:
    from amdlib.methods.level import LevelLoss
    if method.weighted_loss is LevelLoss.weighted_loss:
        return ' does not define weighted_loss; expected weighted_loss(self, f_s, f_t, boxes, image_shapes)'
    try:
        inspect.signature(method.weighted_loss).bind(*['self', 'f_s', 'f_t', 'boxes', 'image_shapes'])
    except TypeError as error:
        return (f'.weighted_loss{inspect.signature(method.weighted_loss)}: {error}; expected '
                'weighted_loss(self, f_s, f_t, boxes, image_shapes)')
    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())
    if (tuple(p.name for p in parameters[:2]) != CHANNELS
            or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters[:2])):
        return f'{signature}: expected __init__(self, student_channels, teacher_channels, ...options)'
    for option in parameters[2:]:
        if option.kind is option.POSITIONAL_ONLY or option.default is option.empty and option.kind not in (
                option.VAR_POSITIONAL, option.VAR_KEYWORD):
            return f'{signature}: the option {option.name} has no default; expected one, such as {option.name}=1.0'
    return ''


def _exponents_problem(method: type[LevelLoss]) -> str:
    exponents, options = method.WEIGHT_EXPONENTS, _options(method)
    weights = [option.name for option in options.values() if _is_number(option.default)]
    expected = ("expected for each weight the exponents (a, b) with which its term grows as C**a * (H*W)**b, such as "
                f"WEIGHT_EXPONENTS = {{{(weights or ['weight'])[0]!r}: (1, 1)}} for a sum over the feature, "
                "(0, 0) for a mean")
    if not isinstance(exponents, dict) or not exponents:
        return f' has no WEIGHT_EXPONENTS; {expected}'
    for weight, pair in exponents.items():
        if weight not in weights:
            return (f'.WEIGHT_EXPONENTS names {weight!r}, which is no option with a number as default; those are: '
                    f'{", ".join(weights) or "none"}')
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(map(_is_number, pair))):
            return f'.WEIGHT_EXPONENTS[{weight!r}] = {pair!r}: expected two numbers (a, b)'
    for option in weights:
        if option not in exponents and re.search(r'(^|_)weight(_|$)', option):
            return f'.WEIGHT_EXPONENTS lacks {option!r}; {expected}'
    return ''


def _published_problem(method: type[LevelLoss]) -> str:
    options = _options(method)
    for pair, published in method.PUBLISHED.items():
        if unknown := [option for option in published if option not in options]:
            return f'.PUBLISHED[{pair!r}] names {unknown[0]!r}, which is no option; those are: {", ".join(options)}'
    return ''


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
