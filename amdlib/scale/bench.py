"""How near a distillation step is to what its parts take alone, and a method's loss to the convolutions that it needs.

Only ratios are told: both sides are measured in one process, in turn, round after round, so that a slow minute of the
machine slows both. Each is the median over rounds, with the middle half of the rounds beside it.
"""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from amdlib import methods
from amdlib.engine.taps import maps_in, tap
from amdlib.errors import RunError
from amdlib.files import write_json, write_text
from amdlib.methods.level import LevelLoss
from amdlib.paper.printed import paper_groups
from amdlib.runs.config import config
from amdlib.runs.fingerprints import commit, machine
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.scale.cost import device_name, made_batch, now_s, trainable
from amdlib.words import log, timestamp

ROUNDS = 15
SHAPES = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))    # (H, W) of the levels of an 800x1344 picture
IMAGES, CHANNELS, OBJECTS = 2, 256, 7
MANY = 100          # objects, on which FGD's time must not depend
GOAL_STEP, GOAL_LOSS = 1.10, 1.05

Parts = Mapping[str, Callable[[], None]]


def bench(store: Store, groups: Iterable[str] = (), rounds: int = ROUNDS, with_losses: bool = True) -> Path:
    """Measure the steps of AMD at the store's profile and the losses at the paper's shapes; write bench.json and
    bench.md beside the profile's results; return the latter.

    Errors: RunError for a profile without a data set.
    """
    if store.dataset is None:
        raise RunError(f'profile {store.profile.name}: a bench needs DATA')
    steps, losses = [], []
    for group in groups or paper_groups():
        log.info(f'{group}: {rounds} rounds of steps')
        steps.append({'group': group, **of_steps(step_parts(Run.of(f'{group}-amd', store.profile), store), rounds)})
    for method in methods.names() if with_losses else ():
        if issubclass(methods.find_method(method), LevelLoss):
            log.info(f'{method}: {max(3, rounds // 5)} rounds at the shapes of the paper')
            losses.append({'method': method, **of_loss(method, max(3, rounds // 5))})
    found = {'machine': machine(), 'threads': torch.get_num_threads(), 'device': device_name(), 'commit': commit(),
             'profile': store.profile.name, 'rounds': rounds, 'measured': timestamp(), 'steps': steps, 'losses': losses}
    folder = store.results / store.profile.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'bench.json', found)
    write_text(folder / 'bench.md', text_of(found))
    return folder / 'bench.md'


# ---- measuring --------------------------------------------------------------------------------------------------

def seconds(parts: Parts, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each part in each round, after one round that does not count; the first part of a round changes."""
    names, found = list(parts), {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name in [*names[turn % len(names):], *names[:turn % len(names)]]:
            began_s = now_s()
            parts[name]()
            if turn:
                found[name].append(now_s() - began_s)
    return {name: np.array(values) for name, values in found.items()}


def ratio(over: np.ndarray, under: np.ndarray) -> list[float]:
    """Median over rounds of over / under, and the quartiles."""
    return [float(value) for value in np.quantile(over / under, (0.5, 0.25, 0.75))]


def of_steps(parts: Parts, rounds: int) -> dict[str, Any]:
    """The ratios of a step, and each part's share of the step."""
    took = seconds(parts, rounds)
    alone = took['student'] + took['teacher'] + took['loss']
    return {'step / parts alone': ratio(took['step'], alone),
            'without teacher / (student + convolutions)': ratio(took['step'] - took['teacher'],
                                                                took['student'] + took['convolutions']),
            **{f'{name} / step': ratio(took[name], took['step']) for name in parts if name != 'step'}}


def of_loss(method: str, rounds: int) -> dict[str, Any]:
    """A method's loss, forward and backward over all levels at the paper's shapes, over the reference; with many
    objects over with few; on a GPU its peak memory over MGD's."""
    device = _device()
    reference = _features_and(lambda: TwoConvolutions(CHANNELS), device)
    few = _features_and(lambda: methods.find_method(method)(CHANNELS, CHANNELS), device)
    took = seconds({'reference': lambda: reference(OBJECTS), 'few': lambda: few(OBJECTS), 'many': lambda: few(MANY)},
                   rounds)
    found = {'loss / reference': ratio(took['few'], took['reference']),
             f'{MANY} objects / {OBJECTS}': ratio(took['many'], took['few'])}
    if device.type == 'cuda':
        mgd = _features_and(lambda: methods.find_method('mgd')(CHANNELS, CHANNELS), device)
        found["peak memory / MGD's"] = [_peak_bytes(few) / _peak_bytes(mgd)] * 3
    return found


def step_parts(run: Run, store: Store) -> dict[str, Callable[[], None]]:
    """A whole distillation step, and apart: the student's own step, the network's pass and gradient, the teacher's
    pass, the loss on features that are there, and of it the convolutions that every generation block needs."""
    device = _device()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cfg = config(run, store.dataset)
        model, optimizer = trainable(cfg, run, device)
        own = build_optim_wrapper(model.student, cfg.optim_wrapper)
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

    def network() -> None:
        _backward([one.square().mean() for one in maps_in(head(model.student.extract_feat(inputs)))], model.student)

    def loss() -> None:
        _backward([one(s, t, boxes, shapes) for one, s, t in zip(model.distill_losses.values(), f_s, f_t, strict=True)],
                  model)

    def two_convolutions() -> None:
        _backward([one(s, t) for one, s, t in zip(convolutions, f_s, f_t, strict=True)], *convolutions)
    return {'step': lambda: model.train_step(batch, optimizer), 'student': lambda: model.student.train_step(batch, own),
            'network': network, 'teacher': lambda: model._features_of(inputs, samples), 'loss': loss,
            'convolutions': two_convolutions}


class TwoConvolutions(nn.Module):
    """What is counted as 1: two 3x3 convolutions with a ReLU between them, and the sum of squares of a difference."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
                                   nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, f_s: Tensor, f_t: Tensor, *_: Any) -> Tensor:
        return (self.block(f_s) - f_t).square().sum()


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


def _peak_bytes(once: Callable[[int], None]) -> int:
    torch.cuda.reset_peak_memory_stats()
    once(OBJECTS)
    return torch.cuda.max_memory_allocated()


def _device() -> torch.device:
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


# ---- what is told -----------------------------------------------------------------------------------------------

def text_of(found: Mapping[str, Any]) -> str:
    """The page."""
    cpu = found['machine'].get('cpu', '')
    parts = [
        '# How near is a step to its parts?',
        f'Profile {found["profile"]}, {found["device"]}{f" ({cpu})" if found["device"] == "CPU" else ""}, '
        f'{found["threads"]} thread{"s" * (found["threads"] > 1)}, {found["rounds"]} rounds, commit '
        f'{str(found["commit"]["commit"])[:12]}. Ratios of what was measured in turn in one process: median over the '
        'rounds [middle half]. Pictures lie in memory.']
    if found['steps']:
        parts += ['## AMD, a step', _table(found['steps']),
                  '*Parts alone*: the student\'s own training step, the teacher\'s pass, the loss on features that are '
                  'there. *Without teacher*: where its features are kept, over the student\'s step and the two '
                  f'convolutions of a generation block; {GOAL_STEP:.2f} is the goal. *Network*: the student\'s pass '
                  'and gradient without losses and proposals.']
    if found['losses']:
        height, width = SHAPES[0]
        parts += [f'## The losses at the paper\'s shapes, {IMAGES} x {CHANNELS} x {height} x {width} and on',
                  _table(found['losses']),
                  'Forward and backward, all levels; *reference*: two 3x3 convolutions, a ReLU and a sum of squares on '
                  f'the same features. The goal for AMD and MGD, and for many objects, is {GOAL_LOSS:.2f}.']
    return '\n\n'.join(parts) + '\n'


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    return pd.DataFrame([{key: value if isinstance(value, str) else '{:.2f} [{:.2f}, {:.2f}]'.format(*value)
                          for key, value in line.items()} for line in lines]).to_markdown(
        index=False, disable_numparse=True)
