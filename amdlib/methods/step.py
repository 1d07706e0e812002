"""Methods that look at a whole step: the contract `StepLoss`, and `Step`, what such a method may ask for.

A `LevelLoss` sees the features of one pyramid level; a `StepLoss` sees all levels at once and, where it says so,
anchors, head outputs and proposals. Needs torch alone.
"""
from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from amdlib.methods.level import check_integer

NEEDS = {'boxes': 'ground-truth boxes', 'anchors': 'a box of known size at every position',
         'heads': 'a head that scores every position', 'proposals': 'proposals of a first stage'}
# what a head may offer besides
OFFERED = {'sigmoid': 'a head that gives each class a score of its own',
           'branches': 'a head whose two rows of convolutions end in scores and in moves of anchors',
           'distributions': 'a head that gives the sides of a box as distributions'}


class Step(Protocol):
    """What one training step shows of both detectors. Nothing is computed before it is asked for, and nothing twice.

    All floating-point tensors are in float32 or more. The teacher's carry no gradient; the student's do, from its own
    loss pass. Always there:

    f_s, f_t: the compared features, (N, C_s, H, W) and (N, C, H, W) a level, finest first, divided by the test bed's
        constants where it has some.
    boxes, labels: of each image the ground truth, (n, 4) xyxy in pixels of the input, and (n,) classes.
    image_shapes: of each image (height, width) in pixels before padding.
    levels, strides: of each compared level its number, by which logs know it, and its stride in pixels.
    has: of what the method needs, what these detectors have; below, what is not there is not to be asked for.
    roi_features: see there.

    With 'anchors' among what a method needs:
    anchors: of each compared level (H * W * A, 4) xyxy in pixels of the input, position by position (row by row), the A
        of a position beside each other; of RepPoints, A = 1, the box of its base scale around each point.

    With 'heads':
    heads_s, heads_t: what the dense head (a two-stage detector's RPN) returns for every level *that it has*: a tuple
        such as (scores, box deltas), each a list of (N, A * K, H, W) a level. Never divided. In training RepPoints'
        gives points where the teacher's, in eval mode, gives boxes: there only the scores, the first entry, are alike.
    inside_s, inside_t: what the parts of the dense head gave for each of its levels, by name (`cls_convs.2`).
    teacher_head: the teacher's dense head, frozen, in eval mode. A gradient passes through it, none goes into it.

    With 'proposals':
    proposals: of each image the boxes (n, 4) that the student's box head scores in its own loss pass.
    proposals_t: of each image those (n, 4) of the teacher's first stage, best first.
    roi_scores, roi_deltas: see there.
    """

    f_s: list[Tensor]
    f_t: list[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]
    image_shapes: list[tuple[int, int]]
    levels: Sequence[int]
    strides: list[int]
    has: frozenset[str]
    anchors: list[Tensor]
    heads_s: tuple[list[Tensor], ...]
    heads_t: tuple[list[Tensor], ...]
    inside_s: dict[str, list[Tensor]]
    inside_t: dict[str, list[Tensor]]
    teacher_head: nn.Module
    proposals: list[Tensor]
    proposals_t: list[Tensor]

    def roi_scores(self, side: str) -> Tensor:
        """Logits (sum of n, classes + 1) that the box head of 'student' or 'teacher' gives `proposals`, image by image,
        the background last; of a cascade its first stage's."""

    def roi_deltas(self, side: str) -> Tensor:
        """How that box head moves `proposals`, in the same order: (sum of n, 1 or classes, 4), centre x and y in sides
        of the proposal, logarithms of the sides. In whichever measure a head gives them, here they are in this one."""

    def roi_features(self, side: str, boxes: Sequence[Tensor], size: int = 7) -> Tensor:
        """RoIAlign of the compared features of 'student' or 'teacher', each box from the level that its size belongs
        to: (n, 4) of each image -> (sum of n, C, size, size)."""


class StepLoss(nn.Module):
    """Base of methods that look at a whole step: the distillation loss of a step in named terms, already weighted.

    `loss(step)` takes a `Step` and returns 0-d tensors by name, one or more; each is logged as `loss_<method>_<name>`
    (`fpn_0` for the term of a level). It is computed outside of autocast.

    A method implements `weighted_losses` with the same argument. Its constructor takes `channels`, a pair (student's,
    teacher's) for each compared level, then options that all have a default. It declares `LABEL`, `WEIGHT_EXPONENTS`
    and `PUBLISHED` as a `LevelLoss` does, and

    `NEEDS`: which of NEEDS it asks a step for, besides features; what is not named is not computed, and not there. A
    method that can do without one of them overrides `cannot`, and asks `step.has`.

    `told` holds what a method has to say of its last call (0-d tensors by name, none with `loss` in it), for the log.

    Errors: `ValueError` for channels that are no pairs of positive integers, and for terms that are no 0-d tensors.
    """

    LABEL: ClassVar[str] = ''
    WEIGHT_EXPONENTS: ClassVar[dict[str, tuple[float, ...]]] = {}
    PUBLISHED: ClassVar[dict[str, dict[str, Any]]] = {}
    NEEDS: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.LABEL = vars(cls).get('LABEL') or cls.__name__      # never its parent's, as for LevelLoss

    def __init__(self, channels: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.channels = [tuple(pair) for pair in channels]
        if not self.channels or any(len(pair) != 2 for pair in self.channels):
            raise ValueError(f"channels={channels!r}: expected a pair, the student's and the teacher's, for each level")
        for pair in self.channels:
            for side in pair:
                check_integer('channels', side, at_least=1)
        self.told: dict[str, Tensor] = {}

    @classmethod
    def cannot(cls, student: Collection[str], teacher: Collection[str]) -> str:
        """Why this method cannot run on such a pair of detectors, in words; '' where it can.

        Args:
            student, teacher: what each offers, words of NEEDS and of `engine.step.offers`.
        """
        needs = sorted(cls.NEEDS - {'boxes'})
        return lacks(student, {*teacher, 'anchors'}, *needs)    # the student's anchors serve both

    @property
    def waits(self) -> int:
        """How many steps are left in which its terms are 0, because it warms up."""
        return max((part.waits for part in self.modules() if isinstance(part, WarmUp)), default=0)

    @property
    def strength(self) -> float:
        """The factor on its terms in its last call, below 1 where it warms up."""
        return min((part.strength for part in self.modules() if isinstance(part, WarmUp)), default=1.0)

    def forward(self, step: Step) -> dict[str, Tensor]:
        with torch.autocast(step.f_s[0].device.type, enabled=False):
            terms = self.weighted_losses(step)
        if not isinstance(terms, dict) or not terms or not all(
                isinstance(term, Tensor) and term.dim() == 0 for term in terms.values()):
            raise ValueError(f'{type(self).__name__}: expected 0-d tensors by name, got {terms!r}')
        return terms

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        """The terms of a step."""
        raise NotImplementedError(f'{type(self).__name__} does not define weighted_losses')


def lacks(student: Collection[str], teacher: Collection[str], *words: str) -> str:
    """Which side does not offer the first of some words of NEEDS and OFFERED that is lacking, in words; '' where both
    offer all."""
    for word in words:
        for side, offered in (('student', student), ('teacher', teacher)):
            if word not in offered:
                return f'needs {(NEEDS | OFFERED)[word]}: the {side} has none'
    return ''


class WarmUp(nn.Module):
    """A method's first steps: a call counts one and gives the factor on its terms, 0 for `off_steps` steps, then rising
    linearly to 1 over `ramp_steps`.

    Only calls in training mode count. The count is part of the state_dict, so that a resumed run goes on.
    Errors: `ValueError` where a number of steps is not an integer of 0 or more.
    """

    def __init__(self, off_steps: int = 0, ramp_steps: int = 0) -> None:
        super().__init__()
        check_integer('off_steps', off_steps, at_least=0)
        check_integer('ramp_steps', ramp_steps, at_least=0)
        self.off_steps, self.ramp_steps, self.steps = off_steps, ramp_steps, 0
        self.strength = 0.0     # the factor that it gave last

    @property
    def waits(self) -> int:
        """Calls that are still to give 0."""
        return max(0, self.off_steps + (self.ramp_steps > 0) - self.steps)

    def forward(self) -> float:
        before = self.steps - self.off_steps
        self.steps += self.training
        rising = min(1.0, before / self.ramp_steps) if self.ramp_steps else 1.0
        self.strength = 0.0 if before < 0 else rising
        return self.strength

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)

    def extra_repr(self) -> str:
        return f'off_steps={self.off_steps}, ramp_steps={self.ramp_steps}'
