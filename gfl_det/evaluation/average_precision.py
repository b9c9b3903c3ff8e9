"""COCO's average precision, from matches at several thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.matching import FALSE, TRUE, Matches

COCO_TAUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


class AveragePrecision(NamedTuple):
    """AP in [0, 1]; NaN where no class has a truth."""

    mean: float  # over thresholds and classes
    per_tau: np.ndarray  # (T,) mean over classes
    per_class: np.ndarray  # (K,) mean over thresholds, NaN for a class without truths


def average_precision(matches: Sequence[Matches]) -> AveragePrecision:
    """Average precision over 101 recalls, as pycocotools computes it, to the last digit.

    Args:
        matches: of one set of detections, at T thresholds: for COCO's AP at `COCO_TAUS`.
    """
    labels = np.flatnonzero(matches[0].truths)
    precision = np.empty((len(matches), len(RECALLS), len(labels)))
    for k, label in enumerate(labels):
        for t, each in enumerate(matches):
            state = each.of_class(int(label)).state
            precision[t, :, k] = _precision(state, each.truths[label])
    per_class = np.full(len(matches[0].truths), np.nan)
    if not len(labels):
        return AveragePrecision(float('nan'), np.full(len(matches), np.nan), per_class)
    per_class[labels] = precision.mean((0, 1))
    return AveragePrecision(float(precision.mean()), precision.mean((1, 2)), per_class)


def _precision(state: np.ndarray, truths: int) -> np.ndarray:
    """Precision ``(101,)`` at the recalls, of the states of a class by descending score."""
    right, wrong = np.cumsum(state == TRUE), np.cumsum(state == FALSE)
    # pycocotools adds the spacing at 1 against a division by 0; it shows in the last digit.
    precision = right / (right + wrong + np.spacing(1))
    best_beyond = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(right / truths, RECALLS)
    return np.append(best_beyond, 0)[place]
