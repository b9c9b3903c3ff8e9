"""Boxes with soft edges: the opacity along an edge's normal follows its distribution."""

from __future__ import annotations

import numpy as np

from gfl_det.visualization.edges import Boxes, EdgeBins, presence, reach, share_below

INK = 0.75  # opacity where a distribution puts all its probability
FAINT = 0.01  # probabilities below it are not looked for
CASING = 0.3  # opacity of the dark line under a box's own, which keeps it legible on light ground


def edge_opacity(bins: EdgeBins, index: int, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """How likely the outline of a box passes each pixel, its four edges being independent.

    A vertical edge is at (x, y) if it lies at x and the box's top and bottom lie on either side of
    y, so bands fade out where the corners are uncertain.

    Args:
        bins: of N boxes.
        index: of the box.
        xs: ``(W,)`` px coordinates of the columns.
        ys: ``(H,)`` px coordinates of the rows.

    Returns:
        ``(H, W)`` in [0, 1].
    """
    edges = list(zip(bins.positions[index], bins.probabilities[index]))
    left, top, right, bottom = edges
    inside_x = share_below(*left, xs) * (1 - share_below(*right, xs))
    inside_y = share_below(*top, ys) * (1 - share_below(*bottom, ys))
    along_x = np.maximum(presence(*left, xs), presence(*right, xs))
    along_y = np.maximum(presence(*top, ys), presence(*bottom, ys))
    return np.maximum(np.outer(inside_y, along_x), np.outer(along_y, inside_x))


def draw_soft_edges(canvas: np.ndarray, boxes: Boxes, colours: np.ndarray) -> None:
    """Lay each box's distributions over a picture, in place.

    Args:
        canvas: ``(H, W, 3)`` float32 RGB in 0..255.
        boxes: N boxes with ``edges``, px of the canvas; the first comes to lie on top.
        colours: ``(N, 3)`` RGB.
    """
    if boxes.edges is None:
        return
    height, width = canvas.shape[:2]
    for index in range(len(boxes.boxes) - 1, -1, -1):
        spans = [
            reach(*edge, FAINT)
            for edge in zip(boxes.edges.positions[index], boxes.edges.probabilities[index])
        ]
        columns = _pixels(min(spans[0][0], spans[2][0]), max(spans[0][1], spans[2][1]), width)
        rows = _pixels(min(spans[1][0], spans[3][0]), max(spans[1][1], spans[3][1]), height)
        if len(columns) == 0 or len(rows) == 0:
            continue
        opacity = INK * edge_opacity(boxes.edges, index, columns + 0.5, rows + 0.5)
        patch = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        patch += opacity[..., None].astype(np.float32) * (colours[index] - patch)


def draw_lines(canvas: np.ndarray, boxes: Boxes, colours: np.ndarray, width: int) -> None:
    """Draw each box's own outline, the means of its edges, over a picture, in place.

    Args:
        canvas: ``(H, W, 3)`` float32 RGB in 0..255.
        boxes: N boxes, px of the canvas; the first comes to lie on top.
        colours: ``(N, 3)`` RGB.
        width: of the lines, px; a dark casing makes them a little wider.
    """
    for box, colour in zip(boxes.boxes[::-1], colours[::-1].astype(np.float32)):
        x1, y1, x2, y2 = np.rint(box).astype(int)
        outer = (width + 1) // 2
        for grown, paint, opacity in ((1, np.zeros(3, np.float32), CASING), (0, colour, 1.0)):
            low, thick = outer + grown, width + 2 * grown
            for strip in _frame((x1 - low, y1 - low, x2 + low, y2 + low), thick):
                part = canvas[strip]
                part += np.float32(opacity) * (paint - part)


def _frame(box: tuple[int, int, int, int], thick: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the four strips that line a box on its inside; none overlap."""
    x1, y1, x2, y2 = box
    top, bottom = y1 + thick, max(y1 + thick, y2 - thick)
    left, right = x1 + thick, max(x1 + thick, x2 - thick)
    strips = (
        (x1, y1, max(x2, left), top),
        (x1, bottom, max(x2, left), max(y2, bottom)),
        (x1, top, left, bottom),
        (right, top, max(x2, right), bottom),
    )
    return [(_cut(low, high), _cut(start, stop)) for start, low, stop, high in strips]


def _cut(low: int, high: int) -> slice:
    return slice(max(0, low), max(0, high))


def _pixels(low: float, high: float, size: int) -> np.ndarray:
    """Whole pixels of a stretch, cut at the picture."""
    return np.arange(max(0, int(np.floor(low))), min(size, int(np.ceil(high))))
