"""Prediction-based assignment with mmdet's assigners of RTMDet, YOLOX and TOOD.

Each expects another form of predictions: logits or probabilities, priors as boxes or as points with
strides. Two of them give a soft label per positive, the target of Quality Focal Loss: the IoU of
dynamic soft labels, and TOOD's normalised alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models.task_modules.assigners import (
    BaseAssigner,
    DynamicSoftLabelAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
)
from mmdet.models.task_modules.assigners.assign_result import AssignResult
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.ops import distribution
from gfl_det.ops.boxes import box_centres, distances_to_boxes

ALPHA, BETA = 1, 6  # powers of score and IoU in TOOD's alignment, from its paper
SMALLEST_ALIGNMENT = 10e-8  # lower bound of a divisor, as in mmdet's TOODHead


class Predictions(NamedTuple):
    """Detached predictions of a head at all P priors of a batch."""

    logits: Tensor  # (B, P, C)
    boxes: Tensor  # (B, P, 4) xyxy px
    priors: Tensor  # (P, 4) xyxy px
    stride: Tensor  # (P,) px
    alignment: tuple[float, float]  # powers of score and IoU for TOOD's assigner

    @classmethod
    def of(
        cls,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        priors: Sequence[Tensor],
        strides: Sequence[int],
        alignment: tuple[float, float] = (ALPHA, BETA),
    ) -> Predictions:
        """Decode the box of each prior.

        Args:
            cls_scores: Class logits, per level ``(B, C, H, W)``.
            bbox_preds: Edge logits, per level ``(B, 4 * num_bins, H, W)``.
            priors: Per level ``(H * W, 4)`` xyxy px.
            strides: Stride per level, px.
            alignment: Powers of score and IoU for TOOD's assigner.
        """
        logits = torch.cat([level.detach().flatten(2) for level in cls_scores], 2)
        edges = torch.cat([level.detach().flatten(2) for level in bbox_preds], 2)
        flat = torch.cat(list(priors))
        stride = torch.cat([flat.new_full((len(p),), s) for p, s in zip(priors, strides)])
        rows = edges.transpose(1, 2).unflatten(2, (4, -1))  # (B, P, 4, num_bins)
        distances = distribution.mean(rows) * stride[:, None]
        boxes = distances_to_boxes(box_centres(flat), distances)
        logits = distribution.full_precision(logits.transpose(1, 2))
        return cls(logits, boxes, flat, stride, alignment)

    def assign(
        self,
        assigner: BaseAssigner,
        image: int,
        kept: Tensor,
        gts: InstanceData,
        regions: InstanceData | None,
    ) -> tuple[AssignResult, Tensor]:
        """Assign the priors of an image.

        Args:
            assigner: Assigner accepted by :func:`needs_predictions`.
            image: Index of the image in the batch.
            kept: ``(N,)`` int64, indices of valid priors.
            gts: ``bboxes`` and ``labels``; gts with labels out of range are never assigned.
            regions: Ignored gts, which these assigners disregard.

        Returns:
            mmdet's result for the N priors, and soft labels ``(N,)``, 0 unless positive.
        """
        classes = self.logits.shape[2]
        known = ((gts.labels >= 0) & (gts.labels < classes)).nonzero().squeeze(1)
        logits, priors = self.logits[image, kept], self.priors[kept]
        if not isinstance(assigner, TaskAlignedAssigner):
            centres = (priors[:, :2] + priors[:, 2:]) / 2
            priors = torch.cat([centres, self.stride[kept, None].expand(-1, 2)], dim=1)
        soft = isinstance(assigner, DynamicSoftLabelAssigner)
        predicted = InstanceData(
            priors=priors,
            scores=logits if soft else logits.sigmoid(),
            bboxes=self.boxes[image, kept],
        )
        aligned = isinstance(assigner, TaskAlignedAssigner)
        powers = self.alignment if aligned else ()
        result = assigner.assign(predicted, gts[known], regions, *powers)
        positive = (result.gt_inds > 0).nonzero().squeeze(1)
        quality = torch.zeros_like(predicted.bboxes[:, 0])
        if aligned:
            quality[positive] = normalised_alignment(result, positive)
        else:
            quality[positive] = result.max_overlaps[positive].to(quality.dtype)
        result.gt_inds[positive] = known[result.gt_inds[positive] - 1] + 1
        return result, quality


def needs_predictions(assigner: BaseAssigner) -> bool:
    """Whether an assigner is one of mmdet's prediction-based ones."""
    return isinstance(assigner, (DynamicSoftLabelAssigner, SimOTAAssigner, TaskAlignedAssigner))


def normalised_alignment(result: AssignResult, positive: Tensor) -> Tensor:
    """TOOD's soft labels (Feng et al., ICCV 2021, section 3.2.1).

    The alignments of a gt's positives are scaled so that their maximum equals the largest IoU.

    Args:
        result: Result of TOOD's assigner for N priors.
        positive: ``(M,)`` int64, indices of the positive priors.

    Returns:
        ``(M,)`` in [0, 1].
    """
    gt = result.gt_inds[positive] - 1
    alignment, overlaps = result.assign_metrics[positive], result.max_overlaps[positive]
    largest = alignment.new_zeros(result.num_gts, 2)
    pairs = torch.stack([alignment, overlaps.to(alignment.dtype)], dim=1)
    largest = largest.scatter_reduce(0, gt[:, None].expand(-1, 2), pairs, 'amax')
    return alignment / (largest[gt, 0] + SMALLEST_ALIGNMENT) * largest[gt, 1]
