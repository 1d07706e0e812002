"""`make torture`: kill a training process before and after every change that it makes to a file, and see that the next
call ends with the same bits. `python -m tests.torture.run [--points N] [--jobs N] [--alone]`."""
import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from amdlib.files import ROOT, read_json

HERE = Path(__file__).parent
LIMIT_S = 600       # of one call
# what may lie in a run's folder when it is done (docs/parts.md)
DOCUMENTED = {'record.json', 'detections.json.gz', 'weights.pth', 'scalars.jsonl', 'progress.json', 'console.log',
              'job.json', 'mmengine', 'features', '.lock', '.hashes.json', '.features.lock'}


def call(folder, alone, at=0, after=False):
    """One call of drive.py, counted and, at point `at`, killed; its status and what it said."""
    asked = {'folder': str(folder / 'here'), 'log': str(folder / 'points'), 'at': at, 'after': after}
    (folder / 'points').write_text('')
    process = subprocess.Popen(
        [sys.executable, HERE / 'drive.py', folder / 'here', *(['--alone'] if alone else [])], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, 'TORTURE': json.dumps(asked), 'PYTHONPATH': f'{HERE}{os.pathsep}{ROOT}',
             'OMP_NUM_THREADS': '1'})
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return 'hangs', said
    return process.returncode, said


def points(folder):
    """The points of the last call: what and where."""
    return [line.split(' ', 1)[1] for line in (folder / 'points').read_text().splitlines()]


def result(folder):
    """Of both runs the numbers, the detections and the tensors, and what lies there besides what is documented."""
    import torch

    from tests.torture.drive import RUNS, store
    own, found, other = store(folder / 'here'), {}, []
    for run in RUNS:
        at, digest = own.run_folder(run), hashlib.sha256()
        for name, value in sorted(torch.load(at / 'weights.pth', weights_only=True)['state_dict'].items()):
            digest.update(name.encode() + value.numpy().tobytes())
        record = own.record(run)
        found[run.id] = [record['numbers'], digest.hexdigest(), read_json(at / 'detections.json.gz')]
        other += [str(path) for path in at.iterdir() if path.name not in DOCUMENTED]
    other += [str(path) for path in (folder / 'here').rglob('.*.[0-9]*') if path.is_file()]    # halves of whole files
    return found, other


def undisturbed(folder, alone):
    """Points and result of a run that nobody disturbs. Errors: RuntimeError with what it said."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'here').mkdir()
    status, said = call(folder, alone)
    if status:
        raise RuntimeError(f'status {status}:\n{said}')
    return points(folder), result(folder)


def tortured(folder, at, after, alone, wanted):
    """Kill at one point, call again; '' or what is wrong."""
    folder.mkdir(parents=True)
    (folder / 'here').mkdir()
    try:
        first, said = call(folder, alone, at, after)
        reached = points(folder)
        if len(reached) < at:
            return f'never reached: {len(reached)} points; status {first}:\n{said[-600:]}'
        if alone and first != -signal.SIGKILL:
            return f'status {first} instead of a kill:\n{said[-600:]}'
        second, said = call(folder, alone)
        if second:
            return f'the second call ended with {second}:\n{said[-1200:]}'
        found, other = result(folder)
        if found != wanted:
            return 'other bits than an undisturbed run'
        return f'left: {", ".join(other)}' if other else ''
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def chosen(names, count):
    """(number, after) of so many points, evenly spread; all of them, each before and after, where that is fewer."""
    every = [(number, after) for number in range(1, len(names) + 1) for after in (False, True)]
    step = max(1, len(every) / count) if count else 1
    return [every[int(i * step)] for i in range(min(len(every), count or len(every)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--points', type=int, default=0, help='so many, evenly spread; default: all')
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument('--alone', action='store_true', help='in one process instead of a batch')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names, (wanted, other) = undisturbed(folder / 'undisturbed', given.alone)
        print(f'{len(names)} points:', *(f'  {i} {name}' for i, name in enumerate(names, 1)), sep='\n', flush=True)
        failed = [f'undisturbed: left {other}'] if other else []
        todo = chosen(names, given.points)
        with ThreadPoolExecutor(given.jobs) as pool:
            ended = pool.map(lambda one: tortured(folder / f'{one[0]}-{one[1]}', *one, given.alone, wanted), todo)
            for done, ((number, after), wrong) in enumerate(zip(todo, ended, strict=True), 1):
                where = f'{"after" if after else "before"} {number} {names[number - 1]}'
                print(f'[{done}/{len(todo)}] {where}: {wrong or "ok"}', flush=True)
                failed += [f'{where}: {wrong}'] if wrong else []
    print(f'{len(todo)} points, {len(failed)} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
