"""How far scores are from what they promise, bin by bin: for any scores and targets in [0, 1]."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Reliability(NamedTuple):
    """One row for each group, one column for each of J bins; means of empty bins are NaN."""

    edges: np.ndarray  # (J + 1,) a bin holds (low, high], the first one its low edge too,
    # or with ``half_open`` [low, high)
    number: np.ndarray  # (G, J) int64, entries
    score: np.ndarray  # (G, J) mean score
    target: np.ndarray  # (G, J) mean target

    def gaps(self) -> np.ndarray:
        """Distance of the means ``(G, J)``, 0 for empty bins."""
        return np.where(self.number > 0, np.abs(self.target - self.score), 0)

    def weights(self) -> np.ndarray:
        """Parts of a group's entries ``(G, J)``, which sum to 1, or to 0 in an empty group."""
        return self.number / np.maximum(self.number.sum(1, keepdims=True), 1)

    def errors(self) -> np.ndarray:
        """Expected calibration error of each group ``(G,)``, NaN for an empty one."""
        value = (self.weights() * self.gaps()).sum(1)
        return np.where(self.number.sum(1) > 0, value, np.nan)


def reliability(
    scores: np.ndarray,
    targets: np.ndarray,
    edges: np.ndarray,
    groups: np.ndarray | None = None,
    num_groups: int = 1,
    half_open: bool = False,
) -> Reliability:
    """Sort scores into bins and average.

    Args:
        scores: ``(N,)`` within the edges.
        targets: ``(N,)`` what each score should be.
        edges: ``(J + 1,)`` ascending.
        groups: ``(N,)`` int64 in 0..num_groups-1; None: all in the first.
        num_groups: rows of the table.
        half_open: bins hold [low, high) in place of (low, high], and a score at the last edge is in
            none of them.
    """
    bins = len(edges) - 1
    if half_open:
        inside = scores < edges[-1]
        scores, targets = scores[inside], targets[inside]
        groups = None if groups is None else groups[inside]
        place = np.searchsorted(edges, scores, side='right') - 1
    else:
        place = (np.searchsorted(edges, scores) - 1).clip(0, bins - 1)
    if groups is not None:
        place = place + groups * bins

    def sums(weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(place, weights, num_groups * bins).reshape(num_groups, bins)

    number = sums()
    with np.errstate(invalid='ignore'):  # empty bins are NaN
        return Reliability(edges, number, sums(scores) / number, sums(targets) / number)
