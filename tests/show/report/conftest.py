"""The report's results folder, made once, and copies of it to be changed."""
import shutil

import pytest

from amdlib.show import report, tables
from tests.show.report.results import store_of, write_figure, write_notebooks, write_table


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    """A results folder with Tables I, II and V (long run ids), Fig. 4 and three notebooks; its place."""
    place = tmp_path_factory.mktemp('results') / 'mini'
    write_table(place, 'table1', (0, 1))
    write_table(place, 'table2', (0,))
    write_table(place, 'table5', (0,), {'epochs': 3})
    (place / 'table1.md').write_text(f'# Table I\n\n{tables.LIMITS}\n\n- It cannot show <b>much</b>.\n')
    write_figure(place)
    write_notebooks(place)
    return place


@pytest.fixture(scope='session')
def site(made):
    return report.build(store_of(made.parent)).parent


@pytest.fixture
def copy(made, tmp_path):
    """The same folder, to be changed; and how to build it."""
    shutil.copytree(made, tmp_path / 'mini', ignore=shutil.ignore_patterns('report'))
    return tmp_path / 'mini', lambda: report.build(store_of(tmp_path)).parent
