"""printed.py: data/paper_tables.csv is the shared copy of the paper's tables, with keys."""
import csv
import re

import pytest

from amdlib.evaluation import METRICS
from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import CSV, paper_groups, paper_label, paper_lines, paper_value
from amdlib.paper.tables import TABLES
from tests.conftest import shared

COLUMNS = [name for name in METRICS if name not in ('AR1', 'AR10')]
CHOICES = ['spatial', 'channel', 'generation', 'channel_position']


def lines(file):
    with open(file, newline='') as opened:
        return list(csv.DictReader(opened))


def test_every_number_is_that_of_the_shared_tables():
    own = {(line['table'], line['group'], line['row']): line for line in lines(CSV)}
    copied = lines(shared('paper/tables.csv'))
    for line in copied:
        ours = own.pop((line['table'], line['group'], line['row']))
        assert [ours[name] for name in [*CHOICES, *COLUMNS, 'student']] == [
            line[name] for name in [*CHOICES, *COLUMNS, 'student']]
        name, map_pct = re.fullmatch(r'(.+) \(([\d.]+)\)', line['teacher']).groups()
        assert ours['teacher'] == name
        assert paper_value('I', line['group'], 'teacher', 'mAP') == float(map_pct)
    assert {(table, row) for table, _, row in own} == {('I', 'Teacher')}    # which the paper prints as '(41.0)'


def test_a_line_is_found_by_table_group_and_key():
    found = lines(CSV)
    keys = [(line['table'], line['group'], line['key']) for line in found]
    assert len(set(keys)) == len(keys)
    for line in found:
        assert paper_lines(line['table'])[line['group'], line['key']] == line
        assert paper_label(line['table'], line['group'], line['key']) == line['row']
        for metric in COLUMNS:
            value = paper_value(line['table'], line['group'], line['key'], metric)
            assert value == (float(line[metric]) if line[metric] else None)


def test_what_the_paper_does_not_report_is_none():
    assert paper_value('I', 'retinanet', 'baseline', 'AP50') is None
    assert paper_value('I', 'retinanet', 'fitnet', 'mAP') is None
    assert paper_label('I', 'retinanet', 'fitnet') is None
    assert paper_value('II', 'retinanet', 'amd-unmasked', 'mAP') is None


@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_baseline_and_teacher_are_table_1s_everywhere(table):
    for group in set(table.groups) & set(paper_groups()):
        for key in ('baseline', 'teacher'):
            assert paper_value(table.number, group, key, 'mAP') == paper_value('I', group, key, 'mAP') is not None


def test_every_group_and_table_of_the_file_is_known():
    found = lines(CSV)
    assert {line['group'] for line in found} == set(paper_groups()) <= set(GROUPS)
    assert {line['table'] for line in found} <= {table.number for table in TABLES.values()}
