"""Which priors answer for which gt."""

from gfl_det.models.assigners.atss import ATSSAssigner

__all__ = ['ATSSAssigner']
