"""The study of published weights, on detections whose scores and spreads are known."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from gfl_det.calibration.distribution import EdgeDetections
from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.utils.files import write_json
from projects.calibration_study import published_weights as study

IMAGES = 60


def scene() -> tuple[GroundTruth, EdgeDetections]:
    """One object per image; the score is half of the IoU, a wider distribution a worse edge."""
    image, label = np.arange(IMAGES), np.zeros(IMAGES, int)
    boxes = np.tile([10.0, 10.0, 100.0, 50.0], (IMAGES, 1))
    gts = GroundTruth(
        [*range(IMAGES)],
        [*map(str, range(IMAGES))],
        [1],
        ['cat'],
        image,
        label,
        boxes,
        np.zeros(IMAGES, bool),
    )
    shift = np.linspace(1, 30, IMAGES)
    moved = boxes + np.outer(shift, [1, 1, 0, 0])
    shared = (100 - shift) * (50 - shift)
    iou = shared / (2 * 100 * 50 - shared)
    logits = -np.abs(np.arange(9) - 4) / shift[:, None, None] * np.ones((1, 4, 1))
    found = Detections(image, label, moved, iou / 2)
    return gts, EdgeDetections(found, logits, np.full((IMAGES, 4), 8.0))


def test_maps_fitted_on_one_half_mend_the_other():
    results = list(study.judge_halves(*scene(), halves=2))
    assert len(results) == 2 * len(study.VIEWS) * len(study.METHODS)
    errors = {
        (each.view, each.method, each.seed): each.metrics['LaECE_0_debiased'] for each in results
    }
    for seed in range(2):
        assert errors['all', 'identity', seed] > 0.1
        assert abs(errors['all', 'isotonic', seed]) < 0.05
    assert study.table(results).count('\n') == 1 + 2 * 3 * 3


def test_score_bins_and_rank_correlations():
    for row in study.reliability_bins(*scene()):
        assert row['iou'] == pytest.approx(2 * row['score'])
    rows = {row['pair']: row for row in study.rank_correlations(*scene(), resamples=50)}
    found = {name: row['correlation'] for name, row in rows.items()}
    assert rows['score, IoU']['low'] <= found['score, IoU'] <= rows['score, IoU']['high']
    assert found['score, IoU'] > 0.99
    assert found['edge std, edge error'] > 0.99
    assert np.isnan(found['box side, edge error'])  # all boxes are of one size


def test_tables_and_the_figure_are_of_the_file(tmp_path, monkeypatch, capsys):
    path, picture = tmp_path / 'found.json', tmp_path / 'drawn.png'
    halves = [each._asdict() for each in study.judge_halves(*scene(), halves=2)]
    bins, ranks = study.reliability_bins(*scene()), study.rank_correlations(*scene(), resamples=9)
    write_json(path, dict(halves=halves, reliability=bins, ranks=ranks))
    monkeypatch.setattr(sys, 'argv', ['study', str(path), '--figure', str(picture)])
    study.main()
    printed = capsys.readouterr().out
    assert f'| {bins[0]["count"]:.0f} | .' in printed
    assert f'| box side, edge error | {ranks[2]["count"]} | - [-, -] |' in printed
    assert cv2.imread(str(picture)) is not None


@pytest.mark.parametrize('words', [['--split', 'val'], ['--halves', '3'], ['--cfg-options', 'a=1']])
def test_arguments_that_would_do_nothing_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        study.parse_arguments(['found.json', *words])
    assert f'{words[0]} needs a detector' in capsys.readouterr().err
    args = study.parse_arguments(['found.json', '--detector', 'config', 'weights.pth'])
    assert (args.split, args.halves) == ('test', 5)
