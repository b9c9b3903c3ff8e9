"""From a teacher's maps to the losses of distillation, on tensors.

Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022. All of them are
means: over processes, images and positives (or cells of the region), with the weights that the box
losses have. The authors' release and mmdet sum the first two terms instead, so that they grow with
the images of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from mmdet.utils import reduce_mean
from torch import Tensor

from gfl_det.models.assigners.lattice import make_lattice
from gfl_det.models.assigners.positives import Positives, take_cells
from gfl_det.models.heads.loss import Scene, Step, excluded_cells
from gfl_det.models.heads.region import valuable_region
from gfl_det.ops.distribution import fold

# (student's logits (N, n), teacher's) -> losses (N,)
Divergence = Callable[[Tensor, Tensor], Tensor]


class TeacherMaps(NamedTuple):
    """What the teacher says of a batch."""

    cls_scores: Sequence[Tensor] | None  # per level (B, C, H, W) logits
    bbox_preds: Sequence[Tensor]  # per level (B, 4 * num_bins, H, W) logits


def edge_divergence(logits: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    """Divergence of edges' distributions over the bins that student and teacher both have.

    What the teacher sees beyond the student's last bin counts as at that bin. Of the student's bins
    beyond the teacher's last the teacher knows nothing: they get no gradient.

    Args:
        logits: ``(N, num_bins)`` of the student.
        teacher: ``(N, its num_bins)``.
        divergence: of rows of equal length.

    Returns:
        ``(N,)``.
    """
    teacher = fold(teacher, logits.shape[-1])
    return divergence(logits[..., : teacher.shape[-1]], teacher)


def positives_loss(step: Step, teacher: TeacherMaps, divergence: Divergence) -> Tensor:
    """Localization distillation of the positives, weighted and divided as their DFL.

    Args:
        step: of the student.
        teacher: of the same batch.
        divergence: of distributions.

    Returns:
        Scalar.
    """
    theirs = take_cells(teacher.bbox_preds, step.positives).unflatten(1, (4, -1))
    loss = edge_divergence(step.terms.logits.flatten(0, 1), theirs.flatten(0, 1), divergence)
    return (loss.view(-1, 4).mean(1) * step.weight).sum() / step.weight_sum


def class_loss(
    cls_scores: Sequence[Tensor], step: Step, teacher: TeacherMaps, divergence: Divergence
) -> Tensor:
    """Distillation of the positives' classes: the mean divergence.

    Args:
        cls_scores: class logits, per level ``(B, C, H, W)``.
        step: of the student.
        teacher: of the same batch, with class logits.
        divergence: of distributions over classes.

    Returns:
        Scalar.

    Raises:
        ValueError: the teacher's class logits are missing.
    """
    if teacher.cls_scores is None:
        raise ValueError('loss_kd compares class logits: give those of the teacher as soft_labels')
    ours, theirs = (take_cells(maps, step.positives) for maps in (cls_scores, teacher.cls_scores))
    return (divergence(ours, theirs) * step.positives.valid).sum() / step.num_positives


def region_loss(
    bbox_preds: Sequence[Tensor],
    weights: Sequence[Tensor],
    teacher: TeacherMaps,
    divergence: Divergence,
) -> Tensor:
    """Localization distillation of the cells of a region, their mean by weight.

    How many cells the region has only the device knows, so all cells are compared.

    Args:
        bbox_preds: edge logits, per level ``(B, 4 * num_bins, H, W)``.
        weights: per level ``(B, H, W)``, at least 0.
        teacher: of the same batch.
        divergence: of distributions.

    Returns:
        Scalar.
    """
    sums = []
    for ours, theirs, weight in zip(bbox_preds, teacher.bbox_preds, weights):
        loss = edge_divergence(_edge_rows(ours), _edge_rows(theirs), divergence)
        loss = loss.view(len(ours), 4, *ours.shape[2:])
        sums.append((loss.mean(1) * weight).sum())
    total = reduce_mean(torch.stack([each.sum() for each in weights]).sum())
    return torch.stack(sums).sum() / total.clamp(min=1)


def _edge_rows(maps: Tensor) -> Tensor:
    """Logits ``(B * 4 * H * W, num_bins)`` of maps ``(B, 4 * num_bins, H, W)``."""
    return maps.unflatten(1, (4, -1)).movedim(2, -1).flatten(0, 3)


@torch.no_grad()
def region_weights(scene: Scene, positives: Positives, num_classes: int, k: int) -> list[Tensor]:
    """Weights of the valuable localization region, without positives and cells that do not count.

    Args:
        scene: truths and priors.
        positives: of these truths; they are distilled by themselves.
        num_classes: truths of unknown labels have no region, as they have no positives.
        k: candidates a level of the assigner.

    Returns:
        Per level ``(B, H, W)``, the IoU of prior and truth or 0.
    """
    grid, truths = scene.grid, scene.truths
    lattice = make_lattice(
        grid.priors.base, grid.priors.strides, grid.sizes, grid.rectangles, grid.device
    )
    known = (truths.labels >= 0) & (truths.labels < num_classes)
    boxes = truths.boxes.where(known[:, None], truths.boxes.new_zeros(()))  # no area, no region
    weights = valuable_region(lattice, grid.sizes, boxes, truths.image, k)
    masks = excluded_cells(grid, scene.match)
    result = []
    for level, (weight, mask) in enumerate(zip(weights, masks)):
        if mask is not None:
            weight = weight.masked_fill(mask.squeeze(1), 0)
        # The spare end takes what is written at slots without a positive on this level.
        flat = torch.cat([weight.flatten(), weight.new_zeros(1)])
        on = positives.valid & (positives.level == level)
        place = positives.image * weight[0].numel() + positives.cell
        flat[place.where(on, place.new_full((), weight.numel()))] = 0
        result.append(flat[:-1].view_as(weight))
    return result
