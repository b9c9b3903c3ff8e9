"""ATSS for arbitrary priors, by distance to each prior; chunks of gts bound the memory.

The rule is that of :mod:`.closed_form`. Only the k nearest priors per level get an overlap, so no
matrix of all priors against all gts is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from gfl_det.models.assigners.closed_form import MIN_INSIDE_PX, choose_free
from gfl_det.ops.boxes import box_areas, box_centres, intersections

MAX_PAIRS = 2**21  # distances held at a time: 8 MiB in float32

# (prior indices (k, t), gt indices (t,)) -> overlaps (k, t)
OverlapFunction = Callable[[Tensor, Tensor], Tensor]


def _chunk(num_priors: int) -> int:
    """Number of gts per chunk, each paired with all priors."""
    return max(1, MAX_PAIRS // max(1, num_priors))


class Assignment(NamedTuple):
    """Gt index (-1 for none) and overlap (0 for none) of each prior."""

    gt: Tensor  # (P,) int64
    overlap: Tensor  # (P,)


def ignored_priors(priors: Tensor, regions: Tensor, iof_threshold: float) -> Tensor:
    """Mask of priors that lie in an ignored region by more than a fraction of their area.

    Args:
        priors: ``(P, 4)`` xyxy px.
        regions: ``(R, 4)`` xyxy px.
        iof_threshold: Fraction of the prior's area (intersection over foreground), above 0.

    Returns:
        ``(P,)`` bool.
    """
    ignored = torch.zeros(len(priors), dtype=torch.bool, device=priors.device)
    areas = box_areas(priors).clamp(min=1e-6)
    for chunk in regions.split(_chunk(len(priors))):
        shares = intersections(priors[:, None], chunk) / areas[:, None]
        ignored |= (shares > iof_threshold).any(1)
    return ignored


def assign(
    priors: Tensor,
    num_level_priors: Sequence[int],
    gts: Tensor,
    overlap_of: OverlapFunction,
    k: int,
    ignored: Tensor | None = None,
) -> Assignment:
    """Assign each prior of one image to a gt or to none.

    Args:
        priors: ``(P, 4)`` xyxy px, by level.
        num_level_priors: Number of priors per level.
        gts: ``(T, 4)`` xyxy px.
        overlap_of: IoU or another measure in [0, 1] of the given pairs.
        k: Candidates per level.
        ignored: ``(P,)`` bool, priors to choose last.

    Returns:
        Assignment; a prior claimed by several gts goes to the largest overlap, at ties to the
        lowest index.
    """
    best_overlap = priors.new_full((len(priors),), -1)
    best_gt = torch.full((len(priors),), -1, device=priors.device)
    centres = box_centres(priors)
    for gt in torch.arange(len(gts), device=priors.device).split(_chunk(len(priors))):
        boxes = gts[gt]
        candidates = _candidates(centres, boxes, num_level_priors, k, ignored)
        overlap = overlap_of(candidates, gt)
        positive = overlap >= overlap.mean(0) + overlap.std(0)
        centre = centres[candidates]
        inside = torch.cat([centre - boxes[:, :2], boxes[:, 2:] - centre], dim=-1)
        positive &= inside.amin(-1) > MIN_INSIDE_PX
        prior, value, owner = _claims(positive, candidates, overlap, gt)
        # At ties, gts of earlier chunks keep their priors.
        better = value > best_overlap[prior]
        best_overlap[prior[better]] = value[better].to(best_overlap.dtype)
        best_gt[prior[better]] = owner[better]
    return Assignment(best_gt, best_overlap.clamp(min=0))


def add_best_priors(
    found: Assignment,
    priors: Tensor,
    num_level_priors: Sequence[int],
    gts: Tensor,
    overlap_of: OverlapFunction,
    k: int,
    ignored: Tensor | None = None,
) -> Assignment:
    """Assign gts without a prior to the free candidate with the largest overlap.

    Args:
        found: Result of :func:`assign` for the other arguments.

    Returns:
        Assignment; ignored priors count as taken.
    """
    has_one = torch.zeros(len(gts), dtype=torch.bool, device=priors.device)
    has_one[found.gt[found.gt >= 0]] = True
    needy = (~has_one).nonzero().squeeze(1)
    if len(needy) == 0:
        return found
    centres, pairs = box_centres(priors), []
    for gt in needy.split(_chunk(len(priors))):
        candidates = _candidates(centres, gts[gt], num_level_priors, k, ignored)
        overlap = overlap_of(candidates, gt).T
        if ignored is not None:
            overlap = overlap.masked_fill(ignored[candidates.T], 0)
        pairs.append((overlap, candidates.T))
    overlap, prior = (torch.cat(each) for each in zip(*pairs))
    all_need = torch.ones_like(needy, dtype=torch.bool)
    chosen = choose_free(all_need, overlap, prior, found.gt >= 0)
    row = chosen.nonzero()[:, 0]
    return Assignment(
        found.gt.index_put((prior[chosen],), needy[row]),
        found.overlap.index_put((prior[chosen],), overlap[chosen].to(found.overlap.dtype)),
    )


def _candidates(
    centres: Tensor,
    boxes: Tensor,
    num_level_priors: Sequence[int],
    k: int,
    ignored: Tensor | None,
) -> Tensor:
    """Indices ``(K, t)`` of the k priors per level nearest to boxes ``(t, 4)``."""
    distance = (centres[:, None] - box_centres(boxes)).pow(2).sum(-1).sqrt()
    if ignored is not None:
        distance = distance.masked_fill(ignored[:, None], 1e8)  # behind all others
    return _nearest(distance, num_level_priors, k)


def _nearest(distance: Tensor, num_level_priors: Sequence[int], k: int) -> Tensor:
    """Indices ``(K, t)`` of the k nearest priors per level, by distances ``(P, t)``."""
    found, first = [], 0
    for count in num_level_priors:
        part = distance[first : first + count]
        found.append(part.topk(min(k, count), dim=0, largest=False).indices + first)
        first += count
    return torch.cat(found)


def _claims(
    positive: Tensor, candidates: Tensor, overlap: Tensor, gt: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each claimed prior once, with its largest overlap and that gt; ties go to the first gt."""
    rank = positive.T.nonzero().flip(0)  # later gts first
    values = overlap.T[rank[:, 0], rank[:, 1]]
    order = values.sort(stable=True).indices  # best last; at ties, first gt last
    rank, values = rank[order], values[order]
    prior = candidates.T[rank[:, 0], rank[:, 1]]
    place = torch.arange(len(prior), device=prior.device)
    claimed, group = prior.unique(return_inverse=True)
    last = torch.zeros_like(claimed).scatter_reduce(0, group, place, 'amax')
    return claimed, values[last], gt[rank[last, 0]]
