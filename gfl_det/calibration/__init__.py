"""Calibrated scores and edge intervals: metrics, post-hoc calibrators, a metric for evaluators."""

from .arrays import Detections, Truths
from .calibrators import DetectionCalibrator, Settings, fit_calibrator
from .coco import detections_from_coco, read_json, truths_from_coco
from .distribution_calibrator import (
    DistributionCalibrator,
    DistributionSettings,
    fit_distribution_calibrator,
)
from .distribution_files import load_any_calibrator, save_distribution_calibrator
from .evaluation import evaluate_detections
from .evidence import EdgeDetections
from .files import load_calibrator, save_calibrator
from .interval_files import load_interval_calibrator, save_interval_calibrator
from .intervals import IntervalCalibrator
from .matching import Matches, match
from .metric import CalibrationMetric

__all__ = [
    'CalibrationMetric',
    'DetectionCalibrator',
    'Detections',
    'DistributionCalibrator',
    'DistributionSettings',
    'EdgeDetections',
    'IntervalCalibrator',
    'Matches',
    'Settings',
    'Truths',
    'detections_from_coco',
    'evaluate_detections',
    'fit_calibrator',
    'fit_distribution_calibrator',
    'load_any_calibrator',
    'load_calibrator',
    'load_interval_calibrator',
    'match',
    'read_json',
    'save_calibrator',
    'save_distribution_calibrator',
    'save_interval_calibrator',
    'truths_from_coco',
]
