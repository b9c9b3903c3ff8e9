"""Random parts of a data set, the same for all who name the same seed.

A calibrator is fitted on other images than it is judged on (Kuzucu et al., "On Calibration of
Object Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024: minival and minitest). Where a
data set has one held-out split, that is cut in two here.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from gfl_det.calibration.distribution import EdgeDetections
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import Detections, Truths


class Judged(NamedTuple):
    """Detections with the gt boxes of the same images."""

    truths: Truths
    detections: Detections


def split_images(truths: Truths, seed: int = 0, share: float = 0.5) -> tuple[np.ndarray, ...]:
    """Cut the images in two at random.

    What falls where depends on the seed and on each image's id and file name alone: not on the
    order of the file, nor on a version of NumPy.

    Args:
        truths: of N images.
        seed: any integer; another one, another cut.
        share: part of the images in (0, 1) that the first group gets, rounded.

    Returns:
        Two ascending lists of indices into ``truths.image_ids``, together all of them.

    Raises:
        ConfigError: the share is out of range.
        DataError: a group would be empty.

    Example:
        >>> no_boxes = (*np.zeros((2, 0), int), np.zeros((0, 4)), np.zeros(0, bool))
        >>> truths = Truths([1, 2, 3, 4], list('abcd'), [], [], *no_boxes)
        >>> split_images(truths, seed=0)
        (array([0, 1]), array([2, 3]))
    """
    if not 0 < share < 1:
        raise ConfigError(f'the share of a split lies in (0, 1), not {share!r}')
    keys = truths.image_keys
    order = sorted(range(len(keys)), key=lambda index: _digest(seed, keys[index], index))
    number = round(share * len(keys))
    if not 0 < number < len(keys):
        raise DataError(
            f'{len(keys)} images cannot be cut into {share:g} and the rest: give more images'
        )
    first, second = np.sort(order[:number]), np.sort(order[number:])
    return first, second


def take_images(judged: Judged, chosen: np.ndarray) -> Judged:
    """The part of gt boxes and detections that lies in some of the images, in order.

    Args:
        judged: the whole.
        chosen: ``(n,)`` distinct indices into ``image_ids``, ascending.

    Example:
        >>> image, label = np.array([0, 1]), np.zeros(2, int)
        >>> boxes, scores = np.array([[0.0, 0, 4, 4]] * 2), np.array([0.9, 0.6])
        >>> truths = Truths([7, 8], ['', ''], [1], ['cat'], image, label, boxes, np.zeros(2, bool))
        >>> judged = Judged(truths, Detections(image, label, boxes, scores))
        >>> take_images(judged, np.array([1])).detections.scores
        array([0.6])
    """
    truths, detections = judged
    place = _places(truths, chosen)
    found = detections._replace(image=place[detections.image])
    return Judged(take_truths(truths, chosen), found.take(found.image >= 0))


def take_truths(truths: Truths, chosen: np.ndarray) -> Truths:
    """The gt boxes of some of the images, ``(n,)`` distinct indices in ascending order.

    Example:
        >>> image, label = np.array([0, 1]), np.zeros(2, int)
        >>> boxes, scores = np.array([[0.0, 0, 4, 4]] * 2), np.array([0.9, 0.6])
        >>> truths = Truths([7, 8], ['', ''], [1], ['cat'], image, label, boxes, np.zeros(2, bool))
        >>> take_truths(truths, np.array([1])).image_ids
        [8]
    """
    image = _places(truths, chosen)[truths.image]
    kept = image >= 0
    return truths._replace(
        image_ids=[truths.image_ids[index] for index in chosen],
        image_keys=[truths.image_keys[index] for index in chosen],
        image=image[kept],
        label=truths.label[kept],
        boxes=truths.boxes[kept],
        crowd=truths.crowd[kept],
    )


def _places(truths: Truths, chosen: np.ndarray) -> np.ndarray:
    """Of each image its index among the chosen ones, -1 for others."""
    place = np.full(len(truths.image_ids), -1)
    place[chosen] = np.arange(len(chosen))
    return place


def take_edge_images(
    truths: Truths, found: EdgeDetections, chosen: np.ndarray
) -> tuple[Truths, EdgeDetections]:
    """The same of detections with their edges.

    Example:
        >>> image, label = np.array([0, 1]), np.zeros(2, int)
        >>> boxes, scores = np.array([[0.0, 0, 4, 4]] * 2), np.array([0.9, 0.6])
        >>> truths = Truths([7, 8], ['', ''], [1], ['cat'], image, label, boxes, np.zeros(2, bool))
        >>> found = Detections(image, label, boxes, scores)
        >>> edges = EdgeDetections(found, np.zeros((2, 4, 5)), np.ones((2, 4)))
        >>> part, kept = take_edge_images(truths, edges, np.array([1]))
        >>> part.image_ids, kept.logits.shape
        ([8], (1, 4, 5))
    """
    part, detections = take_images(Judged(truths, found.detections), chosen)
    rows = found.take(np.isin(found.detections.image, chosen))
    return part, rows._replace(detections=detections)


def split(judged: Judged, seed: int = 0, share: float = 0.5) -> tuple[Judged, Judged]:
    """Ground truth and detections of two random groups of the images: to fit on, and to judge on.

    Args:
        judged: the whole.
        seed: see :func:`split_images`.
        share: part of the images in (0, 1) that the first group gets.

    Raises:
        ConfigError: the share is out of range.
        DataError: a group would be empty.

    Example:
        >>> image, label = np.array([0, 1]), np.zeros(2, int)
        >>> boxes, scores = np.array([[0.0, 0, 4, 4]] * 2), np.array([0.9, 0.6])
        >>> truths = Truths([7, 8], ['', ''], [1], ['cat'], image, label, boxes, np.zeros(2, bool))
        >>> judged = Judged(truths, Detections(image, label, boxes, scores))
        >>> first, second = split(judged, seed=0)
        >>> sorted([*first.truths.image_ids, *second.truths.image_ids])
        [7, 8]
    """
    first, second = split_images(judged.truths, seed, share)
    return take_images(judged, first), take_images(judged, second)


def _digest(seed: int, key: str, index: int) -> tuple[str, int]:
    """A random order; the index decides between images of one key."""
    return hashlib.sha256(f'{seed} {key}'.encode()).hexdigest(), index
