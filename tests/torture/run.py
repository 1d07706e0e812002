"""`make torture`: harm a training run at every change that it makes to a file, and see that the next call ends with the
same bits, or with one clear line. `python -m tests.torture.run [--kills N] [--jobs N] [--only KIND]`."""
import argparse
import hashlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from amdlib.files import ROOT, read_json

from .drive import RUNS, drive, store

HERE = Path(__file__).parent
LIMIT_S = 900       # of one call
# what may lie in a run's folder when it is done (docs/parts.md)
DOCUMENTED = {'record.json', 'detections.json.gz', 'weights.pth', 'scalars.jsonl', 'progress.json', 'console.log',
              'job.json', 'mmengine', 'features', '.lock', '.hashes.json', '.features.lock'}
ENDS = {'SIGKILL': -signal.SIGKILL, 'SIGTERM': -signal.SIGTERM, 'SIGINT': 130, 'full': 1}     # statuses
SAYS = {'SIGINT': 'interrupted', 'full': 'disk is full|No space left on device'}


@dataclass(frozen=True)
class Fault:
    """Harm of one kind (see `hook`) at one point; or of what an interrupted run left: `cut FILE`, `foreign FILE`; or
    `twins`, two calls at once."""
    how: str
    at: int = 0
    after: bool = False
    alone: bool = True      # in one process; otherwise as a batch, a process a run

    def __str__(self):
        where = f' {"after" if self.after else "before"} point {self.at}' if self.at else ''
        return f'{self.how}{where}{"" if self.alone else ", a batch"}'


def forks():
    """Where calls are forked from: one process that has imported all. Its children find the hook."""
    os.environ['PYTHONPATH'] = os.pathsep.join([str(HERE), str(ROOT)])
    os.environ['OMP_NUM_THREADS'] = '1'
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tests.torture.drive'])
    return context


FORKS = forks()


def start(folder, fault, name='said'):
    """One call of `drive`, counted and, where the fault says so, harmed."""
    asked = {'folder': str(folder / 'here'), 'log': str(folder / 'points'), 'at': fault.at, 'after': fault.after,
             'how': fault.how}
    (folder / 'points').write_text('')
    process = FORKS.Process(target=drive, args=(folder / 'here', fault.alone, asked, folder / name))
    process.start()
    return process


def end(process, folder, name='said'):
    """Its status and what it said."""
    process.join(LIMIT_S)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return 'hangs', (folder / name).read_text()
    return process.exitcode, (folder / name).read_text()


def points(folder):
    """The points of the last call: what and where."""
    return [line.split(' ', 1)[1] for line in (folder / 'points').read_text().splitlines()]


def result(folder):
    """Of both runs the numbers, the detections and the tensors, and what lies there besides what is documented."""
    own, found, other = store(folder / 'here'), {}, []
    for run in RUNS:
        at, digest = own.run_folder(run), hashlib.sha256()
        for name, value in sorted(torch.load(at / 'weights.pth', weights_only=True)['state_dict'].items()):
            digest.update(name.encode() + value.numpy().tobytes())
        assert own.state(run).name == 'done', own.state(run)
        found[run.id] = [own.record(run)['numbers'], digest.hexdigest(), read_json(at / 'detections.json.gz')]
        other += [str(path) for path in at.iterdir() if path.name not in DOCUMENTED]
        other += [str(path) for path in (at / 'mmengine').rglob('*.pth')]
    other += [str(path) for path in (folder / 'here').rglob('.*.[0-9]*') if path.is_file()]    # halves of whole files
    return found, other


def fresh(folder):
    (folder / 'here').mkdir(parents=True)
    return folder


def undisturbed(folder, alone=True):
    """Points and result of a run that nobody disturbs. Errors: RuntimeError with what it said."""
    status, said = end(start(fresh(folder), Fault('', alone=alone)), folder)
    if status:
        raise RuntimeError(f'status {status}:\n{said}')
    return points(folder), result(folder)


def tortured(folder, fault, wanted):
    """Do the harm, call again; '' or what is wrong."""
    fresh(folder)
    try:
        return _harmed(folder, fault) or _again(folder, fault, wanted)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _harmed(folder, fault):
    """The first call; '' or what is wrong with how it ended."""
    if fault.how == 'twins':
        both = [(start(folder, fault, name), name) for name in ('said', 'other')]
        for process, name in both:
            status, said = end(process, folder, name)
            if status and not re.search('is training it in|FAILED, exit 1, running', said):
                return f'one of two ended with {status}:\n{said[-600:]}'
        return ''
    kind, _, file = fault.how.partition(' ')
    status, said = end(start(folder, Fault('SIGKILL', fault.at) if kind in ('cut', 'foreign') else fault), folder)
    if len(points(folder)) < fault.at:
        return f'never reached: {len(points(folder))} points; status {status}:\n{said[-600:]}'
    if kind in ('cut', 'foreign'):
        paths = [path for path in (folder / 'here').glob(file) if path.is_file()]
        if not paths:
            return f'{file} is not there'
        for path in paths:
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2] if kind == 'cut' else b'of another program')
    elif not fault.alone:
        return ''
    elif kind in ENDS and status != ENDS[kind]:
        return f'status {status} instead of {ENDS[kind]}:\n{said[-600:]}'
    if 'Traceback' in said or not re.search(SAYS.get(kind, ''), said):
        return f'it did not say it in a line:\n{said[-1200:]}'
    return ''


def _again(folder, fault, wanted):
    """The next call; '' or what is wrong."""
    status, said = end(start(folder, Fault('', alone=fault.alone)), folder)
    if status == 1 and fault.how.split()[0] in ('cut', 'foreign') and 'Traceback' not in said and 'error: ' in said:
        return ''
    if status:
        return f'the next call ended with {status}:\n{said[-1200:]}'
    found, other = result(folder)
    if found != wanted:
        return 'other bits than an undisturbed run'
    return f'left: {", ".join(other)}' if other else ''


def kills(names, count=0):
    """A kill before and after so many points, evenly spread; at all of them, where that is fewer or no count is given.
    """
    every = [Fault('SIGKILL', number, after) for number in range(1, len(names) + 1) for after in (False, True)]
    step = max(1, len(every) / count) if count else 1
    return [every[int(i * step)] for i in range(min(len(every), count or len(every)))]


def middle(names):
    """A point in the student's second epoch: its teacher is done, its own first checkpoint is there."""
    return 9 + next(number for number, name in enumerate(names, 1)
                    if name.startswith('replace') and name.endswith(f'{RUNS[1].id}/mmengine/epoch_1.pth'))


def others(names, left):
    """The faults of other kinds, at points drawn once.

    Args:
        left: files below the folder that a run leaves which was killed in the `middle`.
    """
    draw = random.Random(0)

    def some(count):
        return sorted(draw.sample(range(1, len(names) + 1), count))
    return [*(Fault(how, at) for how in ('SIGTERM', 'SIGINT', 'full') for at in some(10)),
            *(Fault(f'remove {folder}', at) for folder in ('data', *(f'results/mini/runs/{run.id}' for run in RUNS))
              for at in some(4)),
            *(Fault(f'{how} {file}', middle(names)) for file in left for how in ('cut', 'foreign')),
            *(Fault(how, at, alone=False) for how in ('parent', 'SIGKILL') for at in some(6)),
            *[Fault('twins'), Fault('twins', alone=False)]]


def what_is_left(folder, at):
    """The files of a run that was killed at a point, as patterns below its folder (mmengine names some by the time)."""
    end(start(fresh(folder), Fault('SIGKILL', at)), folder)
    here = folder / 'here'
    return sorted({re.sub(r'\d{8}_\d{6}', '*', str(path.relative_to(here))) for path in here.rglob('*')
                   if path.is_file() and path.suffix not in ('.lock', '.png')})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, help='so many, evenly spread; default: before and after every point')
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument('--only', default='', help='faults whose name begins so')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names, (wanted, other) = undisturbed(folder / 'undisturbed')
        _, (batch, _) = undisturbed(folder / 'batch', alone=False)     # with more threads, so of other digits
        print(f'{len(names)} points:', *(f'  {i} {name}' for i, name in enumerate(names, 1)), sep='\n', flush=True)
        failed = [f'undisturbed: left {other}'] if other else []
        todo = kills(names, given.kills or 0) if given.kills != 0 else []
        todo += others(names, what_is_left(folder / 'left', middle(names)))
        todo = [fault for fault in todo if str(fault).startswith(given.only)]
        with ThreadPoolExecutor(given.jobs) as pool:
            ended = pool.map(lambda one: tortured(folder / str(one[0]), one[1], wanted if one[1].alone else batch),
                             enumerate(todo))
            for done, (fault, wrong) in enumerate(zip(todo, ended, strict=True), 1):
                where = f'{fault} {names[fault.at - 1] if fault.at and fault.alone else ""}'
                print(f'[{done}/{len(todo)}] {where}: {wrong or "ok"}', flush=True)
                failed += [f'{where}: {wrong}'] if wrong else []
    print(f'{len(todo)} faults, {len(failed)} went wrong')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
