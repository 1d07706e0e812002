"""The report as one HTML file: pictures inside, small enough to be committed, nothing loaded from anywhere."""
from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2

from amdlib.errors import RunError
from amdlib.files import write_text
from amdlib.words import log

MOST_BYTES = 2_000_000
WIDTHS_PX = (1200, 1000, 800, 640, 480)     # a picture that is too large is shown the narrower
KINDS = {'.svg': 'image/svg+xml', '.png': 'image/png', '.webp': 'image/webp'}


def write(file: Path, sources: Mapping[str, Sequence[Path]], render: Callable[[Mapping[str, str]], str]) -> Path:
    """Write a page with its pictures inside it; return the file.

    Args:
        sources: by name the files of a picture, of which the smaller is taken.
        render: makes the page from data URIs by name.
    Errors: RunError where it would be larger than MOST_BYTES however small its pictures are.
    """
    inside = {name: min((uri(path.read_bytes(), path.suffix) for path in paths), key=len)
              for name, paths in sources.items() if paths}
    bare = len(render(dict.fromkeys(inside, '')).encode())
    while (size := bare + sum(map(len, inside.values()))) > MOST_BYTES:
        name = max(inside, key=lambda one: len(inside[one]), default=None)
        smaller = name and _smaller(sources[name], len(inside[name]))
        if not smaller:
            raise RunError(f'{file}: {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:g} MB, of which the text is '
                           f'{bare / 1e6:.1f} MB and {name or "no picture"} {len(inside.get(name, "")) / 1e6:.1f} MB')
        inside[name], width = smaller
        log.info(f'{name}: shown at {width} px, so that the page stays below {MOST_BYTES / 1e6:g} MB')
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text := render(inside))
    log.info(f'{len(text.encode()) / 1e6:.2f} MB: {file}')
    return file


def _smaller(paths: Sequence[Path], size: int) -> tuple[str, int] | None:
    """A picture at the largest width that brings its URI below three quarters of a size; None where none does."""
    drawn = next((cv2.imread(str(path), cv2.IMREAD_COLOR) for path in paths if path.suffix == '.png'), None)
    for width in WIDTHS_PX if drawn is not None else ():
        height = max(1, round(drawn.shape[0] * width / drawn.shape[1]))
        shown = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
        for kind, how in (('.png', []), ('.webp', [cv2.IMWRITE_WEBP_QUALITY, 85])):
            found = uri(cv2.imencode(kind, shown, how)[1].tobytes(), kind)
            if len(found) < 0.75 * size:
                return found, width
    return None


def uri(content: bytes, kind: str) -> str:
    """A picture as an address that holds it; `kind` as a file's name ends."""
    return f'data:{KINDS[kind]};base64,{base64.b64encode(content).decode()}'
