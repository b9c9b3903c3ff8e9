"""``tools/prove_distribution.py``: pooled splits, seeded halves, and the table against isotonic."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gfl_det import calibration
from gfl_det.calibration.splits import split_images, take_edge_images
from gfl_det.engine import runner
from gfl_det.errors import ConfigError
from projects.calibration_study import distribution, distribution_command
from tests.helpers.edge_scenes import scene


def test_pooled_splits_keep_their_own_images_apart() -> None:
    """Both scenes number their images from 0; nothing of one may match a gt box of the other."""
    parts = [scene(0, images=8), scene(1, images=6)]
    gts, found = distribution.pool(parts)
    assert len(set(gts.image_ids)) == len(set(gts.image_keys)) == 14
    (whole,) = calibration.match(found.detections, gts, [0.5])
    each = [calibration.match(part.detections, own, [0.5])[0] for own, part in parts]
    assert sorted(whole.iou) == pytest.approx(sorted(np.concatenate([m.iou for m in each])))
    second = found.take(found.detections.image >= 8)
    np.testing.assert_array_equal(second.logits, parts[1][1].logits)
    np.testing.assert_array_equal(second.bin_widths, parts[1][1].bin_widths)


def test_the_threshold_of_nms_is_tuned_on_the_half_to_fit_on() -> None:
    """Two suppressions, of which one loses every second detection: the other is chosen."""
    gts, found = scene(2)
    half = found.take(np.arange(len(found.detections.image)) % 2 == 0)
    by_kind = {'nms 0.4': half, 'nms 0.6': found, distribution.SOFT: half}
    outcomes = list(distribution.compare('scene', gts, found, 1, by_kind))
    metrics = {(each.calibrator, each.view): each.metrics for each in outcomes}
    for view in distribution.VIEWS:
        assert metrics[distribution.TUNED, view] == metrics['isotonic', view]
        assert metrics[distribution.SOFT, view]['AP'] < metrics['isotonic', view]['AP'] - 0.1


def test_each_calibrator_is_judged_on_the_half_it_has_not_seen() -> None:
    gts, found = scene(2)
    outcomes = list(distribution.compare('scene', gts, found, seeds=1))
    kinds = {(each.view, each.calibrator) for each in outcomes}
    assert len(outcomes) == len(kinds) == len(distribution.VIEWS) * len(distribution.CALIBRATORS)
    by_kind = {(each.view, each.calibrator): each.metrics for each in outcomes}

    first, second = split_images(gts, 0)
    own, half = take_edge_images(gts, found, second)
    expected = calibration.evaluate_detections(half.detections, own)
    for metric in distribution.METRICS:
        assert by_kind['all', 'raw'][metric] == expected[metric]
    fit_gts, fitting = take_edge_images(gts, found, first)
    chosen = calibration.DistributionSettings(('score', 'distribution'), cuts=('lrp', 'lrp'))
    fitted = calibration.fit_distribution_calibrator(fitting, fit_gts, chosen)
    kept = calibration.evaluate_detections(fitted.apply(half)[0].detections, own)
    shown = by_kind['kept', 'score, edges']
    for metric in ('LaECE_0', 'LaACE_0', 'LRP_0'):
        assert shown[metric] == pytest.approx(kept[metric])
    # AP is of all detections in either view; what is kept has another.
    every = half.detections._replace(scores=fitted.calibrate(half))
    assert shown['AP'] == pytest.approx(calibration.evaluate_detections(every, own)['AP'])
    assert shown['AP'] > kept['AP'] + 0.01
    # The cuts are worth it: most of what is wrong goes.
    for calibrator in distribution.CALIBRATORS:
        metrics = [by_kind[view, calibrator]['LRP_0'] for view in ('kept', 'all')]
        assert metrics[0] < metrics[1] - 0.02
    assert by_kind['all', 'score, edges']['LaACE_0'] < by_kind['all', 'isotonic']['LaACE_0']


def test_the_table_compares_with_isotonic_regression(monkeypatch, tmp_path, capsys) -> None:
    splits = dict(val=scene(3, images=20), test=scene(4, images=20))
    monkeypatch.setattr(runner, 'detect_edges', lambda cfg, path, part: splits[part])
    monkeypatch.setattr(distribution_command, 'load_config', lambda *_: SimpleNamespace())
    out = tmp_path / 'new' / 'values.json'
    words = ['scene', 'config', 'a.pth', '--splits', 'val', 'test', '--seeds', '2', '--out']
    distribution_command.prove(distribution_command.parse_arguments([*words, str(out)]))
    values = json.loads(out.read_text())['outcomes']
    assert {each['seed'] for each in values} == {0, 1}

    def mean(calibrator: str) -> float:
        chosen = [
            each for each in values if (each['calibrator'], each['view']) == (calibrator, 'all')
        ]
        return float(np.mean([each['metrics']['LaACE_0'] for each in chosen]))

    rows = [line.split(' | ') for line in capsys.readouterr().out.splitlines() if '| all |' in line]
    changes = {row[1]: row[-1].rstrip(' |') for row in rows}
    assert changes['isotonic'] == '+0 %'
    wanted = 100 * (mean('score, edges') / mean('isotonic') - 1)
    assert changes['score, edges'] == f'{wanted:+.0f} %'
    # A split of which nothing is kept has no LaECE: null, as JSON has no NaN.
    empty = distribution.Outcome('a', 0, 'raw', 'all', dict.fromkeys(distribution.METRICS, np.nan))
    monkeypatch.setattr(distribution_command, 'compare', lambda *_: [empty])
    monkeypatch.setattr(distribution_command, 'table', lambda _: '')
    distribution_command.prove(distribution_command.parse_arguments([*words, str(out)]))
    (read,) = json.loads(out.read_text(), parse_constant=pytest.fail)['outcomes']
    assert set(read['metrics'].values()) == {None}
    once = distribution_command.parse_arguments([*words[:3], '--seeds', '1'])
    with pytest.raises(ConfigError, match='at least 2'):
        distribution_command.prove(once)
    slashed = distribution_command.parse_arguments(['a/b', *words[1:3]])
    with pytest.raises(ConfigError, match=r"name 'a/b'"):
        distribution_command.prove(slashed)
