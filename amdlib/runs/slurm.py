"""Slurm as the scheduler: missing runs as one job array, an entry a run; and what the queue says of them.

What a run's folder says is the truth (`progress.json`, `record.json`); `slurm.json` there names the entry that is to
train it, and the queue is asked only whether that entry still waits or runs. Accounting (sacct) is not needed.
"""
from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amdlib.errors import RunError, SettingError
from amdlib.files import ROOT, locked, read_json, write_json, write_text
from amdlib.runs.missing import missing
from amdlib.runs.progress import read_progress
from amdlib.runs.run import Run
from amdlib.runs.store import State, Store
from amdlib.words import log, minutes, near, plural, timestamp

CLAIM, SCRIPT, FOLDER = 'slurm.json', 'batch.sh', 'slurm'
TAKEN = ('-a', '--array', '-d', '--dependency', '--wrap', '--parsable')     # words that the batch says itself
LOG_LINES = 4       # of a failed run's log that are shown
ASK_S = 60          # after which Slurm is said not to answer
HEAD = """#!/bin/bash
# {count} of {name}, profile {profile}: each entry trains one run, as the job.json in its folder says.
# Written by python -m amdlib batch on {when}. Submitted, from this folder, by
{commands}
#SBATCH --job-name={name}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
"""
BODY = """
folder=${folders[$SLURM_ARRAY_TASK_ID]}
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" PYTHONUNBUFFERED=1
export SRUN_CPUS_PER_TASK="$OMP_NUM_THREADS"
"""


@dataclass(frozen=True)
class Array:
    """What is submitted of a script: entries of a range, some after others."""
    first: int
    last: int
    at_once: int | None = None
    after: tuple[str, ...] = ()     # entries, such as 12_0

    def words(self) -> list[str]:
        """Of sbatch."""
        limit = f'%{self.at_once}' if self.at_once else ''
        after = [f'--dependency=afterany:{":".join(self.after)}'] if self.after else []
        return ['sbatch', '--parsable', f'--array={self.first}-{self.last}{limit}', *after, SCRIPT]


# ---- submitting -------------------------------------------------------------------------------------------------

def submit(runs: Iterable[Run], store: Store, name: str, options: str = '', hand_in: bool = True) -> Path | None:
    """Write a script for the missing runs that no entry has yet, and submit it; None where there are none.

    Runs whose teacher is missing too are a second array of the same script, after their teachers have ended. Called at
    once for the same runs, one call waits for the other and finds them taken.

    Args:
        name: of the batch, for the queue and the script's folder.
        options: for sbatch, such as '--partition=gpu --time=4:00:00', quoted as in a shell.
        hand_in: submit it; otherwise only the script is written.
    Errors: SettingError for options that are none; RunError where Slurm cannot be asked.
    """
    words, place = _options(options), store.folder / FOLDER
    with locked(place / '.lock', 'waiting for another batch to be submitted'):
        entries = missing(runs, store)
        claims = {one.run: found['job'] for one in entries if (found := read_claim(store.run_folder(one.run)))}
        queued = ask(claims.values()) if claims else {}
        taken = {run: job for run, job in claims.items() if job in queued}
        to_do = [one for one in entries if one.run not in taken]
        if taken:
            log.info(f'{plural(len(taken), "run is", "runs are")} in the queue already')
        if not to_do:
            log.info('nothing is to be submitted')
            return None
        firsts = [one.run for one in to_do if one.after is None]
        order = [*firsts, *(one.run for one in to_do if one.after is not None)]
        folder = _new_folder(place, name)
        at_once, teachers = store.means.jobs, {one.after for one in to_do if one.after}
        arrays = [Array(0, len(firsts) - 1, at_once)] if firsts else []
        if len(order) > len(firsts):
            arrays.append(Array(len(firsts), len(order) - 1, at_once, tuple(sorted(
                taken.get(run) or f'JOB_{order.index(run)}' for run in teachers))))
        write_text(folder / SCRIPT, script(name, order, arrays, words, store))
        log.info(f'{plural(len(order), "run", "runs")}: {near(folder / SCRIPT)}')
        if hand_in:
            _hand_in(order, arrays, store, folder)
        return folder / SCRIPT


def script(name: str, runs: Sequence[Run], arrays: Sequence[Array], options: Sequence[str], store: Store) -> str:
    """The script of a batch: bash, to be read and submitted by a person too."""
    commands = '\n'.join(f'#   {shlex.join(array.words()).replace(" --parsable", "")}' for array in arrays)
    if any(word.startswith('JOB_') for array in arrays for word in array.after):
        commands += '      # JOB: the number of the first'
    head = HEAD.format(count=plural(len(runs), 'run', 'runs'), name=name, profile=store.profile.name, when=timestamp(),
                       commands=commands)
    asked = f'#SBATCH {shlex.join(options)}\n' if options else ''
    folders = ''.join(f'  {shlex.quote(str(store.run_folder(run).absolute()))}\n' for run in runs)
    python = shlex.join([sys.executable, '-m', 'amdlib', 'job'])
    return (f'{head}{asked}\nfolders=(\n{folders}){BODY}cd {shlex.quote(str(ROOT))} || exit\n'
            f'exec {python} "$folder/job.json" --queued >> "$folder/console.log" 2>&1\n')


def _options(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingError(f'options of Slurm {text!r}: {error}') from None
    if bad := [word for word in words if word.partition('=')[0] in TAKEN]:
        raise SettingError(f'options of Slurm: {bad[0]!r} is said by the batch itself')
    if '\n' in text or words and not words[0].startswith('-'):
        raise SettingError(f'options of Slurm {text!r}: expected one line such as --partition=gpu --time=4:00:00')
    return words


def _new_folder(place: Path, name: str) -> Path:
    """slurm/<name>-1, or the first number that is free."""
    number = 1
    while (place / f'{name}-{number}').exists():
        number += 1
    (place / f'{name}-{number}').mkdir(parents=True)
    return place / f'{name}-{number}'


def _hand_in(runs: Sequence[Run], arrays: Sequence[Array], store: Store, folder: Path) -> None:
    first = ''
    for array in arrays:
        after = tuple(word.replace('JOB', first, 1) if word.startswith('JOB_') else word for word in array.after)
        job = call(replace(array, after=after).words(), folder).partition(';')[0].strip()
        first = first or job
        for number in range(array.first, array.last + 1):
            write_json(store.run_folder(runs[number]) / CLAIM, {
                'job': f'{job}_{number}', 'script': str(folder / SCRIPT), 'submitted': timestamp()})
        log.info(f'submitted as job {job}: {plural(array.last - array.first + 1, "run", "runs")}'
                 + (f', after {", ".join(after)}' if after else ''))


# ---- who has a run ----------------------------------------------------------------------------------------------

def read_claim(folder: Path) -> dict[str, str]:
    """Of a run's folder `job`, the entry that is to train it, `script` and `submitted`; {} where nothing says."""
    try:
        found = read_json(folder / CLAIM)
        return found if isinstance(found, dict) and isinstance(found.get('job'), str) else {}
    except (OSError, ValueError):
        return {}


# ---- the queue --------------------------------------------------------------------------------------------------

def ask(jobs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Of entries (12_3) those that wait or run: Slurm's state and reason. Errors: RunError where it does not answer."""
    jobs = set(jobs)
    numbers = sorted({job.partition('_')[0] for job in jobs})
    try:
        lines = call(['squeue', '--noheader', '--array', f'--jobs={",".join(numbers)}', '--format=%i|%T|%r'])
    except RunError as error:
        if 'Invalid job id' in str(error):      # Slurm forgets what has ended
            return {}
        raise
    found = (line.split('|', 2) for line in lines.splitlines() if line.count('|') > 1)
    return {job: (state, reason) for job, state, reason in found if job in jobs}


def states(found: Mapping[Run, State], store: Store) -> dict[Run, State]:
    """The states of runs with what the queue says: waiting, requeued, running (and how long still), or failed, with the
    last lines of the log.

    Args:
        found: what the runs' folders tell.
    """
    claims = {run: claim for run in found if (claim := read_claim(store.run_folder(run)))}
    queue = ask(claim['job'] for claim in claims.values()) if claims else {}
    return {run: _seen(state, claims[run], queue.get(claims[run]['job']), store.run_folder(run))
            if run in claims and state.name != 'done' else state for run, state in found.items()}


def _seen(found: State, claim: Mapping[str, str], said: tuple[str, str] | None, folder: Path) -> State:
    """One state; `said`: the queue's state and reason, None for an entry that is in it no more."""
    told, entry = read_progress(folder), f'entry {claim["job"]}'
    if said is None:
        if found.name == 'stale':
            return found
        why = found.why if found.name == 'failed' else f'{entry} is in the queue no more: {found.why}'
        return State('failed', why + _last_lines(folder))
    state, reason = said
    if state == 'PENDING':
        since = str(told.get('updated', '')) >= str(claim.get('submitted', ''))     # not what an earlier entry left
        begun = since and told.get('phase') in ('start', 'train', 'test', 'stopped')
        at = f'after step {told["step"]} of {told["steps"]}, ' if begun and told['phase'] != 'start' else ''
        return State('requeued' if begun else 'waiting', f'{at}{entry}{f": {reason}" if reason != "None" else ""}')
    if found.name != 'running':
        return State('running', f'{entry} is {state.lower()}, no step yet')
    return State('running', f'{found.why}, {minutes(told["left_s"])} left' if told.get('left_s') else found.why)


def _last_lines(folder: Path) -> str:
    try:
        lines = (folder / 'console.log').read_bytes()[-2000:].decode(errors='replace').splitlines()[-LOG_LINES:]
    except OSError:
        return ''
    return ''.join(f'\n    | {line}' for line in lines)


def call(words: Sequence[str], folder: Path | None = None) -> str:
    """What a command of Slurm's says. Errors: RunError where it is not there, fails or does not answer."""
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=ASK_S)
    except FileNotFoundError:
        raise RunError(f'{words[0]} is not here: expected Slurm\'s commands on this machine') from None
    except subprocess.TimeoutExpired:
        raise RunError(f'{words[0]} has not answered for {ASK_S} s') from None
    if done.returncode:
        raise RunError(f'{words[0]}: {done.stderr.strip() or f"exit {done.returncode}"}')
    return done.stdout
