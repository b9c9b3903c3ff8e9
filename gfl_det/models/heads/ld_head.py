"""Student head that learns its boxes from a teacher, and its losses on tensors.

Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022. The head adds
losses to :class:`.gfl_head.GFLHead`; the detector
:class:`..detectors.KnowledgeDistillationDetector` passes it the teacher's maps. All losses are
means over processes, images and positives (or cells of the region), weighted like the box losses.
The authors' release and mmdet sum the first two terms, which then grow with the images per process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from mmdet.models.task_modules.assigners import ATSSAssigner as MMDetATSSAssigner
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures import SampleList
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.errors import ConfigError
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.models.assigners.batch import BatchAssignment
from gfl_det.models.assigners.closed_form import Lattice, adaptive_threshold, nearest_priors
from gfl_det.models.assigners.positives import Positives, take_cells
from gfl_det.models.heads.gfl_head import GFLHead
from gfl_det.models.heads.loss import PositiveTerms, excluded_cells
from gfl_det.ops.boxes import MIN_UNION, box_areas
from gfl_det.ops.distribution import fold
from gfl_det.ops.layout import with_values
from gfl_det.registry import MODELS

LOWEST_SHARE = 0.25  # fraction of the ATSS threshold, the paper's gamma
MAX_PAIRS = 2**20  # prior-gt pairs held at a time: 4 MiB per tensor

# (student's logits (N, n), teacher's) -> losses (N,)
Divergence = Callable[[Tensor, Tensor], Tensor]


class TeacherMaps(NamedTuple):
    """The teacher's logits of a batch."""

    cls_scores: Sequence[Tensor] | None  # per level (B, C, H, W) logits
    bbox_preds: Sequence[Tensor]  # per level (B, 4 * num_bins, H, W) logits


def edge_divergence(logits: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    """Divergence of edge distributions over the bins that student and teacher share.

    The teacher's probability beyond the student's last bin is added to that bin. The student's bins
    beyond the teacher's last get no gradient.

    Args:
        logits: ``(N, num_bins)`` of the student.
        teacher: ``(N, num_bins)`` of the teacher, which may differ.
        divergence: Divergence of rows of equal length.

    Returns:
        ``(N,)``.
    """
    teacher = fold(teacher, logits.shape[-1])
    return divergence(logits[..., : teacher.shape[-1]], teacher)


def positives_loss(
    positives: Positives, terms: PositiveTerms, teacher: TeacherMaps, divergence: Divergence
) -> Tensor:
    """Localization distillation of the positives, weighted and normalised like their DFL.

    Args:
        positives: M slots.
        terms: The student's terms of the positives.
        teacher: Teacher logits of the same batch.
        divergence: Divergence of distributions.

    Returns:
        Scalar.
    """
    theirs = take_cells(teacher.bbox_preds, positives).unflatten(1, (4, -1))
    loss = edge_divergence(terms.edge_logits.flatten(0, 1), theirs.flatten(0, 1), divergence)
    return (loss.view(-1, 4).mean(1) * terms.weight).sum() / terms.weight_sum


def positives_class_loss(
    cls_scores: Sequence[Tensor],
    positives: Positives,
    terms: PositiveTerms,
    teacher: TeacherMaps,
    divergence: Divergence,
) -> Tensor:
    """Mean divergence of the positives' class distributions.

    Args:
        cls_scores: Class logits, per level ``(B, C, H, W)``.
        positives: M slots.
        terms: The student's terms of the positives.
        teacher: Teacher logits of the same batch, including class logits.
        divergence: Divergence of distributions over classes.

    Returns:
        Scalar.

    Raises:
        ValueError: If the teacher's class logits are missing.
    """
    if teacher.cls_scores is None:
        raise ValueError('loss_kd compares class logits: pass the teacher logits as soft_labels')
    ours, theirs = (take_cells(maps, positives) for maps in (cls_scores, teacher.cls_scores))
    return (divergence(ours, theirs) * positives.valid).sum() / terms.num_positives


def region_loss(
    bbox_preds: Sequence[Tensor],
    weights: Sequence[Tensor],
    teacher: TeacherMaps,
    divergence: Divergence,
) -> Tensor:
    """Localization distillation of the cells of a region, a weighted mean.

    All cells are compared, since counting those of the region would synchronise the device.

    Args:
        bbox_preds: Edge logits, per level ``(B, 4 * num_bins, H, W)``.
        weights: Per level ``(B, H, W)``, at least 0.
        teacher: Teacher logits of the same batch.
        divergence: Divergence of distributions.

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
    """Reshape maps ``(B, 4 * num_bins, H, W)`` to rows ``(B * 4 * H * W, num_bins)``."""
    return maps.unflatten(1, (4, -1)).movedim(2, -1).flatten(0, 3)


@torch.no_grad()
def region_weights(assigned: BatchAssignment, k: int) -> list[Tensor]:
    """Weights of the valuable localization region, without positives and excluded cells.

    Args:
        assigned: Assignment whose positives are distilled separately.
        k: Candidates per level of the assigner.

    Returns:
        Per level ``(B, H, W)``, the IoU of prior and gt, or 0.
    """
    grid, positives = assigned.grid, assigned.positives
    weights = valuable_region(grid.lattice(), grid.sizes, assigned.boxes, assigned.image, k)
    result = []
    for level, (weight, mask) in enumerate(zip(weights, excluded_cells(assigned))):
        if mask is not None:
            weight = weight.masked_fill(mask.squeeze(1), 0)
        on = positives.valid & (positives.level == level)
        place = positives.image * weight[0].numel() + positives.cell
        result.append(with_values(weight.flatten(), place, on, 0.0).view_as(weight))
    return result


def valuable_region(
    lattice: Lattice,
    sizes: Sequence[tuple[int, int]],
    gts: Tensor,
    image: Tensor,
    k: int,
) -> list[Tensor]:
    """Weights of the cells of the valuable localization region.

    Chunks of gts bound the memory; no device synchronisation.

    Args:
        lattice: Lattice of the batch.
        sizes: Rows and columns per level.
        gts: ``(T, 4)`` xyxy px.
        image: ``(T,)`` int64, image index of each gt.
        k: Candidates per level for ATSS's threshold.

    Returns:
        Per level ``(B, H, W)``: the largest IoU of the prior with a gt whose region contains it, 0
        elsewhere. Includes positives and cells outside an image's rectangle.
    """
    threshold = adaptive_threshold(nearest_priors(lattice, gts, image, k))[:, :, None]
    return [
        _level_weights(lattice, level, size, gts, image, threshold)
        for level, size in enumerate(sizes)
    ]


def _level_weights(
    lattice: Lattice,
    level: int,
    size: tuple[int, int],
    gts: Tensor,
    image: Tensor,
    threshold: Tensor,
) -> Tensor:
    rows, columns = size
    weights = gts.new_zeros(len(lattice.begin), rows * columns)
    step = max(1, MAX_PAIRS // max(1, rows * columns))
    for begin in range(0, len(gts), step):
        part = slice(begin, begin + step)
        x, y = (_along(lattice, level, axis, size[1 - axis], gts[part]) for axis in (0, 1))
        shared = y.shared[:, :, None] * x.shared[:, None]
        areas = x.side * y.side + box_areas(gts[part])[:, None, None]
        overlap = shared / (areas - shared).clamp_(min=MIN_UNION)
        gap = y.gap.square()[:, :, None] + x.gap.square()[:, None]
        hull = y.hull.square()[:, :, None] + x.hull.square()[:, None]
        measure = overlap - gap / hull.clamp_(min=MIN_UNION)
        inside = (measure >= LOWEST_SHARE * threshold[part]) & (measure < threshold[part])
        value = overlap.where(inside, overlap.new_zeros(())).flatten(1)
        weights.scatter_reduce_(0, image[part, None].expand_as(value), value, 'amax')
    return weights.view(-1, rows, columns)


class _Axis(NamedTuple):
    """Overlap of priors and gts along x or y."""

    shared: Tensor  # (T, N) px shared by prior and gt
    hull: Tensor  # (T, N) px of the interval that encloses both
    gap: Tensor  # (T, N) px between the centres
    side: Tensor  # scalar, px of a prior


def _along(lattice: Lattice, level: int, axis: int, count: int, gts: Tensor) -> _Axis:
    base, step = lattice.base[level], lattice.stride[level, axis]
    shift = torch.arange(count, device=gts.device) * step
    low, high = base[axis] + shift, base[2 + axis] + shift
    first, last = gts[:, axis, None], gts[:, 2 + axis, None]
    return _Axis(
        shared=(torch.minimum(high, last) - torch.maximum(low, first)).clamp_(min=0),
        hull=torch.maximum(high, last) - torch.minimum(low, first),
        gap=(low + high - first - last) / 2,
        side=base[2 + axis] - base[axis],
    )


# The authors' temperature softens the distributions, so more than the likeliest bin counts.
DEFAULT_LD = dict(type='gfl_det.DistillationLoss', loss_weight=0.25, T=10)


@MODELS.register_module()
class LDHead(GFLHead):
    """GFL head with localization distillation, a drop-in for mmdet's ``LDHead``.

    Like the DFL, ``loss_ld`` is divided by the sum of the positives' weights over all processes and
    averaged over the four edges; unlike mmdet's, it does not grow with the batch. The teacher may
    have another ``reg_max``.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of the features.
        loss_ld: Config of the divergence between the positives' edges and the teacher's.
        loss_ld_vlr: The same for the valuable localization region around positives; None disables
            it.
        loss_kd: Config of the divergence of the positives' classes; None disables it.
        **kwargs: Keyword arguments of :class:`GFLHead`.

    Raises:
        ConfigError: If ``loss_kd`` is used with one class or ``loss_ld_vlr`` without ATSS, or as in
            ``GFLHead``.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss_ld: dict = DEFAULT_LD,
        *,
        loss_ld_vlr: dict | None = None,
        loss_kd: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, **kwargs)
        self.loss_ld = MODELS.build(loss_ld)
        self.loss_ld_vlr = None if loss_ld_vlr is None else MODELS.build(loss_ld_vlr)
        self.loss_kd = None if loss_kd is None else MODELS.build(loss_kd)
        if self.loss_kd is not None and num_classes == 1:
            raise ConfigError(
                'loss_kd compares classes and is always 0 for a single class: remove it'
            )
        if self.loss_ld_vlr is not None and self.train_cfg and not self._has_atss():
            raise ConfigError(
                'loss_ld_vlr needs the IoU threshold of an ATSSAssigner without alpha, not '
                f'{type(self.assigner).__name__}: change the assigner or remove it'
            )

    def _has_atss(self) -> bool:
        kinds = (ATSSAssigner, MMDetATSSAssigner)
        return isinstance(self.assigner, kinds) and self.assigner.alpha is None

    def loss(
        self,
        x: Sequence[Tensor],
        out_teacher: tuple[Sequence[Tensor], Sequence[Tensor]],
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compute all losses of a batch.

        Args:
            x: Features, per level ``(B, in_channels, H, W)``.
            out_teacher: Class and edge logits of the teacher's head.
            batch_data_samples: Data samples with gts.

        Returns:
            Losses of :meth:`loss_by_feat`.
        """
        gts, ignored, metas = unpack_gt_instances(batch_data_samples)
        soft_labels, soft_targets = out_teacher
        cls_scores, bbox_preds = self(x)
        return self.loss_by_feat(
            cls_scores, bbox_preds, gts, metas, soft_targets, ignored, soft_labels
        )

    # As in mmdet's LDHead, soft_targets precedes the ignored gts.
    def loss_by_feat(  # type: ignore[override]
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
        soft_targets: Sequence[Tensor],
        batch_gt_instances_ignore: Sequence[InstanceData | None] | None = None,
        soft_labels: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of :class:`GFLHead` and of distillation.

        Args:
            cls_scores: Class logits, per level ``(B, C, H, W)``.
            bbox_preds: Edge logits, per level ``(B, 4 * (reg_max + 1), H, W)``.
            batch_gt_instances: Per image ``bboxes (T, 4)`` xyxy px and ``labels (T,)``.
            batch_img_metas: Per image ``pad_shape`` and ``img_shape``.
            soft_targets: The teacher's edge logits, per level ``(B, 4 * num_bins, H, W)``.
            batch_gt_instances_ignore: Per image ``bboxes`` of ignored gts, or None.
            soft_labels: The teacher's class logits, like ``cls_scores``; for ``loss_kd``.

        Returns:
            Scalars ``loss_cls``, ``loss_bbox``, ``loss_dfl``, ``loss_ld`` and, if configured,
            ``loss_ld_vlr`` and ``loss_kd``.
        """
        ignored = batch_gt_instances_ignore or [None] * len(batch_img_metas)
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            assigned = self.match(
                cls_scores, batch_gt_instances, batch_img_metas, ignored, bbox_preds
            )
            terms = self.loss_terms(cls_scores, bbox_preds, assigned)
            losses = self.losses(cls_scores, assigned, terms)
            teacher = TeacherMaps(soft_labels, soft_targets)
            return losses | self.distil(cls_scores, bbox_preds, assigned, terms, teacher)

    def distil(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        assigned: BatchAssignment,
        terms: PositiveTerms,
        teacher: TeacherMaps,
    ) -> dict[str, Tensor]:
        """Compute the distillation losses from tensors (arguments as prepared above)."""
        positives = assigned.positives
        losses = dict(loss_ld=positives_loss(positives, terms, teacher, _rows(self.loss_ld)))
        if self.loss_ld_vlr is not None:
            weights = region_weights(assigned, self.assigner.topk)
            divergence = _rows(self.loss_ld_vlr)
            losses['loss_ld_vlr'] = region_loss(bbox_preds, weights, teacher, divergence)
        if self.loss_kd is not None:
            losses['loss_kd'] = positives_class_loss(
                cls_scores, positives, terms, teacher, _rows(self.loss_kd)
            )
        return losses


def _rows(loss: Any) -> Divergence:
    return partial(loss, reduction_override='none')
