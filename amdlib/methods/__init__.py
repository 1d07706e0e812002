"""The distillation methods: mathematics of a level or a step, with published weights; torch alone, one file a method.

A method is one file here with exactly one `LevelLoss` (`level.py`) or `StepLoss` (`step.py` has the contract) of its
own, found by the file's name; or a class in a user's file, named `path/to/file.py:ClassName`. What detectors, data or
runs are does not belong here. Importing this package imports no torch; `find_method` does.
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
    from amdlib.methods.step import StepLoss
    Method = LevelLoss | StepLoss

FOLDER = Path(__file__).parent
CONTRACTS = ('level', 'step')                                   # the files here that are no methods
CHANNELS = {'weighted_loss': ('student_channels', 'teacher_channels'), 'weighted_losses': ('channels',)}
GIVEN = {'weighted_loss': ('f_s', 'f_t', 'boxes', 'image_shapes'), 'weighted_losses': ('step',)}
OUTSIDE = 'path/to/file.py:ClassName'

_loaded: dict[Path, tuple[bytes, types.ModuleType]] = {}        # files from outside: content, module made of it


def names() -> tuple[str, ...]:
    """Names of the package's own methods, in alphabetical order."""
    found = {path.stem for path in FOLDER.glob('*.py') if path.stem.isidentifier() and not path.stem.startswith('_')}
    return tuple(sorted(found - {*CONTRACTS}))


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


def find_method(name: str) -> type[Method]:
    """The class of a method: 'amd', or 'path/to/file.py:ClassName' for one from outside.

    A file from outside is run, once, and again where its content has changed since.
    Errors: SettingError for an unknown name; for a file that is not there or cannot be run, or that has no such class;
    for a class that does not keep the contract of `LevelLoss` or `StepLoss`.
    """
    path = method_file(name)
    if is_outside(name):
        found = _class_of(name, _run(name, path))
    else:
        found = _only_class(path, importlib.import_module(f'amdlib.methods.{name}'))
    _check(name, found)
    return found


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The options of a method: what its constructor takes but the channels and `seed`, which are given, by name.

    Errors: SettingError as of `find_method`.
    """
    return _options(find_method(name))


def looks_at_steps(method: type) -> bool:
    """Whether a method's class is a `StepLoss`."""
    from amdlib.methods.step import StepLoss
    return issubclass(method, StepLoss)


def _options(method: type[Method]) -> dict[str, inspect.Parameter]:
    given = (*CHANNELS[_computes(method)], 'seed')
    return {name: parameter for name, parameter in inspect.signature(method).parameters.items()
            if name not in given and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)}


def _computes(method: type[Method]) -> str:
    """The name of the function in which a method computes its loss."""
    return 'weighted_losses' if looks_at_steps(method) else 'weighted_loss'


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


def _class_of(name: str, module: types.ModuleType) -> type[Method]:
    """The class that the name asks for."""
    wanted = name.rpartition(':')[2]
    found = getattr(module, wanted, None)
    if found is None:
        there = [cls.__name__ for cls in _losses_of(module)]
        raise SettingError(f'method {name!r}: {module.__file__} has no class {wanted!r}; its subclasses of LevelLoss '
                           f'and StepLoss: {", ".join(there) or "none"}')
    if not _is_loss(found):
        raise SettingError(f'method {name!r}: {wanted} is no subclass of LevelLoss or StepLoss; expected a class that '
                           f'begins `class {wanted}(LevelLoss)`, with `from amdlib.methods.level import LevelLoss`')
    return found


def _only_class(path: Path, module: types.ModuleType) -> type[Method]:
    """The one loss that a file of the package defines."""
    found = _losses_of(module)
    if len(found) != 1:
        raise SettingError(f'{path}: expected exactly one subclass of LevelLoss or StepLoss, found '
                           f'{", ".join(cls.__name__ for cls in found) or "none"}')
    return found[0]


def _losses_of(module: types.ModuleType) -> list[type[Method]]:
    return [value for value in vars(module).values() if _is_loss(value) and value.__module__ == module.__name__]


def _is_loss(value: object) -> bool:
    from amdlib.methods.level import LevelLoss
    return isinstance(value, type) and (issubclass(value, LevelLoss) or looks_at_steps(value))


def _check(name: str, method: type[Method]) -> None:
    """SettingError unless a class keeps the contract: told before a teacher is trained for it."""
    for problem in (_signature_problem(method), _needs_problem(method), _exponents_problem(method),
                    _published_problem(method)):
        if problem:
            raise SettingError(f'method {name!r}: {method.__name__}{problem}')


def _signature_problem(method: type[Method]) -> str:
    name = _computes(method)
    expected = f'expected {name}({", ".join(["self", *GIVEN[name]])})'
    computes = getattr(method, name)
    if computes.__module__ in [f'{__name__}.{contract}' for contract in CONTRACTS]:
        return f' does not define {name}; {expected}'
    try:
        inspect.signature(computes).bind('self', *GIVEN[name])
    except TypeError as error:
        return f'.{name}{inspect.signature(computes)}: {error}; {expected}'
    signature, channels = inspect.signature(method), CHANNELS[name]
    parameters = list(signature.parameters.values())
    given, options = parameters[:len(channels)], parameters[len(channels):]
    if tuple(p.name for p in given) != channels or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in given):
        return f'{signature}: expected __init__(self, {", ".join(channels)}, ...options)'
    for option in options:
        if option.kind is option.POSITIONAL_ONLY or option.default is option.empty and option.kind not in (
                option.VAR_POSITIONAL, option.VAR_KEYWORD):
            return f'{signature}: the option {option.name} has no default; expected one, such as {option.name}=1.0'
    return ''


def _needs_problem(method: type[Method]) -> str:
    if not looks_at_steps(method):
        return ''
    from amdlib.methods.step import NEEDS
    if isinstance(method.NEEDS, frozenset) and method.NEEDS <= NEEDS.keys():
        return ''
    return f'.NEEDS = {method.NEEDS!r}: expected a frozenset out of {", ".join(map(repr, NEEDS))}'


def _exponents_problem(method: type[Method]) -> str:
    exponents, options = method.WEIGHT_EXPONENTS, _options(method)
    weights = [option.name for option in options.values() if _is_number(option.default)]
    expected = ("expected for each weight the exponents (a, b) with which its term grows as C**a * (H*W)**b, such as "
                f"WEIGHT_EXPONENTS = {{{(weights or ['weight'])[0]!r}: (1, 1)}} for a sum over the feature, "
                "(0, 0) for a mean; a third number is the exponent of N")
    if not isinstance(exponents, dict) or not exponents:
        return f' has no WEIGHT_EXPONENTS; {expected}'
    for weight, pair in exponents.items():
        if weight not in weights:
            return (f'.WEIGHT_EXPONENTS names {weight!r}, which is no option with a number as default; those are: '
                    f'{", ".join(weights) or "none"}')
        if not (isinstance(pair, tuple | list) and len(pair) in (2, 3) and all(map(_is_number, pair))):
            return f'.WEIGHT_EXPONENTS[{weight!r}] = {pair!r}: expected two or three numbers, (a, b) or (a, b, n)'
    for option in weights:
        if option not in exponents and re.search(r'(^|_)weight(_|$)', option):
            return f'.WEIGHT_EXPONENTS lacks {option!r}; {expected}'
    return ''


def _published_problem(method: type[Method]) -> str:
    options = _options(method)
    for pair, published in method.PUBLISHED.items():
        if unknown := [option for option in published if option not in options]:
            return f'.PUBLISHED[{pair!r}] names {unknown[0]!r}, which is no option; those are: {", ".join(options)}'
    return ''


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
