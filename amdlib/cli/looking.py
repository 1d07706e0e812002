"""Commands that look: rows, settings, values, configs, tables, data, weights."""
from __future__ import annotations

import sys
from pathlib import Path

from amdlib.cli import arguments as read
from amdlib.cli.arguments import GROUP, JOBS, SEED, SETTINGS, WHERE, Words, arg
from amdlib.cli.parsing import command
from amdlib.errors import SettingError
from amdlib.terminal import SCREEN


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
    SCREEN.say('row, the paper\'s mAP, detector, method, epochs by profile, tables\n')
    SCREEN.say(f'{"":26} {"mAP":>5}  {"":18} {"":6} {names}')
    for row in ROWS.values():
        tables = [table for table in TABLES.values() if row in table.rows()]
        values = [paper_value(table.number, row.group.name, row.name, 'mAP') for table in tables]
        value = next((f'{value:.1f}' for value in values if value is not None), '-')
        # published teachers are not trained
        epochs = ' '.join(f'{"-" if profile.published and row.is_teacher else Run(row, profile).epochs:>6}'
                          for profile in PROFILES.values())
        detector = row.group.teacher_label if row.is_teacher else row.group.student_label
        SCREEN.say(f'{row.id:26} {value:>5}  {detector:18} {row.method or "-":6} {epochs}  '
                   f'{" ".join(table.number for table in tables)}')
    SCREEN.say('\nsettings, for --set (and, for one row, the options of its method, such as phi):')
    SCREEN.say('\n'.join(f'  {name:18} {text}' for name, text in SETTING_TEXTS.items()))
    SCREEN.say(f'\n{assumptions()}')


@command()
def values(_given: Words) -> None:
    """Print every value of the paper's experiments with its source."""
    from amdlib.show.values import as_text, paper_values
    SCREEN.say(as_text(paper_values()))


@command(arg('row', help='such as retinanet-amd, or retinanet-path/to/file.py:CLASS'), *WHERE, SEED, *SETTINGS)
def show(given: Words) -> None:
    """Print a run's whole mmengine config as Python text."""
    from amdlib.runs.config import config
    from amdlib.runs.run import Run
    run = Run.of(given.row, given.profile, given.seed, read.settings(given))
    print(config(run, read.store_for_plans(given).dataset).pretty_text)


@command(arg('runs', nargs='*', metavar='RUN', help='such as retinanet-amd-s0; default: all runs and tables here'),
         *WHERE, arg('--table', action='append', default=[], dest='names', metavar='NAME',
                     help='table1 to table6, with its runs'),
         arg('--committed', action='store_true', help='kept records and tables alone, though runs lie here'), JOBS)
def verify(given: Words) -> int:
    """Recompute every number from the stored detections, every hash from its file, every table from its records; name
    what disagrees, and what cannot be recomputed here."""
    from amdlib.runs.device import default_jobs
    from amdlib.show.verify import DISAGREES, lines, told, verify
    found = verify(read.store(given), given.runs, given.names, given.committed, given.jobs or default_jobs('cpu'))
    SCREEN.say('\n'.join([*lines(found), told(found)]))
    return 1 if any(one.state == DISAGREES for one in found) else 0


@command(arg('first', type=Path, metavar='A', help='a results folder, such as results/'),
         arg('second', type=Path, metavar='B', help='another, such as from another machine'), *WHERE)
def compare(given: Words) -> None:
    """Set the runs that two results folders share side by side: numbers, weights, and what else differs, such as the
    machine."""
    from amdlib.show.folders import compare_folders
    SCREEN.say(compare_folders(given.first, given.second, read.store(given)))


@command(arg('others', type=Path, nargs='+', metavar='RESULTS', help='results folders, such as of other machines'),
         *WHERE, JOBS)
def gather(given: Words) -> None:
    """Take what other results folders have made into this one, verified, and no mixture of settings, data, code,
    teachers or, within a seed, machines."""
    from amdlib.runs.device import default_jobs
    from amdlib.show.gather import gather
    gather(given.others, read.store(given), given.jobs or default_jobs('cpu'))


@command(arg('photos', nargs='*', type=Path, metavar='PHOTO', help='pictures of your own; default: 20 test images'),
         *WHERE, GROUP,
         arg('--run', action='append', default=[], dest='runs', metavar='RUN',
             help="whose attention, such as retinanet-amd-s0; repeatable; default: a pair's teacher and its students"),
         arg('-o', '--output', type=Path, metavar='FILE', help='default: explorer.html beside the runs'))
def explore(given: Words) -> None:
    """Write the mask explorer as one HTML page: move phi, T and the level in a browser. Trains nothing."""
    from amdlib.files import write_text
    from amdlib.paper.pairs import GROUPS
    from amdlib.show import explorer, features
    photos = [(path.name, path.read_bytes()) for path in given.photos]
    store = read.store(given)
    runs = explorer.find_runs(store, given.runs, given.group or next(iter(GROUPS)))
    shown = features.own_pictures(store, photos, runs[0].row.group.name)
    rule = f'Your own pictures, seen by detectors that were trained on {store.dataset.name} alone'
    data = explorer.explorer_data(runs, shown, store, rule) if shown else explorer.data_of(runs, store)
    output = given.output or store.folder / 'explorer.html'
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, explorer.page(data))
    SCREEN.say(f'{output} ({output.stat().st_size / 1e6:.2f} MB): open it in a browser; it needs nothing else')


@command()
def doctor(_given: Words) -> int:
    """Print versions, GPU, memory, disk, what is missing and how to mend it."""
    from amdlib import doctor
    return doctor.examine()


@command(arg('folder', nargs='?', metavar='FOLDER',
             help='of labelled pictures, in any layout that is known (docs/data.md); default: that of --data'), *WHERE,
         arg('--grid', type=Path, metavar='FILE', help='the picture of pictures; default: data.png beside the runs'),
         arg('--to', type=Path, metavar='DIR', help='write the data set there too, in COCO layout with its pictures'))
def data(given: Words) -> None:
    """Prepare and check a data set: say what a folder holds, and draw some of its pictures with their boxes."""
    from amdlib.datasets.writing import write_folder
    from amdlib.show import charts, dataset_grid
    if given.folder:
        if given.data:
            raise SettingError(f'{given.folder} and --data {given.data}: expected one of them')
        given.data, given.profile = given.folder, 'small' if given.profile == 'mini' else given.profile
    store = read.store(given, sys.stdout)     # which tells what is in it
    if given.to:
        SCREEN.say(f'{write_folder(store.dataset, given.to)}: written in COCO layout')
    if given.grid or given.data:
        file = (given.grid or store.folder / 'data.png').with_suffix('.png')
        charts.save(dataset_grid.grid(store.dataset), file.with_suffix(''), ('png',))
        SCREEN.say(f'{file}: pictures with their boxes; see whether they fit')


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
