"""pair.py: what of two detectors is compared, and what is said of them."""
import copy
import re

import pytest
import torch
from mmdet.registry import MODELS

from amdlib.errors import SettingError, WeightsError
from amdlib.runs.originals import get_config
from amdlib.study.pair import pair

CLASSES = ('cross', 'disc')


def test_maps_are_paired_by_stride_and_what_is_inherited_is_counted(home):
    found = pair(str(home / 'small.py'), str(home / 'large.py'), CLASSES)
    assert found.strides == (8, 16, 32, 64, 128)
    assert found.channels == ((64, 64),) * 5
    assert found.group.places == tuple((i, i) for i in range(5))
    assert found.group.published_weights == 'retinanet'
    told = found.describe()
    assert 'GFL ResNet-18 (small) <- GFL ResNet-18 (large)' in told
    assert 'both normalise alike' in told
    assert 'no weights are given, so it is trained here first' in told
    assert int(re.search(r'(\d+) tensors of neck and bbox_head', told)[1]) > 20


def test_a_teacher_of_other_pixels_and_of_two_stages(home):
    told = pair(str(home / 'small.py'), str(home / 'caffe.py'), CLASSES).describe()
    assert 'the teacher gets its own normalisation, by an exact map' in told
    two = home / 'two.py'
    two.write_text("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\nmodel = dict(backbone=dict(depth=18, "
                   'init_cfg=None), neck=dict(in_channels=[64, 128, 256, 512]))')
    found = pair(str(home / 'small.py'), str(two), CLASSES)
    assert found.strides == (8, 16, 32, 64)
    assert found.group.places == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert 'not compared, the other side has none of that size: student 128 (64 x 4x4)' in found.describe()
    assert 'teacher 4 (256 x 128x128)' in found.describe()
    assert pair(str(two), str(home / 'small.py'), CLASSES).group.published_weights == 'faster_rcnn'


def test_named_modules_are_paired_by_size_and_what_no_head_sees_is_told(home):
    found = pair(str(home / 'small.py'), str(home / 'large.py'), features=['neck.lateral_convs.0', 'neck.fpn_convs.1'])
    assert found.group.places == (('neck.lateral_convs.0', 0), ('neck.fpn_convs.1', 1))
    told = found.describe()
    assert 'warning: the head of the student never sees the output of neck.lateral_convs.0' in told
    assert 'of the teacher' not in told
    assert 'evaluated' not in told
    with pytest.raises(SettingError, match=r"GFL has no module 'neck.no_convs.0'"):
        pair(str(home / 'small.py'), str(home / 'large.py'), teacher_features=('neck.no_convs.0',))
    with pytest.raises(SettingError, match=r"GFL: 'neck' gives no feature map"):
        pair(str(home / 'small.py'), str(home / 'large.py'), features='neck')


def test_built_models_are_looked_at_and_left_as_they_are(home):
    student, teacher = (MODELS.build(copy.deepcopy(get_config(str(home / f'{name}.py')).model))
                        for name in ('small', 'large'))     # building writes into a config
    student.train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = pair(student, teacher, CLASSES)
    assert found.strides == (8, 16, 32, 64, 128)
    assert found.describe().startswith('GFL ResNet-18 (built) <- GFL ResNet-18 (built)\ncompared: stride 8: 64 <- 64')
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert pair(student, str(home / 'large.py')).channels == found.channels
    with pytest.raises(SettingError, match='Linear: expected a config, or a detector of mmdet that is built'):
        pair(torch.nn.Linear(1, 1), teacher)


def test_where_first_weights_come_from_is_told_before_anything_is_fetched(home):
    first = home / 'pretrained.py'
    first.write_text(f"_base_ = {str(home / 'small.py')!r}\nmodel = dict(backbone=dict(init_cfg=dict(_delete_=True, "
                     "type='Pretrained', checkpoint='torchvision://resnet18')))")
    told = 'first weights of the backbones: student torchvision://resnet18; fetched when training begins'
    assert told in pair(str(first), str(home / 'large.py')).describe()
    assert 'first weights' not in pair(str(first), str(home / 'large.py'), scratch=True).describe()


def test_maps_of_no_common_size_are_told_with_both_lists(home):
    one = home / 'one_level.py'
    one.write_text(f"_base_ = {str(home / 'small.py')!r}\nmodel = dict(backbone=dict(strides=(1, 1, 1, 1), "
                   'out_indices=(3,)), neck=dict(in_channels=[64], start_level=0, add_extra_convs=False, num_outs=1))')
    with pytest.raises(SettingError, match=r'no feature maps of one size.*student 4 \(64 x 128x128\); teacher 8'):
        pair(str(one), str(home / 'large.py'), CLASSES)


@pytest.mark.parametrize(('meta', 'knows', 'told'), [
    ({'dataset_meta': {'classes': ('Cross', 'disc')}}, True, 'its 2 classes are those of the data; evaluated'),
    ({'CLASSES': ('person', 'car')}, False, 'its 2 classes are not those of the data; not evaluated'),
    ({}, False, 'its checkpoint names no classes; it has 80, the data 2; not evaluated')])
def test_whether_a_given_teacher_knows_the_classes(home, tmp_path, meta, knows, told):
    weights = tmp_path / 'best.pth'
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'meta': meta}, weights)
    found = pair(str(home / 'small.py'), str(home / 'large.py'), CLASSES, weights)
    assert found.group.teacher_knows is knows
    assert told in found.describe()


@pytest.mark.parametrize(('student', 'told'), [
    ('no/such.py', 'no config that can be read'),
    ('mmdet::gfl/no_such.py', 'no config that can be read'),
    ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'it is trained on masks; expected a detector that boxes alone'),
    ('mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py', 'it is trained on captions')])
def test_configs_that_are_none_or_need_more_than_boxes(home, student, told):
    with pytest.raises(SettingError, match=told):
        pair(student, str(home / 'large.py'), CLASSES)


def test_a_detector_that_cannot_be_built_says_why(home):
    broken = home / 'broken.py'
    broken.write_text(f"_base_ = {str(home / 'small.py')!r}\nmodel = dict(neck=dict(type='NoSuchNeck'))")
    with pytest.raises(SettingError, match=r'broken.py cannot be built: KeyError.*NoSuchNeck'):
        pair(str(broken), str(home / 'large.py'), CLASSES)


def test_weights_that_are_not_there(home):
    with pytest.raises(WeightsError, match='no such file'):
        pair(str(home / 'small.py'), str(home / 'large.py'), CLASSES, home / 'none.pth')
