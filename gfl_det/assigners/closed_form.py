"""ATSS on lattices, in closed form: pure functions on tensors, torch alone.

Adaptive Training Sample Selection (Zhang et al., CVPR 2020, algorithm 1) takes for each truth the k
nearest priors of every level, and calls positive those whose IoU reaches the mean plus the standard
deviation of these candidates' IoUs and whose centre lies inside the truth. On a lattice the k
nearest need no search: order columns and rows by their distance from the truth's centre; the prior
of the i-th column and the j-th row (from 0) has (i + 1)(j + 1) - 1 others at least as near, so it
can be among the k nearest only if (i + 1)(j + 1) <= k. For k = 9 that leaves 23 of any number of
priors, wherever the centre lies and however narrow the level is. The cost grows with the truths
and not with the image, and no step waits for a value from the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import box_centres, iou
from .lattice import Lattice
from .positives import LevelSlots, Positives

MIN_INSIDE_PX = 0.01  # a centre on the border counts as outside


class Candidates(NamedTuple):
    """The k nearest priors of each truth on each level; K = L * k, level by level."""

    valid: Tensor  # (T, K) bool; false where a level has fewer than k cells
    cell: Tensor  # (T, K) int64
    boxes: Tensor  # (T, K, 4) px


def _nearest_on_axis(lattice: Lattice, axis: int, centre: Tensor, image: Tensor, k: int) -> tuple:
    """Order columns (axis 0) or rows (axis 1) of every level by distance from centres ``(T,)``.

    Returns:
        index ``(T, L, k)`` and squared distance ``(T, L, k)``, infinite where there is no cell.
    """
    begin, end = lattice.begin[image, :, axis], lattice.end[image, :, axis]  # (T, L)
    low, high = lattice.base[:, axis], lattice.base[:, axis + 2]
    stride = lattice.stride[:, axis]
    nearest = ((centre[:, None] - (low + high) / 2) / stride).nan_to_num().round()
    # Two spare cells: where a centre lies midway, rounding may name either neighbour the nearest.
    window = k + 2
    start = nearest.clamp(min=begin, max=end - 1).long() - window // 2
    start = torch.maximum(torch.minimum(start, end - window), begin)
    index = start[..., None] + torch.arange(window, device=centre.device)
    shift = index * stride[:, None]
    middle = ((low[:, None] + shift) + (high[:, None] + shift)) / 2  # as mmdet rounds it
    square = (middle - centre[:, None, None]).square()
    square = square.masked_fill(index >= end[..., None], torch.inf)
    square, order = square.sort(dim=-1, stable=True)
    return index.gather(-1, order)[..., :k], square[..., :k]


def nearest_priors(lattice: Lattice, truths: Tensor, image: Tensor, k: int) -> Candidates:
    """The k nearest valid priors of each truth on each level.

    Args:
        lattice: of the batch.
        truths: ``(T, 4)`` xyxy px.
        image: ``(T,)`` int64, the truth's image.
        k: candidates a level, at least 1.

    Returns:
        The candidates. Among priors at the same distance the choice is the same on every run.
    """
    centre = box_centres(truths)
    column, x_square = _nearest_on_axis(lattice, 0, centre[:, 0], image, k)
    row, y_square = _nearest_on_axis(lattice, 1, centre[:, 1], image, k)
    pairs = [(i, j) for i in range(k) for j in range(k) if (i + 1) * (j + 1) <= k]
    i, j = torch.tensor(pairs).T.to(truths.device, non_blocking=True)
    distance = (x_square[..., i] + y_square[..., j]).sqrt()
    distance, order = distance.sort(dim=-1, stable=True)
    order = order[..., :k]
    column, row = column.gather(-1, i[order]), row.gather(-1, j[order])  # (T, L, k)
    shift = torch.stack([column, row, column, row], dim=-1) * lattice.stride.repeat(1, 2)[:, None]
    return Candidates(
        valid=distance[..., :k].isfinite().flatten(1),
        cell=(row * lattice.width[:, None] + column).flatten(1),
        boxes=(lattice.base[:, None] + shift).flatten(1, 2),
    )


def positive_mask(candidates: Candidates, truths: Tensor) -> tuple[Tensor, Tensor]:
    """ATSS's adaptive threshold (algorithm 1, lines 8 to 14) on the candidates of each truth.

    Args:
        candidates: of T truths.
        truths: ``(T, 4)`` xyxy px.

    Returns:
        positive ``(T, K)`` bool and IoU ``(T, K)``.
    """
    overlap = iou(candidates.boxes, truths[:, None])
    overlap = overlap.where(candidates.valid, overlap.new_zeros(()))
    count = candidates.valid.sum(1, keepdim=True)
    mean = overlap.sum(1, keepdim=True) / count
    deviation = (overlap - mean).where(candidates.valid, overlap.new_zeros(()))
    # Unbiased, as in the authors' release: one candidate alone has no deviation and stays negative.
    std = (deviation.square().sum(1, keepdim=True) / (count - 1)).sqrt()
    centre = box_centres(candidates.boxes)
    inside = torch.cat([centre - truths[:, None, :2], truths[:, None, 2:] - centre], dim=-1)
    is_inside = inside.amin(-1) > MIN_INSIDE_PX
    return candidates.valid & (overlap >= mean + std) & is_inside, overlap


def resolve_conflicts(positive: Tensor, overlap: Tensor, prior: Tensor, num_priors: int) -> Tensor:
    """Keep one truth a prior: the larger IoU, the lower index at a tie.

    Args:
        positive: ``(T, K)`` bool.
        overlap: ``(T, K)`` float32 in [0, 1].
        prior: ``(T, K)`` int64, index over all images' priors.
        num_priors: of all images together.

    Returns:
        ``(T, K)`` bool, at most one true entry a prior.
    """
    # The bits of a non-negative float order as integers: pack (IoU, -truth) into one number.
    truth = torch.arange(len(prior), device=prior.device)[:, None]
    claim = overlap.float().contiguous().view(torch.int32).long() * 2**32 + (2**31 - 1 - truth)
    claim = claim.where(positive, claim.new_zeros(()))
    best = claim.new_zeros(num_priors)
    best = best.scatter_reduce(0, prior.flatten(), claim.flatten(), 'amax')
    return positive & (best[prior] == claim)


def capacity(num_truths: int, num_levels: int, k: int) -> int:
    """Slots that hold the positives of any batch with so many truths.

    Of K numbers at most K(K-1)/(2K-1), less than half, reach their mean plus unbiased deviation,
    unless all are equal. All IoUs can be equal on one level, but not on levels of different sizes.
    """
    candidates = num_levels * k
    if num_levels > 1:
        candidates = candidates * (candidates - 1) // (2 * candidates - 1)
    return num_truths * candidates


def assign_on_lattice(lattice: Lattice, truths: Tensor, image: Tensor, k: int) -> Positives:
    """ATSS for all truths of all images in one call.

    Args:
        lattice: of the batch.
        truths: ``(T, 4)`` xyxy px, images one after the other; a truth with a coordinate that is no
            number, or without area, gets no positive.
        image: ``(T,)`` int64, the truth's image, ascending.
        k: candidates a level.

    Returns:
        The positives, ordered by truth.
    """
    candidates = nearest_priors(lattice, truths, image, k)
    positive, overlap = positive_mask(candidates, truths)
    level = torch.arange(lattice.num_levels, device=truths.device).repeat_interleave(k)
    in_image = lattice.first_prior[level] + candidates.cell
    prior = image[:, None] * lattice.num_priors + in_image.where(positive, in_image.new_zeros(()))
    num_priors = len(lattice.begin) * lattice.num_priors
    positive = resolve_conflicts(positive, overlap, prior, num_priors)

    slots = capacity(len(truths), lattice.num_levels, k)
    flat = positive.flatten()
    slot = (flat.cumsum(0) - 1).where(flat, flat.new_full((), slots, dtype=torch.long))
    slot = slot.clamp(max=slots)
    source = slot.new_zeros(slots + 1)
    source = source.scatter(0, slot, torch.arange(len(flat), device=slot.device))[:slots]
    valid = torch.arange(slots, device=slot.device) < flat.sum()
    each_level = zip(
        candidates.cell.where(positive, candidates.cell.new_zeros(())).split(k, dim=1),
        slot.view_as(positive).split(k, dim=1),
    )
    by_level = [
        LevelSlots(image.repeat_interleave(k), cell.flatten(), level_slot.flatten())
        for cell, level_slot in each_level
    ]
    truth = source.div(len(level), rounding_mode='floor')
    return Positives(
        valid=valid,
        image=image[truth],
        level=level[source % len(level)],
        cell=candidates.cell.flatten()[source].where(valid, source.new_zeros(())),
        truth=truth,
        iou=overlap.flatten()[source],
        centre=box_centres(candidates.boxes).flatten(0, 1)[source],
        by_level=by_level,
    )
