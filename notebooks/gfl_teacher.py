"""The same at twice the width, for twice as long: its teacher."""
_base_ = './gfl_student.py'

model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=96),
    bbox_head=dict(in_channels=96, feat_channels=96))
train_cfg = dict(max_epochs=72)
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
                   dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=72, T_max=72, eta_min=0)]
