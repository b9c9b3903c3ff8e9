"""Our head and detector and mmdet's, of one config and with the same weights."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import nn

from gfl_det.utils.config import get_config

CONFIG = 'gfl_r50_fpn_1x_coco'
STRIDES = (8, 16, 32, 64, 128)  # of that config


@cache
def _model_config(name: str) -> ConfigDict:
    return get_config(name).model


def model_config(ours: bool, name: str = CONFIG) -> ConfigDict:
    """The model of a shipped config, with our head or with mmdet's of the same settings."""
    config = copy.deepcopy(_model_config(name))
    if not ours:
        head = config.bbox_head
        for part in (head, head.loss_cls, head.loss_dfl, config.train_cfg.assigner):
            part.type = part.type.removeprefix('gfl_det.')
    return config


def head_config(ours: bool, num_classes: int = 80, **changes: Any) -> ConfigDict:
    """The head of GFL R50, ours or mmdet's.

    Args:
        ours: whose types.
        num_classes: classes.
        **changes: of the config; ``train_cfg`` and ``test_cfg`` are merged key by key.
    """
    model = model_config(ours)
    config = ConfigDict(model.bbox_head, train_cfg=model.train_cfg, test_cfg=model.test_cfg)
    config.num_classes = num_classes
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
    device: str = 'cpu', num_classes: int = 80, name: str = CONFIG
) -> tuple[BaseModel, BaseModel]:
    """Our detector of a shipped config and mmdet's, with the same random weights, in eval mode.

    Norms get statistics as after training, and the class logits are spread so that some thousand
    scores exceed the threshold.
    """
    register_all_modules()
    configs = [model_config(ours, name) for ours in (True, False)]
    for config in configs:
        config.backbone.init_cfg = None
        config.bbox_head.num_classes = num_classes
    torch.manual_seed(0)
    theirs = MODELS.build(configs[1])
    spread_weights(theirs)
    ours = MODELS.build(configs[0])
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.to(device).eval(), theirs.to(device).eval()


def outputs_of(head: nn.Module, name: str) -> list[nn.Conv2d]:
    """The convolutions of an output: one, or of NanoDet-Plus's head one per level."""
    found = [each for key, each in head.named_modules() if key.partition('.')[0] == name]
    return [each for each in found if isinstance(each, nn.Conv2d)]


def spread_weights(detector: BaseModel) -> None:
    """Give random weights some life, in place: statistics of norms and thousands of scores.

    Args:
        detector: with ``bbox_head.gfl_cls``, just built.
    """
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn_like(module.weight) * 0.1
            module.running_var = torch.rand_like(module.weight) * 0.4 + 0.8
            nn.init.uniform_(module.weight, 0.3, 0.6)  # larger, and activations explode with depth
    for layer in outputs_of(detector.bbox_head, 'gfl_cls'):
        nn.init.constant_(layer.bias, -5.0)
        nn.init.normal_(layer.weight, 0, 0.03)
