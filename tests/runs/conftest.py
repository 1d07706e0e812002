"""A loss of one's own in a file, and runs that are done without being trained."""
import hashlib
import json
from pathlib import Path

import pytest
import torch

from amdlib.evaluation import METRICS
from amdlib.files import write_json
from amdlib.runs import fingerprints
from amdlib.runs.config import config, settings_hash
from amdlib.runs.store import file_hashes

NUMBERS = dict(zip(METRICS, (10.5, 20, 9, None, 8, 12, 15, 20, 21, None, 18, 25), strict=True))
WEIGHTS = b'w'
WEIGHTS_SHA = hashlib.sha256(WEIGHTS).hexdigest()
MINE = '''from amdlib.methods.level import LevelLoss, align_channels


class Mine(LevelLoss):
    """Squared error of the aligned features, as simple as a loss can be."""
    WEIGHT_EXPONENTS = {'weight': (1, 1)}

    def __init__(self, student_channels, teacher_channels, weight=1e-5, power=2):
        super().__init__(student_channels, teacher_channels)
        self.weight, self.power = weight, power
        self.align = align_channels(student_channels, teacher_channels)

    def weighted_loss(self, f_s, f_t, boxes, image_shapes):
        return self.weight * (self.align(f_s) - f_t).abs().pow(self.power).sum() / len(f_t)
'''


def state_dict(folder):
    """The weights of a run, by its folder."""
    return torch.load(folder / 'weights.pth', weights_only=True)['state_dict']


def equal(state, other):
    """Whether two sets of weights have the same names and bits."""
    return list(state) == list(other) and all(torch.equal(value, other[name]) for name, value in state.items())


@pytest.fixture(scope='session')
def hashed():
    """Run, data set -> the settings hash of its Config; a Config takes a tenth of a second, so each is made once."""
    made = {}

    def find(run, dataset):
        key = repr((run, dataset))
        if key not in made:
            made[key] = settings_hash(config(run, dataset))
        return made[key]
    return find


@pytest.fixture
def finish(store, hashed):
    """Writes what a finished run leaves; returns its folder."""
    def write(run, teacher_sha=WEIGHTS_SHA, **changes):
        folder = store.run_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'weights.pth').write_bytes(WEIGHTS)
        write_json(folder / 'detections.json.gz', [])
        write_json(folder / 'record.json', {
            'settings_hash': hashed(run, store.dataset), 'settings_key': fingerprints.settings_key(run, store.dataset),
            'files': file_hashes(run), 'data': {'fingerprint': store.dataset.fingerprint},
            'code_fingerprint': fingerprints.code_fingerprint(run), 'versions': fingerprints.versions(),
            'teacher': {'weights_sha256': teacher_sha} if run.teacher() else None,
            'weights_sha256': WEIGHTS_SHA, 'numbers': NUMBERS, 'code': {'commit': 'c0ffee', 'clean': True},
            'train_s': 12.0, 'wall_s': 14.0, 'device': 'CPU', **changes})
        return folder
    return write


@pytest.fixture
def said(caplog):
    """What the kit says: what is called -> the lines that it logs."""
    def listen(call, *words, **more):
        caplog.clear()
        call(*words, **more)
        return [record.getMessage() for record in caplog.records if record.name == 'amdlib']
    return listen


@pytest.fixture
def mine(tmp_path) -> str:
    """A loss of one's own, as `path/to/file.py:ClassName`."""
    file = tmp_path / 'my-losses' / 'own.py'
    file.parent.mkdir()
    file.write_text(MINE)
    return f'{file}:Mine'


@pytest.fixture
def through_json():
    """Plain values, as they come out of a job file."""
    return lambda values: json.loads(json.dumps(values))


@pytest.fixture
def weight_file(tmp_path) -> Path:
    """A file that a setting may name."""
    file = tmp_path / 'given' / 'r18.pth'
    file.parent.mkdir()
    file.write_bytes(b'weights')
    return file
