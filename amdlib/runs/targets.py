"""The paper's results as targets: the notebook that tells each, with which parameters, and the runs behind it."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amdlib.errors import RunError, SettingError
from amdlib.paper.pairs import GROUPS, find_group
from amdlib.paper.tables import PHI, TABLES
from amdlib.runs import batch, listing, notebooks, slurm
from amdlib.runs.calibrate import with_factors
from amdlib.runs.run import Run, row_runs, sweep_runs, table_runs, with_teachers
from amdlib.runs.store import RECORD, Store
from amdlib.words import log, near

EXECUTED = 'executed'


@dataclass(frozen=True)
class Given:
    """What the caller asks of every target; None and empty values leave a notebook's own."""
    group: str | None = None
    seeds: tuple[int, ...] = (0,)
    values: tuple[Any, ...] = ()                            # of the sweep
    settings: dict[str, Any] = field(default_factory=dict)  # of every run
    methods: tuple[str, ...] = ()                           # losses of the user's, lines of the tables
    force: bool = False
    arm: str | None = None                                  # how students start, 'alone' or 'inherit'
    controls: bool = False                                  # further lines of the tables
    calibrated: bool = False                                # weights of the methods by the chosen factors

    def __post_init__(self) -> None:
        if self.group:
            find_group(self.group)

    def parameters(self) -> dict[str, Any]:
        """As parameters of notebooks, those that were given."""
        return {name: value for name, value in (
            ('group', self.group), ('seeds', list(self.seeds)), ('values', list(self.values) or None),
            ('settings', dict(self.settings) or None), ('methods', list(self.methods) or None),
            ('force', self.force or None), ('arm', self.arm), ('controls', self.controls or None),
            ('calibrated', self.calibrated or None))
            if value is not None}


@dataclass(frozen=True)
class Target:
    """A table, a figure or a notebook to think with."""
    name: str                       # of the make target `reproduce-<name>` and of the files
    title: str
    notebook: str
    runs: Callable[[Store, Given], list[Run]] = field(repr=False)
    parameters: dict = field(default_factory=dict, hash=False)      # of the notebook, besides what the caller gives
    groups: tuple[str, ...] = tuple(GROUPS)
    sweep: str | None = None        # folder of the executed notebooks, where every run has one
    ours: bool = False              # no result of the paper's: not part of 'all'

    @property
    def file(self) -> Path:
        """Its notebook."""
        return notebooks.NOTEBOOKS / f'{self.notebook}.ipynb'

    def executed(self, runs: Iterable[Run], store: Store) -> dict[Run, Path]:
        """Where the executed notebook of each run of a sweep lies; {} for other targets."""
        return {run: store.folder / self.sweep / f'{run.id}.ipynb' for run in runs} if self.sweep else {}


def _of_table(name: str) -> Callable[[Store, Given], list[Run]]:
    return lambda store, given: _weighted(table_runs(name, store.profile, given.group, given.seeds, given.settings,
                                                     given.methods, given.arm, given.controls), store, given)


def _of_rows(*names: str) -> Callable[[Store, Given], list[Run]]:
    """The rows of one group: the given one or RetinaNet."""
    return lambda store, given: row_runs(given.group or 'retinanet', names, store.profile, given.seeds[0],
                                         given.settings)


def _of_sweep(store: Store, given: Given) -> list[Run]:
    return _weighted(sweep_runs(f'{given.group or "reppoints"}-amd', 'phi', given.values or PHI, store.profile,
                                given.seeds, given.settings, given.arm), store, given)


def _weighted(runs: list[Run], store: Store, given: Given) -> list[Run]:
    return with_factors(runs, store) if given.calibrated else runs


TARGETS: dict[str, Target] = {target.name: target for target in (
    *(Target(name, table.heading, table.notebook or name, _of_table(name),
             {'table': name} if table.notebook else {}, table.groups, ours=table.ours)
      for name, table in TABLES.items()),
    Target('fig1', "Fig. 1: the teacher's attention", 'fig1', _of_rows('teacher'), {'write': True}),
    Target('fig3', 'Fig. 3: feature maps', 'fig3', _of_rows('teacher', 'baseline', 'fgd', 'mgd', 'amd'),
           {'write': True}),
    Target('fig4', 'Fig. 4: mAP and mAR over phi', 'fig4', _of_sweep, sweep='sweep_phi'),
    # it tells of what is there and trains nothing
    Target('significance', 'By more than chance?', 'significance', lambda store, given: [], {'write': True}),
    Target('method', 'The method, equation by equation', 'method', _of_rows('teacher', 'baseline')),
    Target('explore_masks', 'What a mask covers', 'explore_masks', _of_rows('teacher'), {'write': True}),
)}


def find_targets(names: Iterable[str], group: str | None = None) -> list[Target]:
    """Targets by name; 'all' is every one of the paper's (that concerns the group, where one is given).

    Errors: SettingError for an unknown name or group.
    """
    names = list(names)
    if unknown := [name for name in names if name not in (*TARGETS, 'all')]:
        raise SettingError(f'unknown target {unknown[0]!r}; expected one of: {", ".join(TARGETS)}, all')
    if group:
        find_group(group)
    if 'all' not in names:
        return [TARGETS[name] for name in names]
    return [target for target in TARGETS.values() if not target.ours and (not group or group in target.groups)]


def reproduce(targets: list[Target], store: Store, given: Given) -> None:
    """Train what the targets lack, then execute their notebooks; each takes of what is given the parameters it has.

    Errors: RunError for what no notebook takes, before anything starts; at the end, naming what failed; nothing that
        could be made is left out.
    """
    known = _parameters(targets, given)
    wanted = {target: target.runs(store, given) for target in targets}
    failed, made = [], []
    if len(targets) > 1:  # one batch keeps every core or card busy; a single notebook trains what it lacks itself
        try:
            executed = {run: path for target, runs in wanted.items()
                        for run, path in target.executed(runs, store).items()}
            batch.run_missing([run for runs in wanted.values() for run in runs], store, force=given.force,
                              executed=executed)
        except RunError as error:
            failed.append(str(error))
        given = replace(given, force=False)
    for target in targets:
        lacking = [run.id for run in wanted[target] if store.state(run).name != 'done'
                   ] if len(targets) > 1 else []    # a single notebook trains them
        if lacking:
            failed.append(f'{target.name}: not made, it lacks {", ".join(lacking)}')
            continue
        log.info(f'\n{target.title} ({target.notebook}.ipynb)')
        own = {name: value for name, value in given.parameters().items() if name in known[target]}
        try:
            notebooks.execute(target.file, store.folder / f'{target.name}.ipynb',
                              {**store.parameters(), **target.parameters, **own})
        except RunError as error:
            failed.append(f'{target.name}: {error}')
        else:
            made += [store.folder / f'{target.name}.{kind}' for kind in ('md', 'png', 'ipynb')]
    if failed:
        raise RunError('\n'.join(failed))
    log.info(f'\nopen {", ".join(near(path) for path in made if path.is_file())}' if len(targets) == 1 else
             f'\nopen {near(store.folder)}: tables (.md), figures (.png), executed notebooks; make report shows all')


def _parameters(targets: list[Target], given: Given) -> dict[Target, dict]:
    """The parameters of each target's notebook; RunError where none has one of those that differ from the default."""
    known = {target: notebooks.check(target.file, target.parameters) for target in targets}
    default = Given().parameters()
    for name, value in given.parameters().items():
        if value != default.get(name) and not any(name in parameters for parameters in known.values()):
            notebooks.check(targets[0].file, [name])
    return known


def status(targets: list[Target], store: Store, given: Given, queued: bool = False) -> None:
    """Say of every run that the targets need its state and why, how far each target is, what is left and what comes
    next.

    Args:
        queued: ask Slurm's queue too.
    """
    _parameters(targets, given)
    wanted = {target: target.runs(store, given) for target in targets}
    states = {run: store.state(run) for run in with_teachers(run for runs in wanted.values() for run in runs)}
    states = slurm.states(states, store) if queued else states
    for line in listing.lines(states, {target.name: own for target, own in wanted.items()}):
        log.info(line)
    outputs = {target: _output(target, [run for run in own if states[run].name == 'done'], store)
               for target, own in wanted.items()}
    for target, own in wanted.items():
        done = [run for run in own if states[run].name == 'done']
        log.info(f'{target.name:14} {len(done)} of {len(own)} runs done; {outputs[target]}')
    unfinished = [target for target, own in wanted.items()
                  if outputs[target] != EXECUTED or any(states[run].name != 'done' for run in own)]
    following = f'make reproduce-{unfinished[0].name}' if unfinished else 'make report'
    following += f' PROFILE={store.profile.name}' * (store.profile.name != 'mini')
    following += f' GROUP={given.group}' if given.group else ''
    waits = any(found.name not in ('done', 'running') for found in states.values())
    following += ' ON=slurm SLURM="..."' * (queued and waits)
    log.info(f'\n{listing.left(states, store, queued)}, next: {following}')


def _output(target: Target, done: list[Run], store: Store) -> str:
    notebook = store.folder / f'{target.name}.ipynb'
    if notebook.with_suffix('.failed.ipynb').is_file():
        return f'its notebook failed: {notebook.with_suffix(".failed.ipynb")}'
    if not notebook.is_file():
        return 'not executed yet'
    made_s = notebook.stat().st_mtime
    newer = [run.id for run in done if (store.run_folder(run) / RECORD).stat().st_mtime > made_s]
    return f'executed before {", ".join(newer)} ended' if newer else EXECUTED
