"""Losses of a head, from an assignment and the head's maps.

The head (:mod:`.gfl_head`) handles configs and modules; this module only tensors.
:class:`..assigners.batch.BatchAssignment` says which prior is assigned to which gt, and
:class:`PositiveTerms` holds the inputs of the positives' losses. Both are lists of M slots with a
mask of the valid ones. Box geometry is in strides of the positive's level, the unit of the bins. In
order: the terms, then the loss of all class logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.utils import reduce_mean
from torch import Tensor

from gfl_det.models.assigners.batch import BatchAssignment
from gfl_det.models.assigners.positives import Positives, take_cells
from gfl_det.models.losses.fused import ElementLoss, TargetEntries, focal_sum, mean_and_focal_loss
from gfl_det.models.losses.score_losses import ScoreLoss, VarifocalLoss
from gfl_det.ops import distribution
from gfl_det.ops.boxes import boxes_to_distances, distances_to_boxes, iou
from gfl_det.ops.layout import with_values

# mmdet's coder clamps targets 0.1 below the last bin, which has no right neighbour.
TARGET_MARGIN = 0.1


class PositiveTerms(NamedTuple):
    """Inputs of the losses of a batch's positives; invalid slots hold harmless values."""

    labels: Tensor  # (M,) int64, in range
    decoded: Tensor  # (M, 4) predicted boxes, strides
    targets: Tensor  # (M, 4) gt boxes, strides
    quality: Tensor  # (M,) detached target of the class score: IoU, or the assigner's soft label
    edge_logits: Tensor  # (M, 4, num_bins)
    edge_loss: Tensor  # (M,) DFL without its weight, mean over the four edges
    weight: Tensor  # (M,) weight of the box losses, 0 if invalid
    weight_sum: Tensor  # scalar, divisor of the box losses
    num_positives: Tensor  # scalar, divisor of the class loss


def positive_terms(
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    assigned: BatchAssignment,
    reg_max: int,
) -> PositiveTerms:
    """Decode the positives' boxes, and compare boxes and edge distributions with the gts.

    Args:
        cls_scores: Class logits, per level ``(B, C, H, W)``.
        bbox_preds: Edge logits, per level ``(B, 4 * num_bins, H, W)``.
        assigned: Assignment whose positives have valid labels.
        reg_max: Last bin.

    Returns:
        The terms; gradients flow through ``decoded``, ``edge_logits`` and ``edge_loss``.
    """
    positives = assigned.positives
    points, targets = gts_in_strides(assigned)
    distances = boxes_to_distances(points, targets).clamp(min=0, max=reg_max - TARGET_MARGIN)
    logits = take_cells(bbox_preds, positives).unflatten(1, (4, -1))
    predicted, edge_loss = mean_and_focal_loss(logits, distances)
    decoded = distances_to_boxes(points, predicted)
    labels = assigned.labels[positives.gt]
    weight = peak_scores(cls_scores, positives) * positives.valid
    num_positives, weight_sum = normalisers(positives, weight, len(assigned.grid.rectangles))
    return PositiveTerms(
        labels=labels.where(positives.valid, labels.new_zeros(())),
        decoded=decoded,
        targets=targets,
        quality=iou(decoded.detach(), targets) if assigned.quality is None else assigned.quality,
        edge_logits=logits,
        edge_loss=edge_loss.mean(1),
        weight=weight,
        weight_sum=weight_sum,
        num_positives=num_positives,
    )


def gts_in_strides(assigned: BatchAssignment) -> tuple[Tensor, Tensor]:
    """Centres ``(M, 2)`` of the positives' priors and boxes ``(M, 4)`` of their gts, in strides."""
    positives = assigned.positives
    stride = torch.tensor([float(x) for x, _ in assigned.grid.priors.strides])
    step = stride.to(assigned.grid.device, non_blocking=True)[positives.level][:, None]
    points = positives.centre / step
    boxes = assigned.boxes[positives.gt] / step
    # An invalid slot points to some gt; if that gt were NaN, NaN * 0 would still be NaN.
    unit = torch.cat([points - 1, points + 1], dim=-1)
    return points, boxes.where(positives.valid[:, None], unit)


def peak_scores(maps: Sequence[Tensor], positives: Positives) -> Tensor:
    """Largest class score at each positive, detached, as the weight of its box losses.

    Args:
        maps: Class logits, per level ``(B, C, H, W)``.
        positives: M slots.

    Returns:
        ``(M,)`` in [0, 1].
    """
    detached = [level.detach() for level in maps]
    candidates = sum(len(level.slot) for level in positives.by_level)
    # Reading all classes at an eighth of the cells costs about as much as a pass over all logits.
    if 8 * candidates < sum(level[:, 0].numel() for level in maps):
        peaks = take_cells(detached, positives).amax(1)
    else:
        tops = [level.amax(1, keepdim=True) for level in detached]
        peaks = take_cells(tops, positives).squeeze(1)
    return distribution.full_precision(peaks).sigmoid()


def normalisers(positives: Positives, weight: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """Divisors of the class loss and the box losses, averaged over the processes of a run.

    Args:
        positives: M slots.
        weight: ``(M,)`` weight of the box losses, 0 if invalid.
        num_images: Images in the batch.

    Returns:
        Number of positives, at least 1 per image, and sum of weights, at least 1.
    """
    counted = positives.valid.to(weight.dtype)
    per_image = weight.new_zeros(num_images).index_add(0, positives.image, counted)
    sums = torch.stack([per_image.clamp(min=1).sum(), weight.sum()])
    num_positives, weight_sum = reduce_mean(sums)
    return num_positives, weight_sum.clamp(min=1)


def excluded_cells(assigned: BatchAssignment) -> list[Tensor | None]:
    """Cells excluded from the class loss: outside an image's rectangle, or ignored.

    Args:
        assigned: Assignment with the grid's rectangles and the ignored cells.

    Returns:
        Per level ``(B, 1, H, W)`` bool, or None if all cells count.
    """
    grid = assigned.grid
    masks: list[Tensor | None] = []
    for level, (height, width) in enumerate(grid.sizes):
        corners = [rectangles[level] for rectangles in grid.rectangles]
        mask = None
        if any(each != (0, 0, width, height) for each in corners):
            bounds = torch.tensor(corners).to(grid.device, non_blocking=True)
            left, top, right, bottom = bounds[:, :, None, None].unbind(1)
            x = torch.arange(width, device=bounds.device)
            y = torch.arange(height, device=bounds.device)[:, None]
            mask = ((x < left) | (x >= right) | (y < top) | (y >= bottom))[:, None]
        if assigned.ignored is not None:
            ignored = assigned.ignored[level][:, None]
            mask = ignored if mask is None else mask | ignored
        masks.append(mask)
    return masks


def class_loss(
    loss: Any,
    maps: Sequence[Tensor],
    assigned: BatchAssignment,
    terms: PositiveTerms,
    pos_weight: float,
) -> Tensor:
    """Loss of all class logits, divided by the number of positives.

    Args:
        loss: Quality Focal Loss (ours or mmdet's) or our Varifocal Loss, of which only the
            hyper-parameters are used; or another :class:`..losses.score_losses.ScoreLoss`, which is
            called.
        maps: Class logits, per level ``(B, C, H, W)``.
        assigned: Assignment with the positives.
        terms: Terms of these positives.
        pos_weight: Weight of positives; 0 or less means 1.

    Returns:
        Scalar.
    """
    if isinstance(loss, ScoreLoss) and not isinstance(loss, VarifocalLoss):
        rows = class_rows(maps, assigned, terms, pos_weight)
        target = (rows.labels, rows.quality)
        return loss(rows.logits, target, rows.weight, terms.num_positives)
    if isinstance(loss, VarifocalLoss):
        element = ElementLoss.varifocal(loss.alpha, loss.gamma, loss.iou_weighted)
    else:
        element = ElementLoss.quality_focal(loss.beta)
    weighted = pos_weight > 0
    return focal_sum(
        maps,
        _target_entries(assigned.positives, terms, maps[0].shape[1] if weighted else 0),
        excluded_cells(assigned),
        element,
        weight=pos_weight if weighted else 1.0,
        scale=loss.loss_weight / terms.num_positives,
    )


def _target_entries(positives: Positives, terms: PositiveTerms, num_classes: int) -> TargetEntries:
    """Class logits affected by positives: M at their labels, or all M * ``num_classes``.

    A weight of positives applies to all their classes and needs them all; otherwise ``num_classes``
    is 0.
    """
    found = [positives.valid, positives.level, positives.image, positives.cell]
    label, quality = terms.labels, terms.quality
    if num_classes > 0:
        classes = torch.arange(num_classes, device=label.device)
        found = [each.repeat_interleave(num_classes) for each in found]
        quality = (quality[:, None] * (label[:, None] == classes)).flatten()
        label = classes.repeat(len(label))
    valid, level, image, cell = found
    return TargetEntries(valid, level, image, label, cell, quality)


class ClassRows(NamedTuple):
    """Logits and targets, a row per cell of all levels and images."""

    logits: Tensor  # (N, C)
    labels: Tensor  # (N,) int64, C for background
    quality: Tensor  # (N,)
    weight: Tensor  # (N,) 0 for excluded cells


def class_rows(
    maps: Sequence[Tensor], assigned: BatchAssignment, terms: PositiveTerms, pos_weight: float
) -> ClassRows:
    """Arrange the levels' logits in rows for MMDetection's losses, with their targets.

    Args:
        maps: Class logits, per level ``(B, C, H, W)``.
        assigned: Assignment with the positives.
        terms: Terms of these positives.
        pos_weight: Weight of positives; 0 or less means 1.
    """
    classes, positives = maps[0].shape[1], assigned.positives
    logits = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, classes) for level in maps])
    cells = [level[0, 0].numel() for level in maps]
    starts = [len(maps[0]) * sum(cells[:index]) for index in range(len(cells))]
    layout = torch.tensor([starts, cells]).to(logits.device, non_blocking=True)
    start, size = layout[:, positives.level]
    row, valid = start + positives.image * size + positives.cell, positives.valid
    background = terms.labels.new_full((len(logits),), classes)
    weight = torch.cat([_counted(*each) for each in zip(maps, excluded_cells(assigned))])
    if pos_weight > 0:
        weight = with_values(weight, row, valid, pos_weight)
    return ClassRows(
        logits,
        labels=with_values(background, row, valid, terms.labels),
        quality=with_values(terms.quality.new_zeros(len(logits)), row, valid, terms.quality),
        weight=weight,
    )


def _counted(level: Tensor, excluded: Tensor | None) -> Tensor:
    """Weights ``(B * H * W,)`` of a level's cells, 0 if excluded."""
    counted = torch.ones_like(level[:, 0], dtype=torch.float32)
    if excluded is not None:
        counted = counted.masked_fill(excluded.expand_as(level)[:, 0], 0)
    return counted.flatten()
