"""Train the teachers that a profile ships."""
from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amdlib.errors import RunError
from amdlib.files import sha256, write_json
from amdlib.paper.printed import paper_groups
from amdlib.runs import shipping
from amdlib.runs.batch import run_missing
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.runs.train import train
from amdlib.weights.reading import read_weights
from amdlib.words import log

HOW = ('settings_hash', 'code_fingerprint', 'code', 'data', 'versions', 'machine', 'host', 'device', 'threads', 'steps',
       'train_s', 'began', 'lr_used', 'bed')    # of the record of the run that trained it


def make(store: Store, groups: Iterable[str] = (), seeds: Iterable[int] = (0,), *, force: bool = False) -> list[Path]:
    """Train teachers fresh where they are not, round them, evaluate what is left, and put it where the kit ships it.

    Args:
        groups: detector pairs; none = the paper's.
        force: train again what is trained.
    Errors: SettingError for an unknown group, or a profile that ships no teachers; RunError.
    """
    shipping.folder_of(store.profile)
    groups = list(groups) or list(paper_groups())
    runs = [Run.of(f'{group}-teacher', store.profile, seed, {'teachers': 'fresh'}) for group in groups
            for seed in seeds]
    run_missing(runs, store, force=force)
    return [ship(run, store) for run in runs]


def ship(run: Run, store: Store) -> Path:
    """Ship the detector of a teacher that was trained here: its file, with a record of the same name beside.

    Errors: RunError for a run that is not done, or where a student would load other bits than were shipped.
    """
    record, shipped = store.record(run), Run.of(run.row, run.profile, run.seed)
    weights = shipping.rounded(read_weights(store.weights(run)))
    meta = {'run': run.id, 'profile': run.profile.name, 'classes': list(store.dataset.classes)}
    with shipping.shipping(shipping.folder_of(run.profile), shipped.id, weights, meta) as file:
        evaluated = train(shipped, store)       # which finds it, loads it strictly and evaluates it
        digits = sha256(file)
        if evaluated['files'].get('checkpoint') != digits:
            raise RunError(f'{shipped.id} did not take {file}: was it made with other settings?')
        loaded = read_weights(store.weights(shipped))
        if other := [name for name, value in weights.items() if not loaded[name].equal(value.to(loaded[name]))]:
            raise RunError(f'{shipped.id}: {", ".join(other)}: other bits than in {file}')
        write_json(file.with_suffix('.json'), _card(run, digits, record, evaluated))
    before, after = (one['numbers']['mAP'] for one in (record, evaluated))
    log.info(f'{run.id}: {before:.1f} mAP as trained, {after:.1f} as shipped')
    shutil.rmtree(store.run_folder(run) / 'features', ignore_errors=True)   # students take those of the shipped one
    return file


def _card(run: Run, digits: str, record: dict[str, Any], evaluated: dict[str, Any]) -> dict[str, Any]:
    """How it was made, and what it is worth as it is shipped."""
    network = run.profile.to_dict()['teacher']
    return {
        'sha256': digits, 'run': run.id, 'profile': run.profile.name, 'group': run.row.group.name, 'seed': run.seed,
        'settings': record['settings'], 'epochs': run.epochs, 'batch_size': run.batch_size, 'network': network,
        **{key: record.get(key) for key in HOW}, 'numbers_as_trained': record['numbers'], 'rounded_to': 'float16',
        'numbers': evaluated['numbers'], 'feature_rms': evaluated.get('feature_rms')}
