"""Lines of records by hand; and runs that look as if trained: untrained weights, but a record that counts."""
import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope

from amdlib.evaluation import METRICS, coco_numbers
from amdlib.files import sha256, write_json
from amdlib.paper.rows import ROWS
from amdlib.runs import fingerprints
from amdlib.runs.config import config, settings_hash
from amdlib.runs.store import DETECTIONS, RECORD
from amdlib.weights import published
from amdlib.weights.writing import write_weights


def line(group, row, seed, mean_ap, **other):
    """One line of `Store.collect`: mAP as given, no objects for AP_S, every other number one more than mAP."""
    known = ROWS.get(f'{group}-{row}')
    return {'group': group, 'row': row, 'label': known and known.label, 'arm': 'alone', 'seed': seed,
            'machine': 'a CPU', **{metric: mean_ap + 1 for metric in METRICS}, 'mAP': mean_ap, 'AP_S': None, **other,
            'run': f'{group}-{row}-s{seed}', 'settings_hash': f'{row}{seed}', 'data': 'd' * 16, 'commit': 'c0ffee',
            'note': ''}


def finish(store, run, detections=(), **changes):
    """Leave a run's weights (those of the built detector), detections, and a record; return the detector.

    Args:
        changes: of the record.
    """
    folder, teacher = store.run_folder(run), run.teacher()
    folder.mkdir(parents=True, exist_ok=True)
    cfg = config(run, store.dataset)
    made_with = settings_hash(cfg)      # building the model writes into its config
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg.model.get('student', cfg.model))
    write_weights(store.weights(run), detector.state_dict(), {})
    write_json(folder / DETECTIONS, list(detections))
    taught = teacher and store.state(teacher).record
    write_json(folder / RECORD, {
        'id': run.id, 'row': run.row.id, 'group': run.row.group.name, 'label': run.row.label,
        'profile': run.profile.name, 'seed': run.seed, 'settings': run.settings, 'settings_hash': made_with,
        'settings_key': fingerprints.settings_key(run, store.dataset),
        'files': {key: published.digits(url).ljust(64, '0') for key, url in run.published_files().items()},

        'data': {'name': store.dataset.name, 'fingerprint': store.dataset.fingerprint, 'notes': []},
        'code': {'commit': 'c0ffee', 'clean': True}, 'code_fingerprint': fingerprints.code_fingerprint(run),
        'teacher': taught and {'id': teacher.id, 'weights_sha256': taught['weights_sha256']},
        'numbers': coco_numbers(store.dataset.test_ann, list(detections)), 'versions': fingerprints.versions(),
        'weights_sha256': sha256(store.weights(run)), 'train_s': 75.4, 'device': 'CPU', **changes})
    return detector
