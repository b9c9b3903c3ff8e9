"""Noise floors and debiased errors against simulations with known truth."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gfl_det.evaluation.evaluate import evaluate_detections, format_metrics, inside_floor
from gfl_det.evaluation.floors import (
    Floor,
    binned_floor,
    dece_floor,
    laace_floor,
    laece_floor,
)
from gfl_det.evaluation.functional import dece, laace, laece, sweep_error
from gfl_det.evaluation.matching import FALSE, TRUE, Matches, match
from projects.calibration_study import floors as study
from tests.helpers.calibration_cases import UNIT, case_data, scene


def simulated(count: int, simulations: int, binary: bool = False, shift: float = 0.0) -> Floor:
    """So many detectors of ``count`` detections each, as classes; scores uniform from .3 to .86."""
    rng = np.random.default_rng(count)
    label = np.repeat(np.arange(simulations), count)
    scores = rng.uniform(0.3, 0.86, len(label))
    targets = (study.flips if binary else study.ious)(scores - shift, rng)
    bins = 10 if binary else 25
    return binned_floor(scores, targets, bins, label, simulations, binary, draws=60).per_class


def matches_of(scores: list, ious: list) -> Matches:
    """One class whose detections are right where their IoU is not 0."""
    scores, ious = np.array(scores, float), np.array(ious, float)
    number = len(scores)
    state = np.where(ious > 0, TRUE, FALSE)
    gt = np.where(ious > 0, np.arange(number), -1)
    label = np.zeros(number, int)
    return Matches(0.0, np.arange(number), label, scores, state, ious, gt, np.array([number]))


class TestUnderCalibration:
    @pytest.mark.parametrize('binary', [False, True])
    @pytest.mark.parametrize('count', [50, 300])
    def test_the_floor_is_what_is_shown_and_the_debiased_error_0(self, count, binary):
        found = simulated(count, 500, binary)
        assert found.mean.mean() == pytest.approx(found.value.mean(), rel=0.06)
        assert 0.9 < found.inside.mean() < 0.98
        assert abs(found.debiased.mean()) <= 0.01
        assert (found.debiased < 0).mean() > 0.3

    def test_laace_too(self):
        rng = np.random.default_rng(0)
        scores = rng.uniform(0.3, 0.86, (300, 60))
        found = [laace_floor(matches_of(row, study.ious(row, rng))).pooled for row in scores]
        values, means, debiased, inside = (
            np.array([getattr(each, part) for each in found])
            for part in ('value', 'mean', 'debiased', 'inside')
        )
        assert means.mean() == pytest.approx(values.mean(), rel=0.02)
        assert abs(debiased.mean()) <= 0.01
        assert 0.9 < inside.mean() < 0.99

    def test_the_mean_over_classes_has_a_floor_of_its_own(self):
        rng = np.random.default_rng(1)
        label = np.repeat(np.arange(40), 25)
        scores = rng.uniform(0.3, 0.86, len(label))
        found = binned_floor(scores, study.ious(scores, rng), 25, label, 40)
        assert found.pooled.value == pytest.approx(np.mean(found.per_class.value))
        assert found.pooled.mean == pytest.approx(np.mean(found.per_class.mean))
        assert found.pooled.upper < np.mean(found.per_class.upper)
        assert found.pooled.number == 1000


class TestAtATrueErrorOfATenth:
    def test_the_debiased_error_is_nearer_than_the_published(self, monkeypatch):
        """Of slopes and bumps; of a shift of all scores both are equally far off."""
        monkeypatch.setattr(study, 'MANY', 20_000)
        rows = {
            shape: study.simulate('chosen', 'uniform', shape, False, 50, 200)
            for shape in ('shift down', 'slope', 'bump')
        }
        assert rows['shift down'].difference[0] < 3 * rows['shift down'].difference[1]
        for shape in ('slope', 'bump'):
            assert rows[shape].difference[0] < 0

    @pytest.mark.parametrize('binary', [False, True])
    def test_over_shapes_it_is_nearer_for_ious_and_for_right_and_wrong(self, binary, monkeypatch):
        monkeypatch.setattr(study, 'MANY', 20_000)
        rows = [
            study.simulate('chosen', 'uniform', shape, binary, 300, 100)
            for shape in study.SHAPES['chosen']
        ]
        assert study.ratios(rows).popitem()[1][0] < 1

    def test_tables_are_of_the_file(self, monkeypatch):
        monkeypatch.setattr(study, 'MANY', 2000)
        monkeypatch.setattr(study, 'COUNTS', (50, 100))
        few = {group: dict(list(of.items())[:1]) for group, of in study.SCORES.items()}
        monkeypatch.setattr(study, 'SCORES', few)
        plan = {name: study.Part(part.scores, 8, 0.1) for name, part in study.PLAN.items()}
        monkeypatch.setattr(study, 'PLAN', plan)
        rows = {name: list(study.simulated(*part)) for name, part in plan.items()}
        content = json.loads(json.dumps(study.to_json(rows)))
        found = study.tables(content)
        first = next(row for row in rows['chosen'] if row.shape == 'slope')
        cell = f'{first.plug_in[0]:.4f} / {first.debiased[0]:.4f}'.replace('0.', '.')
        assert f'| uniform | IoU | slope | {cell}' in found['errors'].replace('**', '')
        (ratio,) = [
            each
            for each in content['ratios']
            if (each['scores'], each['targets'], each['count']) == ('all four', 'right', 100)
        ]
        together = study.ratios([*rows['chosen'], *rows['fresh']])['right', 100]
        assert (ratio['ratio'], ratio['low'], ratio['high']) == together
        assert found['calibrated'].count('(') == 2 * 2 * 3  # two counts and targets, three scores

    @pytest.mark.slow
    @pytest.mark.parametrize('binary', [False, True])
    @pytest.mark.parametrize('count', [50, 100])
    def test_over_shapes_of_few_detections(self, count, binary):
        rows = [
            study.simulate('chosen', 'uniform', shape, binary, count, 500)
            for shape in study.SHAPES['chosen']
        ]
        assert study.ratios(rows).popitem()[1][0] < 1

    def test_under_calibration_many_detections_scatter_little(self):
        """Less than twice as much as the published error less its floor."""
        found = simulated(1000, 100, binary=True)
        assert found.debiased.std() < 2 * (found.value - found.mean).std()

    def test_many_detections_leave_nothing_to_correct(self):
        found = simulated(5000, 20, shift=0.1)
        assert not found.inside.any()
        np.testing.assert_allclose(found.debiased, 0.1, atol=0.03)
        assert abs(found.debiased.mean() - 0.1) < 0.005

    @pytest.mark.slow
    @pytest.mark.parametrize('shape', ['slope', 'top down'])
    @pytest.mark.parametrize('scores', ['raw', 'two humps'])
    def test_of_fresh_generators(self, scores, shape):
        """Of LaECE, up to what 600 simulations can tell; docs/results has what falls short."""
        for count in (50, 100):
            calm = study.simulate('fresh', scores, None, False, count, 600)
            assert abs(calm.debiased[0]) <= 0.01 + calm.debiased[1]
            row = study.simulate('fresh', scores, shape, False, count, 600)
            assert row.difference[0] <= 2 * row.difference[1]


class TestSweep:
    def test_is_the_largest_monotone_binning(self):
        """A loop over the definition, without ties."""
        rng = np.random.default_rng(2)
        for _ in range(20):
            scores = np.sort(rng.random(30))
            targets = np.clip(scores + rng.normal(0, 0.2, 30), 0, 1)
            wanted = None
            for bins in range(1, 31):
                ends = [step * 30 // bins for step in range(bins + 1)]
                parts = [slice(*pair) for pair in zip(ends, ends[1:])]
                means = [targets[part].mean() for part in parts]
                if any(low > high for low, high in zip(means, means[1:])):
                    break
                wanted = sum(abs((targets[part] - scores[part]).sum()) for part in parts) / 30
            assert sweep_error(scores, targets) == pytest.approx(wanted)

    def test_equal_scores_share_a_bin(self):
        scores = np.repeat([0.2, 0.8], 5)
        targets = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 0], float)
        assert sweep_error(scores, targets) == pytest.approx(0)
        assert np.isnan(sweep_error(scores[:0], targets[:0]))


class TestEdges:
    def test_one_detection_has_the_widest_floor(self):
        for floor in (laece_floor, laace_floor):
            found = floor(matches_of([0.6], [0.9])).pooled
            assert found.value == pytest.approx(0.3)
            assert found.mean == pytest.approx(2 * 0.6 * 0.4, abs=0.05)
            assert found.inside

    def test_equal_scores(self):
        rng = np.random.default_rng(3)
        ious = study.ious(np.full(400, 0.5), rng)
        found = laece_floor(matches_of([0.5] * 400, ious)).pooled
        assert found.value == pytest.approx(abs(ious.mean() - 0.5))
        assert found.mean == pytest.approx(ious.std() / 20 * np.sqrt(2 / np.pi), rel=0.15)
        apart = laece_floor(matches_of([0.5] * 9, [1.0] * 9)).pooled
        assert (apart.mean, apart.debiased, apart.inside) == (0, 0.5, False)

    def test_nothing_is_nan(self):
        for data in (scene([], []), scene([(0, 0, UNIT, False)], [])):
            metrics = evaluate_detections(*data)
            for name in ('LaECE_0', 'LaACE_0.5', 'D-ECE'):
                assert metrics[f'{name}_count'] == 0
                assert np.isnan([metrics[f'{name}{end}'] for end in ('_floor', '_debiased')]).all()
                assert not inside_floor(metrics, name)
            assert 'nan' in format_metrics(metrics)

    def test_a_class_without_detections_counts_for_nothing(self):
        scores, targets = np.array([0.3, 0.6]), np.array([0.0, 0.9])
        alone = binned_floor(scores, targets, 25)
        among = binned_floor(scores, targets, 25, np.array([1, 1]), 3)
        assert among.pooled.value == alone.pooled.value
        assert np.isnan(among.per_class.mean[[0, 2]]).all()


def test_published_values_are_untouched() -> None:
    detections, gts = case_data('main', 'minitest')
    metrics = evaluate_detections(detections, gts)
    zero, half = match(detections, gts, [0.0, 0.5])
    assert metrics['LaECE_0'] == laece(zero).mean
    assert metrics['LaACE_0'] == laace(zero).mean
    assert metrics['D-ECE'] == pytest.approx(dece(half).mean, abs=1e-12)
    assert dece_floor(half).pooled.number == metrics['D-ECE_count'] == half.judged().sum()
    assert evaluate_detections(detections, gts) == metrics  # seeded
    text = format_metrics(metrics)
    assert 'D-ECE ' in text
    assert '_floor' not in text
