"""Our head and detector and mmdet's, of one config and with the same weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import nn

from ..config import get_config

STRIDES = (8, 16, 32, 64, 128)


def head_config(ours: bool, num_classes: int = 80, **changes: Any) -> ConfigDict:
    """The head of GFL R50, ours or mmdet's.

    Args:
        ours: whose types.
        num_classes: classes.
        **changes: of the config; ``train_cfg`` and ``test_cfg`` are merged key by key.
    """
    prefix = 'gfl_det.' if ours else ''
    config = ConfigDict(
        type=f'{prefix}GFLHead',
        num_classes=num_classes,
        in_channels=256,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=list(STRIDES),
        ),
        loss_cls=dict(
            type=f'{prefix}QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0
        ),
        loss_dfl=dict(type=f'{prefix}DistributionFocalLoss', loss_weight=0.25),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        reg_max=16,
        train_cfg=dict(
            assigner=dict(type=f'{prefix}ATSSAssigner', topk=9),
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
    _merge(config, changes)
    return config


def _merge(config: dict, changes: dict) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and 'type' not in value and isinstance(config.get(key), dict):
            _merge(config[key], value)
        else:
            config[key] = value


def build_heads(device: str = 'cpu', num_classes: int = 80, **changes: Any) -> tuple[Any, Any]:
    """Our head and mmdet's of one config with the same weights."""
    ours, theirs = (
        MODELS.build(head_config(own, num_classes, **copy.deepcopy(changes))).to(device)
        for own in (True, False)
    )
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def build_detectors(
    device: str = 'cpu', num_classes: int = 80, name: str = 'gfl_r50_fpn_1x_coco'
) -> tuple[BaseModel, BaseModel]:
    """Our detector of a shipped config and mmdet's, with the same random weights, in eval mode.

    Norms get statistics as after training, and the class logits are spread so that some thousand
    scores exceed the threshold.
    """
    register_all_modules()
    config = get_config(name).model
    config.backbone.init_cfg = None
    config.bbox_head.num_classes = num_classes
    theirs_config = copy.deepcopy(config)
    plain = head_config(ours=False)
    for part in ('loss_cls', 'loss_dfl'):
        theirs_config.bbox_head[part].type = plain[part].type
    theirs_config.bbox_head.type = plain.type
    theirs_config.train_cfg.assigner.type = plain.train_cfg.assigner.type
    torch.manual_seed(0)
    theirs = MODELS.build(theirs_config)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn_like(module.weight) * 0.1
            module.running_var = torch.rand_like(module.weight) * 0.4 + 0.8
            nn.init.uniform_(module.weight, 0.3, 0.6)  # larger, and activations explode with depth
    nn.init.constant_(theirs.bbox_head.gfl_cls.bias, -5.0)
    nn.init.normal_(theirs.bbox_head.gfl_cls.weight, 0, 0.03)
    ours = MODELS.build(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.to(device).eval(), theirs.to(device).eval()
