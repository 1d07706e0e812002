"""Train a student, its teacher first: `python drive.py FOLDER [--alone]`; killed and called again it goes on.

As a batch does, a process for each run; with `--alone` in this process.
"""
import sys
from dataclasses import replace
from pathlib import Path

from amdlib.datasets import prepare
from amdlib.datasets.formats.shapes import ShapesSpec
from amdlib.paper.profiles import PROFILES, Network
from amdlib.runs.batch import run_missing
from amdlib.runs.recipe import Means
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.runs.train import train
from amdlib.words import show_log

PROFILE = replace(PROFILES['mini'], image_px=(64, 64), batch_size=2, epochs={'student': 2}, student=Network(18, 8),
                  teacher=Network(18, 8), head_convs=1, fc_channels=16, proposals=20, log_every=1, shipped='')
RUN = Run.of('retinanet-amd', PROFILE)
RUNS = (RUN.teacher(), RUN)


def store(folder):
    """The store of the tortured runs."""
    data = prepare('shapes', cache=folder / 'data', shapes=ShapesSpec(train_images=8, test_images=4, val_images=3))
    return Store(PROFILE, data, folder / 'results', Means(device='cpu', jobs=1))


if __name__ == '__main__':
    show_log()
    own = store(Path(sys.argv[1]))
    if '--alone' in sys.argv:
        train(RUN, own)
    else:
        run_missing([RUN], own)
