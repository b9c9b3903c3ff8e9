"""LaECE, LaACE, D-ECE and LRP: reference cases, loops over the definitions, scenes done by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det.calibration import evaluate_detections, match
from gfl_det.errors import ConfigError
from gfl_det.evaluation.evaluate import errors_by_class, keep_above
from gfl_det.evaluation.functional import (
    dece,
    laace,
    laece,
    lrp,
    optimal_lrp,
    reliability,
    skipped,
)
from gfl_det.evaluation.matching import FALSE, IGNORED, TRUE, Matches
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

CLOSE = dict(rtol=0, atol=1e-9)


def hand_made(scores: list, ious: list, gts: int, tau: float = 0.0) -> Matches:
    """Matches of one class: an IoU of None is a false positive, 'crowd' an ignored one."""
    state = [IGNORED if iou == 'crowd' else FALSE if iou is None else TRUE for iou in ious]
    values = [iou if isinstance(iou, (int, float)) else 0 for iou in ious]
    number = len(scores)
    return Matches(
        tau,
        np.arange(number),
        np.zeros(number, np.int64),
        np.array(scores, float),
        np.array(state, np.int8),
        np.array(values, float),
        np.full(number, -1),
        np.array([gts]),
    )


@pytest.mark.parametrize('case', NAMES)
@pytest.mark.parametrize('tau', [0.0, 0.1, 0.5])
def test_reference_errors(case: str, tau: float) -> None:
    detections, gts = case_data(case, 'minitest')
    wanted = case_json(f'{case}/expected.json')['before'][f'tau_{tau}']
    (found,) = match(detections, gts, [tau])
    error = laece(found)
    np.testing.assert_allclose(error.mean, wanted['LaECE']['value'], **CLOSE)
    seen = gts.counts() > 0
    for values, name in ((error.table.gaps(), 'errors'), (error.table.weights(), 'weights')):
        expected = np.array([numbers(row) for row in wanted['LaECE'][name]])
        np.testing.assert_allclose(values[seen], np.nan_to_num(expected[seen]), **CLOSE)
    published = laace(found, count_ignored=True)
    np.testing.assert_allclose(published.mean, wanted['LaACE']['value'], **CLOSE)
    np.testing.assert_allclose(published.per_class, numbers(wanted['LaACE']['errors']), **CLOSE)
    result = lrp(found)
    for values, mean, name in zip(result, result.means(), ('lrp', 'lrp_loc', 'lrp_fp', 'lrp_fn')):
        expected = wanted['LaECE']['lrp'][name]
        np.testing.assert_allclose(values, numbers(expected['per_class']), **CLOSE)
        np.testing.assert_allclose(mean, expected['mean'], **CLOSE)


@pytest.mark.parametrize('case', NAMES)
@pytest.mark.parametrize(('way', 'name'), [('oracle', 'paper'), ('reject', 'strict')])
def test_reference_of_both_ways_at_zero(case: str, way: str, name: str) -> None:
    detections, gts = case_data(case, 'minitest')
    for tau in (0.0, 0.1, 0.5):
        wanted = case_json('expected_reference.json')[case]['before'][f'tau_{tau}']
        (found,) = match(detections, gts, [tau], way)
        np.testing.assert_allclose(laece(found).mean, wanted[f'LaECE_{name}'], **CLOSE)
        np.testing.assert_allclose(laace(found).mean, wanted[f'LaACE_{name}'], **CLOSE)
        total = wanted['LRP' if way == 'oracle' else 'LRP_strict']
        np.testing.assert_allclose(lrp(found).means().total, total, **CLOSE)


@pytest.mark.parametrize('case', NAMES)
def test_reference_summary_and_thresholds(case: str) -> None:
    detections, gts = case_data(case, 'minitest')
    before = case_json(f'{case}/expected.json')['before']
    reference = case_json('expected_reference.json')[case]['before']
    metrics = evaluate_detections(detections, gts)
    stats = before['AP']['stats']
    names = ('AP', 'AP50', 'AP75', 'oLRP', 'oLRP_loc', 'oLRP_FP', 'oLRP_FN')
    for name, wanted in zip(names, stats[:3] + stats[12:16]):
        np.testing.assert_allclose(metrics[name], wanted, err_msg=name, **CLOSE)
    np.testing.assert_allclose(
        metrics['D-ECE'], reference['tau_0.5']['D_ECE_any_empty_class'], **CLOSE
    )
    for name, key in (('LaECE_0', 'LaECE_paper'), ('LaACE_0_reject', 'LaACE_strict')):
        np.testing.assert_allclose(metrics[name], reference['tau_0.0'][key], **CLOSE)
    strict = evaluate_detections(detections, gts, zero_overlap='reject')
    assert strict['LaECE_0'] == metrics['LaECE_0_reject']
    assert strict['LRP_0_loc_oracle'] == metrics['LRP_0_loc']
    assert metrics['classes'] == (4 if case == 'main' else 5)
    assert metrics['classes_without_truths'] == (1 if case == 'main' else 0)
    for tau, wanted in before['lrp_optimal_thresholds_test'].items():
        (found,) = match(detections, gts, [float(tau[4:])])
        wanted = np.where(numbers(wanted) == -1, np.nan, numbers(wanted))
        np.testing.assert_array_equal(optimal_lrp(found).thresholds, wanted)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.5]))
def test_errors_are_their_definitions(seed: int, tau: float) -> None:
    detections, gts = random_scene(seed)
    (found,) = match(detections, gts, [tau])
    error, adaptive, recall = laece(found), laace(found), lrp(found)
    pooled: list = []
    for label in range(2):
        of_class = found.of_class(label)
        pairs = [
            (score, iou, state)
            for score, state, iou in zip(of_class.scores, of_class.state, of_class.iou)
            if state != IGNORED
        ]
        total = found.gt_counts[label]
        if not total:
            assert math.isnan(error.per_class[label])
            assert math.isnan(recall.total[label])
            continue
        right = [iou for _, iou, state in pairs if state == TRUE]
        wrong = len(pairs) - len(right)
        missed = total - len(right)
        expected = (sum(1 - iou for iou in right) / (1 - tau) + wrong + missed) / (
            len(right) + wrong + missed
        )
        assert recall.total[label] == pytest.approx(expected, abs=1e-12)
        assert recall.fn[label] == pytest.approx(missed / total)
        assert math.isnan(recall.loc[label]) == (not right)
        if not pairs:
            assert math.isnan(error.per_class[label])
            assert math.isnan(adaptive.per_class[label])
            continue
        assert error.per_class[label] == pytest.approx(binned(pairs, 25), abs=1e-12)
        distance = sum(abs(score - iou) for score, iou, _ in pairs) / len(pairs)
        assert adaptive.per_class[label] == pytest.approx(distance, abs=1e-12)
        pooled += [(score, float(state == TRUE), state) for score, _, state in pairs]
    if pooled:
        assert dece(found).mean == pytest.approx(binned(pooled, 10), abs=1e-12)
    else:
        assert math.isnan(dece(found).mean)


def binned(pairs: list, bins: int) -> float:
    edges = np.linspace(0, 1, bins + 1)
    error = 0.0
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = [p for p in pairs if low < p[0] <= high or (index == 0 and p[0] == 0)]
        gap = sum(target for _, target, _ in inside) - sum(score for score, *_ in inside)
        error += abs(gap) / len(pairs)
    return error


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_optimal_lrp_is_the_best_of_all_cuts(seed: int, tau: float) -> None:
    detections, gts = random_scene(seed)
    # Different scores: a cut between equal ones is none that a threshold can make.
    order = np.argsort(detections.scores, kind='stable')
    detections = detections._replace(scores=(np.argsort(order) + 1) / (len(order) + 1))
    (found,) = match(detections, gts, [tau])
    best = optimal_lrp(found)
    # At tau 0 a cut can also change what is matched: only prefixes of these matches are judged.
    for label in np.flatnonzero(found.gt_counts):
        of_class = found.of_class(int(label))
        cuts = [
            lrp(hand_made_prefix(of_class, end)).total[label]
            for end in range(1, len(of_class.row) + 1)
        ]
        if not (of_class.state == TRUE).any():
            assert math.isnan(best.thresholds[label])
            assert best.lrp.total[label] == 1
            continue
        assert best.lrp.total[label] == pytest.approx(min(cuts), abs=1e-12)
        assert best.thresholds[label] == of_class.scores[int(np.argmin(cuts))]


def hand_made_prefix(matches: Matches, end: int) -> Matches:
    cut = {
        name: getattr(matches, name)[:end] for name in ('row', 'label', 'scores', 'state', 'iou')
    }
    return matches._replace(**cut)


class TestByHand:
    def test_laece_and_laace(self) -> None:
        # Bins of 0.04: (0.88, 0.92] holds .9 and .92 with IoUs .8 and 0; (0.08, 0.12] holds .1.
        found = hand_made([0.92, 0.9, 0.1, 0.3], [0.8, None, 0.3, 'crowd'], gts=3)
        assert laece(found).mean == pytest.approx((2 * (0.91 - 0.4) + (0.3 - 0.1)) / 3)
        assert laace(found).mean == pytest.approx((0.12 + 0.9 + 0.2) / 3)
        # Published figures count the crowd's detection as one of IoU 0.
        published = laace(found, count_ignored=True)
        assert published.mean == pytest.approx((0.12 + 0.9 + 0.2 + 0.3) / 4)

    def test_dece_ignores_how_well_a_true_positive_fits(self) -> None:
        for iou in (0.5, 1.0):
            found = hand_made([0.95, 0.95, 0.35], [iou, None, None], gts=1, tau=0.5)
            assert dece(found).mean == pytest.approx((2 * (0.95 - 0.5) + 0.35) / 3)

    def test_scores_on_edges_of_bins_and_at_both_ends(self) -> None:
        table = reliability(np.array([0, 0.5, 0.500001, 1]), np.zeros(4), np.linspace(0, 1, 3))
        assert table.number.tolist() == [[2, 2]]

    def test_a_perfect_class_counts_as_0_and_on_request_not_at_all(self) -> None:
        boxes = [(0, 0, UNIT, 1.0), (0, 1, UNIT, 0.6)]
        (found,) = match(*scene([(0, 0, UNIT, False), (0, 1, UNIT, False)], boxes, ('a', 'b')), [0])
        for measure in (laece, laace):
            assert measure(found).mean == pytest.approx(0.2)
            assert measure(found, drop_perfect=True).mean == pytest.approx(0.4)
            perfect = found.of_class(0)
            assert measure(perfect).mean == 0
            assert math.isnan(measure(perfect, drop_perfect=True).mean)

    def test_lrp_and_its_parts(self) -> None:
        found = hand_made([0.9, 0.8, 0.7], [0.9, None, 0.6], gts=4, tau=0.5)
        result = lrp(found)
        # Distances .1 and .4, doubled by 1 - tau; one wrong, two missed; five in all.
        assert result.total[0] == pytest.approx((0.2 + 0.8 + 1 + 2) / 5)
        assert result.loc[0] == pytest.approx(0.25)
        assert result.fp[0] == pytest.approx(1 / 3)
        assert result.fn[0] == pytest.approx(0.5)

    def test_the_best_cut_is_the_first_least_one(self) -> None:
        # LRP after each: 1/2 .. the crowd's detection adds nothing, so the cut stays before it.
        found = hand_made([0.9, 0.8, 0.7], [1.0, 'crowd', None], gts=2, tau=0.5)
        best = optimal_lrp(found)
        assert best.thresholds.tolist() == [0.9]
        assert best.lrp.total[0] == pytest.approx(0.5)
        assert (best.lrp.fp[0], best.lrp.fn[0]) == (0, 0.5)


class TestClassesLeftOut:
    def scene(self):
        # a: fine; b: detections without gt boxes; c: gt boxes without detections; d: a crowd alone;
        # e: a gt box whose only detection lies in the crowd beside it.
        gts = [
            (0, 0, UNIT, False),
            (0, 2, UNIT, False),
            (0, 3, UNIT, True),
            (0, 4, UNIT, False),
            (0, 4, FAR, True),
        ]
        boxes = [(0, 0, UNIT, 0.8), (0, 1, UNIT, 0.7), (0, 3, UNIT, 0.6), (0, 4, FAR, 0.5)]
        return scene(gts, boxes, tuple('abcde'))

    def test_they_are_counted_and_skipped(self) -> None:
        (found,) = match(*self.scene(), [0.5])
        assert skipped(found) == ([1, 3], [2, 4])
        error = laece(found)
        assert error.classes_used == 1
        assert error.mean == pytest.approx(0.2)
        assert np.isnan(error.per_class).tolist() == [False, True, True, True, True]
        assert dece(found).mean == pytest.approx(0.2)

    def test_a_missed_class_is_an_lrp_of_1_and_one_without_gts_none(self) -> None:
        (found,) = match(*self.scene(), [0.5])
        result = lrp(found)
        np.testing.assert_array_equal(result.total, [0, np.nan, 1, np.nan, 1])
        np.testing.assert_array_equal(result.fn, [0, np.nan, 1, np.nan, 1])
        np.testing.assert_array_equal(result.loc, [0, np.nan, np.nan, np.nan, np.nan])
        np.testing.assert_array_equal(
            optimal_lrp(found).thresholds, [0.8, np.nan, np.nan, np.nan, np.nan]
        )

    def test_a_class_of_false_positives_alone_has_no_precision(self) -> None:
        (found,) = match(*scene([(0, 0, UNIT, False)], [(0, 0, FAR, 0.8)]), [0.5])
        for result in (lrp(found), optimal_lrp(found).lrp):
            assert (result.total[0], result.fn[0]) == (1, 1)
            assert np.isnan([result.fp[0], result.loc[0]]).all()

    def test_the_summary_names_them(self) -> None:
        metrics = evaluate_detections(*self.scene())
        assert metrics['classes'] == 1
        assert metrics['classes_without_truths'] == 2
        assert metrics['classes_without_detections'] == 2

    @pytest.mark.parametrize('gts', [[], [(0, 0, UNIT, True)], [(0, 0, UNIT, False)]])
    def test_no_detections_at_all(self, gts: list) -> None:
        metrics = evaluate_detections(*scene(gts, []))
        assert all(math.isnan(metrics[name]) for name in ('LaECE_0', 'LaACE_0.5', 'D-ECE'))
        known = bool(gts) and not gts[0][3]
        assert metrics['LRP_0.5'] == 1 if known else math.isnan(metrics['LRP_0.5'])
        assert metrics['AP'] == 0 if known else math.isnan(metrics['AP'])


def test_values_of_each_class() -> None:
    data = scene([(0, 0, UNIT, False), (0, 1, UNIT, False)], [(0, 1, UNIT, 0.6)], ('a', 'b'))
    error, adaptive, recall = errors_by_class(*data, 0.5)
    np.testing.assert_allclose(error.per_class.value, [np.nan, 0.4])
    np.testing.assert_allclose(adaptive.per_class.value, [np.nan, 0.4])
    np.testing.assert_allclose(recall.total, [1, 0])


def test_cuts_keep_the_score_itself_and_all_of_a_class_without_one() -> None:
    boxes = [(0, 0, UNIT, 0.3), (0, 0, UNIT, 0.2), (0, 1, UNIT, 0.1)]
    detections, _ = scene([], boxes, ('a', 'b'))
    assert keep_above(detections, [0.3, np.nan]).tolist() == [True, False, True]
    assert keep_above(detections, 0.2).tolist() == [True, True, False]


def test_an_lrp_at_tau_1_is_refused() -> None:
    data = scene([(0, 0, UNIT, False)], [(0, 0, UNIT, 0.6)])
    with pytest.raises(ConfigError, match='not 1'):
        evaluate_detections(*data, taus=(1.0,))
