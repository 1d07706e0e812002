"""The test bed end to end, by `train`: kept and scaled features, arms, controls, splits, shipped teachers."""
import json
import shutil

import pytest
import torch

from amdlib.engine import kept as kept_module
from amdlib.engine.kept import KeptFeatures
from amdlib.errors import RunError
from amdlib.evaluation import coco_numbers
from amdlib.files import read_json, sha256
from amdlib.runs import config as config_module
from amdlib.runs import run as run_module
from amdlib.runs.run import Run
from amdlib.runs.store import Store, read_scalars
from amdlib.runs.train import train
from amdlib.weights.writing import write_weights

from .conftest import equal, state_dict

pytestmark = pytest.mark.slow
STEPS = 4


@pytest.fixture(scope='module')
def done(bed, dataset, tmp_path_factory):
    """A store of the bed, its runs trained once for this module."""
    return Store(bed, dataset, tmp_path_factory.mktemp('bed') / 'results')


@pytest.fixture(scope='module')
def trained(bed, done):
    """Row of RetinaNet, seed, settings -> (Run, record, folder), its teacher with it."""
    def get(row, seed=0, **settings):
        run = Run.of(f'retinanet-{row}', bed, seed, settings)
        return run, train(run, done), done.run_folder(run)
    return get


@pytest.fixture
def no_looking(monkeypatch):
    """Nobody may compute features."""
    def look(*_, **__):
        raise AssertionError('features are computed again')
    monkeypatch.setattr(kept_module, 'keep', look)


# ---- a seed ------------------------------------------------------------------------------------------------------

def test_rows_of_a_seed_and_arm_start_from_one_student(trained):
    alone = {trained(row)[1]['student_sha256'] for row in ('baseline', 'amd', 'mgd', 'amd-allmasked')}
    inheriting = {trained('inherit')[1]['student_sha256'],
                  *(trained(row, inherit=True)[1]['student_sha256'] for row in ('amd', 'fgd'))}
    assert len(alone) == len(inheriting) == 1
    assert alone != inheriting
    assert trained('baseline', 1)[1]['student_sha256'] not in alone
    assert {trained(row)[1]['arm'] for row in ('baseline', 'amd', 'mgd')} == {'alone'}
    assert trained('inherit')[1]['arm'] == trained('amd', inherit=True)[1]['arm'] == 'inherit'


# ---- kept and scaled features -------------------------------------------------------------------------------------

def test_divided_features_of_the_teacher_have_the_reference_rms_at_each_level(trained, bed):
    _, teacher, folder = trained('teacher')
    _, record, _ = trained('amd')
    assert record['reference_rms'] == bed.reference_rms
    model, found = record['config']['model'], KeptFeatures(folder / 'features')
    ids, px = list(found.row_of), found.image_px
    assert len(ids) == 8
    levels = found(ids + ids, [False] * len(ids) + [True] * len(ids), px)
    assert teacher['feature_rms'] == pytest.approx([level.double().square().mean().sqrt().item() for level in levels])
    for level, scale in zip(levels, model['scales'], strict=True):
        rms = (level / scale).double().square().mean().sqrt().item()
        assert rms == pytest.approx(bed.reference_rms, rel=1e-5)
    assert len(set(model['scales'])) == len(levels)
    assert model['kept'] == 'features'      # no folder of this machine


def test_one_scale_brings_the_levels_together_to_the_reference(trained, bed):
    rms = trained('teacher')[1]['feature_rms']
    _, record, _ = trained('amd', one_scale=True, reference=0.2, levels=(0, 1, 2))
    (scale,) = set(record['config']['model']['scales'])
    assert (sum((one / scale) ** 2 for one in rms[:3]) / 3) ** 0.5 == pytest.approx(0.2, rel=1e-5)
    assert record['reference_rms'] == 0.2


def test_a_teacher_looks_at_its_pictures_once(trained, request):
    trained('teacher')
    request.getfixturevalue('no_looking')
    trained('mgd', 3)
    trained('amd', 3, inherit=True)


def test_features_that_are_gone_are_kept_again(trained, bed, done):
    teacher, _, folder = trained('teacher')
    before = KeptFeatures(folder / 'features').features[:].copy()
    shutil.rmtree(folder / 'features')
    assert done.state(teacher).name == 'done'
    train(Run.of('retinanet-baseline', bed, 4), done)
    train(Run.of('retinanet-inherit', bed, 4), done)        # neither looks at features
    assert not (folder / 'features').exists()
    trained('fgd', 4)
    assert (KeptFeatures(folder / 'features').features == before).all()


def test_a_teacher_in_a_folder_of_its_own_keeps_its_features_there(bed, dataset, tmp_path):
    store = Store(bed, dataset, tmp_path / 'results')
    record = train(Run.of('retinanet-teacher', bed), store, work_dir=tmp_path / 'own')
    assert (tmp_path / 'own' / 'features' / 'features.npy').is_file()
    assert len(record['feature_rms']) == 5
    assert not store.folder.exists()


def test_where_no_features_are_kept_a_reference_is_measured(tiny, dataset, tmp_path):
    store = Store(tiny, dataset, tmp_path / 'results')
    run = Run.of('retinanet-amd', tiny, 0, {'reference': 0.5})
    record = train(run, store)
    card = store.run_folder(run.teacher()) / 'features'
    assert [path.name for path in card.iterdir()] == ['kept.json']
    wanted = [rms / 0.5 for rms in read_json(card / 'kept.json')['feature_rms']]
    assert record['config']['model']['scales'] == pytest.approx(wanted)
    plain = train(Run.of('retinanet-amd', tiny), store)
    assert 'scales' not in plain['config']['model']
    assert plain['reference_rms'] is None
    assert plain['weights_sha256'] != record['weights_sha256']


def test_what_is_logged_beside_the_losses(trained, done):
    logged = done.scalars(trained('amd', epochs=6)[0])
    for name in ('ratio', 'grad_detection', 'grad_distillation', *(f'{part}_fpn_{i}' for part in ('share', 'masked')
                                                                   for i in range(5))):
        assert logged[name].notna().all()
        assert (logged[name] >= 0).all()


# ---- rows --------------------------------------------------------------------------------------------------------

def test_an_untrained_teacher_has_random_weights_and_teaches(trained, done):
    run, record, folder = trained('untrained')
    assert (record['steps'], record['teacher'], record['files']) == (0, None, {})
    assert len(record['feature_rms']) == 5
    assert done.state(run).name == 'done'
    assert not equal(state_dict(folder), state_dict(trained('teacher')[2]))
    _, taught, _ = trained('amd-untrained')
    assert taught['teacher'] == {'id': 'retinanet-untrained-s0', 'weights_sha256': sha256(folder / 'weights.pth')}
    assert taught['steps'] == STEPS
    assert taught['weights_sha256'] != trained('amd')[1]['weights_sha256']


@pytest.mark.parametrize('control', ['amd-shuffled', 'amd-permuted', 'amd-inverted', 'amd-spread', 'amd-smoothed',
                                     'fitnet'])
def test_controls_train(trained, control):
    _, record, _ = trained(control)
    assert record['steps'] == STEPS
    assert record['teacher'] == trained('amd')[1]['teacher']
    assert record['weights_sha256'] != trained('amd')[1]['weights_sha256']


@pytest.mark.parametrize('method', ['cwd', 'pkd', 'fgfi', 'defeat'])
def test_methods_of_the_zoo_train_and_the_beds_guards_see_their_terms(trained, method):
    begins = {'off_steps': 2} if method == 'fgfi' else {}
    _, record, folder = trained(method, **begins)
    assert (record['steps'], record['arm']) == (STEPS, 'alone')
    assert record['student_sha256'] == trained('amd')[1]['student_sha256']
    assert record['weights_sha256'] != trained('baseline')[1]['weights_sha256']
    assert read_scalars(folder)[f'loss_{method}_fpn_0'].iloc[-1] > 0
    positions, warnings = record['bed']['positions'], record['bed']['warnings']
    assert set(positions) == {'0', '1', '2', '3', '4'}
    # one position is no distribution, and two values a channel, one an image, are correlated or opposed without between
    told = [level for level, count in positions.items() if count > 1 or method in ('fgfi', 'defeat')]
    assert not [level for level in told if any(f'_fpn_{level} gives' in text for text in warnings)]


def test_a_shuffled_teacher_is_refused_where_no_features_are_kept(tiny, dataset, tmp_path):
    store = Store(tiny, dataset, tmp_path / 'results')
    with pytest.raises(RunError, match='amd-shuffled-s0 needs the kept features of all pictures; profile mini keeps'):
        train(Run.of('retinanet-amd-shuffled', tiny), store)
    assert not store.results.exists()       # its teacher was not trained


@pytest.mark.parametrize('group', ['reppoints', 'faster_rcnn'])
def test_the_other_groups_train_in_the_bed(bed, done, group):
    for row in ('inherit', 'amd', 'amd-shuffled'):
        record = train(Run.of(f'{group}-{row}', bed), done)
        assert record['steps'] == STEPS
        assert record['arm'] == ('inherit' if row == 'inherit' else 'alone')


# ---- settings ----------------------------------------------------------------------------------------------------

def test_a_run_on_val_is_evaluated_there(bed, done, dataset, tmp_path):
    run = Run.of('retinanet-baseline', bed, 0, {'split': 'val'})
    record = train(run, done, work_dir=tmp_path, cfg_options={'model.test_cfg.score_thr': 0.0})
    found = read_json(tmp_path / 'detections.json.gz')
    assert run.id == record['id'] == 'retinanet-baseline+split=val-s0'
    assert done.reported(run) == dataset.val_ann
    assert {one['image_id'] for one in found} == {image['id'] for image in read_json(dataset.val_ann)['images']}
    assert record['numbers'] == coco_numbers(dataset.val_ann, found)
    assert record['config']['test_evaluator']['ann_file'] == 'val.json'


def test_a_student_is_the_same_whatever_split_it_is_evaluated_on(trained):
    assert equal(state_dict(trained('amd', split='val')[2]), state_dict(trained('amd')[2]))


def test_some_levels_alone_are_distilled(trained, done):
    run, record, _ = trained('amd', levels=(0, 1, 2), epochs=3)
    terms = [name for name in done.scalars(run) if name.startswith('loss_amd_fpn_')]
    assert terms == [f'loss_amd_fpn_{i}' for i in (0, 1, 2)]
    assert record['config']['model']['scales'] == trained('amd')[1]['config']['model']['scales'][:3]


def test_sgd_trains(trained):
    _, record, _ = trained('amd', optimizer='sgd', lr=1e-3)
    assert (record['config']['optim_wrapper']['optimizer']['type'], record['lr_used']) == ('SGD', 1e-3)
    assert record['weights_sha256'] != trained('amd')[1]['weights_sha256']


def test_a_factor_is_on_the_weights(trained):
    weights = [trained('amd', **settings)[1]['config']['model']['options']['alpha']
               for settings in ({}, {'factor': 0.1})]
    assert weights[1] == pytest.approx(weights[0] / 10)


def test_another_teacher_teaches_by_its_seed(trained, done):
    run, record, _ = trained('amd', teacher_seed=1)
    assert record['teacher']['id'] == 'retinanet-teacher-s1'
    assert record['student_sha256'] == trained('amd')[1]['student_sha256']
    assert record['teacher']['weights_sha256'] == done.record(run.teacher())['weights_sha256'] != (
        trained('amd')[1]['teacher']['weights_sha256'])


# ---- shipped -----------------------------------------------------------------------------------------------------

@pytest.fixture
def ship(tmp_path, monkeypatch, bed):
    """Ships a file of a run's folder under this name; returns its path."""
    for module in (run_module, config_module):
        monkeypatch.setattr(module, 'ROOT', tmp_path / 'kit')

    def put(file, name):
        folder = tmp_path / 'kit' / bed.shipped
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.copy(file, folder / f'{name}-{sha256(file)[:8]}.pth')
    return put


def test_a_shipped_teacher_is_evaluated_and_teaches_and_a_fresh_one_is_trained(trained, ship, bed, dataset, tmp_path):
    _, teacher, folder = trained('teacher', 5)      # one that is not what would be trained here with seed 0
    file = ship(folder / 'weights.pth', 'retinanet-teacher-s0')
    store = Store(bed, dataset, tmp_path / 'results')
    run = Run.of('retinanet-amd', bed, 0, {'epochs': 2})        # which do not reach the teacher
    record = train(run, store)
    taught = store.record(run.teacher())
    assert (run.teacher().id, taught['steps'], taught['files']) == (
        'retinanet-teacher-s0', 0, {'checkpoint': sha256(file)})
    assert taught['numbers'] == teacher['numbers']
    assert taught['feature_rms'] == teacher['feature_rms']
    assert (record['steps'], record['teacher']['weights_sha256']) == (2 * STEPS, taught['weights_sha256'])
    assert equal(state_dict(store.run_folder(run.teacher())), state_dict(folder))
    fresh = Run.of('retinanet-amd', bed, 0, {'epochs': 2, 'teachers': 'fresh'})
    record = train(fresh, store)
    assert record['teacher']['id'] == 'retinanet-teacher+epochs=2+teachers=fresh-s0'
    assert store.record(fresh.teacher())['steps'] == 2 * STEPS
    assert store.record(fresh.teacher())['files'] == {}
    assert [store.state(one).name for one in (run, fresh)] == ['done', 'done']
    # another shipped file, another teacher
    (tmp_path / 'kit' / bed.shipped / file.name).unlink()
    ship(trained('teacher')[2] / 'weights.pth', 'retinanet-teacher-s0')
    assert str(store.state(run)) == 'stale (its teacher is stale)'
    assert store.state(fresh).name == 'done'


def test_students_start_from_a_shipped_backbone(trained, ship, bed, dataset, tmp_path):
    _, plain, folder = trained('baseline')
    student = state_dict(folder)
    half = {name.removeprefix('backbone.'): torch.full_like(value, 0.5) if value.is_floating_point() else value
            for name, value in student.items() if name.startswith('backbone.')}
    write_weights(tmp_path / 'half.pth', half, {})
    file = ship(tmp_path / 'half.pth', 'backbone')
    store = Store(bed, dataset, tmp_path / 'results')
    records = [train(Run.of(f'retinanet-{row}', bed), store) for row in ('baseline', 'amd')]
    assert [record['files'] for record in records] == [{'backbone': sha256(file)}] * 2
    (start,) = {record['student_sha256'] for record in records}
    assert start != plain['student_sha256']
    assert store.record(Run.of('retinanet-teacher', bed))['files'] == {}
    assert json.loads(json.dumps(records[0])) == read_json(store.run_folder(Run.of('retinanet-baseline', bed))
                                                           / 'record.json')
    assert store.state(Run.of('retinanet-baseline', bed)).name == 'done'
