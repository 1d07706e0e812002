"""shipping.py, teachers.py, pretrain.py: what is shipped is what is evaluated and what a student loads, bit for bit."""
import logging
from dataclasses import replace

import pytest
import torch

from amdlib.engine import training
from amdlib.errors import RunError, SettingError, WeightsError
from amdlib.files import read_json, sha256
from amdlib.paper.printed import paper_groups
from amdlib.paper.profiles import PROFILES
from amdlib.runs import config as config_module
from amdlib.runs import pretrain, shipping, teachers
from amdlib.runs import run as run_module
from amdlib.runs.pretrain import Pretraining
from amdlib.runs.run import Run, shipped_file
from amdlib.runs.shipping import rounded
from amdlib.runs.store import Store
from amdlib.runs.train import train
from amdlib.weights.reading import read_weights

slow = pytest.mark.slow
FEW = Pretraining(scenes=64, held_out=20, epochs=2, batch_size=16)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The kit's folder, for what is shipped."""
    for module in (shipping, run_module, config_module):
        monkeypatch.setattr(module, 'ROOT', tmp_path / 'kit')
    return tmp_path / 'kit'


@pytest.fixture
def shop(bed, dataset, tmp_path, root):
    """A store whose profile ships weights."""
    return Store(bed, dataset, tmp_path / 'results')


# ---- files ------------------------------------------------------------------------------------------------------

def test_rounding_is_to_half_and_leaves_counts():
    value = torch.tensor([1 / 3, 1e-9, -5.0])
    found = rounded({'weight': value, 'batches': torch.tensor(70000)})
    assert found['weight'].dtype == torch.float16
    assert found['weight'].equal(value.half())
    assert found['batches'].equal(torch.tensor(70000))


@pytest.mark.parametrize('value', [1e5, float('nan')])
def test_what_half_precision_cannot_hold_is_refused(value):
    with pytest.raises(WeightsError, match='neck.weight: not finite in half precision'):
        rounded({'neck.weight': torch.tensor([1.0, value]), 'other': torch.ones(1)})


def test_a_file_is_named_by_its_hash_and_the_same_weights_give_the_same_file(tmp_path):
    names = set()
    for folder in ('a', 'b'):
        with shipping.shipping(tmp_path / folder, 'backbone', {'w': torch.ones(3).half()}, {'profile': 'mini'}) as file:
            file.with_suffix('.json').write_text('{}')
        names.add(file.name)
        assert file.name == f'backbone-{sha256(file)[:8]}.pth'
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == [f'{file.stem}.json', file.name]
    assert len(names) == 1


def _ship(folder, name, value, fails=False):
    with shipping.shipping(folder, name, {'w': torch.tensor([value]).half()}, {}) as file:
        if fails:
            raise RuntimeError('evaluation failed')
        file.with_suffix('.json').write_text(str(value))
    return file


def test_an_older_file_goes_when_the_new_one_is_good_and_others_stay(tmp_path):
    _ship(tmp_path, 'retinanet-teacher-s0', 1.0)
    other = [_ship(tmp_path, 'retinanet-teacher-s10', 1.0), _ship(tmp_path, 'backbone', 2.0)]
    new = _ship(tmp_path, 'retinanet-teacher-s0', 3.0)
    assert set(tmp_path.iterdir()) == {path for file in (*other, new) for path in (file, file.with_suffix('.json'))}


def test_an_older_file_comes_back_when_the_new_one_fails(tmp_path):
    old = _ship(tmp_path, 'backbone', 1.0)
    with pytest.raises(RuntimeError, match='evaluation failed'):
        _ship(tmp_path, 'backbone', 2.0, fails=True)
    assert set(tmp_path.iterdir()) == {old, old.with_suffix('.json')}
    assert read_weights(old)['w'].item() == 1
    with pytest.raises(RuntimeError, match='evaluation failed'):     # the same weights again: its file stays
        _ship(tmp_path, 'backbone', 1.0, fails=True)
    assert set(tmp_path.iterdir()) == {old, old.with_suffix('.json')}


def test_what_a_killed_call_has_left_is_removed(tmp_path):
    tmp_path.joinpath('.backbone-00000000.pth.old').touch()
    file = _ship(tmp_path, 'backbone', 1.0)
    assert set(tmp_path.iterdir()) == {file, file.with_suffix('.json')}


@pytest.mark.parametrize(('name', 'why'), [('paper', 'its teachers are published ones'),
                                           ('small', 'its teachers are trained with its runs')])
def test_a_profile_that_ships_nothing_is_told(store, name, why):
    with pytest.raises(SettingError, match=f'profile {name} ships no weights: {why}'):
        teachers.make(replace(store, profile=PROFILES[name]))


# ---- teachers ---------------------------------------------------------------------------------------------------

@slow
def test_a_shipped_teacher_is_what_was_evaluated_and_what_students_load(shop, root, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(teachers, 'run_missing', lambda runs, store, force: [train(run, store, force=force)
                                                                             for run in runs])
    (file,) = teachers.make(shop, ['retinanet'])
    fresh = Run.of('retinanet-teacher', shop.profile, 0, {'teachers': 'fresh'})
    shipped = Run.of('retinanet-teacher', shop.profile)
    assert file == root / shipped_file('data/teachers/tiny', 'retinanet-teacher-s0')
    in_file, trained, loaded = (read_weights(path) for path in (file, shop.weights(fresh), shop.weights(shipped)))
    assert {value.dtype for value in in_file.values()} == {torch.float16, torch.int64}
    assert {value.dtype for value in loaded.values()} == {torch.float32, torch.int64}
    for name, value in in_file.items():
        assert value.equal(trained[name].to(value))
        assert loaded[name].equal(value.to(loaded[name]))       # the bits of the file, and no others
    card, record = read_json(file.with_suffix('.json')), shop.record(shipped)
    assert card['sha256'] == sha256(file) == record['files']['checkpoint']
    assert card['numbers'] == record['numbers']
    assert card['numbers_as_trained'] == shop.record(fresh)['numbers']
    assert card['feature_rms'] == record['feature_rms']
    assert (record['steps'], card['steps'], card['seed'], card['settings']) == (0, 4, 0, {'teachers': 'fresh'})
    assert {'machine', 'code', 'settings_hash', 'epochs', 'network', 'train_s'} <= set(card)
    assert '/' not in card['run']
    assert not (shop.run_folder(fresh) / 'features').exists()
    # a student learns from it
    student = Run.of('retinanet-amd', shop.profile)
    assert student.teacher() == shipped
    assert train(student, shop)['teacher']['weights_sha256'] == record['weights_sha256']
    # made again, nothing is trained and nothing changes
    monkeypatch.setattr(training.QuietRunner, 'train', lambda self: pytest.fail('trained again'))
    assert teachers.make(shop, ['retinanet']) == [file]
    assert shop.state(student).name == 'done'


@slow
def test_a_teacher_that_cannot_be_evaluated_is_not_shipped(shop, root, monkeypatch):
    fresh = Run.of('retinanet-teacher', shop.profile, 0, {'teachers': 'fresh'})
    train(fresh, shop)
    monkeypatch.setattr(teachers, 'train', lambda run, store: {'files': {}})
    with pytest.raises(RunError, match='retinanet-teacher-s0 did not take'):
        teachers.ship(fresh, shop)
    assert list((root / 'data' / 'teachers' / 'tiny').iterdir()) == []


# ---- the backbone -----------------------------------------------------------------------------------------------

def test_scenes_have_one_shape_each_and_those_held_out_are_others():
    pictures, labels = pretrain._scenes(FEW, 0, 12)
    assert pictures.shape == (12, 64, 64, 3)
    assert pictures.dtype == torch.uint8
    assert labels.shape == (12,)
    assert set(labels.tolist()) <= set(range(5))
    again, _ = pretrain._scenes(FEW, 0, 12)
    other, _ = pretrain._scenes(FEW, pretrain.HELD_OUT_FROM, 12)
    assert again.equal(pictures)
    assert not any(picture.equal(held) for picture in pictures for held in other)


@slow
def test_a_student_starts_from_the_backbone_that_was_shipped(shop, root, caplog):
    caplog.set_level(logging.INFO)
    file = pretrain.make(shop, FEW)
    card = read_json(file.with_suffix('.json'))
    assert file == root / shipped_file('data/teachers/tiny', 'backbone')
    assert (card['sha256'], card['steps'], len(card['loss_by_epoch'])) == (sha256(file), 8, 2)
    assert 0 <= card['right_percent'] <= 100
    assert card['network'] == {'depth': 18, 'width': 8}
    assert 'epoch 2 of 2: loss ' in caplog.text
    run = Run.of('retinanet-baseline', shop.profile)
    assert run.published_files() == {'backbone': f'data/teachers/tiny/{file.name}'}
    started = []
    started_with = training.weights_sha256
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, 'weights_sha256', lambda model: started.append(
            {name: value.clone() for name, value in model.backbone.state_dict().items()}) or started_with(model))
        record = train(run, shop)
    assert record['files'] == {'backbone': sha256(file)}
    assert all(started[0][name].equal(value.to(started[0][name])) for name, value in read_weights(file).items())
    # made again it is the same file, byte for byte, though another one is there to start from
    assert pretrain.make(shop, FEW) == file
    assert card['sha256'] == sha256(file)


def test_it_learns(shop):
    how = replace(FEW, scenes=160, epochs=6)
    pictures, labels = pretrain._scenes(how, 0, how.scenes)
    backbone, pixels = pretrain._build(shop, how)
    torch.manual_seed(0)
    classifier = torch.nn.Linear(64, 5)
    losses = pretrain._train(backbone, classifier, pixels, pictures, labels, (pictures[:20], labels[:20]), how)
    assert losses[-1] < losses[0] - 0.1


def test_where_no_pair_is_named_the_teachers_are_the_papers(store, monkeypatch):
    asked = []
    monkeypatch.setattr(teachers.shipping, 'folder_of', lambda profile: None)
    monkeypatch.setattr(teachers, 'run_missing', lambda runs, *_, **__: asked.extend(runs))
    monkeypatch.setattr(teachers, 'ship', lambda run, _: run)
    teachers.make(store)
    assert [run.row.id for run in asked] == [f'{group}-teacher' for group in paper_groups()]
    assert [run.row.id for run in teachers.make(store, ['gfl'])] == ['gfl-teacher']
