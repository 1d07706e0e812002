"""From a folder, or from nothing, to a checked `Dataset`.

The first call makes or converts, checks and writes a manifest; a later one reuses what is there while neither the
recipe nor any file has changed. Both tell what is in the data set.
"""
from __future__ import annotations

import contextlib
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

from amdlib import files
from amdlib.datasets import checks, formats, store
from amdlib.datasets.choice import WHOLE, Choice, Chosen
from amdlib.datasets.dataset import Dataset
from amdlib.datasets.formats import Source
from amdlib.datasets.formats.coco import FirstOfCoco, TenthOfCoco, coco_2017
from amdlib.datasets.formats.shapes import Shapes
from amdlib.datasets.scene import ShapesSpec
from amdlib.errors import DataError
from amdlib.words import log, plural, some

_EXPECTED = {'folder': 'a data set in COCO, Pascal VOC, YOLO or another layout (docs/data.md)',
             'coco': 'COCO 2017', 'first_of_coco': 'COCO 2017', 'tenth_of_coco': 'COCO 2017'}


def prepare(kind: str, data: str | Path | None = None, cache: str | Path = files.ROOT / 'data',
            shapes: ShapesSpec | None = None, first_images: tuple[int, int] | None = None, **choice: Any) -> Dataset:
    """Make or find a data set, check it, and log what is in it.

    Args:
        kind: 'shapes' (made here, `data` must be None), 'folder' (`data`: a folder in a format that `formats` knows,
            or the parent of one), 'coco' (exactly COCO 2017's layout), 'first_of_coco' (its first annotated images) or
            'tenth_of_coco' (a tenth of train2017, all of val2017).
        cache: what is written goes to `cache`/<name>, or to `cache`/<name>-prepared where that holds something else.
        shapes: other shapes than the default ones, e.g. fewer for a test.
        first_images: how many of train and test 'first_of_coco' takes.
        choice: of `Choice`, such as split=0.8.
    Errors: DataError with file, id and value of each problem; SettingError for a choice that is none.
    """
    chosen = Choice(**choice)
    source, cache = _source(kind, data, shapes, first_images, chosen), Path(cache).resolve()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(cache / f'.{source.name}.lock',
                                             f'{source.name}: waiting for another process that prepares it'))
        except OSError as error:
            raise DataError(f'{cache}: cannot be written ({error.strerror}); choose another cache folder') from None
        home = store.home_of(source, cache)
        store.remove_stale(home)
        manifest = store.read_manifest(home)
        if manifest.get('state') != store.state(source, home):
            manifest = _remake(source, home, manifest)
    train_ann, train_images, test_ann, test_images, *val = source.splits(home)
    val = val or [None, None]
    dataset = Dataset(source.name, train_ann, train_images, test_ann, test_images, tuple(manifest['classes']),
                      manifest['fingerprint'], tuple(manifest['notes']), *val, negatives=_negatives(source))
    if source.found:
        log.info(f'{data}: {source.found}')
    _log_summary(dataset, manifest['counts'])
    return dataset


def _source(kind: str, data: str | Path | None, shapes: ShapesSpec | None, first_images: tuple[int, int] | None,
            choice: Choice) -> Source:
    if choice.given() and kind in ('shapes', 'first_of_coco', 'tenth_of_coco'):
        raise DataError(f'{some(choice.given())}: for a folder of yours; this profile makes or picks its own images')
    if kind == 'shapes':
        if data is not None:
            raise DataError(f'mini makes its own data; DATA={data} belongs to a profile that reads a folder, '
                            'such as small or paper')
        return Shapes(shapes or ShapesSpec())
    if kind not in _EXPECTED:
        raise DataError(f'data {kind!r}: expected shapes, {", ".join(_EXPECTED)}')
    if data is None:
        raise DataError(f'no data folder is given: DATA=<folder> with {_EXPECTED[kind]}')
    if not Path(data).is_dir():
        why = 'a file; give the folder that it lies in' if Path(data).is_file() else 'no such folder'
        raise DataError(f'{data}: {why}')
    root = Path(data).resolve()
    if kind in ('folder', 'coco'):
        source = formats.recognise(root, choice.layout) if kind == 'folder' else coco_2017(root)
        if len(source.splits(root)) == 2 and not choice.split:
            raise DataError(f'{root}: one split only ({source.found}); --split 0.8 (SPLIT=0.8) trains on 80 % of its '
                            'images and reports on the rest')
        return Chosen(source, choice) if choice.suffix() else source
    if kind == 'tenth_of_coco':
        return TenthOfCoco(coco_2017(root))
    if first_images is None:
        raise DataError('first_of_coco: first_images is None, expected how many images of train and of test')
    return FirstOfCoco(coco_2017(root), first_images)


def _remake(source: Source, home: Path, manifest: dict) -> dict:
    """Write and check everything anew in a sibling folder, rename it to `home` and return its manifest."""
    if source.self_made and manifest.get('recipe') == store.recipe(source):
        # Copied or touched files have new times: keep them where their content is still what was made.
        try:
            found = _examined(source, home, manifest['notes'])
        except DataError:
            found = {}
        if found.get('fingerprint') == manifest['fingerprint']:
            store.write_manifest(source, home, found)
            return found
        log.info(f'{home} is damaged or incomplete: making it again')
    else:
        log.info(f'{source.name}: first call, or something has changed: '
                 f'{"making" if source.self_made else "checking"} it')
    with store.replacing(home) as folder:
        try:
            manifest = _examined(source, folder, source.make(folder))
        except DataError as error:      # it names the user's files: those that are written here will be gone
            ours = re.compile(rf'{re.escape(str(folder))}/(?:{WHOLE}/)?(\w+\.json)')
            problems = [ours.sub(lambda found: str(source.origins.get(found[1], found[0])), problem)
                        for problem in error.problems]
            broken = sum('not readable as an image' in problem for problem in problems)
            way_out = [f'{plural(broken, "image", "images")} cannot be read; --drop-broken (DROP_BROKEN=1) leaves '
                       f'{"it" if broken == 1 else "them"} out'] if broken and not source.self_made else []
            raise DataError([*way_out, *problems]) from None
        store.write_manifest(source, folder, manifest)
    return manifest


def _examined(source: Source, folder: Path, notes: list[str]) -> dict:
    """What the checks of both splits give for a manifest, the source's own notes first."""
    found = checks.examine(*source.splits(folder), negatives=_negatives(source))
    # dict.fromkeys: a set that is looked at again brings the notes of the first time along.
    return {**found, 'notes': list(dict.fromkeys([*notes, *found['notes']]))}


def _negatives(source: Source) -> bool:
    """Whether images without a box are trained on."""
    return isinstance(source, Chosen) and source.choice.negatives == 'keep'


def _log_summary(dataset: Dataset, counts: dict) -> None:
    log.info(f'{dataset.name}: {len(dataset.classes)} classes, fingerprint {dataset.fingerprint}')
    log.info(f'{"split":<7}{"images":>8}{"boxes":>9}{"small":>9}{"medium":>9}{"large":>9}{"crowd":>7}')
    for split, count in counts.items():
        log.info(f'{split:<7}{count["images"]:>8}{count["boxes"]:>9}{count["small"]:>9}{count["medium"]:>9}'
                 f'{count["large"]:>9}{count["crowd"]:>7}')
    per_class = (f'{name} {counts["train"]["classes"].get(name, 0)}/{counts["test"]["classes"].get(name, 0)}'
                 for name in dataset.classes)
    width = min(110, shutil.get_terminal_size((110, 0)).columns)
    for text in ('boxes per class (train/test): ' + ', '.join(per_class), *(f'note: {note}' for note in dataset.notes)):
        log.info(textwrap.fill(text, width, subsequent_indent='  '))
