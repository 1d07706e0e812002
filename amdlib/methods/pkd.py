"""PKD (Cao et al., PKD: General distillation framework for object detectors via Pearson correlation, 2022)."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from amdlib.methods.level import align_channels, check_integer, check_number
from amdlib.methods.step import Step, StepLoss

EPSILON = 1e-6      # on the standard deviation [code]


class PKDLoss(StepLoss):
    """Pearson distillation: weight * 1/2 * mean((z_S - z_T)^2) a level, z the feature with each channel standardised.

    A channel's mean and standard deviation are those over images and positions, so the loss depends on the batch. It is
    weight * (1 - r), r the mean over channels of Pearson's correlation: blind to scale and shift of a channel. What is
    constant on one side, where r is not defined, counts one half; on both, nothing.
    `finest`: so many of the compared levels, the finest; of the others nothing is asked.
    Shapes and errors: see `StepLoss`.
    Source: Cao et al. 2022; weights and levels as in mmrazor's configs [code]. Alignment only where channels differ
    [own].
    """

    LABEL = 'PKD'
    WEIGHT_EXPONENTS = {'weight': (0, 0)}
    PUBLISHED = {'faster_rcnn': {'weight': 6.0}}        # RetinaNet's and RepPoints' are the defaults

    def __init__(self, channels: Sequence[tuple[int, int]], weight: float = 10.0, finest: int = 4) -> None:
        super().__init__(channels)
        check_number('weight', weight, at_least=0)
        check_integer('finest', finest, at_least=1)
        self.weight = weight
        self.align = nn.ModuleList(align_channels(*pair) for pair in self.channels[:finest])

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        pairs = zip(step.levels, self.align, step.f_s, step.f_t, strict=False)
        return {f'fpn_{level}': self.weight / 2 * (standardised(align(f_s)) - standardised(f_t)).square().mean()
                for level, align, f_s, f_t in pairs}

    def extra_repr(self) -> str:
        return f'weight={self.weight}'


def standardised(feature: Tensor) -> Tensor:
    """Each channel with mean 0 and standard deviation 1 over images and positions: (N, C, H, W) twice."""
    dims = (0, 2, 3)
    # DEVIATION PKD-1: over n elements, in the public code over n - 1, which one element has not
    deviation = feature.std(dim=dims, correction=0, keepdim=True)
    return (feature - feature.mean(dim=dims, keepdim=True)) / (deviation + EPSILON)
