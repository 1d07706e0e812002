"""COCO's 12 numbers, and the metric that writes a test's detections and computes the numbers from them."""
from __future__ import annotations

import contextlib
import io
from pathlib import Path

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS as METRIC_CLASSES
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from amdlib.files import write_json

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


@METRIC_CLASSES.register_module()
class CocoNumbers(CocoMetric):
    """COCO's 12 numbers at full precision, from detections that are written first (to 0.01 px and 1e-6 in score).

    Args:
        known: False for a detector whose classes are not the data's: nothing is counted, no number is there.
    """

    def __init__(self, ann_file: str, detections: str | None = None, known: bool = True, **kwargs) -> None:
        super().__init__(ann_file=ann_file, metric='bbox', **kwargs)
        self.ann_file, self.detections, self.known = ann_file, detections, known
        if detections:  # where several processes put their parts; mmengine's own choice is the current folder
            self.collect_dir = str(Path(detections).with_name('mmengine') / 'parts')

    def compute_metrics(self, results: list) -> dict[str, float | None]:
        category_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        found = [{'image_id': int(image['img_id']), 'category_id': int(category_ids[label]),
                  'bbox': [round(float(v), 2) for v in self.xyxy2xywh(box)], 'score': round(float(score), 6)}
                 for _, image in results
                 for box, label, score in zip(image['bboxes'], image['labels'], image['scores'], strict=True)
                 if self.known]
        if self.detections:
            write_json(self.detections, found)
        return coco_numbers(self.ann_file, found) if self.known else dict.fromkeys(METRICS)
