"""The digits with Quality Focal Loss and the kernel calibration error on top."""

_base_ = ['../gfl_r18_fpn_digits.py']

model = dict(bbox_head=dict(loss_cls=dict(_delete_=True, type='gfl_det.MMCELoss', mmce_weight=2.0)))
