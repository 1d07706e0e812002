"""Feature maps of trained runs for images of a data set, and what a mask on them covers.

Positions of a feature map are compared with boxes by their centres: position (i, j) of a map of H x W over a padded
image of H_pad x W_pad pixels stands at y = (i + 0.5) H_pad / H, x = (j + 0.5) W_pad / W. Positions in the padding are
not counted; the attention's softmax runs over them too, as in training.
"""
from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.registry import DefaultScope
from torch import BoolTensor, Tensor, nn

from amdlib import amd, results, weights
from amdlib.data import DataError, Dataset
from amdlib.distill import tap
from amdlib.experiments import Profile, Run, config

MODULE = 'neck.fpn_convs.{i}.conv'  # whose output is a level's feature, as in Distiller
CHUNK = 16                          # images that pass through a detector at once


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as a detector sees it, with its ground truth; crowd boxes are left out."""
    image_id: int
    file_name: str
    rgb: np.ndarray             # (H, W, 3) uint8: resized, neither normalised nor padded
    pixels: Tensor              # (3, H_pad, W_pad) float32: normalised and padded
    boxes_xyxy_px: Tensor       # (n, 4) in pixels of `rgb`
    labels: tuple[str, ...]     # class of each box


# ---- images and detectors ---------------------------------------------------------------------------------------

def pictures(profile: Profile, dataset: Dataset, image_ids: Iterable[int] | None = None, count: int | None = None,
             split: str = 'test', min_boxes: int = 1) -> list[Picture]:
    """Images through the profile's own test pipeline and the detectors' preprocessor, as in evaluation.

    The images of one call are one batch: all are padded to the size that holds the largest, in multiples of 32 px.

    Args:
        image_ids: which images, in this order; None takes, in the order of the data set, those that have boxes.
        count: at most so many of them; None takes all.
        min_boxes: how many boxes (crowd apart) an image must have to be taken where `image_ids` is None.
    Errors: DataError for an unknown split or image id, or where no image has so many boxes.
    """
    if split not in ('train', 'test'):
        raise DataError(f'split {split!r}: expected train or test')
    # The pipeline and the preprocessor are the same for every group (tests/test_features.py), so any row will do.
    cfg = config(Run.of('retinanet-baseline', profile), dataset)
    ann, images = (dataset.train_ann, dataset.train_images) if split == 'train' else (
        dataset.test_ann, dataset.test_images)
    source = cfg.test_dataloader.dataset
    source.update(ann_file=str(ann), data_prefix=dict(img=str(images)))
    with DefaultScope.overwrite_default_scope('mmdet'), contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco = DATASETS.build(source)
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    samples = [coco[place] for place in _places(coco, ann, image_ids, count, min_boxes)]
    batch = preprocessor({'inputs': [sample['inputs'] for sample in samples],
                          'data_samples': [sample['data_samples'] for sample in samples]})
    return [_picture(sample, pixels, dataset.classes)
            for sample, pixels in zip(samples, batch['inputs'], strict=True)]


def _places(coco, ann: Path, image_ids: Iterable[int] | None, count: int | None, min_boxes: int) -> list[int]:
    """Where in the data set the wanted images are."""
    infos = [coco.get_data_info(place) for place in range(len(coco))]
    if image_ids is None:
        places = [place for place, info in enumerate(infos)
                  if sum(not instance['ignore_flag'] for instance in info['instances']) >= min_boxes]
        if not places:
            raise DataError(f'{ann}: no image has {min_boxes} boxes or more')
    else:
        place_of = {info['img_id']: place for place, info in enumerate(infos)}
        image_ids = list(image_ids)
        if unknown := [image_id for image_id in image_ids if image_id not in place_of]:
            raise DataError(f'{ann}: no image with id {", ".join(map(str, unknown))}; '
                            f'its ids go from {min(place_of)} to {max(place_of)}')
        places = [place_of[image_id] for image_id in image_ids]
    return places[:count]


def _picture(sample: dict, pixels: Tensor, classes: tuple[str, ...]) -> Picture:
    found = sample['data_samples']
    truth = found.gt_instances
    width_scale, height_scale = found.scale_factor
    boxes = truth.bboxes.tensor if hasattr(truth.bboxes, 'tensor') else truth.bboxes
    # mmdet loads the boxes after resizing the image, so they are in pixels of the file
    boxes = boxes.reshape(-1, 4) * boxes.new_tensor([width_scale, height_scale] * 2)
    return Picture(found.img_id, Path(found.img_path).name, sample['inputs'].numpy()[::-1].transpose(1, 2, 0).copy(),
                   pixels, boxes, tuple(classes[label] for label in truth.labels.tolist()))


def load_detector(run: Run, dataset: Dataset, results_dir: Path = results.ROOT / 'results',
                  stale_ok: bool = False) -> nn.Module:
    """The plain detector that a run has trained: on the CPU, in eval mode, without gradient.

    Errors: ResultError naming the run, its state and how to make it, where it is not done; a stale one is loaded with
    `stale_ok` only. WeightsError where its file does not fit the detector.
    """
    found = results.state(run, dataset, results_dir)
    path = results.run_folder(run, dataset, results_dir) / 'weights.pth'
    if found.name != 'done' and not (found.name == 'stale' and stale_ok and path.is_file()):
        raise results.ResultError(f'{run.id} is {found.name} ({found.why}): make it with {_command(run)}')
    model = config(run, dataset).model
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model.get('student', model))
    weights.load_strictly(detector, weights.read_weights(path), str(path))
    return detector.eval().requires_grad_(False)


def _command(run: Run) -> str:
    words = ['python -m amdlib run', run.row.id, '--profile', run.profile.name, '--seed', str(run.seed),
             *(f'--set {key}={value}' for key, value in run.settings),
             *(['--data <folder>'] if run.profile.name != 'mini' else [])]
    return ' '.join(words)


def level_features(model: nn.Module, pictures: Sequence[Picture], levels: Iterable[int]) -> list[Tensor]:
    """A detector's features of the given levels, (N, C, H, W) each: what distillation compares.

    Errors: ValueError where there are no pictures, their padded sizes differ, or the detector has no such level.
    """
    return [torch.cat(chunks) for chunks in zip(*_chunks(model, pictures, levels), strict=True)]


def magnitudes(model: nn.Module, pictures: Sequence[Picture], levels: Iterable[int]) -> list[Tensor]:
    """G of the given levels, (N, H, W) each; needs far less memory than `level_features`. Source: Eq. 2."""
    chunks = ([feature.abs().mean(dim=1) for feature in features] for features in _chunks(model, pictures, levels))
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]


def _chunks(model: nn.Module, pictures: Sequence[Picture], levels: Iterable[int]) -> Iterator[list[Tensor]]:
    _padded_size_px(pictures)
    names = [MODULE.format(i=level) for level in levels]
    if unknown := [name for name in names if name not in dict(model.named_modules())]:
        raise ValueError(f'{type(model).__name__} has no module {", ".join(unknown)}')
    device = next(model.parameters()).device
    for start in range(0, len(pictures), CHUNK):
        pixels = torch.stack([picture.pixels for picture in pictures[start:start + CHUNK]])
        with tap(model, names) as features, torch.no_grad():
            model.extract_feat(pixels.to(device))
        yield [feature.cpu() for feature in features]


def _padded_size_px(pictures: Sequence[Picture]) -> tuple[int, int]:
    """The (height, width) that the pictures share."""
    sizes = {tuple(picture.pixels.shape[1:]) for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f'expected pictures of one padded size, got {sorted(sizes) or "no pictures"}')
    return sizes.pop()


# ---- which positions lie where ----------------------------------------------------------------------------------

def inside_boxes(picture: Picture, height: int, width: int) -> BoolTensor:
    """Positions of a `height` x `width` map whose centre lies in any ground-truth box, (H, W).

    A box holds its left and upper edge, not its right and lower one: so it holds as many centres as its size says.
    """
    x, y = _centres_px(picture, height, width)
    left, top, right, bottom = picture.boxes_xyxy_px.T[:, :, None]
    columns, rows = (left <= x) & (x < right), (top <= y) & (y < bottom)     # (n, W), (n, H)
    return (rows[:, :, None] & columns[:, None, :]).any(dim=0)


def inside_image(picture: Picture, height: int, width: int) -> BoolTensor:
    """Positions of a `height` x `width` map whose centre lies in the image, not in its padding, (H, W)."""
    x, y = _centres_px(picture, height, width)
    image_height, image_width = picture.rgb.shape[:2]
    return (y < image_height)[:, None] & (x < image_width)[None, :]


def _centres_px(picture: Picture, height: int, width: int) -> tuple[Tensor, Tensor]:
    padded_height, padded_width = picture.pixels.shape[1:]
    return ((torch.arange(width) + 0.5) * (padded_width / width),
            (torch.arange(height) + 0.5) * (padded_height / height))


def _inside(pictures: Sequence[Picture], height: int, width: int) -> tuple[BoolTensor, BoolTensor]:
    """Which positions of each picture lie in the image, and which of those in a box: (N, H, W) twice."""
    image = torch.stack([inside_image(picture, height, width) for picture in pictures])
    return image, image & torch.stack([inside_boxes(picture, height, width) for picture in pictures])


# ---- what lies there --------------------------------------------------------------------------------------------

def mask_coverage(f_t: Sequence[Tensor], pictures: Sequence[Picture], phis: Iterable[float],
                  temperature: float = 0.5, levels: Sequence[int] | None = None) -> pd.DataFrame:
    """How much the adaptive mask covers, and how much of that is ground truth: a line a level and threshold.

    Args:
        f_t: the teacher's feature of each level, (N, C, H, W) for N pictures.
        levels: their numbers; None counts from 0.
    Returns: level ('all' pools them), stride_px, phi, positions (in the images), masked (of these), masked_share;
        inside_share: of the masked positions, which share lies in boxes (NaN where none is masked);
        random_share, random_sd: expectation and standard deviation of that share if as many positions were drawn in
        each image and level without regard to what they show (hypergeometric); lift: inside_share / random_share.
    Errors: ValueError where pictures and features do not belong together.
    Source: Eq. 2 to 4, and what Section IV-D says of phi: "A larger value indicates that only the points with higher
    attention scores of the teacher model are masked, and most of the pixel points are in the object-specific
    ground-truth region. In contrast, it is likely that masked points appear in the background region when decreasing".
    """
    levels, phis = list(range(len(f_t)) if levels is None else levels), list(dict.fromkeys(map(float, phis)))
    if len(levels) != len(f_t):
        raise ValueError(f'expected a level for each of {len(f_t)} features, got {levels}')
    _, padded_width = _padded_size_px(pictures)
    lines = []
    for level, feature in zip(levels, f_t, strict=True):
        _check_one_map_a_picture(feature, pictures)
        image, boxes = _inside(pictures, *feature.shape[2:])
        attention = amd.spatial_attention(feature, temperature)
        for phi in phis:
            masked = (amd.keep_mask(attention, phi)[:, 0] == 0) & image
            drawn, total, hits = (_count(where) for where in (masked, image, boxes))
            expected, variance = _hypergeometric(total, hits, drawn)
            lines.append({'level': level, 'stride_px': padded_width / feature.shape[3], 'phi': phi,
                          'positions': total.sum(), 'masked': drawn.sum(), 'inside': _count(masked & boxes).sum(),
                          'expected': expected.sum(), 'variance': variance.sum()})
    counted = pd.DataFrame(lines)
    pooled = counted.drop(columns=['level', 'stride_px']).groupby('phi', sort=False).sum().reset_index()
    return _shares(pd.concat([counted, pooled.assign(level='all')], ignore_index=True))


def _shares(counted: pd.DataFrame) -> pd.DataFrame:
    masked = counted.masked.where(counted.masked > 0)       # NaN, not a division by 0
    inside, expected = counted.inside / masked, counted.expected / masked
    table = counted[['level', 'stride_px', 'phi', 'positions', 'masked']]
    return table.assign(masked_share=counted.masked / counted.positions, inside_share=inside, random_share=expected,
                        random_sd=np.sqrt(counted.variance) / masked, lift=inside / expected.where(expected > 0))


def _hypergeometric(total: np.ndarray, hits: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the number of hits among `drawn` of `total` positions, drawn without putting back."""
    share = hits / np.maximum(total, 1)
    return drawn * share, drawn * share * (1 - share) * (total - drawn) / np.maximum(total - 1, 1)


def _count(where: Tensor) -> np.ndarray:
    return where.sum(dim=(1, 2)).numpy()


def _check_one_map_a_picture(maps: Tensor, pictures: Sequence[Picture]) -> None:
    if len(maps) != len(pictures):
        raise ValueError(f'expected a map for each of {len(pictures)} pictures, got shape {tuple(maps.shape)}')


def region_scores(attention: Tensor, pictures: Sequence[Picture]) -> pd.DataFrame:
    """The attention that each ground-truth box gets, a line a box: the "region-specific attention scores" of Fig. 1.

    Args:
        attention: (N, H, W), mean 1 (`amd.spatial_attention`).
    Returns: image_id, box (from 0), class, its corners in pixels, positions (whose centre it holds), attention (their
        mean; NaN where it holds none), and of the whole image: inside_share, the share of the image's attention that
        lies in boxes, and area_share, the share of its positions that does: what even attention would give.
    """
    _check_one_map_a_picture(attention, pictures)
    image, boxes = _inside(pictures, *attention.shape[1:])
    lines = []
    for picture, score, in_image, in_boxes in zip(pictures, attention, image, boxes, strict=True):
        whole = {'inside_share': float(score[in_boxes].sum() / score[in_image].sum()),
                 'area_share': float(in_boxes.sum() / in_image.sum())}
        for i, (box, label) in enumerate(zip(picture.boxes_xyxy_px, picture.labels, strict=True)):
            held = score[inside_boxes(replace(picture, boxes_xyxy_px=box[None]), *score.shape) & in_image]
            lines.append({'image_id': picture.image_id, 'box': i, 'class': label,
                          **dict(zip(('x1_px', 'y1_px', 'x2_px', 'y2_px'), box.tolist(), strict=True)),
                          'positions': len(held), 'attention': float(held.mean()), **whole})
    return pd.DataFrame(lines)


def contrast(g: Tensor, pictures: Sequence[Picture], resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """How far objects stand out of a magnitude (N, H, W): its mean in ground-truth boxes / its mean outside of them.

    Returns: inside, outside (means over the positions of all images), contrast, and low, high: its 95 % interval over
        images drawn with putting back (percentiles of the bootstrap; it does not know the spread between seeds).
    """
    _check_one_map_a_picture(g, pictures)
    image, boxes = _inside(pictures, *g.shape[1:])
    sums = np.stack([((g * where).sum(dim=(1, 2))).numpy() for where in (boxes, image & ~boxes)]).astype(float)
    counts = np.stack([_count(where) for where in (boxes, image & ~boxes)])
    drawn = np.random.default_rng(seed).integers(len(pictures), size=(resamples, len(pictures)))
    with np.errstate(invalid='ignore', divide='ignore'):    # no position inside, or none outside: NaN
        inside, outside = sums.sum(axis=1) / counts.sum(axis=1)
        again = sums[:, drawn].sum(axis=2) / counts[:, drawn].sum(axis=2)
        low, high = np.percentile(again[0] / again[1], [2.5, 97.5])
        numbers = {'inside': inside, 'outside': outside, 'contrast': inside / outside, 'low': low, 'high': high}
    return {name: float(value) for name, value in numbers.items()}


def to_pictures(found: list[dict], pictures: Sequence[Picture], dataset: Dataset) -> list[list[dict]]:
    """Stored detections (COCO results format, pixels of the file) by picture: `bbox` in pixels of it, and `label`."""
    truth = json.loads(Path(dataset.test_ann).read_text())
    size_px = {image['id']: (image['width'], image['height']) for image in truth['images']}
    names = {category['id']: category['name'] for category in truth['categories']}
    by_image = {picture.image_id: [] for picture in pictures}
    for detection in found:
        if detection['image_id'] in by_image:
            by_image[detection['image_id']].append(detection)
    moved = []
    for picture in pictures:
        width, height = size_px[picture.image_id]
        scale_x, scale_y = picture.rgb.shape[1] / width, picture.rgb.shape[0] / height
        moved.append([{**detection, 'label': names[detection['category_id']],
                       'bbox': [value * scale for value, scale in zip(detection['bbox'], (scale_x, scale_y) * 2)]}
                      for detection in by_image[picture.image_id]])
    return moved
