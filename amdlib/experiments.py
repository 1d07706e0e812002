"""Every cell of the paper's tables as a row; a row and a profile give an mmengine Config.

Values and their sources: the paper, the authors' configs or an assumption, as listed in the README ("Assumptions and
deviations"). Models come from mmdet's own configs by inheritance; the smaller profiles shrink them (`_shrink`).
"""
from __future__ import annotations

import ast
import copy
import functools
import inspect
import math
import shlex
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine import hub

from amdlib import KitError, zoo
from amdlib.data import Dataset

get_config = functools.cache(hub.get_config)  # reads files; what it returns is copied before it is changed
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # mmengine's; setuptools is pinned for it

MODEL_ZOO = 'https://download.openmmlab.com/mmdetection/v2.0/'
PAPER_CHANNELS, PAPER_IMAGE_PX = 256, (1333, 800)  # what the published loss weights belong to


class SettingError(KitError, ValueError):
    """An unknown row, profile or setting, or a value that does not fit; the message lists what is known."""


# ---- what is compared -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Group:
    """One student detector and its teacher (Table I has three)."""
    name: str
    student_config: str
    teacher_config: str
    teacher_file: str           # below the model zoo's v2.0 folder; its name ends in the SHA-256's first 8 digits
    levels: tuple[int, ...]     # i of neck.fpn_convs.{i}.conv
    one_stage: bool
    teacher_label: str
    student_label: str
    teacher_map_pct: float      # box AP on val2017 that the model zoo states for that file

    @property
    def teacher_url(self) -> str:
        return MODEL_ZOO + self.teacher_file


GROUPS = {group.name: group for group in (
    Group('retinanet', 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
          'mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
          'retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
          (0, 1, 2, 3, 4), True, 'RetinaNet', 'RetinaNet', 41.0),
    Group('reppoints', 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py',
          'mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
          'reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/'
          'reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth',
          (0, 1, 2, 3, 4), True, 'RepPoints', 'RepPoints', 44.2),
    Group('faster_rcnn', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
          'mmdet::dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py',
          'dcn/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco/'
          'cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8.pth',
          (0, 1, 2, 3), False, 'Cascade Mask R-CNN', 'Faster R-CNN', 47.3),
)}


@dataclass(frozen=True)
class Row:
    """One cell of a table: a detector to train, alone or with a distillation method."""
    group: Group
    name: str                                    # 'teacher', 'baseline', or a method or variant of one
    label: str                                   # as the paper's table prints it
    method: str | None = None                    # key of distill.METHODS; None = trained alone
    options: dict = field(default_factory=dict, hash=False)  # of the method's class, at the paper's scale

    @property
    def id(self) -> str:
        return f'{self.group.name}-{self.name}'

    @property
    def is_teacher(self) -> bool:
        return self.name == 'teacher'

    def value(self, option: str):
        """The value of one of the method's options at the paper's scale: the row's or the class's default."""
        from amdlib.distill import METHODS
        return self.options.get(option, inspect.signature(METHODS[self.method]).parameters[option].default)


# weights at the paper's scale; method.md names the source of each. T, phi, mask ratio of AMD: defaults of AMDLoss
ONE_STAGE_ALPHA, TWO_STAGE_ALPHA = 2e-5, 5e-7    # ASSUMPTION alpha: the paper's values were lost; these are MGD's
_FGD = {'retinanet': (1e-3, 5e-4, 5e-4, 5e-6), 'reppoints': (1.6e-3, 8e-4, 8e-4, 8e-6),
        'faster_rcnn': (5e-5, 2.5e-5, 5e-5, 5e-7)}


# what Tables II to VI change in the full method: name, label, options (`_amd_rows`)
_ABLATIONS = (('amd-channel', 'AMD, channel clue only', {'spatial': 'random'}),   # ASSUMPTION random masks: see README
              ('amd-mask', 'AMD, adaptive mask only', {'channel': 'none'}),
              ('amd-unmasked', 'AMD, nothing masked', {'spatial': 'none'}),       # the last two are not in the paper
              ('amd-allmasked', 'AMD, everything masked', {'spatial': 'all'}))
_VARIANTS = {
    'retinanet': (*_ABLATIONS, ('amd-mbconv', 'AMD, MBConv', {'generation': 'mbconv'}),
                  ('amd-conv1', 'AMD, Dense Conv x1', {'generation': 'conv1'})),
    'reppoints': _ABLATIONS,
    'faster_rcnn': (*_ABLATIONS, ('amd-within', 'AMD, clue within', {'channel_position': 'within'})),
}


def _rows(group: Group) -> list[Row]:
    alpha = ONE_STAGE_ALPHA if group.one_stage else TWO_STAGE_ALPHA
    ratio = 0.65 if group.one_stage else 0.45
    fgd = dict(zip(('alpha_fgd', 'beta_fgd', 'gamma_fgd', 'lambda_fgd'), _FGD[group.name], strict=True))
    amd = {'alpha': alpha, 'mask_ratio': ratio}
    return [
        Row(group, 'teacher', 'Teacher'),
        Row(group, 'baseline', 'baseline'),
        Row(group, 'fkd', 'FKD', 'fkd'),
        Row(group, 'fgd', 'FGD', 'fgd', fgd),
        Row(group, 'mgd', 'MGD', 'mgd', {'alpha_mgd': alpha, 'lambda_mgd': ratio}),
        Row(group, 'amd', 'AMD', 'amd', amd),
        *(Row(group, name, label, 'amd', {**amd, **changes}) for name, label, changes in _VARIANTS[group.name]),
    ]


ROWS: dict[str, Row] = {row.id: row for group in GROUPS.values() for row in _rows(group)}


@dataclass(frozen=True)
class Table:
    """One of the paper's tables: its lines, each a row with the label that the paper prints (or ours for a line that
    the paper lacks), and what differences are taken to."""
    name: str                           # of the make target and the files: 'table2'
    number: str                         # in the paper: 'II'
    title: str
    groups: tuple[str, ...]
    lines: tuple[tuple[str, str], ...]  # (name of the row, label), the same for every group
    reference: str                      # name of the row that differences are taken to
    difference: str                     # what that difference is called
    metrics: tuple[str, ...]

    def rows(self, group: str | None = None) -> list[Row]:
        """The rows of every group of the table, or of one."""
        return [ROWS[f'{name}-{row}'] for name in self.groups if group in (None, '', name) for row, _ in self.lines]

    def label(self, row: Row) -> str:
        """As the table prints it."""
        return dict(self.lines)[row.name]


_ABLATION_LINES = (('baseline', 'baseline'), ('amd', 'full'), ('amd-channel', 'channel only'),
                   ('amd-mask', 'mask only'), ('amd-unmasked', 'nothing masked'),
                   ('amd-allmasked', 'everything masked'))
_ABLATION_METRICS = ('mAP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')

TABLES: dict[str, Table] = {table.name: table for table in (
    Table('table1', 'I', 'The methods compared', tuple(GROUPS),
          (('teacher', 'Teacher'), ('baseline', 'baseline'), ('fkd', 'FKD'), ('fgd', 'FGD'), ('mgd', 'MGD'),
           ('amd', 'AMD')),
          'baseline', 'gain', ('mAP', 'AP_S', 'AP_M', 'AP_L', 'mAR', 'AR_S', 'AR_M', 'AR_L')),
    *(Table(f'table{2 + i}', number, f'The parts of AMD: {GROUPS[group].student_label}', (group,), _ABLATION_LINES,
            'amd', 'to full', _ABLATION_METRICS)
      for i, (number, group) in enumerate((('II', 'retinanet'), ('III', 'reppoints'), ('IV', 'faster_rcnn')))),
    Table('table5', 'V', 'Generation blocks', ('retinanet',),
          (('amd-mbconv', 'MBConv'), ('amd-conv1', 'Dense Conv x1'), ('amd', 'Dense Conv x2')),
          'amd', 'to Dense Conv x2', _ABLATION_METRICS),
    Table('table6', 'VI', 'Position of the channel clue', ('faster_rcnn',),
          (('amd', 'After'), ('amd-within', 'Within')), 'amd', 'to After', _ABLATION_METRICS),
)}


def table_numbered(number: str) -> Table:
    """The table with the paper's number ('II'), as tidy cells have it."""
    (found,) = [table for table in TABLES.values() if table.number == number]
    return found


def assumptions() -> str:
    """What AMD's rows take where the paper does not state a value; the README has the reasons."""
    from amdlib.amd import ChannelClue, GenerationBlock
    told = []
    for option, name in (('alpha', 'alpha'), ('temperature', 'T'), ('phi', 'phi'), ('mask_ratio', 'ratio of random '
                                                                                                'masks')):
        groups: dict[object, list[str]] = {}
        for group in GROUPS.values():
            groups.setdefault(ROWS[f'{group.name}-amd'].value(option), []).append(group.student_label)
        told.append(f'{name} ' + ', '.join(f'{value:g}' + (f' ({", ".join(labels)})' if len(groups) > 1 else '')
                                           for value, labels in groups.items()))
    told += [f'SE reduction {inspect.signature(ChannelClue).parameters["reduction"].default}',
             f"MBConv's expansion {GenerationBlock.EXPANSION}",
             "one-stage students start from the teacher's neck and head"]
    return f'Assumed, since the paper does not state it (reasons: README): {"; ".join(told)}.'


def find_table(name: str) -> Table:
    """The table of this name; SettingError lists the names otherwise."""
    if name not in TABLES:
        raise SettingError(f'unknown table {name!r}; expected one of: {", ".join(TABLES)}')
    return TABLES[name]


def find_row(row_id: str) -> Row:
    """The row with this id; SettingError lists the ids otherwise."""
    if row_id not in ROWS:
        raise SettingError(f'unknown row {row_id!r}; expected one of: {", ".join(ROWS)}')
    return ROWS[row_id]


# ---- how large --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Network:
    """A ResNet backbone for the smaller profiles."""
    depth: int
    width: int          # base_channels; 64 is the usual ResNet


@dataclass(frozen=True)
class Profile:
    """How large an experiment is: pictures, networks, schedule."""
    name: str
    image_px: tuple[int, int]            # width, height that the image is fitted into
    batch_size: int                      # images a step and GPU
    epochs: dict[str, int] = field(hash=False)  # by row id, 'teacher', group or 'student', the first that is there
    student: Network | None = None       # None: mmdet's own backbones
    teacher: Network | None = None
    neck_channels: int = PAPER_CHANNELS
    lr: float | None = None              # of AdamW; None: mmdet's own SGD
    head_convs: int | None = None        # convolutions a branch of a one-stage head; None: mmdet's
    fc_channels: int = 1024              # of the second stage's box head
    anchor_scale: float = 1.0            # factor on mmdet's anchor sizes and RepPoints' base scale
    proposals: int = 1000                # of the first stage, in training and testing
    workers: int = 2                     # data loading processes a GPU; 0: the training process reads its own pictures
    test_batch_size: int = 16
    log_every: int = 10                  # steps
    score_thr: float | None = None       # what scores less is not detected; None: mmdet's 0.05
    published: bool = False              # teachers are published detectors, and students start from published backbones
    first_images: tuple[int, int] | None = None     # of both splits, where a profile takes only some; see `data`
    dry_run: bool = False                # its numbers mean nothing and go into no table
    can_show: str = ''                   # in plain words, printed under every table


PROFILES = {profile.name: profile for profile in (
    Profile('mini', (128, 128), 4, {'retinanet-teacher': 8, 'faster_rcnn-teacher': 6, 'teacher': 9,
                                    'reppoints': 7, 'faster_rcnn': 4, 'student': 5},
            Network(18, 16), Network(18, 24), 64, 3e-3,
            head_convs=2, fc_channels=128, anchor_scale=0.5, proposals=64, workers=0,
            can_show='Scenes of shapes, narrow networks, minutes on a CPU: it shows that every part works, that a '
                     'better teacher helps, and how large the effects are here. It cannot show which method is better '
                     'on COCO: networks, data and schedule are others, and one seed on a few hundred test images does '
                     'not tell small differences from chance.'),
    Profile('small', (320, 320), 8, {'student': 24, 'teacher': 36}, Network(18, 64), Network(50, 64), 128, 5e-4,
            fc_channels=512, anchor_scale=0.5, proposals=300, workers=2,
            can_show='Real images, an ordinary ResNet-18 and ResNet-50 from scratch: it shows whether distillation '
                     'helps on this data set. It cannot confirm or refute the paper, whose networks are pre-trained '
                     'on millions of images and whose differences are 0.3 to 0.7 mAP.'),
    Profile('paper', PAPER_IMAGE_PX, 2, {'student': 24}, test_batch_size=1, log_every=50, published=True,
            can_show="The paper's own experiments on COCO. Differences between methods there are 0.3 to 0.7 mAP, of "
                     'the order of the spread between two runs: report several seeds.'),
)}


# The paper's detectors, losses and recipe on a few small pictures, to see every row run before a machine is hired for
# it. Random networks reach mmdet's threshold of scores nowhere; without one there is something to evaluate and compare.
DRY_RUN = replace(
    PROFILES['paper'], name='dryrun', image_px=(256, 160), epochs={'student': 1}, workers=1, log_every=1, score_thr=0.0,
    published=False, first_images=(6, 3), dry_run=True,
    can_show='Random weights, a dry run: these numbers mean nothing. Every detector of the paper in full is trained a '
             'few steps on a few small pictures: it shows that each row trains, is evaluated, exported and read again.')


def find_profile(name: str) -> Profile:
    """The profile of this name, the dry run's too; SettingError lists the names otherwise."""
    if name == DRY_RUN.name:
        return DRY_RUN
    if name not in PROFILES:
        raise SettingError(f'unknown profile {name!r}; expected one of: {", ".join(PROFILES)}')
    return PROFILES[name]


# ---- one run ----------------------------------------------------------------------------------------------------

# apply to a teacher as to its students
RECIPE_SETTINGS = {'epochs': int, 'batch_size': int, 'lr': float, 'gpus': int, 'accumulate': int, 'amp': str,
                   'tf32': bool, 'channels_last': bool, 'fused': bool}
TEACHER_PASS_SETTINGS = {'compile_teacher': bool, 'half_teacher': str}    # of the frozen teacher beside a student
PRECISIONS = ('off', 'bf16', 'fp16')
SETTING_DEFAULTS = {'gpus': 1, 'accumulate': 1, 'amp': 'off', 'tf32': False, 'channels_last': False, 'fused': False,
                    'compile_teacher': False, 'half_teacher': 'off'}      # given or not, the same run
# weight files, at `paper` also the folder that holds the published one; their content is hashed into the record
FILE_SETTINGS = {'teacher': ('backbone', 'checkpoint'),              # a checkpoint is evaluated, not trained
                 'baseline': ('backbone',),
                 'method': ('backbone', 'teacher_backbone', 'teacher_checkpoint')}


@dataclass(frozen=True)
class Run:
    """A row at a profile with a seed and, if any, settings that differ from the row's and the profile's."""
    row: Row
    profile: Profile
    seed: int = 0
    settings: tuple[tuple[str, object], ...] = ()

    @classmethod
    def of(cls, row: str | Row, profile: str | Profile, seed: int = 0, settings: dict | None = None) -> Run:
        """Validated; SettingError for an unknown row, profile or key, or a value of the wrong kind."""
        row = find_row(row) if isinstance(row, str) else row
        profile = find_profile(profile) if isinstance(profile, str) else profile
        checked = {key: _checked(row, profile, key, value) for key, value in (settings or {}).items()}
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise SettingError(f'seed={seed!r}: expected an integer of 0 or more')
        if changed := {key: value for key, value in checked.items() if key in _method_settings(row)}:
            _try_options(row, changed)  # a value out of range is told before a teacher is trained for it
            for key, value in changed.items():
                if value == row.value(key):
                    del checked[key]    # phi=1.0 is the row itself: trained once, whoever asks
        checked = {key: value for key, value in checked.items() if SETTING_DEFAULTS.get(key) != value}
        return cls(row, profile, seed, tuple(sorted(checked.items())))

    @property
    def id(self) -> str:
        """Name of the run's folder: `retinanet-amd+phi=0.7-s0`."""
        return ''.join([self.row.id, *(f'+{key}={_short(value)}' for key, value in self.settings), f'-s{self.seed}'])

    @property
    def epochs(self) -> int:
        by = self.profile.epochs
        keys = (self.row.id, 'teacher' if self.row.is_teacher else self.row.group.name, 'student')
        return dict(self.settings).get('epochs') or next(by[key] for key in keys if key in by)

    def setting(self, key: str):
        """The value of a recipe setting, given or default (None: the row's or the profile's own)."""
        return dict(self.settings).get(key, SETTING_DEFAULTS.get(key))

    @property
    def batch_size(self) -> int:
        """Images a step and GPU."""
        return self.setting('batch_size') or self.profile.batch_size

    @property
    def images_per_update(self) -> int:
        """Images behind one change of the weights: batch size x GPUs x accumulated steps."""
        return self.batch_size * self.setting('gpus') * self.setting('accumulate')

    def teacher(self) -> Run | None:
        """The run behind this run's teacher: seed 0, this run's recipe settings, and those called `teacher_...`."""
        if self.row.method is None:
            return None
        passed_on = {key.removeprefix('teacher_'): value for key, value in self.settings
                     if key in RECIPE_SETTINGS or key.startswith('teacher_')}
        return Run.of(f'{self.row.group.name}-teacher', self.profile, 0, passed_on)

    def value(self, option: str):
        """One of the method's options at the paper's scale, as this run has it."""
        return dict(self.settings).get(option, self.row.value(option))

    def files(self) -> dict[str, str]:
        """The weight files that the settings name, by setting."""
        return {key: value for key, value in self.settings if key in _file_settings(self.row)}

    def published_files(self) -> dict[str, str]:
        """Addresses of the published weights that this run takes where its settings name no file, by setting.

        At `paper` a teacher is a published detector and a student starts from a published backbone; elsewhere none.
        """
        key = 'checkpoint' if self.row.is_teacher else 'backbone'
        if not self.profile.published or key in self.files():
            return {}
        return {key: _published(self.row, key)}

    def find_files(self, say=print) -> dict[str, str]:
        """Paths of all weight files that this run takes, published ones fetched where need be, each checked.

        Errors: zoo.ZooError for a file that is not what its name says, or that is not to be had.
        """
        given = {key: str(zoo.check(Path(path), say)) for key, path in self.files().items()}
        return {**given, **{key: str(zoo.find(url, say)) for key, url in self.published_files().items()}}

    def options(self) -> dict:
        """Keyword arguments of the method's class: the row's, changed by the settings, scaled to the profile."""
        from amdlib.distill import METHODS
        changed = {key: value for key, value in self.settings if key in _method_settings(self.row)}
        return scale_weights(METHODS[self.row.method], {**self.row.options, **changed}, self.profile)


def scale_weights(loss_class: type, options: dict, profile: Profile) -> dict:
    """The published weights belong to 256 channels at 1333x800. One rule for all methods: a term keeps the value that
    it would have there for the same error an element, `weight * (256 / C)**a * (1333 * 800 / (W * H))**b`, with the
    exponents that follow from the term's formula (`WEIGHT_EXPONENTS` of the loss). Nothing is tuned by method."""
    channels = PAPER_CHANNELS / profile.neck_channels
    positions = PAPER_IMAGE_PX[0] * PAPER_IMAGE_PX[1] / (profile.image_px[0] * profile.image_px[1])
    defaults = inspect.signature(loss_class).parameters
    scaled = dict(options)
    for name, (a, b) in loss_class.WEIGHT_EXPONENTS.items():
        scaled[name] = options.get(name, defaults[name].default) * channels ** a * positions ** b
    return scaled


def _method_settings(row: Row) -> dict[str, inspect.Parameter]:
    if row.method is None:
        return {}
    from amdlib.distill import METHODS
    parameters = inspect.signature(METHODS[row.method]).parameters
    return {name: p for name, p in parameters.items() if name not in ('student_channels', 'teacher_channels', 'seed')}


def _try_options(row: Row, changed: dict) -> None:
    from amdlib.distill import METHODS
    try:
        METHODS[row.method](16, 16, **{**row.options, **changed})
    except ValueError as error:
        raise SettingError(f'{row.id}: {error}') from None


def _file_settings(row: Row) -> tuple[str, ...]:
    return FILE_SETTINGS[row.name if row.method is None else 'method']


def _published(row: Row, key: str) -> str:
    """Address of the published file that stands for a file setting at `paper`."""
    if key.endswith('checkpoint'):
        return row.group.teacher_url
    of_teacher = row.is_teacher or key == 'teacher_backbone'
    name = row.group.teacher_config if of_teacher else row.group.student_config
    return zoo.address(get_config(name).model.backbone.init_cfg.checkpoint)


def _checked(row: Row, profile: Profile, key: str, value):
    kinds = {**_switches(row), **dict.fromkeys(_file_settings(row), str),
             **{name: type(p.default) for name, p in _method_settings(row).items()}}
    if key not in kinds:
        raise SettingError(f'{row.id} has no setting {key!r}; it has: {", ".join(kinds)}')
    if isinstance(value, str) and kinds[key] is not str:
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise SettingError(f'{key}={value!r}: expected {kinds[key].__name__}') from None
    if key in ('amp', 'half_teacher'):
        return _precision(key, value)
    if kinds[key] is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kinds[key]) or isinstance(value, bool) and kinds[key] is not bool:
        raise SettingError(f'{key}={value!r}: expected {kinds[key].__name__}')
    if key in RECIPE_SETTINGS and kinds[key] in (int, float) and not 0 < value < math.inf:
        raise SettingError(f'{key}={value!r}: expected a positive number')
    if key in _file_settings(row):
        value = str(_file(row, profile, key, Path(value)).resolve())
    return value


def _file(row: Row, profile: Profile, key: str, path: Path) -> Path:
    """A weight file, or the published one in a folder."""
    if path.is_dir() and profile.published:
        url = _published(row, key)
        if (found := zoo.in_folder(path, url)) is None:
            raise SettingError(f'{key}={path}: the folder has no {zoo.file_name(url)}')
        return found
    if not path.is_file():
        raise SettingError(f'{key}={path}: {"a folder, expected a file" if path.is_dir() else "no such file"}')
    return path


def _switches(row: Row) -> dict[str, type]:
    return RECIPE_SETTINGS if row.method is None else {**RECIPE_SETTINGS, **TEACHER_PASS_SETTINGS}


def _precision(key: str, value) -> str:
    words = {'True': 'fp16', 'False': 'off'}    # as mmdet's --amp: half precision is float16 there
    word = words.get(str(value), value)
    if word not in PRECISIONS:
        raise SettingError(f'{key}={value!r}: expected one of {", ".join(PRECISIONS)}')
    return word


def _short(value) -> str:
    return Path(value).stem if isinstance(value, str) and '/' in value else str(value)


# ---- row -> Config ----------------------------------------------------------------------------------------------

def config(run: Run, dataset: Dataset | None = None, work_dir: str | Path = '',
           teacher_weights: str | Path | None = None) -> Config:
    """The whole mmengine Config of a run.

    Args:
        dataset: None is allowed for the profile `paper`: COCO below `data/coco/`, as mmdet has it.
        teacher_weights: file with the trained teacher, for rows with a method; None leaves it as initialised.
    Errors: SettingError when the profile needs a data set and none is given.
    """
    if dataset is None and not run.profile.published:
        raise SettingError(f'profile {run.profile.name} needs a data set')
    row, profile = run.row, run.profile
    cfg = copy.deepcopy(get_config(row.group.student_config))
    settings = dict(run.settings)
    student = _detector(row.group.teacher_config if row.is_teacher else row.group.student_config, run, dataset,
                        row.is_teacher, settings.get('backbone'))
    cfg.model = student
    if row.method is not None:
        cfg.model = ConfigDict(
            type='Distiller', student=student,
            teacher=_detector(row.group.teacher_config, run, dataset, True, None, pretrained=False),
            method=row.method, options=run.options(), levels=row.group.levels,
            teacher_weights=None if teacher_weights is None else str(teacher_weights),
            # ASSUMPTION inherit: FGD and MGD do so for one-stage students; applied to every method alike
            inherit=('neck', 'bbox_head') if row.group.one_stage else (), seed=run.seed)
        for key in TEACHER_PASS_SETTINGS:
            if key in settings:
                cfg.model[key] = settings[key]
    _set_data(cfg, run, dataset)
    _set_schedule(cfg, run)
    for key in ('gpus', 'tf32', 'channels_last'):   # read by train.py
        if key in settings:
            cfg[key] = settings[key]
    cfg.custom_imports = dict(imports=['amdlib.distill', 'amdlib.train'], allow_failed_imports=False)
    cfg.randomness = dict(seed=run.seed)
    cfg.work_dir = str(work_dir)
    # two are kept: where the newest is damaged, the one before serves
    cfg.default_hooks.checkpoint.update(type='WholeCheckpointHook', interval=1, max_keep_ckpts=2, save_best=None)
    cfg.default_hooks.logger.interval = profile.log_every
    for unused in ('val_dataloader', 'val_evaluator', 'val_cfg', 'tta_model', 'tta_pipeline', 'img_scales'):
        cfg.pop(unused, None)  # nothing is selected on the reported split: it is evaluated once, at the end
    cfg.train_cfg.pop('val_interval', None)
    return cfg


def _detector(name: str, run: Run, dataset: Dataset | None, is_teacher: bool, backbone: str | None,
              pretrained: bool = True) -> ConfigDict:
    """A detector from mmdet's config `name`, at the run's profile."""
    model = copy.deepcopy(get_config(name).model)
    network = run.profile.teacher if is_teacher else run.profile.student
    if network is not None:
        _shrink(model, network, run.profile, len(dataset.classes))
        model.backbone.init_cfg = dict(type='Pretrained', checkpoint=backbone) if backbone else None
    elif backbone:
        model.backbone.init_cfg = dict(type='Pretrained', checkpoint=backbone)
    elif not (pretrained and run.profile.published):
        model.backbone.init_cfg = None  # a teacher's weights come from its checkpoint; a dry run's are random
    if run.profile.score_thr is not None:
        model.test_cfg.get('rcnn', model.test_cfg).score_thr = run.profile.score_thr
    return model


def _shrink(model: ConfigDict, network: Network, profile: Profile, num_classes: int) -> None:
    """Exchange the backbone, narrow neck and heads, and fit anchors and proposals to smaller pictures, in place."""
    channels, expansion = profile.neck_channels, 4 if network.depth >= 50 else 1
    model.backbone = ConfigDict(
        type='ResNet', depth=network.depth, base_channels=network.width, num_stages=4, out_indices=(0, 1, 2, 3),
        frozen_stages=-1, norm_cfg=dict(type='BN', requires_grad=True), norm_eval=False, style='pytorch')
    model.neck.in_channels = [network.width * expansion * 2 ** stage for stage in range(4)]
    model.neck.out_channels = channels
    if 'rpn_head' in model:
        _shrink_two_stage(model, profile, num_classes)
        return
    head = model.bbox_head
    head.update(num_classes=num_classes, in_channels=channels, feat_channels=channels,
                # DEVIATION head-norm: without it a RetinaNet head hardly learns from scratch; RepPoints has it anyway
                norm_cfg=dict(type='GN', num_groups=16, requires_grad=True),
                stacked_convs=profile.head_convs or head.stacked_convs)
    if head.type == 'RepPointsHead':
        head.point_feat_channels = channels
        head.point_base_scale *= profile.anchor_scale
        model.train_cfg.init.assigner.scale *= profile.anchor_scale
    else:
        head.anchor_generator.octave_base_scale *= profile.anchor_scale


def _shrink_two_stage(model: ConfigDict, profile: Profile, num_classes: int) -> None:
    channels, roi = profile.neck_channels, model.roi_head
    model.rpn_head.update(in_channels=channels, feat_channels=channels)
    model.rpn_head.anchor_generator.scales = [s * profile.anchor_scale for s in model.rpn_head.anchor_generator.scales]
    if 'mask_head' in roi:  # DEVIATION no-masks: Cascade R-CNN, since the smaller profiles' data have no masks
        model.type = 'CascadeRCNN'
        for key in ('mask_head', 'mask_roi_extractor'):
            roi.pop(key)
    roi.bbox_roi_extractor.out_channels = channels
    roi.bbox_roi_extractor.finest_scale = 56 * profile.anchor_scale  # 56 is mmdet's default
    for head in roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]:
        head.update(in_channels=channels, fc_out_channels=profile.fc_channels, num_classes=num_classes)
    for part in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        part.update(nms_pre=2 * profile.proposals, max_per_img=profile.proposals)
    rcnn = model.train_cfg.rcnn
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.num = min(stage.sampler.num, profile.proposals)


def _set_data(cfg: Config, run: Run, dataset: Dataset | None) -> None:
    train, test = cfg.train_dataloader, cfg.test_dataloader
    for loader in (train, test):
        loader.num_workers = run.profile.workers
        loader.persistent_workers = False   # new ones each epoch: SeedPicture learns the epoch from them
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = run.profile.image_px
    if run.profile.workers > 0 or run.setting('gpus') > 1:
        # without it what a picture looks like would depend on the number of processes
        train.dataset.pipeline.insert(0, ConfigDict(type='SeedPicture', seed=run.seed))
    train.batch_size = run.batch_size
    test.batch_size = run.profile.test_batch_size
    if 'mask_head' in cfg.model.get('roi_head', {}):    # a teacher that is trained here; students have no masks
        next(step for step in train.dataset.pipeline if step.type == 'LoadAnnotations').with_mask = True
    if dataset is None:
        cfg.test_evaluator = ConfigDict(type='CocoNumbers', ann_file=cfg.test_evaluator.ann_file)
        return
    meta = dict(classes=dataset.classes)
    for loader, ann, images in ((train, dataset.train_ann, dataset.train_images),
                                (test, dataset.test_ann, dataset.test_images)):
        loader.dataset.update(data_root='', ann_file=str(ann), data_prefix=dict(img=str(images)), metainfo=meta)
    cfg.data_root = ''
    cfg.test_evaluator = ConfigDict(type='CocoNumbers', ann_file=str(dataset.test_ann))


def _set_schedule(cfg: Config, run: Run) -> None:
    settings = dict(run.settings)
    cfg.train_cfg.max_epochs = run.epochs
    cfg.optim_wrapper.clip_grad = dict(max_norm=35, norm_type=2)
    if run.profile.lr is None:
        if 'lr' in settings:
            cfg.optim_wrapper.optimizer.lr = settings['lr']
        if run.epochs != 24:  # a shortened run keeps the shape of the schedule
            cfg.param_scheduler[-1].update(end=run.epochs, milestones=[max(1, round(run.epochs * part))
                                                                       for part in (16 / 24, 22 / 24)])
    else:  # the smaller profiles train from scratch in minutes: AdamW, warm-up, then a cosine down to zero
        cfg.optim_wrapper.optimizer = ConfigDict(type='AdamW', lr=settings.get('lr', run.profile.lr),
                                                 weight_decay=0.05)
        cfg.param_scheduler = [
            dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
            dict(type='CosineAnnealingLR', T_max=run.epochs, eta_min=0, by_epoch=True, convert_to_iter_based=True)]
    base = images_of_lr(run.profile)
    cfg.auto_scale_lr = dict(enable='lr' not in settings and (run.profile.lr is None or run.images_per_update != base),
                             base_batch_size=base)
    if run.setting('accumulate') > 1:
        cfg.optim_wrapper.accumulative_counts = run.setting('accumulate')
        cfg.auto_scale_lr.base_batch_size = base / run.setting('accumulate')  # mmengine counts one step's images only
    if run.setting('fused'):
        cfg.optim_wrapper.optimizer.fused = True
    match run.setting('amp'):
        case 'fp16':
            cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
        case 'bf16':
            cfg.optim_wrapper.type = 'BFloat16OptimWrapper'


def images_of_lr(profile: Profile) -> int:
    """Images a step that a profile's learning rate belongs to: 16 for mmdet's SGD, the profile's batch for AdamW."""
    return 16 if profile.lr is None else profile.batch_size


def describe_lr(run: Run, given: float, used: float) -> str:
    """How the learning rate came about, for one line: `lr 0.01 for 16 images a step -> 0.00125 for 2`.

    Args:
        given: as the Config has it.
        used: as the optimizer has it, scaled or not.
    """
    images, base = run.images_per_update, images_of_lr(run.profile)
    parts = ' x '.join([f'{run.batch_size}', *(f'{run.setting(key)} {word}' for key, word in
                                               (('gpus', 'GPUs'), ('accumulate', 'steps')) if run.setting(key) > 1)])
    made_of = f' ({parts})' if ' ' in parts else ''
    if 'lr' in dict(run.settings):
        return f'lr {used:g} for {images} images a step{made_of}, as given: not scaled'
    if used == given:
        return f'lr {used:g} for {images} images a step{made_of}'
    return f'lr {given:g} for {base} images a step -> {used:g} for {images}{made_of}'


def table_runs(table: str, profile: str, group: str | None = None, seeds: str = '0',
               settings: str | dict = '') -> list[Run]:
    """The runs behind a table: its rows in every group (or in one) with every seed; teachers have seed 0 only.

    Args:
        seeds: '0,1,2' or '0 1 2'.
        settings: recipe and file settings, a dict or as text ('epochs=2 amp=True'); each row takes those that it has
            (`teacher_backbone` is a teacher's `backbone`).
    Errors: SettingError for an unknown table, group or setting, a dry run, or seeds that are no numbers.
    """
    table = find_table(table)
    if find_profile(profile).dry_run:
        raise SettingError(f'profile {profile} makes no tables: its networks are random and its numbers mean nothing')
    if group and group not in table.groups:
        raise SettingError(f'{table.name} has no group {group!r}; expected one of: {", ".join(table.groups)}')
    numbers = _seeds(seeds)
    return [Run.of(row, profile, seed, own_settings(row, settings)) for row in table.rows(group)
            for seed in ([0] if row.is_teacher else numbers)]


def row_runs(group: str, names: Iterable[str], profile: str, seed: int = 0, settings: str | dict = '') -> list[Run]:
    """Rows of one group by their names in it ('teacher', 'amd'), with the settings of a table; teachers have seed 0.

    Errors: SettingError for an unknown row or setting.
    """
    rows = [find_row(f'{group}-{name}') for name in names]
    return [Run.of(row, profile, 0 if row.is_teacher else seed, own_settings(row, settings)) for row in rows]


def sweep_runs(row: str, option: str, values: str, profile: str, seeds: str = '0',
               settings: str | dict = '') -> list[Run]:
    """One row with several values of one of its method's options, such as '0.5 0.7 1.0' of phi.

    Errors: SettingError for an unknown row or option, or values that are not of its kind.
    """
    row, words = find_row(row), str(values).replace(',', ' ').split()
    if not words:
        raise SettingError(f'no values of {option} given: expected some, such as 0.5 1.0')
    own = own_settings(row, settings)
    runs = [Run.of(row, profile, seed, {**own, option: word}) for word in words for seed in _seeds(seeds)]
    return list(dict.fromkeys(runs))


def read_settings(text: str | list[str]) -> dict[str, str]:
    """'phi=0.7 epochs=2', or the words of it, as pairs; a value with spaces is quoted as in a shell."""
    pairs = {}
    for word in shlex.split(text) if isinstance(text, str) else text:
        key, separator, value = word.partition('=')
        if not separator or not key:
            raise SettingError(f'{word!r}: expected KEY=VALUE')
        pairs[key] = value
    return pairs


def write_settings(settings: Mapping[str, object]) -> str:
    """Settings as the text that `read_settings` reads."""
    return ' '.join(shlex.quote(f'{key}={value}') for key, value in settings.items())


def _seeds(seeds: str) -> list[int]:
    try:
        numbers = sorted({int(word) for word in str(seeds).replace(',', ' ').split()})
    except ValueError:
        raise SettingError(f'seeds {seeds!r}: expected numbers, such as 0,1,2') from None
    if not numbers:
        raise SettingError('no seeds given: expected numbers, such as 0,1,2')
    return numbers


def own_settings(row: Row, settings: str | dict) -> dict:
    """Of settings for a whole table those that concern this row, by the row's names for them."""
    pairs = read_settings(settings) if isinstance(settings, str) else settings or {}
    given = {key: value for key, value in pairs.items() if value not in (None, '')}     # empty ones do not count
    known = (*RECIPE_SETTINGS, *TEACHER_PASS_SETTINGS, *FILE_SETTINGS['method'])
    if unknown := [key for key in given if key not in known]:
        raise SettingError(f'a table has no setting {unknown[0]!r}; it has: {", ".join(known)}')
    if row.is_teacher:
        return {key.removeprefix('teacher_'): value for key, value in given.items()
                if key != 'backbone' and key not in TEACHER_PASS_SETTINGS}
    return {key: value for key, value in given.items() if key in _switches(row) or key in _file_settings(row)}


def shorter(profile: Profile, **changes) -> Profile:
    """A copy of a profile with some values changed, for tests and trials."""
    return replace(profile, **changes)
