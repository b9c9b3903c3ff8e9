"""Assigners: which priors are trained for which gt."""

from gfl_det.models.assigners.atss import ATSSAssigner

__all__ = ['ATSSAssigner']
