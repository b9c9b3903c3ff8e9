"""Calibrators of edge intervals: factors that give intervals the coverage of their level.

Edge distributions are trained to have the right mean, not the right width, so the coverage of their
intervals differs from the level. A calibrator stretches or shrinks an interval about its median, by
a factor per level and side of the box from split conformal prediction (Papadopoulos et al.,
"Inductive Confidence Machines for Regression", ECML 2002; Romano et al., "Conformalized Quantile
Regression", NeurIPS 2019, here with a stretch instead of an additive margin, so that uncertain
edges keep wider intervals): the ``ceil((n + 1) * level)``-th smallest of the stretches needed by
the ``n`` gt edges of that side. A new edge that is exchangeable with these lies in its stretched
interval with a probability of at least ``level``.

The guarantee covers detections that match a gt box of their class at ``iou_threshold``, on average
over all of them, not per image, class or size. The four edges of a box and the boxes of an image
are not independent, so with few images a factor is less certain than the number of edges suggests.

At equal coverage narrower intervals are better, and the interval score combines both. Each kind is
fitted by split conformal prediction on half of the images and evaluated on the other half, in many
random splits, so that no kind is favoured by its fit. Three kinds do not use the distributions and
are placed about the predicted box: a constant number of pixels per side, a constant share of the
box's width or height, and a constant per size of box.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gfl_det.calibration.calibrators import FitSource
from gfl_det.calibration.joint import JointFactors, fit_joint, interval_score, rank_of
from gfl_det.calibration.operating_point import OperatingPoint
from gfl_det.datasets.annotations import listed
from gfl_det.errors import ConfigError, DataError
from gfl_det.ops import distribution
from gfl_det.ops.intervals import (
    SIZES,
    EdgeIntervals,
    edge_intervals,
    edge_positions,
    edge_quantiles,
    size_of,
    stretch_needed,
)

# Fitted levels; factors in between are interpolated. At lower levels intervals are so short that
# an edge's error in units of their width says little about the longer ones.
LEVELS = (*(round(0.05 * step, 2) for step in range(10, 20)), 0.975, 0.99)


@dataclass(frozen=True)
class MatchedEdges:
    """Detections that match a gt box, with their edge distributions.

    Args:
        logits: ``(N, 4, num_bins)``.
        bin_widths: ``(N, 4)`` px.
        prior_centres: ``(N, 2)`` px.
        limits: ``(N, 4)`` px, width and height of the image, given twice.
        gts: ``(N, 4)`` xyxy px, gt boxes.
        labels: ``(N,)`` int64.
        images: ``(N,)`` int64; None: not known.
    """

    logits: Tensor
    bin_widths: Tensor
    prior_centres: Tensor
    limits: Tensor
    gts: Tensor
    labels: Tensor
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.gts)

    def intervals(
        self, level: float, factor: float | Sequence[float] | Tensor = 1.0
    ) -> EdgeIntervals:
        """Intervals as a detector returns them: stretched, and clipped to the image."""
        quantiles = edge_quantiles(self.logits, self.bin_widths, self.prior_centres, level)
        return edge_intervals(quantiles, factor, self.limits)

    def boxes(self) -> Tensor:
        """Boxes ``(N, 4)`` xyxy px: means of the distributions, clipped to the image."""
        means = edge_positions(distribution.mean(self.logits), self.bin_widths, self.prior_centres)
        return torch.minimum(means.clamp(min=0), self.limits)

    def take(self, rows: np.ndarray) -> MatchedEdges:
        """Select by indices."""
        chosen = torch.from_numpy(rows)
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        kept = {name: None if each is None else each[chosen] for name, each in fields.items()}
        return MatchedEdges(**kept)  # type: ignore[arg-type]  # only ``images`` may be None

    def stretches(self, level: float) -> Tensor:
        """Stretch needed per edge, ``(N, 4)``: :func:`~gfl_det.ops.intervals.stretch_needed`."""
        quantiles = edge_quantiles(self.logits, self.bin_widths, self.prior_centres, level)
        return stretch_needed(quantiles, self.gts)


@dataclass(frozen=True)
class IntervalCalibrator:
    """Fitted interval factors; :mod:`.files` saves and loads them.

    Args:
        levels: Ascending levels in (0, 1).
        factors: Factors of the left, top, right and bottom edge per level; not decreasing, so that
            intervals of higher levels contain those of lower ones.
        score_type: Name of the head that predicts the distributions.
        class_names: Class names of the fitted dataset, in label order.
        iou_threshold: Minimum IoU of a match with a gt box.
        source: Data of the fit; ``detections`` counts the matched ones.
        joint: Factors for whole boxes; None in files of earlier versions.
    """

    levels: tuple[float, ...]
    factors: tuple[tuple[float, ...], ...]
    score_type: str
    class_names: tuple[str, ...]
    iou_threshold: float
    source: FitSource
    joint: JointFactors | None = None

    def __post_init__(self) -> None:
        levels, factors = np.array(self.levels, float), np.array(self.factors, float)
        if not len(levels) or factors.shape != (len(levels), 4):
            raise ConfigError('an interval calibrator needs four factors for each of its levels')
        if not ((levels > 0) & (levels < 1)).all() or (np.diff(levels) <= 0).any():
            raise ConfigError(f'levels of intervals must ascend between 0 and 1, not {self.levels}')
        if (
            not (np.isfinite(factors) & (factors >= 0)).all()
            or (np.diff(factors, axis=0) < 0).any()
        ):
            raise ConfigError('factors of intervals must be at least 0 and not decrease')

    def factors_at(self, level: float) -> tuple[float, ...]:
        """The four factors of a level: interpolated, or the first ones below the lowest level.

        Raises:
            DataError: If the level is above the highest fitted one.
        """
        if level > self.levels[-1]:
            raise DataError(
                f'the interval calibrator was fitted on {self.source.detections} boxes, which give '
                f'levels up to {self.levels[-1]:g}, not {level:g}: lower interval_level, or fit it '
                'on more images.'
            )
        return tuple(float(np.interp(level, self.levels, side)) for side in zip(*self.factors))


def fit_factors(
    edges: MatchedEdges, levels: Sequence[float] = LEVELS, together: bool = False
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Fit levels and factors; the module docstring explains the method.

    Args:
        edges: Matched edges of a split that is not used for evaluation.
        levels: Ascending levels in (0, 1); those with too few edges are left out.
        together: Fit one factor for all four sides, which needs fewer detections.

    Raises:
        DataError: If there are too few edges for every level.

    Example:
        >>> import torch
        >>> number, edges = 99, torch.rand(99, 4) * 8 + 16
        >>> maps = (torch.zeros(number, 4, 5), torch.full((number, 4), 8.0), torch.zeros(number, 2))
        >>> matched = MatchedEdges(*maps, torch.full((number, 4), 64.0), edges, torch.zeros(number))
        >>> levels, factors = fit_factors(matched, levels=[0.8])
        >>> levels, len(factors[0])
        ((0.8,), 4)
    """
    number = (4 if together else 1) * len(edges)
    reached = [level for level in levels if math.ceil((number + 1) * level) <= number]
    if not reached:
        raise DataError(
            f'{len(edges)} detections match a gt box, too few to fit intervals: use more images.'
        )
    factors = np.empty((len(reached), 4))
    for row, level in enumerate(reached):
        needed = edges.stretches(level)
        sides = [needed] * 4 if together else needed.unbind(1)
        factors[row] = [conformal_quantile(side, level) for side in sides]
    rising = np.maximum.accumulate(factors, axis=0)
    return tuple(reached), tuple(tuple(row) for row in rising.tolist())


def fit_whole_boxes(
    edges: MatchedEdges, class_names: Sequence[str], levels: Sequence[float] = LEVELS
) -> JointFactors:
    """Fit factors for whole boxes by class and size; see :mod:`.joint`.

    Args:
        edges: Matched edges of a split that is not used for evaluation.
        class_names: Class names in label order.
        levels: Ascending levels in (0, 1).

    Raises:
        DataError: If there are too few boxes for every level.

    Example:
        >>> logits = torch.zeros(300, 4, 5)  # any distance up to 4 bins is as likely
        >>> sides = torch.tensor([-1.0, -1.0, 1.0, 1.0])
        >>> gt = 50 + sides * torch.linspace(8, 24, 300)[:, None]
        >>> widths, centres = torch.full((300, 4), 8.0), torch.full((300, 2), 50.0)
        >>> labels, limits = torch.zeros(300, dtype=torch.long), torch.full((300, 4), 100.0)
        >>> edges = MatchedEdges(logits, widths, centres, limits, gt, labels)
        >>> fit_whole_boxes(edges, ['cat'], [0.5, 0.9]).names
        ('cat, medium', 'rest')
    """
    stretches = torch.stack([edges.stretches(level) for level in levels]).double().numpy()
    sizes = size_of(edges.boxes()).numpy()
    return fit_joint(stretches, edges.labels.numpy(), sizes, class_names, levels)


def conformal_quantile(scores: Tensor, level: float) -> float:
    """The ``ceil((n + 1) * level)``-th smallest of n scores (see the module), at least 0.

    Raises:
        ValueError: If n is too small for the level.

    Example:
        >>> import torch
        >>> conformal_quantile(torch.arange(1.0, 10.0), 0.9)
        9.0
    """
    ordered = scores.double().flatten().sort().values
    # (n + 1) * level may be an integer that floats miss slightly.
    rank = math.ceil(round((len(ordered) + 1) * level, 9))
    if not 1 <= rank <= len(ordered):
        raise ValueError(f'{len(ordered)} scores give no quantile at level {level}')
    return max(0.0, float(ordered[rank - 1]))


def check_applies(
    calibrator: IntervalCalibrator | OperatingPoint, path: str, score_type: str, num_classes: int
) -> None:
    """Refuse a calibrator, or cuts, of another head or number of classes.

    Raises:
        DataError: If the head or the number of classes differs.

    Example:
        >>> source = FitSource('', (), 9)
        >>> fitted = IntervalCalibrator((0.9,), ((1.0,) * 4,), 'GFLHead', ('cat',), 0.5, source)
        >>> check_applies(fitted, 'intervals.json', 'GFLHead', num_classes=1)
    """
    if calibrator.score_type != score_type:
        raise DataError(
            f'{path} was fitted for the head {calibrator.score_type!r}, not for {score_type!r}: '
            'fit one for it.'
        )
    if len(calibrator.class_names) != num_classes:
        raise DataError(
            f'{path} was fitted for the {len(calibrator.class_names)} classes '
            f'{listed(list(calibrator.class_names))}, but the head has {num_classes}: fit one '
            'for it.'
        )


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
