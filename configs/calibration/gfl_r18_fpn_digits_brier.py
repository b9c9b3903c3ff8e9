"""The digits with the Brier score of the qualities in place of Quality Focal Loss."""

_base_ = ['../gfl_r18_fpn_digits.py']

model = dict(bbox_head=dict(loss_cls=dict(_delete_=True, type='gfl_det.BrierLoss')))
