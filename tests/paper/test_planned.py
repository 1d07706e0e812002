"""planned.py: what docs/plan.md says is what is judged."""
import re

from amdlib.files import ROOT
from amdlib.paper import planned
from amdlib.paper.planned import EXPLORATORY, PLANNED, PRIMARY_ROWS
from amdlib.paper.rows import ROWS

PAGE = (ROOT / 'docs' / 'plan.md').read_text()


def lines(width):
    """The comparisons of the page's table with so many columns: name -> cells."""
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in PAGE.splitlines()
             if line.startswith('| ')]
    return {one[0]: one for one in cells if len(one) == width and one[0] != 'comparison' and not set(one[0]) <= {'-'}}


def test_the_page_and_the_data_name_the_same_comparisons():
    found = lines(5)
    assert list(found) == [one.name for one in PLANNED]
    for one in PLANNED:
        _, difference, arm, weights, seeds = found[one.name]
        assert difference == f'`{one.row}` - `{one.over}`'
        assert arm == one.arm
        assert weights == ('calibrated' if one.calibrated else 'by the rule')
        assert seeds == f'0 to {one.seeds - 1}'


def test_the_page_and_the_data_name_the_same_exploratory_comparisons():
    found = lines(4)
    assert list(found) == [one.name for one in EXPLORATORY]
    for one in EXPLORATORY:
        _, difference, settings, seeds = found[one.name]
        assert difference == f'`{one.row}` - `{one.over}`'
        given = [f'`{key}={"-".join(map(str, value)) if isinstance(value, tuple) else value}`'
                 for key, value in one.settings.items()]
        assert settings == ', '.join(given or ['arm inherit'] * (one.arm == 'inherit'))
        assert seeds == f'0 to {one.seeds - 1}'
        assert (one.kind, one.calibrated) == ('exploratory', False)


def test_one_comparison_is_primary_and_comes_first():
    assert [one.kind for one in PLANNED] == ['primary'] + ['named'] * (len(PLANNED) - 1)
    assert (PLANNED[0].row, PLANNED[0].over, PLANNED[0].arm, PLANNED[0].calibrated) == ('amd', 'mgd', 'alone', False)


def test_every_row_is_there_and_has_its_seeds():
    for one in PLANNED:
        assert {f'{planned.GROUP}-{one.row}', f'{planned.GROUP}-{one.over}'} <= set(ROWS)
        assert one.seeds == (8 if {one.row, one.over} <= set(PRIMARY_ROWS) else 5)
    assert all(f'{planned.GROUP}-{name}' in ROWS for one in EXPLORATORY for name in (one.row, one.over))
    assert len({one.name for one in (*PLANNED, *EXPLORATORY)}) == len(PLANNED) + len(EXPLORATORY)
    assert set(PRIMARY_ROWS) <= set(re.findall(r'`([\w-]+)`', PAGE))
