"""DIST (Huang et al., Knowledge distillation from a stronger teacher, 2022): correlations instead of a divergence."""
from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor
from torch.nn import functional as F

from amdlib.methods.kd import cannot_score_alike, class_scores
from amdlib.methods.level import check_number
from amdlib.methods.step import Step, StepLoss


class DISTLoss(StepLoss):
    """Class probabilities that correlate with the teacher's, over classes (`beta`) and over samples (`gamma`).

    Samples are the student's proposals with a softmax, or all anchors or points of the batch with a sigmoid [own: the
    paper is about softmax].
    Errors: see `StepLoss`; `ValueError` where the sides tell other classes apart.
    Source: Huang et al. 2022; weights and temperature, all 1, are those of its public code for images [code].
    """

    LABEL = 'DIST'
    WEIGHT_EXPONENTS = {'beta': (0, 0), 'gamma': (0, 0)}
    PUBLISHED = {}      # no code for detectors is public
    NEEDS = frozenset({'heads', 'proposals'})

    def __init__(self, channels: Sequence[tuple[int, int]], beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__(channels)
        check_number('beta', beta, at_least=0)
        check_number('gamma', gamma, at_least=0)
        self.beta = beta
        self.gamma = gamma

    @classmethod
    def cannot(cls, student: Collection[str], teacher: Collection[str]) -> str:
        return cannot_score_alike(student, teacher)

    def weighted_losses(self, step: Step) -> dict[str, Tensor]:
        p_s, p_t = (scores.softmax(dim=1) if 'proposals' in step.has else scores.flatten(0, 1).sigmoid()
                    for scores in class_scores(step))
        over_classes, over_samples = relations(p_s, p_t)
        return {'classes': self.beta * over_classes, 'samples': self.gamma * over_samples}

    def extra_repr(self) -> str:
        return f'beta={self.beta}, gamma={self.gamma}'


def relations(p_s: Tensor, p_t: Tensor) -> tuple[Tensor, Tensor]:
    """1 - correlation over the classes of each sample, mean over samples; and over the samples of each class, mean over
    classes. A relation among fewer than two is 0.

    Shapes: probabilities (n, K) twice -> two of 0-d.
    """
    n, classes = p_s.shape
    nothing = 0 * p_s.sum()
    return ((1 - pearson(p_s, p_t, dim=1)).mean() if n and classes > 1 else nothing,
            (1 - pearson(p_s, p_t, dim=0)).mean() if n > 1 else nothing)


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of two tensors along a dimension, which goes away; 0 where one of them is constant."""
    a, b = (x - x.mean(dim=dim, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=dim, eps=1e-12)
