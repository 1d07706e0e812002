"""The device: which one a process sees, whether a run fits it, and what to lower where it does not."""
from __future__ import annotations

import os

import torch

from amdlib.datasets.dataset import TRAINED_FROM_PX
from amdlib.errors import RunError
from amdlib.runs.run import Run


def choose_device(device: str | None) -> None:
    """Let this process, and those it starts, see what was chosen: mmengine takes the first GPU that it sees.

    Args:
        device: cpu, cuda or cuda:N, as `Means` has checked it; None leaves the choice to what there is.
    Errors: RunError where torch sees no such GPU.
    """
    kind, _, number = (device or '').partition(':')
    if not device:
        return
    if kind == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        return
    if number:  # the N-th of those that are visible, which need not be all
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        cards = dict(enumerate(visible.split(','))) if visible is not None else {int(number): number}
        os.environ['CUDA_VISIBLE_DEVICES'] = cards.get(int(number), '')
    if not torch.cuda.is_available():
        raise RunError(f'--device {device}: torch sees no such GPU (python -m amdlib doctor tells more)')


def default_jobs(device: str | None = None, gpus: int = 1) -> int:
    """As many runs as there are GPUs for, of which each takes `gpus`; without a GPU one a core, up to four: small
    networks use a second core badly."""
    if device and device.startswith('cuda:'):
        return 1
    slots = (device != 'cpu' and torch.cuda.device_count()) or max(1, min(4, len(os.sched_getaffinity(0))))
    return max(1, slots // gpus)


def check_it_fits(run: Run, images: int, data: str) -> None:
    """RunError where GPUs are missing or cannot do what is asked, or a step needs more images than there are.

    Args:
        images: to train on, in the data set called `data`.
    """
    from amdlib.engine import processes  # with mmdet, which a look at runs does not need
    gpus, visible = run.recipe.gpus, torch.cuda.device_count() * processes.nodes()
    on_cpu = os.environ.get('CUDA_VISIBLE_DEVICES') == ''  # --device cpu
    if gpus > 1 and gpus > visible and not on_cpu:
        raise RunError(f'{run.id}: gpus={gpus}, but torch sees {visible} (CUDA_VISIBLE_DEVICES='
                       f'{os.environ.get("CUDA_VISIBLE_DEVICES", "not set")}); lower gpus, or try it with '
                       f'--device cpu, in {gpus} processes on the CPU')
    if visible == 0 and 'fp16' in (run.recipe.amp, run.recipe.half_teacher):
        raise RunError(f'{run.id}: fp16 needs a GPU; bf16 works on the CPU too')
    if not images and run.trains:
        raise RunError(f'{run.id}: {data} has no image that mmdet trains on: all are without a box or narrower than '
                       f'{TRAINED_FROM_PX} px')
    if (step := run.batch_size * gpus) > images:
        raise RunError(f'{run.id}: a step needs {step} images (batch_size={run.batch_size} on '
                       f'{gpus} GPU{"s" if gpus > 1 else ""}), {data} has {images} to train on: lower '
                       'batch_size or gpus')


def full_gpu(run: Run, error: Exception) -> str:
    """What to lower, first what costs least."""
    width, height = run.profile.image_px
    lower = [f'batch_size={max(1, run.batch_size // 2)} (accumulate={2 * run.recipe.accumulate} keeps '
             f'{run.images_per_update} images an update)'] if run.batch_size > 1 else []
    lower += ['amp=bf16 halves most of what is kept (fp16 where the GPU has no bfloat16)'] * (run.recipe.amp == 'off')
    lower += ['half_teacher=bf16'] * (run.row.method is not None and run.recipe.half_teacher == 'off')
    lower.append('the image size (image_px of the profile), which is another experiment')
    return (f'{run.id}: the GPU is out of memory at {run.batch_size} images of up to {width}x{height} px a step and '
            f'GPU. Lower one of these settings: {"; ".join(lower)}. Torch says: {str(error).splitlines()[0]}')
