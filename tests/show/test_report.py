"""report.py: the site holds every number with its run, says what is missing or wrong, and needs no network."""
import base64
import json
import re
import shutil
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from amdlib.datasets import Dataset
from amdlib.engine.coco import METRICS
from amdlib.errors import RunError
from amdlib.paper.profiles import DRY_RUN, PROFILES
from amdlib.paper.tables import TABLES
from amdlib.runs import fingerprints
from amdlib.runs.run import table_runs
from amdlib.runs.store import Store
from amdlib.show import explorer, report, tables
from tests.conftest import BAD

NOWHERE = Path('nowhere')
DATASET = Dataset('mini', NOWHERE, NOWHERE, NOWHERE, NOWHERE, ('a',), 'f00d', ('8 images & <more>',))
PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='  # a PNG
EQUATION = r'$$M_{ij} = \begin{cases}0 & A_{ij} > \phi \\ 1 & \text{else}\end{cases}$$'
VOID = {'meta', 'link', 'img', 'br', 'hr', 'input', 'col'}


class Page(HTMLParser):
    """A page's ids, links, loaded files, tables as text, all its text; fails where tags are not closed in order."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.open = file, []
        self.ids, self.links, self.loads, self.tables, self.text = [], {}, [], [], ''
        self.feed(file.read_text())
        assert not self.open, f'{file}: never closed: {self.open}'

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs['id']] if 'id' in attrs else []
        if tag == 'a' and 'href' in attrs:
            self.links.setdefault(attrs['href'], []).append(attrs.get('title', ''))
        self.loads += [attrs[name] for name in ('src', 'href', 'data') if name in attrs and tag != 'a']
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('td', 'th'):
            self.tables[-1][-1].append('')
        if tag in ('td', 'th', 'dt', 'dd'):
            self.text += ' '
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:     # MathML's
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], f'{self.file}:{self.getpos()}: </{tag}> closes {self.open[-3:]}'
        self.open.pop()

    def handle_data(self, data):
        self.text += data
        if {'td', 'th'} & set(self.open):
            self.tables[-1][-1][-1] += data


def _store(results: Path) -> Store:
    return Store(PROFILES['mini'], DATASET, results)


def _record(run) -> dict:
    teacher, number = run.teacher(), zlib.crc32(run.id.encode()) % 4000 / 100
    return {'id': run.id, 'row': run.row.id, 'group': run.row.group.name, 'label': run.row.label, 'profile': 'mini',
            'seed': run.seed, 'settings': run.settings, 'settings_hash': f'hash-{run.row.id}',
            'code': {'commit': 'c0ffee', 'clean': False}, 'data': {'name': 'mini', 'fingerprint': 'f00d', 'notes': []},
            'teacher': teacher and {'id': teacher.id, 'weights_sha256': f'sha-{teacher.id}'},
            'numbers': {metric: number + i / 8 for i, metric in enumerate(METRICS)} | {'AP_L': None},
            'weights_sha256': f'sha-{run.id}', 'steps': 20, 'train_s': 75.4, 'wall_s': 80.0, 'files': {},
            'began': '2026-01-02T03:04:05+00:00', 'device': 'CPU', 'threads': 1, 'peak_memory_bytes': 2 ** 30,
            'peak_gpu_memory_bytes': None, 'operators': 'torchvision kernels', 'versions': {'torch': '2.0'}}


def _table(place: Path, name: str, seeds: tuple[int, ...], settings: dict | None = None) -> None:
    """Records of a table's runs and its tidy CSV."""
    table, lines = TABLES[name], []
    runs = table_runs(name, 'mini', None, seeds, settings)
    for run in runs:
        folder = place / 'runs' / run.id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'record.json').write_text(json.dumps(_record(run)))
    for row in table.rows():
        own = [run for run in runs if run.row == row]
        records = [json.loads((place / 'runs' / run.id / 'record.json').read_text()) for run in own]
        for i, metric in enumerate(table.metrics):
            numbers = pd.Series([record['numbers'][metric] for record in records], dtype=float)
            compared, printed = row.name not in ('teacher', table.reference), i == 0 and 'masked' not in row.name
            lines.append({
                'table': table.number, 'group': row.group.name, 'row': row.name, 'label': table.label(row),
                'metric': metric, 'ours': numbers.mean(), 'sd': numbers.std(), 'seeds': len(own),
                'difference': -1.26 if compared else None, 'paper': 41.3 if printed else None,
                'paper_difference': 0.04 if compared and printed else None, 'runs': ' '.join(run.id for run in own),
                'settings_hash': f'hash-{row.id}', 'data': 'f00d', 'commit': 'c0ffee'})
    pd.DataFrame(lines).to_csv(place / f'{name}.csv', index=False, float_format='%.6f')


def _notebooks(place: Path) -> None:
    picture = new_output('display_data', {'image/png': PIXEL})
    script = new_output('display_data', {'application/javascript': 'require()', 'text/plain': 'in words'})
    title = new_markdown_cell(f'# A sweep\n\nOf $\\phi$, see [the README](../README.md).\n\n{EQUATION}\n\n$\\foo$',
                              id='title')
    told = new_notebook(cells=[title, new_code_cell('draw(x < 1)', id='draw', outputs=[picture, script])])
    (place / 'sweep_phi').mkdir()
    nbformat.write(told, place / 'fig4.ipynb')
    nbformat.write(told, place / 'sweep_phi' / 'reppoints-amd+phi=0.7-s0.ipynb')
    broken = new_code_cell('1/0', id='bad', outputs=[
        new_output('error', ename='ZeroDivisionError', evalue='division by zero', traceback=['Zero'])])
    nbformat.write(new_notebook(cells=[broken]), place / 'fig3.failed.ipynb')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A results folder with Tables I, II and V (long run ids), Fig. 4 and three notebooks; its place."""
    place = tmp_path_factory.mktemp('results') / 'mini'
    _table(place, 'table1', (0, 1))
    _table(place, 'table2', (0,))
    _table(place, 'table5', (0,), {'epochs': 3})
    (place / 'table1.md').write_text(f'# Table I\n\n{tables.LIMITS}\n\n- It cannot show <b>much</b>.\n')
    (place / 'fig4.png').write_bytes(base64.b64decode(PIXEL))
    record = json.loads((place / 'runs' / 'reppoints-amd-s0' / 'record.json').read_text())
    pd.DataFrame([{'value': 1.0, 'metric': 'mAP', 'ours': record['numbers']['mAP'], 'runs': 'reppoints-amd-s0'},
                  {'value': 1.0, 'metric': 'masked_share', 'ours': 31.25, 'runs': 'reppoints-amd-s0'}]
                 ).to_csv(place / 'fig4.csv', index=False)
    _notebooks(place)
    return place


@pytest.fixture(scope='module')
def site(made):
    return report.build(_store(made.parent)).parent


@pytest.fixture
def copy(made, tmp_path):
    """The same folder, to be changed; and how to build it."""
    shutil.copytree(made, tmp_path / 'mini', ignore=shutil.ignore_patterns('report'))
    return tmp_path / 'mini', lambda: report.build(_store(tmp_path)).parent


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
    lines = [[text.strip() for text in line] for table in index.tables for line in table]
    for (_, row), own in cells.groupby(['group', 'row'], sort=False):
        values, printed, apart = [], [], []
        for cell in own.itertuples():
            assert all(run in runs.ids for run in cell.runs.split())
            titles = index.links[f'runs.html#{cell.runs.split()[0]}']
            if pd.notna(cell.ours):
                assert any(f'{cell.ours} %' in title and cell.runs in title and 'c0ffee' in title for title in titles)
            spread = f' ± {cell.sd:.1f}' if pd.notna(cell.sd) else ''
            values += [_shown(cell.ours) + spread, _shown(cell.difference, '+.1f')]
            printed += [_shown(cell.paper), _shown(cell.paper_difference, '+.1f')]
            apart += [_shown(cell.ours - cell.paper, '+.1f'), _shown(cell.difference - cell.paper_difference, '+.1f')]
        at = lines.index([own.label.iloc[0], *values, own.runs.iloc[0]])
        if own.paper.notna().any():
            assert lines[at + 1] == ['paper', *printed]
            assert lines[at + 2] == ['here − paper', *apart]
        else:
            assert lines[at + 1] == ['paper', 'has no such line'], row
    assert 'not what the record' not in index.text


def test_the_planned_comparisons_and_the_bed_stand_on_top(copy):
    place, build = copy
    text = ' '.join(Page(build() / 'index.html').text.split())
    assert 'Not judged yet: make reproduce-significance' in text
    assert 'Not looked at yet: make bed' in text
    pd.DataFrame([{'comparison': 'AMD over MGD', 'n': 8, 'difference': -0.4, 'low': -0.9, 'high': 0.1,
                   'kind': 'primary', 'verdict': 'not resolved at n = 8'}]).to_csv(
                       place / 'significance.csv', index=False)
    pd.DataFrame([{'mean': -0.4, 'low': -1.2, 'high': -0.1, 'n': 8}]).to_csv(
        place / 'significance_headline.csv', index=False)
    (place / 'bed.md').write_text('# Bed\n\n## RetinaNet\n\n| check | holds |\n|:--|:--|\n| long & enough | yes |\n')
    page = Page(build() / 'index.html')
    (planned,) = [table for table in page.tables if table[0][0] == 'comparison']
    assert [[text.strip() for text in line] for line in planned[1:]] == [
        ['AMD over MGD', 'headline, seeds and images', '8', '−0.40', '−1.20 to −0.10', 'worse'],
        ['AMD over MGD', 'primary', '8', '−0.40', '−0.90 to +0.10', 'not resolved at n = 8']]
    assert any(table[1:] == [['long & enough', 'yes']] for table in page.tables)
    assert {'planned', 'bed'} <= set(page.ids)


def test_the_interval_of_a_gain_in_map_stands_beside_it(copy):
    place, build = copy
    cells = pd.read_csv(place / 'table1.csv')
    cells[['low', 'high', 'verdict']] = -2.0, 0.5, 'not resolved'
    cells.to_csv(place / 'table1.csv', index=False)
    lines = [[text.strip() for text in line] for table in Page(build() / 'index.html').tables for line in table]
    (amd, *_) = [line for line in lines if line[0] == 'AMD']
    assert amd[2] == '−1.3 [−2.0, +0.5]'
    assert amd[4] == '−1.3'


def test_the_other_arm_and_calibrated_factors_are_folded_below_their_table(copy):
    place, build = copy
    shutil.copyfile(place / 'table5.csv', place / 'table5_inherit_calibrated.csv')
    page = Page(build() / 'index.html')
    assert 'table5_inherit_calibrated' in page.ids
    assert "The same with students that start from the teacher's neck and head, weights by the calibrated" in ' '.join(
        page.text.split())
    assert sum(table[-1][0].strip() == 'has no such line' or table[1:] and any(
        line[0].strip() == 'MBConv' for line in table) for table in page.tables) == 2


def test_a_table_names_the_line_that_its_differences_are_taken_to(site):
    text = ' '.join(Page(site / 'index.html').text.split())
    for line in ('gain: difference to the line “baseline”', 'to full: difference to the line “full”',
                 'to Dense Conv x2: difference to the line “Dense Conv x2”'):
        assert line in text


def test_runs_of_other_versions_are_told(made, copy, monkeypatch):
    place, build = copy
    index, runs = (' '.join(Page(build() / name).text.split()) for name in ('index.html', 'runs.html'))
    count = len(list((place / 'runs').iterdir()))
    assert f'○ {count} runs were made with other versions than are installed now: see runs' in index
    assert 'torch 2.0; ○ made with torch 2.0, now ' in runs
    monkeypatch.setattr(fingerprints, 'other_versions', lambda _: '')
    assert 'other versions than' not in (build() / 'index.html').read_text()


def test_kept_records_of_runs_that_are_not_here_are_told_and_count(copy):
    place, build = copy
    (place / 'records').mkdir()
    for run in ('retinanet-amd-s0', 'retinanet-amd-s1'):
        shutil.move(place / 'runs' / run, place / 'records' / run)
    site = build()
    index, runs = (' '.join(Page(site / name).text.split()) for name in ('index.html', 'runs.html'))
    assert '○ 2 runs were not made here: their records were kept.' in index
    assert 'not what the record' not in index
    assert runs.count('not made here, its record was kept') == 2


def test_a_loss_of_your_own_is_a_line_without_the_papers_numbers(copy):
    place, build = copy
    table = pd.read_csv(place / 'table5.csv')
    own = table[table.row == 'amd-conv1'].assign(row='mine.MyLoss', label='MyLoss', paper=None, paper_difference=None)
    pd.concat([table, own]).to_csv(place / 'table5.csv', index=False)
    lines = [[text.strip() for text in line] for table in Page(build() / 'index.html').tables for line in table]
    (at,) = [i for i, line in enumerate(lines) if line[0] == 'MyLoss']
    assert lines[at + 1] == ['paper', 'has no such line']


def test_a_run_shows_its_record(site):
    text = ' '.join(Page(site / 'runs.html').text.split())
    entry = text.split('retinanet-amd-s1 percent')[1].split('reppoints-teacher-s0 percent')[0]
    for part in ('retinanet-amd (AMD)', 'Seed 1', 'hash-retinanet-amd', 'c0ffee with uncommitted changes', 'f00d',
                 '2026-01-02T03:04:05+00:00', '20 steps in 0:01:15', 'CPU, 1 CPU thread;', '1.0 GiB', 'torch 2.0',
                 'sha-retinanet-amd-s1', 'Teacher retinanet-teacher-s0', 'sha-retinanet-teacher-s0'):
        assert part in entry
    shown = Page(site / 'runs.html').tables
    assert shown
    assert all(lines[0] == ['percent', *METRICS] and len(lines[1]) == 13 for lines in shown)
    assert 'epochs=3' in text.split('retinanet-amd+epochs=3-s0 percent')[1]


def test_pages_are_well_formed_and_every_link_leads_somewhere_inside(site):
    pages = _pages(site)
    assert len(pages) == 2 + 3
    for file, page in pages.items():
        assert len(page.ids) == len(set(page.ids))
        for link in [*page.links, *page.loads]:
            url = urlsplit(link)
            if url.scheme:
                assert url.scheme == 'data' or link in page.links
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            assert target.is_file(), f'{file.name}: {link}'
            assert target.is_relative_to(site.resolve()), f'{file.name}: {link}'
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
    file.write_text(json.dumps({**json.loads(file.read_text()), 'label': EVIL, 'device': EVIL}))
    for file in build().rglob('*.html'):
        assert Acting(file).found == []


class Acting(HTMLParser):
    """What of a page could act, as a browser reads it."""

    def __init__(self, file):
        super().__init__()
        self.found = []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        if tag in ('script', 'iframe', 'svg', 'object', 'embed', 'form', 'base'):
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


def test_the_front_page_says_what_is_missing_and_how_to_make_it(site):
    text = ' '.join(Page(site / 'index.html').text.split())
    for name in ('table3', 'table4', 'table6', 'fig1', 'fig3'):
        assert f'Not made yet: make reproduce-{name}' in text
    assert 'make reproduce-fig4' not in text
    assert 'make reproduce-table1' not in text
    assert '8 images & <more>' in text
    assert 'It cannot show <b>much</b>.' in text
    assert 'fig3.failed.ipynb ⚠' in text
    assert 'ZeroDivisionError: division by zero' in text


def test_notebooks_have_their_equations_and_pictures(site):
    file = site / 'notebooks' / 'sweep_phi' / 'reppoints-amd+phi=0.7-s0.html'
    page, source = Page(file), file.read_text()
    assert source.count('<math') == 2
    assert '<mtable>' in source
    assert '$' not in page.text
    assert r'<code class="latex">\foo</code>' in source     # what MathML cannot say is shown as it was written
    assert [load for load in page.loads if load.startswith('data:image/png;base64,')]
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
    index, runs = (' '.join(Page(site / name).text.split()) for name in ('index.html', 'runs.html'))
    assert re.search(r'⚠ FGD, mAP, .*: no readable record of faster_rcnn-fgd-s1', index)
    assert re.search(r'⚠ FKD, mAP, .*: no readable record of faster_rcnn-fkd-s0', index)
    assert re.search(r'⚠ MBConv, mAP, .*: its run was made with other settings', index)
    assert 'faster_rcnn-fgd-s1 ⚠ No record: there is no record.json' in runs
    assert 'faster_rcnn-fkd-s0 ⚠ No record: Expecting value' in runs
    assert 'sha-retinanet-teacher-s0 ⚠ it was trained anew since' in runs
    (told,) = re.findall(r'⚠ MGD, AP_S: the value is ([\d.]+) here, by the records ([\d.]+)', index)
    assert float(told[1]) - float(told[0]) == pytest.approx(0.3 / 2, abs=2e-6)
    wrong = 2 * len(TABLES['table1'].metrics) + len(TABLES['table5'].metrics) + 1
    assert f'⚠ {wrong} numbers are not what the record' in index


@pytest.mark.parametrize('content', BAD)
def test_one_bad_record_hides_no_other(copy, content):
    place, build = copy
    (place / 'runs' / 'reppoints-mgd-s1' / 'record.json').write_bytes(BAD[content])
    site = build()
    runs = ' '.join(Page(site / 'runs.html').text.split())
    assert 'reppoints-mgd-s1 ⚠ No record: ' in runs
    assert 'retinanet-amd (AMD)' in runs
    assert 'no readable record of reppoints-mgd-s1' in ' '.join(Page(site / 'index.html').text.split())


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
    assert 'Runs behind it: retinanet-teacher-s0 .' in text.replace('s0.', 's0 .')


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
    monkeypatch.setattr(report, '_entries', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build()
    assert (place / 'report' / 'index.html').read_text() == 'of an older build'
    assert not list(place.glob('.report*'))


def test_an_empty_folder_is_an_error_that_says_what_to_run(tmp_path):
    (tmp_path / 'mini' / 'runs' / 'retinanet-teacher-s0').mkdir(parents=True)
    with pytest.raises(RunError, match='make reproduce-table1'):
        report.build(_store(tmp_path))


def test_a_dry_run_has_no_report(tmp_path):
    with pytest.raises(RunError, match='profile dryrun: a dry run has random weights'):
        report.build(Store(DRY_RUN, DATASET, tmp_path))
