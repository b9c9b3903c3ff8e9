"""The digits with Quality Focal Loss whose positive targets are smoothed by .05."""

_base_ = ['../gfl_r18_fpn_digits.py']

model = dict(
    bbox_head=dict(loss_cls=dict(_delete_=True, type='gfl_det.LabelSmoothingLoss', smoothing=0.05))
)
