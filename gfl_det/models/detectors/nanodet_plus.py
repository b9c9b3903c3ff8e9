"""NanoDet-Plus with auxiliary guidance, a heavier head that assigns gts while the light one learns.

Early predictions of a small head are a poor basis for assigning gts to priors. So, in training
only, a second neck and head predict from the same backbone; their predictions determine the
assignment that both heads learn from.
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures import SampleList
from mmengine.logging import MessageHub
from torch import Tensor

from gfl_det.errors import ConfigError
from gfl_det.models.assigners.predictions import needs_predictions
from gfl_det.registry import MODELS


@MODELS.register_module()
class NanoDetPlus(SingleStageDetector):
    """Single-stage detector with optional auxiliary guidance in training.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck and of the auxiliary neck.
        bbox_head: Config of a GFL head.
        aux_head: Config of the auxiliary GFL head, whose ``in_channels`` is the sum over both
            necks; None makes the detector mmdet's ``GFL``.
        detach_epoch: Epoch, counted from 0, from which the auxiliary neck and head no longer train
            backbone and neck.
        **kwargs: Keyword arguments of mmdet's ``SingleStageDetector``.

    Raises:
        ConfigError: If ``aux_head`` is given and the assigner does not use predictions.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        bbox_head: dict,
        *,
        aux_head: dict | None = None,
        detach_epoch: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone=backbone, neck=neck, bbox_head=bbox_head, **kwargs)
        self.detach_epoch = detach_epoch
        self.aux_neck, self.aux_head = None, None
        if aux_head is None:
            return
        if self.train_cfg and not needs_predictions(self.bbox_head.assigner):
            kind = type(self.bbox_head.assigner).__name__
            raise ConfigError(
                f'aux_head guides by its predictions, which {kind} does not use: remove aux_head, '
                'or train with DynamicSoftLabelAssigner.'
            )
        self.aux_neck = MODELS.build(neck)
        settings = dict(train_cfg=self.train_cfg, test_cfg=self.test_cfg)
        self.aux_head = MODELS.build({**aux_head, **settings})

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute the head's losses, and those of the auxiliary head as ``aux_loss_*``."""
        if self.aux_head is None:
            return super().loss(batch_inputs, batch_data_samples)
        features = self.backbone(batch_inputs)
        levels = self.neck(features)
        maps = self.bbox_head(levels)
        guides = self.aux_head(self._guiding_features(features, levels))
        gts, ignored, metas = unpack_gt_instances(batch_data_samples)
        regions = ignored or [None] * len(metas)
        with torch.autocast(batch_inputs.device.type, enabled=False):
            assigned = self.bbox_head.match(guides[0], gts, metas, regions, guides[1])
            losses: dict[str, Tensor] = {}
            for prefix, head, (cls, edges) in (
                ('', self.bbox_head, maps),
                ('aux_', self.aux_head, guides),
            ):
                found = head.losses(cls, assigned, head.loss_terms(cls, edges, assigned))
                losses |= {f'{prefix}{name}': value for name, value in found.items()}
        return losses

    def _guiding_features(
        self, features: tuple[Tensor, ...], levels: tuple[Tensor, ...]
    ) -> list[Tensor]:
        epoch = MessageHub.get_current_instance().get_info('epoch', 0)
        if epoch >= self.detach_epoch:
            features, levels = (tuple(x.detach() for x in each) for each in (features, levels))
        assert self.aux_neck is not None
        return [torch.cat(pair, dim=1) for pair in zip(levels, self.aux_neck(features))]
