"""How near a distillation step is to what its parts take alone, a method's loss to the convolutions that it needs, and
an operator to torchvision's.

Only ratios are told: both sides are measured in one process, in turn, round after round, so that a slow minute of the
machine slows both. Each is the median over rounds, with the middle half of the rounds beside it.
"""
from __future__ import annotations

import ctypes
import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv.ops
import numpy as np
import pandas as pd
import torch
import torchvision
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn
from torch.nn import functional as F

from amdlib import methods
from amdlib.engine.distiller import Distiller
from amdlib.engine.taps import maps_in, tap
from amdlib.engine.training import peak_memory_bytes
from amdlib.errors import RunError
from amdlib.files import write_json, write_text
from amdlib.paper.printed import paper_groups
from amdlib.runs.config import config
from amdlib.runs.fingerprints import commit, machine
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.scale import where
from amdlib.scale.cost import device_name, made_batch, now_s, trainable
from amdlib.words import log, timestamp

ROUNDS = 15
SHAPES = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))    # (H, W) of the levels of an 800x1344 picture
IMAGES, CHANNELS, OBJECTS = 2, 256, 7
LOSSES = ('amd', 'mgd', 'fgd', 'fkd')     # of the paper
MANY = 100          # objects, on which FGD's time must not depend
GOAL_STEP, GOAL_LOSS, GOAL_OPERATOR = 1.10, 1.05, 1.1
OPERATOR_PX = SHAPES[2]     # of the map that operators are tried on

Parts = Mapping[str, Callable[[], None]]


def bench(store: Store, groups: Iterable[str] = (), rounds: int = ROUNDS, with_losses: bool = True,
          with_job: bool = True) -> Path:
    """Measure the steps of AMD at the store's profile, the losses and operators at the paper's shapes and where a job's
    time goes; write bench.json and bench.md beside the profile's results; return the latter.

    Errors: RunError for a profile without a data set.
    """
    if store.dataset is None:
        raise RunError(f'profile {store.profile.name}: a bench needs DATA')
    steps, losses, groups, few = [], [], list(groups or paper_groups()), max(3, rounds // 5)
    for group in groups:
        log.info(f'{group}: {rounds} rounds of steps')
        steps.append({'group': group, **of_steps(step_parts(Run.of(f'{group}-amd', store.profile), store), rounds)})
    for method in LOSSES if with_losses else ():
        log.info(f'{method}: {few} rounds at the shapes of the paper')
        losses.append({'method': method, **of_loss(method, few)})
    found = {**conditions(store, rounds), 'steps': steps, 'losses': losses,
             'operators': of_operators(rounds) if with_losses else [],
             'job': {'group': groups[0], **where.of_job(store, groups[0])} if with_job else None}
    return write('bench', found, text_of(found), store)


def conditions(store: Store, rounds: int) -> dict[str, Any]:
    """What a measurement hangs on besides what it measures."""
    return {'machine': machine(), 'threads': torch.get_num_threads(), 'device': device_name(), 'commit': commit(),
            'profile': store.profile.name, 'rounds': rounds, 'measured': timestamp()}


def told(found: Mapping[str, Any]) -> str:
    """The same in words, for a page."""
    cpu = f' ({found["machine"].get("cpu", "")})' if found['device'] == 'CPU' else ''
    return (f'{found["device"]}{cpu}, {found["threads"]} thread{"s" * (found["threads"] > 1)}, {found["rounds"]} '
            f'rounds, commit {str(found["commit"]["commit"])[:12]}')


def write(name: str, found: Mapping[str, Any], text: str, store: Store) -> Path:
    """Write what was measured and the page that tells it beside the profile's results; return the page."""
    folder = store.results / store.profile.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f'{name}.json', found)
    write_text(folder / f'{name}.md', text)
    return folder / f'{name}.md'


# ---- measuring --------------------------------------------------------------------------------------------------

def seconds(parts: Parts, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each part in each round, after one round that does not count; the first part of a round changes."""
    names, found = list(parts), {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name in [*names[turn % len(names):], *names[:turn % len(names)]]:
            began_s = clock_s()
            parts[name]()
            if turn:
                found[name].append(clock_s() - began_s)
    return {name: np.array(values) for name, values in found.items()}


def clock_s() -> float:
    """Of one thread its own time, which other work on the machine moves little; else the wall's."""
    alone = not torch.cuda.is_available() and torch.get_num_threads() == 1
    return time.process_time() if alone else now_s()


def ratio(over: np.ndarray, under: np.ndarray) -> list[float]:
    """Median over rounds of over / under, and the quartiles."""
    return [float(value) for value in np.quantile(over / under, (0.5, 0.25, 0.75))]


def of_steps(parts: Parts, rounds: int) -> dict[str, Any]:
    """The ratios of a step, and each part's share of a step whose teacher is kept."""
    took = seconds(parts, rounds)
    return {'step / parts alone': ratio(took['step'], took['student'] + took['teacher'] + took['loss']),
            'kept / limit': ratio(took['kept'], took['detector'] + took['convolutions']),
            'teacher / step': ratio(took['teacher'], took['step']),
            **{f'{name} / kept': ratio(took[name], took['kept'])
               for name in ('detector', 'network', 'loss', 'convolutions', 'update')}}


def of_loss(method: str, rounds: int) -> dict[str, Any]:
    """A method's loss, forward and backward over all levels at the paper's shapes, over the reference; with many
    objects over with few, where it looks at objects; its peak memory over that of MGD, written plainly."""
    device, loss_class = _device(), methods.find_method(method)
    reference = _features_and(lambda: TwoConvolutions(CHANNELS), device)
    own = _features_and(lambda: loss_class(CHANNELS, CHANNELS), device)
    parts = {'reference': lambda: reference(OBJECTS), 'few': lambda: own(OBJECTS)}
    if 'boxes' in inspect.getsource(loss_class.weighted_loss).partition('->')[2]:
        parts['many'] = lambda: own(MANY)
    took = seconds(parts, rounds)
    plain = _features_and(lambda: PlainMGD(CHANNELS), device)
    return {'loss / reference': ratio(took['few'], took['reference']),
            f'{MANY} objects / {OBJECTS}': ratio(took['many'], took['few']) if 'many' in took else '-',
            "peak memory / MGD's": [peak_bytes(own) / peak_bytes(plain)] * 3}


def of_operators(rounds: int) -> list[dict[str, Any]]:
    """mmcv's operators as the kit serves them, forward and, where there is one, backward, over torchvision's own and
    over plain gathering, the faster of them."""
    lines = []
    for name, parts in operators(_device()).items():
        took = seconds(parts, rounds)
        others = {other: taken for other, taken in took.items() if other != 'kit'}
        lines.append({'operator': name, 'kit / the faster': ratio(took['kit'], np.min([*others.values()], axis=0)),
                      **{f'kit / {other}': ratio(took['kit'], others[other]) if other in others else '-'
                         for other in ('torchvision', 'gather')}})
    return lines


def operators(device: torch.device) -> dict[str, Parts]:
    """By operator, the same computation in several ways."""
    draw = torch.Generator().manual_seed(0)
    height, width = OPERATOR_PX
    x = torch.randn(IMAGES, CHANNELS, height, width, generator=draw).to(device).requires_grad_()
    offset = torch.randn(IMAGES, 18, height, width, generator=draw).to(device).requires_grad_()
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, generator=draw).to(device).requires_grad_()
    corner = torch.rand(512, 2, generator=draw) * torch.tensor([width, height]) * 24
    boxes = torch.cat([corner, corner + 20 + torch.rand(512, 2, generator=draw) * 160], 1).to(device)
    rois = torch.cat([torch.arange(512, device=device)[:, None] % IMAGES, boxes], 1)
    scores = torch.rand(512, generator=draw).to(device)

    def both(compute: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], None]:
        return lambda: torch.autograd.grad(compute().square().sum(), leaves)
    return {
        'deformable convolution': {
            'kit': both(lambda: mmcv.ops.deform_conv2d(x, offset, weight, 1, 1, 1), x, offset, weight),
            'torchvision': both(lambda: torchvision.ops.deform_conv2d(x, offset, weight, padding=1), x, offset, weight),
            'gather': both(lambda: gathered_convolution(x, offset, weight), x, offset, weight)},
        'RoIAlign': {
            'kit': both(lambda: mmcv.ops.roi_align(x, rois, 7, 1 / 32, 2), x),
            'torchvision': both(lambda: torchvision.ops.roi_align(x, rois, 7, 1 / 32, 2, aligned=True), x)},
        'NMS': {'kit': lambda: mmcv.ops.nms(boxes, scores, 0.5),
                'torchvision': lambda: torchvision.ops.nms(boxes, scores, 0.5)}}


def gathered_convolution(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """A deformable 3x3 convolution by `grid_sample` and a product: (N, C, H, W), offsets (N, 18, H, W), y before x."""
    n, channels, height, width = x.shape
    taps = torch.arange(-1, 2, device=x.device)
    rows = torch.arange(height, device=x.device)[:, None] + taps.repeat_interleave(3)[:, None, None] + offset[:, 0::2]
    columns = torch.arange(width, device=x.device) + taps.repeat(3)[:, None, None] + offset[:, 1::2]
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)        # (N, 9, H, W, 2)
    found = F.grid_sample(x, grid.flatten(1, 2), align_corners=True)                                # (N, C, 9 H, W)
    return (weight.flatten(1) @ found.view(n, channels * 9, height * width)).view(n, -1, height, width)


def step_parts(run: Run, store: Store) -> dict[str, Callable[[], None]]:
    """A whole distillation step, the same with the teacher's features kept, and apart: the student's own step, the
    detector's loss and gradient as mmdet computes them (the network's pass and gradient are part of that), the
    teacher's pass, the loss on features that are there, of it the convolutions that every generation block needs, and
    the update of the weights."""
    device = _device()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cfg = config(run, store.dataset)
        model, optimizer = trainable(cfg, run, device)
        own = build_optim_wrapper(model.student, cfg.optim_wrapper)
        twins = nn.ParameterList(one.detach().clone() for one in model.parameters() if one.requires_grad)
        of_twins = build_optim_wrapper(twins, cfg.optim_wrapper)
    batch = made_batch(run, cfg)
    ready = model.data_preprocessor(batch, training=True)
    inputs, samples = ready['inputs'], ready['data_samples']
    boxes, shapes = [sample.gt_instances.bboxes for sample in samples], [sample.img_shape[:2] for sample in samples]
    with torch.no_grad(), tap(model.student, model.student_taps) as f_s:
        model.student.extract_feat(inputs)
    f_t = model._features_of(inputs, samples)
    f_s = [feature.detach().requires_grad_() for feature in f_s]
    convolutions = [TwoConvolutions(feature.shape[1]).to(device) for feature in f_t]
    head = getattr(model.student, 'bbox_head', None) or model.student.rpn_head

    def detector() -> None:
        _backward([model.student.parse_losses(model.student.loss(inputs, samples))[0]], model.student)

    def network() -> None:
        _backward([one.square().mean() for one in maps_in(head(model.student.extract_feat(inputs)))], model.student)

    def loss() -> None:
        _backward([one(s, t, boxes, shapes) for one, s, t in zip(model.distill_losses.values(), f_s, f_t, strict=True)],
                  model)

    def two_convolutions() -> None:
        _backward([one(s, t) for one, s, t in zip(convolutions, f_s, f_t, strict=True)], *convolutions)

    def update() -> None:
        for twin in twins:
            twin.grad = torch.ones_like(twin)
        of_twins.step()
        of_twins.zero_grad()

    def step() -> None:
        model.train_step(batch, optimizer)
    return {'step': step, 'kept': with_kept_features(model, f_t, step),
            'student': lambda: model.student.train_step(batch, own), 'detector': detector, 'network': network,
            'teacher': lambda: model._features_of(inputs, samples), 'loss': loss, 'convolutions': two_convolutions,
            'update': update}


def with_kept_features(model: Distiller, features: list[Tensor], step: Callable[[], Any]) -> Callable[[], None]:
    """The same step of a Distiller without its teacher's pass: these features are there."""
    def once() -> None:
        model.kept = lambda *_: features
        step()
        model.kept = None
    return once


class TwoConvolutions(nn.Module):
    """What is counted as 1: two 3x3 convolutions with a ReLU between them, and the sum of squares of a difference."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
                                   nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, f_s: Tensor, f_t: Tensor, *_: Any) -> Tensor:
        return (self.block(f_s) - f_t).square().sum()


class PlainMGD(TwoConvolutions):
    """MGD as its equation reads: two thirds of the positions masked at random, generated from the rest."""

    def forward(self, f_s: Tensor, f_t: Tensor, *_: Any) -> Tensor:
        return super().forward(f_s * (torch.rand_like(f_s[:, :1]) > 0.65), f_t) / len(f_t)


def _features_and(make: Callable[[], nn.Module], device: torch.device) -> Callable[[int], None]:
    """Forward and backward of a module a level, on made features and so many objects a picture."""
    draw = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(IMAGES, CHANNELS, *shape, generator=draw).to(device) for _ in range(2)] for shape in SHAPES]
    modules = [make().to(device) for _ in SHAPES]
    corner = torch.rand(IMAGES, MANY, 2, generator=draw) * 600
    boxes = torch.cat([corner, corner + 20 + torch.rand(IMAGES, MANY, 2, generator=draw) * 160], 2).to(device)
    sizes = [(8 * SHAPES[0][0], 8 * SHAPES[0][1])] * IMAGES

    def once(objects: int) -> None:
        terms = [module(s.requires_grad_(), t, list(boxes[:, :objects]), sizes)
                 for module, (s, t) in zip(modules, pairs, strict=True)]
        _backward(terms, *modules)
        for s, _ in pairs:
            s.grad = None
    return once


def _backward(terms: Sequence[Tensor], *modules: nn.Module) -> None:
    sum(terms).backward()
    for module in modules:
        module.zero_grad(set_to_none=True)


def peak_bytes(once: Callable[[int], None]) -> int:
    """What forward and backward take at most, beyond what was there before; on a CPU as Linux counts the process."""
    once(OBJECTS)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(OBJECTS)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)                    # what was freed is given back
    Path('/proc/self/clear_refs').write_text('5')       # the most that it has had is what it has
    before = peak_memory_bytes()
    once(OBJECTS)
    return max(1, peak_memory_bytes() - before)


def _device() -> torch.device:
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


# ---- what is told -----------------------------------------------------------------------------------------------

def text_of(found: Mapping[str, Any]) -> str:
    """The page."""
    parts = [
        '# How near is a step to its parts?',
        f'Profile {found["profile"]}, {told(found)}. Ratios of what was measured in turn in one process: median over '
        'the rounds [middle half]. Pictures lie in memory.']
    if found['steps']:
        parts += ['## AMD, a step', _table(found['steps']),
                  '*Parts alone*: the student\'s own training step, the teacher\'s pass, the loss on features that are '
                  'there. *Kept*: a step whose teacher\'s features are kept. *Limit*: the detector, that is the '
                  'student\'s network with its losses and proposals as mmdet runs them, forward and backward, and the '
                  f'two convolutions of a generation block; {GOAL_STEP:.2f} is the goal. *Network*: of the detector, '
                  'the pass and gradient alone. *Update*: clipping and the optimizer, which the limit leaves out.']
    if found['losses']:
        height, width = SHAPES[0]
        parts += [f'## The losses at the paper\'s shapes, {IMAGES} x {CHANNELS} x {height} x {width} and on',
                  _table(found['losses']),
                  'Forward and backward, all levels; *reference*: two 3x3 convolutions, a ReLU and a sum of squares on '
                  f'the same features. The goal for AMD and MGD, and for many objects, is {GOAL_LOSS:.2f}; that of the '
                  'memory, beside MGD written as its equation reads, is 1.']
    if found['operators']:
        height, width = OPERATOR_PX
        parts += [f'## Operators, {IMAGES} x {CHANNELS} x {height} x {width}', _table(found['operators']),
                  'Forward and backward (NMS: forward). *Gather*: by `grid_sample` and a product. The goal is '
                  f'{GOAL_OPERATOR:.1f} of the faster.']
    if found['job']:
        parts += ['## Where the time of a job goes', *where.text_of(found['job'], found['job']['group'])]
    return '\n\n'.join(parts) + '\n'


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    return pd.DataFrame([{key: value if isinstance(value, str) else ratio_text(value) for key, value in line.items()}
                         for line in lines]).to_markdown(index=False, disable_numparse=True)


def ratio_text(values: Sequence[float]) -> str:
    """Of `ratio`."""
    return '{:.2f} [{:.2f}, {:.2f}]'.format(*values)
