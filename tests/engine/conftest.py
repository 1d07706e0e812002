"""Configs and tasks of rows at the tiny profile; here alone the engine's tests know of runs."""
from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from amdlib.engine.training import Task
from amdlib.runs.config import config
from amdlib.runs.run import Run


@pytest.fixture(scope='session')
def config_of(dataset, tiny):
    """Row id, seed, settings, and what differs from the tiny profile -> a fresh Config."""
    made = {}

    def make(row='retinanet-amd', seed=0, settings=None, **changes):
        key = repr((row, seed, settings, changes))
        if key not in made:
            made[key] = config(Run.of(row, replace(tiny, **changes), seed, settings or {}), dataset)
        return copy.deepcopy(made[key])
    return make


@pytest.fixture(scope='session')
def task_of(config_of, dataset):
    """Folder, and what `config_of` takes -> a Task; a teacher has the random weights that belong to the seed."""
    def make(folder, row='retinanet-baseline', seed=0, settings=None, **changes):
        cfg = config_of(row, seed, settings, **changes)
        cfg.work_dir = str(folder / 'mmengine')
        folder.mkdir(parents=True, exist_ok=True)
        return Task(f'{row}-s{seed}', cfg, folder, meta={'run': f'{row}-s{seed}', 'classes': list(dataset.classes)},
                    gpus=(settings or {}).get('gpus', 1))
    return make


@pytest.fixture(scope='session')
def content():
    """Folder of a task -> what must be equal: weights, detections, and the logged losses by step (times apart)."""
    def read(folder):
        weights = torch.load(folder / 'weights.pth', weights_only=True)['state_dict']
        logged = [{key: value for key, value in json.loads(line).items() if 'time' not in key and key != 'memory'}
                  for line in (folder / 'scalars.jsonl').read_text().splitlines()]
        return weights, (folder / 'detections.json.gz').read_bytes(), logged
    return read


@pytest.fixture(scope='session')
def same_weights():
    """Two state dicts -> whether they are equal bit for bit, in the same order."""
    return lambda a, b: list(a) == list(b) and all(torch.equal(value, b[name]) for name, value in a.items())
