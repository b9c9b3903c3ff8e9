"""Post-hoc calibrators of detections: fitted on one split, applied to another.

The protocol is that of Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and
Baselines", ECCV 2024: cut each class at its best score, fit what remains, and cut again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gfl_det.calibration.fitted import (
    POOLED,
    ClassMap,
    Cut,
    FittedCalibrator,
    Source,
    check_labels,
    check_protocol,
)
from gfl_det.calibration.fitting import (
    FitData,
    cut_classes,
    fit_data,
    fit_maps,
    source_of,
    uncut_classes,
)
from gfl_det.calibration.maps import FITS, Method, ScoreMap, fit_of
from gfl_det.errors import ConfigError
from gfl_det.evaluation.detections import Detections, Truths, check_detections
from gfl_det.evaluation.functional import Target, targets_of
from gfl_det.evaluation.matching import ZeroOverlap


@dataclass(frozen=True)
class Settings:
    """How a calibrator is fitted.

    Args:
        method: of `maps.FITS`.
        tau: threshold in [0, 1) of the IoU for matching and for the cuts.
        target: what a score should be: the 'iou' of its box, or the 'precision'.
        class_agnostic: one map for all classes in place of one for each.
        cuts: least raw score for the fit, and least calibrated score: a number for all classes, or
            'lrp', which finds the score of each class with the least LRP.
        zero_overlap: see :func:`.matching.match`.
        quality_focal: fit a temperature or a Platt map by Quality Focal Loss with an exponent of 1
            in place of cross entropy.
        grid: search a Platt map on the published grid in place of its optimum.

    Raises:
        ConfigError: a value is out of range, or the method has no such option.
    """

    method: Method = 'isotonic'
    tau: float = 0.0
    target: Target = 'iou'
    class_agnostic: bool = False
    cuts: tuple[Cut, Cut] = ('lrp', 'lrp')
    zero_overlap: ZeroOverlap = 'oracle'
    quality_focal: bool = False
    grid: bool = False

    def __post_init__(self) -> None:
        if self.method not in FITS:
            raise ConfigError(
                f'method of a calibrator is one of {tuple(FITS)}, not {self.method!r}'
            )
        check_protocol(self)
        fit_of(self.method, self.quality_focal, self.grid)


@dataclass(frozen=True)
class DetectionCalibrator(FittedCalibrator):
    """A fitted calibrator; :mod:`.files` saves and loads it."""

    settings: Settings
    score_type: str  # whose scores it is for, such as the name of a head
    classes: tuple[ClassMap, ...]  # in the order of the labels
    source: Source

    def calibrate(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Map scores, cut none: what a detector does after NMS.

        Args:
            scores: ``(N,)`` in [0, 1].
            labels: ``(N,)`` int, indices of the classes.

        Returns:
            ``(N,)`` float64 in [0, 1].

        Raises:
            DataError: a score is NaN or outside [0, 1], or a label is unknown.
        """
        scores, labels = np.asarray(scores, float), np.asarray(labels, np.int64)
        check_detections(Detections(labels, labels, np.zeros((len(labels), 4)), scores))
        check_labels(labels, self.class_names)
        if self.settings.class_agnostic:
            return self.classes[0].map(scores)
        calibrated = np.empty(len(scores))
        for label in np.unique(labels):
            mine = labels == label
            calibrated[mine] = self.classes[label].map(scores[mine])
        return calibrated

    def apply(self, detections: Detections) -> tuple[Detections, np.ndarray]:
        """Cut, map and cut again: the operating point that the calibrator was fitted for.

        Args:
            detections: with raw scores.

        Returns:
            What is kept, in order, with calibrated scores; and its indices.
        """
        calibrated = self.calibrate(detections.scores, detections.label)
        mapped = detections._replace(scores=calibrated)
        rows = np.flatnonzero(self.kept(detections, mapped))
        return mapped.take(rows), rows

    def for_classes(self, names: Sequence[str]) -> DetectionCalibrator:
        """The same calibrator with its classes in the order of the names.

        Raises:
            DataError: it was not fitted for one of them.
        """
        return replace(self, classes=tuple(self.classes[i] for i in self.order_of(names)))


def fit_calibrator(
    detections: Detections, truths: Truths, settings: Settings, score_type: str = 'detection'
) -> DetectionCalibrator:
    """Fit a calibrator on a split that nothing else is judged on.

    Args:
        detections: after NMS, with raw scores.
        truths: of the same images.
        settings: see there.
        score_type: whose scores they are; compared when the calibrator is applied.

    Raises:
        DataError: no detections, or none that can be judged.
    """
    data = fit_data(detections, truths, settings)
    maps = _fit_maps(data, settings)
    source = source_of(truths, detections)
    uncut = DetectionCalibrator(settings, score_type, uncut_classes(data, truths, maps), source)
    scores = uncut.calibrate(detections.scores, detections.label)
    mapped = detections._replace(scores=scores)
    return replace(uncut, classes=cut_classes(uncut.classes, mapped, data, truths, settings))


def _fit_maps(data: FitData, settings: Settings) -> list[tuple[ScoreMap, str]]:
    """A map and a status for each class."""
    fit = fit_of(settings.method, settings.quality_focal, settings.grid)
    scores, targets = data.matches.scores, targets_of(data.matches, settings.target)
    if settings.class_agnostic:
        return [(fit(scores, targets), POOLED)] * len(data.matches.truths)
    return fit_maps(data, scores, targets, fit)
