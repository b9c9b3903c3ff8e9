"""COCO's matching of detections with gt boxes, of all images and classes at once.

Source: the evaluation of COCO (https://cocodataset.org/#detection-eval), whose greedy choice goes
through the detections of an image and class one by one. Here the first detections of all images and
classes choose together, then the second ones, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from gfl_det.errors import ConfigError
from gfl_det.evaluation.detections import Detections, GroundTruth

MAX_DETS = 100  # detections that count of an image and class
PIECE = 2**20  # detections at a time where temporary arrays would be large
MAX_AREA = 1e10  # px; COCO judges no detection beyond it, or below 0, that matches nothing
NEVER = np.iinfo(np.int64).max
TRUE, FALSE, IGNORED = 1, 0, -1
ZeroOverlap = Literal['oracle', 'reject']
ZERO_OVERLAPS = ('oracle', 'reject')


class Matches(NamedTuple):
    """What became of the N detections that count, at one threshold.

    They are sorted by class and descending score; equal scores by image and place in the list.
    """

    tau: float  # the threshold of the IoU
    row: np.ndarray  # (N,) int64, index of each in the detections that were matched
    label: np.ndarray  # (N,) int64, from parts int32
    scores: np.ndarray  # (N,) float64, from parts float32 where that is exact
    state: np.ndarray  # (N,) int8: TRUE, FALSE or IGNORED (in a crowd, or an area below 0)
    iou: np.ndarray  # (N,) float64, with the gt box of a TRUE one; else 0
    gt: np.ndarray  # (N,) int64, index of the gt of a TRUE one; else -1
    gt_counts: np.ndarray  # (K,) int64, gts of each class without crowds

    @property
    def truth(self) -> np.ndarray:
        """The former name of ``gt``."""
        return self.gt

    @property
    def truths(self) -> np.ndarray:
        """The former name of ``gt_counts``."""
        return self.gt_counts

    def judged(self) -> np.ndarray:
        """Mask ``(N,)`` of those that are right or wrong, of classes that have gt boxes."""
        return (self.state != IGNORED) & (self.gt_counts[self.label] > 0)

    def of_class(self, label: int) -> Matches:
        """Those of one class; ``gt_counts`` stays whole."""
        begin, end = self._ends([label, label + 1])
        return self._rows(begin, end)

    def pieces(self, size: int = PIECE) -> Iterator[Matches]:
        """Consecutive parts of ``size`` detections, the last one smaller, scores as float64.

        What is computed piece by piece needs little memory beside the detections.
        """
        for begin in range(0, max(1, len(self.label)), size):
            part = self._rows(begin, begin + size)
            yield part._replace(scores=part.scores.astype(float, copy=False))

    def groups(self, size: int = PIECE) -> Iterator[Matches]:
        """Views of consecutive whole classes, at least ``size`` detections each but the last."""
        begin = 0
        for end in self._ends(np.arange(1, len(self.gt_counts))):
            if end - begin >= size:
                yield self._rows(begin, end)
                begin = end
        yield self._rows(begin, len(self.label))

    def _ends(self, labels: Sequence[int] | np.ndarray) -> list[int]:
        # Keys of another type would copy all labels.
        keys = np.asarray(labels, self.label.dtype)
        return np.searchsorted(self.label, keys).tolist()

    def _rows(self, begin: int, end: int) -> Matches:
        part = slice(begin, end)
        return self._replace(**{name: getattr(self, name)[part] for name in PER_DETECTION})


PER_DETECTION = ('row', 'label', 'scores', 'state', 'iou', 'gt')


class _Pairs(NamedTuple):
    """Detections with the gt boxes of their image and class, in the order of choice."""

    detection: np.ndarray  # (P,) int64
    gt: np.ndarray  # (P,) int64
    iou: np.ndarray  # (P,) float64
    rank: np.ndarray  # (P,) int64, place of the detection in its image and class


def match(
    detections: Detections,
    truths: GroundTruth,
    taus: Sequence[float],
    zero_overlap: ZeroOverlap = 'oracle',
    max_dets: int = MAX_DETS,
) -> list[Matches]:
    """Match at each threshold.

    By descending score, each detection takes the free gt box of its image and class with the
    largest IoU of at least tau, the last one at a tie, or else a crowd, which is never used up and
    makes it IGNORED.

    Args:
        detections: Detections in any order.
        truths: Ground truth of the same images and classes.
        taus: thresholds in [0, 1].
        zero_overlap: at tau = 0 an IoU of 0 is a match ('oracle', as published figures have it), or
            is none ('reject').
        max_dets: the best of an image and class that count.

    Returns:
        One for each threshold.

    Raises:
        ConfigError: If a threshold or ``zero_overlap`` is out of range.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square * [1, 1, 1, 0.75], np.array([0.9]))
        >>> (matches,) = match(found, gts, taus=[0.5])
        >>> matches.state, matches.iou
        (array([1], dtype=int8), array([0.75]))
    """
    if zero_overlap not in ZERO_OVERLAPS:
        raise ConfigError(f'zero_overlap is one of {ZERO_OVERLAPS}, not {zero_overlap!r}')
    for tau in taus:
        if not 0 <= tau <= 1:
            raise ConfigError(f'a threshold of the IoU lies in [0, 1], not {tau!r}')
    rows, rank = _ranked(detections, len(truths.category_ids), max_dets)
    chosen = detections.take(rows)
    # An IoU of exactly tau matches; 1 - 1e-10 because a perfect one may be rounded.
    least = np.minimum(np.asarray(taus, float), 1 - 1e-10)
    if zero_overlap == 'reject':
        least = np.maximum(least, np.nextafter(0, 1))
    pairs = _pairs(chosen, rank, truths, least.min(initial=1))
    state, iou, gt = _choose(pairs, truths, least, len(rows))
    area = chosen.boxes[:, 2] * chosen.boxes[:, 3]
    state[((area < 0) | (area > MAX_AREA))[:, None] & (state == FALSE)] = IGNORED
    order = np.lexsort((chosen.image, -chosen.scores, chosen.label))
    counts = truths.counts()
    found = (rows[order], chosen.label[order], chosen.scores[order])
    return [
        Matches(float(tau), *found, state[order, t], iou[order, t], gt[order, t], counts)
        for t, tau in enumerate(taus)
    ]


def overlaps(boxes: np.ndarray, gts: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of pairs of boxes, and with a crowd the part of the detection that lies in it.

    Args:
        boxes: ``(P, 4)`` detections, xywh px.
        gts: ``(P, 4)``.
        crowd: ``(P,)`` bool.

    Returns:
        ``(P,)`` in [0, 1], equal to pycocotools' to the last digit; 0 without a common area.

    Example:
        >>> box, gt = np.array([[0.0, 0, 10, 5]]), np.array([[0.0, 0, 10, 10]])
        >>> overlaps(box, gt, crowd=np.array([False])).tolist()
        [0.5]
        >>> overlaps(box, gt, crowd=np.array([True])).tolist()
        [1.0]
    """
    low = np.maximum(boxes[:, :2], gts[:, :2])
    high = np.minimum(boxes[:, 2:] + boxes[:, :2], gts[:, 2:] + gts[:, :2])
    side = high - low
    common = side[:, 0] * side[:, 1]
    area = boxes[:, 2] * boxes[:, 3]
    union = np.where(crowd, area, area + gts[:, 2] * gts[:, 3] - common)
    overlap = (side > 0).all(1)
    return np.divide(common, union, out=np.zeros(len(boxes)), where=overlap)


def _ranked(
    detections: Detections, num_classes: int, max_dets: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best detections of each image and class, sorted, and their places there ``(N,)``."""
    group = detections.image * num_classes + detections.label
    order = np.lexsort((-detections.scores, group))  # stable: equal scores in the list's order
    group = group[order]
    rank = np.arange(len(order)) - np.searchsorted(group, group)
    kept = rank < max_dets
    return order[kept], rank[kept]


def _pairs(detections: Detections, rank: np.ndarray, gts: GroundTruth, least: float) -> _Pairs:
    """All pairs whose IoU is at least ``least``: rank by rank, the best of each detection first."""
    classes = len(gts.category_ids)
    group = gts.image * classes + gts.label
    by_group = np.argsort(group, kind='stable')
    wanted = detections.image * classes + detections.label
    first = np.searchsorted(group[by_group], wanted)
    number = np.searchsorted(group[by_group], wanted, side='right') - first
    detection = np.repeat(np.arange(len(wanted)), number)
    begin = np.cumsum(number) - number
    gt = by_group[np.arange(len(detection)) - np.repeat(begin - first, number)]
    iou = overlaps(detections.boxes[detection], gts.boxes[gt], gts.crowd[gt])
    near = iou >= least
    detection, gt, iou = detection[near], gt[near], iou[near]
    order = np.lexsort((-gt, -iou, gts.crowd[gt], detection, rank[detection]))
    detection = detection[order]
    return _Pairs(detection, gt[order], iou[order], rank[detection])


def _choose(
    pairs: _Pairs, gts: GroundTruth, least: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States, IoUs and gt boxes, each ``(N, T)``, after every detection has chosen."""
    state = np.full((number, len(least)), FALSE, np.int8)
    found_iou = np.zeros((number, len(least)))
    found_gt = np.full((number, len(least)), -1)
    free = np.ones((len(gts.label), len(least)), bool)
    enough = pairs.iou[:, None] >= least
    starts = np.flatnonzero(np.diff(pairs.rank, prepend=-1))
    for begin, end in zip(starts, [*starts[1:], len(pairs.rank)]):
        gt, detection = pairs.gt[begin:end], pairs.detection[begin:end]
        possible = enough[begin:end] & free[gt]
        heads = np.flatnonzero(np.diff(detection, prepend=-1))
        place = np.where(possible, np.arange(end - begin)[:, None], NEVER)
        best = np.minimum.reduceat(place, heads, axis=0)  # (D, T): the first possible one
        row, t = np.nonzero(best != NEVER)
        pair = best[row, t]
        taken, who = gt[pair], detection[heads[row]]
        crowd = gts.crowd[taken]
        state[who, t] = np.where(crowd, IGNORED, TRUE)
        found_iou[who, t] = np.where(crowd, 0, pairs.iou[begin:end][pair])
        found_gt[who, t] = np.where(crowd, -1, taken)
        free[taken[~crowd], t[~crowd]] = False
    return state, found_iou, found_gt
