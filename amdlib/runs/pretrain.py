"""The small backbone that students start from: pre-trained to tell single shapes apart, as the paper's on ImageNet.

It decides the first weights of every student of its profile, so its file is named by its hash and counts among a run's
weight files; what is edited here makes no number stale until a new backbone is shipped.
"""
from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from amdlib.datasets.dataset import progress
from amdlib.datasets.scene import ShapesSpec, scene
from amdlib.engine.start import drawn_from, stream
from amdlib.files import sha256, write_json
from amdlib.runs import fingerprints, shipping
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.weights.reading import check_backbone
from amdlib.words import log, minutes, timestamp

SPLIT, HELD_OUT_FROM = 'pretrain', 10 ** 6      # of scenes; those held out begin there
CHUNK = 100                                     # scenes that are looked at together when it is tested


@dataclass(frozen=True)
class Pretraining:
    """How it is pre-trained: scenes of one shape each, AdamW with one cycle of the learning rate."""
    scenes: int = 12000
    held_out: int = 500
    image_px: int = 64
    small_percent: int = 50
    medium_px: tuple[int, int] = (32, 48)
    epochs: int = 12
    batch_size: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.05
    warm_up: float = 0.05       # share of the steps until the learning rate is at its highest
    seed: int = 0

    def spec(self) -> ShapesSpec:
        """What a scene looks like: textures, noise and strokes as in the detectors' scenes."""
        return ShapesSpec(image_px=self.image_px, objects=(1, 1), large_percent=0, small_percent=self.small_percent,
                          medium_px=self.medium_px)


def make(store: Store, how: Pretraining = Pretraining()) -> Path:
    """Pre-train the backbone of the profile's student, round it, test it, and put it where the kit ships it, with a
    record of the same name beside.

    Errors: SettingError for a profile that ships no weights.
    """
    folder = shipping.folder_of(store.profile)
    began, began_s = timestamp(), time.monotonic()
    pictures, labels = _scenes(how, 0, how.scenes)
    held_out = _scenes(how, HELD_OUT_FROM, how.held_out)
    backbone, pixels = _build(store, how)
    with drawn_from('pretrain classifier', how.seed):
        classifier = nn.Linear(_channels(backbone, pixels(pictures[:1])), len(how.spec().classes))
    losses = _train(backbone, classifier, pixels, pictures, labels, held_out, how)
    train_s = time.monotonic() - began_s
    as_trained = _right_percent(backbone, classifier, pixels, *held_out)
    weights = shipping.rounded(backbone.state_dict())
    check_backbone(backbone, weights, 'the rounded backbone')
    backbone.load_state_dict(weights)       # copied into float32: the bits that a student starts from
    right = _right_percent(backbone, classifier, pixels, *held_out)
    log.info(f'{as_trained:.1f} % of {how.held_out} held-out scenes right as trained, {right:.1f} % as shipped')
    network = store.profile.to_dict()['student']
    with shipping.shipping(folder, 'backbone', weights, {'profile': store.profile.name, 'network': network}) as file:
        write_json(file.with_suffix('.json'), {
            'sha256': sha256(file), 'profile': store.profile.name, 'network': network, 'how': asdict(how),
            'scenes': asdict(how.spec()), 'steps': how.epochs * (how.scenes // how.batch_size), 'loss_by_epoch': losses,
            'right_percent_as_trained': as_trained, 'rounded_to': 'float16', 'right_percent': right,
            'code': fingerprints.commit(), 'versions': fingerprints.versions(), 'machine': fingerprints.machine(),
            'threads': torch.get_num_threads(), 'train_s': train_s, 'began': began})
    return file


def _scenes(how: Pretraining, first: int, count: int) -> tuple[Tensor, Tensor]:
    """So many scenes with a shape in them: (n, H, W, 3) uint8 RGB, and the shape's class."""
    spec, found, index = how.spec(), [], first
    for _ in progress(range(count), f'draw {SPLIT}'):
        while True:     # a scene whose shape did not fit in is passed over
            image, _, labels = scene(spec, SPLIT, index)
            index += 1
            if len(labels) == 1:
                break
        found.append((image, int(labels[0])))
    images, labels = zip(*found, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _build(store: Store, how: Pretraining) -> tuple[nn.Module, Any]:
    """The student's backbone with its first weights, and what makes pixels of pictures, as its detector does."""
    model = config(Run.of('retinanet-baseline', store.profile), store.dataset).model
    model.backbone.init_cfg = None      # nothing older
    MMLogger.get_current_instance().setLevel('WARNING')     # it tells of every tensor otherwise
    with DefaultScope.overwrite_default_scope('mmdet'), drawn_from(SPLIT, how.seed):
        backbone = MODELS.build(model.backbone)
        backbone.init_weights()
    mean, std = (torch.tensor(model.data_preprocessor[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
    return backbone, lambda pictures: (pictures.permute(0, 3, 1, 2).float() - mean) / std   # both are RGB


def _channels(backbone: nn.Module, pixels: Tensor) -> int:
    with torch.no_grad():
        backbone.eval()
        return backbone(pixels)[-1].shape[1]


def _logits(backbone: nn.Module, classifier: nn.Module, pixels: Tensor) -> Tensor:
    return classifier(backbone(pixels)[-1].mean(dim=(2, 3)))


def _train(backbone: nn.Module, classifier: nn.Module, pixels: Any, pictures: Tensor, labels: Tensor,
           held_out: tuple[Tensor, Tensor], how: Pretraining) -> list[float]:
    """Train both in place; the mean loss of each epoch."""
    optimizer = torch.optim.AdamW([*backbone.parameters(), *classifier.parameters()], how.lr,
                                  weight_decay=how.weight_decay)
    a_pass = how.scenes // how.batch_size
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.lr, total_steps=how.epochs * a_pass,
                                                pct_start=how.warm_up)
    generator, losses, began_s = torch.Generator().manual_seed(stream('pretrain order', how.seed)), [], time.monotonic()
    for epoch in range(how.epochs):
        backbone.train()
        order, total = torch.randperm(how.scenes, generator=generator), 0.0
        for chosen in order[:a_pass * how.batch_size].split(how.batch_size):
            shown = pixels(pictures[chosen])
            if torch.rand(1, generator=generator) < 0.5:
                shown = shown.flip(-1)
            loss = nn.functional.cross_entropy(_logits(backbone, classifier, shown), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            total += loss.item()
        losses.append(total / a_pass)
        left_s = (time.monotonic() - began_s) / (epoch + 1) * (how.epochs - epoch - 1)
        log.info(f'epoch {epoch + 1} of {how.epochs}: loss {losses[-1]:.2f}, '
                 f'{_right_percent(backbone, classifier, pixels, *held_out):.1f} % of the held-out scenes right, '
                 f'{minutes(left_s)} left')
    return losses


@torch.no_grad()
def _right_percent(backbone: nn.Module, classifier: nn.Module, pixels: Any, pictures: Tensor, labels: Tensor) -> float:
    """Of held-out scenes whose class is found."""
    backbone.eval()
    found = torch.cat([_logits(backbone, classifier, pixels(chunk)).argmax(1) for chunk in pictures.split(CHUNK)])
    return float((found == labels).float().mean() * 100)
