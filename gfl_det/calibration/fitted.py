"""What calibrators of every kind share: the protocol's settings, and whom a fitted one serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, Union

import numpy as np

from gfl_det.calibration.maps import ScoreMap
from gfl_det.datasets.annotations import listed
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import Detections, Truths
from gfl_det.evaluation.evaluation import keep_above
from gfl_det.evaluation.functional import TARGETS, Target
from gfl_det.evaluation.matching import ZERO_OVERLAPS, ZeroOverlap

Cut = Union[Literal['lrp'], float]
# What became of a class.
FITTED = 'fitted'
POOLED = 'fitted on all classes together'
# Every target is 0, and so is what a fitted map says (identity keeps the score, and a distribution
# calibrator its model's share, see OWN_SHARE there).
NO_TRUE_POSITIVE = 'no true positive'
NO_TRUTHS = 'no truths'  # the score stays
NO_DETECTIONS = 'no detections'  # the score stays


class FitProtocol(Protocol):
    """Settings that say what a calibrator is fitted on; see :class:`.calibrators.Settings`."""

    @property
    def tau(self) -> float: ...
    @property
    def target(self) -> Target: ...
    @property
    def cuts(self) -> tuple[Cut, Cut]: ...
    @property
    def zero_overlap(self) -> ZeroOverlap: ...


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


class FittedCalibrator:
    """Whose detections of which classes a calibrator serves, and on which images."""

    settings: FitProtocol
    score_type: str
    classes: tuple[ClassMap, ...]
    source: Source

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the labels."""
        return [each.name for each in self.classes]

    def order_of(self, names: Sequence[str]) -> list[int]:
        """Indices of the named classes.

        Raises:
            DataError: it was not fitted for one of them.
        """
        known = {name: index for index, name in enumerate(self.class_names)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise DataError(
                f'the calibrator was fitted for the classes {listed(self.class_names)} and not for '
                f'{listed(unknown)}: fit one for this data set'
            )
        return [known[name] for name in names]

    def kept(self, raw: Detections, calibrated: Detections) -> np.ndarray:
        """Mask ``(N,)`` of the detections that reach both cuts of their class.

        Args:
            raw: N, with raw scores.
            calibrated: the same with calibrated ones.
        """
        reach_raw = keep_above(raw, [each.raw_threshold for each in self.classes])
        return reach_raw & keep_above(calibrated, [each.threshold for each in self.classes])

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

    def check_judged(self, truths: Truths) -> None:
        """Refuse truths that it cannot be judged by.

        Raises:
            DataError: it was fitted on one of the images, or not for one of the classes.
        """
        self.check_unseen(truths)
        self.order_of(truths.class_names)


def check_labels(labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Refuse labels ``(N,)`` beyond the classes.

    Raises:
        DataError: there is one.
    """
    if not ((labels >= 0) & (labels < len(class_names))).all():
        raise DataError(
            f'a label is outside 0..{len(class_names) - 1}: the calibrator was fitted for the '
            f'classes {listed(class_names)}'
        )


def check_protocol(settings: FitProtocol) -> None:
    """Refuse settings that are out of range.

    Raises:
        ConfigError: one is.
    """
    for name, value, known in (
        ('target', settings.target, TARGETS),
        ('zero_overlap', settings.zero_overlap, ZERO_OVERLAPS),
    ):
        if value not in known:
            raise ConfigError(f'{name} of a calibrator is one of {known}, not {value!r}')
    if not isinstance(settings.tau, (int, float)) or not 0 <= settings.tau < 1:
        raise ConfigError(f'tau of a calibrator lies in [0, 1), not {settings.tau!r}')
    if len(settings.cuts) != 2 or not all(_is_cut(cut) for cut in settings.cuts):
        raise ConfigError(
            f"cuts of a calibrator are two, each 'lrp' or a score in [0, 1], not {settings.cuts!r}"
        )


def _is_cut(cut: object) -> bool:
    if isinstance(cut, str):
        return cut == 'lrp'
    return isinstance(cut, (int, float)) and 0 <= cut <= 1
