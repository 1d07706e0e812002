"""How a scene of shapes is drawn.

Integer arithmetic throughout, so that every machine draws the same pixels: float matrix products, array sines and image
libraries differ in the last bit from one processor or version to the next.
"""
from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np

SPLITS = ('train', 'test', 'val', 'pretrain')     # each scene's random stream is seeded by its split's place here


@dataclass(frozen=True)
class ShapesSpec:
    """What the mini set looks like; the knobs of its difficulty are here and nowhere else."""
    image_px: int = 128
    train_images: int = 1000
    test_images: int = 1000
    val_images: int = 300
    classes: tuple[str, ...] = ('cross', 'disc', 'ring', 'square', 'triangle')
    seed: int = 20230131                         # the paper's date
    objects: tuple[int, int] = (3, 8)            # an image, both ends included
    small_px: tuple[int, int] = (12, 31)         # side of the box (root of its area)
    medium_px: tuple[int, int] = (32, 64)
    large_px: tuple[int, int] = (101, 112)       # at most one an image, under all others
    small_percent: int = 40                      # of the objects that are not large
    large_percent: int = 20                      # of the images
    min_visible_percent: int = 55                # of an object's pixels
    min_stretch_percent: int = 75                # shorter to longer axis; large objects are not stretched
    min_contrast: int = 45                       # grey levels between an object and what it covers, in the best channel
    texture: int = 18                            # amplitude of noise, gradients and stripes, grey levels
    noise: int = 8                               # amplitude of pixel noise, grey levels
    strokes: tuple[int, int] = (1, 4)            # distractor lines behind the objects

    def __post_init__(self):
        unknown = set(self.classes) - set(_OUTLINES)
        if unknown or len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError(f'classes {self.classes}: expected different ones of {", ".join(_OUTLINES)}')


def scene(spec: ShapesSpec, split: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one scene: RGB image (H, W, 3) uint8, boxes (n, 4) int64 as xywh in px, labels (n,) int64.

    A label is a place in `spec.classes`; a box is the tight box of the pixels that are visible. Each scene has a random
    stream of its own, seeded by split and index, so that it does not depend on how many others are drawn and no scene
    of one split is in the other.
    """
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), index])
    size_px = spec.image_px
    canvas = _texture(rng, size_px, size_px, rng.integers(40, 216, 3), spec.texture)
    for _ in range(rng.integers(*spec.strokes, endpoint=True)):
        _draw_stroke(rng, canvas)
    owner = np.full((size_px, size_px), -1, np.int64)   # object that shows at each pixel
    areas_px, labels = [], []
    count = rng.integers(*spec.objects, endpoint=True)
    has_large = rng.integers(100) < spec.large_percent
    for attempt in range(6 * count):
        if len(labels) == count:
            break
        large = has_large and attempt == 0
        side_range_px = (spec.large_px if large else
                         spec.small_px if rng.integers(100) < spec.small_percent else spec.medium_px)
        label, angle_deg = int(rng.integers(len(spec.classes))), int(rng.integers(360))
        side_px = int(rng.integers(*side_range_px, endpoint=True))
        stretch_percent = 100 if large else int(rng.integers(spec.min_stretch_percent, 101))
        mask = _shape_mask(spec.classes[label], side_px, angle_deg, stretch_percent)
        height, width = mask.shape
        if max(height, width) > size_px:
            continue
        y, x = rng.integers(size_px - height + 1), rng.integers(size_px - width + 1)
        window = np.s_[y:y + height, x:x + width]
        visible_px = np.bincount(owner[owner >= 0], minlength=len(labels))
        hidden_px = np.bincount(owner[window][mask & (owner[window] >= 0)], minlength=len(labels))
        # A scene shows no object that is not annotated: one that would hide another too far is not drawn at all.
        if np.any((visible_px - hidden_px) * 100 < np.multiply(areas_px, spec.min_visible_percent)):
            continue
        under = canvas[window][mask]
        mean = under.sum(0) // len(under)
        colour = rng.integers(20, 236, 3)
        while np.abs(colour - mean).max() < spec.min_contrast:
            colour = rng.integers(20, 236, 3)
        canvas[window][mask] = _texture(rng, height, width, colour, spec.texture)[mask]
        owner[window][mask] = len(labels)
        areas_px.append(int(mask.sum()))
        labels.append(label)
    boxes_xywh_px = np.array([_tight_box(owner == i) for i in range(len(labels))])
    canvas = _soften(canvas) + rng.integers(-spec.noise, spec.noise, canvas.shape, endpoint=True)
    return np.clip(canvas, 0, 255).astype(np.uint8), boxes_xywh_px, np.array(labels)


_UNIT = 1024   # fixed-point one
_CIRCLE = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in range(0, 360, 5)]
_OUTLINES = {   # points (u, v) that the shape's box touches, at radius 1
    'disc': _CIRCLE,
    'ring': _CIRCLE,
    'square': [(-1, -1), (-1, 1), (1, -1), (1, 1)],
    'triangle': [(0, 1), (-math.sqrt(0.75), -0.5), (math.sqrt(0.75), -0.5)],
    'cross': [(u, v) for a in (-1, 1) for b in (-1 / 3, 1 / 3) for u, v in ((a, b), (b, a))],
}


def _shape_mask(shape: str, side_px: int, angle_deg: int, stretch_percent: int) -> np.ndarray:
    """Tight bool mask (h, w) of a shape, turned and stretched, whose box has about side_px^2 pixels."""
    cos, sin = (round(_UNIT * f(math.radians(angle_deg))) for f in (math.cos, math.sin))
    stretched = [(u, v * stretch_percent / 100) for u, v in _OUTLINES[shape]]
    points = [(u * cos - v * sin, u * sin + v * cos) for u, v in stretched]
    extents = [(max(values) - min(values)) / _UNIT for values in zip(*points, strict=True)]
    radius = round(2 * _UNIT * side_px / math.sqrt(extents[0] * extents[1]))   # in 1 / (2 * _UNIT) px, as u and v are
    reach_px = math.ceil(side_px * max(extents) / min(extents)) + 2
    d = 2 * np.arange(-reach_px, reach_px) + 1                                 # pixel centres, in half pixels
    u = cos * d + sin * d[:, None]
    v = (cos * d[:, None] - sin * d) * 100 // stretch_percent
    if shape == 'disc':
        mask = u * u + v * v <= radius ** 2
    elif shape == 'ring':
        mask = (u * u + v * v <= radius ** 2) & (4 * (u * u + v * v) >= radius ** 2)
    elif shape == 'square':
        mask = np.maximum(abs(u), abs(v)) <= radius
    elif shape == 'triangle':   # three half-planes at half the radius
        mask = (2 * v >= -radius) & (abs(u) * 1774 // 1024 + v <= radius)
    else:
        mask = (np.maximum(abs(u), abs(v)) <= radius) & (3 * np.minimum(abs(u), abs(v)) <= radius)
    x, y, width, height = _tight_box(mask)
    return mask[y:y + height, x:x + width]


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Box xywh in px of the true pixels of a mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1


def _texture(rng: np.random.Generator, height: int, width: int, colour: np.ndarray, amplitude: int) -> np.ndarray:
    """Colour with smooth noise, a gradient and, half of the time, stripes: (height, width, 3) int64, not clipped.

    Background and objects of all classes are filled by it alike, so that texture and colour do not tell the class.
    """
    cell_px = int(rng.integers(10, 40))
    grid = rng.integers(-amplitude, amplitude, (height // cell_px + 2, width // cell_px + 2, 3), endpoint=True)
    across = _ramps(width, grid.shape[1]) @ grid                              # (rows, width, 3)
    fill = np.tensordot(_ramps(height, grid.shape[0]), across, 1) // _UNIT ** 2
    x, y = np.arange(width), np.arange(height)[:, None]
    slope_x, slope_y = rng.integers(-amplitude, amplitude, 2, endpoint=True)
    shade = slope_x * (2 * x - width) // (2 * width) + slope_y * (2 * y - height) // (2 * height)
    angle = math.radians(int(rng.integers(180)))
    period_px, phase_px, strength = rng.integers(4, 14), rng.integers(14), rng.integers(-amplitude, amplitude + 1)
    if rng.integers(2):
        along = (round(_UNIT * math.cos(angle)) * x + round(_UNIT * math.sin(angle)) * y) // _UNIT
        shade = shade + strength * ((along + phase_px) % period_px * 2 < period_px)
    return colour + fill + shade[..., None]


def _ramps(length: int, knots: int) -> np.ndarray:
    """Weights (length, knots) of linear interpolation between knots; each row adds up to _UNIT."""
    place = np.arange(length) * ((knots - 1) * _UNIT) // length
    return np.maximum(_UNIT - abs(place[:, None] - _UNIT * np.arange(knots)), 0)


def _draw_stroke(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A straight line of 1 to 4 px, of one colour, somewhere in the picture."""
    size_px = len(canvas)
    (x0, y0), angle = rng.integers(size_px, size=2), math.radians(int(rng.integers(360)))
    length_px, width_px = rng.integers(size_px // 8, size_px // 2), rng.integers(1, 5)
    cos, sin = round(_UNIT * math.cos(angle)), round(_UNIT * math.sin(angle))
    x, y = np.arange(size_px) - x0, np.arange(size_px)[:, None] - y0
    along, aside = cos * x + sin * y, abs(cos * y - sin * x)
    canvas[(along >= 0) & (along <= length_px * _UNIT) & (2 * aside <= width_px * _UNIT)] = rng.integers(20, 236, 3)


def _soften(canvas: np.ndarray) -> np.ndarray:
    """Binomial 3x3 blur (H, W, 3) that takes the stairs off the edges."""
    for axis in (0, 1):
        padded = np.pad(canvas, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode='edge')
        low, high = (np.take(padded, range(s, s + canvas.shape[axis]), axis) for s in (0, 2))
        canvas = (low + 2 * canvas + high + 2) // 4
    return canvas


def png(image: np.ndarray) -> bytes:
    """PNG of an RGB image (H, W, 3) uint8, stored: compressors differ between machines, and noise hardly shrinks."""
    height, width, _ = image.shape
    rows = np.pad(image.reshape(height, -1), ((0, 0), (1, 0))).tobytes()   # each row begins with its filter, 0 = none
    blocks = [rows[start:start + 65535] for start in range(0, len(rows), 65535)]
    lasts = [False] * (len(blocks) - 1) + [True]
    stored = b''.join(struct.pack('<BHH', last, len(block), len(block) ^ 0xffff) + block
                      for last, block in zip(lasts, blocks, strict=True))
    chunks = [b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0),
              b'IDAT\x78\x01' + stored + struct.pack('>I', zlib.adler32(rows)), b'IEND']
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk)) for chunk in chunks)
