"""Detection calibration errors under one name: NumPy only, nothing registered.

They are defined in :mod:`gfl_det.evaluation.functional` and :mod:`gfl_det.evaluation.evaluate`; the
classification metrics of the studies are in ``projects/calibration_study``.
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
