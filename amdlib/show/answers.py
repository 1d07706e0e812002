"""Answers that a notebook folds away, `<details>` in its markdown, on a page that lets no other HTML through."""
from __future__ import annotations

import html
import re
from collections.abc import Callable

ANSWER = re.compile(r'<details>\n<summary>([^<\n]+)</summary>\n\n(.+?)\n\n</details>', re.DOTALL)


def folded(markdown: str, render: Callable[[str], str]) -> str:
    """Markdown as HTML by `render`, which escapes HTML, with its answers folded."""
    *parts, rest = ANSWER.split(markdown)       # text, title and answer, over and over
    shown = [f'{render(text)}<details><summary>{html.escape(title)}</summary>{render(answer)}</details>'
             for text, title, answer in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]
    return ''.join([*shown, render(rest)])
