"""Sizes of images as a training pipeline makes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gfl_det.errors import ConfigError
from gfl_det.utils.config import walk

Scale = tuple[int, int]  # width, height in px, the order of mmdet's configs

# Parts of the names of steps that move boxes in ways that are not followed here.
MOVING = ('Affine', 'CopyPaste', 'Crop', 'Expand', 'MixUp', 'Mosaic', 'Rotate', 'Shear', 'Transl')


class Resizing(NamedTuple):
    """What size an image gets.

    Attributes:
        scales: of which one is drawn for each image; two ends if ``between``; none: as it is.
        keep_ratio: the image fits into the scale, its long side along the longer one.
        between: width and height are drawn between those of two scales.
        ratios: the scale is multiplied by a number drawn from this range.
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
        """Widths and heights ``(I, 2)`` int, px, of images of ``image_wh`` ``(I, 2)``."""
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
    """The resizing of a training pipeline, and the steps of it that are not followed.

    Raises:
        ConfigError: No step of it resizes as mmdet's Resize, RandomResize or RandomChoiceResize do.
    """
    steps = [node for _, node in walk(pipeline, '') if isinstance(node.get('type'), str)]
    moving = [step['type'] for step in steps if any(part in step['type'] for part in MOVING)]
    for step in steps:
        found = _resizing(step)
        if found is not None:
            return found, moving
    raise ConfigError(
        'The training pipeline of --config has no Resize, RandomResize or RandomChoiceResize with '
        'a scale: say --scale W H.'
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
