"""Matching against the reference cases, pycocotools, a loop over the rules, and drawn scenes."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gfl_det.calibration import Detections, GroundTruth, match
from gfl_det.errors import ConfigError
from gfl_det.evaluation.functional import COCO_TAUS, average_precision
from gfl_det.evaluation.matching import FALSE, IGNORED, TRUE, overlaps
from tests.helpers.calibration_cases import (
    FAR,
    NAMES,
    UNIT,
    case_data,
    case_json,
    numbers,
    random_scene,
    scene,
)


def by_rules(detections: Detections, gts: GroundTruth, tau: float, reject: bool, max_dets: int):
    """The rules of COCO word by word: state and IoU of each detection, None where it counts not."""
    outcome: list = [None] * len(detections.scores)
    for image in range(len(gts.image_ids)):
        for label in range(len(gts.category_ids)):
            mine = np.flatnonzero((gts.image == image) & (gts.label == label))
            ordered = sorted(mine, key=lambda index: gts.crowd[index])
            rows = np.flatnonzero((detections.image == image) & (detections.label == label))
            rows = sorted(rows, key=lambda row: -detections.scores[row])[:max_dets]
            taken = set()
            for row in rows:
                best, held = min(tau, 1 - 1e-10), None
                for gt in ordered:
                    if gt in taken and not gts.crowd[gt]:
                        continue
                    if held is not None and not gts.crowd[held] and gts.crowd[gt]:
                        break
                    pair = detections.boxes[[row]], gts.boxes[[gt]], gts.crowd[[gt]]
                    overlap = overlaps(*pair)[0]
                    if overlap < best or (reject and overlap == 0):
                        continue
                    best, held = overlap, gt
                if held is None:
                    negative = np.prod(detections.boxes[row, 2:]) < 0
                    outcome[row] = (IGNORED if negative else FALSE, 0)
                elif gts.crowd[held]:
                    outcome[row] = (IGNORED, 0)
                else:
                    taken.add(held)
                    outcome[row] = (TRUE, best)
    return outcome


@settings(max_examples=150)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    st.booleans(),
    st.sampled_from([2, 100]),
)
def test_match_is_the_rules_word_by_word(
    seed: int, tau: float, reject: bool, max_dets: int
) -> None:
    detections, gts = random_scene(seed)
    way = 'reject' if reject else 'oracle'
    # Beside another threshold, as all are matched at once.
    _, found = match(detections, gts, [0.7, tau], way, max_dets)
    outcome = by_rules(detections, gts, tau, reject, max_dets)
    assert set(found.row) == {row for row, each in enumerate(outcome) if each is not None}
    for row, state, iou in zip(found.row, found.state, found.iou):
        assert (state, iou) == outcome[row]
    order = list(zip(found.label, -found.scores, detections.image[found.row], found.row))
    assert order == sorted(order)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_average_precision_is_pycocotools_to_the_last_digit(seed: int) -> None:
    detections, gts = random_scene(seed)
    if not len(detections.scores):
        return
    ours = average_precision(match(detections, gts, COCO_TAUS))
    stats = coco_stats(detections, gts)
    if np.isnan(ours.mean):
        assert stats[0] == -1  # pycocotools' word for no class with gt boxes
        return
    assert [ours.mean, ours.per_tau[0], ours.per_tau[5]] == list(stats[:3])


def coco_stats(detections: Detections, gts: GroundTruth) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(
            images=[dict(id=index) for index in range(len(gts.image_ids))],
            categories=[dict(id=label) for label in range(len(gts.category_ids))],
            annotations=[
                dict(
                    id=index + 1,  # pycocotools never matches a gt box with the id 0
                    image_id=int(gts.image[index]),
                    category_id=int(gts.label[index]),
                    bbox=box.tolist(),
                    area=box[2] * box[3],
                    iscrowd=int(gts.crowd[index]),
                )
                for index, box in enumerate(gts.boxes)
            ],
        )
        coco.createIndex()
        results = coco.loadRes(
            [
                dict(image_id=int(image), category_id=int(label), bbox=box.tolist(), score=score)
                for image, label, box, score in zip(*detections)
            ]
        )
        judge = COCOeval(coco, results, 'bbox')
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


@pytest.mark.parametrize('case', NAMES)
@pytest.mark.parametrize('tau', [0.0, 0.5])
def test_reference_matching(case: str, tau: float) -> None:
    detections, gts = case_data(case, 'minitest')
    (found,) = match(detections, gts, [tau])
    for label, wanted in case_json(f'{case}/expected_matching.json')[f'tau_{tau}'].items():
        of_class = found.of_class(int(label))
        if not wanted:
            assert found.gt_counts[int(label)] == 0
            continue
        np.testing.assert_array_equal(of_class.scores, numbers(wanted['scores']))
        np.testing.assert_array_equal(of_class.state == TRUE, numbers(wanted['tps']))
        np.testing.assert_array_equal(of_class.state == FALSE, numbers(wanted['fps']))
        np.testing.assert_allclose(of_class.iou, numbers(wanted['iou']), rtol=0, atol=1e-9)
        assert found.gt_counts[int(label)] == wanted['npig']


@pytest.mark.parametrize('case', NAMES)
def test_reference_counts_of_both_ways_at_zero(case: str) -> None:
    detections, gts = case_data(case, 'minitest')
    for tau in (0.0, 0.1, 0.5):
        wanted = case_json('expected_reference.json')[case]['before'][f'tau_{tau}']
        (found,), (strict,) = (match(detections, gts, [tau], way) for way in ('oracle', 'reject'))
        at_zero = (found.state == TRUE) & (found.iou == 0)
        assert at_zero.sum() == wanted['n_zero_iou_tp']
        assert (found.state == IGNORED).sum() == wanted['n_ignored']
        assert (strict.state == IGNORED).sum() == wanted['n_ignored_strict']


def states(gts: list, detections: list, tau: float, way: str = 'oracle') -> list:
    (found,) = match(*scene(gts, detections), [tau], way)
    return list(zip(found.state.tolist(), found.iou.tolist()))


class TestScenes:
    def test_without_overlap_a_box_takes_the_gt_of_a_later_perfect_one_at_tau_0(self) -> None:
        gts, found = [(0, 0, UNIT, False)], [(0, 0, FAR, 0.9), (0, 0, UNIT, 0.8)]
        assert states(gts, found, 0) == [(TRUE, 0), (FALSE, 0)]
        assert states(gts, found, 0, 'reject') == [(FALSE, 0), (TRUE, 1)]
        assert states(gts, found, 0.1) == [(FALSE, 0), (TRUE, 1)]

    def test_a_crowd_swallows_what_is_far_at_tau_0(self) -> None:
        gts = [(0, 0, UNIT, False), (0, 0, (100, 100, 10, 10), True)]
        found = [(0, 0, UNIT, 0.9), (0, 0, FAR, 0.8)]
        assert states(gts, found, 0) == [(TRUE, 1), (IGNORED, 0)]
        assert states(gts, found, 0, 'reject') == [(TRUE, 1), (FALSE, 0)]
        assert states(gts, found, 0.1) == [(TRUE, 1), (FALSE, 0)]

    def test_a_crowd_absorbs_many_by_the_part_that_lies_in_it(self) -> None:
        gts = [(0, 0, (0, 0, 100, 100), True)]
        inside = [(0, 0, (10 * k, 0, 5, 5), 0.9 - k / 10) for k in range(3)]
        half_out = (0, 0, (95, 0, 10, 10), 0.1)
        assert states(gts, [*inside, half_out], 0.5) == [(IGNORED, 0)] * 4
        assert states(gts, [*inside, half_out], 0.6)[-1] == (FALSE, 0)

    def test_a_tie_goes_to_the_last_gt(self) -> None:
        # Both gts overlap the first box by 5 of 15; the last is taken, so the second box, which
        # lies on the first gt alone, is right too.
        gts = [(0, 0, (0, 0, 10, 1), False), (0, 0, (10, 0, 10, 1), False)]
        found = [(0, 0, (5, 0, 10, 1), 0.9), (0, 0, (0, 0, 10, 1), 0.8)]
        assert states(gts, found, 0.3) == [(TRUE, 1 / 3), (TRUE, 1)]
        mirrored = [(0, 0, (5, 0, 10, 1), 0.9), (0, 0, (10, 0, 10, 1), 0.8)]
        assert states(gts, mirrored, 0.3) == [(TRUE, 1 / 3), (FALSE, 0)]

    def test_an_overlap_of_exactly_tau_is_a_match_and_a_perfect_box_one_at_tau_1(self) -> None:
        half = [(0, 0, (0, 0, 10, 5), 0.9)]
        assert states([(0, 0, UNIT, False)], half, 0.5) == [(TRUE, 0.5)]
        assert states([(0, 0, UNIT, False)], [(0, 0, UNIT, 0.9)], 1) == [(TRUE, 1)]
        rounded = (84.4, 75.8, 42.1, 25.9)  # its overlap with itself is 1 - 9e-16
        ((state, iou),) = states([(0, 0, rounded, False)], [(0, 0, rounded, 0.9)], 1)
        assert state == TRUE
        assert 1 - 1e-12 < iou < 1

    def test_the_gt_with_the_id_0_is_matched(self) -> None:
        detections, gts = scene([(0, 0, UNIT, False)], [(0, 0, UNIT, 0.9)])
        (found,) = match(detections, gts, [0.5])
        assert found.state.tolist() == [TRUE]

    def test_only_the_best_of_an_image_and_class_count(self) -> None:
        detections, gts = scene(
            [(0, 0, UNIT, False)],
            [(0, 0, FAR, 0.5 + k / 1000) for k in range(150)] + [(0, 1, UNIT, 0.01)],
            classes=('a', 'b'),
        )
        (found,) = match(detections, gts, [0.5])
        assert len(found.of_class(0).row) == 100
        assert found.of_class(0).scores.min() == 0.55
        assert len(found.of_class(1).row) == 1

    def test_boxes_without_area_overlap_nothing(self) -> None:
        boxes = np.array([[0, 0, 0, 10.0], [0, 0, -5, 10], [0, 0, 0, 0], [10, 0, 10, 10]])
        unit = np.tile([0, 0, 10.0, 10], (4, 1))
        assert overlaps(boxes, unit, np.zeros(4, bool)).tolist() == [0, 0, 0, 0]
        found = [(0, 0, (0, 0, -5, 10), 0.9), (0, 0, (0, 0, 0, 10), 0.8)]
        assert states([(0, 0, UNIT, False)], found, 0.5) == [(IGNORED, 0), (FALSE, 0)]

    def test_the_largest_area_that_counts_is_1e10(self) -> None:
        for width, state in ((1e5, FALSE), (1e5 + 1, IGNORED)):
            found = [(0, 0, (1e6, 1e6, width, 1e5), 0.9)]
            assert states([(0, 0, UNIT, False)], found, 0.5) == [(state, 0)]

    def test_nothing_found_and_nothing_to_find(self) -> None:
        for gts in ([], [(0, 0, UNIT, False)]):
            (found,) = match(*scene(gts, []), [0.5])
            assert len(found.row) == 0
            assert found.gt_counts.tolist() == [len(gts)]
        assert match(*scene([], []), []) == []


def test_thresholds_out_of_range_are_refused() -> None:
    detections, gts = scene([], [])
    with pytest.raises(ConfigError, match='not 50'):
        match(detections, gts, [50])
    with pytest.raises(ConfigError, match="not 'strict'"):
        match(detections, gts, [0], 'strict')
