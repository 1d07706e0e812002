"""Executed notebooks as pages: what they printed and drew, without anything that could act."""
from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import cv2
import jinja2
import nbformat
import numpy as np
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import MarkdownWithMath
from nbconvert.preprocessors.sanitize import SanitizeHTML
from traitlets.config import Config

from amdlib.show.answers import folded
from amdlib.show.report import markdown, pages, single
from amdlib.words import log


def executed(folder: Path) -> list[Path]:
    """The executed notebooks of a results folder; hidden ones are being executed."""
    return sorted(path for path in folder.rglob('*.ipynb') if (parts := path.relative_to(folder).parts)[0] not in (
        'runs', 'report') and not any(part.startswith('.') for part in parts))


class _Exporter(HTMLExporter):
    """A notebook's cells as a fragment of HTML that needs no script."""

    @jinja2.pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        renderer = markdown.Renderer(escape=True, embed_images=True, exclude_anchor_links=True,
                                     attachments=context.get('cell', {}).get('attachments', {}),
                                     path=context['resources']['metadata']['path'])
        return folded(source, MarkdownWithMath(renderer=renderer).render)


# what JupyterLab folds away is folded here; papermill's cell of parameters as the one that it stands for
FOLDING = '''{%- extends 'basic/index.html.j2' -%}
{% block input_group %}
{% set tags = cell.metadata.get('tags', []) %}
{% if cell.metadata.get('jupyter', {}).get('source_hidden') or 'injected-parameters' in tags %}
<details><summary>Code: {{ 'parameters as given' if 'injected-parameters' in tags
                                else (tags | join(', ') or 'folded') | e }}</summary>
{{ super() }}
</details>
{% else %}
{{ super() }}
{% endif %}
{% endblock input_group %}'''
# without widgets and scripts, which would be loaded from the network: their text is shown
EXPORTER = _Exporter(template_name='basic', raw_template=FOLDING, config=Config({'NbConvertBase': {
    'display_data_priority': ['text/html', 'image/png', 'image/jpeg', 'text/plain']}}))
# what a table of pandas needs; a class of somebody's data set may be called <script>
SAFE = SanitizeHTML(
    strip=True, styles=['text-align'], attributes=['class', 'border', 'style', 'colspan', 'rowspan', 'scope', 'title'],
    tags=['table', 'thead', 'tbody', 'tfoot', 'tr', 'th', 'td', 'caption', 'div', 'p', 'b', 'i', 'strong', 'em', 'code',
          'pre', 'span', 'br', 'ul', 'ol', 'li', 'h1', 'h2', 'h3', 'h4', 'sub', 'sup'])
SHOWN = ('text/html', 'image/png', 'image/jpeg', 'text/plain')


def write(path: Path, folder: Path, new: Path, shared: dict[str, Any], front: str = 'index.html') -> dict[str, Any]:
    """Export one executed notebook into the site `new`, whose front page is `front`; what that says of it."""
    about, notebook = told(path, folder)
    if notebook is None:
        return about
    notebook.metadata.pop('widgets', None)      # what only a script would read
    heading = 'code'
    for cell in notebook.cells:
        if cell.cell_type == 'markdown' and (found := re.findall('^#+ (.+)', cell.source, flags=re.M)):
            heading = found[-1]
        if 'injected-parameters' in cell.metadata.get('tags', []):      # folders of the machine that executed it
            cell.source = re.sub(r'"/[^"]*/([^"/]+)/?"', r'"…/\1"', cell.source)
        cell.metadata['alt'] = f'Picture drawn by the cell above, under “{heading}”'
        for output in cell.get('outputs', []):
            _make_safe(output)
    body, _ = EXPORTER.from_notebook_node(notebook, resources={'metadata': {'path': str(path.parent)}})
    name = about['name']
    pages.write(new / about['page'], 'notebook.html', shared, root='../' * (name.count('/') + 1), notebook=about,
                front=front, body=Markup(re.sub(r'data:image/png;base64,([\w+/=\s]+)', _smaller, _accessible(body))))
    return about


def publish(folder: Path, report: Path, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """Export the executed notebooks of a results folder, but for a sweep's copies and those that failed, each as one
    file below `notebooks/` beside a published report; what that says of all that lie there, earlier ones too, since a
    clone has the pages and not what they were made of."""
    for path in executed(folder):
        if path.parent == folder and not told(path, folder)[0]['failed']:
            write(path, folder, report.parent, {**shared, 'style': pages.style()}, report.name)
    return [{'name': page.stem, 'page': f'notebooks/{page.name}', 'failed': '',
             'title': Markup(re.search('<title>(.*?) – ', page.read_text())[1])}
            for page in sorted((report.parent / 'notebooks').glob('*.html'))]


def told(path: Path, folder: Path) -> tuple[dict[str, Any], nbformat.NotebookNode | None]:
    """What the front page says of a notebook, and the notebook; None for one that cannot be read."""
    name = path.relative_to(folder).with_suffix('').as_posix()
    about = {'name': name, 'page': '', 'title': name, 'failed': ''}
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        log.info(f'{path}: left out, it cannot be read')
        return {**about, 'failed': f'cannot be read: {error}'}, None
    titles = [found[1] for cell in notebook.cells if (found := re.match('# (.+)', cell.source))
              and cell.cell_type == 'markdown']
    errors = [f'{output.ename}: {output.evalue}' for cell in notebook.cells for output in cell.get('outputs', [])
              if output.output_type == 'error']
    if name.endswith('.failed') or errors:
        about['failed'] = f'its execution failed: {(errors or ["no cell says why"])[0]}'
    return {**about, 'title': titles[0] if titles else name, 'page': f'notebooks/{name}.html'}, notebook


def _make_safe(output: Any) -> None:
    """Leave of a cell's output what can be shown as it is, its HTML without all that could act."""
    data = output.get('data', {})
    if 'text/markdown' in data:
        data['text/html'] = str(markdown.html(data.pop('text/markdown')))
    elif 'text/html' in data:
        # the sanitiser would leave the text of a style, which pandas writes before its tables
        unstyled = re.sub(r'<style\b.*?</style\s*>', '', data['text/html'], flags=re.DOTALL | re.IGNORECASE)
        data['text/html'] = SAFE.sanitize_html_tags(unstyled)
    for kind in [kind for kind in data if kind not in SHOWN]:
        del data[kind]


def _smaller(found: re.Match) -> str:
    """A PNG's address as that of the same picture in WebP without loss, less than half as large."""
    drawn = cv2.imdecode(np.frombuffer(base64.b64decode(found[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    return single.uri(cv2.imencode('.webp', drawn, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes(), '.webp')


def _accessible(body: str) -> str:
    """Tables of pandas have an empty head over their index, and no name; what scrolls can be reached by key."""
    count = iter(range(1, 10 ** 6))
    body = re.sub(r'<th>\s*</th>', '<td></td>', body)
    body = re.sub('<table', lambda _: f'<table aria-label="Output {next(count)}"', body)
    scrolling = 'pre(?=[ >])|math(?= display="block")|div(?= class="output_(?:html|png))'
    return re.sub(f'<({scrolling})', r'<\1 tabindex="0"', body)
