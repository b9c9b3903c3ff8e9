"""Which priors answer for which truth."""

from .atss import ATSSAssigner

__all__ = ['ATSSAssigner']
