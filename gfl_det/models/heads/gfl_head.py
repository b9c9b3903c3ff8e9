"""Generalized Focal Loss head (Li et al., NeurIPS 2020).

The class score is the predicted IoU of the box; box edges are discrete distributions. Training
path: :meth:`GFLHead.forward` -> :meth:`GFLHead.match` (:mod:`..assigners`) ->
:meth:`GFLHead.loss_terms` -> :meth:`GFLHead.losses` (both :mod:`.loss`). Prediction path: forward
-> :meth:`GFLHead.predict_by_feat` (:mod:`.postprocess`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule, Scale
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.models.losses import DistributionFocalLoss as MMDetDistributionFocalLoss
from mmdet.models.losses import QualityFocalLoss as MMDetQualityFocalLoss
from mmdet.models.task_modules.coders import DistancePointBBoxCoder
from mmdet.models.task_modules.samplers import PseudoSampler
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from gfl_det.calibration.apply import HeadCalibration
from gfl_det.errors import ConfigError
from gfl_det.models.assigners.batch import BatchAssignment, PriorLevels, assign_batch, make_grid
from gfl_det.models.assigners.predictions import ALPHA, BETA, Predictions, needs_predictions
from gfl_det.models.heads.loss import PositiveTerms, class_loss, positive_terms
from gfl_det.models.heads.postprocess import Decoder, Frames, detect, find_candidates
from gfl_det.models.losses import DistributionFocalLoss, QualityFocalLoss
from gfl_det.models.losses.score_losses import ScoreLoss
from gfl_det.ops import distribution
from gfl_det.registry import MODELS


class Integral(nn.Module):
    """Mean of edge distributions (GFL paper, eq. 5), with the buffer of mmdet's state dicts.

    Args:
        reg_max: Last bin, in strides.
    """

    project: Tensor

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.reg_max = reg_max
        self.register_buffer('project', torch.linspace(0, reg_max, reg_max + 1))

    def forward(self, logits: Tensor) -> Tensor:
        """Compute distances ``(N, 4)`` in strides from logits ``(N, 4 * (reg_max + 1))``."""
        return distribution.mean(logits.reshape(-1, 4, self.reg_max + 1))


# The paper's settings; an explicit None keeps mmdet's meaning, such as no norm.
DEFAULT_NORM = dict(type='GN', num_groups=32, requires_grad=True)
DEFAULT_ANCHORS = dict(
    type='AnchorGenerator',
    ratios=[1.0],
    octave_base_scale=8,
    scales_per_octave=1,
    strides=[8, 16, 32, 64, 128],
)
DEFAULT_CODER = dict(type='DistancePointBBoxCoder')
DEFAULT_QFL = dict(type='gfl_det.QualityFocalLoss', use_sigmoid=True)
DEFAULT_BOX_LOSS = dict(type='GIoULoss', loss_weight=2.0)
DEFAULT_DFL = dict(type='gfl_det.DistributionFocalLoss', loss_weight=0.25)
DEFAULT_INIT = dict(
    type='Normal',
    layer='Conv2d',
    std=0.01,
    override=dict(type='Normal', name='gfl_cls', std=0.01, bias_prob=0.01),
)


@MODELS.register_module()
class GFLHead(AnchorHead):
    """Head with quality scores and edge distributions, a drop-in for mmdet's ``GFLHead``.

    Constructor, state dict, losses and detections match mmdet's. In ``test_cfg``,
    ``with_uncertainty=True`` adds ``edge_std (N, 4)`` and ``interval_level=0.9`` adds ``edge_low``,
    ``edge_high`` and ``edge_entropy (N, 4)``, all explained in :mod:`..inference.results`;
    ``with_distribution=True`` adds the distributions: ``edge_logits (N, 4, reg_max + 1)``,
    ``bin_widths (N, 4)`` px, and ``prior_centres (N, 2)`` px, where distances start;
    ``with_class_scores=True`` adds ``class_scores (N, num_classes)`` of each box. The JSON files
    ``calibrator`` and ``interval_calibrator`` map scores and stretch intervals, ``operating_point``
    cuts each class.

    Args:
        num_classes: Number of classes without background.
        in_channels: Channels of the features.
        stacked_convs: Convolutions per tower.
        conv_cfg: Config of the towers' convolutions.
        norm_cfg: Config of the towers' norms.
        loss_dfl: Config of the edge loss, a DistributionFocalLoss. Only the hyper-parameters of
            DistributionFocalLoss, QualityFocalLoss and VarifocalLoss (ours, mmdet's or a subclass)
            are used, since the head sums these losses itself.
        bbox_coder: Must be a DistancePointBBoxCoder.
        reg_max: Last bin of an edge's distribution, the largest distance in strides.
        init_cfg: Initialisation config.
        anchor_generator: Config of the priors, one per cell.
        loss_cls: Config of the class loss: QualityFocalLoss or another of this package's sigmoid
            losses (see ``loss_dfl``).
        loss_bbox: Config of the box loss, from the IoU family.
        **kwargs: Arguments of mmdet's ``AnchorHead``: feat_channels, train_cfg, test_cfg.

    Raises:
        ConfigError: If the config has several priors per cell, unequal strides along x and y, a
            sampler, or an unsupported coder or loss.
    """

    # Set by hooks: called with the assignment of each training batch.
    assignment_observer: Callable[[BatchAssignment], None] | None = None

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = DEFAULT_NORM,
        loss_dfl: dict = DEFAULT_DFL,
        bbox_coder: dict = DEFAULT_CODER,
        reg_max: int = 16,
        init_cfg: dict | list[dict] | None = DEFAULT_INIT,
        *,
        anchor_generator: dict = DEFAULT_ANCHORS,
        loss_cls: dict = DEFAULT_QFL,
        loss_bbox: dict = DEFAULT_BOX_LOSS,
        **kwargs: Any,
    ) -> None:
        self.stacked_convs = stacked_convs
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        self.reg_max = reg_max
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            anchor_generator=anchor_generator,
            bbox_coder=bbox_coder,
            loss_cls=loss_cls,
            loss_bbox=loss_bbox,
            init_cfg=init_cfg,
            **kwargs,
        )
        self.integral = Integral(reg_max)
        self.loss_dfl = MODELS.build(loss_dfl)
        self.calibration = HeadCalibration(type(self).__name__, num_classes)
        self._check_parts()

    def _check_parts(self) -> None:
        if isinstance(self.loss_cls, ScoreLoss):
            if not self.loss_cls.use_sigmoid or self.loss_cls.reduction != 'mean':
                raise ConfigError('GFLHead needs use_sigmoid=True and reduction="mean" in loss_cls')
        elif not isinstance(self.loss_cls, (QualityFocalLoss, MMDetQualityFocalLoss)):
            raise ConfigError(
                f'GFLHead trains quality scores: loss_cls must be a QualityFocalLoss, not '
                f'{type(self.loss_cls).__name__}'
            )
        elif self.loss_cls.activated:
            raise ConfigError('GFLHead outputs logits: set activated=False in loss_cls')
        if not isinstance(self.loss_dfl, (DistributionFocalLoss, MMDetDistributionFocalLoss)):
            raise ConfigError(
                'GFLHead trains edge distributions: loss_dfl must be a DistributionFocalLoss, not '
                f'{type(self.loss_dfl).__name__}'
            )
        if not isinstance(self.bbox_coder, DistancePointBBoxCoder):
            raise ConfigError(
                'GFLHead predicts edge distances: bbox_coder must be a DistancePointBBoxCoder, not '
                f'{type(self.bbox_coder).__name__}'
            )
        if self.train_cfg and not isinstance(self.sampler, PseudoSampler):
            raise ConfigError('GFLHead trains on all priors: remove sampler from train_cfg')
        if any(x != y for x, y in self.prior_generator.strides):
            raise ConfigError(
                f'GFLHead needs the same stride along x and y, not {self.prior_generator.strides}'
            )

    def _init_layers(self) -> None:
        if set(self.prior_generator.num_base_priors) != {1}:
            raise ConfigError(
                'GFLHead has one prior per cell: give anchor_generator one ratio and one scale'
            )
        self.priors = PriorLevels.of(self.prior_generator)
        # mmdet adds a background channel if loss_cls lacks use_sigmoid=True; the head needs none.
        self.cls_out_channels = self.num_classes
        self.cls_convs, self.reg_convs = self._tower(), self._tower()
        self.gfl_cls = nn.Conv2d(self.feat_channels, self.cls_out_channels, 3, padding=1)
        self.gfl_reg = nn.Conv2d(self.feat_channels, 4 * (self.reg_max + 1), 3, padding=1)
        self.scales = nn.ModuleList(Scale(1.0) for _ in self.prior_generator.strides)

    def _tower(self) -> nn.ModuleList:
        channels = [self.in_channels] + [self.feat_channels] * self.stacked_convs
        return nn.ModuleList(
            ConvModule(ins, outs, 3, padding=1, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg)
            for ins, outs in zip(channels, channels[1:])
        )

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the logits of scores and edges.

        Args:
            x: Features, per level ``(B, in_channels, H, W)``.

        Returns:
            Per level, class logits ``(B, C, H, W)`` and edge logits ``(B, 4 * (reg_max + 1), H,
            W)`` in float32, in the order left, top, right, bottom.
        """
        levels = [self.forward_single(*level) for level in zip(x, self.scales)]
        return [cls for cls, _ in levels], [edges for _, edges in levels]

    def forward_single(self, x: Tensor, scale: nn.Module) -> tuple[Tensor, Tensor]:
        """Compute the logits of a level; ``scale`` is its learnt factor of the edge logits."""
        cls_features = edge_features = x
        for conv in self.cls_convs:
            cls_features = conv(cls_features)
        for conv in self.reg_convs:
            edge_features = conv(edge_features)
        return self.gfl_cls(cls_features), scale(self.gfl_reg(edge_features)).float()

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
        batch_gt_instances_ignore: Sequence[InstanceData | None] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the three losses of a batch.

        Args:
            cls_scores: Class logits, per level ``(B, C, H, W)``.
            bbox_preds: Edge logits, per level ``(B, 4 * (reg_max + 1), H, W)``.
            batch_gt_instances: Per image ``bboxes (T, 4)`` xyxy px and ``labels (T,)``.
            batch_img_metas: Per image ``pad_shape`` and ``img_shape``.
            batch_gt_instances_ignore: Per image ``bboxes`` of ignored gts, or None.

        Returns:
            Scalars ``loss_cls`` (QFL), ``loss_bbox`` (IoU loss) and ``loss_dfl`` (DFL).
        """
        ignored = batch_gt_instances_ignore or [None] * len(batch_img_metas)
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            assigned = self.match(
                cls_scores, batch_gt_instances, batch_img_metas, ignored, bbox_preds
            )
            terms = self.loss_terms(cls_scores, bbox_preds, assigned)
            return self.losses(cls_scores, assigned, terms)

    def match(
        self,
        cls_scores: Sequence[Tensor],
        instances: Sequence[InstanceData],
        metas: Sequence[dict],
        ignored: Sequence[InstanceData | None],
        bbox_preds: Sequence[Tensor],
    ) -> BatchAssignment:
        """Assign a batch's gts to priors (arguments of :meth:`loss_by_feat`)."""
        grid = make_grid(self.priors, cls_scores, metas, self.train_cfg.get('allowed_border', -1))
        predictions = None
        if needs_predictions(self.assigner):
            powers = self.train_cfg.get('alpha', ALPHA), self.train_cfg.get('beta', BETA)
            priors = self.prior_generator.grid_priors(grid.sizes, device=grid.device)
            strides = [stride for stride, _ in self.priors.strides]
            predictions = Predictions.of(cls_scores, bbox_preds, priors, strides, powers)
        assigned = assign_batch(self.assigner, grid, instances, ignored, predictions)
        assigned = assigned.of_known_labels(self.num_classes)
        if self.assignment_observer is not None:
            self.assignment_observer(assigned)
        return assigned

    def loss_terms(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        assigned: BatchAssignment,
    ) -> PositiveTerms:
        """Decode the positives and compare them with their gts (arguments as above)."""
        return positive_terms(cls_scores, bbox_preds, assigned, self.reg_max)

    def losses(
        self, cls_scores: Sequence[Tensor], assigned: BatchAssignment, terms: PositiveTerms
    ) -> dict[str, Tensor]:
        """Compute the three losses from tensors (arguments as above)."""
        pos_weight = self.train_cfg.get('pos_weight', -1)
        box_loss = self.loss_bbox(terms.decoded, terms.targets, reduction_override='none')
        return dict(
            loss_cls=class_loss(self.loss_cls, cls_scores, assigned, terms, pos_weight),
            loss_bbox=(box_loss * terms.weight).sum() / terms.weight_sum,
            loss_dfl=self.loss_dfl.loss_weight
            * (terms.edge_loss * terms.weight).sum()
            / terms.weight_sum,
        )

    def predict_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        score_factors: Sequence[Tensor] | None = None,
        batch_img_metas: Sequence[dict] | None = None,
        cfg: ConfigDict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        """Decode the detections of a batch.

        Args:
            cls_scores: Class logits, per level ``(B, C, H, W)``.
            bbox_preds: Edge logits, per level ``(B, 4 * (reg_max + 1), H, W)``.
            score_factors: Must be None; the scores already are qualities.
            batch_img_metas: Per image ``img_shape`` and, for ``rescale``, ``scale_factor`` (w, h).
            cfg: Config that replaces ``test_cfg``.
            rescale: Return boxes in the original image.
            with_nms: Apply NMS and keep the ``max_per_img`` best.

        Returns:
            Per image ``bboxes (N, 4)`` xyxy px, ``scores``, ``labels`` and the fields requested by
            ``cfg``.

        Raises:
            ValueError: If ``score_factors`` is given or ``batch_img_metas`` is not.
        """
        if score_factors is not None:
            raise ValueError('GFLHead scores already are qualities: leave score_factors=None')
        if batch_img_metas is None:
            raise ValueError('batch_img_metas holds the image sizes: pass one for each image')
        cfg = self.test_cfg if cfg is None else cfg
        cls_scores, bbox_preds = ([x.detach() for x in maps] for maps in (cls_scores, bbox_preds))
        device = cls_scores[0].device
        factor = self.calibration.interval_factor(cfg)
        wanted = self.calibration.detection_config(cfg) if with_nms else cfg
        with torch.autocast(device.type, enabled=False):
            frames = Frames.of(batch_img_metas, cfg, rescale, self.bbox_coder.clip_border, device)
            decoder = Decoder.of(bbox_preds, self.priors, frames)
            every = cls_scores if cfg.get('with_class_scores', False) else None
            candidates = find_candidates(cls_scores, cfg)
            results = detect(decoder, candidates, wanted, with_nms, factor, every)
        if not with_nms:
            return results
        return self.calibration.cut(self.calibration.calibrate(results, cfg), cfg)
