"""Adaptive Masked Distillation (arXiv 2301.13538): mask, generate, compare, in the order of the paper's Section III.

Where the student's feature lies under the teacher's attention it is masked; a small block generates the teacher's
feature from what is left; the squared difference is the loss. One pyramid level at a time.

======== ======================= ============================================================= ========
symbol   name here               meaning                                                       equation
======== ======================= ============================================================= ========
N C H W  sizes                   images, teacher channels, rows and columns of the level       --
C_s      `student_channels`      channels of the student's feature                             --
F_T      `f_t`                   teacher feature (N, C, H, W); never receives a gradient       1
F_S      `f_s`                   student feature (N, C_s, H, W)                                1
align    `align`                 1x1 convolution C_s -> C, identity where C_s = C              1
G        `magnitude`             mean over channels of abs(F_T), (N, H, W)                     2
T        `temperature`           how sharp the attention is                                    3
A        `attention`             H W softmax(G / T), (N, H, W); its mean is 1                  3
phi      `phi`                   threshold on A: positions above it are masked                 4
M        `keep_mask`             (N, 1, H, W), 1 = kept, 0 = masked                            4
F_mask   `f_mask`                align(F_S) * M, (N, C, H, W)                                  5
clue     `clue`                  weight in (0, 1) of each channel, from F_T, (N, C, 1, 1)      6
F_gen    `f_gen`                 generated feature (N, C, H, W)                                6
L_dis    result of the loss      sum of (F_T - F_gen)^2 over k, i, j, divided by N             7
alpha    `alpha`                 weight of L_dis beside the detection loss                     8
======== ======================= ============================================================= ========

The published text of the paper has lost its formulas' numbers: every default marked *assumed* below is a choice that
the paper does not confirm.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdlib.methods.level import (
    DrawnMask,
    LevelLoss,
    RandomMask,
    align_channels,
    at_least_float32,
    check_choice,
    check_integer,
    check_number,
    squared_error,
)

SPATIAL = ('adaptive', 'random', 'none', 'all', 'permuted', 'inverted', 'spread', 'smoothed')
CHANNEL = ('se', 'none')
GENERATION = ('conv2', 'conv1', 'mbconv')
CHANNEL_POSITION = ('after', 'within')


# --- Section III-A: which positions are masked -----------------------------------------------------------------------

def spatial_attention(f_t: Tensor, temperature: float) -> Tensor:
    """Attention of a feature over its positions; its mean over the positions of an image is 1.

    Shapes: (N, C, H, W) -> (N, H, W); half precision is computed and returned in float32.
    Errors: `ValueError` where `f_t` has not 4 dimensions or `temperature` is not positive.
    Source: Eq. 2 and 3; the factor H*W as in FGD.
    """
    if f_t.dim() != 4:
        raise ValueError(f'expected a feature of shape (N, C, H, W), got {tuple(f_t.shape)}')
    check_number('temperature', temperature, above=0)
    n, _, h, w = f_t.shape
    magnitude = at_least_float32(f_t).abs().mean(dim=1)                                              # Eq. 2
    return h * w * torch.softmax(magnitude.reshape(n, h * w) / temperature, dim=1).view(n, h, w)     # Eq. 3


def keep_mask(attention: Tensor, phi: float) -> Tensor:
    """Adaptive mask, 1 = kept: 0 where the attention is above `phi`, 1 elsewhere (also where it equals `phi`).

    Shapes: (N, H, W) -> (N, 1, H, W) in the attention's dtype, without gradient.
    Errors: `ValueError` where `attention` has not 3 dimensions or `phi` is negative or not finite.
    Source: Eq. 4.
    """
    if attention.dim() != 3:
        raise ValueError(f'expected attention of shape (N, H, W), got {tuple(attention.shape)}')
    check_number('phi', phi, at_least=0)
    # Written as the equation is, so that a NaN keeps the position and shows up in the loss.
    return torch.where(attention.detach() > phi, 0.0, 1.0).to(attention.dtype).unsqueeze(1)


class AdaptiveMask(nn.Module):
    """The paper's mask, 1 = kept: 0 where the teacher's attention is above `phi`.

    Shapes: (N, C, H, W) -> (N, 1, H, W).
    Errors: `ValueError` where `temperature` is not positive or `phi` is negative or not finite.
    Source: Eq. 2-4.
    """

    def __init__(self, temperature: float, phi: float) -> None:
        super().__init__()
        check_number('temperature', temperature, above=0)
        check_number('phi', phi, at_least=0)
        self.temperature = temperature
        self.phi = phi

    def forward(self, f_t: Tensor) -> Tensor:
        return keep_mask(spatial_attention(f_t, self.temperature), self.phi)

    def extra_repr(self) -> str:
        return f'temperature={self.temperature}, phi={self.phi}'


class PermutedMask(DrawnMask):
    """A control: as many positions of each image masked as the paper's mask has, placed at random.

    Shapes: (N, C, H, W) -> (N, 1, H, W), 1 = kept.
    """

    def __init__(self, adaptive: AdaptiveMask, seed: int = 0) -> None:
        super().__init__(seed)
        self.adaptive = adaptive

    def forward(self, f_t: Tensor) -> Tensor:
        keep = self.adaptive(f_t).flatten(1)
        places = torch.rand(keep.shape, generator=self.generator).argsort(dim=1)
        return keep.gather(1, places.to(keep.device)).view(len(f_t), 1, *f_t.shape[2:])


class InvertedMask(nn.Module):
    """A control: as many positions of each image masked as the paper's mask has, those with the least attention.

    Shapes: (N, C, H, W) -> (N, 1, H, W), 1 = kept.
    """

    def __init__(self, adaptive: AdaptiveMask) -> None:
        super().__init__()
        self.adaptive = adaptive

    def forward(self, f_t: Tensor) -> Tensor:
        attention = spatial_attention(f_t, self.adaptive.temperature).detach().flatten(1)
        masked = (attention > self.adaptive.phi).sum(dim=1, keepdim=True)
        rank = attention.argsort(dim=1, stable=True).argsort(dim=1)     # 0 = the least attention
        return (rank >= masked).to(attention.dtype).view(len(f_t), 1, *f_t.shape[2:])


class ConstantMask(nn.Module):
    """A control: every position kept (1) or every position masked (0). Shapes: (N, C, H, W) -> (N, 1, H, W)."""

    def __init__(self, kept: float) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, f_t: Tensor) -> Tensor:
        return torch.full_like(f_t[:, :1], self.kept)

    def extra_repr(self) -> str:
        return f'kept={self.kept}'


# --- Ours, after the paper's last sentence: attention whose positions interact ---------------------------------------

def _mean_one(attention: Tensor) -> Tensor:
    return attention / attention.mean(dim=(1, 2), keepdim=True)


class SpreadMask(nn.Module):
    """Ours: the paper's mask on attention that is spread along the similarity of features, softmax(F^T F / sqrt(C)) A,
    divided by its mean so that phi keeps its meaning: positions that look alike are masked alike.

    Shapes: (N, C, H, W) -> (N, 1, H, W), 1 = kept. No H W x H W matrix is kept where torch has a fused kernel.
    Source: the paper's conclusion names interaction between positions as future work; the form is ours, the temperature
    that of scaled dot-product attention.
    """

    def __init__(self, adaptive: AdaptiveMask) -> None:
        super().__init__()
        self.adaptive = adaptive

    def attention(self, f_t: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, H, W), mean 1."""
        places = at_least_float32(f_t).flatten(2).transpose(1, 2)                           # (N, H W, C)
        own = spatial_attention(f_t, self.adaptive.temperature).flatten(1).unsqueeze(2)     # (N, H W, 1)
        spread = F.scaled_dot_product_attention(places[:, None], places[:, None], own[:, None])
        return _mean_one(spread.reshape(len(f_t), *f_t.shape[2:]))

    def forward(self, f_t: Tensor) -> Tensor:
        return keep_mask(self.attention(f_t), self.adaptive.phi)


class SmoothedMask(nn.Module):
    """Ours: the paper's mask on attention that is smoothed over neighbours and levels: the mean over a position's 3x3
    neighbourhood, then over this level and the next finer and coarser one in this one's size (bilinear), divided by its
    mean so that phi keeps its meaning.

    `around` holds the teacher's features of those levels (`LevelLoss.look_around`); without it the level stands alone.
    Shapes: (N, C, H, W) -> (N, 1, H, W), 1 = kept.
    Source: as `SpreadMask`.
    """

    def __init__(self, adaptive: AdaptiveMask) -> None:
        super().__init__()
        self.adaptive = adaptive
        self.around: tuple[Tensor, ...] = ()

    def attention(self, f_t: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, H, W), mean 1."""
        each = (spatial_attention(level, self.adaptive.temperature)[:, None] for level in (f_t, *self.around))
        own, *others = (F.avg_pool2d(one, 3, stride=1, padding=1, count_include_pad=False) for one in each)
        resized = [F.interpolate(other, own.shape[2:], mode='bilinear', align_corners=False) for other in others]
        return _mean_one(torch.cat([own, *resized], dim=1).mean(dim=1))

    def forward(self, f_t: Tensor) -> Tensor:
        return keep_mask(self.attention(f_t), self.adaptive.phi)


# --- Section III-B: generation of the teacher's feature, and the channel clue ----------------------------------------

class ChannelClue(nn.Module):
    """Weight of each channel, in (0, 1), from a feature's mean over positions: sigmoid(W2 relu(W1 GAP(F))).

    Shapes: (N, C, H, W) -> (N, C, 1, 1).
    Errors: `ValueError` where `channels` or `reduction` is not a positive integer.
    Source: Eq. 6, an SE layer; its reduction of 16 from SE-Net (at least one hidden unit). W1 and W2 carry no bias,
    as the equation is written [assumed].
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        check_integer('channels', channels, at_least=1)
        check_integer('se_reduction', reduction, at_least=1)
        hidden = max(channels // reduction, 1)
        self.w1 = nn.Linear(channels, hidden, bias=False)
        self.w2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, feature: Tensor) -> Tensor:
        clue = torch.sigmoid(self.w2(torch.relu(self.w1(feature.mean(dim=(2, 3))))))
        return clue[:, :, None, None]


class GenerationBlock(nn.Sequential):
    """Generates the teacher's feature from the masked one; `clue`, where given, acts between two convolutions.

    `kind`: 'conv2' = Conv3x3, ReLU, Conv3x3 (the parameters are named as in MGD's public code); 'conv1' = Conv3x3;
    'mbconv' = inverted bottleneck: 1x1 expand, ReLU, depthwise 3x3, ReLU, SE on the student's feature, 1x1 project.
    Shapes: (N, C, H, W) -> (N, C, H, W); `clue` (N, C, 1, 1).
    Errors: `ValueError` for an unknown `kind`, and for a `clue` where `kind` has no place for one.
    Source: Eq. 6, Tables V and VI. The details of 'mbconv' are assumed: expansion 4, ReLU, no normalisation and no
    shortcut (the other two blocks have neither, and a shortcut would return the masked feature as it is).
    """

    EXPANSION: ClassVar[int] = 4        # of 'mbconv' [assumed]

    def __init__(self, channels: int, kind: str = 'conv2') -> None:
        check_integer('channels', channels, at_least=1)
        check_choice('generation', kind, GENERATION)
        wide = self.EXPANSION * channels
        layers = {
            'conv2': lambda: (_conv3x3(channels), nn.ReLU(), _conv3x3(channels)),
            'conv1': lambda: (_conv3x3(channels),),
            'mbconv': lambda: (nn.Conv2d(channels, wide, kernel_size=1), nn.ReLU(), _conv3x3(wide, groups=wide),
                               nn.ReLU(), _SqueezeExcite(wide), nn.Conv2d(wide, channels, kernel_size=1)),
        }[kind]()
        super().__init__(*layers)
        self.kind = kind

    def forward(self, f_mask: Tensor, clue: Tensor | None = None) -> Tensor:
        if clue is None:
            return super().forward(f_mask)
        check_clue_fits_within(self.kind)
        first, relu, second = self
        # Before or after the ReLU is the same: a clue is positive.
        return second(relu(first(f_mask)) * clue)


def check_clue_fits_within(kind: str) -> None:
    """`ValueError` where a generation block of this kind has no place for a channel clue inside it."""
    if kind == 'conv1':
        raise ValueError("channel_position='within' needs two convolutions to stand between, generation='conv1' has "
                         "one: expected generation='conv2' or channel_position='after'")
    if kind == 'mbconv':
        raise ValueError("channel_position='within' needs C channels between the convolutions, generation='mbconv' has "
                         f"{GenerationBlock.EXPANSION}C and an SE layer of its own: expected generation='conv2' or "
                         "channel_position='after'")


def _conv3x3(channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=groups)


class _SqueezeExcite(ChannelClue):
    def forward(self, feature: Tensor) -> Tensor:
        return feature * super().forward(feature)


def clue_after(f_mask: Tensor, f_t: Tensor, generation: GenerationBlock, clue: ChannelClue) -> Tensor:
    """F_gen with the clue after the generation block. Source: Eq. 6."""
    return generation(f_mask) * clue(f_t)


def clue_within(f_mask: Tensor, f_t: Tensor, generation: GenerationBlock, clue: ChannelClue) -> Tensor:
    """F_gen with the clue between the generation block's two convolutions. Source: Table VI."""
    return generation(f_mask, clue(f_t))


def without_clue(f_mask: Tensor, f_t: Tensor, generation: GenerationBlock, clue: None) -> Tensor:
    """F_gen from the generation block alone. Source: Tables II to IV without Ada-Channel."""
    return generation(f_mask)


GENERATED = {('se', 'after'): clue_after, ('se', 'within'): clue_within,
             ('none', 'after'): without_clue, ('none', 'within'): without_clue}     # by CHANNEL and CHANNEL_POSITION


# --- Section III-C: the loss -----------------------------------------------------------------------------------------

class AMDLoss(LevelLoss):
    """Adaptive masked distillation of one level: alpha * sum((F_T - generation(align(F_S) * M) * clue)^2) / N.

    `spatial` chooses M: 'adaptive' = by attention (Eq. 2-4); 'random' = as MGD, with `mask_ratio` (Tables II-IV
    without Ada-Mask; that MGD's masking replaces it is assumed). Controls of ours: 'none' = nothing masked; 'all' =
    everything masked, so that the student receives a zero gradient; 'permuted' = as many positions of each image as
    'adaptive' masks, placed at random; 'inverted' = as many, those with the least attention. Ours, after the paper's
    future work: 'spread' along the similarity of features, 'smoothed' over neighbours and levels.
    `channel`: 'se' = the channel clue, 'none' = without it. `channel_position`: 'after' the generation block, or
    'within', between its two convolutions (Table VI; 'conv2' only). `generation`: Table V.
    `seed` starts the random masks; `reseed` restarts them.
    Assumed values: alpha (MGD's), temperature (FGD's), phi.
    On a level of one position A is exactly 1, so with phi = 1 nothing is masked there.
    Shapes and errors: see `LevelLoss`; `ValueError` for every argument outside its range or list.
    Source: Eq. 1-8; the division by N from MGD's public code.
    """

    LABEL = 'AMD'
    WEIGHT_EXPONENTS = {'alpha': (1, 1)}
    # ASSUMPTION alpha: the paper has one value for one-stage and one for two-stage models, both lost; these are MGD's,
    # which the method extends, from its public configs. ASSUMPTION random masks: so is their ratio.
    PUBLISHED = {'retinanet': {'alpha': 2e-5, 'mask_ratio': 0.65},
                 'reppoints': {'alpha': 2e-5, 'mask_ratio': 0.65},
                 'faster_rcnn': {'alpha': 5e-7, 'mask_ratio': 0.45}}

    def __init__(self, student_channels: int, teacher_channels: int, alpha: float = 2e-5, temperature: float = 0.5,
                 phi: float = 1.0, spatial: str = 'adaptive', channel: str = 'se', generation: str = 'conv2',
                 channel_position: str = 'after', mask_ratio: float = 0.65, se_reduction: int = 16,
                 seed: int = 0) -> None:
        super().__init__(student_channels, teacher_channels)
        check_number('alpha', alpha, at_least=0)
        check_choice('spatial', spatial, SPATIAL)
        check_choice('channel', channel, CHANNEL)
        check_choice('generation', generation, GENERATION)
        check_choice('channel_position', channel_position, CHANNEL_POSITION)
        check_integer('se_reduction', se_reduction, at_least=1)
        if GENERATED[channel, channel_position] is clue_within:
            check_clue_fits_within(generation)
        self.alpha = alpha
        self.temperature = temperature
        self.phi = phi
        self.spatial = spatial
        self.channel = channel
        self.channel_position = channel_position

        adaptive = AdaptiveMask(temperature, phi)
        masks = {'adaptive': adaptive, 'random': RandomMask(mask_ratio, seed), 'permuted': PermutedMask(adaptive, seed),
                 'inverted': InvertedMask(adaptive), 'spread': SpreadMask(adaptive),
                 'smoothed': SmoothedMask(adaptive), 'none': ConstantMask(1.0),
                 'all': ConstantMask(0.0)}      # all are built: each checks its arguments
        self.align = align_channels(student_channels, teacher_channels)
        self.add_module(f'{spatial}_mask', masks[spatial])      # checkpoints know `random_mask` by this name
        self.generation = GenerationBlock(teacher_channels, generation)
        self.clue = ChannelClue(teacher_channels, se_reduction) if channel == 'se' else None

    def look_around(self, finer: Tensor | None, coarser: Tensor | None) -> None:
        mask = self.get_submodule(f'{self.spatial}_mask')
        if isinstance(mask, SmoothedMask):
            mask.around = tuple(level.detach() for level in (finer, coarser) if level is not None)

    def mask(self, f_t: Tensor) -> Tensor:
        """The mask this instance lays on the student, 1 = kept: (N, C, H, W) -> (N, 1, H, W)."""
        return self.get_submodule(f'{self.spatial}_mask')(f_t)

    def generate(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """The generated feature F_gen: (N, C_s, H, W), (N, C, H, W) -> (N, C, H, W)."""
        keep = self.mask(f_t)                                                                   # Eq. 2-4; 1 = kept
        self.told = {'masked': 1 - keep.mean()}
        f_mask = self.align(f_s) * keep                                                         # Eq. 5
        return GENERATED[self.channel, self.channel_position](f_mask, f_t, self.generation, self.clue)      # Eq. 6

    def weighted_loss(self, f_s: Tensor, f_t: Tensor, boxes: Sequence[Tensor] | None = None,
                      image_shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        return self.alpha * squared_error(f_t, self.generate(f_s, f_t))                         # Eq. 7 and 8

    def extra_repr(self) -> str:
        return f'alpha={self.alpha}, channel={self.channel!r}, channel_position={self.channel_position!r}'

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool,
                              missing_keys: list[str], unexpected_keys: list[str], *rest: list[str]) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, *rest)
        # Older checkpoints hold the generator of random masks whatever the mask; MGD's checkpoints do too.
        unexpected_keys[:] = [key for key in unexpected_keys if key != f'{prefix}random_mask._extra_state']
