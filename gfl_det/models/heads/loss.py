"""From truths and logits to the three losses of a GFL head, on lists of positives.

The head (:mod:`.gfl_head`) knows configs and modules; here are tensors. Box geometry is in strides
of the positive's level, so that distances and bins share a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.models.assigners.batch import Grid, Match
from gfl_det.models.assigners.positives import Positives, take_cells
from gfl_det.models.losses.fused import ElementLoss, TargetEntries, focal_sum, mean_and_focal_loss
from gfl_det.models.losses.score_losses import ScoreLoss, VarifocalLoss
from gfl_det.ops import distribution
from gfl_det.ops.boxes import boxes_to_distances, distances_to_boxes, iou

# A target at the last bin would have no right neighbour; mmdet's coder stays 0.1 below it.
TARGET_MARGIN = 0.1


class Truths(NamedTuple):
    """The truths of a batch, images one after the other."""

    boxes: Tensor  # (T, 4) float32, xyxy px
    labels: Tensor  # (T,) int64
    image: Tensor  # (T,) int64

    @classmethod
    def collect(cls, instances: Sequence[InstanceData], device: torch.device) -> Truths:
        """Concatenate the images' ``bboxes`` and ``labels``."""
        counts = [len(each.labels) for each in instances]
        image = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)])
        boxes = torch.cat([get_box_tensor(each.bboxes).float() for each in instances])
        labels = torch.cat([each.labels for each in instances])
        return cls(boxes, labels, image.long().to(device, non_blocking=True))


class EdgeTargets(NamedTuple):
    """What the boxes of positives are trained on, in strides; harmless where a slot is invalid."""

    points: Tensor  # (M, 2), the priors' centres
    boxes: Tensor  # (M, 4), the truths
    distances: Tensor  # (M, 4) ltrb, within the bins' reach


class BoxTerms(NamedTuple):
    """Per positive, unweighted."""

    decoded: Tensor  # (M, 4) predicted boxes, strides
    targets: Tensor  # (M, 4) truths, strides
    quality: Tensor  # (M,) IoU of both, detached: the target of the class score
    edge_loss: Tensor  # (M,) DFL without its weight, mean over the four edges
    logits: Tensor  # (M, 4, num_bins) of the edges


class Scene(NamedTuple):
    """A batch's truths and where they are to be found."""

    truths: Truths
    grid: Grid
    match: Match


class Step(NamedTuple):
    """What the losses of a batch's positives share."""

    positives: Positives  # M slots; those of unknown labels not valid
    labels: Tensor  # (M,) int64
    terms: BoxTerms
    weight: Tensor  # (M,) of the box losses, 0 where not valid
    num_positives: Tensor  # scalar, divisor of the class loss
    weight_sum: Tensor  # scalar, divisor of the box losses
    edges: EdgeTargets


def edge_targets(positives: Positives, truths: Tensor, stride: Tensor, reg_max: int) -> EdgeTargets:
    """Centres, truths and clamped distances of positives in strides.

    Args:
        positives: M slots.
        truths: ``(T, 4)`` xyxy px.
        stride: ``(L,)`` px.
        reg_max: the last bin.

    Returns:
        The targets.
    """
    step = stride[positives.level][:, None]
    points = positives.centre / step
    boxes = truths[positives.truth] / step
    # A slot without a positive names some truth; were that broken, NaN * 0 would still be NaN.
    unit = torch.cat([points - 1, points + 1], dim=-1)
    boxes = boxes.where(positives.valid[:, None], unit)
    distances = boxes_to_distances(points, boxes).clamp(min=0, max=reg_max - TARGET_MARGIN)
    return EdgeTargets(points, boxes, distances)


def box_terms(
    maps: Sequence[Tensor],
    positives: Positives,
    targets: EdgeTargets,
) -> BoxTerms:
    """Decode the positives' boxes and compare their edges' distributions with the truth.

    Args:
        maps: edge logits, per level ``(B, 4 * num_bins, H, W)``.
        positives: M slots.
        targets: of these slots.

    Returns:
        The terms; gradients flow through ``decoded`` and ``edge_loss``.
    """
    logits = take_cells(maps, positives).unflatten(1, (4, -1))  # (M, 4, num_bins)
    distances, edge_loss = mean_and_focal_loss(logits, targets.distances)
    decoded = distances_to_boxes(targets.points, distances)
    quality = iou(decoded.detach(), targets.boxes)
    return BoxTerms(decoded, targets.boxes, quality, edge_loss.mean(1), logits)


def known_labels(
    positives: Positives, labels: Tensor, num_classes: int
) -> tuple[Positives, Tensor]:
    """Labels of the positives; truths of an unknown class train nothing, as in mmdet.

    Data sets refuse such labels with a sentence; here an index out of range would be worse.

    Args:
        positives: M slots.
        labels: ``(T,)`` int64, of the truths.
        num_classes: labels from 0 to num_classes - 1 are known.

    Returns:
        The positives, those of unknown labels not valid, and labels ``(M,)`` in range.
    """
    found = labels[positives.truth]
    known = (found >= 0) & (found < num_classes)
    return positives._replace(valid=positives.valid & known), found.where(
        known, found.new_zeros(())
    )


def peak_scores(maps: Sequence[Tensor], positives: Positives) -> Tensor:
    """The largest class score at each positive, detached: the weight of its box losses.

    Args:
        maps: class logits, per level ``(B, C, H, W)``.
        positives: M slots.

    Returns:
        ``(M,)`` in [0, 1].
    """
    detached = [level.detach() for level in maps]
    candidates = sum(len(level.slot) for level in positives.by_level)
    # A pass over all logits costs about as much as reading all classes of an eighth of the cells.
    if 8 * candidates < sum(level[:, 0].numel() for level in maps):
        peaks = take_cells(detached, positives).amax(1)
    else:
        tops = [level.amax(1, keepdim=True) for level in detached]
        peaks = take_cells(tops, positives).squeeze(1)
    return distribution.full_precision(peaks).sigmoid()


def normalisers(positives: Positives, weight: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """Divisors of the class loss and of the box losses, means over the processes of a run.

    Args:
        positives: M slots.
        weight: ``(M,)`` of the box losses, 0 where not valid.
        num_images: of the batch.

    Returns:
        The number of positives, at least 1 an image, and the sum of weights, at least 1.
    """
    counted = positives.valid.to(weight.dtype)
    per_image = weight.new_zeros(num_images).index_add(0, positives.image, counted)
    sums = torch.stack([per_image.clamp(min=1).sum(), weight.sum()])
    num_positives, weight_sum = reduce_mean(sums)
    return num_positives, weight_sum.clamp(min=1)


def make_step(
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    scene: Scene,
    num_classes: int,
    reg_max: int,
) -> Step:
    """Collect what all losses of the positives share.

    Args:
        cls_scores: class logits, per level ``(B, C, H, W)``.
        bbox_preds: edge logits, per level ``(B, 4 * num_bins, H, W)``.
        scene: the assigned truths.
        num_classes: labels from 0 to num_classes - 1 are known.
        reg_max: the last bin.

    Returns:
        The step.
    """
    found, labels = known_labels(scene.match.positives, scene.truths.labels, num_classes)
    stride = torch.tensor([float(x) for x, _ in scene.grid.priors.strides])
    stride = stride.to(scene.grid.device, non_blocking=True)
    targets = edge_targets(found, scene.truths.boxes, stride, reg_max)
    terms = box_terms(bbox_preds, found, targets)
    weight = peak_scores(cls_scores, found) * found.valid
    divisors = normalisers(found, weight, len(scene.grid.rectangles))
    return Step(found, labels, terms, weight, *divisors, targets)


def target_entries(
    positives: Positives, labels: Tensor, quality: Tensor, num_classes: int
) -> TargetEntries:
    """The class logits that a positive changes: that of its label, or those of all classes.

    Args:
        positives: M slots.
        labels: ``(M,)`` int64.
        quality: ``(M,)`` in [0, 1].
        num_classes: 0 for the labels' logits alone, else the number of classes, for a weight of
            the positives that holds for all their classes.

    Returns:
        M entries, or M * num_classes.
    """
    found = (positives.valid, positives.level, positives.image)
    if num_classes == 0:
        return TargetEntries(*found, labels, positives.cell, quality)
    classes = torch.arange(num_classes, device=labels.device)
    one_hot = labels[:, None] == classes
    valid, level, image, cell = (
        each.repeat_interleave(num_classes) for each in (*found, positives.cell)
    )
    label = classes.repeat(len(labels))
    return TargetEntries(valid, level, image, label, cell, (quality[:, None] * one_hot).flatten())


def excluded_cells(grid: Grid, match: Match) -> list[Tensor | None]:
    """Cells that no class loss is taken at: outside an image's rectangle, or ignored.

    Args:
        grid: with the rectangles.
        match: with the ignored cells.

    Returns:
        Per level ``(B, 1, H, W)`` bool, or None where all cells count.
    """
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
        if match.ignored is not None:
            ignored = match.ignored[level][:, None]
            mask = ignored if mask is None else mask | ignored
        masks.append(mask)
    return masks


class ClassTargets(NamedTuple):
    """What the class logits of a batch are trained on."""

    positives: Positives  # M slots
    labels: Tensor  # (M,) int64
    quality: Tensor  # (M,) in [0, 1]
    excluded: Sequence[Tensor | None]  # per level (B, 1, H, W) bool, cells that do not count
    pos_weight: float  # of the positives; 0 or less for 1


class Rows(NamedTuple):
    """Logits and targets of all cells of all levels and images, one row each."""

    logits: Tensor  # (N, C)
    labels: Tensor  # (N,) int64, C for background
    quality: Tensor  # (N,)
    weight: Tensor  # (N,) 0 for excluded cells


def class_loss(
    loss: Any, maps: Sequence[Tensor], targets: ClassTargets, num_positives: Tensor
) -> Tensor:
    """The loss of all class logits, divided by the number of positives.

    Args:
        loss: a Quality Focal Loss, ours or mmdet's, our Varifocal Loss, or another
            :class:`..losses.score_loss.ScoreLoss`.
        maps: class logits, per level ``(B, C, H, W)``.
        targets: of these logits.
        num_positives: scalar.

    Returns:
        Scalar.
    """
    if isinstance(loss, ScoreLoss) and not isinstance(loss, VarifocalLoss):
        rows = class_rows(maps, targets)
        return loss(rows.logits, (rows.labels, rows.quality), rows.weight, num_positives)
    weighted = targets.pos_weight > 0
    return focal_sum(
        maps,
        _entries(targets, maps[0].shape[1] if weighted else 0),
        targets.excluded,
        _element_loss(loss),
        weight=targets.pos_weight if weighted else 1.0,
        scale=loss.loss_weight / num_positives,
    )


def _element_loss(loss: Any) -> ElementLoss:
    if isinstance(loss, VarifocalLoss):
        return ElementLoss.varifocal(loss.alpha, loss.gamma, loss.iou_weighted)
    return ElementLoss.quality_focal(loss.beta)


def class_rows(maps: Sequence[Tensor], targets: ClassTargets) -> Rows:
    """Lay the levels' logits out as MMDetection's losses take them, with dense targets.

    Args:
        maps: class logits, per level ``(B, C, H, W)``.
        targets: of these logits.
    """
    classes = maps[0].shape[1]
    logits = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, classes) for level in maps])
    entries = _entries(targets, 0)
    row = _row_of(entries, maps, nowhere=len(logits))
    # One row more takes what the slots without a positive write.
    labels = entries.label.new_full((len(logits) + 1,), classes)
    quality = targets.quality.new_zeros(len(logits) + 1)
    weight = torch.cat([_counted(level, mask) for level, mask in zip(maps, targets.excluded)])
    weight = torch.cat([weight, weight.new_zeros(1)])
    labels[row], quality[row] = entries.label, entries.quality
    if targets.pos_weight > 0:
        weight[row] = targets.pos_weight
    return Rows(logits, labels[:-1], quality[:-1], weight[:-1])


def _entries(targets: ClassTargets, num_classes: int) -> TargetEntries:
    return target_entries(targets.positives, targets.labels, targets.quality, num_classes)


def _row_of(entries: TargetEntries, maps: Sequence[Tensor], nowhere: int) -> Tensor:
    cells = [level[0, 0].numel() for level in maps]
    starts = [len(maps[0]) * sum(cells[:index]) for index in range(len(cells))]
    layout = torch.tensor([starts, cells]).to(entries.level.device, non_blocking=True)
    start, size = layout[:, entries.level]
    row = start + entries.image * size + entries.cell
    return row.where(entries.valid, row.new_full((), nowhere))


def _counted(level: Tensor, excluded: Tensor | None) -> Tensor:
    """Weights ``(B * H * W,)`` of a level's cells."""
    counted = torch.ones_like(level[:, 0], dtype=torch.float32)
    if excluded is not None:
        counted = counted.masked_fill(excluded.expand_as(level)[:, 0], 0)
    return counted.flatten()
