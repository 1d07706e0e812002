"""Beyond the tables: a dry run of every row at full size, what each row costs, a queue foretold, detectors for
use elsewhere, and which of mmdet's families of detectors can be distilled.

What trains or draws is not here.
"""
from amdlib import mmcv_ext  # noqa: F401  (serves mmcv's operators, so before anything imports mmdet)
