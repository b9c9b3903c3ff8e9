"""Images of a report: how good each one is, which errors it has, and which to show."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.detections import Truths
from gfl_det.evaluation.matching import FALSE, TRUE
from gfl_det.visualization.report.errors import KINDS, MISSED, NO_ERROR, Errors


class ImageErrors(NamedTuple):
    """Of each of I images, at the score that detections were cut at."""

    quality: np.ndarray  # (I,) 1 - LRP in [0, 1]; NaN without gt boxes and detections
    counts: np.ndarray  # (E, 4) int64: image, kind, class, number, sorted; no zeros
    truths: np.ndarray  # (I,) without crowds
    right: np.ndarray  # (I,) true positives


def judge_images(errors: Errors, image_of: np.ndarray, truths: Truths) -> ImageErrors:
    """Judge each image by itself.

    Its quality is 1 - LRP (Oksuz et al., TPAMI 2021) over all classes: 1 if every gt box is found
    exactly and nothing else, 0 if nothing is right.

    Args:
        errors: of detections that are cut at a score.
        image_of: ``(N,)`` images of those detections, in their own order.
        truths: of I images.
    """
    found, images = errors.found, len(truths.image_ids)
    image = image_of[found.row]
    right, wrong = found.state == TRUE, found.state == FALSE
    distance = (1 - found.iou[right]) / (1 - found.tau)
    located = np.bincount(image[right], distance, images)
    hits, false = np.bincount(image[right], None, images), np.bincount(image[wrong], None, images)
    number = np.bincount(truths.image[~truths.crowd], None, images)
    total = number + false
    with np.errstate(invalid='ignore'):  # images with nothing in them
        quality = 1 - (located + false + number - hits) / total
    return ImageErrors(quality, _count(errors, image, truths), number, hits)


def choose_images(judged: ImageErrors, limit: int) -> list[int]:
    """The images to show: the worst, the best, and some of each kind of error and class.

    A third are the worst and a fifth the best. The others each show a pair of a kind and a class
    that those before do not, and of those that have it have it most often: first the most frequent
    pair of each kind, then the other pairs; then come the next worst.

    Args:
        judged: all images.
        limit: how many at most.

    Returns:
        The most important first: a list of fewer is the beginning of this one.
    """
    known = np.flatnonzero(~np.isnan(judged.quality))
    worst = known[np.argsort(judged.quality[known], kind='stable')].tolist()
    chosen: dict[int, None] = {}
    from_worst, from_best = iter(worst), reversed(worst)
    of_kinds = chain(_with_new_errors(judged.counts, chosen), from_worst)
    taken_worst = taken_best = 0
    while len(chosen) < min(limit, len(worst)):
        number = len(chosen) + 1
        if taken_worst < -(-number // 3):
            taken_worst, source = taken_worst + 1, from_worst
        elif taken_best < number // 5:
            taken_best, source = taken_best + 1, from_best
        else:
            source = of_kinds
        chosen[next(image for image in source if image not in chosen)] = None
    return list(chosen)


def _with_new_errors(counts: np.ndarray, chosen: Collection[int]) -> Iterator[int]:
    """Images with a pair of kind and class that none of those chosen by then shows."""
    pairs, which = np.unique(counts[:, 1:3], axis=0, return_inverse=True)
    which = which.reshape(-1)  # NumPy 2.0 alone gives it another shape
    order = np.argsort(-np.bincount(which, counts[:, 3], len(pairs)), kind='stable')
    _, leaders = np.unique(pairs[order, 0], return_index=True)  # the first of each kind
    leaders.sort()
    for pair in [*order[leaders], *np.delete(order, leaders)]:
        rows = counts[which == pair]
        if not any(image in chosen for image in rows[:, 0].tolist()):
            yield int(rows[rows[:, 3].argmax(), 0])


def _count(errors: Errors, image: np.ndarray, truths: Truths) -> np.ndarray:
    """Errors by image, kind and class: of a detection its own class, of a missed gt box that."""
    classes = len(truths.category_ids)
    wrong = errors.kind != NO_ERROR
    missed = errors.missed
    where = np.concatenate([image[wrong], truths.image[missed]])
    kind = np.concatenate([errors.kind[wrong], np.full(missed.sum(), MISSED)])
    label = np.concatenate([errors.found.label[wrong], truths.label[missed]])
    keys, number = np.unique((where * len(KINDS) + kind) * classes + label, return_counts=True)
    rest, label = np.divmod(keys, classes)
    where, kind = np.divmod(rest, len(KINDS))
    return np.column_stack([where, kind, label, number])
