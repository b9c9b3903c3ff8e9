"""GFLv2 with ResNet-50, 24 epochs of COCO at varying image sizes."""

_base_ = './gfl_r50_fpn_ms-2x_coco.py'

# As GFL's, the short side is drawn from 480 to 800 pixels; the authors' runs went up to 960.
model = dict(bbox_head=dict(type='gfl_det.GFLv2Head'))
