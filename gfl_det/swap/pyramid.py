"""The feature pyramid in front of a head: found by running backbone and neck once."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from gfl_det.errors import ConfigError, GFLDetError
from gfl_det.registry import MODELS

# Sides of the tried image, px: convolutions without padding (SSD) need more than the smallest.
SIDES = (128, 320, 512)
# Where heads keep their strides: in the config of their priors, or as an argument of their own.
PRIOR_KEYS = ('anchor_generator', 'prior_generator', 'square_anchor_generator')
STRIDE_KEYS = ('strides', 'point_strides', 'featmap_strides')


class Pyramid(NamedTuple):
    """What a head is given, and on what image that was tried."""

    channels: list[int]  # per level
    strides: list[int]  # per level, px
    declared: bool  # the strides are those the old head was configured with
    side: int  # of a square image that gives every level at least one cell, px


def read_pyramid(model: dict[str, Any], head: dict[str, Any]) -> Pyramid:
    """Run backbone and neck on a small image and read off what a head would be given.

    Args:
        model: config of the detector.
        head: config of its present head, whose strides hold where they fit the features.

    Returns:
        The pyramid.

    Raises:
        ConfigError: backbone or neck cannot be built or run.
    """
    declared = declared_strides(head)
    error: Exception | None = None
    with DefaultScope.overwrite_default_scope('mmdet'), torch.no_grad():
        parts = _build(model)
        for side in SIDES:
            try:
                features = _run(parts, side)
            except (RuntimeError, ValueError, AssertionError) as reason:
                if isinstance(reason, GFLDetError):
                    raise
                error = reason
                continue
            channels = [each.shape[1] for each in features]
            cells = [max(each.shape[-2:]) for each in features]
            if min(cells) == 0:
                continue
            if declared and _fit(declared, cells, side):
                return Pyramid(channels, declared, True, side)
            if side == SIDES[-1]:  # one cell tells least about a stride
                strides = [_nearest_power(side / each) for each in cells]
                return Pyramid(channels, strides, False, side)
    raise ConfigError(
        f'Backbone and neck do not run on images of {SIDES[-1]} pixels, so their levels are '
        f'unknown: {error}.'
    )


def declared_strides(head: dict[str, Any]) -> list[int] | None:
    """The strides that a head is configured with, px; None where it relies on defaults."""
    for part in (*(head.get(key) for key in PRIOR_KEYS), head):
        for key in STRIDE_KEYS:
            strides = part.get(key) if isinstance(part, dict) else None
            if strides:
                pairs = [each if isinstance(each, (list, tuple)) else (each,) for each in strides]
                return [int(max(each)) for each in pairs]
    return None


def _build(model: dict[str, Any]) -> nn.Sequential:
    parts = []
    for key in ('backbone', 'neck'):
        config = model.get(key)
        if not config:
            continue
        try:
            part = MODELS.build(copy.deepcopy(config))
        except GFLDetError:
            raise
        except Exception as error:  # of whatever the part's constructor does
            raise ConfigError(
                f'model.{key} cannot be built: {type(error).__name__}: {error}.'
            ) from error
        parts.append(part)
    return nn.Sequential(*parts).eval()


def _run(parts: nn.Sequential, side: int) -> list[Tensor]:
    with _deformation_left_out(parts):
        features = parts(torch.zeros(1, 3, side, side))
    return [features] if isinstance(features, Tensor) else list(features)


@contextmanager
def _deformation_left_out(parts: nn.Module) -> Iterator[None]:
    """Run deformable convolutions as plain ones: the same shapes, and no compiled operator."""
    deformable = [
        each for each in parts.modules() if isinstance(each, (DeformConv2d, ModulatedDeformConv2d))
    ]
    for each in deformable:
        each.forward = functools.partial(_plain_convolution, each)
    try:
        yield
    finally:
        for each in deformable:
            del each.forward


def _plain_convolution(module: Any, x: Tensor, *_: Tensor) -> Tensor:
    bias = getattr(module, 'bias', None)
    return F.conv2d(
        x, module.weight, bias, module.stride, module.padding, module.dilation, module.groups
    )


def _fit(strides: Sequence[int], cells: Sequence[int], side: int) -> bool:
    """Whether levels have about the cells of their strides; unpadded convolutions lose a few."""
    return len(strides) == len(cells) and all(
        side / (2 * count) <= stride and (count == 1 or stride <= 2 * side / count)
        for stride, count in zip(strides, cells)
    )


def _nearest_power(stride: float) -> int:
    return 2 ** round(math.log2(stride))
