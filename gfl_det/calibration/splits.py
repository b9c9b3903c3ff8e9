"""Random splits of a dataset, reproducible by seed.

Calibrators are fitted on other images than they are assessed on (Kuzucu et al., "On Calibration of
Object Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024: minival and minitest). A dataset
with one held-out split is divided here.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from gfl_det.calibration.distribution import EdgeDetections
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import Detections, GroundTruth


class Judged(NamedTuple):
    """Detections with the gt boxes of the same images."""

    gts: GroundTruth
    detections: Detections


def split_images(gts: GroundTruth, seed: int = 0, share: float = 0.5) -> tuple[np.ndarray, ...]:
    """Split images in two at random.

    The group of an image depends only on the seed, its id and its file name, not on file order or
    the version of NumPy.

    Args:
        gts: Ground truth of N images.
        seed: Any integer.
        share: Share of the images in (0, 1) for the first group, rounded.

    Returns:
        Two ascending arrays of indices into ``gts.image_ids``, which together cover all images.

    Raises:
        ConfigError: If the share is out of range.
        DataError: If a group would be empty.

    Example:
        >>> no_boxes = (*np.zeros((2, 0), int), np.zeros((0, 4)), np.zeros(0, bool))
        >>> gts = GroundTruth([1, 2, 3, 4], list('abcd'), [], [], *no_boxes)
        >>> split_images(gts, seed=0)
        (array([0, 1]), array([2, 3]))
    """
    if not 0 < share < 1:
        raise ConfigError(f'the share of a split must lie in (0, 1), not {share!r}')
    keys = gts.image_keys
    order = sorted(range(len(keys)), key=lambda index: _digest(seed, keys[index], index))
    number = round(share * len(keys))
    if not 0 < number < len(keys):
        raise DataError(f'{len(keys)} images cannot be split by {share:g}: give more images')
    first, second = np.sort(order[:number]), np.sort(order[number:])
    return first, second


def take_images(judged: Judged, chosen: np.ndarray) -> Judged:
    """Select the gt boxes and detections of some images, in order.

    Args:
        judged: Ground truth and detections of all images.
        chosen: ``(n,)`` distinct indices into ``image_ids``, ascending.

    Example:
        >>> image, label, crowd = np.array([0, 1]), np.zeros(2, int), np.zeros(2, bool)
        >>> boxes, scores = np.array([[0.0, 0, 4, 4]] * 2), np.array([0.9, 0.6])
        >>> gts = GroundTruth([7, 8], ['', ''], [1], ['cat'], image, label, boxes, crowd)
        >>> judged = Judged(gts, Detections(image, label, boxes, scores))
        >>> take_images(judged, np.array([1])).detections.scores
        array([0.6])
    """
    gts, detections = judged
    place = _places(gts, chosen)
    found = detections._replace(image=place[detections.image])
    return Judged(take_gts(gts, chosen), found.take(found.image >= 0))


def take_gts(gts: GroundTruth, chosen: np.ndarray) -> GroundTruth:
    """Select the gt boxes of some images, given as ``(n,)`` distinct ascending indices.

    Example:
        >>> image, label, crowd = np.array([0, 1]), np.zeros(2, int), np.zeros(2, bool)
        >>> boxes, scores = np.array([[0.0, 0, 4, 4]] * 2), np.array([0.9, 0.6])
        >>> gts = GroundTruth([7, 8], ['', ''], [1], ['cat'], image, label, boxes, crowd)
        >>> take_gts(gts, np.array([1])).image_ids
        [8]
    """
    image = _places(gts, chosen)[gts.image]
    kept = image >= 0
    return gts._replace(
        image_ids=[gts.image_ids[index] for index in chosen],
        image_keys=[gts.image_keys[index] for index in chosen],
        image=image[kept],
        label=gts.label[kept],
        boxes=gts.boxes[kept],
        crowd=gts.crowd[kept],
    )


def _places(gts: GroundTruth, chosen: np.ndarray) -> np.ndarray:
    """Index of each image among the chosen ones, -1 for others."""
    place = np.full(len(gts.image_ids), -1)
    place[chosen] = np.arange(len(chosen))
    return place


def take_edge_images(
    gts: GroundTruth, found: EdgeDetections, chosen: np.ndarray
) -> tuple[GroundTruth, EdgeDetections]:
    """Same as :func:`take_images`, for detections with edge distributions.

    Example:
        >>> image, label, crowd = np.array([0, 1]), np.zeros(2, int), np.zeros(2, bool)
        >>> boxes, scores = np.array([[0.0, 0, 4, 4]] * 2), np.array([0.9, 0.6])
        >>> gts = GroundTruth([7, 8], ['', ''], [1], ['cat'], image, label, boxes, crowd)
        >>> found = Detections(image, label, boxes, scores)
        >>> edges = EdgeDetections(found, np.zeros((2, 4, 5)), np.ones((2, 4)))
        >>> part, kept = take_edge_images(gts, edges, np.array([1]))
        >>> part.image_ids, kept.logits.shape
        ([8], (1, 4, 5))
    """
    part, detections = take_images(Judged(gts, found.detections), chosen)
    rows = found.take(np.isin(found.detections.image, chosen))
    return part, rows._replace(detections=detections)


def split(judged: Judged, seed: int = 0, share: float = 0.5) -> tuple[Judged, Judged]:
    """Split ground truth and detections in two random groups, to fit on and to assess on.

    Args:
        judged: Ground truth and detections of all images.
        seed: See :func:`split_images`.
        share: Share of the images in (0, 1) for the first group.

    Raises:
        ConfigError: If the share is out of range.
        DataError: If a group would be empty.

    Example:
        >>> image, label, crowd = np.array([0, 1]), np.zeros(2, int), np.zeros(2, bool)
        >>> boxes, scores = np.array([[0.0, 0, 4, 4]] * 2), np.array([0.9, 0.6])
        >>> gts = GroundTruth([7, 8], ['', ''], [1], ['cat'], image, label, boxes, crowd)
        >>> judged = Judged(gts, Detections(image, label, boxes, scores))
        >>> first, second = split(judged, seed=0)
        >>> sorted([*first.gts.image_ids, *second.gts.image_ids])
        [7, 8]
    """
    first, second = split_images(judged.gts, seed, share)
    return take_images(judged, first), take_images(judged, second)


def _digest(seed: int, key: str, index: int) -> tuple[str, int]:
    """Random sort key; the index breaks ties."""
    return hashlib.sha256(f'{seed} {key}'.encode()).hexdigest(), index
