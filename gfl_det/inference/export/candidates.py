"""Candidates and detections from a head's outputs, with shapes that do not depend on values.

The same selection as in :mod:`gfl_det.models.heads.postprocess`, but with fixed candidate counts
and masks in place of indexing: exported graphs may need a constant k in top-k. All images of a
batch are processed together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.ops import nms
from torch import Tensor

from gfl_det.models.assigners.batch import PriorLevels
from gfl_det.ops import distribution
from gfl_det.ops.boxes import distances_to_boxes

ABSENT = -1.0  # score of padding candidates, below every threshold


class Pool(NamedTuple):
    """Candidates of a batch, N per image; a score of ``ABSENT`` marks padding."""

    scores: Tensor  # (B, N)
    labels: Tensor  # (B, N) int64
    logits: Tensor  # (B, N, 4, num_bins) of the edges
    centres: Tensor  # (B, N, 2) px of the network's input
    strides: Tensor  # (B, N, 1) px
    class_scores: Tensor | None = None  # (B, N, C), if requested

    def take(self, index: Tensor) -> Pool:
        """Select candidates at indices ``(B, K)`` per image."""
        every = None if self.class_scores is None else take(self.class_scores, index)
        return Pool._make([*(take(field, index) for field in self[:-1]), every])

    @classmethod
    def joined(cls, pools: Sequence[Pool]) -> Pool:
        """Candidates of all levels."""
        fields = (torch.cat(each, 1) for each in zip(*(pool[:-1] for pool in pools)))
        every = [pool.class_scores for pool in pools if pool.class_scores is not None]
        return cls._make([*fields, torch.cat(every, 1) if every else None])


class ExportFrames(NamedTuple):
    """Image sizes to clip boxes to, and scales to the original image."""

    limit: Tensor | None  # (B, 1, 4) px: width, height twice of the network's input; None: no cut
    scale: Tensor  # (B, 1, 4) x, y twice, from network input to original image

    @classmethod
    def of(cls, img_shape: Tensor, scale_factor: Tensor, clip: bool) -> ExportFrames:
        """Build from mmdet's ``img_shape (B, 2)`` h, w and ``scale_factor (B, 2)`` x, y."""
        limit = img_shape.flip(1).repeat(1, 2).unsqueeze(1)
        return cls(limit if clip else None, (1 / scale_factor).repeat(1, 2).unsqueeze(1))


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gather values ``(B, N, ...)`` at indices ``(B, K)``: ``(B, K, ...)``."""
    tail = values.shape[2:]
    wide = index.reshape(*index.shape, *[1] * len(tail)).expand(-1, -1, *tail)
    return values.gather(1, wide)


def cell_centres(level: Tensor, base: Sequence[float], stride: int) -> Tensor:
    """Prior centres ``(H * W, 2)`` px for a level's maps ``(B, C, H, W)``, row by row."""
    (low_x, low_y), (high_x, high_y) = base[:2], base[2:]
    height, width = level.shape[-2:]
    x = torch.arange(width, device=level.device) * stride + (low_x + high_x) / 2
    y = torch.arange(height, device=level.device) * stride + (low_y + high_y) / 2
    rows, columns = torch.meshgrid(y, x, indexing='ij')
    return torch.stack([columns, rows], dim=-1).flatten(0, 1).float()


def all_cells(
    cls_maps: Sequence[Tensor], edge_maps: Sequence[Tensor], priors: PriorLevels
) -> tuple[Tensor, Pool]:
    """All cells of all levels, in order.

    Args:
        cls_maps: Class logits, per level ``(B, C, H, W)``.
        edge_maps: Edge logits, per level ``(B, 4 * num_bins, H, W)``.
        priors: Priors of the pyramid.

    Returns:
        Scores ``(B, P, C)``, and a pool of P candidates with scores and labels set to zero.
    """
    scores, pools = [], []
    for cls, edges, base, (stride, _) in zip(cls_maps, edge_maps, priors.base, priors.strides):
        scores.append(cls.flatten(2).transpose(1, 2).float().sigmoid())
        logits = edges.flatten(2).transpose(1, 2).unflatten(2, (4, -1))
        blank = torch.zeros_like(logits[:, :, 0, 0])
        centres = cell_centres(edges, base, stride).expand(logits.shape[0], -1, -1)
        strides = (blank + stride).unsqueeze(-1)
        pools.append(Pool(blank, blank.long(), logits, centres, strides))
    return torch.cat(scores, 1), Pool.joined(pools)


def best_pairs(
    cls_maps: Sequence[Tensor],
    edge_maps: Sequence[Tensor],
    priors: PriorLevels,
    threshold: float,
    count: int,
    with_class_scores: bool = False,
) -> Pool:
    """The ``count`` best pairs of cell and class per level.

    They lie in the ``count`` cells with the largest maxima, so only the classes of these cells are
    read. Levels with fewer cells are padded to keep all shapes constant.

    Args:
        cls_maps: Class logits, per level ``(B, C, H, W)``.
        edge_maps: Edge logits, per level ``(B, 4 * num_bins, H, W)``.
        priors: Priors of the pyramid.
        threshold: Pairs with a score not above it become padding.
        count: Number of pairs per level, at least 1.
        with_class_scores: Keep the scores of all classes in their cells.

    Returns:
        ``levels * count`` candidates.
    """
    pools = []
    for cls, edges, base, (stride, _) in zip(cls_maps, edge_maps, priors.base, priors.strides):
        logits = F.pad(cls.flatten(2), (0, count), value=float('-inf'))  # (B, C, H * W + count)
        cells = logits.amax(1).topk(count, dim=1).indices  # (B, count)
        rows = take(logits.transpose(1, 2), cells).float().sigmoid()  # (B, count, C)
        values, places = rows.flatten(1).topk(count, dim=1)
        place = places.div(rows.shape[2], rounding_mode='floor')
        cell = cells.gather(1, place).clamp(max=cls.shape[2] * cls.shape[3] - 1)
        scores = torch.where(values > threshold, values, torch.full_like(values, ABSENT))
        centres = cell_centres(edges, base, stride).expand(edges.shape[0], -1, -1)
        pools.append(
            Pool(
                scores=scores,
                labels=places - place * rows.shape[2],
                logits=take(edges.flatten(2).transpose(1, 2), cell).unflatten(2, (4, -1)),
                centres=take(centres, cell),
                strides=torch.full_like(scores, stride).unsqueeze(-1),
                class_scores=take(rows, place) if with_class_scores else None,
            )
        )
    return Pool.joined(pools)


def decode(pool: Pool, frames: ExportFrames) -> Tensor:
    """Boxes ``(B, N, 4)`` xyxy, clipped and rescaled (eqs. 3 to 5 of the GFL paper)."""
    distances = distribution.mean(pool.logits) * pool.strides
    boxes = distances_to_boxes(pool.centres, distances)
    if frames.limit is not None:
        boxes = torch.minimum(boxes.clamp(min=0), frames.limit)
    return boxes * frames.scale


def apart(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Boxes ``(B, N, 4)`` shifted so that boxes of different classes do not overlap.

    The shifts are multiples of the largest coordinate among the image's candidates, as in mmcv's
    ``batched_nms``, so that float32 rounds equally.
    """
    reach = torch.where(scores > ABSENT, boxes.amax(2), torch.full_like(scores, float('-inf')))
    step = reach.amax(1, keepdim=True).clamp(min=0) + 1
    return boxes + (labels * step).unsqueeze(-1)


@torch.library.custom_op('gfl_det::kept_by_nms', mutates_args=())
def kept_by_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int
) -> Tensor:
    """Mask of the boxes that greedy NMS keeps first, per image.

    Args:
        boxes: ``(B, N, 4)`` xyxy.
        scores: ``(B, N)``.
        iou_threshold: A box is suppressed if its IoU with a kept box is larger.
        score_threshold: Boxes with a score not above it are ignored.
        limit: Maximum number of boxes kept per image.

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
    """Replacement of the operator in ``torch.onnx.export`` (``custom_translation_table``)."""
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
