"""A teacher's features of every training picture, computed once: as the picture is, and flipped.

Each picture passes alone, so that what is kept is to the bit what would be computed beside a student. Pictures must
share one padded size. The folder holds `features.npy` (float32, 2 rows a picture, all levels flat) and `kept.json`;
where the features are measured only, this card alone, and pictures may have any size.
"""
from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from amdlib.engine.taps import tap
from amdlib.errors import RunError
from amdlib.files import read_json, whole, write_json
from amdlib.weights.reading import load_strictly, read_weights
from amdlib.words import log

ARRAY, CARD = 'features.npy', 'kept.json'
LOOK = ('SeedPicture', 'RandomFlip')    # steps of a pipeline that make a picture look another way each time


class KeptFeatures:
    """Looks features up by picture and form.

    Args:
        folder: as `keep` left it.
        levels: of the pyramid that are wanted, some of those that are kept; default: all.
        shuffled: give every picture another picture's features, the same one always and never its own.

    Errors: RunError for levels that are not kept, and where there is no other picture.
    """

    def __init__(self, folder: str | Path, levels: Sequence[int] | None = None, shuffled: bool = False) -> None:
        card = read_json(Path(folder) / CARD)
        self.shapes = [tuple(shape) for shape in card['shapes']]
        self.image_px = tuple(card['image_px'])
        self.features = np.load(Path(folder) / ARRAY, mmap_mode='r')
        wanted, ids = card['levels'] if levels is None else levels, card['image_ids']
        if unknown := [level for level in wanted if level not in card['levels']]:
            raise RunError(f'no features are kept of level {unknown[0]}; kept are {card["levels"]}')
        if shuffled and len(ids) == 1:
            raise RunError('shuffled features need two training pictures or more')
        self.places = [card['levels'].index(level) for level in wanted]
        moved = len(ids) // 2 if shuffled else 0
        self.row_of = {image: (place + moved) % len(ids) for place, image in enumerate(ids)}

    def __call__(self, image_ids: Sequence[int], flipped: Sequence[bool], image_px: tuple[int, int]) -> list[Tensor]:
        """(N, C, H, W) of every level that is wanted.

        Args:
            image_px: padded (height, width) of the pictures in the step.
        Errors: RunError for pictures that are not kept, or not in this size.
        """
        if image_px != self.image_px:
            raise RunError(f'kept features are of pictures of {self.image_px} px, these have {image_px}')
        try:
            rows = [2 * self.row_of[image] + int(flip) for image, flip in zip(image_ids, flipped, strict=True)]
        except KeyError as error:
            raise RunError(f'no features are kept of the picture with id {error}') from None
        flat = torch.from_numpy(self.features[rows])    # fancy indexing copies
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        levels = [part.reshape(len(rows), *shape) for part, shape in
                  zip(flat.split(sizes, dim=1), self.shapes, strict=True)]
        return [levels[place] for place in self.places]


def keep_features(cfg: Config, weights: Path, levels: Sequence[int], folder: Path, key: dict[str, Any],
                  measured_only: bool = False, places: Sequence[int] = ()) -> dict[str, Any]:
    """Compute and keep a teacher's features of its training pictures; return the card: `feature_rms` by level, and so
    on.

    Args:
        cfg: of the teacher; its training data are the pictures.
        levels: of the pyramid, as `Distiller` compares them.
        key: what the features belong to; kept ones with the same key are taken as they are.
        measured_only: the card is wanted and not the features.
        places: of each level, among the maps that the head receives, where these are compared.
    Errors: RunError for pictures of several sizes; WeightsError.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    key = {**key, 'levels': list(levels), 'device': device, 'measured_only': measured_only}
    if (folder / CARD).is_file() and (card := read_json(folder / CARD)).get('key') == key:
        return card
    with DefaultScope.overwrite_default_scope('mmdet'):
        teacher = MODELS.build(cfg.model)
        load_strictly(teacher, read_weights(weights), str(weights))
        teacher.to(device).eval().requires_grad_(False)
        names = list(places) or [f'neck.fpn_convs.{i}.conv' for i in levels]

        def features_of(pixels: Tensor) -> list[Tensor]:
            with tap(teacher, names) as features, torch.no_grad():
                teacher.extract_feat(pixels)
            return features

        with contextlib.redirect_stdout(io.StringIO()):     # pycocotools tells that it reads and indexes
            return keep(features_of, teacher.data_preprocessor, cfg.train_dataloader.dataset, levels, folder, key,
                        measured_only)


def keep(features_of: Callable[[Tensor], list[Tensor]], preprocessor: nn.Module, dataset: ConfigDict,
         levels: Sequence[int], folder: Path, key: dict[str, Any], measured_only: bool = False) -> dict[str, Any]:
    """The same for any function from pixels (1, 3, H, W) to the features of every level, and a data set's Config."""
    plain = copy.deepcopy(dataset)
    plain.pipeline = [step for step in plain.pipeline if step.type not in LOOK]
    pictures = DATASETS.build(plain)
    ids, shapes, squares, array, size = [], [], np.zeros(len(levels)), None, None
    folder.mkdir(parents=True, exist_ok=True)
    log.info(f'the teacher looks at {len(pictures)} training pictures, as they are and flipped')
    with contextlib.ExitStack() as stack:
        beside = None if measured_only else stack.enter_context(whole(folder / ARRAY))
        for place in range(len(pictures)):
            pixels, sample = _pixels(pictures[place], preprocessor)
            size = size or tuple(pixels.shape[2:])
            if tuple(pixels.shape[2:]) != size and not measured_only:
                raise RunError(f'features can be kept of pictures of one size only; there are {size} and '
                               f'{tuple(pixels.shape[2:])} px')
            ids.append(int(sample.img_id))
            for form, shown in enumerate((pixels, _flipped(pixels, sample.img_shape))):
                features = [feature[0].float().cpu() for feature in features_of(shown)]
                squares += [float(feature.double().square().mean()) for feature in features]
                if beside is None:
                    continue
                if array is None:
                    shapes = [tuple(feature.shape) for feature in features]
                    array = np.lib.format.open_memmap(beside, 'w+', np.float32, (
                        2 * len(pictures), sum(feature.numel() for feature in features)))
                array[2 * place + form] = torch.cat([feature.flatten() for feature in features]).numpy()
        if array is not None:
            array.flush()
            del array
    card = {'key': key, 'levels': list(levels), 'image_ids': ids, 'shapes': shapes, 'image_px': list(size),
            'feature_rms': [float(value) for value in np.sqrt(squares / (2 * len(ids)))]}
    write_json(folder / CARD, card)
    return card


def _pixels(sample: dict, preprocessor: nn.Module) -> tuple[Tensor, Any]:
    """Normalised and padded pixels (1, 3, H, W) of one picture, and what is known of it."""
    batch = preprocessor({'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]})
    return batch['inputs'], batch['data_samples'][0]


def _flipped(pixels: Tensor, img_shape: tuple[int, int]) -> Tensor:
    """The picture flipped left to right; its padding stays where it is."""
    height, width = img_shape[:2]
    shown = pixels.clone()
    shown[..., :height, :width] = pixels[..., :height, :width].flip(-1)
    return shown
