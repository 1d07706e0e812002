"""processes.py: several processes over gloo compute what one computes; one outcome; errors are told."""
import copy
import errno
import importlib
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from types import SimpleNamespace

import psutil
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel

from amdlib.engine import distiller, processes
from amdlib.engine.checkpoints import newest_whole
from amdlib.engine.training import Task, disk_is_full
from amdlib.errors import RunError, WeightsError
from amdlib.evaluation import METRICS, coco_numbers
from amdlib.files import ROOT, read_json

PROCESSES = 2


def _model(cfg):
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    model.train()
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()     # statistics of a batch are those of a process; the paper's networks keep theirs too
    return model


def _gradients(model, data):
    module = getattr(model, 'module', model)
    data = module.data_preprocessor(copy.deepcopy(data), training=True)
    total, _ = module.parse_losses(model(**data, mode='loss'))
    total.backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}


def _process(rank, cfg, data, folder):
    try:
        torch.set_num_threads(1)
        torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank,
                                             world_size=PROCESSES)
        model = _model(cfg)
        wrapped = MMDistributedDataParallel(model, find_unused_parameters=False, broadcast_buffers=False)
        share = {key: value[rank::PROCESSES] for key, value in data.items()}
        gradients = _gradients(wrapped, share)
        assert not any('teacher' in name for name in wrapped.state_dict())
        torch.save(gradients, folder / f'gradients-{rank}')
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f'error-{rank}').write_text(traceback.format_exc())
        raise


@pytest.fixture
def joint_and_shared(tmp_path, train_batch):
    """Config, data of one step -> gradients of one process with all images, and of each of two with its share."""
    def compute(cfg, data):
        joint = _gradients(_model(cfg), data)
        fork = multiprocessing.get_context('fork')
        processes = [fork.Process(target=_process, args=(rank, cfg, data, tmp_path)) for rank in range(PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        told = ''.join(path.read_text() for path in tmp_path.glob('error-*'))
        assert not told, told
        return joint, [torch.load(tmp_path / f'gradients-{rank}') for rank in range(PROCESSES)]
    return compute


@pytest.mark.slow
@pytest.mark.parametrize('same_boxes', [True, False])
def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(config_of, train_batch, joint_and_shared,
                                                                      same_boxes):
    """mmdet divides a detector's loss by the positives of a process, so the whole gradient is equal where both have as
    many; AMD divides by images, so its blocks' gradients are equal whatever the boxes."""
    cfg = config_of('retinanet-amd')
    data = train_batch(cfg)
    first, second = data['data_samples']
    assert not torch.equal(*data['inputs'])
    if same_boxes:
        second.gt_instances = copy.deepcopy(first.gt_instances)
    joint, shared = joint_and_shared(cfg, data)
    assert all(gradient is not None for gradient in joint.values())   # no parameter is left out
    compared = [name for name in joint if same_boxes or name.startswith('distill_losses')]
    assert len(compared) > 20
    for gradients in shared:
        for name in compared:
            scale = joint[name].abs().max().clamp(min=1e-6)
            assert torch.allclose(gradients[name], joint[name], rtol=1e-3, atol=1e-4 * scale.item()), name
    assert all(torch.equal(shared[0][name], shared[1][name]) for name in joint)


@pytest.mark.slow
@pytest.mark.parametrize('row', ['retinanet-fkd', 'retinanet-fgd', 'retinanet-amd-allmasked', 'retinanet-amd-mbconv',
                                 'reppoints-mgd', 'reppoints-teacher', 'faster_rcnn-amd-within', 'faster_rcnn-teacher'])
def test_every_parameter_is_used_in_every_step(config_of, train_batch, row):
    """Else torch would refuse the second step, since unused parameters are not searched for."""
    cfg = config_of(row)
    unused = [name for name, gradient in _gradients(_model(cfg), train_batch(cfg)).items() if gradient is None]
    assert unused == []


def test_processes_mask_differently_and_the_first_as_a_run_on_its_own(config_of, monkeypatch):
    cfg = config_of('retinanet-mgd')

    def masks():
        return [loss.random_mask(torch.zeros(1, 1, 16, 16)) for loss in _model(cfg).distill_losses.values()]
    alone = masks()
    assert len(alone) == 5
    for rank in (0, 1, 2):
        monkeypatch.setattr(distiller, 'get_rank', lambda rank=rank: rank)
        equal = [torch.equal(mask, own) for mask, own in zip(masks(), alone, strict=True)]
        assert equal == [rank == 0] * 5


NOTING = """
import os


class Note:
    '''A watch that writes down who tells it what.'''

    def __init__(self, path):
        self.path = path

    def __call__(self, phase, step, steps, s_per_step):
        with open(self.path, 'a') as file:
            file.write(f'{os.getpid()} {phase} {step}\\n')


class Tell:
    def __init__(self, path):
        self.path = path

    def __call__(self, given, used):
        with open(self.path, 'a') as file:
            file.write(f'{given} {used}\\n')
"""


@pytest.fixture
def noting(tmp_path, monkeypatch):
    """A module that the processes can import too; one thread and no GPU for each."""
    (tmp_path / 'path').mkdir()
    (tmp_path / 'path' / 'noting.py').write_text(NOTING)
    for name, value in (('CUDA_VISIBLE_DEVICES', ''), ('OMP_NUM_THREADS', '1'), ('PYTHONPATH', tmp_path / 'path')):
        monkeypatch.setenv(name, str(value))
    monkeypatch.syspath_prepend(tmp_path / 'path')
    yield importlib.import_module('noting')
    del sys.modules['noting']


def launch(task):
    return processes.launch(task, task.gpus, task.folder / 'mmengine')


@pytest.mark.slow
def test_a_task_of_two_processes_has_one_outcome(task_of, dataset, tmp_path, noting):
    task = task_of(tmp_path / 'run', settings={'gpus': PROCESSES, 'batch_size': 1})
    task.watch, task.tell_lr = noting.Note(tmp_path / 'noted'), noting.Tell(tmp_path / 'rates')
    outcome = launch(task)
    assert (outcome['steps'], outcome['device']) == (4, 'CPU')     # 8 images, 2 x 1 a step
    assert list(outcome['numbers']) == list(METRICS)
    assert coco_numbers(dataset.test_ann, read_json(task.folder / 'detections.json.gz')) == outcome['numbers']
    assert not list(task.folder.glob('mmengine/task*'))
    assert not (task.folder / 'mmengine' / 'parts').exists()
    noted = [line.split() for line in (tmp_path / 'noted').read_text().splitlines()]
    assert len({pid for pid, *_ in noted}) == 1
    assert [step for _, phase, step in noted if phase == 'train'] == [*'1234']
    assert (tmp_path / 'rates').read_text().splitlines() == [f'{outcome["lr_given"]} {outcome["lr_used"]}']


@pytest.mark.slow
def test_a_killed_task_of_two_processes_goes_on_bit_for_bit(task_of, content, same_weights, tmp_path, noting):
    settings = {'gpus': PROCESSES, 'batch_size': 1, 'epochs': 6}
    task = task_of(tmp_path / 'cut', settings=settings)
    task.watch = noting.Note(tmp_path / 'noted')
    work_dir = task.folder / 'mmengine'

    def kill_first_process():
        while not (work_dir / 'epoch_2.pth').exists():
            time.sleep(0.01)
        os.kill(int((tmp_path / 'noted').read_text().split()[0]), signal.SIGKILL)
    killer = threading.Thread(target=kill_first_process, daemon=True)
    killer.start()
    with pytest.raises(RunError, match=f'^{task.name}: '):
        launch(task)
    killer.join()
    task.cfg.resume, task.cfg.load_from = True, str(newest_whole(work_dir))
    outcome = launch(task)
    assert len(outcome['resumed_from']) == 1
    assert outcome['resumed_from'][0] >= 8
    whole = task_of(tmp_path / 'whole', settings=settings)
    uninterrupted = launch(whole)
    assert uninterrupted['resumed_from'] == []
    assert uninterrupted['numbers'] == outcome['numbers']
    assert same_weights(content(task.folder)[0], content(whole.folder)[0])


LAUNCH = """
import pickle, sys
from pathlib import Path
from amdlib.engine import processes
task = pickle.loads(Path(sys.argv[1]).read_bytes())
processes.launch(task, task.gpus, task.folder / 'mmengine')
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_launched_them(task_of, tmp_path, noting):
    task = task_of(tmp_path / 'run', settings={'gpus': PROCESSES, 'batch_size': 1, 'epochs': 99}, workers=1)
    task.watch = noting.Note(tmp_path / 'noted')
    (tmp_path / 'task').write_bytes(pickle.dumps(task))
    launcher = subprocess.Popen([sys.executable, '-c', LAUNCH, str(tmp_path / 'task')], cwd=ROOT)
    try:
        until_s = time.monotonic() + 120
        while not (tmp_path / 'noted').exists():
            assert launcher.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.1)
        below = psutil.Process(launcher.pid).children(recursive=True)
        assert len(below) >= 1 + PROCESSES    # torchrun, and what it started
    finally:
        launcher.kill()
        launcher.wait()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []


# ---- errors -----------------------------------------------------------------------------------------------------

CHILD = """#!/bin/sh
for folder; do :; done
case "$ENDS" in
well) echo '{"steps": 4}' > "$folder/task-outcome.json"; exit 0;;
silent) ;;
empty) : > "$folder/task-failure.json";;
*) echo "{\\"rank\\": 1, \\"kind\\": \\"$ENDS\\", \\"error\\": \\"E: text\\", \\"lines\\": \\"the lines\\"}" > \\
    "$folder/task-failure.json";;
esac
exit 7
"""


@pytest.fixture
def task(tmp_path):
    return Task('a-run', Config(), tmp_path)


@pytest.mark.parametrize(('ends', 'error'), [
    ('well', None), ('silent', RunError), ('empty', RunError), (processes.ENDED, RunError),
    (processes.FULL_GPU, torch.OutOfMemoryError), (processes.FULL_DISK, OSError)])
def test_what_comes_back_from_the_processes(task, tmp_path, monkeypatch, ends, error):
    """A script stands in for torchrun."""
    script, folder = tmp_path / 'child', tmp_path / 'folder'
    script.write_text(CHILD)
    script.chmod(0o755)
    monkeypatch.setattr(processes.sys, 'executable', str(script))
    monkeypatch.setenv('ENDS', ends)
    if error is None:
        assert processes.launch(task, 2, folder) == {'steps': 4}
        assert not list(folder.iterdir())
        return
    with pytest.raises(error) as caught:
        processes.launch(task, 2, folder)
    if ends in ('silent', 'empty'):
        assert 'a-run: the 2 processes ended with status 7' in str(caught.value)
        return
    assert 'process 1 of 2: E: text' in str(caught.value)
    assert caught.value.__notes__ == ['the lines']
    assert str(caught.value).startswith('a-run: ') == (error is RunError)
    assert disk_is_full(caught.value) == (ends == processes.FULL_DISK)


SRUN = """#!/bin/sh
printf '%s\\n' "$@" > "$ASKED"
while [ "${1#-}" != "$1" ]; do shift; done
SLURM_PROCID=1 exec "$@"
"""


def test_on_several_nodes_srun_starts_a_torchrun_each(task, tmp_path, monkeypatch):
    """A script stands in for srun, another one for torchrun; without a GPU tasks stand for nodes."""
    told = CHILD.replace('exit 0', 'echo "$PET_NODE_RANK" > "$ASKED-rank"; exit 0')
    for name, content in (('srun', SRUN), ('child', told)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(processes.sys, 'executable', str(tmp_path / 'child'))
    for name, value in {'ENDS': 'well', 'ASKED': tmp_path / 'asked', 'SLURM_NTASKS': 2, 'CUDA_VISIBLE_DEVICES': '',
                        'PATH': f'{tmp_path}:{os.environ["PATH"]}'}.items():
        monkeypatch.setenv(name, str(value))
    assert processes.launch(task, 4, tmp_path / 'folder') == {'steps': 4}
    asked = (tmp_path / 'asked').read_text().splitlines()
    assert '--ntasks=2' in asked
    assert {'--nnodes=2', '--nproc-per-node=2', f'--master-addr={socket.gethostname()}'} <= set(asked)
    assert '--standalone' not in asked
    assert (tmp_path / 'asked-rank').read_text() == '1\n'
    with pytest.raises(RunError, match='^a-run: 3 processes on 2 nodes: expected as many on each$'):
        processes.launch(task, 3, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('SLURM_NTASKS', '8')     # on one node: as without Slurm
    monkeypatch.setenv('SLURM_JOB_NUM_NODES', '1')
    assert processes.nodes() == 1


@pytest.mark.parametrize(('error', 'kind'), [
    (torch.OutOfMemoryError('CUDA out of memory'), processes.FULL_GPU),
    (OSError(errno.ENOSPC, 'No space left on device'), processes.FULL_DISK),
    (WeightsError('does not fit'), processes.ENDED)])
def test_a_process_leaves_the_first_error(task, tmp_path, monkeypatch, error, kind):
    def fail(_):
        raise error
    (tmp_path / 'task.pkl').write_bytes(pickle.dumps(task))
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setattr(processes, 'train_and_test', fail)
    monkeypatch.setattr(processes, '_join_group', lambda _: None)
    monkeypatch.setattr(processes, 'end_with', lambda _: None)
    monkeypatch.setattr(processes.sys, 'stdin', SimpleNamespace(fileno=lambda: 0))
    assert processes.main(tmp_path) == 1
    failure = json.loads((tmp_path / 'task-failure.json').read_text())
    assert (failure['rank'], failure['kind']) == (1, kind)
    assert 'in fail' in failure['lines']
    assert failure['error'] == f'{type(error).__name__}: {error}'
    (tmp_path / 'task-failure.json').write_text('the first')
    assert processes.main(tmp_path) == 1
    assert (tmp_path / 'task-failure.json').read_text() == 'the first'
