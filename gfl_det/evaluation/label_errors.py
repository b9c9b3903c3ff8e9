"""Suspicious labels of a data set, each with the probability that it is wrong.

The evidence of :mod:`.label_evidence` is converted to a probability with synthetic errors of each
kind in the data set's own labels: a logistic regression separates their evidence from that of the
original labels, and weighs the parts of the evidence where it has several: how far a detector's
scores of two classes or many overlapping boxes can be trusted differs between detectors. Some of
the original labels are wrong too; their share is estimated by expectation maximisation, as for a
mixture of two populations of which one is known from samples (Anderson, "Multivariate logistic
compounds", Biometrika 1979).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from gfl_det.evaluation.detections import GroundTruth
from gfl_det.evaluation.label_evidence import (
    LEAST_IOU,
    Labels,
    UncertainDetections,
    best_of_place,
    class_evidence,
    class_support,
    duplicate_evidence,
    edge_support,
    image_pairs,
    largest,
    loose_evidence,
    missing_evidence,
    near_pairs,
    spurious_evidence,
)
from gfl_det.evaluation.matching import overlaps
from gfl_det.ops.boxes import xywh_to_xyxy, xyxy_to_xywh
from gfl_det.ops.intervals import SIDES

KINDS = ('loose', 'class', 'missing', 'spurious', 'duplicate')
RATE = 0.05  # prior share of errors of a kind
RATE_WEIGHT = 20  # weight of the prior share, in labels
MOST_ERRORS = 0.3  # maximum share of errors
ROUNDS = 20  # of expectation maximisation
PENALTY = 0.02  # on the squared slopes, which keeps them finite
MOVED = (0.06, 0.4)  # share of the side by which edges are moved, log-uniform
JITTER = 0.05  # standard deviation of the edges of a duplicated label, as a share of the side
SAME_BOX = 0.5  # minimum IoU of two labels of one object
REPAIRED = 2.0  # standard deviations from which further edges of a loose label are moved too


class SuspectLabel(NamedTuple):
    """A label, or the lack of one, that is probably wrong."""

    kind: str  # of KINDS
    probability: float
    image: int  # index of the image
    gt: int  # index of the label; -1 for a missing one
    label: int  # suggested class; by default that of the label
    box: np.ndarray  # (4,) suggested box, xywh px; by default that of the label
    detection: int  # index of the detection that contradicts the label; -1 if none
    edge: int | None = None  # of SIDES
    pixels: float | None = None  # distance from the predicted edge
    deviations: float | None = None  # the same distance in standard deviations


class KindResult(NamedTuple):
    """Judgement of all candidates of a kind."""

    candidate: np.ndarray  # (C,) int64: labels, or detections for missing ones
    evidence: np.ndarray  # (C,) parts weighed by the regression; a single one as it is
    probability: np.ndarray  # (C,)
    rate: float  # estimated share of errors among the candidates


def find_label_errors(
    gts: GroundTruth,
    found: UncertainDetections,
    image_wh: np.ndarray,
    seed: int = 0,
    least: float = 0.0,
) -> list[SuspectLabel]:
    """Rank the suspicious labels of a data set.

    Args:
        gts: Labels. Crowds are not checked, and detections in them do not count as missing labels.
        found: Detections of a detector that was not trained on these labels, preferably including
            those that NMS would suppress.
        image_wh: ``(I, 2)`` widths and heights of the images, px.
        seed: Seed of the synthetic errors.
        least: Minimum probability.

    Returns:
        Suspects by descending probability.

    Example:
        >>> image = label = np.zeros(1, int)
        >>> box, crowd = np.array([[10.0, 10, 40, 40]]), np.zeros(1, bool)
        >>> gts = GroundTruth([7], [''], [1, 2], ['cat', 'dog'], image, label, box, crowd)
        >>> found = UncertainDetections(image, label + 1, box, np.ones(1), np.ones((1, 4)))
        >>> find_label_errors(gts, found, np.array([[64, 64]]))[0].kind
        'class'
    """
    rows = np.flatnonzero(~gts.crowd & (gts.boxes[:, 2:] > 0).all(1))
    labels = Labels(gts.image[rows], gts.label[rows], gts.boxes[rows])
    crowds = Labels(gts.image[gts.crowd], gts.label[gts.crowd], gts.boxes[gts.crowd])
    rng = np.random.default_rng(seed)
    suspects = [
        *_loose(labels, found, rng),
        *_wrong_class(labels, found, len(gts.category_ids), rng),
        *_missing(labels, found, crowds),
        *_spurious(labels, found, np.asarray(image_wh, float), rng),
        *_duplicate(labels, found, rng),
    ]
    kept = [each for each in suspects if each.probability >= least]
    kept.sort(key=lambda each: -each.probability)
    return [each._replace(gt=int(rows[each.gt]) if each.gt >= 0 else -1) for each in kept]


def suspect_entries(
    suspects: Sequence[SuspectLabel], gts: GroundTruth, annotation_ids: Sequence[Any]
) -> list[dict[str, Any]]:
    """Convert suspects to plain values with the ids of the annotation file.

    Args:
        suspects: Suspects.
        gts: Labels that the suspects refer to.
        annotation_ids: Id of each label.

    Example:
        >>> none = np.zeros(0, int)
        >>> gts = GroundTruth(['a'], [''], [3], ['cat'], none, none, np.zeros((0, 4)), none)
        >>> lost = SuspectLabel('missing', 0.9, 0, -1, 0, np.array([1.0, 2, 3, 4]), 5)
        >>> entry = suspect_entries([lost], gts, [])[0]
        >>> entry['image_id'], entry['annotation_id'], entry['suggested_bbox']
        ('a', None, [1.0, 2.0, 3.0, 4.0])
    """
    entries = []
    for each in suspects:
        boxed, named = each.kind in ('loose', 'missing'), each.kind in ('class', 'missing')
        entries.append(
            dict(
                kind=each.kind,
                image_id=gts.image_ids[each.image],
                annotation_id=None if each.gt < 0 else annotation_ids[each.gt],
                edge=None if each.edge is None else SIDES[each.edge],
                pixels=None if each.pixels is None else round(each.pixels, 2),
                deviations=None if each.deviations is None else round(each.deviations, 2),
                probability=round(each.probability, 4),
                suggested_bbox=each.box.round(2).tolist() if boxed else None,
                suggested_category_id=gts.category_ids[each.label] if named else None,
            )
        )
    return entries


def error_probability(observed: np.ndarray, made_up: np.ndarray) -> tuple[np.ndarray, float]:
    """Probability that each observed candidate is an error, and the estimated share of errors.

    Args:
        observed: ``(N,)`` or ``(N, F)`` evidence of the candidates, some of which are errors; the
            larger each part, the more suspicious.
        made_up: ``(M,)`` or ``(M, F)`` evidence of synthetic errors.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> right, wrong = rng.normal(0, 1, 950), rng.normal(4, 1, 50)
        >>> sample = rng.normal(4, 1, 500)
        >>> probability, rate = error_probability(np.concatenate([right, wrong]), sample)
        >>> 0.03 < rate < 0.06, bool(probability[:950].mean() < 0.01 < probability[950:].mean())
        (True, True)
    """
    number = len(observed)
    return _judged(np.arange(number), observed, made_up)[2:]


def _judged(candidate: np.ndarray, observed: np.ndarray, made_up: np.ndarray) -> KindResult:
    """Weigh the evidence of the candidates, and estimate probabilities and their share."""
    rate, number = RATE, len(observed)
    parts, sample = (each if each.ndim > 1 else each[:, None] for each in (observed, made_up))
    if not number or not len(made_up):
        return KindResult(candidate, parts.sum(1), np.zeros(number), 0.0)
    every = np.concatenate([parts, sample])
    every = (every - every.mean(0)) / np.maximum(every.std(0), 1e-9)
    one, other = every[:number], every[number:]
    wrong, curve = np.zeros(number), np.zeros(every.shape[1] + 1)
    # All synthetic errors weigh as much as a quarter of the candidates.
    weight = number / 4 / len(made_up)
    for _ in range(ROUNDS):
        curve = _fit_curve(one, wrong, other, weight, curve)
        prior = np.log((1 - wrong).sum()) - np.log(number / 4 + wrong.sum())
        evidence = one @ curve[:-1] + curve[-1]
        odds = np.log(rate) - np.log1p(-rate) + evidence + prior
        wrong = scipy.special.expit(np.clip(odds, -30, 30))
        rate = (wrong.sum() + RATE * RATE_WEIGHT) / (number + RATE_WEIGHT)
        rate = float(np.clip(rate, 1e-4, MOST_ERRORS))
    return KindResult(candidate, observed if observed.ndim == 1 else evidence, wrong, rate)


def _fit_curve(
    observed: np.ndarray, wrong: np.ndarray, made_up: np.ndarray, weight: float, curve: np.ndarray
) -> np.ndarray:
    """Slopes of at least 0 and offset of a logistic curve, by Newton's method with a penalty."""
    x = np.concatenate([observed, made_up])
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    target = np.concatenate([wrong, np.full(len(made_up), weight)])
    total = np.concatenate([np.ones(len(observed)), np.full(len(made_up), weight)])
    penalty = np.append(np.full(x.shape[1] - 1, PENALTY), 0)
    for _ in range(30):
        share = scipy.special.expit(x @ curve)
        gradient = (total * share - target) @ x + penalty * curve
        hessian = (x * (total * share * (1 - share))[:, None]).T @ x
        hessian[np.diag_indices(len(curve))] += penalty + 1e-6
        # A slope that is 0 and would become negative is left out of the step.
        free = (curve > 0) | (gradient < 0)
        free[-1] = True
        step = np.zeros(len(curve))
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        before, curve = curve, curve - np.clip(step, -1, 1)
        curve[:-1] = np.maximum(curve[:-1], 0)
        if np.abs(curve - before).max() < 1e-6:
            break
    return curve


def judge_loose(labels: Labels, found: UncertainDetections, rng: np.random.Generator) -> KindResult:
    """Judge whether an edge is misplaced, for each label with a supporting detection.

    Example:
        >>> one = np.zeros(1, int)
        >>> labels = Labels(one, one, np.array([[0.0, 0, 10, 10]]))
        >>> found = UncertainDetections(one, one, labels.boxes, np.ones(1), np.ones((1, 4)))
        >>> judge_loose(labels, found, np.random.default_rng(0)).candidate
        array([0])
    """
    evidence, _ = loose_evidence(labels, edge_support(labels, found))
    moved = labels._replace(boxes=move_edges(labels.boxes, rng, *MOVED)[0])
    made_up, _ = loose_evidence(moved, edge_support(moved, found))
    known = np.flatnonzero(np.isfinite(evidence))
    return _judged(known, evidence[known], made_up[np.isfinite(made_up)])


def move_edges(
    boxes: np.ndarray, rng: np.random.Generator, least: float, most: float
) -> tuple[np.ndarray, np.ndarray]:
    """Move an edge of each box in or out by a share of the side; return boxes and edges.

    Example:
        >>> box = np.array([[0.0, 0, 10, 10]])
        >>> moved, edge = move_edges(box, np.random.default_rng(0), 0.2, 0.2)
        >>> float(np.abs(moved - box).max().round(6))
        2.0
    """
    number = len(boxes)
    edge, sign = rng.integers(0, 4, number), rng.choice([-1, 1], number)
    share = np.exp(rng.uniform(np.log(least), np.log(most), number))
    moved = xywh_to_xyxy(boxes)
    moved[np.arange(number), edge] += sign * share * boxes[np.arange(number), 2 + edge % 2]
    return xyxy_to_xywh(moved), edge


def _loose(
    labels: Labels, found: UncertainDetections, rng: np.random.Generator
) -> Iterator[SuspectLabel]:
    support = edge_support(labels, found)
    _, deviations = loose_evidence(labels, support)
    edges = xywh_to_xyxy(labels.boxes)
    judged = judge_loose(labels, found, rng)
    nearest = nearest_detection(labels, found)
    for row, probability in zip(judged.candidate, judged.probability.tolist()):
        edge = int(deviations[row].argmax())
        far = (deviations[row] >= REPAIRED) | (np.arange(4) == edge)
        box = xyxy_to_xywh(np.where(far, support.edges[row], edges[row])[None])[0]
        yield SuspectLabel(
            'loose',
            probability,
            int(labels.image[row]),
            int(row),
            int(labels.label[row]),
            box,
            int(nearest[row]),
            edge,
            float(abs(edges[row, edge] - support.edges[row, edge])),
            float(deviations[row, edge]),
        )


def nearest_detection(labels: Labels, found: UncertainDetections) -> np.ndarray:
    """Index ``(M,)`` of the best detection of each label's class at the label; -1 if none.

    Example:
        >>> one = np.zeros(1, int)
        >>> labels = Labels(one, one, np.array([[0.0, 0, 10, 10]]))
        >>> found = UncertainDetections(one, one, labels.boxes, np.ones(1), np.ones((1, 4)))
        >>> nearest_detection(labels, found)
        array([0])
    """
    place, row, iou = near_pairs(labels, found, LEAST_IOU)
    same = labels.label[place] == found.label[row]
    place, row, iou = place[same], row[same], iou[same]
    _, index = largest(place, found.scores[row] * iou, len(labels.image))
    return np.where(index >= 0, np.append(row, -1)[index], -1)


def judge_class(
    labels: Labels, found: UncertainDetections, classes: int, rng: np.random.Generator
) -> KindResult:
    """Judge whether each label has the wrong class.

    Example:
        >>> one = np.zeros(1, int)
        >>> labels = Labels(one, one, np.array([[0.0, 0, 10, 10]]))
        >>> found = UncertainDetections(one, one + 1, labels.boxes, np.ones(1), np.ones((1, 4)))
        >>> judge_class(labels, found, 2, np.random.default_rng(0)).candidate
        array([0])
    """
    number = len(labels.image)
    evidence = class_evidence(class_support(labels, found))
    made_up = evidence[:0]
    if classes > 1:
        other = (labels.label + rng.integers(1, classes, number)) % classes
        made_up = class_evidence(class_support(labels._replace(label=other), found))
    return _judged(np.arange(number), evidence, made_up)


def _wrong_class(
    labels: Labels, found: UncertainDetections, classes: int, rng: np.random.Generator
) -> Iterator[SuspectLabel]:
    support = class_support(labels, found)
    judged = judge_class(labels, found, classes, rng)
    for row, probability in zip(judged.candidate, judged.probability.tolist()):
        if support.other[row] > support.own[row]:
            detection = int(support.detection[row])
            yield SuspectLabel(
                'class',
                probability,
                int(labels.image[row]),
                int(row),
                int(found.label[detection]),
                labels.boxes[row],
                detection,
            )


def judge_missing(labels: Labels, found: UncertainDetections, crowds: Labels) -> KindResult:
    """Judge whether a label is missing, for each detection without one.

    The made-up errors are the labels that were found, each as if it were not there.

    Example:
        >>> one, none = np.zeros(1, int), np.zeros(0, int)
        >>> labels = Labels(none, none, np.zeros((0, 4)))
        >>> found = UncertainDetections(
        ...     one, one, np.array([[0.0, 0, 9, 9]]), np.ones(1), np.ones((1, 4))
        ... )
        >>> judge_missing(labels, found, labels).candidate
        array([0])
    """
    rows = best_of_place(found)
    best = found.take(rows)
    there = Labels(best.image, best.label, best.boxes)
    mass = edge_support(there, found).mass
    place, label, iou = near_pairs(there, labels, 1e-9)
    first, index = largest(place, iou, len(rows))
    of = np.where(index >= 0, np.append(label, -1)[index], -1)
    rest = label != of[place]
    second, _ = largest(place[rest], iou[rest], len(rows))
    free = (first < SAME_BOX) & ~_in_crowds(there, crowds)
    better, worse, _ = near_pairs(there.take(free), there.take(free), SAME_BOX)
    free[np.flatnonzero(free)[worse[better < worse]]] = False
    evidence = missing_evidence(best.scores, mass, first)
    matched = np.flatnonzero(first >= SAME_BOX)
    _, winner = largest(of[matched], best.scores[matched], len(labels.image))
    winner = matched[winner[winner >= 0]]
    winner = winner[second[winner] < SAME_BOX]
    made_up = missing_evidence(best.scores[winner], mass[winner], second[winner])
    return _judged(rows[free], evidence[free], made_up)


def _in_crowds(there: Labels, crowds: Labels) -> np.ndarray:
    place, crowd = image_pairs(there.image, crowds.image)
    share = overlaps(there.boxes[place], crowds.boxes[crowd], np.ones(len(place), bool))
    inside = np.zeros(len(there.image), bool)
    inside[place[share >= SAME_BOX]] = True
    return inside


def _missing(labels: Labels, found: UncertainDetections, crowds: Labels) -> Iterator[SuspectLabel]:
    judged = judge_missing(labels, found, crowds)
    chosen = found.take(judged.candidate)
    edges = edge_support(Labels(chosen.image, chosen.label, chosen.boxes), found).edges
    for place, (row, probability) in enumerate(zip(judged.candidate, judged.probability.tolist())):
        yield SuspectLabel(
            'missing',
            probability,
            int(found.image[row]),
            -1,
            int(found.label[row]),
            xyxy_to_xywh(edges[[place]])[0],
            int(row),
        )


def judge_spurious(
    labels: Labels, found: UncertainDetections, image_wh: np.ndarray, rng: np.random.Generator
) -> KindResult:
    """Judge whether each label is spurious.

    Example:
        >>> one, size = np.zeros(1, int), np.array([[64.0, 64.0]])
        >>> labels = Labels(one, one, np.array([[0.0, 0, 10, 10]]))
        >>> found = UncertainDetections(one, one, labels.boxes, np.ones(1), np.ones((1, 4)))
        >>> judge_spurious(labels, found, size, np.random.default_rng(0)).candidate
        array([0])
    """
    placed = place_anywhere(labels, image_wh, rng)
    evidence = spurious_evidence(labels, found)
    return _judged(np.arange(len(labels.image)), evidence, spurious_evidence(placed, found))


def place_anywhere(labels: Labels, image_wh: np.ndarray, rng: np.random.Generator) -> Labels:
    """Copy each label to a random place of a random image where it covers no other label.

    Example:
        >>> one = np.zeros(1, int)
        >>> labels = Labels(one, one, np.array([[0.0, 0, 10, 10]]))
        >>> len(place_anywhere(labels, np.array([[90.0, 90]]), np.random.default_rng(0)).image)
        1
    """
    number = len(labels.image)
    image = rng.integers(0, len(image_wh), number)
    room = image_wh[image]
    sides = np.minimum(labels.boxes[:, 2:], 0.95 * room)
    boxes = np.concatenate([rng.random((number, 2)) * (room - sides), sides], 1)
    placed = Labels(image, labels.label, boxes)
    covers, _, _ = near_pairs(placed, labels, 0.3)
    return placed.take(~np.isin(np.arange(number), covers))


def _spurious(
    labels: Labels, found: UncertainDetections, image_wh: np.ndarray, rng: np.random.Generator
) -> Iterator[SuspectLabel]:
    judged = judge_spurious(labels, found, image_wh, rng)
    for row, probability in zip(judged.candidate.tolist(), judged.probability.tolist()):
        image, label = int(labels.image[row]), int(labels.label[row])
        yield SuspectLabel('spurious', probability, image, row, label, labels.boxes[row], -1)


def judge_duplicate(labels: Labels, rng: np.random.Generator) -> KindResult:
    """Judge whether each label is a duplicate.

    Example:
        >>> zeros = np.zeros(2, int)
        >>> labels = Labels(zeros, zeros, np.array([[0.0, 0, 10, 10]] * 2))
        >>> judge_duplicate(labels, np.random.default_rng(0)).evidence
        array([1., 1.])
    """
    evidence, _ = duplicate_evidence(labels)
    edges = xywh_to_xyxy(labels.boxes)
    again = edges + rng.normal(0, JITTER, edges.shape) * np.tile(labels.boxes[:, 2:], 2)
    made_up = overlaps(labels.boxes, xyxy_to_xywh(again), np.zeros(len(edges), bool))
    return _judged(np.arange(len(edges)), evidence, made_up)


def _duplicate(
    labels: Labels, found: UncertainDetections, rng: np.random.Generator
) -> Iterator[SuspectLabel]:
    """For each pair, the label that agrees less with the detections."""
    iou, partner = duplicate_evidence(labels)
    judged = judge_duplicate(labels, rng)
    evidence, _ = loose_evidence(labels, edge_support(labels, found))
    evidence = np.nan_to_num(evidence, nan=np.inf)  # without support
    nearest = nearest_detection(labels, found)
    for row, probability in zip(judged.candidate.tolist(), judged.probability.tolist()):
        other = int(partner[row])
        if iou[row] < SAME_BOX:
            continue
        if partner[other] == row and (evidence[row], row) < (evidence[other], other):
            continue
        image, label = int(labels.image[row]), int(labels.label[row])
        detection = int(nearest[row])
        yield SuspectLabel(
            'duplicate', probability, image, row, label, labels.boxes[row], detection
        )
