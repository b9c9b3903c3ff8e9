"""Exact fits of ``sigmoid(slope * z + offset)`` to targets in [0, 1], by cross entropy in float64.

The mean cross entropy is convex in slope and offset, so its least value is where the gradient is 0.
The published implementation stops up to 6e-4 short of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

GRADIENT = 1e-8  # the largest derivative that counts as 0
MAX_SLOPE = 1e3  # where scores separate the targets a slope grows without bound: here it ends
MAX_STEPS = 200


def fit_slope(logits: np.ndarray, targets: np.ndarray) -> float:
    """Slope in [1 / MAX_SLOPE, MAX_SLOPE] without an offset.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1].
    """

    def derivatives(slope: float) -> tuple[float, float]:
        scores = expit(slope * logits)
        first = np.mean((scores - targets) * logits)
        return first, np.mean(scores * (1 - scores) * logits**2)

    return increasing_root(derivatives, 1 / MAX_SLOPE, MAX_SLOPE, start=1.0)


def fit_offset(logits: np.ndarray, targets: np.ndarray) -> float:
    """Offset alone: the mean score becomes the mean target, which is neither 0 nor 1.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1].
    """
    wanted = targets.mean()
    centre = np.log(wanted) - np.log1p(-wanted)

    def derivatives(offset: float) -> tuple[float, float]:
        scores = expit(logits + offset)
        return scores.mean() - wanted, np.mean(scores * (1 - scores))

    # At these ends all scores lie on one side of the wanted mean.
    low, high = centre - logits.max(), centre - logits.min()
    return increasing_root(derivatives, low, high, start=(low + high) / 2)


def fit_line(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Slope in [0, MAX_SLOPE] and offset; targets of mean 0 or 1 have no finite optimum.

    Args:
        logits: ``(N,)`` finite, N at least 1.
        targets: ``(N,)`` in [0, 1], of a mean in (0, 1).

    Returns:
        The slope and the offset; slope 0 where all logits are equal or larger ones are worse.
    """
    level = np.array([0.0, fit_offset(np.zeros_like(logits), targets)])
    if _gradient(level, logits, targets)[0] >= -GRADIENT:
        return 0.0, float(level[1])
    point, looked = np.array([1.0, 0.0]), False
    for _ in range(MAX_STEPS):
        gradient = _gradient(point, logits, targets)
        if np.abs(gradient).max() < GRADIENT / 10:
            break
        point = _newton_step(point, gradient, logits, targets)
        if point[0] > MAX_SLOPE and not looked:
            looked = True  # by convexity one look tells whether the optimum lies beyond
            end = np.array([MAX_SLOPE, fit_offset(MAX_SLOPE * logits, targets)])
            if _gradient(end, logits, targets)[0] <= 0:
                return MAX_SLOPE, float(end[1])
    return float(point[0]), float(point[1])


def _gradient(point: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    error = expit(point[0] * logits + point[1]) - targets
    return np.array([np.mean(error * logits), error.mean()])


def _loss(point: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> float:
    values = point[0] * logits + point[1]
    return float(np.mean(np.logaddexp(0, values) - targets * values))


def _newton_step(
    point: np.ndarray, gradient: np.ndarray, logits: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """The next point: a Newton step, halved until the loss does not grow."""
    scores = expit(point[0] * logits + point[1])
    weight = scores * (1 - scores)
    mixed = np.mean(weight * logits)
    hessian = np.array([[np.mean(weight * logits**2), mixed], [mixed, weight.mean()]])
    damping = 1e-12 * (1 + np.trace(hessian))  # keeps it regular where all scores are 0 or 1
    step = np.linalg.solve(hessian + damping * np.eye(2), gradient)
    before = _loss(point, logits, targets)
    for _ in range(60):
        # Rounding: near the end nothing is gained.
        if _loss(point - step, logits, targets) <= before + 1e-13 * (1 + before):
            break
        step = step / 2
    return point - step


def increasing_root(
    derivatives: Callable[[float], tuple[float, float]], low: float, high: float, start: float
) -> float:
    """Where an increasing function is 0 within [low, high], or the end that is nearest to it.

    Newton's method; a step that leaves what is known to hold the root is replaced by halving.

    Args:
        derivatives: gives the function's value and slope.
        low, high: ends of the range.
        start: within it.
    """
    if derivatives(low)[0] >= 0:
        return low
    if derivatives(high)[0] <= 0:
        return high
    point = start
    for _ in range(MAX_STEPS):
        value, slope = derivatives(point)
        if abs(value) < GRADIENT / 10:
            break
        low, high = (low, point) if value > 0 else (point, high)
        newton = point - value / slope if slope > 0 else low
        point = newton if low < newton < high else (low + high) / 2
    return point


PARTS = 5
# Inverse strength of the penalty on the weights of columns with mean 0 and deviation 1.
PENALTY = 0.3
FAR = 1e-6  # the probability of what never happened, or its distance from 1


@dataclass(frozen=True)
class LogisticModel:
    """``sigmoid(evidence @ weights + offset of the class)``."""

    weights: tuple[float, ...]  # (F,)
    offsets: tuple[float, ...]  # (K,)

    def __call__(self, columns: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Probabilities ``(N,)`` of evidence ``(N, F)`` and labels ``(N,)``."""
        return expit(columns @ np.array(self.weights) + np.array(self.offsets)[label])


def fit_logistic(
    columns: np.ndarray, label: np.ndarray, targets: np.ndarray, number: int
) -> LogisticModel:
    """Least cross entropy against soft targets, with a penalty on standardized weights.

    Args:
        columns: ``(N, F)``, N at least 1.
        label: ``(N,)`` in [0, number).
        targets: ``(N,)`` in [0, 1].
        number: of classes.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, needed by no detector

    every = np.concatenate([columns, np.eye(number)[label]], axis=1)
    mean, deviation = every.mean(0), every.std(0)
    deviation[deviation < 1e-12] = 1.0
    standard = (every - mean) / deviation
    # A soft target is a right and a wrong example with its share of the weight each.
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
    """Each detection as a model sees it that was fitted on other images.

    Args:
        columns, label, targets, number: see :func:`fit_logistic`.
        image: ``(N,)`` of the detections; those of a single image are seen by their own model.

    Returns:
        ``(N,)`` probabilities.
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
