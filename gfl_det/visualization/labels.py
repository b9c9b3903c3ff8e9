"""Labels of boxes: class colours, and text placed where it covers little.

The colours are perceptually distinct on light and dark pictures, and the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Colours of the first classes, in an order that suits red-green colour blindness.
FIRST = (
    (255, 159, 28),  # orange
    (46, 196, 255),  # sky
    (255, 84, 112),  # coral
    (61, 220, 132),  # green
    (196, 140, 255),  # violet
    (255, 232, 74),  # yellow
    (255, 130, 220),  # pink
    (0, 168, 150),  # teal
    (92, 124, 250),  # blue
    (190, 122, 62),  # brown
)
STEP = 15  # grid step of the sRGB values for further colours
LIGHTNESS = (0.58, 0.92)  # OKLab: darker colours vanish on dark pictures, lighter ones on paper
MIN_CHROMA = 0.07  # OKLab: greys blend into the picture
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GAP = 1  # px between a label and its box


def oklab(colours: np.ndarray) -> np.ndarray:
    """Convert to OKLab: lightness and two opponent axes with perceptual distances.

    Björn Ottosson, "A perceptual color space for image processing", 2020.

    Args:
        colours: ``(..., 3)`` sRGB in 0..255.

    Returns:
        ``(..., 3)`` L in 0..1, a, b.
    """
    to_cone = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(_linear(colours) @ to_cone.T) @ to_lab.T


def class_colours(count: int) -> np.ndarray:
    """Colours of classes 0 .. count-1.

    The colour of a class does not depend on the number of classes: after ten fixed colours, each
    next one is the farthest from all before it.

    Args:
        count: Number of classes.

    Returns:
        ``(count, 3)`` uint8 sRGB.
    """
    first = np.array(FIRST[:count], dtype=np.uint8).reshape(-1, 3)
    return np.concatenate([first, _further(count - len(first))])


def text_colour(background: np.ndarray | tuple[int, ...]) -> tuple[int, int, int]:
    """Black or white, whichever has more contrast on a colour (sRGB in 0..255)."""
    light = luminance(background)
    return BLACK if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else WHITE


def luminance(colour: np.ndarray | tuple[int, ...]) -> float:
    """Relative luminance in 0..1 of a colour (WCAG 2.2; sRGB in 0..255)."""
    return float(_linear(np.asarray(colour)) @ np.array([0.2126, 0.7152, 0.0722]))


@lru_cache
def _further(count: int) -> np.ndarray:
    levels = np.arange(0, 256, STEP)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), -1).reshape(-1, 3)
    points = oklab(grid)
    chroma = np.hypot(points[:, 1], points[:, 2])
    low, high = LIGHTNESS
    usable = (points[:, 0] > low) & (points[:, 0] < high) & (chroma > MIN_CHROMA)
    grid, points = grid[usable], points[usable]
    taken = oklab(np.array(FIRST))
    distance = np.linalg.norm(points[:, None] - taken, axis=2).min(1)
    chosen = np.empty(max(count, 0), dtype=np.int64)
    for place in range(len(chosen)):
        chosen[place] = distance.argmax()
        to_chosen = np.linalg.norm(points - points[chosen[place]], axis=1)
        distance = np.minimum(distance, to_chosen)
    return grid[chosen].astype(np.uint8)


def _linear(colours: np.ndarray) -> np.ndarray:
    """Linear intensities in 0..1 of sRGB values in 0..255 (IEC 61966-2-1)."""
    values = np.asarray(colours, dtype=np.float64) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib: Latin, Greek and Cyrillic on every machine."""
    import matplotlib

    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / name), size)


def place_labels(
    boxes: np.ndarray, sizes: np.ndarray, canvas: tuple[int, int], ink: float = 0.15
) -> np.ndarray:
    """Choose a place for each label that covers little of earlier labels and of outlines.

    Eight places are compared: above, below, inside, left and right of the box.

    Args:
        boxes: ``(N, 4)`` xyxy px, by descending importance.
        sizes: ``(N, 2)`` width and height of the labels, px.
        canvas: Width and height of the picture, px.
        ink: Cost of covering another box's outline, relative to covering a label.

    Returns:
        ``(N, 4)`` xyxy px int64, within the picture if it is large enough.
    """
    placed = np.empty((len(boxes), 4))
    outlines = np.concatenate([_outline(box) for box in boxes]) if len(boxes) else np.empty((0, 4))
    for index, (box, size) in enumerate(zip(boxes, sizes)):
        spots = _spots(box, size, np.array(canvas))
        area = size[0] * size[1]
        on_labels = _overlap(spots, placed[:index]).sum(1) / area
        on_lines = np.minimum(_overlap(spots, outlines), area).sum(1) / area
        # Earlier places are preferred: they win ties and small differences.
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
    """Write a label at each box on a coloured plate.

    Args:
        picture: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(N, 4)`` xyxy px, by descending importance.
        texts: Texts of the N labels.
        colours: ``(N, 3)`` RGB colours of the plates.
        size: Font size in px.

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
    """Candidate places ``(8, 4)`` of a label, best first, moved into the picture."""
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
    """Four thin rectangles ``(4, 4)`` along the edges of a box."""
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
    """Intersection areas ``(N, M)`` of rectangles ``(N, 4)`` and ``(M, 4)``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.clip(high - low, 0, None).prod(2)
