"""Greedy suppression as one operator: torch runs ours, a graph gets ONNX's NonMaxSuppression.

The operator gives a mask over its inputs, a shape known beforehand, where the indices of
NonMaxSuppression are as many as boxes happen to survive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmcv.ops import nms
from torch import Tensor


@torch.library.custom_op('gfl_det::kept_by_nms', mutates_args=())
def kept_by_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int
) -> Tensor:
    """Which boxes of each image greedy suppression keeps first.

    Args:
        boxes: ``(B, N, 4)`` xyxy.
        scores: ``(B, N)``.
        iou_threshold: a box goes when its IoU with a kept one is larger.
        score_threshold: boxes with a score not above it are none.
        limit: of boxes kept of an image.

    Returns:
        ``(B, N)`` bool.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(boxes)):
        present = (scores[image] > score_threshold).nonzero().squeeze(1)
        _, chosen = nms(boxes[image, present], scores[image, present], iou_threshold)
        kept[image, present[chosen[:limit]]] = True
    return kept


@kept_by_nms.register_fake
def _(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int
) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export`` puts in the operator's place (``custom_translation_table``)."""
    from onnxscript import opset18 as op  # an extra, and slow to import

    # Untyped: onnxscript reads annotations as ONNX types.
    def translated(boxes, scores, iou_threshold, score_threshold, limit):  # type: ignore[no-untyped-def]
        chosen = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[score_threshold]),
        )  # (M, 3): image, class, box
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        marks = op.Expand(op.Constant(value_ints=[1]), op.Shape(chosen, start=0, end=1))
        blank = op.Expand(op.Constant(value_ints=[0]), op.Shape(scores))
        return op.Cast(op.ScatterND(blank, places, marks), to=9)  # bool

    return {torch.ops.gfl_det.kept_by_nms.default: translated}
