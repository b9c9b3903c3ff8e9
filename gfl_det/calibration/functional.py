"""The pure functions of calibration under one name: NumPy alone, nothing registered."""

from .average_precision import COCO_TAUS, average_precision
from .classification_metrics import (
    average_calibration_error,
    brier_score,
    classwise_calibration_error,
    confidence_table,
    expected_calibration_error,
    maximum_calibration_error,
    negative_log_likelihood,
    root_calibration_error,
    softmax,
)
from .detection_metrics import dece, laace, laece, skipped, targets_of
from .evaluation import errors_by_class, evaluate_detections, keep_above
from .lrp import lrp, optimal_lrp
from .matching import match, overlaps
from .reliability import reliability
from .softmax_temperature import fit_softmax_temperature, search_temperature

__all__ = [
    'COCO_TAUS',
    'average_calibration_error',
    'average_precision',
    'brier_score',
    'classwise_calibration_error',
    'confidence_table',
    'dece',
    'errors_by_class',
    'evaluate_detections',
    'expected_calibration_error',
    'fit_softmax_temperature',
    'keep_above',
    'laace',
    'laece',
    'lrp',
    'match',
    'maximum_calibration_error',
    'negative_log_likelihood',
    'optimal_lrp',
    'overlaps',
    'reliability',
    'root_calibration_error',
    'search_temperature',
    'skipped',
    'softmax',
    'targets_of',
]
