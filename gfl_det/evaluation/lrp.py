"""Localisation recall precision (LRP), and the score that a class is best cut at.

Source: Oksuz et al., "One Metric to Measure Them All: Localisation Recall Precision (LRP) for
Evaluating Visual Detection Tasks", TPAMI 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.matching import FALSE, TRUE, Matches


class LRP(NamedTuple):
    """LRP error of each class and its components, all in [0, 1]: 0 is perfect, 1 finds nothing.

    NaN for classes without truths; ``loc`` and ``fp`` also where nothing is found.
    """

    total: np.ndarray  # (K,)
    loc: np.ndarray  # (K,) mean of 1 - IoU over the true positives
    fp: np.ndarray  # (K,) 1 - precision
    fn: np.ndarray  # (K,) 1 - recall

    def means(self) -> LRP:
        """Each over the classes that have a value; NaN if none has."""
        return LRP(*(np.array(nan_mean(values)) for values in self))


class OptimalLRP(NamedTuple):
    """LRP of each class when its detections are cut where it is least."""

    lrp: LRP
    thresholds: np.ndarray  # (K,) scores of the last kept; NaN, which keeps all: nothing is found


def nan_mean(values: np.ndarray) -> float:
    """Mean over what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float('nan')


def lrp(matches: Matches) -> LRP:
    """LRP of all detections.

    Args:
        matches: at tau below 1.

    Returns:
        For each class ``(sum (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN)`` and the parts.
    """
    sums = [
        np.bincount(matches.label, weights, len(matches.truths))
        for weights in (matches.state == TRUE, matches.state == FALSE, _distances(matches))
    ]
    return _from_sums(sums[0], sums[1], sums[2], matches.truths, matches.tau)


def optimal_lrp(matches: Matches) -> OptimalLRP:
    """The least LRP over all cuts of each class, the highest score at a tie.

    Args:
        matches: at tau below 1.
    """
    number = len(matches.truths)
    counts, thresholds = np.zeros((3, number)), np.full(number, np.nan)
    for label in np.flatnonzero(matches.truths):
        of_class = matches.of_class(int(label))
        if not (of_class.state == TRUE).any():
            counts[1, label] = (of_class.state == FALSE).sum()
            continue
        right = np.cumsum(of_class.state == TRUE)
        wrong = np.cumsum(of_class.state == FALSE)
        distance = np.cumsum(_distances(of_class))
        total = _total(right, wrong, distance, matches.truths[label], matches.tau)
        best = total.argmin()
        counts[:, label] = right[best], wrong[best], distance[best]
        thresholds[label] = of_class.scores[best]
    return OptimalLRP(
        _from_sums(counts[0], counts[1], counts[2], matches.truths, matches.tau), thresholds
    )


def _distances(matches: Matches) -> np.ndarray:
    return np.where(matches.state == TRUE, 1 - matches.iou, 0)


def _total(
    right: np.ndarray, wrong: np.ndarray, distance: np.ndarray, truths: np.ndarray, tau: float
) -> np.ndarray:
    missed = truths - right
    return (distance / (1 - tau) + wrong + missed) / (right + wrong + missed)


def _from_sums(
    right: np.ndarray, wrong: np.ndarray, distance: np.ndarray, truths: np.ndarray, tau: float
) -> LRP:
    with np.errstate(invalid='ignore', divide='ignore'):  # classes without truths are NaN
        total = _total(right, wrong, distance, truths, tau)
        parts = LRP(total, distance / right, wrong / (right + wrong), 1 - right / truths)
    found, known = right > 0, truths > 0
    parts = parts._replace(
        loc=np.where(found, parts.loc, np.nan), fp=np.where(found, parts.fp, np.nan)
    )
    return LRP(*(np.where(known, values, np.nan) for values in parts))
