"""Calibrators as tensor operations against the maps themselves, in every corner of [0, 1]."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfl_det.calibration.maps import (
    Constant,
    Identity,
    Isotonic,
    Linear,
    Platt,
    ScoreMaps,
    Temperature,
)

FINE = np.linspace(0, 1, 2001).astype(np.float32)
MAPS = [
    Identity(),
    Constant(0.25),
    Temperature(1.7),
    Platt(0.8, -0.6),
    Linear(1.5, -0.2),
    Linear(0.0, 0.4),
    Linear(2.0, 0.7),
    Isotonic((0.3,), (0.6,)),
    Isotonic((0.1, 0.2, 0.200001, 0.9), (0.0, 0.1, 0.7, 1.0)),
    Isotonic((0.2, 0.5, 0.5, 0.8), (0.1, 0.2, 0.6, 0.7)),  # a jump at a score
]


def mapped(maps, scores, labels):
    result = ScoreMaps(maps)(torch.from_numpy(scores), torch.from_numpy(labels))
    assert result.dtype == torch.float32
    return result.numpy()


@pytest.mark.parametrize('score_map', MAPS, ids=str)
def test_a_map_gives_what_numpy_gives(score_map):
    got = mapped([score_map], FINE, np.zeros(len(FINE), np.int64))
    np.testing.assert_allclose(got, score_map(FINE.astype(float)), rtol=0, atol=6e-8)


@given(st.lists(st.sampled_from(MAPS), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_each_class_gets_its_own_map_whatever_kinds_stand_together(maps, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(maps), (3, 5))
    scores = generator.random((3, 5), np.float32)
    got = mapped(maps, scores, labels)
    want = [[maps[c](s) for s, c in zip(*row)] for row in zip(scores.astype(float), labels)]
    np.testing.assert_allclose(got, np.array(want, float), rtol=0, atol=6e-8)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40, unique=True),
    st.integers(0, 2**32 - 1),
)
def test_any_number_of_knots(places, seed):
    generator = np.random.default_rng(seed)
    score_map = Isotonic(tuple(sorted(places)), tuple(sorted(generator.random(len(places)))))
    scores = np.concatenate([np.array(places, np.float32), generator.random(50, np.float32)])
    got = mapped([Identity(), score_map], scores, np.ones(len(scores), np.int64))
    np.testing.assert_allclose(got, score_map(scores.astype(float)), rtol=0, atol=6e-8)


def test_no_scores():
    assert mapped(MAPS, np.zeros((2, 0), np.float32), np.zeros((2, 0), np.int64)).shape == (2, 0)
