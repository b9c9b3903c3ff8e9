"""The two ways to write boxes as arrays: COCO's files have sides, geometry has corners."""

from __future__ import annotations

import numpy as np


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``(..., 4)`` of left, top, width, height as left, top, right, bottom; any unit."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """The inverse of :func:`xywh_to_xyxy`."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)
