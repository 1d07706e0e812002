"""Data sets: made or found, converted to COCO files, checked, fingerprinted and kept for the next call.

A format is one file in `formats/`. What is learned from the data, or drawn of it for a reader, is not here.
"""
from amdlib.datasets.checks import check
from amdlib.datasets.choice import CHOICES, Choice
from amdlib.datasets.dataset import Dataset, coco_images, trained_images
from amdlib.datasets.prepare import prepare
from amdlib.datasets.scene import ShapesSpec

__all__ = ['CHOICES', 'Choice', 'Dataset', 'ShapesSpec', 'check', 'coco_images', 'prepare', 'trained_images']
