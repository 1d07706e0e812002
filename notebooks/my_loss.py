"""A distillation loss of your own: copy this file, change the class, and name it in your_own_loss.ipynb."""
import torch

from amdlib.methods.level import LevelLoss, align_channels


class MyLoss(LevelLoss):
    """How far the directions of both features differ: weight * mean(1 - cosine), the same for every size of feature."""
    WEIGHT_EXPONENTS = {'weight': (0, 0)}       # a mean grows neither with channels nor with positions

    def __init__(self, student_channels, teacher_channels, weight=1.0):
        super().__init__(student_channels, teacher_channels)
        self.weight = weight
        self.align = align_channels(student_channels, teacher_channels)

    def weighted_loss(self, f_s, f_t, boxes=None, image_shapes=None):
        cosine = torch.cosine_similarity(self.align(f_s), f_t, dim=1)       # (N, H, W)
        return self.weight * (1 - cosine).mean()
