"""One detector tried: built with random weights, its own loss, what its heads receive, and one distillation step.

Student and teacher are the same detector, drawn apart; the step is the Distiller's with `auto`, AMD on what the heads
receive.
"""
from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from amdlib.engine.distiller import Distiller
from amdlib.engine.taps import AUTO, maps_in, tap

SHIPPED = Path(mmdet.__file__).parent / '.mim'      # mmdet's configs, in its wheel

STAGES = ('builds', 'loss', 'handed', 'distils')
"""How far a detector can come: it is built; its own loss is finite; the features that are taken are what its heads
receive; the backbone gets a gradient from the distillation loss and a step changes its weights."""

LONGEST = 200       # characters of a reason
REGIONS = 64        # that are sampled a picture


# ---- the detector and its picture -------------------------------------------------------------------------------

def lightened(config: Any) -> Any:
    """A model's config that fetches nothing, pads to no fixed size, samples few regions, and whose files are those of
    mmdet's wheel."""
    if isinstance(config, dict):
        light = {key: lightened(value) for key, value in config.items() if key != 'batch_augments'}
        light |= {key: None for key in light if key in ('pretrained', 'teacher_ckpt')}
        if 'checkpoint' in str(light.get('init_cfg')):
            light['init_cfg'] = None
        if 'pos_fraction' in light:     # a sampler; heads of two stages take half a minute with 512 regions
            light['num'] = min(light['num'], REGIONS)
        return type(config)(light)
    if isinstance(config, (list, tuple)):
        return type(config)(lightened(value) for value in config)
    return str(SHIPPED / config) if str(config).startswith('configs/') else config


def build(config: Config, seed: int) -> nn.Module:
    """The detector of a config with weights drawn from `seed`."""
    torch.manual_seed(seed)
    model = MODELS.build(lightened(config.model))
    model.init_weights()
    return revert_sync_batchnorm(model)


def pictures(config: Config, px: int) -> dict[str, Any]:
    """Two random pictures as a data loader gives them: with boxes and proposals, and with masks and classes of pixels
    where the config's own pipeline loads them."""
    loaded = str(config.get('train_dataloader'))
    every = 'LoadPanopticAnnotations' in loaded
    # HTC and SCNet compare classes of pixels at the size of a level, to which their pipelines shrink them.
    scales = re.findall(r"'SegRescale',\s*'scale_factor': ([\d.]+)", loaded)
    np.random.seed(0)
    batch = demo_mm_inputs(
        2, (3, px, px), num_items=[3, 2], num_classes=8, with_mask=every or "'with_mask': True" in loaded,
        with_semantic=every or "'with_seg': True" in loaded,
        sem_seg_output_strides=round(1 / float(scales[0])) if scales else 1)
    for sample in batch['data_samples']:
        boxes = sample.gt_instances.bboxes
        sample.proposals = InstanceData(bboxes=boxes + torch.rand_like(boxes), scores=torch.ones(len(boxes)))
    return batch


# ---- what the head receives -------------------------------------------------------------------------------------

@contextlib.contextmanager
def features_received(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """The feature maps that reach a detector's heads while the block runs, by the function that is first given some.

    Heads are all of the detector's parts but backbone and neck; a transformer that is the detector's own, as of DETR,
    counts as one. Found without looking at what the neck hands on.
    """
    received: dict[str, list[Tensor]] = {}
    heads = [(name, part) for name, part in model.named_children()
             if name not in ('data_preprocessor', 'backbone', 'neck')]
    doors = [(head, name, f'{part}.{name}') for part, head in heads for name in ('loss', 'loss_and_predict')]
    doors.append((model, 'forward_transformer', 'forward_transformer'))
    doors = [door for door in doors if hasattr(*door[:2])]

    def watched(door: Any, label: str) -> Any:
        def enter(*args: Any, **keywords: Any) -> Any:
            maps = maps_in([*args, keywords])
            if maps:
                received.setdefault(label, maps)
            return door(*args, **keywords)
        return enter
    for owner, name, label in doors:
        object.__setattr__(owner, name, watched(getattr(owner, name), label))
    try:
        yield received
    finally:
        for owner, name, _ in doors:
            object.__delattr__(owner, name)


# ---- one step ---------------------------------------------------------------------------------------------------

def try_detector(file: Path, px: int) -> dict[str, Any]:
    """Take one distillation step with the detector of a config: how far it came (`stage`, of STAGES), why no further
    (`reason`), and what was found on the way."""
    found: dict[str, Any] = {'config': f'{file.parent.name}/{file.stem}', 'px': px, 'stage': ''}
    try:
        for stage, more in zip(STAGES, _stages(file, px), strict=True):
            found |= {'stage': stage, **more}
    except Exception as error:      # whatever a detector raises is its reason
        found['reason'] = reason_of(error)
    return found


def reason_of(error: BaseException) -> str:
    """An error in a line; of an import that failed, the first that did."""
    while isinstance(error, ImportError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    words = ' '.join(str(error).split()) or 'without a word'
    return f'{type(error).__name__}: {words[:LONGEST]}'


def _stages(file: Path, px: int) -> Iterator[dict[str, Any]]:
    """What is found at each of STAGES."""
    config = Config.fromfile(file)
    init_default_scope(config.get('default_scope', 'mmdet'))
    student, teacher = (build(config, seed) for seed in (0, 1))
    student.train()
    teacher.eval()      # not in one line: what LAD's and LD's give is None
    teacher.requires_grad_(False)
    MessageHub.get_current_instance().update_info('epoch', 0)      # TOOD asks for it
    neck = getattr(student, 'neck', None)
    necks = neck if isinstance(neck, nn.Sequential) else [] if neck is None else [neck]
    yield {'detector': type(student).__name__, 'backbone': type(student.backbone).__name__,
           'neck': ' + '.join(type(part).__name__ for part in necks)}

    batch = student.data_preprocessor(pictures(config, px), training=True)
    inputs, samples = batch['inputs'], batch['data_samples']
    detection, _ = student.parse_losses(student.loss(inputs, copy.deepcopy(samples)))   # some take their proposals out
    need(torch.isfinite(detection), f'the loss is {detection:g}')
    yield {'detection': float(detection.detach())}

    distiller = Distiller(student, teacher, 'amd', levels=None, student_module=AUTO, teacher_module=AUTO)
    with tap(student, distiller.student_taps) as f_s, features_received(student) as received:
        terms = distiller.loss(inputs, samples)
    by_door = {door: [i for i, f in enumerate(f_s) if any(f is one for one in maps)] for door, maps in received.items()}
    missed = set(range(len(f_s))).difference(*by_door.values())
    need(not missed, f'of {len(f_s)} levels that are taken, {sorted(missed)} reach no head; heads are '
                     f'{", ".join(received) or "given none"}')
    own = {name for name in terms if name.startswith('loss_amd_fpn_')}
    detection, _ = student.parse_losses({name: term for name, term in terms.items() if name not in own})
    used = torch.autograd.grad(detection, f_s, retain_graph=True, allow_unused=True)
    yield {'strides': [round(px / f.shape[2]) for f in f_s], 'channels': [f.shape[1] for f in f_s],
           'received_by': [door for door, levels in by_door.items() if levels],
           'in_loss': [i for i, gradient in enumerate(used) if gradient is not None and gradient.any()]}

    distillation = sum(terms[name] for name in own)
    weights = [weight for weight in student.backbone.parameters() if weight.requires_grad]
    gradient = torch.stack([one.norm() for one in torch.autograd.grad(
        distillation, weights, retain_graph=True, allow_unused=True, materialize_grads=True)]).norm()
    need(gradient.isfinite() and gradient > 0, f"the distillation loss's gradient on the backbone is {gradient:g}")
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.SGD([weight for weight in distiller.parameters() if weight.requires_grad], lr=1e-4)
    (detection + distillation).backward()
    optimizer.step()
    need(any(not torch.equal(old, new) for old, new in zip(before, weights, strict=True)), 'the step moved no weight')
    yield {'distillation': float(distillation.detach()), 'gradient': float(gradient)}


def need(what: Any, reason: str) -> None:
    """Errors: ValueError with the reason unless `what` holds."""
    if not what:
        raise ValueError(reason)
