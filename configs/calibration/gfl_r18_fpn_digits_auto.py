"""The digits with Quality Focal Loss whose beta follows from p0 = .25: 3.07."""

_base_ = ['../gfl_r18_fpn_digits.py']

model = dict(
    bbox_head=dict(loss_cls=dict(_delete_=True, type='gfl_det.FocalLoss', alpha=None, p0=0.25))
)
