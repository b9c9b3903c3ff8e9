"""GFL with ResNet-34, 12 epochs of COCO."""

_base_ = './gfl_r18_fpn_1x_coco.py'

model = dict(backbone=dict(depth=34, init_cfg=dict(checkpoint='torchvision://resnet34')))
