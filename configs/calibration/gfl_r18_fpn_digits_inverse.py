"""The digits with inverse focal loss on positives, Quality Focal Loss on negatives."""

_base_ = ['../gfl_r18_fpn_digits.py']

model = dict(
    bbox_head=dict(loss_cls=dict(_delete_=True, type='gfl_det.InverseFocalLoss', gamma=1.5))
)
