"""What passes through named parts of a detector."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def tap(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor | None]]:
    """Collect the outputs of the named submodules while the block runs, in the order of `names`."""
    features: list[Tensor | None] = [None] * len(names)

    def keep(level: int) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            features[level] = output
        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(i)) for i, name in enumerate(names)]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
