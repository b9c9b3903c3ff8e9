"""Temperatures of classifiers against optimality, a known truth, and the grid."""

from __future__ import annotations

import numpy as np
import pytest

from gfl_det.errors import ConfigError, DataError
from projects.calibration_study.classification_metrics import (
    expected_calibration_error,
    negative_log_likelihood,
    softmax,
)
from projects.calibration_study.softmax_temperature import (
    GRID,
    fit_softmax_temperature,
    search_temperature,
)


def sampled(temperature: float, number: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right once divided by a temperature, and labels drawn from them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (number, 4))
    chances = softmax(logits / temperature)
    draws = rng.random((number, 1)) < chances.cumsum(1)
    return logits, draws.argmax(1)


@pytest.mark.parametrize('temperature', [0.6, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    logits, labels = sampled(temperature)
    found = fit_softmax_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.06)
    assert search_temperature(logits, labels, by='nll') == pytest.approx(found, abs=0.051)
    assert search_temperature(logits, labels) == pytest.approx(temperature, abs=0.25)


def test_the_gradient_is_0() -> None:
    logits, labels = sampled(1.7, 60)
    slope = 1 / fit_softmax_temperature(logits, labels)
    probabilities = softmax(slope * logits)
    true = logits[np.arange(60), labels]
    assert abs(((probabilities * logits).sum(1) - true).mean()) < 1e-8
    least = negative_log_likelihood(probabilities, labels)
    for other in (0.99, 1.01):
        assert negative_log_likelihood(softmax(other * slope * logits), labels) > least


def test_the_grid_is_searched_whole() -> None:
    logits, labels = sampled(1.7, 60)
    for by, measure in (('ece', expected_calibration_error), ('nll', negative_log_likelihood)):
        values = [measure(softmax(logits / temperature), labels) for temperature in GRID]
        assert search_temperature(logits, labels, by) == GRID[np.argmin(values)]


def test_labels_that_contradict_or_follow_all_logits_end_at_the_range() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert fit_softmax_temperature(logits, np.array([1, 0])) == pytest.approx(1e3)
    sure = fit_softmax_temperature(logits, np.array([0, 1]))
    assert softmax(logits / sure).max(1).min() > 1 - 1e-6


def test_refused() -> None:
    with pytest.raises(DataError, match='N at least 1'):
        fit_softmax_temperature(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(ConfigError, match="not 'mce'"):
        search_temperature(np.zeros((1, 2)), np.zeros(1, int), by='mce')
