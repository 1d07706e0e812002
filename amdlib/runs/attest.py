"""Attest that an edit of what decides a number changes no digit, so that days of evidence need not be made again.

Every row is trained some steps, and two whole short runs, at the old and at the new commit; weights, detections and
numbers are compared bit by bit. Only where all are the same is a line added to results/attested.json: records of the
old fingerprints then count as made with the new code. Nobody edits that file by hand; a test holds its lines to their
evidence.
"""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from amdlib import methods
from amdlib.datasets import prepare
from amdlib.datasets.formats.shapes import ShapesSpec
from amdlib.errors import RunError
from amdlib.files import ROOT, digest, read_json, sha256, write_json
from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import paper_lines
from amdlib.paper.profiles import PROFILES
from amdlib.paper.rows import ROWS, cannot
from amdlib.runs import fingerprints
from amdlib.runs.recipe import Means
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.weights.reading import read_weights
from amdlib.words import log, show_log, timestamp

PROBE = replace(PROFILES['mini'], name='probe', epochs={'student': 1}, log_every=1)
PROBE_IMAGES = ShapesSpec(train_images=24, test_images=12)      # six steps a row
SHORT_RUNS = ('retinanet-amd', 'faster_rcnn-fgd')               # whole, on the made set of `mini`, an epoch each
SEVERAL = ('retinanet-mgd',)                                    # once more in two processes
ALONE = 'alone'
# what is executed at both commits, each with its own code
_ITS_OWN = ('import sys; sys.meta_path[:] = [one for one in sys.meta_path if "__editable__" not in str(one)]; '
            'from amdlib.runs import attest; ')     # an installed kit would lend a checkout the modules that it lacks
TELL = _ITS_OWN + 'import json; print(json.dumps(attest.own_fingerprints()))'
TRY = _ITS_OWN + 'attest.write_probe(sys.argv[1], sys.argv[2])'


def probe(folder: Path) -> dict[str, dict[str, str]]:
    """Train every row some steps, and SHORT_RUNS; the digests of what came out, by run.

    Args:
        folder: for data and runs; empty.
    """
    import torch

    from amdlib.runs.train import train  # loads mmdet
    torch.set_num_threads(1)
    probed = Store(PROBE, prepare('shapes', cache=folder / 'data', shapes=PROBE_IMAGES), folder / 'probe',
                   Means(device='cpu'))
    short = Store(PROFILES['mini'], prepare('shapes'), folder / 'short', Means(device='cpu'))
    runs = [(probed, Run.of(row, PROBE)) for row in ROWS.values()]
    runs += [(short, Run.of(row, short.profile, 0, {'epochs': 1})) for row in SHORT_RUNS]
    runs += [(probed, Run.of(row, PROBE, 0, {'gpus': 2})) for row in SEVERAL]
    found = {}
    for store, run in runs:
        record = train(run, store)
        found[f'{store.profile.name} {run.id}'] = {
            'method': run.row.method or ALONE, 'fingerprint': fingerprints.fingerprint_of(run.row.method),
            'several': fingerprints.fingerprint_of(run.row.method, True),
            'weights': _weights_sha256(store.weights(run)), 'numbers': digest(json.dumps(record['numbers'])),
            'detections': sha256(store.run_folder(run) / 'detections.json.gz')}
    return found


def write_probe(folder: str, file: str) -> None:
    """Write into a JSON file what `probe` finds."""
    show_log()
    write_json(file, probe(Path(folder)))


def _weights_sha256(file: Path) -> str:
    """Of the tensors alone: the file also names the commit."""
    found = hashlib.sha256()
    for name, value in read_weights(file).items():
        found.update(f'{name} {value.dtype} {tuple(value.shape)} '.encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def attest(old: str | None = None, commit: bool = True) -> dict[str, Any]:
    """Compare the digits of an older commit with those of the one that is checked out; return the attested line.

    Args:
        old: the commit; default: that of most records of `mini` that were made with other code.
        commit: commit the line.
    Errors: RunError where sources are not committed, nothing differs in what decides numbers, or digits differ: the
        message names the runs.
    """
    now = fingerprints.commit()
    if not now['commit'] or not now['clean']:
        raise RunError('attest compares commits: commit the changes in amdlib/ first')
    old = _git('rev-parse', '--verify', f'{old or _commit_of_stale_records()}^{{commit}}')
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / 'old'
        _git('worktree', 'add', '--detach', str(tree), old)
        try:
            pairs = _pairs(tree)
            log.info(f'{old[:10]} -> {now["commit"][:10]}: {len(pairs)} fingerprints differ; training at both')
            digests = _both(tree, Path(folder))
        finally:
            _git('worktree', 'remove', '--force', str(tree))
    evidence = {run: {'old': digests['old'][run], 'new': new} for run, new in digests['new'].items()
                if run in digests['old']}   # a row that is new says nothing of old records
    if other := [run for run, sides in evidence.items() if _digits(sides['old']) != _digits(sides['new'])]:
        raise RunError(f'{len(other)} of {len(evidence)} runs have other digits than at {old[:10]}: '
                       f'{", ".join(other)}; nothing is attested')
    line = {'old': old, 'new': now['commit'], 'when': timestamp(), 'machine': fingerprints.machine(),
            'versions': fingerprints.versions(), 'fingerprints': pairs, 'evidence': evidence}
    if wrong := problems(line):
        raise RunError(f'nothing is attested: {"; ".join(wrong)}')
    lines = read_json(fingerprints.ATTESTED) if fingerprints.ATTESTED.is_file() else []
    fingerprints.ATTESTED.parent.mkdir(exist_ok=True)
    write_json(fingerprints.ATTESTED, [*lines, line])
    if commit:
        _git('add', str(fingerprints.ATTESTED))
        _git('commit', '-m', f'Attested: the same digits as at {old[:10]}', '--', str(fingerprints.ATTESTED))
    log.info(f'{len(evidence)} runs have the same weights, detections and numbers: attested in {fingerprints.ATTESTED}')
    return line


def own_fingerprints() -> dict[str, str]:
    """The fingerprints of this checkout, by method and, for several processes, `<method> in several processes`."""
    known = {ALONE: None, **{name: name for name in methods.names()}}
    return {f'{name}{suffix}': fingerprints.fingerprint_of(method, several)
            for name, method in known.items() for suffix, several in (('', False), (' in several processes', True))}


def fingerprints_at(tree: Path) -> dict[str, str]:
    """`own_fingerprints` of another checkout, by its own code: as its records have them. Errors: RunError."""
    done = subprocess.run([sys.executable, '-c', TELL], cwd=tree, env={**os.environ, 'PYTHONPATH': str(tree)},
                          capture_output=True, text=True)
    if done.returncode:
        raise RunError(f'{tree}: no fingerprints there: {" / ".join(done.stderr.strip().splitlines()[-2:])}')
    return json.loads(done.stdout.splitlines()[-1])


def _pairs(tree: Path) -> dict[str, dict[str, str]]:
    """Old and new fingerprint by method, and for several processes; RunError where all are the same."""
    old, new = fingerprints_at(tree), own_fingerprints()
    differing = {name: {'old': old[name], 'new': new[name]} for name in new if name in old and old[name] != new[name]}
    if not differing:
        raise RunError('nothing that decides a number differs between the commits: no record is stale for its code')
    return differing


def _both(tree: Path, folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """What `probe` finds at both commits, side by side."""
    processes = {}
    for side, root in (('old', tree), ('new', ROOT)):
        (folder / f'{side}-runs').mkdir()
        command = [sys.executable, '-c', TRY, str(folder / f'{side}-runs'), str(folder / f'{side}.json')]
        env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}  # on the CPU
        with open(folder / f'{side}.log', 'w') as out:
            processes[side] = subprocess.Popen(command, cwd=root, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        for side, process in processes.items():
            if process.wait():
                told = (folder / f'{side}.log').read_text().strip().splitlines()[-3:]
                raise RunError(f'the {side} commit could not be probed: {" / ".join(told)}')
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return {side: read_json(folder / f'{side}.json') for side in processes}


def _digits(side: dict[str, str] | None) -> tuple[str, str, str] | None:
    return side and (side['weights'], side['detections'], side['numbers'])


def _commit_of_stale_records() -> str:
    """Where most records of `mini` with other code come from."""
    commits: Counter[str] = Counter()
    for file in (ROOT / 'results' / 'mini' / 'runs').glob('*/record.json'):
        record = json.loads(file.read_text())
        commits[record['code']['commit']] += 1
    commits.pop(_git('rev-parse', 'HEAD'), None)
    if not commits:
        raise RunError('no record of another commit lies in results/mini: name the commit (make attest OLD=...)')
    return commits.most_common(1)[0][0]


def _git(*words: str) -> str:
    done = subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True)
    if done.returncode:
        raise RunError(f'git {" ".join(words[:2])}: {done.stderr.strip() or done.stdout.strip()}')
    return done.stdout.strip()


def problems(line: dict[str, Any]) -> list[str]:
    """What is wrong with an attested line, by its own evidence: no text, no claim."""
    claims, evidence = line['fingerprints'], line['evidence']
    found = [f'{run}: not among the evidence' for run in _needed(claims) if run not in evidence]
    found += [f'{run}: old and new differ' for run, sides in evidence.items()
              if not sides['old'] or _digits(sides['old']) != _digits(sides['new'])]
    for name, pair in claims.items():
        method, several = name.partition(' ')[::2]
        key = 'several' if several else 'fingerprint'
        own = [sides for sides in evidence.values() if sides['new']['method'] == method and sides['old']]
        if not own or any(sides[side][key] != pair[side] for sides in own for side in ('old', 'new')):
            found.append(f'{name}: no evidence of {pair["old"]} -> {pair["new"]}')
    return found if claims else [*found, 'it claims nothing']


def _needed(claims: Iterable[str]) -> list[str]:
    """The runs without which no such claims are made: each method in each of the paper's groups, and the long ones."""
    tried = {name.partition(' ')[0] for name in claims} - {ALONE}
    runs = [f'{PROBE.name} {group}-{name}-s0' for group in dict.fromkeys(group for group, _ in paper_lines('I'))
            for name in ('teacher', 'baseline', *sorted(tried)) if not cannot(GROUPS[group], name)]
    return [*runs, *(f'mini {row}+epochs=1-s0' for row in SHORT_RUNS),
            *(f'{PROBE.name} {row}+gpus=2-s0' for row in SEVERAL)]
