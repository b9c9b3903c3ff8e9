"""Intervals for whole boxes: the promise by group on drawn data, files, the head, the graph."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict

from gfl_det import calibration
from gfl_det.calibration.apply import HeadCalibration
from gfl_det.calibration.calibrators import FitSource
from gfl_det.calibration.intervals import KINDS, MatchedEdges, compare_intervals, fit_whole_boxes
from gfl_det.calibration.joint import (
    JointFactors,
    expected_range,
    fit_joint,
    interval_score,
    merge_cells,
    rank_of,
)
from gfl_det.errors import ConfigError, DataError
from gfl_det.inference.coverage import box_coverage
from gfl_det.ops.intervals import FactorTable, size_of

SCALES = np.array([[0.5, 1.0, 2.0], [1.0, 1.0, 3.0]])  # errors of classes and sizes


def drawn_boxes(number: int, seed: int) -> MatchedEdges:
    """Boxes of two classes and three sizes, whose errors are so many times what they say."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator)

    labels = (draw(number) < 0.3).long()
    size = torch.multinomial(torch.tensor([0.3, 0.5, 0.2]), number, True, generator=generator)
    half = torch.tensor([10.0, 25.0, 80.0])[size]  # px: sides of 20, 50, 160
    spread = 0.5 + 1.0 * draw(number, 4, 1)  # in bins
    widths = (half / 8)[:, None].expand(number, 4)
    bins = torch.arange(17.0)
    centre = 8 + 0.3 * (draw(number, 4, 1) - 0.5)
    logits = -((bins - centre) ** 2) / (2 * spread**2)
    scale = torch.tensor(SCALES, dtype=torch.float32)[labels, size][:, None]
    # The four errors of a box have something in common.
    noise = 0.6 * torch.randn(number, 1, generator=generator)
    noise = noise + 0.8 * torch.randn(number, 4, generator=generator)
    distance = centre[..., 0] + scale * spread[..., 0] * noise
    sides = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    gts = 500 + sides * distance * widths
    images = torch.arange(number) // 5
    limits, priors = torch.full((number, 4), 1000.0), torch.full((number, 2), 500.0)
    return MatchedEdges(logits, widths, priors, limits, gts, labels, images)


def inside(joint: JointFactors, edges: MatchedEdges, level: float) -> np.ndarray:
    factors = FactorTable(joint.table_at(level)).of(edges.labels, edges.boxes())
    return edges.intervals(level, factors).contain(edges.gts).all(1).numpy()


class TestPromise:
    def test_holds_in_each_group_over_splits(self):
        """Fifty splits of 900 and 900 boxes; without groups the worst one would be far off."""
        level, whole, by_group, within = 0.9, [], [], []
        for seed in range(50):
            joint = fit_whole_boxes(drawn_boxes(900, seed), ['a', 'b'])
            fresh = drawn_boxes(900, 1000 + seed)
            held = inside(joint, fresh, level)
            group = joint.group_of(fresh.labels.numpy(), fresh.boxes())
            whole.append(held.mean())
            shares = [held[group == each].mean() for each in range(len(joint.names))]
            by_group.append(dict(zip(joint.names, shares)))
            for place, share in enumerate(shares):
                low, high = expected_range(joint.counts[place], (group == place).sum(), level)
                within.append(low <= share <= high)
        assert np.mean(whole) == pytest.approx(level, abs=0.02)
        for name in ('a, small', 'a, medium', 'a, large'):
            assert np.mean([each[name] for each in by_group]) == pytest.approx(level, abs=0.02)
        assert np.mean(within) == pytest.approx(0.95, abs=0.03)

    @pytest.mark.parametrize('level', [0.5, 0.8, 0.95])
    def test_holds_at_each_level(self, level):
        whole = []
        for seed in range(20):
            joint = fit_whole_boxes(drawn_boxes(900, seed), ['a', 'b'])
            whole.append(inside(joint, drawn_boxes(900, 1000 + seed), level).mean())
        assert np.mean(whole) == pytest.approx(level, abs=0.02)

    def test_one_factor_for_all_would_break_it(self):
        edges = drawn_boxes(4000, 0)
        stretches = edges.stretches(0.9)[None].double().numpy()
        nothing = np.zeros(4000, int)
        one = fit_joint(stretches, nothing, nothing, ['all'], [0.9])
        needed = stretches[0].max(1)
        large = size_of(edges.boxes()).numpy() == 2
        assert (needed[large] <= one.factors[0][0]).mean() < 0.75
        assert (needed <= one.factors[0][0]).mean() == pytest.approx(0.9, abs=0.01)

    def test_the_expected_range_is_that_of_simulations(self):
        rng = np.random.default_rng(0)
        shares = []
        for _ in range(2000):
            threshold = np.sort(rng.random(60))[rank_of(60, 0.9) - 1]
            shares.append((rng.random(200) <= threshold).mean())
        wanted = np.quantile(shares, [0.025, 0.975])
        np.testing.assert_allclose(expected_range(60, 200, 0.9), wanted, atol=0.012)
        assert np.isnan(expected_range(5, 200, 0.9)).all()
        assert np.isnan(expected_range(60, 0, 0.9)).all()


class TestGroups:
    def test_small_cells_are_merged_upwards(self):
        labels = np.repeat([0, 0, 0, 1, 1, 2], [200, 60, 50, 30, 80, 10])
        sizes = np.repeat([0, 1, 2, 0, 1, 2], [200, 60, 50, 30, 80, 10])
        cells, names = merge_cells(labels, sizes, ['a', 'b', 'c'])
        assert names == ['a, small', 'a, other sizes', 'b', 'rest']
        assert cells.tolist() == [[0, 1, 1], [2, 2, 2], [3, 3, 3]]
        assert merge_cells(labels[:0], sizes[:0], ['a'])[1] == ['all']

    def test_a_rest_of_few_takes_what_all_need(self):
        labels = np.repeat([0, 1], [300, 3])
        stretches = np.r_[np.linspace(0, 1, 300), [9.0] * 3][None, :, None]
        stretches = stretches.repeat(2, 0).repeat(4, 2)
        joint = fit_joint(stretches, labels, np.ones(303, int), ['a', 'b'], [0.5, 0.99])
        assert joint.names == ('a, medium', 'rest')
        assert joint.counts == (300, 303)
        assert joint.factors[1][1] == 9
        assert joint.table_at(0.5).shape == (2, 3)
        with pytest.raises(DataError, match=r'0\.99, not 0\.995'):
            joint.table_at(0.995)
        with pytest.raises(DataError, match=r'from the level 0\.5, not 0\.4'):
            joint.table_at(0.4)

    def test_too_few_boxes(self):
        with pytest.raises(DataError, match='3 detections'):
            fit_joint(np.ones((1, 3, 4)), *np.zeros((2, 3), int), ['a'], [0.9])


def made(**changes) -> JointFactors:
    fields = dict(
        levels=(0.5, 0.9),
        names=('a', 'rest'),
        counts=(120, 200),
        factors=((1.0, 2.0), (0.5, 4.0)),
        cells=((0, 0, 1), (1, 1, 1)),
    )
    return JointFactors(**{**fields, **changes})


def calibrator(joint: JointFactors | None) -> calibration.IntervalCalibrator:
    return calibration.IntervalCalibrator(
        (0.5, 0.9),
        ((0.5,) * 4, (1.0,) * 4),
        'GFLHead',
        ('a', 'b'),
        0.5,
        FitSource('00ff', ('x',), 50),
        joint,
    )


class TestFiles:
    def test_one_file_holds_both_and_older_ones_are_read(self, tmp_path):
        path = tmp_path / 'intervals.json'
        for joint in (made(), None):
            calibration.save_interval_calibrator(calibrator(joint), path)
            assert ('joint' in json.loads(path.read_text())) == (joint is not None)
            assert calibration.load_interval_calibrator(path) == calibrator(joint)

    @pytest.mark.parametrize(
        'changes',
        [
            dict(cells=((0, 2, 1), (1, 1, 1))),
            dict(cells=((0, 1),)),
            dict(factors=((-1.0, 2.0), (0.5, 4.0))),
            dict(factors=((1.0, np.nan), (0.5, 4.0))),
            dict(counts=(1,)),
            dict(names=(), counts=(), factors=()),
        ],
    )
    def test_what_is_none(self, changes):
        with pytest.raises(ConfigError, match='joint intervals'):
            made(**changes)

    def test_the_head_takes_whole_boxes_on_request(self, tmp_path):
        path = str(tmp_path / 'intervals.json')
        calibration.save_interval_calibrator(calibrator(made()), path)
        config = ConfigDict(interval_level=0.9, interval_calibrator=path)
        applied = HeadCalibration('GFLHead', 2)
        assert applied.interval_factor(config) == (1.0,) * 4
        table = applied.interval_factor(ConfigDict(config, interval_joint=True))
        boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 200, 200], [0, 0, 20, 20]])
        found = table.of(torch.tensor([0, 0, 1]), boxes)
        assert found.tolist() == [[2.0], [4.0], [4.0]]
        with pytest.raises(ConfigError, match='interval_calibrator'):
            applied.interval_factor(ConfigDict(interval_level=0.9, interval_joint=True))
        calibration.save_interval_calibrator(calibrator(None), path)
        with pytest.raises(DataError, match='whole boxes'):
            HeadCalibration('GFLHead', 2).interval_factor(ConfigDict(config, interval_joint=True))


class TestMeasures:
    def test_of_boxes_by_group(self):
        joint = fit_whole_boxes(drawn_boxes(1500, 0), ['a', 'b'], [0.9])
        fresh = drawn_boxes(1500, 1)
        rows = box_coverage(fresh, joint, 0.9, 1500, resamples=100)
        assert [each.group for each in rows] == ['all', *joint.names]
        assert rows[0].fitted == rows[0].judged == 1500 == sum(each.judged for each in rows[1:])
        assert rows[0].share == pytest.approx(inside(joint, fresh, 0.9).mean())
        for each in rows:
            assert each.low <= each.share <= each.high
            assert each.width > 0

    def test_distributions_beat_what_knows_less_where_they_know_more(self):
        found = compare_intervals(drawn_boxes(1500, 3), 0.9, splits=8)
        assert tuple(found) == KINDS
        for each in found.values():
            assert each.coverage == pytest.approx(0.9, abs=0.02)
            assert each.box_coverage == pytest.approx(0.9, abs=0.03)
        # A constant per size knows the scale of errors here, and the distributions more than that.
        score = {name: each.score for name, each in found.items()}
        assert score['size group'] < score['share of the side'] < score['constant']

    def test_the_interval_score_is_least_at_the_quantiles(self):
        rng = np.random.default_rng(0)
        edges = rng.normal(size=20000)
        scores = {
            half: interval_score(-half * np.ones(20000), half * np.ones(20000), edges, 0.9)
            for half in (1.0, 1.3, 1.645, 2.0, 2.5)
        }
        assert min(scores, key=lambda half: scores[half]) == 1.645

    def test_one_image_cannot_be_halved(self):
        with pytest.raises(DataError, match='1 images'):
            compare_intervals(drawn_boxes(5, 0))
        with pytest.raises(DataError, match='too few'):
            compare_intervals(drawn_boxes(12, 0))
