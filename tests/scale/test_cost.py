"""cost.py: steps as the loader makes them, hours only from what was measured on a GPU with the same recipe."""
import json
import logging
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from mmengine.runner import Runner

from amdlib.cli import main
from amdlib.datasets import trained_images
from amdlib.errors import RunError
from amdlib.paper.profiles import PROFILES
from amdlib.paper.rows import ROWS, find_row
from amdlib.runs.config import config
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.scale import cost
from amdlib.scale.cost import made_batch, measure, readable, table, write

slow = pytest.mark.slow
PAPER = PROFILES['paper']
H100 = 'NVIDIA H100 80GB HBM3'


@pytest.fixture
def of_paper(tmp_path):
    """A store at the paper's profile, without a data set."""
    return Store(PAPER, None, tmp_path)


def record(run, store, train_s=50.0, steps=100, device=H100, settings=None):
    folder = store.results / run.profile.name / 'coco' / 'runs' / run.id
    folder.mkdir(parents=True)
    (folder / 'record.json').write_text(json.dumps({
        'row': run.row.id, 'profile': run.profile.name,
        'settings': run.settings if settings is None else settings, 'steps': steps, 'train_s': train_s,
        'device': device, 'peak_memory_bytes': 3 * 2 ** 30,
        'peak_gpu_memory_bytes': None if device == 'CPU' else 8 * 2 ** 30}))


def lines_of(rows, store, settings=None):
    return table([find_row(row) for row in rows], store, settings).set_index('row')


@pytest.mark.parametrize(('settings', 'steps'), [
    ({}, 24 * 58633),                              # 117266 / 2
    ({'gpus': 8}, 24 * 7330),                      # 14659 images a GPU, 7330 pairs
    ({'batch_size': 16, 'epochs': 1}, 7330),       # 7329.1
    ({'gpus': 4, 'accumulate': 2}, 24 * 14659)])   # accumulating changes no number of forward passes
def test_steps_of_the_paper(settings, steps):
    assert Run.of('retinanet-amd', 'paper', 0, settings).steps(cost.COCO_TRAIN_IMAGES) == steps


@pytest.mark.parametrize('batch_size', [1, 2, 3, 8])
def test_steps_are_those_of_mmdets_loader(dataset, tiny, batch_size, tmp_path):
    """Also with an image that has no annotation, which mmdet leaves out."""
    coco = json.loads(dataset.train_ann.read_text())
    gone = coco['images'][2]['id']
    coco['annotations'] = [one for one in coco['annotations'] if one['image_id'] != gone]
    (tmp_path / 'train.json').write_text(json.dumps(coco))
    fewer = replace(dataset, train_ann=tmp_path / 'train.json')
    run = Run.of('retinanet-baseline', replace(tiny, batch_size=batch_size))
    loader = Runner.build_dataloader(config(run, fewer).train_dataloader, seed=0)
    assert len(trained_images(fewer.train_ann)) == len(loader.dataset) == 7
    assert run.steps(7) == len(loader) == len(list(loader))


def test_what_was_not_measured_is_not_guessed(of_paper, tmp_path):
    (tmp_path / 'dryrun').mkdir()
    pd.DataFrame([{'row': 'retinanet-amd', 's_per_step': 4.5, 'device': 'CPU', 'problem': ''}]).to_csv(
        tmp_path / 'dryrun' / 'dryrun.csv', index=False)
    cells = table(ROWS.values(), of_paper)
    assert cells.row.tolist() == list(ROWS)
    teachers = cells.row.map(lambda row: ROWS[row].is_teacher)
    assert (cells.steps[teachers] == 0).all()
    assert (cells.gpu_hours[teachers] == 0).all()
    students = cells[~teachers]
    assert (students.steps == 24 * 58633).all()
    assert students[['s_per_step', 'memory_gib', 'gpu_hours']].isna().all(axis=None)
    amd = readable(cells).set_index('row').loc['retinanet-amd']
    assert amd[['s/step', 'memory, GiB', 'GPU-hours']].tolist() == ['not measured'] * 3
    assert amd['s/step, dry run'] == '4.5 (CPU)'
    assert 'No row was measured on a GPU' in write(cells, of_paper).read_text()


def test_hours_follow_from_records(of_paper, tmp_path):
    record(Run.of('retinanet-amd', 'paper'), of_paper)
    record(Run.of('retinanet-amd', 'paper', 1), of_paper, train_s=70.0)
    record(Run.of('retinanet-amd', 'paper', 2), of_paper, train_s=60.0)
    record(Run.of('retinanet-mgd', 'paper'), of_paper, device='CPU')
    record(Run.of('retinanet-teacher', 'paper'), of_paper, steps=0)
    lines = lines_of(['retinanet-amd', 'retinanet-mgd', 'retinanet-teacher'], of_paper)
    amd, mgd = lines.loc['retinanet-amd'], lines.loc['retinanet-mgd']
    assert (amd.s_per_step, amd.memory_gib, amd.device, amd.by) == (0.6, 8.0, H100, '3 records')   # the median
    assert amd.gpu_hours == pytest.approx(24 * 58633 * 0.6 / 3600)
    assert mgd.s_per_step == 0.5
    assert mgd.device == 'CPU'
    assert math.isnan(mgd.gpu_hours)
    assert lines.loc['retinanet-teacher'].gpu_hours == 0
    text = write(lines.reset_index(), of_paper).read_text()
    assert f'{H100}: 235 GPU-hours for 1 of 2 rows' in text
    assert pd.read_csv(tmp_path / 'paper' / 'cost.csv').row.tolist() == lines.index.tolist()


def test_another_recipe_is_another_cost(of_paper):
    run = Run.of('retinanet-amd', 'paper', 0, {'gpus': 4, 'amp': 'bf16', 'epochs': 12})
    record(run, of_paper, settings={**run.settings, 'backbone': 'resnet50.pth'}, train_s=20.0)
    assert math.isnan(lines_of(['retinanet-amd'], of_paper).s_per_step.item())
    line = lines_of(['retinanet-amd'], of_paper, {'gpus': 4, 'amp': 'bf16'}).loc['retinanet-amd']
    assert line.s_per_step == 0.2
    assert line.epochs == 24
    assert line.gpu_hours == pytest.approx(24 * 14659 * 0.2 * 4 / 3600)


def test_without_a_gpu_nothing_is_measured(of_paper, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(RunError, match='sees no GPU'):
        measure([find_row('retinanet-amd')], of_paper)
    with pytest.raises(RunError, match='one GPU is measured at a time'):
        measure([find_row('retinanet-amd')], of_paper, {'gpus': 2}, on_cpu=True)


@slow
@pytest.mark.parametrize('row', ['retinanet-amd', 'reppoints-fgd', 'faster_rcnn-teacher'])
def test_measuring(row, store, caplog):
    caplog.set_level(logging.INFO)
    rows = [find_row(row)]
    for _ in range(2):  # the second time takes the first one's place
        measured = measure(rows, store, steps=2, on_cpu=True)
    assert measured.row.tolist() == [row]
    assert measured.steps.item() == 2
    assert measured.image_px.item() == '64x64'
    seconds = measured.s_per_step.item()
    assert 0 < seconds < 30
    assert f'{row}-s0: {seconds:.3f} s/step' in caplog.messages[-1]
    line = table(rows, store).iloc[0]
    assert line.s_per_step == seconds
    assert line.by == '2 steps on made images'
    assert line.steps == 4


def test_made_images_are_full_size_with_masks_where_needed():
    for row, masks in (('faster_rcnn-teacher', True), ('reppoints-amd', False)):
        run = Run.of(row, 'paper')
        batch = made_batch(run, config(run))
        assert [tuple(image.shape) for image in batch['inputs']] == [(3, 800, 1333)] * 2
        for sample in batch['data_samples']:
            truth = sample.gt_instances
            boxes = truth.bboxes
            assert len(boxes) == cost.OBJECTS
            assert (boxes >= 0).all()
            assert (boxes[:, 2] <= 1333).all()
            assert (boxes[:, 3] <= 800).all()
            assert (boxes[:, 2:] - boxes[:, :2]).min() > 70
            assert ('masks' in truth) == masks
            assert truth.labels.max() < 80
            if masks:
                areas = truth.masks.masks.sum((1, 2))
                assert areas == pytest.approx(((boxes[:, 2:] - boxes[:, :2]).prod(1)).numpy(), rel=0.05)


def test_recipes_are_none_each_and_all_switches(monkeypatch):
    on_gpu = cost.recipes({'amp': 'fp16', 'batch_size': 4}, on_cpu=False)
    assert len(on_gpu) == 2 + len(cost.SWITCHES)
    assert all(recipe['batch_size'] == 4 for recipe in on_gpu)
    assert on_gpu[0] == {'batch_size': 4}
    assert on_gpu[-1] == {'batch_size': 4, **cost.SWITCHES}
    monkeypatch.setattr(cost.shutil, 'which', lambda _: None)
    on_cpu = cost.recipes({}, on_cpu=True)
    assert {key for recipe in on_cpu for key in recipe} == set(cost.SWITCHES) - {'tf32', 'compile_teacher'}


def test_switches_are_compared_with_none_on_the_same_device(store):
    rows = [find_row('retinanet-amd'), find_row('retinanet-baseline')]
    with pytest.raises(RunError, match='no switch was measured'):
        cost.write_switches(rows, store)
    folder = store.results / store.profile.name
    folder.mkdir(parents=True)
    pd.DataFrame([{'row': row, 'settings': settings, 'device': device, 's_per_step': seconds, 'memory_gib': 1.0,
                   'steps': 20, 'problem': ''} for row, settings, device, seconds in (
        ('retinanet-amd', '', H100, 0.4), ('retinanet-amd', 'amp=bf16', H100, 0.2), ('retinanet-amd', '', 'CPU', 9.0),
        ('retinanet-amd', 'fused=True', 'another GPU', 0.1), ('retinanet-baseline', '', H100, 0.3),
        ('retinanet-amd', 'amp=bf16 batch_size=4', H100, 5.0))]).to_csv(folder / cost.MEASURED)
    text = cost.write_switches(rows, store).read_text()
    found = pd.read_csv(folder / 'switches.csv').set_index(['row', 'device', 'switch']).speed
    assert found.to_dict() == {('retinanet-amd', H100, 'none'): 1, ('retinanet-amd', 'CPU', 'none'): 1,
                               ('retinanet-amd', H100, 'amp=bf16'): 2, ('retinanet-baseline', H100, 'none'): 1}
    cells = [[cell.strip() for cell in line.split('|')[3:6]] for line in text.splitlines()]
    assert ['amp=bf16', '0.200', '2.00'] in cells


def test_a_full_gpu_is_told_in_the_row(store, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB\nmore')
    monkeypatch.setattr(cost, 'trainable', full)
    measure([find_row('retinanet-amd')], store, on_cpu=True)
    line = table([find_row('retinanet-amd')], store).iloc[0]
    assert math.isnan(line.s_per_step)
    assert line.by == 'out of memory: CUDA out of memory. Tried to allocate 2 GiB'


def test_command(capsys, tmp_path):
    assert main(['cost', 'retinanet-amd', 'retinanet-teacher', '--profile', 'paper', '--results', str(tmp_path),
                 '--set', 'gpus=8']) == 0
    out = capsys.readouterr().out
    assert '175920' in out
    assert '2 x 8' in out
    assert 'not measured' in out
    assert '0 (published)' in out
    assert (tmp_path / 'paper' / 'cost.md').read_text() in out
    assert main(['cost', 'retinanet-amd', '--profile', 'paper', '--results', str(tmp_path), '--set', 'phi=2']) == 1
    assert main(['cost', 'nothing', '--profile', 'paper', '--results', str(tmp_path)]) == 1


def test_results_lie_where_the_profiles_do(store):
    path = write(table([find_row('retinanet-baseline')], store), store)
    assert path == store.folder / 'cost.md'
