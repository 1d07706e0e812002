"""gate.py: a published teacher's mAP is checked before training; a function stands in for the evaluation."""
import dataclasses
import json

import pytest

from amdlib import gate
from amdlib.experiments import Run, SettingError
from amdlib.gate import TeacherError

TEACHER = Run.of('retinanet-teacher', 'paper')    # published: 41.0


class Evaluation:
    """Gives `map_pct` and keeps what it was asked."""
    def __init__(self, map_pct):
        self.map_pct, self.calls = map_pct, []

    def __call__(self, cfg, checkpoint):
        ann = json.loads(open(cfg.test_dataloader.dataset.ann_file).read())
        assert cfg.test_evaluator.ann_file == cfg.test_dataloader.dataset.ann_file
        self.calls.append((ann, checkpoint))
        return {'mAP': self.map_pct}


@pytest.fixture(autouse=True)
def _default(monkeypatch):
    monkeypatch.delenv('AMD_TEACHER_CHECK', raising=False)


@pytest.fixture
def check(dataset, tmp_path):
    def run(evaluate, teacher=TEACHER, file_sha256='ab', data=dataset, say=lambda *_: None):
        return gate.check(teacher, data, tmp_path / 'run', tmp_path / 'teacher.pth', file_sha256, evaluate, say)
    return run


def test_a_teacher_near_its_published_value_passes_and_is_evaluated_once(check, tmp_path):
    evaluate, said = Evaluation(43.0), []
    wanted = {'images': 300, 'map_pct': 43.0, 'published_map_pct': 41.0}
    assert check(evaluate, say=said.append) == check(evaluate) == wanted
    assert len(evaluate.calls) == 1 and evaluate.calls[0][1] == tmp_path / 'teacher.pth'
    assert said[-1] == 'retinanet-teacher-s0: 43.0 mAP on the first 300 images (published, on all: 41.0)'


def test_other_weights_other_data_and_more_images_are_evaluated_anew(check, dataset, monkeypatch):
    evaluate = Evaluation(43.0)
    check(evaluate)
    check(evaluate, file_sha256='cd')
    check(evaluate, file_sha256='cd', data=dataclasses.replace(dataset, fingerprint='0' * 16))
    monkeypatch.setenv('AMD_TEACHER_CHECK', '200')
    check(evaluate, file_sha256='cd', data=dataclasses.replace(dataset, fingerprint='0' * 16))
    assert len(evaluate.calls) == 4


def test_only_the_first_images_are_evaluated(check, dataset, monkeypatch):
    evaluate = Evaluation(43.0)
    monkeypatch.setenv('AMD_TEACHER_CHECK', '3')
    check(evaluate)
    ann, whole = evaluate.calls[0][0], json.loads(dataset.test_ann.read_text())
    ids = [image['id'] for image in whole['images'][:3]]
    assert len(whole['images']) == 4 and [image['id'] for image in ann['images']] == ids
    assert ann['annotations'] == [one for one in whole['annotations'] if one['image_id'] in ids]
    assert ann['categories'] == whole['categories']


@pytest.mark.parametrize(('map_pct', 'images', 'passes'), [
    (36.9, 300, False), (37.1, 300, True), (48.9, 300, True), (49.1, 300, False), (None, 300, False), (0.0, 300, False),
    (38.9, 1200, False), (39.1, 1200, True), (44.9, 1200, True), (45.1, 1200, False)])
def test_how_far_from_the_published_value_a_teacher_may_be(check, monkeypatch, map_pct, images, passes):
    monkeypatch.setenv('AMD_TEACHER_CHECK', str(images))
    if passes:
        assert check(Evaluation(map_pct))['map_pct'] == map_pct
    else:
        with pytest.raises(TeacherError):
            check(Evaluation(map_pct))


def test_the_message_has_both_values_causes_and_the_way_out(check, dataset):
    evaluate = Evaluation(3.2)
    for _ in range(2):    # the second time from what was kept
        with pytest.raises(TeacherError) as told:
            check(evaluate)
        for part in ('retinanet-teacher-s0', 'teacher.pth has 3.2 mAP', 'first 300 images', 'published are 41.0',
                     'expected here 37.0 to 49.0', 'another model', 'order', 'red and blue', str(dataset.test_images),
                     '--skip-teacher-check', 'SKIP_TEACHER_CHECK=1'):
            assert part in str(told.value)
    assert len(evaluate.calls) == 1


def test_it_can_be_skipped_and_that_is_recorded(check, monkeypatch):
    monkeypatch.setenv('AMD_TEACHER_CHECK', '0')
    evaluate, said = Evaluation(3.2), []
    assert check(evaluate, say=said.append) == {'images': 0, 'map_pct': None, 'published_map_pct': 41.0}
    assert not evaluate.calls and 'NOT checked' in said[0]


def test_only_published_teachers_are_checked(check):
    evaluate = Evaluation(3.2)
    assert check(evaluate, teacher=Run.of('retinanet-teacher', 'mini')) is None and not evaluate.calls


@pytest.mark.parametrize('text', ['-1', 'no', '1.5'])
def test_a_number_of_images_that_is_none_is_refused(check, monkeypatch, text):
    monkeypatch.setenv('AMD_TEACHER_CHECK', text)
    with pytest.raises(SettingError, match=f'AMD_TEACHER_CHECK={text}'):
        check(Evaluation(41.0))
