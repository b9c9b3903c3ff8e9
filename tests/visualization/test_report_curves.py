"""COCO's table, F1, edges against their deviations, curves of a training: witnesses and loops."""

from __future__ import annotations

import contextlib
import io
import json
from copy import deepcopy

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gfl_det.calibration import Detections, detections_from_coco, gts_from_coco, match
from gfl_det.evaluation.evaluate import keep_above
from gfl_det.evaluation.matching import FALSE, TRUE
from gfl_det.visualization.report import curves
from gfl_det.visualization.report.curves import (
    GRID,
    best_cuts,
    coco_table,
    edge_errors,
    rank_correlation,
    sample_points,
    spread,
)
from gfl_det.visualization.report.data import MAX_POINTS, annotated_sizes, read_curves, scalar_files
from gfl_det.visualization.report.errors import (
    MISSED,
    ImageErrors,
    choose_images,
    find_errors,
    judge_images,
)
from tests.helpers import reporting
from tests.helpers.calibration_cases import scene

UNIT, FAR = (0, 0, 10, 10), (50, 50, 10, 10)


@pytest.fixture(scope='module')
def data():
    dataset, results = reporting.made_up(12, 4, 20)
    for index, entry in enumerate(dataset['annotations']):
        entry['iscrowd'] = int(index % 9 == 0)
        entry['area'] *= 0.6  # as of a mask in the box
    gts = gts_from_coco(dataset)
    return dataset, results, gts, detections_from_coco(results, gts)


@pytest.mark.parametrize('faster', [False, True])
def test_the_table_is_pycocotools(data, faster, monkeypatch):
    dataset, results, gts, found = data
    if faster and not curves.has_faster_coco_eval():
        pytest.skip('faster_coco_eval is not installed')
    monkeypatch.setattr(curves, 'has_faster_coco_eval', lambda: faster)
    table = coco_table(gts, annotated_sizes(dataset, gts)[0], found)
    known = COCO()
    known.dataset = deepcopy(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        witness = COCOeval(known, known.loadRes(deepcopy(results)), 'bbox')
        witness.evaluate()
        witness.accumulate()
        witness.summarize()
    close = dict(rtol=0, atol=1e-12)
    np.testing.assert_allclose(table.ap[0], witness.stats[:3], **close)
    np.testing.assert_allclose(table.ap[1:, 0], witness.stats[3:6], **close)
    np.testing.assert_allclose(table.recall, witness.stats[[8, 9, 10, 11]], **close)
    precision = witness.eval['precision'][:, :, :, 0, -1]
    np.testing.assert_allclose(table.ap_by_class[:, 0], precision.mean((0, 1)), **close)
    np.testing.assert_allclose(table.ap_by_class[:, 1], precision[0].mean(0), **close)
    np.testing.assert_allclose(table.precision[1:, 0].T, precision[0], **close)
    np.testing.assert_allclose(table.precision[0, 1], precision[5].mean(1), **close)


def test_a_table_of_nothing(data):
    dataset, _, gts, found = data
    table = coco_table(gts, annotated_sizes(dataset, gts)[0], found.take(np.zeros(0, np.int64)))
    assert table.ap[0].tolist() == [0, 0, 0]
    bare = gts._replace(**{name: getattr(gts, name)[:0] for name in gts._fields[4:]})
    assert np.isnan(coco_table(bare, np.zeros(0), found).ap).all()


def test_areas_are_those_annotated_or_of_the_boxes():
    dataset = dict(
        images=[dict(id=1)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
        annotations=[
            dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 4, 5]),
            dict(id=2, image_id=1, category_id=2, bbox=[0, 0, 4, 5], area=7),
        ],
    )
    gts = gts_from_coco(dataset)
    assert annotated_sizes(dataset, gts)[0].tolist() == [20, 7]
    assert annotated_sizes(dataset, gts.of_classes(['b']))[0].tolist() == [7]


def f1_of(found: Detections, gts, least: float, label: int | None) -> float:
    (matches,) = match(found.take(keep_above(found, least)), gts, [0.5])
    mine = np.ones(len(matches.label), bool) if label is None else matches.label == label
    right = (matches.state[mine] == TRUE).sum()
    wrong = (matches.state[mine] == FALSE).sum()
    number = gts.counts().sum() if label is None else gts.counts()[label]
    return 2 * right / (right + wrong + number)


@pytest.mark.parametrize('label', [None, 0, 2])
def test_the_best_cut_beats_every_other(data, label):
    _, _, gts, found = data
    found = found._replace(scores=found.scores.round(2))  # equal scores stay or go together
    (matches,) = match(found, gts, [0.5])
    cuts = best_cuts(matches)
    row = 0 if label is None else label + 1
    every = [f1_of(found, gts, score, label) for score in np.unique(found.scores)]
    assert cuts.f1[row] == pytest.approx(max(every))
    assert f1_of(found, gts, cuts.threshold[row], label) == pytest.approx(max(every))
    p, r = cuts.precision[row], cuts.recall[row]
    assert cuts.f1[row] == pytest.approx(2 * p * r / (p + r))
    for place in (0, 30, 77, 100):
        wanted = f1_of(found, gts, GRID[place], label)
        assert cuts.curve[row, place] == pytest.approx(wanted)


def test_cuts_of_classes_without_gts_or_true_positives():
    found, gts = scene([(0, 0, UNIT, False)], [(0, 0, FAR, 0.9), (0, 1, FAR, 0.8)], ('a', 'b'))
    cuts = best_cuts(match(found, gts, [0.5])[0])
    assert cuts.f1[:2].tolist() == [0, 0]
    assert np.isnan(cuts.f1[2])
    assert np.isnan(cuts.threshold).all()


def test_edges_are_compared_with_their_gts():
    gts = [(0, 0, UNIT, False), (0, 0, FAR, False)]
    found, known = scene(gts, [(0, 0, FAR, 0.3), (0, 0, (1, 0, 9, 8), 0.9), (0, 0, FAR, 0.2)])
    std = np.arange(12.0).reshape(3, 4)
    low = np.array([[50, 50, 60, 60], [1.5, 0, 9, 8], [0, 0, 0, 0]], float)
    (matches,) = match(found, known, [0.5])
    errors = edge_errors(matches, found.boxes, known, std, (low - 0.5, low + 0.5))
    assert errors.error.tolist() == [[1, 0, 0, -2], [0, 0, 0, 0]]
    assert errors.std.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert errors.inside.tolist() == [[False, True, False, False], [True] * 4]


def test_true_deviations_lie_on_the_diagonal():
    rng = np.random.default_rng(0)
    std = rng.uniform(1, 8, 40_000)
    error = rng.normal(size=len(std)) * std
    bins = spread(std, error)
    assert bins.number.sum() == len(std)
    np.testing.assert_allclose(bins.error, bins.std, rtol=0.05)
    np.testing.assert_allclose(bins.low / bins.std, 0.1257, rtol=0.2)  # of a normal error
    np.testing.assert_allclose(bins.high / bins.std, 1.645, rtol=0.06)
    assert rank_correlation(std, std) == pytest.approx(1)
    assert abs(rank_correlation(std, rng.normal(size=len(std)))) < 0.02
    assert len(sample_points(std, error)) == 1200


def test_nothing_matched_has_no_edges():
    none = np.zeros(0)
    assert len(spread(none, none).std) == 0
    assert np.isnan(rank_correlation(none, none))
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))
    assert sample_points(none, none).shape == (0, 2)


def test_curves_of_a_run_that_was_resumed(tmp_path):
    first = tmp_path / '20260101_000000' / 'vis_data' / 'scalars.json'
    second = tmp_path / '20260102_000000' / 'vis_data' / 'scalars.json'
    for path in (first, second):
        path.parent.mkdir(parents=True)
    lines = [dict(loss=9.0 - step, lr=0.1, epoch=1, iter=step, step=step) for step in range(1, 5)]
    first.write_text('\n'.join(map(json.dumps, lines)) + '\n{"loss": 3, "st')
    again = [dict(loss=1.0, lr=0.1, epoch=1, iter=4, step=4), {'coco/bbox_mAP': 0.5, 'step': 2}]
    again.append(dict(loss=float('nan'), epoch=1, iter=5, step=5))
    second.write_text('\n'.join(map(json.dumps, again)))
    files = scalar_files(tmp_path)
    assert files == [first, second]
    found = read_curves(files)
    loss = next(curve for curve in found.training if curve.name == 'loss')
    assert loss.steps == [1, 2, 3, 4, 5]
    assert loss.values[:4] == [8, 7, 6, 1]
    assert np.isnan(loss.values[4])
    assert [tuple(curve) for curve in found.validation] == [('coco/bbox_mAP', [2], [0.5])]


def test_long_curves_are_thinned_and_keep_their_mean(tmp_path):
    path = tmp_path / 'scalars.json'
    path.write_text('\n'.join(json.dumps(dict(loss=i % 7, iter=i, step=i)) for i in range(4000)))
    (curve,) = read_curves(scalar_files(tmp_path)).training
    assert len(curve.values) == MAX_POINTS
    assert np.mean(curve.values) == pytest.approx(np.mean(np.arange(4000) % 7))
    assert read_curves([]).training == []


def judged_scene():
    gts = [(0, 0, UNIT, False), (1, 0, UNIT, False), (1, 1, FAR, False), (3, 0, UNIT, True)]
    found = [
        (0, 0, UNIT, 0.9),
        (1, 0, (0, 0, 10, 8), 0.9),
        (1, 0, FAR, 0.8),
        (1, 0, UNIT, 0.7),
        (2, 1, FAR, 0.6),
    ]
    detections, known = scene(gts, found, ('a', 'b'), 4)
    return judge_images(find_errors(detections, known), detections.image, known)


def test_quality_and_errors_of_images():
    judged = judged_scene()
    # Of the second image: one hit of IoU .8, two false ones, one gt box that is not found.
    np.testing.assert_allclose(judged.quality, [1, 1 - (0.2 / 0.5 + 2 + 1) / 4, 0, np.nan])
    assert judged.counts.tolist() == [[1, 1, 0, 1], [1, 3, 0, 1], [2, 4, 1, 1]]
    assert judged.gts.tolist() == [1, 2, 0, 0]
    assert judged.right.tolist() == [1, 1, 0, 0]


def test_the_worst_images_come_first_and_empty_ones_never():
    judged = judged_scene()
    assert choose_images(judged, 9) == [2, 1, 0]
    assert choose_images(judged, 1) == [2]
    assert choose_images(judged, 0) == []


def test_every_kind_and_class_is_shown_if_there_is_room(data):
    _, _, gts, found = data
    judged = judge_images(find_errors(found, gts), found.image, gts)
    chosen = choose_images(judged, 10)
    assert len(chosen) == len(set(chosen)) == 10
    shown = judged.counts[np.isin(judged.counts[:, 0], chosen)]
    assert len(np.unique(shown[:, 1:3], axis=0)) == len(np.unique(judged.counts[:, 1:3], axis=0))
    assert int(np.nanargmin(judged.quality)) == chosen[0]
    assert int(np.nanargmax(judged.quality)) in chosen
    for fewer in range(10):
        assert choose_images(judged, fewer) == chosen[:fewer]


def test_a_short_choice_has_the_best_and_every_kind():
    """A hundred images with a missed gt box, which are worse than one image of each other kind."""
    rows = [[image, MISSED, 0, 9] for image in range(100)]
    rows += [[100 + kind, kind, 1, 1] for kind in range(MISSED)]
    quality = np.concatenate([np.linspace(0, 0.1, 100), np.linspace(0.5, 0.6, MISSED), [1.0]])
    judged = ImageErrors(quality, np.array(rows), np.full(106, 9), np.zeros(106))
    chosen = choose_images(judged, 12)
    assert {0, 1, 2, 3, 100, 101, 102, 103, 104, 105} <= set(chosen)
