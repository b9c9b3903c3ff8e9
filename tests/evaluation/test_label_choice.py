"""Choice of pictures to label: expected errors, near copies, and the greedy choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gfl_det.evaluation.label_choice import (
    ExpectedErrors,
    choose_pictures,
    detection_errors,
    expected_errors,
    similarity,
    standardised,
)
from gfl_det.evaluation.label_evidence import UncertainDetections
from gfl_det.evaluation.matching import overlaps


def detections(*rows: tuple[int, int, float, float]) -> UncertainDetections:
    """Boxes of 40 x 20 px from image, class, score and deviation of each edge."""
    image, label, scores, std = (np.array(column) for column in zip(*rows))
    boxes = np.tile([100.0, 50, 40, 20], (len(rows), 1))
    stds = np.repeat(std[:, None].astype(float), 4, 1)
    return UncertainDetections(image, label, boxes, scores.astype(float), stds)


def errors(*rows: tuple[int, int, float, float], images: int) -> ExpectedErrors:
    return expected_errors(detections(*rows), images)


def groups(rng: np.random.Generator, sizes: list[int], noise: float = 0.01) -> np.ndarray:
    """Features of near copies of one picture per group, in the order of the groups."""
    centres = rng.normal(size=(len(sizes), 64)) * 5 + 20
    features = np.repeat(centres, sizes, 0)
    return standardised(features + rng.normal(size=features.shape) * noise)


class TestErrors:
    @pytest.mark.parametrize('std', [0.1, 1.0, 4.0])
    def test_of_edges_is_the_iou_that_a_draw_of_them_loses(self, std) -> None:
        rng = np.random.default_rng(0)
        found = detections((0, 0, 0.7, std))
        edges = np.array([100.0, 50, 140, 70]) + rng.normal(0, std, (20000, 4))
        drawn = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], 1)
        iou = overlaps(np.tile(found.boxes, (len(drawn), 1)), drawn, np.zeros(len(drawn), bool))
        assert detection_errors(found)[1][0] == pytest.approx(1 - iou.mean(), rel=0.05)

    def test_of_scores_is_their_mean_distance_from_what_comes_true(self) -> None:
        rng = np.random.default_rng(0)
        right = rng.random(100000) < 0.2
        expected = np.abs(right - 0.2).mean()
        assert detection_errors(detections((0, 0, 0.2, 0)))[0][0] == pytest.approx(expected, 0.02)

    def test_edges_beyond_all_measure_lose_no_more_than_the_box(self) -> None:
        assert detection_errors(detections((0, 0, 0.6, 500)))[1][0] == pytest.approx(1)

    def test_order_of_pictures(self) -> None:
        """Sure; unsure scores; unsure edges; both."""
        found = errors((0, 0, 0.95, 1), (1, 0, 0.5, 1), (2, 0, 0.95, 4), (3, 0, 0.5, 4), images=4)
        assert np.argsort(found.value).tolist() == [0, 2, 1, 3]
        assert found.scores[0] < found.scores[1]
        assert found.edges[0] < found.edges[2]

    def test_a_crowd_of_sure_boxes_is_worth_less_than_one_unsure_box(self) -> None:
        crowd = [(0, 0, 0.9, 1)] * 40
        found = errors(*crowd, (1, 0, 0.4, 1), (2, 0, 0.9, 1), images=3)
        assert found.value[1] > found.value[0]
        assert found.value[0] == pytest.approx(found.value[2], rel=0.15)
        assert found.objects == pytest.approx([36, 0.4, 0.9])

    def test_false_alarms_do_not_outweigh_objects(self) -> None:
        alarms = [(1, 0, 0.2, 1)] * 4
        found = errors((0, 0, 0.5, 1), (1, 0, 0.5, 1), *alarms, images=2)
        assert found.value[1] < found.value[0]

    def test_one_doubtful_class_is_not_drowned_by_many_sure_boxes_of_another(self) -> None:
        crowd = [(0, 0, 0.9, 1)] * 40 + [(1, 0, 0.9, 1)] * 40
        found = errors(*crowd, (0, 1, 0.4, 1), images=2)
        assert found.value[0] > 1.1 * found.value[1]

    def test_pictures_with_little_in_them_are_judged_by_the_others(self) -> None:
        found = errors((0, 0, 0.9, 1), (1, 0, 0.3, 1), (2, 0, 0.05, 9), images=3)
        assert found.value[0] < found.value[2] < found.value[1]

    def test_nothing_is_found_anywhere(self) -> None:
        none = np.zeros(0, np.int64)
        nothing = UncertainDetections(none, none, np.zeros((0, 4)), np.zeros(0), np.zeros((0, 4)))
        assert expected_errors(nothing, 3).value.tolist() == [0, 0, 0]
        assert expected_errors(nothing, 0).value.tolist() == []


class TestChoice:
    @pytest.mark.parametrize('seed', range(5))
    def test_near_copies_do_not_crowd_the_list(self, seed) -> None:
        """One of each group comes before a second of any, also where one group is most unsure."""
        rng = np.random.default_rng(seed)
        sizes = [30, 1, 10, 1, 3, 1, 1, 20]
        group = np.repeat(np.arange(len(sizes)), sizes)
        value = rng.uniform(0.3, 0.5, len(group))
        value[group == 0] += 0.5
        choice = choose_pictures(value, groups(rng, sizes), 16)
        assert sorted(group[choice.chosen[:8]]) == list(range(8))
        assert group[choice.chosen[0]] == 0
        assert (choice.similarity[8:] > 0.99).all()
        assert (choice.gain[8:] < 0.01).all()
        by_value = group[np.argsort(-value)[:8]]
        assert set(by_value) == {0}  # what the list would be without diversity

    def test_of_pictures_equally_unlike_the_unsure_come_first(self) -> None:
        value = np.random.default_rng(0).random(12)
        choice = choose_pictures(value, standardised(np.eye(12)), 12)
        assert choice.chosen.tolist() == np.argsort(-value).tolist()

    def test_it_is_the_greedy_one(self) -> None:
        """Against a slow loop that compares all pictures in each round."""
        rng = np.random.default_rng(3)
        features = standardised(rng.normal(size=(40, 6)))
        labelled = standardised(rng.normal(size=(5, 6)))
        value = rng.random(40)
        alike = similarity(features, features)
        covered = similarity(labelled, features).max(0)
        expected, gains = [], []
        for _ in range(40):
            gain = (np.maximum(alike - covered, 0) * value).sum(1) / value.sum()
            gain[expected] = -1
            expected.append(int(gain.argmax()))
            gains.append(gain.max())
            covered = np.maximum(covered, alike[expected[-1]])
        choice = choose_pictures(value, features, 40, labelled)
        assert choice.chosen.tolist()[:25] == expected[:25]
        np.testing.assert_allclose(choice.gain, gains, atol=1e-6)
        assert (np.diff(choice.gain) <= 1e-6).all()

    def test_it_covers_more_than_63_percent_of_what_the_best_choice_does(self) -> None:
        rng = np.random.default_rng(1)
        features, value = standardised(rng.normal(size=(12, 3))), rng.random(12)
        alike, weights = similarity(features, features), value / value.sum()
        best = max(
            float(alike[list(rows)].max(0) @ weights)
            for rows in itertools.combinations(range(12), 3)
        )
        found = choose_pictures(value, features, 3).gain.sum()
        assert (1 - 1 / np.e) * best <= found <= best + 1e-6

    def test_what_has_labels_counts_as_chosen(self) -> None:
        rng = np.random.default_rng(0)
        features = groups(rng, [5, 5, 5, 1])
        value = np.full(15, 0.5)
        choice = choose_pictures(value, features[:15], 15, features[[7, 15]])
        order = (choice.chosen // 5).tolist()
        assert set(order[:2]) == {0, 2}
        copies = [place for place, group in enumerate(order) if group == 1]
        assert set(choice.nearest[copies]) <= {15, *range(5, 10)}
        assert choice.nearest[copies[0]] == 15
        assert 16 not in choice.nearest[2:]

    def test_without_any_value_the_unlike_are_chosen(self) -> None:
        rng = np.random.default_rng(0)
        choice = choose_pictures(np.zeros(9), groups(rng, [4, 4, 1]), 3)
        assert sorted(np.repeat([0, 1, 2], [4, 4, 1])[choice.chosen]) == [0, 1, 2]

    def test_one_picture_and_none(self) -> None:
        one = choose_pictures(np.array([0.4]), standardised(np.ones((1, 3))), 5)
        assert [values.tolist() for values in one] == [[0], [1.0], [-1], [0.0]]
        none = choose_pictures(np.zeros(0), np.zeros((0, 3), np.float32), 5)
        assert [len(values) for values in none] == [0, 0, 0, 0]

    def test_copies_alone_are_all_the_same(self) -> None:
        choice = choose_pictures(np.full(6, 0.5), standardised(np.full((6, 4), 3.7)), 6)
        assert choice.gain[0] == pytest.approx(1)
        assert choice.gain[1:] == pytest.approx(np.zeros(5), abs=1e-6)

    def test_noise_is_no_difference(self) -> None:
        """Compression moves a channel by far less than 1 % of its size."""
        rng = np.random.default_rng(0)
        features = standardised(10 + rng.normal(size=(20, 32)) * 1e-3)
        assert similarity(features, features).min() > 0.99


def test_two_usual_pictures_are_hardly_alike() -> None:
    features = standardised(np.random.default_rng(0).normal(size=(300, 200)) * 7 + 3)
    alike = similarity(features, features)
    assert np.median(alike[np.triu_indices(300, 1)]) == pytest.approx(np.exp(-4), rel=0.05)
    np.testing.assert_allclose(np.diag(alike), 1, atol=1e-5)
