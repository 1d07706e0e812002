"""A finished run as files for others: the plain detector for stock mmdet, a card that describes it, and ONNX.

mmdet needs `<name>-<hash>.pth` and `<name>.py` and nothing of this kit (with mmcv-lite `import amdlib.mmcv_ext` first,
which serves the operators; a compiled mmcv needs not even that).
"""
from __future__ import annotations

import copy
import importlib.util
import json
import os
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from amdlib import KitError, data, results, tables, weights
from amdlib.data import Dataset
from amdlib.experiments import Row, Run, find_profile, find_row, get_config

PARITY_IMAGES, PARITY_LIMIT = 3, 1e-4   # largest difference between onnxruntime and torch, of the largest value
ONNX_OPSET = 17
TESTING = ('default_scope', 'default_hooks', 'env_cfg', 'vis_backends', 'visualizer', 'log_processor', 'log_level',
           'load_from', 'test_cfg')     # of mmdet's config; what init_detector and tools/test.py read


class ExportError(KitError, ValueError):
    """A run cannot be exported; the message says why and what would help."""


def export(run: str | Path, profile: str, dataset: Dataset, results_dir: Path = results.ROOT / 'results', *,
           output: Path | None = None, onnx: bool = False, files: dict[str, str] | None = None,
           stale_ok: bool = False, say=print) -> dict[str, Path]:
    """Write a run's detector, its mmdet config and a card; with `onnx` also the network as ONNX. Return the paths.

    Args:
        run: name of a run's folder (`retinanet-amd+phi=0.7-s0`) or a run's folder.
        output: folder to write into; default: `export` in the run's folder.
        files: the weight files that the run was made with, by setting, where it was made with any.
        stale_ok: export a run that would be made again, too.
    Errors: ExportError for a run that is unknown, unfinished or stale, an ONNX graph that is not possible or does not
        agree with torch, and missing packages.
    """
    place = _find(run, profile, dataset, results_dir)
    record = _record(place)
    if (stale := _why_stale(place, record, dataset, results_dir, files or {})) and not stale_ok:
        raise ExportError(f'{record["id"]} is {stale}; --stale-ok exports it all the same')
    trained = Config.fromstring(record['config'], '.py')
    model = trained.model.student if trained.model.type == 'Distiller' else trained.model
    if onnx:
        _check_onnx(model, record['id'])
    row, name = find_row(record['row']), f'{record["id"]}-{dataset.name}'
    output = Path(output) if output else place / 'export'
    output.mkdir(parents=True, exist_ok=True)

    state = weights.read_weights(place / 'weights.pth')
    written = {'config': output / f'{name}.py'}
    _write_text(written['config'], mmdet_config(trained, row, record))
    detector = _build(written['config'])
    weights.load_strictly(detector, state, str(place / 'weights.pth'))
    meta = _meta(record, trained)
    written['weights'] = _under_its_hash(output, name, '.pth', lambda path: weights.write_weights(path, state, meta))
    parity = None
    if onnx:
        images = _test_images(trained, dataset)
        network = RetinaNetBoxes(detector)

        def write(path: Path) -> None:
            nonlocal parity
            write_onnx(network, path, {**_onnx_properties(model, meta), 'run': name})
            parity = check_onnx(path, network, images)
        written['onnx'] = _under_its_hash(output, name, '.onnx', write)
        say(f'ONNX: {len(images)} test images, largest difference to torch {parity["boxes"]:.1e} px in boxes, '
            f'{parity["scores"]:.1e} in scores')
    written['card'] = output / f'{name}.md'
    _write_text(written['card'], card(record, row, meta, written, parity, stale))
    for path in written.values():
        say(f'{path} ({path.stat().st_size:,} bytes)')
    return written


# ---- the run ----------------------------------------------------------------------------------------------------

def profile_of(run: str | Path) -> str | None:
    """The profile that a run's folder tells; None for a name or an unfinished run."""
    record = Path(run) / 'record.json'
    return json.loads(record.read_text()).get('profile') if record.is_file() else None


def _find(run: str | Path, profile: str, dataset: Dataset, results_dir: Path) -> Path:
    if Path(run).is_dir():
        return Path(run).resolve()
    runs = results.folder(profile, dataset, results_dir) / 'runs'
    if not (place := runs / run).is_dir():
        there = sorted(path.name for path in runs.glob('*') if path.is_dir())
        raise ExportError(f'no run {str(run)!r} in {runs}; there are: {", ".join(there) or "none"}')
    return place


def _record(place: Path) -> dict:
    path = place / 'record.json'
    if not path.is_file():
        found = results.unfinished(place)
        raise ExportError(f'{place.name} is {found.name} ({found.why}); only a finished run can be exported')
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ExportError(f'{path} cannot be read: {error}') from None
    if not (place / 'weights.pth').is_file():
        raise ExportError(f'{place / "weights.pth"} is missing')
    return record


def _why_stale(place: Path, record: dict, dataset: Dataset, results_dir: Path, files: dict[str, str]) -> str:
    """Why a finished run would be made again now; empty where it would not."""
    if missing := [key for key in record['files'] if key in record['settings'] and key not in files]:
        given = ', '.join(f'{key}={record["settings"][key]}' for key in missing)
        return f'not to be checked without the weight files that it was made with (--set {given}, with their folder)'
    if weights.sha256(place / 'weights.pth') != record['weights_sha256']:
        return 'stale: weights.pth is not the file that the record speaks of (another SHA-256)'
    run = Run.of(record['row'], record['profile'], record['seed'], {**record['settings'], **files})
    depth = len(results.folder(record['profile'], dataset, Path()).parts)
    beside = place.parents[depth + 1] if place.parent.name == 'runs' else results_dir  # where its teacher lies
    found = results.state(run, dataset, beside, place)
    return '' if found.name == 'done' else f'{found.name}: {found.why}'


# ---- for mmdet --------------------------------------------------------------------------------------------------

def mmdet_config(trained: Config, row: Row, record: dict) -> str:
    """The text of an mmdet config for inference and testing, of mmdet's own types only.

    Where the run's detector and image scale are those of one of mmdet's configs, it inherits that config.
    """
    model = trained.model.student if trained.model.type == 'Distiller' else trained.model
    base = row.group.teacher_config if row.is_teacher else row.group.student_config
    head = f'# {record["id"]}, profile {record["profile"]}; inference and testing with mmdet 3.3\n'
    original, pipeline = get_config(base), trained.test_dataloader.dataset.pipeline
    if (_weightless(model) == _weightless(original.model)
            and _without_truth(pipeline) == _without_truth(original.test_dataloader.dataset.pipeline)):
        return f'{head}_base_ = {base!r}\n'
    original = get_config(row.group.student_config)
    cfg = Config({key: copy.deepcopy(original[key]) for key in TESTING if key in original})
    cfg.model = _weightless(model)
    given = trained.test_dataloader.dataset
    name = record['data']['name']
    cfg.test_dataloader = dict(
        batch_size=1, num_workers=2, persistent_workers=True, drop_last=False,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='CocoDataset', data_root=f'data/{name}/', ann_file=Path(given.ann_file).name,
                     data_prefix=dict(img=f'{Path(given.data_prefix.img).name}/'), test_mode=True,
                     metainfo=given.metainfo, pipeline=pipeline))
    cfg.test_evaluator = dict(type='CocoMetric', metric='bbox', ann_file=f'data/{name}/{Path(given.ann_file).name}')
    return f'{head}# data below data/{name}/: change data_root, ann_file and data_prefix to yours\n{cfg.pretty_text}'


def _weightless(model: ConfigDict) -> ConfigDict:
    """A detector's config without where its backbone's first weights came from: the file has all weights."""
    model = copy.deepcopy(model)
    model.backbone.init_cfg = None
    return model


def _without_truth(pipeline: list) -> list:
    return [step for step in pipeline if step.type != 'LoadAnnotations']


def _meta(record: dict, trained: Config) -> dict:
    """What the weight file says of itself; plain types, so that it loads without running code."""
    classes = tuple(trained.test_dataloader.dataset.metainfo.classes)
    return {'dataset_meta': {'classes': classes},  # mmdet takes the names of classes from here
            **{key: record[key] for key in ('id', 'row', 'profile', 'seed', 'settings', 'settings_hash', 'numbers',
                                            'versions', 'weights_sha256')},
            'data': {key: record['data'][key] for key in ('name', 'fingerprint')}, **record['code']}


def _build(config: Path) -> nn.Module:
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    return MODELS.build(_weightless(cfg.model)).eval()


def _under_its_hash(folder: Path, name: str, suffix: str, write) -> Path:
    """Write a file beside, name it after the first 8 digits of its SHA-256, as the model zoo does."""
    beside = folder / f'.{name}{suffix}.{os.getpid()}'
    try:
        write(beside)
        path = folder / f'{name}-{weights.sha256(beside)[:8]}{suffix}'
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    beside.write_text(text)
    os.replace(beside, path)


# ---- ONNX -------------------------------------------------------------------------------------------------------

class RetinaNetBoxes(nn.Module):
    """RetinaNet from pixels to decoded boxes, for ONNX: normalisation and padding are inside, NMS is not.

    Input: images (N, 3, H, W), RGB, float32, 0 to 255, resized as the config's test pipeline does; any N, H, W.
    Outputs: boxes_xyxy_px (N, A, 4) in pixels of the input, clipped to it; scores (N, A, classes), 0 to 1.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = detector.backbone, detector.neck, detector.bbox_head
        pixels = detector.data_preprocessor
        self.register_buffer('mean', pixels.mean.clone())
        self.register_buffer('std', pixels.std.clone())
        self.swap_channels = not pixels._channel_conversion  # mmdet reads BGR; most of its networks want RGB
        self.divisor, self.pad_value = pixels.pad_size_divisor, pixels.pad_value
        self.eval()  # torch.onnx.export leaves every part in the mode that the whole was in

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        n, _, h, w = images.shape
        pixels = (images.flip(1) if self.swap_channels else images) - self.mean
        pixels = F.pad(pixels / self.std, (0, -w % self.divisor, 0, -h % self.divisor), value=self.pad_value)
        class_maps, delta_maps = self.head(self.neck(self.backbone(pixels)))
        scores = torch.cat([_flat(level, self.head.cls_out_channels) for level in class_maps], 1).sigmoid()
        deltas = torch.cat([_flat(level, 4) for level in delta_maps], 1)
        anchors = torch.cat(self.head.prior_generator.grid_priors(
            [level.shape[-2:] for level in class_maps], device=images.device))
        boxes = self.head.bbox_coder.decode(anchors.repeat(n, 1), deltas.reshape(-1, 4)).reshape(n, -1, 4)
        limits = torch.stack([torch.as_tensor(side, device=images.device) for side in (w, h, w, h)]).to(boxes)
        return torch.minimum(boxes.clamp(min=0), limits), scores


def _flat(level: Tensor, values: int) -> Tensor:
    """(N, anchors * values, H, W) -> (N, H * W * anchors, values)."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, values)


def _check_onnx(model: ConfigDict, run_id: str) -> None:
    if model.type != 'RetinaNet':
        raise ExportError(f'{run_id}: ONNX export serves RetinaNet; {model.type} needs operators inside the network '
                          '(deformable convolution, RoI align, NMS) that mmcv exports only under names of its own')
    missing = [name for name in ('onnx', 'onnxruntime') if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f'--onnx needs {" and ".join(missing)}: make setup, or pip install {" ".join(missing)}')


def write_onnx(network: RetinaNetBoxes, path: Path, properties: dict[str, str]) -> None:
    """Write the network as ONNX; batch, height and width are free. `properties` go into the file's metadata."""
    import onnx
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it traces; what a trace could freeze is held by check_onnx at other sizes
        # torch.export's exporter (dynamo=True) needs onnxscript, which is not pinned here
        torch.onnx.export(
            network, (torch.rand(2, 3, 96, 160) * 255,), str(path), dynamo=False, opset_version=ONNX_OPSET,
            input_names=['images'], output_names=['boxes_xyxy_px', 'scores'],
            dynamic_axes={'images': {0: 'n', 2: 'h', 3: 'w'}, 'boxes_xyxy_px': {0: 'n', 1: 'anchors'},
                          'scores': {0: 'n', 1: 'anchors'}})
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph)
    onnx.helper.set_model_props(graph, properties)
    onnx.save(graph, str(path))


def check_onnx(path: Path, network: RetinaNetBoxes, images: list[Tensor]) -> dict[str, float]:
    """The largest absolute difference between onnxruntime and torch over `images`, by output; ExportError where it is
    above PARITY_LIMIT of the largest value."""
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    differences = {'boxes': 0.0, 'scores': 0.0}
    for image in images:
        found = session.run(None, {'images': image.numpy()})
        with torch.no_grad():
            wanted = network(image)
        for name, theirs, ours in zip(differences, found, wanted, strict=True):
            ours = ours.numpy()
            if theirs.shape != ours.shape:
                raise ExportError(f'ONNX: {name} {theirs.shape} for an image {tuple(image.shape)}; torch gives '
                                  f'{ours.shape}')
            difference, largest = float(np.abs(theirs - ours).max()), float(np.abs(ours).max())
            if not difference <= PARITY_LIMIT * largest:
                raise ExportError(f'ONNX: {name} differ from torch by {difference:.2g} (largest value {largest:.2g}); '
                                  f'allowed is {PARITY_LIMIT:g} of it')
            differences[name] = max(differences[name], difference)
    return differences


def _test_images(trained: Config, dataset: Dataset) -> list[Tensor]:
    """The first test images as the network's input, (1, 3, H, W) each."""
    init_default_scope('mmdet')
    load = Compose([step for step in trained.test_dataloader.dataset.pipeline
                    if step.type not in ('LoadAnnotations', 'PackDetInputs')])
    names = [image['file_name'] for image in data.coco_images(dataset.test_ann)[:PARITY_IMAGES]]
    loaded = [load({'img_path': str(Path(dataset.test_images) / name), 'img_id': 0})['img'] for name in names]
    return [torch.from_numpy(bgr[..., ::-1].transpose(2, 0, 1).astype(np.float32))[None] for bgr in loaded]


def _onnx_properties(model: ConfigDict, meta: dict) -> dict[str, str]:
    test = model.test_cfg
    return {'classes': json.dumps(meta['dataset_meta']['classes']), 'input': 'RGB, 0 to 255, resized, not normalised',
            'score_threshold': str(test.score_thr), 'nms_iou_threshold': str(test.nms.iou_threshold),
            'max_per_image': str(test.max_per_img), 'commit': str(meta['commit'])}


# ---- the card ---------------------------------------------------------------------------------------------------

def card(record: dict, row: Row, meta: dict, written: dict[str, Path], parity: dict[str, float] | None,
         stale: str = '') -> str:
    """Markdown: what the detector is, how it was made, how good it is, and how to load it."""
    classes, run = meta['dataset_meta']['classes'], Run.of(row, record['profile'])
    made = 'a teacher' if row.is_teacher else 'trained alone' if row.method is None else (
        f'distilled from {tables.detector(run.teacher())} by {row.label}')
    settings = ', '.join(f'{key} = {value}' for key, value in record['settings'].items()) or "the row's own"
    clean = {True: '', False: ' with changes that were not committed', None: ''}[record['code'].get('clean')]
    numbers = '\n'.join(f'| {name} | {"–" if value is None else f"{value:.2f}"} |'
                        for name, value in record['numbers'].items())
    parts = [
        f'# {written["config"].stem}',
        f'{tables.detector(run)}, {made}. From the AMD kit (arXiv 2301.13538), row `{row.id}`, profile '
        f'`{record["profile"]}`, seed {record["seed"]}, settings: {settings}.',
        '\n'.join([f'- data: {meta["data"]["name"]} (fingerprint {meta["data"]["fingerprint"]}): '
                   f'{"; ".join(record["data"]["notes"])}',
                   f'- {len(classes)} classes: {", ".join(classes)}',
                   f'- commit: {record["code"]["commit"]}{clean}',
                   f'- {record["steps"]} steps on {record["device"]}; settings hash {record["settings_hash"]}',
                   *([f'- when exported, this run was {stale}'] if stale else [])]),
        '| COCO number, percent | value |\n|:--|--:|\n' + numbers,
        find_profile(record['profile']).can_show,
        '## mmdet 3.3',
        '```python\nimport amdlib.mmcv_ext  # with mmcv-lite only: the operators; not needed where mmcv is compiled\n'
        'from mmdet.apis import inference_detector, init_detector\n\n'
        f"model = init_detector('{written['config'].name}', '{written['weights'].name}', device='cpu')\n"
        "found = inference_detector(model, 'image.jpg').pred_instances  # bboxes (xyxy, px), scores, labels\n```"]
    if 'onnx' in written:
        parts += ['## ONNX', (
            f'`{written["onnx"].name}`: input `images` (N, 3, H, W), float32, RGB, 0 to 255, resized as the config\'s '
            'test pipeline does; normalisation and padding are inside; N, H and W are free. Outputs `boxes_xyxy_px` '
            '(N, A, 4) in pixels of the input and `scores` (N, A, classes), one line an anchor. Then: drop low scores '
            'and boxes without area, NMS by class, keep the best; mmdet\'s thresholds are in the file\'s metadata. '
            f'Largest difference to torch on {PARITY_IMAGES} test images: {parity["boxes"]:.1e} px, '
            f'{parity["scores"]:.1e} in score.')]
    return '\n\n'.join(parts) + '\n'
