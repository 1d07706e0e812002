"""teacher_check.py: a published teacher's mAP is checked before training; a function stands in for the evaluation."""
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from amdlib.errors import WeightsError
from amdlib.paper.printed import paper_value
from amdlib.paper.profiles import PROFILES
from amdlib.runs import teacher_check
from amdlib.runs.run import Run
from amdlib.runs.store import Store

TEACHER = Run.of('retinanet-teacher', 'paper')
PUBLISHED = paper_value('I', 'retinanet', 'teacher', 'mAP')     # 41.0


class Evaluation:
    """Gives `map_pct` and keeps what it was asked."""

    def __init__(self, map_pct):
        self.map_pct, self.calls = map_pct, []

    def __call__(self, cfg, checkpoint, watch):
        ann = json.loads(Path(cfg.test_dataloader.dataset.ann_file).read_text())
        assert cfg.test_evaluator.ann_file == cfg.test_dataloader.dataset.ann_file
        self.calls.append((ann, str(checkpoint)))
        return {'mAP': self.map_pct}


@pytest.fixture
def check(dataset, tmp_path):
    """Evaluation, and what differs from a teacher's row whose file is 'ab' -> what was found."""
    def run(evaluate, run=TEACHER, sha256='ab', data=dataset, images=300, taught_by=None):
        store = Store(PROFILES['paper'], data, tmp_path / 'results').with_means(teacher_check_images=images)
        files, hashes = ({}, {}) if taught_by else ({'checkpoint': f'{tmp_path}/teacher.pth'}, {'checkpoint': sha256})
        return teacher_check.check(run, store, taught_by, files, hashes, evaluate, lambda *_: None)
    return run


def test_a_teacher_near_its_published_value_passes_and_is_evaluated_once(check, tmp_path, caplog):
    evaluate = Evaluation(43.0)
    wanted = {'images': 300, 'map_pct': 43.0, 'published_map_pct': PUBLISHED}
    with caplog.at_level(logging.INFO):
        assert check(evaluate) == check(evaluate) == wanted
    assert [checkpoint for _, checkpoint in evaluate.calls] == [f'{tmp_path}/teacher.pth']
    assert caplog.messages[-1] == (f'retinanet-teacher-s0: 43.0 mAP on the first 300 images (published, on all: '
                                   f'{PUBLISHED})')


def test_a_student_is_checked_by_its_teachers_row(check, tmp_path):
    """Its weights are evaluated; what its row was checked with counts for the student."""
    evaluate, student = Evaluation(43.0), Run.of('retinanet-amd', 'paper')
    found = check(evaluate, student, taught_by={'files': {'checkpoint': 'ab'}})
    assert found['map_pct'] == 43.0
    weights = tmp_path / 'results' / 'paper' / 'mini' / 'runs' / 'retinanet-teacher-s0' / 'weights.pth'
    assert [checkpoint for _, checkpoint in evaluate.calls] == [str(weights)]
    assert check(evaluate) == check(evaluate, student, taught_by={'files': {'checkpoint': 'ab'}}) == found
    assert len(evaluate.calls) == 1


def test_other_weights_other_data_and_more_images_are_evaluated_anew(check, dataset):
    evaluate, other = Evaluation(43.0), replace(dataset, fingerprint='0' * 16)
    for more in ({}, {'sha256': 'cd'}, {'sha256': 'cd', 'data': other}, {'sha256': 'cd', 'data': other, 'images': 200}):
        before = len(evaluate.calls)
        check(evaluate, **more)
        check(evaluate, **more)
        assert len(evaluate.calls) == before + 1


def test_only_the_first_images_are_evaluated(check, dataset):
    evaluate = Evaluation(43.0)
    check(evaluate, images=3)
    ann, whole = evaluate.calls[0][0], json.loads(dataset.test_ann.read_text())
    ids = [image['id'] for image in whole['images'][:3]]
    assert len(whole['images']) == 4
    assert [image['id'] for image in ann['images']] == ids
    assert ann['annotations'] == [one for one in whole['annotations'] if one['image_id'] in ids]
    assert ann['categories'] == whole['categories']


@pytest.mark.parametrize(('difference', 'images', 'passes'), [
    (-4.1, 300, False), (-3.9, 300, True), (7.9, 300, True), (8.1, 300, False), (None, 300, False),
    (-PUBLISHED, 300, False), (-2.1, 1200, False), (-1.9, 1200, True), (3.9, 1200, True), (4.1, 1200, False)])
def test_how_far_from_the_published_value_a_teacher_may_be(check, difference, images, passes):
    evaluate = Evaluation(None if difference is None else PUBLISHED + difference)
    if passes:
        assert check(evaluate, images=images)['map_pct'] == evaluate.map_pct
    else:
        with pytest.raises(WeightsError):
            check(evaluate, images=images)


def test_the_message_has_both_values_causes_and_the_way_out(check, dataset):
    evaluate = Evaluation(3.2)
    for _ in range(2):    # the second time from what was kept
        with pytest.raises(WeightsError) as told:
            check(evaluate)
        for part in ('retinanet-teacher-s0', 'teacher.pth has 3.2 mAP', 'first 300 images',
                     f'published are {PUBLISHED}', f'expected here {PUBLISHED - 4} to {PUBLISHED + 8}', 'another model',
                     'order', 'red and blue', str(dataset.test_images), '--skip-teacher-check',
                     'SKIP_TEACHER_CHECK=1'):
            assert part in str(told.value)
    assert len(evaluate.calls) == 1


def test_it_can_be_skipped_and_that_is_recorded(check, caplog):
    evaluate = Evaluation(3.2)
    assert check(evaluate, images=0) == {'images': 0, 'map_pct': None, 'published_map_pct': PUBLISHED}
    assert evaluate.calls == []
    assert 'NOT checked (--skip-teacher-check)' in caplog.text


def test_a_teacher_for_which_none_is_published_is_not_checked(check, caplog):
    group = replace(TEACHER.row.group, name='fcos')
    run = replace(TEACHER, row=replace(TEACHER.row, group=group))
    assert check(Evaluation(3.2), run) == {'images': 0, 'map_pct': None, 'published_map_pct': None}
    assert 'NOT checked (none is published for it)' in caplog.text


@pytest.mark.parametrize('row', ['retinanet-teacher', 'retinanet-amd', 'retinanet-baseline'])
def test_only_published_teachers_are_checked(check, row):
    evaluate = Evaluation(3.2)
    assert check(evaluate, Run.of(row, 'mini')) is None
    assert evaluate.calls == []


def test_a_student_without_a_teacher_is_not_checked(dataset, tmp_path):
    store = Store(PROFILES['paper'], dataset, tmp_path)
    baseline, evaluate = Run.of('retinanet-baseline', 'paper'), Evaluation(3.2)
    assert teacher_check.check(baseline, store, None, {'backbone': 'x'}, {'backbone': 'ab'}, evaluate, None) is None
    assert evaluate.calls == []
