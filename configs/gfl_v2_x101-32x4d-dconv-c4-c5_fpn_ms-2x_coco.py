"""GFLv2 with ResNeXt-101 32x4d and deformable convolution (compiled mmcv), 24 epochs of COCO."""

_base_ = './gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco.py'

model = dict(bbox_head=dict(type='gfl_det.GFLv2Head'))
