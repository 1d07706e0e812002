"""The metric that writes a test's detections and computes COCO's 12 numbers from them."""
from __future__ import annotations

from pathlib import Path

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS as METRIC_CLASSES

from amdlib.evaluation import METRICS, coco_numbers
from amdlib.files import write_json


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
