"""tables.py: the paper's six tables, line by line, and our controls beside them."""
import csv
from dataclasses import replace

import pytest

from amdlib import methods
from amdlib.engine.coco import METRICS
from amdlib.errors import SettingError
from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import CSV, paper_groups
from amdlib.paper.rows import ROWS, cannot, find_row
from amdlib.paper.tables import TABLES, ZOO, find_table, table_numbered

with open(CSV, newline='') as file:
    PRINTED = list(csv.DictReader(file))
every_table = pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
CONTROLS = {'I': ['inherit'], 'II': ['baseline', 'amd-unmasked', 'amd-allmasked']}    # what we add to the paper's lines
CONTROLS |= dict.fromkeys(('III', 'IV'), CONTROLS['II'])


def printed(table):
    return [line for line in PRINTED if line['table'] == table.number]


def papers_groups(table):
    """A table may have further pairs, of which the paper says nothing."""
    return [group for group in table.groups if group in paper_groups()]


def test_the_tables_are_the_papers():
    numbers = list(dict.fromkeys(line['table'] for line in PRINTED))
    # others may stand beside them
    assert [table.number for table in TABLES.values() if table.number in numbers] == numbers
    assert all(name == table.name for name, table in TABLES.items())
    for table in TABLES.values():
        if table.number in numbers:
            assert papers_groups(table) == list(dict.fromkeys(line['group'] for line in printed(table)))
        assert find_table(table.name) is table_numbered(table.number) is table


@every_table
def test_a_tables_lines_are_the_papers_and_our_controls(table):
    for group in papers_groups(table):
        keys = [line['key'] for line in printed(table) if line['group'] == group]
        assert not keys or set(table.lines) == {*keys, *CONTROLS.get(table.number, ())}
        assert len(set(table.lines)) == len(table.lines)
        assert [name for name in table.lines if name in keys] == keys      # in the paper's order


@every_table
def test_a_line_is_called_as_the_table_prints_it(table):
    labels = {(line['group'], line['key']): line['row'] for line in printed(table)}
    for row in table.rows():
        assert table.label(row) == labels.get((row.group.name, row.name), row.label)


@every_table
def test_what_a_table_compares_to_and_prints_is_there(table):
    assert table.reference in table.lines
    assert set(table.metrics) <= set(METRICS)
    for name in [metric for metric in METRICS if metric in PRINTED[0]]:     # a number that the paper has is shown
        if name not in table.metrics:
            assert not [line for line in printed(table) if line[name]]


@every_table
def test_rows_of_every_group_or_one(table):
    rows = [ROWS[f'{group}-{line}'] for group in table.groups for line in table.lines
            if not cannot(GROUPS[group], line)]
    assert table.rows() == rows
    for group in table.groups:
        assert table.rows(group) == [row for row in rows if row.group.name == group]


@every_table
def test_controls_are_further_lines_where_they_are_asked_for(table):
    assert not set(table.controls) & set(table.lines)
    assert table.with_controls().lines == (*table.lines, *table.controls)
    rows = table.with_controls().rows()
    assert [row for row in rows if row.name not in table.controls] == table.rows()
    assert {row.name for row in rows} == {*table.lines, *table.controls}


def test_methods_of_the_zoo_are_in_no_table_of_the_papers():
    zoo = TABLES['zoo']
    assert zoo.ours
    assert {name for name in methods.names() if name in zoo.lines} == set(methods.names())
    for table in TABLES.values():
        assert table.ours == (table.number not in {line['table'] for line in PRINTED})
        assert table.ours or not {*ZOO} & {*table.lines, *table.controls}
        assert table.ours or {*table.groups} <= {*paper_groups()}


@pytest.mark.parametrize('group', GROUPS)
def test_a_method_has_a_row_or_the_table_says_why_not(group):
    zoo = TABLES['zoo']
    there, gaps = {row.name for row in zoo.rows(group)}, zoo.gaps(group)
    for name in methods.names():
        assert (name in there) != (methods.find_method(name).LABEL in gaps)
    assert all(gaps.values())


def test_a_gap_says_what_the_pair_lacks(monkeypatch):
    group = replace(GROUPS['retinanet'], name='bare', offers=('heads',))
    monkeypatch.setitem(GROUPS, 'bare', group)
    assert TABLES['zoo'].gaps('bare')['FGFI'] == 'needs a box of known size at every position: the student has none'
    with pytest.raises(SettingError, match='there is no bare-fgfi: fgfi needs a box of known size'):
        find_row('bare-fgfi')


def test_a_line_is_compared_with_the_one_that_starts_alike():
    first, ablation = TABLES['table1'], TABLES['table2']
    assert {arm: first.reference_of('amd', arm) for arm in ('alone', 'inherit')} == {
        'alone': 'baseline', 'inherit': 'inherit'}
    assert first.reference_of('inherit', 'inherit') == 'baseline'       # what the start alone brings
    assert ablation.reference_of('amd-mask', 'inherit') == 'amd'


def test_methods_from_outside_are_further_lines(tmp_path):
    (tmp_path / 'own.py').write_text(
        'from amdlib.methods.fitnet import FitNetLoss\nclass Mine(FitNetLoss):\n    pass\n')
    table = TABLES['table1'].with_methods([f'{tmp_path}/own.py:Mine'])
    assert TABLES['table1'].with_methods([]) == TABLES['table1']
    rows = table.rows()
    own = [row for row in rows if row not in TABLES['table1'].rows()]
    assert [row.id for row in own] == [f'{group}-own.Mine' for group in table.groups]
    assert [table.label(row) for row in own] == ['Mine'] * len(table.groups)
    assert [row.name for row in table.rows('reppoints')] == [*TABLES['table1'].lines, 'own.Mine']


def test_bad_input_is_refused_with_what_is_known():
    with pytest.raises(SettingError, match='table7') as told:
        find_table('table7')
    assert all(name in str(told.value) for name in TABLES)
    with pytest.raises(SettingError, match="table3 has no group 'retinanet'; expected one of: reppoints"):
        TABLES['table3'].rows('retinanet')
    with pytest.raises(SettingError, match="'retina'") as told:
        TABLES['table1'].rows('retina')
    assert all(name in str(told.value) for name in GROUPS)
