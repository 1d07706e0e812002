"""Distiller: a student, a frozen teacher and one loss a pyramid level or a step, as an mmengine model.

The outputs of named modules (`neck.fpn_convs.{i}.conv`) of both detectors are compared, level by level, by a method's
loss; or, with 'auto', the maps that each detector's head receives, paired by their size. A method that looks at whole
steps gets them all, and of the heads what it needs (`engine.step`). The teacher is a plain attribute, not a submodule:
so it is in neither the optimizer nor the checkpoint nor a distributed wrapper, and `train()` never reaches it.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.dist import get_rank
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from amdlib.engine import pixels, start
from amdlib.engine.kept import KeptFeatures
from amdlib.engine.share import StartingShare
from amdlib.engine.step import OF_TEACHERS_HEAD, DetectorStep, divided, hear, offers
from amdlib.engine.taps import AUTO, PROBE_PX, look, never_seen, pairs_by_size, tap, told_sizes
from amdlib.errors import RunError
from amdlib.methods import find_method, is_outside, looks_at_steps
from amdlib.weights.reading import load_strictly, read_weights
from amdlib.words import log

HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}


@MODELS.register_module()
class Distiller(BaseModel):
    """Train `student` with its own loss plus `method`'s loss against the frozen `teacher` on every level.

    The student is built and initialised first, from `seed` alone, so that it starts alike in every row; teacher and
    losses draw from streams of their own.

    Args:
        student, teacher: configs of mmdet detectors, or built ones.
        method: name of a method, or 'path/to/file.py:ClassName' (see `methods.find_method`).
        options: keyword arguments of the method's class, all but the channels, which are measured.
        levels: numbers put into the two patterns; of 'auto' the places among the pairs, None: all of them.
        student_module, teacher_module: name of the module whose output is compared, `{i}` for the level; or 'auto', the
            maps that the head receives, whatever makes them: those of both sides that agree in size are compared. Or,
            on both sides, a list with the name of each level's, or its place among the maps that the head receives.
        teacher_weights: file with the teacher's weights, loaded strictly; None keeps the weights as built.
        inherit: top-level parts ('neck', 'bbox_head') whose tensors the student takes from the teacher, where name
            and shape match, before training.
        seed: of student, losses and random masks; every level, and every process of a distributed run, draws its masks
            from a stream of its own.
        compile_teacher: compile the teacher's backbone at the first step (torch.compile).
        half_teacher: 'bf16' or 'fp16': the teacher's forward under autocast; 'off': as the surrounding code has it.
        scales: a constant a level by which both sides' features are divided before a loss sees them; None: by none.
        reference_rms: what the constants bring the teacher's features to; said here, not used.
        alone: each picture passes the teacher on its own, so that the other pictures of a step change no bit.
        kept: folder with the teacher's features of every picture (see `engine.kept`), instead of passing them again.
        shuffled: a control: every picture gets the features of another one. Training then needs `kept`; where a method
            needs the teacher's head, which is not kept, it is the picture before it in the step.
        share: sets the weight of distillation so that it starts as this share of the loss (see `engine.share`).

    A teacher that wants other pixels (mean, std, order of channels) gets them, padding included, by an exact map.

    Errors: ValueError when a level is missing or its feature maps do not fit, naming level and shapes, or the method
    is not known; RunError in training when a term of the loss is inf or nan, naming it.
    """

    def __init__(self, student: dict | nn.Module, teacher: dict | nn.Module, method: str, options: dict | None = None,
                 levels: Sequence[int] | None = (0, 1, 2, 3, 4),
                 student_module: str | Sequence[str | int] = 'neck.fpn_convs.{i}.conv',
                 teacher_module: str | Sequence[str | int] = 'neck.fpn_convs.{i}.conv',
                 teacher_weights: str | Path | None = None, inherit: Sequence[str] = (), seed: int = 0,
                 compile_teacher: bool = False, half_teacher: str = 'off',
                 scales: Sequence[float] | None = None, reference_rms: float | str | None = None, alone: bool = False,
                 kept: str | Path | None = None, shuffled: bool = False, share: float | None = None) -> None:
        loss_class = find_method(method)
        if isinstance(student, dict):
            with start.drawn_from('student', seed):
                student = MODELS.build(student)
                student.init_weights()  # once: mmengine's own later call finds it done
        if isinstance(teacher, dict):
            with start.drawn_from('teacher', seed):
                teacher = MODELS.build(teacher)
        super().__init__(data_preprocessor=student.data_preprocessor)
        self.pixels_of_teacher = pixels.between(student.data_preprocessor, teacher.data_preprocessor)
        if teacher_weights is not None:
            load_strictly(teacher, read_weights(teacher_weights), str(teacher_weights))
        self.student = student
        teacher.eval()      # of some detectors it returns nothing
        object.__setattr__(self, 'teacher', teacher.requires_grad_(False))  # not a submodule, see above
        self.half_teacher = HALF.get(half_teacher)
        self.method, self.alone = method, alone
        self.levels, self.student_taps, self.teacher_taps = self._levels(levels, student_module, teacher_module)
        self.scales = [1.0] * len(self.levels) if scales is None else [float(scale) for scale in scales]
        if len(self.scales) != len(self.levels) or not all(0 < scale < float('inf') for scale in self.scales):
            raise ValueError(f'scales={scales!r}: expected a positive number for each of the levels {self.levels}')
        of_student = offers(student)
        # what a method needs and is there: some ask for proposals or anchors; None: it looks at levels
        self.needs = loss_class.NEEDS & of_student if looks_at_steps(loss_class) else None
        if self.needs is not None and (why := loss_class.cannot(of_student, offers(teacher))):
            raise ValueError(f'{method}: {why}')
        keeps = kept and not (self.needs or frozenset()) & OF_TEACHERS_HEAD
        self.shuffled, self.kept = shuffled, KeptFeatures(kept, self.levels, shuffled) if keeps else None
        self.measures_gradients = False     # set for a step by engine.runner.GradientHook
        self.inherited = start.inherit(student, teacher.state_dict(), inherit)
        # names as in the public FGD and MGD checkpoints: distill_losses.loss_mgd_fpn_0.align.weight
        self.short = loss_class.__name__.lower() if is_outside(method) else method
        self.distill_losses, channels = nn.ModuleDict(), self._measure_channels()
        if self.needs is not None:
            with start.drawn_from('loss', seed, 0):
                self.distill_losses[f'loss_{self.short}'] = loss_class(channels, **(options or {}))
        for i, (c_s, c_t) in [] if self.needs is not None else zip(self.levels, channels, strict=True):
            with start.drawn_from('loss', seed, i):
                loss = loss_class(c_s, c_t, **(options or {}))
            if hasattr(loss, 'reseed'):
                # processes of a distributed run must not mask alike; the first one's masks are those of a run alone
                loss.reseed(1000 * seed + 10 * get_rank() + i)
            self.distill_losses[f'loss_{self.short}_fpn_{i}'] = loss
        self.starting_share = None if share is None else StartingShare(share)
        if compile_teacher:  # the backbone is nearly all of its cost; the neck stays as it is, for the taps
            teacher.backbone.compile()

    @property
    def detector(self) -> nn.Module:
        """The student, by the name under which mmdet's hooks look for a detector in another model."""
        return self.student

    def set_epoch(self, epoch: int) -> None:
        """For students that want to know it (SetEpochInfoHook)."""
        self.student.set_epoch(epoch)

    def init_weights(self) -> None:
        """Done when it was built: the student starts before anything else draws."""

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> dict | list | tuple:
        """mmengine's modes: 'loss' distils; 'predict' and 'tensor' are the student alone."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode=mode)

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        """The student's losses and `loss_<method>_fpn_<i>` a level, or `loss_<method>_<term>` of a step.

        Logged beside them: `share_fpn_<i>`, each level's share of the total (0 to 1), or `share_<method>_<term>`;
        `ratio`, distillation over detection; what a method tells of itself (`<name>_fpn_<i>`, `<name>`); now and then
        the gradients (`GradientHook`); with `share` the factor that it gives, `share_factor`.
        """
        f_t = self._features_of(inputs, data_samples) if self.needs is None else None
        with tap(self.student, self.student_taps) as f_s, hear(self.student, self.needs or ()) as heard:
            losses = dict(self.student.loss(inputs, data_samples))
        detection, _ = self.parse_losses(losses)
        step = DetectorStep(self, inputs, data_samples, heard, f_s, partial(self._features_of, inputs, data_samples))
        terms = self._terms_of_levels(f_s, f_t, step) if self.needs is None else self._terms_of_step(step)
        strength = min(getattr(loss, 'strength', 1.0) for loss in self.distill_losses.values())
        if self.starting_share is not None and strength:    # what warms up rises to the share
            factor = self.starting_share(detection.detach(), sum(terms.values()).detach() / strength)
            terms = {name: factor * term for name, term in terms.items()}
            losses['share_factor'] = factor
        losses.update(terms)
        total, logged = self.parse_losses(losses)
        _stop_if_not_finite(total, logged)
        for name, loss in self.distill_losses.items():
            for term in [name] if self.needs is None else terms:
                losses[self._share(term)] = (terms[term] / total).detach()  # no 'loss' in the name: not added up
            for told, value in getattr(loss, 'told', {}).items():
                if 'loss' in told:
                    raise ValueError(f'{self.method} tells {told!r}: what has loss in its name is added up')
                losses[told + name.removeprefix(f'loss_{self.short}')] = value.detach()
        distillation = sum(terms.values())
        losses['ratio'] = (distillation / detection.clamp(min=1e-12)).detach()
        if self.measures_gradients:
            losses |= {'grad_detection': self._gradient(detection), 'grad_distillation': self._gradient(distillation)}
        return losses

    def _terms_of_levels(self, f_s: list[Tensor], f_t: list[Tensor], step: DetectorStep) -> dict[str, Tensor]:
        """The loss of every level, by name."""
        f_s, f_t = (divided(features, self.scales) for features in (f_s, f_t))
        terms = {}
        for (name, loss), s, t, finer, coarser in zip(self.distill_losses.items(), f_s, f_t, [None, *f_t[:-1]],
                                                      [*f_t[1:], None], strict=True):
            loss.look_around(finer, coarser)
            terms[name] = loss(s, t, step.boxes, step.image_shapes)
        return terms

    def _terms_of_step(self, step: DetectorStep) -> dict[str, Tensor]:
        """The terms of a method that looks at the step, by name."""
        ((name, loss),) = self.distill_losses.items()
        return {f'{name}_{term}': value for term, value in loss(step).items()}

    def _share(self, term: str) -> str:
        """`loss_amd_fpn_0` -> `share_fpn_0`, as levels are known; `loss_kd_cls` -> `share_kd_cls`."""
        place = term.removeprefix(f'loss_{self.short}_')
        return f'share_{place}' if place.startswith('fpn_') else term.replace('loss', 'share', 1)

    def _features_of(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> list[Tensor]:
        """The teacher's feature of every level for these pictures."""
        if self.kept is not None:
            found = self.kept([int(sample.img_id) for sample in data_samples],
                              [bool(sample.get('flip')) for sample in data_samples], tuple(inputs.shape[2:]))
            return [feature.to(inputs.device) for feature in found]
        if self.shuffled:
            raise RunError('shuffled=True needs the kept features of all pictures')
        inputs = self.pixels_for_teacher(inputs, data_samples)
        if not self.alone:
            return self.teacher_features(inputs)
        each = [self.teacher_features(picture) for picture in inputs.split(1)]
        return [torch.cat(level) for level in zip(*each, strict=True)]

    def pixels_for_teacher(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> Tensor:
        """The pictures as the teacher's preprocessor would give them."""
        return inputs if self.pixels_of_teacher is None else self.pixels_of_teacher(inputs, data_samples)

    def _gradient(self, loss: Tensor) -> Tensor:
        """Norm of a loss's gradient on the student's backbone."""
        if not loss.requires_grad:
            return loss.new_zeros(())
        parameters = [p for p in self.student.backbone.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norms = [gradient.norm() for gradient in found if gradient is not None]
        return torch.stack(norms).norm() if norms else loss.new_zeros(())

    @torch.no_grad()
    def teacher_features(self, inputs: Tensor) -> list[Tensor]:
        """The teacher's feature of every level: pixels (N, 3, H, W) -> (N, C, h, w) each."""
        with tap(self.teacher, self.teacher_taps) as features, self.teacher_precision(inputs.device.type):
            self.teacher.extract_feat(inputs)  # backbone and neck, no head
        return features

    def teacher_precision(self, device: str) -> AbstractContextManager:
        """In which precision the teacher passes."""
        return nullcontext() if self.half_teacher is None else torch.autocast(device, dtype=self.half_teacher)

    def _apply(self, fn: Callable, recurse: bool = True) -> Distiller:
        """`.to()`, `.cuda()`, `.half()` and the like reach the teacher too."""
        self.teacher._apply(fn)
        return super()._apply(fn, recurse)

    def _levels(self, levels: Sequence[int] | None, student_module: str | Sequence[str | int],
                teacher_module: str | Sequence[str | int]) -> tuple[tuple[int, ...], list[str | int], list[str | int]]:
        """The numbers of the levels that are compared, and what is tapped for them on both sides."""
        if not isinstance(student_module, str) and not isinstance(teacher_module, str):
            levels = tuple(range(len(student_module)) if levels is None else levels)
            if not len(levels) == len(student_module) == len(teacher_module):
                raise ValueError(f'{len(student_module)} names for the student, {len(teacher_module)} for the teacher, '
                                 f'{len(levels)} levels')
            return levels, list(student_module), list(teacher_module)
        if AUTO not in (student_module, teacher_module):
            names = ([pattern.format(i=i) for i in levels] for pattern in (student_module, teacher_module))
            return tuple(levels), *names
        if levels is None and student_module != teacher_module:
            raise ValueError(f'levels=None goes with {AUTO!r} on both sides, not with a pattern on one')
        image_px, sides = PROBE_PX[True], []
        for model, pattern in ((self.student, student_module), (self.teacher, teacher_module)):
            names = [] if pattern == AUTO else [pattern.format(i=i) for i in levels]
            features, handed = look(model, names, image_px)
            sides.append((list(range(len(handed))), handed) if pattern == AUTO else (names, features))
        (student_names, f_s), (teacher_names, f_t) = sides
        pairs = pairs_by_size(f_s, f_t)
        numbers = tuple(range(len(pairs)) if levels is None else levels)
        places = numbers if student_module == teacher_module else range(len(numbers))
        if not numbers or max(places) >= len(pairs):
            raise ValueError(f'student and teacher have {len(pairs)} feature maps of one size, wanted '
                             f'{numbers or "one or more"}. Strides (channels x grid) of what their heads receive: '
                             f'student {told_sizes(f_s, image_px)}; teacher {told_sizes(f_t, image_px)}')
        return (numbers, [student_names[pairs[i][0]] for i in places], [teacher_names[pairs[i][1]] for i in places])

    @torch.no_grad()
    def _measure_channels(self) -> list[tuple[int, int]]:
        """(C_s, C) of every level, from one pass over a blank image that tells their strides in pixels too."""
        image_px, found = PROBE_PX[any(isinstance(name, int) for name in self.student_taps + self.teacher_taps)], []
        for model, names, side in ((self.student, self.student_taps, 'student'),
                                   (self.teacher, self.teacher_taps, 'teacher')):
            for i, name in zip(self.levels, names, strict=True):
                try:
                    isinstance(name, int) or model.get_submodule(name)
                except AttributeError as error:
                    raise ValueError(f'level {i}: the {side} ({type(model).__name__}) has no module {name!r}: '
                                     f'{error}') from error
            found.append(look(model, names, image_px)[0])
            if unseen := never_seen(model, names, image_px):
                log.warning(f'{self.method}: the head of the {side} ({type(model).__name__}) never sees the output of '
                            f'{", ".join(unseen)}; {AUTO!r} takes what it sees')
        f_s, f_t = found
        for i, s, t in zip(self.levels, f_s, f_t, strict=True):
            if s is None or t is None:
                raise ValueError(f'level {i}: the {"student" if s is None else "teacher"} does not run that module')
            if s.dim() != 4 or t.dim() != 4 or s.shape[2:] != t.shape[2:]:
                raise ValueError(f'level {i}: for a {image_px}x{image_px} image the student gives {tuple(s.shape)}, '
                                 f'the teacher {tuple(t.shape)}; height and width must agree')
        self.strides = [round(image_px / s.shape[2]) for s in f_s]
        return [(s.shape[1], t.shape[1]) for s, t in zip(f_s, f_t, strict=True)]


def _stop_if_not_finite(total: Tensor, terms: dict[str, Tensor]) -> None:
    if torch.isfinite(total):
        return
    values = {name: float(value.detach()) for name, value in terms.items()}
    bad = ', '.join(f'{name} = {value}' for name, value in values.items()
                    if name != 'loss' and not torch.isfinite(torch.tensor(value)))
    raise RunError(f'the loss is not finite: {bad or "the sum overflows"}; all terms: {values}')
