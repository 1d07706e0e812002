"""The command line: `python -m amdlib COMMAND --help`. A function a command, its arguments above it.

Text becomes values here and nowhere below; what takes seconds to load is loaded by the command that needs it.
"""
from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from amdlib import arguments as read
from amdlib.arguments import (
    DEVICE,
    FORCE,
    GROUP,
    JOBS,
    MEANS,
    METHODS,
    OF_TARGETS,
    SEED,
    SEEDS,
    SETTINGS,
    WHERE,
    Words,
    arg,
)
from amdlib.errors import KitError
from amdlib.words import log, show_log

if TYPE_CHECKING:
    from amdlib.runs.targets import Given, Target

COMMANDS: dict[str, tuple[Callable[[Words], int | None], tuple]] = {}


def main(words: list[str] | None = None) -> int:
    """Exit status: 0, 1 for an error that is told in a line, 2 for wrong usage, 130 where it was interrupted."""
    given = parser().parse_args(words)
    if hasattr(sys.stdout, 'reconfigure'):    # not in tests and notebooks
        sys.stdout.reconfigure(line_buffering=True)     # what is said reaches a log at once
    show_log()
    try:
        return COMMANDS[given.command][0](given) or 0
    except (KitError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:     # whoever read, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """Of all commands."""
    whole = argparse.ArgumentParser(prog='python -m amdlib', description='The AMD kit (arXiv 2301.13538).')
    commands = whole.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, (do, arguments) in COMMANDS.items():
        text = ' '.join(inspect.cleandoc(do.__doc__).split())
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for flags, options in arguments:
            one.add_argument(*flags, **options)
    return whole


def command(*arguments: tuple) -> Callable:
    """Make a function a command of its name; its docstring is the help."""
    def add(do: Callable[[Words], int | None]) -> Callable[[Words], int | None]:
        COMMANDS[do.__name__.rstrip('_')] = do, arguments
        return do
    return add


# ---- looking ----------------------------------------------------------------------------------------------------

@command()
def list_(_given: Words) -> None:
    """List every row with the paper's value, and every setting."""
    from amdlib.paper.printed import paper_value
    from amdlib.paper.profiles import PROFILES
    from amdlib.paper.rows import ROWS
    from amdlib.paper.tables import TABLES
    from amdlib.runs.recipe import SETTINGS as SETTING_TEXTS
    from amdlib.runs.run import Run
    from amdlib.show.values import assumptions
    names = ' '.join(f'{name:>6}' for name in PROFILES)
    print(f'{"row":26} {"paper mAP":>9}  {"detector":18} {"method":7} {names} epochs  tables')
    for row in ROWS.values():
        tables = [table for table in TABLES.values() if row in table.rows()]
        values = [paper_value(table.number, row.group.name, row.name, 'mAP') for table in tables]
        value = next((f'{value:.1f}' for value in values if value is not None), '-')
        # published teachers are not trained
        epochs = ' '.join(f'{"-" if profile.published and row.is_teacher else Run(row, profile).epochs:>6}'
                          for profile in PROFILES.values())
        detector = row.group.teacher_label if row.is_teacher else row.group.student_label
        print(f'{row.id:26} {value:>9}  {detector:18} {row.method or "-":7} {epochs}         '
              f'{" ".join(table.number for table in tables)}')
    print('\nsettings, for --set (and, for one row, the options of its method, such as phi):')
    print('\n'.join(f'  {name:18} {text}' for name, text in SETTING_TEXTS.items()))
    print(f'\n{assumptions()}')


@command()
def values(_given: Words) -> None:
    """Print every value of the paper's experiments with its source."""
    from amdlib.show.values import as_text, paper_values
    print(as_text(paper_values()))


@command(arg('row', help='such as retinanet-amd, or retinanet-path/to/file.py:CLASS'), *WHERE, SEED, *SETTINGS)
def show(given: Words) -> None:
    """Print a run's whole mmengine config as Python text."""
    from amdlib.runs.config import config
    from amdlib.runs.run import Run
    run = Run.of(given.row, given.profile, given.seed, read.settings(given))
    print(config(run, read.store_for_plans(given).dataset).pretty_text)


@command(arg('name', nargs='?', default='table1', help='table1 (default) to table6'), *WHERE, GROUP, SEEDS, *SETTINGS,
         METHODS, read.ARM, read.CONTROLS)
def table(given: Words) -> None:
    """Print a table from the records that are there."""
    from amdlib.paper.tables import find_table
    from amdlib.runs.run import table_runs
    from amdlib.show import tables
    wanted = find_table(given.name).with_methods(given.methods)
    wanted = wanted.with_controls() if given.controls else wanted
    runs = table_runs(wanted, given.profile, given.group, read.seeds(given), read.settings(given), arm=given.arm)
    store = read.store(given)
    print(tables.readable(tables.tidy(wanted, store.collect(runs)), store.profile))


@command(arg('targets', nargs='*', help='as for reproduce; default: all'), *OF_TARGETS)
def status(given: Words) -> None:
    """Say which runs are done, running, failed, stale or missing, and why."""
    from amdlib.runs import targets
    given.targets = given.targets or ['all']
    wanted, asked = _asked(given)
    targets.status(wanted, read.store(given), asked)


@command()
def doctor(_given: Words) -> int:
    """Print versions, GPU, memory, disk, what is missing and how to mend it."""
    from amdlib import doctor
    return doctor.examine()


# ---- data and weights -------------------------------------------------------------------------------------------

@command(*WHERE)
def data(given: Words) -> None:
    """Prepare and check a data set."""
    dataset = read.store(given, sys.stdout).dataset
    print(f'{dataset.name}: {len(dataset.classes)} classes, fingerprint {dataset.fingerprint}')
    for note in dataset.notes:
        print(f'  note: {note}')


@command(arg('rows', nargs='*', help='default: all rows'), *read.PUBLISHED)
def weights(given: Words) -> int:
    """Find or fetch the published weights of the profile paper and print where they are, such as where there is a
    network before runs start where there is none."""
    from amdlib.errors import WeightsError
    from amdlib.paper.rows import ROWS
    from amdlib.runs.run import Run
    from amdlib.weights import published
    sources, missing = read.sources(given), 0
    runs = [Run.of(row, 'paper') for row in given.rows or ROWS]
    for url in dict.fromkeys(url for run in runs for one in (run.teacher(), run) if one
                             for url in one.published_files().values()):
        try:
            print(published.find(url, sources))
        except WeightsError as error:   # the others are looked for all the same
            print(f'error: {error}', file=sys.stderr)
            missing += 1
    return 1 if missing else 0


# ---- running ----------------------------------------------------------------------------------------------------

@command(arg('row', help='such as retinanet-amd, or retinanet-path/to/file.py:CLASS for a loss of your own'), *WHERE,
         SEED, *SETTINGS, *MEANS, FORCE, *read.OF_RUN)
def run(given: Words) -> None:
    """Train and evaluate one row (and its teacher, where that is missing)."""
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


def _asked(given: Words) -> tuple[list[Target], Given]:
    """The targets, and what is asked of them. A notebook runs in a folder of its own: every path is absolute."""
    from amdlib import methods
    from amdlib.runs import targets
    from amdlib.runs.recipe import absolute
    asked = targets.Given(
        given.group, read.seeds(given), tuple(read.numbers(given.values)), absolute(read.settings(given)),
        tuple(map(methods.absolute, given.methods)), getattr(given, 'force', False), given.arm, given.controls)
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
    print(f'\n{tables.as_markdown(sweeps.wide(cells))}\n')
    print(f'executed notebooks: {folder}')


@command(arg('name', help='file name in notebooks/, without .ipynb'), *WHERE, *MEANS, JOBS,
         arg('--set', action='append', default=[], metavar='KEY=VALUE',
             help='a parameter of the notebook; an unknown one is an error'),
         arg('--output', metavar='NAME', help='of the executed copy, below results/; default: the same'))
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
    notebooks.execute(notebooks.NOTEBOOKS / f'{given.name}.ipynb', output, {**store.parameters(), **parameters})


@command(*WHERE)
def report(given: Words) -> None:
    """Gather tables, figures and notebooks in a static HTML site."""
    from amdlib.show import report
    print(report.build(read.store(given)))


@command(arg('words', nargs='*', metavar='ARGS', help="after `--`: jupyter lab's own, such as -- --port 8889"))
def lab(given: Words) -> None:
    """Open the notebooks in JupyterLab."""
    notebooks = Path(__file__).resolve().parent.parent / 'notebooks'
    words = [sys.executable, '-m', 'jupyterlab', '--notebook-dir', str(notebooks)]
    if os.geteuid() == 0:
        log.info('you are root: JupyterLab is started with --allow-root')
        words.append('--allow-root')
    # kernels are those of this environment
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    os.execve(sys.executable, [*words, *given.words], {**os.environ, 'PATH': path})


# ---- the test bed -----------------------------------------------------------------------------------------------

@command(*WHERE, GROUP, *SETTINGS, arg('--write', action='store_true', help='write bed.md and bed.csv too'),
         arg('--no-masks', action='store_true', help="do not look at the teacher's masks, which takes a minute"))
def bed(given: Words) -> None:
    """Say from the records whether the test bed can tell methods apart: the teacher's lead, the spread over seeds,
    clipped steps, distillation beside detection, masks."""
    from amdlib.show.bed import Bed, write
    groups, settings, store = read.groups(given), read.settings(given), read.store(given)
    beds = [Bed(store, group, settings, not given.no_masks) for group in groups]
    print('\n\n'.join(bed.markdown() for bed in beds))
    if given.write:
        print(f'\n{write(beds)}')


@command(*WHERE, GROUP, read.ARM, *read.OF_CALIBRATION, *SETTINGS, *MEANS, JOBS, FORCE)
def calibrate(given: Words) -> None:
    """Choose one factor on all weights of each method, on validation pictures: train what is missing, write
    calibration.md and calibration.csv."""
    from amdlib.paper.profiles import find_profile
    from amdlib.runs import calibrate
    names = ' '.join(given.methods).replace(',', ' ').split()
    asked = read.groups(given), given.arm, names, read.seeds(given)
    calibrate.check(find_profile(given.profile), *asked)
    store = read.store(given)
    calibrate.calibrate(store, *asked, read.settings(given), force=given.force)
    print(f'\n{calibrate.as_markdown(calibrate.read(store))}')


@command(*WHERE, GROUP, read.OF_TEACHERS, *MEANS, JOBS, FORCE)
def teachers(given: Words) -> None:
    """Train the teachers that a profile ships, round them to half precision, evaluate them, and put them with their
    records below data/teachers/ instead of older ones."""
    from amdlib.runs import teachers
    groups, seeds = read.groups(given) if given.group else [], read.seeds(given)
    for file in teachers.make(read.store(given), groups, seeds, force=given.force):
        print(file)


@command(*WHERE)
def pretrain(given: Words) -> None:
    """Pre-train the small backbone that students start from, on single shapes, and put it with its record below
    data/teachers/ instead of an older one."""
    from amdlib.runs import pretrain
    print(pretrain.make(read.store(given)))


# ---- scale ------------------------------------------------------------------------------------------------------

@command(*read.OF_EXPORT)
def export(given: Words) -> None:
    """Write the detector of a finished run as files for stock mmdet."""
    from amdlib.runs.recipe import parse
    from amdlib.scale import export
    given.profile = export.profile_of(given.run) or given.profile
    written = export.export(given.run, read.store(given), output=given.output, with_onnx=given.onnx,
                            files=parse(given.set), method=given.method, stale_ok=given.stale_ok)
    for path in written.values():
        print(f'{path} ({path.stat().st_size:,} bytes)')


@command(arg('rows', nargs='*', help='default: all rows; teachers come along'),
         arg('--data', required=True, metavar='DIR', help='COCO 2017, or a few images of it'), read.RESULTS, JOBS,
         DEVICE, arg('--keep', action='store_true', help='leave weights and exported files, some 300 MB a row'))
def dryrun(given: Words) -> None:
    """Run every row a few steps at the paper's full architectures with random weights; evaluate, export and read it
    again."""
    from amdlib.paper.profiles import DRY_RUN
    from amdlib.paper.rows import find_row
    from amdlib.scale.dryrun import dry_run
    given.profile = DRY_RUN.name
    for row in given.rows:
        find_row(row)
    dry_run(read.store(given), given.rows, keep=given.keep)


@command(arg('rows', nargs='*', help='default: all rows'), *WHERE, *SETTINGS,
         arg('--measure', action='store_true',
             help='first time a few steps of each row on made images of full size, on a GPU'),
         arg('--switches', action='store_true',
             help='compare the switches for speed, each alone and all together; with --measure, time them'),
         arg('--steps', type=int, default=20, help='that are timed; default 20'),
         arg('--device', help='of the measurement; default: a GPU, without which it is an error'))
def cost(given: Words) -> None:
    """Print steps, measured seconds a step, memory and GPU-hours of each row."""
    from amdlib.paper.rows import ROWS, find_row
    from amdlib.scale import cost
    rows, settings = [find_row(row) for row in given.rows or ROWS], read.settings(given)
    store = read.store_for_plans(given)
    if given.measure:
        on_cpu = given.device == 'cpu'
        for recipe in cost.recipes(settings, on_cpu) if given.switches else [settings]:
            cost.measure(rows, store, recipe, steps=given.steps, on_cpu=on_cpu)
    path = (cost.write_switches(rows, store, settings) if given.switches else
            cost.write(cost.table(rows, store, settings), store))
    print(path.read_text())


# ---- the kit's own ----------------------------------------------------------------------------------------------

@command(arg('commit', nargs='?', help='that made the records; default: the last one'))
def attest(given: Words) -> None:
    """Prove that edited code gives the digits of the old, so that records count further: trains some steps of every
    row at both commits and compares bit by bit."""
    from amdlib.runs.attest import attest
    attest(given.commit)


@command(arg('file', type=Path), arg('--ends-with-stdin', action='store_true',
                                     help='end where standard input ends, with the process that started this one'))
def job(given: Words) -> None:
    """Do what a job file says; batches start their runs so."""
    from amdlib.runs.jobs import execute
    execute(given.file, given.ends_with_stdin)


@command(arg('folder', type=Path), arg('file', type=Path))
def probe(given: Words) -> None:
    """Train some steps of every row in an empty folder and write the digests of what came out; attest does so at two
    commits."""
    from amdlib.files import write_json
    from amdlib.runs.attest import probe
    write_json(given.file, probe(given.folder))
