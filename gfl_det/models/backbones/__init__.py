"""Backbones that MMDetection lacks."""

from gfl_det.models.backbones.shufflenet_v2 import ShuffleNetV2

__all__ = ['ShuffleNetV2']
