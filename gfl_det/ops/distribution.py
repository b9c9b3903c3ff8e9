"""The general distribution of a box edge as pure functions on tensors, torch only.

An edge is predicted as a discrete distribution over ``num_bins = reg_max + 1`` bins at the
distances 0, 1, ..., reg_max, in strides, from a prior's centre to the edge (Li et al., "Generalized
Focal Loss", NeurIPS 2020, section 3.2, eqs. 3 to 5). All functions take logits ``(..., num_bins)``
before the softmax, work in float32 at least, and return ``(...)`` in strides (1 bin = 1 stride).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TwoBins(NamedTuple):
    """A distance as weights on the two bins around it; the weights sum to 1."""

    left: Tensor  # (...) int64, in [0, num_bins - 2]; the right bin is left + 1
    left_weight: Tensor  # (...) in [0, 1]
    right_weight: Tensor  # (...) in [0, 1]


def full_precision(values: Tensor) -> Tensor:
    """Convert float16 and bfloat16 values to float32; keep float32 and float64.

    Example:
        >>> full_precision(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return values if values.dtype == torch.float64 else values.float()


def bin_positions(logits: Tensor) -> Tensor:
    """Distances of the bins, ``(num_bins,)`` = 0, 1, ..., reg_max in strides.

    Example:
        >>> bin_positions(torch.zeros(1, 4))
        tensor([0., 1., 2., 3.])
    """
    return torch.arange(logits.shape[-1], dtype=full_precision(logits).dtype, device=logits.device)


def mean(logits: Tensor) -> Tensor:
    """Expected distance of an edge (eq. 5): the sum of P(i) * i over the bins.

    Args:
        logits: ``(..., num_bins)``.

    Returns:
        ``(...)`` in strides, in [0, num_bins - 1].

    Example:
        >>> mean(torch.zeros(1, 5))  # equal bins 0 to 4
        tensor([2.])
    """
    return full_precision(logits).softmax(-1) @ bin_positions(logits)


def std(logits: Tensor) -> Tensor:
    """Standard deviation of an edge's distribution, the head's uncertainty about the edge.

    Args:
        logits: ``(..., num_bins)``.

    Returns:
        ``(...)`` in strides, in [0, (num_bins - 1) / 2]; 0 when one bin holds all probability.

    Example:
        >>> std(torch.tensor([[0.0, -1e4, 0.0]]))  # bins 0 and 2 alike
        tensor([1.])
    """
    probabilities = full_precision(logits).softmax(-1)
    positions = bin_positions(logits)
    centre = (probabilities @ positions).unsqueeze(-1)
    return (probabilities * (positions - centre).square()).sum(-1).sqrt()


def two_bin_target(distances: Tensor, num_bins: int) -> TwoBins:
    """Two-bin distribution whose mean is the target distance (section 3.2, eq. 6).

    Args:
        distances: ``(...)`` in strides; clamped to [0, num_bins - 1].
        num_bins: Number of bins, at least 2.

    Returns:
        The lower bin and both weights.

    Example:
        >>> target = two_bin_target(torch.tensor([2.25]), num_bins=8)
        >>> target.left, target.left_weight, target.right_weight
        (tensor([2]), tensor([0.7500]), tensor([0.2500]))
    """
    clamped = distances.clamp(min=0, max=num_bins - 1)
    left = clamped.long().clamp(max=num_bins - 2)  # the last bin is only ever a right neighbour
    right_weight = clamped - left
    return TwoBins(left, 1 - right_weight, right_weight)


def fold(logits: Tensor, num_bins: int) -> Tensor:
    """Fold a distribution onto fewer bins, adding the probability beyond the last bin to it.

    The mean only falls if some probability lay beyond, as a target outside the regression range is
    clamped to it.

    Args:
        logits: ``(..., n)``.
        num_bins: At least 1; n or more leaves the logits unchanged.

    Returns:
        Logits ``(..., min(n, num_bins))`` of the kept and the summed probabilities.

    Example:
        >>> fold(torch.zeros(1, 4), num_bins=3).softmax(-1)
        tensor([[0.2500, 0.2500, 0.5000]])
    """
    if num_bins >= logits.shape[-1]:
        return logits
    kept, beyond = full_precision(logits).split(
        [num_bins - 1, logits.shape[-1] - num_bins + 1], dim=-1
    )
    return torch.cat([kept, beyond.logsumexp(-1, keepdim=True)], dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of an edge's distribution in nats: 0 for a one-hot, log(num_bins) for a uniform one.

    Args:
        logits: ``(..., num_bins)``.

    Returns:
        ``(...)`` in [0, log(num_bins)].

    Example:
        >>> entropy(torch.zeros(1, 4)).exp()  # as unsure as among four bins
        tensor([4.])
    """
    log_probabilities = full_precision(logits).log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def quantile(logits: Tensor, level: float) -> Tensor:
    """Quantile of an edge's distribution: a fraction ``level`` lies below this distance.

    A bin's probability is spread evenly over the unit interval around its distance (cut at 0 and
    reg_max), which makes the cumulative distribution continuous and its inverse exact and monotone
    in ``level``.

    Args:
        logits: ``(..., num_bins)``.
        level: Fraction in [0, 1].

    Returns:
        ``(...)`` in strides, in [0, num_bins - 1].

    Raises:
        ValueError: If ``level`` lies outside [0, 1].

    Example:
        >>> quantile(torch.tensor([-1e4, -1e4, 0.0, -1e4]), 0.5)
        tensor(2.)
    """
    if not 0 <= level <= 1:
        raise ValueError(f'level must lie in [0, 1], not {level}')
    probabilities = full_precision(logits).softmax(-1)
    below = probabilities.cumsum(-1)
    last = logits.shape[-1] - 1
    bin_index = (below < level).sum(-1, keepdim=True).clamp(max=last)
    inside = probabilities.gather(-1, bin_index)
    share = (level - (below.gather(-1, bin_index) - inside)) / inside.clamp(min=1e-12)
    low = (bin_index - 0.5).clamp(min=0)
    high = (bin_index + 0.5).clamp(max=last)
    return (low + share.clamp(0, 1) * (high - low)).squeeze(-1)
