"""The digits detector at half the width: the student of the config for distillation, alone."""

_base_ = ['./gfl_r18_fpn_digits.py']

model = dict(
    backbone=dict(stem_channels=16, base_channels=16),
    neck=dict(in_channels=[32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
