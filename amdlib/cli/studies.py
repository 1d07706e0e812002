"""Commands for a detector, data and losses of one's own."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amdlib.cli import arguments as read
from amdlib.cli.arguments import DEVICE, JOBS, OF_TABLE, SETTINGS, WHERE, Words, arg
from amdlib.cli.parsing import command
from amdlib.errors import RunError, SettingError
from amdlib.terminal import SCREEN
from amdlib.words import near, show_log

if TYPE_CHECKING:
    from amdlib.study.studied import Studied

STUDY = arg('study', metavar='STUDY.toml', help="data, student, teacher, methods, ... (docs/own.md); or a table of the "
                                                "paper's, such as table1")


@command(arg('--data', required=True, metavar='DIR', help='a folder of labelled pictures (docs/data.md)'),
         arg('--student', required=True, metavar='CONFIG', help='mmdet::folder/name.py, or a file of yours'),
         arg('--teacher', required=True, metavar='CONFIG', help='likewise'),
         arg('--teacher-weights', metavar='FILE', help='a checkpoint of mmdet; default: the teacher is trained first'),
         arg('--student-backbone', metavar='FILE', help="first weights of the student's backbone"),
         arg('--scratch', action='store_true', help='nothing is pre-trained, whatever the configs say'),
         arg('--methods', '--method', default='amd', metavar='NAMES', help='amd (default), mgd,fgd, my.py:MyLoss'),
         arg('--controls', default='', metavar='ROWS', help='such as inherit,amd-permuted'),
         arg('--epochs', type=int, help="default: the config's"),
         arg('--teacher-epochs', type=int, help="default: as --epochs, or the config's"),
         arg('--batch-size', type=int, help="default: the config's"),
         arg('--lr', type=float, help="default: the config's, for so many images a step"),
         arg('--size', type=int, metavar='PX', help="of the pictures' longer side; default: the config's"),
         arg('--seeds', default='0', metavar='N,N', help='default 0; one seed says nothing about another run'),
         arg('--split', type=float, metavar='SHARE', help='of a folder that is not split, such as 0.8'),
         arg('--split-seed', type=int, metavar='N'), arg('--negatives', choices=('keep', 'drop')),
         arg('--drop-broken', action='store_true'), arg('--layout', metavar='NAME'),
         arg('--name', default='study', help="of the study; part of the results' path"),
         arg('--results', metavar='DIR', help='default: results/ where you are'),
         arg('--share', type=float, metavar='X', help='distillation starts as this share of the loss, such as 0.3'),
         arg('--exact', action='store_true', default=None, help='float32 on a GPU too; default: '
                                                                'bf16, TF32, channels last, fused'),
         arg('--check', action='store_true', help='only build, pair, try five steps and say what would be trained'),
         *SETTINGS, DEVICE, JOBS)
def distill(given: Words) -> None:
    """Distil a detector of yours with data of yours, and say whether it helped."""
    from amdlib.study.study import Study
    own = {key: value for key, value in vars(given).items() if value not in (None, '', False)
           and key not in ('command', 'check', 'set', 'settings', 'device', 'jobs')}
    own['seeds'] = [int(seed) if seed.isdigit() else seed for seed in given.seeds.replace(',', ' ').split()]
    settings, options = read.settings(given), {}
    for key in [key for key in settings if '.' in key]:     # amd.phi=0.7
        name, _, option = key.rpartition('.')
        options.setdefault(name, {})[option] = settings.pop(key)
    study = Study.of({**own, 'settings': settings, 'options': options})
    _check(study) if given.check else _run(study, read.seen_means(given))


@command(STUDY, *WHERE, *OF_TABLE, *SETTINGS)
def check(given: Words) -> None:
    """Before anything is trained: build a study's detectors, pair their features, say how the configs are changed, and
    try five steps of every row: minutes and memory."""
    _check(find_study(given.study, given))


def is_study(name: str) -> bool:
    """Whether a word means a study: a .toml file, or a table of the paper's."""
    from amdlib.paper.tables import TABLES
    return name.endswith('.toml') or name in TABLES


def find_study(name: str, given: Words) -> Studied:
    """A .toml file, which says all that it is; or a table of the paper's with what else is given.

    Errors: SettingError for an unknown name, and for what would have to stand in the file.
    """
    from amdlib.study.paper_table import PaperTable
    from amdlib.study.study import Study
    if name.endswith('.toml'):
        if changed := read.changed(given, *WHERE, *OF_TABLE, *SETTINGS):
            raise SettingError(f'{changed[0]}: expected in {name}, which says all that the study is')
        return Study.read(Path(name))
    asked = {key: value for key in ('profile', 'data', 'results', 'methods', 'arm', 'controls', 'calibrated')
             if (value := getattr(given, key)) not in (None, [], False)}
    return PaperTable.of({**asked, **read.choice(given), 'paper': name, 'pairs': (given.group,) if given.group else (),
                          'seeds': read.seeds(given), 'settings': read.settings(given)})


def run(name: str, given: Words) -> None:
    """`run STUDY.toml`, `run table1`: train what is missing, write the table."""
    _run(find_study(name, given), read.seen_means(given))


def batch(name: str, given: Words) -> Path | None:
    """`batch STUDY.toml`: the script that was submitted, if anything was missing."""
    study = find_study(name, given)
    SCREEN.say(study.describe())
    return study.submit(given.slurm, not given.script_only, **read.seen_means(given))


def status(file: str, given: Words) -> None:
    """`status STUDY.toml`: a line a run, then what is to do."""
    told = find_study(file, given).status(given.on is not None)
    SCREEN.say('\n'.join([*told, f'next: python -m amdlib run {file}']))


def report(name: str, given: Words) -> None:
    """`report STUDY.toml`: a site of it."""
    if not name.endswith('.toml'):
        raise SettingError(f'{name!r}: expected a study, a .toml file; without it the whole results folder is shown')
    if changed := read.changed(given, arg('--compare'), arg('--single')):
        raise SettingError(f"{name}: {changed[0]} is for a results' folder")
    SCREEN.say(f'open {near(find_study(name, given).report())}')


def export(file: str, row: str, output: Path | None) -> None:
    """`export STUDY.toml --row amd`."""
    from amdlib.study.study import Study
    for path in Study.read(file).export(row, output=output).values():
        SCREEN.say(f'{path} ({path.stat().st_size:,} bytes)')


@command(arg('study', nargs='?', default='table1', metavar='STUDY', help='table1 (default) to table6, or a .toml file'),
         *WHERE, *OF_TABLE, *SETTINGS, arg('--write', action='store_true', help='write it and its figure again, too'))
def table(given: Words) -> None:
    """Print a table of the paper's, or that of a study (a .toml file), from the records that are there."""
    show_log(sys.stderr)    # the table alone goes into a file
    study = find_study(given.study, given)
    SCREEN.say(study.readable())
    if given.write:
        SCREEN.say(f'\nopen {near(study.write())}')


def _check(study: Studied) -> None:
    """Errors: RunError for rows that cannot be trained."""
    from amdlib.show.tables import as_markdown
    SCREEN.say('\n'.join([study.describe(), '', study.status()[-1], '']))
    tried = study.try_steps()
    SCREEN.say(as_markdown(tried))
    if any(tried.problem):
        raise RunError(f'{", ".join(tried.row[tried.problem != ""])} cannot be trained')


def _run(study: Studied, means: dict[str, Any]) -> None:
    SCREEN.say(study.describe())
    study.run(**means)
    SCREEN.say(study.readable())
    SCREEN.say(f'\nopen {near(study.write())}')
