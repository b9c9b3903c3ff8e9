"""A data set of coloured squares and a config that trains on it in a second."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

TINY_CONFIG = """
_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(imports=['gfl_det'], allow_failed_imports=False)
data_root = 'nowhere/'
dataset = dict(
    type='gfl_det.CocoDataset', data_root=data_root, ann_file='labels.json',
    data_prefix=dict(img='img/'), metainfo=dict(classes=('blue', 'green')))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
scale = dict(type='Resize', scale=(96, 64), keep_ratio=True)
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackDetInputs', meta_keys=keys)
order = dict(type='DefaultSampler', shuffle=False)
train_dataloader = dict(
    batch_size=2, num_workers=1, sampler=order, dataset=dict(pipeline=[*load, pack], **dataset))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=order,
    dataset=dict(test_mode=True, pipeline=[load[0], scale, load[1], pack], **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type='gfl_det.CocoMetric', ann_file=data_root + 'labels.json')
test_evaluator = val_evaluator
model = dict(
    type='GFL',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0] * 3, std=[255] * 3, pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, stem_channels=8, frozen_stages=1,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=16, num_outs=3, start_level=0),
    bbox_head=dict(
        type='gfl_det.GFLHead', num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1,
        norm_cfg=dict(type='GN', num_groups=4),
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
            strides=[8, 16, 32]),
        loss_cls=dict(type='gfl_det.QualityFocalLoss'),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_dfl=dict(type='gfl_det.DistributionFocalLoss', loss_weight=0.25)),
    train_cfg=dict(
        assigner=dict(type='gfl_det.ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(
        nms_pre=100, min_bbox_size=0, score_thr=0.0, max_per_img=10,
        nms=dict(type='nms', iou_threshold=0.6)))
model['backbone']['out_indices'] = (1, 2, 3)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=4)
"""


@pytest.fixture
def pets(tmp_path) -> Path:
    """A folder with a tiny config, and eight images of 96 x 64 px with coloured boxes."""
    rng = np.random.default_rng(0)
    (tmp_path / 'pets' / 'img').mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, 9):
        pixels = rng.integers(0, 60, (64, 96, 3), dtype=np.uint8)
        for _ in range(2):
            width, height = map(int, rng.integers(16, 40, 2))
            x, y = int(rng.integers(0, 96 - width)), int(rng.integers(0, 64 - height))
            label = int(rng.integers(0, 2))
            pixels[y : y + height, x : x + width] = (40, 220, 40) if label else (220, 40, 40)
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': number,
                    'category_id': 10 + label,
                    'bbox': [x, y, width, height],
                    'area': width * height,
                    'iscrowd': 0,
                }
            )
        cv2.imwrite(str(tmp_path / 'pets' / 'img' / f'{number}.png'), pixels)
        images.append({'id': number, 'file_name': f'{number}.png', 'width': 96, 'height': 64})
    categories = [{'id': 10, 'name': 'blue'}, {'id': 11, 'name': 'green'}]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (tmp_path / 'pets' / 'labels.json').write_text(json.dumps(content))
    (tmp_path / 'tiny.py').write_text(TINY_CONFIG)
    return tmp_path
