"""Adaptive Masked Distillation (arXiv 2301.13538): mask, generate, compare, in the order of the paper's Section III.

Where the student's feature lies under the teacher's attention it is masked; a small block generates the teacher's
feature from what is left; the squared difference is the loss. One pyramid level at a time.

======== ======================= ============================================================= ========
symbol   name here               meaning                                                       equation
======== ======================= ============================================================= ========
N C H W  sizes                   images, teacher channels, rows and columns of the level       --
C_s      ``student_channels``    channels of the student's feature                             --
F_T      ``f_t``                 teacher feature (N, C, H, W); never receives a gradient       1
F_S      ``f_s``                 student feature (N, C_s, H, W)                                1
align    ``align``               1x1 convolution C_s -> C, identity where C_s = C              1
G        ``magnitude``           mean over channels of abs(F_T), (N, H, W)                     2
T        ``temperature``         how sharp the attention is                                    3
A        ``attention``           H W softmax(G / T), (N, H, W); its mean is 1                  3
phi      ``phi``                 threshold on A: positions above it are masked                 4
M        ``keep_mask``           (N, 1, H, W), 1 = kept, 0 = masked                            4
F_mask   ``f_mask``              align(F_S) * M, (N, C, H, W)                                  5
clue     ``clue``                weight in (0, 1) of each channel, from F_T, (N, C, 1, 1)      6
F_gen    ``f_gen``               generated feature (N, C, H, W)                                6
L_dis    result of the loss      sum of (F_T - F_gen)^2 over k, i, j, divided by N             7
alpha    ``alpha``               weight of L_dis beside the detection loss                     8
======== ======================= ============================================================= ========

The published text of the paper has lost its formulas' numbers: every default marked *assumed* below is a choice that
the paper does not confirm.
"""
import math

import torch
from torch import nn

__all__ = ['AMDLoss', 'ChannelClue', 'GenerationBlock', 'LevelLoss', 'RandomMask', 'keep_mask', 'random_keep_mask',
           'spatial_attention']

SPATIAL = ('adaptive', 'random', 'none', 'all')
CHANNEL = ('se', 'none')
GENERATION = ('conv2', 'conv1', 'mbconv')
CHANNEL_POSITION = ('after', 'within')


# --- Section III-A: which positions are masked -----------------------------------------------------------------------

def spatial_attention(f_t, temperature):
    """Attention of a feature over its positions; its mean over the positions of an image is 1.

    Shapes: (N, C, H, W) -> (N, H, W); half precision is computed and returned in float32.
    Errors: ``ValueError`` where ``f_t`` has not 4 dimensions or ``temperature`` is not positive.
    Source: Eq. 2 and 3; the factor H*W as in FGD.
    """
    if f_t.dim() != 4:
        raise ValueError(f'expected a feature of shape (N, C, H, W), got {tuple(f_t.shape)}')
    check_number('temperature', temperature, above=0)
    n, _, h, w = f_t.shape
    magnitude = at_least_float32(f_t).abs().mean(dim=1)                                              # Eq. 2
    return h * w * torch.softmax(magnitude.reshape(n, h * w) / temperature, dim=1).view(n, h, w)     # Eq. 3


def keep_mask(attention, phi):
    """Adaptive mask, 1 = kept: 0 where the attention is above ``phi``, 1 elsewhere (also where it equals ``phi``).

    Shapes: (N, H, W) -> (N, 1, H, W) in the attention's dtype, without gradient.
    Errors: ``ValueError`` where ``attention`` has not 3 dimensions or ``phi`` is negative or not finite.
    Source: Eq. 4.
    """
    if attention.dim() != 3:
        raise ValueError(f'expected attention of shape (N, H, W), got {tuple(attention.shape)}')
    check_number('phi', phi, at_least=0)
    # Written as the equation is, so that a NaN keeps the position and shows up in the loss.
    return torch.where(attention.detach() > phi, 0.0, 1.0).to(attention.dtype).unsqueeze(1)


def random_keep_mask(feature, mask_ratio, generator):
    """Random mask, 1 = kept: each position is masked with probability ``mask_ratio``, whatever it shows.

    Shapes: (N, C, H, W) -> (N, 1, H, W) in the feature's dtype and on its device.
    The numbers come from ``generator``, on the CPU and in float32, so that they depend on neither device nor dtype.
    Errors: ``ValueError`` where ``mask_ratio`` is outside [0, 1] or ``generator`` is not a generator of the CPU.
    Source: MGD's public code.
    """
    check_number('mask_ratio', mask_ratio, at_least=0, at_most=1)
    if not isinstance(generator, torch.Generator) or generator.device.type != 'cpu':
        raise ValueError(f'expected a torch.Generator of the CPU, got {generator!r}')
    n, _, h, w = feature.shape
    uniform = torch.rand((n, 1, h, w), generator=generator, dtype=torch.float32)
    return torch.where(uniform > 1 - mask_ratio, 0.0, 1.0).to(device=feature.device, dtype=feature.dtype)


class RandomMask(nn.Module):
    """Draws random masks, 1 = kept, from a generator of its own whose state is part of the state_dict.

    Shapes: (N, C, H, W) -> (N, 1, H, W).
    A resumed run therefore continues the sequence. A state_dict without the entry (a published checkpoint) loads all
    the same, strictly too, and leaves the generator as it is. Levels that share a seed draw related masks: give each
    its own.
    Errors: ``ValueError`` where ``mask_ratio`` is outside [0, 1] or ``seed`` is not an integer of 0 or more.
    """

    def __init__(self, mask_ratio, seed=0):
        super().__init__()
        check_number('mask_ratio', mask_ratio, at_least=0, at_most=1)
        self.mask_ratio = mask_ratio
        self.generator = torch.Generator()
        self.reseed(seed)

    def reseed(self, seed):
        """Start the sequence that belongs to ``seed``."""
        check_integer('seed', seed, at_least=0)
        self.generator.manual_seed(seed)

    def forward(self, feature):
        return random_keep_mask(feature, self.mask_ratio, self.generator)

    def extra_repr(self):
        return f'mask_ratio={self.mask_ratio}'

    def get_extra_state(self):
        return self.generator.get_state()

    def set_extra_state(self, state):
        self.generator.set_state(state.cpu())       # a checkpoint read with map_location='cuda' moves it

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, *rest):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        # Published checkpoints hold no generator; without this, torch reports its entry as missing.
        missing_keys[:] = [key for key in missing_keys if key != f'{prefix}_extra_state']


# --- Section III-B: generation of the teacher's feature, and the channel clue ----------------------------------------

class ChannelClue(nn.Module):
    """Weight of each channel, in (0, 1), from a feature's mean over positions: sigmoid(W2 relu(W1 GAP(F))).

    Shapes: (N, C, H, W) -> (N, C, 1, 1).
    Errors: ``ValueError`` where ``channels`` or ``reduction`` is not a positive integer.
    Source: Eq. 6, an SE layer; its reduction of 16 from SE-Net (at least one hidden unit). W1 and W2 carry no bias,
    as the equation is written [assumed].
    """

    def __init__(self, channels, reduction=16):
        super().__init__()
        check_integer('channels', channels, at_least=1)
        check_integer('se_reduction', reduction, at_least=1)
        hidden = max(channels // reduction, 1)
        self.w1 = nn.Linear(channels, hidden, bias=False)
        self.w2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, feature):
        clue = torch.sigmoid(self.w2(torch.relu(self.w1(feature.mean(dim=(2, 3))))))
        return clue[:, :, None, None]


class GenerationBlock(nn.Sequential):
    """Generates the teacher's feature from the masked one; ``clue``, where given, acts between two convolutions.

    Shapes: (N, C, H, W) -> (N, C, H, W); ``clue`` (N, C, 1, 1).
    ``kind``: 'conv2' = Conv3x3, ReLU, Conv3x3 (the parameters are named as in MGD's public code); 'conv1' = Conv3x3;
    'mbconv' = inverted bottleneck: 1x1 expand, ReLU, depthwise 3x3, ReLU, SE on the student's feature, 1x1 project.
    Errors: ``ValueError`` for an unknown ``kind``, and for a ``clue`` where ``kind`` has no place for one.
    Source: Eq. 6, Tables V and VI. The details of 'mbconv' are assumed: expansion 4, ReLU, no normalisation and no
    shortcut (the other two blocks have neither, and a shortcut would return the masked feature as it is).
    """

    EXPANSION = 4       # of 'mbconv' [assumed]

    def __init__(self, channels, kind='conv2'):
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

    def forward(self, f_mask, clue=None):
        if clue is None:
            return super().forward(f_mask)
        check_clue_fits_within(self.kind)
        first, relu, second = self
        # Before or after the ReLU is the same: a clue is positive.
        return second(relu(first(f_mask)) * clue)


def check_clue_fits_within(kind):
    """``ValueError`` where a generation block of this kind has no place for a channel clue inside it."""
    if kind == 'conv1':
        raise ValueError("channel_position='within' needs two convolutions to stand between, generation='conv1' has "
                         "one: expected generation='conv2' or channel_position='after'")
    if kind == 'mbconv':
        raise ValueError("channel_position='within' needs C channels between the convolutions, generation='mbconv' has "
                         f"{GenerationBlock.EXPANSION}C and an SE layer of its own: expected generation='conv2' or "
                         "channel_position='after'")


def _conv3x3(channels, groups=1):
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=groups)


class _SqueezeExcite(ChannelClue):
    def forward(self, feature):
        return feature * super().forward(feature)


# --- Section III-C: the loss -----------------------------------------------------------------------------------------

class LevelLoss(nn.Module):
    """Base of every method: the distillation loss of one pyramid level, already weighted.

    ``loss(f_s, f_t, boxes, image_shapes)`` takes the student's feature (N, C_s, H, W), the teacher's (N, C, H, W) and,
    for methods that look at objects, the ground-truth boxes (a list of N tensors (n, 4), xyxy in pixels of the input
    image) and the images' (height, width) in pixels before padding; it returns a 0-d tensor.
    The teacher's feature is detached. Half precision is computed in float32, also under autocast, because sums of
    squares overflow float16; float64 stays float64.
    A method implements ``weighted_loss`` with the same arguments, and declares in ``WEIGHT_EXPONENTS``, for each of
    its weights, the exponents (a, b) with which the weighted term grows as C**a * (H*W)**b at a constant error per
    element. One rule then carries the published weights to other sizes of feature: multiply each weight by
    (C_published / C)**a * (positions_published / positions)**b.
    Errors: ``ValueError`` where the features' shapes do not fit each other or the channels the loss was built for.
    """

    WEIGHT_EXPONENTS: dict[str, tuple[float, float]] = {}

    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        check_integer('student_channels', student_channels, at_least=1)
        check_integer('teacher_channels', teacher_channels, at_least=1)
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels

    def forward(self, f_s, f_t, boxes=None, image_shapes=None):
        self._check_features(f_s, f_t)
        dtype = torch.promote_types(torch.promote_types(f_s.dtype, f_t.dtype), torch.float32)
        with torch.autocast(f_s.device.type, enabled=False):
            return self.weighted_loss(f_s.to(dtype), f_t.detach().to(dtype), boxes, image_shapes)

    def weighted_loss(self, f_s, f_t, boxes, image_shapes):
        raise NotImplementedError(f'{type(self).__name__} does not define weighted_loss')

    def _check_features(self, f_s, f_t):
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


class AMDLoss(LevelLoss):
    """Adaptive masked distillation of one level: alpha * sum((F_T - generation(align(F_S) * M) * clue)^2) / N.

    ``spatial`` chooses M: 'adaptive' = by attention (Eq. 2-4); 'random' = as MGD, with ``mask_ratio`` (Tables II-IV
    without Ada-Mask; that MGD's masking replaces it is assumed); 'none' = nothing masked; 'all' = everything masked,
    a control in which the student receives a zero gradient.
    ``channel``: 'se' = the channel clue, 'none' = without it. ``channel_position``: 'after' the generation block, or
    'within', between its two convolutions (Table VI; 'conv2' only). ``generation``: Table V.
    ``seed`` starts the random masks; ``reseed`` restarts them.
    Assumed values: alpha (MGD's for one-stage models; 5e-7 for two-stage models), temperature (FGD's), phi.
    On a level of one position A is exactly 1, so with phi = 1 nothing is masked there.
    Shapes and errors: see ``LevelLoss``; ``ValueError`` for every argument outside its range or list.
    Source: Eq. 1-8; the division by N from MGD's public code.
    """

    WEIGHT_EXPONENTS = {'alpha': (1, 1)}

    def __init__(self, student_channels, teacher_channels, alpha=2e-5, temperature=0.5, phi=1.0, spatial='adaptive',
                 channel='se', generation='conv2', channel_position='after', mask_ratio=0.65, se_reduction=16, seed=0):
        super().__init__(student_channels, teacher_channels)
        check_number('alpha', alpha, at_least=0)
        check_number('temperature', temperature, above=0)
        check_number('phi', phi, at_least=0)
        check_choice('spatial', spatial, SPATIAL)
        check_choice('channel', channel, CHANNEL)
        check_choice('generation', generation, GENERATION)
        check_choice('channel_position', channel_position, CHANNEL_POSITION)
        check_integer('se_reduction', se_reduction, at_least=1)
        if channel == 'se' and channel_position == 'within':
            check_clue_fits_within(generation)
        self.alpha = alpha
        self.temperature = temperature
        self.phi = phi
        self.spatial = spatial
        self.channel = channel
        self.channel_position = channel_position

        self.align = align_channels(student_channels, teacher_channels)
        self.random_mask = RandomMask(mask_ratio, seed)
        self.generation = GenerationBlock(teacher_channels, generation)
        self.clue = ChannelClue(teacher_channels, se_reduction) if channel == 'se' else None

    def reseed(self, seed):
        """Restart the random masks with ``seed``."""
        self.random_mask.reseed(seed)

    def mask(self, f_t):
        """The mask this instance lays on the student, 1 = kept: (N, C, H, W) -> (N, 1, H, W)."""
        if self.spatial == 'adaptive':
            return keep_mask(spatial_attention(f_t, self.temperature), self.phi)
        if self.spatial == 'random':
            return self.random_mask(f_t)
        return torch.full_like(f_t[:, :1], 1.0 if self.spatial == 'none' else 0.0)

    def generate(self, f_s, f_t):
        """The generated feature F_gen: (N, C_s, H, W), (N, C, H, W) -> (N, C, H, W)."""
        f_mask = self.align(f_s) * self.mask(f_t)                   # Eq. 5; 1 = kept
        if self.clue is None:
            return self.generation(f_mask)
        clue = self.clue(f_t)
        if self.channel_position == 'within':
            return self.generation(f_mask, clue)
        return self.generation(f_mask) * clue                       # Eq. 6

    def weighted_loss(self, f_s, f_t, boxes=None, image_shapes=None):
        return self.alpha * squared_error(f_t, self.generate(f_s, f_t))     # Eq. 7 and 8

    def extra_repr(self):
        return (f'alpha={self.alpha}, temperature={self.temperature}, phi={self.phi}, spatial={self.spatial!r}, '
                f'channel={self.channel!r}, channel_position={self.channel_position!r}')


def align_channels(student_channels, teacher_channels):
    """``align`` of Eq. 1: a 1x1 convolution, or the identity where the channels agree (as in MGD's public code)."""
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1)


def squared_error(f_t, f):
    """Sum of squared differences over channels and positions, mean over images: two (N, C, H, W) -> 0-d."""
    return (f_t - f).square().sum() / len(f_t)


def at_least_float32(tensor):
    """The tensor in float32 where it has less, unchanged where it has more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# --- Checks of arguments ---------------------------------------------------------------------------------------------

def check_choice(name, value, choices):
    """``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f'{name}={value!r}: expected one of {", ".join(map(repr, choices))}')


def check_integer(name, value, at_least):
    """``ValueError`` unless ``value`` is an integer (no bool) of ``at_least`` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f'{name}={value!r}: expected an integer of {at_least} or more')


def check_number(name, value, above=None, at_least=None, at_most=None):
    """``ValueError`` unless ``value`` is a finite number (no bool) within the bounds that are given."""
    bounds = [text for bound, text in ((above, f'above {above}'), (at_least, f'of {at_least} or more'),
                                       (at_most, f'of {at_most} or less')) if bound is not None]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if (not is_number or (above is not None and value <= above) or (at_least is not None and value < at_least)
            or (at_most is not None and value > at_most)):
        raise ValueError(f'{name}={value!r}: expected a finite number {" and ".join(bounds)}'.rstrip())
