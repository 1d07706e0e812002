"""export.py: what is written loads in stock mmdet and finds what the run found; what cannot be exported says why."""
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config

from amdlib import export as module
from amdlib import data, results, weights
from amdlib.__main__ import main
from amdlib.experiments import GROUPS, PROFILES, ROWS, Run, config, find_row
from amdlib.export import ExportError, RetinaNetBoxes, check_onnx, export, mmdet_config, write_onnx
from amdlib.train import run_row

slow = pytest.mark.slow
ROOT = Path(module.__file__).parents[1]
QUIET = {'say': lambda *_: None}
NUMBERS = dict.fromkeys(results.METRICS, 12.5) | {'AP_S': None}

# stock mmdet: of this kit only the operators; prints what it finds in the named images
STOCK = """
import json, sys, warnings
warnings.simplefilter('ignore')
import amdlib.mmcv_ext
from mmdet.apis import inference_detector, init_detector
model = init_detector(sys.argv[1], sys.argv[2], device='cpu')
found = [inference_detector(model, path).pred_instances for path in sys.argv[3:]]
print(json.dumps({
    'kit': sorted(name for name in sys.modules if name.split('.')[0] == 'amdlib'), 'type': type(model).__name__,
    'classes': model.dataset_meta['classes'],
    'found': [[one.labels.tolist(), one.scores.tolist(), one.bboxes.tolist()] for one in found]}))
"""


@pytest.fixture(autouse=True)
def _tiny_is_mini(monkeypatch, tiny):
    """A record names its profile; here `mini` is the tiny one."""
    monkeypatch.setitem(PROFILES, 'mini', tiny)


def confident(detector_cfg):
    """A detector with random weights that finds things: scores are spread instead of all near the prior."""
    torch.manual_seed(0)
    detector_cfg = copy.deepcopy(detector_cfg)  # building writes into it
    detector_cfg.backbone.init_cfg = None
    detector = MODELS.build(detector_cfg)
    detector.init_weights()
    for name, value in detector.named_parameters():
        if name.endswith(('retina_cls.weight', 'cls_out.weight', 'fc_cls.weight')):
            torch.nn.init.normal_(value, std=0.1)
        elif name.endswith(('retina_cls.bias', 'cls_out.bias')):
            torch.nn.init.constant_(value, -1.0)
    return detector.eval()


@pytest.fixture
def finish(dataset, tmp_path):
    """Writes what a finished run leaves, with random weights; returns its folder. Teachers come with it."""
    def write(row, given=None, **changes):
        run = Run.of(row, 'mini', 0, given)
        if teacher := run.teacher():
            write(teacher.row, dict(teacher.settings))
        place = results.run_folder(run, dataset, tmp_path)
        place.mkdir(parents=True, exist_ok=True)
        cfg = config(run, dataset)
        detector = confident(cfg.model.student if run.row.method else cfg.model)
        weights.write_weights(place / 'weights.pth', detector.state_dict(), {'run': run.id})
        results.write_json(place / 'detections.json.gz', [], compress=True)
        behind = results.run_folder(teacher, dataset, tmp_path) / 'weights.pth' if teacher else None
        results.write_json(place / 'record.json', {
            'id': run.id, 'row': run.row.id, 'profile': 'mini', 'seed': 0, 'settings': dict(run.settings),
            'settings_hash': results.settings_hash(cfg), 'config': cfg.pretty_text, 'files': {},
            'data': {'name': dataset.name, 'fingerprint': dataset.fingerprint, 'notes': list(dataset.notes)},
            'code_fingerprint': results.code_fingerprint(run), 'code': {'commit': 'c0ffee', 'clean': True},
            'teacher': {'weights_sha256': weights.sha256(behind)} if behind else None, 'numbers': NUMBERS,
            'weights_sha256': weights.sha256(place / 'weights.pth'), 'steps': 4, 'device': 'CPU',
            'versions': results.versions(), **changes})
        return place
    return write


@pytest.fixture
def exported(dataset, tmp_path):
    return lambda run, **more: export(run, 'mini', dataset, tmp_path, **{**QUIET, **more})


def read(path):
    return torch.load(path, weights_only=True)  # nothing in it runs code


# ---- the detector -----------------------------------------------------------------------------------------------

@slow
@pytest.mark.parametrize('group', GROUPS)
def test_stock_mmdet_finds_what_the_run_found(dataset, tmp_path, exported, group):
    """A detector evaluated by the kit's own loop; then its export, in a process without the kit."""
    given = tmp_path / 'given.pth'
    row = f'{group}-teacher'
    weights.write_weights(given, confident(config(Run.of(row, 'mini'), dataset).model).state_dict(), {})
    run = Run.of(row, 'mini', 0, {'checkpoint': str(given)})
    record = run_row(run, dataset, tmp_path, **QUIET)
    place = results.run_folder(run, dataset, tmp_path)
    written = exported(run.id, files={'checkpoint': str(given)})
    images = data.coco_images(dataset.test_ann)
    ended = subprocess.run(
        [sys.executable, '-c', STOCK, written['config'], written['weights'],
         *(dataset.test_images / image['file_name'] for image in images)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told['kit'] == ['amdlib', 'amdlib.mmcv_ext'] and tuple(told['classes']) == dataset.classes
    assert told['type'] == config(run, dataset).model.type
    stored = results.read_detections(place / 'detections.json.gz')
    assert len(stored) > 20 and record['numbers']['mAP'] is not None
    ids = [category['id'] for category in json.loads(dataset.test_ann.read_text())['categories']]
    for image, (labels, scores, boxes) in zip(images, told['found'], strict=True):
        theirs = torch.tensor([(ids[label], score, x1, y1, x2 - x1, y2 - y1)
                               for label, score, (x1, y1, x2, y2) in zip(labels, scores, boxes, strict=True)])
        ours = torch.tensor([(one['category_id'], one['score'], *one['bbox'])
                             for one in stored if one['image_id'] == image['id']])
        assert len(theirs) == len(ours)
        # equal scores come in any order, so each is paired with its nearest; boxes are stored to 0.01 px
        apart = torch.cdist(theirs, ours, p=torch.inf, compute_mode='donot_use_mm_for_euclid_dist')
        assert apart.min(0).values.max() < 0.0051 and apart.min(1).values.max() < 0.0051


def test_the_file_is_named_after_its_hash_and_holds_the_weights_and_where_they_are_from(finish, exported, dataset):
    place = finish('retinanet-amd')
    path = exported('retinanet-amd-s0')['weights']
    assert path.parent == place / 'export'
    assert path.name == f'retinanet-amd-s0-mini-{weights.sha256(path)[:8]}.pth'
    content = read(path)
    ours = read(place / 'weights.pth')['state_dict']
    assert list(content['state_dict']) == list(ours)
    assert all(torch.equal(value, ours[name]) for name, value in content['state_dict'].items())
    meta = content['meta']
    assert (meta['row'], meta['seed'], meta['profile'], meta['settings']) == ('retinanet-amd', 0, 'mini', {})
    assert (meta['numbers'], meta['commit']) == (NUMBERS, 'c0ffee')
    assert meta['data'] == {'name': 'mini', 'fingerprint': dataset.fingerprint}
    assert meta['dataset_meta'] == {'classes': dataset.classes}
    assert sorted(path.name.rpartition('.')[2] for path in (place / 'export').iterdir()) == ['md', 'pth', 'py']


def test_the_same_run_gives_the_same_files(finish, exported, tmp_path):
    finish('retinanet-baseline')
    first, again = (exported('retinanet-baseline-s0', output=tmp_path / name, onnx=True) for name in ('a', 'b'))
    assert list(first) == ['config', 'weights', 'onnx', 'card']
    for key in first:
        assert first[key].name == again[key].name and first[key].read_bytes() == again[key].read_bytes()


@pytest.mark.parametrize('row', ['retinanet-amd', 'reppoints-fgd', 'faster_rcnn-mgd', 'faster_rcnn-teacher'])
def test_the_config_is_mmdets_alone(finish, exported, dataset, row):
    place = finish(row)
    text = exported(f'{row}-s0')['config'].read_text()
    assert not [word for word in ('amdlib', 'Distiller', 'CocoNumbers', 'custom_', 'teacher_weights', str(ROOT),
                                  str(dataset.test_ann.parent)) if word in text]
    cfg = Config.fromstring(text, '.py')
    trained = Config.fromstring(json.loads((place / 'record.json').read_text())['config'], '.py')
    model = trained.model.student if 'student' in trained.model else trained.model
    assert cfg.model == model and cfg.default_scope == 'mmdet'
    assert cfg.test_dataloader.dataset.pipeline == trained.test_dataloader.dataset.pipeline
    assert cfg.test_dataloader.dataset.metainfo.classes == dataset.classes
    assert cfg.test_evaluator == {'type': 'CocoMetric', 'metric': 'bbox', 'ann_file': 'data/mini/test.json'}


@pytest.mark.parametrize('row', [row for row in ROWS if row.endswith(('-teacher', '-baseline', '-amd'))])
def test_at_paper_the_config_is_mmdets_ordinary_one(tmp_path, row):
    row = find_row(row)
    base = row.group.teacher_config if row.is_teacher else row.group.student_config
    record = {'id': 'a', 'profile': 'paper', 'data': {'name': 'coco'}}
    trained = config(Run.of(row, 'paper'))
    (tmp_path / 'a.py').write_text(mmdet_config(trained, row, record))
    assert (tmp_path / 'a.py').read_text().splitlines()[1:] == [f'_base_ = {base!r}']
    loaded = Config.fromfile(tmp_path / 'a.py').model
    assert loaded.pop('_scope_') == 'mmdet' and loaded == get_config(base).model
    for step in trained.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (333, 200)
    trained.test_dataloader.dataset.metainfo = {'classes': ('person',)}
    assert '(\n                333,' in mmdet_config(trained, row, record)    # of another scale: it says so itself


def test_a_name_with_settings_is_a_file_that_mmengine_reads(finish, exported):
    finish('retinanet-amd', {'phi': 0.7})
    written = exported('retinanet-amd+phi=0.7-s0')
    assert written['config'].name == 'retinanet-amd+phi=0.7-s0-mini.py'
    assert Config.fromfile(written['config']).model.type == 'RetinaNet'
    assert read(written['weights'])['meta']['settings'] == {'phi': 0.7}


def test_the_card_tells_row_numbers_and_how_to_load(finish, exported, dataset):
    finish('retinanet-amd')
    written = exported('retinanet-amd-s0')
    text = written['card'].read_text()
    assert all(word in text for word in (
        '`retinanet-amd`', 'distilled from RetinaNet, ResNet-18 (width 16) by AMD', '| mAP | 12.50 |', '| AP_S | – |',
        'c0ffee', dataset.fingerprint, *dataset.classes, written['config'].name, written['weights'].name))
    assert 'ONNX' not in text and 'stale' not in text


# ---- refusals ---------------------------------------------------------------------------------------------------

def test_an_unknown_run_is_told_with_those_there_are(finish, exported):
    finish('retinanet-baseline')
    with pytest.raises(ExportError, match="no run 'retinanet-amd-s0' in .*; there are: retinanet-baseline-s0"):
        exported('retinanet-amd-s0')


def test_an_unfinished_run_is_refused(finish, exported):
    place = finish('retinanet-baseline')
    (place / 'record.json').unlink()
    results.write_json(place / 'progress.json', {'phase': 'failed', 'error': 'RuntimeError: the disk is full'})
    with pytest.raises(ExportError, match=r'retinanet-baseline-s0 is failed \(RuntimeError: the disk is full\)'):
        exported('retinanet-baseline-s0', stale_ok=True)
    assert not (place / 'export').exists()


@pytest.mark.parametrize(('change', 'why'), [
    ({'code_fingerprint': '0' * 16}, 'made with other code'), ({'settings_hash': '0' * 16}, 'made with other settings'),
    ({'data': {'name': 'mini', 'fingerprint': 'd' * 16, 'notes': []}}, 'made with other data'),
    ({'weights_sha256': '0' * 64}, 'weights.pth is not the file that the record speaks of')])
def test_a_stale_run_is_exported_only_when_asked_for_and_its_card_says_so(finish, exported, change, why):
    place = finish('retinanet-baseline', **change)
    with pytest.raises(ExportError, match=f'retinanet-baseline-s0 is stale: {why}.*--stale-ok'):
        exported('retinanet-baseline-s0')
    assert not (place / 'export').exists()
    assert why in exported('retinanet-baseline-s0', stale_ok=True)['card'].read_text()


def test_a_student_whose_teacher_was_trained_anew_is_stale(finish, exported):
    finish('retinanet-amd')
    finish('retinanet-teacher', weights_sha256='1' * 64)
    with pytest.raises(ExportError, match='its teacher was trained anew'):
        exported('retinanet-amd-s0')


def test_a_run_made_with_a_weight_file_asks_for_it(finish, exported, tmp_path):
    (tmp_path / 'r18.pth').write_bytes(b'backbone')
    given = str(tmp_path / 'r18.pth')
    finish('retinanet-baseline', {'backbone': given}, settings={'backbone': 'r18.pth'},
           files={'backbone': weights.sha256(given)})
    run = 'retinanet-baseline+backbone=r18-s0'
    with pytest.raises(ExportError, match=r'--set backbone=r18.pth'):
        exported(run)
    written = exported(run, files={'backbone': given})
    assert str(tmp_path) not in written['config'].read_text()
    (tmp_path / 'r18.pth').write_bytes(b'another')
    with pytest.raises(ExportError, match='made with other settings'):
        exported(run, files={'backbone': given})


def test_missing_weights_and_a_broken_record_are_told(finish, exported):
    (finish('retinanet-baseline') / 'weights.pth').unlink()
    with pytest.raises(ExportError, match='weights.pth is missing'):
        exported('retinanet-baseline-s0', stale_ok=True)
    (finish('retinanet-baseline') / 'record.json').write_text('{"id": ')
    with pytest.raises(ExportError, match='record.json cannot be read'):
        exported('retinanet-baseline-s0')


def test_the_command_takes_a_folder_from_anywhere(finish, tmp_path, monkeypatch, dataset, capsys):
    place = finish('retinanet-amd')
    moved = shutil.copytree(tmp_path / 'mini', tmp_path / 'moved' / 'mini') / 'runs' / place.name
    monkeypatch.setattr('amdlib.data.prepare', lambda *_, **__: dataset)
    assert main(['export', str(moved), '--output', str(tmp_path / 'out')]) == 0
    assert len(list((tmp_path / 'out').glob('retinanet-amd-s0-mini-*.pth'))) == 1
    assert main(['export', 'nothing-s0', '--results', str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: no run 'nothing-s0'")


# ---- ONNX -------------------------------------------------------------------------------------------------------

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
    assert 0 <= found['scores'] < 1e-5 and 0 <= found['boxes'] < 1e-2


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
    with pytest.raises(ExportError, match='scores differ from torch by'):
        check_onnx(graph, other, [pixels(1, 3, 64, 64)])


def test_the_command_writes_onnx_and_tells_the_difference(finish, exported, dataset):
    finish('retinanet-amd')
    said = []
    written = exported('retinanet-amd-s0', onnx=True, say=said.append)
    assert written['onnx'].name == f'retinanet-amd-s0-mini-{weights.sha256(written["onnx"])[:8]}.onnx'
    assert said[0].startswith('ONNX: 3 test images, largest difference to torch')
    graph = onnx.load(written['onnx'])
    assert [one.name for one in graph.graph.input] == ['images']
    assert [one.name for one in graph.graph.output] == ['boxes_xyxy_px', 'scores']
    properties = {one.key: one.value for one in graph.metadata_props}
    assert json.loads(properties['classes']) == list(dataset.classes)
    assert (properties['score_threshold'], properties['nms_iou_threshold'], properties['max_per_image']) == (
        '0.05', '0.5', '100')
    assert written['onnx'].name in written['card'].read_text()


@pytest.mark.parametrize('row', ['reppoints-baseline', 'faster_rcnn-teacher'])
def test_onnx_of_other_detectors_is_refused_before_anything_is_written(finish, exported, row):
    place = finish(row)
    with pytest.raises(ExportError, match=f'{row}-s0: ONNX export serves RetinaNet; (RepPoints|Cascade).* needs'):
        exported(f'{row}-s0', onnx=True)
    assert not (place / 'export').exists()


def test_missing_packages_are_named(finish, exported, monkeypatch):
    finish('retinanet-baseline')
    monkeypatch.setattr(module.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(ExportError, match='--onnx needs onnx and onnxruntime: make setup, or pip install onnx onnxr'):
        exported('retinanet-baseline-s0', onnx=True)
