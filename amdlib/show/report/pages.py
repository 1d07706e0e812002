"""Templates and how they are filled: one environment, one way to write a page."""
from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from pygments.formatters import HtmlFormatter

TEMPLATES = Path(__file__).parents[1] / 'templates'


def percent(value: float | None, form: str = '.1f') -> str:
    """A number in percent, with a true minus sign; an en dash where there is none."""
    if pd.isna(value):
        return '–'
    text = format(value, form)
    return text.lstrip('+-') if float(text) == 0 else text.replace('-', '−')


def signed(value: float | None) -> str:
    """A difference in points of percent."""
    return percent(value, '+.1f')


PAGES = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                           lstrip_blocks=True, undefined=jinja2.StrictUndefined)
PAGES.filters |= {
    'percent': percent, 'signed': signed, 'href': lambda path: quote(str(path), safe='/+=:'),
    'duration': lambda seconds: str(datetime.timedelta(seconds=round(seconds)))}


def render(template: str, shared: dict[str, Any], **values: Any) -> str:
    """A page as text."""
    return PAGES.get_template(template).render(**shared, **values)


def write(file: Path, template: str, shared: dict[str, Any], **values: Any) -> None:
    """Render a page into a file, whose folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render(template, shared, **values), encoding='utf-8')


def style(notebooks: bool = True) -> str:
    """The sheet of all pages; with the colours of code, where notebooks are shown."""
    sheet = (TEMPLATES / 'report.css').read_text()
    if not notebooks:
        return sheet
    light, dark = (HtmlFormatter(style=name).get_style_defs('.highlight') for name in ('default', 'github-dark'))
    return f'{sheet}{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n'
