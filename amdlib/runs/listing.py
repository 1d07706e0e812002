"""Where runs stand, in lines: for the paper's targets and for studies alike."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from amdlib.runs.device import default_jobs
from amdlib.runs.run import Run
from amdlib.runs.store import State, Store
from amdlib.runs.times import expected_s
from amdlib.words import hours, number, some

NEVER_RUN = State('missing', 'never run')
LISTED = 8      # runs that were never run, by name; more are counted


def lines(states: Mapping[Run, State], wanted: Mapping[str, Iterable[Run]]) -> list[str]:
    """A line a run: its state and why, and who needs it; then how many there are of each state.

    Args:
        wanted: by the name of a target its runs; other ones are teachers.
    """
    never = [run for run, found in states.items() if found == NEVER_RUN]
    listed = [run for run in states if run not in never or len(never) <= LISTED]
    width, told = max((len(run.id) for run in listed), default=0), []
    for run in listed:
        found = states[run]
        why = f'{number(found.record["numbers"]["mAP"])} mAP' if found.name == 'done' else found.why
        note = f' ({found.note})' if found.note else ''
        needed = ' '.join(name for name, own in wanted.items() if run in own) or 'as a teacher'
        told.append(f'{run.id:{width}}  {found.name:8} {why}{note}  [{needed}]')
    if len(never) > LISTED:
        told.append(f'{len(never)} never run: {some(run.id for run in never)}')
    counts = Counter(found.name for found in states.values())
    return [*told, f'\n{len(states)} runs: ' + ', '.join(f'{count} {name}' for name, count in counts.most_common())]


def left(states: Mapping[Run, State], store: Store, queued: bool = False) -> str:
    """`3 of 7 done, about 12 min (2 at once)`, as far as there are runs to tell the time from.

    Args:
        queued: Slurm runs them: as many at once as run now.
    """
    counts = Counter(found.name for found in states.values())
    told = f'{counts["done"]} of {len(states)} done'
    to_do = [run for run, found in states.items() if found.name not in ('done', 'running')]
    if not to_do:
        return told
    at_once = max(1, counts['running']) if queued else store.means.jobs or default_jobs(store.means.device)
    seconds, unknown = expected_s(to_do, store)
    if len(unknown) == len(to_do):
        return f'{told}, no run to tell the time from'
    of = f' for {len(to_do) - len(unknown)} of {len(to_do)}, no run to tell from for the others' if unknown else ''
    return f'{told}, about {hours(seconds / at_once)} ({at_once} at once){of}'
