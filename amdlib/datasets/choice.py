"""What of a folder is taken: which layout is meant, how one split becomes two, which images are left out."""
from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from amdlib.datasets.dataset import progress, read_coco, write_compact
from amdlib.datasets.formats import Source
from amdlib.errors import DataError, SettingError
from amdlib.words import plural

NEGATIVES = ('keep', 'drop')
AUGMENTED = '.rf.'   # in a file's name: behind it a hash, before it what Roboflow made it of
WHOLE = 'whole'     # folder in which the files lie from which is taken


@dataclass(frozen=True)
class Choice:
    """How a user's folder is read.

    Args:
        layout: the format that is meant, where a folder fits several.
        split: the share of one split's images that is trained on; the rest is reported. None: the folder's own splits.
        split_seed: of that split.
        negatives: images without a box: 'keep', trained on too; 'drop', left out of every split; None, as mmdet does:
            left out of training, kept in what is reported.
        drop_broken: images that cannot be read are left out, and named.
    Errors: SettingError.
    """
    layout: str | None = None
    split: float | None = None
    split_seed: int = 0
    negatives: str | None = None
    drop_broken: bool = False

    def __post_init__(self) -> None:
        share = self.split
        if share is not None and not (type(share) is float and math.isfinite(share) and 0 < share < 1):
            raise SettingError(f'split={share!r}: expected the share that is trained on, between 0 and 1, such as 0.8')
        if type(self.split_seed) is not int:
            raise SettingError(f'split_seed={self.split_seed!r}: expected a number')
        if self.negatives not in (None, *NEGATIVES):
            raise SettingError(f'negatives={self.negatives!r}: expected {" or ".join(NEGATIVES)}')

    def given(self) -> dict[str, Any]:
        """What differs from the default, by name."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}

    def words(self) -> list[str]:
        """For a command line."""
        return [f'--{name.replace("_", "-")}' + ('' if value is True else f' {value}')
                for name, value in self.given().items()]

    def suffix(self) -> str:
        """For the data set's name: each choice has its own files and results."""
        parts = {**self.given(), 'layout': None}
        words = {'split': f'split{self.split}', 'split_seed': f'seed{self.split_seed}',
                 'negatives': f'negatives-{self.negatives}', 'drop_broken': 'readable'}
        return ''.join(f'-{words[name]}' for name, value in parts.items() if value is not None)


CHOICES = tuple(one.name for one in fields(Choice))


class Chosen:
    """A `Source` of which a part is taken: its files anew."""
    self_made = False

    def __init__(self, source: Source, choice: Choice) -> None:
        self.source, self.choice = source, choice
        self.name, self.files, self.found = source.name + choice.suffix(), source.files, source.found
        self.recipe = f'{source.recipe}{choice.suffix()}'

    @property
    def origins(self) -> dict[str, Path]:
        own = dict(self.source.origins)
        return {'test.json': own['train.json'], **own} if self.choice.split else own

    def made(self, home: Path) -> tuple[Path, ...]:
        return self.splits(home)[0::2]

    def splits(self, home: Path) -> tuple[Path, ...]:
        folders = self.source.splits(home)[1::2]
        if self.choice.split and len(folders) == 1:
            folders *= 2
        return tuple(path for split, images in zip(('train', 'test', 'val'), folders, strict=False)
                     for path in (home / f'{split}.json', images))

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        whole = folder / WHOLE
        whole.mkdir()
        notes = self.source.make(whole, drop_broken or self.choice.drop_broken)
        paths = self.source.splits(whole)
        if self.choice.split and len(paths) > 2:
            raise DataError(f'split={self.choice.split}: the folder has splits of its own: {"; ".join(notes[:2])}')
        cocos = [read_coco(ann) for ann in paths[0::2]]
        if self.choice.negatives == 'drop':
            for i, (split, coco) in enumerate(zip(('train', 'test', 'val'), cocos, strict=False)):
                annotated = set(map(_image_of, coco['annotations']))
                cocos[i] = _only(coco, [image for image in coco['images'] if image['id'] in annotated])
                if left := len(coco['images']) - len(cocos[i]['images']):
                    notes.append(f'{split}: {plural(left, "image", "images")} without a box left out, as asked')
        if self.choice.split:
            cocos, told = self._divided(cocos[0], paths[1])
            notes.append(told)
        for split, coco in zip(('train', 'test', 'val'), cocos, strict=False):
            write_compact(folder / f'{split}.json', coco)
        shutil.rmtree(whole)
        return notes

    def _divided(self, coco: dict, images: Path) -> tuple[list[dict], str]:
        """Two sets of one. Identical pictures stay together, and what Roboflow made of one picture; which go where
        depends on their content and the seed, not on their order. Errors: DataError where one would be empty."""
        groups: dict[str, list[dict]] = {}
        known: dict[str, str] = {}      # the group of a content, and of a source
        for image in progress(coco['images'], 'split images'):
            name = str(image.get('file_name'))
            content = _content(images / name)
            source = name.partition(AUGMENTED)[0] if AUGMENTED in name else content
            known[content] = known[source] = known.get(content) or known.get(source) or content
            groups.setdefault(known[content], []).append(image)
        seed = self.choice.split_seed
        order = sorted(groups, key=lambda content: hashlib.sha256(f'{seed} {content}'.encode()).digest())
        wanted = max(1, round(self.choice.split * len(coco['images'])))
        train: list[int] = []
        for content in order:
            if len(train) < wanted:
                train += [image['id'] for image in groups[content]]
        chosen = set(train)
        parts = [[image for image in coco['images'] if (image['id'] in chosen) is kept] for kept in (True, False)]
        if not parts[1]:
            raise DataError(f'split={self.choice.split}: of {plural(len(parts[0]), "image", "images")}, '
                            f'{plural(len(groups), "different one", "different ones")}, none is left to report on')
        divided = [_only(coco, part) for part in parts]
        if not all(part['annotations'] for part in divided):
            raise DataError(f'split={self.choice.split}: a part without a box; another split_seed divides differently')
        twins = len(coco['images']) - len(groups)
        same = f'; {plural(twins, "copy stays with its", "copies stay with their")} picture' if twins else ''
        return divided, (
            f'split here: trained on {len(parts[0])} images, reported on {len(parts[1])} '
            f'({self.choice.split:g}, seed {seed}{same})')


def _only(coco: Mapping[str, Any], images: Sequence[dict]) -> dict:
    """A COCO file with these images and their boxes alone."""
    ids = {image['id'] for image in images}
    return {**coco, 'images': list(images),
            'annotations': [one for one in coco['annotations'] if _image_of(one) in ids]}


def _image_of(annotation: Mapping[str, Any]) -> int | None:
    """Its image's id; None for what is none, which the check will tell."""
    found = annotation.get('image_id')
    return found if isinstance(found, int) else None


def _content(path: Path) -> str:
    """Hash of a file; of one that cannot be read, which the check will tell, its name."""
    try:
        return hashlib.sha256(path.read_bytes() if path.is_file() else str(path).encode()).hexdigest()
    except (OSError, ValueError):
        return str(path)
