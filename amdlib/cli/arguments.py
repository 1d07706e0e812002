"""Arguments that commands share, and how they become values: settings, seeds, the store with its means."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from amdlib.errors import SettingError
from amdlib.words import show_log

if TYPE_CHECKING:
    from amdlib.runs.store import Store
    from amdlib.weights.published import Sources

Words = argparse.Namespace


def arg(*flags: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What argparse's add_argument takes."""
    return flags, options


RESULTS = arg('--results', metavar='DIR', help='default: results/')
WHERE = (arg('--profile', default='mini', help='mini (default), bccd, small, tenth or paper'),
         arg('--data', metavar='DIR', help='data set folder, for all profiles but mini'),
         arg('--split', type=float, metavar='SHARE',
             help="of a folder that is not split: the share that is trained on, such as 0.8; identical pictures stay "
                  'together'),
         arg('--split-seed', type=int, metavar='N', help='of that split; default 0'),
         arg('--negatives', choices=('keep', 'drop'),
             help='images without a box: trained on too, or left out of every split; default: as mmdet does, left out '
                  'of training alone'),
         arg('--drop-broken', action='store_true', help='leave out images that cannot be read, and name them'),
         arg('--layout', metavar='NAME', help='that is meant, where a folder fits several: coco, voc, yolo, cvat, csv'),
         RESULTS)
SETTINGS = (
    arg('--set', action='append', default=[], metavar='KEY=VALUE',
        help='such as epochs=20 or amp=bf16 (python -m amdlib list names them all), or, for one row, an option of the '
             "method such as phi; repeatable, part of the run's name"),
    arg('--settings', default='', metavar='TEXT', help='several of them in one text, quoted as in a shell'))
SEED = arg('--seed', type=int, default=0, help='default 0')
SEEDS = arg('--seeds', nargs='+', default=['0'], metavar='N', help='of the students, such as 0 1 2; default 0')
METHODS = arg('--method', action='append', default=[], metavar='FILE.py:CLASS', dest='methods',
              help='a loss of your own as a line more of each table; repeatable')
ARM = arg('--arm', choices=('alone', 'inherit'),
          help="how one-stage students of the methods start: alone, or from the teacher's neck and head; default: the "
               "profile's")
CONTROLS = arg('--controls', action='store_true', help="a table's controls as further lines")
CALIBRATED = arg('--calibrated', action='store_true',
                 help='the weights of each method by the factor that calibrate chose, instead of by the rule alone')
GROUP = arg('--group', help='only this detector pair: retinanet, reppoints or faster_rcnn; in the zoo gfl too')
FORCE = arg('--force', action='store_true', help='train again what is done')
DEVICE = arg('--device', help='cpu, cuda or cuda:N; default: a GPU where there is one')
JOBS = arg('--jobs', type=int, metavar='N', help='runs at once; default: one a GPU, or one a core (four at most)')
PUBLISHED = (
    arg('--weights', metavar='DIR',
        help='folder with published weights, for the profiles tenth and paper (several as in PATH)'),
    arg('--mirrors', nargs='+', default=[], metavar='WHERE',
        help='addresses or folders to look for published weights before their home'),
    arg('--cache', metavar='DIR', help='where fetched weights are kept; default: data/weights/'))
MEANS = (DEVICE, *PUBLISHED,
         arg('--workers', type=int, metavar='N', help='processes that load pictures, a GPU; changes no number'),
         arg('--tensorboard', action='store_true', help="write what is logged into tensorboard/ of a run's folder too"),
         arg('--teacher-check-images', type=int, metavar='N',
             help="images on which a published teacher's mAP is checked before training; default 300"),
         arg('--skip-teacher-check', action='store_true', help='train whatever the teacher is like'))
OF_TARGETS = (*WHERE, GROUP, SEEDS, arg('--values', nargs='+', default=[], metavar='X', help='of the sweep in fig4'),
              *SETTINGS, METHODS, ARM, CONTROLS, CALIBRATED)
OF_RUN = (
    arg('--work-dir', type=Path, metavar='DIR', help='put the run here, outside the tables'),
    arg('--resume', action='store_true', help='an error unless the run goes on from a checkpoint (it does so '
                                              'anyway where an interrupted run can go on)'),
    arg('--gpus', type=int, metavar='N', help='train on N GPUs together; the same as --set gpus=N'),
    arg('--amp', action='store_true', help="mixed precision as mmdet's --amp; the same as --set amp=fp16"),
    arg('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help="change mmengine's config by dotted keys; needs --work-dir"))
OF_CALIBRATION = (
    arg('--methods', nargs='+', default=[], metavar='NAME', help='such as amd mgd; default: all that are compared'),
    arg('--seeds', nargs='+', default=['100'], metavar='N',
        help='of the students, 100 or more: they are reported nowhere; default 100'))
OF_TEACHERS = arg('--seed', '--seeds', nargs='+', default=['0'], metavar='N', dest='seeds', help='of them; default 0')
OF_EXPORT = (
    arg('run', help="name of the run's folder, such as retinanet-amd-s0, or the folder"), *WHERE,
    arg('--row', metavar='ROW', help='of a study (RUN is its .toml file): amd, baseline, ...; default: amd'),
    arg('--output', type=Path, metavar='DIR', help="default: export/ in the run's folder"),
    arg('--onnx', action='store_true', help='also as ONNX, compared with torch (RetinaNet)'),
    arg('--stale-ok', action='store_true', help='although the run would be made again now'),
    arg('--set', action='append', default=[], metavar='KEY=FILE',
        help='a weight file that the run was made with; repeatable'),
    arg('--method', metavar='FILE.py:CLASS', help='the loss of your own that the run was made with'))


def settings(given: Words) -> dict[str, Any]:
    """--set and --settings as values by name. Errors: SettingError."""
    from amdlib.runs.recipe import parse
    return {**parse(given.settings), **parse(given.set)}


def numbers(words: list[str]) -> list[Any]:
    """'0 1', '0,1' or several words as values."""
    from amdlib.runs.recipe import numbers
    return numbers(' '.join(words))


def seeds(given: Words) -> tuple[int, ...]:
    """--seeds. Errors: SettingError for what is no number."""
    found = tuple(numbers(given.seeds))
    if not found or not all(isinstance(seed, int) for seed in found):
        raise SettingError(f'seeds {" ".join(given.seeds)!r}: expected numbers, such as 0 1 2')
    return found


def groups(given: Words) -> list[str]:
    """--group, or all pairs of Table I. Errors: SettingError for an unknown one."""
    from amdlib.paper.pairs import find_group
    from amdlib.paper.tables import TABLES
    return [find_group(given.group).name] if given.group else list(TABLES['table1'].groups)


def cfg_options(given: Words) -> dict[str, Any]:
    """--cfg-options as mmdet's tools read them, and also with dicts, such as those of vis_backends."""
    from mmengine.config import DictAction

    from amdlib.runs.recipe import parse
    options = parse(given.cfg_options)
    for word in given.cfg_options:
        key, _, text = word.partition('=')
        if isinstance(options[key], str) and '{' in text:
            raise SettingError(f"--cfg-options: {text!r} is no Python literal, such as [{{'type': 'Name'}}]")
        if '{' not in text:
            options[key] = DictAction._parse_iterable(text)
    return options


def sources(given: Words) -> Sources:
    """--weights, --mirrors and --cache."""
    from amdlib.weights.published import Sources
    return Sources.of(given.weights, ' '.join(given.mirrors), given.cache)


def choice(given: Words) -> dict[str, Any]:
    """What is given of `Choice`."""
    from amdlib.datasets import CHOICES
    return {name: value for name in CHOICES if (value := getattr(given, name, None)) not in (None, False)}


def means(given: Words) -> dict[str, Any]:
    """What is given of `Means`."""
    found = {name: getattr(given, name, None) for name in ('device', 'jobs', 'workers', 'tensorboard')}
    found['teacher_check_images'] = 0 if getattr(given, 'skip_teacher_check', False) else getattr(
        given, 'teacher_check_images', None)
    if hasattr(given, 'mirrors'):
        found['sources'] = sources(given)
    return {name: value for name, value in found.items() if value is not None}


def store(given: Words, stream: TextIO | None = None) -> Store:
    """The store that is meant, its device chosen; what is said of its data goes to standard error or `stream`."""
    from amdlib.runs.store import open_store
    show_log(stream or sys.stderr)
    found = open_store(given.profile, given.data, given.results, **choice(given), **means(given))
    show_log()
    return _seen(found)


def store_for_plans(given: Words) -> Store:
    """The same; at tenth and paper without --data, one whose data set is None: COCO 2017, wherever it is."""
    from amdlib.files import ROOT
    from amdlib.paper.profiles import find_profile
    from amdlib.runs.recipe import Means
    from amdlib.runs.store import Store
    profile = find_profile(given.profile)
    if not profile.published or given.data or choice(given):
        return store(given)
    results = Path(given.results).absolute() if given.results else ROOT / 'results'
    return _seen(Store(profile, None, results, Means.from_dict(means(given))))


def _seen(found: Store) -> Store:
    """Where a device is named, this process and those that it starts see no other."""
    if found.means.device is None:
        return found
    from amdlib.runs.device import choose_device
    choose_device(found.means.device)
    return found.with_means(device=found.means.device.partition(':')[0])    # the N-th is the only one now
