"""export.py: what is written loads in stock mmdet and finds what the run found; what cannot be exported says why."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config

from amdlib.cli import main
from amdlib.datasets import coco_images
from amdlib.errors import RunError
from amdlib.files import ROOT, read_json, sha256, write_json
from amdlib.paper.pairs import GROUPS
from amdlib.paper.profiles import PROFILES
from amdlib.paper.rows import ROWS, find_row
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.runs.train import train
from amdlib.scale.export import export, mmdet_config
from amdlib.weights.writing import write_weights
from tests.conftest import OWN
from tests.scale import finished
from tests.scale.finished import NUMBERS, confident

slow = pytest.mark.slow

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


@pytest.fixture
def finish(store):
    """Writes what a finished run leaves, with random weights; returns its folder. Teachers come with it."""
    return lambda row, given=None, **changes: finished.finish(store, row, given, **changes)


@pytest.fixture
def exported(store):
    """Name of a run, words of `export` -> the paths that it wrote."""
    return lambda run, **more: export(run, store, **more)


def plain(value):
    return json.loads(json.dumps(value))


def read(path):
    return torch.load(path, weights_only=True)  # nothing in it runs code


# ---- the detector -----------------------------------------------------------------------------------------------

@slow
@pytest.mark.parametrize('group', GROUPS)
def test_stock_mmdet_finds_what_the_run_found(dataset, store, tmp_path, exported, group):
    """A detector evaluated by the kit's own loop; then its export, in a process without the kit."""
    given = tmp_path / 'given.pth'
    row = f'{group}-teacher'
    write_weights(given, confident(config(Run.of(row, store.profile), dataset).model).state_dict(), {})
    run = Run.of(row, store.profile, 0, {'checkpoint': str(given)})
    record = train(run, store)
    written = exported(run.id, files={'checkpoint': str(given)})
    images = coco_images(dataset.test_ann)
    ended = subprocess.run(
        [sys.executable, '-c', STOCK, written['config'], written['weights'],
         *(dataset.test_images / image['file_name'] for image in images)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told['kit'] == ['amdlib', 'amdlib.mmcv_ext']
    assert tuple(told['classes']) == dataset.classes
    assert told['type'] == config(run, dataset).model.type
    stored = store.detections(run)
    assert len(stored) > 20
    assert record['numbers']['mAP'] is not None
    ids = [category['id'] for category in json.loads(dataset.test_ann.read_text())['categories']]
    for image, (labels, scores, boxes) in zip(images, told['found'], strict=True):
        theirs = torch.tensor([(ids[label], score, x1, y1, x2 - x1, y2 - y1)
                               for label, score, (x1, y1, x2, y2) in zip(labels, scores, boxes, strict=True)])
        ours = torch.tensor([(one['category_id'], one['score'], *one['bbox'])
                             for one in stored if one['image_id'] == image['id']])
        assert len(theirs) == len(ours)
        # equal scores come in any order, so each is paired with its nearest; boxes are stored to 0.01 px
        apart = torch.cdist(theirs, ours, p=torch.inf, compute_mode='donot_use_mm_for_euclid_dist')
        assert apart.min(0).values.max() < 0.0051
        assert apart.min(1).values.max() < 0.0051


def test_the_file_is_named_after_its_hash_and_holds_the_weights_and_where_they_are_from(finish, exported, dataset):
    folder = finish('retinanet-amd')
    path = exported('retinanet-amd-s0')['weights']
    assert path.parent == folder / 'export'
    assert path.name == f'retinanet-amd-s0-mini-{sha256(path)[:8]}.pth'
    content = read(path)
    ours = read(folder / 'weights.pth')['state_dict']
    assert list(content['state_dict']) == list(ours)
    assert all(torch.equal(value, ours[name]) for name, value in content['state_dict'].items())
    meta = content['meta']
    assert (meta['row'], meta['seed'], meta['profile'], meta['settings']) == ('retinanet-amd', 0, 'mini', {})
    assert (meta['numbers'], meta['commit']) == (NUMBERS, 'c0ffee')
    assert meta['data'] == {'name': 'mini', 'fingerprint': dataset.fingerprint}
    assert meta['dataset_meta'] == {'classes': dataset.classes}
    assert sorted(path.name.rpartition('.')[2] for path in (folder / 'export').iterdir()) == ['md', 'pth', 'py']


def test_the_same_run_gives_the_same_files(finish, exported, tmp_path):
    finish('retinanet-baseline')
    first, again = (exported('retinanet-baseline-s0', output=tmp_path / name, with_onnx=True) for name in ('a', 'b'))
    assert list(first) == ['config', 'weights', 'onnx', 'card']
    for key in first:
        assert first[key].name == again[key].name
        assert first[key].read_bytes() == again[key].read_bytes()


@pytest.mark.parametrize('row', ['retinanet-amd', 'reppoints-fgd', 'faster_rcnn-mgd', 'faster_rcnn-teacher'])
def test_the_config_is_mmdets_alone(finish, exported, dataset, row):
    folder = finish(row)
    text = exported(f'{row}-s0')['config'].read_text()
    assert not [word for word in ('amdlib', 'Distiller', 'CocoNumbers', 'custom_', 'teacher_weights', str(ROOT),
                                  str(dataset.test_ann.parent)) if word in text]
    cfg = Config.fromstring(text, '.py')
    trained = Config(read_json(folder / 'record.json')['config'])
    model = trained.model.student if 'student' in trained.model else trained.model
    assert plain(cfg.model) == plain(model)
    assert cfg.default_scope == 'mmdet'
    assert plain(cfg.test_dataloader.dataset.pipeline) == plain(trained.test_dataloader.dataset.pipeline)
    assert tuple(cfg.test_dataloader.dataset.metainfo.classes) == dataset.classes
    assert cfg.test_evaluator == {'type': 'CocoMetric', 'metric': 'bbox', 'ann_file': 'data/mini/test.json'}


@pytest.mark.parametrize('row', [row for row in ROWS if row.endswith(('-teacher', '-baseline', '-amd'))])
def test_at_paper_the_config_is_mmdets_ordinary_one(tmp_path, dataset, row):
    row = find_row(row)
    base = row.group.teacher_config if row.is_teacher else row.group.student_config
    record, of_paper = {'id': 'a'}, Store(PROFILES['paper'], dataset, tmp_path)
    trained = config(Run.of(row, 'paper'))
    (tmp_path / 'a.py').write_text(mmdet_config(trained, row, record, of_paper))
    assert (tmp_path / 'a.py').read_text().splitlines()[1:] == [f'_base_ = {base!r}']
    loaded = Config.fromfile(tmp_path / 'a.py').model
    assert loaded.pop('_scope_') == 'mmdet'
    assert loaded == get_config(base).model
    for step in trained.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (333, 200)
    trained.test_dataloader.dataset.metainfo = {'classes': ('person',)}
    # of another scale: it says so itself
    assert re.search(r'\(\s*333,', mmdet_config(trained, row, record, of_paper))


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
    assert 'ONNX' not in text
    assert 'stale' not in text


# ---- refusals ---------------------------------------------------------------------------------------------------

def test_an_unknown_run_is_told_with_those_there_are(finish, exported):
    finish('retinanet-baseline')
    with pytest.raises(RunError, match="no run 'retinanet-amd-s0' in .*; there are: retinanet-baseline-s0"):
        exported('retinanet-amd-s0')


def test_an_unfinished_run_is_refused(finish, exported):
    folder = finish('retinanet-baseline')
    (folder / 'record.json').unlink()
    write_json(folder / 'progress.json', {'phase': 'failed', 'error': 'RuntimeError: the disk is full', 'step': 0,
                                          'steps': 1, 'host': 'here'})
    with pytest.raises(RunError, match=r'retinanet-baseline-s0 is failed \(RuntimeError: the disk is full\)'):
        exported('retinanet-baseline-s0', stale_ok=True)
    assert not (folder / 'export').exists()


@pytest.mark.parametrize(('change', 'why'), [
    ({'code_fingerprint': '0' * 16}, 'made with other code'), ({'settings_hash': '0' * 16}, 'made with other settings'),
    ({'data': {'name': 'mini', 'fingerprint': 'd' * 16, 'notes': []}}, 'made with other data'),
    ({'weights_sha256': '0' * 64}, 'weights.pth is not the file that the record speaks of')])
def test_a_stale_run_is_exported_only_when_asked_for_and_its_card_says_so(finish, exported, change, why):
    folder = finish('retinanet-baseline', **change)
    with pytest.raises(RunError, match=f'retinanet-baseline-s0 is stale: {why}.*--stale-ok'):
        exported('retinanet-baseline-s0')
    assert not (folder / 'export').exists()
    assert why in exported('retinanet-baseline-s0', stale_ok=True)['card'].read_text()


def test_a_student_whose_teacher_was_trained_anew_is_stale(finish, exported):
    finish('retinanet-amd')
    folder = finish('retinanet-teacher')
    write_weights(folder / 'weights.pth', {'another': torch.ones(1)}, {})
    record = read_json(folder / 'record.json')
    write_json(folder / 'record.json', {**record, 'weights_sha256': sha256(folder / 'weights.pth')})
    with pytest.raises(RunError, match='its teacher was trained anew'):
        exported('retinanet-amd-s0')


def test_a_run_made_with_a_weight_file_asks_for_it(finish, exported, tmp_path):
    (tmp_path / 'r18.pth').write_bytes(b'backbone')
    given = str(tmp_path / 'r18.pth')
    finish('retinanet-baseline', {'backbone': given}, settings={'backbone': 'r18.pth'},
           files={'backbone': sha256(given)})
    run = 'retinanet-baseline+backbone=r18-s0'
    with pytest.raises(RunError, match=r'--set backbone=r18.pth'):
        exported(run)
    written = exported(run, files={'backbone': given})
    assert str(tmp_path) not in written['config'].read_text()
    (tmp_path / 'r18.pth').write_bytes(b'another')
    with pytest.raises(RunError, match='made with other settings'):
        exported(run, files={'backbone': given})


def test_what_a_record_says_is_never_executed(finish, exported, tmp_path):
    """An old record's config is text, and may be anyone's."""
    harm = f"open({str(tmp_path / 'harm')!r}, 'w').close()\nmodel = dict(type='RetinaNet')"
    finish('retinanet-baseline', config=harm)
    assert exported('retinanet-baseline-s0')['config'].is_file()    # the run's own is built, and agrees
    finish('retinanet-baseline', config=harm, settings_hash='0' * 16)
    with pytest.raises(RunError, match='holds its config as text, which is not executed: train it again') as told:
        exported('retinanet-baseline-s0', stale_ok=True)
    assert len(str(told.value).splitlines()) == 1
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize('change', [
    {"a': open('harm', 'w').close(), 'b": 1}, {'x': '{{ fileDirname }}'}, {'x': [{'type': 'os.system'}]}])
def test_a_config_that_could_be_executed_is_not_written(finish, exported, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    folder = finish('retinanet-baseline')
    record = read_json(folder / 'record.json')
    record['config']['model'].update(change)
    write_json(folder / 'record.json', {**record, 'settings_hash': '0' * 16})
    with pytest.raises(RunError, match='could be executed as code: not written'):
        exported('retinanet-baseline-s0', stale_ok=True)
    assert not (tmp_path / 'harm').exists()
    assert not list((folder / 'export').iterdir())


def test_a_name_that_is_none_and_another_profile_are_refused(finish, exported, store):
    finish('retinanet-baseline', id='a\nimport os')
    with pytest.raises(RunError, match='is no name of a run'):
        exported('retinanet-baseline-s0')
    finish('retinanet-baseline', profile='small')
    with pytest.raises(RunError, match='was made at the profile small, not mini'):
        exported('retinanet-baseline-s0')


def test_the_config_of_a_record_is_used_where_the_runs_own_is_another(finish, exported, store):
    """It is data, and was true when the run was made."""
    folder = finish('retinanet-baseline')
    other = finished.of_profile(store, score_thr=0.2)
    assert Config.fromfile(exported('retinanet-baseline-s0')['config']).model.test_cfg.score_thr == 0.05
    with pytest.raises(RunError, match='made with other settings'):
        export('retinanet-baseline-s0', other)
    written = export('retinanet-baseline-s0', other, stale_ok=True, output=folder / 'again')
    assert Config.fromfile(written['config']).model.test_cfg.score_thr == 0.05
    assert 'made with other settings' in written['card'].read_text()


def test_a_run_with_a_loss_of_ones_own_asks_where_it_lies(finish, exported, store, tmp_path):
    file = tmp_path / 'own.py'
    file.write_text(OWN)
    finish(f'retinanet-{file}:Own')
    with pytest.raises(RunError, match=r'made with a loss in own.py: say where it lies, --method path/to/own.py:Own'):
        exported('retinanet-own.Own-s0')
    written = exported('retinanet-own.Own-s0', method=f'{file}:Own')
    assert 'distilled from RetinaNet, ResNet-18 (width 16) by Own.' in written['card'].read_text()


def test_missing_weights_and_a_broken_record_are_told(finish, exported):
    (finish('retinanet-baseline') / 'weights.pth').unlink()
    with pytest.raises(RunError, match='weights.pth is missing'):
        exported('retinanet-baseline-s0', stale_ok=True)
    (finish('retinanet-baseline') / 'record.json').write_text('{"id": ')
    with pytest.raises(RunError, match='record.json cannot be read'):
        exported('retinanet-baseline-s0')


def test_the_command_takes_a_folder_from_anywhere(finish, store, tmp_path, monkeypatch, dataset, capsys):
    folder = finish('retinanet-amd')
    moved = shutil.copytree(store.folder, tmp_path / 'moved' / 'mini') / 'runs' / folder.name
    monkeypatch.setitem(PROFILES, 'mini', store.profile)
    monkeypatch.setattr('amdlib.runs.store.prepare', lambda *_, **__: dataset)
    assert main(['export', str(moved), '--output', str(tmp_path / 'out')]) == 0
    assert len(list((tmp_path / 'out').glob('retinanet-amd-s0-mini-*.pth'))) == 1
    assert main(['export', 'nothing-s0', '--results', str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: no run 'nothing-s0'")
