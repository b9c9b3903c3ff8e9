"""The valuable localization region: cells beside the positives from whose boxes there is to learn.

Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022. A
prior belongs to the region of a truth if their distance-IoU (Zheng et al., AAAI 2020) lies between
a share of ATSS's threshold for that truth and the threshold itself. The priors of a level are a
lattice, so all parts of the measure but the last few products are separate along x and y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gfl_det.models.assigners.closed_form import adaptive_threshold, nearest_priors
from gfl_det.models.assigners.lattice import Lattice
from gfl_det.ops.boxes import MIN_UNION, box_areas

LOWEST_SHARE = 0.25  # of the threshold: the paper's gamma, as in the authors' release
MAX_PAIRS = 2**20  # pairs of prior and truth held at a time: 4 MiB a tensor


class _Axis(NamedTuple):
    """Priors and truths along x or y."""

    shared: Tensor  # (T, N) px that prior and truth have in common
    hull: Tensor  # (T, N) px from the first edge of both to the last
    gap: Tensor  # (T, N) px between the centres
    side: Tensor  # scalar, px of a prior


def valuable_region(
    lattice: Lattice,
    sizes: Sequence[tuple[int, int]],
    truths: Tensor,
    image: Tensor,
    k: int,
) -> list[Tensor]:
    """Weights of the cells of the valuable localization region.

    Memory is bounded by chunks of truths, and nothing waits for a value from the device.

    Args:
        lattice: of the batch.
        sizes: per level, rows and columns.
        truths: ``(T, 4)`` xyxy px.
        image: ``(T,)`` int64, the truth's image.
        k: candidates a level that ATSS's threshold is made of.

    Returns:
        Per level ``(B, H, W)``: the largest IoU of the prior with a truth in whose region it lies,
        0 outside. Positives and cells outside an image's rectangle are not left out.
    """
    threshold = adaptive_threshold(nearest_priors(lattice, truths, image, k))[:, :, None]
    return [
        _level_weights(lattice, level, size, truths, image, threshold)
        for level, size in enumerate(sizes)
    ]


def _level_weights(
    lattice: Lattice,
    level: int,
    size: tuple[int, int],
    truths: Tensor,
    image: Tensor,
    threshold: Tensor,
) -> Tensor:
    rows, columns = size
    weights = truths.new_zeros(len(lattice.begin), rows * columns)
    step = max(1, MAX_PAIRS // max(1, rows * columns))
    for begin in range(0, len(truths), step):
        part = slice(begin, begin + step)
        x, y = (_along(lattice, level, axis, size[1 - axis], truths[part]) for axis in (0, 1))
        shared = y.shared[:, :, None] * x.shared[:, None]
        areas = x.side * y.side + box_areas(truths[part])[:, None, None]
        overlap = shared / (areas - shared).clamp_(min=MIN_UNION)
        gap = y.gap.square()[:, :, None] + x.gap.square()[:, None]
        hull = y.hull.square()[:, :, None] + x.hull.square()[:, None]
        measure = overlap - gap / hull.clamp_(min=MIN_UNION)
        inside = (measure >= LOWEST_SHARE * threshold[part]) & (measure < threshold[part])
        value = overlap.where(inside, overlap.new_zeros(())).flatten(1)
        weights.scatter_reduce_(0, image[part, None].expand_as(value), value, 'amax')
    return weights.view(-1, rows, columns)


def _along(lattice: Lattice, level: int, axis: int, count: int, truths: Tensor) -> _Axis:
    base, step = lattice.base[level], lattice.stride[level, axis]
    shift = torch.arange(count, device=truths.device) * step
    low, high = base[axis] + shift, base[2 + axis] + shift
    first, last = truths[:, axis, None], truths[:, 2 + axis, None]
    return _Axis(
        shared=(torch.minimum(high, last) - torch.maximum(low, first)).clamp_(min=0),
        hull=torch.maximum(high, last) - torch.minimum(low, first),
        gap=(low + high - first - last) / 2,
        side=base[2 + axis] - base[axis],
    )
