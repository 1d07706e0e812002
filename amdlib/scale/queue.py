"""A queue by discrete events: when the runs of a table would end on so many nodes, with preemptions or without.

A node is what one run takes, whatever number of GPUs that is. Times go in, nothing is measured here, and runs do not
slow each other down: no disk and no network has an end. docs/scale.md compares it with a Slurm of one node.
"""
from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

import pandas as pd

from amdlib.errors import SettingError
from amdlib.files import read_json
from amdlib.paper.rows import Row
from amdlib.runs.run import Run, with_teachers
from amdlib.runs.store import Store
from amdlib.scale import cost
from amdlib.words import number, some


@dataclass(frozen=True)
class Job:
    """One run: a start, steps that take the same time each, a test.

    Args:
        start_s: from the start of its entry to the first step; once more each time that it goes on.
        test_s: from the last step to the end of its entry.
        epoch_steps: between two checkpoints that a kill leaves behind.
        read_s: of a step whose pictures are only read, where it goes on in the midst of an epoch.
        after: the runs that must have ended before.
        array: of which array it is an entry.
    """
    name: str
    steps: int
    s_per_step: float
    start_s: float = 0.0
    test_s: float = 0.0
    epoch_steps: int = 1
    read_s: float = 0.0
    after: tuple[str, ...] = ()
    array: int = 0


@dataclass(frozen=True)
class Queue:
    """What runs jobs, the first in order that may start, on any node that is free.

    Args:
        at_once: of an array, as `%K` limits it.
        requeue_s: from the end of an entry that was preempted until it may start again. Slurm 22.05 takes two minutes.
        stop_s: from the signal to the end of an entry that is told before: its step ends, the checkpoint is written.
        every_s: mean time of a running entry to a preemption; inf: there is none.
        told: SIGUSR1 or SIGTERM comes before, and the run stops after a step; otherwise it is killed, and what it made
            since its last epoch is made again.
        seed: of when preemptions come.
    """
    nodes: int = 1
    at_once: int | None = None
    requeue_s: float = 120.0
    stop_s: float = 0.0
    every_s: float = math.inf
    told: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ('nodes', 'at_once', 'every_s'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingError(f'{name}={value!r}: expected more than 0')


@dataclass(frozen=True)
class Span:
    """An entry on a node, from one start to one end: from step `first` up to step `last`."""
    name: str
    began_s: float
    ended_s: float
    first: int
    last: int
    whole: bool     # otherwise it was preempted


@dataclass
class Outcome:
    """What came of it."""
    spans: list[Span] = field(default_factory=list)

    @property
    def makespan_s(self) -> float:
        """From the beginning until the last run has ended."""
        return max((span.ended_s for span in self.spans), default=0.0)

    @property
    def node_s(self) -> float:
        """Of all nodes together, while they were in use."""
        return sum(span.ended_s - span.began_s for span in self.spans)


def simulate(jobs: Iterable[Job], queue: Queue, stops: Mapping[str, Sequence[int]] | None = None) -> Outcome:
    """Run jobs through a queue.

    Args:
        stops: preemptions that are known, besides those that are drawn: of a job by its name the steps after which.
    Errors: SettingError where a job waits for one that is none of them, or for itself.
    """
    waiting = {job.name: job for job in jobs}       # in their order
    order = {name: number for number, name in enumerate(waiting)}
    left = {name: list(steps) for name, steps in (stops or {}).items()}
    draw, number, out = random.Random(queue.seed), itertools.count(), Outcome()
    done: dict[str, int] = dict.fromkeys(waiting, 0)
    running: Counter[int] = Counter()
    ended: set[str] = set()
    events: list[tuple[float, int, str, Job, Span | None]] = []     # when, of those at once which first, what of whom
    free, now_s = queue.nodes, 0.0
    while waiting or events:
        for job in sorted(waiting.values(), key=lambda job: order[job.name]):
            if not free:
                break
            if ended.issuperset(job.after) and running[job.array] < (queue.at_once or math.inf):
                span = _attempt(job, done[job.name], now_s, queue, left.get(job.name, []), draw)
                heapq.heappush(events, (span.ended_s, next(number), 'end', job, span))
                del waiting[job.name]
                running[job.array] += 1
                free -= 1
        if not events:
            raise SettingError(f'{", ".join(waiting)} would wait for ever')
        now_s, _, what, job, span = heapq.heappop(events)
        if what == 'back':
            waiting[job.name] = job
            continue
        out.spans.append(span)
        free += 1
        running[job.array] -= 1
        if span.whole:
            ended.add(job.name)
        else:
            done[job.name] = span.last
            heapq.heappush(events, (now_s + queue.requeue_s, next(number), 'back', job, None))
    return out


def _attempt(job: Job, first: int, began_s: float, queue: Queue, stops: list[int], draw: random.Random) -> Span:
    """From a start to the end, or to a preemption; a known one is taken out of `stops`."""
    before_s = job.start_s + first % job.epoch_steps * job.read_s
    whole_s = before_s + (job.steps - first) * job.s_per_step + job.test_s
    until_s = draw.expovariate(1 / queue.every_s) if queue.every_s < math.inf else math.inf
    if stops:
        until_s = min(until_s, before_s + (stops.pop(0) - first) * job.s_per_step)
    if until_s >= whole_s:
        return Span(job.name, began_s, began_s + whole_s, first, job.steps, True)
    made = max(0, math.floor((until_s - before_s) / job.s_per_step + 1e-9)) if job.s_per_step else job.steps
    reached = min(job.steps, first + made)
    if not queue.told:      # but what an earlier preemption has left is still there
        reached = max(first, reached if reached == job.steps else reached // job.epoch_steps * job.epoch_steps)
    return Span(job.name, began_s, began_s + until_s + queue.stop_s * queue.told, first, reached, False)


# ---- of a table -------------------------------------------------------------------------------------------------

def measured(rows: Iterable[Row], store: Store, settings: Mapping[str, Any] | None = None
             ) -> dict[str, tuple[float, float]]:
    """By row seconds a step and of the test, as this profile's records have them, kept ones too; else seconds a step as
    `cost` measured them on a GPU, and a test of no length."""
    found: dict[str, list[tuple[float, float]]] = {}
    for file in store.with_kept().record_files() if store.dataset else ():
        record = read_json(file)
        found.setdefault(record['row'], []).append((
            record['train_s'] / record['steps'] if record['steps'] else 0.0, record['wall_s'] - record['train_s']))
    on_gpu = cost.table(rows, store, settings).dropna(subset='s_per_step')
    return {**{line.row: (line.s_per_step, 0.0) for line in on_gpu.itertuples()},
            **{row: (median(steps), median(tests)) for row, both in found.items()
               for steps, tests in [zip(*both, strict=True)]}}


def jobs_of(runs: Iterable[Run], store: Store, times: Mapping[str, tuple[float, float]], start_s: float = 0.0
            ) -> list[Job]:
    """Runs, and the teachers that they need, as `slurm.submit` hands them in where nothing is there yet: students are
    an array after all teachers.

    Args:
        times: seconds a step and of the test by row.
        start_s: of each entry before its first step, which no record tells.
    Errors: SettingError for rows whose time is not told.
    """
    runs, images = with_teachers(runs), cost.images_of(store)
    teachers = tuple(run.id for run in runs if run in {one.teacher() for one in runs})
    if unknown := sorted({run.row.id for run in runs if run.row.id not in times and run.trains}):
        raise SettingError(f'no record tells how long a step takes of {some(unknown)}: expected --s-per-step')
    jobs = []
    for run in runs:
        steps, (s_per_step, test_s) = run.steps(images), times.get(run.row.id, (0.0, 0.0))
        jobs.append(Job(run.id, steps, s_per_step, start_s, test_s, max(1, steps // run.epochs),
                        after=teachers if run.teacher() else (), array=int(run.teacher() is not None)))
    return jobs


def makespans(jobs: Sequence[Job], nodes: Iterable[int], queue: Queue, draws: int = 20) -> pd.DataFrame:
    """A line a number of nodes and way: hours until the last run has ended, the mean of `draws` with the least and the
    most, and node-hours.

    `way`: 'none' without a preemption; where `queue` has some, 'told' where runs are told before, and 'killed'.
    """
    lines = []
    for count in nodes:
        for way in ('none', *(('told', 'killed') if queue.every_s < math.inf else ())):
            outcomes = [simulate(jobs, replace(queue, nodes=count, told=way == 'told', seed=seed, every_s=(
                math.inf if way == 'none' else queue.every_s))) for seed in range(1 if way == 'none' else draws)]
            spans_h = [one.makespan_s / 3600 for one in outcomes]
            lines.append({'nodes': count, 'way': way, 'hours': mean(spans_h), 'least': min(spans_h),
                          'most': max(spans_h), 'node_hours': mean(one.node_s / 3600 for one in outcomes)})
    return pd.DataFrame(lines)


def readable(cells: pd.DataFrame) -> pd.DataFrame:
    """As text, a line a number of nodes."""
    ways = {'none': '', 'told': ', preempted and told', 'killed': ', killed'}
    return pd.DataFrame([{'nodes': str(nodes), **{
        f'{what}{ways[line.way]}': number(getattr(line, field), '.1f') for line in lines.itertuples()
        for field, what in (('hours', 'hours'), ('node_hours', 'node-hours'))}}
        for nodes, lines in cells.groupby('nodes', sort=False)])
