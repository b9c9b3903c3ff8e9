"""Which class is taken for which."""

from __future__ import annotations

import numpy as np

from gfl_det.evaluation.detections import Detections, Truths
from gfl_det.evaluation.matching import FALSE, TRUE
from gfl_det.visualization.report.errors import Errors
from gfl_det.visualization.report.pairs import Pairs, pairs_in_images


def confusion_matrix(detections: Detections, truths: Truths, errors: Errors) -> np.ndarray:
    """Count truths against detections.

    Detections that match a truth of their class, as COCO matches them, come first, so the diagonal
    holds the true positives of the other numbers. Then the others, by descending score, take the
    free truth of another class with the largest IoU of at least tau. What is left over is a
    detection of nothing, or a truth that nothing found. Crowds, and detections in them, do not
    count.

    Args:
        detections: those that ``errors`` were found in, cut at the score to judge.
        truths: of the same images.
        errors: of the two.

    Returns:
        ``(K + 1, K + 1)`` int64: rows are true classes and last "nothing", columns those predicted.
    """
    classes = len(truths.category_ids)
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    found = errors.found
    right = found.state == TRUE
    np.add.at(matrix, (found.label[right], found.label[right]), 1)
    free = ~truths.crowd
    free[found.truth[right]] = False
    wrong = np.flatnonzero(found.state == FALSE)
    others = detections.take(found.row[wrong])
    partner = np.full(len(wrong), -1)
    for pairs in pairs_in_images(others, truths):
        near = pairs.take((pairs.iou >= found.tau) & free[pairs.truth])
        _pair_off(near, others.scores, free, partner)
    label = found.label[wrong]
    confused = partner >= 0
    np.add.at(matrix, (truths.label[partner[confused]], label[confused]), 1)
    np.add.at(matrix, (np.full((~confused).sum(), classes), label[~confused]), 1)
    np.add.at(matrix, (truths.label[free], np.full(free.sum(), classes)), 1)
    return matrix


def _pair_off(pairs: Pairs, scores: np.ndarray, free: np.ndarray, partner: np.ndarray) -> None:
    """Give detections free truths, the best score and then the best IoU first, in place."""
    pairs = pairs.take(np.lexsort((pairs.detection, -pairs.iou, -scores[pairs.detection])))
    for detection, truth in zip(pairs.detection.tolist(), pairs.truth.tolist()):
        if free[truth] and partner[detection] < 0:
            free[truth] = False
            partner[detection] = truth
