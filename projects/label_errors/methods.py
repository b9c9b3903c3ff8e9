"""Rankings of suspicious labels: ours, plain ones, and cleanlab's where it is installed.

Every ranking is a list of scores, the most suspicious the highest, of the labels (of detections for
missing labels, of pairs of labels for duplicates).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.label_errors import (
    KindResult,
    judge_class,
    judge_duplicate,
    judge_loose,
    judge_missing,
    judge_spurious,
)
from gfl_det.evaluation.label_evidence import (
    Labels,
    UncertainDetections,
    best_of_place,
    class_support,
    duplicate_evidence,
    largest,
    near_pairs,
)
from gfl_det.ops.boxes import xywh_to_xyxy

LOWEST = -1e9  # of a label that a method says nothing about
# cleanlab's thresholds of certain and possible detections, .95 and .5, are those of softmax scores;
# a GFL score is a predicted IoU and seldom beyond .9.
CERTAIN, POSSIBLE = 0.4, 0.1


class Ranking(NamedTuple):
    """Scores of the candidates of a kind by one method."""

    candidate: np.ndarray  # (C,) labels, or detections; of pairs the second label
    score: np.ndarray  # (C,)
    other: np.ndarray | None = None  # (C,) the first label of a pair
    probability: np.ndarray | None = None  # (C,)


def ours(
    labels: Labels,
    found: UncertainDetections,
    classes: int,
    image_wh: np.ndarray,
    kinds: tuple[str, ...],
    seed: int,
) -> dict[str, Ranking]:
    """The rankings of ``gfl-det find-label-errors``."""
    rng = np.random.default_rng(seed)
    no_crowds = labels.take(np.zeros(0, int))
    judges: dict[str, Callable[[], KindResult]] = {
        'loose': lambda: judge_loose(labels, found, rng),
        'class': lambda: judge_class(labels, found, classes, rng),
        'missing': lambda: judge_missing(labels, found, no_crowds),
        'spurious': lambda: judge_spurious(labels, found, image_wh, rng),
        'duplicate': lambda: judge_duplicate(labels, rng),
    }
    judged = {kind: judges[kind]() for kind in kinds}
    return {
        kind: _pairs(labels, each.evidence, each.probability)
        if kind == 'duplicate'
        else Ranking(each.candidate, each.evidence, probability=each.probability)
        for kind, each in judged.items()
    }


def _pairs(labels: Labels, score: np.ndarray, probability: np.ndarray | None = None) -> Ranking:
    """Each pair of labels once, by its second label."""
    _, partner = duplicate_evidence(labels)
    rows = np.flatnonzero(partner >= 0)
    second = np.maximum(rows, partner[rows])
    first = np.minimum(rows, partner[rows])
    _, once = np.unique(np.stack([first, second], 1), axis=0, return_index=True)
    rows = rows[once]
    shown = None if probability is None else probability[rows]
    return Ranking(second[once], score[rows], first[once], shown)


def plain(labels: Labels, found: UncertainDetections) -> dict[str, dict[str, Ranking]]:
    """Overlap, relative distance, scores; and the ratio that a single detection gives.

    They read the detections that NMS leaves.
    """
    found = found.take(best_of_place(found))
    number, every = len(labels.image), np.arange(len(labels.image))
    place, row, iou = near_pairs(labels, found, 1e-9)
    same = labels.label[place] == found.label[row]
    of_class, index = largest(place[same], iou[same], number)
    partner = np.where(index >= 0, np.append(row[same], -1)[index], -1)
    anything, _ = largest(place, iou, number)
    known = of_class >= 0.5
    chosen = found.take(np.maximum(partner, 0))
    away = np.abs(xywh_to_xyxy(labels.boxes) - xywh_to_xyxy(chosen.boxes))
    relative = (away / np.tile(chosen.boxes[:, 2:], 2)).max(1)
    ratio = chosen.scores * (away / chosen.edge_std).max(1)
    support = class_support(labels, found._replace(scores=found.scores))
    there = Labels(found.image, found.label, found.boxes)
    place, _, iou = near_pairs(there, labels, 0.5)
    free = np.setdiff1d(np.arange(len(found.image)), place)

    def label_ranking(score: np.ndarray, where: np.ndarray | None = None) -> Ranking:
        return Ranking(every, score if where is None else np.where(where, score, LOWEST))

    overlap, _ = duplicate_evidence(labels)
    return {
        'loose': {
            'IoU': label_ranking(1 - of_class, known),
            'relative distance': label_ranking(relative, known),
            'ratio, one detection': label_ranking(ratio, known),
        },
        'class': {'difference of scores': label_ranking(support.other - support.own)},
        'missing': {'score': Ranking(best_rows(found, free), found.scores[free])},
        'spurious': {'IoU': label_ranking(-anything)},
        'duplicate': {'IoU': _pairs(labels, overlap)},
    }


def best_rows(found: UncertainDetections, free: np.ndarray) -> np.ndarray:
    """Indices of detections among those that NMS leaves."""
    return np.arange(len(found.image))[free]


def cleanlab(
    labels: Labels, found: UncertainDetections, classes: int, images: int
) -> dict[str, dict[str, Ranking]]:
    """Cleanlab's scores of object detection; an empty dict where it is not installed."""
    try:
        from cleanlab.object_detection import rank
    except ImportError:
        return {}
    found = found.take(best_of_place(found))
    corners, edges = xywh_to_xyxy(labels.boxes), xywh_to_xyxy(found.boxes)
    given, predicted, rows_of_labels, rows_of_found = [], [], [], []
    for image in range(images):
        mine = np.flatnonzero(labels.image == image)
        rows = np.flatnonzero(found.image == image)
        if not len(mine) or not len(rows):
            continue
        given.append(dict(bboxes=corners[mine], labels=labels.label[mine]))
        parts = [rows[found.label[rows] == label] for label in range(classes)]
        # An empty class more: three arrays would be taken for another format.
        boxes = np.empty(classes + 1, object)
        for label, part in enumerate([*parts, rows[:0]]):
            boxes[label] = np.concatenate([edges[part], found.scores[part, None]], 1)
        predicted.append(boxes)
        rows_of_labels.append(mine)
        rows_of_found.append(np.concatenate(parts))
    both = dict(labels=given, predictions=predicted)
    badloc = rank.compute_badloc_box_scores(**both, low_probability_threshold=POSSIBLE)
    swap = rank.compute_swap_box_scores(**both, high_probability_threshold=CERTAIN)
    overlooked = rank.compute_overlooked_box_scores(**both, high_probability_threshold=CERTAIN)
    mine, rows = np.concatenate(rows_of_labels), np.concatenate(rows_of_found)

    def of_labels(scores: list[np.ndarray]) -> Ranking:
        values = np.full(len(labels.image), LOWEST)
        values[mine] = np.nan_to_num(-np.concatenate(scores), nan=LOWEST)
        return Ranking(np.arange(len(values)), values)

    missing = Ranking(rows, np.nan_to_num(-np.concatenate(overlooked), nan=LOWEST))
    return {
        'loose': {'cleanlab': of_labels(badloc)},
        'class': {'cleanlab': of_labels(swap)},
        'missing': {'cleanlab': missing},
        'spurious': {'cleanlab': of_labels(badloc)},
    }
