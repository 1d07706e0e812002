"""Profiles: how large an experiment is, and how the paper's loss weights are carried to it."""
from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, field, replace

from amdlib.errors import SettingError

PAPER_CHANNELS, PAPER_IMAGE_PX, PAPER_IMAGES = 256, (1333, 800), 2  # what the published loss weights belong to


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
    data: str                            # 'shapes' (made), 'folder' (the user's), 'coco', 'first_of_coco' or
                                         # 'tenth_of_coco'
    batch_size: int                      # images a step and GPU
    epochs: dict[str, int] = field(hash=False)  # by row id, 'teacher', group or 'student', the first that is there
    student: Network | None = None       # None: mmdet's own backbones
    teacher: Network | None = None
    neck_channels: int = PAPER_CHANNELS
    lr: float | None = None              # of AdamW; None: the config's own optimizer
    lr_images: int = 16                  # images a step that the config's learning rate belongs to
    head_convs: int | None = None        # convolutions a branch of a one-stage head; None: mmdet's
    fc_channels: int = 1024              # of the second stage's box head
    anchor_scale: float = 1.0            # factor on mmdet's anchor sizes and RepPoints' base scale
    proposals: int = 1000                # of the first stage, in training and testing
    workers: int = 2                     # data loading processes a GPU; 0: the training process reads its own pictures
    test_batch_size: int = 16
    log_every: int = 10                  # steps
    score_thr: float | None = None       # what scores less is not detected; None: mmdet's 0.05
    published: bool = False              # teachers are published detectors, and students start from published backbones
    shipped: str = ''                    # folder below the kit's with trained teachers and first backbones of students
    arm: str = 'inherit'                 # how one-stage students of the methods start: 'alone', or 'inherit' (from the
                                         # teacher's neck and head, as the public code of FGD and MGD does)
    reference_rms: float | None = None   # to which a teacher's features are scaled before a loss sees them; None: not
    keep_features: bool = False          # the teacher looks at every picture once, as it is and flipped, and alone
    first_images: tuple[int, int] | None = None     # of both splits, where data is 'first_of_coco'
    dry_run: bool = False                # its numbers mean nothing and go into no table
    can_show: str = ''                   # in plain words, printed under every table

    def to_dict(self) -> dict:
        """Plain values, for a job file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Profile:
        """The profile of `to_dict`."""
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        given |= {side: given[side] and Network(**given[side]) for side in ('student', 'teacher')}
        return cls(**given)


PROFILES = {profile.name: profile for profile in (
    Profile('mini', (128, 128), 'shapes', 4, {'teacher': 48, 'student': 16},
            Network(18, 16), Network(18, 32), 64, 3e-3,
            head_convs=2, fc_channels=128, anchor_scale=0.5, proposals=64, workers=0,
            # ASSUMPTION reference: 0.5, from the size of published terms
            shipped='data/teachers/mini', arm='alone', reference_rms=0.5, keep_features=True,
            can_show='Scenes of shapes, narrow networks, minutes on a CPU: whether a method teaches anything here, and '
                     'whether methods differ by more than chance. It says nothing about COCO.'),
    Profile('bccd', (320, 240), 'folder', 4, {'teacher': 96, 'student': 48},
            Network(18, 16), Network(18, 32), 64, 3e-3,
            head_convs=2, fc_channels=128, anchor_scale=0.5, proposals=64, workers=0,
            arm='alone', reference_rms=0.5, keep_features=True,
            can_show='Real pictures, 205 of blood cells to train on and 72 to report, with the networks of mini from '
                     'scratch, on a CPU: whether what made scenes show holds on photographs. So few test pictures '
                     'leave wide intervals.'),
    Profile('small', (320, 320), 'folder', 8, {'student': 24, 'teacher': 36}, Network(18, 64), Network(50, 64), 128,
            5e-4, fc_channels=512, anchor_scale=0.5, proposals=300, workers=2,
            can_show='Real images, an ordinary ResNet-18 and ResNet-50 from scratch: it shows whether distillation '
                     'helps on this data set. It cannot confirm or refute the paper, whose networks are pre-trained '
                     'on millions of images and whose differences are 0.3 to 0.7 mAP.'),
    Profile('tenth', PAPER_IMAGE_PX, 'tenth_of_coco', 2, {'student': 12}, test_batch_size=1, log_every=50,
            published=True,
            can_show="The paper's detectors, teachers and first weights on a tenth of COCO's training images, for half "
                     'as many epochs: a twentieth of its steps. It shows whether a method teaches anything there; it '
                     "cannot confirm or refute the paper's 0.3 to 0.7 mAP, which belong to the whole of COCO."),
    Profile('paper', PAPER_IMAGE_PX, 'coco', 2, {'student': 24}, test_batch_size=1, log_every=50, published=True,
            can_show="The paper's own experiments on COCO. Differences between methods there are 0.3 to 0.7 mAP, of "
                     'the order of the spread between two runs: report several seeds.'),
)}


# The paper's detectors, losses and recipe on a few small pictures, to see every row run before a machine is hired for
# it. Random networks reach mmdet's threshold of scores nowhere; without one there is something to evaluate and compare.
DRY_RUN = replace(
    PROFILES['paper'], name='dryrun', data='first_of_coco', image_px=(256, 160), epochs={'student': 1}, workers=1,
    log_every=1, score_thr=0.0, published=False, first_images=(6, 3), dry_run=True,
    can_show='Random weights, a dry run: these numbers mean nothing. Every detector of the paper in full is trained a '
             'few steps on a few small pictures: it shows that each row trains, is evaluated, exported and read again.')


def find_profile(name: str) -> Profile:
    """The profile of this name, the dry run's too; SettingError lists the names otherwise."""
    if name == DRY_RUN.name:
        return DRY_RUN
    if name not in PROFILES:
        raise SettingError(f'unknown profile {name!r}; expected one of: {", ".join(PROFILES)}')
    return PROFILES[name]


def scale_weights(loss_class: type, options: dict, profile: Profile, images: int = 2, factor: float = 1.0) -> dict:
    """The published weights belong to 256 channels at 1333x800 and 2 images a step and GPU. One rule for all methods: a
    term keeps the value that it would have there for the same error an element,
    `weight * (256 / C)**a * (1333 * 800 / (W * H))**b * (2 / N)**n`, with the exponents that follow from the term's
    formula (`WEIGHT_EXPONENTS` of the loss).

    Args:
        images: N, a step and GPU.
        factor: on all weights of the method, where it is calibrated.
    """
    channels = PAPER_CHANNELS / profile.neck_channels
    positions = PAPER_IMAGE_PX[0] * PAPER_IMAGE_PX[1] / (profile.image_px[0] * profile.image_px[1])
    defaults = inspect.signature(loss_class).parameters
    scaled = dict(options)
    for name, (a, b, *n) in loss_class.WEIGHT_EXPONENTS.items():
        scaled[name] = options.get(name, defaults[name].default) * channels ** a * positions ** b
        scaled[name] *= (PAPER_IMAGES / images) ** (n[0] if n else 0) * factor
    return scaled
