"""FitNet: plain imitation of the teacher's feature (Romero et al., FitNets: Hints for thin deep nets, 2015)."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amdlib.methods.level import LevelLoss, align_channels, check_number, squared_error


class FitNetLoss(LevelLoss):
    """Plain feature imitation: alpha * sum((F_T - align(F_S))^2) / N.

    Shapes and errors: see `LevelLoss`.
    Source: Eq. 1 of the AMD paper. The division by N is MGD's [assumed], and so is the default of `alpha` [assumed:
    the same sum over the same elements].
    """

    LABEL = 'FitNet'
    WEIGHT_EXPONENTS = {'alpha': (1, 1)}
    PUBLISHED = {}      # nothing is published for these detectors in this form

    def __init__(self, student_channels: int, teacher_channels: int, alpha: float = 2e-5) -> None:
        super().__init__(student_channels, teacher_channels)
        check_number('alpha', alpha, at_least=0)
        self.alpha = alpha
        self.align = align_channels(student_channels, teacher_channels)

    def weighted_loss(self, f_s: Tensor, f_t: Tensor, boxes: Sequence[Tensor] | None = None,
                      image_shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        return self.alpha * squared_error(f_t, self.align(f_s))

    def extra_repr(self) -> str:
        return f'alpha={self.alpha}'
