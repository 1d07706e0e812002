"""One task on several GPUs: torchrun starts a process a GPU; each trains on its share of every step's images.

`launch` is called by the process that holds the run; `main` is what torchrun starts. Only the first process (rank 0)
writes progress, detections and weights. Without a GPU the processes talk by gloo, for trials and tests. In a job of
Slurm's on several nodes there is a torchrun a node, started by srun; they meet on the first, where rank 0 is.
"""
from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import torch
from mmengine.config import Config

from amdlib.engine.training import Task, disk_is_full, train_and_test
from amdlib.errors import RunError
from amdlib.files import ROOT, read_json, write_json
from amdlib.words import show_log

ENDED, FULL_GPU, FULL_DISK = 'ended', 'full GPU', 'full disk'   # kinds of failure, for the one who launched


def launch(task: Task, processes: int, folder: Path) -> dict:
    """Train a task in so many processes; what came of it.

    Args:
        folder: for the task's file, and for the outcome or the error that comes back.
    Errors: the first error of any process: RunError; torch.OutOfMemoryError and, for a full disk, OSError stay what
        they are.
    """
    command = [*_torchrun(task.name, processes), '-m', 'amdlib.engine.processes', str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    task_file, outcome_file, failure_file = _files(folder)
    for old in (outcome_file, failure_file):
        old.unlink(missing_ok=True)
    task_file.write_bytes(pickle.dumps(task))
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    env = {**os.environ, 'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', str(threads)),
           'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])}
    # nothing is written into stdin: where that pipe ends, this process has (`end_with`)
    children = subprocess.Popen(command, env=env, stdin=subprocess.PIPE)
    try:
        status = children.wait()
    except BaseException:  # an interrupt takes the processes along
        children.send_signal(signal.SIGTERM)
        children.wait()
        raise
    if status == 0 and outcome_file.is_file():
        outcome = read_json(outcome_file)
        for file in (task_file, outcome_file):
            file.unlink()
        return outcome
    failure = None
    with contextlib.suppress(OSError, ValueError):  # none was left, or there was no room for it
        failure = _failure(task.name, processes, **read_json(failure_file))
    if failure is not None:
        raise failure
    raise RunError(f'{task.name}: the {processes} processes ended with status {status} and left no outcome')


def nodes() -> int:
    """How many a run of several GPUs has: those of Slurm's job; without a GPU its tasks, wherever they are."""
    return int(os.environ.get('SLURM_JOB_NUM_NODES' if torch.cuda.is_available() else 'SLURM_NTASKS') or 1)


def _torchrun(name: str, processes: int) -> list[str]:
    """The words that start so many processes, but for what each is to do. Errors: RunError where nodes get unequal
    shares."""
    torchrun, count = [sys.executable, '-m', 'torch.distributed.run'], nodes()
    if count == 1:  # --standalone: a free port of its own, so that several such runs can share a machine
        return [*torchrun, '--standalone', f'--nproc-per-node={processes}']
    if processes % count:
        raise RunError(f'{name}: {processes} processes on {count} nodes: expected as many on each')
    with socket.socket() as probe:
        probe.bind(('', 0))
        port = probe.getsockname()[1]
    # every node is told its number, in Slurm's order: the first is this one
    numbered = ['sh', '-c', 'PET_NODE_RANK=$SLURM_PROCID exec "$@"', 'sh', *torchrun]
    return ['srun', '--kill-on-bad-exit=1', f'--ntasks={count}', *numbered, f'--nnodes={count}',
            f'--nproc-per-node={processes // count}', f'--master-addr={socket.gethostname()}', f'--master-port={port}']


def _files(folder: Path) -> tuple[Path, Path, Path]:
    return folder / 'task.pkl', folder / 'task-outcome.json', folder / 'task-failure.json'


def _failure(name: str, processes: int, rank: int, kind: str, error: str, lines: str) -> Exception:
    told = f'process {rank} of {processes}: {error}'
    if kind == FULL_GPU:
        failure = torch.OutOfMemoryError(told)
    elif kind == FULL_DISK:
        failure = OSError(errno.ENOSPC, told)
    else:
        failure = RunError(f'{name}: {told}')
    failure.add_note(lines)
    return failure


def main(folder: Path) -> int:
    """One process of a task: train, and leave the outcome (rank 0) or the error (the first process that has one)."""
    task_file, outcome_file, failure_file = _files(folder)
    rank = int(os.environ['RANK'])
    show_log()
    try:
        end_with(sys.stdin.fileno())
        task = pickle.loads(task_file.read_bytes())
        _join_group(task.cfg)
        if rank != 0:
            task.watch = None
        outcome = train_and_test(task)
        if rank == 0:
            write_json(outcome_file, outcome)
        torch.distributed.destroy_process_group()
    except Exception as error:
        kind = (FULL_GPU if isinstance(error, torch.OutOfMemoryError) else
                FULL_DISK if disk_is_full(error) else ENDED)
        told = {'rank': rank, 'kind': kind, 'error': f'{type(error).__name__}: {error}',
                'lines': traceback.format_exc()}
        # the first error is the cause, others follow from it and find its file there
        with contextlib.suppress(OSError), open(failure_file, 'x') as file:
            json.dump(told, file)
        traceback.print_exc()
        return 1
    return 0


def end_with(pipe: int) -> None:
    """End this process when the pipe does: with the process that holds its other end, even where that is killed."""
    def wait() -> None:
        os.read(pipe, 1)    # not by sys.stdin, whose lock the processes that load pictures would inherit
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


def _join_group(cfg: Config) -> None:
    """Have mmengine run in several processes; the teacher, a plain attribute, stays outside of the wrapper."""
    cfg.launcher = 'pytorch'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', find_unused_parameters=False,
                                 broadcast_buffers=False)
    # statistics of trained batch normalisation differ between processes; the first one's are saved
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='SyncBuffersHook')]
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))  # the group is made by mmengine, with nccl
    else:
        torch.distributed.init_process_group('gloo')  # mmengine would ask for a GPU
        cfg.model_wrapper_cfg.device_ids = None


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1])))
