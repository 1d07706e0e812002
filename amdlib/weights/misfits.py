"""What is told of a weight file that cannot be read or does not fit. Nothing here decides anything."""
from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def unreadable(path: Path, error: Exception) -> str:
    """Why torch does not read a file: its own reason, unless it is plain to see that a web page was saved."""
    size = f'{path} ({path.stat().st_size} bytes)'
    if is_page(path):
        return f'{size} is a web page, not a checkpoint'
    return f'{size} is truncated, not a checkpoint, or holds code: {_refused(error)}'


def is_page(path: Path) -> bool:
    """Whether a file begins as HTML or XML does."""
    with open(path, 'rb') as file:
        return file.read(64).lstrip().startswith(b'<')


def _refused(error: Exception) -> str:
    """The sentence that tells it, without torch's advice to load the file with whatever code it holds."""
    text = ' '.join(str(error).split())
    found = re.search(r'(?:Unpickler error: |(?=Trying to load ))(.+)', text)
    return (found[1] if found else text).partition('. ')[0][:200] or type(error).__name__   # empty for a cut pickle


def misfit(source: str, model: str, missing: Iterable[str], unexpected: Iterable, no_tensors: dict[str, type],
           shapes: dict[str, tuple[tuple, tuple]]) -> str:
    """Which tensors do not match, by kind, and a guess at the reason.

    Args:
        shapes: those of the file and of the model.
    """
    kinds = {'not in the file': list(missing), 'not in the model': [str(name) for name in unexpected],
             'no tensor': [f'{name} ({kind.__name__})' for name, kind in no_tensors.items()],
             'of another shape': [f'{name}: file {theirs}, model {mine}' for name, (theirs, mine) in shapes.items()]}
    kinds = {kind: names for kind, names in kinds.items() if names}
    lists = '\n'.join(f'  {kind} ({len(names)}): ' + ', '.join(names[:8]) + (' ...' if len(names) > 8 else '')
                      for kind, names in kinds.items())
    classes = list(kinds) == ['of another shape'] and all(theirs[1:] == mine[1:] for theirs, mine in shapes.values())
    guess = 'another number of classes' if classes else 'another architecture'
    return f'{source} does not fit {model}; it may be of {guess}:\n{lists}'
