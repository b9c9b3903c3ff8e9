"""NanoDet-Plus-m of one and a half times the width at 416 px; published AP .341."""

_base_ = ['./nanodet-plus-m_416_coco.py']

channels = 128

model = dict(
    backbone=dict(width=1.5, init_cfg=None),  # the authors begin with random weights too
    neck=dict(in_channels=[176, 352, 704], out_channels=channels),
    bbox_head=dict(in_channels=channels, feat_channels=channels),
)
