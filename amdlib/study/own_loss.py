"""A loss of one's own, from a file, a script or a cell of a notebook, as a method."""
from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from amdlib.errors import SettingError
from amdlib.files import write_text
from amdlib.methods import absolute, find_method, is_outside
from amdlib.methods.level import LevelLoss, align_channels, check_number
from amdlib.methods.step import StepLoss

if TYPE_CHECKING:
    from amdlib.methods import Method

CELLS = Path('results') / 'losses'      # below the folder where a notebook runs: training takes a loss from a file


def method(loss: Callable[..., Tensor] | type[Method]) -> type[Method]:
    """Decorate a function, or a subclass of `LevelLoss` or `StepLoss`, to distil with it: `amdlib.distill(..., mine)`.

    A function takes the student's features of a level, with as many channels as the teacher's (by a 1x1 convolution,
    learnt beside the student), and the teacher's, both (N, C, H, W); if it has four parameters, also boxes and image
    shapes as of `LevelLoss`. It returns a mean over elements, 0-d; the option `weight` multiplies it.

    A run trains in a process of its own, which reads the loss from its file. That of a notebook's cell, or of the
    script that is run, is written to `results/losses/` with what is imported and defined there: a cell must import all
    that it needs itself.
    Errors: SettingError for what is neither, and where its source is not to be had.
    """
    if inspect.isclass(loss) and issubclass(loss, (LevelLoss, StepLoss)):
        made = loss
    elif inspect.isfunction(loss):
        made = _class_of(loss)
    else:
        raise SettingError(f'{loss!r}: expected a function of two features, or a subclass of LevelLoss or '
                           'StepLoss')
    made.reference = _reference(loss)
    return made


def named(loss: str | type[Method], home: Path = Path()) -> str:
    """What a study calls a method: a name, its file looked for from `home`; for what `method` has decorated, its file.

    Errors: SettingError for a class that was not decorated, and for a loss of a cell that does not stand alone.
    """
    if isinstance(loss, str):
        return absolute(str(home / loss)) if is_outside(loss) else loss
    if not (reference := getattr(loss, 'reference', '')):
        raise SettingError(f'{loss!r}: expected the name of a method, or what @amdlib.method has decorated')
    find_method(reference)
    return reference


def _class_of(function: Callable[..., Tensor]) -> type[LevelLoss]:
    count = len(inspect.signature(function).parameters)
    if count not in (2, 4):
        raise SettingError(f'{function.__name__}{inspect.signature(function)}: expected (f_s, f_t) or '
                           '(f_s, f_t, boxes, image_shapes)')

    class OwnLoss(LevelLoss):
        LABEL = function.__name__
        WEIGHT_EXPONENTS = {'weight': (0, 0)}       # of a mean

        def __init__(self, student_channels: int, teacher_channels: int, weight: float = 1.0) -> None:
            super().__init__(student_channels, teacher_channels)
            check_number('weight', weight, at_least=0)
            self.weight = weight
            self.align = align_channels(student_channels, teacher_channels)

        def weighted_loss(self, f_s: Tensor, f_t: Tensor, boxes: list[Tensor] | None = None,
                          image_shapes: list[tuple[int, int]] | None = None) -> Tensor:
            return self.weight * function(*(self.align(f_s), f_t, boxes, image_shapes)[:count])

    OwnLoss.__name__ = OwnLoss.__qualname__ = function.__name__
    OwnLoss.__module__, OwnLoss.__doc__ = function.__module__, function.__doc__
    return OwnLoss


def _reference(loss: Callable[..., Tensor] | type[Method]) -> str:
    """`/path/to/file.py:name`; what a cell or a script defines is written to a file first."""
    body = loss if inspect.isfunction(loss) else next(
        (one for one in vars(loss).values() if inspect.isfunction(one)), loss.forward)
    file = Path(body.__code__.co_filename)
    if loss.__module__ == '__main__':       # a cell, or a script, which would train once more wherever the loss is read
        if not (source := linecache.getlines(str(file))):
            raise SettingError(f'{loss.__name__}: its source is not to be had; write it to a file')
        file = CELLS.absolute() / f'{loss.__name__}.py'
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, _definitions(source))
    return absolute(f'{file}:{loss.__name__}')


def _definitions(source: list[str]) -> str:
    """Of lines of code the imports, functions, classes and constants: what is done besides is not done again."""
    kept = []
    for node in ast.parse(''.join(source)).body:
        is_constant = isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant)
        if is_constant or isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(one.lineno for one in getattr(node, 'decorator_list', []))])
            kept.append(''.join(source[first - 1:node.end_lineno]))
    return '\n'.join(kept)
