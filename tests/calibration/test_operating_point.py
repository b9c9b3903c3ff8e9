"""Cuts with a promise: counts, bets and tests by hand, files, heads, and simulations of truth."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from scipy.special import expit, ndtri

from gfl_det.calibration import Detections, GroundTruth, calibrators
from gfl_det.calibration.files import (
    file_digest,
    load_calibrator,
    load_operating_point,
    save_calibrator,
    save_operating_point,
)
from gfl_det.calibration.maps import Platt
from gfl_det.calibration.operating_point import (
    CUTS,
    NO_BOX,
    STAKES,
    ClassCut,
    Counts,
    OperatingPoint,
    Promise,
    choose_cuts,
    log_wealths,
    passing,
)
from gfl_det.errors import ConfigError, DataError
from tests.helpers.heads import head_pair, make_maps, make_meta

SOURCE = calibrators.FitSource('', (), 9)


class Population:
    """Images whose detections are right or wrong together, by a quality that they share.

    Args:
        mean: Detections per image; one image in twenty has four times as many.
        shared: Share of the variance that the image's quality explains.
    """

    def __init__(self, mean: float, shared: float) -> None:
        self.mean, self.shared = mean, shared
        counts = self.draw(np.random.default_rng(99), 40_000)
        kept, right = counts.kept.sum(0), counts.right.sum(0)
        self.truth = dict(
            precision=right / kept,
            recall=right / counts.gts.sum(),
            false_alarms=(kept - right) / counts.images,
        )

    def draw(self, rng: np.random.Generator, images: int) -> Counts:
        number = rng.poisson(self.mean, images)
        number = np.where(rng.random(images) < 0.05, 4 * number, number)
        image = np.repeat(np.arange(images), number)
        own, common = rng.normal(size=len(image)), rng.normal(size=images)[image]
        quality = math.sqrt(self.shared) * common + math.sqrt(1 - self.shared) * own
        score = rng.uniform(0.05, 1, len(image))
        right = quality < ndtri(expit(9 * (score - 0.35)))
        place = np.searchsorted(CUTS, score, side='right') - 1
        kept, true = (
            np.bincount(image * len(CUTS) + place, weights, images * len(CUTS))
            .reshape(images, -1)[:, ::-1]
            .cumsum(1)[:, ::-1]
            for weights in (None, right)
        )
        return Counts(kept, true, true[:, 0] + rng.binomial(1, 0.1, images), images)


@pytest.fixture(scope='module', params=[(3.0, 0.0), (3.0, 0.9)], ids=['independent', 'together'])
def population(request) -> Population:
    return Population(*request.param)


@pytest.mark.parametrize(
    ('goal', 'target', 'images'),
    [
        ('precision', 0.8, 150),
        ('precision', 0.95, 400),
        ('recall', 0.8, 150),
        ('false_alarms', 0.2, 150),
    ],
)
def test_the_promise_holds_at_least_as_often_as_stated(population, goal, target, images) -> None:
    """300 data sets of each population, whose truth is known."""
    rng, promise = np.random.default_rng(1), Promise(goal, target, confidence=0.9)
    kept = found = 0
    for _ in range(300):
        passed = np.flatnonzero(
            passing(log_wealths(population.draw(rng, images), promise), goal, 0.1)
        )
        found += len(passed) > 0
        true = population.truth[goal][passed]
        kept += (true <= target if goal == 'false_alarms' else true >= target).all()
    assert kept >= 0.9 * 300
    assert found > 0.4 * 300  # and it is no empty promise


def drawn(kept: list[list[int]], right: list[list[int]], gts: list[int], images: int) -> Counts:
    return Counts(*map(np.array, (kept, right, gts)), images)


def test_bets_on_images_drawn_by_hand() -> None:
    """Two images, one cut: 2 of 3 and 1 of 1 are right, 4 gts; a third image has none."""
    counts = drawn([[3], [1]], [[2], [1]], [3, 1], 3)
    worst = 2  # one mistake more than there is
    expected = {
        'precision': [(0.5 - 1.0, 0.5 * -1)],
        'recall': [(0.5 - 1.0, 0.5 * -1)],
    }
    stakes = STAKES / (0.5 * worst)
    for goal, [losses] in expected.items():
        want = sum(np.log1p(-stakes * loss) for loss in losses)
        np.testing.assert_allclose(log_wealths(counts, Promise(goal, 0.5))[0], want)
    stakes = STAKES / (worst - 0.5)
    want = sum(np.log1p(-stakes * loss) for loss in (1 - 0.5, -0.5, -0.5))
    np.testing.assert_allclose(log_wealths(counts, Promise('false_alarms', 0.5))[0], want)
    exact = log_wealths(counts, Promise('precision', 0.5, most=100))
    np.testing.assert_allclose(exact[0], sum(np.log1p(STAKES / 50 * each) for each in (0.5, 0.5)))


def test_an_image_that_ruins_leaves_nothing() -> None:
    counts = drawn([[2]] + [[1]] * 9, [[0]] + [[1]] * 9, [1] * 10, 10)
    wealth = log_wealths(counts, Promise('precision', 0.5, most=2))
    assert wealth[0, -1] == -math.inf
    assert np.isfinite(wealth[0, :-1]).all()


def wealths(evidence: dict[int, float]) -> np.ndarray:
    values = np.full((len(CUTS), 1), -math.inf)
    for cut, value in evidence.items():
        values[cut] = math.log(value)
    return values


def test_a_rejection_passes_its_error_on() -> None:
    """Six starts share .12: .02 each, so evidence of 50 is needed, and at .79 just as much."""
    strong = {80: 51.0, 79: 51.0, 78: 51.0, 70: 26.0}
    assert np.flatnonzero(passing(wealths(strong), 'precision', 0.12)).tolist() == [78, 79, 80]
    strong.update(dict.fromkeys(range(71, 78), 51.0))  # then .70 has the error of two
    assert 70 in np.flatnonzero(passing(wealths(strong), 'precision', 0.12))
    assert not passing(wealths({75: 1e9}), 'precision', 0.12).any()  # no start, and none before


@pytest.mark.parametrize(
    ('goal', 'first', 'next_one'), [('recall', 0, 1), ('false_alarms', 99, 98)]
)
def test_one_direction_is_tested_until_the_first_failure(goal, first, next_one) -> None:
    found = passing(wealths({first: 11.0, next_one: 11.0, 50: 1e9}), goal, 0.1)
    assert sorted(np.flatnonzero(found)) == sorted([first, next_one])
    assert not passing(wealths({next_one: 1e9}), goal, 0.1).any()


def boxes_of(images: int, scores: list[float], right: list[bool]) -> tuple[Detections, GroundTruth]:
    """The same detections in each image, with a gt where they are right and one more elsewhere."""
    number = len(scores)
    image, label = np.repeat(np.arange(images), number), np.zeros(images * number, int)
    squares = np.array([[50.0 * place, 0, 9, 9] for place in range(number)])
    boxes = np.tile(squares + [[0 if each else 2000, 0, 0, 0] for each in right], (images, 1))
    keys = [str(each) for each in range(images)]
    gts = GroundTruth(keys, keys, [1], ['cat'], image, label, boxes, np.zeros(len(label), bool))
    return Detections(image, label, np.tile(squares, (images, 1)), np.tile(scores, images)), gts


def test_the_lowest_cut_for_precision_and_the_highest_for_recall() -> None:
    found, gts = boxes_of(300, [0.9, 0.6, 0.3], [True, True, False])
    (cat,) = choose_cuts(found, gts, Promise('precision', 0.9)).classes
    assert cat == ClassCut('cat', 0.31, kept=600, right=600, gts=900, more=0)
    (cat,) = choose_cuts(found, gts, Promise('recall', 0.6)).classes
    assert (cat.cut, cat.kept, cat.right) == (0.6, 600, 600)
    (cat,) = choose_cuts(found, gts, Promise('false_alarms', 0.5)).classes
    assert (cat.cut, cat.kept) == (0.31, 600)
    assert choose_cuts(found, gts, Promise('false_alarms', 1.5)).classes[0].cut == 0.0


def test_more_images_are_named_and_are_enough() -> None:
    few, gts = boxes_of(12, [0.9, 0.3], [True, False])
    (cat,) = choose_cuts(few, gts, Promise('precision', 0.9)).classes
    assert cat.cut is None
    assert cat.more > 0
    many = boxes_of(12 + cat.more, [0.9, 0.3], [True, False])
    assert choose_cuts(*many, Promise('precision', 0.9)).classes[0].cut is not None
    less = boxes_of(12 + cat.more - 2, [0.9, 0.3], [True, False])
    assert choose_cuts(*less, Promise('precision', 0.9)).classes[0].cut is None
    hopeless = boxes_of(50, [0.9, 0.3], [True, False])
    (cat,) = choose_cuts(*hopeless, Promise('recall', 0.9)).classes
    assert (cat.cut, cat.more) == (None, None)


@pytest.mark.parametrize(
    ('goal', 'target', 'least'), [('recall', 0.3, 2), ('recall', 0.8, 11), ('precision', 0.8, 11)]
)
def test_few_perfect_images_promise_nothing(goal, target, least) -> None:
    """Twenty right boxes in each: yet target ** n is the chance of n such images at the limit."""
    for images in (1, least - 1):
        found, gts = boxes_of(images, [0.9] * 20, [True] * 20)
        (cat,) = choose_cuts(found, gts, Promise(goal, target)).classes
        assert (cat.cut, cat.more) == (None, least - images)
    found, gts = boxes_of(least, [0.9] * 20, [True] * 20)
    assert choose_cuts(found, gts, Promise(goal, target)).classes[0].cut is not None


def test_images_with_more_mistakes_than_stated_forbid_a_cut() -> None:
    """Three false positives from .3 on in each of 400 images, though at most two were stated."""
    found, gts = boxes_of(400, [0.9] * 9 + [0.3] * 3, [True] * 9 + [False] * 3)
    (cat,) = choose_cuts(found, gts, Promise('precision', 0.6, most=2)).classes
    assert cat.cut == 0.31
    (cat,) = choose_cuts(found, gts, Promise('precision', 0.6, most=3)).classes
    assert cat.cut == 0.0


def test_all_classes_at_once_need_more_and_get_higher_cuts() -> None:
    found, gts = boxes_of(60, [0.9, 0.3], [True, False])
    names = [f'class {number}' for number in range(40)]
    gts = gts._replace(category_ids=list(range(40)), class_names=names)
    alone, all_of_them = (
        choose_cuts(found, gts, Promise('precision', 0.9, jointly=flag)).classes[0]
        for flag in (False, True)
    )
    assert alone.cut == 0.31
    assert all_of_them.cut is None


def test_crowds_count_neither_way() -> None:
    found, gts = boxes_of(100, [0.9, 0.3], [True, True])
    crowd = np.tile([False, True], 100)
    (cat,) = choose_cuts(found, gts._replace(crowd=crowd), Promise('precision', 0.9)).classes
    assert (cat.kept, cat.right, cat.gts) == (100, 100, 100)


@pytest.mark.parametrize(
    'options',
    [
        dict(goal='speed'),
        dict(target=1.0),
        dict(target=float('nan')),
        dict(goal='false_alarms', target=0.0),
        dict(confidence=1.0),
        dict(iou=0.0),
        dict(most=0),
    ],
)
def test_promises_out_of_range_are_refused(options) -> None:
    with pytest.raises(ConfigError):
        Promise(**{'goal': 'precision', 'target': 0.9, **options})


def test_nothing_to_choose_on_is_said() -> None:
    found, gts = boxes_of(2, [0.9], [True])
    empty = gts.of_images([])
    with pytest.raises(DataError, match='no images'):
        choose_cuts(found.take(np.zeros(2, bool)), empty, Promise('precision', 0.9))


def point_of(cuts: list[float | None], goal: str = 'precision', **fields) -> OperatingPoint:
    classes = tuple(ClassCut(f'class {n}', cut, 9, 8, 10, None) for n, cut in enumerate(cuts))
    return OperatingPoint(
        Promise(goal, 0.9), 'GFLHead', fields.pop('digest', None), classes, SOURCE
    )


def test_a_class_without_a_cut_keeps_all_for_recall_and_else_nothing() -> None:
    assert point_of([0.4, None]).thresholds() == [0.4, NO_BOX]
    assert point_of([0.4, None], 'recall').thresholds() == [0.4, 0.0]


def test_files_hold_all_and_are_checked(tmp_path) -> None:
    path = tmp_path / 'cuts.json'
    point = point_of([0.4, None], digest='ab')
    save_operating_point(point, path)
    assert load_operating_point(path) == point
    with pytest.raises(DataError, match=r'cuts\.json is not a calibrator'):
        load_calibrator(path)
    content = json.loads(path.read_text())
    for change in (
        dict(classes=[]),
        dict(promise=dict(goal='precision', target=2)),
        dict(classes=[{**content['classes'][0], 'cut': 3}]),
        dict(classes=[{'name': 'cat'}]),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises((DataError, ConfigError)):
            load_operating_point(path)
    path.write_text(json.dumps({**content, 'version': 2}))
    with pytest.raises(DataError, match='version 2'):
        load_operating_point(path)


@pytest.fixture
def detect():
    """Detections of a head with changes of its test config."""
    head, _ = head_pair()
    maps = make_maps(1, (96, 128), torch.Generator().manual_seed(0), bias=0.0)

    def run(**changes):
        cfg = ConfigDict({**head.test_cfg, **changes})
        return head.predict_by_feat(*maps, batch_img_metas=[make_meta((96, 128))], cfg=cfg)[0]

    return run


def test_a_head_keeps_what_reaches_its_classs_cut(detect, tmp_path) -> None:
    path = str(tmp_path / 'cuts.json')
    cuts = [0.9, None, 0.95, 0.85, 0.0, 0.9, 0.9, 0.9]
    save_operating_point(point_of(cuts), path)
    every, found = detect(), detect(operating_point=path)
    least = torch.tensor([NO_BOX if cut is None else cut for cut in cuts])
    reach = every.scores >= least[every.labels]
    assert 0 < len(found) < len(every)
    assert torch.equal(found.bboxes, every.bboxes[reach])
    assert (found.labels != 1).all()


def test_cuts_of_other_scores_heads_and_classes_are_refused(detect, tmp_path) -> None:
    path, fitted = tmp_path / 'cuts.json', tmp_path / 'calibrator.json'
    maps = tuple(
        calibrators.ClassMap(f'class {n}', Platt(1.0, 1.0), 'fitted', math.nan, math.nan, 9)
        for n in range(8)
    )
    save_calibrator(
        calibrators.DetectionCalibrator(calibrators.Settings(), 'GFLHead', maps, SOURCE), fitted
    )
    save_operating_point(point_of([0.5] * 8), path)
    with pytest.raises(DataError, match=r'cuts\.json .* raw scores.*calibrator\.json'):
        detect(operating_point=str(path), calibrator=str(fitted))
    save_operating_point(point_of([0.9] * 8, digest=file_digest(fitted)), path)
    found = detect(operating_point=str(path), calibrator=str(fitted))
    assert (found.scores >= 0.9).all()
    assert (found.raw_scores < 0.9).any()  # the calibrated score is cut
    fitted.write_text(json.dumps(json.loads(fitted.read_text()) | dict(note='another')))
    with pytest.raises(DataError, match='another calibrator'):
        head_pair()[0].calibration.thresholds(
            ConfigDict(operating_point=str(path), calibrator=str(fitted))
        )
    with pytest.raises(DataError, match=r'raw ones'):
        detect(operating_point=str(path))
    save_operating_point(point_of([0.5] * 3), path)
    with pytest.raises(DataError, match=r'cuts\.json .* 3 classes.* 8'):
        detect(operating_point=str(path))
    other = dataclasses.replace(point_of([0.5] * 8), score_type='LDHead')
    save_operating_point(other, tmp_path / 'other.json')
    with pytest.raises(DataError, match='LDHead'):
        detect(operating_point=str(tmp_path / 'other.json'))
