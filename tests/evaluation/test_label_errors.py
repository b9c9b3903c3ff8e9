"""Suspicious labels: one error of each kind by hand, the evidence, and the probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from gfl_det.evaluation.label_errors import (
    KINDS,
    error_probability,
    find_label_errors,
    move_edges,
    place_anywhere,
    suspect_entries,
)
from gfl_det.evaluation.label_evidence import (
    LEAST_STD_PX,
    Labels,
    UncertainDetections,
    best_of_place,
    edge_support,
    image_pairs,
    near_pairs,
)
from gfl_det.ops.boxes import xywh_to_xyxy
from tests.helpers import label_scenes

SIZES = np.full((label_scenes.IMAGES, 2), label_scenes.SIDE, float)


@pytest.fixture(scope='module')
def scene() -> label_scenes.LabelScene:
    return label_scenes.make_scene()


@pytest.fixture(scope='module')
def suspects(scene):
    return find_label_errors(scene.gts, scene.found, SIZES)


@pytest.mark.parametrize('kind', KINDS)
def test_the_error_put_in_leads_the_list_of_its_kind(scene, suspects, kind) -> None:
    first = next(each for each in suspects if each.kind == kind)
    where = first.image if kind == 'missing' else first.gt
    assert where == scene.wrong[kind]
    assert first.probability > 0.5
    others = [each.probability for each in suspects if each.kind == kind][1:]
    assert max(others, default=0.0) < 0.5


def test_the_list_is_sorted_and_cut(scene, suspects) -> None:
    values = [each.probability for each in suspects]
    assert values == sorted(values, reverse=True)
    kept = find_label_errors(scene.gts, scene.found, SIZES, least=0.5)
    assert [each.kind for each in kept] == [e.kind for e in suspects if e.probability >= 0.5]


def test_suggestions_repair_what_was_broken(scene, suspects) -> None:
    clean = label_scenes.make_scene(errors=False).gts
    by_kind = {kind: next(e for e in suspects if e.kind == kind) for kind in KINDS}
    loose = by_kind['loose']
    assert loose.edge == 2  # the right one
    assert loose.pixels == pytest.approx(25, abs=7)
    np.testing.assert_allclose(loose.box, clean.boxes[0], atol=8)
    np.testing.assert_array_equal(loose.box[:2], scene.gts.boxes[0][:2])  # edges that fit stay
    assert by_kind['class'].label == clean.label[1]
    missing = by_kind['missing']
    assert missing.label == clean.label[8]
    np.testing.assert_allclose(missing.box, clean.boxes[8], atol=5)


def test_entries_have_every_field_and_null_for_what_a_kind_lacks(scene, suspects) -> None:
    ids = [f'a{index}' for index in range(len(scene.gts.image))]
    entries = suspect_entries(suspects, scene.gts, ids)
    fields = {
        *('kind', 'image_id', 'annotation_id', 'edge', 'pixels', 'deviations', 'probability'),
        *('suggested_bbox', 'suggested_category_id'),
    }
    assert all(set(entry) == fields for entry in entries)
    filled = {
        kind: {
            name
            for name, value in next(e for e in entries if e['kind'] == kind).items()
            if value is not None
        }
        for kind in KINDS
    }
    always = {'kind', 'image_id', 'probability'}
    own = {'annotation_id', *always}
    assert filled == {
        'loose': own | {'edge', 'pixels', 'deviations', 'suggested_bbox'},
        'class': own | {'suggested_category_id'},
        'missing': always | {'suggested_bbox', 'suggested_category_id'},
        'spurious': own,
        'duplicate': own,
    }


def test_no_errors_no_probable_suspects() -> None:
    scene = label_scenes.make_scene(errors=False)
    assert find_label_errors(scene.gts, scene.found, SIZES, least=0.5) == []


def test_one_class_no_labels_no_detections_crowds(scene) -> None:
    gts, found = scene.gts, scene.found
    none = gts._replace(
        image=gts.image[:0], label=gts.label[:0], boxes=gts.boxes[:0], crowd=gts.crowd[:0]
    )
    assert {each.kind for each in find_label_errors(none, found, SIZES)} == {'missing'}
    nothing = found.take(np.zeros(0, int))
    assert 'loose' not in {each.kind for each in find_label_errors(gts, nothing, SIZES)}
    assert find_label_errors(none, nothing, SIZES) == []
    one = gts._replace(category_ids=[5], class_names=['cat'], label=gts.label * 0)
    kinds = {e.kind for e in find_label_errors(one, found._replace(label=found.label * 0), SIZES)}
    assert 'class' not in kinds
    # A crowd over the image of the missing label: what lies in it is not missing.
    place = scene.wrong['missing']
    crowd = gts._replace(
        image=np.append(gts.image, place),
        label=np.append(gts.label, 0),
        boxes=np.concatenate([gts.boxes, [[0.0, 0, 400, 400]]]),
        crowd=np.append(gts.crowd, True),
    )
    missing = [e for e in find_label_errors(crowd, found, SIZES) if e.kind == 'missing']
    assert place not in {each.image for each in missing}


def test_edge_support_is_the_weighted_mean_of_a_loop() -> None:
    rng = np.random.default_rng(1)
    boxes = np.array([[10.0, 10, 40, 40]]) + rng.normal(0, 2, (30, 4))
    found = UncertainDetections(
        rng.integers(0, 2, 30), rng.integers(0, 2, 30), boxes, rng.random(30), rng.random((30, 4))
    )
    labels = Labels(np.array([0, 1, 2]), np.array([0, 1, 0]), np.array([[10.0, 10, 40, 40]] * 3))
    support = edge_support(labels, found)
    assert np.isnan(support.edges[2]).all()  # an image without detections
    for row in (0, 1):
        terms = []
        for index in range(30):
            same = found.image[index] == row and found.label[index] == labels.label[row]
            x1, y1, w, h = found.boxes[index]
            common = max(0, min(50, x1 + w) - max(10, x1)) * max(0, min(50, y1 + h) - max(10, y1))
            iou = common / (1600 + w * h - common)
            if same and iou >= 0.5:
                terms.append((found.scores[index] * iou**6, index))
        weight = np.array([term[0] for term in terms])
        chosen = [term[1] for term in terms]
        edges = xywh_to_xyxy(found.boxes)[chosen]
        mean = weight @ edges / weight.sum()
        spread = (weight @ found.edge_std[chosen] / weight.sum()) ** 2
        spread = spread + weight @ (edges - mean) ** 2 / weight.sum() + LEAST_STD_PX**2
        np.testing.assert_allclose(support.edges[row], mean)
        np.testing.assert_allclose(support.std[row], np.sqrt(spread))
        assert support.score[row] == found.scores[chosen].max()


def test_pairs_and_suppression_against_loops() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.integers(0, 5, 20), rng.integers(0, 5, 30)
    wanted = {(i, j) for i in range(20) for j in range(30) if one[i] == other[j]}
    assert set(zip(*(each.tolist() for each in image_pairs(one, other)))) == wanted
    boxes = np.concatenate([rng.uniform(0, 40, (200, 2)), rng.uniform(20, 40, (200, 2))], 1)
    found = UncertainDetections(
        rng.integers(0, 3, 200), rng.integers(0, 2, 200), boxes, rng.random(200), np.ones((200, 4))
    )
    rows = best_of_place(found, least=0.0)
    kept = found.take(rows)
    assert (np.diff(kept.scores) <= 0).all()
    place, row, iou = near_pairs(
        Labels(kept.image, kept.label, kept.boxes), Labels(kept.image, kept.label, kept.boxes), 0.61
    )
    assert (kept.label[place] == kept.label[row])[place != row].sum() == 0
    assert (iou >= 0.61).all()


@pytest.mark.parametrize('share', [0.0, 0.02, 0.1])
def test_probabilities_count_the_errors(share) -> None:
    rates, kept = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        wrong = round(2000 * share)
        observed = np.concatenate([rng.normal(0, 1, 2000 - wrong), rng.normal(3.5, 1, wrong)])
        probability, rate = error_probability(observed, rng.normal(3.5, 1, 1000))
        assert (np.diff(probability[np.argsort(observed)]) >= 0).all()
        rates.append(rate)
        kept.append(probability.sum() / 2000)
    assert np.mean(rates) == pytest.approx(share, abs=0.006)
    assert np.mean(kept) == pytest.approx(share, abs=0.006)


def test_parts_of_the_evidence_get_the_weights_that_tell_errors_best() -> None:
    """Of normal parts of unit variance they are as the differences of the means."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (4000, 3)), rng.normal([3, 1.5, 0], 1, (4000, 3))
    mixed = np.concatenate([one, other[:200]])
    probability, rate = error_probability(mixed, other)
    assert rate == pytest.approx(200 / 4200, abs=0.01)
    inside = (probability > 1e-6) & (probability < 1 - 1e-6)
    odds = np.log(probability[inside]) - np.log1p(-probability[inside])
    weights = np.linalg.lstsq(np.c_[mixed[inside], np.ones(inside.sum())], odds, rcond=None)[0]
    assert weights[1:3] / weights[0] == pytest.approx([0.5, 0], abs=0.1)
    misleading = np.stack([mixed[:, 0], -mixed[:, 1]], 1)
    made_up = np.stack([other[:, 0], -other[:, 1]], 1)
    np.testing.assert_allclose(
        error_probability(misleading, made_up)[0],
        error_probability(mixed[:, 0], other[:, 0])[0],
        atol=1e-3,
    )


def test_evidence_that_tells_nothing_gives_no_confidence() -> None:
    rng = np.random.default_rng(0)
    probability, _ = error_probability(rng.normal(size=500), rng.normal(size=500))
    assert probability.max() < 0.35
    backwards, _ = error_probability(rng.normal(2, 1, 500), rng.normal(-2, 1, 500))
    assert np.ptp(backwards) == pytest.approx(0, abs=1e-9)  # a slope below 0 is none
    assert error_probability(np.zeros(0), np.ones(3))[0].size == 0
    assert error_probability(np.ones(3), np.zeros(0))[0].tolist() == [0, 0, 0]


def test_made_up_errors_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    boxes = label_scenes.clean_boxes(rng)
    moved, edge = move_edges(boxes, rng, 0.15, 0.15)
    change = np.abs(xywh_to_xyxy(moved) - xywh_to_xyxy(boxes))
    assert (np.count_nonzero(change > 1e-9, axis=1) == 1).all()
    rows = np.arange(len(boxes))
    np.testing.assert_allclose(change[rows, edge], 0.15 * boxes[rows, 2 + edge % 2])
    image = np.repeat(np.arange(label_scenes.IMAGES), 4)
    labels = Labels(image, image * 0, boxes)
    placed = place_anywhere(labels, SIZES, rng)
    assert 0 < len(placed.image) < len(image)
    edges = xywh_to_xyxy(placed.boxes)
    assert (edges >= 0).all()
    assert (edges <= label_scenes.SIDE).all()
    assert not len(near_pairs(placed, labels, 0.3)[0])
