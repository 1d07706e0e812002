"""What every method starts from: the contract `LevelLoss`, the alignment of channels, random masks, checks.

N, C, H, W are the sizes of the teacher's feature `f_t`; C_s the channels of the student's, `f_s`. Needs torch alone.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LevelLoss(nn.Module):
    """Base of every method: the distillation loss of one pyramid level, already weighted.

    `loss(f_s, f_t, boxes, image_shapes)` takes the student's feature (N, C_s, H, W), the teacher's (N, C, H, W) and,
    for methods that look at objects, the ground-truth boxes (a list of N tensors (n, 4), xyxy in pixels of the input
    image) and the images' (height, width) in pixels before padding; it returns a 0-d tensor.
    The teacher's feature is detached. Half precision is computed in float32, also under autocast, because sums of
    squares overflow float16; float64 stays float64.

    A method implements `weighted_loss` with the same arguments. Its constructor takes `student_channels` and
    `teacher_channels`, then options that all have a default. It declares:

    `WEIGHT_EXPONENTS`: for each of its weights, the exponents (a, b) or (a, b, n) with which the weighted term grows as
    C**a * (H*W)**b * N**n at a constant error per element. One rule then carries the published weights to other sizes:
    multiply each weight by (C_published / C)**a * (positions_published / positions)**b * (N_published / N)**n.
    `LABEL`: the method's name as tables print it (none: the class's name).
    `PUBLISHED`: the published options of a detector pair, by the pair's name, where they differ from the defaults.

    `told` holds what a method has to say of its last call (0-d tensors by name, none with `loss` in it), for the log.

    Errors: `ValueError` where the features' shapes do not fit each other or the channels the loss was built for.
    """

    LABEL: ClassVar[str] = ''
    WEIGHT_EXPONENTS: ClassVar[dict[str, tuple[float, ...]]] = {}
    PUBLISHED: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.LABEL = vars(cls).get('LABEL') or cls.__name__      # never its parent's: a variant of AMD is not AMD

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        check_integer('student_channels', student_channels, at_least=1)
        check_integer('teacher_channels', teacher_channels, at_least=1)
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.told: dict[str, Tensor] = {}

    def forward(self, f_s: Tensor, f_t: Tensor, boxes: Sequence[Tensor] | None = None,
                image_shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        self._check_features(f_s, f_t)
        dtype = torch.promote_types(torch.promote_types(f_s.dtype, f_t.dtype), torch.float32)
        with torch.autocast(f_s.device.type, enabled=False):
            return self.weighted_loss(f_s.to(dtype), f_t.detach().to(dtype), boxes, image_shapes)

    def weighted_loss(self, f_s: Tensor, f_t: Tensor, boxes: Sequence[Tensor] | None = None,
                      image_shapes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """The loss of features that fit and are in float32 or more; `f_t` is detached."""
        raise NotImplementedError(f'{type(self).__name__} does not define weighted_loss')

    def look_around(self, finer: Tensor | None, coarser: Tensor | None) -> None:
        """Told before each call: the teacher's features (N, C, h, w) of the next finer and the next coarser level, None
        at the pyramid's ends. For methods whose levels interact; the others look at their own level alone."""

    def reseed(self, seed: int) -> None:
        """Restart the random masks, where there are any, with `seed`."""
        for part in self.modules():
            if isinstance(part, DrawnMask):
                part.reseed(seed)

    def _check_features(self, f_s: Tensor, f_t: Tensor) -> None:
        shapes = f'student feature {tuple(f_s.shape)}, teacher feature {tuple(f_t.shape)}'
        if f_s.dim() != 4 or f_t.dim() != 4:
            raise ValueError(f'expected two features of shape (N, C, H, W), got {shapes}')
        if f_s.shape[0] != f_t.shape[0] or f_s.shape[2:] != f_t.shape[2:]:
            raise ValueError(f'student and teacher must agree in N, H and W, got {shapes}')
        if f_s.numel() == 0 or f_t.numel() == 0:
            raise ValueError(f'expected features with at least one element, got {shapes}')
        if (f_s.shape[1], f_t.shape[1]) != (self.student_channels, self.teacher_channels):
            raise ValueError(f'expected {self.student_channels} student and {self.teacher_channels} teacher channels, '
                             f'got {shapes}')
        if not (f_s.is_floating_point() and f_t.is_floating_point()):
            raise ValueError(f'expected floating-point features, got {f_s.dtype} (student) and {f_t.dtype} (teacher)')


def align_channels(student_channels: int, teacher_channels: int) -> nn.Module:
    """`align` of AMD's Eq. 1: a 1x1 convolution, or the identity where the channels agree (as in MGD's public code)."""
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1)


def squared_error(f_t: Tensor, f: Tensor) -> Tensor:
    """Sum of squared differences over channels and positions, mean over images: two (N, C, H, W) -> 0-d."""
    return F.mse_loss(f, f_t, reduction='sum') / len(f_t)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it has less, unchanged where it has more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# --- Random masks ----------------------------------------------------------------------------------------------------

def random_keep_mask(feature: Tensor, mask_ratio: float, generator: torch.Generator) -> Tensor:
    """Random mask, 1 = kept: each position is masked with probability `mask_ratio`, whatever it shows.

    The numbers come from `generator`, on the CPU and in float32, so that they depend on neither device nor dtype.
    Shapes: (N, C, H, W) -> (N, 1, H, W) in the feature's dtype and on its device.
    Errors: `ValueError` where `mask_ratio` is outside [0, 1] or `generator` is not a generator of the CPU.
    Source: MGD's public code.
    """
    check_number('mask_ratio', mask_ratio, at_least=0, at_most=1)
    if not isinstance(generator, torch.Generator) or generator.device.type != 'cpu':
        raise ValueError(f'expected a torch.Generator of the CPU, got {generator!r}')
    n, _, h, w = feature.shape
    uniform = torch.rand((n, 1, h, w), generator=generator, dtype=torch.float32)
    return torch.where(uniform > 1 - mask_ratio, 0.0, 1.0).to(device=feature.device, dtype=feature.dtype)


class DrawnMask(nn.Module):
    """Base of masks that draw, from a generator of their own whose state is part of the state_dict.

    A resumed run therefore continues the sequence. A state_dict without the entry (a published checkpoint) loads all
    the same, strictly too, and leaves the generator as it is. Levels that share a seed draw related masks: give each
    its own.
    Errors: `ValueError` where `seed` is not an integer of 0 or more.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator()
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Start the sequence that belongs to `seed`."""
        check_integer('seed', seed, at_least=0)
        self.generator.manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())       # a checkpoint read with map_location='cuda' moves it

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool,
                              missing_keys: list[str], *rest: list[str]) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        # Published checkpoints hold no generator; without this, torch reports its entry as missing.
        missing_keys[:] = [key for key in missing_keys if key != f'{prefix}_extra_state']


class RandomMask(DrawnMask):
    """Draws random masks, 1 = kept: each position is masked with probability `mask_ratio`.

    Shapes: (N, C, H, W) -> (N, 1, H, W).
    Errors: `ValueError` where `mask_ratio` is outside [0, 1] or `seed` is not an integer of 0 or more.
    """

    def __init__(self, mask_ratio: float, seed: int = 0) -> None:
        super().__init__(seed)
        check_number('mask_ratio', mask_ratio, at_least=0, at_most=1)
        self.mask_ratio = mask_ratio

    def forward(self, feature: Tensor) -> Tensor:
        return random_keep_mask(feature, self.mask_ratio, self.generator)

    def extra_repr(self) -> str:
        return f'mask_ratio={self.mask_ratio}'


# --- Checks of arguments ---------------------------------------------------------------------------------------------

def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """`ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f'{name}={value!r}: expected one of {", ".join(map(repr, choices))}')


def check_integer(name: str, value: object, at_least: int) -> None:
    """`ValueError` unless `value` is an integer (no bool) of `at_least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f'{name}={value!r}: expected an integer of {at_least} or more')


def check_number(name: str, value: object, above: float | None = None, at_least: float | None = None,
                 at_most: float | None = None) -> None:
    """`ValueError` unless `value` is a finite number (no bool) within the bounds that are given."""
    bounds = [text for bound, text in ((above, f'above {above}'), (at_least, f'of {at_least} or more'),
                                       (at_most, f'of {at_most} or less')) if bound is not None]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if (not is_number or (above is not None and value <= above) or (at_least is not None and value < at_least)
            or (at_most is not None and value > at_most)):
        raise ValueError(f'{name}={value!r}: expected a finite number {" and ".join(bounds)}'.rstrip())
