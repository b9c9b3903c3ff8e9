"""Our head and mmdet's of the same config and weights, and scenes to compare them on."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from oracles import STRIDES, random_truths

import gfl_det  # noqa: F401  (registers)

NUM_CLASSES = 8


def head_config(ours: bool, **changes: Any) -> ConfigDict:
    """The head of GFL R50 with fewer channels; ``train_cfg`` and ``test_cfg`` are merged."""
    prefix = 'gfl_det.' if ours else ''
    config = ConfigDict(
        type=f'{prefix}GFLHead',
        num_classes=NUM_CLASSES,
        in_channels=16,
        stacked_convs=1,
        feat_channels=32,
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


def head_pair(**changes: Any) -> tuple[Any, Any]:
    """Our head and mmdet's with the same weights."""
    ours = MODELS.build(head_config(True, **copy.deepcopy(changes)))
    theirs = MODELS.build(head_config(False, **copy.deepcopy(changes)))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def feature_sizes(height: int, width: int) -> list[tuple[int, int]]:
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]


def make_maps(
    batch: int,
    size: tuple[int, int],
    generator: torch.Generator,
    bias: float = -3.0,
    num_bins: int = 17,
    num_classes: int = NUM_CLASSES,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Random logits of scores and edges as a head would give them."""
    sizes = feature_sizes(*size)
    cls = [torch.randn(batch, num_classes, *each, generator=generator) + bias for each in sizes]
    edges = [torch.randn(batch, 4 * num_bins, *each, generator=generator) for each in sizes]
    return cls, edges


def make_truths(count: int, shape: tuple[int, int], generator: torch.Generator) -> InstanceData:
    return InstanceData(
        bboxes=random_truths(count, *shape, generator),
        labels=torch.randint(0, NUM_CLASSES, (count,), generator=generator),
    )


def make_meta(
    shape: tuple[int, int], pad_shape: tuple[int, int] | None = None, scale: float = 1.0
) -> dict:
    return dict(
        img_shape=shape,
        pad_shape=pad_shape or shape,
        ori_shape=shape,
        scale_factor=(scale, scale * 1.01),
    )


def losses_and_gradients(
    head: Any, maps: tuple, truths: list, metas: list, ignored: list | None = None
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Losses summed over levels, and the gradients of all maps."""
    cls, edges = ([level.clone().requires_grad_() for level in kind] for kind in maps)
    losses = head.loss_by_feat(cls, edges, truths, metas, ignored)
    totals = {
        name: value if isinstance(value, torch.Tensor) else sum(value)
        for name, value in losses.items()
    }
    sum(totals.values()).backward()
    values = {name: float(value.detach()) for name, value in totals.items()}
    return values, [
        torch.zeros_like(level) if level.grad is None else level.grad for level in (*cls, *edges)
    ]
