"""The pure functions of calibration under one name: NumPy alone, nothing registered."""

from gfl_det.calibration.classification_metrics import (
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
from gfl_det.calibration.softmax_temperature import fit_softmax_temperature, search_temperature
from gfl_det.evaluation.functional import (
    COCO_TAUS,
    average_precision,
    dece,
    errors_by_class,
    evaluate_detections,
    keep_above,
    laace,
    laece,
    lrp,
    optimal_lrp,
    reliability,
    skipped,
    targets_of,
)
from gfl_det.evaluation.matching import match, overlaps

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
