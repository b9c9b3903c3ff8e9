"""Generalized Focal Loss: equations, their sum over a pyramid, and registered modules."""

from .modules import DistributionFocalLoss, QualityFocalLoss

__all__ = ['DistributionFocalLoss', 'QualityFocalLoss']
