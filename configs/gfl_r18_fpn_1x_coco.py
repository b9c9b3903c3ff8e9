"""GFL with ResNet-18, 12 epochs of COCO."""

_base_ = './gfl_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    # Basic blocks put out a quarter of a bottleneck's channels.
    neck=dict(in_channels=[64, 128, 256, 512]),
)
