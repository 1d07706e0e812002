"""mmdet's own configs, from which every Config is made, and the published files that they name."""
from __future__ import annotations

import functools
import warnings

from mmengine import hub

from amdlib.paper.rows import Row
from amdlib.weights import published

get_config = functools.cache(hub.get_config)  # reads files; what it returns is copied before it is changed
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # mmengine's; setuptools is pinned for it


def published_url(row: Row, key: str) -> str:
    """Address of the published file that stands for a file setting at `paper`."""
    if key.endswith('checkpoint'):
        return row.group.teacher_url
    of_teacher = row.is_teacher or key == 'teacher_backbone'
    name = row.group.teacher_config if of_teacher else row.group.student_config
    return published.address(get_config(name).model.backbone.init_cfg.checkpoint)
