"""GFL with ResNet-18, 12 epochs of COCO, taught by ResNet-101 (docs/howto/distil.md)."""

_base_ = './gfl_r18_fpn_1x_coco.py'

model = dict(
    type='gfl_det.KnowledgeDistillationDetector',
    teacher_config='gfl_r101_fpn_ms-2x_coco',
    # The weights that MMDetection publishes for its config of the same name.
    teacher_ckpt=(
        'https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/'
        'gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth'
    ),
    bbox_head=dict(
        type='gfl_det.LDHead',
        # Divided as the DFL is, and not averaged over the bins as MMDetection's is.
        loss_ld=dict(type='gfl_det.DistillationLoss', loss_weight=0.25, T=10),
    ),
)
