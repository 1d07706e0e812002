"""site.py: the site holds every number with its run, says what is missing or wrong, and needs no network."""
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from amdlib.errors import RunError
from amdlib.paper.profiles import DRY_RUN
from amdlib.paper.tables import TABLES
from amdlib.runs import fingerprints
from amdlib.runs.store import Store
from amdlib.show import explorer, report, tables
from amdlib.show.report import site as building
from tests.conftest import BAD
from tests.show.report.results import DATASET, Page, store_of


def _pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in sorted(site.rglob('*.html'))}


def _shown(value: float, form: str = '.1f') -> str:
    if pd.isna(value):
        return '–'
    text = format(value, form).replace('-', '−')
    return '0.0' if text in ('+0.0', '−0.0') else text


@pytest.mark.parametrize('name', ['table1', 'table2', 'table5'])
def test_every_number_stands_beside_the_papers_and_leads_to_its_run(made, site, name):
    index, runs = Page(site / 'index.html'), Page(site / 'runs.html')
    cells = pd.read_csv(made / f'{name}.csv')
    for (_, row), own in cells.groupby(['group', 'row'], sort=False):
        values, printed, apart, first = [], [], [], own.iloc[0]
        for cell in own.itertuples():
            if pd.notna(cell.ours):
                assert any(attrs.get('title') == f'{cell.ours} %, {"mean of the runs" if " " in cell.runs else "run"} '
                           f'{cell.runs}, commit c0ffee' for tag, attrs in index.tags if tag == 'span')
            spread = f' ± {cell.sd:.1f}' if pd.notna(cell.sd) else ''
            values += [_shown(cell.ours) + spread, _shown(cell.difference, '+.1f')]
            none = pd.isna(cell.paper)
            printed += ['not in the paper'] if none else [_shown(cell.paper), _shown(cell.paper_difference, '+.1f')]
            apart += [_shown(cell.ours - cell.paper, '+.1f'), _shown(cell.difference - cell.paper_difference, '+.1f')]
        at = index.lines.index([first.label, *values])
        several = first.runs.split()
        led = first.runs if len(several) == 1 else f'{len(several)} runs'
        in_paper = printed[:2] if pd.notna(first.paper) else ['not in the paper']
        assert [first.label, *values[:2], *in_paper, str(first.seeds), led] in index.lines, row      # mAP alone
        target = f'runs/{several[0]}.html' if len(several) == 1 else f'runs.html#row-{first.group}-{row}'
        assert target in index.links
        assert all(f'runs/{run}.html' in runs.links for run in several)
        if own.paper.notna().any():
            assert index.lines[at + 1] == [f'{first.label}, paper', *printed]
            assert index.lines[at + 2] == [f'{first.label}, here − paper', *apart]
        else:
            assert index.lines[at + 1] == [f'{first.label}, paper', 'not in the paper: it has no such line'], row
    assert 'not what the record' not in index.text


def test_the_bed_is_folded_and_its_tables_have_names(copy):
    place, build = copy
    assert 'Not looked at yet: make bed' in Page(build() / 'index.html').words
    (place / 'bed.md').write_text('# Bed\n\n## RetinaNet\n\n| check | holds |\n|:--|:--|\n| long & enough | yes |\n')
    page = Page(build() / 'index.html')
    assert any(table[1:] == [['long & enough', 'yes']] for table in page.tables)
    assert 'RetinaNet' in page.captions


def test_the_interval_of_a_gain_in_map_stands_beside_it(copy):
    place, build = copy
    cells = pd.read_csv(place / 'table1.csv')
    cells[['low', 'high', 'verdict']] = -2.0, 0.5, 'not resolved'
    cells.to_csv(place / 'table1.csv', index=False)
    lines = [[text.strip() for text in line] for table in Page(build() / 'index.html').tables for line in table]
    amd, whole, *_ = [line for line in lines if line[0] == 'AMD']
    assert amd[2] == whole[2] == '−1.3 [−2.0, +0.5]'
    assert whole[4] == '−1.3'


def test_the_other_arm_and_calibrated_factors_are_folded_below_their_table(copy):
    place, build = copy
    shutil.copyfile(place / 'table5.csv', place / 'table5_inherit_calibrated.csv')
    page = Page(build() / 'index.html')
    assert 'table5_inherit_calibrated' in page.ids
    assert "The same with students that start from the teacher's neck and head, weights by the calibrated" in ' '.join(
        page.text.split())
    assert [line[0] for line in page.lines].count('MBConv') == 2 * 2      # mAP alone, and all numbers


def test_a_table_names_the_line_that_its_differences_are_taken_to(site):
    text = ' '.join(Page(site / 'index.html').text.split())
    for line in ('gain: difference to the line “baseline”', 'to full: difference to the line “full”',
                 'to Dense Conv x2: difference to the line “Dense Conv x2”'):
        assert line in text


def test_runs_of_other_versions_are_told(made, copy, monkeypatch):
    place, build = copy
    site = build()
    count = len(list((place / 'runs').iterdir()))
    assert (f'{count} runs were made with other versions than are installed now: see runs'
            in Page(site / 'index.html').words)
    assert 'torch 2.0; ○ made with torch 2.0, now ' in Page(site / 'runs' / 'retinanet-amd-s0.html').words
    monkeypatch.setattr(fingerprints, 'other_versions', lambda _: '')
    assert 'other versions than' not in (build() / 'index.html').read_text()


def test_kept_records_of_runs_that_are_not_here_are_told_and_count(copy):
    place, build = copy
    (place / 'records').mkdir()
    for run in ('retinanet-amd-s0', 'retinanet-amd-s1'):
        shutil.move(place / 'runs' / run, place / 'records' / run)
    site = build()
    index = Page(site / 'index.html').words
    assert 'Of 2 runs not the run itself is here but the kept record' in index
    assert 'not what the record' not in index
    page = Page(site / 'runs' / 'retinanet-amd-s0.html')
    assert 'not made here, its record was kept' in page.words
    assert '../../records/retinanet-amd-s0/record.json' in page.links


def test_a_loss_of_your_own_is_a_line_without_the_papers_numbers(copy):
    place, build = copy
    table = pd.read_csv(place / 'table5.csv')
    own = table[table.row == 'amd-conv1'].assign(row='mine.MyLoss', label='MyLoss', paper=None, paper_difference=None)
    pd.concat([table, own]).to_csv(place / 'table5.csv', index=False)
    lines = [[text.strip() for text in line] for table in Page(build() / 'index.html').tables for line in table]
    short, at = [i for i, line in enumerate(lines) if line[0] == 'MyLoss']
    assert 'not in the paper' in lines[short]
    assert lines[at + 1] == ['MyLoss, paper', 'not in the paper: it has no such line']


def test_pages_are_well_formed_and_every_link_leads_somewhere(made, site):
    pages = _pages(site)
    assert len(pages) == 2 + 3 + len(list((made / 'runs').iterdir()))
    for file, page in pages.items():
        assert len(page.ids) == len(set(page.ids))
        outside = {attrs['href'] for tag, attrs in page.tags if tag == 'a' and attrs.get('class') == 'out'}
        for link in [*page.links, *page.loads]:
            url = urlsplit(link)
            if url.scheme:
                assert url.scheme == 'data' or link in page.links
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            assert target.is_file(), f'{file.name}: {link}'
            home = made / 'runs' if link in outside else site     # files of a run lie beside the report
            assert target.is_relative_to(home.resolve()), f'{file.name}: {link}'
            assert not url.fragment or unquote(url.fragment) in pages[target].ids, f'{file.name}: {link}'


ACTS = re.compile(r'<script|<iframe|@import|\bon\w+="')


def test_nothing_is_loaded_from_the_network_or_run(site):
    for file in site.rglob('*.html'):
        assert not [load for load in Page(file).loads if re.match(r'(https?:)?//', load)]
        assert not ACTS.search(file.read_text())
    css = (site / 'report.css').read_text()
    assert 'url(' not in css
    assert '@import' not in css
    assert css.count('{') == css.count('}')


EVIL = '<img src=x onerror=alert(1)><script>alert(1)</script><a href="javascript:alert(1)">a</a>'


def test_the_mask_explorer_is_the_one_thing_that_acts(copy, monkeypatch):
    _, build = copy
    own = explorer.fragment({'rule': EVIL, 'models': [], 'pictures': []})
    monkeypatch.setattr(explorer, 'for_report', lambda _: own)
    site = build()
    index = (site / 'index.html').read_text()
    assert index.count(own) == 1
    assert EVIL not in own
    assert re.findall('<script.*?>', own) == ['<script type="application/json">', '<script type="module">']
    for file in site.rglob('*.html'):
        assert not ACTS.search(file.read_text().replace(own, ''))
        assert not [load for load in Page(file).loads if re.match(r'(https?:)?//', load)]
    assert 'explorer' in Page(site / 'index.html').ids


def test_what_a_stranger_calls_a_class_never_acts(copy):
    """In outputs of notebooks, in tables, in notes, in records."""
    place, build = copy
    outputs = [new_output('display_data', {kind: f'<table><tr><td>{EVIL}</td></tr></table>'})
               for kind in ('text/html', 'text/markdown', 'image/svg+xml', 'text/plain')]
    outputs.append(new_output('stream', text=EVIL))
    book = new_notebook(cells=[new_markdown_cell(f'# {EVIL}'), new_code_cell('1', outputs=outputs)])
    nbformat.write(book, place / 'evil.ipynb')
    (place / 'table1.md').write_text(f'# Table I\n\n{tables.LIMITS}\n\n- {EVIL}\n')
    (place / 'bed.md').write_text(f'# Bed\n\n## {EVIL}\n')
    table = pd.read_csv(place / 'table5.csv')
    table.assign(label=EVIL).to_csv(place / 'table5.csv', index=False)
    file = place / 'runs' / 'retinanet-amd-s0' / 'record.json'
    record = json.loads(file.read_text())
    record |= {'label': EVIL, 'device': EVIL, 'began': EVIL, 'config': {'model': {EVIL: EVIL}}, 'machine': {
        'cpu': EVIL}}
    file.write_text(json.dumps({**record, 'settings': {EVIL: EVIL}, 'versions': {EVIL: EVIL}, 'teacher': {
        'id': EVIL, 'weights_sha256': EVIL}, 'numbers': {**record['numbers'], EVIL: 1.0}}))
    (file.parent / 'scalars.jsonl').write_text(json.dumps({'step': 1, 'loss': 2.0, f'loss_{EVIL}_fpn_0': 1.0}) + '\n')
    evil = place / 'runs' / '"><script>alert(1)<'
    evil.mkdir()
    (evil / 'record.json').write_text(file.read_text())
    for file in [*build().rglob('*.html'), building.publish(store_of(place.parent))]:
        assert Acting(file).found == []


class Acting(HTMLParser):
    """What of a page could act, as a browser reads it."""

    def __init__(self, file):
        super().__init__()
        self.found = []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        if tag in ('script', 'iframe', 'object', 'embed', 'form', 'base', 'foreignobject', 'animate', 'set', 'use'):
            self.found.append(tag)
        self.found += [f'{tag} {name}={value}' for name, value in attrs
                       if name.startswith('on') or re.match(r'\s*(javascript|data:text)', value or '')]


def test_tables_of_pandas_stay_tables(copy):
    place, build = copy
    shown = pd.DataFrame({'a': [1.5], 'b & c': ['<d>']}).to_html(index=False)
    nbformat.write(new_notebook(cells=[new_code_cell('1', outputs=[new_output('display_data', {'text/html': shown})])]),
                   place / 'book.ipynb')
    page = Page(build() / 'notebooks' / 'book.html')
    assert [['a', 'b & c'], ['1.5', '<d>']] in [[[text.strip() for text in line] for line in table]
                                                for table in page.tables]


def test_parameters_as_given_name_no_folder_of_the_machine(copy):
    place, build = copy
    given = new_code_cell('how = {"results": "/srv/kit/results", "cache": "/data/w/", "split": "0.8/a"}')
    given.metadata['tags'] = ['injected-parameters']
    nbformat.write(new_notebook(cells=[given]), place / 'book.ipynb')
    text = Page(build() / 'notebooks' / 'book.html').text
    assert '"results": "…/results", "cache": "…/w", "split": "0.8/a"' in ' '.join(text.split())
    assert 'srv' not in text


def test_the_front_page_says_what_is_missing_and_how_to_make_it(site):
    text = ' '.join(Page(site / 'index.html').text.split())
    missing = text.partition('Not made yet Table')[2]
    for name in ('table3', 'table4', 'table6', 'fig1', 'fig3'):
        assert f': make reproduce-{name} ' in f'{missing} '
    assert 'make reproduce-fig4' not in missing
    assert 'make reproduce-table1' not in missing
    assert '8 images & <more>' in text
    assert 'It cannot show <b>much</b>.' in text
    assert 'fig3.failed.ipynb ⚠' in text
    assert 'ZeroDivisionError: division by zero' in text


def test_a_notebook_alone_is_a_page_of_its_own(copy):
    place, build = copy
    file = building.page_of_notebook(store_of(place.parent), place / 'fig4.ipynb')
    assert file == place / 'report' / 'notebooks' / 'fig4.html'
    page = Page(file)
    assert page.links.keys() == {'#main'}       # no report is there
    assert all(load.startswith('data:') for load in page.loads)
    build()
    assert '../index.html' in Page(building.page_of_notebook(store_of(place.parent), place / 'fig4.ipynb')).links


def test_notebooks_have_their_equations_and_pictures(site):
    file = site / 'notebooks' / 'sweep_phi' / 'reppoints-amd+phi=0.7-s0.html'
    page, source = Page(file), file.read_text()
    assert source.count('<math') == 2
    assert '<mtable>' in source
    assert '$' not in page.text
    assert r'<code class="latex">\foo</code>' in source     # what MathML cannot say is shown as it was written
    assert [load for load in page.loads if load.startswith('data:image/webp;base64,')]
    assert 'in words' in page.text
    assert 'require()' not in page.text
    assert 'x < 1' in page.text
    assert '../../index.html' in page.links
    assert '../README.md' not in page.links


def test_numbers_that_no_record_bears_out_are_marked(copy):
    place, build = copy
    changed = place / 'runs' / 'reppoints-mgd-s1' / 'record.json'
    record = json.loads(changed.read_text())
    record['numbers']['AP_S'] += 0.3
    changed.write_text(json.dumps(record))
    shutil.rmtree(place / 'runs' / 'faster_rcnn-fgd-s1')
    (place / 'runs' / 'faster_rcnn-fkd-s0' / 'record.json').write_text('{"half": ')
    other = place / 'runs' / 'retinanet-amd-mbconv+epochs=3-s0' / 'record.json'
    other.write_text(other.read_text().replace('hash-', 'another-'))
    taught = place / 'runs' / 'retinanet-teacher-s0' / 'record.json'
    taught.write_text(taught.read_text().replace('sha-', 'new-'))
    site = build()
    index, runs = (Page(site / name).words for name in ('index.html', 'runs.html'))
    assert re.search(r'⚠ FGD, mAP, .*: no readable record of faster_rcnn-fgd-s1', index)
    assert re.search(r'⚠ FKD, mAP, .*: no readable record of faster_rcnn-fkd-s0', index)
    assert re.search(r'⚠ MBConv, mAP, .*: its run was made with other settings', index)
    assert 'faster_rcnn-fgd-s1 ⚠ No record: there is no record.json' in runs
    assert 'faster_rcnn-fkd-s0 ⚠ No record: Expecting value' in runs
    assert 'sha-retinanet-teacher-s0 ⚠ it was trained anew since' in Page(
        site / 'runs' / 'retinanet-amd-s0.html').words
    (told,) = re.findall(r'⚠ MGD, AP_S: the value is ([\d.]+) here, by the records ([\d.]+)', index)
    assert float(told[1]) - float(told[0]) == pytest.approx(0.3 / 2, abs=2e-6)
    wrong = 2 * len(TABLES['table1'].metrics) + len(TABLES['table5'].metrics) + 1
    assert f'⚠ {wrong} numbers are not what the record' in index


def test_bad_records_hide_no_other(copy):
    place, build = copy
    bad = dict(zip(sorted(path.name for path in (place / 'runs').glob('reppoints-*-s1')), BAD.values(), strict=False))
    bad |= dict(zip(sorted(path.name for path in (place / 'runs').glob('faster_rcnn-*-s1')), [*BAD.values()][len(bad):],
                    strict=False))
    assert len(bad) == len(BAD)
    for run, content in bad.items():
        (place / 'runs' / run / 'record.json').write_bytes(content)
    site = build()
    runs, index = (Page(site / name).words for name in ('runs.html', 'index.html'))
    for run in bad:
        assert f'{run} ⚠ No record: ' in runs
        assert f'no readable record of {run}' in index
        assert not (site / 'runs' / f'{run}.html').exists()
    assert 'runs/retinanet-amd-s0.html' in Page(site / 'runs.html').links


def test_tables_in_part_or_in_another_form_are_named(copy):
    place, build = copy
    table = pd.read_csv(place / 'table1.csv')
    table[table.group == 'retinanet'].to_csv(place / 'table1.csv', index=False)
    pd.read_csv(place / 'table2.csv').rename(columns={'difference': 'gain'}).to_csv(place / 'table2.csv', index=False)
    pd.DataFrame({'score': [1.0], 'run': ['retinanet-teacher-s0']}).to_csv(place / 'fig1.csv', index=False)
    text = ' '.join(Page(build() / 'index.html').text.split())
    assert 'Not for reppoints yet: make reproduce-table1' in text
    assert 'Not for faster_rcnn yet' in text
    assert 'table2.csv has no column difference: make reproduce-table2' in text
    assert 'Made by make reproduce-fig1' in text


def test_a_second_build_takes_the_place_of_the_first_and_says_the_same(copy, monkeypatch):
    place, build = copy
    monkeypatch.setattr(fingerprints, 'commit', lambda: {'commit': None, 'clean': None})

    def read(site):
        return {file.relative_to(site): re.sub(rb'<time.*?</time>', b'', file.read_bytes())
                for file in site.rglob('*') if file.is_file()}
    first = read(build())
    (place / 'report' / 'old.html').write_text('of an older build')
    assert read(build()) == first
    assert not list(place.glob('.report*'))


def test_a_build_that_fails_leaves_the_older_site(copy, monkeypatch):
    place, build = copy
    (place / 'report').mkdir()
    (place / 'report' / 'index.html').write_text('of an older build')
    monkeypatch.setattr(building, '_write_runs', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build()
    assert (place / 'report' / 'index.html').read_text() == 'of an older build'
    assert not list(place.glob('.report*'))


def test_an_empty_folder_is_an_error_that_says_what_to_run(tmp_path):
    (tmp_path / 'mini' / 'runs' / 'retinanet-teacher-s0').mkdir(parents=True)
    with pytest.raises(RunError, match='make reproduce-table1'):
        report.build(store_of(tmp_path))


def test_a_dry_run_has_no_report(tmp_path):
    with pytest.raises(RunError, match='profile dryrun: a dry run has random weights'):
        report.build(Store(DRY_RUN, DATASET, tmp_path))
