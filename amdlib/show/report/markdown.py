"""Markdown as HTML that needs no script and no network: equations become MathML."""
from __future__ import annotations

import re
from pathlib import Path

from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath


class Renderer(IPythonRenderer):
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


def html(text: str) -> Markup:
    """Markdown as HTML, what HTML stands in it escaped."""
    return Markup(MarkdownWithMath(renderer=Renderer(escape=True, exclude_anchor_links=True)).render(text))


def page(file: Path, about: str) -> Markup:
    """A page of markdown as HTML, without its title and a level deeper; '' where there is none.

    Args:
        about: what its tables are about, where no heading stands before one.
    """
    text = file.read_text().partition('\n')[2] if file.is_file() else ''
    body, named = html(re.sub('^##', '###', text, flags=re.M)), [about]

    def boxed(found: re.Match) -> str:
        """A table too wide for the page scrolls in a box of its own; it is called after the heading above it."""
        if found['heading']:
            named.append(Markup(found['heading']).striptags())
            return found[0]
        named[0] += ' '     # no two regions of a page may have the same name
        return Markup('<div class="scroll" role="region" tabindex="0" aria-label="{0}, table {1}"><table '
                      'class="numbers"><caption>{0}</caption>{2}</table></div>').format(
                          named[-1], len(named[0]) - len(about), Markup(found['table']))
    return Markup(re.sub(r'(?P<heading><h\d.*?</h\d>)|<table>(?P<table>.*?)</table>', boxed, body, flags=re.S))


def _mathml(latex: str, display: str) -> str:
    """An equation; as its source, where the converter does not know a command."""
    try:
        mathml = convert(latex.replace('{aligned}', '{align*}'), display=display)
    except Exception:   # its errors share no class
        mathml = r'<mi>\ '
    unknown = re.search(r'<mi>(\\|&<)', mathml)
    return str(Markup('<code class="latex">{}</code>').format(latex.strip())) if unknown else mathml
