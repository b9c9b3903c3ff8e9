"""LaECE by its first definition: half-open bins, and classes without detections count as 0."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det.calibration import match
from gfl_det.evaluation.functional import laece, reliability
from tests.helpers.calibration_cases import random_scene, scene


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1]))
def test_it_is_its_definition(seed: int, tau: float) -> None:
    detections, gts = random_scene(seed)
    # Scores on the bins' edges, 0 and 1 among them.
    scores = np.round(detections.scores * 25) / 25
    (found,) = match(detections._replace(scores=scores), gts, [tau])
    error = laece(found, as_saod=True)
    expected = []
    for label, number in enumerate(found.gt_counts):
        mine = found.judged() & (found.label == label)
        total = 0.0
        for low, high in itertools.pairwise(np.linspace(0, 1, 26)):
            inside = mine & (low <= found.scores) & (found.scores < high)
            gap = found.iou[inside].sum() - found.scores[inside].sum()
            total += abs(gap) / max(1, mine.sum())
        expected.append(total if number else math.nan)
    np.testing.assert_allclose(error.per_class, expected, rtol=0, atol=1e-12)
    known = [value for value in expected if not math.isnan(value)]
    assert error.mean == pytest.approx(np.mean(known) if known else math.nan, nan_ok=True)


def test_a_score_of_1_is_lost_and_a_class_without_detections_is_0() -> None:
    box = (0, 0, 10, 10)
    detections, gts = scene(
        [(0, 0, box, False), (0, 1, box, False)],
        [(0, 0, (0, 0, 10, 5), 1.0), (0, 0, (50, 0, 10, 10), 0.2)],
        ('a', 'b'),
    )
    (found,) = match(detections, gts, [0.1])
    usual, first = laece(found), laece(found, as_saod=True)
    assert usual.per_class[0] == pytest.approx((0.5 + 0.2) / 2)
    assert math.isnan(usual.per_class[1])
    assert first.per_class == pytest.approx([0.2 / 2, 0])
    assert first.mean == pytest.approx(0.05)


def test_bins_hold_their_low_edge_or_their_high_one() -> None:
    scores, edges = np.array([0.0, 0.5, 0.5, 1.0]), np.array([0, 0.5, 1])
    groups = np.array([0, 0, 1, 1])
    usual = reliability(scores, scores, edges, groups, 2)
    assert usual.number.tolist() == [[2, 0], [1, 1]]
    other = reliability(scores, scores, edges, groups, 2, half_open=True)
    assert other.number.tolist() == [[1, 1], [0, 1]]
    assert reliability(scores[:0], scores[:0], edges, half_open=True).number.tolist() == [[0, 0]]
