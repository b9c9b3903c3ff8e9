"""Pictures of an image with its boxes: soft edges, gt boxes, or both side by side.

The opacity across a soft edge follows its distribution, which is placed in image coordinates, px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from gfl_det.ops import distribution
from gfl_det.ops.intervals import OUTWARDS
from gfl_det.visualization.labels import class_colours, draw_labels, font

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


INK = 0.75  # opacity where a distribution puts all its probability
FAINT = 0.01  # lower probabilities are not drawn
VEIL = 0.35  # of a box, the most that soft edges wider than it may cover
CASING = 0.3  # opacity of the dark line below a box's own, for contrast on light ground
# Small images are enlarged until their longer side reaches this, so that labels do not hide them.
LEGIBLE_SIDE = 960
MAX_ENLARGEMENT = 8
THUMBNAIL_SIDE = 440  # px
SHEET_LETTERS = 13  # px
STRIP = (24, 26, 32)  # background of a panel title
TITLE = (240, 240, 245)


def edge_opacity(bins: EdgeBins, index: int, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Probability that a box outline passes each pixel, with independent edges.

    A vertical edge covers (x, y) if it lies at x and y lies between the top and bottom edge, so
    bands fade out where corners are uncertain.

    Args:
        bins: Edge distributions of N boxes.
        index: Index of the box.
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
    """Blend the edge distributions of boxes over a picture, in place.

    Soft edges never hide what is smaller than they are: within a box that is narrower than the
    widest edge drawn over it, edges leave at least ``1 - VEIL`` of the picture.

    Args:
        canvas: ``(H, W, 3)`` float32 RGB in 0..255.
        boxes: N boxes with ``edges``, px of the canvas; the first is drawn on top.
        colours: ``(N, 3)`` RGB.
    """
    if boxes.edges is None:
        return
    height, width = canvas.shape[:2]
    picture = np.ones((height, width), np.float32)  # share of it that is still to be seen
    sides = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).min(1)
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
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        narrower = boxes.boxes[sides < max(high - low for low, high in spans)]
        most = 1 - (1 - VEIL) / np.maximum(picture[part], 1 - VEIL)
        opacity = np.where(_inside(narrower, columns, rows), np.minimum(opacity, most), opacity)
        canvas[part] += opacity[..., None].astype(np.float32) * (colours[index] - canvas[part])
        picture[part] *= 1 - opacity


def draw_lines(canvas: np.ndarray, boxes: Boxes, colours: np.ndarray, width: int) -> None:
    """Draw box outlines, the means of the edges, over a picture, in place.

    Args:
        canvas: ``(H, W, 3)`` float32 RGB in 0..255.
        boxes: N boxes, px of the canvas; the first is drawn on top.
        colours: ``(N, 3)`` RGB.
        width: Width of the lines in px; a dark casing adds a little.
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
    """Rows and columns of four disjoint strips along the inside of a box."""
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


def _inside(boxes: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Whether each pixel of a part of the picture ``(rows, columns)`` touches one of the boxes."""
    inside = np.zeros((len(rows), len(columns)), bool)
    low = np.floor(boxes[:, :2]).astype(int) - (columns[0], rows[0])
    high = np.ceil(boxes[:, 2:]).astype(int) - (columns[0], rows[0])
    for (left, top), (right, bottom) in zip(low, high):
        inside[_cut(top, bottom), _cut(left, right)] = True
    return inside


def _pixels(low: float, high: float, size: int) -> np.ndarray:
    """Whole pixels of a range, clipped to the picture."""
    return np.arange(max(0, int(np.floor(low))), min(size, int(np.ceil(high))))


def enlargement(height: int, width: int) -> float:
    """Factor, at least 1, by which an image of this size is enlarged before drawing."""
    return min(MAX_ENLARGEMENT, max(1, LEGIBLE_SIDE / max(height, width)))


def draw_boxes(
    image: np.ndarray,
    boxes: Boxes,
    classes: Sequence[str] | None = None,
    scale: float | None = None,
    soft: bool = True,
) -> np.ndarray:
    """Draw boxes with labels, and soft edges where boxes have distributions.

    The opacity across an edge is proportional to the predicted probability: a certain edge is
    narrow and dense, an uncertain one wide and faint. The line is the mean of the edge, which is
    the box itself.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: px of the image, the most important first.
        classes: Class names; None: numbers.
        scale: Enlargement factor; None: :func:`enlargement`.
        soft: Draw soft edges.

    Returns:
        ``(H * scale, W * scale, 3)`` uint8 RGB.
    """
    height, width = image.shape[:2]
    scale = enlargement(height, width) if scale is None else scale
    if scale > 1:
        size = round(width * scale), round(height * scale)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    side = max(image.shape[:2])
    boxes = boxes.scaled(scale)
    count = int(boxes.labels.max(initial=-1)) + 1
    colours = class_colours(count)[boxes.labels]
    canvas = image.astype(np.float32)
    if soft:
        draw_soft_edges(canvas, boxes, colours.astype(np.float32))
    draw_lines(canvas, boxes, colours, max(1, round(side / 480)))
    picture = np.rint(canvas.clip(0, 255)).astype(np.uint8)
    letters = max(11, round(side / 70))
    return draw_labels(picture, boxes.boxes, box_texts(boxes, classes), colours, letters)


def box_texts(boxes: Boxes, classes: Sequence[str] | None) -> list[str]:
    """Label of each box: class, and score if there is one."""
    names = [
        classes[label] if classes is not None and label < len(classes) else f'class {label}'
        for label in boxes.labels
    ]
    if boxes.scores is None:
        return names
    return [f'{name} {score:.2f}' for name, score in zip(names, boxes.scores)]


def side_by_side(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Place pictures side by side, each below its title.

    Args:
        panels: Titles and uint8 RGB pictures of equal size ``(H, W, 3)``.

    Returns:
        One uint8 RGB picture.
    """
    height, width = panels[0][1].shape[:2]
    size = max(12, round(max(height, width) / 55))
    strip, gap = round(size * 1.9), max(2, size // 4)
    total = len(panels) * (width + gap) - gap
    sheet = Image.new('RGB', (total, height + strip), STRIP)
    draw = ImageDraw.Draw(sheet)
    for index, (title, picture) in enumerate(panels):
        x = index * (width + gap)
        draw.text((x + size // 2, strip / 2), title, TITLE, font(size), anchor='lm')
        sheet.paste(Image.fromarray(picture), (x, strip))
    return np.asarray(sheet)


def thumbnail(
    image: np.ndarray,
    boxes: Boxes,
    classes: Sequence[str],
    labelled: np.ndarray,
    side: int = THUMBNAIL_SIDE,
) -> np.ndarray:
    """Draw boxes with soft edges on a small copy of an image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: px of the image, the most important first.
        classes: Class names.
        labelled: Indices of the boxes that are labelled, ascending; labels of all would hide a
            small picture.
        side: Longer side of the copy in px.

    Returns:
        uint8 RGB.
    """
    scale = side / max(image.shape[:2])
    size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    boxes = boxes.scaled(scale)
    colours = class_colours(len(classes))[boxes.labels]
    canvas = np.asarray(small).astype(np.float32)
    draw_soft_edges(canvas, boxes, colours.astype(np.float32))
    draw_lines(canvas, boxes, colours, 1)
    picture = np.rint(canvas.clip(0, 255)).astype(np.uint8)
    texts = box_texts(boxes, classes)
    named = [texts[index] for index in labelled]
    return draw_labels(picture, boxes.boxes[labelled], named, colours[labelled], SHEET_LETTERS)


def contact_sheet(
    panels: Sequence[tuple[str, np.ndarray]],
    classes: Sequence[str],
    shown: Sequence[int],
    columns: int = 4,
) -> np.ndarray:
    """Arrange small pictures in rows, each below its title, with the classes' colours at the top.

    Args:
        panels: Titles and uint8 RGB pictures, at least one.
        classes: Class names.
        shown: Classes that occur, ascending.
        columns: Most pictures in a row.

    Returns:
        One uint8 RGB picture.
    """
    columns = min(columns, len(panels))
    face, gap, strip = font(SHEET_LETTERS), SHEET_LETTERS // 2, 2 * SHEET_LETTERS
    width = max(picture.shape[1] for _, picture in panels) + gap
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    heights = [max(picture.shape[0] for _, picture in row) + strip for row in rows]
    sheet = Image.new('RGB', (columns * width + gap, sum(heights) + strip + gap), STRIP)
    draw = ImageDraw.Draw(sheet)
    colours = class_colours(len(classes))
    x = float(gap)
    for label in shown:
        ink = tuple(int(value) for value in colours[label])
        draw.text((x, strip / 2), classes[label], ink, face, anchor='lm')
        x += face.getlength(classes[label]) + 2 * SHEET_LETTERS
    top = strip
    for row, height in zip(rows, heights):
        for column, (title, picture) in enumerate(row):
            left = gap + column * width
            while face.getlength(title) > width - gap:  # the beginning of a long name
                title = title[:-1]
            draw.text((left, top + strip / 2), title, TITLE, face, anchor='lm')
            sheet.paste(Image.fromarray(picture), (left, top + strip))
        top += height
    return np.asarray(sheet)
