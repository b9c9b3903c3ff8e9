"""Edge distributions of boxes in image coordinates, px."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from gfl_det.ops import distribution
from gfl_det.ops.intervals import OUTWARDS

NORMAL_BINS = np.linspace(-3, 3, 17)  # in standard deviations from the mean
LEAST_STD_PX = 0.25  # narrower bands are invisible


class EdgeBins(NamedTuple):
    """Edge distributions of N boxes: left, top, right, bottom."""

    positions: np.ndarray  # (N, 4, num_bins) px: x for left and right, y for top and bottom
    probabilities: np.ndarray  # (N, 4, num_bins), sum to 1 per edge

    def scaled(self, factor: float) -> EdgeBins:
        """The same edges in an enlarged picture."""
        return self._replace(positions=self.positions * factor)

    def take(self, index: Any) -> EdgeBins:
        """Select the edges of some boxes."""
        return EdgeBins(self.positions[index], self.probabilities[index])


class Boxes(NamedTuple):
    """Boxes to draw: detections by descending score, or gt boxes."""

    boxes: np.ndarray  # (N, 4) xyxy px
    labels: np.ndarray  # (N,) int64
    scores: np.ndarray | None = None  # (N,)
    edges: EdgeBins | None = None  # for heads that predict distributions
    intervals: np.ndarray | None = None  # (N, 4, 2) px, lower and upper end per edge

    @classmethod
    def of(cls, instances: Any, score_thr: float = 0.0) -> Boxes:
        """Build from results or gt boxes.

        Args:
            instances: ``InstanceData`` with ``bboxes`` (tensor, array or mmdet's boxes) and
                ``labels``; for results also ``scores``, the fields added by
                ``test_cfg.with_distribution=True`` (``edge_logits``, ``bin_widths``,
                ``prior_centres``), and ``edge_low`` and ``edge_high``.
            score_thr: Minimum score of results.
        """
        boxes = _array(instances.bboxes).reshape(-1, 4).astype(np.float64)
        labels = _array(instances.labels).astype(np.int64)
        if 'scores' not in instances:
            return cls(boxes, labels)
        scores = _array(instances.scores)
        order = np.argsort(-scores, kind='stable')
        order = order[scores[order] >= score_thr]
        edges = edge_bins(instances).take(order) if 'edge_logits' in instances else None
        ends = [_array(instances[key]) for key in ('edge_low', 'edge_high') if key in instances]
        intervals = np.stack(ends, axis=-1)[order] if len(ends) == 2 else None
        return cls(boxes[order], labels[order], scores[order], edges, intervals)

    def scaled(self, factor: float) -> Boxes:
        """The same boxes in an enlarged picture."""
        edges = None if self.edges is None else self.edges.scaled(factor)
        intervals = None if self.intervals is None else self.intervals * factor
        return self._replace(boxes=self.boxes * factor, edges=edges, intervals=intervals)


def edge_bins(instances: Any) -> EdgeBins:
    """Convert edge distributions of a result to image coordinates (GFL, section 3.2).

    Args:
        instances: Results with ``edge_logits (N, 4, num_bins)``, ``bin_widths (N, 4)`` px and
            ``prior_centres (N, 2)`` px.
    """
    logits = torch.as_tensor(_array(instances.edge_logits))
    probabilities = distribution.full_precision(logits).softmax(-1).numpy()
    distances = _array(instances.bin_widths)[..., None] * np.arange(logits.shape[-1])
    start = np.tile(_array(instances.prior_centres), 2)[..., None]
    return EdgeBins(start + np.array(OUTWARDS)[:, None] * distances, probabilities)


def normal_bins(edges: np.ndarray, std: np.ndarray) -> EdgeBins:
    """Normal distributions of edges of which only the standard deviations are known.

    Args:
        edges: ``(N, 4)`` px.
        std: ``(N, 4)`` px; below `LEAST_STD_PX` it counts as that.
    """
    positions = edges[..., None] + np.maximum(std, LEAST_STD_PX)[..., None] * NORMAL_BINS
    density = np.exp(-(NORMAL_BINS**2) / 2)
    return EdgeBins(positions, np.broadcast_to(density / density.sum(), positions.shape))


def presence(positions: np.ndarray, probabilities: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Probability of an edge at given coordinates, interpolated between bins.

    It falls to 0 one bin beyond the outermost.

    Args:
        positions: ``(num_bins,)`` px, equidistant bins of an edge, ascending or descending.
        probabilities: ``(num_bins,)``.
        pixels: ``(P,)`` px coordinates.

    Returns:
        ``(P,)`` in [0, 1]; at a bin, its probability.
    """
    step = positions[1] - positions[0]
    places = np.concatenate([positions[:1] - step, positions, positions[-1:] + step])
    heights = np.concatenate([[0.0], probabilities, [0.0]])
    if step < 0:
        places, heights = places[::-1], heights[::-1]
    return np.interp(pixels, places, heights)


def share_below(positions: np.ndarray, probabilities: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Cumulative probability that an edge lies below given coordinates.

    The probability of a bin is spread uniformly over half a bin on either side.

    Args:
        positions: ``(num_bins,)`` px, as for :func:`presence`.
        probabilities: ``(num_bins,)``.
        pixels: ``(P,)`` px coordinates.

    Returns:
        ``(P,)`` in [0, 1], non-decreasing along the axis.
    """
    if positions[1] < positions[0]:
        positions, probabilities = positions[::-1], probabilities[::-1]
    half = (positions[1] - positions[0]) / 2
    borders = np.concatenate([positions[:1] - half, positions + half])
    return np.interp(pixels, borders, np.concatenate([[0.0], probabilities.cumsum()]))


def reach(positions: np.ndarray, probabilities: np.ndarray, least: float) -> tuple[float, float]:
    """Range of an edge's axis beyond which no bin reaches a probability.

    Args:
        positions: ``(num_bins,)`` px.
        probabilities: ``(num_bins,)``.
        least: Minimum probability, at most that of the most probable bin.

    Returns:
        Lowest and highest coordinate in px, extended by one bin on either side.
    """
    width = abs(positions[1] - positions[0])
    kept = positions[probabilities >= min(least, probabilities.max())]
    return float(kept.min() - width), float(kept.max() + width)


def _array(values: Any) -> np.ndarray:
    values = getattr(values, 'tensor', values)  # mmdet's box structures
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (distribution.full_precision(values) if values.is_floating_point() else values).numpy()
