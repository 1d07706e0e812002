"""dryrun.py: the paper's detectors on small images, what a row must show to pass; nothing of it is a result."""
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from amdlib import batch, data, dryrun, experiments, report, results
from amdlib.data import DataError
from amdlib.dryrun import DryRunError, PeakMemory, check_run, dry_run
from amdlib.experiments import DRY_RUN, ROWS, Run, SettingError, config, shorter, table_runs
from amdlib.train import run_row

slow = pytest.mark.slow
ROOT = Path(dryrun.__file__).parents[1]
TINY_COCO = Path(os.environ.get('AMD_SHARED', ROOT.parent / 'shared')) / 'data' / 'tiny_coco'
QUIET = {'say': lambda *_: None}


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
    dry, paper = config(Run.of(row, 'dryrun'), dataset), config(Run.of(row, 'paper'))
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
    assert all(Run.of(row, 'paper').published_files() for row in ROWS)


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
    taken = data.prepare('dryrun', coco_2017, tmp_path / 'cache', lambda *_: None, first_images=(3, 2))
    train, test = (json.loads(path.read_text()) for path in (taken.train_ann, taken.test_ann))
    assert [image['id'] for image in train['images']] == [ids[0], ids[2], ids[3]]
    assert {one['image_id'] for one in train['annotations']} == {ids[0], ids[2], ids[3]}
    assert len(test['images']) == 2 and taken.classes == dataset.classes
    assert taken.train_images.samefile(dataset.train_images)
    assert any('mean nothing' in note for note in taken.notes)
    again = data.prepare('dryrun', coco_2017, tmp_path / 'cache', lambda *_: None, first_images=(2, 2))
    assert len(json.loads(again.train_ann.read_text())['images']) == 2 and again.fingerprint != taken.fingerprint
    with pytest.raises(DataError, match='7 annotated images, a dry run takes 9'):
        data.prepare('dryrun', coco_2017, tmp_path / 'cache', lambda *_: None, first_images=(9, 2))


# ---- no results -------------------------------------------------------------------------------------------------

def test_a_dry_run_goes_into_no_table(dataset, tmp_path):
    with pytest.raises(SettingError, match='dryrun makes no tables'):
        table_runs('table1', 'dryrun')
    with pytest.raises(results.ResultError, match='retinanet-amd-s0: made with random weights'):
        results.collect([Run.of('retinanet-amd', 'dryrun')], dataset, tmp_path)
    with pytest.raises(report.ReportError, match='dry run'):
        report.build('dryrun', dataset, tmp_path)


# ---- what a row must show ---------------------------------------------------------------------------------------

@pytest.fixture
def tiny_dry_run(tiny, monkeypatch):
    profile = shorter(tiny, name='dryrun', dry_run=True, score_thr=0.0, log_every=1, test_batch_size=1,
                      can_show=DRY_RUN.can_show)
    for module in (experiments, dryrun):
        monkeypatch.setattr(module, 'DRY_RUN', profile)
    return profile


def in_this_process(runs, dataset, _data, *, results_dir, check, **_):
    """Stands in for batch.run_missing, whose children would have the real profile."""
    failed = []
    for run in batch.with_teachers(runs):
        run_row(run, dataset, results_dir, **QUIET)
        try:
            check(run)
        except Exception as error:
            failed.append(f'  {run.id}: {type(error).__name__}: {error}')
    if failed:
        raise batch.BatchError(f'{len(failed)} of {len(runs)} runs failed:\n' + '\n'.join(failed))


@slow
def test_rows_are_run_exported_and_read_again(dataset, tmp_path, tiny_dry_run, monkeypatch):
    monkeypatch.setattr(batch, 'run_missing', in_this_process)
    said = []
    table = dry_run(dataset, 'unused', tmp_path, rows=['retinanet-amd', 'faster_rcnn-baseline', 'retinanet-baseline'],
                    say=said.append)
    assert table.row.tolist() == ['retinanet-teacher', 'retinanet-amd', 'faster_rcnn-baseline', 'retinanet-baseline']
    assert (table.problem == '').all() and (table.steps == 4).all() and (table.detections > 20).all()
    assert (table.read_again == 'same detections').all() and (table.images == 4).all()
    assert table.set_index('row').onnx.to_dict() == {
        'retinanet-teacher': '', 'retinanet-amd': '', 'faster_rcnn-baseline': '', 'retinanet-baseline': 'same boxes'}
    place = results.folder('dryrun', dataset, tmp_path)
    text = (place / 'dryrun.md').read_text()
    assert 'mean nothing' in text and '4 of 4 rows passed' in text
    assert pd.read_csv(place / 'dryrun.csv').row.tolist() == table.row.tolist()
    log = (place / 'dryrun.log').read_text()
    assert all(f'  {row}: ' in log for row in table.row) and str(tmp_path) not in log
    assert any('retinanet-amd: 4 steps' in line for line in said)
    runs = place / 'runs'
    assert not [*runs.rglob('*.pth'), *runs.rglob('*.onnx')]     # checked, then dropped
    card = next((runs / 'retinanet-amd-s0' / 'export').glob('*.md'))
    assert 'mean nothing' in card.read_text()


@slow
def test_a_row_that_differs_after_reading_fails(dataset, tmp_path, tiny_dry_run, monkeypatch):
    run = Run.of('retinanet-baseline', 'dryrun')
    run_row(run, dataset, tmp_path, **QUIET)
    place = results.run_folder(run, dataset, tmp_path)
    check_run(run, dataset, tmp_path)
    detections = results.read_detections(place / 'detections.json.gz')
    scalars = (place / 'scalars.jsonl').read_text()

    def check(message, changed=detections, logged=scalars):
        results.write_json(place / 'detections.json.gz', changed, compress=True)
        (place / 'scalars.jsonl').write_text(logged)
        with pytest.raises(DryRunError, match=message):
            check_run(run, dataset, tmp_path)
    check('by up to 3 px', [{**one, 'bbox': [one['bbox'][0] + 3, *one['bbox'][1:]]} for one in detections])
    check('and 0.1 in score', [{**one, 'score': one['score'] + 0.1} for one in detections])
    check('instead of', detections[1:])
    check('nothing was detected', [])
    check('not finite: loss_cls', logged=scalars.replace('"loss_cls": ', '"loss_cls": 1e999, "was": '))
    check('4 steps, of which 3', logged=''.join(scalars.splitlines(keepends=True)[1:]))


def test_a_term_a_level_is_asked_for(dataset):
    run = Run.of('faster_rcnn-amd', 'dryrun')
    logged = pd.DataFrame({'step': [1], 'loss': [1.0], 'loss_amd_fpn_0': [1.0], 'loss_amd_fpn_1': [1.0],
                           'loss_amd_fpn_3': [1.0]})
    with pytest.raises(DryRunError, match='no such term among the losses: loss_amd_fpn_2;'):
        dryrun._check_losses(run, {'steps': 1}, logged)


def test_failures_are_told_in_table_and_message(dataset, tmp_path, tiny_dry_run, monkeypatch):
    def failing(runs, *_, **__):
        raise batch.BatchError('2 of 2 runs failed:\n  retinanet-teacher-s0: exit 1\n'
                               '  retinanet-amd-s0: its teacher retinanet-teacher-s0 failed')
    monkeypatch.setattr(batch, 'run_missing', failing)
    with pytest.raises(DryRunError, match='exit 1'):
        dry_run(dataset, 'unused', tmp_path, rows=['retinanet-amd'], **QUIET)
    table = pd.read_csv(results.folder('dryrun', dataset, tmp_path) / 'dryrun.csv')
    assert dict(zip(table.row, table.problem, strict=True)) == {
        'retinanet-teacher': 'exit 1', 'retinanet-amd': 'its teacher retinanet-teacher-s0 failed'}
    text = (results.folder('dryrun', dataset, tmp_path) / 'dryrun.md').read_text()
    assert '0 of 2 rows passed, 2 failed' in text and 'FAILED: exit 1' in text


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
@pytest.mark.skipif(not TINY_COCO.is_dir(), reason='AMD_SHARED has no data/tiny_coco')
def test_a_student_at_full_architecture(tmp_path):
    ended = subprocess.run(
        [sys.executable, '-m', 'amdlib', 'dryrun', 'retinanet-baseline', '--data', TINY_COCO, '--results', tmp_path,
         '--jobs', '1', '--device', 'cpu'], capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    line = pd.read_csv(tmp_path / 'dryrun' / 'dryrun.csv').iloc[0]
    assert line.row == 'retinanet-baseline' and line.steps == 3 and line.detections > 100
    assert line.read_again == 'same detections' and line.onnx == 'same boxes'
    assert 'retinanet-baseline: 3 steps' in ended.stdout and '1 of 1 rows passed' in ended.stdout
