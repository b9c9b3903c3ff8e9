"""Distillation on the digits: half the width learns classes, and a little edges, from the whole.

Train the teacher first: python tools/train.py gfl_r18_fpn_digits.
"""

_base_ = ['./gfl_r18-w16_fpn_digits.py']

model = dict(
    type='gfl_det.KnowledgeDistillationDetector',
    teacher_config='gfl_r18_fpn_digits',
    teacher_ckpt='work_dirs/gfl_r18_fpn_digits/epoch_6.pth',
    bbox_head=dict(
        type='gfl_det.LDHead',
        loss_ld=dict(type='gfl_det.DistillationLoss', loss_weight=0.05, T=10),
        loss_kd=dict(type='gfl_det.DistillationLoss', loss_weight=0.5, T=2),
    ),
)
