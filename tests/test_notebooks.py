"""Notebooks: how they are stored, how parameters are checked, what a failure leaves, and one real execution."""
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
from amdlib.notebooks import NotebookError, execute

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

def test_table1_is_there():
    assert 'table1' in [path.stem for path in STORED]


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
        assert len(lines) <= 12, f'{cell.id}: {len(lines)} lines'
        assert '%' not in {line.lstrip()[:1] for line in lines} and '!' not in {line.lstrip()[:1] for line in lines}


# ---- execute ----------------------------------------------------------------------------------------------------

@pytest.fixture
def small_notebook(tmp_path):
    """Writes what it was given to a file; fails in its third cell on demand."""
    book = nbformat.v4.new_notebook(metadata={'kernelspec': {
        'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}})
    parameters = nbformat.v4.new_code_cell(
        "number = 1   # a number\nword = 'a'   # a word\nfail = False  # whether to fail")
    parameters.metadata['tags'] = ['parameters']
    last = nbformat.v4.new_code_cell("if fail:\n    raise ValueError('as asked')\n"
                                     "print('got', repr(number), repr(word))")
    book.cells = [nbformat.v4.new_markdown_cell('# A notebook'), parameters, last]
    (tmp_path / 'kept').mkdir()
    path = tmp_path / 'kept' / 'book.ipynb'
    nbformat.write(book, path)
    return path


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


# ---- Table I, really ---------------------------------------------------------------------------------------------

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
                   "neck_channels=64, student=Network(18, 8), teacher=Network(18, 16), head_convs=1)\n")
    made = data.prepare('mini', cache=tmp_path_factory.mktemp('made'), log=lambda *_: None,
                        shapes=data.ShapesSpec(train_images=4, test_images=2))
    folder = home / 'a set'
    (folder / 'annotations').mkdir(parents=True)
    for split, ann, images in (('train', made.train_ann, made.train_images), ('val', made.test_ann, made.test_images)):
        shutil.copy(ann, folder / 'annotations' / f'instances_{split}.json')
        shutil.copytree(images, folder / split)
    return home


def _reproduce(kit, *words):
    command = [sys.executable, '-m', 'amdlib', 'notebook', 'table1', '--profile', 'small', '--data', 'a set', '--set',
               'group=retinanet', '--set', 'epochs=1', '--set', 'device=cpu', *words]
    return subprocess.run(command, cwd=kit, capture_output=True, text=True, timeout=400,
                          env={**os.environ, 'PYTHONPATH': str(kit), 'JUPYTER_RUNTIME_DIR': str(kit / 'runtime')})


def _stamps(place):
    return {path: path.stat().st_mtime_ns for path in place.glob('runs/*/record.json')}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_table1_from_nothing_and_again(kit):
    first = _reproduce(kit)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    place = kit / 'results' / 'small' / 'a-set'
    assert sorted(path.name for path in place.iterdir()) == [
        'runs', 'table1.csv', 'table1.ipynb', 'table1.md', 'table1.png', 'table1.svg']
    assert '0 of 6 runs are done, 6 to do' in first.stdout and '[6/6]' in first.stdout
    assert len(_stamps(place)) == 6

    text = (place / 'table1.md').read_text()
    assert text.strip() in first.stdout.replace('\r', '')   # the table is also on the terminal
    lines = [line.split('|')[1].strip() for line in text.splitlines() if line.startswith('|')]
    assert lines[2:] == ['Teacher', 'baseline', 'FKD', 'FGD', 'MGD', 'AMD']
    for words in ('41.3', 'What this can and cannot show', '1 seed', '2 test images', 'cannot confirm or refute'):
        assert words in text
    cells = pd.read_csv(place / 'table1.csv')
    assert len(cells) == 6 * len(results.TABLE1_METRICS)
    assert cells[(cells.row == 'amd') & (cells.metric == 'mAP')].paper.item() == pytest.approx(41.3)
    assert set(cells.runs) == {path.parent.name for path in _stamps(place)}

    executed = _code(place / 'table1.ipynb')
    assert all(cell.execution_count for cell in executed)
    assert 'image/png' in str([output.get('data', {}).keys() for cell in executed for output in cell.outputs])

    before = _stamps(place)
    second = _reproduce(kit)
    assert second.returncode == 0, second.stderr[-3000:]
    assert '6 of 6 runs are done, 0 to do' in second.stdout
    assert _stamps(place) == before and (place / 'table1.md').read_text() == text


@pytest.mark.slow
def test_an_unknown_parameter_on_the_command_line_is_one_line(kit):
    ended = _reproduce(kit, '--set', 'epoch=1')
    assert ended.returncode == 1 and 'Traceback' not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(
        "error: table1 has no parameter 'epoch'; it has: profile, data, group")
