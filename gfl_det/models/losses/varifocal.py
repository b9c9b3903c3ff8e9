"""The registered shell of Varifocal Loss."""

from __future__ import annotations

from torch import Tensor

from gfl_det.models.losses.functional import varifocal_loss
from gfl_det.models.losses.modules import Reduction
from gfl_det.models.losses.score_losses import ScoreLoss
from gfl_det.registry import MODELS


@MODELS.register_module()
class VarifocalLoss(ScoreLoss):
    """Varifocal Loss (VarifocalNet, CVPR 2021, eq. 2), a drop-in for mmdet's and for our heads.

    Like Quality Focal Loss it trains scores that are qualities, but only negatives are focal, and
    positives weigh as much as their quality. ``GFLHead`` sums it as it sums Quality Focal Loss;
    called by itself it takes targets ``(N, C)`` as mmdet's, or labels with qualities.

    Args:
        use_sigmoid: must be True; kept so that mmdet's configs fit.
        alpha: weight of negatives, at least 0.
        gamma: focusing parameter of negatives, at least 0.
        iou_weighted: weigh a positive by its quality, as the paper does.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: factor of the result.

    Raises:
        ValueError: ``use_sigmoid`` is False, or ``alpha`` or ``gamma`` is negative.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        alpha: float = 0.75,
        gamma: float = 2.0,
        iou_weighted: bool = True,
        reduction: Reduction = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        if not use_sigmoid:
            raise ValueError('VarifocalLoss has one score a class: leave use_sigmoid=True')
        if not (alpha >= 0 and gamma >= 0):
            raise ValueError(
                f'alpha and gamma of VarifocalLoss are at least 0, not {alpha!r} and {gamma!r}'
            )
        super().__init__(use_sigmoid, reduction, loss_weight)
        self.alpha, self.gamma, self.iou_weighted = alpha, gamma, iou_weighted

    def sigmoid_loss(self, logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
        return varifocal_loss(logits, quality, self.alpha, self.gamma, self.iou_weighted)
