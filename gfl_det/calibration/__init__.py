"""Calibrated scores: metrics, post-hoc calibrators, and a metric for evaluators."""

from .arrays import Detections, Truths
from .coco import detections_from_coco, read_json, truths_from_coco
from .evaluation import evaluate_detections
from .matching import Matches, match
from .metric import CalibrationMetric

__all__ = [
    'CalibrationMetric',
    'Detections',
    'Matches',
    'Truths',
    'detections_from_coco',
    'evaluate_detections',
    'match',
    'read_json',
    'truths_from_coco',
]
