"""Positive priors of a batch as a list, and lookup of a pyramid's maps at them; torch only.

Empty slots of the list read and write "nowhere" (:mod:`gfl_det.ops.layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gfl_det.ops.layout import SPARE_PLACES, Layout, spare_places

SPARE_GAP = 16  # cells between two spare places of a map: a cache line


class LevelSlots(NamedTuple):
    """Candidates of a level and their slots in the list of positives."""

    image: Tensor  # (N,) int64, index in the batch
    cell: Tensor  # (N,) int64, row * width + column
    slot: Tensor  # (N,) int64; nowhere (the number of slots) if not positive


class Positives(NamedTuple):
    """Positive priors of a batch; invalid slots point to the first gt and cell 0."""

    valid: Tensor  # (M,) bool
    image: Tensor  # (M,) int64, index in the batch
    level: Tensor  # (M,) int64
    cell: Tensor  # (M,) int64
    gt: Tensor  # (M,) int64, index in the gts of the batch
    iou: Tensor  # (M,) of prior and gt
    centre: Tensor  # (M, 2) px, of the prior
    by_level: list[LevelSlots]  # the same positives by level


class _TakeCells(torch.autograd.Function):
    # Untyped: torch annotates neither method. One parameter beside ctx: torch.compile takes as many
    # arguments as parameters for a forward without ctx, which two levels would otherwise be.
    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        by_level, num_slots, *maps = inputs
        ctx.by_level, ctx.layouts = by_level, [Layout.of(level) for level in maps]
        rows = maps[0].new_zeros(num_slots + SPARE_PLACES, maps[0].shape[1])
        for level, (image, cell, slot) in zip(maps, by_level):
            slot = slot.where(slot < num_slots, num_slots + spare_places(slot))
            rows[slot] = level.flatten(2)[image, :, cell]
        return rows[:num_slots]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        pairs = zip(ctx.by_level, ctx.layouts)
        return None, None, *(_scatter_rows(grad, slots, layout) for slots, layout in pairs)


def _scatter_rows(rows: Tensor, slots: LevelSlots, layout: Layout) -> Tensor:
    """Zero maps ``(B, C, H, W)`` with rows ``(M, C)`` written to the positives' cells."""
    images, cells = layout.shape[0], layout.shape[2] * layout.shape[3]
    positive = slots.slot < len(rows)
    image = slots.image.where(positive, slots.image.new_full((), images))
    cell = slots.cell.where(positive, spare_places(slots.cell) * SPARE_GAP % cells)
    memory = rows.new_empty((images + 1) * layout.shape[1:].numel())
    maps = layout.view(memory, images + 1)  # the last image is nowhere
    maps[:images].zero_()
    source = slots.slot.clamp(max=len(rows) - 1)
    maps.flatten(2)[image, :, cell] = rows.index_select(0, source)
    return maps[:images]


def take_cells(maps: Sequence[Tensor], positives: Positives) -> Tensor:
    """Read all channels at the positives' cells, differentiably.

    Args:
        maps: Per level ``(B, C, H, W)``.
        positives: M slots.

    Returns:
        ``(M, C)``; zeros in invalid slots.
    """
    return _TakeCells.apply(positives.by_level, len(positives.valid), *maps)
