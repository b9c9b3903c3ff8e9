"""Calibration of detectors' scores, raw and after each calibrator, on held-out images.

Three views of the same detections (protocols of Kuzucu et al., "On Calibration of Object Detectors:
Pitfalls, Evaluation and Baselines", ECCV 2024):

- all: a map for each class, fitted to the IoU on all detections, none cut: a detector that
  calibrates what leaves its NMS.
- kept: each class cut where its LRP is least, fitted, and cut again: the published protocol of
  LaECE_0.
- precision: one map for all classes, fitted to right or wrong at IoU .5 above a raw score of .3:
  the protocol of papers that report D-ECE.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gfl_det.calibration.calibrators import DetectionCalibrator, Settings, fit_calibrator
from gfl_det.calibration.maps import Method
from gfl_det.calibration.splits import Judged, split
from gfl_det.evaluation.evaluate import evaluate_detections
from gfl_det.evaluation.matching import match

METHODS: tuple[Method, ...] = ('identity', 'temperature', 'platt', 'linear', 'isotonic')
VIEWS = ('all', 'kept', 'precision')


class Outcome(NamedTuple):
    """What one calibrator made of one detector's scores."""

    name: str  # of the detector
    cut: int  # which random cut of the held-out images; 0 without
    method: Method
    view: str  # of VIEWS
    metrics: dict[str, float]  # of `evaluate_detections`, and 'bias': mean of score - IoU


def settings_of(method: Method, view: str) -> Settings:
    """How a calibrator is fitted for a view.

    Raises:
        KeyError: the view is unknown.
    """
    return {
        'all': Settings(method, cuts=(0.0, 0.0)),
        'kept': Settings(method, cuts=('lrp', 'lrp')),
        'precision': Settings(method, 0.5, 'precision', class_agnostic=True, cuts=(0.3, 0.3)),
    }[view]


def halves(judged: Judged, cuts: int) -> list[tuple[Judged, Judged]]:
    """One held-out split in two, to fit and to judge, for each of the seeds from 0.

    Raises:
        DataError: there are fewer than two images.
    """
    return [split(judged, seed) for seed in range(cuts)]


def compare(name: str, fitting: Judged, judged: Judged, cut: int = 0) -> Iterator[Outcome]:
    """Fit each calibrator for each view, and judge what it makes of other images.

    Args:
        name: of the detector.
        fitting: gt boxes and raw detections to fit on.
        judged: those of other images.
        cut: number of the cut, for the table.

    Raises:
        DataError: an image is in both, or nothing can be fitted.
    """
    for method in METHODS:
        for view in VIEWS:
            yield calibrate(name, fitting, judged, method, view, cut)


def calibrate(
    name: str, fitting: Judged, judged: Judged, method: Method, view: str, cut: int = 0
) -> Outcome:
    """One calibrator of :func:`compare`, for one view."""
    fitted = fit_calibrator(fitting.detections, fitting.gts, settings_of(method, view))
    fitted = fitted.for_classes(judged.gts.class_names)
    fitted.check_unseen(judged.gts)
    return Outcome(name, cut, method, view, judge(fitted, judged, view))


def judge(fitted: DetectionCalibrator, judged: Judged, view: str) -> dict[str, float]:
    """Metrics of calibrated detections: of all, or of those that the calibrator keeps."""
    gts, found = judged
    if view == 'all':
        calibrated = found._replace(scores=fitted.calibrate(found.scores, found.label))
    else:
        calibrated, _ = fitted.apply(found)
    metrics = evaluate_detections(calibrated, gts)
    (matches,) = match(calibrated, gts, [0.0])
    counted = matches.judged()
    distance = (matches.scores - matches.iou)[counted]
    return {**metrics, 'bias': float(distance.mean()) if len(distance) else float('nan')}


def means(outcomes: list[Outcome], name: str, method: str, view: str, metric: str) -> np.ndarray:
    """The values of a metric in the cuts (and detectors of one name), ``(n,)``."""
    return np.array(
        [
            each.metrics[metric]
            for each in outcomes
            if (each.name, each.method, each.view) == (name, method, view)
        ]
    )
