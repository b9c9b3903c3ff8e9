"""The predicted deviation of edges against their distance from the gt edges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from gfl_det.evaluation.detections import Truths
from gfl_det.evaluation.matching import TRUE, Matches
from gfl_det.ops.boxes import xywh_to_xyxy

NUM_BINS = 12
MAX_POINTS = 1200  # drawn; chosen evenly by deviation


class EdgeErrors(NamedTuple):
    """M matched detections; edges are left, top, right, bottom, px."""

    std: np.ndarray  # (M, 4)
    error: np.ndarray  # (M, 4) predicted less true coordinate
    inside: np.ndarray | None  # (M, 4) bool, the true edge lies in its interval


class Spread(NamedTuple):
    """Edges sorted by deviation into bins of equally many."""

    number: np.ndarray  # (J,)
    std: np.ndarray  # (J,) root of the mean square of the deviations, px
    error: np.ndarray  # (J,) root of the mean square of the errors, px
    low: np.ndarray  # (J,) 10 % of the absolute errors are smaller, px
    high: np.ndarray  # (J,) 10 % are larger, px


def edge_errors(
    found: Matches,
    boxes: np.ndarray,
    truths: Truths,
    std: np.ndarray,
    intervals: tuple[np.ndarray, np.ndarray] | None = None,
) -> EdgeErrors:
    """Compare the edges of matched detections with those of their gt boxes.

    Args:
        found: matches of N detections.
        boxes: ``(N, 4)`` their boxes, xywh px.
        truths: of the same images.
        std: ``(N, 4)`` px.
        intervals: lower and upper ends, each ``(N, 4)`` px.
    """
    right = found.state == TRUE
    rows, partners = found.row[right], found.truth[right]
    true = xywh_to_xyxy(truths.boxes[partners])
    inside = None
    if intervals is not None:
        low, high = (ends[rows] for ends in intervals)
        inside = (low <= true) & (true <= high)
    return EdgeErrors(std[rows], xywh_to_xyxy(boxes[rows]) - true, inside)


def spread(std: np.ndarray, error: np.ndarray, bins: int = NUM_BINS) -> Spread:
    """Average within bins of equally many edges, fewer where there are few.

    Args:
        std: ``(E,)`` px.
        error: ``(E,)`` px.
        bins: at most.
    """
    order = np.argsort(std, kind='stable')
    parts = np.array_split(order, min(bins, len(order))) if len(order) else []
    rows = [
        (
            len(part),
            np.sqrt((std[part] ** 2).mean()),
            np.sqrt((error[part] ** 2).mean()),
            *np.quantile(np.abs(error[part]), [0.1, 0.9]),
        )
        for part in parts
    ]
    return Spread(*np.array(rows).reshape(len(rows), 5).T)


def rank_correlation(std: np.ndarray, error: np.ndarray) -> float:
    """Spearman's of deviations and absolute errors, in [-1, 1]; NaN of constants or of nothing."""
    if len(std) < 2 or np.ptp(std) == 0 or np.ptp(np.abs(error)) == 0:
        return float('nan')
    return float(spearmanr(std, np.abs(error)).statistic)


def sample(std: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Points to draw ``(P, 2)``: deviation and absolute error, evenly from the sorted edges."""
    order = np.argsort(std, kind='stable')
    count = min(MAX_POINTS, len(order))
    chosen = order[np.linspace(0, len(order) - 1, count).astype(int)] if count else order
    return np.column_stack([std[chosen], np.abs(error[chosen])])
