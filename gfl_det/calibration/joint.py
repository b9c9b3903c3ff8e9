"""Intervals for whole boxes: all four gt edges inside at once, per class and size of box.

The conformity score of a box is the largest stretch that one of its four edges needs (see
:mod:`.intervals`), so one factor for all four makes the whole box fit. It is fitted separately for
each group of boxes (Mondrian conformal prediction: Vovk, Gammerman and Shafer, "Algorithmic
Learning in a Random World", 2005), so that the coverage holds in each group, not only on average.
Groups are cells of class and size of the predicted box; small cells of a class are merged, and
small remainders of classes once more. A group is calibrated on its own boxes only: otherwise
merging would invalidate its coverage.

Factors may fall as the level rises: the worst of four edges leaves a short interval more often, so
short ones need a larger stretch. Each fitted level has the factor that its own intervals need;
nothing forces the intervals of a level to contain those of lower ones, though they mostly do.

The share of m new boxes inside, given n calibration boxes, follows a Beta-binomial distribution
(Vovk, "Conditional Validity of Inductive Conformal Predictors", ACML 2012): :func:`expected_range`
gives the range for one split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from gfl_det.errors import ConfigError, DataError
from gfl_det.ops.intervals import SIZES, size_of

LEAST = 100  # boxes per group: enough for levels up to .99


@dataclass(frozen=True)
class JointFactors:
    """Factors for whole boxes, by group.

    Args:
        levels: Ascending levels in (0, 1).
        names: Names of the G groups.
        counts: Number of boxes that each group was fitted on.
        factors: ``(G, L)``, at least 0.
        cells: ``(K, 3)``, group of each class and size.
    """

    levels: tuple[float, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    factors: tuple[tuple[float, ...], ...]
    cells: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        factors, cells = np.array(self.factors, float), np.array(self.cells)
        groups = len(self.names)
        if factors.shape != (groups, len(self.levels)) or len(self.counts) != groups:
            raise ConfigError('joint intervals need a factor for each group and level')
        if cells.ndim != 2 or cells.shape[1] != len(SIZES):
            raise ConfigError(f'joint intervals need the groups of {SIZES} of each class')
        if not groups or not ((cells >= 0) & (cells < groups)).all():
            raise ConfigError(f'groups of joint intervals are numbered from 0 to {groups - 1}')
        if not (np.isfinite(factors) & (factors >= 0)).all():
            raise ConfigError('factors of joint intervals must be finite and at least 0')

    def table_at(self, level: float) -> Tensor:
        """Factors ``(K, 3)`` at a level by class and size, interpolated between fitted levels.

        Raises:
            DataError: If the level is above the highest fitted one or below the lowest.
        """
        if level < self.levels[0]:
            raise DataError(
                f'joint intervals were fitted from the level {self.levels[0]:g}, not {level:g}: '
                'raise interval_level.'
            )
        if level > self.levels[-1]:
            raise DataError(
                f'joint intervals were fitted up to the level {self.levels[-1]:g}, not {level:g}: '
                'lower interval_level, or fit on more images.'
            )
        by_group = torch.tensor(
            [float(np.interp(level, self.levels, each)) for each in self.factors]
        )
        return by_group[torch.tensor(self.cells)]

    def group_of(self, labels: np.ndarray, boxes: Tensor) -> np.ndarray:
        """Groups ``(N,)`` of boxes ``(N, 4)`` xyxy px with classes ``(N,)``."""
        return np.array(self.cells)[labels, size_of(boxes).numpy()]


def fit_joint(
    stretches: np.ndarray,
    labels: np.ndarray,
    sizes: np.ndarray,
    class_names: Sequence[str],
    levels: Sequence[float],
    least: int = LEAST,
) -> JointFactors:
    """Fit factors for whole boxes.

    Args:
        stretches: ``(L, N, 4)`` stretches that the edges of N boxes need at each level.
        labels: ``(N,)`` class labels.
        sizes: ``(N,)`` with values 0, 1, 2, see :func:`~gfl_det.ops.intervals.size_of`.
        class_names: Names of the K classes.
        levels: L ascending levels; those too high for the smallest group are left out.
        least: Minimum boxes per group.

    Raises:
        DataError: If there are too few boxes for every level.

    Example:
        >>> stretches = np.arange(1.0, 10.0)[None, :, None].repeat(4, 2)
        >>> labels = sizes = np.zeros(9, int)
        >>> fit_joint(stretches, labels, sizes, ['cat'], [0.9], least=9).factors[0]  # the 9th of 9
        (9.0,)
    """
    cells, names = merge_cells(labels, sizes, class_names, least)
    group = cells[labels, sizes]
    needed = stretches.max(2)
    members = [np.flatnonzero(group == each) for each in range(len(names))]
    # A remainder that is too small even when merged uses the factors of all boxes.
    members = [rows if len(rows) >= least else np.arange(len(labels)) for rows in members]
    fewest = min(map(len, members))
    reached = [row for row, level in enumerate(levels) if rank_of(fewest, level) <= fewest]
    if not reached:
        raise DataError(
            f'{len(labels)} detections match a gt box, too few to fit joint intervals: use more '
            'images.'
        )
    factors = []
    for rows in members:
        ordered = np.sort(needed[:, rows], axis=1)
        values = [ordered[row, rank_of(len(rows), levels[row]) - 1] for row in reached]
        factors.append(tuple(np.maximum(values, 0).tolist()))
    return JointFactors(
        tuple(levels[row] for row in reached),
        tuple(names),
        tuple(map(len, members)),
        tuple(factors),
        tuple(map(tuple, cells.tolist())),
    )


def merge_cells(
    labels: np.ndarray, sizes: np.ndarray, class_names: Sequence[str], least: int = LEAST
) -> tuple[np.ndarray, list[str]]:
    """Merge cells of class and size to groups.

    Args:
        labels: ``(N,)`` class labels.
        sizes: ``(N,)`` sizes.
        class_names: Names of the K classes.
        least: Minimum boxes per group.

    Returns:
        The group ``(K, 3)`` of each cell, and the group names.

    Example:
        >>> labels, sizes = np.repeat([0, 0, 1], [5, 2, 1]), np.repeat([2, 1, 0], [5, 2, 1])
        >>> cells, names = merge_cells(labels, sizes, ['cat', 'dog'], least=2)
        >>> names
        ['cat, medium', 'cat, large', 'rest']
        >>> cells.tolist()
        [[2, 0, 1], [2, 2, 2]]
    """
    number = np.zeros((len(class_names), len(SIZES)), np.int64)
    np.add.at(number, (labels, sizes), 1)
    cells = np.full(number.shape, -1)
    names: list[str] = []
    for label, name in enumerate(class_names):
        for size in np.flatnonzero(number[label] >= least):
            cells[label, size] = len(names)
            names.append(f'{name}, {SIZES[size]}')
        rest = cells[label] < 0
        if rest.any() and number[label, rest].sum() >= least:
            cells[label, rest] = len(names)
            names.append(name if rest.all() else f'{name}, other sizes')
    if (cells < 0).any():
        cells[cells < 0] = len(names)
        names.append('rest' if names else 'all')
    return cells, names


def rank_of(number: int, level: float) -> int:
    """Rank, from 1, of the conformal quantile among ``number`` sorted scores; larger if undefined.

    Example:
        >>> rank_of(9, 0.9), rank_of(8, 0.9)
        (9, 9)
    """
    return max(1, math.ceil(round((number + 1) * level, 9)))


def expected_range(
    calibrated: int, judged: int, level: float, share: float = 0.95
) -> tuple[float, float]:
    """Range that contains the share of new boxes inside in ``share`` of all splits.

    Args:
        calibrated: Number of boxes that the factor was fitted on.
        judged: Number of new boxes.
        level: Level of the intervals.
        share: Share of the splits.

    Example:
        >>> low, high = expected_range(100, 1000, 0.9)
        >>> round(low, 2), round(high, 2)
        (0.83, 0.95)
    """
    rank = rank_of(calibrated, level)
    if rank > calibrated or not judged:
        return float('nan'), float('nan')
    law = scipy.stats.betabinom(judged, rank, calibrated + 1 - rank)
    low, high = law.ppf([(1 - share) / 2, (1 + share) / 2])
    return float(low / judged), float(high / judged)


def interval_score(low: np.ndarray, high: np.ndarray, edges: np.ndarray, level: float) -> float:
    """Mean interval score: width plus a penalty for misses; lower is better at any coverage.

    Source: Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007.

    Args:
        low: Lower ends of intervals, px.
        high: Upper ends, same shape.
        edges: Gt edges, same shape.
        level: Level of the intervals.

    Example:
        >>> ends = np.array([0.0]), np.array([10.0])
        >>> interval_score(*ends, np.array([4.0]), 0.9)
        10.0
        >>> round(interval_score(*ends, np.array([11.0]), 0.9), 6)  # 10 + 2 / .1 * 1
        30.0
    """
    missed = np.maximum(0, low - edges) + np.maximum(0, edges - high)
    return float((high - low + 2 / (1 - level) * missed).mean())
