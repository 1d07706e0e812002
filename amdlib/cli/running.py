"""Commands that run, and how far they are: one run, targets, sweeps, notebooks, the report."""
from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from amdlib.cli import arguments as read
from amdlib.cli import studies
from amdlib.cli.arguments import FORCE, JOBS, MEANS, OF_TABLE, OF_TARGETS, SEED, SEEDS, SETTINGS, WHERE, Words, arg
from amdlib.cli.parsing import command
from amdlib.errors import SettingError
from amdlib.terminal import SCREEN
from amdlib.words import log, near

if TYPE_CHECKING:
    from amdlib.runs.run import Run
    from amdlib.runs.store import Store
    from amdlib.runs.targets import Given, Target


@command(arg('row', help='such as retinanet-amd, or retinanet-path/to/file.py:CLASS for a loss of your own; or a '
                         'study: STUDY.toml, or a table such as table1'), *WHERE,
         SEED, *SETTINGS, *MEANS, JOBS, FORCE, *read.OF_RUN, *OF_TABLE)
def run(given: Words) -> None:
    """Train and evaluate one row (and its teacher, where that is missing), or a study: a .toml file, or a table."""
    of_other, what = ([SEED, FORCE, *read.OF_RUN], 'row') if studies.is_study(given.row) else (OF_TABLE, 'table')
    if changed := read.changed(given, *of_other):
        raise SettingError(f'{given.row}: {changed[0]} is for a {what}')
    if studies.is_study(given.row):
        return studies.run(given.row, given)
    from amdlib.runs.run import Run
    from amdlib.runs.train import train
    settings = read.settings(given)
    if given.amp:
        settings['amp'] = 'fp16'
    if given.gpus is not None:
        settings['gpus'] = given.gpus
    wanted, options = Run.of(given.row, given.profile, given.seed, settings), read.cfg_options(given)
    train(wanted, read.store(given), force=given.force, resume=given.resume, work_dir=given.work_dir,
          cfg_options=options or None)


@command(arg('targets', nargs='+', help='table1 ... table6, fig1, fig3, fig4, or all'), *OF_TARGETS, *MEANS, JOBS,
         FORCE)
def reproduce(given: Words) -> None:
    """Train what targets lack and execute their notebooks."""
    from amdlib.runs import targets
    wanted, asked = _asked(given)
    targets.reproduce(wanted, read.store(given), asked)


@command(arg('targets', nargs='*', help='as for reproduce; default: all'), *OF_TARGETS, *MEANS, JOBS,
         arg('--json', action='store_true', help='as JSON, for another engine (docs/cluster.md)'))
def jobs(given: Words) -> None:
    """List the runs that targets lack, each with command, inputs, outputs, memory and hours, and write its job file."""
    import json

    from amdlib.runs.missing import missing, readable
    store = read.store(given, sys.stderr)
    entries = missing(_runs(given, store), store)
    SCREEN.say(json.dumps([one.to_dict() for one in entries], indent=1) if given.json else readable(entries))


@command(arg('targets', nargs='+', help='as for reproduce'), *OF_TARGETS, *MEANS, JOBS, FORCE,
         arg('--on', choices=('slurm',), default='slurm', help='the scheduler; default: slurm'),
         arg('--slurm', default='', metavar='OPTIONS',
             help="sbatch's own, with an equals sign: --slurm='--partition=gpu --time=4:00:00'"),
         arg('--script-only', action='store_true', help='write the script and do not submit it'))
def batch(given: Words) -> None:
    """Hand the runs that targets lack, or a study (a .toml file), to Slurm as one job array, an entry a run, teachers
    first."""
    from amdlib.runs.slurm import submit
    if given.force:
        raise SettingError('--force: an entry that is queued again would begin anew each time; expected the folders of '
                           'the runs to be removed instead')
    if _is_study(given):
        file = studies.batch(given.targets[0], given)
    else:
        store, name = read.store(given), '-'.join(given.targets)
        file = submit(_runs(given, store), store, name, given.slurm, not given.script_only)
    if file and given.script_only:
        SCREEN.say(f'submit it from {near(file.parent)}, as its head says')


@command(arg('targets', nargs='+', help='as for reproduce'), *OF_TARGETS,
         arg('--nodes', nargs='+', type=int, default=[1, 2, 5, 10, 20, 50, 100], metavar='N',
             help='each of which trains one run at a time; default: some of 1 to 100'),
         arg('--at-once', type=int, metavar='N', help='runs of an array; default: as many as there are nodes'),
         arg('--preempted-h', type=float, metavar='X', help='mean hours of a run to a preemption; default: none'),
         arg('--s-per-step', type=float, metavar='X',
             help='of every row; default: as records or cost --measure have it'),
         arg('--start-s', type=float, default=0.0, metavar='X', help='of each entry before its first step; default 0'),
         arg('--requeue-s', type=float, default=120.0, metavar='X',
             help='until what was preempted may start again; default 120, as Slurm has it'))
def simulate(given: Words) -> None:
    """Foretell when the runs of targets would end on so many nodes, all of them made anew, with preemptions or without;
    a table and a plot."""
    from amdlib.files import write_text
    from amdlib.paper.rows import ROWS
    from amdlib.scale import cost, queue
    from amdlib.show import charts
    store = read.store_for_plans(given)
    runs = _runs(given, store)
    rows = [run.row for run in runs]
    times = dict.fromkeys(ROWS, (given.s_per_step, 0.0)) if given.s_per_step else queue.measured(
        rows, store, read.settings(given))
    jobs = queue.jobs_of(runs, store, times, given.start_s)
    every_s = given.preempted_h * 3600 if given.preempted_h else math.inf
    cells = queue.makespans(jobs, given.nodes, queue.Queue(
        at_once=given.at_once, every_s=every_s, requeue_s=given.requeue_s))
    folder = cost.folder_of(store)
    charts.save(charts.makespans(cells), folder / 'simulation')
    write_text(folder / 'simulation.csv', cells.to_csv(index=False, float_format='%.6g'))
    SCREEN.say(queue.readable(cells).to_markdown(index=False, disable_numparse=True))
    SCREEN.say(f'{len(jobs)} runs; {near(folder / "simulation.png")}')


@command(arg('targets', nargs='*', help='as for reproduce; default: all'), *OF_TARGETS,
         arg('--on', choices=('slurm',), help='ask its queue too: what waits, was queued again, or is lost'))
def status(given: Words) -> None:
    """Say which runs are done, running, failed, stale or missing, and why; of targets, or of a study, a .toml file."""
    if _is_study(given):
        return studies.status(given.targets[0], given)
    from amdlib.runs import targets
    given.targets = given.targets or ['all']
    wanted, asked = _asked(given)
    targets.status(wanted, read.store(given), asked, queued=given.on is not None)


def _is_study(given: Words) -> bool:
    return [name.endswith('.toml') for name in given.targets] == [True]


def _runs(given: Words, store: Store) -> list[Run]:
    """Those of the targets."""
    given.targets = given.targets or ['all']
    wanted, asked = _asked(given)
    return [run for target in wanted for run in target.runs(store, asked)]


def _asked(given: Words) -> tuple[list[Target], Given]:
    """The targets, and what is asked of them. A notebook runs in a folder of its own: every path is absolute."""
    from amdlib import methods
    from amdlib.runs import targets
    from amdlib.runs.recipe import absolute
    asked = targets.Given(
        given.group, read.seeds(given), tuple(read.numbers(given.values)), absolute(read.settings(given)),
        tuple(map(methods.absolute, given.methods)), getattr(given, 'force', False), given.arm, given.controls,
        given.calibrated)
    return targets.find_targets(given.targets, given.group), asked


@command(arg('row'), arg('option', help="of the row's method, such as phi, temperature or mask_ratio"),
         arg('values', nargs='+'), *WHERE, SEEDS, *SETTINGS, read.ARM, *MEANS, JOBS, FORCE)
def sweep(given: Words) -> None:
    """Run a row with several values of one option, an executed notebook each."""
    from amdlib.runs.batch import run_missing
    from amdlib.runs.run import sweep_runs
    from amdlib.show import sweeps, tables
    runs = sweep_runs(given.row, given.option, read.numbers(given.values), given.profile, read.seeds(given),
                      read.settings(given), given.arm)
    store = read.store(given)
    folder = store.folder / f'sweep_{given.option}'
    run_missing([], store, force=given.force, executed={run: folder / f'{run.id}.ipynb' for run in runs})
    cells = sweeps.tidy(runs, store.collect(runs), given.option)
    SCREEN.say(f'\n{tables.as_markdown(sweeps.wide(cells))}\n')
    SCREEN.say(f'executed notebooks: {folder}')


@command(arg('name', help='file name in notebooks/, without .ipynb'), *WHERE, *MEANS, JOBS,
         arg('--set', action='append', default=[], metavar='KEY=VALUE',
             help='a parameter of the notebook; an unknown one is an error'),
         arg('--output', metavar='NAME', help='of the executed copy, below results/; default: the same'),
         arg('--page', action='store_true', help='make a page of it too, to be read without JupyterLab'))
def notebook(given: Words) -> None:
    """Execute a notebook by papermill; its output appears here."""
    from amdlib.runs import notebooks
    from amdlib.runs.recipe import absolute, parse
    parameters = parse(given.set)
    if 'settings' in parameters:
        own = parameters['settings']
        parameters['settings'] = absolute(own if isinstance(own, dict) else parse(str(own)))
    store = read.store(given)
    output = store.folder / (given.output or given.name)
    output = output if output.suffix == '.ipynb' else output.with_name(f'{output.name}.ipynb')
    if not Path(os.path.abspath(output)).is_relative_to(os.path.abspath(store.results)):
        raise SettingError(f'--output {given.output}: expected a name below {store.results}')
    notebooks.execute(notebooks.NOTEBOOKS / f'{given.name}.ipynb', output, {**store.parameters(), **parameters})
    if given.page:
        from amdlib.show.report import site
        output = site.page_of_notebook(store, output)
    SCREEN.say(f'\nopen {near(output)}')


@command(arg('study', nargs='?', metavar='STUDY.toml', help="a study; default: what the results' folder holds"),
         *WHERE, arg('--compare', nargs=2, action='append', default=[], metavar='RUN',
                     help='a page more, on which two runs stand side by side; repeatable'),
         arg('--single', nargs='?', const='', metavar='FILE', help='the front page alone as one HTML file that can be '
             "published; default: report.html beside the tables"))
def report(given: Words) -> None:
    """Gather tables, figures, runs and notebooks in a static HTML site."""
    from amdlib.show.report import site
    if given.study:
        return studies.report(given.study, given)
    if given.single is None:
        SCREEN.say(f'open {near(site.build(read.store(given), [tuple(pair) for pair in given.compare]))}')
    elif given.compare:
        raise SettingError('--single has no pages of runs: expected it without --compare')
    else:
        SCREEN.say(f'open {near(site.publish(read.store(given), Path(given.single) if given.single else None))}')


@command(arg('name', metavar='FIGURE', help='such as fig4, table1 or significance'), *WHERE)
def why(given: Words) -> None:
    """Print what stands behind a table or figure: files, records, commits, machines and the command that makes it."""
    from amdlib.show.report import provenance
    SCREEN.say(provenance.why(given.name, read.store(given, sys.stderr)))


@command(arg('words', nargs='*', metavar='ARGS', help="after `--`: jupyter lab's own, such as -- --port 8889"))
def lab(given: Words) -> None:
    """Open the notebooks in JupyterLab."""
    from amdlib.files import ROOT
    words = [sys.executable, '-m', 'jupyterlab', '--notebook-dir', str(ROOT / 'notebooks')]
    if os.geteuid() == 0:
        log.info('you are root: JupyterLab is started with --allow-root')
        words.append('--allow-root')
    # kernels are those of this environment
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    os.execve(sys.executable, [*words, *given.words], {**os.environ, 'PATH': path})
