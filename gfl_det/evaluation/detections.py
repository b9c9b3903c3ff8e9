"""Truths and detections as flat arrays, with what tells one data set from another.

Classes are numbered in the order of the truth file's categories, whatever their ids, and images in
the order of their sorted ids, in which COCO's evaluation runs through them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gfl_det.datasets.annotations import find, listed
from gfl_det.errors import DataError

DIGEST = 16  # hex digits that tell images apart


class Truths(NamedTuple):
    """The ground truth of a data set: I images, K classes, M boxes."""

    image_ids: list[Any]  # I, sorted
    image_keys: list[str]  # I, digests of id and file name
    category_ids: list[Any]  # K, in the file's order
    class_names: list[str]  # K
    image: np.ndarray  # (M,) int64, index into image_ids
    label: np.ndarray  # (M,) int64, index into category_ids
    boxes: np.ndarray  # (M, 4) float64, xywh px
    crowd: np.ndarray  # (M,) bool

    def counts(self) -> np.ndarray:
        """How many boxes that are no crowd each class has, ``(K,)``."""
        return np.bincount(self.label[~self.crowd], minlength=len(self.category_ids))

    def of_classes(self, names: Sequence[str], source: str = 'the truths') -> Truths:
        """The same images with the named classes alone, in the order of the names.

        Raises:
            DataError: a class is unknown.
        """
        unknown = [name for name in names if name not in self.class_names]
        if unknown:
            raise DataError(
                f'{source} has no class named {listed(unknown)}; it has '
                f'{listed(self.class_names)}: correct the names.'
            )
        old = [self.class_names.index(name) for name in names]
        new = np.full(len(self.class_names), -1)
        new[old] = np.arange(len(old))
        label = new[self.label]
        kept = label >= 0
        return self._replace(
            category_ids=[self.category_ids[index] for index in old],
            class_names=list(names),
            image=self.image[kept],
            label=label[kept],
            boxes=self.boxes[kept],
            crowd=self.crowd[kept],
        )


class Detections(NamedTuple):
    """Detections in the order of their file or list."""

    image: np.ndarray  # (N,) int64, index into Truths.image_ids
    label: np.ndarray  # (N,) int64, index into Truths.category_ids
    boxes: np.ndarray  # (N, 4) float64, xywh px
    scores: np.ndarray  # (N,) float64 in [0, 1]

    def take(self, chosen: np.ndarray) -> Detections:
        """Those of a mask or of indices, in order."""
        return Detections(*(values[chosen] for values in self))


def check_detections(detections: Detections, source: str = 'the detections') -> Detections:
    """Return detections whose numbers can be judged.

    Raises:
        DataError: a score is NaN or outside [0, 1], or a box is not finite.
    """
    scores = detections.scores
    wrong = np.flatnonzero(~((scores >= 0) & (scores <= 1)))  # NaN fails both
    if len(wrong):
        number = f' ({len(wrong)} such in all)' if len(wrong) > 1 else ''
        raise DataError(
            f'{source}: entry {wrong[0]} has the score {scores[wrong[0]]}, which is no number in '
            f'[0, 1]{number}: give probabilities after NMS.'
        )
    wrong = np.flatnonzero(~np.isfinite(detections.boxes).all(1))
    if len(wrong):
        raise DataError(
            f'{source}: {find(wrong.tolist())} boxes are not finite: did the training diverge?'
        )
    return detections


def fingerprint(truths: Truths, detections: Detections) -> str:
    """Hex digest of all that a calibrator is fitted on; the order of images does not matter."""
    digest = hashlib.sha256()
    for names in (truths.image_keys, truths.class_names, truths.category_ids):
        digest.update(json.dumps([str(name) for name in names]).encode())
    for array in (*truths[4:], *detections):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def image_key(image_id: Any, file_name: str = '') -> str:
    """Digest that tells an image from others.

    The id alone does not: most converters number the images of each split from 1.
    """
    return hashlib.sha256(json.dumps([str(image_id), file_name]).encode()).hexdigest()[:DIGEST]
