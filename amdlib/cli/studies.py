"""Commands for a detector, data and losses of one's own."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from amdlib.cli import arguments as read
from amdlib.cli.arguments import DEVICE, GROUP, JOBS, SETTINGS, WHERE, Words, arg
from amdlib.cli.parsing import command
from amdlib.errors import RunError
from amdlib.terminal import SCREEN

if TYPE_CHECKING:
    import pandas as pd

    from amdlib.study.study import Study

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
    study = Study.of({**own, 'settings': read.settings(given)})
    _check(study) if given.check else _run(study, given)


@command(STUDY, *WHERE, GROUP, *SETTINGS)
def check(given: Words) -> None:
    """Before anything is trained: build a study's detectors, pair their features, say how the configs are changed, and
    try five steps of every row: minutes and memory."""
    if given.study.endswith('.toml'):
        return _check(_study(given.study))
    from amdlib.runs.run import table_runs, with_teachers
    from amdlib.study.trying import try_steps
    store = read.store(given)
    runs = with_teachers(table_runs(given.study, given.profile, given.group, (0,), read.settings(given)))
    _tell_tried(try_steps([run for run in runs if run.trains], store))


def run(file: str, given: Words) -> None:
    """`run STUDY.toml`: train what is missing, write the table."""
    _run(_study(file), given)


def batch(file: str, given: Words) -> Path | None:
    """`batch STUDY.toml`: the script that was submitted, if anything was missing."""
    study = _study(file)
    SCREEN.say(study.pair.describe())
    return study.submit(given.slurm, not given.script_only, **_means(given))


def status(file: str, queued: bool = False) -> None:
    """`status STUDY.toml`: a line a run, then what is to do."""
    from amdlib.study.study import missing
    study = _study(file)
    SCREEN.say('\n'.join([*study.status(queued), '', missing(study)]))


def export(file: str, row: str, output: Path | None) -> None:
    """`export STUDY.toml --row amd`."""
    for path in _study(file).export(row, output=output).values():
        SCREEN.say(f'{path} ({path.stat().st_size:,} bytes)')


def table(file: str) -> None:
    """`table STUDY.toml`: from the records that are there."""
    from amdlib.show.tables import as_markdown
    SCREEN.say(as_markdown(_study(file).table()))


def _study(file: str) -> Study:
    from amdlib.study.study import Study
    return Study.read(Path(file))


def _check(study: Study) -> None:
    from amdlib.study.study import missing
    SCREEN.say(study.describe())
    SCREEN.say(f'\n{missing(study)}\n')
    _tell_tried(study.try_steps())


def _tell_tried(tried: pd.DataFrame) -> None:
    """Errors: RunError for rows that cannot be trained."""
    from amdlib.show.tables import as_markdown
    SCREEN.say(as_markdown(tried))
    if any(tried.problem):
        raise RunError(f'{", ".join(tried.row[tried.problem != ""])} cannot be trained')


def _run(study: Study, given: Words) -> None:
    from amdlib.show.tables import as_markdown
    SCREEN.say(study.pair.describe())
    SCREEN.say(as_markdown(study.run(**_means(given)).table()))
    SCREEN.say(f'\nopen {study.write()}')


def _means(given: Words) -> dict[str, Any]:
    return {key: value for key in ('device', 'jobs') if (value := getattr(given, key, None)) is not None}
