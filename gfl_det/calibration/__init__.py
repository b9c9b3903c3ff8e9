"""Calibration of scores and edge intervals: post-hoc calibrators and their metrics."""

from gfl_det.calibration.calibrators import DetectionCalibrator, Settings, fit_calibrator
from gfl_det.calibration.distribution import (
    DistributionCalibrator,
    DistributionSettings,
    EdgeDetections,
    fit_distribution_calibrator,
)
from gfl_det.calibration.files import (
    load_any_calibrator,
    load_calibrator,
    load_interval_calibrator,
    load_operating_point,
    save_calibrator,
    save_distribution_calibrator,
    save_interval_calibrator,
    save_operating_point,
)
from gfl_det.calibration.intervals import IntervalCalibrator
from gfl_det.calibration.operating_point import OperatingPoint, Promise, choose_cuts
from gfl_det.evaluation.calibration_metric import CalibrationMetric
from gfl_det.evaluation.comparison import compare_detections
from gfl_det.evaluation.detections import (
    Detections,
    GroundTruth,
    Truths,
    detections_from_coco,
    gts_from_coco,
    read_json,
    truths_from_coco,
)
from gfl_det.evaluation.evaluate import evaluate_detections
from gfl_det.evaluation.matching import Matches, match

__all__ = [
    'CalibrationMetric',
    'DetectionCalibrator',
    'Detections',
    'DistributionCalibrator',
    'DistributionSettings',
    'EdgeDetections',
    'GroundTruth',
    'IntervalCalibrator',
    'Matches',
    'OperatingPoint',
    'Promise',
    'Settings',
    'Truths',
    'choose_cuts',
    'compare_detections',
    'detections_from_coco',
    'evaluate_detections',
    'fit_calibrator',
    'fit_distribution_calibrator',
    'gts_from_coco',
    'load_any_calibrator',
    'load_calibrator',
    'load_interval_calibrator',
    'load_operating_point',
    'match',
    'read_json',
    'save_calibrator',
    'save_distribution_calibrator',
    'save_interval_calibrator',
    'save_operating_point',
    'truths_from_coco',
]
