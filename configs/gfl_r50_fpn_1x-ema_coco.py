"""GFL with ResNet-50, 12 epochs of COCO, evaluated and saved with averaged weights.

A checkpoint holds the average as its state_dict and the weights that are trained as
ema_state_dict; a run resumes from both.
"""

_base_ = './gfl_r50_fpn_1x_coco.py'

custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',  # follows closely at first, then over 1 / momentum steps
        momentum=0.0002,
        update_buffers=True,  # statistics of batch norms are averaged too
        priority=49,  # before the hooks that evaluate and save
    )
]
