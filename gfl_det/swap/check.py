"""Check of a config with a new head: one training step and one prediction on noise."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from gfl_det.errors import ConfigError
from gfl_det.registry import MODELS
from gfl_det.utils.config import walk

# Boxes of the two images as fractions of their side: large, small and flat.
GTS = (((0.1, 0.1, 0.9, 0.8), (0.2, 0.3, 0.45, 0.5)), ((0.05, 0.6, 0.95, 0.75),))


class Outcome(NamedTuple):
    """Result of checking a config."""

    losses: dict[str, float]
    detections: int  # of both images, at score threshold 0
    parameters: int  # of the model


def check_config(cfg: Config, side: int = 128, device: str = 'cpu') -> Outcome:
    """Build a model with random weights, train it for one step, and predict.

    Args:
        cfg: Complete config.
        side: Side of the square images, px.
        device: Device to run on.

    Returns:
        Losses, number of detections and number of parameters.

    Raises:
        ConfigError: If a loss or a gradient is not finite, or a trained parameter gets no gradient.
        MissingOpError: If a part needs compiled mmcv.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        model: Any = build_untrained(cfg)
        _initialise(model)
    if MessageHub.get_current_instance().get_info('iter') is None:
        MessageHub.get_current_instance().update_info('iter', 0)  # read by some augmentations
    model.to(device)
    data = model.data_preprocessor(_batch(cfg, side), training=True)
    total, losses = model.train().parse_losses(model(**data, mode='loss'))
    values = {name: float(value.detach()) for name, value in losses.items()}
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise ConfigError(f'The first training step gives a NaN or infinite {wrong[0]}.')
    total.backward()
    _check_gradients(model)
    with torch.no_grad():
        results = model.eval()(**data, mode='predict')
    count = sum(len(each.pred_instances) for each in results)
    return Outcome(values, count, sum(each.numel() for each in model.parameters()))


def build_untrained(cfg: Config) -> nn.Module:
    """Build a model with initial weights, without downloading any."""
    config = without_files(cfg.model)
    for _, node in walk(config.get('test_cfg') or {}, 'test_cfg'):
        if 'score_thr' in node:
            node['score_thr'] = 0.0  # an untrained head exceeds no other threshold
    return MODELS.build(config)


def _initialise(model: Any) -> None:
    """Initialise the weights without mmengine's log of each of them."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def without_files(model: dict[str, Any]) -> dict[str, Any]:
    """Copy of a model's config without pretrained weights and image resizing."""
    config = copy.deepcopy(model)
    for _, node in walk(config, 'model'):
        inits = node.get('init_cfg')
        inits = inits if isinstance(inits, (list, tuple)) else [inits]
        # Some backbones (PVT) load a checkpoint themselves from an init_cfg without a type.
        if any(isinstance(each, dict) and 'checkpoint' in each for each in inits):
            node['init_cfg'] = None
    (config.get('data_preprocessor') or {}).pop('batch_augments', None)
    return config


def _batch(cfg: Config, side: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for boxes in GTS:
        gts = InstanceData(
            bboxes=torch.tensor(boxes) * side,
            labels=torch.zeros(len(boxes), dtype=torch.long),
            masks=BitmapMasks(np.ones((len(boxes), side, side), np.uint8), side, side),
        )
        none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        sample = DetDataSample(gt_instances=gts, ignored_instances=none)
        shape = (side, side)
        sample.set_metainfo(
            dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), flip=False)
        )
        samples.append(sample)
    images = [
        torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator) for _ in GTS
    ]
    return dict(inputs=images, data_samples=samples)


def _check_gradients(model: nn.Module) -> None:
    for part in ('bbox_head', 'rpn_head'):
        for name, value in getattr(model, part, nn.Identity()).named_parameters():
            if not value.requires_grad:
                continue
            if value.grad is None:
                raise ConfigError(f'{part}.{name} gets no gradient in the first training step.')
            if not value.grad.isfinite().all():
                raise ConfigError(f'The gradient of {part}.{name} is NaN or infinite.')
