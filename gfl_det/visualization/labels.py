"""Labels of boxes: where they cover little, in letters that are legible on any picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gfl_det.visualization.palette import text_colour

GAP = 1  # px between a label and its box


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: Latin, Greek and Cyrillic, on every machine."""
    import matplotlib

    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / name), size)


def place_labels(
    boxes: np.ndarray, sizes: np.ndarray, canvas: tuple[int, int], ink: float = 0.15
) -> np.ndarray:
    """Choose a place for each label: where it covers least of the labels before it and of lines.

    Eight places are looked at: above, below and inside a box, at its left and at its right.

    Args:
        boxes: ``(N, 4)`` xyxy px, by descending importance.
        sizes: ``(N, 2)`` width and height of the labels, px.
        canvas: width and height of the picture, px.
        ink: weight of a covered piece of another box's outline over that of a covered label.

    Returns:
        ``(N, 4)`` xyxy px int64, within the picture where it is large enough.
    """
    placed = np.empty((len(boxes), 4))
    outlines = np.concatenate([_outline(box) for box in boxes]) if len(boxes) else np.empty((0, 4))
    for index, (box, size) in enumerate(zip(boxes, sizes)):
        spots = _spots(box, size, np.array(canvas))
        area = size[0] * size[1]
        on_labels = _overlap(spots, placed[:index]).sum(1) / area
        on_lines = np.minimum(_overlap(spots, outlines), area).sum(1) / area
        # Earlier spots are the better ones: they win ties and small differences.
        cost = on_labels + ink * on_lines + 0.02 * np.arange(len(spots))
        placed[index] = spots[cost.argmin()]
    return np.rint(placed).astype(np.int64)


def draw_labels(
    picture: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: np.ndarray,
    size: int,
) -> np.ndarray:
    """Write a label at each box, on a plate of its colour.

    Args:
        picture: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(N, 4)`` xyxy px, by descending importance.
        texts: N labels.
        colours: ``(N, 3)`` RGB of the plates.
        size: of the letters, px.

    Returns:
        A new picture.
    """
    image = Image.fromarray(picture)
    if len(texts) == 0:
        return np.asarray(image)
    face = font(size)
    pad = max(2, size // 5)
    ascent, descent = face.getmetrics()
    sizes = np.array([(face.getlength(text) + 2 * pad, ascent + descent + pad) for text in texts])
    spots = place_labels(boxes, np.ceil(sizes), image.size)
    draw = ImageDraw.Draw(image)
    for spot, text, colour in list(zip(spots, texts, colours))[::-1]:
        x1, y1, x2, y2 = (int(value) for value in spot)
        plate = tuple(int(value) for value in colour)
        draw.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=pad, fill=plate)
        draw.text((x1 + pad, y1 + pad // 2), text, font=face, fill=text_colour(plate))
    return np.asarray(image)


def _spots(box: np.ndarray, size: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """The places for a label at a box ``(8, 4)``, the better first, moved into the picture."""
    (x1, y1, x2, y2), (width, height) = box, size
    right = x2 - width
    corners = np.array(
        [
            (x1, y1 - height - GAP),
            (x1, y1 + GAP),
            (right, y1 - height - GAP),
            (x1, y2 + GAP),
            (right, y1 + GAP),
            (x1, y2 - height - GAP),
            (right, y2 + GAP),
            (right, y2 - height - GAP),
        ]
    )
    corners = np.clip(corners, 0, np.maximum(canvas - size, 0))
    return np.concatenate([corners, corners + size], axis=1)


def _outline(box: np.ndarray, thickness: float = 2.0) -> np.ndarray:
    """Four thin rectangles ``(4, 4)`` along a box's edges."""
    x1, y1, x2, y2 = box
    half = thickness / 2
    return np.array(
        [
            (x1 - half, y1, x1 + half, y2),
            (x1, y1 - half, x2, y1 + half),
            (x2 - half, y1, x2 + half, y2),
            (x1, y2 - half, x2, y2 + half),
        ]
    )


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Common areas ``(N, M)`` of rectangles ``(N, 4)`` and ``(M, 4)``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.clip(high - low, 0, None).prod(2)
