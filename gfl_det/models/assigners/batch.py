"""Assignment of a batch: in closed form where it applies, else image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models.task_modules.assigners import BaseAssigner
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.errors import ConfigError
from gfl_det.models.assigners.atss import ATSSAssigner
from gfl_det.models.assigners.lattice import CellRectangle, make_lattice, valid_rectangle
from gfl_det.models.assigners.positives import LevelSlots, Positives
from gfl_det.ops.boxes import box_centres


class PriorLevels(NamedTuple):
    """A pyramid's priors, one a cell, as far as they are known before any image."""

    generator: AnchorGenerator
    base: list[list[float]]  # per level xyxy px, the prior of cell (0, 0)
    strides: list[tuple[int, int]]  # px along x and y

    @classmethod
    def of(cls, generator: AnchorGenerator) -> PriorLevels:
        """The priors that a generator with one prior a cell makes."""
        base = torch.cat(list(generator.base_anchors)).tolist()
        return cls(generator, base, list(generator.strides))


class Grid(NamedTuple):
    """A batch's grid of priors and, for each image, the cells that count."""

    priors: PriorLevels
    sizes: Sequence[tuple[int, int]]  # rows and columns
    rectangles: list[list[CellRectangle]]  # per image and level
    device: torch.device


class Match(NamedTuple):
    """Positives of a batch, and the priors that count for nothing."""

    positives: Positives
    ignored: list[Tensor] | None  # per level (B, H, W) bool; None: none are


def make_grid(
    priors: PriorLevels, maps: Sequence[Tensor], metas: Sequence[dict], allowed_border: int
) -> Grid:
    """The grid of a pyramid's maps.

    Args:
        priors: of the pyramid.
        maps: per level ``(B, C, H, W)``.
        metas: per image ``pad_shape`` and ``img_shape``.
        allowed_border: px by which a prior may leave its image; negative: any.

    Returns:
        The grid, on the maps' device.

    Raises:
        ConfigError: an image has no valid prior at all.
    """
    sizes = [(level.shape[-2], level.shape[-1]) for level in maps]
    rectangles = []
    for meta in metas:
        levels = [
            valid_rectangle(*level, meta, allowed_border)
            for level in zip(priors.base, priors.strides, sizes)
        ]
        if all(right <= left or bottom <= top for left, top, right, bottom in levels):
            raise ConfigError(
                f'no prior lies inside image {meta.get("img_path", "")} of shape '
                f'{tuple(meta["img_shape"][:2])}: set train_cfg.allowed_border=-1 or use larger '
                'images'
            )
        rectangles.append(levels)
    return Grid(priors, sizes, rectangles, maps[0].device)


def match_batch(
    assigner: BaseAssigner,
    grid: Grid,
    truths: Tensor,
    image: Tensor,
    instances: Sequence[InstanceData],
    ignored: Sequence[InstanceData | None],
) -> Match:
    """Assign the priors of a batch.

    Args:
        assigner: ours, or any with mmdet's ``assign``.
        grid: the priors.
        truths: ``(T, 4)`` xyxy px, of all images.
        image: ``(T,)`` int64.
        instances: per image, ``bboxes`` and ``labels``: the same truths.
        ignored: per image, ``bboxes`` of regions whose objects are not labelled, or None.

    Returns:
        The positives; they are ordered by truth in the closed form, by prior otherwise.
    """
    if isinstance(assigner, ATSSAssigner) and assigner.has_closed_form:
        regions = [None if each is None else each.bboxes for each in ignored]
        if not any(assigner.ignores(each) for each in regions):
            lattice = make_lattice(
                grid.priors.base, grid.priors.strides, grid.sizes, grid.rectangles, grid.device
            )
            return Match(assigner.assign_batch(lattice, truths, image), None)
    return _match_image_by_image(assigner, grid, instances, ignored)


def _match_image_by_image(
    assigner: BaseAssigner,
    grid: Grid,
    instances: Sequence[InstanceData],
    ignored: Sequence[InstanceData | None],
) -> Match:
    device = grid.device
    priors = torch.cat(grid.priors.generator.grid_priors(grid.sizes, device=device))
    images, chosen, truth, iou, skipped = [], [], [], [], []
    first_truth = 0
    for index, (truths, regions) in enumerate(zip(instances, ignored)):
        inside = _inside(grid, index)
        kept = torch.cat(inside).nonzero().squeeze(1)
        counts = [int(each.sum()) for each in inside]
        result = assigner.assign(InstanceData(priors=priors[kept]), counts, truths, regions)
        positive = (result.gt_inds > 0).nonzero().squeeze(1)
        images.append(torch.full_like(positive, index))
        chosen.append(kept[positive])
        truth.append(result.gt_inds[positive] - 1 + first_truth)
        iou.append(result.max_overlaps[positive])
        first_truth += len(truths.labels)
        mask = torch.zeros(len(priors), dtype=torch.bool, device=device)
        mask[kept[result.gt_inds < 0]] = True
        skipped.append(mask)
    image, prior = torch.cat(images), torch.cat(chosen)
    level, cell = _place(grid, prior)
    slots = [(level == index).nonzero().squeeze(1) for index in range(len(grid.sizes))]
    positives = Positives(
        valid=torch.ones_like(prior, dtype=torch.bool),
        image=image,
        level=level,
        cell=cell,
        truth=torch.cat(truth),
        iou=torch.cat(iou),
        centre=box_centres(priors[prior]),
        by_level=[LevelSlots(image[slot], cell[slot], slot) for slot in slots],
    )
    levels = torch.stack(skipped).split([rows * columns for rows, columns in grid.sizes], dim=1)
    masks = [mask.unflatten(1, size) for mask, size in zip(levels, grid.sizes)]
    return Match(positives, masks)


def _place(grid: Grid, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Level and cell of priors by their index among those of all levels."""
    counts = [rows * columns for rows, columns in grid.sizes]
    first = torch.tensor([sum(counts[:level]) for level in range(len(counts))])
    first = first.to(prior.device)
    level = torch.searchsorted(first, prior, right=True) - 1
    return level, prior - first[level]


def _inside(grid: Grid, image: int) -> list[Tensor]:
    """Per level ``(H * W,)`` bool: the cells that count for an image."""
    levels = []
    for size, (left, top, right, bottom) in zip(grid.sizes, grid.rectangles[image]):
        inside = torch.zeros(size, dtype=torch.bool, device=grid.device)
        inside[top:bottom, left:right] = True
        levels.append(inside.flatten())
    return levels
