"""Geometry of boxes and edge distances: pure functions on tensors, torch alone.

Boxes are ``xyxy`` (left, top, right, bottom); distances are ``ltrb``: from a point outwards to the
four edges, positive where the point lies inside. Units are the caller's (pixels or strides), the
same for all arguments of one call.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# The smallest union that IoU divides by: two empty boxes have IoU 0 and not NaN.
MIN_UNION = 1e-6


def box_centres(boxes: Tensor) -> Tensor:
    """Centres of boxes.

    Args:
        boxes: ``(..., 4)`` xyxy.

    Returns:
        ``(..., 2)`` x, y.
    """
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def distances_to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes whose edges lie at the given distances from points (the GFL paper, section 3.2).

    Args:
        points: ``(..., 2)`` x, y.
        distances: ``(..., 4)`` ltrb.

    Returns:
        ``(..., 4)`` xyxy.
    """
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def boxes_to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances from points to the edges of boxes: the inverse of :func:`distances_to_boxes`.

    Args:
        points: ``(..., 2)`` x, y.
        boxes: ``(..., 4)`` xyxy.

    Returns:
        ``(..., 4)`` ltrb; negative where a point lies outside an edge.
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def box_areas(boxes: Tensor) -> Tensor:
    """Signed areas ``(...)`` of xyxy boxes ``(..., 4)``; negative where one side is inverted."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Areas ``(...)`` shared by pairs of xyxy boxes ``(..., 4)`` that broadcast together."""
    top_left = torch.maximum(boxes[..., :2], others[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], others[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of pairs of boxes that broadcast together.

    The operations and their order are those of MMDetection's ``bbox_overlaps``, so that float32
    results are bit for bit the same.

    Args:
        boxes: ``(..., 4)`` xyxy.
        others: ``(..., 4)`` xyxy.

    Returns:
        ``(...)`` in [0, 1] for boxes of non-negative sides; 0 for two empty boxes; NaN where a
        coordinate is NaN.
    """
    shared = intersections(boxes, others)
    union = box_areas(boxes) + box_areas(others) - shared
    return shared / union.clamp(min=MIN_UNION)


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of pairs of boxes (Rezatofighi et al., CVPR 2019, algorithm 1).

    IoU less the share of the smallest enclosing box that neither covers, so that boxes apart from
    each other still have a gradient.

    Args:
        boxes: ``(..., 4)`` xyxy.
        others: ``(..., 4)`` xyxy.

    Returns:
        ``(...)`` in (-1, 1] for boxes of non-negative sides.
    """
    shared = intersections(boxes, others)
    union = (box_areas(boxes) + box_areas(others) - shared).clamp(min=MIN_UNION)
    top_left = torch.minimum(boxes[..., :2], others[..., :2])
    bottom_right = torch.maximum(boxes[..., 2:], others[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    hull = (sides[..., 0] * sides[..., 1]).clamp(min=MIN_UNION)
    return shared / union - (hull - union) / hull


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``(..., 4)`` of left, top, width, height as left, top, right, bottom; any unit."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """The inverse of :func:`xywh_to_xyxy`."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)
