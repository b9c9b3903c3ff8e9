"""Which priors answer for which truth."""

from gfl_det.models.assigners.atss import ATSSAssigner

__all__ = ['ATSSAssigner']
