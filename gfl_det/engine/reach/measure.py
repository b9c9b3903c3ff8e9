"""The positives that ATSS finds in a data set, and how far the edges of their gt boxes are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from gfl_det.engine.reach.boxes import ResizedBoxes
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.models.assigners.lattice import CellRectangle, Lattice, make_lattice, valid_rectangle
from gfl_det.models.heads.loss import TARGET_MARGIN
from gfl_det.ops.boxes import boxes_to_distances

LARGEST = 128  # reg_max beyond which all are counted together
BATCH_TRUTHS = 4096  # of a call: some ten MiB of work
BATCH_CELLS = 2**21  # of all images of a call: 16 MiB, which a C library keeps and reuses

Progress = Callable[[int, int], None]  # gt boxes done, gt boxes in all


class PriorPyramid(NamedTuple):
    """Square priors on levels: ``scale * stride`` px wide, one per cell."""

    strides: tuple[int, ...]
    scale: float
    pad: int = 32  # images are padded to multiples of this many px

    @property
    def base(self) -> list[list[float]]:
        """The prior of cell (0, 0) of each level, xyxy px."""
        halves = [self.scale * stride / 2 for stride in self.strides]
        return [[-half, -half, half, half] for half in halves]

    def cells(self, image_wh: np.ndarray) -> float:
        """Cells of all levels, the mean over images ``(I, 2)``."""
        padded = np.ceil(image_wh / self.pad) * self.pad
        cells = [np.ceil(padded / stride).prod(1) for stride in self.strides]
        return float(np.sum(cells, axis=0).mean()) if len(image_wh) else 0.0


class Measured(NamedTuple):
    """What a pyramid's priors get of a data set."""

    pyramid: PriorPyramid
    needed: np.ndarray  # (L, LARGEST + 1) positives by the least reg_max that holds their edges
    unassigned: np.ndarray  # (N,) bool, gt boxes without a positive

    def clipped(self, reg_max: int) -> np.ndarray:
        """Shares ``(L,)`` of a level's positives with an edge beyond a reg_max; 0 of none."""
        beyond = self.needed[:, reg_max + 1 :].sum(1)
        return beyond / np.maximum(self.needed.sum(1), 1)

    def clipped_of_all(self, reg_max: int) -> float:
        """Share of all positives with an edge beyond a reg_max."""
        return float(self.needed[:, reg_max + 1 :].sum() / max(1, self.needed.sum()))

    def least_reg_max(self, tolerance: float) -> int:
        """The least reg_max, from 2 on, that clips no larger a share of the positives."""
        enough = (n for n in range(2, LARGEST) if self.clipped_of_all(n) <= tolerance)
        return next(enough, LARGEST)


def measure(
    boxes: ResizedBoxes,
    pyramid: PriorPyramid,
    assigner: ATSSAssigner,
    progress: Progress | None = None,
) -> Measured:
    """Assign every box, as training does, and look at the edges of the positives.

    Args:
        boxes: of the data set.
        pyramid: of priors.
        assigner: of the config.
        progress: called after each batch.
    """
    needed = np.zeros((len(pyramid.strides), LARGEST + 1), int)
    unassigned = np.ones(len(boxes.xyxy), bool)
    strides = torch.tensor(pyramid.strides, dtype=torch.float32)
    images = max(1, int(BATCH_CELLS / max(1, pyramid.cells(boxes.image_wh))))
    for first, last in _batches(boxes.image, images):
        image = torch.from_numpy(boxes.image[first:last])
        gts = torch.from_numpy(boxes.xyxy[first:last])
        begin, end = int(image[0]), int(image[-1]) + 1
        lattice = _lattice(pyramid, boxes.image_wh[begin:end])
        found = assigner.assign_batch(lattice, gts, image - begin)
        level, gt = found.level[found.valid], found.gt[found.valid]
        step = strides[level][:, None]
        edges = boxes_to_distances(found.centre[found.valid] / step, gts[gt] / step)
        # Targets end TARGET_MARGIN before the last bin.
        least = (edges.amax(1) + TARGET_MARGIN).ceil().clamp(0, LARGEST).long()
        counts = torch.bincount(level * (LARGEST + 1) + least, minlength=needed.size)
        needed += counts.view(needed.shape).numpy()
        unassigned[first + np.unique(gt.numpy())] = False
        if progress:
            progress(last, len(boxes.xyxy))
    return Measured(pyramid, needed, unassigned)


def _batches(image: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of boxes, whole images at a time, from no more than so many images."""
    starts = np.flatnonzero(np.diff(image, prepend=-1)).tolist()  # where another image begins
    ends = [*starts[1:], len(image)]
    first = 0
    for start, end in zip(starts, ends):
        too_many = end - first > BATCH_TRUTHS or image[end - 1] - image[first] >= most
        if start > first and too_many:
            yield first, start
            first = start
    yield first, len(image)


def _lattice(pyramid: PriorPyramid, image_wh: np.ndarray) -> Lattice:
    padded = (-(-image_wh // pyramid.pad) * pyramid.pad).tolist()
    width, height = (max(sides) for sides in zip(*padded))
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in pyramid.strides]
    rectangles = [_rectangles(pyramid, *each) for each in padded]
    steps = [(stride, stride) for stride in pyramid.strides]
    return make_lattice(pyramid.base, steps, sizes, rectangles, torch.device('cpu'))


@cache
def _rectangles(pyramid: PriorPyramid, width: int, height: int) -> list[CellRectangle]:
    """An image's cells of each level, from its padded size."""
    meta = dict(pad_shape=(height, width), img_shape=(height, width))
    return [
        valid_rectangle(base, (s, s), (math.ceil(height / s), math.ceil(width / s)), meta, -1)
        for base, s in zip(pyramid.base, pyramid.strides)
    ]
