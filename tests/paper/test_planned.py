"""planned.py: what docs/plan.md says is what is judged."""
import re

from amdlib.files import ROOT
from amdlib.paper import planned
from amdlib.paper.planned import PLANNED, PRIMARY_ROWS
from amdlib.paper.rows import ROWS

PAGE = (ROOT / 'docs' / 'plan.md').read_text()


def lines():
    """The comparisons of the page: name -> cells."""
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in PAGE.splitlines()
             if line.startswith('| ')]
    return {one[0]: one for one in cells if len(one) == 5 and one[0] != 'comparison'}


def test_the_page_and_the_data_name_the_same_comparisons():
    found = {name: cells for name, cells in lines().items() if not set(name) <= set('-: ')}
    assert list(found) == [one.name for one in PLANNED]
    for one in PLANNED:
        _, difference, arm, weights, seeds = found[one.name]
        assert difference == f'`{one.row}` - `{one.over}`'
        assert arm == one.arm
        assert weights == ('calibrated' if one.calibrated else 'by the rule')
        assert seeds == f'0 to {one.seeds - 1}'


def test_one_comparison_is_primary_and_comes_first():
    assert [one.primary for one in PLANNED] == [True] + [False] * (len(PLANNED) - 1)
    assert (PLANNED[0].row, PLANNED[0].over, PLANNED[0].arm, PLANNED[0].calibrated) == ('amd', 'mgd', 'alone', False)


def test_every_row_is_there_and_has_its_seeds():
    for one in PLANNED:
        assert {f'{planned.GROUP}-{one.row}', f'{planned.GROUP}-{one.over}'} <= set(ROWS)
        assert one.seeds == (8 if {one.row, one.over} <= set(PRIMARY_ROWS) else 5)
    assert len({one.name for one in PLANNED}) == len(PLANNED)
    assert set(PRIMARY_ROWS) <= set(re.findall(r'`([\w-]+)`', PAGE))
