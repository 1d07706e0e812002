"""The command line: what it prints, what it refuses, and how (one line, exit status 1, no traceback)."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from amdlib import __main__ as cli
from amdlib import batch, data, notebooks, results, tables, zoo
from amdlib.__main__ import main
from amdlib.experiments import GROUPS, PROFILES, ROWS, TABLES, Run, table_runs
from amdlib.results import METRICS
from amdlib.targets import TARGETS

ROOT = Path(cli.__file__).parents[1]
COMMANDS = ('list', 'values', 'weights', 'show', 'run', 'data', 'table', 'export', 'notebook', 'reproduce', 'sweep',
            'status', 'report', 'cost', 'dryrun', 'doctor')


@pytest.fixture(scope='module')
def coco_folder(tmp_path_factory):
    """A data set for the profile `small`: COCO layout, 4 training and 2 test images."""
    made, home = tmp_path_factory.mktemp('made'), tmp_path_factory.mktemp('home') / 'a set'
    small = data.prepare('mini', cache=made, log=lambda *_: None, shapes=data.ShapesSpec(train_images=4, test_images=2))
    (home / 'annotations').mkdir(parents=True)
    for split, ann, images in (('train', small.train_ann, small.train_images),
                               ('val', small.test_ann, small.test_images)):
        shutil.copy(ann, home / 'annotations' / f'instances_{split}.json')
        shutil.copytree(images, home / split)
    return home


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Words -> (exit status, stdout, stderr), in this process; what it prepares lands below tmp_path."""
    (tmp_path / 'kit').mkdir()
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', os.environ.get('CUDA_VISIBLE_DEVICES', ''))  # --device changes it
    monkeypatch.setattr(cli, 'ROOT', tmp_path / 'kit')

    def run(*words):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stopped:
            if isinstance(stopped.code, str):   # as the interpreter does it
                print(stopped.code, file=sys.stderr)
            status = stopped.code if isinstance(stopped.code, int) else 1
        told = capsys.readouterr()
        return status, told.out, told.err
    return run


def _python(*words, **environment):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env={**os.environ, **environment})


# ---- what it prints ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('command', COMMANDS)
def test_help_of_every_command(call, command):
    status, out, _ = call(command, '--help')
    assert status == 0 and out.startswith(f'usage: python -m amdlib {command}')


def test_help_names_every_command(call):
    _, out, _ = call('--help')
    found = re.findall(r'^    (\w+)(?: |$)', out, re.MULTILINE)
    assert sorted(found) == sorted(COMMANDS)   # a new one belongs in this test


def test_run_offers_mmdets_flags(call):
    _, out, _ = call('run', '--help')
    assert all(flag in out for flag in ('--work-dir', '--resume', '--amp', '--cfg-options'))


def test_list_prints_all_rows_with_the_papers_value(call):
    status, out, _ = call('list')
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.split() and line.split()[0] in ROWS}
    assert status == 0 and set(lines) == set(ROWS) and len(lines) == 33
    paper = tables.paper_table('I')
    for group in GROUPS:
        for label in ('baseline', 'FKD', 'FGD', 'MGD', 'AMD'):
            (printed,) = paper[(paper.group == group) & (paper.row == label)].mAP
            assert float(lines[f'{group}-{label.lower()}'][1]) == pytest.approx(printed)
    # by eye from the paper's Table I
    assert [lines[row][1] for row in ('retinanet-teacher', 'retinanet-amd', 'faster_rcnn-baseline')] == [
        '41.0', '41.3', '38.4']
    # rows of the other tables: their value where the paper has one, and where they stand
    assert [lines[row][1] for row in ('retinanet-amd-mbconv', 'faster_rcnn-amd-within', 'reppoints-amd-channel',
                                      'retinanet-amd-allmasked')] == ['41.0', '42.2', '42.4', '-']
    for row, numbers in (('retinanet-amd', 'I II V'), ('faster_rcnn-amd', 'I IV VI'), ('reppoints-amd-mask', 'III'),
                         ('retinanet-fgd', 'I')):
        (line,) = [line for line in out.splitlines() if line.startswith(f'{row} ')]
        assert line.endswith(f'  {numbers}')


def test_show_prints_a_config_and_nothing_else(call, coco_folder):
    status, out, err = call('show', 'retinanet-amd', '--profile', 'small', '--data', coco_folder, '--set', 'phi=0.7',
                            '--seed', '3')
    cfg = Config.fromstring(out, '.py')
    assert status == 0 and 'fingerprint' in err
    assert cfg.model.options.phi == 0.7 and cfg.randomness.seed == 3 and cfg.model.method == 'amd'


def test_show_at_paper_needs_no_data(call):
    status, out, err = call('show', 'faster_rcnn-mgd', '--profile', 'paper')
    assert status == 0 and err == '' and Config.fromstring(out, '.py').model.student.type == 'FasterRCNN'


def test_data_checks_a_set_and_tells_its_fingerprint(call, coco_folder):
    status, out, _ = call('data', '--profile', 'small', '--data', coco_folder)
    assert status == 0 and 'a-set: 5 classes, fingerprint ' in out and 'trained on train, reported on val' in out


def test_data_names_file_id_and_value_of_a_problem(call, coco_folder, tmp_path):
    broken = tmp_path / 'broken'
    shutil.copytree(coco_folder, broken)
    ann = broken / 'annotations' / 'instances_val.json'
    truth = json.loads(ann.read_text())
    truth['annotations'][0]['category_id'] = 77
    ann.write_text(json.dumps(truth))
    status, _, err = call('data', '--profile', 'small', '--data', broken)
    assert status == 1 and err.startswith('error: ') and 'instances_val.json' in err and '77' in err


@pytest.mark.parametrize(('words', 'images'), [
    ([], ''), (['--teacher-check-images', 50], '50'), (['--skip-teacher-check'], '0')])
def test_weights_and_the_check_of_the_teacher_go_by_the_environment(call, coco_folder, tmp_path, monkeypatch, words,
                                                                    images):
    """From there they reach notebooks, batches and their processes, whatever folder these work in."""
    for name in ('AMD_WEIGHTS', 'AMD_CACHE', 'AMD_MIRRORS', 'AMD_TEACHER_CHECK'):
        monkeypatch.setenv(name, '')
    (tmp_path / 'w').mkdir()
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr('amdlib.train.run_row', lambda *_, **__: seen.append(dict(os.environ)))
    status, _, told = call('run', 'retinanet-baseline', '--profile', 'small', '--data', coco_folder, '--weights', 'w',
                           *words)
    assert status == 0, told
    assert (seen[0]['AMD_WEIGHTS'], seen[0]['AMD_TEACHER_CHECK']) == (str(tmp_path / 'w'), images)


def test_a_weights_folder_that_is_not_there_is_told_in_a_line(call, monkeypatch):
    monkeypatch.setenv('AMD_WEIGHTS', '')
    status, _, told = call('run', 'retinanet-baseline', '--weights', '/no/such')
    assert status == 1 and told == 'error: AMD_WEIGHTS=/no/such: no such folder\n'


# ---- what it refuses --------------------------------------------------------------------------------------------

def test_weights_looks_for_all_files_and_tells_what_is_missing(call, monkeypatch, tmp_path):
    looked_for = []

    def find(url):
        looked_for.append(url)
        if 'retinanet' in url:
            raise zoo.ZooError('retinanet_x101.pth was not found')
        return tmp_path / zoo.file_name(url)
    monkeypatch.setattr(zoo, 'find', find)
    status, out, told = call('weights', '--weights', str(tmp_path))
    assert (status, told) == (1, 'error: retinanet_x101.pth was not found\n')
    assert out.split() == [str(tmp_path / zoo.file_name(url)) for url in looked_for if 'retinanet' not in url]
    assert set(looked_for) == {*(group.teacher_url for group in GROUPS.values()),
                               'https://download.pytorch.org/models/resnet50-0676ba61.pth'}
    looked_for.clear()
    assert call('weights', 'reppoints-baseline', 'faster_rcnn-amd')[0] == 0
    assert [zoo.digits(zoo.file_name(url)) for url in looked_for] == ['0676ba61', 'e75f90c8']


@pytest.mark.parametrize('words, expected', [
    (['show', 'retinanet-amdd'], ["unknown row 'retinanet-amdd'", 'retinanet-amd,', 'faster_rcnn-amd']),
    (['run', 'nothing'], ["unknown row 'nothing'", 'reppoints-fgd']),
    (['show', 'retinanet-amd', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, small, paper']),
    (['run', 'retinanet-amd', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, small, paper']),
    (['data', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, small, paper']),
    (['table', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, small, paper']),
    (['notebook', 'table1', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, small, paper']),
    (['table', '--group', 'yolo'], ["table1 has no group 'yolo'", 'retinanet, reppoints, faster_rcnn']),
    (['table', 'table7'], ["unknown table 'table7'", *TABLES]),
    (['table', 'table2', '--group', 'reppoints'], ["table2 has no group 'reppoints'", 'retinanet']),
    (['reproduce', 'table7'], ["unknown target 'table7'", *TARGETS, 'all']),
    (['reproduce', 'table1', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, small, paper']),
    (['reproduce', 'table1', '--set', 'epochs'], ["'epochs': expected KEY=VALUE"]),
    (['status', 'fig2'], ["unknown target 'fig2'", *TARGETS, 'all']),
    (['status', '--profile', 'small'], ['DATA']),
    (['report', '--profile', 'tiny'], ["unknown profile 'tiny'", 'mini, small, paper']),
    (['reproduce', 'table1', '--data', 'somewhere'], ['profile mini makes its own data']),
    (['notebook', 'experiment', '--device', 'tpu'], ['--device tpu: expected cpu, cuda or cuda:N']),
    (['sweep', 'reppoints-amd', 'phi', '1', '--device', 'cpu:1'], ['--device cpu:1: expected cpu, cuda or cuda:N']),
    (['table', '--seeds', 'a,b'], ["seeds 'a,b'"]),
    (['run', 'retinanet-amd', '--set', 'phy=1'], ["no setting 'phy'", 'phi', 'epochs']),
    (['run', 'retinanet-baseline', '--set', 'phi=1'], ["no setting 'phi'", 'epochs, batch_size, lr, gpus']),
    (['run', 'retinanet-amd', '--set', 'epochs'], ["'epochs': expected KEY=VALUE"]),
    (['run', 'retinanet-amd', '--set', '=3'], ["'=3': expected KEY=VALUE"]),
    (['run', 'retinanet-amd', '--set', 'epochs=many'], ["epochs='many': expected int"]),
    (['run', 'retinanet-amd', '--set', 'epochs=0'], ['epochs=0: expected a positive number']),
    (['run', 'retinanet-amd', '--set', 'epochs=1.5'], ['epochs=1.5: expected int']),
    (['run', 'retinanet-amd', '--set', 'backbone=gone.pth'], ['backbone=gone.pth: no such file']),
    (['run', 'retinanet-amd', '--profile', 'small'], ['DATA']),
    (['run', 'retinanet-amd', '--profile', 'small', '--data', 'gone'], ['gone: no such folder']),
    (['data', '--data', 'somewhere'], ['profile mini makes its own data']),
    (['run', 'retinanet-amd', '--device', 'tpu'], ['--device tpu: expected cpu, cuda or cuda:N']),
    (['run', 'retinanet-amd', '--device', 'cuda:x'], ['--device cuda:x: expected cpu, cuda or cuda:N']),
    (['run', 'retinanet-amd', '--device', 'cpu:1'], ['--device cpu:1: expected cpu, cuda or cuda:N']),
])
def test_a_mistake_is_told_in_one_line(call, words, expected):
    status, out, err = call(*words)
    assert status == 1
    assert err.startswith('error: ') and len(err.splitlines()) == 1
    assert all(text in err for text in expected), err
    assert 'Traceback' not in out + err


def test_an_unknown_notebook_is_told_with_those_there_are(call, coco_folder):
    shutil.copytree(ROOT / 'notebooks', cli.ROOT / 'notebooks')
    status, _, err = call('notebook', 'table9', '--profile', 'small', '--data', coco_folder)
    assert status == 1 and err.startswith("error: no notebook 'table9'; there are: ") and 'table1' in err


def test_a_table_without_records_names_the_runs_that_are_missing(call, coco_folder, tmp_path):
    status, _, err = call('table', '--profile', 'small', '--data', coco_folder, '--group', 'retinanet', '--results',
                          tmp_path / 'results', '--set', 'epochs=3')
    last = err.splitlines()[-1]
    assert status == 1 and last.startswith('error: 6 of 6 runs have no valid record')
    assert 'retinanet-amd+epochs=3-s0 (missing' in last


@pytest.mark.parametrize('words, expected', [
    (['reproduce', 'table1', 'table3', '--set', 'group=retinanet'], "table3 has no group 'retinanet'; expected"),
    (['reproduce', 'table3', '--set', 'group=reppoints'], "ablation has no parameter 'group'; it has: "),
    (['reproduce', 'table1', 'table2', '--set', 'epoch=1'], "has no parameter 'epoch'; it has: profile, data"),
    (['notebook', 'experiment', '--set', 'rows=retinanet-amd'], "experiment has no parameter 'rows'; it has: row, "),
    (['sweep', 'reppoints-amd', 'fi', '1'], "reppoints-amd has no setting 'fi'; it has: "),
    (['sweep', 'reppoints-baseline', 'phi', '1'], "reppoints-baseline has no setting 'phi'"),
    (['sweep', 'reppoints-amd', 'phi', 'much'], "phi='much': expected float"),
    (['report'], 'no table, figure or executed notebook to report on; run `make reproduce-table1')])
def test_a_mistake_is_told_before_anything_is_trained(call, coco_folder, tmp_path, monkeypatch, words, expected):
    monkeypatch.setattr(batch, 'run_missing', lambda *_, **__: pytest.fail('a batch was started'))
    monkeypatch.setattr(notebooks, 'execute', lambda notebook, _, parameters: notebooks.check(notebook, parameters))
    shutil.copytree(ROOT / 'notebooks', cli.ROOT / 'notebooks')
    status, _, err = call(*words, '--profile', 'small', '--data', coco_folder, '--results', tmp_path / 'results')
    last = err.splitlines()[-1]
    assert status == 1 and last.startswith('error: ') and expected in last, err
    assert 'Traceback' not in err and not (tmp_path / 'results').exists()


def test_cfg_options_without_a_work_dir_are_refused(call, coco_folder, tmp_path):
    status, _, err = call('run', 'retinanet-baseline', '--profile', 'small', '--data', coco_folder, '--results',
                          tmp_path / 'results', '--cfg-options', 'train_cfg.max_epochs=1')
    assert status == 1 and err.splitlines()[-1].startswith('error: --cfg-options') and '--work-dir' in err
    assert not (tmp_path / 'results').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('device', ['cuda', 'cuda:0'])
def test_a_gpu_that_is_not_there(call, device):
    status, _, err = call('run', 'retinanet-amd', '--device', device)
    assert status == 1 and f'--device {device}: torch sees no such GPU' in err and 'doctor' in err


@pytest.mark.parametrize(('visible', 'device', 'chosen'), [
    (None, 'cuda:2', '2'), ('4,6', 'cuda:1', '6'), ('4,6', 'cuda', '4,6'), ('4,6', 'cuda:2', ''), ('4,6', 'cpu', '')])
def test_a_gpu_is_counted_among_the_visible_ones(monkeypatch, visible, device, chosen):
    if visible is None:
        monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    else:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: os.environ['CUDA_VISIBLE_DEVICES'] != '')
    if device == 'cuda:2' and visible:
        with pytest.raises(SystemExit, match='torch sees no such GPU'):
            cli._choose_device(device)
    else:
        cli._choose_device(device)
    assert os.environ['CUDA_VISIBLE_DEVICES'] == chosen


def test_run_passes_its_words_on(call, coco_folder, monkeypatch, tmp_path):
    from amdlib import train
    seen = {}
    monkeypatch.setattr(train, 'run_row', lambda run, dataset, results_dir, **more: seen.update(
        more, run=run, dataset=dataset, results=results_dir))
    status, _, err = call('run', 'retinanet-amd', '--profile', 'small', '--data', coco_folder,
                          '--results', tmp_path / 'r', '--seed', '2', '--set', 'phi=0.5', '--amp', '--force',
                          '--gpus', '2', '--workers', '3', '--resume', '--work-dir', tmp_path / 'w', '--device', 'cpu',
                          '--tensorboard', '--cfg-options', 'a.b=1', 'c=[1,2]', 'd=x', "e=[{'type': 'T'}]")
    assert status == 0, err
    assert (seen['run'].id, seen['dataset'].name) == ('retinanet-amd+amp=fp16+gpus=2+phi=0.5-s2', 'a-set')
    assert (seen['force'], seen['resume'], seen['workers'], seen['results']) == (True, True, 3, tmp_path / 'r')
    assert seen['tensorboard'] is True
    assert seen['cfg_options'] == {'a.b': 1, 'c': [1, 2], 'd': 'x', 'e': [{'type': 'T'}]}
    assert Path(seen['work_dir']) == tmp_path / 'w'
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''


# ---- targets, sweeps and tables: what is passed on --------------------------------------------------------------

@pytest.fixture
def executed(monkeypatch):
    """Notebooks that would be executed: stem, output, parameters."""
    seen = []
    monkeypatch.setattr(notebooks, 'execute', lambda notebook, *others: seen.append((notebook.stem, *others)))
    return seen


def test_notebook_passes_its_words_on(call, coco_folder, tmp_path, executed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.pth').write_bytes(b'x')
    words = ('--profile', 'small', '--data', os.path.relpath(coco_folder), '--results', 'out', '--set',
             'settings=epochs=2 teacher_checkpoint=x.pth', '--device', 'cpu')
    for output in ((), ('--output', 'sweep/one'), ('--output', 'two.ipynb'), ('--output', tmp_path / 'three.ipynb')):
        status, _, err = call('notebook', 'table1', *words, *output)
        assert status == 0, err
    place = tmp_path / 'out' / 'small' / 'a-set'
    assert [output for _, output, _ in executed] == [
        place / 'table1.ipynb', place / 'sweep' / 'one.ipynb', place / 'two.ipynb', tmp_path / 'three.ipynb']
    # a notebook runs in a folder of its own, so every path is absolute
    assert executed[0][2] == {'profile': 'small', 'data': str(coco_folder), 'results_dir': str(tmp_path / 'out'),
                              'settings': f'epochs=2 teacher_checkpoint={tmp_path / "x.pth"}'}
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''


def test_reproduce_passes_its_words_on(call, coco_folder, tmp_path, executed):
    status, _, err = call('reproduce', 'table5', '--profile', 'small', '--data', coco_folder, '--results',
                          tmp_path / 'out', '--set', 'seeds=0 1', '--set', 'settings=epochs=2')
    assert status == 0, err
    assert executed == [('table5', tmp_path / 'out' / 'small' / 'a-set' / 'table5.ipynb', {
        'profile': 'small', 'data': str(coco_folder), 'results_dir': str(tmp_path / 'out'), 'seeds': '0 1',
        'settings': 'epochs=2'})]


def test_status_of_nothing_names_every_run_and_target(call, coco_folder, tmp_path):
    where = ('--profile', 'small', '--data', coco_folder, '--results', tmp_path / 'out')
    status, out, err = call('status', *where, '--set', 'group=faster_rcnn')
    lines = out.splitlines()
    assert status == 0, err
    assert '17 runs: 17 missing' in lines       # 11 rows and, of the sweep, six values besides the row's own
    assert lines[-1].split() == ['explore_masks', '0', 'of', '1', 'runs', 'done;', 'not', 'executed', 'yet']
    assert '3 runs: 3 missing' in call('status', 'table6', *where)[1].splitlines()
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def all_done(monkeypatch):
    """Every run has a record whose numbers are all 20, and phi more."""
    def state(run, *_):
        number = 20 + float(dict(run.settings).get('phi', 1 if run.row.method == 'amd' else 0))
        return results.State('done', '', {
            'numbers': dict.fromkeys(METRICS, number), 'settings_hash': 'h', 'data': {'fingerprint': 'd'},
            'code': {'commit': 'c', 'clean': True}, 'train_s': 1, 'device': 'CPU'})
    monkeypatch.setattr(results, 'state', state)


def test_sweep_makes_an_executed_notebook_a_value_and_prints_them(call, coco_folder, tmp_path, monkeypatch, all_done):
    seen = {}
    monkeypatch.setattr(batch, 'run_missing', lambda runs, dataset, folder, **more: seen.update(
        more, runs=runs, data=folder))
    status, out, err = call('sweep', 'reppoints-amd', 'phi', '0.5', '1.0', '--profile', 'small', '--data', coco_folder,
                            '--results', tmp_path / 'out', '--seeds', '0', '--set', 'epochs=2', '--jobs', '3',
                            '--device', 'cpu')
    assert status == 0, err
    place = tmp_path / 'out' / 'small' / 'a-set' / 'sweep_phi'
    assert {run.id: path for run, path in seen['executed'].items()} == {
        run_id: place / f'{run_id}.ipynb' for run_id in ('reppoints-amd+epochs=2+phi=0.5-s0',
                                                         'reppoints-amd+epochs=2-s0')}
    assert (seen['runs'], seen['jobs'], seen['device'], seen['data']) == ([], 3, 'cpu', coco_folder)
    rows = [[word.strip() for word in line.split('|')[1:-1]] for line in out.splitlines() if line.startswith('|')]
    assert rows[0] == ['phi', 'mAP', 'mAR'] and rows[2:] == [['0.5', '20.5', '20.5'], ['1.0', '21.0', '21.0']]
    assert str(place) in out


def test_table_prints_what_is_there(call, coco_folder, tmp_path, all_done):
    status, out, err = call('table', 'table2', '--profile', 'small', '--data', coco_folder)
    assert status == 0, err
    rows = {line.split('|')[1].strip(): [word.strip() for word in line.split('|')[2:-1]]
            for line in out.splitlines() if line.startswith('|')}
    assert rows['full'][:5] == ['21.0', '–', '41.3', '–', '21.0 (61.0)']
    assert rows['baseline'][:4] == ['20.0', '-1.0', '37.4', '-3.9'] and rows['channel only'][1] == '+0.0'


def test_the_same_words_mean_the_same_runs_in_a_target_and_in_a_run():
    """So that what `run` has made is not trained again by `reproduce`."""
    of_target = TARGETS['table2'].runs('mini', {'settings': 'epochs=2', 'seeds': '1'})
    assert Run.of('retinanet-amd-mask', PROFILES['mini'], 1, {'epochs': 2}) in of_target
    assert of_target == table_runs('table2', 'mini', None, '1', {'epochs': 2})


# ---- how it ends ------------------------------------------------------------------------------------------------

def test_an_interrupt_ends_with_130(call, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt
    monkeypatch.setattr(cli, '_list', stop)
    status, _, err = call('list')
    assert (status, err) == (130, 'interrupted\n')


@pytest.mark.slow
@pytest.mark.slow
def test_a_run_of_a_batch_ends_with_the_batch(coco_folder, tmp_path):
    """Even where that is killed: then the pipe to the run ends."""
    run = subprocess.Popen(
        [sys.executable, '-m', 'amdlib', 'run', 'retinanet-baseline', '--profile', 'small', '--data', str(coco_folder),
         '--results', str(tmp_path), '--set', 'batch_size=2', '--set', 'epochs=999', '--device', 'cpu'], cwd=ROOT,
        stdin=subprocess.PIPE, env={**os.environ, 'AMD_ENDS_WITH_STDIN': '1'})
    try:
        until_s = time.monotonic() + 120
        while not (place := next(tmp_path.glob('small/*/runs/*'), None)) or results.read_progress(place).get(
                'phase') != 'train':
            assert run.poll() is None and time.monotonic() < until_s
            time.sleep(0.1)
        run.stdin.close()
        assert run.wait(10) == 1
        assert results.unfinished(place).name == 'failed'
    finally:
        run.kill()


def test_as_a_process_it_ends_with_1_and_without_a_traceback():
    ended = _python('-m', 'amdlib', 'show', 'retinanet-amdd')
    assert ended.returncode == 1 and ended.stdout == ''
    assert 'Traceback' not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: unknown row 'retinanet-amdd'")


# ---- doctor -----------------------------------------------------------------------------------------------------

def test_doctor_reports_versions_and_the_operators(call):
    status, out, _ = call('doctor')
    assert status == 0 and out.splitlines()[-1] == 'nothing is missing'
    assert re.match(rf'python +{re.escape(sys.version.split()[0])}', out)
    for package in ('torch', 'torchvision', 'mmcv-lite', 'mmengine', 'mmdet', 'pycocotools'):
        assert re.search(rf'^{package} +\d', out, re.MULTILINE)
    assert re.search(r'^operators +.*torchvision .* kernels|^operators +.*mmcv', out, re.MULTILINE)
    assert re.search(r'^GPU +', out, re.MULTILINE)


WITHOUT = """
import importlib.machinery, runpy, sys
plain = importlib.machinery.PathFinder

class Without(plain):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition('.')[0] in {gone!r} else plain.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(plain)] = Without
sys.argv = ['amdlib', 'doctor']
runpy.run_module('amdlib', run_name='__main__')
"""


@pytest.mark.slow
@pytest.mark.parametrize('gone, packages', [(('pycocotools',), ['pycocotools']), (('torch',), ['torch', 'mmdet']),
                                            (('mmcv',), ['mmcv-lite'])])
def test_doctor_says_what_is_missing_and_how_to_mend_it(gone, packages):
    ended = _python('-c', WITHOUT.format(gone=gone))
    assert ended.returncode == 1, ended.stderr
    assert 'Traceback' not in ended.stderr
    for package in packages:
        assert re.search(rf'^{package} +MISSING: ', ended.stdout, re.MULTILINE)
        assert package in re.search(r'^missing: (.*)$', ended.stdout, re.MULTILINE).group(1)
    assert 'make setup' in ended.stdout and 'requirements.lock' in ended.stdout
