"""GFLv2 with ResNet-50, 12 epochs of COCO; paper: https://arxiv.org/abs/2011.12885."""

_base_ = './gfl_r50_fpn_1x_coco.py'

model = dict(bbox_head=dict(type='gfl_det.GFLv2Head'))
