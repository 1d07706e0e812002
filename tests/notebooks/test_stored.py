"""Notebooks as they are stored: form, parameters, and that they tell while the package does."""
import ast
import re

import nbformat
import papermill
import pytest

from amdlib import methods
from amdlib.runs.batch import PARAMETERS
from amdlib.runs.notebooks import NOTEBOOKS
from amdlib.runs.targets import TARGETS, Given

STORED = sorted(NOTEBOOKS.glob('*.ipynb'))
TO_START = {'experiment', '00_start', 'your_own_detector', 'your_own_loss'}     # no targets of `reproduce`
every_notebook = pytest.mark.parametrize('path', STORED, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == 'code']


def source_of_parameters(path):
    (cell,) = [cell for cell in read(path).cells if 'parameters' in cell.metadata.get('tags', [])]
    return cell.source


def defaults(path):
    values = {}
    exec(source_of_parameters(path), values)
    return {name: value for name, value in values.items() if name != '__builtins__'}


def test_every_table_and_figure_has_its_notebook():
    assert {path.stem for path in STORED} == {target.notebook for target in TARGETS.values()} | TO_START


@every_notebook
def test_stored_without_outputs_and_with_ids(path):
    stored = read(path)
    nbformat.validate(stored)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(path))
    ids = [cell.get('id') for cell in stored.cells]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    assert stored.metadata.kernelspec.name == 'python3'
    assert set(stored.metadata) <= {'kernelspec', 'language_info'}
    assert not [cell.metadata for cell in stored.cells if set(cell.metadata) - {'tags', 'jupyter'}]   # no timings
    assert path.read_text() == nbformat.writes(stored) + '\n'   # as JupyterLab saves it
    assert path.stat().st_size < 100_000


@every_notebook
def test_begins_with_title_question_paper_and_cost(path):
    first = read(path).cells[0]
    assert first.cell_type == 'markdown'
    assert first.source.startswith('# ')
    assert not [cell.id for cell in read(path).cells[1:] if cell.cell_type == 'markdown'
                and re.search('^# ', cell.source, re.MULTILINE)]
    for word in ('Question', 'Paper', 'Cost'):
        assert f'**{word}' in first.source, word
    assert 'assert' in code(path)[-1].source   # and ends with a check of what it claims


@every_notebook
def test_parameters_and_checks_are_folded_away_and_nothing_else(path):
    for cell in code(path):
        folded = 'assert ' in cell.source or 'parameters' in cell.metadata.get('tags', [])
        assert cell.metadata.get('jupyter', {}) == ({'source_hidden': True} if folded else {}), cell.id


@every_notebook
def test_answers_are_folded_and_closed(path):
    """With an empty line before what they hold, or its markdown would not be read as such."""
    for cell in read(path).cells:
        if cell.cell_type == 'markdown':
            answers = re.findall(r'<details>\n<summary>[^<\n]+</summary>\n\n.+?\n\n</details>', cell.source, re.DOTALL)
            assert cell.source.count('<details>') == cell.source.count('</details>') == len(answers), cell.id


@every_notebook
def test_each_figure_is_expected_before_and_asked_about_after(path):
    """With every answer folded."""
    cells = read(path).cells
    drawn = [i for i, cell in enumerate(cells)
             if cell.cell_type == 'code' and re.search(r'^ *(figure|drawn) = ', cell.source, re.MULTILINE)]
    assert drawn
    for before, figure, after in zip([0, *drawn], drawn, [*drawn[1:], len(cells)], strict=False):
        expected, asked = ('\n'.join(cell.source for cell in cells[first:last] if cell.cell_type == 'markdown')
                           for first, last in ((before, figure), (figure, after)))
        assert '**Expect** ' in expected, cells[figure].id
        assert '**Now you.** ' in asked, cells[figure].id
    assert all(cell.source.count('**Now you.**') == cell.source.count('<details>') for cell in cells)


@every_notebook
def test_there_are_two_words_of_prose_to_one_of_the_code_that_is_seen(path):
    cells = read(path).cells
    prose = [re.sub('<details>.*?</details>', '', cell.source, flags=re.DOTALL) for cell in cells
             if cell.cell_type == 'markdown']
    seen = [cell.source for cell in code(path) if not cell.metadata.get('jupyter')]
    assert len(' '.join(prose).split()) >= 2 * len(' '.join(seen).split())


@every_notebook
def test_parameters_are_plain_values_each_with_a_comment(path):
    source = source_of_parameters(path)
    for line in source.splitlines():
        assert re.fullmatch(r"\w+ = ('[^']*'|[\d.]+|True|False|None|\[[^]]*\]|\{[^}]*\}) +# \S.*", line), line
    assert all(isinstance(line, ast.Assign) for line in ast.parse(source).body)


@every_notebook
def test_papermill_reads_every_parameter(path):
    known, values = papermill.inspect_notebook(str(path)), defaults(path)
    assert list(known) == list(values)
    for name, parameter in known.items():
        assert ast.literal_eval(parameter['default']) == values[name]
        assert parameter['help']


@every_notebook
def test_the_same_parameter_is_of_the_same_kind_everywhere(path):
    values = defaults(path)
    assert {'profile', 'data', 'how', 'settings'} <= set(values)
    assert (values['profile'], values['data'], values['how']) == ('mini', None, {})
    kinds = {'settings': dict, 'seeds': list, 'methods': list, 'values': list, 'image_ids': list, 'force': bool,
             'write': bool, 'seed': int, 'images': int, 'level': int}
    assert {name: type(values[name]) for name in values if name in kinds} == {
        name: kind for name, kind in kinds.items() if name in values}


@every_notebook
def test_what_explores_writes_only_where_it_is_asked_to(path):
    given = defaults(path)
    for cell in code(path):
        writing = re.findall(r'^(.*\b(?:charts\.save|write_csv)\(.*)$', cell.source, re.MULTILINE)
        assert not writing or ('write' in given and given['write'] is False), cell.id
        assert all(line.startswith('    ') for line in writing), f'{cell.id}: not below `if write`'


def test_reproduce_asks_those_to_write():
    """And what exploring leaves alone: the files of figures that are committed."""
    assert {target.notebook for target in TARGETS.values() if target.parameters.get('write')} == {
        path.stem for path in STORED if 'write' in defaults(path)}


def test_parameters_that_others_give_are_there():
    by_name = {path.stem: defaults(path) for path in STORED}
    assert set(PARAMETERS) <= set(by_name['experiment'])
    given = set(Given().parameters()) | {'profile', 'data', 'how'}
    for target in TARGETS.values():
        assert set(target.parameters) <= set(by_name[target.notebook]), target.name
        assert {'profile', 'data', 'how', 'settings'} <= given | set(by_name[target.notebook])
    for name in ('table1', 'ablation', 'table5', 'table6', 'zoo'):
        assert {'seeds', 'settings', 'methods', 'force'} <= set(by_name[name])


@every_notebook
def test_opens_its_store_in_one_call(path):
    text = '\n'.join(cell.source for cell in code(path))
    assert text.count('store = open_store(profile, data, **how)') == 1
    assert text.count('show_log()') == 1    # or what the kit says would not be seen


@pytest.mark.parametrize('name', ['table1', 'ablation', 'table5', 'table6', 'zoo'])
def test_a_table_is_told_in_a_few_cells(name):
    assert len(read(NOTEBOOKS / f'{name}.ipynb').cells) <= 8


@every_notebook
def test_notebooks_tell_and_the_package_does(path):
    for cell in code(path):
        tree = ast.parse(cell.source)
        for part in ast.walk(tree):
            assert not isinstance(part, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.While), cell.id
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                assert not re.match(r'[/~]|[A-Za-z]:\\', part.value), f'{cell.id}: absolute path {part.value!r}'
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if 'parameters' not in cell.metadata.get('tags', []):    # a list, as long as it has to be
            assert len(lines) <= 12, f'{cell.id}: {len(lines)} lines'
        assert '%' not in {line.lstrip()[:1] for line in lines}
        assert '!' not in {line.lstrip()[:1] for line in lines}


@every_notebook
def test_links_lead_somewhere(path):
    for cell in read(path).cells:
        if cell.cell_type == 'markdown':
            for address in re.findall(r'\]\(([^)\s]+)\)', cell.source):
                assert address.startswith('http') or (NOTEBOOKS / address).is_file(), address
            for name in re.findall(r'`(\w+\.(?:ipynb|py))`', cell.source):
                assert (NOTEBOOKS / name).is_file(), name


def test_the_example_of_a_loss_is_short_and_keeps_the_contract():
    (name,) = defaults(NOTEBOOKS / 'your_own_loss.ipynb')['methods']
    path, _, cls = name.partition(':')
    assert methods.find_method(f'{NOTEBOOKS / path}:{cls}').WEIGHT_EXPONENTS
    (found,) = [part for part in ast.parse((NOTEBOOKS / path).read_text()).body if isinstance(part, ast.ClassDef)]
    assert found.end_lineno - found.lineno < 15
