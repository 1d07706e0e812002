import collections
import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from amdlib.weights import WeightsError, harmless_types, load_strictly, read_weights, sha256, write_weights


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


class RunsCode:
    """Unpickling this creates a file."""
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


# ---- reading ----------------------------------------------------------------------------------------------------

def test_round_trip_keeps_every_tensor(tmp_path):
    wanted = model().state_dict()
    write_weights(tmp_path / 'w.pth', wanted, {'run': 'retinanet-amd-s0', 'numbers': {'mAP': 12.5, 'AP_S': None}})
    found = read_weights(tmp_path / 'w.pth')
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)
    assert torch.load(tmp_path / 'w.pth', weights_only=True)['meta']['numbers'] == {'mAP': 12.5, 'AP_S': None}


def test_a_bare_state_dict_and_a_path_as_text_are_read(tmp_path):
    torch.save(model().state_dict(), tmp_path / 'w.pth')
    assert set(read_weights(str(tmp_path / 'w.pth'))) == set(model().state_dict())


@pytest.mark.parametrize('legacy', [False, True])
def test_an_mmengine_checkpoint_is_read(tmp_path, legacy):
    """Its message hub holds HistoryBuffers and numpy scalars; the model zoo's files use the older tar-less format."""
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    buffer.mean(1)
    checkpoint = {
        'meta': {'epoch': 3, 'time': '20260101', 'dataset_meta': {'CLASSES': ('a', 'b')}, 'seed': np.int64(3)},
        'state_dict': collections.OrderedDict(model().state_dict()),
        'message_hub': {'log_scalars': {'loss': buffer}, 'resumed_keys': {'lr': True},
                        'runtime_info': {'lr': np.float64(0.1), 'on': np.bool_(True), 'x': np.arange(3.)}},
        'optimizer': {'state': {0: {'exp_avg': torch.zeros(2)}}, 'param_groups': [{'lr': 0.1}]}}
    torch.save(checkpoint, tmp_path / 'epoch_3.pth', _use_new_zipfile_serialization=not legacy)
    load_strictly(model(), read_weights(tmp_path / 'epoch_3.pth'), 'epoch_3.pth')


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        read_weights(tmp_path / 'nowhere.pth')


@pytest.mark.parametrize('part', [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, part):
    torch.save({'state_dict': {'w': torch.zeros(1000)}}, tmp_path / 'whole.pth')
    whole = (tmp_path / 'whole.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[:int(part * len(whole))])
    with pytest.raises(WeightsError, match=r'cut.pth \(\d+ bytes\) is truncated'):
        read_weights(tmp_path / 'cut.pth')


@pytest.mark.parametrize('content', [b'<html>404 not found</html>', b'{}', b'\n', b'PK\x03\x04', pickle.dumps([1])])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / 'page.pth').write_bytes(content)
    with pytest.raises(WeightsError, match='page.pth'):
        read_weights(tmp_path / 'page.pth')


@pytest.mark.parametrize('content', [torch.zeros(3), [torch.zeros(3)], None, {'state_dict': 3}])
def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match='w.pth holds .*, not a state dict'):
        read_weights(tmp_path / 'w.pth')


def test_numpy_1_names_are_read(tmp_path):
    """Checkpoints written under numpy 1 say numpy.core where numpy 2 says numpy._core."""
    names = [b'cnumpy.core.multiarray\n' + name + b'\n' for name in (b'scalar', b'_reconstruct')]
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': [np.float64(2), np.arange(3.)]}, tmp_path / 'w.pth',
               _use_new_zipfile_serialization=False)  # its pickle lies open in the file
    content = (tmp_path / 'w.pth').read_bytes().replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
    assert all(name in content for name in names)
    (tmp_path / 'w.pth').write_bytes(content)
    assert read_weights(tmp_path / 'w.pth')['w'] == 1


def test_reading_within_a_block_that_allows_more_takes_nothing_away(tmp_path):
    """A run that resumes reads its teacher's weights first, then mmengine's checkpoint within the same block."""
    write_weights(tmp_path / 'teacher.pth', model().state_dict(), {})
    torch.save({'message_hub': HistoryBuffer([1.0], [1])}, tmp_path / 'resumed.pth')
    with torch.serialization.safe_globals(harmless_types()):
        read_weights(tmp_path / 'teacher.pth')
        assert isinstance(torch.load(tmp_path / 'resumed.pth')['message_hub'], HistoryBuffer)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'resumed.pth')


class GetsAttribute:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_only_the_statistics_of_a_history_buffer_are_looked_up(tmp_path):
    torch.save({'state_dict': {}, 'meta': GetsAttribute()}, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match="getattr of '__init__'"):
        read_weights(tmp_path / 'w.pth')


@pytest.mark.parametrize('legacy', [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, legacy):
    trace = tmp_path / 'trace'
    torch.save({'state_dict': model().state_dict(), 'meta': RunsCode(trace)}, tmp_path / 'w.pth',
               _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match='Unsupported global.*open'):
        read_weights(tmp_path / 'w.pth')
    assert not trace.exists()
    torch.load(tmp_path / 'w.pth', weights_only=False)['meta'].close()
    assert trace.exists()  # the file was armed


# ---- loading ----------------------------------------------------------------------------------------------------

def test_strict_loading_fills_the_model():
    wanted = {name: torch.full_like(value, 3) for name, value in model().state_dict().items()}
    target = model()
    load_strictly(target, wanted, 'w.pth')
    assert all((value == 3).all() for value in target.state_dict().values())


def test_strict_loading_lists_what_does_not_match_and_changes_nothing():
    weights = model().state_dict()
    weights['head.weight'] = torch.zeros(1)
    del weights['1.running_mean']
    weights['0.weight'] = torch.zeros(4, 5, 1, 1)
    weights['0.bias'] = torch.zeros(4)
    target = model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_strictly(target, weights, 'folder/w.pth')
    text = str(caught.value)
    assert 'folder/w.pth does not fit Sequential' in text
    assert 'not in the file (1): 1.running_mean\n' in text
    assert 'not in the model (1): head.weight\n' in text
    assert 'of another shape (1): 0.weight: file (4, 5, 1, 1), model (4, 3, 1, 1)' in text
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize('spoil', ['missing', 'unexpected', 'shape'])
def test_each_kind_of_mismatch_alone_is_refused(spoil):
    weights = model().state_dict()
    if spoil == 'missing':
        del weights['0.bias']
    elif spoil == 'unexpected':
        weights['more'] = torch.zeros(1)
    else:
        weights['0.bias'] = torch.zeros(1, 4)
    with pytest.raises(WeightsError):
        load_strictly(model(), weights, 'w.pth')


# ---- writing ----------------------------------------------------------------------------------------------------

def test_a_failed_write_leaves_the_target_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / 'w.pth'
    write_weights(path, model().state_dict(), {})
    before = path.read_bytes()

    def full(_content, file):
        with open(file, 'wb') as half:
            half.write(b'half')
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


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / 'x').write_bytes(b'abc' * 1000)
    assert sha256(tmp_path / 'x') == hashlib.sha256(b'abc' * 1000).hexdigest()
