"""A data set written as a folder of its own, for other tools: COCO files and the pictures."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

from amdlib.datasets import store
from amdlib.datasets.dataset import Dataset, progress
from amdlib.errors import DataError


def write_folder(dataset: Dataset, folder: str | Path) -> Path:
    """`folder`/annotations/instances_<split>.json, and `folder`/<split>/ with copies of the split's pictures.

    Errors: DataError where something lies there already.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f'{folder}: expected a folder that is empty or not there')
    folder.parent.mkdir(parents=True, exist_ok=True)
    splits = {'train': (dataset.train_ann, dataset.train_images), 'test': (dataset.test_ann, dataset.test_images),
              **({'val': (dataset.val_ann, dataset.val_images)} if dataset.val_ann else {})}
    with store.replacing(folder) as new:
        (new / 'annotations').mkdir()
        for split, (ann, images) in splits.items():
            shutil.copyfile(ann, new / 'annotations' / f'instances_{split}.json')
            for image in progress(json.loads(ann.read_text())['images'], f'copy {split}'):
                copy = new / split / image['file_name']
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(images / image['file_name'], copy)
    return folder
