"""Colours of classes: far apart to the eye, on light and dark pictures, the same in every run."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# The first classes' colours, by hand: apart for red-green colour blindness too, in this order.
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
STEP = 15  # of the grid of sRGB values that further colours are taken from
LIGHTNESS = (0.58, 0.92)  # OKLab: darker ones vanish on dark pictures, lighter ones on paper
MIN_CHROMA = 0.07  # OKLab: greys look like the picture
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def oklab(colours: np.ndarray) -> np.ndarray:
    """Lightness and two opponent axes in which distance is difference to the eye.

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
    """Colours of the classes 0 .. count-1.

    A class keeps its colour whatever the number of classes: after ten chosen by hand, each next
    one is the colour that is farthest from all before it.

    Args:
        count: of classes.

    Returns:
        ``(count, 3)`` uint8 sRGB.
    """
    first = np.array(FIRST[:count], dtype=np.uint8).reshape(-1, 3)
    return np.concatenate([first, _further(count - len(first))])


def text_colour(background: np.ndarray | tuple[int, ...]) -> tuple[int, int, int]:
    """Black or white, whichever is the more legible on a colour (sRGB in 0..255)."""
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
    """Intensities in 0..1 of sRGB values in 0..255 (IEC 61966-2-1)."""
    values = np.asarray(colours, dtype=np.float64) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
