"""GFL with ResNet-18 on BCCD, blood cells on 364 photographs: the digits' recipe at full width.

A folder with train.json, val.json, test.json and images/: --cfg-options data_root=DIR
"""

_base_ = ['./gfl_r18_fpn_digits.py']

data_root = 'data/bccd/'
classes = ('RBC', 'WBC', 'Platelets')
image_scale = (320, 240)  # half the photographs' size
max_epochs = 24
batch_size = 4  # 205 photographs: twice the steps of the digits' 8 at the same cost

model = dict(
    backbone=dict(stem_channels=64, base_channels=64),
    # Some cells fill half the picture: the five levels, priors and norms of the COCO configs.
    neck=dict(in_channels=[128, 256, 512], num_outs=5, add_extra_convs='on_output', norm_cfg=None),
    bbox_head=dict(
        num_classes=len(classes),
        norm_cfg=dict(_delete_=True, type='GN', num_groups=32, requires_grad=True),
        anchor_generator=dict(strides=[8, 16, 32, 64, 128], octave_base_scale=8),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    # A mirrored cell is a cell, a mirrored digit is none.
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
        pipeline=test_pipeline,
    )
)
test_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='test.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
        pipeline=test_pipeline,
    )
)
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = dict(ann_file=data_root + 'test.json')

# Half the digits' rate: as many epochs on a fifth of the pictures need no haste.
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min_ratio=0.02,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=6)
auto_scale_lr = dict(base_batch_size=batch_size)
