"""GFLv2 with ResNet-101 and deformable convolution (compiled mmcv), 24 epochs of COCO."""

_base_ = './gfl_r101-dconv-c3-c5_fpn_ms-2x_coco.py'

model = dict(bbox_head=dict(type='gfl_det.GFLv2Head'))
