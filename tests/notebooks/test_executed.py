"""Every stored notebook, really executed: a copy of the kit, a tiny data set, the command line."""
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from amdlib.datasets import ShapesSpec, prepare
from amdlib.files import ROOT
from amdlib.paper.printed import paper_value
from amdlib.paper.tables import TABLES
from amdlib.runs import evidence, train
from amdlib.runs.store import read_scalars
from amdlib.runs.targets import TARGETS, find_targets
from amdlib.show import intervals
from tests.conftest import shared
from tests.notebooks.test_stored import STORED, code, read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GROUP = ('--group', 'retinanet')
VALUES = ('--values', '0.7', '1.0')
BRIEF = ('--set', 'epochs=1', '--device', 'cpu')
BRIEF_NOTEBOOK = ('--set', "settings={'epochs': 1}", '--device', 'cpu')
OF_GROUP = find_targets(['all'], 'retinanet')


@pytest.fixture(scope='module')
def kit(tmp_path_factory):
    """A copy of the kit whose profile `small` has the narrowest networks and smallest images: runs in seconds."""
    home = tmp_path_factory.mktemp('kit')
    for part in ('amdlib', 'notebooks'):
        shutil.copytree(ROOT / part, home / part, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    (home / 'data').mkdir()
    shutil.copy(ROOT / 'data' / 'paper_tables.csv', home / 'data')
    with open(home / 'amdlib' / 'paper' / 'profiles.py', 'a') as file:
        file.write("\n\nPROFILES['small'] = replace(PROFILES['small'], image_px=(64, 64), batch_size=2, workers=0, "
                   'neck_channels=64, student=Network(18, 8), teacher=Network(18, 16), head_convs=1, fc_channels=16, '
                   'proposals=20)\n')
    made = prepare('shapes', cache=tmp_path_factory.mktemp('made'), shapes=ShapesSpec(train_images=4, test_images=2))
    folder = home / 'a set'
    (folder / 'annotations').mkdir(parents=True)
    for split, ann, images in (('train', made.train_ann, made.train_images), ('val', made.test_ann, made.test_images)):
        shutil.copy(ann, folder / 'annotations' / f'instances_{split}.json')
        shutil.copytree(images, folder / split)
    return home


@pytest.fixture(scope='module')
def amdlib(kit):
    """Words -> the command line in the kit's copy, on its data set."""
    def call(*words, status=0, data='a set'):
        ended = subprocess.run([sys.executable, '-m', 'amdlib', *words, '--profile', 'small', '--data', data],
                               cwd=kit, capture_output=True, text=True, timeout=800,
                               env={**os.environ, 'PYTHONPATH': str(kit), 'JUPYTER_RUNTIME_DIR': str(kit / 'runtime')})
        assert ended.returncode == status, ended.stdout[-3000:] + ended.stderr[-3000:]
        return ended
    return call


@pytest.fixture(scope='module')
def folder(kit):
    return kit / 'results' / 'small' / 'a-set'


@pytest.fixture(scope='module')
def table1(amdlib):
    """What `reproduce table1` says, from nothing."""
    return amdlib('reproduce', 'table1', *GROUP, *BRIEF)


@pytest.fixture(scope='module')
def everything(amdlib, table1):
    """What `reproduce all` says after that: one group, so without Tables III, IV and VI."""
    return amdlib('reproduce', 'all', *GROUP, *VALUES, *BRIEF).stdout


@pytest.fixture(scope='module')
def table6(amdlib):
    """What `reproduce table6` says, from nothing."""
    return amdlib('reproduce', 'table6', *BRIEF).stdout


def _stamps(folder, pattern='runs/*/record.json'):
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def _assert_executed(notebook, figures=1):
    """Every cell ran, without an error, and each that draws a figure shows it."""
    cells = code(notebook)
    assert all(cell.execution_count for cell in cells), notebook
    assert not [output for cell in cells for output in cell.outputs if output.output_type == 'error']
    drawing = [cell for cell in cells if re.search(r'^ *figure = ', cell.source, re.MULTILINE)]
    assert len(drawing) >= figures
    for cell in drawing:
        assert [output for output in cell.outputs if 'image/png' in output.get('data', {})], f'{notebook}: {cell.id}'


def _shown(notebook):
    return str([cell.get('outputs') for cell in read(notebook).cells])


def test_table1_from_nothing_and_again(amdlib, table1, folder):
    said = table1.stdout
    assert '0 of 7 runs are done, 7 to do' in said
    assert '[7/7]' in said
    assert 'KeyboardInterrupt' not in table1.stderr
    assert {f'table1.{kind}' for kind in ('csv', 'ipynb', 'md', 'png', 'svg')} <= {
        path.name for path in folder.iterdir()}
    _assert_executed(folder / 'table1.ipynb')

    text = (folder / 'table1.md').read_text()
    assert text.strip() in said.replace('\r', '')   # the table is also on the terminal
    lines = [line.split('|')[1].strip() for line in text.splitlines() if line.startswith('|')]
    table = TABLES['table1']
    assert lines[2:] == [table.label(row) for row in table.rows('retinanet')]
    for words in ('What this can and cannot show', '1 seed', '2 test images', 'cannot confirm or refute'):
        assert words in text
    cells = pd.read_csv(folder / 'table1.csv')
    assert len(cells) == 7 * len(table.metrics)
    printed = paper_value('I', 'retinanet', 'amd', 'mAP')
    assert cells[(cells.row == 'amd') & (cells.metric == 'mAP')].paper.item() == pytest.approx(printed)
    assert f'{printed:.1f}' in text
    runs = set(cells.runs)
    assert len(runs) == 7
    assert runs <= {path.parent.name for path in _stamps(folder)}

    before = _stamps(folder)
    again = amdlib('reproduce', 'table1', *GROUP, *BRIEF)
    assert '7 of 7 runs are done, 0 to do' in again.stdout
    assert _stamps(folder) == before
    assert (folder / 'table1.md').read_text() == text


def test_everything_of_a_group_is_one_batch_and_every_output_is_there(everything, folder):
    # the 7 of Table I are done, but AMD's is not shown as a part of the sweep yet
    assert '6 of 14 runs are done, 8 to do' in everything
    assert '[14/14]' in everything
    for target in OF_GROUP:
        assert f'{target.title} ({target.notebook}.ipynb)' in everything
        _assert_executed(folder / f'{target.name}.ipynb')
    for stem in ('table1', 'table2', 'table5', 'fig1', 'fig3', 'fig4', 'mask_coverage'):
        assert len(pd.read_csv(folder / f'{stem}.csv')), stem
        assert '<svg' in (folder / f'{stem}.svg').read_text(), stem
        assert (folder / f'{stem}.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n', stem
    for stem in ('table1', 'table2', 'table5', 'fig4'):
        assert 'What this can and cannot show' in (folder / f'{stem}.md').read_text(), stem
    assert not list(folder.rglob('*.failed.ipynb'))
    known = (intervals.KEPT, intervals.KEPT.replace('json', 'lock'), evidence.REMEMBERED, train.LOCK, '.features.lock')
    assert {path.name for path in folder.rglob('.*')} <= set(known)


def test_an_ablation_and_a_sweep_tell_what_their_runs_are(everything, folder):
    arms, table = pd.read_csv(folder / 'table2.csv'), TABLES['table2']
    assert arms[arms.metric == 'mAP'].label.tolist() == [table.label(row) for row in table.rows()]
    assert set(arms.runs) <= {path.parent.name for path in _stamps(folder)}
    sweep = pd.read_csv(folder / 'fig4.csv')
    of_map = sweep[sweep.metric == 'mAP']
    assert of_map.value.tolist() == [0.7, 1.0]
    assert of_map.runs.tolist() == ['retinanet-amd+epochs=1+phi=0.7-s0', 'retinanet-amd+epochs=1-s0']
    assert set(sweep.metric) == {'mAP', 'mAR', 'masked_share'}


def test_every_run_of_the_sweep_is_an_executed_notebook(everything, folder):
    found = sorted(path.name for path in (folder / 'sweep_phi').iterdir())
    ids = ['retinanet-amd+epochs=1+phi=0.7-s0', 'retinanet-amd+epochs=1-s0']
    assert found == [f'{run_id}.{kind}' for run_id in ids for kind in ('ipynb', 'log')]
    for run_id in ids:
        notebook = folder / 'sweep_phi' / f'{run_id}.ipynb'
        _assert_executed(notebook, figures=2)
        assert run_id in _shown(notebook)
        scalars = read_scalars(folder / 'runs' / run_id)
        assert scalars.loss.notna().all()
        assert 'loss_amd_fpn_0' in scalars
        assert len(scalars)


def test_a_second_call_trains_nothing_and_shows_no_run_again(amdlib, everything, folder):
    before = {**_stamps(folder), **_stamps(folder, 'sweep_phi/*.ipynb')}
    again = amdlib('reproduce', 'fig4', 'table2', *GROUP, *VALUES, *BRIEF).stdout
    assert again.count('8 of 8 runs are done, 0 to do') == 1
    assert {**_stamps(folder), **_stamps(folder, 'sweep_phi/*.ipynb')} == before
    swept = amdlib('sweep', 'retinanet-amd', 'phi', '0.7', '1', *BRIEF).stdout
    assert '3 of 3 runs are done, 0 to do' in swept
    assert re.search(r'^\| 0\.7 +\| \d', swept, re.MULTILINE)


def test_status_finds_everything_done(amdlib, everything):
    lines = amdlib('status', *GROUP, *VALUES, '--set', 'epochs=1').stdout.splitlines()
    assert '14 runs: 14 done' in lines
    told = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in TARGETS}
    assert list(told) == [target.name for target in OF_GROUP]
    assert all(line.endswith('runs done; executed') for line in told.values()), told


def test_to_look_writes_nothing(amdlib, everything, folder):
    """The notebooks that explore, executed as somebody who opens them does: without `write`."""
    written = [folder / f'{stem}.{kind}' for stem in ('fig1', 'fig1_levels', 'fig3', 'mask_coverage')
               for kind in ('csv', 'png', 'svg')]
    before = {path: path.stat().st_mtime_ns for path in written if path.is_file()}
    assert len(before) == 10
    for name in ('fig1', 'explore_masks'):
        amdlib('notebook', name, *BRIEF_NOTEBOOK, '--output', 'looked_at')
        _assert_executed(folder / 'looked_at.ipynb')
    (folder / 'looked_at.ipynb').unlink()
    assert {path: path.stat().st_mtime_ns for path in written if path.is_file()} == before


def test_the_start_takes_what_is_done_and_shows_the_row(amdlib, everything, folder):
    said = amdlib('notebook', '00_start', *BRIEF_NOTEBOOK).stdout
    assert '3 of 3 runs are done, 0 to do' in said
    _assert_executed(folder / '00_start.ipynb', figures=3)
    assert 'paper mAP' in _shown(folder / '00_start.ipynb')


def test_a_loss_of_your_own_stands_in_the_table_and_leaves_table1_alone(amdlib, everything, folder):
    before = _stamps(folder, 'table1.*')
    said = amdlib('notebook', 'your_own_loss', *BRIEF_NOTEBOOK).stdout
    assert '3 of 4 runs are done, 1 to do' in said
    _assert_executed(folder / 'your_own_loss.ipynb')
    assert 'MyLoss' in _shown(folder / 'your_own_loss.ipynb')
    assert [path.name for path in (folder / 'runs').glob('*MyLoss*')] == ['retinanet-my_loss.MyLoss+epochs=1-s0']
    assert _stamps(folder, 'table1.*') == before


def test_a_detector_of_your_own_from_pictures_to_an_exported_student(amdlib, kit):
    brief = ('epochs=1', 'teacher_epochs=1', 'size=64')
    amdlib('notebook', 'your_own_detector', *(word for one in brief for word in ('--set', one)), '--device', 'cpu',
           data=str(shared('data/bccd')))
    (notebook,) = (kit / 'results' / 'small').glob('*/your_own_detector.ipynb')
    _assert_executed(notebook)
    shown = _shown(notebook)
    assert 'model.bbox_head.num_classes: 80 -> 3' in shown
    assert 'gfl_student-amd-s0' in shown
    runs = kit / 'results' / 'studies' / 'your_own_detector' / notebook.parent.name / 'runs'
    assert len(list(runs.glob('gfl_student-amd-s0/export/*.pth'))) == 1


def test_table6_alone(table6, folder):
    assert '0 of 3 runs are done, 3 to do' in table6
    assert '[3/3]' in table6
    _assert_executed(folder / 'table6.ipynb')
    lines = [line.split('|') for line in (folder / 'table6.md').read_text().splitlines() if line.startswith('|')]
    table = TABLES['table6']
    assert [(line[1].strip(), line[4].strip()) for line in lines[2:]] == [
        (table.label(row), f'{paper_value("VI", row.group.name, row.name, "mAP"):.1f}') for row in table.rows()]
    assert (folder / 'table6.png').is_file()
    assert (folder / 'table6.svg').is_file()


def test_some_lines_of_the_zoo(amdlib, table1, folder):
    amdlib('notebook', 'zoo', '--set', "only=['baseline', 'cwd']", '--set', "group='retinanet'", *BRIEF_NOTEBOOK)
    _assert_executed(folder / 'zoo.ipynb')
    text = (folder / 'zoo.md').read_text()
    lines = [line.split('|')[1].strip() for line in text.splitlines() if line.startswith('|')]
    assert lines[2:] == ['baseline', 'CWD', *TABLES['zoo'].gaps('retinanet')]


def test_every_stored_notebook_is_executed_here():
    """By `everything`, by `table6`, the experiment by the sweep, the others by themselves."""
    here = {target.notebook for target in [*OF_GROUP, TARGETS['table6'], TARGETS['zoo']]}
    assert here | {'experiment', '00_start', 'your_own_detector', 'your_own_loss'} == {path.stem for path in STORED}


def test_the_report_holds_what_was_made(amdlib, everything, table6, folder):
    notebooks = [path for path in folder.rglob('*.ipynb') if 'report' not in path.parts]
    amdlib('report')
    index = (folder / 'report' / 'index.html').read_text()
    for words in ('Table I', 'Table VI', 'retinanet-amd-mask', 'method.html', 'sweep_phi'):
        assert words in index, words
    assert len(list((folder / 'report' / 'notebooks').rglob('*.html'))) == len(notebooks)


def test_an_unknown_parameter_on_the_command_line_is_one_line(amdlib):
    ended = amdlib('notebook', 'table1', '--set', 'epoch=1', status=1)
    assert 'Traceback' not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(
        "error: table1 has no parameter 'epoch'; it has: profile, data, how, group")
