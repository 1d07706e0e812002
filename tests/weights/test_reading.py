import collections
import os
import pickle

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import HistoryBuffer
from torch import nn

import amdlib.mmcv_ext  # noqa: F401  (registers the deformable convolution)
from amdlib.errors import WeightsError
from amdlib.weights.reading import check_backbone, harmless_types, load_strictly, read_weights
from amdlib.weights.writing import write_weights


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


@pytest.mark.parametrize('page', [b'<!DOCTYPE html><html>', b'\r\n  <?xml version="1.0"?><Error>NoSuchKey</Error>'])
def test_a_web_page_is_called_one(tmp_path, page):
    (tmp_path / 'w.pth').write_bytes(page)
    with pytest.raises(WeightsError, match=rf'w.pth \({len(page)} bytes\) is a web page, not a checkpoint'):
        read_weights(tmp_path / 'w.pth')


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


def test_a_refused_module_is_named_without_torchs_advice_to_run_the_code(tmp_path):
    class Shell:
        def __reduce__(self):
            return os.system, ('true',)
    torch.save({'state_dict': {}, 'meta': Shell()}, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=r'or holds code: Trying to load .*posix\.system') as refused:
        read_weights(tmp_path / 'w.pth')
    assert 'False' not in str(refused.value)
    assert '\n' not in str(refused.value)


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


@pytest.mark.parametrize('entry', ['text', 3, None, [1.0], {'w': 1}])
def test_an_entry_that_is_no_tensor_is_named(entry):
    weights = {**model().state_dict(), '0.bias': entry}
    with pytest.raises(WeightsError, match=rf'no tensor \(1\): 0.bias \({type(entry).__name__}\)'):
        load_strictly(model(), weights, 'w.pth')
    with pytest.raises(WeightsError, match=r'not in the model \(1\): 7'):
        load_strictly(model(), {**model().state_dict(), 7: entry}, 'w.pth')


def test_what_no_detector_needs_may_be_missing_or_too_much():
    """Counts of batches (torch before 0.4.1 had none), moving averages beside the weights, a data-parallel wrapper."""
    target = model()
    weights = {f'module.{name}': torch.full_like(value, 2) for name, value in target.state_dict().items()
               if 'num_batches' not in name}
    weights['ema_0_weight'] = torch.zeros(4, 3, 1, 1)
    load_strictly(target, weights, 'w.pth')
    state = target.state_dict()
    assert state.pop('1.num_batches_tracked') == 0
    assert all((value == 2).all() for value in state.values())


def deformable_backbone():
    return MODELS.build(dict(
        type='ResNeXt', depth=50, groups=2, base_width=4, base_channels=4, stem_channels=8, style='pytorch',
        dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False), stage_with_dcn=(False, True, True, True)))


def old_names(state):
    """As mmdet 1 wrote them: the offsets of a deformable convolution beside it."""
    return {name.replace('.conv_offset.', '_offset.'): value for name, value in state.items()}


def test_offsets_of_deformable_convolutions_under_their_old_names_are_loaded(tmp_path):
    torch.manual_seed(1)
    wanted = {name: torch.randn_like(value) if value.is_floating_point() else value
              for name, value in deformable_backbone().state_dict().items()}
    old = old_names(wanted)
    assert 'layer2.0.conv2_offset.weight' in old
    assert not any('.conv_offset.' in name for name in old)
    torch.save({'state_dict': old, 'meta': {}, 'optimizer': {}}, tmp_path / 'w.pth',
               _use_new_zipfile_serialization=False)
    target = deformable_backbone()
    load_strictly(target, read_weights(tmp_path / 'w.pth'), 'w.pth')
    assert all(torch.equal(value, wanted[name]) for name, value in target.state_dict().items())
    del old['layer3.1.conv2_offset.bias']
    with pytest.raises(WeightsError, match=r'not in the file \(1\): layer3.1.conv2.conv_offset.bias'):
        load_strictly(target, old, 'w.pth')


def detector(channels=8, classes=3, kind='RetinaHead'):
    """A whole small RetinaNet."""
    return MODELS.build(dict(
        type='RetinaNet', backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=channels, num_outs=5),
        bbox_head=dict(type=kind, num_classes=classes, in_channels=channels, feat_channels=channels, stacked_convs=1,
                       norm_cfg=None)))


def test_another_number_of_classes_is_told_as_such():
    with pytest.raises(WeightsError) as told:
        load_strictly(detector(classes=3), detector(classes=80).state_dict(), 'coco.pth')
    first, *lists = str(told.value).splitlines()
    assert first == 'coco.pth does not fit RetinaNet; it may be of another number of classes:'
    assert lists == ['  of another shape (2): bbox_head.retina_cls.weight: file (720, 8, 3, 3), model (27, 8, 3, 3), '
                     'bbox_head.retina_cls.bias: file (720,), model (27,)']


@pytest.mark.parametrize('other', [{'channels': 4}, {'kind': 'FCOSHead'}])
def test_another_architecture_is_told_as_such(other):
    with pytest.raises(WeightsError, match='w.pth does not fit RetinaNet; it may be of another architecture:'):
        load_strictly(detector(), detector(**other).state_dict(), 'w.pth')


def test_a_backbone_must_be_whole_and_may_bring_its_classifier():
    backbone = detector().backbone
    weights = {**backbone.state_dict(), 'fc.weight': torch.zeros(10, 64), 'fc.bias': torch.zeros(10)}
    check_backbone(backbone, weights, 'r18.pth')
    check_backbone(backbone, {name: value for name, value in weights.items() if 'num_batches' not in name}, 'r18.pth')
    for spoil, told in (({'layer1.0.conv3.weight': torch.zeros(1)}, r'not in the model \(1\): layer1.0.conv3.weight'),
                        ({'conv1.weight': torch.zeros(64, 3, 7, 7)}, r'conv1.weight: file \(64, 3, 7, 7\), model')):
        with pytest.raises(WeightsError, match=told):
            check_backbone(backbone, {**weights, **spoil}, 'r18.pth')
    with pytest.raises(WeightsError, match=r'r18.pth does not fit ResNet.*\n  not in the file \(\d+\): conv1.weight'):
        check_backbone(backbone, detector().state_dict(), 'r18.pth')    # a detector's file has backbone.conv1.weight
