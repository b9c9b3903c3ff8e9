"""Registered ATSS assigner, which chooses between the closed form and the general path."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner, BboxOverlaps2D
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.models.assigners import general
from gfl_det.models.assigners.closed_form import Lattice, assign_on_lattice, fit_lattice
from gfl_det.models.assigners.positives import Positives
from gfl_det.registry import TASK_UTILS

# MMDetection's value for "no overlap" in AssignResult.max_overlaps.
NO_OVERLAP = -100000000.0


@TASK_UTILS.register_module()
class ATSSAssigner(BaseAssigner):
    """Adaptive Training Sample Selection (Zhang et al., CVPR 2020), a drop-in for mmdet's.

    :meth:`assign_batch` is for heads that keep positives as a list; :meth:`assign` has mmdet's
    signature and result for other heads.

    Args:
        topk: Candidates per level and gt, k in the paper.
        alpha: Exponent of IoU in DDOD's dynamic cost ``score^(1 - alpha) * IoU^alpha``; None uses
            only the IoU between prior and gt.
        iou_calculator: mmdet config of the overlap.
        ignore_iof_thr: A prior with more than this fraction inside an ignored gt is neither
            positive nor negative; a negative value disregards ignored gts.
        with_best_prior: Assign gts that ATSS leaves without a positive, such as those smaller than
            the finest stride, to the free candidate with the largest overlap, which may lie outside
            the gt: refused beside the centerness of mmdet's ATSSHead. Not in mmdet. On blood cells
            at 128 x 96 it brought no AP (+.003, .95 interval -.004 to .010; results on accuracy),
            nor on digits at 64 x 48 (.000, -.013 to .012).
    """

    def __init__(
        self,
        topk: int,
        alpha: float | None = None,
        iou_calculator: dict | None = None,
        ignore_iof_thr: float = -1,
        with_best_prior: bool = False,
    ) -> None:
        self.topk = topk
        self.alpha = alpha
        self.iou_calculator = TASK_UTILS.build(iou_calculator or dict(type='BboxOverlaps2D'))
        self.ignore_iof_thr = ignore_iof_thr
        self.with_best_prior = with_best_prior

    @property
    def has_closed_form(self) -> bool:
        """Whether the overlap is plain IoU, as the closed form requires."""
        return self.alpha is None and type(self.iou_calculator) is BboxOverlaps2D

    def ignores(self, regions: Tensor | None) -> bool:
        """Whether ignored gts ``(R, 4)`` affect the assignment."""
        return self.ignore_iof_thr > 0 and regions is not None and len(regions) > 0

    def assign_batch(self, lattice: Lattice, gts: Tensor, image: Tensor) -> Positives:
        """Assign a whole batch without ignored gts and without device synchronisation.

        Args:
            lattice: Lattice of the batch's priors.
            gts: ``(T, 4)`` xyxy px, grouped by image.
            image: ``(T,)`` int64, image index of each gt.

        Returns:
            Positives of the batch.
        """
        return assign_on_lattice(lattice, gts, image, self.topk, self.with_best_prior)

    def assign(
        self,
        pred_instances: InstanceData,
        num_level_priors: Sequence[int],
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
    ) -> AssignResult:
        """Assign one image's priors, with mmdet's signature.

        Args:
            pred_instances: ``priors`` ``(P, 4)`` xyxy px by level; for ``alpha`` also ``scores``
                ``(P, C)`` logits and ``bboxes`` ``(P, 4)``.
            num_level_priors: Number of priors per level.
            gt_instances: Gts with ``bboxes`` ``(T, 4)`` and ``labels`` ``(T,)``.
            gt_instances_ignore: Ignored gts with ``bboxes`` ``(R, 4)``.

        Returns:
            ``gt_inds`` ``(P,)``: 0 background, -1 ignored, else 1 + index of the gt;
            ``max_overlaps`` ``(P,)``, -1e8 without a gt; ``labels`` ``(P,)``, -1 without a gt.

        Raises:
            ValueError: If ``alpha`` is set and scores or boxes are missing.
        """
        priors = get_box_tensor(pred_instances.priors)[:, :4]
        gts, labels = get_box_tensor(gt_instances.bboxes), gt_instances.labels
        gt_inds = torch.zeros(len(priors), dtype=torch.long, device=priors.device)
        if len(gts) == 0 or len(priors) == 0:
            no_overlap = priors.new_zeros(len(priors))
            return AssignResult(len(gts), gt_inds, no_overlap, labels=gt_inds - 1)

        ignored = self._ignored(priors, gt_instances_ignore)
        if ignored is not None:
            gt_inds[ignored] = -1
        lattice = None
        if ignored is None and self.has_closed_form:
            if 'scores' in pred_instances or 'bboxes' in pred_instances:
                warnings.warn('scores and bboxes are unused unless alpha is set', stacklevel=2)
            lattice = fit_lattice(priors, num_level_priors)
        if lattice is not None:
            found = self._assign_lattice(lattice, gts)
        else:
            overlap_of = self._overlap_function(pred_instances, gt_instances)
            found = self._assign_generally(
                priors, num_level_priors, gts, overlap_of, self.topk, ignored
            )
        return _with_positives(gt_inds, found, labels)

    def _ignored(self, priors: Tensor, instances: InstanceData | None) -> Tensor | None:
        """Mask ``(P,)`` of priors in ignored gts; None if ignored gts have no effect."""
        regions = None if instances is None else get_box_tensor(instances.bboxes)
        if regions is None or not self.ignores(regions):
            return None
        return general.ignored_priors(priors, regions, self.ignore_iof_thr)

    def _assign_lattice(self, lattice: Lattice, gts: Tensor) -> general.Assignment:
        image = torch.zeros(len(gts), dtype=torch.long, device=gts.device)
        found = self.assign_batch(lattice, gts, image)
        prior = (lattice.first_prior[found.level] + found.cell)[found.valid]
        gt = torch.full((lattice.num_priors,), -1, device=gts.device)
        gt[prior] = found.gt[found.valid]
        overlap = gts.new_zeros(lattice.num_priors)
        overlap[prior] = found.iou[found.valid]
        return general.Assignment(gt, overlap)

    def _assign_generally(self, *case: Any) -> general.Assignment:
        found = general.assign(*case)
        return general.add_best_priors(found, *case) if self.with_best_prior else found

    def _overlap_function(
        self, pred_instances: InstanceData, gt_instances: InstanceData
    ) -> general.OverlapFunction:
        gts, labels = get_box_tensor(gt_instances.bboxes), gt_instances.labels

        def overlap_with(boxes: Tensor, prior: Tensor, gt: Tensor) -> Tensor:
            pairs: Any = (boxes[prior].flatten(0, 1), gts[gt].repeat(len(prior), 1))
            return self.iou_calculator(*pairs, is_aligned=True).view(prior.shape)

        alpha = self.alpha
        if alpha is None:
            priors = get_box_tensor(pred_instances.priors)[:, :4]
            return lambda prior, gt: overlap_with(priors, prior, gt)
        if 'scores' not in pred_instances or 'bboxes' not in pred_instances:
            raise ValueError('alpha needs scores and bboxes in pred_instances: add both')
        scores, boxes = pred_instances.scores, pred_instances.bboxes

        def dynamic_cost(prior: Tensor, gt: Tensor) -> Tensor:
            score = scores[prior, labels[gt]].sigmoid()
            return score ** (1 - alpha) * overlap_with(boxes, prior, gt) ** alpha

        return dynamic_cost


def _with_positives(gt_inds: Tensor, found: general.Assignment, labels: Tensor) -> AssignResult:
    """Add positives to background and ignored priors ``(P,)``, in mmdet's format."""
    positive = found.gt >= 0
    gt = found.gt[positive]
    gt_inds[positive] = gt + 1
    assigned_labels = torch.full_like(gt_inds, -1)
    assigned_labels[positive] = labels[gt]
    overlap = found.overlap.masked_fill(~positive, NO_OVERLAP)
    return AssignResult(len(labels), gt_inds, overlap, labels=assigned_labels)
