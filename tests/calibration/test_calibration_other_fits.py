"""Fits by Quality Focal Loss and on a grid: slow searches and definitions as oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit

from gfl_det.calibration import Settings, fit_calibrator, logistic
from gfl_det.calibration.files import calibrator_from_json, calibrator_to_json
from gfl_det.calibration.logistic import (
    OFFSETS,
    SLOPES,
    fit_line_by_quality,
    fit_slope_by_quality,
    mean_loss,
    search_line,
)
from gfl_det.calibration.maps import Constant, Platt, fit_platt, fit_temperature, logit
from gfl_det.errors import ConfigError
from gfl_det.models.losses.functional import quality_focal_loss
from tests.helpers.calibration_cases import scene


def sample(seed: int, number: int = 80, hard: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and targets that follow them through another line with much noise."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1, 2, number)
    chance = expit(0.6 * logits - 0.7 + generator.normal(0, 0.5, number))
    right = generator.random(number) < chance
    return logits, np.where(right, 1.0 if hard else generator.uniform(0.5, 1, number), 0.0)


@pytest.mark.parametrize('seed', range(4))
def test_the_losses_are_those_of_the_training(seed: int) -> None:
    logits, targets = sample(seed)
    values = torch.from_numpy(0.7 * logits - 0.2)
    for exponent, quality in ((1, True), (0, False)):
        expected = quality_focal_loss(values, torch.from_numpy(targets), exponent).mean().item()
        assert mean_loss(values.numpy(), targets, quality) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('quality', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_the_grid_is_searched_whole(seed: int, quality: bool, monkeypatch) -> None:
    logits, targets = sample(seed)
    best = (np.inf, 0.0, 0.0)
    for slope in SLOPES:
        for offset in OFFSETS:
            loss = float(mean_loss(slope * logits + offset, targets, quality))
            best = min(best, (loss, slope, offset))
    whole = search_line(logits, targets, quality)
    assert whole == pytest.approx(best[1:])
    for rows in (1, 7):  # of the 100 offsets at once, as with many detections
        monkeypatch.setattr(logistic, 'AT_ONCE', rows * len(logits))
        assert search_line(logits, targets, quality) == whole
    assert (len(SLOPES), SLOPES[0], SLOPES[-1]) == (100, 0, 10)
    assert (len(OFFSETS), OFFSETS[0], OFFSETS[-1]) == (100, -5, 5)


@pytest.mark.parametrize('hard', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_no_line_has_less_quality_focal_loss(seed: int, hard: bool) -> None:
    logits, targets = sample(seed, hard=hard)
    slope, offset = fit_line_by_quality(logits, targets)
    least = float(mean_loss(slope * logits + offset, targets, True))
    slopes, offsets = np.meshgrid(np.linspace(0, 4, 161), np.linspace(-4, 4, 161))
    values = slopes[..., None] * logits + offsets[..., None]
    assert least <= mean_loss(values, targets, True).min()
    generator = np.random.default_rng(seed)
    for scale in 10.0 ** np.arange(-7, 0):
        near = np.array([slope, offset]) + scale * generator.normal(size=(200, 2))
        values = np.abs(near[:, :1]) * logits + near[:, 1:]
        assert least <= mean_loss(values, targets, True).min() + 1e-13


def test_the_start_at_the_least_cross_entropy_may_lead_lower() -> None:
    """From the best point of the grid the simplex finds a minimum of .0922996 here."""
    logits = np.array([3.8, -1.5, 1.3, -0.5, -2.4])
    targets = np.array([0.8, 0.3, 0.1, 0.5, 0.2])
    slope, offset = fit_line_by_quality(logits, targets)
    assert mean_loss(slope * logits + offset, targets, True) < 0.0922992


@pytest.mark.parametrize('seed', range(4))
def test_no_temperature_has_less_quality_focal_loss(seed: int) -> None:
    logits, targets = sample(seed)
    slope = fit_slope_by_quality(logits, targets)
    least = float(mean_loss(slope * logits, targets, True))
    others = np.concatenate([np.geomspace(0.01, 50, 4001), slope * (1 + np.linspace(-1e-3, 1e-3))])
    assert least <= mean_loss(others[:, None] * logits, targets, True).min() + 1e-13


def test_quality_focal_loss_gives_another_map_than_cross_entropy() -> None:
    """It is no proper loss: chances of targets 0 and 1 are pulled towards a half."""
    logits = np.repeat([-2.0, 2.0], 1000)
    targets = np.concatenate([np.arange(1000) < 50, np.arange(1000) < 950]).astype(float)
    exact = fit_platt(expit(logits), targets)(expit(np.array([-2.0, 2.0])))
    np.testing.assert_allclose(exact, [0.05, 0.95], atol=1e-6)
    pulled = fit_platt(expit(logits), targets, quality_focal=True)(expit(np.array([-2.0, 2.0])))
    assert pulled[0] > 0.06
    assert pulled[0] == pytest.approx(1 - pulled[1], abs=1e-5)


def test_options_reach_the_fit_and_the_file() -> None:
    generator = np.random.default_rng(0)
    boxes = [(image, image % 2, (10, 10, 20, 20), False) for image in range(30)]
    found = [
        (image, label, (10 + generator.uniform(0, 25), 10, 20, 20), generator.uniform())
        for image, label, _, _ in boxes
    ]
    detections, gts = scene(boxes, found, ('a', 'b'), 30)
    plain = fit_calibrator(detections, gts, Settings('platt', cuts=(0.0, 0.0)))
    grid = fit_calibrator(detections, gts, Settings('platt', cuts=(0.0, 0.0), grid=True))
    found = [each.map for each in grid.classes if isinstance(each.map, Platt)]
    assert found
    for each in found:
        assert np.abs(SLOPES - each.slope).min() < 1e-12
        assert np.abs(OFFSETS - each.offset).min() < 1e-12
    again = calibrator_from_json(calibrator_to_json(grid), 'a file')
    assert again == grid
    old = calibrator_to_json(plain)
    for name in ('grid', 'quality_focal'):
        del old['settings'][name]  # as a file of an earlier release has it
    assert calibrator_from_json(old, 'a file') == plain
    by_quality = Settings('temperature', cuts=(0.0, 0.0), quality_focal=True)
    assert fit_calibrator(detections, gts, by_quality).classes != plain.classes


def test_a_class_without_a_true_positive_stays_constant() -> None:
    scores, targets = np.array([0.2, 0.7]), np.zeros(2)
    assert fit_platt(scores, targets, quality_focal=True) == Constant(0.0)
    assert fit_platt(scores, targets, grid=True) == Constant(0.0)
    assert fit_temperature(scores, targets, quality_focal=True) == Constant(0.0)
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize(
    ('method', 'options', 'message'),
    [
        ('temperature', dict(grid=True), 'not temperature: .*--grid'),
        ('isotonic', dict(quality_focal=True), 'not isotonic: .*--quality-focal'),
        ('identity', dict(quality_focal=True), 'not identity'),
    ],
)
def test_methods_without_the_option_are_refused(method: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(method, **options)
