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

from gfl_det.models.assigners.lattice import Lattice
from gfl_det.models.assigners.positives import LevelSlots, Positives
from gfl_det.ops.boxes import MIN_UNION, box_areas

# Rounds of choosing: so many truths that want the same priors get one each. A fixed number, as to
# ask whether a truth is still without one would wait for the device.
ROUNDS = 9


def choose_free(needy: Tensor, overlap: Tensor, prior: Tensor, taken: Tensor) -> Tensor:
    """Let truths choose in rounds; a prior wanted by several goes to the larger overlap.

    Args:
        needy: ``(T,)`` bool, the truths that choose.
        overlap: ``(T, K)`` float32 of their candidates, in order of distance within a level; one
            that is not above 0 is no choice.
        prior: ``(T, K)`` int64.
        taken: ``(P,)`` bool, priors that are not free; ``prior`` is below P.

    Returns:
        ``(T, K)`` bool: at most one true entry a truth, and at most one a prior.
    """
    # NaN, of a truth with a coordinate that is no number, compares as false.
    overlap = overlap.where(overlap > 0, overlap.new_zeros(()))
    overlap, order = overlap.sort(dim=1, descending=True, stable=True)
    ranked = prior.gather(1, order)
    # The bits of a non-negative float order as integers: pack (overlap, -truth) into one number.
    truth = torch.arange(len(needy), device=needy.device)
    claims = overlap.float().contiguous().view(torch.int32).long() * 2**32
    claims = claims + (2**31 - 1 - truth)[:, None]
    is_choice = overlap > 0
    taken = taken.to(torch.uint8)
    best = torch.zeros_like(taken, dtype=torch.long)
    place, served = torch.zeros_like(truth), torch.zeros_like(needy)
    for _ in range(min(ROUNDS, overlap.shape[1])):
        free = is_choice & (taken[ranked] == 0)
        first = free.to(torch.uint8).argmax(1, keepdim=True)
        wants = needy & free.gather(1, first)[:, 0]
        wanted, claim = (each.gather(1, first)[:, 0] for each in (ranked, claims))
        claim = claim.where(wants, claim.new_zeros(()))
        # A prior is wanted in one round alone, as it is taken from then on.
        best = best.scatter_reduce(0, wanted, claim, 'amax')
        won = wants & (best[wanted] == claim)
        taken = taken.scatter_reduce(0, wanted, won.to(torch.uint8), 'amax')
        place, served = first[:, 0].where(won, place), served | won
        needy = needy & ~won
    chosen = torch.zeros_like(is_choice)
    return chosen.scatter(1, order.gather(1, place[:, None]), served[:, None])


def add_best_priors(positive: Tensor, overlap: Tensor, prior: Tensor, num_priors: int) -> Tensor:
    """Give truths without a positive their best free prior.

    Args:
        positive: ``(T, K)`` bool, at most one true entry a prior.
        overlap: ``(T, K)`` float32 in [0, 1]; 0 where there is no candidate.
        prior: ``(T, K)`` int64, of all candidates.
        num_priors: of all images together.

    Returns:
        ``(T, K)`` bool, ``positive`` and at most one entry more for each truth without any.
    """
    taken = torch.zeros(num_priors, dtype=torch.uint8, device=prior.device)
    taken = taken.scatter_reduce(0, prior.flatten(), positive.flatten().to(torch.uint8), 'amax')
    return positive | choose_free(~positive.any(1), overlap, prior, taken > 0)


MIN_INSIDE_PX = 0.01  # a centre on the border counts as outside


class NearestPriors(NamedTuple):
    """The k nearest priors of each truth on each level; K = L * k, level by level."""

    valid: Tensor  # (T, K) bool; false where a level has fewer than k cells
    cell: Tensor  # (T, K) int64
    iou: Tensor  # (T, K) of prior and truth; 0 where not valid
    centre: Tensor  # (T, K, 2) px, of the priors
    margin: Tensor  # (T, K) px from the prior's centre to the truth's nearest edge; outside < 0


class Lines(NamedTuple):
    """The k columns and k rows of each level nearest to a truth's centre, the nearest first.

    All that IoU and position need is separable: the axis before the last is x (columns), y (rows).
    """

    cells: Tensor  # (T, L, 2, k) int64, columns and rows
    square: Tensor  # (T, L, 2, k) squared distance of the priors' centres; infinite for no cell
    centre: Tensor  # (T, L, 2, k) px
    side: Tensor  # (T, L, 2, k) px, of the priors
    shared: Tensor  # (T, L, 2, k) px that prior and truth have in common
    margin: Tensor  # (T, L, 2, k) px from the prior's centre to the truth's nearer edge


def _nearest_lines(lattice: Lattice, truths: Tensor, image: Tensor, k: int) -> Lines:
    low, high = truths[:, None, :2, None], truths[:, None, 2:, None]  # (T, 1, 2, 1)
    centre = (low + high) / 2
    begin, end = lattice.begin[image][..., None], lattice.end[image][..., None]  # (T, L, 2, 1)
    base_low, base_high = lattice.base[:, :2, None], lattice.base[:, 2:, None]  # (L, 2, 1)
    stride = lattice.stride[..., None]
    nearest = ((centre - (base_low + base_high) / 2) / stride).nan_to_num().round()
    # Two spare cells: where a centre lies midway, rounding may name either neighbour the nearest.
    window = k + 2
    start = nearest.clamp(min=begin, max=end - 1).long() - window // 2
    start = torch.maximum(torch.minimum(start, end - window), begin)
    index = start + torch.arange(window, device=truths.device)
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


def nearest_priors(lattice: Lattice, truths: Tensor, image: Tensor, k: int) -> NearestPriors:
    """The k nearest valid priors of each truth on each level.

    Args:
        lattice: of the batch.
        truths: ``(T, 4)`` xyxy px.
        image: ``(T,)`` int64, the truth's image.
        k: candidates a level, at least 1.

    Returns:
        The candidates. Among priors at the same distance the choice is the same on every run.
    """
    lines = _nearest_lines(lattice, truths, image, k)
    pairs = [(i, j) for i in range(k) for j in range(k) if (i + 1) * (j + 1) <= k]
    columns, rows = ranks = torch.tensor(pairs).T.to(truths.device, non_blocking=True)
    distance = (lines.square[:, :, 0, columns] + lines.square[:, :, 1, rows]).sqrt_()
    distance, order = distance.sort(dim=-1, stable=True)
    chosen = ranks[:, order[..., :k]].movedim(0, 2)  # (T, L, 2, k)
    index, _, centre, side, shared, margin = (each.gather(-1, chosen) for each in lines)
    # IoU by the operations and in the order of boxes.iou, factor by factor.
    intersection = shared[:, :, 0] * shared[:, :, 1]
    areas = side[:, :, 0] * side[:, :, 1] + box_areas(truths)[:, None, None]
    overlap = intersection / (areas - intersection).clamp_(min=MIN_UNION)
    valid = distance[..., :k].isfinite()
    return NearestPriors(
        valid=valid.flatten(1),
        cell=(index[:, :, 1] * lattice.width[:, None] + index[:, :, 0]).flatten(1),
        iou=overlap.masked_fill_(~valid, 0).flatten(1),
        centre=centre.movedim(2, 3).flatten(1, 2),
        margin=margin.amin(2).flatten(1),
    )


def adaptive_threshold(candidates: NearestPriors) -> Tensor:
    """The IoU that makes a candidate positive (algorithm 1, lines 8 to 11).

    Args:
        candidates: of T truths.

    Returns:
        ``(T, 1)``, mean plus standard deviation; NaN for one candidate alone.
    """
    count = candidates.valid.sum(1, keepdim=True)
    # Measured from the largest, the mean of equal IoUs is that IoU, not one rounding above it.
    top = candidates.iou.amax(1, keepdim=True)
    below = (candidates.iou - top).masked_fill_(~candidates.valid, 0)
    offset = below.sum(1, keepdim=True) / count
    mean = top + offset
    deviation = (below - offset).masked_fill_(~candidates.valid, 0)
    # Unbiased, as in the authors' release: one candidate alone has no deviation and stays negative.
    return mean + (deviation.square_().sum(1, keepdim=True) / (count - 1)).sqrt_()


def positive_mask(candidates: NearestPriors) -> Tensor:
    """ATSS's adaptive threshold (algorithm 1, lines 8 to 14) on the candidates of each truth.

    Args:
        candidates: of T truths.

    Returns:
        ``(T, K)`` bool.
    """
    is_inside = candidates.margin > MIN_INSIDE_PX
    # A truth so large that its IoU rounds to 0 has all candidates equal, and is no object.
    is_object = candidates.iou > 0
    return is_object & (candidates.iou >= adaptive_threshold(candidates)) & is_inside


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


def capacity(num_truths: int, lattice: Lattice, k: int) -> int:
    """Slots that hold the positives of any batch with so many truths.

    Of K numbers at most K(K-1)/(2K-1), less than half, reach their mean plus unbiased deviation,
    unless all are equal. All IoUs can be equal where priors have one size, not where levels differ.
    """
    candidates = lattice.num_levels * k
    if lattice.sizes_differ:
        candidates = max(1, candidates * (candidates - 1) // (2 * candidates - 1))
    return num_truths * candidates


def assign_on_lattice(
    lattice: Lattice, truths: Tensor, image: Tensor, k: int, with_best_prior: bool = False
) -> Positives:
    """ATSS for all truths of all images in one call.

    Args:
        lattice: of the batch.
        truths: ``(T, 4)`` xyxy px, images one after the other; a truth with a coordinate that is no
            number, or without area, gets no positive.
        image: ``(T,)`` int64, the truth's image, ascending.
        k: candidates a level.
        with_best_prior: truths left without a positive take their best free prior.

    Returns:
        The positives, ordered by truth.
    """
    candidates = nearest_priors(lattice, truths, image, k)
    level = torch.arange(lattice.num_levels, device=truths.device).repeat_interleave(k)
    positive = _choose(lattice, candidates, image, level, with_best_prior)
    return _gather(lattice, candidates, positive, image, level)


def _choose(
    lattice: Lattice, candidates: NearestPriors, image: Tensor, level: Tensor, with_best_prior: bool
) -> Tensor:
    """Which candidates ``(T, K)`` are positive, each prior for one truth at most."""
    positive = positive_mask(candidates)
    eligible = candidates.valid if with_best_prior else positive
    cell = candidates.cell.where(eligible, candidates.cell.new_zeros(()))
    prior = (image * lattice.num_priors)[:, None] + lattice.first_prior[level] + cell
    prior = prior.where(eligible, prior.new_zeros(()))  # a last level without cells starts outside
    num_priors = len(lattice.begin) * lattice.num_priors
    positive = resolve_conflicts(positive, candidates.iou, prior, num_priors)
    if with_best_prior:
        positive = add_best_priors(positive, candidates.iou, prior, num_priors)
    return positive


def _gather(
    lattice: Lattice, candidates: NearestPriors, positive: Tensor, image: Tensor, level: Tensor
) -> Positives:
    """Move the positive candidates to the front: a fixed number of slots, so that nothing waits."""
    k = len(level) // lattice.num_levels
    slots = capacity(len(image), lattice, k)
    flat = positive.flatten()
    slot = (flat.cumsum(0) - 1).masked_fill_(~flat, slots).clamp_(max=slots)
    source = slot.new_zeros(slots + 1)
    source = source.scatter(0, slot, torch.arange(len(flat), device=slot.device))[:slots]
    valid = torch.arange(slots, device=slot.device) < flat.sum()
    truth = source.div(len(level), rounding_mode='floor')
    # Candidates that are not positive all name the first cell: reading it again costs little.
    each_image = image[:, None].where(positive, image.new_zeros(()))
    each_cell = candidates.cell.where(positive, candidates.cell.new_zeros(()))
    by_candidate = (each_image, each_cell, slot.view_as(positive))
    return Positives(
        valid=valid,
        image=image[truth],
        level=level[source % len(level)],
        cell=each_cell.flatten()[source],
        truth=truth,
        iou=candidates.iou.flatten()[source],
        centre=candidates.centre.flatten(0, 1)[source],
        by_level=[
            LevelSlots(*(field[:, first : first + k].flatten() for field in by_candidate))
            for first in range(0, len(level), k)
        ],
    )
