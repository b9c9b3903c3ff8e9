"""A logistic model of soft targets in [0, 1]: several columns, and an offset for each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

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
