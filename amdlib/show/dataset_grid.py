"""A look at a data set: some pictures of each split with their boxes, as they are loaded for training."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from amdlib.datasets import Dataset
from amdlib.show.charts import STYLE

COLUMNS, ROWS = 5, 2        # of pictures, a split
LONGEST_PX = 320            # side of a picture that is drawn
COLOURS = '#56B4E9', '#F0E442', '#CC79A7', '#009E73', '#0072B2', '#999999', '#FFFFFF', '#000000'
LEGEND = 24                 # classes that it names


def grid(dataset: Dataset) -> Figure:
    """Pictures at even distances through each split, in its order, with boxes in a colour a class; crowds dashed."""
    splits = {'train': (dataset.train_ann, dataset.train_images), 'test (reported)': (
        dataset.test_ann, dataset.test_images), 'val': (dataset.val_ann, dataset.val_images)}
    read = {split: (json.loads(ann.read_text()), images) for split, (ann, images) in splits.items() if ann}
    lines = [(split, coco, images, line) for split, (coco, images) in read.items()
             for line in _lines(len(coco['images']))]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dataset.classes)}
    with plt.rc_context({**STYLE, 'axes.grid': False}):
        figure, axes = plt.subplots(len(lines), COLUMNS, figsize=(1.7 * COLUMNS, 0.5 + 1.7 * len(lines)), squeeze=False,
                                    layout='constrained')
        for row, (split, coco, images, line) in zip(axes, lines, strict=True):
            names = {one['id']: one['name'] for one in coco['categories']}
            for axis, index in zip(row, [*line, *[None] * (COLUMNS - len(line))], strict=True):
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if index is not None:
                    _draw(axis, coco['images'][index], coco['annotations'], images, names, colours)
            row[0].set_ylabel(split)
        shown = list(colours.items())[:LEGEND]
        handles = [Patch(facecolor=colour, edgecolor='black', label=_plain(name)) for name, colour in shown]
        figure.legend(handles=handles, loc='outside lower center', ncols=min(8, len(shown)), frameon=False)
    return figure


def _lines(count: int) -> list[list[int]]:
    """Which images of a split stand in each line."""
    shown = min(count, COLUMNS * ROWS)
    chosen = [i * count // shown for i in range(shown)]
    return [chosen[i:i + COLUMNS] for i in range(0, shown, COLUMNS)]


def _draw(axis: Axes, image: dict, annotations: list[dict], folder: Path, names: Mapping[int, str],
          colours: Mapping[str, str]) -> None:
    loaded = cv2.imread(str(folder / image['file_name']))
    if loaded is None:      # in a large split not every picture was opened
        axis.set_title(f'{_plain(image["file_name"])}\nnot readable', fontsize=6)
        return
    own = [one for one in annotations if one['image_id'] == image['id']]
    draw_boxes(axis, loaded, [one['bbox'] for one in own], [colours[names[one['category_id']]] for one in own],
               ['--' if one['iscrowd'] else '-' for one in own], LONGEST_PX)
    name = image['file_name'] if len(image['file_name']) <= 26 else f'...{image["file_name"][-23:]}'
    boxes = f'{len(own)} box{"es" * (len(own) != 1)}'
    axis.set_title(f'{_plain(name)}\n{image["width"]}x{image["height"]}, {boxes}', fontsize=6)


def draw_boxes(axis: Axes, bgr: np.ndarray, boxes_xywh_px: Sequence[Sequence[float]], colours: Sequence[str],
               lines: Sequence[str], longest_px: int) -> None:
    """A picture as OpenCV reads it, made smaller where its longer side is above `longest_px`, with its boxes."""
    scale = min(1.0, longest_px / max(bgr.shape[:2]))
    size_px = [max(1, round(side * scale)) for side in bgr.shape[1::-1]]
    axis.imshow(cv2.resize(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), size_px, interpolation=cv2.INTER_AREA))
    for box, colour, line in zip(boxes_xywh_px, colours, lines, strict=True):
        x, y, width, height = (side * scale for side in box)
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.2,
                                 linestyle=line, clip_on=False,
                                 path_effects=[withStroke(linewidth=2.4, foreground='black')]))


def _plain(text: str) -> str:
    """As it is written: a dollar sign begins no formula."""
    return text.replace('$', r'\$')
