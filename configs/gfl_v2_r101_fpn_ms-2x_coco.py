"""GFLv2 with ResNet-101, 24 epochs of COCO at varying image sizes."""

_base_ = './gfl_r101_fpn_ms-2x_coco.py'

model = dict(bbox_head=dict(type='gfl_det.GFLv2Head'))
