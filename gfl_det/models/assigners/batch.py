"""Assignment of a batch, in closed form where possible, otherwise image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models.task_modules.assigners import BaseAssigner
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.errors import ConfigError
from gfl_det.models.assigners.atss import ATSSAssigner
from gfl_det.models.assigners.closed_form import (
    CellRectangle,
    Lattice,
    make_lattice,
    valid_rectangle,
)
from gfl_det.models.assigners.positives import LevelSlots, Positives
from gfl_det.models.assigners.predictions import Predictions
from gfl_det.ops.boxes import box_centres


class PriorLevels(NamedTuple):
    """Priors of a pyramid, one per cell, independent of image sizes."""

    generator: AnchorGenerator
    base: list[list[float]]  # per level xyxy px, the prior of cell (0, 0)
    strides: list[tuple[int, int]]  # px along x and y

    @classmethod
    def of(cls, generator: AnchorGenerator) -> PriorLevels:
        """Read the priors of a generator with one prior per cell."""
        base = torch.cat(list(generator.base_anchors)).tolist()
        return cls(generator, base, list(generator.strides))


class Grid(NamedTuple):
    """Prior grid of a batch and the valid cells of each image."""

    priors: PriorLevels
    sizes: Sequence[tuple[int, int]]  # rows and columns
    rectangles: list[list[CellRectangle]]  # per image and level
    device: torch.device

    def lattice(self) -> Lattice:
        """Lattice for assignment in closed form."""
        return make_lattice(
            self.priors.base, self.priors.strides, self.sizes, self.rectangles, self.device
        )


class BatchAssignment(NamedTuple):
    """Assignment of a batch: its gts, its grid of priors and the positives."""

    boxes: Tensor  # (T, 4) float32 xyxy px, gts grouped by image
    labels: Tensor  # (T,) int64
    image: Tensor  # (T,) int64, image index of each gt
    grid: Grid
    positives: Positives  # M slots
    ignored: list[Tensor] | None  # per level (B, H, W) bool, neither positive nor negative
    quality: Tensor | None = None  # (M,) soft labels of the assigner, if any

    def of_known_labels(self, num_classes: int) -> BatchAssignment:
        """Copy in which gts of unknown classes train nothing, as in mmdet.

        Data sets reject labels outside 0..num_classes - 1 with an error; here they would cause an
        index out of range. Such gts keep their index but lose their area and positives.
        """
        known = (self.labels >= 0) & (self.labels < num_classes)
        valid = self.positives.valid & known[self.positives.gt]
        return self._replace(
            boxes=self.boxes.where(known[:, None], self.boxes.new_zeros(())),
            positives=self.positives._replace(valid=valid),
        )


def make_grid(
    priors: PriorLevels, maps: Sequence[Tensor], metas: Sequence[dict], allowed_border: int
) -> Grid:
    """Build the grid of a pyramid's maps.

    Args:
        priors: Priors of the pyramid.
        maps: Per level ``(B, C, H, W)``.
        metas: Per image ``pad_shape`` and ``img_shape``.
        allowed_border: Pixels by which a prior may extend beyond its image; negative: any.

    Returns:
        Grid on the maps' device.

    Raises:
        ConfigError: If an image has no valid prior.
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


def assign_batch(
    assigner: BaseAssigner,
    grid: Grid,
    instances: Sequence[InstanceData],
    ignored: Sequence[InstanceData | None],
    predictions: Predictions | None = None,
) -> BatchAssignment:
    """Assign the priors of a batch.

    Args:
        assigner: Our assigner, or any with mmdet's ``assign``.
        grid: Prior grid of the batch.
        instances: Per image, ``bboxes`` and ``labels`` of the gts.
        ignored: Per image, ``bboxes`` of ignored gts, or None.
        predictions: Predictions of the batch, for an assigner that uses them.

    Returns:
        Assignment with positives ordered by gt in closed form, otherwise by prior.
    """
    counts = [len(each.labels) for each in instances]
    image = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)]).long()
    image = image.to(grid.device, non_blocking=True)
    boxes = torch.cat([get_box_tensor(each.bboxes).float() for each in instances])
    labels = torch.cat([each.labels for each in instances])
    if isinstance(assigner, ATSSAssigner) and assigner.has_closed_form:
        regions = [None if each is None else each.bboxes for each in ignored]
        if not any(assigner.ignores(each) for each in regions):
            positives = assigner.assign_batch(grid.lattice(), boxes, image)
            return BatchAssignment(boxes, labels, image, grid, positives, None)
    found = _assign_image_by_image(assigner, grid, instances, ignored, predictions)
    return BatchAssignment(boxes, labels, image, grid, *found)


def _assign_image_by_image(
    assigner: BaseAssigner,
    grid: Grid,
    instances: Sequence[InstanceData],
    ignored: Sequence[InstanceData | None],
    predictions: Predictions | None,
) -> tuple[Positives, list[Tensor], Tensor | None]:
    device = grid.device
    priors = torch.cat(grid.priors.generator.grid_priors(grid.sizes, device=device))
    images, chosen, gt, iou, skipped, quality = [], [], [], [], [], []
    first_gt = 0
    for index, (gts, regions) in enumerate(zip(instances, ignored)):
        inside = _inside(grid, index)
        kept = torch.cat(inside).nonzero().squeeze(1)
        if predictions is None:
            counts = [int(each.sum()) for each in inside]
            result = assigner.assign(InstanceData(priors=priors[kept]), counts, gts, regions)
            soft = None
        else:
            result, soft = predictions.assign(assigner, index, kept, gts, regions)
        positive = (result.gt_inds > 0).nonzero().squeeze(1)
        if soft is not None:
            quality.append(soft[positive])
        images.append(torch.full_like(positive, index))
        chosen.append(kept[positive])
        gt.append(result.gt_inds[positive] - 1 + first_gt)
        iou.append(result.max_overlaps[positive])
        first_gt += len(gts.labels)
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
        gt=torch.cat(gt),
        iou=torch.cat(iou),
        centre=box_centres(priors[prior]),
        by_level=[LevelSlots(image[slot], cell[slot], slot) for slot in slots],
    )
    levels = torch.stack(skipped).split([rows * columns for rows, columns in grid.sizes], dim=1)
    masks = [mask.unflatten(1, size) for mask, size in zip(levels, grid.sizes)]
    return positives, masks, torch.cat(quality) if quality else None


def _place(grid: Grid, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Level and cell of priors, given their index among the priors of all levels."""
    counts = [rows * columns for rows, columns in grid.sizes]
    first = torch.tensor([sum(counts[:level]) for level in range(len(counts))])
    first = first.to(prior.device)
    level = torch.searchsorted(first, prior, right=True) - 1
    return level, prior - first[level]


def _inside(grid: Grid, image: int) -> list[Tensor]:
    """Mask of an image's valid cells, per level ``(H * W,)`` bool."""
    levels = []
    for size, (left, top, right, bottom) in zip(grid.sizes, grid.rectangles[image]):
        inside = torch.zeros(size, dtype=torch.bool, device=grid.device)
        inside[top:bottom, left:right] = True
        levels.append(inside.flatten())
    return levels
