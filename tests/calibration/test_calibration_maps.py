"""Fits against their optimality conditions, known parameters, scikit-learn, and degenerate data."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression

from gfl_det.calibration.logistic import GRADIENT, MAX_SLOPE, fit_line, fit_offset, fit_slope
from gfl_det.calibration.maps import (
    FITS,
    KINDS,
    Constant,
    Identity,
    Isotonic,
    Linear,
    Platt,
    Temperature,
    fit_isotonic,
    fit_linear,
    fit_platt,
    fit_temperature,
    logit,
    map_from_json,
    map_to_json,
)


def random_pairs(seed: int, hard: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    number = rng.integers(2, 60)
    scores = rng.beta(0.5, 0.5, number)
    targets = np.clip(scores * rng.uniform(0.2, 1) + rng.normal(0, 0.2, number), 0, 1)
    return scores, (targets > 0.5).astype(float) if hard else targets


def entropy(values: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, values) - targets * values))


@given(st.integers(0, 10**6), st.booleans())
def test_the_gradient_is_0_or_points_out_of_the_range(seed: int, hard: bool) -> None:
    scores, targets = random_pairs(seed, hard)
    z = logit(scores)
    slope = fit_slope(z, targets)
    by_slope = np.mean((expit(slope * z) - targets) * z)
    assert abs(by_slope) < GRADIENT or (
        (slope == 1 / MAX_SLOPE and by_slope > 0) or (slope == MAX_SLOPE and by_slope < 0)
    )
    if targets.mean() in (0, 1):
        return
    slope, offset = fit_line(z, targets)
    error = expit(slope * z + offset) - targets
    assert abs(error.mean()) < GRADIENT
    by_slope = np.mean(error * z)
    assert abs(by_slope) < GRADIENT or (
        (slope == 0 and by_slope > 0) or (slope == MAX_SLOPE and by_slope < 0)
    )
    # The loss is convex, so that is the least value; a look around for a reader without calculus.
    least = entropy(slope * z + offset, targets)
    for change in np.random.default_rng(seed).normal(0, 0.3, (20, 2)):
        other = np.clip(slope + change[0], 0, MAX_SLOPE), offset + change[1]
        assert entropy(other[0] * z + other[1], targets) >= least - 1e-8


@pytest.mark.parametrize(
    ('slope', 'offset'), [(1, 0), (0.3, -2), (2.5, 1.3), (0.01, 0.5), (40, -3)]
)
def test_parameters_that_made_the_targets_are_found(slope: float, offset: float) -> None:
    scores = np.linspace(0.001, 0.999, 500)
    platt = fit_platt(scores, expit(slope * logit(scores) + offset))
    assert (platt.slope, platt.offset) == pytest.approx((slope, offset), rel=1e-5, abs=1e-6)
    temperature = fit_temperature(scores, expit(logit(scores) / slope))
    assert temperature.temperature == pytest.approx(slope, rel=1e-5)


def test_true_scores_stay_as_they_are() -> None:
    scores = np.linspace(0, 1, 101)
    for fit in FITS.values():
        np.testing.assert_allclose(fit(scores, scores)(scores), scores, atol=1e-6)


@given(st.integers(0, 10**6), st.sampled_from(sorted(FITS)), st.booleans())
def test_maps_are_monotone_and_give_probabilities(seed: int, method: str, hard: bool) -> None:
    score_map = FITS[method](*random_pairs(seed, hard))
    values = score_map(np.linspace(0, 1, 201))
    assert values.dtype == float
    assert ((values >= 0) & (values <= 1)).all()
    assert (np.diff(values) >= 0).all()


@given(st.integers(0, 10**6))
def test_linear_and_isotonic_are_scikit_learns(seed: int) -> None:
    scores, targets = random_pairs(seed)
    line = fit_linear(scores, targets)
    theirs = LinearRegression(positive=True).fit(scores[:, None], targets)
    assert line.slope == pytest.approx(theirs.coef_[0], abs=1e-9)
    assert line.offset == pytest.approx(theirs.intercept_, abs=1e-9)
    grid = np.linspace(0, 1, 101)
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip').fit(scores, targets)
    np.testing.assert_allclose(fit_isotonic(scores, targets)(grid), model.predict(grid), atol=1e-12)


def test_isotonic_by_hand() -> None:
    # .6 and .4 are in the wrong order and become their mean; outside, the ends go on.
    fitted = fit_isotonic(np.array([0.2, 0.4, 0.5, 0.8]), np.array([0.1, 0.6, 0.4, 0.9]))
    found = fitted(np.array([0.0, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0]))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.3, 0.5, 0.5, 0.7, 0.9, 0.9])


def test_linear_is_cut_to_probabilities() -> None:
    values = Linear(2.0, -0.5)(np.array([0.0, 0.5, 0.9]))
    np.testing.assert_allclose(values, [0, 0.5, 1])


class TestDegenerate:
    scores = np.array([0.1, 0.3, 0.3, 0.9])

    @pytest.mark.parametrize('target', [0.0, 1.0])
    def test_one_target_for_all_makes_a_constant(self, target: float) -> None:
        targets = np.full(4, target)
        for method in ('temperature', 'platt'):
            assert FITS[method](self.scores, targets) == Constant(target)
        for method in ('linear', 'isotonic'):
            np.testing.assert_array_equal(FITS[method](self.scores, targets)(self.scores), targets)

    @pytest.mark.parametrize('method', ['platt', 'linear', 'isotonic'])
    def test_equal_scores_become_the_mean_target(self, method: str) -> None:
        fitted = FITS[method](np.full(3, 0.7), np.array([0.1, 0.2, 0.9]))
        np.testing.assert_allclose(fitted(np.array([0.0, 0.7, 1.0])), 0.4)

    @pytest.mark.parametrize('method', ['platt', 'linear', 'isotonic'])
    def test_one_detection_becomes_its_target(self, method: str) -> None:
        fitted = FITS[method](np.array([0.7]), np.array([0.25]))
        np.testing.assert_allclose(fitted(np.array([0.0, 0.7, 1.0])), 0.25)

    @pytest.mark.parametrize('method', ['platt', 'linear', 'isotonic'])
    def test_scores_in_the_wrong_order_become_the_mean_target(self, method: str) -> None:
        fitted = FITS[method](np.array([0.1, 0.5, 0.9]), np.array([0.9, 0.5, 0.1]))
        np.testing.assert_allclose(fitted(np.array([0.05, 0.5, 0.95])), 0.5)

    def test_a_temperature_ends_where_its_range_does(self) -> None:
        scores = np.array([0.2, 0.8])
        assert fit_temperature(scores, np.array([0.9, 0.1])).temperature == MAX_SLOPE
        sure = fit_temperature(scores, np.array([0.0, 1.0]))
        # Separated: a gradient below 1e-8 is reached within the range.
        np.testing.assert_allclose(sure(scores), [0, 1], atol=1e-6)

    @pytest.mark.parametrize('gap', [0.2, 1e-3, 1e-9])
    def test_separated_targets_have_a_bounded_answer(self, gap: float) -> None:
        scores = np.array([0.1, 0.5 - gap, 0.5 + gap, 0.9])
        fitted = fit_platt(scores, np.array([0.0, 0.0, 1.0, 1.0]))
        assert 0 < fitted.slope <= MAX_SLOPE
        assert math.isfinite(fitted.offset)
        values = fitted(scores)
        assert values[0] < 1e-3
        assert values[3] > 1 - 1e-3
        assert values.mean() == pytest.approx(0.5, abs=1e-6)

    def test_scores_of_0_and_1(self) -> None:
        scores = np.array([0.0, 0.0, 0.5, 1.0, 1.0])
        targets = np.array([0.0, 0.3, 0.5, 0.8, 1.0])
        for method in FITS:
            values = FITS[method](scores, targets)(scores)
            assert np.isfinite(values).all()
        np.testing.assert_allclose(logit(np.array([0.0, 1.0])), [-36.04365339, 36.04365339])

    def test_an_offset_at_either_end(self) -> None:
        for wanted in (1e-9, 1 - 1e-9):
            offset = fit_offset(np.array([-3.0, 30.0]), np.array([wanted, wanted]))
            assert expit(np.array([-3.0, 30.0]) + offset).mean() == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize(
    'score_map',
    [
        Identity(),
        Constant(0.1),
        Temperature(1 / 3),
        Platt(0.1 + 0.2, -1e-17),
        Linear(2 / 3, -0.1),
        Isotonic((0.1, 1 / 3), (0.0, 0.7)),
    ],
)
def test_maps_survive_json(score_map) -> None:
    entry = json.loads(json.dumps(map_to_json(score_map)))
    assert KINDS[entry['kind']] is type(score_map)
    assert map_from_json(entry) == score_map


@pytest.mark.parametrize(
    'entry',
    [
        dict(kind='histogram'),
        dict(kind='platt', slope=1),
        dict(kind='platt', slope=1, offset='much'),
        dict(kind='platt', slope=1, offset=float('nan')),
        dict(kind='isotonic', scores=[0.1, 0.2], values=[0.5]),
        dict(kind='isotonic', scores=[0.2, 0.1], values=[0.5, 0.6]),
        dict(kind='isotonic', scores=[], values=[]),
    ],
)
def test_damaged_maps_are_refused(entry: dict) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        map_from_json(entry)


@pytest.mark.parametrize(
    'entry',
    [
        dict(kind='temperature', temperature=0.0),
        dict(kind='temperature', temperature=-1.0),
        dict(kind='platt', slope=-1.0, offset=0.0),
        dict(kind='linear', slope=-1.0, offset=1.0),
        dict(kind='constant', value=7.0),
        dict(kind='isotonic', scores=[0.0, 1.0], values=[-1.0, 5.0]),
        dict(kind='isotonic', scores=[0.0, float('inf')], values=[0.0, 1.0]),
        dict(kind='isotonic', scores=[0.0, 1.5], values=[0.0, 1.0]),
        dict(kind='isotonic', scores=[0.0, 1.0], values=[0.0, 1.5]),
        dict(kind='isotonic', scores=[0.0, 1.0], values=[-0.1, 1.0]),
        dict(kind='isotonic', scores=[-0.1, 1.0], values=[0.0, 1.0]),
    ],
)
def test_parameters_that_would_turn_or_leave_the_scores_are_refused(entry) -> None:
    with pytest.raises(ValueError, match=r'out of range|outside \[0, 1\]'):
        map_from_json(entry)
