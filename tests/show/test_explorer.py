"""explorer.py and explorer_widget.py: the data that a browser gets, the pages it stands in, and what a kernel answers.

What the browser makes of it is in tests/browser/.
"""
import base64
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from amdlib.cli import main
from amdlib.errors import DataError, RunError
from amdlib.files import ROOT, read_json, sha256
from amdlib.methods.amd import spatial_attention
from amdlib.paper.profiles import PROFILES
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show import coverage, explorer, features
from amdlib.show.explorer_widget import MaskExplorer

from .records import finish

TEACHER = Run.of('retinanet-teacher', 'mini')


@pytest.fixture
def store(dataset, tmp_path):
    """A store of profile mini, whose teachers are shipped, without a run."""
    return Store(PROFILES['mini'], dataset, tmp_path)


@pytest.fixture(scope='module')
def shown(dataset, tmp_path_factory):
    return features.pictures(Store(PROFILES['mini'], dataset, tmp_path_factory.mktemp('results')))


@pytest.fixture(scope='module')
def data(shown, dataset, tmp_path_factory):
    return explorer.explorer_data([TEACHER], shown, Store(PROFILES['mini'], dataset, tmp_path_factory.mktemp('r')))


def photo(width, height, kind='.png'):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(kind, pixels)[1].tobytes()


def floats(level):
    return torch.from_numpy(np.frombuffer(base64.b64decode(level['values']), '<f4').copy()).reshape(level['size'])


# ---- data -------------------------------------------------------------------------------------------------------

def test_logits_give_the_attention_of_training(data, shown, store):
    """Of features that are divided by the constants of training: at mini T and phi belong to these."""
    shipped = read_json(next((ROOT / 'data/teachers/mini').glob('retinanet-teacher-s0-*.json')))
    detector = features.load_detector(TEACHER, store)
    for picture, found in zip(shown, data['pictures'], strict=True):
        levels = features.level_features(detector, [picture], TEACHER.row.group.levels)
        for f_t, rms, level in zip(levels, shipped['feature_rms'], found['logits'][0], strict=True):
            wanted = spatial_attention(f_t / (rms / PROFILES['mini'].reference_rms), 0.5)[0]
            logits = floats(level)
            assert torch.allclose(spatial_attention(logits[None, None], 0.5)[0], wanted, rtol=1e-5)
    assert (data['phi'], data['temperature'], data['models'][0]['random_ratio']) == (1.0, 0.5, 0.65)
    assert data['models'][0]['weights_sha256'] == shipped['sha256']


def test_places_are_those_of_coverage_with_padding():
    boxes = torch.tensor([[4.0, 8.0, 60.5, 40.0], [90.0, 30.0, 140.0, 90.0]])
    picture = features.Picture(0, 'a', np.zeros((81, 128, 3), np.uint8), torch.zeros(3, 96, 128), boxes, ('x', 'y'))
    found = explorer.picture_data(picture, [[torch.zeros(12, 16), torch.zeros(3, 4)]])
    for size, (height, width) in {'12x16': (12, 16), '3x4': (3, 4)}.items():
        digits = np.array(list(found['places'][size]), int).reshape(height, width)
        assert ((digits > 0) == coverage.inside_image(picture, height, width).numpy()).all()
        inside = coverage.inside_boxes(picture, height, width) & coverage.inside_image(picture, height, width)
        assert ((digits == 2) == inside.numpy()).all()
    assert found['size_px'] == [128, 81]
    assert found['padded_px'] == [128, 96]
    assert found['boxes'] == [[4.0, 8.0, 60.5, 40.0, 'x'], [90.0, 30.0, 140.0, 90.0, 'y']]


def test_a_picture_is_shown_small():
    picture = features.Picture(0, 'a', np.zeros((800, 1333, 3), np.uint8), torch.zeros(3, 800, 1344),
                               torch.zeros(0, 4), ())
    src = explorer.picture_data(picture, [[torch.zeros(1, 1)]])['src']
    image = cv2.imdecode(np.frombuffer(base64.b64decode(src.partition(',')[2]), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (192, explorer.SIDE_PX, 3)


def test_nothing_to_show_is_told(store, shown):
    with pytest.raises(ValueError, match='0 runs and 4 pictures'):
        explorer.explorer_data([], shown, store)


# ---- which pictures, which runs ---------------------------------------------------------------------------------

def test_pictures_are_chosen_by_the_rule_of_all_figures(store):
    ids, rule = explorer.chosen_images(store, 2)
    assert ids == features.representative(store.dataset, 2)
    assert rule.startswith('2 test images by rule: the first with two boxes or more that cover 20 to 60 % of')


def test_a_clone_has_the_shipped_teachers_and_a_student_only_where_it_was_made(store):
    assert [run.id for run in explorer.find_runs(store)] == ['retinanet-teacher-s0']
    assert {run.row.name for run in explorer.runs_here(store)} == {'teacher'}
    finish(store, Run.of('retinanet-baseline', 'mini'))
    assert [run.id for run in explorer.find_runs(store)] == ['retinanet-teacher-s0', 'retinanet-baseline-s0']
    assert [run.id for run in explorer.find_runs(store, ['retinanet-baseline-s0'])] == ['retinanet-baseline-s0']
    with pytest.raises(RunError, match="no run 'retinanet-amd-s0' with weights here; there are: retinanet-teacher-s0"):
        explorer.find_runs(store, ['retinanet-amd-s0'])
    small = replace(store, profile=PROFILES['small'])
    with pytest.raises(RunError, match='retinanet-teacher-s0 is missing .*: make it with python -m amdlib run'):
        explorer.find_runs(small)


# ---- pages ------------------------------------------------------------------------------------------------------

def test_a_page_holds_twenty_pictures_in_two_megabytes_and_loads_nothing(data):
    pictures = [{**picture, 'logits': picture['logits'] * 4} for picture in data['pictures']]
    page = explorer.page({**data, 'pictures': (pictures * 20)[:20], 'models': data['models'] * 4})
    assert len(page) < 2_000_000
    assert '://' not in page.replace('http://www.w3.org/2000/svg', '')
    assert '@import' not in page
    assert 'url(' not in page


def test_no_name_ends_the_data(data):
    evil = '</script><script>alert(1)</script><!--'
    text = str(explorer.fragment({**data, 'rule': evil}))
    assert evil not in text
    island = text.partition('<script type="application/json">')[2].partition('</script>')[0]
    assert json.loads(island)['rule'] == evil


def test_the_report_gets_it_once_and_again_when_weights_change(store, monkeypatch):
    store.folder.mkdir()
    first = explorer.for_report(store)
    assert 'retinanet-teacher-s0' in first
    with monkeypatch.context() as patch:
        patch.setattr(features, 'load_detector', lambda *_: pytest.fail('looked again'))
        assert explorer.for_report(store) == first
    finish(store, Run.of('retinanet-baseline', 'mini'))
    assert 'retinanet-baseline-s0' in explorer.for_report(store)
    (store.folder / 'explorer.json').write_text('{"key": ')
    assert 'retinanet-baseline-s0' in explorer.for_report(store)
    gone = replace(store, dataset=replace(store.dataset, test_ann=store.folder / 'gone.json'))
    assert explorer.for_report(gone) == ''
    assert explorer.for_report(replace(store, profile=PROFILES['small'])) == ''


# ---- the command ------------------------------------------------------------------------------------------------

def test_the_command_writes_a_page_of_test_images_or_of_pictures_of_ones_own(store, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('amdlib.runs.store.prepare', lambda *_, **__: store.dataset)
    words = ['explore', '--results', str(tmp_path)]
    assert main(words) == 0
    assert str(tmp_path / 'mini' / 'explorer.html') in capsys.readouterr().out
    page = (tmp_path / 'mini' / 'explorer.html').read_text()
    assert '4 test images by rule' in page or 'with two boxes or more' in page
    own, none = tmp_path / 'my <b>.jpg', tmp_path / 'none.jpg'
    own.write_bytes(photo(50, 30, '.jpg'))
    none.write_text('no picture')
    assert main([*words, '--group', 'faster_rcnn', '-o', str(tmp_path / 'a/own.html'), str(own)]) == 0
    island = (tmp_path / 'a/own.html').read_text().partition('application/json">')[2].partition('</script>')[0]
    (picture,) = json.loads(island)['pictures']
    assert (picture['name'], picture['size_px'], picture['boxes']) == ('my <b>.jpg', [128, 77], [])
    capsys.readouterr()
    for words_of_error, path in (('not readable as an image', none), ('No such file', tmp_path / 'gone.jpg')):
        assert main([*words, str(path)]) == 1
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1
        assert told[0].startswith('error: ')
        assert path.name in told[0]
        assert words_of_error in told[0]


# ---- in a notebook ----------------------------------------------------------------------------------------------

def test_a_kernel_looks_at_a_picture_of_ones_own_and_says_why_not(store, shown, monkeypatch):
    widget = MaskExplorer([TEACHER], shown[:1], store, phi=1.5, level=2)
    assert (widget.data['phi'], widget.data['level'], len(widget.data['pictures'])) == (1.5, 2, 1)
    answers = []
    monkeypatch.setattr(widget, 'send', answers.append)
    for name, content in (('mine.png', photo(64, 64)), ('none.png', b'no picture')):
        widget._handle_custom_msg({'name': name}, [memoryview(content)])
    good, bad = answers
    assert (good['picture']['name'], good['picture']['boxes']) == ('mine.png', [])
    json.dumps(good)
    (own,) = features.own_pictures(store, [('mine.png', photo(64, 64))])
    assert torch.equal(floats(good['picture']['logits'][0][0]), explorer.Look(TEACHER, store)(own)[0])
    assert 'none.png: not readable as an image' in bad['error']
    assert 'python -m amdlib explore' in repr(widget)
    assert len(repr(widget)) <= 110


# ---- what the page is made of -----------------------------------------------------------------------------------

def test_own_pictures_are_resized_and_padded_alone_like_any_other(store, shown):
    wide, tall = features.own_pictures(store, [('wide', photo(300, 100)), ('tall', photo(90, 200))])
    assert wide.rgb.shape[:2] == (43, 128)
    assert wide.pixels.shape[1:] == (64, 128)
    assert tall.pixels.shape[1:] == (128, 64)
    assert wide.normalised == shown[0].normalised
    with pytest.raises(DataError, match='a.txt: not readable as an image'):
        features.own_pictures(store, [('a.txt', b'')])


def test_a_shipped_teacher_is_loaded_before_it_is_evaluated(store):
    file = features.weights_file(TEACHER, store)
    assert file.parent == ROOT / 'data/teachers/mini'
    assert sha256(file).startswith(file.stem.rpartition('-')[2])
    with pytest.raises(RunError, match='retinanet-amd-s0 is missing'):
        features.weights_file(Run.of('retinanet-amd', 'mini'), store)


def test_features_are_divided_only_where_training_divides_them(store):
    assert features.scales(Run.of('faster_rcnn-teacher', 'small'), replace(store, profile=PROFILES['small'])) == [1] * 4
    found = features.scales(Run.of('retinanet-mgd', 'mini'), store)
    assert found == features.scales(TEACHER, store)
    assert len(found) == 5
    finish(store, TEACHER, feature_rms=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert features.scales(TEACHER, store) == [2, 4, 6, 8, 10]
    finish(store, TEACHER)
    with pytest.raises(RunError, match='says not how large its features are'):
        features.scales(TEACHER, store)
