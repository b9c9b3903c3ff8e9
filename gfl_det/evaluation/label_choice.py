"""Choice of the pictures whose labels would teach a detector most.

A picture's value is the error that is expected of what the detector finds in it: of the scores,
which are probabilities, and of the edges, whose distributions have a width. Detectors are queried
by the uncertainty of their scores in Brust, Käding and Denzler, "Active Learning for Deep Object
Detection", VISAPP 2019, and by that of scores and boxes together in Choi, Elezi, Lee, Farabet and
Alvarez, "Active Learning for Deep Object Detection via Probabilistic Modeling", ICCV 2021. A sum
over a picture's detections prefers crowds, and in a plain mean false alarms count like objects.
Here the mean is over expected objects: a detection counts by its score, and each class once, as in
the mean AP.

Pictures are chosen one after another by the error that they cover: their own, and that of pictures
like them, as far as no earlier one covers it. The sum to cover is a facility location, as in Wei,
Iyer and Bilmes, "Submodularity in Data Subset Selection and Active Learning", ICML 2015, so that
the greedy choice is within 1 - 1/e of the best; Sener and Savarese, "Active Learning for
Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, cover the farthest picture instead,
which prefers outliers. Of near copies, one is chosen.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import pi, sqrt
from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.label_evidence import UncertainDetections

COUNTED = 0.2  # score from which a detection counts
PRIOR = 1.0  # objects that the mean of all pictures is worth, where little is found
MEAN_OF_STD = sqrt(2 / pi)  # mean distance from the mean of a normal distribution
LEAST_SIDE_PX = 1.0
SHARPNESS = 2.0  # of the similarity: two usual pictures are hardly alike
FLAT = 0.01  # of a channel's size: smaller deviations than this are noise
BLOCK = 128  # pictures compared with all others at a time


class ExpectedErrors(NamedTuple):
    """Expected errors of I pictures, per object."""

    scores: np.ndarray  # (I,) in [0, .5], distance of a score from right (1) or wrong (0)
    edges: np.ndarray  # (I,) in [0, 1], lost IoU
    objects: np.ndarray  # (I,) expected number of objects

    @property
    def value(self) -> np.ndarray:
        """Both errors together, ``(I,)``."""
        return self.scores + self.edges


class LabelChoice(NamedTuple):
    """N chosen pictures in order."""

    chosen: np.ndarray  # (N,) int64, indices of pictures
    gain: np.ndarray  # (N,) share of the expected error that is covered from here on
    nearest: np.ndarray  # (N,) int64, the most alike of those labelled or chosen before; -1: none
    similarity: np.ndarray  # (N,) in [0, 1], to that picture


def detection_errors(found: UncertainDetections) -> tuple[np.ndarray, np.ndarray]:
    """Expected errors of scores and of edges, each ``(N,)``.

    A calibrated score p is off by 1 - p with probability p, otherwise by p: 2 p (1 - p) on average.
    A normal edge of deviation s is off by s sqrt(2 / pi) on average, which costs the IoU that share
    of the side across it, to first order; 1 - exp(-sum of the four shares) is within 5 % of
    simulated losses up to deviations of .3 of the side.

    Example:
        >>> one, box = np.zeros(1, int), np.array([[0.0, 0, 10, 20]])
        >>> found = UncertainDetections(one, one, box, np.array([0.5]), np.full((1, 4), 0.5))
        >>> [error.round(3) for error in detection_errors(found)]
        [array([0.5]), array([0.113])]
    """
    sides = np.maximum(found.boxes[:, [2, 3, 2, 3]], LEAST_SIDE_PX)
    lost = 1 - np.exp(-MEAN_OF_STD * (found.edge_std / sides).sum(1))
    return 2 * found.scores * (1 - found.scores), lost


def expected_errors(found: UncertainDetections, images: int) -> ExpectedErrors:
    """Expected errors of an object of each picture, as a mean over the classes found in it.

    A class with n expected objects counts n / (n + 1) times. The mean of all pictures is added as
    one more class, so that a picture with next to nothing in it is judged by the others.

    Args:
        found: Detections after NMS.
        images: Number of pictures.

    Example:
        >>> image, label, boxes = np.array([0, 1, 1]), np.zeros(3, int), np.full((3, 4), 10.0)
        >>> found = UncertainDetections(image, label, boxes, np.full(3, 0.5), np.zeros((3, 4)))
        >>> expected_errors(found, 3).scores  # two alike are no more than one, nor than the unknown
        array([0.5, 0.5, 0.5])
    """
    found = found.take(found.scores >= COUNTED)
    classes = int(found.label.max(initial=0)) + 1
    cell = found.image * classes + found.label

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, values, images * classes).reshape(images, classes)

    number = sums(found.scores)
    weight = (number / (number + PRIOR)).sum(1)
    errors = [
        (sums(found.scores * error) / (number + PRIOR)).sum(1) for error in detection_errors(found)
    ]
    means = [error.sum() / max(weight.sum(), 1e-9) for error in errors]
    scores, edges = ((error + mean) / (weight + 1) for error, mean in zip(errors, means))
    return ExpectedErrors(scores, edges, number.sum(1))


def standardised(features: np.ndarray) -> np.ndarray:
    """Channels of mean 0 and deviation 1 ``(I, D)`` float32; nearly constant ones stay near 0.

    Example:
        >>> standardised(np.array([[1.0, 5], [3, 5]])).round(2)
        array([[-1.,  0.],
               [ 1.,  0.]], dtype=float32)
    """
    features = np.asarray(features, np.float64)
    noise = FLAT * np.sqrt((features**2).mean(0))
    scale = np.hypot(features.std(0), noise)
    return ((features - features.mean(0)) / np.where(scale > 0, scale, 1)).astype(np.float32)


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Similarity of pictures ``(M, N)``: exp of minus twice the mean squared distance of a channel.

    It is 1 for copies, and exp(-4) = .018 for two usual pictures of a pool.

    Args:
        one: ``(M, D)``, of :func:`standardised`.
        other: ``(N, D)``.

    Example:
        >>> similarity(np.array([[1.0, 1]]), np.array([[1.0, 1], [-1, 1]])).round(3)
        array([[1.   , 0.018]])
    """
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return np.exp(-SHARPNESS * np.maximum(squares, 0) / one.shape[1])


def choose_pictures(
    value: np.ndarray, features: np.ndarray, number: int, labelled: np.ndarray | None = None
) -> LabelChoice:
    """Choose pictures one after another, each by the expected error that it newly covers.

    Memory grows with the number of pictures, not with its square. Where nothing has a value,
    pictures are chosen for their differences alone.

    Args:
        value: ``(I,)`` expected errors, at least 0.
        features: ``(I, D)``, of :func:`standardised`.
        number: Pictures to choose; all are, in order, where there are fewer.
        labelled: ``(L, D)`` features of pictures that have labels. In ``nearest`` they are numbered
            from I.

    Example:
        >>> value, features = np.array([0.4, 0.5, 0.3]), np.array([[0.0], [0.1], [3.0]])
        >>> choose_pictures(value, features, 3).chosen  # the second stands for its near copy too
        array([1, 2, 0])
    """
    images = len(value)
    total = value.sum()
    weights = value / total if total > 0 else np.full(images, 1 / max(images, 1))
    covered, nearest = np.zeros(images), np.full(images, -1)

    def alike(index: int, among: np.ndarray) -> np.ndarray:
        return similarity(among[index : index + 1], features)[0]

    def cover(likeness: np.ndarray, name: int) -> None:
        better = likeness > covered
        covered[better], nearest[better] = likeness[better], name

    labelled = features[:0] if labelled is None else labelled
    for place in range(len(labelled)):
        cover(alike(place, labelled), images + place)
    heap = []  # gains only shrink, so that one of an earlier round is an upper bound
    for first in range(0, images, BLOCK):
        likeness = similarity(features[first : first + BLOCK], features)
        gains = np.maximum(likeness - covered, 0) @ weights
        heap += [(-gain, first + place) for place, gain in enumerate(gains.tolist())]
    heapify(heap)
    rows: list[tuple[int, float, int, float]] = []
    while heap and len(rows) < number:
        index = heappop(heap)[1]
        likeness = alike(index, features)
        gain = float(np.maximum(likeness - covered, 0) @ weights)
        if heap and gain < -heap[0][0]:
            heappush(heap, (-gain, index))
            continue
        rows.append((index, gain, int(nearest[index]), float(covered[index])))
        cover(likeness, index)
    columns = list(zip(*rows)) or [()] * 4
    kinds = (np.int64, np.float64, np.int64, np.float64)
    return LabelChoice(*(np.array(column, kind) for column, kind in zip(columns, kinds)))
