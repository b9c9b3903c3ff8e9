"""NanoDet-Plus-m at 416 px: a GFL detector of 1.2 M parameters for processors, trained on COCO.

Architecture and recipe of https://github.com/RangiLyu/nanodet; published AP .304. Its weights come
in by ``gfl-det weights convert``.
"""

_base_ = ['mmdet::_base_/datasets/coco_detection.py', 'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['gfl_det'], allow_failed_imports=False)

data_root = 'data/coco/'
image_scale = (416, 416)
max_epochs = 300
channels = 96
strides = [8, 16, 32, 64]

model = dict(
    type='GFL',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[103.53, 116.28, 123.675],  # of blue, green and red, as OpenCV reads them
        std=[57.375, 57.12, 58.395],
        bgr_to_rgb=False,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='gfl_det.ShuffleNetV2',
        width=1.0,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://shufflenetv2_x1.0'),
    ),
    neck=dict(
        type='gfl_det.GhostPAN',
        in_channels=[116, 232, 464],
        out_channels=channels,
        num_outs=len(strides),
        kernel_size=5,
    ),
    bbox_head=dict(
        type='gfl_det.NanoDetPlusHead',
        num_classes=80,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        kernel_size=5,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=5,
            scales_per_octave=1,
            strides=strides,
        ),
        loss_cls=dict(type='gfl_det.QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type='gfl_det.DistributionFocalLoss', loss_weight=0.25),
        reg_max=7,
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        # The authors prefer no prior near an object's centre; from this radius on mmdet would.
        assigner=dict(
            type='DynamicSoftLabelAssigner', topk=13, iou_weight=3.0, soft_center_radius=100.0
        ),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
    ),
)

# The authors stretch pictures to the size of the network, in training and in tests.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_scale, keep_ratio=False),
    dict(
        type='RandomAffine',
        max_rotate_degree=0,
        max_shear_degree=0,
        max_translate_ratio=0.2,
        scaling_ratio_range=(0.6, 1.4),
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=32, dataset=dict(type='gfl_det.CocoDataset', pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(type='gfl_det.CocoDataset', pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(type='gfl_det.CocoDataset', pipeline=test_pipeline))

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.05),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.0001, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min=0.00005,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True)
]
auto_scale_lr = dict(base_batch_size=96)
