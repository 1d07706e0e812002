"""RetinaNet as ONNX, compared with torch."""
from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from amdlib.datasets import Dataset, coco_images
from amdlib.errors import RunError

PARITY_IMAGES, PARITY_LIMIT = 3, 1e-4   # largest difference between onnxruntime and torch, of the largest value
OPSET = 17


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


def check_possible(model: ConfigDict, run_id: str) -> None:
    """RunError for a detector that is not served, and for missing packages."""
    if model.type != 'RetinaNet':
        raise RunError(f'{run_id}: ONNX export serves RetinaNet; {model.type} needs operators inside the network '
                       '(deformable convolution, RoI align, NMS) that mmcv exports only under names of its own')
    missing = [name for name in ('onnx', 'onnxruntime') if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f'--onnx needs {" and ".join(missing)}: make setup, or pip install {" ".join(missing)}')


def write_onnx(network: RetinaNetBoxes, path: Path, told: dict[str, str]) -> None:
    """Write the network as ONNX; batch, height and width are free. `told` goes into the file's metadata."""
    import onnx
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it traces; what a trace could freeze is held by check_onnx at other sizes
        # torch.export's exporter (dynamo=True) needs onnxscript, which is not pinned here
        torch.onnx.export(
            network, (torch.rand(2, 3, 96, 160) * 255,), str(path), dynamo=False, opset_version=OPSET,
            input_names=['images'], output_names=['boxes_xyxy_px', 'scores'],
            dynamic_axes={'images': {0: 'n', 2: 'h', 3: 'w'}, 'boxes_xyxy_px': {0: 'n', 1: 'anchors'},
                          'scores': {0: 'n', 1: 'anchors'}})
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph)
    onnx.helper.set_model_props(graph, told)
    onnx.save(graph, str(path))


def check_onnx(path: Path, network: RetinaNetBoxes, images: list[Tensor]) -> dict[str, float]:
    """The largest absolute difference between onnxruntime and torch over `images`, by output; RunError where it is
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
                raise RunError(f'ONNX: {name} {theirs.shape} for an image {tuple(image.shape)}; torch gives '
                               f'{ours.shape}')
            difference, largest = float(np.abs(theirs - ours).max()), float(np.abs(ours).max())
            if not difference <= PARITY_LIMIT * largest:
                raise RunError(f'ONNX: {name} differ from torch by {difference:.2g} (largest value {largest:.2g}); '
                               f'allowed is {PARITY_LIMIT:g} of it')
            differences[name] = max(differences[name], difference)
    return differences


def first_images(trained: Config, dataset: Dataset) -> list[Tensor]:
    """The first test images as the network's input, (1, 3, H, W) each."""
    init_default_scope('mmdet')
    load = Compose([step for step in trained.test_dataloader.dataset.pipeline
                    if step.type not in ('LoadAnnotations', 'PackDetInputs')])
    names = [image['file_name'] for image in coco_images(dataset.test_ann)[:PARITY_IMAGES]]
    loaded = [load({'img_path': str(Path(dataset.test_images) / name), 'img_id': 0})['img'] for name in names]
    return [torch.from_numpy(bgr[..., ::-1].transpose(2, 0, 1).astype(np.float32))[None] for bgr in loaded]


def properties(model: ConfigDict, meta: dict) -> dict[str, str]:
    """What the file says of itself: classes, input, thresholds."""
    test = model.test_cfg
    return {'classes': json.dumps(meta['dataset_meta']['classes']), 'input': 'RGB, 0 to 255, resized, not normalised',
            'score_threshold': str(test.score_thr), 'nms_iou_threshold': str(test.nms.iou_threshold),
            'max_per_image': str(test.max_per_img), 'commit': str(meta['commit'])}
