import os

import pytest
import torch

from amdlib.weights.reading import read_weights
from amdlib.weights.writing import write_weights


def test_a_failed_write_leaves_the_target_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / 'w.pth'
    write_weights(path, {'w': torch.zeros(2)}, {})
    before = path.read_bytes()

    def full(_content, file):
        file.write(b'half')
        raise OSError('no space left on device')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match='no space'):
        write_weights(path, {'w': torch.ones(3)}, {})
    assert path.read_bytes() == before


def test_a_write_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / 'w.pth'
    path.write_bytes(b'old')
    write_weights(path, {'w': torch.ones(3)}, {})
    assert os.listdir(tmp_path) == ['w.pth']
    assert torch.equal(read_weights(path)['w'], torch.ones(3))
