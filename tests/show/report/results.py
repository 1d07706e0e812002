"""A results folder made by hand for the report, and its pages as a test reads them."""
import base64
import json
import zlib
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from amdlib.datasets import Dataset
from amdlib.evaluation import METRICS
from amdlib.paper.profiles import PROFILES
from amdlib.paper.tables import TABLES
from amdlib.runs.run import table_runs
from amdlib.runs.store import Store

NOWHERE = Path('nowhere')
DATASET = Dataset('mini', NOWHERE, NOWHERE, NOWHERE, NOWHERE, ('a',), 'f00d', ('8 images & <more>',))
PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='  # a PNG
EQUATION = r'$$M_{ij} = \begin{cases}0 & A_{ij} > \phi \\ 1 & \text{else}\end{cases}$$'
VOID = {'meta', 'link', 'img', 'br', 'hr', 'input', 'col'}


class Page(HTMLParser):
    """A page's ids, links, loaded files, tables as text, all its text; fails where tags are not closed in order.

    tags: every start tag with its attributes, in order. captions: of each table, or ''.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.open = file, []
        self.ids, self.links, self.loads, self.tables, self.text = [], {}, [], [], ''
        self.tags, self.captions, self.rows = [], [], []
        self.feed(file.read_text())
        assert not self.open, f'{file}: never closed: {self.open}'

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs['id']] if 'id' in attrs else []
        if tag == 'a' and 'href' in attrs:
            self.links.setdefault(attrs['href'], []).append(attrs.get('title', ''))
            if 'tr' in self.open:
                self.rows[-1] += 1
        self.loads += [attrs[name] for name in ('src', 'href', 'data') if name in attrs and tag != 'a']
        if tag == 'table':
            self.tables.append([])
            self.captions.append(attrs.get('aria-label', ''))
        elif tag == 'tr':
            self.tables[-1].append([])
            self.rows.append(0)
        elif tag in ('td', 'th'):
            self.tables[-1][-1].append('')
        if tag in ('td', 'th', 'dt', 'dd', 'caption'):
            self.text += ' '
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:     # MathML's and SVG's
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], f'{self.file}:{self.getpos()}: </{tag}> closes {self.open[-3:]}'
        self.open.pop()

    def handle_data(self, data):
        self.text += data
        if {'td', 'th'} & set(self.open):
            self.tables[-1][-1][-1] += data
        if 'caption' in self.open:
            self.captions[-1] += data

    @property
    def words(self) -> str:
        """All text on one line."""
        return ' '.join(self.text.split())

    @property
    def lines(self) -> list[list[str]]:
        """The lines of all tables."""
        return [[' '.join(text.split()) for text in line] for table in self.tables for line in table]


def store_of(results: Path) -> Store:
    return Store(PROFILES['mini'], DATASET, results)


def record_of(run) -> dict:
    teacher, number = run.teacher(), zlib.crc32(run.id.encode()) % 4000 / 100
    return {'id': run.id, 'row': run.row.id, 'group': run.row.group.name, 'label': run.row.label, 'profile': 'mini',
            'seed': run.seed, 'settings': run.settings, 'settings_hash': f'hash-{run.row.id}',
            'code': {'commit': 'c0ffee', 'clean': False}, 'data': {'name': 'mini', 'fingerprint': 'f00d', 'notes': []},
            'teacher': teacher and {'id': teacher.id, 'weights_sha256': f'sha-{teacher.id}'},
            'numbers': {metric: number + i / 8 for i, metric in enumerate(METRICS)} | {'AP_L': None},
            'weights_sha256': f'sha-{run.id}', 'steps': 20, 'train_s': 75.4, 'wall_s': 80.0, 'files': {},
            'began': '2026-01-02T03:04:05+00:00', 'device': 'CPU', 'threads': 1, 'peak_memory_bytes': 2 ** 30,
            'peak_gpu_memory_bytes': None, 'operators': 'torchvision kernels', 'versions': {'torch': '2.0'}}


def write_table(place: Path, name: str, seeds: tuple[int, ...], settings: dict | None = None) -> None:
    """Records of a table's runs and its tidy CSV."""
    table, lines = TABLES[name], []
    runs = table_runs(name, 'mini', None, seeds, settings)
    for run in runs:
        folder = place / 'runs' / run.id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'record.json').write_text(json.dumps(record_of(run)))
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


def write_notebooks(place: Path) -> None:
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


def write_figure(place: Path) -> None:
    """Fig. 4 with one value."""
    (place / 'fig4.png').write_bytes(base64.b64decode(PIXEL))
    record = json.loads((place / 'runs' / 'reppoints-amd-s0' / 'record.json').read_text())
    pd.DataFrame([{'value': 1.0, 'metric': 'mAP', 'ours': record['numbers']['mAP'], 'runs': 'reppoints-amd-s0'},
                  {'value': 1.0, 'metric': 'masked_share', 'ours': 31.25, 'runs': 'reppoints-amd-s0'}]
                 ).to_csv(place / 'fig4.csv', index=False)
