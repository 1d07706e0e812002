"""A static site of what a profile's results folder holds: tables beside the paper's, figures, notebooks, runs.

It shows what lies there and makes nothing anew: what is missing is named with the target that makes it, and a number
that its run's record does not bear out is marked. No page needs the network; the folder can be copied anywhere.
"""
from __future__ import annotations

import datetime
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import nbformat
import pandas as pd
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors.sanitize import SanitizeHTML
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from amdlib.errors import RunError
from amdlib.files import read_json
from amdlib.paper.profiles import Profile
from amdlib.paper.tables import TABLES
from amdlib.runs import evidence, fingerprints
from amdlib.runs.store import KEPT, RECORD, Store
from amdlib.show import explorer, tables
from amdlib.show.answers import folded
from amdlib.words import log

TEMPLATES = Path(__file__).parent / 'templates'
COLUMNS = {'table', 'group', 'row', 'label', 'metric', 'ours', 'sd', 'seeds', 'difference', 'paper',
           'paper_difference', 'runs', 'settings_hash', 'data', 'commit'}       # of a tidy table
FIGURE_COLUMNS = {'runs'}                                                       # of the numbers behind a figure
FIELDS = {'row', 'label', 'seed', 'settings', 'settings_hash', 'code', 'data', 'teacher', 'numbers', 'weights_sha256',
          'steps', 'train_s', 'began', 'device', 'threads', 'peak_memory_bytes', 'peak_gpu_memory_bytes', 'operators',
          'versions', 'files', 'profile'}                                       # of a record
PICTURE = ('.svg', '.png')                                                      # the better one first


@dataclass(frozen=True)
class Figure:
    """A picture of the paper, or beside it, that stands on the front page."""
    stem: str
    title: str
    caption: str
    target: str     # of make


FIGURES = (
    Figure('fig1', "Figure 1: the teacher's attention", 'Images with ground truth, the attention of the teacher over '
           'them, and what the mask covers.', 'reproduce-fig1'),
    Figure('fig3', 'Figure 3: feature maps', 'The magnitude of the feature maps of teacher and students, method by '
           'method.', 'reproduce-fig3'),
    Figure('fig4', 'Figure 4: the threshold phi', 'mAP and mAR in percent over the threshold above which attention is '
           'masked (Eq. 4).', 'reproduce-fig4'),
    Figure('mask_coverage', 'Mask coverage', 'How much of a feature map is masked, and how much of that lies in boxes, '
           'over phi.', 'reproduce-all'),
)


def build(store: Store) -> Path:
    """Write the site whole into `report/` of the store's folder instead of an older one; return index.html.

    Errors: RunError, saying what to run, where the folder holds neither table nor figure nor executed notebook.
    """
    profile, folder = store.profile, store.folder
    if profile.dry_run:
        raise RunError(f'profile {profile.name}: a dry run has random weights and numbers that mean nothing; '
                          'see dryrun.md instead')
    found = {name: _cells(folder / f'{name}.csv', COLUMNS) for name in TABLES}
    others = {name: {f'{name}_{variant}': title for variant, title in tables.VARIANTS.items()
                     if (folder / f'{name}_{variant}.csv').is_file()} for name in TABLES}
    found |= {stem: _cells(folder / f'{stem}.csv', COLUMNS) for stems in others.values() for stem in stems}
    found |= {figure.stem: _cells(folder / f'{figure.stem}.csv', FIGURE_COLUMNS) for figure in FIGURES}
    notebooks = sorted(path for path in folder.rglob('*.ipynb')     # hidden ones are being executed
                       if path.relative_to(folder).parts[0] not in ('runs', 'report')
                       and not any(part.startswith('.') for part in path.relative_to(folder).parts))
    if not notebooks and not any((folder / f'{stem}{kind}').is_file() for stem in found for kind in ('.csv', *PICTURE)):
        raise RunError(f'{folder}: no table, figure or executed notebook to report on; '
                          f'run `make reproduce-table1{_where(profile)}` first')
    records = _records(store)
    for cells, _ in found.values():
        if cells is not None:
            cells['problem'] = [_problem(cell, records) for cell in cells.itertuples()]
    new, old = folder / f'.report.{os.getpid()}', folder / f'.report.old.{os.getpid()}'
    shutil.rmtree(new, ignore_errors=True)
    try:
        (new / 'figures').mkdir(parents=True)
        pictures = {stem: _copy(folder, stem, new / 'figures') for stem in found}
        shared = {
            'profile': profile, 'dataset': store.dataset, 'where': _where(profile), 'kit': fingerprints.commit(),
            'built': datetime.datetime.now(datetime.UTC)}
        pages = [_notebook(path, folder, new, shared) for path in notebooks]
        entries = _entries(found, records)
        _write(new / 'runs.html', 'runs.html', shared, root='', runs=entries)
        _write(new / 'index.html', 'report.html', shared, root='', tables=TABLES.values(), figures=FIGURES, found=found,
               pictures=pictures, notebooks=pages, runs=entries, group_title=tables.group_title,
               reference_label=tables.reference_label, others=others,
               planned=_planned(folder), bed=_markdown(folder / 'bed.md'),
               explorer=explorer.for_report(store),
               notes={stem: _notes(folder / f'{stem}.md') for stem in found})
        styles = [HtmlFormatter(style=name).get_style_defs('.highlight') for name in ('default', 'github-dark')]
        (new / 'report.css').write_text((TEMPLATES / 'report.css').read_text() + styles[0] + (
            f'\n@media screen and (prefers-color-scheme: dark) {{\n{styles[1]}\n}}\n'))
        if (folder / 'report').exists():
            (folder / 'report').rename(old)
        new.rename(folder / 'report')
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    log.info(f'{len(pages)} notebooks, {len(entries)} runs: {folder / "report" / "index.html"}')
    return folder / 'report' / 'index.html'


def _where(profile: Profile) -> str:
    """What a make target needs besides its name."""
    return '' if profile.data == 'shapes' else f' PROFILE={profile.name} DATA=<folder>'


# ---- numbers and the runs behind them ---------------------------------------------------------------------------

def _cells(file: Path, columns: set[str]) -> tuple[pd.DataFrame | None, str]:
    """A table's cells, and why there are none."""
    if not file.is_file():
        return None, 'Not made yet'
    try:
        cells = pd.read_csv(file, dtype=dict.fromkeys(('run', 'runs', 'settings_hash', 'data', 'commit'), str))
    except ValueError as error:     # pandas' errors of parsing are ValueErrors
        return None, f'{file.name} cannot be read ({error})'
    cells = cells if 'runs' in cells else cells.rename(columns={'run': 'runs'})
    if missing := columns - set(cells.columns):
        return None, f'{file.name} has no column {", ".join(sorted(missing))}'
    return cells, ''


def _records(store: Store) -> dict[str, dict[str, Any]]:
    """Every run's record by the run's id, kept ones too; of one that cannot be read {'unreadable': why}."""
    records = {}
    for file in store.with_kept().record_files():
        try:
            record = read_json(file)
            if missing := FIELDS - record.keys():
                raise ValueError(f'it lacks {", ".join(sorted(missing))}')
            record['elsewhere'] = file.parents[1].name == KEPT
            record['disagrees'] = '; '.join(evidence.disagreements(record, file.parent))
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:     # of another kind
            record = {'unreadable': str(error)}
        records[file.parent.name] = record
    return records


def _problem(cell: Any, records: dict[str, dict[str, Any]]) -> str:
    """Where a cell of a table is not what the records of its runs say: why; otherwise ''."""
    runs = cell.runs.split()
    if gone := [run for run in runs if 'numbers' not in records.get(run, {})]:
        return f'no readable record of {", ".join(gone)}'
    behind = [records[run] for run in runs]
    if wrong := [f'of {run} {records[run]["disagrees"]}' for run in runs if records[run].get('disagrees')]:
        return '; '.join(wrong)
    for name, now in (('settings_hash', {record['settings_hash'] for record in behind}),
                      ('data', {record['data']['fingerprint'] for record in behind})):
        if set(getattr(cell, name, ' '.join(now)).split()) != now:
            return f'its run was made with other {name.partition("_")[0]}: the table is older'
    if all(getattr(cell, 'metric', None) in record['numbers'] for record in behind):
        numbers = pd.Series([record['numbers'][cell.metric] for record in behind], dtype=float)
        for name, column, now in (('value', 'ours', numbers.mean()), ('sd', 'sd', numbers.std())):
            told = getattr(cell, column, now)
            if pd.isna(told) != pd.isna(now) or abs(told - now) > 1e-5:    # the file has six decimals
                return f'the {name} is {told:.6f} here, by the records {now:.6f}'
    return ''


def _entries(found: dict[str, tuple], records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What runs.html shows: the runs behind tables and figures in their order, then the others that lie there."""
    used: dict[str, list[str]] = {}
    for stem, (cells, _) in found.items():
        for run in [] if cells is None else ' '.join(cells.runs).split():
            if stem not in used.setdefault(run, []):
                used[run].append(stem)
    entries = []
    for run in dict.fromkeys([*used, *records]):
        record = records.get(run, {'unreadable': f'there is no {RECORD}'})
        taught = record.get('teacher')
        now = records.get(taught['id'], {}).get('weights_sha256') if taught else None
        note = fingerprints.other_versions(record['versions']) if 'versions' in record else ''
        entries.append({'id': run, 'record': record, 'note': note, 'elsewhere': record.get('elsewhere', False),
                        'used': used.get(run, []),
                        'teacher_known': now is not None,
                        'teacher_is_another': now is not None and now != taught['weights_sha256']})
    return entries


# ---- pictures, notes, notebooks ---------------------------------------------------------------------------------

def _copy(folder: Path, stem: str, target: Path) -> dict[str, Any]:
    """Copy a table's or figure's files; return their names, and which is the picture to show."""
    names = [f'{stem}{kind}' for kind in (*PICTURE, '.csv', '.md')]
    files = [file for name in names if (file := folder / name).is_file()] + sorted(folder.glob(f'{stem}_*.csv'))
    for file in files:
        shutil.copyfile(file, target / file.name)
    return {'files': [file.name for file in files],
            'shown': next((file.name for file in files if file.suffix in PICTURE), None)}


def _notes(file: Path) -> Markup:
    """What a table's or figure's markdown says of its limits, as HTML."""
    return _html(file.read_text().partition(tables.LIMITS)[2] if file.is_file() else '')


def _markdown(file: Path) -> Markup:
    """A page of markdown as HTML, without its title and a level deeper; '' where there is none."""
    text = file.read_text().partition('\n')[2] if file.is_file() else ''
    # a table too wide for the page scrolls in a box of its own
    return Markup(_html(re.sub('^##', '###', text, flags=re.M)).replace('<table>', Markup(
        '<div class="scroll" role="region" tabindex="0" aria-label="Table"><table class="numbers">')).replace(
            '</table>', Markup('</table></div>')))


def _html(text: str) -> Markup:
    return Markup(MarkdownWithMath(renderer=_Renderer(escape=True)).render(text))


def _planned(folder: Path) -> list[dict[str, Any]]:
    """The planned comparisons as `make reproduce-significance` judged them; [] where it did not."""
    file, headline = folder / 'significance.csv', folder / 'significance_headline.csv'
    if not file.is_file():
        return []
    lines = pd.read_csv(file).to_dict('records')
    if headline.is_file():
        (both,) = pd.read_csv(headline).to_dict('records')
        primary = next(line for line in lines if line['kind'] == 'primary')
        lines.insert(0, {**primary, **both, 'difference': both['mean'], 'kind': 'headline, seeds and images',
                         'verdict': 'better' if both['low'] > 0 else 'worse' if both['high'] < 0 else 'not resolved'})
    return lines


class _Renderer(IPythonRenderer):
    """nbconvert's markdown with equations as MathML: browsers show it without MathJax, which would need the network."""

    def block_math(self, body: str) -> str:
        return _mathml(body, 'block')

    def inline_math(self, body: str) -> str:
        return _mathml(body, 'inline')

    def latex_environment(self, name: str, body: str) -> str:
        return _mathml(rf'\begin{{{name}}}{body}\end{{{name}}}', 'block')

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Files beside a notebook are not in the report: only links into the web stay."""
        return super().link(text, url, title) if re.match(r'https?://|mailto:', url) else text


def _mathml(latex: str, display: str) -> str:
    """An equation; as its source, where the converter does not know a command."""
    try:
        mathml = convert(latex.replace('{aligned}', '{align*}'), display=display)
    except Exception:   # its errors share no class
        mathml = r'<mi>\ '
    unknown = re.search(r'<mi>(\\|&<)', mathml)
    return str(Markup('<code class="latex">{}</code>').format(latex.strip())) if unknown else mathml


class _Exporter(HTMLExporter):
    """A notebook's cells as a fragment of HTML that needs no script."""

    @jinja2.pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        renderer = _Renderer(escape=True, embed_images=True, exclude_anchor_links=True,
                             attachments=context.get('cell', {}).get('attachments', {}),
                             path=context['resources']['metadata']['path'])
        return folded(source, MarkdownWithMath(renderer=renderer).render)


# without widgets and scripts, which would be loaded from the network: their text is shown
EXPORTER = _Exporter(template_name='basic', config=Config({'NbConvertBase': {'display_data_priority': [
    'text/html', 'image/png', 'image/jpeg', 'text/plain']}}))
# what a table of pandas needs; a class of somebody's data set may be called <script>
SAFE = SanitizeHTML(
    strip=True, styles=['text-align'], attributes=['class', 'border', 'style', 'colspan', 'rowspan', 'scope', 'title'],
    tags=['table', 'thead', 'tbody', 'tfoot', 'tr', 'th', 'td', 'caption', 'div', 'p', 'b', 'i', 'strong', 'em', 'code',
          'pre', 'span', 'br', 'ul', 'ol', 'li', 'h1', 'h2', 'h3', 'h4', 'sub', 'sup'])
SHOWN = ('text/html', 'image/png', 'image/jpeg', 'text/plain')


def _make_safe(output: Any) -> None:
    """Leave of a cell's output what can be shown as it is, its HTML without all that could act."""
    data = output.get('data', {})
    if 'text/markdown' in data:
        data['text/html'] = str(_html(data.pop('text/markdown')))
    elif 'text/html' in data:
        data['text/html'] = SAFE.sanitize_html_tags(data['text/html'])
    for kind in [kind for kind in data if kind not in SHOWN]:
        del data[kind]


def _notebook(path: Path, folder: Path, new: Path, shared: dict[str, Any]) -> dict[str, Any]:
    """Export one executed notebook; what the front page says of it."""
    name = path.relative_to(folder).with_suffix('').as_posix()
    page = {'name': name, 'page': None, 'title': name, 'failed': '', 'href': quote(f'notebooks/{name}.html')}
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        log.info(f'{path}: left out, it cannot be read')
        return {**page, 'failed': f'cannot be read: {error}'}
    for cell in notebook.cells:
        cell.metadata['alt'] = 'Picture drawn by the cell above'
        for output in cell.get('outputs', []):
            _make_safe(output)
    titles = [found[1] for cell in notebook.cells if (found := re.match('# (.+)', cell.source))
              and cell.cell_type == 'markdown']
    errors = [f'{output.ename}: {output.evalue}' for cell in notebook.cells for output in cell.get('outputs', [])
              if output.output_type == 'error']
    if name.endswith('.failed') or errors:
        page['failed'] = f'its execution failed: {(errors or ["no cell says why"])[0]}'
    body, _ = EXPORTER.from_notebook_node(notebook, resources={'metadata': {'path': str(path.parent)}})
    page |= {'title': titles[0] if titles else name, 'page': new / 'notebooks' / f'{name}.html'}
    _write(page['page'], 'notebook.html', shared, root='../' * (name.count('/') + 1), notebook=page, body=Markup(body))
    return page


# ---- pages ------------------------------------------------------------------------------------------------------

def _percent(value: float | None, form: str = '.1f') -> str:
    """A number in percent, with a true minus sign; an en dash where there is none."""
    if pd.isna(value):
        return '–'
    text = format(value, form)
    return text.lstrip('+-') if float(text) == 0 else text.replace('-', '−')


PAGES = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                           lstrip_blocks=True, undefined=jinja2.StrictUndefined)
PAGES.filters |= {
    'percent': _percent, 'signed': lambda value: _percent(value, '+.1f'),
    'run_link': lambda run: 'runs.html#' + quote(run, safe='+='),
    'duration': lambda seconds: str(datetime.timedelta(seconds=round(seconds)))}


def _write(file: Path, template: str, shared: dict[str, Any], **values: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PAGES.get_template(template).render(**shared, **values), encoding='utf-8')
