"""The priors of a pyramid as regular lattices: what closed-form assignment needs to know.

The prior of cell ``(column, row)`` on a level is one base box moved by ``(column * stride_x,
row * stride_y)``. Only a rectangle of cells counts for an image: those inside its own padded shape
and, with ``allowed_border >= 0``, whose prior stays inside the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CellRectangle = tuple[int, int, int, int]  # first column, first row, end column, end row


class Lattice(NamedTuple):
    """Levels of equal boxes on grids, and each image's rectangle of valid cells."""

    base: Tensor  # (L, 4) float, xyxy px: the prior of cell (0, 0)
    stride: Tensor  # (L, 2) float, px along x and y
    width: Tensor  # (L,) int64: cells of a row of the feature map
    first_prior: Tensor  # (L,) int64: index of a level's first prior among all levels' priors
    begin: Tensor  # (B, L, 2) int64: first valid column and row
    end: Tensor  # (B, L, 2) int64: one past the last valid column and row
    num_priors: int  # of all levels together
    sizes_differ: bool  # no two of several levels have priors of one size

    @property
    def num_levels(self) -> int:
        """Levels of the pyramid."""
        return len(self.width)


def make_lattice(
    base: Sequence[Sequence[float]],
    strides: Sequence[tuple[float, float]],
    feature_sizes: Sequence[tuple[int, int]],
    rectangles: Sequence[Sequence[CellRectangle]],
    device: torch.device,
) -> Lattice:
    """Collect a lattice.

    Args:
        base: per level xyxy px, the prior of cell (0, 0).
        strides: per level, px along x and y.
        feature_sizes: per level, rows and columns.
        rectangles: per image and level, the valid cells; may be empty.
        device: of the lattice's tensors.

    Returns:
        The lattice.
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
    """Cells of one level that count for one image.

    Args:
        base: xyxy px, the prior of cell (0, 0).
        stride: px along x and y.
        feature_size: rows and columns of the feature map.
        image_meta: with ``pad_shape`` and ``img_shape``, both (height, width, ...) in px.
        allowed_border: px by which a prior may leave the image; negative: any.

    Returns:
        First column, first row, end column, end row; empty (end <= first) where nothing is valid.
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
    """Recognise the lattice in a list of priors, for one image.

    Heads hand their priors over as a list, row by row; if each level is exactly a lattice, the list
    can be assigned in closed form.

    Args:
        priors: ``(P, 4)`` xyxy px, level by level.
        num_level_priors: priors of each level.

    Returns:
        The lattice with every cell valid, or None if a level is anything else (several priors per
        cell, a gap, uneven steps, boxes of several sizes).
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
