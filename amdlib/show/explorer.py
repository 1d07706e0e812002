"""The mask explorer: attention logits of teachers and students as data, and the page in which a browser masks them.

The browser (`templates/explorer.js`) gets what stands before Eq. 3's division by T, one float32 number a position, and
computes attention, masks and shares itself: neither a kernel nor the network is needed to move phi, T and the level.
"""
from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex
from torch import Tensor, nn

from amdlib.errors import RunError
from amdlib.files import digest, read_json, sha256, write_json
from amdlib.methods import method_file
from amdlib.paper.pairs import GROUPS, find_group
from amdlib.paper.rows import find_row
from amdlib.runs.run import Run, row_runs
from amdlib.runs.store import Store
from amdlib.show import coverage, features, pictures
from amdlib.show.charts import COLOURS
from amdlib.show.explore import done_runs
from amdlib.show.features import FIRST_GROUP, Picture
from amdlib.words import plural

TEMPLATES = Path(__file__).parent / 'templates'
SCRIPT, STYLE, PAGE = (TEMPLATES / f'explorer.{kind}' for kind in ('js', 'css', 'html'))
ROWS_SHOWN = ('teacher', 'baseline', 'mgd', 'amd')
COUNT = 20      # of the pictures
SIDE_PX, QUALITY = 320, 90          # of a picture as it is shown: its longer side at most; of JPEG
HEAT = [to_hex(matplotlib.colormaps['viridis'](i / 31)) for i in range(32)]


# ---- which runs, which pictures ---------------------------------------------------------------------------------

def runs_here(store: Store, groups: Iterable[str] = GROUPS) -> list[Run]:
    """Each group's teacher, and its students of the first seed, whose weights are here."""
    runs = [run for group in groups for run in row_runs(group, ROWS_SHOWN, store.profile)]
    return [run for run in runs if _has_weights(run, store)]


def find_runs(store: Store, ids: Sequence[str] = (), group: str = FIRST_GROUP) -> list[Run]:
    """Runs by their ids; without any the runs of a group that are here. Errors: RunError saying what is here, or what
    makes something."""
    if not ids:
        if found := runs_here(store, [find_group(group).name]):
            return found
        run = row_runs(group, ['teacher'], store.profile)[0]
        raise RunError(f'{run.id} is {store.state(run)}: make it with {store.command(run)}')
    known = {run.id: run for run in [*runs_here(store), *done_runs(store)]}
    if unknown := [name for name in ids if name not in known]:
        raise RunError(f'no run {unknown[0]!r} with weights here; there are: {", ".join(known) or "none"}')
    return [known[name] for name in ids]


def _has_weights(run: Run, store: Store) -> bool:
    try:
        return features.weights_file(run, store).is_file()
    except RunError:
        return False


def chosen_images(store: Store, count: int = COUNT) -> tuple[list[int], str]:
    """Ids of the test images to show, and in words by which rule (`features.representative`)."""
    found, (low, high) = features.representative(store.dataset, count), features.COVERED
    return found, (f'{plural(len(found), "test image", "test images")} by rule: the first with two boxes or more that '
                   f'cover {100 * low:.0f} to {100 * high:.0f} % of the picture, or come closest to that')


# ---- data -------------------------------------------------------------------------------------------------------

def explorer_data(runs: Sequence[Run], shown: Sequence[Picture], store: Store, rule: str = '',
                  phi: float | None = None, temperature: float | None = None, level: int = 0) -> dict[str, Any]:
    """What the browser needs, as JSON has it.

    Args:
        runs: whose attention is looked at, each as if it were the teacher; the first at first.
        rule: by which the pictures were chosen, in words.
        phi, temperature: at first; None: AMD's.
    Errors: ValueError where there is no run or no picture; RunError as of `features.load_detector` and `scales`.
    """
    if not runs or not shown:
        raise ValueError(f'{len(runs)} runs and {len(shown)} pictures: expected at least one of each')
    own = [[] for _ in shown]
    for run in runs:
        look = Look(run, store)
        for found, picture in zip(own, shown, strict=True):
            found.append(look(picture))
    amd = Run.of(f'{runs[0].row.group.name}-amd', store.profile)
    return {
        'phi': amd.value('phi') if phi is None else phi, 'level': level,
        'temperature': amd.value('temperature') if temperature is None else temperature,
        'rule': rule, 'profile': store.profile.name, 'data': store.dataset.name,
        'models': [_model(run, store) for run in runs],
        'pictures': [picture_data(picture, found) for picture, found in zip(shown, own, strict=True)],
        'colours': {'mask': COLOURS['masked'], 'box': pictures.BOX_COLOUR, 'heat': HEAT}}


class Look:
    """A run's detector, loaded once: picture -> attention logits (H, W) of each level of its group."""

    def __init__(self, run: Run, store: Store) -> None:
        self.levels = run.row.group.levels
        self.scales = features.scales(run, store)
        self.detector: nn.Module = features.load_detector(run, store)

    def __call__(self, picture: Picture) -> list[Tensor]:
        found = features.level_features(self.detector, [picture], self.levels, self.scales)
        return [f_t.abs().mean(dim=1)[0] for f_t in found]      # Eq. 2


def picture_data(picture: Picture, logits: Sequence[Sequence[Tensor]]) -> dict[str, Any]:
    """One picture as the browser needs it: `src` (JPEG), sizes, boxes; `logits`, base64 of float32, by model and level;
    `places` by the size of the map: of each position 0 in the padding, 1 in the image, 2 in a box as well."""
    sizes = dict.fromkeys(tuple(level.shape) for levels in logits for level in levels)
    return {
        'name': picture.file_name, 'src': _jpeg(picture.rgb), 'size_px': list(picture.rgb.shape[1::-1]),
        'padded_px': list(picture.pixels.shape[:0:-1]),
        'boxes': [[*box, label] for box, label in zip(picture.boxes_xyxy_px.tolist(), picture.labels, strict=True)],
        'places': {f'{height}x{width}': _places(picture, height, width) for height, width in sizes},
        'logits': [[{'size': list(level.shape), 'values': _base64(level.numpy().astype('<f4').tobytes())}
                    for level in levels] for levels in logits]}


def _places(picture: Picture, height: int, width: int) -> str:
    image = coverage.inside_image(picture, height, width)
    where = image.int() + (image & coverage.inside_boxes(picture, height, width)).int()
    return ''.join(map(str, where.flatten().tolist()))


def _jpeg(rgb: np.ndarray) -> str:
    shrunk = min(1, SIDE_PX / max(rgb.shape[:2]))
    if shrunk < 1:
        size = [max(1, round(side * shrunk)) for side in rgb.shape[1::-1]]
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    _, file = cv2.imencode('.jpg', np.ascontiguousarray(rgb[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return f'data:image/jpeg;base64,{_base64(file.tobytes())}'


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _model(run: Run, store: Store) -> dict[str, Any]:
    group = run.row.group
    detector = group.teacher_label if run.row.is_teacher else group.student_label
    return {'id': run.id, 'label': f'{detector}, {run.row.label}' + (f', seed {run.seed}' if run.seed else ''),
            'levels': list(group.levels), 'random_ratio': find_row(f'{group.name}-mgd').value('lambda_mgd'),
            'weights_sha256': sha256(features.weights_file(run, store))}


# ---- pages ------------------------------------------------------------------------------------------------------

def fragment(data: dict[str, Any]) -> Markup:
    """The explorer as HTML to stand in a page: data, style and script, all of them inline."""
    island = json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')    # no name of a class ends the element
    return Markup(f'<style>\n{STYLE.read_text()}</style>\n<div class="amd-explorer" data-static>'
                  f'<script type="application/json">{island}</script>'
                  '<noscript>The mask explorer needs JavaScript. Its script stands in this page.</noscript></div>\n'
                  f'<script type="module">\n{SCRIPT.read_text()}</script>\n')


def page(data: dict[str, Any]) -> str:
    """The explorer as a page of its own; its address keeps what is set, so that a view can be handed on."""
    return PAGE.read_text().replace('{{ explorer }}', str(fragment({**data, 'share': True})))


def for_report(store: Store) -> Markup:
    """The fragment for a report; '' where no weights or no test images are here.

    Its data is kept in `explorer.json` of the store's folder, and made again where weights, data or code have changed.
    """
    if not store.dataset.test_ann.is_file() or not (runs := runs_here(store)):
        return Markup('')
    file = store.folder / 'explorer.json'
    code = [Path(module.__file__).read_text() for module in (features, coverage, pictures)]
    code += [Path(__file__).read_text(), *(method_file(name).read_text() for name in ('amd', 'mgd'))]
    key = digest('\n'.join([store.dataset.fingerprint, *(_model(run, store)['weights_sha256'] for run in runs), *code]))
    try:
        if (kept := read_json(file))['key'] == key:
            return fragment(kept['data'])
    except (OSError, ValueError, KeyError, TypeError):      # none, or not ours
        pass
    data = data_of(runs, store)
    write_json(file, {'key': key, 'data': data})
    return fragment(data)


def data_of(runs: Sequence[Run], store: Store) -> dict[str, Any]:
    """`explorer_data` of the test images that `chosen_images` chooses. Errors: as of `explorer_data`."""
    ids, rule = chosen_images(store)
    return explorer_data(runs, features.pictures(store, ids), store, rule)
