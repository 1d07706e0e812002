"""Which of mmdet's detector families train a distillation step: one config each, at 128 px, with random weights.

A family is a folder of the configs that mmdet's wheel ships. Each is tried in a process of its own; what came out is
kept in `results/families.json` as it comes, and `docs/families.md` is written from that.
"""
from __future__ import annotations

import logging
import multiprocessing
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from amdlib.errors import SettingError
from amdlib.files import ROOT, read_json, write_json, write_text
from amdlib.scale.trial import SHIPPED, STAGES, try_detector
from amdlib.words import log

CONFIGS = SHIPPED / 'configs'
KEPT, PAGE = ROOT / 'results' / 'families.json', ROOT / 'docs' / 'families.md'
LIMIT_S = 600
PX = 128
LARGER = {'ddq': 256, 'dino': 256, 'ssd': 320}
"""Where 128 px are too few: for 900 queries that are chosen among all positions; for SSD's last levels."""

NO_FAMILY = {
    'shared parts': '_base_ common',
    'tracking and re-identification, which see videos or crops': (
        'bytetrack deepsort mask2former_vis masktrack_rcnn ocsort qdtrack reid sort strongsort'),
    'data sets, with detectors of other folders': (
        'cityscapes deepfashion dsdl lvis objects365 openimages pascal_voc v3det wider_face'),
    'ways to train, with detectors of other folders': (
        'albu_example instaboost legacy_1.x misc resnet_strikes_back scratch selfsup_pretrain simple_copy_paste '
        'strong_baselines'),
}
"""Folders of configs that hold no detector of their own, by what they hold."""

CHOSEN = {
    'cascade_rpn': 'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco',
    'centernet': 'centernet_r18_8xb16-crop512-140e_coco', 'dcn': 'faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco',
    'detectors': 'detectors_cascade-rcnn_r50_1x_coco',
    'gcnet': 'mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco', 'guided_anchoring': 'ga-faster-rcnn_r50_fpn_1x_coco',
    'hrnet': 'faster-rcnn_hrnetv2p-w18-1x_coco', 'libra_rcnn': 'libra-faster-rcnn_r50_fpn_1x_coco',
    'mm_grounding_dino': 'grounding_dino_swin-t_pretrain_obj365', 'nas_fpn': 'retinanet_r50_nasfpn_crop640-50e_coco',
    'pvt': 'retinanet_pvt-t_fpn_1x_coco', 'res2net': 'faster-rcnn_res2net-101_fpn_2x_coco',
    'resnest': 'faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco', 'rtmdet': 'rtmdet_tiny_8xb32-300e_coco',
    'yolox': 'yolox_tiny_8xb8-300e_coco',
}
"""Where the rule of `config_of` would take a config without what the family is about, or a large one."""

WHY = {
    'soft_teacher': 'it trains on labelled and unlabelled pictures at once, with a teacher of its own',
    'tridentnet': 'in training it has three branches, which triple the pictures of its features; in evaluation, as a '
                  'teacher, it has one',
}
"""What the errors of these families mean."""


def families() -> dict[str, Path]:
    """The config of every family, by its name."""
    others = {name for names in NO_FAMILY.values() for name in names.split()}
    return {folder.name: config_of(folder) for folder in sorted(CONFIGS.iterdir())
            if folder.is_dir() and folder.name not in others}


def config_of(folder: Path) -> Path:
    """The plainest config of a family: with ResNet-50 if there is one, without other data, then the shortest name."""
    if folder.name in CHOSEN:
        return folder / f'{CHOSEN[folder.name]}.py'

    def plainness(path: Path) -> tuple:
        special = re.search('lvis|openimages|tta|caffe|ms-|amp', path.stem) is not None
        return 'r50' not in path.stem, special, len(path.stem), path
    return min(folder.glob('*.py'), key=plainness)


def try_families(names: Iterable[str] = (), *, again: bool = False, limit_s: float = LIMIT_S,
                 kept: Path = KEPT) -> dict[str, dict[str, Any]]:
    """Try the families, one after the other, each in a process of its own, and keep what came out after each.

    Args:
        names: of families, tried whether they are kept or not; default: all that are not kept with these versions.
        again: also those that are kept.
        limit_s: after which a family's process is ended.
    Returns: what is kept of all families, by name.
    Errors: SettingError for an unknown name.
    """
    known, names = families(), list(names)
    if unknown := set(names) - set(known):
        raise SettingError(f'unknown family {sorted(unknown)[0]!r}; known are {", ".join(known)}')
    results = read_json(kept) if kept.exists() else {}
    versions = {name: version(name) for name in ('mmdet', 'mmcv-lite', 'torch', 'torchvision')}
    for name, config in known.items():
        if name in names or not names and (again or results.get(name, {}).get('versions') != versions):
            began_s = time.monotonic()
            found = _apart(config, LARGER.get(name, PX), limit_s)
            results[name] = {**found, 'wall_s': round(time.monotonic() - began_s, 1), 'versions': versions}
            kept.parent.mkdir(exist_ok=True)
            write_json(kept, dict(sorted(results.items())))
            log.info(f'{name}: {found.get("reason") or found["stage"]}')
    return {name: results[name] for name in known if name in results}


def _apart(config: Path, px: int, limit_s: float) -> dict[str, Any]:
    """`try_detector` in a process of its own."""
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([try_detector.__module__])   # what takes long is imported once
    process = context.Process(target=_tell, args=(there, config, px), daemon=True)
    process.start()
    there.close()
    failed = {'config': f'{config.parent.name}/{config.stem}', 'px': px, 'stage': ''}
    try:
        return here.recv() if here.poll(limit_s) else {**failed, 'reason': f'not done after {limit_s:g} s'}
    except EOFError:
        process.join()
        return {**failed, 'reason': f'its process ended with status {process.exitcode}'}
    finally:
        process.kill()


def _tell(pipe: Connection, config: Path, px: int) -> None:
    logging.disable()       # mmengine tells of every weight that it draws
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    pipe.send(try_detector(config, px))


# ---- the page ---------------------------------------------------------------------------------------------------

def write_page(results: Mapping[str, dict[str, Any]], page: Path = PAGE) -> Path:
    """Write what came out of all families as a page of the documentation."""
    write_text(page, text_of(results))
    return page


def text_of(results: Mapping[str, dict[str, Any]]) -> str:
    """The page."""
    done = {name: found for name, found in results.items() if found['stage'] == STAGES[-1]}
    others = {name: found for name, found in results.items() if name not in done}
    reached = Counter(STAGES.index(found['stage']) if found['stage'] else -1 for found in results.values())
    at_least = {stage: sum(count for i, count in reached.items() if i >= STAGES.index(stage)) for stage in STAGES}
    missing = families().keys() - results.keys()
    versions = next(iter(results.values()))['versions']
    parts = [
        '# Which detectors of mmdet can be distilled here?',
        f'**{len(done)} of {len(results)}** families of detectors train a distillation step, each against a teacher of '
        f'its own config: {at_least["builds"]} can be built, {at_least["loss"]} give a loss, in {at_least["handed"]} '
        'what is taken is what the heads receive. `make families` made this page (mmdet '
        f'{versions["mmdet"]}, torch {versions["torch"]}, mmcv-lite with the operators of `amdlib/mmcv_ext.py`).',
        'A family is a folder of configs in the wheel of mmdet, with the plainest config in it. Student and teacher '
        f'are that detector with other random weights, at {PX} px '
        f'({", ".join(f"{name}: {px}" for name, px in LARGER.items())}), on two random pictures with boxes, masks and '
        'classes of pixels. A family counts when',
        '1. its own loss is finite,\n'
        "2. the feature maps that the Distiller's `auto` takes are the very tensors that its heads are given,\n"
        "3. AMD's loss on them has a gradient on the student's backbone, finite and not 0, and a step of both losses "
        'moves its weights.',
        'That a step can be taken does not say that distillation helps. Strides in brackets: levels that are handed on '
        "without a part in this step's own loss, because the heads never look at them or no object was of their size.",
        '## Those that do', _table(done, _line_of_done)]
    if others:
        parts += ['## Those that do not', _table(others, _line_of_other)]
    parts += ['## Folders of configs without a detector of their own',
              '\n'.join(f'- {what}: {", ".join(f"`{name}`" for name in names.split())}'
                        for what, names in NO_FAMILY.items())]
    if missing:
        parts.append(f'Not tried yet: {", ".join(sorted(missing))}.')
    return '\n\n'.join(parts) + '\n'


def _table(results: Mapping[str, dict[str, Any]], line: Any) -> str:
    return pd.DataFrame([line(name, found) for name, found in results.items()]).to_markdown(
        index=False, disable_numparse=True)


def _line_of_done(name: str, found: dict[str, Any]) -> dict[str, str]:
    in_loss = set(found['in_loss'])
    levels = [f'{stride}' if i in in_loss else f'({stride})' for i, stride in enumerate(found['strides'])]
    return {'family': name, 'config': f'`{found["config"].partition("/")[2]}`', 'detector': found['detector'],
            'taken from': found['neck'] or f'{found["backbone"]}, no neck', 'strides': ' '.join(levels),
            'given to': ', '.join(f'`{door}`' for door in found['received_by'])}


def _line_of_other(name: str, found: dict[str, Any]) -> dict[str, str]:
    reason = f'{WHY[name]} ({found["reason"]})' if name in WHY else found['reason']
    return {'family': name, 'config': f'`{found["config"].partition("/")[2]}`',
            'came to': found['stage'] or 'not built', 'reason': reason.replace('|', '\\|')}
