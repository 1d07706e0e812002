"""Commands at full size, and the kit's own."""
from __future__ import annotations

from pathlib import Path

from amdlib.cli import arguments as read
from amdlib.cli import studies
from amdlib.cli.arguments import DEVICE, GROUP, JOBS, SETTINGS, WHERE, Words, arg
from amdlib.cli.parsing import command
from amdlib.terminal import SCREEN


@command(*read.OF_EXPORT)
def export(given: Words) -> None:
    """Write the detector of a finished run, or of a row of a study (a .toml file), as files for stock mmdet."""
    if given.run.endswith('.toml'):
        return studies.export(given.run, given.row or 'amd', given.output)
    from amdlib.runs.recipe import parse
    from amdlib.scale import export
    given.profile = export.profile_of(given.run) or given.profile
    written = export.export(given.run, read.store(given), output=given.output, with_onnx=given.onnx,
                            files=parse(given.set), method=given.method, stale_ok=given.stale_ok)
    for path in written.values():
        SCREEN.say(f'{path} ({path.stat().st_size:,} bytes)')


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
    SCREEN.say(path.read_text())


@command(*WHERE, GROUP, DEVICE, arg('--rounds', type=int, default=15, help='default 15'),
         arg('--no-losses', action='store_true', help="leave out the losses at the paper's shapes, which take minutes"),
         arg('--zoo', action='store_true', help="instead: a step of each method of the zoo over the baseline's"))
def bench(given: Words) -> None:
    """Measure how near a distillation step is to its parts, and the losses to their convolutions: ratios, measured side
    by side in one process."""
    from amdlib.runs.device import choose_device
    from amdlib.scale import bench, bench_zoo
    choose_device(given.device)
    store, groups = read.store(given), [given.group] if given.group else []
    if given.zoo:
        SCREEN.say(bench_zoo.bench_zoo(store, groups, given.rounds).read_text())
        return
    SCREEN.say(bench.bench(store, groups, given.rounds, not given.no_losses).read_text())


@command(arg('names', nargs='*', help='of families, such as detr, to be tried again; default: all not tried yet'),
         arg('--again', action='store_true', help='try all of them again'),
         arg('--limit-s', type=float, default=600, help='after which a family is given up; default 600'))
def families(given: Words) -> None:
    """Take one distillation step with a detector of each of mmdet's families, and write docs/families.md."""
    from amdlib.scale import families
    SCREEN.say(str(families.write_page(families.try_families(given.names, again=given.again, limit_s=given.limit_s))))


@command(arg('commit', nargs='?', help='that made the records; default: the last one'))
def attest(given: Words) -> None:
    """Prove that edited code gives the digits of the old, so that records count further: trains some steps of every
    row at both commits and compares bit by bit."""
    from amdlib.runs.attest import attest
    attest(given.commit)


@command(arg('file', type=Path), arg('--ends-with-stdin', action='store_true',
                                     help='end where standard input ends, with the process that started this one'),
         arg('--queued', action='store_true',
             help='as an entry of a scheduler: the teacher must be there, SIGTERM and SIGUSR1 end it after a step with '
                  'a whole checkpoint (status 75), and after SIGUSR1 Slurm queues it again'))
def job(given: Words) -> None:
    """Do what a job file says; batches start their runs so."""
    from amdlib.runs.jobs import execute
    execute(given.file, given.ends_with_stdin, given.queued)


@command(arg('folder', type=Path), arg('file', type=Path))
def probe(given: Words) -> None:
    """Train some steps of every row in an empty folder and write the digests of what came out; attest does so at two
    commits."""
    from amdlib.files import write_json
    from amdlib.runs.attest import probe
    write_json(given.file, probe(given.folder))
