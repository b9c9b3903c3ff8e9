"""Temperature scaling of classifiers: one divisor of all logits (Guo et al., ICML 2017)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from gfl_det.calibration.logistic import MAX_SLOPE, increasing_root
from gfl_det.errors import ConfigError
from projects.calibration_study.classification_metrics import (
    ECE_BINS,
    expected_calibration_error,
    negative_log_likelihood,
    softmax,
)

GRID = np.arange(1, 101) / 10  # .1, .2, ... 10, as Mukhoti et al. search


def fit_softmax_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least negative log likelihood, exact: it is convex in 1 / T.

    Args:
        logits: ``(N, K)`` of a held-out split.
        labels: ``(N,)`` int in 0..K-1.

    Returns:
        T in [1e-3, 1e3]; probabilities are ``softmax(logits / T)``.

    Raises:
        DataError: no samples, or logits and labels that do not fit.
    """
    logits = np.asarray(logits, float)
    negative_log_likelihood(softmax(logits), labels)  # checks both
    true = logits[np.arange(len(labels)), labels]

    def derivative(slope: float) -> float:
        return float(((softmax(slope * logits) * logits).sum(1) - true).mean())

    return 1 / increasing_root(derivative, 1 / MAX_SLOPE, MAX_SLOPE)


def search_temperature(
    logits: np.ndarray,
    labels: np.ndarray,
    by: Literal['ece', 'nll'] = 'ece',
    num_bins: int = ECE_BINS,
) -> float:
    """The temperature of a grid from .1 to 10 with the least ECE or NLL, the lowest at a tie.

    Args:
        logits: ``(N, K)`` of a held-out split.
        labels: ``(N,)`` int in 0..K-1.
        by: what is compared.
        num_bins: of the ECE.

    Raises:
        ConfigError: ``by`` is unknown.
        DataError: no samples, or logits and labels that do not fit.
    """
    if by not in ('ece', 'nll'):
        raise ConfigError(f"temperatures are compared by 'ece' or 'nll', not {by!r}")
    values = []
    for temperature in GRID:
        probabilities = softmax(np.asarray(logits, float) / temperature)
        if by == 'ece':
            values.append(expected_calibration_error(probabilities, labels, num_bins))
        else:
            values.append(negative_log_likelihood(probabilities, labels))
    return float(GRID[int(np.argmin(values))])
