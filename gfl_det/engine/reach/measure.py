"""Measurement of ATSS positives on a dataset, and of the distances to their gt edges.

Boxes are used as in training: valid ones, in resized images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gfl_det.datasets.annotations import (
    add_absent,
    check_ids,
    check_structure,
    match_classes,
    parse,
    usable_boxes,
)
from gfl_det.datasets.tidying import tidy
from gfl_det.engine.reach.settings import Resizing
from gfl_det.errors import DataError
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.models.assigners.lattice import CellRectangle, Lattice, make_lattice, valid_rectangle
from gfl_det.models.heads.loss import TARGET_MARGIN
from gfl_det.ops.boxes import boxes_to_distances, xywh_to_xyxy

LARGEST = 128  # larger reg_max values are counted together
BATCH_GTS = 4096  # per call: about ten MiB of work memory
BATCH_CELLS = 2**21  # over all images of a call: 16 MiB, which a C library keeps and reuses

Progress = Callable[[int, int], None]  # gt boxes done, gt boxes in total


class ResizedBoxes(NamedTuple):
    """Boxes of many images, grouped by image."""

    image_wh: np.ndarray  # (I, 2) int, px, after resizing
    image: np.ndarray  # (N,) int64, ascending
    xyxy: np.ndarray  # (N, 4) float32, px, after resizing
    num_classes: int
    dropped: str | None  # why other boxes were dropped

    def size(self) -> np.ndarray:
        """Square roots of the areas ``(N,)``, px."""
        return np.sqrt((self.xyxy[:, 2:] - self.xyxy[:, :2]).clip(min=0).prod(1))

    def sample(self, count: int, random: np.random.Generator) -> ResizedBoxes:
        """About ``count`` boxes: all boxes of randomly drawn images."""
        if len(self.xyxy) <= count:
            return self
        number = np.bincount(self.image, minlength=len(self.image_wh))
        order = random.permutation(np.flatnonzero(number))
        kept = np.sort(order[: int(np.searchsorted(number[order].cumsum(), count)) + 1])
        new_index = np.full(len(self.image_wh), -1)
        new_index[kept] = np.arange(len(kept))
        image = new_index[self.image]
        mine = image >= 0
        return self._replace(image_wh=self.image_wh[kept], image=image[mine], xyxy=self.xyxy[mine])


def read_boxes(
    path: str, resizing: Resizing, random: np.random.Generator, classes: list[str] | None = None
) -> ResizedBoxes:
    """Read a COCO annotation file.

    Args:
        path: Path of the JSON file.
        resizing: Resizing of its images.
        random: Generator for random resizing.
        classes: Classes to use; None: all.

    Raises:
        DataError: If the file is missing, is not a COCO file, or holds no boxes to train on.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}.') from error
    dataset, _ = tidy(parse(content, path), path)
    check_structure(dataset, path)
    check_ids(dataset, path)
    names = classes or [category['name'] for category in dataset['categories']]
    ids = match_classes(names, add_absent(dataset['categories'], names)[0], path)
    entries, report = usable_boxes(dataset, ids)
    entries = [entry for entry in entries if not entry.get('iscrowd')]
    if not entries:
        raise DataError(f'{path} has no boxes to train on: give annotations of objects.')
    place = {image['id']: index for index, image in enumerate(dataset['images'])}
    old = np.array([(image['width'], image['height']) for image in dataset['images']], float)
    new = resizing.sizes(old, random)
    image = np.array([place[entry['image_id']] for entry in entries])
    xywh = np.array([entry['bbox'] for entry in entries], float)
    order = np.argsort(image, kind='stable')
    image, xywh = image[order], xywh[order]
    limit = np.tile(new[image], 2)
    corners = xywh_to_xyxy(xywh) * np.tile((new / old)[image], 2)
    xyxy = np.clip(corners, 0, limit)  # mmdet clips when resizing
    return ResizedBoxes(new, image, xyxy.astype(np.float32), len(names), report.warning())


class PriorPyramid(NamedTuple):
    """Square priors on levels, ``scale * stride`` px wide, one per cell."""

    strides: tuple[int, ...]
    scale: float
    pad: int = 32  # images are padded to multiples of this many px

    @property
    def base(self) -> list[list[float]]:
        """Prior of cell (0, 0) per level, xyxy px."""
        halves = [self.scale * stride / 2 for stride in self.strides]
        return [[-half, -half, half, half] for half in halves]

    def cells(self, image_wh: np.ndarray) -> float:
        """Number of cells on all levels, averaged over images ``(I, 2)``."""
        padded = np.ceil(image_wh / self.pad) * self.pad
        cells = [np.ceil(padded / stride).prod(1) for stride in self.strides]
        return float(np.sum(cells, axis=0).mean()) if len(image_wh) else 0.0


class Measured(NamedTuple):
    """Positives and unassigned gt boxes of a pyramid on a dataset."""

    pyramid: PriorPyramid
    needed: np.ndarray  # (L, LARGEST + 1) positives by the smallest reg_max that covers their edges
    unassigned: np.ndarray  # (N,) bool, gt boxes without a positive

    def clipped(self, reg_max: int) -> np.ndarray:
        """Shares ``(L,)`` of a level's positives with an edge beyond a reg_max; 0 if none."""
        beyond = self.needed[:, reg_max + 1 :].sum(1)
        return beyond / np.maximum(self.needed.sum(1), 1)

    def clipped_of_all(self, reg_max: int) -> float:
        """Share of all positives with an edge beyond a reg_max."""
        return float(self.needed[:, reg_max + 1 :].sum() / max(1, self.needed.sum()))

    def least_reg_max(self, tolerance: float) -> int:
        """Smallest reg_max, from 2, with at most this share of clipped positives."""
        enough = (n for n in range(2, LARGEST) if self.clipped_of_all(n) <= tolerance)
        return next(enough, LARGEST)


def measure(
    boxes: ResizedBoxes,
    pyramid: PriorPyramid,
    assigner: ATSSAssigner,
    progress: Progress | None = None,
) -> Measured:
    """Assign every box as in training, and measure the edges of the positives.

    Args:
        boxes: Boxes of the dataset.
        pyramid: Pyramid of priors.
        assigner: Assigner of the config.
        progress: Called after each batch.
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
    """Ranges of boxes that cover whole images, up to this number of images."""
    starts = np.flatnonzero(np.diff(image, prepend=-1)).tolist()  # starts of images
    ends = [*starts[1:], len(image)]
    first = 0
    for start, end in zip(starts, ends):
        too_many = end - first > BATCH_GTS or image[end - 1] - image[first] >= most
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
    """Number of cells per level of an image, from its padded size."""
    meta = dict(pad_shape=(height, width), img_shape=(height, width))
    return [
        valid_rectangle(base, (s, s), (math.ceil(height / s), math.ceil(width / s)), meta, -1)
        for base, s in zip(pyramid.base, pyramid.strides)
    ]
