"""GFL with ResNeXt-101 32x4d and deformable convolution (compiled mmcv), 24 epochs of COCO."""

_base_ = './gfl_x101-32x4d_fpn_ms-2x_coco.py'

model = dict(
    backbone=dict(
        # Every 3x3 convolution of stages c4 and c5 deforms.
        dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, True, True),
    )
)
