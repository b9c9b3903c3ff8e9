"""Fits of ``sigmoid(slope * z + offset)`` and a multivariate logistic model, in float64.

The mean cross entropy is convex in slope and offset; :func:`fit_slope` and :func:`fit_line` find
the zero of its gradient exactly. The published implementation of Kuzucu et al., "On Calibration of
Object Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024, stops up to 6e-4 short of it; its
other options, a grid and Quality Focal Loss, are here for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy

GRADIENT = 1e-8  # largest derivative that counts as 0
MAX_SLOPE = 1e3  # limit for separable targets, whose slope grows without bound
# The published grid.
SLOPES = np.linspace(0, 10, 100)
OFFSETS = np.linspace(-5, 5, 100)
AT_ONCE = 2**20  # grid losses computed per chunk: 100 rows of many detections would fill the memory
RATES = np.geomspace(0.1, 10, 41)  # starting points of the temperature search: 1 / T
PARTS = 5  # folds of images: each is predicted by a model fitted on the others
# Inverse strength of the penalty on the weights of standardized columns.
PENALTY = 0.3
FAR = 1e-6  # probability of an event never seen, or its distance from 1


def fit_slope(logits: np.ndarray, targets: np.ndarray) -> float:
    """Slope in [1 / MAX_SLOPE, MAX_SLOPE] without offset that minimises cross entropy.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1].

    Example:
        >>> logits = np.repeat([-2.0, 2.0], 50)
        >>> targets = np.repeat([0.25, 0.75], 50)
        >>> round(fit_slope(logits, targets), 4)  # log(3) / 2
        0.5493
    """

    def derivative(slope: float) -> float:
        return float(np.mean((scipy.special.expit(slope * logits) - targets) * logits))

    return increasing_root(derivative, 1 / MAX_SLOPE, MAX_SLOPE)


def fit_offset(logits: np.ndarray, targets: np.ndarray) -> float:
    """Offset alone that makes the mean score equal the mean target, which is not 0 or 1.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1].

    Example:
        >>> round(fit_offset(np.zeros(4), np.array([0.0, 0.0, 0.0, 1.0])), 4)  # log(1 / 3)
        -1.0986
    """
    wanted = targets.mean()
    centre = np.log(wanted) - np.log1p(-wanted)

    def derivative(offset: float) -> float:
        return float(scipy.special.expit(logits + offset).mean() - wanted)

    # At these ends all scores lie on one side of the target mean.
    return increasing_root(derivative, centre - logits.max(), centre - logits.min())


def fit_line(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Slope in [0, MAX_SLOPE] and offset that minimise cross entropy.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1] with a mean in (0, 1); otherwise no finite optimum exists.

    Returns:
        The slope and the offset; slope 0 if all logits are equal or larger ones have lower targets.

    Example:
        >>> logits = np.repeat([-2.0, 2.0], 50)
        >>> slope, offset = fit_line(logits, np.repeat([0.25, 0.75], 50))
        >>> round(slope, 4), round(abs(offset), 4)
        (0.5493, 0.0)
    """

    def derivative(slope: float) -> float:
        """Derivative of the loss minimised over offsets, which is convex like the loss."""
        offset = fit_offset(slope * logits, targets)
        return float(np.mean((scipy.special.expit(slope * logits + offset) - targets) * logits))

    slope = 0.0
    if derivative(0.0) < -GRADIENT:
        ends = (1.0, 10.0, MAX_SLOPE)  # a distant end costs many steps
        high = next((end for end in ends if derivative(end) > 0), MAX_SLOPE)
        slope = increasing_root(derivative, 0.0, high)
    return slope, fit_offset(slope * logits, targets)


def increasing_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of an increasing function in [low, high], or the end nearest to it.

    Example:
        >>> round(increasing_root(lambda x: x - 2, 0, 10), 6)
        2.0
    """
    if function(low) >= 0:
        return float(low)
    if function(high) <= 0:
        return float(high)
    return float(scipy.optimize.brentq(function, low, high, xtol=1e-13))


def mean_loss(values: np.ndarray, targets: np.ndarray, quality_focal: bool = False) -> np.ndarray:
    """Mean cross entropy of logits, optionally weighted by the distance to the target.

    Args:
        values: ``(..., N)`` logits of calibrated scores.
        targets: ``(N,)`` in [0, 1].
        quality_focal: Use Quality Focal Loss with exponent 1, ``|s - y| * BCE(s, y)``.

    Returns:
        ``(...)``.

    Example:
        >>> float(mean_loss(np.zeros(3), np.array([0.0, 0.5, 1.0])).round(4))  # log 2
        0.6931
    """
    loss = np.logaddexp(0, values) - targets * values
    if quality_focal:
        loss = loss * np.abs(scipy.special.expit(values) - targets)
    return loss.mean(-1)


def search_line(
    logits: np.ndarray, targets: np.ndarray, quality_focal: bool = False
) -> tuple[float, float]:
    """Best slope and offset on a grid: 100 slopes in [0, 10] times 100 offsets in [-5, 5].

    Args:
        logits: ``(N,)`` finite, N at least 1; memory use is a few times max(N, 2^20) numbers.
        targets: ``(N,)`` in [0, 1].
        quality_focal: See :func:`mean_loss`.

    Returns:
        The pair with the lowest loss; ties go to the lowest slope, then offset.

    Example:
        >>> search_line(np.array([-2.0, 2.0]), np.array([0.1, 0.9]))
        (1.1111111111111112, -0.050505050505050164)
    """
    rows = max(1, AT_ONCE // len(logits))
    losses = np.empty((len(SLOPES), len(OFFSETS)))
    for index, slope in enumerate(SLOPES):
        for begin in range(0, len(OFFSETS), rows):
            part = slice(begin, begin + rows)
            values = slope * logits + OFFSETS[part, None]
            losses[index, part] = mean_loss(values, targets, quality_focal)
    row, column = np.unravel_index(losses.argmin(), losses.shape)
    return float(SLOPES[row]), float(OFFSETS[column])


def fit_line_by_quality(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Slope in [0, 1e3] and offset that minimise Quality Focal Loss.

    The loss has several minima and a kink wherever a score equals its target, so the gradient may
    never be 0: a simplex search starts from the best grid point and from the optimum of cross
    entropy.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1].

    Example:
        >>> slope, offset = fit_line_by_quality(np.array([-2.0, 2.0]), np.array([0.1, 0.9]))
        >>> round(slope, 3), round(abs(offset), 3)  # log(9) / 2, and none
        (1.099, 0.0)
    """

    def loss(point: np.ndarray) -> float:
        slope = min(abs(point[0]), MAX_SLOPE)
        return float(mean_loss(slope * logits + point[1], targets, quality_focal=True))

    starts = [search_line(logits, targets, quality) for quality in (True, False)]
    best = min((_descend(loss, np.array(start)) for start in starts), key=loss)
    return min(abs(float(best[0])), MAX_SLOPE), float(best[1])


def fit_slope_by_quality(logits: np.ndarray, targets: np.ndarray) -> float:
    """Slope in [1e-3, 1e3] without offset that minimises Quality Focal Loss.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1].

    Example:
        >>> round(fit_slope_by_quality(np.array([-2.0, 2.0]), np.array([0.1, 0.9])), 3)
        1.099
    """
    limit = np.log(MAX_SLOPE)

    def loss(point: np.ndarray) -> float:
        slope = np.exp(np.clip(point[0], -limit, limit))
        return float(mean_loss(slope * logits, targets, quality_focal=True))

    best = _descend(loss, min(np.log(RATES)[:, None], key=loss))
    return float(np.exp(np.clip(best[0], -limit, limit)))


def _descend(loss: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Simplex search, restarted at its end point in case it collapsed too early."""
    options = dict(xatol=1e-9, fatol=1e-15, maxiter=2000)
    for _ in range(3):
        start = scipy.optimize.minimize(loss, start, method='Nelder-Mead', options=options).x
    return start


@dataclass(frozen=True)
class LogisticModel:
    """Logistic model: ``sigmoid(evidence @ weights + offset of the class)``."""

    weights: tuple[float, ...]  # (F,)
    offsets: tuple[float, ...]  # (K,)

    def __call__(self, columns: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Probabilities ``(N,)`` for evidence ``(N, F)`` and labels ``(N,)``."""
        return scipy.special.expit(columns @ np.array(self.weights) + np.array(self.offsets)[label])


def fit_logistic(
    columns: np.ndarray, label: np.ndarray, targets: np.ndarray, number: int
) -> LogisticModel:
    """Minimise cross entropy against soft targets, with a penalty on standardized weights.

    Args:
        columns: ``(N, F)``, N at least 1.
        label: ``(N,)`` in [0, number).
        targets: ``(N,)`` in [0, 1].
        number: Number of classes.

    Example:
        >>> column = np.array([[-1.0], [-1.0], [1.0], [1.0]])
        >>> model = fit_logistic(column, np.zeros(4, int), np.array([0.2, 0.2, 0.8, 0.8]), number=1)
        >>> model(column, np.zeros(4, int)).round(1)
        array([0.4, 0.4, 0.6, 0.6])
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, needed by no detector

    every = np.concatenate([columns, np.eye(number)[label]], axis=1)
    mean, deviation = every.mean(0), every.std(0)
    deviation[deviation < 1e-12] = 1.0
    standard = (every - mean) / deviation
    # A soft target becomes a positive and a negative example with proportional weights.
    right = np.repeat([1, 0], len(targets))
    weight = np.concatenate([targets, 1 - targets])
    if targets.min() == targets.max() and targets[0] in (0, 1):
        level = float(np.log1p(-FAR) - np.log(FAR)) * (1 if targets[0] else -1)
        return LogisticModel((0.0,) * columns.shape[1], (level,) * number)
    fitted = LogisticRegression(C=PENALTY, solver='newton-cholesky', tol=1e-8, max_iter=200).fit(
        np.concatenate([standard, standard]), right, sample_weight=weight
    )
    weights = fitted.coef_[0] / deviation
    offset = float(fitted.intercept_[0] - weights @ mean)
    split = columns.shape[1]
    return LogisticModel(
        tuple(weights[:split].tolist()), tuple((weights[split:] + offset).tolist())
    )


def predict_unseen(
    columns: np.ndarray, label: np.ndarray, targets: np.ndarray, number: int, image: np.ndarray
) -> np.ndarray:
    """Out-of-fold probabilities: each detection is predicted by a model of other images.

    Args:
        columns, label, targets, number: See :func:`fit_logistic`.
        image: ``(N,)`` image of each detection; with a single image its own model is used.

    Returns:
        ``(N,)`` probabilities.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> column, image = rng.normal(size=(40, 1)), np.arange(40)
        >>> targets = np.clip(0.5 + 0.2 * column[:, 0], 0, 1)
        >>> predict_unseen(column, np.zeros(40, int), targets, 1, image).shape
        (40,)
    """
    place = np.unique(image, return_inverse=True)[1]
    parts = min(PARTS, place.max() + 1)
    if parts == 1:
        return fit_logistic(columns, label, targets, number)(columns, label)
    predicted = np.empty(len(targets))
    for part in range(parts):
        mine = place % parts == part
        model = fit_logistic(columns[~mine], label[~mine], targets[~mine], number)
        predicted[mine] = model(columns[mine], label[mine])
    return predicted
