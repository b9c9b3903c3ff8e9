"""Post-hoc calibrators of detections: fitted on one split, applied to another.

The protocol is that of Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and
Baselines", ECCV 2024: cut each class at its best score, fit what remains, and cut again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Union

import numpy as np

from ..datasets.annotations import listed
from ..errors import ConfigError, DataError
from .arrays import Detections, Truths, check_detections, fingerprint
from .detection_metrics import TARGETS, Target, targets_of
from .evaluation import keep_above
from .lrp import optimal_lrp
from .maps import FITS, Identity, Method, ScoreMap, fit_of
from .matching import TRUE, ZERO_OVERLAPS, Matches, ZeroOverlap, match

Cut = Union[Literal['lrp'], float]
# What became of a class.
FITTED = 'fitted'
POOLED = 'fitted on all classes together'
NO_TRUE_POSITIVE = 'no true positive'  # every target is 0, and so is every fitted score
NO_TRUTHS = 'no truths'  # the score stays
NO_DETECTIONS = 'no detections'  # the score stays


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
        for name, value, known in (
            ('method', self.method, tuple(FITS)),
            ('target', self.target, TARGETS),
            ('zero_overlap', self.zero_overlap, ZERO_OVERLAPS),
        ):
            if value not in known:
                raise ConfigError(f'{name} of a calibrator is one of {known}, not {value!r}')
        if not isinstance(self.tau, (int, float)) or not 0 <= self.tau < 1:
            raise ConfigError(f'tau of a calibrator lies in [0, 1), not {self.tau!r}')
        if len(self.cuts) != 2 or not all(_is_cut(cut) for cut in self.cuts):
            raise ConfigError(
                f"cuts of a calibrator are two, each 'lrp' or a score in [0, 1], not {self.cuts!r}"
            )
        fit_of(self.method, self.quality_focal, self.grid)


class ClassMap(NamedTuple):
    """What a calibrator knows of a class."""

    name: str
    map: ScoreMap
    status: str  # FITTED, POOLED, NO_TRUE_POSITIVE, NO_TRUTHS or NO_DETECTIONS
    raw_threshold: float  # least raw score; NaN keeps all
    threshold: float  # least calibrated score; NaN keeps all
    detections: int  # that it was fitted on


class Source(NamedTuple):
    """The data that a calibrator was fitted on."""

    fingerprint: str  # hex digest of truths and detections
    images: tuple[str, ...]  # digests of the images
    detections: int


@dataclass(frozen=True)
class DetectionCalibrator:
    """A fitted calibrator; :mod:`.files` saves and loads it."""

    settings: Settings
    score_type: str  # whose scores it is for, such as the name of a head
    classes: tuple[ClassMap, ...]  # in the order of the labels
    source: Source

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the labels."""
        return [each.name for each in self.classes]

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
        if not ((labels >= 0) & (labels < len(self.classes))).all():
            raise DataError(
                f'a label is outside 0..{len(self.classes) - 1}: the calibrator was fitted for the '
                f'classes {listed(self.class_names)}'
            )
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
        known = {each.name: each for each in self.classes}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise DataError(
                f'the calibrator was fitted for the classes {listed(self.class_names)} and not for '
                f'{listed(unknown)}: fit one for this data set'
            )
        return replace(self, classes=tuple(known[name] for name in names))

    def check_score_type(self, score_type: str) -> None:
        """Refuse the scores of another kind of head.

        Raises:
            DataError: the calibrator was fitted for another.
        """
        if score_type != self.score_type:
            raise DataError(
                f'the calibrator was fitted for scores of {self.score_type!r} and not of '
                f'{score_type!r}: fit one for these scores'
            )

    def check_unseen(self, truths: Truths) -> None:
        """Refuse to judge a calibrator on images that it was fitted on.

        Raises:
            DataError: an image with the same id and file name was among them.
        """
        seen = set(self.source.images)
        shared = [
            image_id for image_id, key in zip(truths.image_ids, truths.image_keys) if key in seen
        ]
        if shared:
            raise DataError(
                f'{len(shared)} of {len(truths.image_ids)} images were used to fit the calibrator '
                f'(ids {listed(shared)}): judge it on others'
            )


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
    raw_cuts = _cuts(settings.cuts[0], detections, truths, settings)
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
    return build(_cuts(settings.cuts[1], mapped, truths, settings))


def _cuts(cut: Cut, detections: Detections, truths: Truths, settings: Settings) -> np.ndarray:
    if cut != 'lrp':
        return np.full(len(truths.category_ids), float(cut))
    (found,) = match(detections, truths, [settings.tau], settings.zero_overlap)
    return optimal_lrp(found).thresholds


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
        right = (found.state[mine] == TRUE).any()
        states.append(FITTED if right else NO_TRUE_POSITIVE)
    return maps, states


def _is_cut(cut: object) -> bool:
    if isinstance(cut, str):
        return cut == 'lrp'
    return isinstance(cut, (int, float)) and 0 <= cut <= 1
