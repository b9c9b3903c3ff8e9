"""Geometry of boxes and edge distances as pure functions on tensors, torch only.

Boxes are ``xyxy`` (left, top, right, bottom); distances are ``ltrb``: from a point outwards to the
four edges, positive where the point lies inside. Units are the caller's (pixels or strides), the
same for all arguments of a call.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Lower bound of the union that IoU divides by: two empty boxes have IoU 0 instead of NaN.
MIN_UNION = 1e-6


def box_centres(boxes: Tensor) -> Tensor:
    """Centres of boxes.

    Args:
        boxes: ``(..., 4)`` xyxy.

    Returns:
        ``(..., 2)`` x, y.

    Example:
        >>> box_centres(torch.tensor([[0.0, 0.0, 4.0, 2.0]]))
        tensor([[2., 1.]])
    """
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def distances_to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes whose edges lie at the given distances from points (GFL paper, section 3.2).

    Args:
        points: ``(..., 2)`` x, y.
        distances: ``(..., 4)`` ltrb.

    Returns:
        ``(..., 4)`` xyxy.

    Example:
        >>> points = torch.tensor([[10.0, 10.0]])
        >>> distances_to_boxes(points, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[ 9.,  8., 13., 14.]])
    """
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def boxes_to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances from points to the edges of boxes, the inverse of :func:`distances_to_boxes`.

    Args:
        points: ``(..., 2)`` x, y.
        boxes: ``(..., 4)`` xyxy.

    Returns:
        ``(..., 4)`` ltrb; negative where a point lies outside an edge.

    Example:
        >>> points = torch.tensor([[10.0, 10.0]])
        >>> boxes_to_distances(points, torch.tensor([[9.0, 8.0, 13.0, 14.0]]))
        tensor([[1., 2., 3., 4.]])
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def box_areas(boxes: Tensor) -> Tensor:
    """Signed areas ``(...)`` of xyxy boxes ``(..., 4)``; negative if one side is inverted.

    Example:
        >>> box_areas(torch.tensor([[0.0, 0.0, 4.0, 2.0]]))
        tensor([8.])
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Areas ``(...)`` shared by pairs of xyxy boxes ``(..., 4)`` that broadcast together.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> intersections(box, box + 2)
        tensor([4.])
    """
    top_left = torch.maximum(boxes[..., :2], others[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], others[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of pairs of boxes that broadcast together.

    The operations and their order match MMDetection's ``bbox_overlaps``, so float32 results are
    bitwise identical.

    Args:
        boxes: ``(..., 4)`` xyxy.
        others: ``(..., 4)`` xyxy.

    Returns:
        ``(...)`` in [0, 1] for boxes with non-negative sides; 0 for two empty boxes; NaN where a
        coordinate is NaN.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> iou(box, torch.tensor([[0.0, 0.0, 2.0, 4.0]]))
        tensor([0.5000])
    """
    shared = intersections(boxes, others)
    union = box_areas(boxes) + box_areas(others) - shared
    return shared / union.clamp(min=MIN_UNION)


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of pairs of boxes (Rezatofighi et al., CVPR 2019, algorithm 1).

    IoU minus the fraction of the smallest enclosing box that neither covers, so disjoint boxes
    still have a gradient.

    Args:
        boxes: ``(..., 4)`` xyxy.
        others: ``(..., 4)`` xyxy.

    Returns:
        ``(...)`` in (-1, 1] for boxes with non-negative sides.

    Example:
        >>> left, right = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]])
        >>> giou(left, right)  # two of four columns lie between them
        tensor([-0.5000])
    """
    shared = intersections(boxes, others)
    union = (box_areas(boxes) + box_areas(others) - shared).clamp(min=MIN_UNION)
    top_left = torch.minimum(boxes[..., :2], others[..., :2])
    bottom_right = torch.maximum(boxes[..., 2:], others[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    hull = (sides[..., 0] * sides[..., 1]).clamp(min=MIN_UNION)
    return shared / union - (hull - union) / hull


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes ``(..., 4)`` from left, top, width, height to left, top, right, bottom.

    Example:
        >>> xywh_to_xyxy(np.array([[10.0, 20.0, 5.0, 8.0]]))
        array([[10., 20., 15., 28.]])
    """
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes back, the inverse of :func:`xywh_to_xyxy`.

    Example:
        >>> xyxy_to_xywh(np.array([[10.0, 20.0, 15.0, 28.0]]))
        array([[10., 20.,  5.,  8.]])
    """
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)
