"""families.py and trial.py: what counts as a family that distils, and what is told of the others."""
import pytest
import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.models.necks import FPN
from mmengine.config import Config

from amdlib.cli import main
from amdlib.errors import SettingError
from amdlib.files import ROOT, read_json
from amdlib.scale import families
from amdlib.scale.families import CHOSEN, CONFIGS, KEPT, LARGER, NO_FAMILY, PX
from amdlib.scale.trial import REGIONS, STAGES, features_received, lightened, try_detector


@pytest.fixture
def narrow(tmp_path):
    """Changes of the model -> the config file of a narrow RetinaNet."""
    def write(**changes):
        config = Config.fromfile(CONFIGS / 'retinanet' / 'retinanet_r50_fpn_1x_coco.py')
        config.model.backbone.update(depth=18, base_channels=8)
        config.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
        config.model.bbox_head.update(in_channels=8, feat_channels=8, num_classes=8)
        config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
        config.dump(tmp_path / 'narrow.py')
        return tmp_path / 'narrow.py'
    return write


def test_every_folder_is_a_family_or_told_to_be_none():
    others = {name for names in NO_FAMILY.values() for name in names.split()}
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    found = families.families()
    assert others <= folders
    assert found.keys() == folders - others
    assert CHOSEN.keys() | LARGER.keys() <= found.keys()
    assert all(config.is_file() for config in found.values())


def test_a_detector_that_distils(narrow):
    found = try_detector(narrow(), PX)
    assert 'reason' not in found
    assert found['stage'] == STAGES[-1] == 'distils'
    assert (found['strides'], found['channels']) == ([8, 16, 32, 64, 128], [8] * 5)
    assert (found['neck'], found['received_by']) == ('FPN', ['bbox_head.loss'])
    assert found['gradient'] > 0
    assert found['distillation'] > 0


@pytest.mark.parametrize('name', ['rtmdet', 'yolox'])
def test_a_family_that_distils(name):
    found = try_detector(families.families()[name], PX)
    assert found['stage'] == 'distils', found['reason']


def test_a_head_that_is_given_something_else(narrow, monkeypatch):
    def changed(self, inputs, samples):
        *levels, last = self.extract_feat(inputs)
        return self.bbox_head.loss((*levels, last.clone()), samples)
    monkeypatch.setattr(SingleStageDetector, 'loss', changed)
    found = try_detector(narrow(), PX)
    assert found['stage'] == 'loss'
    assert found['reason'] == ('ValueError: of 5 levels that are taken, [4] reach no head; heads are '
                               'bbox_head.loss')


def test_a_backbone_without_a_gradient(narrow, monkeypatch):
    forward = FPN.forward
    monkeypatch.setattr(FPN, 'forward', lambda self, inputs: forward(self, tuple(f.detach() for f in inputs)))
    found = try_detector(narrow(), PX)
    assert found['stage'] == 'handed'
    assert found['reason'] == "ValueError: the distillation loss's gradient on the backbone is 0"


def test_what_is_told_of_other_failures(narrow, tmp_path):
    found = try_detector(narrow(**{'bbox_head.loss_cls.loss_weight': 1e39}), PX)
    assert (found['stage'], found['reason']) == ('builds', 'ValueError: the loss is inf')
    found = try_detector(narrow(**{'backbone.type': 'NoSuchNet'}), PX)
    assert found['stage'] == ''
    assert 'NoSuchNet is not in the' in found['reason']
    (tmp_path / 'other.py').write_text("custom_imports = dict(imports=['no_such_package'])")
    found = try_detector(tmp_path / 'other.py', PX)
    assert found['reason'] == "ModuleNotFoundError: No module named 'no_such_package'"


def test_what_a_head_receives_is_found_in_any_nest():
    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = torch.nn.Identity(), torch.nn.Identity()
            self.head.loss = lambda features, **others: others

    model, maps = Detector(), [torch.rand(1, 2, 4, 4), torch.rand(1, 2, 2, 2)]
    with features_received(model) as received:
        model.head.loss(model.backbone([{'p3': maps[0]}, (maps[1], torch.rand(3)), 'text']), samples=[None])
    assert [a is b for a, b in zip(received['head.loss'], maps, strict=True)] == [True, True]
    assert len(received) == 1


def test_nothing_is_fetched_files_are_found_and_regions_are_few():
    config = lightened({'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'},
                                           'pretrained': 'x', 'depth': 50},
                              'neck': [{'init_cfg': {'type': 'Xavier'}}], 'teacher_ckpt': 'address',
                              'data_preprocessor': {'batch_augments': [{'type': 'BatchFixedSizePad'}]},
                              'sampler': {'num': 512, 'pos_fraction': 0.25}, 'loss': {'num': 512},
                              'teacher_config': 'configs/gfl/gfl_r101_fpn_ms-2x_coco.py'})
    assert config == {'backbone': {'init_cfg': None, 'pretrained': None, 'depth': 50},
                      'neck': [{'init_cfg': {'type': 'Xavier'}}], 'teacher_ckpt': None, 'data_preprocessor': {},
                      'sampler': {'num': REGIONS, 'pos_fraction': 0.25}, 'loss': {'num': 512},
                      'teacher_config': str(CONFIGS / 'gfl' / 'gfl_r101_fpn_ms-2x_coco.py')}


# ---- all of them ------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_family_that_ends_its_process_or_takes_too_long_is_told(tmp_path, monkeypatch, narrow):
    (tmp_path / 'ends.py').write_text("__import__('os')._exit(3)")
    (tmp_path / 'sleeps.py').write_text("__import__('time').sleep(600)")
    known = {'ends': tmp_path / 'ends.py', 'narrow': narrow(), 'sleeps': tmp_path / 'sleeps.py'}
    monkeypatch.setattr(families, 'families', lambda: known)
    kept = tmp_path / 'kept.json'
    results = families.try_families(limit_s=60, kept=kept, names=['ends', 'narrow'])
    assert results['ends']['reason'] == 'its process ended with status 3'
    assert results['narrow']['stage'] == 'distils'
    results = families.try_families(limit_s=1, kept=kept)   # what is kept is not tried again
    assert results['sleeps']['reason'] == 'not done after 1 s'
    assert results == read_json(kept)
    text = families.text_of(results)
    assert '**1 of 3** families' in text
    assert '| sleeps   | `sleeps`' in text
    with pytest.raises(SettingError, match="unknown family 'nowhere'; known are ends"):
        families.try_families(['nowhere'], kept=kept)


def test_the_page_tells_what_is_kept_of_every_family():
    kept = read_json(KEPT)
    assert kept.keys() == families.families().keys()
    assert (ROOT / 'docs' / 'families.md').read_text() == families.text_of(kept)
    assert sum(found['stage'] == 'distils' for found in kept.values()) >= 55
    assert all(found['stage'] == 'distils' or found['reason'] for found in kept.values())
    assert not any(kept[name]['stage'] == 'distils' for name in families.WHY)


def test_an_unknown_family_is_told_in_a_line(capsys):
    assert main(['families', 'nowhere']) == 1
    assert "error: unknown family 'nowhere'; known are atss" in capsys.readouterr().err
