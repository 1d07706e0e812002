"""The claims of the paper beside what was found here: differences, intervals and verdicts, read from files."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from amdlib.paper.claims import CLAIMS, Claim
from amdlib.paper.pairs import find_group
from amdlib.paper.planned import GROUP, METRIC, PLANNED, PROFILE
from amdlib.paper.rows import ROWS
from amdlib.runs.planned import planned_runs
from amdlib.runs.run import table_run
from amdlib.runs.store import Store, line_of
from amdlib.show.report.provenance import where
from amdlib.show.report.records import Entry, differs, lines_of
from amdlib.show.verdicts import judge, pair_up
from amdlib.words import plural, some

SEEDS = ' '.join(map(str, range(min(one.seeds for one in PLANNED))))    # that a question of one's own begins with


@dataclass(frozen=True)
class Judged:
    """A claim for one detector pair: the paper's difference, and what was found here, in points of percent.

    Args:
        kind: 'primary', 'named' or 'exploratory'; with what the interval is over.
        verdict: in words; '' where nothing was found yet, then `command` makes what is missing.
        problem: where the records do not bear out what the file says.
    """
    claim: Claim
    group: str
    kind: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    verdict: str = ''
    command: str = ''
    problem: str = ''
    note: str = ''

    @property
    def paper(self) -> float | None:
        printed = self.claim.printed(self.group)
        return printed and printed[1]

    @property
    def table(self) -> str:
        """Number of the paper's table; '' where the paper does not compare the two."""
        printed = self.claim.printed(self.group)
        return printed[0] if printed else ''

    @property
    def detector(self) -> str:
        return find_group(self.group).student_label

    @property
    def outcome(self) -> tuple[str, str]:
        """A sign, and what the verdict means for the claim."""
        if not self.verdict:
            return '·', 'not judged yet'
        return next((said for start, said in (('better', ('✓', 'holds here')), ('worse', ('✗', 'the opposite here')),
                                              ('the same', ('○', 'no difference here')),
                                              ('unfinished', ('○', 'not finished')), ('one seed', ('○', 'open')))
                     if self.verdict.startswith(start)), ('○', 'not resolved'))


def judged(store: Store, entries: Mapping[str, Entry]) -> list[Judged]:
    """Every claim for every detector pair that it is about, those of the plan first."""
    planned, runs = _planned(store, entries), {entry.run: entry for entry in entries.values() if entry.counts}
    found = [planned[claim.planned](claim) if claim.planned in planned and group == GROUP
             else _explored(claim, group, store, runs) for claim in CLAIMS for group in claim.groups]
    return sorted(found, key=lambda line: (line.kind == 'exploratory', line.group != GROUP, not line.verdict))


def summary(lines: Iterable[Judged]) -> str:
    """How many claims of the paper were judged here, and how; in words."""
    lines = [line for line in lines if line.table]
    counts = pd.Series([line.outcome[1] for line in lines], dtype=str).value_counts()
    of = plural(len(lines), 'claim', 'claims')
    return f'The paper prints numbers for {of}, each detector counted: ' + ', '.join(
        f'{counts[name]} {words}' for name, words in (
            ('holds here', 'hold here'), ('the opposite here', 'come out the other way'), ('no difference here', 'show '
             'no difference'), ('not resolved', 'not resolved'), ('not finished', 'not finished'),
            ('open', 'open after one seed'), ('not judged yet', 'not judged yet')) if name in counts) + '.'


def _planned(store: Store, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """By the name of a planned comparison how to make a line of it, from significance.csv; {} at another profile."""
    if store.profile.name != PROFILE:
        return {}
    file, both = store.folder / 'significance.csv', store.folder / 'significance_headline.csv'
    ends = {'low': float, 'high': float}
    told = {line['comparison']: line for line in lines_of(
        file, {'comparison': str, 'verdict': str, 'n': int, 'difference': float, **ends})}
    headline = next(iter(lines_of(both, ends)), None)
    found = {}
    for one in PLANNED:
        kind, runs = one.kind, planned_runs(one, store)
        if (line := told.get(one.name)) is None:
            here = runs and all(run.id in entries and entries[run.id].counts for run in runs)
            command = f'make {"reproduce-significance" if here else "plan"}{where(store)}'
            found[one.name] = lambda claim, kind=kind, command=command: Judged(claim, GROUP, kind, command=command)
            continue
        values = {name: line[name] for name in ('low', 'high', 'verdict')}
        if one.kind == 'primary' and headline is not None:    # the chance of test images is in it
            low, high = float(headline['low']), float(headline['high'])
            verdict = values['verdict'] if low > 0 or high < 0 else f'not resolved at n = {line["n"]}, seeds and images'
            values, kind = {'low': low, 'high': high, 'verdict': verdict}, 'primary, seeds and images'
        values |= {'n': int(line['n']), 'difference': line['difference'],
                   'problem': _disagreement(line, runs, one.row, entries)}
        found[one.name] = lambda claim, kind=kind, values=values: Judged(claim, GROUP, kind, **values)
    return found


def _disagreement(line: Mapping[str, Any], runs: Iterable[Any], row: str, entries: Mapping[str, Entry]) -> str:
    """Where the records do not bear out a line of significance.csv: why."""
    pairs: dict[int, dict[bool, float]] = {}
    for run in runs:
        if (entry := entries.get(run.id)) and entry.record and entry.record['numbers'][METRIC] is not None:
            if entry.disagrees:
                return f'of {entry.id} {entry.disagrees}'
            pairs.setdefault(run.seed, {})[run.row.name == row] = entry.record['numbers'][METRIC]
    found = [pair[True] - pair[False] for pair in pairs.values() if len(pair) == 2]
    if len(found) < line['n']:
        return f'records of {len(found)} of its {plural(line["n"], "pair", "pairs")} are here'
    now = sum(found) / len(found)
    return f'the difference is {line["difference"]:.6f} here, by the records {now:.6f}' \
        if len(found) == line['n'] and differs(line['difference'], now) else ''


def _explored(claim: Claim, group: str, store: Store, runs: Mapping[Any, Entry]) -> Judged:
    """A claim that no plan asks for, from the records that count: its own verdict, of its line alone."""
    lines = []
    for name in (claim.row, claim.over):
        row = ROWS[f'{group}-{name}']
        lines += [line_of(entry.run, entry.record) for entry in runs.values() if entry.run.row == row
                  and entry.run == table_run(row, store.profile, entry.run.seed)]
    records = pd.DataFrame(lines, columns=None if lines else ['group', 'row', 'seed'])
    if claim.over == 'teacher':     # one teacher: every student is compared with it
        students, taught = records[records.row == claim.row], records[records.row == 'teacher']
        records = pd.concat([students, *(taught.assign(seed=seed) for seed in students.seed)])
    pairs = pair_up(records, group, claim.row, claim.over)
    found = judge(pairs, claim.metric)
    if found.difference is None:
        table = claim.tables(group)[0]
        controls = '' if {claim.row, claim.over} <= set(table.lines) else ' CONTROLS=1'
        command = f'make reproduce-{table.name} GROUP={group} SEEDS="{SEEDS}"{controls}{where(store)}'
        return Judged(claim, group, 'exploratory', command=command)
    low, high = (None if value is None or math.isnan(value) else value for value in (found.low, found.high))
    return Judged(claim, group, 'exploratory', found.difference, low, high, found.n, found.verdict,
                  note=some(pairs.left_out, '; ', 2))
