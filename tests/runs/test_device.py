"""device.py: which GPU a process sees, how many runs at once, whether a run fits, and what to lower."""
import os

import pytest
import torch

from amdlib.errors import RunError
from amdlib.runs.device import check_it_fits, choose_device, default_jobs, full_gpu
from amdlib.runs.run import Run


@pytest.fixture
def gpus(monkeypatch):
    """How many GPUs there are."""
    def have(count, visible=None):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible or '')
        if visible is None:
            monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    return have


@pytest.mark.parametrize(('device', 'visible', 'seen'), [
    (None, None, None), (None, '4,7', '4,7'), ('cuda', '4,7', '4,7'), ('cpu', '4,7', ''), ('cpu', None, ''),
    ('cuda:1', None, '1'), ('cuda:1', '4,7', '7')])
def test_a_process_sees_what_was_chosen(gpus, device, visible, seen):
    gpus(2, visible)
    choose_device(device)
    assert os.environ.get('CUDA_VISIBLE_DEVICES') == seen


@pytest.mark.parametrize('device', ['cuda', 'cuda:0'])
def test_a_gpu_that_is_not_there_is_told(gpus, device):
    gpus(0)
    with pytest.raises(RunError, match=f'--device {device}: torch sees no such GPU'):
        choose_device(device)


@pytest.mark.parametrize(('count', 'cores', 'device', 'a_run', 'jobs'), [
    (3, 8, None, 1, 3), (4, 8, None, 2, 2), (2, 8, None, 4, 1), (3, 8, 'cuda', 1, 3), (3, 8, 'cuda:2', 1, 1),
    (3, 2, 'cpu', 1, 2), (0, 1, None, 1, 1), (0, 2, None, 1, 2), (0, 64, None, 1, 4)])
def test_how_many_runs_at_once(gpus, monkeypatch, count, cores, device, a_run, jobs):
    gpus(count)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(cores)))
    assert default_jobs(device, a_run) == jobs


def test_gpus_that_are_missing_are_told(gpus, tiny):
    gpus(1)
    run = Run.of('retinanet-baseline', tiny, 0, {'gpus': 2})
    with pytest.raises(RunError, match=r'gpus=2, but torch sees 1 \(CUDA_VISIBLE_DEVICES=not set\); lower gpus'):
        check_it_fits(run, 8, 'cells')
    gpus(0, '')
    choose_device('cpu')
    check_it_fits(run, 8, 'cells')      # on the CPU, as a trial


@pytest.mark.parametrize('settings', [{'amp': 'fp16'}, {'half_teacher': 'fp16'}])
def test_float16_needs_a_gpu(gpus, tiny, settings):
    run = Run.of('retinanet-amd', tiny, 0, settings)
    gpus(1)
    check_it_fits(run, 8, 'cells')
    gpus(0)
    with pytest.raises(RunError, match='fp16 needs a GPU; bf16 works on the CPU too'):
        check_it_fits(run, 8, 'cells')


def test_a_step_of_more_images_than_there_are_is_told(gpus, tiny):
    gpus(4)
    run = Run.of('retinanet-baseline', tiny, 0, {'batch_size': 3, 'gpus': 3})
    check_it_fits(run, 9, 'cells')
    with pytest.raises(RunError, match=r'a step needs 9 images \(batch_size=3 on 3 GPUs\), cells has 8 to train on'):
        check_it_fits(run, 8, 'cells')
    with pytest.raises(RunError, match=r'needs 2 images \(batch_size=2 on 1 GPU\), cells has 1'):
        check_it_fits(Run.of('retinanet-baseline', tiny), 1, 'cells')


def test_what_to_lower_when_a_gpu_is_full_depends_on_the_run(tiny):
    error = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nmore')
    told = full_gpu(Run.of('retinanet-baseline', tiny), error)
    for words in ('2 images of up to 64x64 px', 'batch_size=1 (accumulate=2 keeps 2 images an update)', 'amp=bf16',
                  'image size', 'Tried to allocate 2.00 GiB.'):
        assert words in told
    for words in ('half_teacher', 'more'):      # there is no teacher beside it; torch's first line says it
        assert words not in told.replace('more images', '')
    told = full_gpu(Run.of('retinanet-amd', tiny, 0, {'batch_size': 1, 'amp': 'bf16'}), error)
    assert 'half_teacher=bf16' in told
    _, _, lower = told.partition('Lower one of these settings: ')
    assert 'batch_size=' not in lower
    assert 'amp=' not in lower
