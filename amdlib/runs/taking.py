"""What a student takes from its teacher: the weights, and features that are kept once for all students."""
from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from amdlib.engine import kept
from amdlib.files import locked, plain, read_json, write_json
from amdlib.runs import adapt, evidence, fingerprints
from amdlib.runs.config import Taught, config
from amdlib.runs.run import Run
from amdlib.runs.store import FEATURES, WEIGHTS, Store
from amdlib.words import log


def taught(run: Run, store: Store, record: dict[str, Any]) -> Taught:
    """What a student takes from its teacher, whose record is given; features that are gone are kept again."""
    teacher = run.teacher()
    folder, keeps = store.run_folder(teacher), run.profile.keep_features
    if not run.row.method or not keeps and run.reference_rms is None:
        return Taught(store.weights(teacher))
    card = keep_features(teacher, store, folder, record['weights_sha256'])
    return Taught(store.weights(teacher), folder / FEATURES if keeps else None, tuple(card['feature_rms']))


def keep_features(teacher: Run, store: Store, folder: Path, weights_sha256: str) -> dict[str, Any]:
    """Have the features of a teacher in this folder kept, or at other profiles measured: once, whoever asks first; the
    card that `engine.kept` leaves. Damaged ones are kept again."""
    cfg, only = config(teacher, store.dataset), not teacher.profile.keep_features
    if teacher.row.group.own:
        cfg.train_dataloader.dataset = adapt.plain_pictures(cfg, store.dataset)
    key = {'weights_sha256': weights_sha256, 'data': store.dataset.fingerprint, 'image_px': teacher.profile.image_px,
           'machine': fingerprints.machine(), 'torch': fingerprints.versions()['torch']}
    with locked(folder / '.features.lock', f'{teacher.id}: waiting for another process that looks at its features'):
        if (folder / FEATURES).exists() and (why := _damage(folder / FEATURES, only)):
            log.info(f'{teacher.id}: its kept features are damaged ({why}); it looks at the pictures again')
            shutil.rmtree(folder / FEATURES)
        card = kept.keep_features(cfg, folder / WEIGHTS, teacher.row.group.levels, folder / FEATURES, plain(key),
                                  measured_only=only, places=[place for _, place in teacher.row.group.places])
        if not only and 'array_sha256' not in card:
            card['array_sha256'] = evidence.hash_of(folder / FEATURES / kept.ARRAY)
            write_json(folder / FEATURES / kept.CARD, card)
    return card


def _damage(folder: Path, measured_only: bool) -> str:
    """What is wrong with kept features; '' where nothing is, or where they were not kept to the end."""
    try:
        card = read_json(folder / kept.CARD)
        if not measured_only:
            shape = np.load(folder / kept.ARRAY, mmap_mode='r').shape
            wanted = (2 * len(card['image_ids']), sum(map(math.prod, card['shapes'])))
            if shape != wanted:
                return f'{kept.ARRAY} is of shape {shape}, expected {wanted}'
            if card.get('array_sha256', now := evidence.hash_of(folder / kept.ARRAY)) != now:
                return f'{kept.ARRAY} is not the file that was kept'
    except FileNotFoundError:
        return ''
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f'{type(error).__name__}: {error}'
    return ''
