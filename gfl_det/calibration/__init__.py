"""Calibrated scores: metrics, post-hoc calibrators, and a metric for evaluators."""

from .arrays import Detections, Truths
from .calibrators import DetectionCalibrator, Settings, fit_calibrator
from .coco import detections_from_coco, read_json, truths_from_coco
from .evaluation import evaluate_detections
from .files import load_calibrator, save_calibrator
from .matching import Matches, match
from .metric import CalibrationMetric

__all__ = [
    'CalibrationMetric',
    'DetectionCalibrator',
    'Detections',
    'Matches',
    'Settings',
    'Truths',
    'detections_from_coco',
    'evaluate_detections',
    'fit_calibrator',
    'load_calibrator',
    'match',
    'read_json',
    'save_calibrator',
    'truths_from_coco',
]
