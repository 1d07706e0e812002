import contextlib
import copy
import gzip
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from amdlib import results
from amdlib.experiments import Run, config, shorter
from amdlib.results import METRICS, ResultError, coco_numbers

# ---- numbers ----------------------------------------------------------------------------------------------------

def truth_file(path, boxes_xywh_px):
    """One image of 400x400 px with these boxes, class 1."""
    path.write_text(json.dumps({
        'images': [{'id': 7, 'file_name': 'a.png', 'width': 400, 'height': 400}],
        'categories': [{'id': 1, 'name': 'disc'}],
        'annotations': [{'id': i + 1, 'image_id': 7, 'category_id': 1, 'bbox': list(box), 'iscrowd': 0,
                         'area': box[2] * box[3]} for i, box in enumerate(boxes_xywh_px)]}))
    return path


def detection(box, score=0.9):
    return {'image_id': 7, 'category_id': 1, 'bbox': list(box), 'score': score}


LARGE, MEDIUM, SMALL = (100, 100, 200, 200), (10, 10, 50, 50), (350, 350, 20, 20)


def test_perfect_detections_score_100_and_absent_sizes_have_no_number(tmp_path):
    numbers = coco_numbers(truth_file(tmp_path / 'a.json', [LARGE]), [detection(LARGE)])
    assert list(numbers) == list(METRICS)
    absent = {name: numbers.pop(name) for name in ('AP_S', 'AP_M', 'AR_S', 'AR_M')}
    assert set(absent.values()) == {None}
    assert numbers == pytest.approx(dict.fromkeys(numbers, 100.0))


def test_no_detections_score_0_and_absent_sizes_still_have_no_number(tmp_path):
    numbers = coco_numbers(truth_file(tmp_path / 'a.json', [SMALL, LARGE]), [])
    assert {name for name, value in numbers.items() if value is None} == {'AP_M', 'AR_M'}
    assert all(value == 0 for value in numbers.values() if value is not None)


def test_numbers_by_hand(tmp_path):
    """One large box found with an overlap of 0.72 counts at five of ten thresholds; the medium one is not found."""
    found = [detection((100, 100, 200, 144))]
    only = coco_numbers(truth_file(tmp_path / 'a.json', [LARGE]), found)
    assert (only['mAP'], only['AP50'], only['AP75'], only['AP_L'], only['mAR']) == pytest.approx((50, 100, 0, 50, 50))
    both = coco_numbers(truth_file(tmp_path / 'b.json', [LARGE, MEDIUM]), found)
    assert (both['AP_M'], both['AP_L'], both['mAR'], both['AP_S']) == (0, pytest.approx(50), pytest.approx(25), None)
    assert both['AP50'] == pytest.approx(100 * 51 / 101)  # precision 1 at recall 0 ... 0.5 of 101 points


def random_detections(ann_file, seed=0):
    rng = np.random.default_rng(seed)
    truth = json.loads(Path(ann_file).read_text())
    found = []
    for ann in truth['annotations']:
        for _ in range(3):
            box = [round(float(v), 2) for v in np.array(ann['bbox']) + rng.normal(0, 3, 4)]
            found.append({'image_id': ann['image_id'], 'category_id': int(rng.choice([ann['category_id'], 1])),
                          'bbox': [box[0], box[1], max(box[2], 1.0), max(box[3], 1.0)],
                          'score': round(float(rng.random()), 6)})
    return found


def test_numbers_are_pycocotools_own(dataset):
    found = random_detections(dataset.test_ann)
    numbers = coco_numbers(dataset.test_ann, found)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.test_ann))
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0 < numbers['mAP'] < 100
    assert list(numbers.values()) == [100 * v if v >= 0 else None for v in evaluation.stats]
    assert METRICS.index('mAR') == 8  # AR at 100 detections


def test_numbers_leave_the_detections_as_they_are_and_print_nothing(dataset, capsys):
    found = random_detections(dataset.test_ann)
    before = copy.deepcopy(found)
    coco_numbers(dataset.test_ann, found)
    assert found == before
    assert capsys.readouterr().out == ''


def test_detections_come_back_as_written(dataset, tmp_path):
    found = random_detections(dataset.test_ann)
    path = tmp_path / 'detections.json.gz'
    results.write_json(path, found, compress=True)
    assert results.read_detections(path) == found
    first = path.read_bytes()
    assert json.loads(gzip.decompress(first)) == found and len(first) < len(json.dumps(found)) / 2
    results.write_json(path, found, compress=True)
    assert path.read_bytes() == first  # no time in the file
    assert os.listdir(tmp_path) == ['detections.json.gz']


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    results.write_json(tmp_path / 'a.json', {'a': 1})
    with pytest.raises(TypeError):
        results.write_json(tmp_path / 'a.json', {'a': object()})
    assert json.loads((tmp_path / 'a.json').read_text()) == {'a': 1}


# ---- what a run logged ------------------------------------------------------------------------------------------

def test_scalars_are_a_line_a_logged_step(tmp_path):
    lines = [{'step': 10, 'loss': 2.5, 'loss_amd_fpn_0': 0.5, 'lr': 0.001}, {'step': 20, 'loss': 1.5, 'lr': 0.002}]
    (tmp_path / 'scalars.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    scalars = results.read_scalars(tmp_path)
    assert scalars.step.tolist() == [10, 20] and scalars.loss.tolist() == [2.5, 1.5]
    assert scalars.loss_amd_fpn_0.isna().tolist() == [False, True]     # a term that a step lacks is no 0


@pytest.mark.parametrize('content', [None, ''])
def test_a_run_that_was_not_trained_has_no_scalars(tmp_path, content):
    if content is not None:
        (tmp_path / 'scalars.jsonl').write_text(content)
    scalars = results.read_scalars(tmp_path)
    assert scalars.empty and list(scalars) == ['step', 'loss']


# ---- fingerprints -----------------------------------------------------------------------------------------------

def hash_of(profile, dataset, row='retinanet-amd', seed=0, settings=None, **places):
    return results.settings_hash(config(Run.of(row, profile, seed, settings), dataset, **places))


def test_paths_and_workers_do_not_count_as_settings(dataset, tiny, tmp_path):
    wanted = hash_of(tiny, dataset)
    assert len(wanted) == 16
    assert hash_of(tiny, dataset, work_dir='/elsewhere', teacher_weights='/some/weights.pth') == wanted
    moved = replace(dataset, **{key: tmp_path / 'moved' / getattr(dataset, key).name
                                for key in ('train_ann', 'train_images', 'test_ann', 'test_images')})
    assert hash_of(tiny, moved) == wanted
    assert hash_of(shorter(tiny, workers=3), dataset) == hash_of(shorter(tiny, workers=1), dataset) != wanted


def test_a_weight_files_folder_does_not_count_but_its_content_does(dataset, tiny, tmp_path):
    runs = []
    for place, content in (('a', b'1'), ('b', b'1'), ('c', b'2')):
        (tmp_path / place).mkdir()
        (tmp_path / place / 'r18.pth').write_bytes(content)
        runs.append(Run.of('retinanet-amd', tiny, 0, {'backbone': str(tmp_path / place / 'r18.pth')}))
    assert len({results.settings_hash(config(run, dataset)) for run in runs}) == 1
    first, same, other = (results.file_hashes(run) for run in runs)
    assert first == same != other and list(first) == ['backbone']


@pytest.mark.parametrize('changes', [
    {'settings': {'lr': 1e-4}}, {'settings': {'phi': 0.7}}, {'settings': {'epochs': 9}}, {'settings': {'alpha': 1e-5}},
    {'settings': {'batch_size': 3}}, {'settings': {'amp': True}}, {'settings': {'spatial': 'random'}}, {'seed': 1},
    {'row': 'retinanet-mgd'}, {'image_px': (96, 96)}, {'neck_channels': 128},
    {'proposals': 30, 'row': 'faster_rcnn-amd'}],
    ids=str)
def test_what_changes_a_number_changes_the_hash(dataset, tiny, changes):
    of_profile = {key: value for key, value in changes.items() if key not in ('settings', 'seed', 'row')}
    of_run = {key: value for key, value in changes.items() if key not in of_profile}
    base = {'row': of_run['row']} if of_profile and 'row' in of_run else {}
    assert hash_of(shorter(tiny, **of_profile), dataset, **of_run) != hash_of(tiny, dataset, **base)


@pytest.fixture
def copied_code(tmp_path, monkeypatch):
    """A copy of the package that fingerprints are made from; returns a function that replaces text in a module."""
    shutil.copytree(results.ROOT / 'amdlib', tmp_path / 'amdlib', ignore=shutil.ignore_patterns('__pycache__'))
    monkeypatch.setattr(results, 'ROOT', tmp_path)

    def change(module, old, new):
        path = tmp_path / 'amdlib' / module
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    return change


def prints(tiny):
    return {row: results.code_fingerprint(Run.of(f'retinanet-{row}', tiny))
            for row in ('teacher', 'baseline', 'mgd', 'fgd', 'amd')}


def test_comments_and_docstrings_are_not_code(copied_code, tiny):
    before = prints(tiny)
    copied_code('amd.py', 'return h * w * torch', '# why not\n    return h * w * torch')
    copied_code('amd.py', 'Adaptive mask, 1 = kept', 'Another docstring')
    copied_code('train.py', '"""Run one row', '"""Train one row')
    copied_code('distill.py', 'A term of the loss is inf or nan', 'Something is inf')
    assert prints(tiny) == before


@pytest.mark.parametrize(('module', 'old', 'new', 'touched'), [
    ('amd.py', 'return (f_t - f).square().sum() / len(f_t)', 'return (f_t - f).square().sum()', {'amd', 'mgd', 'fgd'}),
    ('losses.py', 'self.alpha_mgd * squared_error', '2 * self.alpha_mgd * squared_error', {'mgd', 'fgd'}),
    ('distill.py', '(term / total).detach()', '(term / total / 2).detach()', {'amd', 'mgd', 'fgd'}),
    ('train.py', 'runner.train()', 'runner.train() or None', {'teacher', 'baseline', 'amd', 'mgd', 'fgd'}),
    ('mmcv_ext.py', 'import torch', 'import math, torch', {'teacher', 'baseline', 'amd', 'mgd', 'fgd'})])
def test_a_change_of_code_is_seen_by_the_rows_that_depend_on_it(copied_code, tiny, module, old, new, touched):
    before = prints(tiny)
    copied_code(module, old, new)
    assert {row for row, found in prints(tiny).items() if found != before[row]} == touched


# ---- the state of a run -----------------------------------------------------------------------------------------

NUMBERS = dict(zip(METRICS, (10.5, 20, 9, None, 8, 12, 15, 20, 21, None, 18, 25), strict=True))


@pytest.fixture
def finish(dataset, tmp_path):
    """Writes what a finished run leaves; returns its folder."""
    def write(run, teacher_sha='t' * 64, weights_sha='t' * 64, **changes):
        place = results.run_folder(run, dataset, tmp_path)
        place.mkdir(parents=True, exist_ok=True)
        (place / 'weights.pth').write_bytes(b'w')
        results.write_json(place / 'detections.json.gz', [], compress=True)
        record = {'settings_hash': results.settings_hash(config(run, dataset)), 'files': results.file_hashes(run),
                  'data': {'fingerprint': dataset.fingerprint}, 'code_fingerprint': results.code_fingerprint(run),
                  'teacher': {'weights_sha256': teacher_sha} if run.row.method else None,
                  'weights_sha256': weights_sha, 'numbers': NUMBERS, 'code': {'commit': 'c0ffee', 'clean': True},
                  'train_s': 12.0, 'device': 'CPU', **changes}
        results.write_json(place / 'record.json', record)
        return place
    return write


@pytest.fixture
def amd(tiny):
    return Run.of('retinanet-amd', tiny)


@pytest.fixture
def stand(dataset, tmp_path):
    return lambda run, data=dataset: results.state(run, data, tmp_path)


def test_a_run_without_traces_is_missing(amd, stand):
    assert (stand(amd).name, stand(amd).record) == ('missing', None)


def test_a_run_with_a_fitting_record_is_done(amd, stand, finish):
    finish(amd.teacher())
    finish(amd)
    found = stand(amd)
    assert (found.name, found.why, found.record['numbers']) == ('done', '', NUMBERS)


def test_folders_are_named_after_profile_data_and_run(amd, dataset):
    assert results.run_folder(amd, dataset, Path('r')) == Path('r/mini/runs/retinanet-amd-s0')
    assert results.folder('small', replace(dataset, name='bccd'), Path('r')) == Path('r/small/bccd')


@pytest.mark.parametrize(('change', 'why'), [
    ({'settings_hash': '0' * 16}, 'made with other settings'),
    ({'files': {'backbone': 'f' * 64}}, 'made with other settings'),
    ({'data': {'fingerprint': 'd' * 16}}, 'made with other data (dddddddddddddddd, now '),
    ({'code_fingerprint': '0' * 16}, 'made with other code'),
    ({'teacher_sha': 'o' * 64}, 'its teacher was trained anew')])
def test_a_record_made_otherwise_is_stale_and_says_why(amd, stand, finish, change, why):
    finish(amd.teacher())
    finish(amd, **change)
    found = stand(amd)
    assert found.name == 'stale' and found.why.startswith(why)
    assert ', made' not in found.why and ', its' not in found.why  # nothing else is amiss
    assert found.record['numbers'] == NUMBERS


def test_other_settings_have_a_folder_of_their_own(amd, tiny, stand, finish):
    finish(amd.teacher())
    finish(amd)
    assert stand(Run.of('retinanet-amd', tiny, 0, {'phi': 0.7})).name == 'missing'
    assert stand(Run.of('retinanet-amd', shorter(tiny, lr=0.5))).name == 'stale'


def test_a_run_on_data_that_changed_is_stale_and_so_are_its_teacher_and_students(amd, dataset, stand, finish):
    finish(amd.teacher())
    finish(amd)
    found = stand(amd, replace(dataset, fingerprint='f' * 16))
    assert found.name == 'stale'
    assert f'made with other data ({dataset.fingerprint}, now {"f" * 16})' in found.why
    assert 'its teacher is stale' in found.why


@pytest.mark.parametrize('name', ['weights.pth', 'detections.json.gz'])
def test_a_record_without_what_it_speaks_of_is_stale(amd, stand, finish, name):
    finish(amd.teacher())
    (finish(amd) / name).unlink()
    assert (stand(amd).name, stand(amd).why) == ('stale', f'{name} is missing')


def test_a_student_whose_teacher_is_gone_is_stale(amd, stand, finish):
    finish(amd)
    assert (stand(amd).name, stand(amd).why) == ('stale', 'its teacher is missing')


def test_a_record_that_cannot_be_read_is_stale(amd, stand, finish):
    finish(amd.teacher())
    (finish(amd) / 'record.json').write_text('{"settings_hash": ')
    assert stand(amd).name == 'stale' and 'cannot be read' in stand(amd).why


@pytest.mark.parametrize('left_out', ['settings_hash', 'files', 'data', 'code_fingerprint', 'teacher', None])
def test_a_record_of_another_format_is_stale(amd, stand, finish, left_out):
    finish(amd.teacher())
    file = finish(amd) / 'record.json'
    record = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in record.items() if key != left_out} if left_out else [1]))
    assert stand(amd).name == 'stale' and 'record of another format' in stand(amd).why


def test_a_number_of_a_process_that_is_used_again_is_not_the_run(amd, dataset, stand, tmp_path):
    place = results.run_folder(amd, dataset, tmp_path)
    place.mkdir(parents=True)
    began = results.process_start(os.getpid())
    assert began > results.process_start(1) and results.process_start(2 ** 22 + 1) is None
    for started, pid in ((began, os.getpid()), (began - 1, None), (None, os.getpid())):   # None: an older kit's file
        results.write_json(place / 'progress.json', {'phase': 'train', 'step': 3, 'steps': 9, 'pid': os.getpid(),
                                                     'started': started, 'host': platform.node()})
        assert results.training_process(place) == pid
        assert stand(amd).name == ('failed' if pid is None else 'running')


@pytest.mark.parametrize(('progress', 'name', 'why'), [
    ({'pid': os.getpid()}, 'running', 'step 3 of 9'),
    ({'pid': 'dead'}, 'failed', 'killed at step 3 of 9'),
    ({'pid': 'dead', 'host': 'another machine'}, 'running', 'step 3 of 9'),
    ({'phase': 'failed', 'error': 'ValueError: bad'}, 'failed', 'ValueError: bad')])
def test_an_unfinished_run_is_running_or_failed(amd, dataset, stand, tmp_path, progress, name, why):
    if progress.get('pid') == 'dead':
        ended = subprocess.Popen([sys.executable, '-c', ''])
        ended.wait()
        progress = {**progress, 'pid': ended.pid}
    place = results.run_folder(amd, dataset, tmp_path)
    place.mkdir(parents=True)
    results.write_json(place / 'progress.json', {'phase': 'train', 'step': 3, 'steps': 9, 'pid': os.getpid(),
                                                 'host': platform.node(), **progress})
    assert (stand(amd).name, stand(amd).why) == (name, why)


# ---- many runs --------------------------------------------------------------------------------------------------

def test_collect_refuses_stale_and_missing_runs_by_name(amd, tiny, dataset, finish, tmp_path):
    other, missing = Run.of('retinanet-mgd', tiny), Run.of('retinanet-fgd', tiny)
    finish(amd.teacher())
    finish(amd)
    finish(other, code_fingerprint='0' * 16)
    with pytest.raises(ResultError) as caught:
        results.collect([amd, other, missing], dataset, tmp_path)
    text = str(caught.value)
    assert text.startswith('2 of 3 runs')
    assert 'retinanet-mgd-s0 (stale: made with other code)' in text
    assert 'retinanet-fgd-s0 (missing: never run)' in text
    assert 'retinanet-amd' not in text


def test_collect_gives_a_line_a_run(amd, tiny, dataset, finish, tmp_path):
    runs = [amd.teacher(), amd, Run.of('retinanet-amd', tiny, 1)]
    for run in runs:
        finish(run)
    table = results.collect(runs, dataset, tmp_path)
    assert table[['group', 'row', 'label', 'seed']].values.tolist() == [
        ['retinanet', 'teacher', 'Teacher', 0], ['retinanet', 'amd', 'AMD', 0], ['retinanet', 'amd', 'AMD', 1]]
    assert table.mAP.tolist() == [10.5] * 3 and table.AP_S.isna().all()
    assert table.settings_hash.nunique() == 3
