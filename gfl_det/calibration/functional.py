"""Detection calibration errors under one name: NumPy alone, nothing registered.

They live in :mod:`gfl_det.evaluation.functional`; the metrics of classifiers, which the studies
use, are in ``projects/calibration_study``.
"""

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
    'average_precision',
    'dece',
    'errors_by_class',
    'evaluate_detections',
    'keep_above',
    'laace',
    'laece',
    'lrp',
    'match',
    'optimal_lrp',
    'overlaps',
    'reliability',
    'skipped',
    'targets_of',
]
