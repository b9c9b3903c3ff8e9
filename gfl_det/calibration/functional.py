"""Detection calibration errors under one name: NumPy alone, nothing registered.

They live in :mod:`gfl_det.evaluation.functional` and :mod:`gfl_det.evaluation.evaluate`; the
metrics of classifiers, which the studies use, are in ``projects/calibration_study``.
"""

from gfl_det.evaluation.evaluate import errors_by_class, evaluate_detections, keep_above
from gfl_det.evaluation.floors import dece_floor, laace_floor, laece_floor
from gfl_det.evaluation.functional import (
    COCO_TAUS,
    average_precision,
    dece,
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
    'dece_floor',
    'errors_by_class',
    'evaluate_detections',
    'keep_above',
    'laace',
    'laace_floor',
    'laece',
    'laece_floor',
    'lrp',
    'match',
    'optimal_lrp',
    'overlaps',
    'reliability',
    'skipped',
    'targets_of',
]
