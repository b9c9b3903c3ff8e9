"""GFL with ResNet-50, 12 epochs of COCO, taught by ResNet-101."""

_base_ = './ld_r18-gflv1-r101_fpn_1x_coco.py'

model = dict(
    backbone=dict(depth=50, init_cfg=dict(checkpoint='torchvision://resnet50')),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
