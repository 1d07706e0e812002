"""onnx.py: RetinaNet as ONNX gives what torch gives, at any batch and size, and what it does not serve is refused."""
import copy
import json
import logging

import onnx
import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.structures import DetDataSample

from amdlib.errors import RunError
from amdlib.files import sha256
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.scale import onnx as module
from amdlib.scale.export import export
from amdlib.scale.onnx import RetinaNetBoxes, check_onnx, write_onnx
from tests.scale.finished import confident, finish


@pytest.fixture(scope='module')
def retinanet(dataset, tiny):
    return confident(config(Run.of('retinanet-baseline', tiny), dataset).model)


@pytest.fixture(scope='module')
def graph(retinanet, tmp_path_factory):
    path = tmp_path_factory.mktemp('onnx') / 'a.onnx'
    write_onnx(RetinaNetBoxes(retinanet), path, {'classes': '[]'})
    return path


def pixels(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 255


def test_onnx_agrees_with_torch_at_any_batch_and_size(retinanet, graph):
    images = [pixels(1, 3, 64, 64), pixels(3, 3, 64, 96), pixels(1, 3, 50, 77), pixels(2, 3, 200, 31)]
    found = check_onnx(graph, RetinaNetBoxes(retinanet), images)
    assert 0 <= found['scores'] < 1e-5
    assert 0 <= found['boxes'] < 1e-2


def test_onnx_outputs_after_nms_are_mmdets_detections(retinanet):
    """An image that is not a multiple of the padding, so that padding, clipping and anchors all matter."""
    image = pixels(3, 50, 77)
    retinanet = copy.deepcopy(retinanet)
    retinanet.bbox_head.test_cfg.nms_pre = 10 ** 6  # mmdet keeps the best 1000 of a level before NMS
    with torch.no_grad():
        boxes, scores = (value[0] for value in RetinaNetBoxes(retinanet)(image[None]))
        sample = DetDataSample(metainfo={'img_shape': (50, 77), 'ori_shape': (50, 77), 'scale_factor': (1.0, 1.0)})
        wanted = retinanet.test_step({'inputs': [image.flip(0)], 'data_samples': [sample]})[0].pred_instances
    test = retinanet.test_cfg
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1, keepdim=True)   # a box wholly outside is clipped to none
    anchor, label = ((scores > test.score_thr) & has_area).nonzero(as_tuple=True)
    kept, order = batched_nms(boxes[anchor], scores[anchor, label], label, dict(test.nms))
    order, kept = order[:test.max_per_img], kept[:test.max_per_img]
    assert len(wanted) == len(kept) > 10
    assert torch.allclose(kept[:, :4], wanted.bboxes, atol=1e-3)
    assert torch.allclose(kept[:, 4], wanted.scores, atol=1e-5)
    assert torch.equal(label[order], wanted.labels)


def test_a_graph_that_does_not_agree_is_refused(retinanet, graph, dataset, tiny):
    other = RetinaNetBoxes(confident(config(Run.of('retinanet-baseline', tiny), dataset).model))
    other.head.retina_cls.bias.data += 0.01
    with pytest.raises(RunError, match='scores differ from torch by'):
        check_onnx(graph, other, [pixels(1, 3, 64, 64)])


def test_export_writes_it_and_tells_the_difference(store, dataset, caplog):
    finish(store, 'retinanet-amd')
    caplog.set_level(logging.INFO)
    written = export('retinanet-amd-s0', store, with_onnx=True)
    assert written['onnx'].name == f'retinanet-amd-s0-mini-{sha256(written["onnx"])[:8]}.onnx'
    assert 'ONNX: 3 test images, largest difference to torch' in caplog.text
    graph = onnx.load(written['onnx'])
    assert [one.name for one in graph.graph.input] == ['images']
    assert [one.name for one in graph.graph.output] == ['boxes_xyxy_px', 'scores']
    properties = {one.key: one.value for one in graph.metadata_props}
    assert json.loads(properties['classes']) == list(dataset.classes)
    assert (properties['score_threshold'], properties['nms_iou_threshold'], properties['max_per_image']) == (
        '0.05', '0.5', '100')
    assert written['onnx'].name in written['card'].read_text()


@pytest.mark.parametrize('row', ['reppoints-baseline', 'faster_rcnn-teacher'])
def test_other_detectors_are_refused_before_anything_is_written(store, row):
    folder = finish(store, row)
    with pytest.raises(RunError, match=f'{row}-s0: ONNX export serves RetinaNet; (RepPoints|Cascade).* needs'):
        export(f'{row}-s0', store, with_onnx=True)
    assert not (folder / 'export').exists()


def test_missing_packages_are_named(store, monkeypatch):
    finish(store, 'retinanet-baseline')
    monkeypatch.setattr(module.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(RunError, match='--onnx needs onnx and onnxruntime: make setup, or pip install onnx onnxr'):
        export('retinanet-baseline-s0', store, with_onnx=True)
