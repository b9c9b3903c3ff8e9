"""Calibrators of edge intervals: factors that make them hold the share of edges that they promise.

An edge's distribution is trained to have the right mean, not the right width, so its own interval
holds another share of true edges than its level says. A calibrator stretches (or shrinks) it about
its median, by a factor for each level and side of a box that split conformal prediction finds
(Papadopoulos et al., "Inductive Confidence Machines for Regression", ECML 2002; Romano et al.,
"Conformalized Quantile Regression", NeurIPS 2019, here with a stretch in place of their additive
margin, so that unsure edges keep wider intervals): the ``ceil((n + 1) * level)``-th smallest of the
stretches that the ``n`` true edges of that side needed. If another edge is exchangeable with those,
its stretched interval holds it with a probability of at least ``level``.

What that says and what not: it is about detections that match a gt box of their class at
``iou_threshold``, over all of them together, and not about each image, class or size; the four
edges of a box, and the boxes of an image, are not independent draws, so few images make a factor
less certain than their number of edges suggests.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gfl_det.calibration.calibrators import FitSource
from gfl_det.calibration.joint import JointFactors, fit_joint
from gfl_det.datasets.annotations import listed
from gfl_det.errors import ConfigError, DataError
from gfl_det.ops import distribution
from gfl_det.ops.intervals import (
    EdgeIntervals,
    edge_intervals,
    edge_positions,
    edge_quantiles,
    size_of,
    stretch_needed,
)

# Levels that factors are fitted for; between two of them a factor is interpolated. Below, halves of
# intervals are so short that an edge's error, in units of them, says little of the longer ones.
LEVELS = (*(round(0.05 * step, 2) for step in range(10, 20)), 0.975, 0.99)


@dataclass(frozen=True)
class MatchedEdges:
    """Detections that match a gt box, with the distributions of their edges.

    Args:
        logits: ``(N, 4, num_bins)``.
        bin_widths: ``(N, 4)`` px.
        prior_centres: ``(N, 2)`` px.
        limits: ``(N, 4)`` px, width and height of the image, twice.
        truths: ``(N, 4)`` xyxy px of the true boxes.
        labels: ``(N,)`` int64.
        images: ``(N,)`` int64; None: not known.
    """

    logits: Tensor
    bin_widths: Tensor
    prior_centres: Tensor
    limits: Tensor
    truths: Tensor
    labels: Tensor
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.truths)

    def intervals(
        self, level: float, factor: float | Sequence[float] | Tensor = 1.0
    ) -> EdgeIntervals:
        """Intervals as a detector gives them: stretched, and cut at the image's border."""
        quantiles = edge_quantiles(self.logits, self.bin_widths, self.prior_centres, level)
        return edge_intervals(quantiles, factor, self.limits)

    def boxes(self) -> Tensor:
        """``(N, 4)`` xyxy px: the means of the distributions, cut at the image's border."""
        means = edge_positions(distribution.mean(self.logits), self.bin_widths, self.prior_centres)
        return torch.minimum(means.clamp(min=0), self.limits)

    def take(self, rows: np.ndarray) -> MatchedEdges:
        """Those of some indices."""
        chosen = torch.from_numpy(rows)
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        kept = {name: None if each is None else each[chosen] for name, each in fields.items()}
        return MatchedEdges(**kept)  # type: ignore[arg-type]

    def stretches(self, level: float) -> Tensor:
        """``(N, 4)``, see :func:`~gfl_det.ops.intervals.stretch_needed`."""
        quantiles = edge_quantiles(self.logits, self.bin_widths, self.prior_centres, level)
        return stretch_needed(quantiles, self.truths)


@dataclass(frozen=True)
class IntervalCalibrator:
    """Fitted factors; :mod:`.files` saves and loads them.

    Args:
        levels: ascending, in (0, 1).
        factors: for each level those of the left, top, right and bottom edge, not falling with the
            level, so that the interval of a higher level holds that of a lower one.
        score_type: whose distributions they are for: the name of a head.
        class_names: of the data set that they were fitted on, in the order of the labels.
        iou_threshold: that a detection needs to match a gt box.
        source: the data; ``detections`` counts the matched ones.
        joint: factors for whole boxes; None in files of earlier versions.
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
            raise ConfigError(f'levels of intervals ascend between 0 and 1, not {self.levels}')
        if (
            not (np.isfinite(factors) & (factors >= 0)).all()
            or (np.diff(factors, axis=0) < 0).any()
        ):
            raise ConfigError('factors of intervals are at least 0 and do not fall')

    def factors_at(self, level: float) -> tuple[float, ...]:
        """The four factors of a level: interpolated between fitted levels, the first ones below.

        Raises:
            DataError: the level lies above the last one that there was data for.
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
    """Levels and their factors; see the module for how they are found.

    Args:
        edges: of a split that nothing else is judged on.
        levels: ascending, in (0, 1). Those for which there are too few edges are left out.
        together: fit all four sides as one, which makes do with fewer detections.

    Raises:
        DataError: there are too few edges for any of the levels.

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
    """Factors for whole boxes by class and size; see :mod:`.joint`.

    Args:
        edges: of a split that nothing else is judged on.
        class_names: of the labels.
        levels: ascending, in (0, 1).

    Raises:
        DataError: there are too few boxes for any of the levels.

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
        ValueError: n is too small for the level.

    Example:
        >>> import torch
        >>> conformal_quantile(torch.arange(1.0, 10.0), 0.9)
        9.0
    """
    ordered = scores.double().flatten().sort().values
    # (n + 1) * level may be a whole number that floats miss by a little.
    rank = math.ceil(round((len(ordered) + 1) * level, 9))
    if not 1 <= rank <= len(ordered):
        raise ValueError(f'{len(ordered)} scores give no quantile at level {level}')
    return max(0.0, float(ordered[rank - 1]))


def check_applies(
    calibrator: IntervalCalibrator, path: str, score_type: str, num_classes: int
) -> None:
    """Refuse a calibrator of another head or of another number of classes.

    Raises:
        DataError: it was fitted for another.

    Example:
        >>> source = FitSource('', (), 9)
        >>> fitted = IntervalCalibrator((0.9,), ((1.0,) * 4,), 'GFLHead', ('cat',), 0.5, source)
        >>> check_applies(fitted, 'intervals.json', 'GFLHead', num_classes=1)
    """
    if calibrator.score_type != score_type:
        raise DataError(
            f'{path} was fitted for intervals of {calibrator.score_type!r} and not of '
            f'{score_type!r}: fit one for this head.'
        )
    if len(calibrator.class_names) != num_classes:
        raise DataError(
            f'{path} was fitted for the {len(calibrator.class_names)} classes '
            f'{listed(list(calibrator.class_names))}, but the head has {num_classes}: fit one '
            'for it.'
        )
