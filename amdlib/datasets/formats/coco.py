"""COCO layout: any data set in it, COCO 2017 as it is published, and the first images of that."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amdlib.datasets.dataset import read_coco, write_compact
from amdlib.datasets.formats import folder_name
from amdlib.errors import DataError
from amdlib.words import plural, some

LAYOUT = 'annotations/instances_train*.json (COCO layout)'


@dataclass(frozen=True)
class Coco:
    """Files that are used where they lie."""
    name: str
    train: tuple[Path, Path]   # annotations, images
    test: tuple[Path, Path]
    notes: list[str]
    val: tuple[Path, ...] = ()
    recipe = 'coco'
    self_made = False

    @property
    def files(self) -> tuple[Path, ...]:
        return *self.train, *self.test, *self.val

    def made(self, home: Path) -> tuple[Path, ...]:
        return ()

    def splits(self, home: Path) -> tuple[Path, ...]:
        return *self.train, *self.test, *self.val

    def make(self, folder: Path) -> list[str]:
        return self.notes


@dataclass(frozen=True)
class FirstOfCoco:
    """The first images of COCO 2017 that have annotations; lists of their own, pictures where they lie."""
    whole: Coco
    counts: tuple[int, int]     # train, test
    name = 'dryrun'
    self_made = False

    @property
    def files(self) -> tuple[Path, ...]:    # not the folders: they hold thousands of pictures that do not matter here
        return self.whole.train[0], self.whole.test[0]

    @property
    def recipe(self) -> str:
        return f'first {self.counts} of {self.whole.train[1].parent}'

    def made(self, home: Path) -> tuple[Path, ...]:
        return home / 'train.json', home / 'test.json'

    def splits(self, home: Path) -> tuple[Path, ...]:
        train, test = self.made(home)
        return train, self.whole.train[1], test, self.whole.test[1]

    def make(self, folder: Path) -> list[str]:
        notes = ['a dry run: numbers made with these images mean nothing']
        for ann, made, count in zip(self.files, self.made(folder), self.counts, strict=True):
            coco = read_coco(ann)
            annotated = {one['image_id'] for one in coco['annotations'] if not one.get('iscrowd')}
            images = [image for image in coco['images'] if image['id'] in annotated][:count]
            if len(images) < count:
                raise DataError(f'{ann}: {plural(len(images), "annotated image", "annotated images")}, '
                                f'a dry run takes {count}')
            ids = {image['id'] for image in images}
            write_compact(made, {'images': images, 'categories': coco['categories'], 'annotations': [
                one for one in coco['annotations'] if one['image_id'] in ids]})
            notes.append(f'the first {count} annotated images of {ann.name}')
        return notes


def coco_2017(root: Path) -> Coco:
    """COCO 2017 in the layout that it is published in. Errors: DataError naming what is missing."""
    paths = [root / 'annotations/instances_train2017.json', root / 'train2017',
             root / 'annotations/instances_val2017.json', root / 'val2017']
    missing = [f'{path}: missing; DATA={root} must have the layout of COCO 2017' for path in paths if not path.exists()]
    if missing:
        raise DataError(missing)
    return Coco('coco', tuple(paths[:2]), tuple(paths[2:]), ['trained on train2017, reported on val2017'])


def recognise(root: Path) -> Coco | None:
    """One JSON a split, by its name; test is reported, and val only where there is no test."""
    if not any((root / 'annotations').glob('instances_*.json')):
        return None
    anns = {}
    for split in ('train', 'val', 'test'):
        found = sorted((root / 'annotations').glob(f'instances_{split}*.json'))
        if len(found) > 1:
            raise DataError(f'{root / "annotations"}: more than one file for {split}: '
                            f'{some(path.name for path in found)}; keep one')
        if found:
            anns[split] = found[0]
    reported = 'test' if 'test' in anns else 'val'
    for split in ('train', reported):
        if split not in anns:
            other = '' if split == 'train' else ' or instances_test*.json'
            raise DataError(f'{root / "annotations"}: no instances_{split}*.json{other}')
    suffix = {split: path.stem.removeprefix('instances_') for split, path in anns.items()}
    notes = [f'trained on {suffix["train"]}, reported on {suffix[reported]}']
    if len(anns) == 3:
        notes.append(f'factors chosen on {suffix["val"]}')
    train, test, *val = ((anns[split], _image_folder(root, suffix[split], split)) for split in dict.fromkeys(
        ('train', reported, 'val')) if split in anns)
    return Coco(folder_name(root), train, test, notes, val[0] if val else ())


def _image_folder(root: Path, suffix: str, split: str) -> Path:
    """The folder of a split's images, by the suffix of its JSON (train2017), else its split (train), else images/."""
    tried = [root / suffix, root / 'images' / suffix, root / split, root / 'images' / split, root / 'images']
    for folder in tried:
        if folder.is_dir():
            return folder
    raise DataError(f'{root}: no folder with the images of {suffix}; tried '
                    f'{", ".join(str(path.relative_to(root)) for path in dict.fromkeys(tried))}')
