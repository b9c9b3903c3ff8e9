"""Kinds of errors and confusions: drawn scenes, loops over the definitions, tidecv as a witness."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from gfl_det.calibration import Detections, GroundTruth
from gfl_det.evaluation.functional import average_precision
from gfl_det.evaluation.matching import FALSE, TRUE, match, overlaps
from gfl_det.visualization.report import KINDS, confusion_matrix, find_errors, oracle_gains
from gfl_det.visualization.report.errors import count_by_score, nearest
from tests.helpers.calibration_cases import scene as scene_with_crowds

UNIT = (0, 0, 10, 10)
RIGHT = (0, 0, 10, 9)  # IoU .9 with it
OFF = (0, 0, 10, 4)  # IoU .4
EDGE = (0, 0, 10, 5)  # IoU .5, a match
GRAZE = (0, 0, 10, 1)  # IoU .1, the least that is on it
FAR = (50, 50, 10, 10)


def scene(gts: list[tuple], detections: list[tuple], images: int = 1):
    return scene_with_crowds([(*each, False) for each in gts], detections, ('a', 'b'), images)


def kinds_of(gts: list[tuple], detections: list[tuple]) -> tuple[list[str], list[bool]]:
    """Kinds of the detections in their order, '' for none, and which gt boxes are missed."""
    found, known = scene(gts, detections)
    errors = find_errors(found, known)
    kinds = dict(zip(errors.found.row.tolist(), errors.kind.tolist()))
    names = [KINDS[kinds[row]] if kinds[row] >= 0 else '' for row in range(len(detections))]
    return names, errors.missed.tolist()


def pair_iou(found: Detections, row: int, gts: GroundTruth, index: int) -> float:
    return overlaps(found.boxes[[row]], gts.boxes[[index]], np.zeros(1, bool))[0]


def random_scene(seed: int, tidy: bool = False) -> tuple[Detections, GroundTruth]:
    """Crowded, on a coarse grid, so that equal overlaps and equal scores abound.

    A tidy one has none of these, nor marked crowds.
    """
    rng = np.random.default_rng(seed)
    images, classes, number, count = 4, 3, rng.integers(0, 25), rng.integers(0, 40)

    def boxes(size: int) -> np.ndarray:
        corner, side = rng.integers(0, 6, (size, 2)), rng.integers(2, 7, (size, 2))
        return np.concatenate([corner, side], 1) + tidy * rng.random((size, 4))

    gts = GroundTruth(
        list(range(images)),
        [str(index) for index in range(images)],
        list(range(classes)),
        ['a', 'b', 'c'],
        rng.integers(0, images, number),
        rng.integers(0, classes, number),
        boxes(number),
        rng.random(number) < 0.2 * (not tidy),
    )
    found = Detections(
        rng.integers(0, images, count),
        rng.integers(0, classes, count),
        boxes(count),
        rng.permutation(count) / 50 if tidy else rng.integers(1, 9, count) / 10,
    )
    return found, gts


@pytest.mark.parametrize(
    ('detection', 'kind', 'missed'),
    [
        ((RIGHT, 0.9), '', False),
        ((EDGE, 0.9), '', False),
        ((OFF, 0.9), 'localisation', False),
        ((GRAZE, 0.9), 'localisation', False),
        ((FAR, 0.9), 'background', True),
        (((0, 0, 10, 0.9), 0.9), 'background', True),
        ((RIGHT, 0.9, 1), 'class', False),
        ((EDGE, 0.9, 1), 'class', False),
        ((OFF, 0.9, 1), 'both', True),
        ((GRAZE, 0.9, 1), 'both', True),
    ],
)
def test_one_gt_and_one_detection(detection, kind, missed):
    box, score, *label = detection
    assert kinds_of([(0, 0, UNIT)], [(0, *(label or [0]), box, score)]) == ([kind], [missed])


def test_a_second_box_is_a_duplicate_and_a_poor_second_one_is_localised_badly():
    names, missed = kinds_of(
        [(0, 0, UNIT)], [(0, 0, RIGHT, 0.9), (0, 0, EDGE, 0.8), (0, 0, OFF, 0.7)]
    )
    assert names == ['', 'duplicate', 'localisation']
    assert missed == [False]


def test_class_comes_before_duplicate_and_localisation_before_class():
    both = [(0, 0, UNIT), (0, 1, UNIT)]
    names, _ = kinds_of(both, [(0, 0, UNIT, 0.9), (0, 0, RIGHT, 0.8)])
    assert names == ['', 'class']
    names, missed = kinds_of([(0, 0, OFF), (0, 1, UNIT)], [(0, 0, UNIT, 0.9)])
    assert names == ['localisation']
    assert missed == [False, True]


def test_other_images_and_crowds_hold_no_errors():
    found, gts = scene([(0, 0, UNIT), (1, 1, FAR)], [(0, 1, FAR, 0.9)], 2)
    assert find_errors(found, gts).kind.tolist() == [KINDS.index('background')]
    crowd = gts._replace(crowd=np.array([True, False]))
    found = found._replace(boxes=np.array([RIGHT], float), label=np.array([0]))
    errors = find_errors(found, crowd)
    assert errors.kind.tolist() == [-1]
    assert errors.missed.tolist() == [False, True]


def test_nothing_at_all():
    found, gts = scene([(0, 0, UNIT)], [(0, 0, UNIT, 0.9)])
    nothing = found.take(np.zeros(0, np.int64))
    errors = find_errors(nothing, gts)
    assert errors.missed.tolist() == [True]
    assert oracle_gains(errors, gts)['AP'] == 0
    bare = gts._replace(**{name: getattr(gts, name)[:0] for name in gts._fields[4:]})
    assert np.isnan(oracle_gains(find_errors(found, bare), bare)['AP'])
    assert confusion_matrix(nothing, bare, find_errors(nothing, bare)).sum() == 0


def definition(found: Detections, gts: GroundTruth, row: int, is_false: bool) -> str:
    """The definitions word by word, for a detection."""
    if not is_false:
        return ''
    own = other = 0.0
    for index in range(len(gts.label)):
        if gts.image[index] == found.image[row] and not gts.crowd[index]:
            iou = pair_iou(found, row, gts, index)
            if gts.label[index] == found.label[row]:
                own = max(own, iou)
            else:
                other = max(other, iou)
    if 0.1 <= own < 0.5:
        return 'localisation'
    if other >= 0.5:
        return 'class'
    if own >= 0.5:
        return 'duplicate'
    return 'background' if max(own, other) < 0.1 else 'both'


@pytest.mark.parametrize('seed', range(40))
def test_kinds_are_those_of_the_definitions(seed):
    found, gts = random_scene(seed)
    errors = find_errors(found, gts)
    (matches,) = match(found, gts, [0.5])
    covered = set(matches.gt[matches.state == TRUE].tolist())
    for place, row in enumerate(errors.found.row):
        kind = definition(found, gts, row, matches.state[place] == FALSE)
        assert (KINDS[errors.kind[place]] if errors.kind[place] >= 0 else '') == kind
        if kind in ('localisation', 'class'):
            gt = errors.gt[place]
            assert (gts.label[gt] == found.label[row]) == (kind == 'localisation')
            overlap = pair_iou(found, row, gts, gt)
            near = nearest(found.take(np.array([row])), gts)
            assert overlap == (near.own_iou if kind == 'localisation' else near.other_iou)[0]
            covered.add(int(gt))
    wanted = [index not in covered and not crowd for index, crowd in enumerate(gts.crowd)]
    assert errors.missed.tolist() == wanted


@pytest.mark.parametrize('seed', range(20))
def test_pairs_in_small_pieces_are_the_same(seed, monkeypatch):
    found, gts = random_scene(seed)
    whole = nearest(found, gts)
    monkeypatch.setattr('gfl_det.visualization.report.errors.CHUNK', 3)
    for one, other in zip(whole, nearest(found, gts)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('seed', range(20))
def test_counts_by_score_are_those_of_a_cut(seed):
    found, gts = random_scene(seed)  # scores are tenths
    least = np.linspace(0, 1, 11)
    counts = count_by_score(find_errors(found, gts), gts, least)
    for place, cut in enumerate(least):
        above = counts[:, :, place:].sum(-1)
        kept = found.take(found.scores >= cut)
        errors = find_errors(kept, gts)
        label = errors.found.label
        assert (
            above[:, 0].tolist() == np.bincount(label[errors.found.state == TRUE], None, 3).tolist()
        )
        for kind in range(5):
            number = np.bincount(label[errors.kind == kind], None, 3)
            assert above[:, 1 + kind].tolist() == number.tolist()
        missed = np.bincount(gts.label[errors.missed], None, 3)
        assert (gts.counts() - above[:, 6]).tolist() == missed.tolist()


def mended(found: Detections, gts: GroundTruth, kind: str) -> tuple[Detections, GroundTruth]:
    """The data set as the oracle of a kind would leave it."""
    errors = find_errors(found, gts)
    rows, labels, boxes = errors.found.row, found.label.copy(), found.boxes.copy()
    taken = set(errors.found.gt[errors.found.state == TRUE].tolist())
    gone = []
    ordered = sorted(range(len(rows)), key=lambda place: -errors.found.scores[place])
    for place in ordered:
        if errors.kind[place] < 0 or KINDS[errors.kind[place]] != kind:
            continue
        gt = int(errors.gt[place])
        if kind in ('localisation', 'class') and gt not in taken:
            taken.add(gt)
            labels[rows[place]] = gts.label[gt]
            boxes[rows[place]] = gts.boxes[gt]
        else:
            gone.append(rows[place])
    left = np.setdiff1d(np.arange(len(labels)), gone)
    asked = ~errors.missed if kind == 'missed' else np.ones(len(gts.label), bool)
    fewer = {name: getattr(gts, name)[asked] for name in gts._fields[4:]}
    return found._replace(label=labels, boxes=boxes).take(left), gts._replace(**fewer)


@pytest.mark.parametrize('seed', range(25))
@pytest.mark.parametrize('kind', ['both', 'duplicate', 'background', 'missed'])
def test_gains_are_those_of_a_mended_data_set(seed, kind):
    found, gts = random_scene(seed)
    found = found._replace(scores=np.random.default_rng(seed).permutation(len(found.scores)) / 50)
    if not gts.counts().any():
        pytest.skip('there is no AP without gt boxes')
    gains = oracle_gains(find_errors(found, gts), gts)
    changed, fewer = mended(found, gts, kind)
    before = average_precision(match(found, gts, [0.5])).mean
    present = gts.counts() > 0
    per_class = average_precision(match(changed, fewer, [0.5])).per_class[present]
    assert gains['AP'] == pytest.approx(before)
    assert gains[kind] == pytest.approx(np.nan_to_num(per_class).mean() - before)


def test_gains_of_boxes_and_classes_that_are_put_right():
    gts = [(0, 0, UNIT), (0, 0, FAR), (1, 1, UNIT)]
    found = [(0, 0, OFF, 0.9), (0, 0, OFF, 0.8), (0, 0, FAR, 0.7), (1, 0, UNIT, 0.6)]
    detections, known = scene(gts, found, 2)
    errors = find_errors(detections, known)
    gains = oracle_gains(errors, known)
    for kind in ('localisation', 'class'):
        changed, _ = mended(detections, known, kind)
        after = average_precision(match(changed, known, [0.5])).mean
        assert gains[kind] == pytest.approx(after - gains['AP'])
        assert gains[kind] > 0.1
    assert gains['missed'] == 0


def test_the_better_of_two_class_errors_on_an_object_is_mended():
    # At .9 it comes before the false positive of .6, so AP becomes 1; at .3 it would be 1/2.
    found = [(0, 1, UNIT, 0.3), (0, 2, UNIT, 0.9), (0, 0, FAR, 0.6)]
    detections, known = scene_with_crowds([(0, 0, UNIT, False)], found, ('a', 'b', 'c'))
    gains = oracle_gains(find_errors(detections, known), known)
    assert gains['AP'] == 0
    assert gains['class'] == pytest.approx(1)


@pytest.mark.skipif(importlib.util.find_spec('tidecv') is None, reason='pip install tidecv')
@pytest.mark.parametrize('seed', range(30))
def test_the_authors_tool_agrees(seed):
    import tidecv

    found, gts = random_scene(seed, tidy=True)
    given, seen = tidecv.Data('truths'), tidecv.Data('found')
    for image in gts.image_ids:
        given.add_image(image, str(image))  # else one without gt boxes would be left out
    for image, label, box in zip(gts.image, gts.label, gts.boxes):
        given.add_ground_truth(int(image), int(label), box.tolist())
    for image, label, box, score in zip(*found):
        seen.add_detection(int(image), int(label), float(score), box.tolist())
    tide = tidecv.TIDE()
    run = tide.evaluate(given, seen, mode=tidecv.TIDE.BOX)
    ours = find_errors(found, gts)
    theirs = {kind.short_name: len(errors) for kind, errors in run.error_dict.items()}
    counts = np.bincount(ours.kind[ours.kind >= 0], minlength=6)
    counts[5] = ours.missed.sum()
    assert counts.tolist() == [
        theirs[name] for name in ('Loc', 'Cls', 'Both', 'Dupe', 'Bkg', 'Miss')
    ]


def confused(found: Detections, gts: GroundTruth) -> np.ndarray:
    """The rules of the matrix in loops."""
    classes = len(gts.category_ids)
    matrix = np.zeros((classes + 1, classes + 1), int)
    (matches,) = match(found, gts, [0.5])
    free = {index for index, crowd in enumerate(gts.crowd) if not crowd}
    for label, gt in zip(matches.label, matches.gt):
        if gt >= 0:
            matrix[label, label] += 1
            free.remove(gt)
    places = np.flatnonzero(matches.state == FALSE)
    for place in sorted(places, key=lambda place: -matches.scores[place]):
        row = matches.row[place]
        near = [
            (pair_iou(found, row, gts, index), index)
            for index in sorted(free)
            if gts.image[index] == found.image[row]
        ]
        near = [(iou, index) for iou, index in near if iou >= 0.5]
        if not near:
            matrix[classes, found.label[row]] += 1
            continue
        best = max(iou for iou, _ in near)
        gt = min(index for iou, index in near if iou == best)
        free.remove(gt)
        matrix[gts.label[gt], found.label[row]] += 1
    for index in free:
        matrix[gts.label[index], classes] += 1
    return matrix


@pytest.mark.parametrize('seed', range(40))
def test_confusions_are_those_of_the_rules(seed):
    found, gts = random_scene(seed)
    found = found._replace(scores=np.random.default_rng(seed).permutation(len(found.scores)) / 50)
    matrix = confusion_matrix(found, gts, find_errors(found, gts))
    np.testing.assert_array_equal(matrix, confused(found, gts))
    np.testing.assert_array_equal(matrix[:-1].sum(1), gts.counts())


def test_a_drawn_confusion():
    gts = [(0, 0, UNIT), (0, 1, FAR), (0, 1, (90, 90, 9, 9))]
    found = [(0, 0, RIGHT, 0.9), (0, 0, FAR, 0.8), (0, 1, OFF, 0.7), (0, 1, UNIT, 0.6)]
    detections, known = scene(gts, found)
    matrix = confusion_matrix(detections, known, find_errors(detections, known))
    assert matrix.tolist() == [[1, 0, 0], [1, 0, 1], [0, 2, 0]]
