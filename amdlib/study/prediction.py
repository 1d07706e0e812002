"""What a trained detector finds in a picture of the user's."""
from __future__ import annotations

import contextlib
import functools
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmdet.apis import inference_detector, init_detector
from torch import nn

from amdlib.errors import DataError
from amdlib.show.charts import STYLE
from amdlib.show.dataset_grid import COLOURS, draw_boxes

LONGEST_PX = 640    # side of a picture that is drawn


@dataclass(frozen=True)
class Prediction:
    """Boxes (n, 4) xywh in pixels of the picture, scores (n,) 0 to 1 in falling order, the n names of classes.

    Args:
        bgr: the picture (H, W, 3).
        by: who found them.
        known: all classes of the detector.
    """
    bgr: np.ndarray
    boxes_xywh_px: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...]
    by: str
    known: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """A line a box: class, score, x, y, width, height."""
        found = pd.DataFrame({'class': self.classes, 'score': self.scores.astype(float).round(3)})
        sides = self.boxes_xywh_px.reshape(-1, 4).astype(float).round(1)
        return found.join(pd.DataFrame(sides, columns=['x', 'y', 'width', 'height']))

    def draw(self) -> Figure:
        """The picture with its boxes in a colour a class."""
        colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(self.known)}
        height, width = self.bgr.shape[:2]
        with plt.rc_context({**STYLE, 'axes.grid': False}):
            figure, axis = plt.subplots(figsize=(5, max(2, 5 * height / width) + 0.6), layout='constrained')
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            draw_boxes(axis, self.bgr, self.boxes_xywh_px, [colours[name] for name in self.classes],
                       ['-'] * len(self.classes), LONGEST_PX)
            axis.set_title(f'{self.by}: {len(self.classes)} found')
            shown = [Patch(facecolor=colours[name], edgecolor='black', label=f'{name} ({self.classes.count(name)})')
                     for name in dict.fromkeys(self.classes)]
            if shown:
                figure.legend(handles=shown, loc='outside lower center', ncols=min(4, len(shown)), frameon=False)
        return figure

    def _repr_png_(self) -> bytes:
        """In a notebook it is its picture."""
        figure, made = self.draw(), io.BytesIO()
        figure.savefig(made, format='png', dpi=110)
        plt.close(figure)
        return made.getvalue()


def predict(picture: str | Path | np.ndarray, config: Path, weights: Path, by: str, score: float) -> Prediction:
    """What an exported detector (config and weights) finds above `score`.

    Args:
        picture: a file, or pixels (H, W, 3) in OpenCV's order, BGR.
    Errors: DataError for a file that is no picture.
    """
    bgr = picture if isinstance(picture, np.ndarray) else cv2.imread(str(picture))
    if bgr is None:
        raise DataError(f'{picture}: {"not readable as a picture" if Path(picture).is_file() else "no such file"}')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = _detector(config, weights)
        found = inference_detector(model, bgr).pred_instances.cpu().numpy()
    kept = np.flatnonzero(found.scores >= score)
    kept = kept[np.argsort(-found.scores[kept], kind='stable')]
    boxes = found.bboxes[kept]
    known = tuple(model.dataset_meta['classes'])
    return Prediction(bgr, np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1), found.scores[kept],
                      tuple(known[label] for label in found.labels[kept]), by, known)


@functools.lru_cache(4)
def _detector(config: Path, weights: Path) -> nn.Module:
    with contextlib.redirect_stdout(io.StringIO()):     # it says what it loads
        return init_detector(str(config), str(weights), device='cuda:0' if torch.cuda.is_available() else 'cpu')
