"""GFL with ResNeXt-101 32x4d, 24 epochs of COCO at varying image sizes."""

_base_ = './gfl_r101_fpn_ms-2x_coco.py'

model = dict(
    backbone=dict(
        # 32 groups of 4 channels in each 3x3 convolution.
        type='ResNeXt',
        groups=32,
        base_width=4,
        init_cfg=dict(checkpoint='open-mmlab://resnext101_32x4d'),
    )
)
