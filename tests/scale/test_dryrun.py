"""dryrun.py: the paper's detectors on small images, what a row must show to pass; nothing of it is a result."""
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest

from amdlib.datasets import prepare
from amdlib.errors import DataError, RunError, SettingError
from amdlib.files import ROOT, read_json, write_json
from amdlib.paper.profiles import DRY_RUN
from amdlib.paper.rows import ROWS
from amdlib.runs import evidence
from amdlib.runs.config import config
from amdlib.runs.run import Run, table_runs, with_teachers
from amdlib.runs.store import Store
from amdlib.runs.train import train
from amdlib.scale import dryrun
from amdlib.scale.dryrun import PeakMemory, check_run, dry_run
from amdlib.show import report
from tests.conftest import shared

slow = pytest.mark.slow


@pytest.fixture
def coco_2017(dataset, tmp_path):
    """The mini set of the tests under the names of COCO 2017."""
    root = tmp_path / 'coco'
    (root / 'annotations').mkdir(parents=True)
    for name, ann, images in (('train2017', dataset.train_ann, dataset.train_images),
                              ('val2017', dataset.test_ann, dataset.test_images)):
        (root / 'annotations' / f'instances_{name}.json').write_text(ann.read_text())
        (root / name).symlink_to(images)
    return root


# ---- what is run ------------------------------------------------------------------------------------------------

def without(cfg, *names):
    """A config as plain values, less what is called one of `names` at any depth."""
    if isinstance(cfg, dict):
        return {key: without(value, *names) for key, value in cfg.items() if key not in names}
    return [without(value, *names) for value in cfg] if isinstance(cfg, (list, tuple)) else cfg


@pytest.mark.parametrize('row', ROWS)
def test_detectors_and_recipe_are_the_papers(row, dataset):
    coco = replace(dataset, classes=tuple(map(str, range(80))))     # heads have as many classes as the data
    dry, paper = config(Run.of(row, 'dryrun'), coco), config(Run.of(row, 'paper'))
    # init_cfg: published weights there, random ones here; score_thr: else nothing would be detected
    model = [without(cfg.model.to_dict(), 'init_cfg', 'score_thr', 'options') for cfg in (dry, paper)]
    assert model[0] == model[1]
    for part in ('optim_wrapper', 'auto_scale_lr', 'train_cfg'):
        assert without(dry[part].to_dict(), 'max_epochs') == without(paper[part].to_dict(), 'max_epochs'), part
    assert dry.train_dataloader.batch_size == paper.train_dataloader.batch_size == 2
    pipelines = [without(list(cfg.train_dataloader.dataset.pipeline), 'scale') for cfg in (dry, paper)]
    assert pipelines[0] == pipelines[1]
    assert dry.train_dataloader.dataset.pipeline != paper.train_dataloader.dataset.pipeline


def test_no_weights_are_looked_for():
    assert not any(Run.of(row, 'dryrun').published_files() for row in ROWS)
    assert all(Run.of(row, 'paper').published_files() for row in ROWS if ROWS[row].name != 'untrained')


@pytest.mark.parametrize('row', ROWS)
def test_backbones_are_random(row, dataset):
    model = config(Run.of(row, 'dryrun'), dataset).model
    parts = [model.student, model.teacher] if ROWS[row].method else [model]
    assert [part.backbone.init_cfg for part in parts] == [None] * len(parts)


@pytest.mark.parametrize(('row', 'masks'), [
    ('faster_rcnn-teacher', True), ('faster_rcnn-baseline', False), ('faster_rcnn-amd', False)])
def test_masks_are_loaded_where_a_head_learns_them(row, masks, dataset):
    pipeline = config(Run.of(row, 'dryrun'), dataset).train_dataloader.dataset.pipeline
    assert bool(next(step for step in pipeline if step.type == 'LoadAnnotations').get('with_mask')) == masks


def test_the_first_annotated_images_are_taken(coco_2017, dataset, tmp_path):
    file = coco_2017 / 'annotations' / 'instances_train2017.json'
    coco = json.loads(file.read_text())
    ids = [image['id'] for image in coco['images']]
    coco['annotations'] = [one for one in coco['annotations'] if one['image_id'] != ids[1]]
    file.write_text(json.dumps(coco))
    taken = prepare('first_of_coco', coco_2017, tmp_path / 'cache', first_images=(3, 2))
    train, test = (json.loads(path.read_text()) for path in (taken.train_ann, taken.test_ann))
    assert [image['id'] for image in train['images']] == [ids[0], ids[2], ids[3]]
    assert {one['image_id'] for one in train['annotations']} == {ids[0], ids[2], ids[3]}
    assert len(test['images']) == 2
    assert taken.classes == dataset.classes
    assert taken.train_images.samefile(dataset.train_images)
    assert any('mean nothing' in note for note in taken.notes)
    again = prepare('first_of_coco', coco_2017, tmp_path / 'cache', first_images=(2, 2))
    assert len(json.loads(again.train_ann.read_text())['images']) == 2
    assert again.fingerprint != taken.fingerprint
    with pytest.raises(DataError, match='7 annotated images, a dry run takes 9'):
        prepare('first_of_coco', coco_2017, tmp_path / 'cache', first_images=(9, 2))


# ---- no results -------------------------------------------------------------------------------------------------

def test_a_dry_run_goes_into_no_table(dataset, tmp_path):
    with pytest.raises(SettingError, match='dryrun makes no tables'):
        table_runs('table1', 'dryrun')
    store = Store(DRY_RUN, dataset, tmp_path)
    with pytest.raises(RunError, match='retinanet-amd-s0: made with random weights'):
        store.collect([Run.of('retinanet-amd', 'dryrun')])
    with pytest.raises(RunError, match='dry run'):
        report.build(store)


# ---- what a row must show ---------------------------------------------------------------------------------------

@pytest.fixture
def dry(store, monkeypatch):
    """A store of the dry run's profile, tiny."""
    profile = replace(store.profile, name='dryrun', dry_run=True, score_thr=0.0, log_every=1, test_batch_size=1,
                      can_show=DRY_RUN.can_show)
    return replace(store, profile=profile)


def in_this_process(runs, store, *, check, **_):
    """Stands in for run_missing."""
    failed = []
    for run in with_teachers(runs):
        train(run, store)
        try:
            check(run)
        except Exception as error:
            failed.append(f'  {run.id}: {type(error).__name__}: {error}')
    if failed:
        raise RunError(f'{len(failed)} of {len(runs)} runs failed:\n' + '\n'.join(failed))


@slow
def test_rows_are_run_exported_and_read_again(dry, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(dryrun, 'run_missing', in_this_process)
    caplog.set_level(logging.INFO)
    table = dry_run(dry, rows=['retinanet-amd', 'faster_rcnn-baseline', 'retinanet-baseline'])
    assert table.row.tolist() == ['retinanet-teacher', 'retinanet-amd', 'faster_rcnn-baseline', 'retinanet-baseline']
    assert (table.problem == '').all(), table.problem.tolist()
    assert (table.steps == 4).all()
    assert (table.detections > 20).all()
    assert (table.read_again == 'same detections').all()
    assert (table.images == 4).all()
    assert table.set_index('row').onnx.to_dict() == {
        'retinanet-teacher': '', 'retinanet-amd': '', 'faster_rcnn-baseline': '', 'retinanet-baseline': 'same boxes'}
    text = (dry.folder / 'dryrun.md').read_text()
    assert 'mean nothing' in text
    assert '4 of 4 rows passed' in text
    assert pd.read_csv(dry.folder / 'dryrun.csv').row.tolist() == table.row.tolist()
    kept = (dry.folder / 'dryrun.log').read_text()
    assert all(f'  {row}: ' in kept for row in table.row)
    assert str(tmp_path) not in kept
    assert 'retinanet-amd: 4 steps' in caplog.text
    runs = dry.folder / 'runs'
    assert not [*runs.rglob('*.pth'), *runs.rglob('*.onnx')]     # checked, then dropped
    card = next((runs / 'retinanet-amd-s0' / 'export').glob('*.md'))
    assert 'mean nothing' in card.read_text()


@slow
def test_the_tenth_is_run_on_its_own_images(dry, coco_2017, tmp_path, monkeypatch):
    monkeypatch.setattr(dryrun, 'run_missing', in_this_process)
    data = prepare('tenth_of_coco', coco_2017, tmp_path / 'cache')
    store = replace(dry, dataset=data, profile=replace(dry.profile, batch_size=1))
    table = dry_run(store, rows=['faster_rcnn-mgd'])
    assert table.problem.tolist() == ['', '']
    assert table.steps.tolist() == [1, 1]       # one of the eight images
    assert table.images.tolist() == [4, 4]      # all that are reported
    assert '(seed 0)' in (tmp_path / 'results' / 'dryrun' / 'tenth' / 'dryrun.md').read_text()


@slow
def test_a_row_that_differs_after_reading_fails(dry):
    run = Run.of('retinanet-baseline', dry.profile)
    train(run, dry)
    check_run(run, dry)
    folder, detections = dry.run_folder(run), dry.detections(run)
    scalars = (folder / 'scalars.jsonl').read_text()

    def check(message, changed=detections, logged=scalars):
        write_json(folder / 'detections.json.gz', changed)
        record = read_json(folder / 'record.json')      # its files are those that it speaks of
        write_json(folder / 'record.json', {**record, **evidence.of(folder, record['numbers'])})
        (folder / 'scalars.jsonl').write_text(logged)
        with pytest.raises(RunError, match=message):
            check_run(run, dry)
    check('by up to 3 px', [{**one, 'bbox': [one['bbox'][0] + 3, *one['bbox'][1:]]} for one in detections])
    check('and 0.1 in score', [{**one, 'score': one['score'] + 0.1} for one in detections])
    check('instead of', detections[1:])
    check('nothing was detected', [])
    check('not finite: loss_cls', logged=scalars.replace('"loss_cls": ', '"loss_cls": 1e999, "was": '))
    check('4 steps, of which 3', logged=''.join(scalars.splitlines(keepends=True)[1:]))


def test_a_term_a_level_is_asked_for():
    run = Run.of('faster_rcnn-amd', 'dryrun')
    logged = pd.DataFrame({'step': [1], 'loss': [1.0], 'loss_amd_fpn_0': [1.0], 'loss_amd_fpn_1': [1.0],
                           'loss_amd_fpn_3': [1.0]})
    with pytest.raises(RunError, match='no such term among the losses: loss_amd_fpn_2;'):
        dryrun._check_losses(run, {'steps': 1}, logged)


def test_of_a_method_that_looks_at_steps_some_term_is_asked_for():
    run, logged = Run.of('faster_rcnn-pkd', 'dryrun'), pd.DataFrame({'step': [1], 'loss': [1.0], 'loss_cls': [1.0]})
    dryrun._check_losses(run, {'steps': 1}, logged.assign(loss_pkd_fpn_0=1.0))
    with pytest.raises(RunError, match='no such term among the losses: loss_pkd_;'):
        dryrun._check_losses(run, {'steps': 1}, logged)


def test_failures_are_told_in_table_and_message(dry, monkeypatch):
    def failing(*_, **__):
        raise RunError('2 of 2 runs failed:\n  retinanet-teacher-s0: exit 1\n'
                       '  retinanet-amd-s0: its teacher retinanet-teacher-s0 failed')
    monkeypatch.setattr(dryrun, 'run_missing', failing)
    with pytest.raises(RunError, match='exit 1'):
        dry_run(dry, rows=['retinanet-amd'])
    table = pd.read_csv(dry.folder / 'dryrun.csv')
    assert dict(zip(table.row, table.problem, strict=True)) == {
        'retinanet-teacher': 'exit 1', 'retinanet-amd': 'its teacher retinanet-teacher-s0 failed'}
    text = (dry.folder / 'dryrun.md').read_text()
    assert '0 of 2 rows passed, 2 failed' in text
    assert 'FAILED: exit 1' in text


def _hold(mib, held, end):
    block = bytearray(os.urandom(1 << 20)) * mib
    held.set()
    end.wait(60)
    return block


def test_memory_of_children_counts():
    context = multiprocessing.get_context('fork')
    held, end = context.Event(), context.Event()
    with PeakMemory(every_s=0.05) as before:
        pass
    with PeakMemory(every_s=0.05) as memory:
        child = context.Process(target=_hold, args=(200, held, end))
        child.start()
        assert held.wait(60)
        time.sleep(0.5)
        end.set()
        child.join()
    assert 150 * 2 ** 20 < memory.peak_bytes - before.peak_bytes < 600 * 2 ** 20


# ---- in full ----------------------------------------------------------------------------------------------------

@slow
def test_a_student_at_full_architecture(tmp_path):
    ended = subprocess.run(
        [sys.executable, '-m', 'amdlib', 'dryrun', 'retinanet-baseline', '--data', shared('data/tiny_coco'),
         '--results', tmp_path, '--jobs', '1', '--device', 'cpu'],
        capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    line = pd.read_csv(tmp_path / 'dryrun' / 'dryrun.csv').iloc[0]
    assert line.row == 'retinanet-baseline'
    assert line.steps == 3
    assert line.detections > 100
    assert line.read_again == 'same detections'
    assert line.onnx == 'same boxes'
    assert 'retinanet-baseline: 3 steps' in ended.stdout
    assert '1 of 1 rows passed' in ended.stdout
