"""GFLv2 with ResNeXt-101 32x4d, 24 epochs of COCO at varying image sizes."""

_base_ = './gfl_x101-32x4d_fpn_ms-2x_coco.py'

model = dict(bbox_head=dict(type='gfl_det.GFLv2Head'))
