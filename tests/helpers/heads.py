"""Our head and mmdet's of the same config and weights, and scenes to compare them on."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from projects.benchmark import models
from tests.helpers.oracles import STRIDES, random_gts

NUM_CLASSES = 8


def head_config(ours: bool, **changes: Any) -> ConfigDict:
    """The head of GFL R50 with fewer channels; ``train_cfg`` and ``test_cfg`` are merged."""
    small = dict(in_channels=16, stacked_convs=1, feat_channels=32)
    return models.head_config(ours, NUM_CLASSES, **(small | changes))


def head_pair(**changes: Any) -> tuple[Any, Any]:
    """Our head and mmdet's with the same weights."""
    small = dict(in_channels=16, stacked_convs=1, feat_channels=32)
    return models.build_heads('cpu', NUM_CLASSES, **(small | changes))


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


def make_gts(count: int, shape: tuple[int, int], generator: torch.Generator) -> InstanceData:
    return InstanceData(
        bboxes=random_gts(count, *shape, generator),
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
    head: Any, maps: tuple, gts: list, metas: list, ignored: list | None = None
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Losses summed over levels, and the gradients of all maps."""
    cls, edges = ([level.clone().requires_grad_() for level in kind] for kind in maps)
    losses = head.loss_by_feat(cls, edges, gts, metas, ignored)
    totals = {
        name: value if isinstance(value, torch.Tensor) else sum(value)
        for name, value in losses.items()
    }
    sum(totals.values()).backward()
    values = {name: float(value.detach()) for name, value in totals.items()}
    return values, [
        torch.zeros_like(level) if level.grad is None else level.grad for level in (*cls, *edges)
    ]


class Taught:
    """An LDHead beside its teacher's maps, with the calls of a head without one."""

    def __init__(self, head: Any, maps: tuple[list[torch.Tensor], list[torch.Tensor]]) -> None:
        self.head = head
        self.maps = maps

    def loss_by_feat(
        self, cls: Any, edges: Any, gts: Any, metas: Any, ignored: Any = None
    ) -> dict[str, torch.Tensor]:
        labels, targets = self.maps
        return self.head.loss_by_feat(cls, edges, gts, metas, targets, ignored, labels)
