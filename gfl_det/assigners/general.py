"""ATSS for priors of any kind, by distance to each of them; memory is bounded by chunks of truths.

The same rule as :mod:`.closed_form`. Only the k nearest priors a level get an overlap, so that no
matrix of all priors against all truths is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from ..boxes import box_areas, box_centres, intersections
from .closed_form import MIN_INSIDE_PX

MAX_PAIRS = 2**21  # distances held at a time: 8 MiB in float32

# (prior indices (k, t), truth indices (t,)) -> overlaps (k, t)
OverlapFunction = Callable[[Tensor, Tensor], Tensor]


class Assignment(NamedTuple):
    """For each prior its truth (index, -1 for none) and the overlap with it (0 for none)."""

    truth: Tensor  # (P,) int64
    overlap: Tensor  # (P,)


def ignored_priors(priors: Tensor, regions: Tensor, iof_threshold: float) -> Tensor:
    """Priors of which more than a share lies in a region whose objects are not labelled.

    Args:
        priors: ``(P, 4)`` xyxy px.
        regions: ``(R, 4)`` xyxy px.
        iof_threshold: share of the prior's own area (intersection over foreground), above 0.

    Returns:
        ``(P,)`` bool.
    """
    ignored = torch.zeros(len(priors), dtype=torch.bool, device=priors.device)
    areas = box_areas(priors).clamp(min=1e-6)
    for chunk in regions.split(max(1, MAX_PAIRS // max(1, len(priors)))):
        shares = intersections(priors[:, None], chunk) / areas[:, None]
        ignored |= (shares > iof_threshold).any(1)
    return ignored


def assign(
    priors: Tensor,
    num_level_priors: Sequence[int],
    truths: Tensor,
    overlap_of: OverlapFunction,
    k: int,
    ignored: Tensor | None = None,
) -> Assignment:
    """Assign each prior of one image to a truth or to none.

    Args:
        priors: ``(P, 4)`` xyxy px, level by level.
        num_level_priors: priors of each level.
        truths: ``(T, 4)`` xyxy px.
        overlap_of: IoU, or another measure in [0, 1], of the named pairs.
        k: candidates a level.
        ignored: ``(P,)`` bool, priors chosen last.

    Returns:
        The assignment; a prior claimed by several truths goes to the larger overlap, the lower
        index at a tie.
    """
    best_overlap = priors.new_full((len(priors),), -1)
    best_truth = torch.full((len(priors),), -1, device=priors.device)
    centres, truth_centres = box_centres(priors), box_centres(truths)
    for begin in range(0, len(truths), max(1, MAX_PAIRS // max(1, len(priors)))):
        chunk = slice(begin, begin + max(1, MAX_PAIRS // max(1, len(priors))))
        truth = torch.arange(len(truths), device=priors.device)[chunk]
        distance = (centres[:, None] - truth_centres[None, chunk]).pow(2).sum(-1).sqrt()
        if ignored is not None:
            distance = distance.masked_fill(ignored[:, None], 1e8)  # behind all others
        candidate, first = [], 0
        for count in num_level_priors:
            nearest = distance[first : first + count].topk(min(k, count), dim=0, largest=False)
            candidate.append(nearest.indices + first)
            first += count
        candidates = torch.cat(candidate)  # (K, t)
        overlap = overlap_of(candidates, truth)
        positive = overlap >= overlap.mean(0) + overlap.std(0)
        centre = centres[candidates]
        inside = torch.cat([centre - truths[chunk, :2], truths[chunk, 2:] - centre], dim=-1)
        positive &= inside.amin(-1) > MIN_INSIDE_PX
        # One truth after the other within the chunk, by sorting: a larger overlap wins, and the
        # first truth at a tie, because the stable sort keeps the later truths in front.
        rank = positive.T.nonzero().flip(0)
        values = overlap.T[rank[:, 0], rank[:, 1]]
        order = values.sort(stable=True).indices
        rank, values = rank[order], values[order]
        prior = candidates.T[rank[:, 0], rank[:, 1]]
        last = torch.full_like(best_truth, -1)
        last = last.scatter_reduce(0, prior, torch.arange(len(prior), device=prior.device), 'amax')
        claimed = (last >= 0).nonzero().squeeze(1)
        winner = last[claimed]
        better = values[winner] > best_overlap[claimed]
        best_overlap[claimed[better]] = values[winner[better]].to(best_overlap.dtype)
        best_truth[claimed[better]] = truth[rank[winner[better], 0]]
    return Assignment(best_truth, best_overlap.clamp(min=0))
