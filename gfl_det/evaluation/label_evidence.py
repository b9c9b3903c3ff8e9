"""Evidence against labels from the detections of an image: one to three numbers per kind of error.

The larger a number, the more suspicious the label. All detections are used, including those that
NMS would suppress: several boxes that agree are evidence, and the mean of their edges is more
accurate than the edge of the best box.

====================  ==============================================================================
loose or shifted      distance of the edge from the mean of the supporting detections, in standard
                      deviations of their edges' distributions and of their disagreement, times the
                      best score
wrong class           best score of another class; best score of the label's class, negated
missing               score of a detection without a label; distance from labels; number of boxes
                      that overlap there
spurious              no detection of any class overlaps, and the label is large enough to be found
duplicate             IoU with another label of the class
====================  ==============================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gfl_det.compat.ops import greedy_nms
from gfl_det.datasets.table import CocoTable
from gfl_det.evaluation.detections import sorted_rows
from gfl_det.evaluation.matching import overlaps
from gfl_det.ops.boxes import xywh_to_xyxy

LEAST_IOU = 0.5  # minimum IoU of a label and a detection that counts for its edges or class
FAVOUR = 6  # exponent of the IoU: detections of neighbouring objects hardly count
NOTICED = 0.1  # minimum score of a detection that counts as an object
NMS_IOU = 0.6  # for detections that may be missing labels
LEAST_STD_PX = 0.1  # even a distribution in a single bin leaves some uncertainty
FLOOR = 0.05  # added before a logarithm, so that smaller deviations hardly differ


class UncertainDetections(NamedTuple):
    """N detections in any order, with the uncertainty of their edges."""

    image: np.ndarray  # (N,) int64, index of the image
    label: np.ndarray  # (N,) int64, index of the class
    boxes: np.ndarray  # (N, 4) float64, xywh px
    scores: np.ndarray  # (N,) float64 in [0, 1]
    edge_std: np.ndarray  # (N, 4) float64, px: left, top, right, bottom

    def take(self, chosen: np.ndarray) -> UncertainDetections:
        """Those of a mask or of indices, in order."""
        return UncertainDetections(*(values[chosen] for values in self))


class Labels(NamedTuple):
    """M annotated boxes."""

    image: np.ndarray  # (M,) int64, index of the image
    label: np.ndarray  # (M,) int64, index of the class
    boxes: np.ndarray  # (M, 4) float64, xywh px

    def take(self, chosen: np.ndarray | slice) -> Labels:
        """Those of a mask or of indices, in order."""
        return Labels(*(values[chosen] for values in self))


class EdgeSupport(NamedTuple):
    """Edges of each label according to detections of its class; NaN without a detection."""

    edges: np.ndarray  # (M, 4) px, mean
    std: np.ndarray  # (M, 4) px, from the distributions and from the disagreement of detections
    score: np.ndarray  # (M,) best score, 0 without a detection
    mass: np.ndarray  # (M,) sum of scores, weighted by overlap


class ClassSupport(NamedTuple):
    """Best support of a label's class and of another one: score times IoU, 0 without any."""

    own: np.ndarray  # (M,)
    other: np.ndarray  # (M,)
    detection: np.ndarray  # (M,) int64, the best of another class; -1 without one


def image_pairs(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of entries with the same image, given the images of both lists.

    Example:
        >>> image_pairs(np.array([0, 1]), np.array([1, 0, 1]))
        (array([0, 1, 1]), array([1, 0, 2]))
    """
    order = np.argsort(other, kind='stable')
    first = np.searchsorted(other[order], one)
    number = np.searchsorted(other[order], one, side='right') - first
    left = np.repeat(np.arange(len(one)), number)
    begin = np.cumsum(number) - number - first
    return left, order[np.arange(len(left)) - np.repeat(begin, number)]


def near_pairs(
    one: Labels, other: Labels | UncertainDetections, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs in the same image with at least this IoU, and the IoU.

    Example:
        >>> image = label = np.zeros(1, int)
        >>> one = Labels(image, label, np.array([[0.0, 0, 10, 10]]))
        >>> near_pairs(one, one._replace(boxes=one.boxes * [1, 1, 1, 0.5]), least=0.4)[2]
        array([0.5])
    """
    left, right = image_pairs(one.image, other.image)
    iou = overlaps(one.boxes[left], other.boxes[right], np.zeros(len(left), bool))
    near = iou >= least
    return left[near], right[near], iou[near]


def largest(place: np.ndarray, values: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest value per place (0 if it has none), and its index (-1 if none).

    Args:
        place: ``(P,)`` in [0, number).
        values: ``(P,)``, positive.
        number: Number of places.

    Example:
        >>> largest(np.array([0, 2, 2]), np.array([5.0, 7.0, 9.0]), 3)
        (array([5., 0., 9.]), array([ 0, -1,  2]))
    """
    order = np.lexsort((-values, place))
    places, first = np.unique(place[order], return_index=True)
    index = np.full(number, -1)
    index[places] = order[first]
    return np.where(index >= 0, np.append(values, 0.0)[index], 0.0), index


def edge_support(labels: Labels, found: UncertainDetections) -> EdgeSupport:
    """Mean and standard deviation of each label's edges according to detections of its class.

    Example:
        >>> image = label = np.zeros(2, int)
        >>> boxes = np.array([[0.0, 0, 10, 10], [0, 0, 12, 10]])
        >>> found = UncertainDetections(image, label, boxes, np.full(2, 0.8), np.ones((2, 4)))
        >>> support = edge_support(Labels(image[:1], label[:1], boxes[1:]), found)
        >>> support.edges.round(1), support.score
        (array([[ 0. ,  0. , 11.5, 10. ]]), array([0.8]))
    """
    place, row, iou = near_pairs(labels, found, LEAST_IOU)
    same = labels.label[place] == found.label[row]
    place, row, iou = place[same], row[same], iou[same]
    weight = found.scores[row] * iou**FAVOUR
    number = len(labels.image)
    mass = np.bincount(place, weight, number)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = [np.bincount(place, weight * column, number) for column in values.T]
        with np.errstate(invalid='ignore', divide='ignore'):
            return np.stack(sums, 1) / mass[:, None]

    edges = xywh_to_xyxy(found.boxes)[row]
    centre = mean(edges)
    spread = mean(found.edge_std[row]) ** 2 + mean((edges - centre[place]) ** 2)
    score, _ = largest(place, found.scores[row], number)
    return EdgeSupport(centre, np.sqrt(spread + LEAST_STD_PX**2), score, mass)


def loose_evidence(labels: Labels, support: EdgeSupport) -> tuple[np.ndarray, np.ndarray]:
    """Evidence that an edge is loose ``(M,)``, NaN without support, and deviations ``(M, 4)``.

    Example:
        >>> one = np.zeros(1, int)
        >>> labels = Labels(one, one, np.array([[0.0, 0, 10, 10]]))
        >>> edges, std = np.array([[0.0, 0, 12, 10]]), np.ones((1, 4))
        >>> evidence, away = loose_evidence(labels, EdgeSupport(edges, std, np.ones(1), np.ones(1)))
        >>> away
        array([[0., 0., 2., 0.]])
    """
    deviations = np.abs(xywh_to_xyxy(labels.boxes) - support.edges) / support.std
    return np.log(support.score * deviations.max(1) + FLOOR), deviations


def class_support(labels: Labels, found: UncertainDetections) -> ClassSupport:
    """Best score times IoU for the label's class and for other classes.

    Example:
        >>> image, label = np.zeros(2, int), np.array([0, 1])
        >>> boxes = np.array([[0.0, 0, 10, 10]] * 2)
        >>> found = UncertainDetections(
        ...     image, label, boxes, np.array([0.2, 0.9]), np.ones((2, 4))
        ... )
        >>> class_support(Labels(image[:1], label[:1], boxes[:1]), found)[:2]
        (array([0.2]), array([0.9]))
    """
    place, row, iou = near_pairs(labels, found, LEAST_IOU)
    value, number = found.scores[row] * iou, len(labels.image)
    same = labels.label[place] == found.label[row]
    own, _ = largest(place[same], value[same], number)
    other, index = largest(place[~same], value[~same], number)
    detection = np.where(index >= 0, np.append(row[~same], -1)[index], -1)
    return ClassSupport(own, other, detection)


def class_evidence(support: ClassSupport) -> np.ndarray:
    """Evidence for another class, ``(M, 2)``: its support, and that of the label's class, negated.

    Example:
        >>> found = np.zeros(2, int)
        >>> class_evidence(ClassSupport(np.array([0.1, 0.8]), np.array([0.8, 0.1]), found))
        array([[ 0.8, -0.1],
               [ 0.1, -0.8]])
    """
    return np.stack([support.other, -support.own], 1)


def spurious_evidence(labels: Labels, found: UncertainDetections) -> np.ndarray:
    """Evidence ``(M,)`` that there is no object; less for small objects, which are often missed.

    Example:
        >>> one = np.zeros(1, int)
        >>> labels = Labels(one, one, np.array([[0.0, 0, 10, 10]]))
        >>> found = UncertainDetections(one, one, labels.boxes, np.ones(1), np.ones((1, 4)))
        >>> there = spurious_evidence(labels, found)
        >>> elsewhere = spurious_evidence(labels, found._replace(image=one + 1))
        >>> bool(there < elsewhere)
        True
    """
    found = found.take(found.scores >= NOTICED)
    place, _, iou = near_pairs(labels, found, 1e-9)
    support, _ = largest(place, iou, len(labels.image))
    side = np.sqrt(np.maximum(labels.boxes[:, 2:].prod(1), 1e-6))
    return 0.5 * np.log(side) - 3 * support


def duplicate_evidence(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Largest IoU ``(M,)`` with another label of the same class, and that label (-1 if none).

    Example:
        >>> zeros = np.zeros(2, int)
        >>> duplicate_evidence(Labels(zeros, zeros, np.array([[0.0, 0, 10, 10], [0, 0, 10, 5]])))
        (array([0.5, 0.5]), array([1, 0]))
    """
    place, row, iou = near_pairs(labels, labels, 1e-9)
    kept = (place != row) & (labels.label[place] == labels.label[row])
    value, index = largest(place[kept], iou[kept], len(labels.image))
    return value, np.where(index >= 0, np.append(row[kept], -1)[index], -1)


def best_of_place(found: UncertainDetections, least: float = NOTICED) -> np.ndarray:
    """Detections that remain after NMS per class, with at least this score, best first.

    Example:
        >>> image = label = np.zeros(3, int)
        >>> boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 10, 10]])
        >>> scores, std = np.array([0.5, 0.9, 0.3]), np.ones((3, 4))
        >>> best_of_place(UncertainDetections(image, label, boxes, scores, std))
        array([1, 2])
    """
    order = np.argsort(-found.scores, kind='stable')
    order = order[found.scores[order] >= least]
    group = np.unique(np.stack([found.image, found.label], 1)[order], axis=0, return_inverse=True)
    by_group = np.argsort(group[1].ravel(), kind='stable')
    parts = np.split(order[by_group], np.flatnonzero(np.diff(group[1].ravel()[by_group])) + 1)
    edges = xywh_to_xyxy(found.boxes).astype(np.float32)
    kept = [part[greedy_nms(edges[part], NMS_IOU, 0)] for part in parts if len(part)]
    rows = np.concatenate([*kept, np.zeros(0, np.int64)]).astype(np.int64)
    return rows[np.argsort(-found.scores[rows], kind='stable')]


def missing_evidence(score: np.ndarray, mass: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Evidence ``(N, 3)`` that an object at a detection has no label, as logarithms.

    Args:
        score: ``(N,)`` of the detections.
        mass: ``(N,)``, see :class:`EdgeSupport`.
        iou: ``(N,)`` largest IoU with a label.

    Example:
        >>> free, taken = missing_evidence(np.array([0.9, 0.9]), np.ones(2), np.array([0.0, 0.4]))
        >>> bool(free[2] > taken[2])
        True
    """
    return np.log(np.stack([score, mass, 1 - iou], 1) + 1e-6)


def image_sizes(table: CocoTable) -> np.ndarray:
    """Widths and heights ``(I, 2)`` by sorted id; if unknown, those that contain all boxes.

    Example:
        >>> from gfl_det.datasets.table import table_of
        >>> label = dict(id=1, image_id=7, category_id=3, bbox=[4, 4, 10, 20])
        >>> dataset = dict(images=[dict(id=7)], categories=[dict(id=3)], annotations=[label])
        >>> image_sizes(table_of(dataset, 'the file'))
        array([[14., 24.]])
    """
    reach = np.ones((len(table.image_ids), 2))
    np.maximum.at(reach, table.image, table.boxes[:, :2] + table.boxes[:, 2:])
    sizes = np.where(np.isfinite(table.image_wh), table.image_wh, reach)
    return sizes[sorted_rows(table.image_ids)]
