"""Losses: equations, their sum over a pyramid, and registered modules."""

from gfl_det.models.losses.calibration_modules import BrierLoss, LabelSmoothingLoss, MMCELoss
from gfl_det.models.losses.focal_modules import FocalLoss, InverseFocalLoss
from gfl_det.models.losses.modules import DistillationLoss, DistributionFocalLoss, QualityFocalLoss
from gfl_det.models.losses.varifocal import VarifocalLoss

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
