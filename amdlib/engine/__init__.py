"""What decides a number: distiller, runner, checkpoints, and the training itself, told all by a `Task`.

An edit here makes every recorded number stale: whatever only tells of a run (progress, advice, records) belongs in
`runs`; rows, profiles and data sets are unknown here. Importing it registers all that a Config names (custom_imports).
"""
from amdlib import mmcv_ext  # noqa: F401  (serves mmcv's operators, so before anything imports mmdet)
from amdlib.engine import checkpoints, coco, distiller, runner, start, training  # noqa: F401  (they register)
