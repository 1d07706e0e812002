"""Pictures as a detector sees them, the detectors that runs have trained, and their feature maps."""
from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from amdlib.datasets import Dataset
from amdlib.datasets.checks import image_size_px
from amdlib.engine.taps import tap
from amdlib.errors import DataError, RunError
from amdlib.files import ROOT, read_json, write_json
from amdlib.paper.pairs import GROUPS
from amdlib.runs.config import Taught, config
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.weights.reading import load_strictly, read_weights
from amdlib.weights.sizes import check_size

MODULE = 'neck.fpn_convs.{i}.conv'  # whose output is a level's feature, as in Distiller
CHUNK = 16                          # images that pass through a detector at once
FIRST_GROUP = next(iter(GROUPS))
COVERED = 0.2, 0.6      # share of an image in boxes: in a fuller one any mask lies on objects, in an emptier one few do


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as a detector sees it, with its ground truth; crowd boxes are left out."""
    image_id: int
    file_name: str
    rgb: np.ndarray             # (H, W, 3) uint8: resized, neither normalised nor padded
    pixels: Tensor              # (3, H_pad, W_pad) float32: normalised and padded
    boxes_xyxy_px: Tensor       # (n, 4) in pixels of `rgb`
    labels: tuple[str, ...]     # class of each box
    normalised: tuple | None = None     # how `pixels` came about, see `_normalisation`; None: not known


# ---- images and detectors ---------------------------------------------------------------------------------------

def pictures(store: Store, image_ids: Iterable[int] | None = None, count: int | None = None, split: str = 'test',
             group: str = FIRST_GROUP) -> list[Picture]:
    """Images through the profile's own test pipeline and the detectors' preprocessor, as in evaluation.

    The images of one call are one batch: all are padded to the size that holds the largest, in multiples of 32 px.

    Args:
        image_ids: which images, in this order; None takes, in the order of the data set, those that have boxes;
            what is shown as an example is chosen by `representative`.
        count: at most so many of them; None takes all.
        group: for whose detectors; the paper's three groups see images alike.
    Errors: DataError for an unknown split or image id, or where no image has a box.
    """
    if split not in ('train', 'test'):
        raise DataError(f'split {split!r}: expected train or test')
    dataset = store.dataset
    cfg = config(Run.of(f'{group}-baseline', store.profile), dataset)
    ann, images = (dataset.train_ann, dataset.train_images) if split == 'train' else (
        dataset.test_ann, dataset.test_images)
    source = cfg.test_dataloader.dataset
    source.update(ann_file=str(ann), data_prefix=dict(img=str(images)))
    with DefaultScope.overwrite_default_scope('mmdet'), contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco = DATASETS.build(source)
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    samples = [coco[index] for index in _indices(coco, ann, image_ids, count)]
    batch = preprocessor({'inputs': [sample['inputs'] for sample in samples],
                          'data_samples': [sample['data_samples'] for sample in samples]})
    return [_picture(sample, pixels, dataset.classes, _normalisation(preprocessor))
            for sample, pixels in zip(samples, batch['inputs'], strict=True)]


def own_pictures(store: Store, files: Iterable[tuple[str, bytes]], group: str = FIRST_GROUP) -> list[Picture]:
    """Pictures of the reader's own through the same pipeline, each padded by itself; they have no boxes.

    Args:
        files: name and content of each.
    Errors: DataError for a file that is no picture.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        image, ann = Path(folder) / 'image', Path(folder) / 'image.json'
        own = replace(store, dataset=replace(store.dataset, test_ann=ann, test_images=Path(folder)))
        for name, content in files:
            width, height = image_size_px(Path(name), content)
            image.write_bytes(content)
            write_json(ann, {'images': [{'id': 0, 'file_name': image.name, 'width': width, 'height': height}],
                             'annotations': [], 'categories': [{'id': number, 'name': label} for number, label in
                                                               enumerate(store.dataset.classes)]})
            (picture,) = pictures(own, [0], group=group)
            found.append(replace(picture, file_name=name))
    return found


def representative(dataset: Dataset, count: int, split: str = 'test') -> list[int]:
    """Ids of the images that are shown where nobody asks for others: by rule, so that none is picked for what it shows.

    The first of the split, in the data set's order, with two boxes or more that cover COVERED of the image; where there
    are too few, those follow that come closest, and last those of a single box. Crowd boxes do not count.
    Errors: DataError where no image has a box.
    """
    ann = dataset.train_ann if split == 'train' else dataset.test_ann
    coco = json.loads(Path(ann).read_text())
    boxes: dict[int, list] = {}
    for truth in coco['annotations']:
        if not truth.get('iscrowd'):
            boxes.setdefault(truth['image_id'], []).append(truth['bbox'])
    if not boxes:
        raise DataError(f'{ann}: no image has a box')
    low, high = COVERED

    def misses(image: dict) -> tuple[bool, float]:
        share = covered_share(boxes[image['id']], image['width'], image['height'])
        return len(boxes[image['id']]) < 2, max(low - share, share - high, 0.0)
    found = sorted((image for image in coco['images'] if image['id'] in boxes), key=misses)
    return [image['id'] for image in found[:count]]


def covered_share(boxes_xywh_px: Iterable[Sequence[float]], width: int, height: int) -> float:
    """Which share of an image's pixels lies in any of its boxes, 0 to 1; boxes are rounded to whole pixels."""
    covered = np.zeros((height, width), bool)
    for x, y, w, h in boxes_xywh_px:
        covered[max(0, round(y)):max(0, round(y + h)), max(0, round(x)):max(0, round(x + w))] = True
    return float(covered.mean())


def _indices(coco: Any, ann: Path, image_ids: Iterable[int] | None, count: int | None) -> list[int]:
    """Where in mmdet's data set the wanted images are."""
    infos = [coco.get_data_info(index) for index in range(len(coco))]
    if image_ids is None:
        found = [index for index, info in enumerate(infos)
                 if not all(instance['ignore_flag'] for instance in info['instances'])]
        if not found:
            raise DataError(f'{ann}: no image has a box')
    else:
        index_of = {info['img_id']: index for index, info in enumerate(infos)}
        image_ids = list(image_ids)
        if unknown := [image_id for image_id in image_ids if image_id not in index_of]:
            raise DataError(f'{ann}: no image with id {", ".join(map(str, unknown))}; '
                            f'its ids go from {min(index_of)} to {max(index_of)}')
        found = [index_of[image_id] for image_id in image_ids]
    return found[:count]


def _picture(sample: dict[str, Any], pixels: Tensor, classes: tuple[str, ...], normalised: tuple) -> Picture:
    found = sample['data_samples']
    truth = found.gt_instances
    width_scale, height_scale = found.scale_factor
    boxes = truth.bboxes.tensor if hasattr(truth.bboxes, 'tensor') else truth.bboxes
    # mmdet loads the boxes after resizing the image, so they are in pixels of the file
    boxes = boxes.reshape(-1, 4) * boxes.new_tensor([width_scale, height_scale] * 2)
    return Picture(found.img_id, Path(found.img_path).name, sample['inputs'].numpy()[::-1].transpose(1, 2, 0).copy(),
                   pixels, boxes, tuple(classes[label] for label in truth.labels.tolist()), normalised)


def _normalisation(preprocessor: nn.Module) -> tuple:
    """What a preprocessor does to pixels: mean, std, whether channels are swapped."""
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    return (*(None if value is None else tuple(value.flatten().tolist()) for value in (mean, std)),
            getattr(preprocessor, '_channel_conversion', None))


def load_detector(run: Run, store: Store, stale_ok: bool = False) -> nn.Module:
    """The plain detector that a run has trained: on the CPU, in eval mode, without gradient.

    Errors: as of `weights_file`. WeightsError where its file does not fit the detector.
    """
    path = weights_file(run, store, stale_ok)
    model = config(run, store.dataset).model
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model.get('student', model))
    check_size(path)
    load_strictly(detector, read_weights(path), str(path))
    return detector.eval().requires_grad_(False)


def weights_file(run: Run, store: Store, stale_ok: bool = False) -> Path:
    """The file with a run's detector; of a teacher that was not evaluated here the one that the kit ships.

    Errors: RunError naming the run, its state and how to make it, where it is not done; a stale one counts with
    `stale_ok` only.
    """
    found, path = store.state(run), store.weights(run)
    if found.name == 'done' or found.name == 'stale' and stale_ok and path.is_file():
        return path
    if shipped := _shipped(run):
        return shipped
    raise RunError(f'{run.id} is {found}: make it with {store.command(run)}')


def _shipped(run: Run) -> Path | None:
    """The file that the kit ships of a teacher, beside it (`.json`) what it is."""
    path = run.published_files().get('checkpoint', '://') if run.row.is_teacher else '://'
    return None if '://' in path else ROOT / path


# ---- features ---------------------------------------------------------------------------------------------------

def level_features(model: nn.Module, pictures: Sequence[Picture], levels: Iterable[int],
                   scales: Sequence[float] | None = None) -> list[Tensor]:
    """A detector's features of the given levels, (N, C, H, W) each, divided by their constants: what distillation
    compares.

    Args:
        scales: as `scales` gives them; None: undivided.
    Errors: ValueError where there are no pictures, their padded sizes differ, they were normalised for another
    detector, or the detector has no such level.
    """
    return [torch.cat(chunks) for chunks in zip(*_chunks(model, pictures, levels, scales), strict=True)]


def magnitudes(model: nn.Module, pictures: Sequence[Picture], levels: Iterable[int],
               scales: Sequence[float] | None = None) -> list[Tensor]:
    """G of the given levels, (N, H, W) each; needs far less memory than `level_features`. Source: Eq. 2."""
    chunks = ([feature.abs().mean(dim=1) for feature in features]
              for features in _chunks(model, pictures, levels, scales))
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]


def scales(run: Run, store: Store, student: Run | None = None) -> list[float]:
    """The constant of each level of a run's group by which a training divides features before it makes a mask of them:
    T and phi belong to features that are divided so. 1 where it does not scale.

    Args:
        student: whose training; None: AMD's at the run's profile.
    Errors: RunError where neither the teacher's record nor what is shipped of it says how large its features are.
    """
    student = student or Run.of(f'{run.row.group.name}-amd', run.profile)
    if student.reference_rms is None:
        return [1.0] * len(student.levels)
    teacher = run if run.row.is_teacher else student.teacher()
    found, shipped = store.with_kept().state(teacher), _shipped(teacher)
    told = found.record if found.name == 'done' else read_json(shipped.with_suffix('.json')) if shipped else {}
    if not told.get('feature_rms'):
        raise RunError(f'{teacher.id} is {found} and says not how large its features are: make it with '
                       f'{store.command(teacher)}')
    return Taught(store.weights(teacher), None, tuple(told['feature_rms'])).scales(student)


def _chunks(model: nn.Module, pictures: Sequence[Picture], levels: Iterable[int],
            scales: Sequence[float] | None) -> Iterator[list[Tensor]]:
    padded_size_px(pictures)
    _check_normalised_for(model, pictures)
    names = [MODULE.format(i=level) for level in levels]
    scales = [1.0] * len(names) if scales is None else scales
    if unknown := [name for name in names if name not in dict(model.named_modules())]:
        raise ValueError(f'{type(model).__name__} has no module {", ".join(unknown)}')
    device = next(model.parameters()).device
    for start in range(0, len(pictures), CHUNK):
        pixels = torch.stack([picture.pixels for picture in pictures[start:start + CHUNK]])
        with tap(model, names) as features, torch.no_grad():
            model.extract_feat(pixels.to(device))
        yield [feature.cpu() / scale for feature, scale in zip(features, scales, strict=True)]


def _check_normalised_for(model: nn.Module, pictures: Sequence[Picture]) -> None:
    if getattr(model, 'data_preprocessor', None) is None:
        return
    wanted = _normalisation(model.data_preprocessor)
    for picture in pictures:
        if picture.normalised not in (None, wanted):
            raise ValueError(f'image {picture.image_id} was normalised (mean, std, swap of channels) by '
                             f'{picture.normalised}, {type(model).__name__} expects {wanted}: make pictures for its '
                             'group')


def padded_size_px(pictures: Sequence[Picture]) -> tuple[int, int]:
    """The (height, width) that the pictures share. Errors: ValueError where they do not."""
    sizes = {tuple(picture.pixels.shape[1:]) for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f'expected pictures of one padded size, got {sorted(sizes) or "no pictures"}')
    return sizes.pop()


def to_pictures(found: list[dict], pictures: Sequence[Picture], dataset: Dataset) -> list[list[dict]]:
    """Stored detections (COCO results format, pixels of the file) by picture: `bbox` in pixels of it, and `label`."""
    truth = json.loads(Path(dataset.test_ann).read_text())
    size_px = {image['id']: (image['width'], image['height']) for image in truth['images']}
    names = {category['id']: category['name'] for category in truth['categories']}
    by_image: dict[int, list[dict]] = {picture.image_id: [] for picture in pictures}
    for detection in found:
        if detection['image_id'] in by_image:
            by_image[detection['image_id']].append(detection)
    moved = []
    for picture in pictures:
        width, height = size_px[picture.image_id]
        scale_x, scale_y = picture.rgb.shape[1] / width, picture.rgb.shape[0] / height
        moved.append([{**detection, 'label': names[detection['category_id']],
                       'bbox': [value * scale for value, scale in zip(detection['bbox'], (scale_x, scale_y) * 2,
                                                                      strict=True)]}
                      for detection in by_image[picture.image_id]])
    return moved
