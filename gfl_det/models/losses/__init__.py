"""Losses: equations, their sum over a pyramid, and registered modules."""

from gfl_det.models.losses.modules import DistillationLoss, DistributionFocalLoss, QualityFocalLoss
from gfl_det.models.losses.score_losses import (
    BrierLoss,
    FocalLoss,
    InverseFocalLoss,
    LabelSmoothingLoss,
    MMCELoss,
    VarifocalLoss,
)

__all__ = [
    'BrierLoss',
    'DistillationLoss',
    'DistributionFocalLoss',
    'FocalLoss',
    'InverseFocalLoss',
    'LabelSmoothingLoss',
    'MMCELoss',
    'QualityFocalLoss',
    'VarifocalLoss',
]
