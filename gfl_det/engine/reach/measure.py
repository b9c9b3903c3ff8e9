"""Measurement of ATSS positives on a dataset, and of the distances to their gt edges.

The head, the assigner and the image sizes are read from the config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
from gfl_det.errors import ConfigError, DataError
from gfl_det.models.assigners import ATSSAssigner
from gfl_det.models.assigners.closed_form import (
    CellRectangle,
    Lattice,
    make_lattice,
    valid_rectangle,
)
from gfl_det.models.heads.loss import TARGET_MARGIN
from gfl_det.ops.boxes import boxes_to_distances, xywh_to_xyxy
from gfl_det.registry import TASK_UTILS
from gfl_det.utils.config import walk

MOST = 16  # reg_max of the paper; larger distances are better served by a coarser level
# Defaults of the paper.
DEFAULTS = dict(strides=(8, 16, 32, 64, 128), anchor_scale=8.0, reg_max=MOST, topk=9, pad=32)
Scale = tuple[int, int]  # width, height in px, the order of mmdet's configs

# Substrings in names of transforms that move boxes in ways not modelled here.
MOVING = ('Affine', 'CopyPaste', 'Crop', 'Expand', 'MixUp', 'Mosaic', 'Rotate', 'Shear', 'Transl')


def head_of(model: dict[str, Any], name: str) -> dict[str, Any]:
    """Read strides, anchor scale, reg_max and padding of the first head with one prior per cell.

    Args:
        model: Model of a config.
        name: Name of the config, for the message.

    Raises:
        ConfigError: If there is no such head, or its priors are not at cell centres.
    """
    for _, node in walk(model, 'model'):
        anchors = node.get('anchor_generator')
        if not isinstance(anchors, dict) or 'strides' not in anchors:
            continue
        generator = TASK_UTILS.build(dict(anchors))
        if not hasattr(generator, 'base_anchors') or set(generator.num_base_priors) != {1}:
            break  # points, or several priors per cell
        if generator.center_offset:
            raise ConfigError(
                f'{name} shifts its priors by center_offset={generator.center_offset}, which is '
                'not supported: leave out --config and give --strides and --anchor-scale.'
            )
        sides = [float(base[0, 2] - base[0, 0]) for base in generator.base_anchors]
        strides = [int(x) for x, _ in generator.strides]
        scales = {round(side / stride, 4) for side, stride in zip(sides, strides)}
        if len(scales) != 1:
            break
        pad = (model.get('data_preprocessor') or {}).get('pad_size_divisor', 1)
        found = dict(strides=strides, anchor_scale=scales.pop(), pad=pad)
        return dict(found, reg_max=node.get('reg_max', DEFAULTS['reg_max']))
    raise ConfigError(
        f'{name} has no head with one square prior per cell: insert ours with gfl-det swap-head.'
    )


def assigner_of(model: dict[str, Any]) -> dict[str, Any]:
    """Read the ATSS settings that affect positives without ignored gt boxes.

    Raises:
        ConfigError: If the config uses another assigner.
    """
    for _, node in walk(model, 'model'):
        if str(node.get('type', '')).rpartition('.')[2] == 'ATSSAssigner':
            return {key: node[key] for key in ('topk', 'with_best_prior') if key in node}
    raise ConfigError('ATSS does not assign the priors of this config')


class Resizing(NamedTuple):
    """Resizing of images.

    Attributes:
        scales: Scales, one of which is drawn per image; the two ends of a range if ``between``;
            empty: no resizing.
        keep_ratio: Fit the image into the scale, long side along long side.
        between: Draw width and height between those of two scales.
        ratios: Range of a random factor for the scale.
    """

    scales: tuple[Scale, ...] = ()
    keep_ratio: bool = True
    between: bool = False
    ratios: tuple[float, float] = (1.0, 1.0)

    def __str__(self) -> str:
        if not self.scales:
            return 'as they are'
        ends = (' to ' if self.between else ', ').join(f'{w}x{h}' for w, h in self.scales)
        times = '' if self.ratios == (1, 1) else f' times {self.ratios[0]:g} to {self.ratios[1]:g}'
        return f'resized to {ends}{times}{", ratio kept" if self.keep_ratio else ""}'

    def sizes(self, image_wh: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Resized widths and heights ``(I, 2)`` int, px, for images of ``image_wh`` ``(I, 2)``."""
        if not self.scales or not len(image_wh):
            return np.maximum(np.round(image_wh), 1).astype(int)
        scale = self._draw(len(image_wh), random)
        if not self.keep_ratio:
            return scale
        long, short = scale.max(1), scale.min(1)
        factor = np.minimum(long / image_wh.max(1), short / image_wh.min(1))
        return np.maximum((image_wh * factor[:, None] + 0.5).astype(int), 1)  # as mmcv rounds

    def _draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        scales = np.array(self.scales)
        if self.between:
            return random.integers(scales.min(0), scales.max(0) + 1, (count, 2))
        scale = scales[random.integers(0, len(scales), count)]
        return (scale * random.uniform(*self.ratios, (count, 1))).astype(int)


def resizing_of(pipeline: list[Any]) -> tuple[Resizing, list[str]]:
    """Read the resizing of a training pipeline, and the transforms that are not modelled.

    Raises:
        ConfigError: If no transform resizes like mmdet's Resize, RandomResize or
            RandomChoiceResize.
    """
    steps = [node for _, node in walk(pipeline, '') if isinstance(node.get('type'), str)]
    moving = [step['type'] for step in steps if any(part in step['type'] for part in MOVING)]
    for step in steps:
        found = _resizing(step)
        if found is not None:
            return found, moving
    raise ConfigError(
        'The training pipeline of --config has no Resize, RandomResize or RandomChoiceResize with '
        'a scale: give --scale W H.'
    )


def _resizing(step: dict[str, Any]) -> Resizing | None:
    kind, keep = step['type'].rpartition('.')[2], bool(step.get('keep_ratio', False))
    if kind == 'Resize' and step.get('scale'):
        scale = step['scale']
        return Resizing(((scale, scale) if isinstance(scale, int) else tuple(scale),), keep)
    if kind == 'RandomChoiceResize':
        scales = step['scales'] if isinstance(step['scales'], list) else [step['scales']]
        pairs = ((each, each) if isinstance(each, int) else tuple(each) for each in scales)
        return Resizing(tuple(pairs), keep)
    if kind == 'RandomResize' and step.get('scale'):
        if isinstance(step['scale'][0], (list, tuple)):
            return Resizing(tuple(map(tuple, step['scale'])), keep, between=True)
        ratios = tuple(step.get('ratio_range') or (1.0, 1.0))
        return Resizing((tuple(step['scale']),), keep, ratios=ratios)
    return None


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
