"""Other ways to fit a Platt map or a temperature, for comparison with published figures.

Source: options of the implementation of Kuzucu et al., "On Calibration of Object Detectors:
Pitfalls, Evaluation and Baselines", ECCV 2024. Cross entropy has one optimum, which
:mod:`.logistic` finds exactly; what is here is no better for that, only other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from gfl_det.calibration.logistic import MAX_SLOPE

SLOPES = np.linspace(0, 10, 100)
OFFSETS = np.linspace(-5, 5, 100)
# Starts of a search for a temperature: 1/T from .1 to 10.
RATES = np.geomspace(0.1, 10, 41)
# Losses of the grid that are computed at once, lest 100 rows of many detections fill the memory.
AT_ONCE = 2**20


def mean_loss(values: np.ndarray, targets: np.ndarray, quality_focal: bool = False) -> np.ndarray:
    """Mean cross entropy of logits, or each element weighed by its distance to the target.

    Args:
        values: ``(..., N)`` logits of calibrated scores.
        targets: ``(N,)`` in [0, 1].
        quality_focal: Quality Focal Loss with an exponent of 1, ``|s - y| * BCE(s, y)``.

    Returns:
        ``(...)``.
    """
    loss = np.logaddexp(0, values) - targets * values
    if quality_focal:
        loss = loss * np.abs(expit(values) - targets)
    return loss.mean(-1)


def search_line(
    logits: np.ndarray, targets: np.ndarray, quality_focal: bool = False
) -> tuple[float, float]:
    """Slope and offset on a grid: 100 slopes in [0, 10] times 100 offsets in [-5, 5].

    Args:
        logits: ``(N,)`` finite, N at least 1; memory is a few times N, or 2^20 numbers if more.
        targets: ``(N,)`` in [0, 1].
        quality_focal: see :func:`mean_loss`.

    Returns:
        The pair with the least loss, the lowest slope and then offset at a tie.
    """
    rows = max(1, AT_ONCE // len(logits))
    losses = np.empty((len(SLOPES), len(OFFSETS)))
    for index, slope in enumerate(SLOPES):
        sloped = slope * logits
        for begin in range(0, len(OFFSETS), rows):
            part = slice(begin, begin + rows)
            values = sloped + OFFSETS[part, None]
            losses[index, part] = mean_loss(values, targets, quality_focal)
    row, column = np.unravel_index(losses.argmin(), losses.shape)
    return float(SLOPES[row]), float(OFFSETS[column])


def fit_line_by_quality(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Slope in [0, 1e3] and offset with the least Quality Focal Loss.

    It has several minima and a kink wherever a score meets its target, so that no gradient of 0
    need exist: a simplex descends from the best point of the grid and from that of cross entropy's.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1].
    """

    def loss(point: np.ndarray) -> float:
        slope = min(abs(point[0]), MAX_SLOPE)
        return float(mean_loss(slope * logits + point[1], targets, quality_focal=True))

    starts = [search_line(logits, targets, quality) for quality in (True, False)]
    best = min((_descend(loss, np.array(start)) for start in starts), key=loss)
    return min(abs(float(best[0])), MAX_SLOPE), float(best[1])


def fit_slope_by_quality(logits: np.ndarray, targets: np.ndarray) -> float:
    """Slope in [1e-3, 1e3], without an offset, with the least Quality Focal Loss.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1].
    """
    limit = np.log(MAX_SLOPE)

    def loss(point: np.ndarray) -> float:
        slope = np.exp(np.clip(point[0], -limit, limit))
        return float(mean_loss(slope * logits, targets, quality_focal=True))

    starts = np.log(RATES)[:, None]
    best = _descend(loss, min(starts, key=loss))
    return float(np.exp(np.clip(best[0], -limit, limit)))


def _descend(loss: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Downhill by a simplex, started anew where it ended, lest it has collapsed too early."""
    options = dict(xatol=1e-9, fatol=1e-15, maxiter=2000)
    for _ in range(3):
        start = minimize(loss, start, method='Nelder-Mead', options=options).x
    return start
