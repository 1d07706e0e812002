"""COCO's JSON: COCO 2017 as it is published, its layout, any file of its kind wherever the pictures lie, and parts of
COCO 2017: its first images, and a tenth.

What other tools leave out is filled in, and told: area and iscrowd, sizes of images, numbers for ids that are texts.
Then, and where pictures had to be looked for, a file is written here; else the user's is read where it lies.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from amdlib.datasets.converted import Pictures, broken_note, picture_size_px
from amdlib.datasets.dataset import read_coco, read_lists, trained_of, write_compact
from amdlib.datasets.formats import by_role, folder_name, one_each, split_of
from amdlib.errors import DataError, ImageError
from amdlib.words import plural, some

LAYOUT = ('COCO layout: annotations/instances_train*.json; or for each split a JSON file with images, annotations and '
          "categories, by its name or its folder's")
LABELS = '.json'
HEAD_BYTES = 2 ** 16    # of a JSON file, in which one of COCO's lists begins
TENTH_SEED = 0
JSON_FOLDERS = ('annotations', 'annotation', 'labels')


@dataclass(frozen=True)
class Coco:
    """Files of COCO's kind, a JSON and a folder a split; what they lack is filled in."""
    name: str
    train: tuple[Path, ...]     # annotations, images
    test: tuple[Path, ...]      # () where the folder is not split
    notes: list[str]
    val: tuple[Path, ...] = ()
    found: str = 'COCO layout'
    complete: bool = False      # nothing is filled in: it is COCO's own
    search: bool = False        # pictures are looked for by their file_name, wherever they lie in the folder
    recipe = 'coco'
    self_made = False

    @property
    def files(self) -> tuple[Path, ...]:
        anns, root = tuple(ann for ann, _ in self._parts().values()), self.train[1]
        return (*anns, root) if self.search else (*self.train, *self.test, *self.val)

    def _parts(self) -> dict[str, tuple[Path, ...]]:
        return {split: part for split in ('train', 'test', 'val') if (part := getattr(self, split))}

    @property
    def origins(self) -> dict[str, Path]:
        return {f'{split}.json': ann for split, (ann, _) in self._parts().items()}

    def made(self, home: Path) -> tuple[Path, ...]:
        """Only those that had to be written."""
        return tuple(path for name in self.origins if (path := home / name).exists())

    def splits(self, home: Path) -> tuple[Path, ...]:
        made = self.made(home)
        return tuple(path for (name, ann), (_, images) in zip(self.origins.items(), self._parts().values(), strict=True)
                     for path in (home / name if home / name in made else ann, images))

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        if self.complete and not drop_broken:
            return self.notes
        cocos, problems = {}, []
        for split, (ann, _) in self._parts().items():
            try:
                cocos[split] = read_lists(ann)
            except DataError as error:
                problems += error.problems
        if problems:
            raise DataError(problems)
        notes, super_class = [], _without_super_class(list(cocos.values()))
        pictures = Pictures(self.train[1]) if self.search else None
        for split, (ann, images) in self._parts().items():
            coco = cocos[split]
            if pictures:
                problems += _find_pictures(ann, coco, pictures)
            done = [*_numbered(ann, coco), *_sized(coco, images), *_filled(coco)]
            done += broken_note(_drop_broken(coco, images)) if drop_broken else []
            if done or super_class or self.search:
                write_compact(folder / f'{split}.json', coco)
            notes += [f'{split}: {what}' for what in done]
        if problems:
            raise DataError(problems)
        return [*self.notes, *super_class, *notes]


@dataclass(frozen=True)
class FirstOfCoco:
    """The first images of COCO 2017 that have annotations; lists of their own, pictures where they lie."""
    whole: Coco
    counts: tuple[int, int]     # train, test
    name = 'dryrun'
    self_made = False
    found = ''

    @property
    def origins(self) -> dict[str, Path]:
        return self.whole.origins

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

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        notes = ['a dry run: numbers made with these images mean nothing']
        for ann, made, count in zip(self.files, self.made(folder), self.counts, strict=True):
            coco = read_coco(ann)
            annotated = {one['image_id'] for one in coco['annotations'] if not one.get('iscrowd')}
            images = [image for image in coco['images'] if image['id'] in annotated][:count]
            if len(images) < count:
                raise DataError(f'{ann}: {plural(len(images), "annotated image", "annotated images")}, '
                                f'a dry run takes {count}')
            write_compact(made, _with(coco, images))
            notes.append(f'the first {count} annotated images of {ann.name}')
        return notes


@dataclass(frozen=True)
class TenthOfCoco:
    """A tenth of the images of train2017 that mmdet trains on, drawn by their ids alone, and all of val2017; a list of
    its own, pictures where they lie."""
    whole: Coco
    seed: int = TENTH_SEED
    name = 'tenth'
    self_made = False
    found = ''

    @property
    def origins(self) -> dict[str, Path]:
        return {'train.json': self.whole.train[0]}

    @property
    def files(self) -> tuple[Path, ...]:
        return self.whole.files

    @property
    def recipe(self) -> str:
        return f'a tenth by seed {self.seed}'

    def made(self, home: Path) -> tuple[Path, ...]:
        return (home / 'train.json',)

    def splits(self, home: Path) -> tuple[Path, ...]:
        return *self.made(home), self.whole.train[1], *self.whole.test

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        ann = self.whole.train[0]
        coco = read_coco(ann)
        trained = trained_of(coco)
        count = a_tenth(len(trained))
        if not count:
            raise DataError(f'{ann}: {plural(len(trained), "image", "images")} to train on, of which a tenth is none')
        by_id = sorted((image['id'] for image in trained), key=lambda image_id: hashlib.sha256(
            f'{self.seed} {image_id}'.encode()).digest())
        chosen = set(by_id[:count])
        images = [image for image in coco['images'] if image['id'] in chosen]
        write_compact(*self.made(folder), _with(coco, images))
        return [f'trained on {count} of the {len(trained)} images of {ann.name} with annotations, drawn by their ids '
                f'(seed {self.seed}), reported on all of {self.whole.test[0].name}']


def a_tenth(images: int) -> int:
    """Of how many images a tenth consists."""
    return round(images / 10)


def _with(coco: dict, images: list[dict]) -> dict:
    """A COCO file with these images and their boxes alone."""
    ids = {image['id'] for image in images}
    return {'images': images, 'categories': coco['categories'],
            'annotations': [one for one in coco['annotations'] if one['image_id'] in ids]}


def coco_2017(root: Path) -> Coco:
    """COCO 2017 in the layout that it is published in. Errors: DataError naming what is missing."""
    paths = [root / 'annotations/instances_train2017.json', root / 'train2017',
             root / 'annotations/instances_val2017.json', root / 'val2017']
    missing = [f'{path}: missing; DATA={root} must have the layout of COCO 2017' for path in paths if not path.exists()]
    if missing:
        raise DataError(missing)
    return Coco('coco', (*paths[:2],), (*paths[2:],), ['trained on train2017, reported on val2017'], complete=True)


def recognise(root: Path) -> Coco | None:
    """One JSON a split, by its name, else by its folder's; test is reported, and val only where there is no test."""
    named = [(split, path) for split in ('train', 'val', 'test')
             for path in sorted((root / 'annotations').glob(f'instances_{split}*.json'))]
    files = [] if named else [path for path in _json_files(root) if _is_coco(path)]
    by_split = named or [(split, path) for path in files
                         if (split := split_of(path.stem) or split_of(str(path.relative_to(root).parent)))]
    anns = one_each(root, by_split or (('train', path) for path in files))
    if not anns:
        return None
    word = {split: path.stem.removeprefix('instances_') if named else f'{path.relative_to(root)}'
            for split, path in anns.items()}
    folders = {split: _image_folder(root, word[split], split) for split in anns} if named else {}
    search = None in folders.values() or not named
    parts = by_role(root, {split: (path, root if search else folders[split]) for split, path in anns.items()})
    words = by_role(root, word)
    notes = [f'trained on {words["train"]}, reported on {words["test"]}'] if 'test' in parts else [
        f'one split, {words["train"]}']
    if 'val' in parts:
        notes.append(f'factors chosen on {words["val"]}')
    return Coco(folder_name(root), parts['train'], parts.get('test', ()), notes, parts.get('val', ()),
                f'COCO layout: {some(path.relative_to(root) for path in anns.values())}', search=search)


def _image_folder(root: Path, suffix: str, split: str) -> Path | None:
    """The folder of a split's images, by the suffix of its JSON (train2017), else its split (train), else images/."""
    for folder in (root / suffix, root / 'images' / suffix, root / split, root / 'images' / split, root / 'images'):
        if folder.is_dir():
            return folder
    return None


def _json_files(root: Path) -> Iterator[Path]:
    """Those in a folder, and in those below it that are a split's or hold labels."""
    yield from sorted(root.glob('*.json'))
    for child in sorted(root.iterdir()):
        if child.is_dir() and child.name.lower() in JSON_FOLDERS:
            yield from sorted(child.glob('*.json'))
        elif child.is_dir() and split_of(child.name):
            yield from _json_files(child)


def _is_coco(path: Path) -> bool:
    """Whether one of COCO's lists begins where a file does; other software's have none, Label Studio's notes categories
    alone."""
    if not path.is_file():
        return False
    with open(path, 'rb') as file:
        head = file.read(HEAD_BYTES).removeprefix(b'\xef\xbb\xbf').lstrip()
    lists = 'images|annotations' + '|categories' * (path.stat().st_size > HEAD_BYTES)
    return head.startswith(b'{') and re.search(rf'"({lists})"\s*:\s*\['.encode(), head) is not None


# ---- what is mended, in place; each returns what was done -------------------------------------------------------

def _records(coco: dict, part: str) -> list[dict]:
    return [record for record in coco[part] if isinstance(record, dict)]


def _without_super_class(cocos: list[dict]) -> list[str]:
    """Roboflow's first category is the name of its project: it has no box, the others name it as their super-category.
    Without it, unless the splits disagree."""
    firsts = [coco['categories'][0] for coco in cocos]
    first = firsts[0]
    if not isinstance(first, dict) or first.get('supercategory') != 'none' or any(one != first for one in firsts):
        return []
    below = all(isinstance(one, dict) and one.get('supercategory') == first.get('name')
                for coco in cocos for one in coco['categories'][1:])
    used = any(one.get('category_id') == first.get('id') for coco in cocos for one in _records(coco, 'annotations'))
    if not below or used or any(len(coco['categories']) == 1 for coco in cocos):
        return []
    for coco in cocos:
        del coco['categories'][0]
    return [f'the empty super-class {first.get("name")!r} left out']


def _numbered(ann: Path, coco: dict) -> list[str]:
    """Ids that are texts become numbers from 1, in the order of the file, where they stand and where they are meant.
    Errors: DataError where one is used twice."""
    done = []
    for part, meant in (('images', 'image_id'), ('categories', 'category_id'), ('annotations', None)):
        records = _records(coco, part)
        texts = [record for record in records if isinstance(record.get('id'), str)
                 or meant is None and record.get('id') is None]
        if not texts:
            continue
        number: dict[str, int] = {}
        for i, record in enumerate(records, 1):
            if meant and number.setdefault(str(record.get('id')), i) != i:
                raise DataError(f'{ann}: {part} entry {i - 1}: id {record["id"]!r} is used more than once')
            record['id'] = i
        for one in _records(coco, 'annotations') if meant else []:
            one[meant] = number.get(str(one.get(meant)), f'{one.get(meant)}')    # a text is none: the check tells
        done.append(f'ids of {part} that are no numbers, counted from 1')
    return done


def _sized(coco: dict, images: Path) -> list[str]:
    """Width and height from the picture where they are missing; of one that cannot be read the check tells more."""
    lacking = [record for record in _records(coco, 'images') if record.get('width') is None
               or record.get('height') is None]
    sized = 0
    for record in lacking:
        try:
            record['width'], record['height'] = picture_size_px(images / str(record.get('file_name')))
            sized += 1
        except (DataError, ValueError):
            continue
    return [f'width and height taken from {plural(sized, "picture", "pictures")}'] if sized else []


def _filled(coco: dict) -> list[str]:
    """Area and iscrowd of boxes that have none."""
    areas = crowds = 0
    for one in _records(coco, 'annotations'):
        bbox = one.get('bbox')
        if one.get('area') is None and isinstance(bbox, list) and len(bbox) == 4 and all(
                type(side) in (int, float) for side in bbox):
            one['area'], areas = bbox[2] * bbox[3], areas + 1
        if one.get('iscrowd') is None:
            one['iscrowd'], crowds = 0, crowds + 1
    return [f'{what} of {plural(count, "box", "boxes")} filled in: {value}' for what, count, value in (
        ('area', areas, 'width x height'), ('iscrowd', crowds, '0')) if count]


def _find_pictures(ann: Path, coco: dict, pictures: Pictures) -> list[str]:
    """Put in each file_name where the picture lies. Returns problems; what is nowhere the check tells."""
    problems, split = [], split_of(str(ann.relative_to(pictures.root)))
    for record in _records(coco, 'images'):
        name = record.get('file_name')
        found = pictures.find(name, ann.parent, split) if isinstance(name, str) else []
        if len(found) > 1:
            problems.append(f'{ann}: file_name {name!r} may be {some(found)}')
        elif found:
            record['file_name'] = found[0].relative_to(pictures.root).as_posix()
    return problems


def _drop_broken(coco: dict, images: Path) -> list[str]:
    """Without the images that cannot be read, and their boxes."""
    broken, ids = [], set()
    for record in _records(coco, 'images'):
        try:
            picture_size_px(images / str(record.get('file_name')))
        except ImageError as error:
            broken.append(str(error))
            ids.add(str(record.get('id')))
    coco['images'] = [one for one in coco['images'] if not isinstance(one, dict) or str(one.get('id')) not in ids]
    coco['annotations'] = [one for one in coco['annotations'] if not isinstance(one, dict)
                           or str(one.get('image_id')) not in ids]
    return broken
