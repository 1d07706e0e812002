"""COCO's 12 numbers by pycocotools, which is all that this needs: whoever only reads results loads no detector."""
from __future__ import annotations

import contextlib
import io
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

METRICS = ('mAP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L', 'AR1', 'AR10', 'mAR', 'AR_S', 'AR_M', 'AR_L')  # COCO's order


def evaluated(ann_file: str | Path, detections: list[dict], **parameters: object) -> COCOeval:
    """pycocotools' evaluation of detections with every image matched.

    Args:
        detections: COCO results format, boxes xywh in pixels.
        parameters: of COCOeval, instead of its defaults (at most 100 detections an image).
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(ann_file))
        found = COCO()
        if detections:
            found = truth.loadRes([dict(detection) for detection in detections])  # it writes into them
        else:  # loadRes refuses an empty list
            found.dataset = {**{key: truth.dataset[key] for key in ('images', 'categories')}, 'annotations': []}
            found.createIndex()
        evaluation = COCOeval(truth, found, 'bbox')
        for name, value in parameters.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
    return evaluation


def coco_numbers(ann_file: str | Path, detections: list[dict]) -> dict[str, float | None]:
    """The 12 COCO numbers in percent at full precision; None where the data set has no object of that size.

    Args:
        detections: as for `evaluated`.
    Source: pycocotools' COCOeval with its defaults.
    """
    evaluation = evaluated(ann_file, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return {name: None if value < 0 else 100 * float(value)  # COCOeval writes -1 for "no such object"
            for name, value in zip(METRICS, evaluation.stats, strict=True)}
