"""The methods AMD is compared with, under the same contract (``amd.LevelLoss``): FitNet, FKD, FGD and MGD.

======== ============================================================ =====================================
class    paper                                                        parameters named as in
======== ============================================================ =====================================
FitNet   Romero et al., FitNets: Hints for thin deep nets, 2015       --
FKD      Zhang and Ma, Improve object detection with feature-based    mmrazor's FBKD connectors
         knowledge distillation, 2020
FGD      Yang et al., Focal and global knowledge distillation for     the authors' code (checkpoints load)
         detectors, 2022
MGD      Yang et al., Masked generative distillation, 2022            the authors' code (checkpoints load)
======== ============================================================ =====================================

N, C, H, W are the sizes of the teacher's feature, C_s the student's channels. F_S and F_T are ``f_s`` and ``f_t``.
"""
import torch
from torch import nn
from torch.nn import functional as F

from amdlib.amd import (GenerationBlock, LevelLoss, RandomMask, align_channels, check_integer, check_number,
                        spatial_attention, squared_error)

__all__ = ['FGDLoss', 'FKDLoss', 'FitNetLoss', 'MGDLoss', 'box_masks', 'channel_attention']


# --- FitNet ----------------------------------------------------------------------------------------------------------

class FitNetLoss(LevelLoss):
    """Plain feature imitation: alpha * sum((F_T - align(F_S))^2) / N.

    Shapes and errors: see ``LevelLoss``.
    Source: Eq. 1 of the AMD paper. The division by N is MGD's [assumed], and so is the default of ``alpha`` [assumed:
    the same sum over the same elements].
    """

    WEIGHT_EXPONENTS = {'alpha': (1, 1)}

    def __init__(self, student_channels, teacher_channels, alpha=2e-5):
        super().__init__(student_channels, teacher_channels)
        check_number('alpha', alpha, at_least=0)
        self.alpha = alpha
        self.align = align_channels(student_channels, teacher_channels)

    def weighted_loss(self, f_s, f_t, boxes=None, image_shapes=None):
        return self.alpha * squared_error(f_t, self.align(f_s))

    def extra_repr(self):
        return f'alpha={self.alpha}'


# --- FKD: attention-guided and non-local distillation ----------------------------------------------------------------

class FKDLoss(LevelLoss):
    """Attention-guided and non-local distillation: a weighted sum of four distances.

    Each distance is an L2 norm, not squared, over the whole batch (so it grows with sqrt(N), unlike the other methods):
    the adapted feature under the mean spatial attention of teacher and student, which carries no gradient; the mean
    over positions; the mean over channels; and the output of a non-local block on each side. Both non-local blocks
    train, the teacher's too.
    ``channel_mask`` weighs the first distance by the channel attention as well: the paper does, the public code
    computes it and leaves it out, and so does the default; ``channel_temperature`` matters only with it.
    ``nonlocal_reduction`` and ``nonlocal_pool`` (cells, per side) are mmrazor's reduction and twice its
    ``maxpool_stride`` because its block pools by 2 before that. It takes (4, 16) on the finest level, (4, 8) on the
    next, (2, 4) on the others; the default is the last, on every level [assumed].
    Shapes and errors: see ``LevelLoss``; ``ValueError`` for a ``channel_mask`` between unequal channels.
    Source: Zhang and Ma 2020, as in mmrazor's FBKD, from the authors' code.
    """

    # L2 norms of C*H*W, C, H*W and C*H*W elements.
    WEIGHT_EXPONENTS = {'feature_weight': (.5, .5), 'channel_weight': (.5, 0), 'spatial_weight': (0, .5),
                        'nonlocal_weight': (.5, .5)}

    def __init__(self, student_channels, teacher_channels, feature_weight=7e-5, channel_weight=4e-3,
                 spatial_weight=4e-3, nonlocal_weight=7e-5, spatial_temperature=0.5, channel_temperature=0.5,
                 channel_mask=False, nonlocal_reduction=2, nonlocal_pool=4):
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

    def weighted_loss(self, f_s, f_t, boxes=None, image_shapes=None):
        feature = l2((f_t - self.adaptation_layers(f_s)) * self.attention(f_s, f_t).sqrt())
        channel = l2(f_t.mean(dim=(2, 3)) - self.channel_wise_adaptation(f_s.mean(dim=(2, 3))))
        spatial = l2(f_t.mean(dim=1, keepdim=True) - self.spatial_wise_adaptation(f_s.mean(dim=1, keepdim=True)))
        nonlocal_ = l2(self.teacher_non_local(f_t) - self.non_local_adaptation(self.student_non_local(f_s)))
        return (self.feature_weight * feature + self.channel_weight * channel + self.spatial_weight * spatial
                + self.nonlocal_weight * nonlocal_)

    @torch.no_grad()
    def attention(self, f_s, f_t):
        """Weight of each element in the first distance, mean of both sides: (N, 1, H, W), or (N, C, H, W) with the
        channel mask; no gradient."""
        weight = (spatial_attention(f_t, self.spatial_temperature)
                  + spatial_attention(f_s, self.spatial_temperature)).unsqueeze(1) / 2
        if self.channel_mask:
            weight = weight * (channel_attention(f_t, self.channel_temperature)
                               + channel_attention(f_s, self.channel_temperature))[:, :, None, None] / 2
        return weight

    def extra_repr(self):
        return (f'feature_weight={self.feature_weight}, channel_weight={self.channel_weight}, '
                f'spatial_weight={self.spatial_weight}, nonlocal_weight={self.nonlocal_weight}')


class NonLocalBlock(nn.Module):
    """Non-local block with dot products: F + BN(W((theta(F) . phi(F)) / P . g(F))), P pooled positions.

    Shapes: (N, C, H, W) -> (N, C, H, W). phi(F) and g(F) are max-pooled by ``pool`` x ``pool`` cells.
    The batch norm starts at zero, hence the block as the identity.
    Errors: ``ValueError`` where ``channels``, ``reduction`` or ``pool`` is not a positive integer.
    Source: Wang et al. 2018, as mmcv's NonLocal2d with mode='dot_product' and sub_sample=True.
    """

    def __init__(self, channels, reduction=2, pool=4):
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

    def forward(self, feature):
        theta = self.theta(feature).flatten(2)                              # (N, hidden, H*W)
        phi = self._pooled(self.phi(feature)).flatten(2)                    # (N, hidden, P)
        g = self._pooled(self.g(feature)).flatten(2)                        # (N, hidden, P)
        affinity = theta.transpose(1, 2) @ phi / phi.shape[2]               # (N, H*W, P)
        mixed = (g @ affinity.transpose(1, 2)).unflatten(2, feature.shape[2:])
        return feature + self._normalised(self.conv_out(mixed))

    def _pooled(self, x):
        # DEVIATION FKD-2: a map smaller than the window is pooled as a whole; the public code fails on it.
        return F.max_pool2d(x, (min(self.pool, x.shape[2]), min(self.pool, x.shape[3])))

    def _normalised(self, x):
        if self.training and x.numel() == x.shape[1]:
            # DEVIATION FKD-3: torch refuses to normalise one value a channel (N = H = W = 1). The value minus its
            # mean is 0; running statistics stay as they are.
            return (x - x) * self.bn.weight[:, None, None] + self.bn.bias[:, None, None]
        return self.bn(x)


def l2(difference):
    """L2 norm over all elements, 0-d; its gradient at zero is zero, where that of sum(d^2)**0.5 is NaN."""
    return torch.linalg.vector_norm(difference)


# --- FGD: focal and global distillation ------------------------------------------------------------------------------

class FGDLoss(LevelLoss):
    """Focal and global distillation: foreground, background, attention and relation terms, each divided by N.

    foreground and background (``alpha_fgd``, ``beta_fgd``): squared error weighted by the teacher's spatial and channel
    attention and by ``box_masks``. attention (``gamma_fgd``): L1 distance of the two sides' attentions. relation
    (``lambda_fgd``): squared error after a global-context block on each side. ``temp`` is the temperature.
    Needs ``boxes`` and ``image_shapes``. The defaults are those of the public code's class; its configs, which the
    experiments use, set others for each detector.
    Shapes and errors: see ``LevelLoss``; ``ValueError`` where boxes or image shapes are missing or malformed, or
    ``teacher_channels`` is below 2 (the context blocks halve them).
    Source: Yang et al. 2022; names, shapes and initial values of the parameters as in the authors' code.
    """

    # alpha, beta: sums over channels, normalised by the area of a box and the count of background positions (exact up
    # to the border that box_masks adds to a box). gamma: the sum of a spatial part (0, 1) and a channel part (1, 0);
    # no single pair is exact, and the spatial part, with 16800 positions to 256 channels on the finest level of a
    # 1333x800 image, dominates. lambda: a plain sum.
    WEIGHT_EXPONENTS = {'alpha_fgd': (1, 0), 'beta_fgd': (1, 0), 'gamma_fgd': (0, 1), 'lambda_fgd': (1, 1)}

    def __init__(self, student_channels, teacher_channels, temp=0.5, alpha_fgd=1e-3, beta_fgd=5e-4, gamma_fgd=1e-3,
                 lambda_fgd=5e-6):
        super().__init__(student_channels, teacher_channels)
        check_integer('teacher_channels', teacher_channels, at_least=2)
        check_number('temp', temp, above=0)
        for name, weight in (('alpha_fgd', alpha_fgd), ('beta_fgd', beta_fgd), ('gamma_fgd', gamma_fgd),
                             ('lambda_fgd', lambda_fgd)):
            check_number(name, weight, at_least=0)
        self.temp = temp
        self.alpha_fgd = alpha_fgd
        self.beta_fgd = beta_fgd
        self.gamma_fgd = gamma_fgd
        self.lambda_fgd = lambda_fgd

        self.align = align_channels(student_channels, teacher_channels)
        self.conv_mask_s, self.channel_add_conv_s = _context_block(teacher_channels)
        self.conv_mask_t, self.channel_add_conv_t = _context_block(teacher_channels)

    def weighted_loss(self, f_s, f_t, boxes, image_shapes):
        foreground, background = box_masks(boxes, image_shapes, f_t)
        f_s = self.align(f_s)
        spatial_s, spatial_t = spatial_attention(f_s, self.temp), spatial_attention(f_t, self.temp)
        channel_s, channel_t = channel_attention(f_s, self.temp), channel_attention(f_t, self.temp)
        n = len(f_t)

        # (N, H, W): the teacher's channel attention is summed away before the masks divide the positions.
        error = ((f_s - f_t).square() * channel_t[:, :, None, None]).sum(dim=1) * spatial_t
        attention = (spatial_s - spatial_t).abs().sum() + (channel_s - channel_t).abs().sum()
        relation = squared_error(_with_context(f_t, self.conv_mask_t, self.channel_add_conv_t),
                                 _with_context(f_s, self.conv_mask_s, self.channel_add_conv_s))
        return (self.alpha_fgd * (error * foreground).sum() / n + self.beta_fgd * (error * background).sum() / n
                + self.gamma_fgd * attention / n + self.lambda_fgd * relation)

    def extra_repr(self):
        return (f'temp={self.temp}, alpha_fgd={self.alpha_fgd}, beta_fgd={self.beta_fgd}, '
                f'gamma_fgd={self.gamma_fgd}, lambda_fgd={self.lambda_fgd}')


def channel_attention(feature, temperature):
    """Attention of a feature over its channels, C softmax(mean over positions of abs(F) / T); its mean is 1.

    Shapes: (N, C, H, W) -> (N, C).
    Source: FGD; FKD's channel mask is the same.
    """
    return feature.shape[1] * torch.softmax(feature.abs().mean(dim=(2, 3)) / temperature, dim=1)


def box_masks(boxes, image_shapes, feature):
    """FGD's weight of each position in the foreground and in the background term.

    A foreground position weighs 1 / area of the smallest box over it, in cells of the level; the others share a
    background weight of 1 / their number. Boxes: a list of N tensors (n, 4), xyxy in pixels of the input image, n = 0
    included; image_shapes: N times (height, width) in pixels before padding; feature: (N, C, H, W) of the level, whose
    dtype and device the masks take. No gradient.
    Shapes: two masks (N, H, W).
    Errors: ``ValueError`` where boxes or image shapes are missing, not N, or malformed.
    Source: FGD's public code: a box covers the cells floor(x1) ... ceil(x2), both included, so it is up to one cell
    wider than it seems, and its area counts cells beyond the border of the map.
    """
    _check_boxes(boxes, image_shapes, len(feature))
    with torch.no_grad():
        foreground = torch.stack([_foreground(*pair, feature) for pair in zip(boxes, image_shapes, strict=True)])
        background = (foreground <= 0).to(feature.dtype)
        # An image without background keeps zeros: nothing is divided by zero.
        background = background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    return foreground, background


def _foreground(boxes_xyxy_px, image_shape, feature):
    """Foreground weights of one image, (H, W): the largest 1 / area over a position, 0 where there is no box."""
    h, w = feature.shape[2:]
    boxes = boxes_xyxy_px.detach().to(feature.device)
    # Divided, then multiplied, in the boxes' own dtype: floor and ceil see the public code's roundings.
    columns = boxes[:, 0::2] / image_shape[1] * w
    rows = boxes[:, 1::2] / image_shape[0] * h
    x1, x2 = columns[:, 0].floor().long(), columns[:, 1].ceil().long() + 1
    y1, y2 = rows[:, 0].floor().long(), rows[:, 1].ceil().long() + 1
    weight = 1 / (y2 - y1).to(feature.dtype) / (x2 - x1).to(feature.dtype)
    inside = _cells(y1, y2, h)[:, :, None] & _cells(x1, x2, w)[:, None, :]                      # (n, H, W)
    # The first layer is a map without boxes: the maximum over n = 0 boxes is 0, and no weight is negative.
    layers = torch.cat([weight.new_zeros(1, h, w), torch.where(inside, weight[:, None, None], 0)])
    return layers.amax(dim=0)


def _cells(start, stop, size):
    """Which of ``size`` cells a Python slice start:stop takes, for n slices at once: (n,), (n,) -> (n, size), bool.

    The public code slices with these numbers, so a negative one counts from the end: a box that leaves the image on
    the left or at the top covers nothing, or, wholly outside, the opposite side. Boxes clipped to their image, as
    detectors are given them, never get there.
    """
    start = torch.where(start < 0, (start + size).clamp(min=0), start)
    stop = torch.where(stop < 0, stop + size, stop)
    cell = torch.arange(size, device=start.device)
    return (cell >= start[:, None]) & (cell < stop[:, None])


def _check_boxes(boxes, image_shapes, n):
    if boxes is None or image_shapes is None:
        raise ValueError(f'FGD needs boxes and image_shapes, got boxes={boxes!r}, image_shapes={image_shapes!r}')
    if len(boxes) != n or len(image_shapes) != n:
        raise ValueError(f'expected boxes and image_shapes of {n} images, got {len(boxes)} and {len(image_shapes)}')
    for i, (b, shape) in enumerate(zip(boxes, image_shapes, strict=True)):
        if b.dim() != 2 or b.shape[1] != 4 or not b.is_floating_point():
            raise ValueError(f'boxes[{i}]: expected a floating-point tensor of shape (n, 4), got {b.dtype} '
                             f'{tuple(b.shape)}')
        if len(shape) != 2 or min(shape) <= 0:
            raise ValueError(f'image_shapes[{i}]={shape!r}: expected a positive (height, width)')


def _context_block(channels):
    """Parameters of one side's global-context block: where to look (kaiming), what to add (zero at first)."""
    where = nn.Conv2d(channels, 1, kernel_size=1)
    what = nn.Sequential(nn.Conv2d(channels, channels // 2, kernel_size=1), nn.LayerNorm([channels // 2, 1, 1]),
                         nn.ReLU(), nn.Conv2d(channels // 2, channels, kernel_size=1))
    nn.init.kaiming_normal_(where.weight, mode='fan_in', nonlinearity='relu')
    nn.init.zeros_(where.bias)
    nn.init.zeros_(what[3].weight)
    nn.init.zeros_(what[3].bias)
    return where, what


def _with_context(feature, where, what):
    """The feature plus what its context, a weighted mean over positions, adds to each channel: (N, C, H, W) twice."""
    attention = torch.softmax(where(feature).flatten(2), dim=2)                     # (N, 1, H*W)
    context = feature.flatten(2) @ attention.transpose(1, 2)                        # (N, C, 1)
    return feature + what(context.unsqueeze(-1))


# --- MGD: masked generative distillation -----------------------------------------------------------------------------

class MGDLoss(LevelLoss):
    """Masked generative distillation: alpha_mgd * sum((F_T - generation(align(F_S) * M))^2) / N, M a random mask.

    ``lambda_mgd`` is the probability that a position is masked (``mask_ratio`` in ``AMDLoss``), ``seed`` starts the
    masks and ``reseed`` restarts them. The defaults are the public code's for one-stage models (two-stage: 5e-7, 0.45).
    Shapes and errors: see ``LevelLoss``.
    Source: Yang et al. 2022; parameters named as in the authors' code.
    """

    WEIGHT_EXPONENTS = {'alpha_mgd': (1, 1)}

    def __init__(self, student_channels, teacher_channels, alpha_mgd=2e-5, lambda_mgd=0.65, seed=0):
        super().__init__(student_channels, teacher_channels)
        check_number('alpha_mgd', alpha_mgd, at_least=0)
        check_number('lambda_mgd', lambda_mgd, at_least=0, at_most=1)
        self.alpha_mgd = alpha_mgd
        self.align = align_channels(student_channels, teacher_channels)
        self.random_mask = RandomMask(lambda_mgd, seed)
        self.generation = GenerationBlock(teacher_channels, 'conv2')

    def reseed(self, seed):
        """Restart the random masks with ``seed``."""
        self.random_mask.reseed(seed)

    def weighted_loss(self, f_s, f_t, boxes=None, image_shapes=None):
        f_gen = self.generation(self.align(f_s) * self.random_mask(f_t))        # mask: 1 = kept
        return self.alpha_mgd * squared_error(f_t, f_gen)

    def extra_repr(self):
        return f'alpha_mgd={self.alpha_mgd}'
