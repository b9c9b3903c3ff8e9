"""Resampled metrics against data in which images are really there several times; intervals."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det.errors import ConfigError
from gfl_det.evaluation.bootstrap import (
    basic_interval,
    bca_interval,
    halving_weights,
    image_weights,
    jackknife_weights,
    resample,
    shifted_interval,
    wide_interval,
)
from gfl_det.evaluation.evaluate import FLOOR_PARTS, evaluate_detections, statistics_of
from gfl_det.evaluation.weighted import RECALLS, _recalls_reached
from tests.helpers.calibration_cases import case_data, random_scene, scene
from tests.helpers.resampling import made_up, repeated

COUNTS = ('classes', 'classes_without_truths', 'classes_without_detections')
WITHOUT_ENDS = (*COUNTS, *filter(None, FLOOR_PARTS))


class TestStatistics:
    @pytest.mark.parametrize('data', [case_data('main', 'minitest'), made_up(30, 0)])
    def test_of_the_data_itself_are_the_metrics(self, data):
        wanted = evaluate_detections(*data)
        found = statistics_of(*data)(np.ones((1, len(data[1].image_ids))))
        for name, value in wanted.items():
            if not name.endswith(WITHOUT_ENDS):
                np.testing.assert_allclose(found[name][0], value, rtol=1e-12, err_msg=name)

    @given(st.integers(0, 10**6))
    @settings(max_examples=60)
    def test_of_any_scene_are_the_metrics(self, seed):
        data = random_scene(seed)
        wanted = evaluate_detections(*data)
        found = statistics_of(*data)(np.ones((1, len(data[1].image_ids))))
        # pycocotools adds 2e-16 to a divisor, which shows in the last digit.
        for name, value in wanted.items():
            if not name.endswith(WITHOUT_ENDS):
                np.testing.assert_allclose(found[name][0], value, atol=1e-12, err_msg=name)

    def test_of_weights_are_those_of_images_that_are_there_several_times(self):
        detections, gts = made_up(25, 1)
        statistics = statistics_of(detections, gts)
        for weights in next(image_weights(25, 4, seed=3)):
            wanted = evaluate_detections(*repeated(detections, gts, weights))
            found = statistics(weights[None])
            for name, value in wanted.items():
                if not name.endswith(WITHOUT_ENDS):
                    # Copies have equal scores: a cut between two of them is none here.
                    limit = 2e-3 if name.startswith(('AP', 'oLRP')) else 1e-12
                    np.testing.assert_allclose(found[name][0], value, atol=limit, err_msg=name)

    def test_of_no_image_are_nan(self):
        found = statistics_of(*made_up(5, 2))(np.zeros((1, 5)))
        assert all(np.isnan(value).all() for value in found.values())

    def test_of_no_detection(self):
        data = scene([(0, 0, (0, 0, 10, 10), False)], [])
        found = statistics_of(*data)(np.ones((1, 1)))
        assert (found['AP'][0], found['LRP_0.5'][0], found['oLRP'][0]) == (0, 1, 1)
        assert np.isnan(found['LaECE_0'][0])


def test_recalls_that_are_reached_at_their_float_neighbours() -> None:
    shares = np.array([k / n for n in range(1, 130) for k in range(n + 1)])
    recalls = np.unique(np.clip([np.nextafter(shares, end) for end in (-1, 2)], 0, 1))
    recalls = np.concatenate([recalls, shares])
    wanted = np.searchsorted(RECALLS, recalls, side='right')
    assert (_recalls_reached(recalls) == wanted).all()


def test_weights_are_draws_groups_and_halves() -> None:
    drawn = np.concatenate(list(image_weights(7, 120)))
    assert drawn.shape == (120, 7)
    assert (drawn.sum(1) == 7).all()
    assert (np.concatenate(list(image_weights(7, 120))) == drawn).all()
    left_out = jackknife_weights(250, 100)
    assert left_out.shape == (100, 250)
    assert ((1 - left_out).sum(0) == 1).all()
    assert jackknife_weights(3).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    halves = halving_weights(9, splits=4).reshape(4, 2, 9)
    assert (halves.sum(1) == 1).all()
    assert (halves[:, 0].sum(1) == 4).all()
    assert (halving_weights(9) == halving_weights(9, seed=0, splits=50)).all()


class TestIntervals:
    def test_of_a_normal_mean_is_the_textbooks(self):
        rng = np.random.default_rng(0)
        data = rng.normal(size=2000)
        means = np.concatenate([w @ data / 2000 for w in image_weights(2000, 3000)])
        left_out = (data.sum() - data) / 1999
        low, high = bca_interval(data.mean(), means, left_out)
        half = 1.96 * data.std() / 2000**0.5
        assert low == pytest.approx(data.mean() - half, abs=half / 10)
        assert high == pytest.approx(data.mean() + half, abs=half / 10)

    def test_bca_moves_against_the_bias_of_resamples(self):
        resampled = np.linspace(0, 1, 1001)
        low, high = bca_interval(0.3, resampled, np.array([0.29, 0.31]))
        plain_low, plain_high = bca_interval(0.5, resampled, np.array([0.49, 0.51]))
        assert (low, high) < (plain_low, plain_high)
        assert (plain_low, plain_high) == pytest.approx((0.025, 0.975), abs=2e-3)

    def test_bca_is_efrons_equation(self):
        """One group of three far off: deviations 1, 1, -2, so a is -6 / (6 * 6 ** 1.5)."""
        normal = NormalDist()
        resampled = np.linspace(0, 1, 1001)
        low, high = bca_interval(0.4, resampled, np.array([0.0, 0.0, 3.0]), 0.9)
        bias, acceleration = normal.inv_cdf(400.5 / 1001), -(6**-1.5)
        for end, tail in ((low, 0.05), (high, 0.95)):
            moved = bias + normal.inv_cdf(tail)
            assert end == pytest.approx(normal.cdf(bias + moved / (1 - acceleration * moved)))

    def test_basic_is_the_mirror(self):
        assert basic_interval(0.2, np.linspace(0.2, 0.3, 101), 0.9) == pytest.approx((0.105, 0.195))
        assert basic_interval(0.0, np.array([0.0, 0.1])).low == 0

    def test_shifted_takes_off_what_halves_show(self):
        resampled = np.linspace(0.4, 0.6, 101)
        step = 0.1 * (2 ** (2 / 3) - 1)  # a bias of .1
        low, high = shifted_interval(0.5, resampled, np.full(4, 0.5 + step), 0.9)
        assert (low, high) == pytest.approx((0.31, 0.49))

    def test_wide_holds_the_percentiles_and_their_mirror(self):
        resampled = np.linspace(0.2, 0.35, 151)
        low, high = wide_interval(0.25, resampled, 0.9)
        ends = np.quantile(resampled, [0.05, 0.95])
        assert low <= min(ends[0], 0.5 - ends[1])
        assert high >= max(ends[1], 0.5 - ends[0])
        assert wide_interval(0.0, np.array([0.0, 0.1])).low == 0
        assert np.isnan(wide_interval(np.nan, np.ones(5))).all()

    @pytest.mark.parametrize('kind', [bca_interval, shifted_interval])
    def test_what_is_not_defined_or_does_not_vary(self, kind):
        nothing = np.full(5, np.nan)
        assert np.isnan(kind(np.nan, np.ones(5), np.ones(5))).all()
        assert np.isnan(kind(0.5, nothing, np.ones(5))).all()
        assert kind(0.5, np.full(9, 0.5), np.full(3, 0.5)) == (0.5, 0.5)
        assert np.isnan(basic_interval(np.nan, np.ones(5))).all()

    @pytest.mark.slow
    def test_cover_the_truth_of_a_simulation(self):
        """Forty sets of 60 images; the value of 3,000 images stands for the truth."""
        big = statistics_of(*made_up(3000, 99))(np.ones((1, 3000)))
        inside = dict.fromkeys(('AP', 'AP50', 'LRP_0.5', 'D-ECE', 'LaECE_0'), 0)
        for seed in range(40):
            found = resample(statistics_of(*made_up(60, seed)), 100, seed)
            for name in inside:
                inside[name] += found[name].low <= big[name][0] <= found[name].high
        assert min(inside.values()) >= 32  # of 40; .95 would give 38, and 32 once in 1,000


class TestEvaluation:
    def test_ends_stand_beside_the_metrics(self):
        data = made_up(20, 4)
        plain, found = evaluate_detections(*data), evaluate_detections(*data, resamples=60)
        assert {name: found[name] for name in plain} == plain
        names = [name for name in plain if not name.endswith(WITHOUT_ENDS)]
        assert set(found) - set(plain) == {f'{n}_{end}' for n in names for end in ('low', 'high')}
        assert all(found[f'{name}_low'] <= found[f'{name}_high'] for name in names)
        again = evaluate_detections(*data, resamples=60)
        assert again == found
        assert evaluate_detections(*data, resamples=60, seed=1) != found

    def test_a_negative_number_is_refused(self):
        with pytest.raises(ConfigError, match='-1'):
            evaluate_detections(*made_up(3, 0), resamples=-1)
