"""Losses: equations, their sum over a pyramid, and registered modules."""

from .calibration_modules import BrierLoss, LabelSmoothingLoss, MMCELoss
from .focal_modules import FocalLoss, InverseFocalLoss
from .modules import DistillationLoss, DistributionFocalLoss, QualityFocalLoss
from .varifocal import VarifocalLoss

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
