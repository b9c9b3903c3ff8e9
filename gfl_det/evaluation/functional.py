"""Calibration errors of detections: LaECE, LaACE and D-ECE.

Sources: Oksuz et al., "Towards Building Self-Aware Object Detectors via Reliable Uncertainty
Quantification and Calibration", CVPR 2023 (LaECE); Kuzucu et al., "On Calibration of Object
Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024 (LaECE_0, LaACE); Kueppers et al.,
"Multivariate Confidence Calibration for Object Detection", CVPRW 2020 (D-ECE).

A class without truths is left out, with its detections, and so is one without a detection that
counts: neither is 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from gfl_det.evaluation.lrp import nan_mean
from gfl_det.evaluation.matching import TRUE, Matches
from gfl_det.evaluation.reliability import Reliability, reliability

LAECE_BINS = 25
DECE_BINS = 10
Target = Literal['iou', 'precision']
TARGETS = ('iou', 'precision')


class CalibrationError(NamedTuple):
    """An error in [0, 1]; ``mean`` is NaN where no class has one."""

    mean: float
    per_class: np.ndarray  # (K,) NaN for classes that are left out
    table: Reliability  # one row for each class, or a single one for all

    @property
    def classes_used(self) -> int:
        """How many classes the mean is taken over."""
        return int((~np.isnan(self.per_class)).sum())


class Skipped(NamedTuple):
    """Indices of the classes that metrics of calibration leave out."""

    without_truths: list[int]
    without_detections: list[int]  # that count


def skipped(matches: Matches) -> Skipped:
    """Classes that are left out, by reason."""
    found = np.bincount(matches.label[matches.judged()], minlength=len(matches.truths))
    none = matches.truths == 0
    return Skipped(np.flatnonzero(none).tolist(), np.flatnonzero(~none & (found == 0)).tolist())


def targets_of(matches: Matches, target: Target) -> np.ndarray:
    """What each score should be ``(N,)``: the IoU of a true positive, or 1; 0 of the others."""
    return matches.iou if target == 'iou' else (matches.state == TRUE).astype(float)


def laece(
    matches: Matches,
    num_bins: int = LAECE_BINS,
    drop_perfect: bool = False,
    as_saod: bool = False,
) -> CalibrationError:
    """Localisation-aware expected calibration error: scores against IoUs, class by class.

    Args:
        matches: at tau 0 for LaECE_0, at tau .1 for the LaECE of the SAOD paper.
        num_bins: equal bins of the score.
        drop_perfect: leave out classes without any error, as published figures do.
        as_saod: as in the first definition (Oksuz et al., 2023): bins hold [low, high), so that a
            score of 1 is in none, and a class with truths but without detections counts as 0.
    """
    judged = matches.judged()
    table = reliability(
        matches.scores[judged],
        matches.iou[judged],
        np.linspace(0, 1, num_bins + 1),
        matches.label[judged],
        len(matches.truths),
        half_open=as_saod,
    )
    per_class = table.errors()
    if as_saod:
        found = np.bincount(matches.label[judged], minlength=len(matches.truths))
        # What is in no bin still counts among the detections.
        per_class = per_class * table.number.sum(1) / np.maximum(found, 1)
        per_class = np.where(matches.truths > 0, np.nan_to_num(per_class), np.nan)
    return _averaged(per_class, table, drop_perfect)


def laace(
    matches: Matches, count_ignored: bool = False, drop_perfect: bool = False
) -> CalibrationError:
    """Localisation-aware adaptive calibration error: the mean of ``|score - IoU|``, by class.

    Args:
        matches: at tau 0 for LaACE_0.
        count_ignored: count detections of a crowd as wrong ones, as published figures do.
        drop_perfect: leave out classes without any error, as published figures do.
    """
    counted = matches.judged()
    if count_ignored:
        counted = matches.truths[matches.label] > 0
    scores, label = matches.scores[counted], matches.label[counted]
    table = reliability(
        scores, matches.iou[counted], np.array([0.0, 1.0]), label, len(matches.truths)
    )
    distance = np.abs(scores - matches.iou[counted])
    number = np.bincount(label, minlength=len(matches.truths))
    with np.errstate(invalid='ignore'):
        per_class = np.bincount(label, distance, len(matches.truths)) / number
    return _averaged(per_class, table, drop_perfect)


def dece(matches: Matches, num_bins: int = DECE_BINS) -> CalibrationError:
    """Detection expected calibration error: scores against precision, all classes together.

    Args:
        matches: at tau 0.5.
        num_bins: equal bins of the score.
    """
    judged = matches.judged()
    table = reliability(
        matches.scores[judged],
        targets_of(matches, 'precision')[judged],
        np.linspace(0, 1, num_bins + 1),
    )
    return CalibrationError(float(table.errors()[0]), table.errors(), table)


def _averaged(per_class: np.ndarray, table: Reliability, drop_perfect: bool) -> CalibrationError:
    if drop_perfect:
        per_class = np.where(per_class == 0, np.nan, per_class)
    return CalibrationError(nan_mean(per_class), per_class, table)
