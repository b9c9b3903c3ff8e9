"""Necks that MMDetection lacks."""

from gfl_det.models.necks.ghost_pan import GhostPAN

__all__ = ['GhostPAN']
