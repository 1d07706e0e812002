"""FKD (Zhang and Ma, Improve object detection with feature-based knowledge distillation, 2020).

Parameters are named as in mmrazor's FBKD connectors.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdlib.methods.amd import spatial_attention
from amdlib.methods.fgd import channel_attention
from amdlib.methods.level import LevelLoss, check_integer, check_number


class FKDLoss(LevelLoss):
    """Attention-guided and non-local distillation: a weighted sum of four distances.

    Each distance is an L2 norm, not squared, over the whole batch (so it grows with sqrt(N), unlike the other methods):
    the adapted feature under the mean spatial attention of teacher and student, which carries no gradient; the mean
    over positions; the mean over channels; and the output of a non-local block on each side. Both non-local blocks
    train, the teacher's too.
    `channel_mask` weighs the first distance by the channel attention as well: the paper does, the public code
    computes it and leaves it out, and so does the default; `channel_temperature` matters only with it.
    `nonlocal_reduction` and `nonlocal_pool` (cells, per side) are mmrazor's reduction and twice its
    `maxpool_stride` because its block pools by 2 before that. It takes (4, 16) on the finest level, (4, 8) on the
    next, (2, 4) on the others; the default is the last, on every level [assumed].
    Shapes and errors: see `LevelLoss`; `ValueError` for a `channel_mask` between unequal channels.
    Source: Zhang and Ma 2020, as in mmrazor's FBKD, from the authors' code.
    """

    LABEL = 'FKD'
    # L2 norms of C*H*W, C, H*W and C*H*W elements of each of N images. ASSUMPTION FKD's batch: weights belong to N = 2.
    WEIGHT_EXPONENTS = {'feature_weight': (.5, .5, .5), 'channel_weight': (.5, 0, .5), 'spatial_weight': (0, .5, .5),
                        'nonlocal_weight': (.5, .5, .5)}
    PUBLISHED = {}      # mmrazor's FBKD has one set of values, the defaults; assumed for every pair of detectors

    def __init__(self, student_channels: int, teacher_channels: int, feature_weight: float = 7e-5,
                 channel_weight: float = 4e-3, spatial_weight: float = 4e-3, nonlocal_weight: float = 7e-5,
                 spatial_temperature: float = 0.5, channel_temperature: float = 0.5, channel_mask: bool = False,
                 nonlocal_reduction: int = 2, nonlocal_pool: int = 4) -> None:
        super().__init__(student_channels, teacher_channels)
        for name, weight in (('feature_weight', feature_weight), ('channel_weight', channel_weight),
                             ('spatial_weight', spatial_weight), ('nonlocal_weight', nonlocal_weight)):
            check_number(name, weight, at_least=0)
        check_number('spatial_temperature', spatial_temperature, above=0)
        check_number('channel_temperature', channel_temperature, above=0)
        if not isinstance(channel_mask, bool):
            raise ValueError(f'channel_mask={channel_mask!r}: expected True or False')
        if channel_mask and student_channels != teacher_channels:
            raise ValueError(f'channel_mask=True averages the masks of both sides: expected equal channels, got '
                             f'student_channels={student_channels}, teacher_channels={teacher_channels}')
        self.feature_weight = feature_weight
        self.channel_weight = channel_weight
        self.spatial_weight = spatial_weight
        self.nonlocal_weight = nonlocal_weight
        self.spatial_temperature = spatial_temperature
        self.channel_temperature = channel_temperature
        self.channel_mask = channel_mask

        # DEVIATION FKD-1: these three map C_s to C channels; the public code knows equal channels only.
        self.adaptation_layers = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.channel_wise_adaptation = nn.Linear(student_channels, teacher_channels)
        self.non_local_adaptation = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.spatial_wise_adaptation = nn.Conv2d(1, 1, kernel_size=3, padding=1)
        self.student_non_local = NonLocalBlock(student_channels, nonlocal_reduction, nonlocal_pool)
        self.teacher_non_local = NonLocalBlock(teacher_channels, nonlocal_reduction, nonlocal_pool)

    def weighted_loss(self, f_s: Tensor, f_t: Tensor, boxes: Sequence[Tensor] | None = None,
                      image_shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        feature = l2((f_t - self.adaptation_layers(f_s)) * self.attention(f_s, f_t).sqrt())
        channel = l2(f_t.mean(dim=(2, 3)) - self.channel_wise_adaptation(f_s.mean(dim=(2, 3))))
        spatial = l2(f_t.mean(dim=1, keepdim=True) - self.spatial_wise_adaptation(f_s.mean(dim=1, keepdim=True)))
        nonlocal_ = l2(self.teacher_non_local(f_t) - self.non_local_adaptation(self.student_non_local(f_s)))
        return (self.feature_weight * feature + self.channel_weight * channel + self.spatial_weight * spatial
                + self.nonlocal_weight * nonlocal_)

    @torch.no_grad()
    def attention(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Weight of each element in the first distance, mean of both sides; no gradient.

        Shapes: (N, C_s, H, W), (N, C, H, W) -> (N, 1, H, W), or (N, C, H, W) with the channel mask.
        """
        weight = (spatial_attention(f_t, self.spatial_temperature)
                  + spatial_attention(f_s, self.spatial_temperature)).unsqueeze(1) / 2
        if self.channel_mask:
            weight = weight * (channel_attention(f_t, self.channel_temperature)
                               + channel_attention(f_s, self.channel_temperature))[:, :, None, None] / 2
        return weight

    def extra_repr(self) -> str:
        return (f'feature_weight={self.feature_weight}, channel_weight={self.channel_weight}, '
                f'spatial_weight={self.spatial_weight}, nonlocal_weight={self.nonlocal_weight}')


class NonLocalBlock(nn.Module):
    """Non-local block with dot products: F + BN(W((theta(F) . phi(F)) / P . g(F))), P pooled positions.

    phi(F) and g(F) are max-pooled by `pool` x `pool` cells. The batch norm starts at zero, hence the block as the
    identity.
    Shapes: (N, C, H, W) -> (N, C, H, W).
    Errors: `ValueError` where `channels`, `reduction` or `pool` is not a positive integer.
    Source: Wang et al. 2018, as mmcv's NonLocal2d with mode='dot_product' and sub_sample=True.
    """

    def __init__(self, channels: int, reduction: int = 2, pool: int = 4) -> None:
        super().__init__()
        check_integer('channels', channels, at_least=1)
        check_integer('nonlocal_reduction', reduction, at_least=1)
        check_integer('nonlocal_pool', pool, at_least=1)
        hidden = max(channels // reduction, 1)
        self.pool = pool
        self.g = nn.Conv2d(channels, hidden, kernel_size=1)
        self.theta = nn.Conv2d(channels, hidden, kernel_size=1)
        self.phi = nn.Conv2d(channels, hidden, kernel_size=1)
        self.conv_out = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        for conv in (self.g, self.theta, self.phi):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        nn.init.kaiming_normal_(self.conv_out.weight, mode='fan_out', nonlinearity='relu')
        nn.init.zeros_(self.bn.weight)

    def forward(self, feature: Tensor) -> Tensor:
        theta = self.theta(feature).flatten(2)                              # (N, hidden, H*W)
        phi = self._pooled(self.phi(feature)).flatten(2)                    # (N, hidden, P)
        g = self._pooled(self.g(feature)).flatten(2)                        # (N, hidden, P)
        affinity = theta.transpose(1, 2) @ phi / phi.shape[2]               # (N, H*W, P)
        mixed = (g @ affinity.transpose(1, 2)).unflatten(2, feature.shape[2:])
        return feature + self._normalised(self.conv_out(mixed))

    def _pooled(self, x: Tensor) -> Tensor:
        # DEVIATION FKD-2: a map smaller than the window is pooled as a whole; the public code fails on it.
        return F.max_pool2d(x, (min(self.pool, x.shape[2]), min(self.pool, x.shape[3])))

    def _normalised(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            # DEVIATION FKD-3: torch refuses to normalise one value a channel (N = H = W = 1). The value minus its
            # mean is 0; running statistics stay as they are.
            return (x - x) * self.bn.weight[:, None, None] + self.bn.bias[:, None, None]
        return self.bn(x)


def l2(difference: Tensor) -> Tensor:
    """L2 norm over all elements, 0-d; its gradient at zero is zero, where that of sum(d^2)**0.5 is NaN."""
    return torch.linalg.vector_norm(difference)
