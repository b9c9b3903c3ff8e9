"""Student head that learns its boxes from a teacher (Zheng et al., CVPR 2022).

It adds losses to :class:`.gfl_head.GFLHead`; the detector
:class:`..detectors.KnowledgeDistillationDetector` passes it the teacher's maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmdet.models.task_modules.assigners import ATSSAssigner as MMDetATSSAssigner
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.errors import ConfigError
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.models.assigners.batch import BatchAssignment
from gfl_det.models.heads.distillation_losses import (
    Divergence,
    TeacherMaps,
    positives_class_loss,
    positives_loss,
    region_loss,
    region_weights,
)
from gfl_det.models.heads.gfl_head import GFLHead
from gfl_det.models.heads.loss import PositiveTerms
from gfl_det.registry import MODELS

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
