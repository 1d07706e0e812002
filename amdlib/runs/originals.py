"""mmdet's own configs, from which every Config is made, and the published files that they name."""
from __future__ import annotations

import functools
import json
import warnings

from mmengine.config import Config

from amdlib.errors import SettingError
from amdlib.files import digest
from amdlib.paper.rows import Row
from amdlib.weights import published


@functools.cache    # reads files; what it returns is copied before it is changed
def get_config(name: str) -> Config:
    """A config of mmdet's (`mmdet::gfl/gfl_r50_fpn_1x_coco.py`) or of the user's, a file. It is Python and is executed.

    Errors: SettingError where there is none, or where it cannot be read.
    """
    from mmengine import hub  # which imports all that trains
    try:
        return hub.get_config(name) if '::' in name else Config.fromfile(name)
    except Exception as error:  # whatever a config of the user's raises
        raise SettingError(f'{name}: no config that can be read ({type(error).__name__}: {error}); expected a file, or '
                           'mmdet::folder/name.py') from error


@functools.cache
def config_digest(name: str) -> str:
    """16 hex digits over all that a config and its bases say."""
    return digest(json.dumps(get_config(name).to_dict(), sort_keys=True, default=str))


warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # mmengine's; setuptools is pinned for it


def published_url(row: Row, key: str) -> str:
    """Address of the published file that stands for a file setting at `paper`."""
    if key.endswith('checkpoint'):
        return row.group.teacher_url
    of_teacher = row.is_teacher or key == 'teacher_backbone'
    name = row.group.teacher_config if of_teacher else row.group.student_config
    return published.address(get_config(name).model.backbone.init_cfg.checkpoint)
