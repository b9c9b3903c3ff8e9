"""Charts: edge distributions beside their box, and paired differences of two detectors.

Bars are placed at the image coordinates of their bins: left and right edge above the image, top and
bottom edge at its side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gfl_det.errors import DataError
from gfl_det.ops.intervals import SIDES
from gfl_det.utils.choices import CHART_ENDINGS
from gfl_det.visualization.labels import class_colours
from gfl_det.visualization.picture import Boxes, EdgeBins, box_texts, draw_soft_edges, reach

DPI = 200  # for PNG and JPEG files
FAINT = 0.02  # lower probabilities do not enlarge the view
PAGE, GRID, TEXT = 'white', '#d8dbe2', '#1d2129'
BEYOND = '#eceef2'  # outside the image
# Inches: image height, chart depth, room for ticks, space between boxes.
HEIGHT, DEPTH, TICKS, SPACE, TITLE = 2.6, 0.9, 0.42, 0.25, 0.42
ASPECT = (0.7, 1.6)  # of the view, width over height


class Panel(NamedTuple):
    """Box and view of one panel."""

    box: int  # index of the box
    view: tuple[int, int, int, int]  # xyxy px, visible part of the image
    gt: np.ndarray | None  # (4,) xyxy px

    @property
    def width(self) -> float:
        """Size of the image in the figure, in inches."""
        x1, y1, x2, y2 = self.view
        return HEIGHT * (x2 - x1) / (y2 - y1)


def figure(
    width: float, height: float, layout: Literal['constrained'] | None = 'constrained'
) -> Any:
    """Create an empty matplotlib figure of a size in inches, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout=layout, facecolor=PAGE)
    FigureCanvasAgg(drawing)
    return drawing


def edge_spread(bins: EdgeBins) -> np.ndarray:
    """Standard deviations ``(N, 4)`` of the edges in px."""
    mean = (bins.probabilities * bins.positions).sum(-1, keepdims=True)
    return np.sqrt((bins.probabilities * (bins.positions - mean) ** 2).sum(-1))


def edge_entropy(bins: EdgeBins) -> np.ndarray:
    """Entropies ``(N, 4)`` of the edges in nats, in [0, log(num_bins)]."""
    safe = np.maximum(bins.probabilities, 1e-12)
    return -(bins.probabilities * np.log(safe)).sum(-1)


def sharp_and_flat(boxes: Boxes) -> list[int]:
    """Select the boxes with the sharpest and the flattest edges, by mean entropy.

    Returns:
        Two indices; one for a single box, none without boxes.
    """
    if boxes.edges is None or len(boxes.boxes) == 0:
        return []
    entropy = edge_entropy(boxes.edges).mean(1)
    return list(dict.fromkeys([int(entropy.argmin()), int(entropy.argmax())]))


def edge_figure(
    image: np.ndarray,
    boxes: Boxes,
    chosen: Sequence[int],
    classes: Sequence[str] | None = None,
    truths: Boxes | None = None,
) -> Any:
    """Draw boxes side by side, each with its edge distributions.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: Boxes with ``edges``, in px of the image.
        chosen: Indices of the boxes to draw, at least one.
        classes: Class names; None: numbers.
        truths: Gt boxes; the one with the largest IoU, at least 0.5, is drawn with dashed lines.

    Returns:
        A matplotlib figure that can be saved in any format; bars and letters stay vectors.

    Raises:
        DataError: If the boxes have no distributions, or an index is out of range.
    """
    if boxes.edges is None:
        raise DataError(
            'these boxes have no edge distributions: set model.test_cfg.with_distribution=True '
            'and use a detector with a GFL head.'
        )
    if len(chosen) == 0 or not all(0 <= index < len(boxes.boxes) for index in chosen):
        raise DataError(f'boxes {list(chosen)}: give indices below {len(boxes.boxes)}, from 0 on.')
    panels = [_panel(boxes, index, truths) for index in chosen]
    widths = [SPACE + panel.width + DEPTH + TICKS for panel in panels]
    size = sum(widths) + SPACE, TICKS + HEIGHT + DEPTH + TITLE
    drawing = figure(*size, layout=None)
    for place, panel in zip(np.cumsum([TICKS, *widths[:-1]]), panels):
        _draw_panel(drawing, place, panel, image, boxes, box_texts(boxes, classes)[panel.box])
    return drawing


def save_figure(drawing: Any, path: Path) -> None:
    """Write a figure as print-quality PNG or JPEG, or as PDF or SVG with letters as text.

    Raises:
        DataError: If the extension is unknown or the file cannot be written.
    """
    import matplotlib

    if path.suffix not in CHART_ENDINGS:
        raise DataError(f'{path} must end in {", ".join(CHART_ENDINGS)}.')
    # Type 42 embeds fonts as outlines; journals reject matplotlib's default type 3.
    with matplotlib.rc_context({'pdf.fonttype': 42, 'svg.hashsalt': path.stem}):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing.savefig(path, dpi=DPI)
        except OSError as error:
            raise DataError(f'{path} cannot be written: {error.strerror}.') from error


def _panel(boxes: Boxes, index: int, gts: Boxes | None) -> Panel:
    """Choose the view of a box: its edge bins and its gt box."""
    assert boxes.edges is not None
    gt = _nearest(boxes.boxes[index], gts)
    shown = [boxes.boxes[index]] if gt is None else [boxes.boxes[index], gt]
    bins = boxes.edges
    for side in range(4):
        low, high = reach(bins.positions[index, side], bins.probabilities[index, side], FAINT)
        stretch = boxes.boxes[index].copy()
        stretch[[side % 2, side % 2 + 2]] = low, high
        shown.append(stretch)
    low = np.min([each[:2] for each in shown], axis=0)
    high = np.max([each[2:] for each in shown], axis=0)
    view = _fit_aspect(*low.tolist(), *high.tolist())
    return Panel(index, view, gt)


def _fit_aspect(x1: float, y1: float, x2: float, y2: float) -> tuple[int, int, int, int]:
    """Extend a view to an allowed aspect ratio and to whole pixels."""
    missing_x = max(0.0, ASPECT[0] * (y2 - y1) - (x2 - x1)) / 2
    missing_y = max(0.0, (x2 - x1) / ASPECT[1] - (y2 - y1)) / 2
    low, high = (
        np.floor([x1 - missing_x, y1 - missing_y]),
        np.ceil([x2 + missing_x, y2 + missing_y]),
    )
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _nearest(box: np.ndarray, gts: Boxes | None) -> np.ndarray | None:
    """The gt box with the largest IoU with a box, if that is at least 0.5."""
    if gts is None or len(gts.boxes) == 0:
        return None
    low = np.maximum(box[:2], gts.boxes[:, :2])
    high = np.minimum(box[2:], gts.boxes[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    areas = (gts.boxes[:, 2:] - gts.boxes[:, :2]).prod(1)
    iou = common / np.maximum((box[2:] - box[:2]).prod() + areas - common, 1e-9)
    best = iou.argmax()
    return gts.boxes[best] if iou[best] >= 0.5 else None


def _draw_panel(
    figure: Any, left: float, panel: Panel, image: np.ndarray, boxes: Boxes, text: str
) -> None:
    """Draw the image with the box, charts above and at the right, and a title with numbers."""
    wide, tall = figure.get_size_inches()
    bottom = TICKS

    def axes(x: float, y: float, width: float, height: float) -> Any:
        return figure.add_axes((x / wide, y / tall, width / wide, height / tall))

    centre = axes(left, bottom, panel.width, HEIGHT)
    above = axes(left, bottom + HEIGHT + 0.06, panel.width, DEPTH)
    beside = axes(left + panel.width + 0.06, bottom, DEPTH, HEIGHT)
    _draw_view(centre, panel, image, boxes)
    colour = class_colours(int(boxes.labels[panel.box]) + 1)[-1] / 255
    for side in range(4):
        _draw_bars(beside if side % 2 else above, side, panel, boxes, colour)
    _dress(above, beside, panel)
    x = left / wide
    y = (bottom + HEIGHT + DEPTH + 0.06 + 0.13) / tall
    figure.text(x, y, text, color=TEXT, fontsize=9, weight='bold', va='bottom')
    corner = (left + panel.width + 0.16) / wide, (bottom + HEIGHT + DEPTH + 0.06) / tall
    spread = edge_spread(boxes.edges)[panel.box] if boxes.edges is not None else np.zeros(4)
    lines = [f'{side}: std {value:.1f} px' for side, value in zip(SIDES, spread)]
    lines.append('line: mean' + (', dashes: ground truth' if panel.gt is not None else ''))
    figure.text(*corner, '\n'.join(lines), color=TEXT, fontsize=6, va='top', linespacing=1.45)


def _draw_view(axes: Any, panel: Panel, image: np.ndarray, boxes: Boxes) -> None:
    """Draw the enlarged view with soft edges and the lines of the box."""
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
    from PIL import Image

    x1, y1, x2, y2 = panel.view
    scale = HEIGHT * DPI / (y2 - y1)
    size = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    part = Image.new('RGB', (x2 - x1, y2 - y1), BEYOND)
    part.paste(Image.fromarray(image), (-x1, -y1))
    canvas = np.asarray(part.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    one = boxes._replace(
        boxes=boxes.boxes[[panel.box]], labels=boxes.labels[[panel.box]], scores=None
    )
    assert boxes.edges is not None
    origin = np.array([x1, y1, x1, y1])
    edges = boxes.edges.take([panel.box])
    edges = edges._replace(positions=(edges.positions - origin[:, None]) * scale)
    colour = class_colours(int(one.labels[0]) + 1)[-1:].astype(np.float32)
    draw_soft_edges(canvas, one._replace(edges=edges), colour)
    axes.imshow(canvas.clip(0, 255) / 255, extent=(x1, x2, y2, y1), interpolation='none')
    frames = [(one.boxes[0], '-', TEXT, 2.0), (one.boxes[0], '-', tuple(colour[0] / 255), 1.3)]
    if panel.gt is not None:  # black and white dashes are visible on any background
        frames += [(panel.gt, '-', PAGE, 1.4), (panel.gt, '--', TEXT, 1.4)]
    for box, style, line, thick in frames:
        axes.add_patch(
            Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, lw=thick, ls=style, ec=line)
        )
    axes.set(xlim=(x1, x2), ylim=(y2, y1), aspect='auto')
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, prune='upper'))
    axes.tick_params(labelsize=6, length=2, color=GRID)
    for spine in axes.spines.values():
        spine.set_color(GRID)


def _draw_bars(axes: Any, side: int, panel: Panel, boxes: Boxes, colour: np.ndarray) -> None:
    """Draw the bins of one edge, its mean and, dashed, the gt edge."""
    assert boxes.edges is not None
    positions = boxes.edges.positions[panel.box, side]
    probabilities = boxes.edges.probabilities[panel.box, side]
    thick = 0.8 * abs(positions[1] - positions[0])
    bars, line = (axes.barh, axes.axhline) if side % 2 else (axes.bar, axes.axvline)
    bars(positions, probabilities, thick, color=colour, edgecolor=TEXT, linewidth=0.4, alpha=0.9)
    line(boxes.boxes[panel.box, side], color=TEXT, linewidth=1)
    if panel.gt is not None:
        line(panel.gt[side], color=TEXT, linewidth=1, linestyle='--')


def _dress(above: Any, beside: Any, panel: Panel) -> None:
    x1, y1, x2, y2 = panel.view
    above.set(xlim=(x1, x2), ylim=(0, 1))
    beside.set(ylim=(y2, y1), xlim=(0, 1))
    above.set_xticks([])
    beside.set_yticks([])
    above.set_yticks([0, 0.5, 1], ['0', '.5', '1'])
    beside.set_xticks([0, 0.5, 1], ['0', '.5', '1'])
    above.grid(axis='y', color=GRID, linewidth=0.5)
    beside.grid(axis='x', color=GRID, linewidth=0.5)
    for axes in (above, beside):
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=6, length=0)
        axes.spines[['top', 'right', 'left', 'bottom']].set_visible(False)
    above.axhline(0, color=TEXT, linewidth=0.8)
    beside.axvline(0, color=TEXT, linewidth=0.8)


# --- Paired differences of two detectors ----------------------------------------------------------

APART, NOISE = '#2b7a78', '#8d99ae'  # intervals without 0, with 0
ROW, MARGIN, WIDTH = 0.28, 1.1, 6.5  # inches


def difference_figure(
    found: Mapping[str, float], rows: Mapping[str, str], sides: tuple[str, str] = ('A', 'B')
) -> Any:
    """Draw a row per metric: the difference as a dot, its interval as a line.

    Args:
        found: Result of :func:`gfl_det.evaluation.comparison.compare_detections`.
        rows: Metric titles by name, from top to bottom.
        sides: Names of the two detectors.

    Returns:
        A matplotlib figure.

    Example:
        >>> ends = dict(difference=0.02, low=0.01, high=0.03, p=0.002)
        >>> found = {f'AP_{end}': value for end, value in ends.items()}
        >>> len(difference_figure(found, {'AP': 'AP'}).axes)
        1
    """
    drawing = figure(WIDTH, MARGIN + ROW * len(rows))
    axes = drawing.subplots()
    axes.axvline(0, color=TEXT, linewidth=0.8)
    for place, name in enumerate(rows):
        value, low, high, p = (found[f'{name}_{end}'] for end in ('difference', 'low', 'high', 'p'))
        if not p <= 1:  # NaN: one side has no value
            continue
        colour = APART if low > 0 or high < 0 else NOISE
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle='butt')
        axes.plot([value], [place], 'o', color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), rows.values(), fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f'{sides[0]} less {sides[1]}, with .95 intervals', fontsize=8)
    axes.tick_params(labelsize=8, length=0)
    axes.grid(axis='x', color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right', 'left', 'bottom']].set_visible(False)
    return drawing
