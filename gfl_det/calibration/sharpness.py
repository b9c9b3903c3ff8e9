"""Sharpness of intervals from distributions, compared with simpler intervals.

At equal coverage narrower intervals are better, and the interval score combines both. Each kind is
fitted by split conformal prediction on half of the images and evaluated on the other half, in many
random splits, so that no kind is favoured by its fit. Three kinds do not use the distributions and
are placed about the predicted box: a constant number of pixels per side, a constant share of the
box's width or height, and a constant per size of box.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gfl_det.calibration.intervals import MatchedEdges
from gfl_det.calibration.joint import interval_score, rank_of
from gfl_det.errors import DataError
from gfl_det.ops.intervals import SIZES, edge_quantiles, size_of

KINDS = ('distributions', 'constant', 'share of the side', 'size group')
SPLITS = 50


class Sharpness(NamedTuple):
    """Results of one kind of interval, averaged over splits."""

    coverage: float  # share of gt edges inside
    width: float  # px
    score: float  # px, see `interval_score`
    box_coverage: float  # share of boxes with all edges inside, for whole-box intervals
    box_width: float  # px, per edge of these


class _Scaled(NamedTuple):
    """Intervals of stretch 1 about a centre, in px, with groups that are fitted separately."""

    centre: np.ndarray  # (N, 4)
    below: np.ndarray  # (N, 4) px to the lower end
    above: np.ndarray  # (N, 4)
    group: np.ndarray  # (N,) int64

    def stretches(self, edges: np.ndarray) -> np.ndarray:
        low, high = (self.centre - edges) / self.below, (edges - self.centre) / self.above
        return np.maximum(low, high)


def compare_intervals(
    edges: MatchedEdges, level: float = 0.9, splits: int = SPLITS, seed: int = 0
) -> dict[str, Sharpness]:
    """Compare the kinds of :data:`KINDS` in random halves of the images.

    Args:
        edges: Matched edges with ``images``, at least two.
        level: Level of the intervals, in (0, 1).
        splits: Number of random splits.
        seed: Seed of the splits.

    Raises:
        DataError: If there is only one image, or a half has too few boxes for the level.

    Example:
        >>> import torch
        >>> number, edges = 200, torch.rand(200, 4) + torch.tensor([16.0, 16.0, 48.0, 48.0])
        >>> bins = (torch.zeros(number, 4, 5), torch.full((number, 4), 8.0))
        >>> centres, limits = torch.full((number, 2), 32.0), torch.full((number, 4), 64.0)
        >>> label, image = torch.zeros(number, dtype=int), torch.arange(number)
        >>> matched = MatchedEdges(*bins, centres, limits, edges, label, image)
        >>> list(compare_intervals(matched, splits=2))
        ['distributions', 'constant', 'share of the side', 'size group']
    """
    assert edges.images is not None  # set by detectors
    image = np.unique(edges.images.numpy(), return_inverse=True)[1]
    number = int(image.max(initial=-1)) + 1
    if number < 2:
        raise DataError(f'{number} images with matched boxes cannot be halved: give more images.')
    rng = np.random.default_rng(seed)
    true, limits = edges.gts.double().numpy(), edges.limits.double().numpy()
    kinds = _kinds(edges, level)
    found: dict[str, list[Sharpness]] = {name: [] for name in kinds}
    for _ in range(splits):
        first = np.zeros(number, bool)
        first[rng.permutation(number)[: number // 2]] = True
        fitted, judged = np.flatnonzero(first[image]), np.flatnonzero(~first[image])
        if rank_of(len(fitted), level) > len(fitted) or not len(judged):
            raise DataError(
                f'half of the images has {len(fitted)} matched boxes, too few for level {level:g}: '
                'give more images, or lower the level.'
            )
        for name, kind in kinds.items():
            found[name].append(_judge(kind, true, limits, fitted, judged, level))
    return {name: Sharpness(*np.mean(rows, axis=0).tolist()) for name, rows in found.items()}


def _kinds(edges: MatchedEdges, level: float) -> dict[str, _Scaled]:
    quantiles = edge_quantiles(edges.logits, edges.bin_widths, edges.prior_centres, level)
    low, median, high = (each.double().numpy() for each in quantiles)
    boxes = edges.boxes()
    box = boxes.double().numpy()
    sides = np.tile(np.maximum(box[:, 2:] - box[:, :2], 1), 2)
    one, alone = np.ones_like(box), np.zeros(len(box), np.int64)
    kinds = (
        _Scaled(median, median - low, high - median, alone),
        _Scaled(box, one, one, alone),
        _Scaled(box, sides, sides, alone),
        _Scaled(box, one, one, size_of(boxes).numpy()),
    )
    return dict(zip(KINDS, kinds))


def _judge(
    kind: _Scaled,
    true: np.ndarray,
    limits: np.ndarray,
    fitted: np.ndarray,
    judged: np.ndarray,
    level: float,
) -> Sharpness:
    needed = kind.stretches(true)
    factors, whole = np.empty((len(SIZES), 4)), np.empty((len(SIZES), 1))
    for group in range(len(SIZES)):
        rows = fitted[kind.group[fitted] == group]
        rank = rank_of(len(rows), level)
        if rank > len(rows):  # too few in the group: use all boxes
            rows, rank = fitted, rank_of(len(fitted), level)
        factors[group] = np.sort(needed[rows], axis=0)[rank - 1]
        whole[group] = np.sort(needed[rows].max(1))[rank - 1]
    ends = [_ends(kind, each, limits, judged) for each in (factors, whole)]
    inside = [((true[judged] >= low) & (true[judged] <= high)) for low, high in ends]
    (low, high), (box_low, box_high) = ends
    return Sharpness(
        float(inside[0].mean()),
        float((high - low).mean()),
        interval_score(low, high, true[judged], level),
        float(inside[1].all(1).mean()),
        float((box_high - box_low).mean()),
    )


def _ends(
    kind: _Scaled, factors: np.ndarray, limits: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    stretch = np.maximum(factors, 0)[kind.group[rows]]
    low = kind.centre[rows] - stretch * kind.below[rows]
    high = kind.centre[rows] + stretch * kind.above[rows]
    return tuple(np.clip(each, 0, limits[rows]) for each in (low, high))
