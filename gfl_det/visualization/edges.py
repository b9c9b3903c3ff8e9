"""Edge distributions along the picture's axes, in pixels: where the edges of boxes may lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from gfl_det.ops import distribution
from gfl_det.ops.intervals import OUTWARDS


class EdgeBins(NamedTuple):
    """The distributions of N boxes' edges: left, top, right, bottom."""

    positions: np.ndarray  # (N, 4, num_bins) px along the edge's axis: x of left and right, else y
    probabilities: np.ndarray  # (N, 4, num_bins) sum to 1 over an edge's bins

    def scaled(self, factor: float) -> EdgeBins:
        """The same edges in a picture enlarged by a factor."""
        return self._replace(positions=self.positions * factor)

    def take(self, index: Any) -> EdgeBins:
        """The edges of some of the boxes."""
        return EdgeBins(self.positions[index], self.probabilities[index])


class Boxes(NamedTuple):
    """Boxes to draw, of detections by descending score, or of gt boxes."""

    boxes: np.ndarray  # (N, 4) xyxy px
    labels: np.ndarray  # (N,) int64
    scores: np.ndarray | None = None  # (N,)
    edges: EdgeBins | None = None  # of heads that predict distributions
    intervals: np.ndarray | None = None  # (N, 4, 2) px, where each edge's begins and ends

    @classmethod
    def of(cls, instances: Any, score_thr: float = 0.0) -> Boxes:
        """Read results or gt boxes.

        Args:
            instances: ``InstanceData`` with ``bboxes`` (a tensor, an array or mmdet's boxes) and
                ``labels``, of results also ``scores``, and what ``test_cfg.with_distribution=True``
                adds: ``edge_logits``, ``bin_widths`` and ``prior_centres``; also ``edge_low`` and
                ``edge_high``.
            score_thr: Drops results with a lower score.
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
        """The same boxes in a picture enlarged by a factor."""
        edges = None if self.edges is None else self.edges.scaled(factor)
        intervals = None if self.intervals is None else self.intervals * factor
        return self._replace(boxes=self.boxes * factor, edges=edges, intervals=intervals)


def edge_bins(instances: Any) -> EdgeBins:
    """Distributions of a result's edges where they lie in the image (GFL, section 3.2).

    Args:
        instances: With ``edge_logits (N, 4, num_bins)``, ``bin_widths (N, 4)`` px and
            ``prior_centres (N, 2)`` px.
    """
    logits = torch.as_tensor(_array(instances.edge_logits))
    probabilities = distribution.full_precision(logits).softmax(-1).numpy()
    distances = _array(instances.bin_widths)[..., None] * np.arange(logits.shape[-1])
    start = np.tile(_array(instances.prior_centres), 2)[..., None]
    return EdgeBins(start + np.array(OUTWARDS)[:, None] * distances, probabilities)


def presence(positions: np.ndarray, probabilities: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """How likely an edge lies at each of some coordinates, of its bins the nearest two.

    Probabilities are interpolated between bins and fall to 0 one bin beyond the outermost.

    Args:
        positions: ``(num_bins,)`` px of an edge's bins, equidistant, ascending or descending.
        probabilities: ``(num_bins,)``.
        pixels: ``(P,)`` px coordinates.

    Returns:
        ``(P,)`` in [0, 1]: at a bin its probability.
    """
    step = positions[1] - positions[0]
    places = np.concatenate([positions[:1] - step, positions, positions[-1:] + step])
    heights = np.concatenate([[0.0], probabilities, [0.0]])
    if step < 0:
        places, heights = places[::-1], heights[::-1]
    return np.interp(pixels, places, heights)


def share_below(positions: np.ndarray, probabilities: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The probability that an edge lies below each of some coordinates.

    A bin's probability is spread evenly from half a bin below it to half a bin above.

    Args:
        positions: ``(num_bins,)`` px, as for :func:`presence`.
        probabilities: ``(num_bins,)``.
        pixels: ``(P,)`` px coordinates.

    Returns:
        ``(P,)`` in [0, 1], from 0 to 1 along the axis.
    """
    if positions[1] < positions[0]:
        positions, probabilities = positions[::-1], probabilities[::-1]
    half = (positions[1] - positions[0]) / 2
    borders = np.concatenate([positions[:1] - half, positions + half])
    return np.interp(pixels, borders, np.concatenate([[0.0], probabilities.cumsum()]))


def reach(positions: np.ndarray, probabilities: np.ndarray, least: float) -> tuple[float, float]:
    """The stretch of an edge's axis beyond which no bin reaches a probability.

    Args:
        positions: ``(num_bins,)`` px.
        probabilities: ``(num_bins,)``.
        least: Probability, at most that of the likeliest bin.

    Returns:
        Lowest and highest coordinate, px, with one bin more on either side.
    """
    width = abs(positions[1] - positions[0])
    kept = positions[probabilities >= min(least, probabilities.max())]
    return float(kept.min() - width), float(kept.max() + width)


def _array(values: Any) -> np.ndarray:
    values = getattr(values, 'tensor', values)  # mmdet's box structures hold one
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (distribution.full_precision(values) if values.is_floating_point() else values).numpy()
