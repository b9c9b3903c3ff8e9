"""Feature pyramid in front of a head, measured by running backbone and neck once."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmdet.models import dense_heads, detectors
from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from gfl_det.errors import ConfigError, GFLDetError, NotSwappableError
from gfl_det.models.detectors import KnowledgeDistillationDetector
from gfl_det.registry import MODELS
from gfl_det.utils.config import type_name

# Sides of test images, px: unpadded convolutions (SSD) need more than the smallest.
SIDES = (128, 320, 512)
MEASURED_SIDE = 256  # px: two cells at stride 128, the coarsest in the zoo
# Keys of strides in heads: in the config of their priors, or an argument of the head.
PRIOR_KEYS = ('anchor_generator', 'prior_generator', 'square_anchor_generator')
STRIDE_KEYS = ('strides', 'point_strides', 'featmap_strides')


class Pyramid(NamedTuple):
    """Channels and strides of a head's inputs, and the image size of the measurement."""

    channels: list[int]  # per level
    strides: list[int]  # per level, px
    declared: bool  # strides come from the old head's config
    side: int  # px of a square image with at least one cell per level


def read_pyramid(model: dict[str, Any], head: dict[str, Any]) -> Pyramid:
    """Measure the inputs of a head by running backbone and neck on a small image.

    Args:
        model: Config of the detector.
        head: Config of the old head, whose strides are used if they fit the features.

    Returns:
        The pyramid.

    Raises:
        ConfigError: If the backbone or the neck cannot be built or run.
    """
    declared = declared_strides(head)
    error: Exception | None = None
    with DefaultScope.overwrite_default_scope('mmdet'), torch.no_grad():
        parts = _build(model)
        for side in SIDES:
            try:
                features = _run(parts, side, input_channels(model))
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
            if side == SIDES[-1]:  # a single cell says little about a stride
                strides = [_nearest_power(side / each) for each in cells]
                return Pyramid(channels, strides, False, side)
    raise ConfigError(
        f'Backbone and neck do not run on images of {SIDES[-1]} pixels, so their levels are '
        f'unknown: {error}.'
    )


def measure_strides(model: dict[str, Any]) -> list[int]:
    """Run backbone and neck on a small image and return the strides of their levels, px.

    Raises:
        ConfigError: If the backbone or the neck cannot be built or run.
    """
    with DefaultScope.overwrite_default_scope('mmdet'), torch.no_grad():
        parts = _build(model)
        try:
            features = _run(parts, MEASURED_SIDE, input_channels(model))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(f'Backbone and neck do not run: {error}.') from error
    return [_nearest_power(MEASURED_SIDE / max(1, *each.shape[-2:])) for each in features]


def input_channels(model: dict[str, Any]) -> int:
    """Number of image channels: the backbone's setting, or 3."""
    return int((model.get('backbone') or {}).get('in_channels', 3))


def declared_strides(head: dict[str, Any]) -> list[int] | None:
    """Configured strides of a head, px; None if it uses defaults."""
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
        except Exception as error:  # the part's constructor can raise anything
            raise ConfigError(
                f'model.{key} cannot be built: {type(error).__name__}: {error}.'
            ) from error
        parts.append(part)
    return nn.Sequential(*parts).eval()


def _run(parts: nn.Sequential, side: int, channels: int) -> list[Tensor]:
    with _deformation_left_out(parts):
        features = parts(torch.zeros(1, channels, side, side))
    return [features] if isinstance(features, Tensor) else list(features)


@contextmanager
def _deformation_left_out(parts: nn.Module) -> Iterator[None]:
    """Run deformable convolutions as plain ones, which need no compiled operators."""
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
    """Whether strides match the levels' cells, allowing for a few lost to unpadded convolutions."""
    return len(strides) == len(cells) and all(
        side / (2 * count) <= stride and (count == 1 or stride <= 2 * side / count)
        for stride, count in zip(strides, cells)
    )


def _nearest_power(stride: float) -> int:
    return 2 ** round(math.log2(stride))


Target = Literal['bbox_head', 'rpn_head']

COMPARING_PAIR = (
    "its losses compare the heads of teacher and student: swap the head of the student's own config"
)
WHOLE_DETECTORS = (
    (
        detectors.DetectionTransformer,
        'it predicts a set of boxes from learned queries, without a feature pyramid that a dense '
        'head could read',
    ),
    (
        detectors.LAD,
        "its assignment comes from a teacher: swap the head of the student's own config",
    ),
    (detectors.KnowledgeDistillationSingleStageDetector, COMPARING_PAIR),
    (KnowledgeDistillationDetector, COMPARING_PAIR),
    (
        SingleStageInstanceSegmentor,
        'its mask head reads what its box head predicts, and a GFL head only predicts boxes',
    ),
    (
        detectors.GLIP,
        'its scores compare regions with words of a caption, so it has no classes of its own',
    ),
)
DENSE_HEADS = (
    (
        dense_heads.CornerHead,
        'it finds boxes as pairs of corners in single-scale heat maps, not in a pyramid',
    ),
    (
        dense_heads.CenterNetHead,
        'it finds boxes as peaks of a single-scale heat map, not in a pyramid',
    ),
    (
        dense_heads.RTMDetInsHead,
        'it predicts masks together with boxes, and a GFL head only predicts boxes',
    ),
    (
        dense_heads.ATSSVLFusionHead,
        'its scores compare regions with words of a caption, so it has no classes of its own',
    ),
    (
        dense_heads.EmbeddingRPNHead,
        'its proposals are learned parameters, not predicted from the image',
    ),
)


def check_target(model: dict[str, Any], target: Target | None) -> Target:
    """Find the head to replace.

    Args:
        model: Config of the detector.
        target: Key of the head; None: ``bbox_head``, or ``rpn_head`` of a two-stage detector.

    Returns:
        Key of the head in the model.

    Raises:
        NotSwappableError: If the detector cannot take another head; the message says why.
        ConfigError: If the detector has no such head.
    """
    name = type_name(model.get('type'))
    _refuse(name, model, WHOLE_DETECTORS)
    if 'detector' in model:
        raise NotSwappableError(
            f'{name} wraps another detector, so its losses and results are not those of '
            "a head: swap the head of model.detector's own config."
        )
    found: Target = target or ('bbox_head' if model.get('bbox_head') else 'rpn_head')
    part = model.get(found)
    if not part:
        raise ConfigError(
            f'{name} has no {found} to swap: choose a detector with dense predictions, or, of two '
            'stages, target="rpn_head".'
        )
    if not isinstance(part, dict):
        raise NotSwappableError(
            f'{name} has a list of heads in {found} that predict together: there is no single '
            'one to swap.'
        )
    if model.get('mask_head'):
        raise NotSwappableError(
            f'{name} cannot take another head: its mask head reads what its box head predicts, and '
            'a GFL head only predicts boxes.'
        )
    _refuse(name, part, DENSE_HEADS)
    return found


def _refuse(detector: str, part: dict[str, Any], rules: tuple[tuple[type, str], ...]) -> None:
    kind = part.get('type')
    resolved = MODELS.get(kind) if isinstance(kind, str) else kind
    if resolved is None:
        raise ConfigError(
            f'{type_name(kind)} is not registered: add the module that defines it to '
            'custom_imports of the config.'
        )
    for known, reason in rules:
        if isinstance(resolved, type) and issubclass(resolved, known):
            raise NotSwappableError(f'{detector} cannot take another head: {reason}.')
