"""The command line: what it prints, what it refuses, and how (one line, exit status 1, no traceback)."""
import functools
import inspect
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config
from PIL import Image

import amdlib
from amdlib import cli
from amdlib.cli import main
from amdlib.datasets import ShapesSpec, prepare
from amdlib.errors import RunError, SettingError, WeightsError
from amdlib.evaluation import METRICS
from amdlib.files import ROOT, write_json
from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import paper_lines, paper_value
from amdlib.paper.profiles import PROFILES
from amdlib.paper.rows import ROWS
from amdlib.paper.tables import TABLES
from amdlib.runs import batch, device, jobs, notebooks
from amdlib.runs.progress import read_progress
from amdlib.runs.run import Run, table_runs
from amdlib.runs.store import State, Store, unfinished
from amdlib.runs.targets import TARGETS, Given
from amdlib.weights import published
from tests.conftest import OWN
from tests.datasets import layouts


@pytest.fixture(scope='module')
def coco_folder(tmp_path_factory):
    """A data set for the profile `small`: COCO layout, 4 training and 2 test images."""
    home = tmp_path_factory.mktemp('home') / 'a set'
    small = prepare('shapes', cache=tmp_path_factory.mktemp('made'), shapes=ShapesSpec(train_images=4, test_images=2))
    (home / 'annotations').mkdir(parents=True)
    for split, ann, images in (('train', small.train_ann, small.train_images),
                               ('val', small.test_ann, small.test_images)):
        shutil.copy(ann, home / 'annotations' / f'instances_{split}.json')
        shutil.copytree(images, home / split)
    return home


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Words -> (exit status, stdout, stderr), in this process; what it prepares lands below tmp_path."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', os.environ.get('CUDA_VISIBLE_DEVICES', ''))  # --device changes it
    monkeypatch.setattr('amdlib.runs.store.prepare', functools.partial(prepare, cache=tmp_path / 'cache'))

    def run(*words):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stopped:
            status = stopped.code
        told = capsys.readouterr()
        return status, told.out, told.err
    return run


@pytest.fixture
def own_loss(tmp_path):
    """A loss of one's own, `path/to/own.py:Own`."""
    (tmp_path / 'own.py').write_text(OWN)
    return f'{tmp_path}/own.py:Own'


def _python(*words, **environment):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env={**os.environ, **environment})


# ---- the package ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words', [
    ('-c', "import sys, amdlib; assert amdlib.__version__; assert 'torch' not in sys.modules"),
    ('-c', "import sys\nfrom amdlib.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
           "assert not {'torch', 'pandas', 'mmengine'} & set(sys.modules)"),
    ('-m', 'amdlib', 'run', '--help')])
def test_it_answers_within_a_second_and_without_torch(words):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = _python(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    # of the processor: how long a reader waits depends on what else runs here
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize('name', amdlib.__all__)
def test_every_public_name_is_there(name):
    assert getattr(amdlib, name) is not None
    assert name in dir(amdlib)


def test_an_unknown_name_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="module 'amdlib' has no attribute 'Runn'"):
        amdlib.Runn  # noqa: B018


# ---- what it prints ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('command', cli.COMMANDS)
def test_help_of_every_command(call, command):
    status, out, _ = call(command, '--help')
    assert status == 0
    assert out.startswith(f'usage: python -m amdlib {command}')


def test_help_names_every_command(call):
    _, out, _ = call('--help')
    assert re.findall(r'^    (\w+)(?: |$)', out, re.MULTILINE) == list(cli.COMMANDS)


def test_every_command_is_a_function_with_a_docstring():
    for name, (do, _) in cli.COMMANDS.items():
        assert inspect.getdoc(do), name
        assert '%' not in inspect.getdoc(do), name     # argparse would format it


def test_run_offers_mmdets_flags(call):
    _, out, _ = call('run', '--help')
    assert all(flag in out for flag in ('--work-dir', '--resume', '--amp', '--cfg-options'))


def test_list_prints_all_rows_with_the_papers_value(call):
    status, out, _ = call('list')
    lines = {line.split()[0]: line for line in out.splitlines() if line.split() and line.split()[0] in ROWS}
    assert status == 0
    assert list(lines) == list(ROWS)
    for (group, key), printed in paper_lines('I').items():
        assert lines[f'{group}-{key}'].split()[1] == f'{float(printed["mAP"]):.1f}'
    for row in ROWS.values():   # those of the other tables: their value where the paper has one, and where they stand
        numbers = [table.number for table in TABLES.values() if row in table.rows()]
        values = [paper_value(number, row.group.name, row.name, 'mAP') for number in numbers]
        assert lines[row.id].split()[1] == next((f'{value:.1f}' for value in values if value is not None), '-')
        assert lines[row.id].endswith(f'  {" ".join(numbers)}')


def test_show_prints_a_config_and_nothing_else(call, coco_folder):
    status, out, err = call('show', 'retinanet-amd', '--profile', 'small', '--data', coco_folder, '--set', 'phi=0.7',
                            '--settings', 'epochs=3 amp=bf16', '--seed', '3')
    cfg = Config.fromstring(out, '.py')
    assert status == 0
    assert 'fingerprint' in err
    assert (cfg.model.options.phi, cfg.randomness.seed, cfg.model.method) == (0.7, 3, 'amd')
    assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.type) == (3, 'BFloat16OptimWrapper')


def test_show_at_paper_needs_no_data(call):
    status, out, err = call('show', 'faster_rcnn-mgd', '--profile', 'paper')
    assert (status, err) == (0, '')
    assert Config.fromstring(out, '.py').model.student.type == 'FasterRCNN'


def test_show_takes_a_loss_of_ones_own(call, coco_folder, own_loss):
    status, out, err = call('show', f'retinanet-{own_loss}', '--profile', 'small', '--data', coco_folder, '--set',
                            'weight=3e-5')
    assert status == 0, err
    assert Config.fromstring(out, '.py').model.method == own_loss


def test_data_checks_a_set_and_tells_its_fingerprint(call, coco_folder, tmp_path):
    status, out, _ = call('data', '--profile', 'small', '--data', coco_folder, '--results', tmp_path)
    assert status == 0
    assert 'a-set: 5 classes, fingerprint ' in out
    assert 'trained on train, reported on val' in out


@pytest.fixture
def pets(tmp_path):
    """A folder of YOLO's in one split, four pictures and one that is half."""
    root = tmp_path / 'meine Bilder'
    layouts.yolo_classes(root, layouts.joined(layouts.PICTURES))
    (root / 'images/v.1.png').write_bytes((root / 'images/v.1.png').read_bytes()[:50])
    return root


def test_data_of_a_folder_says_what_it_found_draws_it_and_writes_it_as_coco(call, pets, tmp_path):
    status, out, err = call('data', pets, '--split', '0.5', '--drop-broken', '--negatives', 'drop', '--results',
                            tmp_path / 'results', '--to', tmp_path / 'coco')
    assert status == 0, err
    assert f'{pets}: YOLO layout: classes.txt, 3 classes, images' in out
    assert 'meine-bilder-split0.5-negatives-drop-readable: 3 classes, fingerprint ' in out
    assert 'note: 1 unreadable image left out: ' in out
    assert 'note: train: 1 image without a box left out, as asked' in out
    drawn = tmp_path / 'results/small/meine-bilder-split0.5-negatives-drop-readable/data.png'
    assert f'{drawn}: pictures with their boxes' in out
    assert min(Image.open(drawn).size) > 500
    again, out, _ = call('data', tmp_path / 'coco', '--results', tmp_path, '--grid', tmp_path / 'other.png')
    assert again == 0
    assert 'COCO layout: annotations/instances_train.json, annotations/instances_test.json' in out
    assert (tmp_path / 'other.png').is_file()


def test_a_choice_reaches_the_data_of_every_command(call, pets, tmp_path):
    words = ('--profile', 'small', '--data', pets, '--results', tmp_path / 'results')
    status, _, err = call('status', *words)
    assert status == 1
    assert 'one split only' in err
    status, out, err = call('status', *words, '--split', '0.5', '--drop-broken', '--group', 'retinanet')
    assert status == 0, err
    assert 'missing' in out
    status, _, err = call('show', 'retinanet-amd', *words, '--split', '1.5')
    assert status == 1
    assert err.splitlines()[-1].startswith('error: split=1.5: expected the share that is trained on, between 0 and 1')
    assert call('data', pets, '--data', pets)[2].splitlines()[-1].endswith('expected one of them')


def test_data_names_file_id_and_value_of_a_problem(call, coco_folder, tmp_path):
    broken = tmp_path / 'broken'
    shutil.copytree(coco_folder, broken)
    ann = broken / 'annotations' / 'instances_val.json'
    truth = json.loads(ann.read_text())
    truth['annotations'][0]['category_id'] = 77
    ann.write_text(json.dumps(truth))
    status, _, err = call('data', '--profile', 'small', '--data', broken)
    last = err.splitlines()[-1]
    assert status == 1
    assert last.startswith('error: ')
    assert 'instances_val.json' in last
    assert '77' in last


def test_weights_looks_for_all_files_and_tells_what_is_missing(call, monkeypatch, tmp_path):
    looked_for = []

    def find(url, sources):
        assert sources.folders == (tmp_path,)
        looked_for.append(url)
        if 'retinanet' in url:
            raise WeightsError('retinanet_x101.pth was not found')
        return tmp_path / published.file_name(url)
    monkeypatch.setattr(published, 'find', find)
    status, out, told = call('weights', '--weights', str(tmp_path))
    assert (status, told) == (1, 'error: retinanet_x101.pth was not found\n')
    assert out.split() == [str(tmp_path / published.file_name(url)) for url in looked_for if 'retinanet' not in url]
    assert {group.teacher_url for group in GROUPS.values()} < set(looked_for)
    looked_for.clear()
    assert call('weights', 'reppoints-baseline', 'faster_rcnn-amd', '--weights', str(tmp_path))[0] == 0
    assert [published.digits(published.file_name(url)) for url in looked_for] == ['0676ba61', 'e75f90c8']


# ---- what it refuses --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('words', 'expected'), [
    (['show', 'retinanet-amdd'], ["unknown row 'retinanet-amdd'", 'retinanet-amd,', 'faster_rcnn-amd']),
    (['run', 'nothing'], ["unknown row 'nothing'", 'reppoints-fgd']),
    (['run', 'retinanet-gone.py:Own'], ['gone.py', 'no such file']),
    (['table', '--method', 'gone.py:Own'], ['gone.py', 'no such file']),
    (['show', 'retinanet-amd', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, bccd, small, tenth, paper']),
    (['run', 'retinanet-amd', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, bccd, small, tenth, paper']),
    (['data', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, bccd, small, tenth, paper']),
    (['table', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, bccd, small, tenth, paper']),
    (['notebook', 'table1', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, bccd, small, tenth, paper']),
    (['table', '--group', 'yolo'], ["unknown group 'yolo'", 'retinanet, reppoints, faster_rcnn']),
    (['status', '--group', 'retina'], ["unknown group 'retina'", 'retinanet, reppoints, faster_rcnn']),
    (['reproduce', 'all', '--group', 'retina'], ["unknown group 'retina'", 'retinanet, reppoints, faster_rcnn']),
    (['table', 'table7'], ["unknown table 'table7'", *TABLES]),
    (['table', 'table2', '--group', 'reppoints'], ["table2 has no group 'reppoints'", 'retinanet']),
    (['reproduce', 'table7'], ["unknown target 'table7'", *TARGETS, 'all']),
    (['reproduce', 'table1', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, bccd, small, tenth, paper']),
    (['reproduce', 'table1', '--set', 'epochs'], ["'epochs': expected KEY=VALUE"]),
    (['reproduce', 'table1', '--settings', "a='b"], ['no closing quotation']),
    (['reproduce', 'table1', '--seeds', 'a'], ["seeds 'a': expected numbers"]),
    (['reproduce', 'table1', '--jobs', '-1'], ['jobs=-1: expected a number of 1 or more']),
    (['reproduce', 'table1', '--jobs', '0'], ['jobs=0: expected a number of 1 or more']),
    (['run', 'retinanet-amd', '--workers', '-2'], ['workers=-2: expected a number of 0 or more']),
    (['run', 'retinanet-amd', '--weights', '/no/such'], ['/no/such: no such folder']),
    (['status', 'fig2'], ["unknown target 'fig2'", *TARGETS, 'all']),
    (['status', '--profile', 'small'], ['DATA']),
    (['report', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, bccd, small, tenth, paper']),
    (['reproduce', 'table1', '--data', 'somewhere'], ['mini makes its own data']),
    (['table', '--seeds', 'a,b'], ["seeds 'a,b'"]),
    (['run', 'retinanet-amd', '--set', 'phy=1'], ["no setting 'phy'", 'phi', 'epochs']),
    (['run', 'retinanet-baseline', '--set', 'phi=1'], ["no setting 'phi'", 'epochs, batch_size, lr, gpus']),
    (['run', 'retinanet-amd', '--set', 'epochs'], ["'epochs': expected KEY=VALUE"]),
    (['run', 'retinanet-amd', '--set', '=3'], ["'=3': expected KEY=VALUE"]),
    (['run', 'retinanet-amd', '--set', 'epochs=many'], ["epochs='many': expected int"]),
    (['run', 'retinanet-amd', '--set', 'epochs=0'], ['epochs=0: expected a positive number']),
    (['run', 'retinanet-amd', '--set', 'epochs=1.5'], ['epochs=1.5: expected int']),
    (['run', 'retinanet-amd', '--seed', '-1'], ['seed=-1: expected']),
    (['run', 'retinanet-amd', '--set', 'backbone=gone.pth'], ['backbone=gone.pth: no such file']),
    (['run', 'retinanet-amd', '--cfg-options', 'a={b'], ["'{b' is no Python literal"]),
    (['run', 'retinanet-amd', '--profile', 'small'], ['DATA']),
    (['run', 'retinanet-amd', '--profile', 'small', '--data', 'gone'], ['gone: no such folder']),
    (['data', '--data', 'somewhere'], ['mini makes its own data']),
    (['sweep', 'reppoints-amd', 'phi', '1', '--device', 'cpu:1'], ["device='cpu:1': expected cpu, cuda or cuda:N"]),
    *((['run', 'retinanet-amd', '--device', wrong], [f'device={wrong!r}: expected cpu, cuda or cuda:N'])
      for wrong in ('tpu', 'cuda:x', 'cpu:1', 'cuda:')),
    (['cost', '--profile', 'paper', '--device', 'tpu'], ["device='tpu': expected cpu, cuda or cuda:N"]),
    (['job', 'gone.json'], ['gone.json: no job file']),
    (['bed', '--group', 'yolo'], ["unknown group 'yolo'", 'retinanet, reppoints, faster_rcnn']),
    (['teachers', '--group', 'yolo'], ["unknown group 'yolo'", 'retinanet, reppoints, faster_rcnn']),
    (['teachers', '--seed', 'a'], ["seeds 'a': expected numbers"]),
    (['calibrate', '--group', 'retinanet', '--seeds', '0 1'], ['seeds 0, 1: those below 100 are reported']),
    (['calibrate', '--group', 'faster_rcnn', '--arm', 'inherit'], ['faster_rcnn is a two-stage pair']),
    (['calibrate', '--group', 'retinanet', '--methods', 'amd amd-mask'],
     ['retinanet-amd-mask takes the factor of amd']),
])
def test_a_mistake_is_told_in_one_line(call, words, expected):
    status, out, err = call(*words)
    assert status == 1
    assert err.startswith('error: '), err
    assert len(err.splitlines()) == 1, err
    assert all(text in err for text in expected), err
    assert 'Traceback' not in out + err


@pytest.mark.parametrize('command', ['teachers', 'pretrain'])
def test_a_profile_that_ships_no_weights_is_told(call, coco_folder, command):
    status, _, err = call(command, '--profile', 'small', '--data', coco_folder)
    assert (status, err.splitlines()[-1]) == (1, 'error: profile small ships no weights: its teachers are trained with '
                                                 'its runs, on the data that is given')


def test_bed_says_what_is_not_there_yet_and_writes_it_where_asked(call, coco_folder, tmp_path):
    words = ('bed', '--profile', 'small', '--data', coco_folder, '--results', tmp_path, '--group', 'retinanet')
    status, out, _ = call(*words)
    assert status == 0
    assert '**Nothing is known yet.**' in out
    assert not list(tmp_path.rglob('bed.*'))
    assert call(*words, '--write')[0] == 0
    assert {path.name for path in tmp_path.rglob('bed.*')} == {'bed.md', 'bed.csv'}


def test_a_table_in_the_other_arm_with_controls_names_its_runs(call, coco_folder, tmp_path):
    status, _, err = call('table', '--profile', 'small', '--data', coco_folder, '--group', 'retinanet', '--results',
                          tmp_path / 'results', '--arm', 'alone', '--controls')
    runs = table_runs('table1', 'small', 'retinanet', arm='alone', controls=True)
    assert status == 1
    assert len(runs) > len(table_runs('table1', 'small', 'retinanet'))
    assert all(f'{run.id} (missing' in err for run in runs)


def test_an_unknown_notebook_is_told_with_those_there_are(call, coco_folder):
    status, _, err = call('notebook', 'table9', '--profile', 'small', '--data', coco_folder)
    last = err.splitlines()[-1]
    assert status == 1
    assert last.startswith("error: no notebook 'table9'; there are: ")
    assert 'table1' in last


def test_a_table_without_records_names_the_runs_that_are_missing(call, coco_folder, tmp_path):
    status, _, err = call('table', '--profile', 'small', '--data', coco_folder, '--group', 'retinanet', '--results',
                          tmp_path / 'results', '--set', 'epochs=3')
    last = err.splitlines()[-1]
    runs = table_runs('table1', 'small', 'retinanet', settings={'epochs': 3})
    assert status == 1
    assert last.startswith(f'error: {len(runs)} of {len(runs)} runs have no valid record')
    assert all(f'{run.id} (missing' in last for run in runs)


@pytest.mark.parametrize(('words', 'expected'), [
    (['reproduce', 'table1', 'table3', '--group', 'retinanet'], "table3 has no group 'retinanet'; expected"),
    (['reproduce', 'table1', 'table2', '--set', 'epoch=1'], "a table has no setting 'epoch'; it has: epochs"),
    (['reproduce', 'table1', '--set', 'phi=1'], "a table has no setting 'phi'"),
    (['notebook', 'experiment', '--set', 'rows=retinanet-amd'], "experiment has no parameter 'rows'; it has: "),
    (['sweep', 'reppoints-amd', 'fi', '1'], "reppoints-amd has no setting 'fi'; it has: "),
    (['sweep', 'reppoints-baseline', 'phi', '1'], "reppoints-baseline has no setting 'phi'"),
    (['sweep', 'reppoints-amd', 'phi', 'much'], "phi='much': expected float"),
    (['report'], 'no table, figure, record or executed notebook to report on; run `make reproduce-table1')])
def test_a_mistake_is_told_before_anything_is_trained(call, coco_folder, tmp_path, monkeypatch, words, expected):
    monkeypatch.setattr(batch, 'run_missing', lambda *_, **__: pytest.fail('a batch was started'))
    monkeypatch.setattr(notebooks, 'execute', lambda notebook, _, parameters: notebooks.check(notebook, parameters))
    status, _, err = call(*words, '--profile', 'small', '--data', coco_folder, '--results', tmp_path / 'results')
    last = err.splitlines()[-1]
    assert status == 1
    assert last.startswith('error: '), err
    assert expected in last
    assert 'Traceback' not in err
    assert not (tmp_path / 'results').exists()


def test_cfg_options_without_a_work_dir_are_refused(call, coco_folder, tmp_path):
    status, _, err = call('run', 'retinanet-baseline', '--profile', 'small', '--data', coco_folder, '--results',
                          tmp_path / 'results', '--cfg-options', 'train_cfg.max_epochs=1')
    last = err.splitlines()[-1]
    assert status == 1
    assert last.startswith('error: --cfg-options')
    assert '--work-dir' in last
    assert not (tmp_path / 'results').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('wanted', ['cuda', 'cuda:0'])
def test_a_gpu_that_is_not_there(call, coco_folder, wanted):
    status, _, err = call('run', 'retinanet-amd', '--profile', 'small', '--data', coco_folder, '--device', wanted)
    assert status == 1
    assert f'--device {wanted}: torch sees no such GPU' in err
    assert 'doctor' in err


@pytest.mark.parametrize(('visible', 'wanted', 'chosen'), [
    (None, 'cuda:2', '2'), ('4,6', 'cuda:1', '6'), ('4,6', 'cuda', '4,6'), ('4,6', 'cuda:2', ''), ('4,6', 'cpu', ''),
    ('4,6', None, '4,6')])
def test_a_gpu_is_counted_among_the_visible_ones(monkeypatch, visible, wanted, chosen):
    if visible is None:
        monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    else:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: os.environ['CUDA_VISIBLE_DEVICES'] != '')
    if wanted == 'cuda:2' and visible:
        with pytest.raises(RunError, match='torch sees no such GPU'):
            device.choose_device(wanted)
    else:
        device.choose_device(wanted)
    assert os.environ['CUDA_VISIBLE_DEVICES'] == chosen


# ---- what it passes on ------------------------------------------------------------------------------------------

@pytest.fixture
def trained(monkeypatch):
    """What `train` would get."""
    seen = {}
    monkeypatch.setattr('amdlib.runs.train.train', lambda run, store, **more: seen.update(more, run=run, store=store))
    return seen


def test_run_passes_its_words_on(call, coco_folder, trained, tmp_path):
    (tmp_path / 'w').mkdir()
    status, _, err = call('run', 'retinanet-amd', '--profile', 'small', '--data', coco_folder,
                          '--results', tmp_path / 'r', '--seed', '2', '--set', 'phi=0.5', '--amp', '--force',
                          '--gpus', '2', '--workers', '3', '--resume', '--work-dir', tmp_path / 'w', '--device', 'cpu',
                          '--tensorboard', '--weights', tmp_path / 'w', '--mirrors', 'https://one', 'https://two',
                          '--cache', tmp_path / 'c', '--teacher-check-images', '50',
                          '--cfg-options', 'a.b=1', 'c=[1,2]', 'd=x', "e=[{'type': 'T'}]")
    assert status == 0, err
    store = trained['store']
    assert (trained['run'].id, store.dataset.name) == ('retinanet-amd+amp=fp16+gpus=2+phi=0.5-s2', 'a-set')
    assert (trained['force'], trained['resume'], trained['work_dir'], store.results) == (
        True, True, tmp_path / 'w', tmp_path / 'r')
    assert trained['cfg_options'] == {'a.b': 1, 'c': [1, 2], 'd': 'x', 'e': [{'type': 'T'}]}
    means = store.means
    assert (means.device, means.workers, means.tensorboard, means.teacher_check_images) == ('cpu', 3, True, 50)
    assert (means.sources.folders, means.sources.mirrors, means.sources.cache) == (
        (tmp_path / 'w',), ('https://one', 'https://two'), tmp_path / 'c')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''


def test_run_takes_a_loss_of_ones_own(call, coco_folder, trained, own_loss, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, err = call('run', 'reppoints-own.py:Own', '--profile', 'small', '--data', coco_folder,
                          '--skip-teacher-check')
    assert status == 0, err
    assert (trained['run'].id, trained['run'].row.method) == ('reppoints-own.Own-s0', own_loss)
    assert trained['store'].means.teacher_check_images == 0
    assert trained['store'].means.device is None


@pytest.fixture
def executed(monkeypatch):
    """Notebooks that would be executed: stem, output, parameters."""
    seen = []
    monkeypatch.setattr(notebooks, 'execute', lambda notebook, *others: seen.append((notebook.stem, *others)))
    return seen


@pytest.mark.parametrize('output', ['../../../x', '/tmp/x.ipynb'])
def test_an_executed_notebook_stays_below_the_results(call, coco_folder, tmp_path, executed, output):
    status, _, err = call('notebook', 'table1', '--profile', 'small', '--data', coco_folder, '--results',
                          tmp_path / 'out', '--output', output)
    assert (status, executed) == (1, [])
    assert err.splitlines()[-1] == f'error: --output {output}: expected a name below {tmp_path / "out"}'


@pytest.mark.parametrize(('make', 'told'), [
    (lambda path: path.write_text('mine'), 'no folder for results'),
    (lambda path: path.symlink_to(path), 'symbolic links')])
def test_results_that_cannot_be_are_told_in_a_line(call, tmp_path, make, told):
    make(tmp_path / 'out')
    status, _, err = call('run', 'retinanet-baseline', '--results', tmp_path / 'out')
    assert status == 1
    assert err.splitlines()[-1].startswith(f'error: {tmp_path / "out"}')
    assert told in err.splitlines()[-1]
    status, _, err = call('run', 'retinanet-baseline', '--results', tmp_path / ('a' * 300))
    assert status == 1
    assert err.splitlines()[-1].endswith('File name too long')


def test_notebook_passes_its_words_on(call, coco_folder, tmp_path, executed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.pth').write_bytes(b'x')
    words = ('--profile', 'small', '--data', os.path.relpath(coco_folder), '--results', 'out', '--set',
             'settings=epochs=2 teacher_checkpoint=x.pth', '--set', 'phi=0.7', '--device', 'cpu')
    for output in ((), ('--output', 'sweep/one'), ('--output', 'two.ipynb'),
                   ('--output', tmp_path / 'out' / 'three.ipynb')):
        status, _, err = call('notebook', 'table1', *words, *output)
        assert status == 0, err
    folder = tmp_path / 'out' / 'small' / 'a-set'
    assert [output for _, output, _ in executed] == [
        folder / 'table1.ipynb', folder / 'sweep' / 'one.ipynb', folder / 'two.ipynb',
        tmp_path / 'out' / 'three.ipynb']
    parameters = executed[0][2]
    # a notebook runs in a folder of its own, so every path is absolute
    assert parameters['settings'] == {'epochs': 2, 'teacher_checkpoint': str(tmp_path / 'x.pth')}
    assert (parameters['profile'], parameters['phi']) == ('small', 0.7)
    assert os.path.isabs(parameters['data'])
    assert os.path.samefile(parameters['data'], coco_folder)
    assert (parameters['how']['results'], parameters['how']['device']) == (str(tmp_path / 'out'), 'cpu')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''


def test_targets_get_what_is_asked_of_them(call, coco_folder, tmp_path, own_loss, monkeypatch):
    seen = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('amdlib.runs.targets.reproduce', lambda targets, store, given: seen.update(
        targets=[target.name for target in targets], store=store, given=given))
    (tmp_path / 'x.pth').write_bytes(b'x')
    status, _, err = call('reproduce', 'table1', 'fig4', '--profile', 'small', '--data', coco_folder, '--results',
                          'out', '--group', 'retinanet', '--seeds', '0', '1', '--values', '0.5', '1.0', '--jobs', '2',
                          '--device', 'cpu', '--force', '--set', 'epochs=2', '--settings',
                          'gpus=2 teacher_checkpoint=x.pth', '--method', 'own.py:Own')
    assert status == 0, err
    assert seen['targets'] == ['table1', 'fig4']
    assert seen['given'] == Given('retinanet', (0, 1), (0.5, 1.0), {
        'epochs': 2, 'gpus': 2, 'teacher_checkpoint': str(tmp_path / 'x.pth')}, (own_loss,), True)
    assert (seen['store'].means.jobs, seen['store'].means.device, seen['store'].results) == (
        2, 'cpu', tmp_path / 'out')


def test_status_of_nothing_counts_every_run_and_says_what_is_next(call, coco_folder, tmp_path):
    where = ('--profile', 'small', '--data', coco_folder, '--results', tmp_path / 'out')
    status, out, err = call('status', *where, '--group', 'faster_rcnn')
    assert status == 0, err
    lines = out.splitlines()
    (never,) = [line for line in lines if ' never run: faster_rcnn-teacher-s0, ' in line]
    count = int(never.split()[0])
    assert f'{count} runs: {count} missing' in lines
    assert lines[-3].split() == [list(TARGETS)[-1], '0', 'of', '1', 'runs', 'done;', 'not', 'executed', 'yet']
    assert not (tmp_path / 'out').exists()
    assert lines[-1] == (f'0 of {count} done, no run to tell the time from, next: make reproduce-table1 PROFILE=small '
                         'GROUP=faster_rcnn')


@pytest.fixture
def all_done(monkeypatch):
    """Every run has a record whose numbers are all 20, and phi more."""
    def state(_store, run, *_):
        more = run.value('phi') if run.row.method == 'amd' else 0
        return State('done', '', {
            'numbers': dict.fromkeys(METRICS, 20 + more), 'settings_hash': 'h', 'data': {'fingerprint': 'd'},
            'code': {'commit': 'c', 'clean': True}, 'train_s': 1, 'device': 'CPU'})
    monkeypatch.setattr(Store, 'state', state)


def test_sweep_makes_an_executed_notebook_a_value_and_prints_them(call, coco_folder, tmp_path, monkeypatch, all_done):
    seen = {}
    monkeypatch.setattr(batch, 'run_missing', lambda runs, store, **more: seen.update(more, runs=runs, store=store))
    status, out, err = call('sweep', 'reppoints-amd', 'phi', '0.5', '1.0', '--profile', 'small', '--data', coco_folder,
                            '--results', tmp_path / 'out', '--seeds', '0', '--set', 'epochs=2', '--jobs', '3',
                            '--device', 'cpu')
    assert status == 0, err
    folder = tmp_path / 'out' / 'small' / 'a-set' / 'sweep_phi'
    assert {run.id: path for run, path in seen['executed'].items()} == {
        run_id: folder / f'{run_id}.ipynb' for run_id in ('reppoints-amd+epochs=2+phi=0.5-s0',
                                                          'reppoints-amd+epochs=2-s0')}
    means = seen['store'].means
    assert (seen['runs'], seen['force'], means.jobs, means.device) == ([], False, 3, 'cpu')
    rows = [[word.strip() for word in line.split('|')[1:-1]] for line in out.splitlines() if line.startswith('|')]
    at = [rows[0].index(name) for name in ('phi', 'mAP', 'mAR')]
    assert [[row[i] for i in at] for row in rows[2:]] == [['0.5', '20.5', '20.5'], ['1.0', '21.0', '21.0']]
    assert str(folder) in out


def test_table_prints_what_is_there(call, coco_folder, own_loss, all_done):
    status, out, err = call('table', 'table2', '--profile', 'small', '--data', coco_folder, '--method', own_loss)
    assert status == 0, err
    rows = {line.split('|')[1].strip(): [word.strip() for word in line.split('|')[2:-1]]
            for line in out.splitlines() if line.startswith('|')}
    assert rows['full'][:5] == ['21.0', '–', '41.3', '–', '21.0 (61.0)']
    assert rows['baseline'][:4] == ['20.0', '-1.0', '37.4', '-3.9']
    assert rows['channel only'][1] == '+0.0'
    assert rows['Own'][:3] == ['20.0', '-1.0', '–']


def test_the_same_words_mean_the_same_runs_in_a_target_and_in_a_run(store):
    """So that what `run` has made is not trained again by `reproduce`."""
    of_target = TARGETS['table2'].runs(store, Given(settings={'epochs': 2}, seeds=(1,)))
    assert Run.of('retinanet-amd-mask', store.profile, 1, {'epochs': 2}) in of_target
    assert of_target == table_runs('table2', store.profile, None, (1,), {'epochs': 2})


def test_lab_takes_words_of_its_own_and_says_what_a_root_needs(call, monkeypatch):
    seen = []
    monkeypatch.setattr(os, 'execve', lambda *words: seen.append(words))
    for user in (0, 1000):
        monkeypatch.setattr(os, 'geteuid', lambda user=user: user)
        status, out, _ = call('lab', '--', '--port', '8889')
        assert status == 0
        assert ('--allow-root' in out) == (user == 0)
    (program, words, environment), (_, of_others, _) = seen
    assert program == sys.executable
    assert words[1:3] == ['-m', 'jupyterlab']
    assert words[words.index('--notebook-dir') + 1] == str(ROOT / 'notebooks')
    assert words[-2:] == of_others[-2:] == ['--port', '8889']
    assert '--allow-root' in words
    assert '--allow-root' not in of_others
    assert environment['PATH'].startswith(os.path.dirname(sys.executable))


def test_attest_passes_its_commit_on(call, monkeypatch):
    seen = []
    monkeypatch.setattr('amdlib.runs.attest.attest', seen.append)
    assert call('attest')[0] == call('attest', 'c0ffee')[0] == 0
    assert seen == [None, 'c0ffee']


# ---- how it ends ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('error', 'status', 'told'), [
    (KeyboardInterrupt(), 130, 'interrupted\n'), (SettingError('phi=1'), 1, 'error: phi=1\n'),
    (FileNotFoundError('no weights at x'), 1, 'error: no weights at x\n'),
    (PermissionError(13, 'Permission denied', '/x'), 1, 'error: /x: Permission denied\n')])
def test_how_a_command_ends(call, monkeypatch, error, status, told):
    def stop(_):
        """Stops."""
        raise error
    monkeypatch.setitem(cli.COMMANDS, 'list', (stop, ()))
    assert call('list') == (status, '', told)


@pytest.mark.slow
def test_a_job_ends_with_the_batch(coco_folder, tmp_path):
    """Even where that is killed: then the pipe to the run ends."""
    data = prepare('folder', coco_folder, tmp_path / 'cache')
    store = Store(PROFILES['small'], data, tmp_path / 'results').with_means(device='cpu')
    run = Run.of('retinanet-baseline', store.profile, 0, {'batch_size': 2, 'epochs': 999})
    folder = store.run_folder(run)
    command = jobs.write(jobs.of_run(run, store, False), folder)
    process = subprocess.Popen([*command, '--ends-with-stdin'], cwd=ROOT, stdin=subprocess.PIPE)
    try:
        until_s = time.monotonic() + 120
        while read_progress(folder).get('phase') != 'train':
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.1)
        process.stdin.close()
        assert process.wait(10) == 1
        assert unfinished(folder).name == 'failed'
    finally:
        process.kill()


def test_a_job_file_that_asks_for_something_else_is_refused(call, tmp_path):
    write_json(tmp_path / 'job.json', {'do': 'harm'})
    status, _, err = call('job', tmp_path / 'job.json')
    assert status == 1
    assert "do='harm': expected run or notebook" in err


def test_as_a_process_it_ends_with_1_and_without_a_traceback():
    ended = _python('-m', 'amdlib', 'show', 'retinanet-amdd')
    assert ended.returncode == 1
    assert ended.stdout == ''
    assert 'Traceback' not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: unknown row 'retinanet-amdd'")


def test_a_reader_that_stops_ends_it_without_a_traceback():
    """As in `make list | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, '-m', 'amdlib', 'list'], stdout=writer, stderr=subprocess.PIPE, text=True,
                           cwd=ROOT, timeout=120)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, '')
