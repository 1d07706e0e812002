"""The data set `mini`: scenes of shapes, all of it made here."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from amdlib.datasets.dataset import fingerprint, progress, write_coco
from amdlib.datasets.scene import ShapesSpec, png, scene

LAYOUT = LABELS = ''


@dataclass(frozen=True)
class Shapes:
    """Pictures and boxes as `spec` wants them."""
    spec: ShapesSpec
    name = 'mini'
    files = ()
    self_made = True
    found = ''
    origins = {}

    @property
    def recipe(self) -> str:
        return f'shapes {fingerprint([asdict(self.spec)])}'

    def made(self, home: Path) -> tuple[Path, ...]:
        return self.splits(home)

    def splits(self, home: Path) -> tuple[Path, ...]:
        return tuple(home / name for split in self._counts() for name in (f'{split}.json', split))

    def _counts(self) -> dict[str, int]:
        spec = self.spec
        return {'train': spec.train_images, 'test': spec.test_images, 'val': spec.val_images}

    def make(self, folder: Path, drop_broken: bool = False) -> list[str]:
        for split, count in self._counts().items():
            (folder / split).mkdir()
            images = []
            for index in progress(range(count), f'draw {split}'):
                image, boxes_xywh_px, labels = scene(self.spec, split, index)
                name = f'{split}_{index:05d}.png'
                (folder / split / name).write_bytes(png(image))
                boxes = [{'name': self.spec.classes[label], 'bbox': box}
                         for box, label in zip(boxes_xywh_px.tolist(), labels.tolist(), strict=True)]
                images.append(({'file_name': name, 'width': image.shape[1], 'height': image.shape[0]}, boxes))
            write_coco(folder / f'{split}.json', images, self.spec.classes)
        return [f'trained on train ({self.spec.train_images} images), reported on test ({self.spec.test_images}), '
                f'factors chosen on val ({self.spec.val_images})']


def recognise(root: Path) -> None:
    """Never: it is asked for, not found."""
