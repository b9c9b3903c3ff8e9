"""Assignment of a batch: in closed form where it applies, else image by image."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from mmdet.models.task_modules.assigners import BaseAssigner
from mmengine.structures import InstanceData
from torch import Tensor

from ..boxes import box_centres
from ..errors import ConfigError
from .atss import ATSSAssigner
from .lattice import CellRectangle, make_lattice, valid_rectangle
from .positives import LevelSlots, Positives


class Grid(NamedTuple):
    """The pyramid's priors and, for each image, the cells that count."""

    priors: list[Tensor]  # per level (H * W, 4) px
    base: Tensor  # (L, 4) px, the prior of cell (0, 0)
    strides: Sequence[tuple[int, int]]  # px along x and y
    sizes: Sequence[tuple[int, int]]  # rows and columns
    rectangles: list[list[CellRectangle]]  # per image and level


class Match(NamedTuple):
    """Positives of a batch, and the priors that count for nothing."""

    positives: Positives
    ignored: list[Tensor] | None  # per level (B, H, W) bool; None: none are


def image_rectangles(
    base: Sequence[Sequence[float]],
    strides: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    metas: Sequence[dict],
    allowed_border: int,
) -> list[list[CellRectangle]]:
    """Valid cells per image and level (see :func:`.lattice.valid_rectangle`).

    Raises:
        ConfigError: an image has no valid prior at all.
    """
    rectangles = []
    for meta in metas:
        levels = [
            valid_rectangle(*level, meta, allowed_border) for level in zip(base, strides, sizes)
        ]
        if all(right <= left or bottom <= top for left, top, right, bottom in levels):
            raise ConfigError(
                f'no prior lies inside image {meta.get("img_path", "")} of shape '
                f'{tuple(meta["img_shape"][:2])}: set train_cfg.allowed_border=-1 or use larger '
                'images'
            )
        rectangles.append(levels)
    return rectangles


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
            lattice = make_lattice(grid.base, grid.strides, grid.sizes, grid.rectangles)
            return Match(assigner.assign_batch(lattice, truths, image), None)
    return _match_image_by_image(assigner, grid, instances, ignored)


def _match_image_by_image(
    assigner: BaseAssigner,
    grid: Grid,
    instances: Sequence[InstanceData],
    ignored: Sequence[InstanceData | None],
) -> Match:
    device = grid.base.device
    counts = [len(level) for level in grid.priors]
    all_priors = torch.cat(grid.priors)
    level_of = torch.arange(len(counts), device=device).repeat_interleave(
        torch.tensor(counts, device=device)
    )
    cell_of = torch.cat([torch.arange(count, device=device) for count in counts])
    fields: list[tuple[Tensor, ...]] = []
    skipped: list[Tensor] = []
    first_truth = 0
    for index, (truths, regions) in enumerate(zip(instances, ignored)):
        inside = _inside(grid, index)
        kept = torch.cat(inside).nonzero().squeeze(1)
        priors = all_priors[kept]
        result = assigner.assign(
            InstanceData(priors=priors), [int(each.sum()) for each in inside], truths, regions
        )
        chosen = (result.gt_inds > 0).nonzero().squeeze(1)
        prior = kept[chosen]
        fields.append(
            (
                torch.ones_like(chosen, dtype=torch.bool),
                torch.full_like(chosen, index),
                level_of[prior],
                cell_of[prior],
                result.gt_inds[chosen] - 1 + first_truth,
                result.max_overlaps[chosen],
                box_centres(priors[chosen]),
            )
        )
        first_truth += len(truths.labels)
        mask = torch.zeros(len(all_priors), dtype=torch.bool, device=device)
        mask[kept[result.gt_inds < 0]] = True
        skipped.append(mask)
    valid, image, level, *others = (torch.cat(field) for field in zip(*fields))
    by_level = []
    for index in range(len(counts)):
        slot = (level == index).nonzero().squeeze(1)
        by_level.append(LevelSlots(image[slot], others[0][slot], slot))
    positives = Positives(valid, image, level, *others, by_level=by_level)
    levels = torch.stack(skipped).split(counts, dim=1)
    masks = [mask.unflatten(1, size) for mask, size in zip(levels, grid.sizes)]
    return Match(positives, masks)


def _inside(grid: Grid, image: int) -> list[Tensor]:
    """Per level ``(H * W,)`` bool: the cells that count for an image."""
    levels = []
    for size, (left, top, right, bottom) in zip(grid.sizes, grid.rectangles[image]):
        inside = torch.zeros(size, dtype=torch.bool, device=grid.base.device)
        inside[top:bottom, left:right] = True
        levels.append(inside.flatten())
    return levels
