"""A page a run: its record, its command, what its config changes, its curves, and who stands beside it."""
import gzip
import json
import shlex

import pytest

from amdlib.cli import parser
from amdlib.cli.arguments import settings
from amdlib.evaluation import METRICS
from amdlib.files import read_json
from amdlib.paper.profiles import PROFILES
from amdlib.runs.run import Run
from amdlib.show import report
from amdlib.show.report import runs
from amdlib.show.report.records import Entry
from tests.show.records import finish
from tests.show.report.results import Page, record_of, store_of


def test_a_run_shows_its_record(site):
    page = Page(site / 'runs' / 'retinanet-amd-s1.html')
    for part in ('retinanet-amd (AMD)', 'Seed 1', 'hash-retinanet-amd', 'c0ffee with uncommitted changes', 'f00d',
                 '2026-01-02T03:04:05+00:00', '20 steps in 0:01:15', 'CPU, 1 CPU thread;', '1.0 GiB', 'torch 2.0',
                 'sha-retinanet-amd-s1', 'Teacher retinanet-teacher-s0', 'sha-retinanet-teacher-s0',
                 'Named in table1', 'python -m amdlib run retinanet-amd --profile mini --seed 1'):
        assert part in page.words, part
    assert page.lines[0] == [*METRICS]
    assert '../index.html#table1' in page.links
    assert '../../runs/retinanet-amd-s1/record.json' in page.links
    assert '../runs/retinanet-baseline-s1.html' in page.links
    assert '--set epochs=3' in Page(site / 'runs' / 'retinanet-amd+epochs=3-s0.html').words


@pytest.mark.parametrize('given', [
    {}, {'epochs': 3, 'phi': 0.7}, {'amp': 'bf16', 'levels': (0, 2)}, {'inherit': True, 'factor': 0.1}])
def test_the_command_repeats_the_run(tmp_path, given):
    run = Run.of('retinanet-amd', 'mini', 2, given)
    words = shlex.split(runs.command(Entry(run.id, record_of(run), run=run), store_of(tmp_path)))
    told = parser().parse_args(words[3:])
    assert Run.of(told.row, told.profile, told.seed, settings(told)) == run


def test_what_a_shell_would_read_is_quoted(tmp_path):
    run = Run.of('retinanet-amd', 'mini')
    record = {**record_of(run), 'settings': {'backbone': 'a folder/$(rm x).pth', 'odd': '12'}}
    words = shlex.split(runs.command(Entry(run.id, record), store_of(tmp_path)))
    assert words[-4:] == ['--set', 'backbone=a folder/$(rm x).pth', '--set', "odd='12'"]


def test_a_config_is_compared_as_the_detector_it_trains():
    detector = {'type': 'RetinaNet', 'depth': 18}
    baseline = Entry('b', {'config': {'model': detector, 'epochs': 16}})
    taught = Entry('a', {'config': {'model': {'type': 'Distiller', 'student': {**detector, 'depth': 34}, 'teacher': {
        'type': 'X'}, 'options': {'alpha': 0.5, 'none': {}}}, 'epochs': 16, 'long': 'x' * 900}})
    found = {key: (old, new) for key, old, new in runs.changes(taught, baseline)}
    assert found.keys() == {'model.depth', 'long', *(f'distiller.{key}' for key in (
        'type', 'options.alpha', 'options.none'))}
    assert found['model.depth'] == ('18', '34')
    assert found['distiller.options.alpha'] == ('–', '0.5')
    assert len(found['long'][1]) < 260
    assert runs.changes(taught, Entry('b', {'config': None})) is None
    assert runs.changes(baseline, baseline) == []


LOGGED = [{'step': 10 * (i + 1), 'loss': 8. / (i + 1) + 1, 'loss_amd_fpn_0': 6. / (i + 1), 'loss_amd_fpn_1': 0.,
           'lr': 0.01} for i in range(300)]


def test_curves_tell_detection_from_distillation(tmp_path):
    (tmp_path / 'scalars.jsonl').write_text('\n'.join(map(json.dumps, LOGGED)))
    (losses, drawn, found), (rates, _, _) = runs.curves(tmp_path)
    assert (losses, rates) == ('Losses', 'Learning rate')
    assert [curve.label for curve in found] == ['detection', 'distillation', 'amd, level 0', 'amd, level 1']
    assert all(len(curve.y) <= 120 for curve in found)
    assert found[0].y[-1] == pytest.approx(1 + 2 / 300, abs=1e-3)
    assert f'detection from {found[0].y[0]:.3g} to 1.01' in drawn
    assert drawn.count('<polyline') == 3        # zero has no place on a logarithmic axis


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{"step": 1}', b'{"step": "x", "loss": {}}', b'\xff',
                                     b'{"step": 1, "loss": NaN}'])
def test_a_bad_log_leaves_a_page_without_curves(tmp_path, content):
    (tmp_path / 'scalars.jsonl').write_bytes(content)
    assert runs.curves(tmp_path) == []
    (tmp_path / 'scalars.csv.gz').write_bytes(gzip.compress(content)[:-4] or content)
    assert runs.curves(tmp_path) == []


# ---- with detections --------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def seen(tiny, dataset, tmp_path_factory):
    """The site of teacher, baseline, MGD, AMD and a variant of a tiny store; AMD finds every second object."""
    from amdlib.runs.store import Store
    store = Store(tiny, dataset, tmp_path_factory.mktemp('seen') / 'results')
    truth = read_json(dataset.test_ann)['annotations']
    right = [{**{key: one[key] for key in ('image_id', 'category_id', 'bbox')}, 'score': 0.9} for one in truth]
    for name, found in (('teacher', right), ('baseline', right[:1]), ('inherit', right), ('mgd', right),
                        ('amd', right[::2]), ('amd-permuted', right)):
        finish(store, Run.of(f'retinanet-{name}', tiny), found, machine={'cpu': 'a'}, steps=2, began='now', threads=1,
               peak_memory_bytes=1, peak_gpu_memory_bytes=None, operators='torchvision')
    return store, report.build(store, [('retinanet-amd-s0', 'retinanet-teacher-s0')]).parent


def test_what_a_run_gets_wrong_stands_beside_others_with_intervals(seen):
    _, site = seen
    page = Page(site / 'runs' / 'retinanet-amd-s0.html')
    assert '../runs/retinanet-inherit-s0.html' in page.links        # that starts alike
    assert '../runs/retinanet-mgd-s0.html' in page.links
    assert '95 % over test images' in page.words
    assert 'retinanet-amd-s0 costs most by missed errors' in page.captions
    variant = Page(site / 'runs' / 'retinanet-amd-permuted-s0.html')
    assert {f'../runs/retinanet-{name}-s0.html' for name in ('inherit', 'mgd', 'amd')} <= variant.links.keys()


def test_the_gallery_draws_right_and_missed_boxes_over_files_that_all_pages_share(seen):
    store, site = seen
    page = Page(site / 'runs' / 'retinanet-amd-s0.html')
    truth = read_json(store.dataset.test_ann)
    shown = [attrs['href'] for tag, attrs in page.tags if tag == 'image']
    assert len(set(shown)) == len(truth['images'])      # fewer than eight, so all of them
    assert len(shown) == 4 * len(truth['images'])
    assert all((site / 'runs' / name).resolve().is_file() for name in shown)
    kinds = [attrs['class'].split()[-1] for tag, attrs in page.tags if tag == 'rect' and 'box' in attrs.get(
        'class', '') and 'x' in attrs and float(attrs['height']) != 10]
    found = len(truth['annotations'])
    assert kinds.count('found') == 2 * found + 1 + len(truth['annotations'][::2])
    assert kinds.count('missed') == found - 1 + found // 2
    labels = [attrs['aria-label'] for tag, attrs in page.tags if attrs.get('class') == 'panel']
    assert any(label.startswith('AMD, image 1: ') and label.endswith('0 wrong boxes') for label in labels)


def test_two_runs_that_are_asked_for_have_a_page(seen):
    _, site = seen
    page = Page(site / 'compare' / '1.html')
    assert 'retinanet-amd-s0 minus retinanet-teacher-s0, ' in page.words
    assert 'What each type of error (TIDE) costs' in page.words
    assert 'compare/1.html' in Page(site / 'index.html').links
    assert 'compare/1.html' in Page(site / 'runs.html').links


def test_what_was_found_is_remembered(seen, monkeypatch):
    store, _ = seen
    from amdlib.show import intervals
    from amdlib.show.report import detections
    monkeypatch.setattr(detections, 'find_errors', lambda *_: pytest.fail('looked again'))
    monkeypatch.setattr(intervals, 'paired', lambda *_: pytest.fail('resampled again'))
    report.build(store)


def test_an_unknown_run_cannot_be_compared(seen):
    store, _ = seen
    with pytest.raises(ValueError, match="no run 'nope' with a record here; expected one of: retinanet-amd-"):
        report.build(store, [('nope', 'retinanet-amd-s0')])


def test_names_of_profiles_that_need_data_say_so(tmp_path):
    from dataclasses import replace
    run = Run.of('retinanet-baseline', 'small')
    store = replace(store_of(tmp_path), profile=PROFILES['small'])
    assert runs.command(Entry(run.id, record_of(run), run=run), store).endswith('--seed 0 --data <folder>')
