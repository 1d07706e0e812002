"""Tiny data sets in COCO and in Pascal VOC layout, and ways to spoil them."""
import json
from pathlib import Path

import pytest
from PIL import Image

from amdlib.errors import DataError


def make_coco(root: Path, *splits: str) -> Path:
    """Two images of 40x30 px in each split, two classes, three boxes."""
    (root / 'annotations').mkdir(parents=True)
    for number, suffix in enumerate(splits or ('train2017', 'val2017')):
        (root / suffix).mkdir()
        coco = {'categories': [{'id': 1, 'name': 'cat'}, {'id': 7, 'name': 'dog'}], 'images': [], 'annotations': [
            {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1, 2, 10, 10], 'area': 100, 'iscrowd': 0},
            {'id': 2, 'image_id': 1, 'category_id': 7, 'bbox': [0, 0, 40, 30], 'area': 1200, 'iscrowd': 0},
            {'id': 3, 'image_id': 2, 'category_id': 7, 'bbox': [5, 5, 9.5, 8], 'area': 76.0, 'iscrowd': 1}]}
        for i in (1, 2):
            name = f'{suffix}_{i}.png'
            Image.new('RGB', (40, 30), (number, i, 0)).save(root / suffix / name)
            coco['images'].append({'id': i, 'file_name': name, 'width': 40, 'height': 30})
        (root / 'annotations' / f'instances_{suffix}.json').write_text(json.dumps(coco))
    return root


VOC_OBJECT = ('<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}'
              '</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>')


def write_xml(root: Path, stem: str, objects, size=(40, 30), filename=None) -> None:
    body = ''.join(VOC_OBJECT.format(name=name, box=box, difficult=difficult) for name, box, difficult in objects)
    (root / 'Annotations' / f'{stem}.xml').write_text(
        f'<annotation><filename>{filename or stem + ".jpg"}</filename><size><width>{size[0]}</width>'
        f'<height>{size[1]}</height><depth>3</depth></size>{body}</annotation>')


def make_voc(root: Path, splits=('train', 'val', 'test')) -> Path:
    """One image of 40x30 px a split, with a box of class 'b' and one of class 'a'."""
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for i, split in enumerate(splits):
        Image.new('RGB', (40, 30), (40 * i, 0, 0)).save(root / 'JPEGImages' / f'{split}1.jpg')
        write_xml(root, f'{split}1', [('b', (1, 1, 40, 30), 0), ('a', (11, 6, 21, 26), 0)])
        (root / 'ImageSets/Main' / f'{split}.txt').write_text(f'{split}1\n')
    return root


def edit(root: Path, change, suffix='train2017') -> Path:
    """Change the JSON of a split in place; returns its path."""
    ann = root / 'annotations' / f'instances_{suffix}.json'
    content = json.loads(ann.read_text())
    change(content)
    ann.write_text(json.dumps(content))
    return ann


def set_in(part, index, **values):
    return lambda content: content[part][index].update(values)


def repeat(part, **values):
    return lambda content: content[part].append(content[part][0] | values)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def problems_of(call, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    return str(caught.value)
