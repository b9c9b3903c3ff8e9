"""Intervals for box edges in pixels, from the edges' distributions.

Pure functions on tensors. Their inputs are the fields that ``test_cfg.with_distribution=True`` adds
to a result: ``edge_logits (N, 4, num_bins)``, ``bin_widths (N, 4)`` px and ``prior_centres (N, 2)``
px. Edges are in the order left, top, right, bottom. Positions are coordinates along the edge's
axis: x for left and right, y for top and bottom, in the image that the boxes refer to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Union

import torch
from torch import Tensor

from gfl_det.ops import distribution

SIDES = ('left', 'top', 'right', 'bottom')  # of a box: the order of its edges everywhere
# Distances count outwards from the prior's centre: left and up, right and down.
OUTWARDS = (-1.0, -1.0, 1.0, 1.0)
SIZES = ('small', 'medium', 'large')  # COCO's size classes, of the predicted box
SIZE_AREAS = (32.0**2, 96.0**2)  # px^2, limits between the sizes


class EdgeIntervals(NamedTuple):
    """Interval of positions of each edge, in px; ``low <= high``."""

    low: Tensor  # (N, 4)
    high: Tensor  # (N, 4)

    def widths(self) -> Tensor:
        """``(N, 4)`` px."""
        return self.high - self.low

    def contain(self, edges: Tensor) -> Tensor:
        """Which edges ``(N, 4)`` of xyxy boxes ``(N, 4)`` lie in their intervals, ends included."""
        return (edges >= self.low) & (edges <= self.high)


class EdgeQuantiles(NamedTuple):
    """Median and central interval of each edge's position."""

    low: Tensor  # (N, 4) px
    median: Tensor  # (N, 4) px
    high: Tensor  # (N, 4) px


def edge_quantiles(
    edge_logits: Tensor, bin_widths: Tensor, prior_centres: Tensor, level: float
) -> EdgeQuantiles:
    """Central interval and median of each edge's distribution.

    Args:
        edge_logits: ``(N, 4, num_bins)``.
        bin_widths: ``(N, 4)`` px.
        prior_centres: ``(N, 2)`` px.
        level: Fraction in [0, 1] of the distribution inside the interval; half of the rest lies on
            each side. :func:`.distribution.quantile` interpolates between bins.

    Returns:
        Positions in px, not clipped to the image.

    Raises:
        ValueError: If ``level`` lies outside [0, 1].

    Example:
        >>> logits = torch.full((1, 4, 4), -1e4)
        >>> logits[..., 2] = 0  # each edge two bins from the centre
        >>> widths, centres = torch.full((1, 4), 8.0), torch.tensor([[40.0, 40.0]])
        >>> edge_quantiles(logits, widths, centres, level=0.5).low
        tensor([[22., 22., 54., 54.]])
    """
    if not 0 <= level <= 1:
        raise ValueError(f'level must lie in [0, 1], not {level}')
    shares = ((1 - level) / 2, 0.5, (1 + level) / 2)
    near, median, far = (
        edge_positions(distribution.quantile(edge_logits, share), bin_widths, prior_centres)
        for share in shares
    )
    return EdgeQuantiles(torch.minimum(near, far), median, torch.maximum(near, far))


def edge_positions(distances: Tensor, bin_widths: Tensor, prior_centres: Tensor) -> Tensor:
    """Positions ``(N, 4)`` px of edges at distances ``(N, 4)`` in bins from the priors' centres.

    Example:
        >>> distances = torch.tensor([[1.0, 1.0, 2.0, 2.0]])
        >>> edge_positions(distances, torch.full((1, 4), 8.0), torch.tensor([[40.0, 40.0]]))
        tensor([[32., 32., 56., 56.]])
    """
    outwards = distances.new_tensor(OUTWARDS)
    return prior_centres.repeat(1, 2) + outwards * distances * bin_widths


def size_of(boxes: Tensor) -> Tensor:
    """Size class ``(...)`` of boxes ``(..., 4)`` xyxy px, an index into ``SIZES``.

    Example:
        >>> size_of(torch.tensor([[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 200.0, 100.0]]))
        tensor([0, 2])
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return sum((area >= each).long() for each in SIZE_AREAS)  # type: ignore[return-value]  # never 0


class FactorTable(NamedTuple):
    """Factors for whole boxes, by class and size of the box."""

    factors: Tensor  # (K, 3)

    def of(self, labels: Tensor, boxes: Tensor) -> Tensor:
        """Look up factors ``(..., 1)`` for boxes ``(..., 4)`` xyxy px with labels ``(...)``."""
        table = self.factors.to(boxes).flatten()
        place = labels.long().clamp(min=0) * len(SIZES) + size_of(boxes)
        return table[place].unsqueeze(-1)


Factor = Union[float, Sequence[float], FactorTable]


def edge_intervals(
    quantiles: EdgeQuantiles,
    factor: float | Sequence[float] | Tensor = 1.0,
    limit: Tensor | None = None,
) -> EdgeIntervals:
    """Stretch central intervals about their medians and clip them to the image.

    Args:
        quantiles: Result of :func:`edge_quantiles`.
        factor: At least 0, one value, one per edge or ``(N, 1)`` per box; 1 keeps the
            distribution's own interval, other values are fitted (:mod:`.calibration.intervals`).
            Both sides of the median keep their ratio.
        limit: ``(4,)`` or ``(N, 4)`` px: width, height, width, height of the image; None does not
            clip.

    Example:
        >>> three = (torch.tensor([[at] * 4]) for at in (8.0, 10.0, 16.0))
        >>> edge_intervals(EdgeQuantiles(*three), factor=2.0, limit=torch.tensor([20.0] * 4))
        EdgeIntervals(low=tensor([[6., 6., 6., 6.]]), high=tensor([[20., 20., 20., 20.]]))
    """
    plain = isinstance(factor, (float, int, Tensor))
    stretch: Any = factor if plain else quantiles.low.new_tensor(factor)
    low = quantiles.median - stretch * (quantiles.median - quantiles.low)
    high = quantiles.median + stretch * (quantiles.high - quantiles.median)
    if limit is not None:
        low, high = (torch.minimum(each.clamp(min=0), limit) for each in (low, high))
    return EdgeIntervals(low, high)


def stretch_needed(quantiles: EdgeQuantiles, edges: Tensor) -> Tensor:
    """The smallest ``factor`` at which :func:`edge_intervals`, unclipped, contains an edge.

    Interval calibrators are fitted on this conformity score: the distance from the median divided
    by the interval's half-width on that side.

    Args:
        quantiles: Quantiles with ``low < median < high``.
        edges: ``(N, 4)`` xyxy px of gt boxes.

    Returns:
        ``(N, 4)``, non-negative.

    Example:
        >>> three = (torch.tensor([[at] * 4]) for at in (8.0, 10.0, 16.0))
        >>> stretch_needed(EdgeQuantiles(*three), torch.tensor([[6.0, 8.0, 10.0, 13.0]]))
        tensor([[2.0000, 1.0000, 0.0000, 0.5000]])
    """
    below = (quantiles.median - edges) / (quantiles.median - quantiles.low)
    above = (edges - quantiles.median) / (quantiles.high - quantiles.median)
    return torch.maximum(below, above)
