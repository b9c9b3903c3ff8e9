"""Detectors that mmdet lacks."""

from gfl_det.models.detectors.distillation import KnowledgeDistillationDetector
from gfl_det.models.detectors.nanodet_plus import NanoDetPlus

__all__ = ['KnowledgeDistillationDetector', 'NanoDetPlus']
