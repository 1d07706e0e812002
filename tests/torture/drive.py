"""Train a student, its teacher first; killed and called again it goes on.

As a batch does, a process for each run; or alone, in this process.
"""
import json
import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import mmengine.config.config
import torch

import amdlib.engine.training  # noqa: F401  (what takes seconds to import is there before a fork)
from amdlib.cli import told
from amdlib.datasets import prepare
from amdlib.datasets.formats.shapes import ShapesSpec
from amdlib.paper.profiles import PROFILES, Network
from amdlib.runs import progress
from amdlib.runs.batch import run_missing
from amdlib.runs.recipe import Means
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.runs.train import train

from . import hook

PROFILE = replace(PROFILES['mini'], image_px=(64, 64), batch_size=2, epochs={'student': 2}, student=Network(18, 8),
                  teacher=Network(18, 8), head_convs=1, fc_channels=16, proposals=20, log_every=1, shipped='')
RUN = Run.of('retinanet-amd', PROFILE)
RUNS = (RUN.teacher(), RUN)


def store(folder):
    """The store of the tortured runs."""
    data = prepare('shapes', cache=folder / 'data', shapes=ShapesSpec(train_images=8, test_images=4, val_images=3))
    return Store(PROFILE, data, folder / 'results', Means(device='cpu', jobs=1))


def drive(folder, alone, asked, out):
    """What a forked process does: with the hook, all that it says in the file `out`, as the command line would."""
    os.setsid()
    with open(out, 'w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    # a config as text is laid out ten times a run, which takes longer than all of its steps
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    progress.time = SimpleNamespace(monotonic=lambda: 5.0)   # told by phases, not by the clock: always the same points
    asked = {**asked, 'top': os.getpid()}
    os.environ['TORTURE'] = json.dumps(asked)
    hook.install(asked)

    def do():
        own = store(folder)
        if alone:
            train(RUN, own)
        else:
            run_missing([RUN], own)
    status = told(do)
    sys.stdout.flush()
    sys.exit(status)
