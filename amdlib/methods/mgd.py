"""MGD (Yang et al., Masked generative distillation, 2022); parameters are named as in the authors' code.

So their checkpoints load, strictly.
"""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amdlib.methods.amd import GenerationBlock
from amdlib.methods.level import LevelLoss, RandomMask, align_channels, check_number, squared_error


class MGDLoss(LevelLoss):
    """Masked generative distillation: alpha_mgd * sum((F_T - generation(align(F_S) * M))^2) / N, M a random mask.

    `lambda_mgd` is the probability that a position is masked (`mask_ratio` in `AMDLoss`), `seed` starts the masks and
    `reseed` restarts them. The defaults are the public code's for one-stage models.
    Shapes and errors: see `LevelLoss`.
    Source: Yang et al. 2022.
    """

    LABEL = 'MGD'
    WEIGHT_EXPONENTS = {'alpha_mgd': (1, 1)}
    # The authors' public configs: one pair of values for one-stage, one for two-stage models.
    PUBLISHED = {'retinanet': {'alpha_mgd': 2e-5, 'lambda_mgd': 0.65},
                 'reppoints': {'alpha_mgd': 2e-5, 'lambda_mgd': 0.65},
                 'faster_rcnn': {'alpha_mgd': 5e-7, 'lambda_mgd': 0.45}}

    def __init__(self, student_channels: int, teacher_channels: int, alpha_mgd: float = 2e-5,
                 lambda_mgd: float = 0.65, seed: int = 0) -> None:
        super().__init__(student_channels, teacher_channels)
        check_number('alpha_mgd', alpha_mgd, at_least=0)
        check_number('lambda_mgd', lambda_mgd, at_least=0, at_most=1)
        self.alpha_mgd = alpha_mgd
        self.align = align_channels(student_channels, teacher_channels)
        self.random_mask = RandomMask(lambda_mgd, seed)
        self.generation = GenerationBlock(teacher_channels, 'conv2')

    def weighted_loss(self, f_s: Tensor, f_t: Tensor, boxes: Sequence[Tensor] | None = None,
                      image_shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        keep = self.random_mask(f_t)
        self.told = {'masked': 1 - keep.mean()}
        f_gen = self.generation(self.align(f_s) * keep)     # 1 = kept
        return self.alpha_mgd * squared_error(f_t, f_gen)

    def extra_repr(self) -> str:
        return f'alpha_mgd={self.alpha_mgd}'
