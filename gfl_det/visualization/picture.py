"""A picture of an image's boxes: detections with soft edges, gt boxes, or both side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from gfl_det.visualization.edges import Boxes
from gfl_det.visualization.labels import class_colours, draw_labels, font
from gfl_det.visualization.soft import draw_lines, draw_soft_edges

# Small images are enlarged until their longer side reaches this, so that letters do not hide them.
LEGIBLE_SIDE = 960
MAX_ENLARGEMENT = 8
STRIP = (24, 26, 32)  # behind a panel's title
TITLE = (240, 240, 245)


def enlargement(height: int, width: int) -> float:
    """By what factor, 1 at least, an image of this size is enlarged before it is drawn on."""
    return min(MAX_ENLARGEMENT, max(1, LEGIBLE_SIDE / max(height, width)))


def draw_boxes(
    image: np.ndarray,
    boxes: Boxes,
    classes: Sequence[str] | None = None,
    scale: float | None = None,
    soft: bool = True,
) -> np.ndarray:
    """Draw boxes with labels; those that have distributions with soft edges.

    The opacity across an edge is proportional to the probability that the head gives to each place:
    a sure edge is narrow and dense, an unsure one wide and faint. The line is the edge's mean, the
    box itself.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: px of the image, the most important first.
        classes: names; None: numbers.
        scale: factor to enlarge the image by; None: as :func:`enlargement` says.
        soft: False leaves the distributions out.

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
    """A label for each box: its class, and its score where it has one."""
    names = [
        classes[label] if classes is not None and label < len(classes) else f'class {label}'
        for label in boxes.labels
    ]
    if boxes.scores is None:
        return names
    return [f'{name} {score:.2f}' for name, score in zip(names, boxes.scores)]


def side_by_side(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Put pictures next to each other, each below its title.

    Args:
        panels: titles and uint8 RGB pictures of one size ``(H, W, 3)``.

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
