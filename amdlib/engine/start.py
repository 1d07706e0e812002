"""How a student starts, the same in every row of a seed: its first weights, what it takes from a teacher, and from
which random numbers each training step draws."""
from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn


def stream(*names: int | str) -> int:
    """A seed of 63 bits of its own for each sequence of numbers and names."""
    words = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


@contextlib.contextmanager
def drawn_from(*names: int | str) -> Iterator[None]:
    """torch's generators draw from that stream while the block runs, and go on afterwards as if it had not been."""
    with torch.random.fork_rng():
        torch.manual_seed(stream(*names))
        yield


def inherit(student: nn.Module, source: Mapping[str, Tensor], parts: Sequence[str]) -> list[str]:
    """Copy into the student, from a teacher's weights, the tensors of the top-level parts whose name and shape match.

    Returns their names. Errors: ValueError where there is none.
    """
    target = student.state_dict()
    names = [name for name, value in source.items() if name.split('.')[0] in parts
             and name in target and target[name].shape == value.shape]
    if parts and not names:
        raise ValueError(f'nothing to inherit: no tensor of {", ".join(parts)} has the same name and shape in student '
                         'and teacher')
    with torch.no_grad():
        for name in names:
            target[name].copy_(source[name])
    return names


def weights_sha256(model: nn.Module) -> str:
    """Hex digest of a model's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@HOOKS.register_module()
class SeedSteps(Hook):
    """Makes what torch draws in a training step (the samples of two-stage heads) depend on seed, step and process only,
    not on how much was drawn before: rows of a seed stay paired, and so does a resumed run."""
    priority = 'VERY_HIGH'

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        torch.manual_seed(stream('step', self.seed, runner.iter, get_rank()))
