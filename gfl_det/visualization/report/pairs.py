"""Detections with the truths of their image, whatever their classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.detections import Detections, Truths
from gfl_det.evaluation.matching import overlaps

CHUNK = 50_000  # detections whose pairs are held at once


class Pairs(NamedTuple):
    """P pairs of boxes that overlap."""

    detection: np.ndarray  # (P,) int64
    truth: np.ndarray  # (P,) int64
    iou: np.ndarray  # (P,) in (0, 1]

    def take(self, chosen: np.ndarray) -> Pairs:
        """Those of a mask or of indices."""
        return Pairs(*(values[chosen] for values in self))


def pairs_in_images(detections: Detections, truths: Truths) -> Iterator[Pairs]:
    """All pairs of a detection and a truth of one image that overlap, crowds apart.

    Yields:
        The pairs of whole images at a time, so that memory does not grow with the data set.
    """
    candidates = np.flatnonzero(~truths.crowd)
    candidates = candidates[np.argsort(truths.image[candidates], kind='stable')]
    images = truths.image[candidates]
    order = np.argsort(detections.image, kind='stable')
    starts = np.flatnonzero(np.diff(detections.image[order], prepend=-1))
    begin = 0
    for end in [*starts[1:], len(order)]:
        if end - begin < CHUNK and end < len(order):
            continue
        rows, begin = order[begin:end], end
        first = np.searchsorted(images, detections.image[rows])
        count = np.searchsorted(images, detections.image[rows], side='right') - first
        detection = np.repeat(rows, count)
        start = np.cumsum(count) - count
        truth = candidates[np.arange(len(detection)) - np.repeat(start - first, count)]
        none = np.zeros(len(truth), bool)
        iou = overlaps(detections.boxes[detection], truths.boxes[truth], none)
        touching = iou > 0
        yield Pairs(detection[touching], truth[touching], iou[touching])
