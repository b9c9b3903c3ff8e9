"""Comparisons of detectors: differences against loops, false alarms and power by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from gfl_det.errors import ConfigError
from gfl_det.evaluation.bootstrap import image_weights
from gfl_det.evaluation.comparison import (
    ComparedSide,
    compare_detections,
    holm,
    paired_difference,
    verdict,
)
from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.evaluate import evaluate_detections
from tests.helpers.calibration_cases import UNIT, scene
from tests.helpers.resampling import detect, made_up, make_gts, repeated

ENDS = ('difference', 'low', 'high', 'p')


class TestDifferences:
    def test_are_those_of_the_metrics(self):
        gts = make_gts(20, 0)
        a, b = detect(gts, 1), detect(gts, 2)
        found = compare_detections(a, b, gts, resamples=30)
        alone = [evaluate_detections(each, gts) for each in (a, b)]
        for name in ('AP', 'AP75', 'oLRP', 'LRP_0.5_FP', 'LaECE_0', 'LaACE_0_reject', 'D-ECE'):
            assert found[f'{name}_a'] == pytest.approx(alone[0][name])
            assert found[f'{name}_difference'] == pytest.approx(alone[0][name] - alone[1][name])
            assert 0 < found[f'{name}_p'] <= 1
            assert found[f'{name}_low'] <= found[f'{name}_high']
        assert {f'AP_class_1_{end}' for end in ENDS} < set(found)

    def test_of_itself_are_0(self):
        gts = make_gts(10, 3)
        a = detect(gts, 4)
        found = compare_detections(a, a, gts, resamples=50)
        for name in ('AP', 'LaECE_0', 'AP_class_0'):
            assert [found[f'{name}_{end}'] for end in ENDS] == [0, 0, 0, 1]
        assert verdict(found) == 'No difference between A and B can be told from noise.'

    def test_change_sign_with_the_sides(self):
        gts = make_gts(15, 5)
        a, b = detect(gts, 6), detect(gts, 7, noise=8)
        one, other = (compare_detections(*pair, gts, resamples=100) for pair in ((a, b), (b, a)))
        for name in ('AP', 'LaECE_0', 'LRP_0'):
            assert one[f'{name}_low'] == pytest.approx(-other[f'{name}_high'])
            assert one[f'{name}_p'] == other[f'{name}_p']

    def test_pairing_takes_off_what_makes_images_hard(self):
        """Half of the images are hard for both: alone, either AP is unsure."""
        gts = make_gts(60, 8)
        hard = np.arange(60) < 30
        sides = [detect(gts, 9, noise=np.where(hard[gts.image], 12.0, base)) for base in (2, 2.5)]
        found = compare_detections(*sides, gts, resamples=100)
        alone = evaluate_detections(sides[0], gts, resamples=100)
        paired = found['AP_high'] - found['AP_low']
        assert paired < (alone['AP_high'] - alone['AP_low']) / 2


class TestSimulations:
    @pytest.mark.slow
    def test_false_alarms_are_as_rare_as_stated(self):
        """Two detectors that are equally good; 200 sets of 40 images, one class."""
        p = []
        for seed in range(200):
            gts = make_gts(40, seed, classes=1)
            pair = [detect(gts, 1000 * seed + side) for side in (1, 2)]
            p.append(compare_detections(*pair, gts, resamples=200, seed=seed, taus=(0.0,)))
        for name in ('AP', 'AP50', 'oLRP', 'LaECE_0', 'LaACE_0', 'D-ECE'):
            alarms = sum(each[f'{name}_p'] < 0.05 for each in p)
            assert alarms <= 18  # of 200; .05 would give 10, and 19 once in 200

    def test_a_p_of_equals_is_uniform(self):
        """Of normal means, whose trainings and images both vary."""
        rng = np.random.default_rng(0)
        p = []
        for _ in range(300):
            sides = []
            for _ in range(2):
                runs = rng.normal(0, 0.1, 3)
                noise = rng.normal(0, 0.1, (400, 1))
                sides.append(ComparedSide(runs, runs + noise))
            drawn = [rng.integers(0, 3, (400, 2)) for _ in range(2)]
            of_images = rng.normal(0, 0.1 * 2**0.5)  # what the resamples' noise stands for
            sides[0] = ComparedSide(sides[0].value + of_images, sides[0].resampled + of_images)
            p.append(paired_difference(*sides, drawn, 100).p)
        assert 3 <= sum(each < 0.05 for each in p) <= 27
        assert 0.4 < np.mean(p) < 0.6

    def test_what_is_better_is_found(self):
        gts = make_gts(80, 1)
        better, worse = detect(gts, 2, noise=2), detect(gts, 3, noise=5)
        found = compare_detections(better, worse, gts, resamples=300, taus=())
        assert found['AP_low'] > 0
        assert found['AP_p'] < 0.02
        assert verdict(found, 'new', 'old').startswith('new is better in AP (by 0.')

    @pytest.mark.slow
    def test_seeds_widen_the_interval_as_their_spread_says(self):
        """Trainings of one recipe differ: a pair of single runs alarms falsely, several do not."""
        alarms = dict(single=0, several=0)
        for seed in range(100):
            rng = np.random.default_rng(seed)
            gts = make_gts(100, seed, classes=1)
            runs = [
                detect(gts, 1000 * seed + run, noise=noise)
                for run, noise in enumerate(rng.uniform(2, 5, 8))
            ]
            single = compare_detections(runs[0], runs[4], gts, 120, seed, taus=())
            several = compare_detections(runs[:4], runs[4:], gts, 120, seed, taus=())
            alarms['single'] += single['AP_p'] < 0.05
            alarms['several'] += several['AP_p'] < 0.05
        assert alarms['several'] <= 10  # .05 would give 5, and 11 once in 100
        assert alarms['single'] > 30


class TestSeeds:
    def test_means_are_compared(self):
        gts = make_gts(12, 0)
        runs = [detect(gts, seed, noise) for seed, noise in enumerate((2, 3, 4, 6))]
        found = compare_detections(runs[:3], runs[3:], gts, resamples=40)
        each = [evaluate_detections(run, gts)['AP'] for run in runs]
        assert found['AP_a'] == pytest.approx(np.mean(each[:3]))
        assert found['AP_difference'] == pytest.approx(np.mean(each[:3]) - each[3])

    def test_their_spread_widens_the_interval(self):
        gts = make_gts(40, 1)
        near, far = detect(gts, 2, noise=2), detect(gts, 3, noise=8)
        other = detect(gts, 4, noise=4)
        mixed = compare_detections([near, far], other, gts, resamples=80, taus=())
        alone = compare_detections([near, near], other, gts, resamples=80, taus=())
        assert mixed['AP_high'] - mixed['AP_low'] > 3 * (alone['AP_high'] - alone['AP_low'])


class TestEdges:
    def test_one_image(self):
        found = compare_detections(
            *(made_up(1, seed)[0] for seed in (0, 1)), made_up(1, 0)[1], resamples=20
        )
        assert found['AP_difference'] == found['AP_a'] - found['AP_b'] != 0
        assert np.isnan([found[f'AP_{end}'] for end in ('low', 'high', 'p')]).all()
        assert 'too few images' in verdict(found)

    @pytest.mark.parametrize('images', [5, 6, 9, 30])
    def test_images_that_agree_by_chance(self, images):
        """One side finds the only object of each of n images: of n signs, p is 2 ** (1 - n)."""
        image = np.append(np.arange(images), 0)
        label = np.append(np.zeros(images, int), 1)  # the second class is in one image
        boxes, keys = np.tile([[0.0, 0, 4, 4]], (images + 1, 1)), list('abc' * 10)[:images]
        crowd = np.zeros(images + 1, bool)
        gts = GroundTruth(list(range(images)), keys, [1, 2], ['a', 'b'], image, label, boxes, crowd)
        found = Detections(image, label, boxes, np.full(images + 1, 0.9))
        nothing = found.take(crowd)
        compared = compare_detections(found, nothing, gts, resamples=400)
        assert compared['AP_difference'] == pytest.approx(1)
        assert np.isnan(compared['AP_class_1_p'])
        if images < 6:
            assert np.isnan(compared['AP_p'])
        else:
            assert compared['AP_p'] == pytest.approx(max(2 ** (1 - images), 2 / 401))
            assert compared['AP_low'] > 0

    def test_nothing_found_and_no_gt(self):
        gts = scene([(0, 0, UNIT, False)], [(0, 0, UNIT, 0.9)])
        nothing = gts[0].take(np.zeros(1, bool))
        found = compare_detections(gts[0], nothing, gts[1], resamples=20)
        assert found['AP_difference'] == 1
        assert np.isnan([found[f'LaECE_0_{end}'] for end in ENDS]).all()
        empty = scene([], [])
        found = compare_detections(empty[0], empty[0], empty[1], resamples=5)
        assert np.isnan(found['AP_p'])
        assert 'too few images' in verdict(found)

    def test_a_class_without_gt_boxes(self):
        data = scene([(0, 0, UNIT, False)], [(0, 0, UNIT, 0.9)], ('a', 'b'))
        found = compare_detections(data[0], data[0], data[1], resamples=5)
        assert found['AP_class_0_a'] == 1
        assert np.isnan(found['AP_class_1_p'])

    def test_what_is_refused(self):
        detections, gts = made_up(2, 0)
        with pytest.raises(ConfigError, match='both sides'):
            compare_detections([], detections, gts)
        with pytest.raises(ConfigError, match='0'):
            compare_detections(detections, detections, gts, resamples=0)


def test_resampled_pairs_are_of_the_same_images() -> None:
    """The bootstrap of a pair against data in which images are really there several times."""
    gts = make_gts(12, 2)
    a, b = detect(gts, 3), detect(gts, 4)
    found = compare_detections(a, b, gts, resamples=8, seed=5)
    value = found['LRP_0.5_difference']
    wanted = []
    for weights in next(image_weights(12, 8, seed=5)):
        pair = [evaluate_detections(*repeated(each, gts, weights))['LRP_0.5'] for each in (a, b)]
        wanted.append(pair[0] - pair[1] - value)
    beyond = min((np.array(wanted) >= value).sum(), (np.array(wanted) <= value).sum())
    assert found['LRP_0.5_p'] == pytest.approx(min(1, 2 * (beyond + 1) / 9), abs=2 / 9 + 1e-9)


def test_holm_is_the_textbooks() -> None:
    found = holm({'a': 0.01, 'b': 0.04, 'c': 0.03, 'd': 0.005, 'e': np.nan})
    assert found.pop('e') is not None
    assert found == pytest.approx({'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': 0.02})
    assert holm({}) == {}


def test_the_verdict_names_sides_and_what_is_left() -> None:
    def ends(value, low, high, p):
        return dict(zip(ENDS, (value, low, high, p)))

    rows = {
        'AP': ends(-0.03, -0.05, -0.01, 0.002),
        'D-ECE': ends(-0.02, -0.04, -0.01, 0.004),
        'oLRP': ends(0.01, -0.02, 0.03, 0.6),
    }
    found = {f'{name}_{end}': value for name, row in rows.items() for end, value in row.items()}
    text = verdict(found, 'new', 'old')
    assert text == (
        'new is better in D-ECE (by 0.020, .95 interval 0.010 to 0.040, p 0.008); old is better '
        'in AP (by 0.030, .95 interval 0.010 to 0.050, p 0.006); in 1 other metrics no difference '
        'can be told from noise.'
    )
