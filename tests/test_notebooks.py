"""Notebooks: how they are stored, how parameters are checked, what a failure leaves, and each really executed."""
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pandas as pd
import pytest

from amdlib import data, notebooks, results
from amdlib.experiments import TABLES
from amdlib.notebooks import NotebookError, check, execute
from amdlib.targets import TARGETS, find_targets

ROOT = Path(notebooks.__file__).parents[1]
STORED = sorted((ROOT / 'notebooks').glob('*.ipynb'))
every_notebook = pytest.mark.parametrize('path', STORED, ids=lambda path: path.stem)


def _read(path):
    return nbformat.read(path, as_version=4)


def _code(path):
    return [cell for cell in _read(path).cells if cell.cell_type == 'code']


def _parameters(path):
    (cell,) = [cell for cell in _read(path).cells if 'parameters' in cell.metadata.get('tags', [])]
    return cell.source


# ---- as they are stored -----------------------------------------------------------------------------------------

def test_every_table_and_figure_has_its_notebook():
    assert {path.stem for path in STORED} == {target.notebook for target in TARGETS.values()} | {'experiment'}


@every_notebook
def test_stored_without_outputs_and_with_ids(path):
    stored = _read(path)
    nbformat.validate(stored)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in _code(path))
    ids = [cell.get('id') for cell in stored.cells]
    assert all(ids) and len(set(ids)) == len(ids)
    assert stored.metadata.kernelspec.name == 'python3'
    assert set(stored.metadata) <= {'kernelspec', 'language_info'}
    assert not [cell.metadata for cell in stored.cells if set(cell.metadata) - {'tags'}]   # no papermill timings
    assert path.stat().st_size < 100_000


@every_notebook
def test_begins_with_title_question_paper_and_cost(path):
    first = _read(path).cells[0]
    assert first.cell_type == 'markdown' and first.source.startswith('# ')
    for word in ('Question', 'Paper', 'Cost'):
        assert f'**{word}' in first.source, word
    assert 'assert' in _code(path)[-1].source   # and ends with a check of what it claims


@every_notebook
def test_parameters_are_plain_literals_each_with_a_comment(path):
    source = _parameters(path)
    for line in source.splitlines():
        assert re.fullmatch(r"\w+ = ('[^']*'|[\d.]+|True|False) +# \S.*", line), line
    assert all(isinstance(line, ast.Assign) for line in ast.parse(source).body)


@every_notebook
def test_papermill_reads_every_parameter(path):
    names = [line.targets[0].id for line in ast.parse(_parameters(path)).body]
    known = papermill.inspect_notebook(str(path))
    assert list(known) == names
    values = {}
    exec(_parameters(path), values)
    for name, parameter in known.items():
        assert ast.literal_eval(parameter['default']) == values[name]
        assert parameter['help']


@every_notebook
def test_notebooks_tell_and_the_package_does(path):
    for cell in _code(path):
        tree = ast.parse(cell.source)
        for part in ast.walk(tree):
            assert not isinstance(part, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.While)), cell.id
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                assert not re.match(r'[/~]|[A-Za-z]:\\', part.value), f'{cell.id}: absolute path {part.value!r}'
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if 'parameters' not in cell.metadata.get('tags', []):    # a list, as long as it has to be
            assert len(lines) <= 12, f'{cell.id}: {len(lines)} lines'
        assert '%' not in {line.lstrip()[:1] for line in lines} and '!' not in {line.lstrip()[:1] for line in lines}


# ---- execute ----------------------------------------------------------------------------------------------------

def _write(path, parameters, *cells):
    """A notebook of code cells, the first with its parameters."""
    book = nbformat.v4.new_notebook(metadata={'kernelspec': {
        'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}})
    book.cells = [nbformat.v4.new_markdown_cell('# A notebook'),
                  nbformat.v4.new_code_cell(parameters, metadata={'tags': ['parameters']}),
                  *(nbformat.v4.new_code_cell(source) for source in cells)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(book, path)
    return path


@pytest.fixture
def small_notebook(tmp_path):
    """Prints what it was given; fails in its last cell on demand."""
    return _write(tmp_path / 'kept' / 'book.ipynb',
                  "number = 1   # a number\nword = 'a'   # a word\nfail = False  # whether to fail",
                  "if fail:\n    raise ValueError('as asked')\nprint('got', repr(number), repr(word))")


@pytest.fixture
def no_kernel(monkeypatch):
    """Nothing may be started."""
    monkeypatch.setattr(papermill, 'execute_notebook', lambda *_, **__: pytest.fail('a notebook was started'))


def test_an_unknown_parameter_is_refused_before_anything_starts(small_notebook, tmp_path, no_kernel):
    with pytest.raises(NotebookError, match=r"book has no parameter 'nunber'; it has: number, word, fail"):
        execute(small_notebook, tmp_path / 'out' / 'book.ipynb', {'nunber': 3})
    assert not (tmp_path / 'out').exists()


def test_an_unknown_notebook_is_refused_with_those_there_are(small_notebook, tmp_path, no_kernel):
    with pytest.raises(NotebookError, match="no notebook 'other'; there are: book"):
        execute(small_notebook.with_name('other.ipynb'), tmp_path / 'out' / 'other.ipynb', {})


def test_check_knows_a_notebooks_parameters(small_notebook, no_kernel):
    known = check(small_notebook, ['fail', 'number'])
    assert {name: parameter['default'] for name, parameter in known.items()} == {
        'number': '1', 'word': "'a'", 'fail': 'False'}
    with pytest.raises(NotebookError, match="book has no parameter 'nunber', 'wrod'; it has: number, word, fail"):
        check(small_notebook, ['nunber', 'word', 'wrod'])


@pytest.mark.parametrize('value, default, expected', [
    ('3', '0', 3), ('True', 'False', True), ('0,1,2', "'0'", '0,1,2'), ('7', "'0'", '7'), (3, '0', 3),
    (True, "''", True), ('abc', '0', 'abc')])
def test_text_becomes_the_kind_of_value_that_the_default_is(value, default, expected):
    found = notebooks._literal(value, default)
    assert found == expected and type(found) is type(expected)


@pytest.mark.slow
def test_values_arrive_and_the_output_is_seen(small_notebook, tmp_path, capfd):
    output = tmp_path / 'new folder' / 'book.ipynb'
    assert execute(small_notebook, output, {'number': '5', 'word': '', 'fail': None}) == output
    assert "got 5 'a'" in capfd.readouterr().out   # empty values keep the notebook's defaults
    assert _code(output)[-1].execution_count and not _code(small_notebook)[-1].outputs
    assert [path.name for path in output.parent.iterdir()] == ['book.ipynb']


@pytest.mark.slow
def test_a_failing_notebook_names_the_cell_and_leaves_no_result(small_notebook, tmp_path, capfd):
    output = tmp_path / 'out' / 'book.ipynb'
    with pytest.raises(NotebookError, match=r'(?s)cell \[\d+\] of book.ipynb failed with ValueError: as asked') as told:
        execute(small_notebook, output, {'fail': True})
    failed = output.with_name('book.failed.ipynb')
    assert str(failed) in str(told.value)
    assert [path.name for path in output.parent.iterdir()] == ['book.failed.ipynb']
    number = int(re.search(r'cell \[(\d+)\]', str(told.value)).group(1))   # as it stands beside the cell
    (cell,) = [cell for cell in _code(failed) if cell.execution_count == number]
    assert cell.source.startswith('if fail:') and 'as asked' in str(cell.outputs)
    execute(small_notebook, output, {'fail': False})
    assert [path.name for path in output.parent.iterdir()] == ['book.ipynb']   # the failure is history


@pytest.mark.slow
def test_a_killed_kernel_is_told_and_leaves_what_was_executed(tmp_path, capfd):
    book = _write(tmp_path / 'kept' / 'book.ipynb', 'number = 1   # a number', "print('so far', number)",
                  'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)', "print('never')")
    output = tmp_path / 'out' / 'book.ipynb'
    with pytest.raises(NotebookError, match='the kernel of book.ipynb died') as told:
        execute(book, output, {'number': 5})
    failed = output.with_name('book.failed.ipynb')
    assert str(failed) in str(told.value)
    assert [path.name for path in output.parent.iterdir()] == ['book.failed.ipynb']
    assert 'so far 5' in str([cell.outputs for cell in _code(failed)])


# ---- every notebook, really --------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def kit(tmp_path_factory):
    """A copy of the kit whose profile `small` has the narrowest networks and smallest images: runs in seconds."""
    home = tmp_path_factory.mktemp('kit')
    for part in ('amdlib', 'notebooks'):
        shutil.copytree(ROOT / part, home / part, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    (home / 'data').mkdir()
    shutil.copy(ROOT / 'data' / 'paper_tables.csv', home / 'data')
    with open(home / 'amdlib' / 'experiments.py', 'a') as file:
        file.write("\n\nPROFILES['small'] = shorter(PROFILES['small'], image_px=(64, 64), batch_size=2, workers=0, "
                   "neck_channels=64, student=Network(18, 8), teacher=Network(18, 16), head_convs=1, fc_channels=16, "
                   "proposals=20)\n")
    made = data.prepare('mini', cache=tmp_path_factory.mktemp('made'), log=lambda *_: None,
                        shapes=data.ShapesSpec(train_images=4, test_images=2))
    folder = home / 'a set'
    (folder / 'annotations').mkdir(parents=True)
    for split, ann, images in (('train', made.train_ann, made.train_images), ('val', made.test_ann, made.test_images)):
        shutil.copy(ann, folder / 'annotations' / f'instances_{split}.json')
        shutil.copytree(images, folder / split)
    return home


SETTINGS = ('--set', 'settings=epochs=1', '--set', 'device=cpu')
RETINANET = ('--set', 'group=retinanet', '--set', 'values=0.7 1.0')


def _amdlib(kit, *words, status=0):
    """The command line in the kit's copy, on its data set."""
    ended = subprocess.run([sys.executable, '-m', 'amdlib', *words, '--profile', 'small', '--data', 'a set'], cwd=kit,
                           capture_output=True, text=True, timeout=400,
                           env={**os.environ, 'PYTHONPATH': str(kit), 'JUPYTER_RUNTIME_DIR': str(kit / 'runtime')})
    assert ended.returncode == status, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended


@pytest.fixture(scope='module')
def place(kit):
    return kit / 'results' / 'small' / 'a-set'


@pytest.fixture(scope='module')
def table1(kit):
    """What `reproduce table1` says, from nothing."""
    return _amdlib(kit, 'reproduce', 'table1', '--set', 'group=retinanet', *SETTINGS).stdout


@pytest.fixture(scope='module')
def everything(kit, table1):
    """What `reproduce all` says after that: one group, so without Tables III, IV and VI."""
    return _amdlib(kit, 'reproduce', 'all', *RETINANET, *SETTINGS).stdout


@pytest.fixture(scope='module')
def table6(kit):
    """What `reproduce table6` says, from nothing."""
    return _amdlib(kit, 'reproduce', 'table6', *SETTINGS).stdout


def _stamps(place, pattern='runs/*/record.json'):
    return {path: path.stat().st_mtime_ns for path in place.glob(pattern)}


def _assert_executed(notebook, figures=1):
    """Every cell ran, without an error, and each that draws a figure shows it."""
    cells = _code(notebook)
    assert all(cell.execution_count for cell in cells), notebook
    assert not [output for cell in cells for output in cell.outputs if output.output_type == 'error']
    drawing = [cell for cell in cells if re.search(r'\bfigure = |display\(by_', cell.source)]
    assert len(drawing) >= figures
    for cell in drawing:
        assert [output for output in cell.outputs if 'image/png' in output.get('data', {})], f'{notebook}: {cell.id}'


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_table1_from_nothing_and_again(kit, table1, place):
    assert '0 of 6 runs are done, 6 to do' in table1 and '[6/6]' in table1
    assert {f'table1.{kind}' for kind in ('csv', 'ipynb', 'md', 'png', 'svg')} <= {
        path.name for path in place.iterdir()}
    _assert_executed(place / 'table1.ipynb')

    text = (place / 'table1.md').read_text()
    assert text.strip() in table1.replace('\r', '')   # the table is also on the terminal
    lines = [line.split('|')[1].strip() for line in text.splitlines() if line.startswith('|')]
    assert lines[2:] == ['Teacher', 'baseline', 'FKD', 'FGD', 'MGD', 'AMD']
    for words in ('41.3', 'What this can and cannot show', '1 seed', '2 test images', 'cannot confirm or refute'):
        assert words in text
    cells = pd.read_csv(place / 'table1.csv')
    assert len(cells) == 6 * len(TABLES['table1'].metrics)
    assert cells[(cells.row == 'amd') & (cells.metric == 'mAP')].paper.item() == pytest.approx(41.3)
    runs = set(cells.runs)
    assert len(runs) == 6 and runs <= {path.parent.name for path in _stamps(place)}

    before = _stamps(place)
    again = _amdlib(kit, 'reproduce', 'table1', '--set', 'group=retinanet', *SETTINGS)
    assert '6 of 6 runs are done, 0 to do' in again.stdout
    assert _stamps(place) == before and (place / 'table1.md').read_text() == text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everything_of_a_group_is_one_batch_and_every_output_is_there(everything, place):
    # the 6 of Table I are done, but AMD's is not shown as a part of the sweep yet
    assert '5 of 13 runs are done, 8 to do' in everything and '[13/13]' in everything
    of_group = find_targets(['all'], 'retinanet')
    for target in of_group:
        assert f'{target.title} ({target.notebook}.ipynb)' in everything
        _assert_executed(place / f'{target.name}.ipynb')
    for stem in ('table1', 'table2', 'table5', 'fig1', 'fig3', 'fig4', 'mask_coverage'):
        assert len(pd.read_csv(place / f'{stem}.csv')) and '<svg' in (place / f'{stem}.svg').read_text(), stem
        assert (place / f'{stem}.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n', stem
    for stem in ('table1', 'table2', 'table5', 'fig4'):
        assert 'What this can and cannot show' in (place / f'{stem}.md').read_text(), stem
    assert not list(place.rglob('*.failed.ipynb')) and not list(place.rglob('.*'))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_ablation_and_a_sweep_tell_what_their_runs_are(everything, place):
    arms = pd.read_csv(place / 'table2.csv')
    assert arms[arms.metric == 'mAP'].label.tolist() == ['baseline', 'full', 'channel only', 'mask only',
                                                         'nothing masked', 'everything masked']
    assert set(arms.runs) <= {path.parent.name for path in _stamps(place)}
    sweep = pd.read_csv(place / 'fig4.csv')
    of_map = sweep[sweep.metric == 'mAP']
    assert of_map.value.tolist() == [0.7, 1.0]
    assert of_map.runs.tolist() == ['retinanet-amd+epochs=1+phi=0.7-s0', 'retinanet-amd+epochs=1-s0']
    assert set(sweep.metric) == {'mAP', 'mAR', 'masked_share'}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_run_of_the_sweep_is_an_executed_notebook(everything, place):
    found = sorted(path.name for path in (place / 'sweep_phi').iterdir())
    ids = ['retinanet-amd+epochs=1+phi=0.7-s0', 'retinanet-amd+epochs=1-s0']
    assert found == [f'{run_id}.{kind}' for run_id in ids for kind in ('ipynb', 'log')]
    for run_id in ids:
        notebook = place / 'sweep_phi' / f'{run_id}.ipynb'
        _assert_executed(notebook, figures=2)
        assert run_id in str([cell.outputs for cell in _code(notebook)])
        scalars = results.read_scalars(place / 'runs' / run_id)
        assert scalars.loss.notna().all() and 'loss_amd_fpn_0' in scalars and len(scalars)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_call_trains_nothing_and_shows_no_run_again(kit, everything, place):
    before = {**_stamps(place), **_stamps(place, 'sweep_phi/*.ipynb')}
    again = _amdlib(kit, 'reproduce', 'fig4', 'table2', *RETINANET, *SETTINGS).stdout
    assert again.count('8 of 8 runs are done, 0 to do') == 1
    assert {**_stamps(place), **_stamps(place, 'sweep_phi/*.ipynb')} == before
    swept = _amdlib(kit, 'sweep', 'retinanet-amd', 'phi', '0.7', '1', '--set', 'epochs=1', '--device', 'cpu').stdout
    assert '3 of 3 runs are done, 0 to do' in swept and re.search(r'^\| 0\.7 +\| \d', swept, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_status_finds_everything_done(kit, everything):
    lines = _amdlib(kit, 'status', *RETINANET, *SETTINGS).stdout.splitlines()
    assert '13 runs: 13 done' in lines
    told = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in TARGETS}
    assert list(told) == [target.name for target in find_targets(['all'], 'retinanet')]
    assert all(line.endswith('runs done; executed') for line in told.values()), told


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_table6_alone(table6, place):
    assert '0 of 3 runs are done, 3 to do' in table6 and '[3/3]' in table6
    _assert_executed(place / 'table6.ipynb')
    lines = [line.split('|') for line in (place / 'table6.md').read_text().splitlines() if line.startswith('|')]
    assert [(line[1].strip(), line[4].strip()) for line in lines[2:]] == [('After', '42.4'), ('Within', '42.2')]
    assert (place / 'table6.png').is_file() and (place / 'table6.svg').is_file()


def test_every_stored_notebook_is_executed_here():
    """By `everything`, by `table6`, and the experiment by the sweep."""
    here = {target.notebook for target in [*find_targets(['all'], 'retinanet'), TARGETS['table6']]}
    assert here | {'experiment'} == {path.stem for path in STORED}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_report_holds_what_was_made(kit, everything, table6, place):
    _amdlib(kit, 'report')
    index = (place / 'report' / 'index.html').read_text()
    for words in ('Table I', 'Table VI', 'retinanet-amd-mask', 'method.html', 'sweep_phi'):
        assert words in index, words
    assert len(list((place / 'report' / 'notebooks').rglob('*.html'))) == 8 + 1 + 2    # targets, Table VI, the sweep


@pytest.mark.slow
def test_an_unknown_parameter_on_the_command_line_is_one_line(kit):
    ended = _amdlib(kit, 'notebook', 'table1', '--set', 'epoch=1', status=1)
    assert 'Traceback' not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(
        "error: table1 has no parameter 'epoch'; it has: profile, data, group")
