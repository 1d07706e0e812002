"""One run on several GPUs: torchrun starts a process a GPU; each trains on its share of every step's images.

`launch` is called by the process that holds the run; `main` is what torchrun starts. Only the first process (rank 0)
writes progress, detections, weights and the record. Without a GPU the processes talk by gloo, for trials and tests.
"""
from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import torch

from amdlib import results


class ProcessError(RuntimeError):
    """A process of a run on several GPUs failed; the message names it and its error."""


def launch(job, processes: int, folder: Path) -> dict:
    """Train `job` in so many processes and return the record.

    Args:
        job: a train.Job.
        folder: for the job's file, and for the record or the error that comes back.
    Errors: ProcessError with the first error of any process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job_file, record_file, failure_file = _files(folder)
    for old in (record_file, failure_file):
        old.unlink(missing_ok=True)
    job_file.write_bytes(pickle.dumps(job))
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    env = {**os.environ, 'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', str(threads)),
           'PYTHONPATH': os.pathsep.join([str(results.ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])}
    # --standalone: a free port of its own, so that several such runs can share a machine
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}',
               '-m', 'amdlib.distributed', str(folder)]
    # nothing is written into stdin: where that pipe ends, this process has (`end_with`)
    children = subprocess.Popen(command, env=env, stdin=subprocess.PIPE)
    try:
        status = children.wait()
    except BaseException:  # an interrupt takes the processes along
        children.send_signal(signal.SIGTERM)
        children.wait()
        raise
    if status == 0 and record_file.is_file():
        record = json.loads(record_file.read_text())
        for file in (job_file, record_file):
            file.unlink()
        return record
    if failure_file.is_file():
        failure = json.loads(failure_file.read_text())
        error = ProcessError(f'process {failure["rank"]} of {processes}: {failure["error"]}')
        error.add_note(failure['traceback'])
        raise error
    raise ProcessError(f'the {processes} processes ended with status {status} and left no record')


def _files(folder: Path) -> tuple[Path, Path, Path]:
    return folder / 'job.pkl', folder / 'job-record.json', folder / 'job-failure.json'


def main(folder: Path) -> int:
    """One process of a run: train, and leave the record (rank 0) or the error (the first process that has one)."""
    job_file, record_file, failure_file = _files(folder)
    rank = int(os.environ['RANK'])
    try:
        end_with(sys.stdin.fileno())
        job = pickle.loads(job_file.read_bytes())
        _join_group(job.cfg)
        record = job.do(reports=rank == 0)
        if rank == 0:
            results.write_json(record_file, record)
        torch.distributed.destroy_process_group()
    except Exception as error:
        told = {'rank': rank, 'error': f'{type(error).__name__}: {error}', 'traceback': traceback.format_exc()}
        try:
            with open(failure_file, 'x') as file:  # the first error is the cause, others follow from it
                json.dump(told, file)
        except FileExistsError:
            pass
        traceback.print_exc()
        return 1
    return 0


def end_with(pipe: int) -> None:
    """End this process when the pipe does: with the process that holds its other end, even where that is killed."""
    def wait() -> None:
        os.read(pipe, 1)    # not by sys.stdin, whose lock the processes that load pictures would inherit
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


def _join_group(cfg) -> None:
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
