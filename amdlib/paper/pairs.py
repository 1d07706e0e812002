"""Detector pairs: a student, its teacher, and the features of both that are compared."""
from __future__ import annotations

from dataclasses import dataclass

from amdlib.errors import SettingError

MODEL_ZOO = 'https://download.openmmlab.com/mmdetection/v2.0/'


@dataclass(frozen=True)
class Group:
    """One student detector and its teacher. Backbones and normalisation are the configs' own."""
    name: str
    student_label: str
    teacher_label: str
    student_config: str
    teacher_config: str
    teacher_file: str           # below the model zoo's v2.0 folder; its name ends in the SHA-256's first 8 digits
    one_stage: bool = True
    offers: tuple[str, ...] = ()                # what both detectors offer to methods (`engine.step.offers`)
    teacher_offers: tuple[str, ...] = ()        # of the teacher, where it is not the same
    levels: tuple[int, ...] = (0, 1, 2, 3, 4)   # i of neck.fpn_convs.{i}.conv
    weights_of: str = ''        # the pair whose published loss weights hold here too; default: its own
    own: bool = False           # a pair of the user's: its configs stay whole (see `runs.adapt`)
    places: tuple[tuple[int | str, int | str], ...] = ()    # of own pairs: what of student and teacher is compared at
                            # each level: a map's place among those that the head receives, or a module's name
    scratch: bool = False       # of own pairs: nothing is pre-trained, the student's first weights are drawn
    teacher_knows: bool = True  # of own pairs: the teacher's classes are the data's, so that it can be evaluated

    @classmethod
    def from_dict(cls, values: dict) -> Group:
        """The pair of `dataclasses.asdict`, also when JSON has made lists of its tuples."""
        lists = {key: tuple(values.get(key, ())) for key in ('levels', 'offers', 'teacher_offers')}
        return cls(**{**values, **lists, 'places': tuple(map(tuple, values['places']))})

    @property
    def teacher_url(self) -> str:
        """Address of the published teacher."""
        return MODEL_ZOO + self.teacher_file

    @property
    def published_weights(self) -> str:
        """The key of this pair in a method's `PUBLISHED`."""
        return self.weights_of or self.name


GROUPS = {group.name: group for group in (
    Group('retinanet', 'RetinaNet', 'RetinaNet', 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
          'mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
          'retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
          offers=('heads', 'anchors', 'sigmoid', 'branches')),
    Group('reppoints', 'RepPoints', 'RepPoints', 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_2x_coco.py',
          'mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py',
          'reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/'
          'reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth',
          offers=('heads', 'anchors', 'sigmoid')),
    Group('faster_rcnn', 'Faster R-CNN', 'Cascade Mask R-CNN', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
          'mmdet::dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py',
          'dcn/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco/'
          'cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8.pth', one_stage=False,
          offers=('heads', 'anchors', 'sigmoid', 'proposals'), levels=(0, 1, 2, 3)),
    # Beside the paper's, for the zoo alone: LD needs sides of boxes that are distributions. ASSUMPTION gfl: trained as
    # the others are (24 epochs, one scale), with RetinaNet's weights
    Group('gfl', 'GFL', 'GFL', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py', 'mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
          'gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
          offers=('heads', 'anchors', 'sigmoid', 'distributions'), weights_of='retinanet'),
)}


def find_group(name: str) -> Group:
    """The pair of this name; SettingError lists the names otherwise."""
    if name not in GROUPS:
        raise SettingError(f'unknown group {name!r}; expected one of: {", ".join(GROUPS)}')
    return GROUPS[name]
