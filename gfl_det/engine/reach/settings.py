"""Settings of a config that determine the positives: head, assigner and image sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gfl_det.errors import ConfigError
from gfl_det.registry import TASK_UTILS
from gfl_det.utils.config import walk

MOST = 16  # reg_max of the paper; larger distances are better served by a coarser level
# Defaults of the paper.
DEFAULTS = dict(strides=(8, 16, 32, 64, 128), anchor_scale=8.0, reg_max=MOST, topk=9, pad=32)
Scale = tuple[int, int]  # width, height in px, the order of mmdet's configs

# Substrings in names of transforms that move boxes in ways not modelled here.
MOVING = ('Affine', 'CopyPaste', 'Crop', 'Expand', 'MixUp', 'Mosaic', 'Rotate', 'Shear', 'Transl')


def head_of(model: dict[str, Any], name: str) -> dict[str, Any]:
    """Read strides, anchor scale, reg_max and padding of the first head with one prior per cell.

    Args:
        model: Model of a config.
        name: Name of the config, for the message.

    Raises:
        ConfigError: If there is no such head, or its priors are not at cell centres.
    """
    for _, node in walk(model, 'model'):
        anchors = node.get('anchor_generator')
        if not isinstance(anchors, dict) or 'strides' not in anchors:
            continue
        generator = TASK_UTILS.build(dict(anchors))
        if not hasattr(generator, 'base_anchors') or set(generator.num_base_priors) != {1}:
            break  # points, or several priors per cell
        if generator.center_offset:
            raise ConfigError(
                f'{name} shifts its priors by center_offset={generator.center_offset}, which is '
                'not supported: leave out --config and give --strides and --anchor-scale.'
            )
        sides = [float(base[0, 2] - base[0, 0]) for base in generator.base_anchors]
        strides = [int(x) for x, _ in generator.strides]
        scales = {round(side / stride, 4) for side, stride in zip(sides, strides)}
        if len(scales) != 1:
            break
        pad = (model.get('data_preprocessor') or {}).get('pad_size_divisor', 1)
        found = dict(strides=strides, anchor_scale=scales.pop(), pad=pad)
        return dict(found, reg_max=node.get('reg_max', DEFAULTS['reg_max']))
    raise ConfigError(
        f'{name} has no head with one square prior per cell: insert ours with gfl-det swap-head.'
    )


def assigner_of(model: dict[str, Any]) -> dict[str, Any]:
    """Read the ATSS settings that affect positives without ignored gt boxes.

    Raises:
        ConfigError: If the config uses another assigner.
    """
    for _, node in walk(model, 'model'):
        if str(node.get('type', '')).rpartition('.')[2] == 'ATSSAssigner':
            return {key: node[key] for key in ('topk', 'with_best_prior') if key in node}
    raise ConfigError('ATSS does not assign the priors of this config')


class Resizing(NamedTuple):
    """Resizing of images.

    Attributes:
        scales: Scales, one of which is drawn per image; the two ends of a range if ``between``;
            empty: no resizing.
        keep_ratio: Fit the image into the scale, long side along long side.
        between: Draw width and height between those of two scales.
        ratios: Range of a random factor for the scale.
    """

    scales: tuple[Scale, ...] = ()
    keep_ratio: bool = True
    between: bool = False
    ratios: tuple[float, float] = (1.0, 1.0)

    def __str__(self) -> str:
        if not self.scales:
            return 'as they are'
        ends = (' to ' if self.between else ', ').join(f'{w}x{h}' for w, h in self.scales)
        times = '' if self.ratios == (1, 1) else f' times {self.ratios[0]:g} to {self.ratios[1]:g}'
        return f'resized to {ends}{times}{", ratio kept" if self.keep_ratio else ""}'

    def sizes(self, image_wh: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Resized widths and heights ``(I, 2)`` int, px, for images of ``image_wh`` ``(I, 2)``."""
        if not self.scales or not len(image_wh):
            return np.maximum(np.round(image_wh), 1).astype(int)
        scale = self._draw(len(image_wh), random)
        if not self.keep_ratio:
            return scale
        long, short = scale.max(1), scale.min(1)
        factor = np.minimum(long / image_wh.max(1), short / image_wh.min(1))
        return np.maximum((image_wh * factor[:, None] + 0.5).astype(int), 1)  # as mmcv rounds

    def _draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        scales = np.array(self.scales)
        if self.between:
            return random.integers(scales.min(0), scales.max(0) + 1, (count, 2))
        scale = scales[random.integers(0, len(scales), count)]
        return (scale * random.uniform(*self.ratios, (count, 1))).astype(int)


def resizing_of(pipeline: list[Any]) -> tuple[Resizing, list[str]]:
    """Read the resizing of a training pipeline, and the transforms that are not modelled.

    Raises:
        ConfigError: If no transform resizes like mmdet's Resize, RandomResize or
            RandomChoiceResize.
    """
    steps = [node for _, node in walk(pipeline, '') if isinstance(node.get('type'), str)]
    moving = [step['type'] for step in steps if any(part in step['type'] for part in MOVING)]
    for step in steps:
        found = _resizing(step)
        if found is not None:
            return found, moving
    raise ConfigError(
        'The training pipeline of --config has no Resize, RandomResize or RandomChoiceResize with '
        'a scale: give --scale W H.'
    )


def _resizing(step: dict[str, Any]) -> Resizing | None:
    kind, keep = step['type'].rpartition('.')[2], bool(step.get('keep_ratio', False))
    if kind == 'Resize' and step.get('scale'):
        scale = step['scale']
        return Resizing(((scale, scale) if isinstance(scale, int) else tuple(scale),), keep)
    if kind == 'RandomChoiceResize':
        scales = step['scales'] if isinstance(step['scales'], list) else [step['scales']]
        pairs = ((each, each) if isinstance(each, int) else tuple(each) for each in scales)
        return Resizing(tuple(pairs), keep)
    if kind == 'RandomResize' and step.get('scale'):
        if isinstance(step['scale'][0], (list, tuple)):
            return Resizing(tuple(map(tuple, step['scale'])), keep, between=True)
        ratios = tuple(step.get('ratio_range') or (1.0, 1.0))
        return Resizing((tuple(step['scale']),), keep, ratios=ratios)
    return None
