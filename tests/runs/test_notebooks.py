"""notebooks.py: parameters are checked before anything starts; what an execution leaves, also where it fails."""
import re

import nbformat
import papermill
import pytest

from amdlib.errors import RunError
from amdlib.runs.notebooks import check, execute


def code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code']


@pytest.fixture
def write(tmp_path):
    """Parameters, cells -> a notebook."""
    def make(parameters, *cells):
        book = nbformat.v4.new_notebook(metadata={'kernelspec': {
            'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}})
        book.cells = [nbformat.v4.new_markdown_cell('# A notebook'),
                      nbformat.v4.new_code_cell(parameters, metadata={'tags': ['parameters']}),
                      *(nbformat.v4.new_code_cell(source) for source in cells)]
        path = tmp_path / 'kept' / 'book.ipynb'
        path.parent.mkdir()
        nbformat.write(book, path)
        return path
    return make


@pytest.fixture
def book(write):
    """Prints what it was given; fails in its last cell on demand."""
    return write("number = 1   # a number\nword = 'a'   # a word\nfail = False  # whether to fail",
                 "if fail:\n    raise ValueError('as asked')\nprint('got', repr(number), repr(word))")


@pytest.fixture
def no_kernel(monkeypatch):
    """Nothing may be started."""
    monkeypatch.setattr(papermill, 'execute_notebook', lambda *_, **__: pytest.fail('a notebook was started'))


def test_an_unknown_parameter_is_refused_before_anything_starts(book, tmp_path, no_kernel):
    with pytest.raises(RunError, match=r"book has no parameter 'nunber'; it has: number, word, fail"):
        execute(book, tmp_path / 'out' / 'book.ipynb', {'nunber': 3})
    assert not (tmp_path / 'out').exists()


def test_an_unknown_notebook_is_refused_with_those_there_are(book, tmp_path, no_kernel):
    with pytest.raises(RunError, match="no notebook 'other'; there are: book"):
        execute(book.with_name('other.ipynb'), tmp_path / 'out' / 'other.ipynb', {})


def test_check_knows_a_notebooks_parameters(book, no_kernel):
    known = check(book, ['fail', 'number'])
    assert {name: parameter['default'] for name, parameter in known.items()} == {
        'number': '1', 'word': "'a'", 'fail': 'False'}
    with pytest.raises(RunError, match="book has no parameter 'nunber', 'wrod'; it has: number, word, fail"):
        check(book, ['nunber', 'word', 'wrod'])


@pytest.mark.slow
def test_values_arrive_as_they_are_and_the_output_is_seen(book, tmp_path, capfd):
    output = tmp_path / 'new folder' / 'book.ipynb'
    assert execute(book, output, {'number': {'phi': [0.7, None]}, 'word': '', 'fail': None}) == output
    assert "got {'phi': [0.7, None]} ''" in capfd.readouterr().out   # None keeps the notebook's default
    assert code(output)[-1].execution_count
    assert not code(book)[-1].outputs
    assert [path.name for path in output.parent.iterdir()] == ['book.ipynb']


@pytest.mark.slow
def test_a_failing_notebook_names_the_cell_and_leaves_no_result(book, tmp_path, capfd):
    output = tmp_path / 'out' / 'book.ipynb'
    with pytest.raises(RunError, match=r'(?s)cell \[\d+\] of book.ipynb failed with ValueError: as asked') as told:
        execute(book, output, {'fail': True})
    failed = output.with_name('book.failed.ipynb')
    assert str(failed) in str(told.value)
    assert [path.name for path in output.parent.iterdir()] == ['book.failed.ipynb']
    number = int(re.search(r'cell \[(\d+)\]', str(told.value)).group(1))   # as it stands beside the cell
    (cell,) = [cell for cell in code(failed) if cell.execution_count == number]
    assert cell.source.startswith('if fail:')
    assert 'as asked' in str(cell.outputs)
    execute(book, output, {'fail': False})
    assert [path.name for path in output.parent.iterdir()] == ['book.ipynb']   # the failure is history


@pytest.mark.slow
def test_an_interrupted_notebook_is_an_interrupt(write, tmp_path, capfd):
    book = write('number = 1   # a number', 'raise KeyboardInterrupt')
    with pytest.raises(KeyboardInterrupt):
        execute(book, tmp_path / 'out' / 'book.ipynb', {})
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['book.failed.ipynb']


@pytest.mark.slow
def test_a_killed_kernel_is_told_and_leaves_what_was_executed(write, tmp_path, capfd):
    book = write('number = 1   # a number', "print('so far', number)",
                 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)', "print('never')")
    output = tmp_path / 'out' / 'book.ipynb'
    with pytest.raises(RunError, match='the kernel of book.ipynb died') as told:
        execute(book, output, {'number': 5})
    failed = output.with_name('book.failed.ipynb')
    assert str(failed) in str(told.value)
    assert [path.name for path in output.parent.iterdir()] == ['book.failed.ipynb']
    assert 'so far 5' in str([cell.outputs for cell in code(failed)])
