"""Assigners of gts to priors for training."""

from gfl_det.models.assigners.atss import ATSSAssigner

__all__ = ['ATSSAssigner']
