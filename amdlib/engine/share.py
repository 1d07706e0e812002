"""A method's weight by what it starts as: a share of the whole loss. Ours, for pairs of detectors that nobody tried."""
from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

MEASURED_STEPS = 20


class StartingShare(nn.Module):
    """The factor on a method's loss with which it starts as `share` of detection and distillation together.

    The first 20 steps measure: after each, factor = share / (1 - share) * mean detection / mean distillation so far, in
    all processes together. Then it stays. What was measured is part of the state_dict, so that a resumed run goes on.

    Args:
        share: above 0 and below 1.
    Errors: ValueError for another share.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f'share={share!r}: expected a number above 0 and below 1')
        self.share = share
        self.register_buffer('measured', torch.zeros(3, dtype=torch.float64))   # steps, detection, distillation

    @torch.no_grad()
    def forward(self, detection: Tensor, distillation: Tensor) -> Tensor:
        """Both losses of a step, 0-d -> the factor on distillation, 0-d; 0 where distillation was 0 all along."""
        if self.training and self.measured[0] < MEASURED_STEPS:
            found = torch.stack([torch.ones_like(detection), detection, distillation]).to(self.measured)
            all_reduce(found)
            self.measured += found / found[0]
        _, detected, distilled = self.measured
        if not distilled > 0:
            return distillation.new_zeros(())
        return (self.share / (1 - self.share) * detected / distilled).to(distillation)
