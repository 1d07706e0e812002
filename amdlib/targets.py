"""The paper's results as targets: the notebook that tells each, with which parameters, and the runs behind it."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from amdlib import KitError, batch, notebooks, results
from amdlib.data import Dataset
from amdlib.experiments import GROUPS, TABLES, Run, SettingError, row_runs, sweep_runs, table_runs

NOTEBOOKS = results.ROOT / 'notebooks'
PHI = '0.5 0.7 0.9 1.0 1.1 1.3 1.5'     # method.md: A has mean 1, so the sweep belongs around 1


class TargetError(KitError, RuntimeError):
    """Some targets were not made; the message names each with the reason."""


@dataclass(frozen=True)
class Target:
    """A table, a figure or a notebook to think with."""
    name: str                       # of the make target `reproduce-<name>` and of the files
    title: str
    notebook: str
    runs: Callable[[str, dict], list[Run]] = field(repr=False)      # profile, what the caller gives -> runs
    parameters: dict = field(default_factory=dict, hash=False)      # of the notebook, besides what the caller gives
    groups: tuple[str, ...] = tuple(GROUPS)
    sweep: str | None = None        # folder of the executed notebooks, where every run has one

    def executed(self, runs: Iterable[Run], place: Path) -> dict[Run, Path]:
        """Where the executed notebook of each run of a sweep lies; {} for other targets."""
        return {run: place / self.sweep / f'{run.id}.ipynb' for run in runs} if self.sweep else {}


def _of_table(name: str) -> Callable[[str, dict], list[Run]]:
    return lambda profile, given: table_runs(name, profile, given.get('group'), given.get('seeds') or '0',
                                             given.get('settings', ''))


def _of_rows(*names: str) -> Callable[[str, dict], list[Run]]:
    """The rows of one group: given['group'] or RetinaNet."""
    return lambda profile, given: row_runs(
        given.get('group') or 'retinanet', dict.fromkeys([*names, *filter(None, [given.get('row')])]), profile,
        _number('seed', given) or 0, given.get('settings', ''))


def _of_sweep(profile: str, given: dict) -> list[Run]:
    return sweep_runs(f'{given.get("group") or "reppoints"}-amd', 'phi', given.get('values') or PHI, profile,
                      given.get('seeds') or '0', given.get('settings', ''))


def _number(name: str, given: dict) -> int | None:
    text = str(given.get(name) or '0')
    if not text.isdigit():
        raise SettingError(f'{name}={text}: expected a number')
    return int(text) or None


_ABLATIONS = ('table2', 'table3', 'table4')      # one notebook tells all three

TARGETS: dict[str, Target] = {target.name: target for target in (
    *(Target(name, f'Table {table.number}: {table.title}', 'ablation' if name in _ABLATIONS else name, _of_table(name),
             {'table': name} if name in _ABLATIONS else {}, table.groups) for name, table in TABLES.items()),
    Target('fig1', "Fig. 1: the teacher's attention", 'fig1', _of_rows('teacher')),
    Target('fig3', 'Fig. 3: feature maps', 'fig3', _of_rows('teacher', 'baseline', 'fgd', 'mgd', 'amd')),
    Target('fig4', 'Fig. 4: mAP and mAR over phi', 'fig4', _of_sweep, sweep='sweep_phi'),
    Target('method', 'The method, equation by equation', 'method', _of_rows('teacher', 'baseline')),
    Target('explore_masks', 'What a mask covers', 'explore_masks', _of_rows('teacher')),
)}


def find_targets(names: Iterable[str], group: str | None = None) -> list[Target]:
    """Targets by name; 'all' is every one (that concerns the group, where one is given).

    Errors: SettingError for an unknown name.
    """
    names = list(names)
    if unknown := [name for name in names if name not in (*TARGETS, 'all')]:
        raise SettingError(f'unknown target {unknown[0]!r}; expected one of: {", ".join(TARGETS)}, all')
    if 'all' not in names:
        return [TARGETS[name] for name in names]
    return [target for target in TARGETS.values() if not group or group in target.groups]


def reproduce(targets: list[Target], profile: str, dataset: Dataset, data: Path | None, results_dir: Path, given: dict,
              say=print) -> None:
    """Train what the targets lack, then execute their notebooks.

    Args:
        given: values for the notebooks' parameters, as text; each notebook takes those that it has.
    Errors: NotebookError for a parameter that no notebook has, before anything starts; BatchError or TargetError at
        the end, naming what failed; nothing that could be made is left out.
    """
    known = _parameters(targets, given)
    place = results.folder(profile, dataset, results_dir)
    trained, failed = {target: target.runs(profile, given) for target in targets}, []
    if len(targets) > 1:  # one batch keeps every core or card busy; a single notebook trains what it lacks itself
        try:
            executed = {run: path for target, runs in trained.items() for run, path in
                        target.executed(runs, place).items()}
            batch.run_missing([run for runs in trained.values() for run in runs], dataset, data,
                              jobs=_number('jobs', given), force=given.get('force') in ('True', '1'),
                              device=given.get('device') or None, results_dir=results_dir, executed=executed, say=say)
        except batch.BatchError as error:
            failed.append(str(error))
        given = {**given, 'force': ''}
    for target in targets:
        lacking = [run.id for run in trained[target] if results.state(run, dataset, results_dir).name != 'done'
                   ] if len(targets) > 1 else []    # a single notebook trains them
        if lacking:
            failed.append(f'{target.name}: not made, it lacks {", ".join(lacking)}')
            continue
        say(f'\n{target.title} ({target.notebook}.ipynb)')
        own = {name: value for name, value in given.items() if name in known[target]}
        try:
            notebooks.execute(NOTEBOOKS / f'{target.notebook}.ipynb', place / f'{target.name}.ipynb',
                              {'profile': profile, 'data': str(data or ''), 'results_dir': str(results_dir),
                               **target.parameters, **own})
        except notebooks.NotebookError as error:
            failed.append(f'{target.name}: {error}')
    if failed:
        raise TargetError('\n'.join(failed))


def _parameters(targets: list[Target], given: Iterable[str]) -> dict[Target, dict]:
    """The parameters of each target's notebook; NotebookError where none has one of those given."""
    known = {target: notebooks.check(NOTEBOOKS / f'{target.notebook}.ipynb', target.parameters) for target in targets}
    for name in given:
        if not any(name in parameters for parameters in known.values()):
            notebooks.check(NOTEBOOKS / f'{targets[0].notebook}.ipynb', [name])
    return known


def status(targets: list[Target], profile: str, dataset: Dataset, results_dir: Path, given: dict, say=print) -> None:
    """Print every run that the targets need with its state and why, then how far each target is."""
    _parameters(targets, given)
    place = results.folder(profile, dataset, results_dir)
    wanted = {target: target.runs(profile, given) for target in targets}
    runs = batch.with_teachers(run for runs in wanted.values() for run in runs)
    states = {run: results.state(run, dataset, results_dir) for run in runs}
    width = max(len(run.id) for run in runs)
    for run, found in states.items():
        told = f'{found.record["numbers"]["mAP"]:.1f} mAP' if found.name == 'done' else found.why
        needed = ' '.join(target.name for target, own in wanted.items() if run in own) or 'as a teacher'
        say(f'{run.id:{width}}  {found.name:8} {told}  [{needed}]')
    counts = Counter(found.name for found in states.values())
    say(f'\n{len(runs)} runs: ' + ', '.join(f'{count} {name}' for name, count in counts.most_common()))
    for target, own in wanted.items():
        done = [run for run in own if states[run].name == 'done']
        output = _output(target, done, dataset, place, results_dir)
        say(f'{target.name:14} {len(done)} of {len(own)} runs done; {output}')


def _output(target: Target, done: list[Run], dataset: Dataset, place: Path, results_dir: Path) -> str:
    notebook = place / f'{target.name}.ipynb'
    if notebook.with_suffix('.failed.ipynb').is_file():
        return f'its notebook failed: {notebook.with_suffix(".failed.ipynb")}'
    if not notebook.is_file():
        return 'not executed yet'
    made_s = notebook.stat().st_mtime
    newer = [run.id for run in done
             if (results.run_folder(run, dataset, results_dir) / 'record.json').stat().st_mtime > made_s]
    return f'executed before {", ".join(newer)} ended' if newer else 'executed'
