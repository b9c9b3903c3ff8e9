"""A prior for truths that ATSS leaves without one: pure functions on tensors, torch alone.

ATSS wants a prior's centre inside the truth. Where strides are wider than a truth there may be
none, and the truth then trains nothing. Here each such truth takes, of its candidates, the free
prior with the largest overlap, the nearer at a tie; priors that ATSS gave away stay where they are.
On a lattice the first choice is the best prior of all, as overlap falls with distance among boxes
of one size.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
