"""Detectors that mmdet has no fitting one for."""

from .distillation import KnowledgeDistillationDetector

__all__ = ['KnowledgeDistillationDetector']
