"""Post-hoc calibrators of detections: fitted on one split, applied to another.

The protocol follows Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and
Baselines", ECCV 2024: cut each class at its best score, fit what remains, and cut again. The module
begins with the parts shared by all calibrators; the calibrator that maps scores follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, Union

import numpy as np

from gfl_det.calibration.maps import FITS, Identity, Method, ScoreMap, fit_of
from gfl_det.datasets.annotations import listed
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import Detections, GroundTruth, check_detections, fingerprint
from gfl_det.evaluation.evaluate import keep_above
from gfl_det.evaluation.functional import TARGETS, Target, optimal_lrp, targets_of
from gfl_det.evaluation.matching import (
    PER_DETECTION,
    TRUE,
    ZERO_OVERLAPS,
    Matches,
    ZeroOverlap,
    match,
)

Cut = Union[Literal['lrp'], float]
# Status of a class.
FITTED = 'fitted'
POOLED = 'fitted on all classes together'
# Every target is 0, and so is the fitted map (identity keeps the score, and a distribution
# calibrator its model's share, see OWN_SHARE there).
NO_TRUE_POSITIVE = 'no true positive'
NO_GTS = 'no truths'  # the score stays; the word in the files of calibrators
NO_DETECTIONS = 'no detections'  # the score stays


class FitProtocol(Protocol):
    """Settings of a fit that all calibrators share; see :class:`.calibrators.Settings`."""

    @property
    def tau(self) -> float: ...
    @property
    def target(self) -> Target: ...
    @property
    def cuts(self) -> tuple[Cut, Cut]: ...
    @property
    def zero_overlap(self) -> ZeroOverlap: ...


class ClassMap(NamedTuple):
    """Fitted map, cuts and status of a class."""

    name: str
    map: ScoreMap
    status: str  # FITTED, POOLED, NO_TRUE_POSITIVE, NO_GTS or NO_DETECTIONS
    raw_threshold: float  # minimum raw score; NaN keeps all
    threshold: float  # minimum calibrated score; NaN keeps all
    detections: int  # number of detections fitted on


class FitSource(NamedTuple):
    """Data that a calibrator was fitted on."""

    fingerprint: str  # hex digest of gt boxes and detections
    images: tuple[str, ...]  # digests of the images
    detections: int


class FittedCalibrator:
    """Base class of calibrators: score type, classes and fitted images."""

    settings: FitProtocol
    score_type: str
    classes: tuple[ClassMap, ...]
    source: FitSource

    @property
    def class_names(self) -> list[str]:
        """Class names in label order."""
        return [each.name for each in self.classes]

    def order_of(self, names: Sequence[str]) -> list[int]:
        """Indices of the named classes.

        Raises:
            DataError: If the calibrator was not fitted for one of them.
        """
        known = {name: index for index, name in enumerate(self.class_names)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise DataError(
                f'the calibrator was fitted for the classes {listed(self.class_names)}, not for '
                f'{listed(unknown)}: fit one for this dataset'
            )
        return [known[name] for name in names]

    def kept(self, raw: Detections, calibrated: Detections) -> np.ndarray:
        """Mask ``(N,)`` of the detections that pass both cuts of their class.

        Args:
            raw: N detections with raw scores.
            calibrated: The same detections with calibrated scores.
        """
        reach_raw = keep_above(raw, [each.raw_threshold for each in self.classes])
        return reach_raw & keep_above(calibrated, [each.threshold for each in self.classes])

    def check_score_type(self, score_type: str) -> None:
        """Refuse scores from another kind of head.

        Raises:
            DataError: If the calibrator was fitted for another score type.
        """
        if score_type != self.score_type:
            raise DataError(
                f'the calibrator was fitted for scores of {self.score_type!r}, not of '
                f'{score_type!r}: fit one for these scores'
            )

    def check_unseen(self, truths: GroundTruth) -> None:
        """Refuse to assess a calibrator on images that it was fitted on.

        Raises:
            DataError: If an image with the same id and file name was among them.
        """
        seen = set(self.source.images)
        shared = [
            image_id for image_id, key in zip(truths.image_ids, truths.image_keys) if key in seen
        ]
        if shared:
            raise DataError(
                f'{len(shared)} of {len(truths.image_ids)} images were used to fit the calibrator '
                f'(ids {listed(shared)}): assess it on others'
            )

    def check_judged(self, truths: GroundTruth) -> None:
        """Refuse gt boxes that the calibrator cannot be assessed on.

        Raises:
            DataError: If it was fitted on one of the images, or not fitted for one of the classes.
        """
        self.check_unseen(truths)
        self.order_of(truths.class_names)


def check_labels(labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Refuse labels ``(N,)`` outside the range of classes.

    Raises:
        DataError: If a label is out of range.

    Example:
        >>> check_labels(np.array([0, 1]), ['cat', 'dog'])
    """
    if not ((labels >= 0) & (labels < len(class_names))).all():
        raise DataError(
            f'a label is outside 0..{len(class_names) - 1}: the calibrator was fitted for the '
            f'classes {listed(class_names)}'
        )


def check_protocol(settings: FitProtocol) -> None:
    """Refuse settings that are out of range.

    Raises:
        ConfigError: If a setting is out of range.

    Example:
        >>> check_protocol(Settings(tau=0.5))
    """
    for name, value, known in (
        ('target', settings.target, TARGETS),
        ('zero_overlap', settings.zero_overlap, ZERO_OVERLAPS),
    ):
        if value not in known:
            raise ConfigError(f'{name} of a calibrator must be one of {known}, not {value!r}')
    if not isinstance(settings.tau, (int, float)) or not 0 <= settings.tau < 1:
        raise ConfigError(f'tau of a calibrator must lie in [0, 1), not {settings.tau!r}')
    if len(settings.cuts) != 2 or not all(_is_cut(cut) for cut in settings.cuts):
        raise ConfigError(
            f"cuts must be two values, each 'lrp' or a score in [0, 1], not {settings.cuts!r}"
        )


def _is_cut(cut: object) -> bool:
    if isinstance(cut, str):
        return cut == 'lrp'
    return isinstance(cut, (int, float)) and 0 <= cut <= 1


class FitData(NamedTuple):
    """Matched detections that a calibrator is fitted on, J of a split."""

    raw_cuts: np.ndarray  # (K,) minimum raw scores; NaN keeps all
    kept: np.ndarray  # int64, indices of the split's detections that pass these cuts
    rows: np.ndarray  # (J,) int64, indices into the split's detections
    matches: Matches  # J


def fit_data(detections: Detections, gts: GroundTruth, settings: FitProtocol) -> FitData:
    """Cut each class by raw score, match the rest, and select matches with known targets.

    Args:
        detections: Detections after NMS, with raw scores.
        gts: Ground truth of the same images.
        settings: Settings of the calibrator.

    Raises:
        DataError: If there are no detections, or none with a class that has gt boxes.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.6]))
        >>> data = fit_data(found, gts, Settings(cuts=(0, 0)))
        >>> data.rows, data.matches.iou
        (array([0]), array([1.]))
    """
    check_detections(detections)
    if not len(detections.scores):
        raise DataError('there are no detections to fit a calibrator on: lower score_thr')
    raw_cuts = _find_cuts(settings.cuts[0], detections, gts, settings)
    kept = np.flatnonzero(keep_above(detections, raw_cuts))
    (found,) = match(detections.take(kept), gts, [settings.tau], settings.zero_overlap)
    judged = found.judged()
    if not judged.any():
        raise DataError(
            'no detection belongs to a class with gt boxes: give annotations and detections of '
            'one dataset'
        )
    matches = found._replace(**{name: getattr(found, name)[judged] for name in PER_DETECTION})
    return FitData(raw_cuts, kept, kept[matches.row], matches)


def fit_maps(
    data: FitData,
    values: np.ndarray,
    targets: np.ndarray,
    fit: Callable[[np.ndarray, np.ndarray], ScoreMap],
) -> list[tuple[ScoreMap, str]]:
    """Fit a map per class, with its status; a class without detections keeps its scores.

    Args:
        data: J matched detections.
        values: ``(J,)`` inputs of the maps.
        targets: ``(J,)`` targets of the maps.
        fit: Function that fits a map to values and targets of a class.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.6]))
        >>> data = fit_data(found, gts, Settings(cuts=(0, 0)))
        >>> fit = fit_of('isotonic')
        >>> fit_maps(data, data.matches.scores, data.matches.iou, fit)
        [(Isotonic(scores=(0.6,), values=(1.0,)), 'fitted')]
    """
    matches = data.matches
    maps: list[tuple[ScoreMap, str]] = []
    for label, number in enumerate(matches.gt_counts):
        mine = matches.label == label
        if not mine.any():
            maps.append((Identity(), NO_DETECTIONS if number else NO_GTS))
            continue
        status = FITTED if (matches.state[mine] == TRUE).any() else NO_TRUE_POSITIVE
        maps.append((fit(values[mine], targets[mine]), status))
    return maps


def uncut_classes(
    data: FitData, gts: GroundTruth, maps: Sequence[tuple[ScoreMap, str]]
) -> tuple[ClassMap, ...]:
    """Classes of a calibrator before their calibrated scores are cut.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.6]))
        >>> data = fit_data(found, gts, Settings(cuts=(0, 0)))
        >>> uncut_classes(data, gts, [(Identity(), FITTED)])[0].detections
        1
    """
    used = np.bincount(data.matches.label, minlength=len(maps))
    rows = zip(gts.class_names, maps, data.raw_cuts, used)
    return tuple(
        ClassMap(name, score_map, status, float(raw), float('nan'), int(number))
        for name, (score_map, status), raw, number in rows
    )


def cut_classes(
    classes: Sequence[ClassMap],
    calibrated: Detections,
    data: FitData,
    gts: GroundTruth,
    settings: FitProtocol,
) -> tuple[ClassMap, ...]:
    """Classes with the cuts of their calibrated scores.

    Args:
        classes: Classes without these cuts.
        calibrated: All detections of the split, with calibrated scores.
        data: See :func:`fit_data`; detections below its raw cuts are ignored.
        gts: Ground truth of the same images.
        settings: Settings of the calibrator.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.6]))
        >>> data = fit_data(found, gts, Settings(cuts=(0, 0)))
        >>> (cat,) = uncut_classes(data, gts, [(Identity(), FITTED)])
        >>> cut_classes([cat], found, data, gts, Settings(cuts=(0, 0.3)))[0].threshold
        0.3
    """
    kept = calibrated.take(data.kept)
    cuts = _find_cuts(settings.cuts[1], kept, gts, settings)
    return tuple(each._replace(threshold=float(cut)) for each, cut in zip(classes, cuts))


def source_of(gts: GroundTruth, detections: Detections) -> FitSource:
    """Fingerprint of the data of a fit.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.6]))
        >>> source_of(gts, found).images
        ('',)
    """
    digest = fingerprint(gts, detections)
    return FitSource(digest, tuple(gts.image_keys), len(detections.scores))


def _find_cuts(
    cut: Cut, detections: Detections, gts: GroundTruth, settings: FitProtocol
) -> np.ndarray:
    """Minimum scores ``(K,)`` per class: the given one, or the one with the lowest LRP."""
    if cut != 'lrp':
        return np.full(len(gts.category_ids), float(cut))
    (found,) = match(detections, gts, [settings.tau], settings.zero_overlap)
    return optimal_lrp(found).thresholds


@dataclass(frozen=True)
class Settings:
    """Settings of a fit.

    Args:
        method: Key of `maps.FITS`.
        tau: IoU threshold in [0, 1) for matching and for the cuts.
        target: Target of a score: the 'iou' of its box, or the 'precision'.
        class_agnostic: Fit one map for all classes instead of one per class.
        cuts: Minimum raw score for the fit and minimum calibrated score, each a number for all
            classes or 'lrp', which selects the score with the lowest LRP per class.
        zero_overlap: See :func:`.matching.match`.
        quality_focal: Fit a temperature or Platt map by Quality Focal Loss with exponent 1 instead
            of cross entropy.
        grid: Search a Platt map on the published grid instead of computing its optimum.

    Raises:
        ConfigError: If a value is out of range, or the method has no such option.
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
                f'method of a calibrator must be one of {tuple(FITS)}, not {self.method!r}'
            )
        check_protocol(self)
        fit_of(self.method, self.quality_focal, self.grid)


@dataclass(frozen=True)
class DetectionCalibrator(FittedCalibrator):
    """Fitted map of scores per class; :mod:`.files` saves and loads it."""

    settings: Settings
    score_type: str  # such as the name of a head
    classes: tuple[ClassMap, ...]  # in label order
    source: FitSource

    def calibrate(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Map scores without cuts, as a detector does after NMS.

        Args:
            scores: ``(N,)`` in [0, 1].
            labels: ``(N,)`` int, class indices.

        Returns:
            ``(N,)`` float64 in [0, 1].

        Raises:
            DataError: If a score is NaN or outside [0, 1], or a label is unknown.
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
            detections: Detections with raw scores.

        Returns:
            The kept detections in order, with calibrated scores, and their indices.
        """
        calibrated = self.calibrate(detections.scores, detections.label)
        mapped = detections._replace(scores=calibrated)
        rows = np.flatnonzero(self.kept(detections, mapped))
        return mapped.take(rows), rows

    def for_classes(self, names: Sequence[str]) -> DetectionCalibrator:
        """Copy with the classes in the order of the names.

        Raises:
            DataError: If the calibrator was not fitted for one of them.
        """
        return replace(self, classes=tuple(self.classes[i] for i in self.order_of(names)))


def fit_calibrator(
    detections: Detections, truths: GroundTruth, settings: Settings, score_type: str = 'detection'
) -> DetectionCalibrator:
    """Fit a calibrator on a split that is not used for evaluation.

    Args:
        detections: Detections after NMS, with raw scores.
        truths: Ground truth of the same images.
        settings: Settings of the calibrator.
        score_type: Name of what predicts the scores; checked when the calibrator is applied.

    Raises:
        DataError: If there are no detections, or none with a class that has gt boxes.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.6]))
        >>> fitted = fit_calibrator(found, gts, Settings(method='isotonic', cuts=(0, 0)))
        >>> fitted.classes[0].map(np.array([0.6]))
        array([1.])
    """
    data = fit_data(detections, truths, settings)
    maps = _fit_maps(data, settings)
    source = source_of(truths, detections)
    uncut = DetectionCalibrator(settings, score_type, uncut_classes(data, truths, maps), source)
    scores = uncut.calibrate(detections.scores, detections.label)
    mapped = detections._replace(scores=scores)
    return replace(uncut, classes=cut_classes(uncut.classes, mapped, data, truths, settings))


def _fit_maps(data: FitData, settings: Settings) -> list[tuple[ScoreMap, str]]:
    """Fit a map with its status per class."""
    fit = fit_of(settings.method, settings.quality_focal, settings.grid)
    scores, targets = data.matches.scores, targets_of(data.matches, settings.target)
    if settings.class_agnostic:
        return [(fit(scores, targets), POOLED)] * len(data.matches.gt_counts)
    return fit_maps(data, scores, targets, fit)
