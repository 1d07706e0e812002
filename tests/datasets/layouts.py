"""The same few pictures and boxes in every layout that is read."""
import functools
import hashlib
import io
import json
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import yaml
from PIL import Image

from amdlib.datasets.dataset import fingerprint

CLASSES = ('Löwe', 'no', 'zebra crossing')
# by split: name, size, boxes of class and corners (counted from 0); one picture has no box
PICTURES = {
    'train': [('ein Bild.jpg', (64, 48), [('no', (3, 4, 23, 14)), ('Löwe', (30, 10, 64, 48))]),
              ('tür/IMG 2.JPG', (40, 60), [('zebra crossing', (0, 0, 40, 60))]),
              ('tür/leer.png', (50, 50), [])],
    'val': [('v.1.png', (33, 77), [('no', (1, 2, 5, 70))]), ('größe.jpeg', (90, 40), [('Löwe', (7, 8, 9, 38))])],
}


@functools.cache
def content(name, size):
    """A picture of noise, a file by its name."""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, 'PNG' if name.endswith('.png') else 'JPEG')
    return file.getvalue()


def put(path: Path, name: str, size) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(name, size))
    return path


def text(path: Path, words: str, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(words.encode(**how))
    return path


def boxes_of(dataset):
    """Fingerprint of what a data set says of its pictures, whatever they are called and in whichever order."""
    parts = []
    for ann, images in ((dataset.train_ann, dataset.train_images), (dataset.test_ann, dataset.test_images)):
        coco = json.loads(ann.read_text())
        names = {one['id']: one['name'] for one in coco['categories']}
        parts.append(sorted([hashlib.sha256((images / image['file_name']).read_bytes()).hexdigest(), sorted(
            [names[one['category_id']], one['bbox']] for one in coco['annotations'] if one['image_id'] == image['id'])]
            for image in coco['images']))
    return fingerprint(parts)


def joined(splits):
    return {'all': [picture for pictures in splits.values() for picture in pictures]}


# ---- COCO -------------------------------------------------------------------------------------------------------

def coco_content(pictures, called=str, first_id=1, extra=()):
    categories = [{'id': i, 'name': name, 'supercategory': 'cells'} for i, name in enumerate(CLASSES, first_id)]
    content = {'images': [], 'annotations': [], 'categories': [*extra, *categories]}
    for i, (name, size, boxes) in enumerate(pictures, 1):
        content['images'].append({'id': i, 'file_name': called(name), 'width': size[0], 'height': size[1]})
        for label, (x0, y0, x1, y1) in boxes:
            content['annotations'].append({
                'id': len(content['annotations']) + 1, 'image_id': i, 'bbox': [x0, y0, x1 - x0, y1 - y0], 'iscrowd': 0,
                'category_id': first_id + CLASSES.index(label), 'area': (x1 - x0) * (y1 - y0)})
    return content


def coco(root, splits):
    for split, pictures in splits.items():
        for name, size, _ in pictures:
            put(root / split / name, name, size)
        text(root / f'annotations/instances_{split}.json', json.dumps(coco_content(pictures)))


def coco_any_name(root, splits):
    """Pictures of all splits in one folder, names as Windows writes them, from another machine."""
    for split, pictures in splits.items():
        for name, size, _ in pictures:
            put(root / 'my pictures' / name, name, size)
        written = coco_content(pictures, lambda name: 'C:\\work\\my pictures\\' + name.replace('/', '\\'))
        text(root / f'labels_{split}_v2.json', json.dumps(written), encoding='utf-8-sig')


def coco_roboflow(root, splits):
    for split, pictures in splits.items():
        folder = root / {'val': 'valid'}.get(split, split)
        for name, size, _ in pictures:
            put(folder / name, name, size)
        extra = [{'id': 0, 'name': 'cells', 'supercategory': 'none'}]
        text(folder / '_annotations.coco.json', json.dumps(coco_content(pictures, extra=extra)))
    text(root / 'README.roboflow.txt', 'exported')


def coco_fiftyone(root, splits):
    for split, pictures in splits.items():
        folder = root if split == 'all' else root / split
        for name, size, _ in pictures:
            put(folder / 'data' / name, name, size)
        text(folder / 'labels.json', json.dumps({'info': {}, **coco_content(pictures, first_id=0)}))


# ---- Pascal VOC -------------------------------------------------------------------------------------------------

def xml(path, name, size, boxes):
    objects = ''.join(f'<object><name>{escape(label)}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>'
                      f'{x1 + 1}</xmax><ymax>{y1 + 1}</ymax></bndbox></object>' for label, (x0, y0, x1, y1) in boxes)
    text(path, f'<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height>'
               f'</size>{objects}</annotation>')


def voc(root, splits):
    for split, pictures in splits.items():
        names = [Path(name).name for name, _, _ in pictures]
        for (name, size, boxes), own in zip(pictures, names, strict=True):
            put(root / 'JPEGImages' / own, name, size)
            xml(root / 'Annotations' / f'{Path(own).stem}.xml', own, size, boxes)
        text(root / f'ImageSets/Main/{split}.txt', ''.join(f'{Path(name).stem}\r\n' for name in names))


def voc_beside(root, splits):
    for split, pictures in splits.items():
        folder = root if split == 'all' else root / {'val': 'valid'}.get(split, split)
        for name, size, boxes in pictures:
            xml(put(folder / name, name, size).with_suffix('.xml'), name, size, boxes)


def voc_two_folders(root, splits):
    for (name, size, boxes) in splits['all']:
        put(root / 'images' / name, name, size)
        xml((root / 'annotations' / name).with_suffix('.xml'), name, size, boxes)


# ---- YOLO -------------------------------------------------------------------------------------------------------

def line(label, corners, size):
    (x0, y0, x1, y1), (width, height) = corners, size
    return (f'{CLASSES.index(label)} {(x0 + x1) / 2 / width:.6f} {(y0 + y1) / 2 / height:.6f} {(x1 - x0) / width:.6f} '
            f'{(y1 - y0) / height:.6f}')


def labels(path, size, boxes, end='\n'):
    """A picture without a box has no file, or an empty one."""
    if boxes or path.stem == 'leer':
        text(path, ''.join(line(label, corners, size) + end for label, corners in boxes))


def yolo(root, splits):
    """As Ultralytics has it."""
    for split, pictures in splits.items():
        for name, size, boxes in pictures:
            put(root / 'images' / split / name, name, size)
            labels((root / 'labels' / split / name).with_suffix('.txt'), size, boxes)
    names = ''.join(f'  {i}: {name}\n' for i, name in enumerate(CLASSES))     # `no` without quotes is false to YAML
    paths = ''.join(f'{split}: images/{split}\n' for split in splits)
    text(root / 'pets.yaml', f'path: ../datasets/pets\n{paths}test:\nnames:\n{names}')


def yolo_roboflow(root, splits):
    """With a mark, line ends and slashes of Windows, and paths that lead beside the folder."""
    for split, pictures in splits.items():
        folder = root / {'val': 'valid'}.get(split, split)
        for name, size, boxes in pictures:
            put(folder / 'images' / name, name, size)
            labels((folder / 'labels' / name).with_suffix('.txt'), size, boxes, '\r\n')
    paths = ''.join(f'{split}: ..\\{ {"val": "valid"}.get(split, split)}\\images\r\n' for split in splits)
    words = f'{paths}test: ..\\test\\images\r\nnc: 3\r\nnames: {list(CLASSES)}\r\n'
    text(root / 'data.yaml', words, encoding='utf-8-sig')
    text(root / 'README.dataset.txt', 'exported')


def yolo_lists(root, splits):
    """A text file of paths a split, pictures in one folder."""
    for split, pictures in splits.items():
        for name, size, boxes in pictures:
            put(root / 'images' / name, name, size)
            labels((root / 'labels' / name).with_suffix('.txt'), size, boxes)
        paths = [f'./images/{name}' if split == 'train' else f'D:\\pets\\images\\{name}' for name, _, _ in pictures]
        text(root / f'{split}.txt', '\r\n'.join(paths), encoding='utf-16')
    text(root / 'data.yaml', yaml.safe_dump({'names': list(CLASSES), **{split: f'{split}.txt' for split in splits}}))


def yolo_folders(root, splits):
    """A list of folders."""
    for split, pictures in splits.items():
        for i, (name, size, boxes) in enumerate(pictures):
            put(root / f'images/{split}{i}' / name, name, size)
            labels((root / f'labels/{split}{i}' / name).with_suffix('.txt'), size, boxes)
    text(root / 'data.yml', yaml.safe_dump({'names': list(CLASSES), **{
        split: [f'images/{split}{i}' for i in range(len(pictures))] for split, pictures in splits.items()}}))


def yolo_polygons(root, splits):
    yolo(root, splits)
    for path in root.rglob('*.txt'):
        lines = []
        for words in map(str.split, path.read_text().splitlines()):
            x, y, w, h = map(float, words[1:])
            corners = [(x - w / 2, y), (x, y - h / 2), (x + w / 2, y), (x, y + h / 2)]
            lines.append(' '.join([words[0], *(f'{value:.7f}' for point in corners for value in point)]))
        path.write_text('\n'.join(lines))


def yolo_classes(root, splits):
    """As labelImg and Label Studio leave it."""
    for split, pictures in splits.items():
        folder = '' if split == 'all' else f'/{split}'
        for name, size, boxes in pictures:
            put(root / f'images{folder}' / name, name, size)
            labels((root / f'labels{folder}' / name).with_suffix('.txt'), size, boxes)
    text(root / 'classes.txt', '\n'.join(CLASSES) + '\n', encoding='cp1252')


def darknet(root, splits):
    for split, pictures in splits.items():
        for name, size, boxes in pictures:
            labels(put(root / 'obj_train_data' / name, name, size).with_suffix('.txt'), size, boxes)
        text(root / f'{split}.txt', ''.join(f'data/obj_train_data/{name}\n' for name, _, _ in pictures))
    paths = ''.join(f'{"valid" if split == "val" else split} = data/{split}.txt\n' for split in splits)
    text(root / 'obj.data', f'classes = 3\n{paths}names = data/obj.names\nbackup = backup/\n')
    text(root / 'obj.names', '\n'.join(CLASSES))


# ---- CVAT and tables --------------------------------------------------------------------------------------------

def cvat_image(number, name, size, boxes, subset=''):
    shapes = ''.join(f'<box label="{label}" occluded="0" xtl="{x0}.00" ytl="{y0}.00" xbr="{x1}.00" ybr="{y1}.00"/>'
                     for label, (x0, y0, x1, y1) in boxes)
    return f'<image id="{number}" name="{name}" {subset} width="{size[0]}" height="{size[1]}">{shapes}</image>'


def cvat(root, splits):
    images = ''
    for split, pictures in splits.items():
        for name, size, boxes in pictures:
            put(root / 'images' / split / name, name, size)
            images += cvat_image(len(images), name, size, boxes, '' if split == 'all' else f'subset="{split}"')
    names = ''.join(f'<label><name>{name}</name></label>' for name in CLASSES)
    text(root / 'annotations.xml', '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta>'
                                   f'<task><labels>{names}</labels></task></meta>{images}</annotations>')


def cvat_files(root, splits):
    for split, pictures in splits.items():
        for name, size, _ in pictures:
            put(root / split / 'images' / name, name, size)
        images = ''.join(cvat_image(i, *picture) for i, picture in enumerate(pictures))
        text(root / split / 'annotations.xml', f'<annotations>{images}</annotations>')


def csv(root, splits, separator=','):
    for split, pictures in splits.items():
        lines = []
        for name, size, boxes in pictures:
            put(root / 'images' / name, name, size)
            lines += [[f'images/{name}', *map(str, corners), label] for label, corners in boxes] or [
                [f'images/{name}', '', '', '', '', '']]
        text(root / f'{split}.csv', '\r\n'.join(map(separator.join, lines)))


def csv_header(root, splits):
    for split, pictures in splits.items():
        lines = ['filename;width;height;class;xmin;ymin;xmax;ymax']
        for name, size, boxes in pictures:
            put(root / split / name, name, size)
            lines += [f'"{Path(name).name}";{size[0]};{size[1]};{label};' + ';'.join(map(str, corners))
                      for label, corners in boxes] or [f'{Path(name).name};;;;;;;']
        text(root / split / '_annotations.csv', '\n'.join(lines) + '\n')


SPLIT = {one.__name__: one for one in (
    coco, coco_any_name, coco_roboflow, coco_fiftyone, voc, voc_beside, yolo, yolo_roboflow, yolo_lists, yolo_folders,
    yolo_polygons, yolo_classes, darknet, cvat, cvat_files, csv, csv_header)}
UNSPLIT = {one.__name__: one for one in (
    coco_any_name, coco_fiftyone, voc_beside, voc_two_folders, yolo_classes, cvat, csv)}
