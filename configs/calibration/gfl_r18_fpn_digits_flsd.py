"""The digits with the Quality Focal form of FLSD-53: beta 5 below a likeness of .2, else 3."""

_base_ = ['../gfl_r18_fpn_digits.py']

model = dict(
    bbox_head=dict(
        loss_cls=dict(
            _delete_=True, type='gfl_det.FocalLoss', alpha=None, gammas=(5, 3), thresholds=(0.2,)
        )
    )
)
