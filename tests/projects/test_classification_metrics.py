"""Metrics of classifiers: the reference numbers, loops over the definitions, cases done by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det.errors import DataError
from projects.calibration_study import classification_metrics
from tests.helpers.calibration_cases import case_json


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    number, classes = rng.integers(1, 40), rng.integers(2, 5)
    return classification_metrics.softmax(rng.normal(0, 2, (number, classes))), rng.integers(
        0, classes, number
    )


@pytest.mark.parametrize('bins', [10, 15])
def test_reference(bins: int) -> None:
    case = case_json('classification.json')
    probabilities, labels = classification_metrics.softmax(case['logits']), np.array(case['labels'])
    # The reference worked in float32.
    for measure, name in (
        (classification_metrics.expected_calibration_error, 'ECE'),
        (classification_metrics.expected_calibration_error, 'ECE_list'),
        (classification_metrics.classwise_calibration_error, 'classwise'),
        (classification_metrics.maximum_calibration_error, 'MCE'),
        (classification_metrics.average_calibration_error, 'ACE'),
        (classification_metrics.root_calibration_error, 'L2'),
    ):
        wanted = case['metrics'][f'{name} {bins}']
        assert measure(probabilities, labels, bins) == pytest.approx(wanted, abs=1e-7), name
    assert classification_metrics.negative_log_likelihood(probabilities, labels) == pytest.approx(
        case['metrics']['NLL'], abs=1e-6
    )
    brier = case['losses']['Brier (own formula)']['value']
    assert classification_metrics.brier_score(probabilities, labels) == pytest.approx(
        brier, abs=1e-6
    )


@pytest.mark.parametrize('bins', [10, 15])
def test_reference_of_the_adaptive_error_lacks_the_least_confident_sample(bins: int) -> None:
    case = case_json('classification.json')
    probabilities, labels = classification_metrics.softmax(case['logits']), np.array(case['labels'])
    confidence = probabilities.max(1)
    ours = classification_metrics.confidence_table(probabilities, labels, bins, adaptive=True)
    least = confidence.argmin()
    correct = probabilities.argmax(1) == labels
    # What the reference sums: the same bins, the first without its left edge.
    sums = ours.number * (ours.target - ours.score)
    sums[0, 0] -= float(correct[least]) - confidence[least]
    wanted = case['metrics'][f'AdaECE {bins}']
    assert np.abs(sums).sum() / len(labels) == pytest.approx(wanted, abs=1e-7)
    assert ours.number.sum() == len(labels)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([1, 5, 15]))
def test_errors_are_their_definitions(seed: int, bins: int) -> None:
    probabilities, labels = random_case(seed)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    gaps = []
    for low, high in itertools.pairwise(np.linspace(0, 1, bins + 1)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            gaps.append((inside.sum() / len(labels), gap))
    sizes, values = np.array(gaps).T
    case = (probabilities, labels, bins)
    assert classification_metrics.expected_calibration_error(*case) == pytest.approx(
        (sizes * values).sum()
    )
    assert classification_metrics.maximum_calibration_error(*case) == pytest.approx(values.max())
    assert classification_metrics.average_calibration_error(*case) == pytest.approx(values.mean())
    assert classification_metrics.root_calibration_error(*case) == pytest.approx(
        math.sqrt((sizes * values**2).sum())
    )
    by_class = [
        classification_metrics.expected_calibration_error(
            # Two classes whose larger probability decides are one probability against its class.
            np.stack([column, np.zeros_like(column)], 1),
            np.where(labels == index, 0, 1),
            bins,
        )
        for index, column in enumerate(probabilities.T)
    ]
    assert classification_metrics.classwise_calibration_error(*case) == pytest.approx(
        np.mean(by_class)
    )


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_one_sample_a_bin_makes_the_adaptive_error_the_mean_distance(seed: int) -> None:
    probabilities, labels = random_case(seed)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    found = classification_metrics.expected_calibration_error(
        probabilities, labels, len(labels), adaptive=True
    )
    if len(labels) > 1:
        # The first bin holds the two least confident samples, as its left edge is one of them.
        order = np.argsort(confidence)
        distance = (correct - confidence)[order]
        wanted = abs(distance[0] + distance[1]) + np.abs(distance[2:]).sum()
        assert found == pytest.approx(wanted / len(labels))


def test_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]])
    labels = np.array([0, 1, 0])
    # A tie goes to the first class, so the last is right; bins of a tenth.
    assert classification_metrics.expected_calibration_error(
        probabilities, labels, 10
    ) == pytest.approx((0.1 + 0.8 + 0.5) / 3)
    assert classification_metrics.maximum_calibration_error(
        probabilities, labels, 10
    ) == pytest.approx(0.8)
    assert classification_metrics.negative_log_likelihood(probabilities, labels) == pytest.approx(
        -(math.log(0.9) + math.log(0.2) + math.log(0.5)) / 3
    )
    assert classification_metrics.brier_score(probabilities, labels) == pytest.approx(
        (0.02 + 1.28 + 0.5) / 3
    )


def test_both_ends_of_the_probability() -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert classification_metrics.expected_calibration_error(sure, np.array([0, 1])) == 0
    assert classification_metrics.classwise_calibration_error(sure, np.array([0, 1])) == 0
    assert classification_metrics.classwise_calibration_error(sure, np.array([1, 0])) == 1
    assert classification_metrics.negative_log_likelihood(sure, np.array([1, 1])) == math.inf


def test_classes_that_no_sample_has_count() -> None:
    probabilities = np.tile([0.5, 0.5, 0.0, 0.0], (4, 1))
    labels = np.array([0, 0, 0, 0])
    assert classification_metrics.classwise_calibration_error(
        probabilities, labels
    ) == pytest.approx(0.25)


def test_softmax_of_large_logits() -> None:
    assert classification_metrics.softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])).tolist() == [
        [1, 0],
        [0.5, 0.5],
    ]


@pytest.mark.parametrize(
    ('probabilities', 'labels', 'words'),
    [
        (np.zeros((0, 3)), np.zeros(0, int), 'N at least 1'),
        (np.zeros((2, 3)), np.zeros(3, int), r'not \(2, 3\) and \(3,\)'),
        (np.full((1, 2), np.nan), np.zeros(1, int), 'NaN or outside'),
        (np.array([[2.0, -1.0]]), np.zeros(1, int), 'apply softmax'),
        (np.array([[0.5, 0.5]]), np.array([2]), r'outside 0\.\.1'),
    ],
)
def test_refused(probabilities: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        classification_metrics.expected_calibration_error(probabilities, labels)
