"""DeFeat (Guo et al., Distilling object detectors via decoupled features, 2021): its term on features."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amdlib.methods.fgd import box_masks
from amdlib.methods.level import LevelLoss, align_channels, check_number


class DeFeatLoss(LevelLoss):
    """Objects and ground apart: an image's alpha / (2 n_M) * sum(M E) + beta / (2 n_B) * sum((1 - M) E), mean over N.

    E is the squared error of a position, summed over channels, M = 1 where a box is, n_M and n_B are how many positions
    are in boxes and how many are not; a kind that an image lacks adds nothing.
    Needs `boxes` and `image_shapes`.
    Shapes and errors: see `LevelLoss`; `ValueError` where boxes or image shapes are missing or malformed.
    Source: Guo et al. 2021 [paper]. No published value of the weights was at hand: the defaults make both terms half a
    mean over 256 channels, the ground's four times the objects', the ratio of a public re-implementation [own]. Which
    positions a box covers is FGD's rule, and there is an alignment only where channels differ [own]. Left out is the
    paper's other half, the classification of proposals.
    """

    LABEL = 'DeFeat'
    WEIGHT_EXPONENTS = {'alpha': (1, 0), 'beta': (1, 0)}        # sums over channels, means over positions of a kind
    PUBLISHED = {}

    def __init__(self, student_channels: int, teacher_channels: int, alpha: float = 1 / 256,
                 beta: float = 4 / 256) -> None:
        super().__init__(student_channels, teacher_channels)
        check_number('alpha', alpha, at_least=0)
        check_number('beta', beta, at_least=0)
        self.alpha = alpha
        self.beta = beta
        self.align = align_channels(student_channels, teacher_channels)

    def weighted_loss(self, f_s: Tensor, f_t: Tensor, boxes: Sequence[Tensor] | None = None,
                      image_shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        objects, _ = box_masks(boxes, image_shapes, f_t)
        inside = (objects > 0).to(f_t.dtype)                                    # (N, H, W)
        error = (f_t - self.align(f_s)).square().sum(dim=1)
        return (self.alpha * _half_mean(error, inside) + self.beta * _half_mean(error, 1 - inside)).mean()

    def extra_repr(self) -> str:
        return f'alpha={self.alpha}, beta={self.beta}'


def _half_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Half the mean over the positions of each image whose mask is 1, or 0 without any: (N, H, W) twice -> (N,)."""
    return (error * mask).sum(dim=(1, 2)) / (2 * mask.sum(dim=(1, 2)).clamp(min=1))
