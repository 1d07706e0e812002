"""Folders made at random, some odd, some wrong: what the check accepts survives an epoch and its evaluation, and what
it refuses is told. `FUZZ=200 pytest tests/datasets/test_fuzz.py` goes on for longer."""
import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from amdlib.datasets import prepare, trained_images
from amdlib.errors import DataError, RunError
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.runs.train import train

from . import layouts
from .folders import files_below

SEEDS = range(int(os.environ.get('FUZZ', 6)))
MODES = {'RGB': 'png jpg bmp tiff webp', 'L': 'png jpg bmp tiff', 'P': 'png bmp', 'RGBA': 'png webp', 'CMYK': 'jpg',
         'I;16': 'png', '1': 'png bmp'}
NARROW = (7, 90), (200, 11), (1, 1)
NAMES = ('{}', 'with blank {}', 'ümlaut-{}', 'deep/er/{}', "quo'te{}", '{}.upper')


def odd(draw, usual, *rare, share=0.03):
    """Mostly the usual value."""
    return draw.choice(rare) if draw.random() < share else usual


def write_picture(draw, path, size_px):
    """Noise, in a form that may be found in the wild; a few are cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = odd(draw, 'RGB', *MODES, share=0.5)
    kind = draw.choice(MODES[mode].split())
    noise = np.random.default_rng(draw.randrange(1000)).integers(0, 256, (size_px[1], size_px[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise).convert('L' if mode == 'I;16' else mode)
    if mode == 'I;16':
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    exif = Image.Exif()
    if draw.random() < 0.2:
        exif[0x0112] = draw.choice([0, 1, 3, 6, 8, 9])
    path = path.with_name(f'{path.name}.{kind}')
    picture.save(path, **({'exif': exif} if kind in ('jpg', 'png', 'webp') else {}))
    if draw.random() < 0.01:
        path.write_bytes(path.read_bytes()[:draw.randrange(path.stat().st_size)])
    return path


def box_in(draw, width, height):
    x, y = draw.uniform(-1, width), draw.uniform(-1, height)
    box = [x, y, draw.expovariate(1 / width), draw.expovariate(1 / height)]
    inside = [max(0, x), max(0, y), min(box[2], width - max(0, x)), min(box[3], height - max(0, y))]
    return [round(value, draw.choice([0, 1, 6])) for value in odd(draw, inside, box, share=0.01)]


def make_folder(root, draw):
    """A folder in COCO's layout."""
    (root / 'annotations').mkdir(parents=True)
    categories = [{'id': odd(draw, 3 * i, 2 ** 40 + i, share=0.1), 'name': odd(draw, f'class {i}', '<b>', 'ü', ' ')}
                  for i in range(draw.randint(1, 4))]
    for split in ('train2017', 'val2017'):
        images, boxes = [], []
        for number in range(draw.randint(1, 6)):
            size = draw.choice([(40, 32), (64, 64), (90, 120), (65, 33), odd(draw, (64, 64), *NARROW, share=0.4)])
            path = write_picture(draw, root / split / draw.choice(NAMES).format(f'{split}{number}'), size)
            images.append({'id': odd(draw, number + 1, 2 ** 45 + number, -number - 1, share=0.1),
                           'file_name': str(path.relative_to(root / split)),
                           'width': size[0], 'height': odd(draw, size[1], 1, size[1] + 1)})
            for _ in range(draw.choice([0, 1, 1, 2, 5, 40])):
                box = box_in(draw, *size)
                boxes.append({'id': len(boxes) + 1, 'image_id': images[-1]['id'], 'bbox': box,
                              'category_id': draw.choice(categories)['id'], 'iscrowd': odd(draw, 0, 1, share=0.1),
                              'area': odd(draw, box[2] * box[3], 0, 1e9)})
        content = {'images': images, 'annotations': boxes, 'categories': categories}
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return root


def run(tiny, data, place):
    profile = replace(tiny, name='small', data='folder', image_px=(64, 64), batch_size=1)
    return train(Run.of('retinanet-baseline', profile), Store(profile, data, place / 'results'))


@pytest.mark.slow
@pytest.mark.parametrize('seed', SEEDS)
def test_what_the_check_accepts_survives_an_epoch(tiny, tmp_path, seed):
    draw, told = random.Random(seed), ''
    for attempt in range(50):       # most folders have something wrong
        root = make_folder(tmp_path / f'set{attempt}', draw)
        try:
            data = prepare('folder', root, tmp_path / 'cache')
            if trained_images(data.train_ann):
                break
            with pytest.raises(RunError, match='has no image that mmdet trains on'):
                run(tiny, data, tmp_path)
        except DataError as error:
            told = str(error)
            assert told
            assert 'Traceback' not in told
    else:
        pytest.fail(f'none of 50 folders was accepted; the last one: {told}')
    assert run(tiny, data, tmp_path)['steps'] > 0


# ---- the other layouts ------------------------------------------------------------------------------------------

SCRAPS = (b'', b'\0', b'nan', b'-1', b'1e400', b'9' * 400, b'\xff\xfe', b'\xef\xbb\xbf', b'\r\n', b',', b'<', b'"',
          b'[', b'{', b': ', b'*a', b'!!python/object:x', b'../..', b'C:\\x', b'images', b'train', b'1.02',
          b'\xe2\x80\xa8')
PICTURES = ('.jpg', '.jpeg', '.png')


def spoilt(draw, content):
    """Some bytes left out, doubled, exchanged or cut off."""
    at, length = draw.randrange(len(content) + 1), draw.choice([0, 1, 3, 20, 60])
    rest = content[at + length:]
    return content[:at] + draw.choice([draw.choice(SCRAPS) + rest, content[at:at + length] + content[at:], rest, b''])


@pytest.mark.parametrize('layout', layouts.SPLIT)
def test_a_label_file_that_is_spoilt_is_read_or_refused(layout, tmp_path):
    for seed in range(2 * len(SEEDS)):
        draw, root = random.Random(seed), tmp_path / f'{seed}/pets'
        layouts.SPLIT[layout](root, layouts.PICTURES)
        files = [path for path in root.rglob('*') if path.is_file() and path.suffix.lower() not in PICTURES]
        file = draw.choice(sorted(files))
        file.write_bytes(spoilt(draw, file.read_bytes()))
        before, told = files_below(root), ''
        try:
            prepare('folder', root, root.parent / 'cache')
        except DataError as error:
            told = str(error) or 'nothing'
        assert '.new-' not in told != 'nothing'     # no file is named that is gone by now
        assert files_below(root) == before


def pictures(draw, split):
    """Pictures of a layout with boxes that may leave them a little, or lie in none."""
    made = []
    for number in range(draw.randint(2, 4)):
        width, height = size = draw.choice([(40, 32), (64, 64), (90, 120), (33, 65), (200, 11)])
        corners = [(draw.randint(-2, width), draw.randint(-2, height)) for _ in range(draw.choice([0, 1, 2, 9]))]
        made.append((f'{draw.choice(["", "a b/", "ü/"])}{split}{number}.{draw.choice(["jpg", "JPG", "png"])}', size, [
            (draw.choice(layouts.CLASSES), (x, y, x + draw.randint(0, width // 2), y + draw.randint(0, height // 2)))
            for x, y in corners]))
    return made


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['coco_any_name', 'voc_beside', 'yolo'])
def test_what_is_read_of_another_layout_survives_an_epoch(tiny, tmp_path, layout):
    draw, told = random.Random(layout), ''
    for attempt in range(50):
        root = tmp_path / f'set{attempt}'
        layouts.SPLIT[layout](root, {split: pictures(draw, split) for split in ('train', 'val')})
        try:
            data = prepare('folder', root, tmp_path / 'cache', negatives=draw.choice([None, 'drop']))
        except DataError as error:
            told = str(error)
            continue
        if trained_images(data.train_ann):
            break
    else:
        pytest.fail(f'none of 50 folders was accepted; the last one: {told}')
    assert run(tiny, data, tmp_path)['steps'] > 0
