"""The way by which calibrators of every kind are fitted: cut, match, map each class, cut again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gfl_det.calibration.fitted import (
    FITTED,
    NO_DETECTIONS,
    NO_TRUE_POSITIVE,
    NO_TRUTHS,
    ClassMap,
    Cut,
    FitProtocol,
    Source,
)
from gfl_det.calibration.maps import Identity, ScoreMap
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import Detections, Truths, check_detections, fingerprint
from gfl_det.evaluation.evaluation import keep_above
from gfl_det.evaluation.lrp import optimal_lrp
from gfl_det.evaluation.matching import PER_DETECTION, TRUE, Matches, match


class FitData(NamedTuple):
    """What of a split a calibrator is fitted on: J detections, judged right or wrong."""

    raw_cuts: np.ndarray  # (K,) least raw scores; NaN keeps all
    kept: np.ndarray  # int64, indices of the detections of the split that these cuts keep
    rows: np.ndarray  # (J,) int64, indices of the J in the detections of the split
    matches: Matches  # J


def fit_data(detections: Detections, truths: Truths, settings: FitProtocol) -> FitData:
    """Cut each class by its raw score, match what remains, and take what can be judged.

    Args:
        detections: after NMS, with raw scores.
        truths: of the same images.
        settings: of the calibrator.

    Raises:
        DataError: no detections, or none that can be judged.
    """
    check_detections(detections)
    if not len(detections.scores):
        raise DataError('there are no detections to fit a calibrator on: lower score_thr')
    raw_cuts = _find_cuts(settings.cuts[0], detections, truths, settings)
    kept = np.flatnonzero(keep_above(detections, raw_cuts))
    (found,) = match(detections.take(kept), truths, [settings.tau], settings.zero_overlap)
    judged = found.judged()
    if not judged.any():
        raise DataError(
            'not one detection can be judged, as their classes have no truths: give the truths and '
            'detections of one data set'
        )
    matches = found._replace(**{name: getattr(found, name)[judged] for name in PER_DETECTION})
    return FitData(raw_cuts, kept, kept[matches.row], matches)


def fit_maps(
    data: FitData,
    values: np.ndarray,
    targets: np.ndarray,
    fit: Callable[[np.ndarray, np.ndarray], ScoreMap],
) -> list[tuple[ScoreMap, str]]:
    """A map and a status for each class; one without detections keeps its scores.

    Args:
        data: J detections.
        values: ``(J,)`` what the maps are given.
        targets: ``(J,)`` what they should say.
        fit: of values and targets of a class.
    """
    matches = data.matches
    maps: list[tuple[ScoreMap, str]] = []
    for label, number in enumerate(matches.truths):
        mine = matches.label == label
        if not mine.any():
            maps.append((Identity(), NO_DETECTIONS if number else NO_TRUTHS))
            continue
        status = FITTED if (matches.state[mine] == TRUE).any() else NO_TRUE_POSITIVE
        maps.append((fit(values[mine], targets[mine]), status))
    return maps


def uncut_classes(
    data: FitData, truths: Truths, maps: Sequence[tuple[ScoreMap, str]]
) -> tuple[ClassMap, ...]:
    """The classes of a calibrator before their calibrated scores are cut."""
    used = np.bincount(data.matches.label, minlength=len(maps))
    rows = zip(truths.class_names, maps, data.raw_cuts, used)
    return tuple(
        ClassMap(name, score_map, status, float(raw), float('nan'), int(number))
        for name, (score_map, status), raw, number in rows
    )


def cut_classes(
    classes: Sequence[ClassMap],
    calibrated: Detections,
    data: FitData,
    truths: Truths,
    settings: FitProtocol,
) -> tuple[ClassMap, ...]:
    """The classes with their least calibrated scores.

    Args:
        classes: before.
        calibrated: all detections of the split, with calibrated scores.
        data: see :func:`fit_data`; raw scores below its cuts are out.
        truths: of the same images.
        settings: of the calibrator.
    """
    kept = calibrated.take(data.kept)
    cuts = _find_cuts(settings.cuts[1], kept, truths, settings)
    return tuple(each._replace(threshold=float(cut)) for each, cut in zip(classes, cuts))


def source_of(truths: Truths, detections: Detections) -> Source:
    """What tells the data of a fit from others."""
    digest = fingerprint(truths, detections)
    return Source(digest, tuple(truths.image_keys), len(detections.scores))


def _find_cuts(
    cut: Cut, detections: Detections, truths: Truths, settings: FitProtocol
) -> np.ndarray:
    """Least scores ``(K,)`` of the classes: the given one, or those with the least LRP."""
    if cut != 'lrp':
        return np.full(len(truths.category_ids), float(cut))
    (found,) = match(detections, truths, [settings.tau], settings.zero_overlap)
    return optimal_lrp(found).thresholds
