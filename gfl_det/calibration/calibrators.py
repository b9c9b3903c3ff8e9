"""Post-hoc calibrators of detections: fitted on one split, applied to another.

The protocol is that of Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and
Baselines", ECCV 2024: cut each class at its best score, fit what remains, and cut again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ConfigError, DataError
from .arrays import Detections, Truths, check_detections, fingerprint
from .detection_metrics import Target, targets_of
from .evaluation import keep_above
from .fitted import (
    NO_DETECTIONS,
    NO_TRUTHS,
    POOLED,
    ClassMap,
    Cut,
    FittedCalibrator,
    Source,
    check_labels,
    check_protocol,
    find_cuts,
    state_of,
)
from .maps import FITS, Identity, Method, ScoreMap, fit_of
from .matching import Matches, ZeroOverlap, match


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
        kept = keep_above(detections, [each.raw_threshold for each in self.classes])
        kept &= keep_above(mapped, [each.threshold for each in self.classes])
        rows = np.flatnonzero(kept)
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
    check_detections(detections)
    if not len(detections.scores):
        raise DataError('there are no detections to fit a calibrator on: lower score_thr')
    raw_cuts = find_cuts(settings.cuts[0], detections, truths, settings)
    kept = detections.take(keep_above(detections, raw_cuts))
    (found,) = match(kept, truths, [settings.tau], settings.zero_overlap)
    judged = found.judged()
    if not judged.any():
        raise DataError(
            'not one detection can be judged, as their classes have no truths: give the truths and '
            'detections of one data set'
        )
    maps, states = _fit_maps(found, judged, settings)
    used = np.bincount(found.label[judged], minlength=len(maps))

    def build(cuts: np.ndarray) -> DetectionCalibrator:
        rows = zip(truths.class_names, maps, states, raw_cuts, cuts, used)
        classes = tuple(
            ClassMap(name, each, status, float(raw), float(cut), int(number))
            for name, each, status, raw, cut, number in rows
        )
        digest = fingerprint(truths, detections)
        source = Source(digest, tuple(truths.image_keys), len(detections.scores))
        return DetectionCalibrator(settings, score_type, classes, source)

    uncut = build(np.full(len(maps), np.nan))
    mapped, _ = uncut.apply(kept)
    return build(find_cuts(settings.cuts[1], mapped, truths, settings))


def _fit_maps(
    found: Matches, judged: np.ndarray, settings: Settings
) -> tuple[list[ScoreMap], list[str]]:
    """A map and a status for each class, from the detections that can be judged."""
    fit = fit_of(settings.method, settings.quality_focal, settings.grid)
    number = len(found.truths)
    targets = targets_of(found, settings.target)
    if settings.class_agnostic:
        pooled = fit(found.scores[judged], targets[judged])
        return [pooled] * number, [POOLED] * number
    maps: list[ScoreMap] = []
    states: list[str] = []
    for label in range(number):
        mine = judged & (found.label == label)
        if not mine.any():
            maps.append(Identity())
            states.append(NO_DETECTIONS if found.truths[label] else NO_TRUTHS)
            continue
        maps.append(fit(found.scores[mine], targets[mine]))
        states.append(state_of(found, mine))
    return maps, states
