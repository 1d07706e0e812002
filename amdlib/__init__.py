"""The AMD kit: Adaptive Masked Distillation for Object Detection (arXiv 2301.13538) and its rivals.

`amd` and `losses` hold the mathematics on torch alone; `distill` puts it into mmengine; `experiments` lists every
cell of the paper's tables as a row; `train` runs one; `results` tabulates. Importing the package serves mmcv's
compiled operators from torchvision (`mmcv_ext`), unless a compiled mmcv is installed.
"""
from importlib.util import find_spec

__version__ = '0.1.0'


class KitError(Exception):
    """Base of the kit's own errors: what the command line tells in a line, without a traceback."""


# `python -m amdlib doctor` has to run, and say what is missing, where these are missing
if all(find_spec(name) for name in ('torch', 'torchvision', 'mmcv')):
    from amdlib import mmcv_ext  # noqa: F401  (installs itself)
