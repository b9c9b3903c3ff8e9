"""Detectors that mmdet has no fitting one for."""

from gfl_det.models.detectors.distillation import KnowledgeDistillationDetector

__all__ = ['KnowledgeDistillationDetector']
