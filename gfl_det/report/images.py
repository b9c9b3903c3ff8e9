"""How good each image is, which errors it has, and which images to show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..calibration.arrays import Truths
from ..calibration.matching import FALSE, TRUE
from .errors import KINDS, MISSED, NO_ERROR, Errors


class ImageErrors(NamedTuple):
    """Of each of I images, at the score that detections were cut at."""

    quality: np.ndarray  # (I,) 1 - LRP in [0, 1]; NaN without truths and detections
    counts: np.ndarray  # (E, 4) int64: image, kind, class, number, sorted; no zeros
    truths: np.ndarray  # (I,) without crowds
    right: np.ndarray  # (I,) true positives


def judge_images(errors: Errors, image_of: np.ndarray, truths: Truths) -> ImageErrors:
    """Judge each image by itself.

    Its quality is 1 - LRP (Oksuz et al., TPAMI 2021) over all classes: 1 if every truth is found
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

    A third are the worst and a fifth the best; then each pair of a kind and a class, the most
    frequent first, that no image chosen so far shows, adds the image that has it most often; the
    rest are the next worst.

    Args:
        judged: all images.
        limit: how many at most.
    """
    known = np.flatnonzero(~np.isnan(judged.quality))
    worst = known[np.argsort(judged.quality[known], kind='stable')].tolist()
    chosen = dict.fromkeys(worst[: -(-limit // 3)])
    chosen.update(dict.fromkeys(worst[::-1][: limit // 5]))
    counts = judged.counts
    pairs, which = np.unique(counts[:, 1:3], axis=0, return_inverse=True)
    which = which.reshape(-1)  # NumPy 2.0 alone gives it another shape
    weight = np.bincount(which, counts[:, 3], len(pairs))
    for pair in np.argsort(-weight, kind='stable'):
        rows = counts[which == pair]
        if len(chosen) < limit and not any(image in chosen for image in rows[:, 0].tolist()):
            chosen[int(rows[rows[:, 3].argmax(), 0])] = None
    for image in worst:
        if len(chosen) >= limit:
            break
        chosen[image] = None
    return sorted(chosen, key=worst.index) if limit else []


def _count(errors: Errors, image: np.ndarray, truths: Truths) -> np.ndarray:
    """Errors by image, kind and class: of a detection its own class, of a missed truth that."""
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
