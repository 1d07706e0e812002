"""Finished runs that were never trained: random weights that find things, and the record that a run leaves."""
import copy
from dataclasses import replace

import torch
from mmdet.registry import MODELS

from amdlib.evaluation import METRICS
from amdlib.files import sha256, write_json
from amdlib.runs import fingerprints
from amdlib.runs.config import config, settings_hash
from amdlib.runs.run import Run
from amdlib.runs.train import plain
from amdlib.weights.writing import write_weights

NUMBERS = dict.fromkeys(METRICS, 12.5) | {'AP_S': None}


def confident(detector_cfg):
    """A detector with random weights that finds things: scores are spread instead of all near the prior."""
    torch.manual_seed(0)
    detector_cfg = copy.deepcopy(detector_cfg)  # building writes into it
    detector_cfg.backbone.init_cfg = None
    detector = MODELS.build(detector_cfg)
    detector.init_weights()
    for name, value in detector.named_parameters():
        if name.endswith(('retina_cls.weight', 'gfl_cls.weight', 'cls_out.weight', 'fc_cls.weight')):
            torch.nn.init.normal_(value, std=0.1)
        elif name.endswith(('retina_cls.bias', 'gfl_cls.bias', 'cls_out.bias')):
            torch.nn.init.constant_(value, -1.0)
        elif name.endswith('gfl_reg.weight'):   # or every box fills the image
            torch.nn.init.normal_(value, std=0.3)
    return detector.eval()


def finish(store, row, given=None, **changes):
    """Write what a finished run leaves; return its folder. Its teacher comes with it."""
    run = Run.of(row, store.profile, 0, given)
    if teacher := run.teacher():
        finish(store, teacher.row, teacher.settings)
    folder = store.run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    cfg = config(run, store.dataset)
    detector = confident(cfg.model.student if run.row.method else cfg.model)
    write_weights(store.weights(run), detector.state_dict(), {'run': run.id})
    write_json(folder / 'detections.json.gz', [])
    outside = run.row.method if run.row.method and ':' in run.row.method else None
    write_json(folder / 'record.json', {
        'format': 2, 'id': run.id, 'row': run.row.id, 'group': run.row.group.name, 'label': run.row.label,
        'profile': store.profile.name, 'seed': 0, 'settings': run.settings, 'settings_hash': settings_hash(cfg),
        'config': plain(cfg.to_dict()), 'files': {},
        'method_file': outside and {'name': outside.rpartition(':')[0].rpartition('/')[2], 'sha256': ''},
        'data': {'name': store.dataset.name, 'fingerprint': store.dataset.fingerprint,
                 'notes': list(store.dataset.notes)},
        'code_fingerprint': fingerprints.code_fingerprint(run), 'code': {'commit': 'c0ffee', 'clean': True},
        'teacher': {'weights_sha256': sha256(store.weights(teacher))} if teacher else None, 'numbers': NUMBERS,
        'weights_sha256': sha256(store.weights(run)), 'steps': 4, 'train_s': 1.0, 'device': 'CPU',
        'versions': fingerprints.versions(), **changes})
    return folder


def of_profile(store, **changes):
    """The store at a profile with changes."""
    return replace(store, profile=replace(store.profile, **changes))
