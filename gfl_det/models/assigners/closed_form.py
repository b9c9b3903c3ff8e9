"""ATSS on lattices in closed form, as pure functions on tensors; torch only.

The priors of a pyramid are lattices: the prior of cell ``(column, row)`` on a level is the base box
shifted by ``(column * stride_x, row * stride_y)``. The valid cells of an image form a rectangle:
cells inside its padded shape and, with ``allowed_border >= 0``, with a prior inside the image.

Adaptive Training Sample Selection (Zhang et al., CVPR 2020, algorithm 1) takes the k nearest priors
per gt and level as candidates. A candidate is positive if its IoU reaches the mean plus the
standard deviation of the candidates' IoUs and its centre lies inside the gt. On a lattice the k
nearest priors need no search: with columns and rows sorted by distance from the gt's centre, the
prior at the i-th column and j-th row (from 1) is one of i * j priors at least as near, so it can be
among the k nearest only if i * j <= k (drawn in :func:`nearest_priors`). For k = 9 that leaves 23
priors, wherever the centre lies and however narrow the level is. The cost depends on the number of
gts, not on the image size, and nothing synchronises the device.

In order: lattices, nearest priors, ATSS's threshold, one gt per prior, best priors for gts without
a positive, and the list of positives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gfl_det.models.assigners.positives import LevelSlots, Positives
from gfl_det.ops.boxes import MIN_UNION, box_areas

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


MIN_INSIDE_PX = 0.01  # a centre on the border counts as outside
# Rounds of choosing: this many gts that compete for the same priors get one each. The number is
# fixed, since checking for gts without a prior would synchronise the device.
ROUNDS = 9


class NearestPriors(NamedTuple):
    """The k nearest priors per gt and level; K = L * k, by level."""

    valid: Tensor  # (T, K) bool; false if a level has fewer than k cells
    cell: Tensor  # (T, K) int64
    iou: Tensor  # (T, K) of prior and gt; 0 if invalid
    centre: Tensor  # (T, K, 2) px, of the priors
    margin: Tensor  # (T, K) px from the prior's centre to the gt's nearest edge; outside < 0


class Lines(NamedTuple):
    """The k columns and k rows per level nearest to a gt's centre, nearest first.

    IoU and position are separable; the second-to-last axis is x (columns), y (rows).
    """

    cells: Tensor  # (T, L, 2, k) int64, columns and rows
    square: Tensor  # (T, L, 2, k) squared distance of the priors' centres; infinite without a cell
    centre: Tensor  # (T, L, 2, k) px
    side: Tensor  # (T, L, 2, k) px, of the priors
    shared: Tensor  # (T, L, 2, k) px shared by prior and gt
    margin: Tensor  # (T, L, 2, k) px from the prior's centre to the gt's nearer edge


def _nearest_lines(lattice: Lattice, gts: Tensor, image: Tensor, k: int) -> Lines:
    low, high = gts[:, None, :2, None], gts[:, None, 2:, None]  # (T, 1, 2, 1)
    centre = (low + high) / 2
    begin, end = lattice.begin[image][..., None], lattice.end[image][..., None]  # (T, L, 2, 1)
    base_low, base_high = lattice.base[:, :2, None], lattice.base[:, 2:, None]  # (L, 2, 1)
    stride = lattice.stride[..., None]
    nearest = ((centre - (base_low + base_high) / 2) / stride).nan_to_num().round()
    # Two spare cells: for a centre midway, rounding may pick either neighbour as the nearest.
    window = k + 2
    start = nearest.clamp(min=begin, max=end - 1).long() - window // 2
    start = torch.maximum(torch.minimum(start, end - window), begin)
    index = start + torch.arange(window, device=gts.device)
    shift = index * stride
    middle = ((base_low + shift) + (base_high + shift)) / 2  # as mmdet rounds it
    square = (middle - centre).square_().masked_fill_(index >= end, torch.inf)
    square, order = square.sort(dim=-1, stable=True)
    index = index.gather(-1, order[..., :k])
    shift = index * stride
    prior_low, prior_high = base_low + shift, base_high + shift
    middle = (prior_low + prior_high) / 2
    return Lines(
        cells=index,
        square=square[..., :k],
        centre=middle,
        side=prior_high - prior_low,
        shared=(torch.minimum(prior_high, high) - torch.maximum(prior_low, low)).clamp_(min=0),
        margin=torch.minimum(middle - low, high - middle),
    )


def nearest_priors(lattice: Lattice, gts: Tensor, image: Tensor, k: int) -> NearestPriors:
    """Find the k nearest valid priors per gt and level.

    Each number counts the priors that are certainly at least as near as the prior in its place,
    itself included; so for k = 9 the k nearest are among these 23::

                       columns, the nearest first
                       1st 2nd 3rd 4th 5th 6th 7th 8th 9th
        rows,     1st   1   2   3   4   5   6   7   8   9
        the       2nd   2   4   6   8
        nearest   3rd   3   6   9
        first     4th   4   8
                  5th   5
                  ...   .
                  9th   9

    Args:
        lattice: Lattice of the batch.
        gts: ``(T, 4)`` xyxy px.
        image: ``(T,)`` int64, image index of each gt.
        k: Candidates per level, at least 1.

    Returns:
        Candidates; ties in distance are broken deterministically.
    """
    lines = _nearest_lines(lattice, gts, image, k)
    pairs = [(i, j) for i in range(k) for j in range(k) if (i + 1) * (j + 1) <= k]
    columns, rows = ranks = torch.tensor(pairs).T.to(gts.device, non_blocking=True)
    distance = (lines.square[:, :, 0, columns] + lines.square[:, :, 1, rows]).sqrt_()
    distance, order = distance.sort(dim=-1, stable=True)
    chosen = ranks[:, order[..., :k]].movedim(0, 2)  # (T, L, 2, k)
    near = Lines(*(each.gather(-1, chosen) for each in lines))
    # IoU with the operations of boxes.iou in the same order, per axis.
    intersection = near.shared[:, :, 0] * near.shared[:, :, 1]
    areas = near.side[:, :, 0] * near.side[:, :, 1] + box_areas(gts)[:, None, None]
    overlap = intersection / (areas - intersection).clamp_(min=MIN_UNION)
    valid = distance[..., :k].isfinite()
    return NearestPriors(
        valid=valid.flatten(1),
        cell=(near.cells[:, :, 1] * lattice.width[:, None] + near.cells[:, :, 0]).flatten(1),
        iou=overlap.masked_fill_(~valid, 0).flatten(1),
        centre=near.centre.movedim(2, 3).flatten(1, 2),
        margin=near.margin.amin(2).flatten(1),
    )


def adaptive_threshold(candidates: NearestPriors) -> Tensor:
    """IoU threshold for positive candidates (algorithm 1, lines 8 to 11).

    Args:
        candidates: Candidates of T gts.

    Returns:
        ``(T, 1)``, mean plus standard deviation; NaN for a single candidate.
    """
    count = candidates.valid.sum(1, keepdim=True)
    # Offsets from the largest IoU keep the mean of equal IoUs exact instead of rounded upwards.
    top = candidates.iou.amax(1, keepdim=True)
    below = (candidates.iou - top).masked_fill_(~candidates.valid, 0)
    offset = below.sum(1, keepdim=True) / count
    mean = top + offset
    deviation = (below - offset).masked_fill_(~candidates.valid, 0)
    # Unbiased, as in the authors' release: a single candidate has no deviation, hence stays
    # negative.
    return mean + (deviation.square_().sum(1, keepdim=True) / (count - 1)).sqrt_()


def positive_mask(candidates: NearestPriors) -> Tensor:
    """Apply ATSS's adaptive threshold to the candidates of each gt (algorithm 1, lines 8 to 14).

    Args:
        candidates: Candidates of T gts.

    Returns:
        ``(T, K)`` bool.
    """
    is_inside = candidates.margin > MIN_INSIDE_PX
    # If a gt is so large that all its IoUs round to 0, it is not a real object.
    is_object = candidates.iou > 0
    return is_object & (candidates.iou >= adaptive_threshold(candidates)) & is_inside


def claim_keys(overlap: Tensor) -> Tensor:
    """Integer keys that order the claims of gts on a prior by larger IoU, then lower index.

    The bits of non-negative float32 values sort like integers, so (IoU, -index) is packed into 64
    bits, and the maximum over the claims on a prior gives its gt without sorting.

    Args:
        overlap: ``(T, K)`` float32, at least 0.

    Returns:
        ``(T, K)`` int64, positive and distinct for distinct gts.
    """
    gt = torch.arange(len(overlap), device=overlap.device)[:, None]
    return overlap.float().contiguous().view(torch.int32).long() * 2**32 + (2**31 - 1 - gt)


def resolve_conflicts(positive: Tensor, overlap: Tensor, prior: Tensor, num_priors: int) -> Tensor:
    """Keep one gt per prior, in the order of :func:`claim_keys`.

    Args:
        positive: ``(T, K)`` bool.
        overlap: ``(T, K)`` float32 in [0, 1].
        prior: ``(T, K)`` int64, index among the priors of all images.
        num_priors: Number of priors of all images.

    Returns:
        ``(T, K)`` bool, at most one true entry per prior.
    """
    claim = claim_keys(overlap)
    claim = claim.where(positive, claim.new_zeros(()))
    best = claim.new_zeros(num_priors)
    best = best.scatter_reduce(0, prior.flatten(), claim.flatten(), 'amax')
    return positive & (best[prior] == claim)


def choose_free(needy: Tensor, overlap: Tensor, prior: Tensor, taken: Tensor) -> Tensor:
    """Let gts choose priors in rounds; :func:`claim_keys` resolves conflicts.

    Args:
        needy: ``(T,)`` bool, the gts that choose.
        overlap: ``(T, K)`` float32 of all candidates, sorted by distance within a level; candidates
            with overlap 0 or less cannot be chosen.
        prior: ``(T, K)`` int64.
        taken: ``(P,)`` bool, priors that are not free; ``prior`` is below P.

    Returns:
        ``(T, K)`` bool: at most one true entry per gt and per prior.
    """
    # NaN overlaps, of a gt with a NaN coordinate, compare as false.
    overlap = overlap.where(overlap > 0, overlap.new_zeros(()))
    overlap, order = overlap.sort(dim=1, descending=True, stable=True)
    ranked = prior.gather(1, order)
    claims = claim_keys(overlap)
    is_choice = overlap > 0
    taken = taken.to(torch.uint8)
    best = torch.zeros_like(taken, dtype=torch.long)
    place, served = torch.zeros_like(prior[:, 0]), torch.zeros_like(needy)
    for _ in range(min(ROUNDS, overlap.shape[1])):
        free = is_choice & (taken[ranked] == 0)
        first = free.to(torch.uint8).argmax(1, keepdim=True)
        wants = needy & free.gather(1, first)[:, 0]
        wanted, claim = (each.gather(1, first)[:, 0] for each in (ranked, claims))
        claim = claim.where(wants, claim.new_zeros(()))
        # A prior is chosen in one round only, as it is taken afterwards.
        best = best.scatter_reduce(0, wanted, claim, 'amax')
        won = wants & (best[wanted] == claim)
        taken = taken.scatter_reduce(0, wanted, won.to(torch.uint8), 'amax')
        place, served = first[:, 0].where(won, place), served | won
        needy = needy & ~won
    chosen = torch.zeros_like(is_choice)
    return chosen.scatter(1, order.gather(1, place[:, None]), served[:, None])


def add_best_priors(positive: Tensor, overlap: Tensor, prior: Tensor, num_priors: int) -> Tensor:
    """Assign gts without a positive to their best free prior.

    Args:
        positive: ``(T, K)`` bool, at most one true entry per prior.
        overlap: ``(T, K)`` float32 in [0, 1]; 0 without a candidate.
        prior: ``(T, K)`` int64, of all candidates.
        num_priors: Number of priors of all images.

    Returns:
        ``(T, K)`` bool, ``positive`` plus at most one entry for each gt without any.
    """
    taken = torch.zeros(num_priors, dtype=torch.uint8, device=prior.device)
    taken = taken.scatter_reduce(0, prior.flatten(), positive.flatten().to(torch.uint8), 'amax')
    return positive | choose_free(~positive.any(1), overlap, prior, taken > 0)


def capacity(num_gts: int, lattice: Lattice, k: int) -> int:
    """Number of slots that suffices for the positives of any batch with ``num_gts`` gts.

    At most K(K-1)/(2K-1) of K numbers, less than half, reach their mean plus unbiased deviation,
    unless all are equal. All IoUs can be equal if priors share one size, but not if sizes differ
    between levels.
    """
    candidates = lattice.num_levels * k
    if lattice.sizes_differ:
        candidates = max(1, candidates * (candidates - 1) // (2 * candidates - 1))
    return num_gts * candidates


def assign_on_lattice(
    lattice: Lattice, gts: Tensor, image: Tensor, k: int, with_best_prior: bool = False
) -> Positives:
    """ATSS for all gts of all images in one call.

    Args:
        lattice: Lattice of the batch.
        gts: ``(T, 4)`` xyxy px, grouped by image; a gt with a NaN or infinite coordinate, or
            without area, gets no positive.
        image: ``(T,)`` int64, image index of each gt, ascending.
        k: Candidates per level.
        with_best_prior: Assign gts without a positive to their best free prior.

    Returns:
        Positives ordered by gt.
    """
    candidates = nearest_priors(lattice, gts, image, k)
    level = torch.arange(lattice.num_levels, device=gts.device).repeat_interleave(k)
    positive = _choose(lattice, candidates, image, level, with_best_prior)
    return _gather(lattice, candidates, positive, image, level)


def _choose(
    lattice: Lattice, candidates: NearestPriors, image: Tensor, level: Tensor, with_best_prior: bool
) -> Tensor:
    """Mask ``(T, K)`` of positive candidates, at most one gt per prior."""
    positive = positive_mask(candidates)
    eligible = candidates.valid if with_best_prior else positive
    cell = candidates.cell.where(eligible, candidates.cell.new_zeros(()))
    prior = (image * lattice.num_priors)[:, None] + lattice.first_prior[level] + cell
    prior = prior.where(eligible, prior.new_zeros(()))  # an empty last level starts out of range
    num_priors = len(lattice.begin) * lattice.num_priors
    positive = resolve_conflicts(positive, candidates.iou, prior, num_priors)
    if with_best_prior:
        positive = add_best_priors(positive, candidates.iou, prior, num_priors)
    return positive


def _gather(
    lattice: Lattice, candidates: NearestPriors, positive: Tensor, image: Tensor, level: Tensor
) -> Positives:
    """Move the positive candidates to the front of a fixed number of slots, others nowhere."""
    k = len(level) // lattice.num_levels
    slots = capacity(len(image), lattice, k)
    flat = positive.flatten()
    slot = (flat.cumsum(0) - 1).masked_fill_(~flat, slots).clamp_(max=slots)
    source = slot.new_zeros(slots + 1)
    source = source.scatter(0, slot, torch.arange(len(flat), device=slot.device))[:slots]
    valid = torch.arange(slots, device=slot.device) < flat.sum()
    gt = source.div(len(level), rounding_mode='floor')
    # Candidates that are not positive all point to the first cell, which is cheap to read again.
    each_image = image[:, None].where(positive, image.new_zeros(()))
    each_cell = candidates.cell.where(positive, candidates.cell.new_zeros(()))
    by_candidate = (each_image, each_cell, slot.view_as(positive))
    return Positives(
        valid=valid,
        image=image[gt],
        level=level[source % len(level)],
        cell=each_cell.flatten()[source],
        gt=gt,
        iou=candidates.iou.flatten()[source],
        centre=candidates.centre.flatten(0, 1)[source],
        by_level=[
            LevelSlots(*(field[:, first : first + k].flatten() for field in by_candidate))
            for first in range(0, len(level), k)
        ],
    )
