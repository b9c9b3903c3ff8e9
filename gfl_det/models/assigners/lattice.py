"""Priors of a pyramid as regular lattices, the input of closed-form assignment.

The prior of cell ``(column, row)`` on a level is the base box shifted by ``(column * stride_x, row
* stride_y)``. The valid cells of an image form a rectangle: cells inside its padded shape and, with
``allowed_border >= 0``, with a prior inside the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CellRectangle = tuple[int, int, int, int]  # first column, first row, end column, end row


class Lattice(NamedTuple):
    """Levels of equal boxes on grids, and the valid cells of each image."""

    base: Tensor  # (L, 4) float, xyxy px: the prior of cell (0, 0)
    stride: Tensor  # (L, 2) float, px along x and y
    width: Tensor  # (L,) int64: cells per row of the feature map
    first_prior: Tensor  # (L,) int64: index of a level's first prior among all levels' priors
    begin: Tensor  # (B, L, 2) int64: first valid column and row
    end: Tensor  # (B, L, 2) int64: one past the last valid column and row
    num_priors: int  # of all levels together
    sizes_differ: bool  # several levels, all with different prior sizes

    @property
    def num_levels(self) -> int:
        """Number of levels of the pyramid."""
        return len(self.width)


def make_lattice(
    base: Sequence[Sequence[float]],
    strides: Sequence[tuple[float, float]],
    feature_sizes: Sequence[tuple[int, int]],
    rectangles: Sequence[Sequence[CellRectangle]],
    device: torch.device,
) -> Lattice:
    """Build a lattice.

    Args:
        base: Prior of cell (0, 0) per level, xyxy px.
        strides: Strides along x and y per level, px.
        feature_sizes: Rows and columns per level.
        rectangles: Valid cells per image and level; may be empty.
        device: Device of the lattice's tensors.

    Returns:
        Lattice of the batch.
    """
    counts = [rows * columns for rows, columns in feature_sizes]
    first = [sum(counts[:level]) for level in range(len(counts))]
    corners = torch.tensor(rectangles, dtype=torch.long).reshape(-1, len(counts), 4)

    def upload(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)  # a blocking copy would stall a GPU

    sides = {(right - left, bottom - top) for left, top, right, bottom in base}
    return Lattice(
        base=upload(torch.tensor(base, dtype=torch.float32)),
        stride=upload(torch.tensor(strides, dtype=torch.float32)),
        width=upload(torch.tensor([columns for _, columns in feature_sizes])),
        first_prior=upload(torch.tensor(first)),
        begin=upload(corners[..., :2]),
        end=upload(corners[..., 2:]),
        num_priors=sum(counts),
        sizes_differ=len(sides) == len(base) > 1,
    )


def valid_rectangle(
    base: Sequence[float],
    stride: tuple[int, int],
    feature_size: tuple[int, int],
    image_meta: dict,
    allowed_border: int,
) -> CellRectangle:
    """Valid cells of one level for one image.

    Args:
        base: Prior of cell (0, 0), xyxy px.
        stride: Strides along x and y, px.
        feature_size: Rows and columns of the feature map.
        image_meta: Dict with ``pad_shape`` and ``img_shape``, both (height, width, ...) in px.
        allowed_border: Pixels by which a prior may extend beyond the image; negative: any.

    Returns:
        First column, first row, end column, end row; empty (end <= first) if no cell is valid.
    """
    first, end = [], []
    for axis in (0, 1):  # x, y
        step, size = stride[axis], feature_size[1 - axis]
        padded = image_meta['pad_shape'][1 - axis]
        stop = min(math.ceil(padded / step), size)
        start = 0
        if allowed_border >= 0:
            # base_low + i * step >= -border and base_high + i * step < image + border
            image = image_meta['img_shape'][1 - axis]
            start = max(math.ceil((-allowed_border - base[axis]) / step), 0)
            stop = min(math.ceil((image + allowed_border - base[2 + axis]) / step), stop)
        first.append(start)
        end.append(max(stop, start))
    return first[0], first[1], end[0], end[1]


def fit_lattice(priors: Tensor, num_level_priors: Sequence[int]) -> Lattice | None:
    """Recognise the lattice in a list of priors of one image.

    Heads pass priors as a list, row by row; if each level is an exact lattice, closed-form
    assignment applies.

    Args:
        priors: ``(P, 4)`` xyxy px, by level.
        num_level_priors: Number of priors per level.

    Returns:
        Lattice with all cells valid, or None if a level is no lattice (several priors per cell,
        gaps, uneven steps, boxes of several sizes).
    """
    bases, strides, sizes = [], [], []
    for level_priors in priors.split(list(num_level_priors)):
        if len(level_priors) == 0:
            bases.append([0.0] * 4)
            strides.append((1.0, 1.0))
            sizes.append((0, 0))
            continue
        base = level_priors[0]
        columns = int((level_priors[:, 1] == base[1]).sum())
        rows = len(level_priors) // columns
        step = torch.ones(2, dtype=priors.dtype, device=priors.device)
        if columns > 1:
            step[0] = level_priors[1, 0] - base[0]
        if rows > 1:
            step[1] = level_priors[columns, 1] - base[1]
        y, x = torch.meshgrid(
            torch.arange(rows, device=priors.device),
            torch.arange(columns, device=priors.device),
            indexing='ij',
        )
        expected = base + (torch.stack([x, y, x, y], dim=-1).flatten(0, 1) * step.repeat(2))
        if not (step > 0).all() or not torch.equal(expected, level_priors):
            return None
        bases.append(base.tolist())
        strides.append((float(step[0]), float(step[1])))
        sizes.append((rows, columns))
    rectangles = [[(0, 0, columns, rows) for rows, columns in sizes]]
    return make_lattice(bases, strides, sizes, rectangles, priors.device) if bases else None
