"""provenance.py: figure, csv, records, commit, command; the same on the page and in a terminal."""
import pandas as pd
import pytest

from amdlib.cli import main
from amdlib.errors import RunError, SettingError
from amdlib.runs import store as stores
from amdlib.show.report.provenance import subjects, why
from tests.show.report.results import Page, store_of


def test_a_figure_names_its_picture_numbers_records_commit_and_command(made):
    text = why('fig4', store_of(made.parent))
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert lines['picture'] == str(made / 'fig4.png')
    assert lines['numbers'] == str(made / 'fig4.csv')
    assert lines['records'] == '1: reppoints-amd-s0'
    assert lines['commits'] == 'c0ffee with changes (1 record)'
    assert lines['made'] == 'by   make reproduce-fig4'
    named = {run for runs in pd.read_csv(made / 'table1.csv').runs for run in runs.split()}
    assert f'records   {len(named)}: ' in why('table1', store_of(made.parent))


def test_the_page_says_the_same_beside_the_figure(site):
    page = Page(site / 'index.html')
    section = page.words.split('Figure 4: the threshold phi source of Figure 4')[1].split('Mask coverage')[0]
    for part in ('fig4.png, fig4.csv', 'Records 1: reppoints-amd-s0', 'c0ffee with changes (1 record)',
                 'make reproduce-fig4', 'make why FIG=fig4'):
        assert part in section, part
    assert (site / 'figures' / 'fig4.csv').is_file()


def test_a_run_that_is_gone_is_named(copy):
    place, _ = copy
    pd.read_csv(place / 'fig4.csv').assign(runs='gone-s0').to_csv(place / 'fig4.csv', index=False)
    assert 'no record gone-s0' in why('fig4', store_of(place.parent))


def test_what_is_unknown_or_not_made_is_said(made):
    with pytest.raises(SettingError, match="unknown table or figure 'fig2'; expected one of: table1, .*significance"):
        why('fig2', store_of(made.parent))
    with pytest.raises(RunError, match='fig1: not made yet; `make reproduce-fig1` makes it'):
        why('fig1', store_of(made.parent))


def test_a_variant_of_a_table_is_known_where_it_is_there(copy):
    place, _ = copy
    assert 'table5_inherit' not in subjects(place)
    pd.read_csv(place / 'table5.csv').to_csv(place / 'table5_inherit.csv', index=False)
    assert 'make reproduce-table5' in why('table5_inherit', store_of(place.parent))
    assert 'table5_inherit.csv' not in why('table5', store_of(place.parent))


def test_from_the_command_line(made, monkeypatch, capsys):
    monkeypatch.setattr(stores, 'open_store', lambda *_, **__: store_of(made.parent))
    assert main(['why', 'fig4']) == 0
    assert 'make reproduce-fig4' in capsys.readouterr().out
    assert main(['why', 'fig2']) == 1
