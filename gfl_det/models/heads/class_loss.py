"""The class loss of a batch: quality losses summed over maps, our other losses row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gfl_det.models.assigners.positives import Positives
from gfl_det.models.heads.loss import target_entries
from gfl_det.models.losses.fused import ElementLoss, TargetEntries, focal_sum
from gfl_det.models.losses.score_losses import ScoreLoss
from gfl_det.models.losses.varifocal import VarifocalLoss


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
