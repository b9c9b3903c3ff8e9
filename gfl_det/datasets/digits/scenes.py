"""Scenes with handwritten digits: 8x8 scans at many sizes on textured ground, with tight boxes.

A scene is a pure function of its scans, its recipe and its random generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gfl_det.datasets.digits.textures import background, blot, scratch

Array = np.ndarray

FULL_INK = 16  # the darkest value of a scan in scikit-learn's load_digits
INK_LEVEL = 0.5  # coverage from which a pixel belongs to the digit, so to its box
MARGIN = 2  # empty cells around a scan: its strokes touch the rim and have to fade out
TORN_LABELS = (2, 4, 5, 7)  # digits whose swapped halves resemble no digit (halves of an 8 are 3s)
PLACEMENT_TRIES = 25


@dataclass(frozen=True)
class SceneRecipe:
    """What pictures look like; a digit's size is the height of its 8x8 frame in pixels."""

    width: int = 256
    height: int = 192
    min_size: int = 24
    max_size: int = 112
    max_objects: int = 8
    max_overlap: float = 0.2  # shared area over the smaller box, so that every digit stays legible
    max_distractors: int = 3
    texture: float = 0.8
    noise: int = 8  # grey levels either way


class DigitObject(NamedTuple):
    """One digit: its tight box (x, y, width, height) in whole pixels, its class, its scan."""

    box: tuple[int, int, int, int]
    label: int
    scan_id: int


class DigitScene(NamedTuple):
    """A picture, (H, W, 3) uint8, blue first as OpenCV writes it, and the digits in it."""

    image: Array
    objects: list[DigitObject]


class ScanSet(NamedTuple):
    """Scans to draw from: images (N, 8, 8) in 0..16, labels (N,), ids (N,) in the full set."""

    images: Array
    labels: Array
    ids: Array


def draw_scene(rng: np.random.Generator, scans: ScanSet, recipe: SceneRecipe) -> DigitScene:
    """Draw one picture with 1 to ``max_objects`` digits over distractors; digits are on top."""
    canvas = background(rng, recipe.height, recipe.width, recipe.texture)
    for _ in range(rng.integers(0, recipe.max_distractors + 1)):
        _draw_distractor(rng, canvas, scans, recipe)
    objects: list[DigitObject] = []
    for _ in range(rng.integers(1, recipe.max_objects + 1)):
        index = int(rng.integers(len(scans.ids)))
        coverage = random_glyph(rng, scans.images[index], recipe)
        box = _free_place(rng, coverage.shape, [item.box for item in objects], recipe)
        if box is not None:
            _paint(rng, canvas, coverage, box, contrast=(60, 150))
            objects.append(DigitObject(box, int(scans.labels[index]), int(scans.ids[index])))
    grain = rng.integers(-recipe.noise, recipe.noise + 1, canvas.shape[:2])
    return DigitScene(_to_uint8(canvas + grain[..., None].astype(np.float32)), objects)


def random_glyph(rng: np.random.Generator, scan: Array, recipe: SceneRecipe) -> Array:
    """A scan at a random size (small ones most often), aspect, slant, weight, sharpness."""
    share = rng.uniform() ** 1.5
    size = recipe.min_size + (recipe.max_size - recipe.min_size) * share
    return render_glyph(
        scan,
        height=size,
        aspect=rng.uniform(0.75, 1.3),
        slant=rng.uniform(-0.2, 0.2),
        threshold=rng.uniform(0.4, 0.55),
        sharpness=rng.uniform(2.5, 6.0),
    )


def render_glyph(
    scan: Array, height: float, aspect: float, slant: float, threshold: float, sharpness: float
) -> Array:
    """Enlarge a scan smoothly and cut it to its ink.

    Args:
        scan: (8, 8), 0 for paper and 16 for full ink.
        height: Height of the frame of eight cells, pixels.
        aspect: Width over height of the frame.
        slant: Cells that a row moves to the side for each cell of height.
        threshold: Interpolated ink (0..1) where coverage is a half.
        sharpness: Slope of coverage there; large values give hard edges.

    Returns:
        (h, w) float32 coverage in [0, 1]; each outermost row and column holds a pixel of at least
        ``INK_LEVEL``, so that the array's own frame is the tight box.
    """
    ink = np.pad(scan.astype(np.float32), MARGIN) / np.float32(max(1.0, float(scan.max())))
    cells = ink.shape[0]
    tall = max(8, round(height * cells / 8))
    wide = max(8, round(height * aspect * cells / 8))
    row_at = (np.arange(tall, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / tall)
    column_at = (np.arange(wide, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / wide)
    lean = (row_at - np.float32(cells / 2)) * np.float32(slant)
    enlarged = _interpolate(ink, np.broadcast_to(row_at[:, None], (tall, cells)), axis=0)
    enlarged = _interpolate(enlarged, column_at[None, :] + lean[:, None], axis=1)
    coverage = (enlarged - np.float32(threshold)) * np.float32(sharpness) + np.float32(INK_LEVEL)
    coverage = np.clip(coverage, 0, 1)
    rows, columns = (np.flatnonzero((coverage >= INK_LEVEL).any(axis)) for axis in (1, 0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _interpolate(values: Array, position: Array, axis: int) -> Array:
    """Catmull-Rom interpolation along an axis; a cell's centre lies at its index plus a half."""
    position = position - np.float32(0.5)
    left = np.floor(position).astype(np.int64)
    t = position - left
    weights = (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
    last = values.shape[axis] - 1
    total = np.zeros(position.shape, np.float32)
    for offset, weight in zip((-1, 0, 1, 2), weights):
        total += weight * np.take_along_axis(values, np.clip(left + offset, 0, last), axis)
    return total


def _draw_distractor(
    rng: np.random.Generator, canvas: Array, scans: ScanSet, recipe: SceneRecipe
) -> None:
    """Draw something that is not a digit: a scratch, a blot, or the strokes of a torn scan."""
    kind = rng.integers(3)
    if kind == 0:
        coverage = scratch(rng, recipe.height, recipe.width)
    elif kind == 1:
        coverage = blot(rng, int(rng.integers(recipe.min_size, recipe.max_size)))
    else:
        choice = np.flatnonzero(np.isin(scans.labels, TORN_LABELS))
        scan = scans.images[rng.choice(choice)]
        torn = np.roll(scan, (int(rng.integers(2, 7)), 4), (0, 1))
        coverage = random_glyph(rng, torn, recipe)
    box = _random_place(rng, coverage.shape, recipe)
    _paint(rng, canvas, coverage, box, contrast=(20, 110))


def _random_place(
    rng: np.random.Generator, shape: tuple[int, ...], recipe: SceneRecipe
) -> tuple[int, int, int, int]:
    height, width = shape[:2]
    x = int(rng.integers(0, recipe.width - width + 1))
    y = int(rng.integers(0, recipe.height - height + 1))
    return x, y, width, height


def _free_place(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    taken: list[tuple[int, int, int, int]],
    recipe: SceneRecipe,
) -> tuple[int, int, int, int] | None:
    for _ in range(PLACEMENT_TRIES):
        box = _random_place(rng, shape, recipe)
        if all(overlap(box, other) <= recipe.max_overlap for other in taken):
            return box
    return None


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Shared area over the smaller box's area; never less than their IoU. Boxes are x, y, w, h."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, wide) * max(0, high) / min(a[2] * a[3], b[2] * b[3])


def _paint(
    rng: np.random.Generator,
    canvas: Array,
    coverage: Array,
    box: tuple[int, int, int, int],
    contrast: tuple[float, float],
) -> None:
    """Blend ink over the canvas, darker or lighter than the ground below it, sometimes coloured."""
    x, y, width, height = box
    region = canvas[y : y + height, x : x + width]
    # A mean of whole numbers is exact in every order of summation.
    ground = int(_to_uint8(region).astype(np.int64).sum()) / region.size
    difference = float(rng.uniform(*contrast))
    lighter = bool(rng.uniform() < 0.5)
    if not 10 <= (ground + difference if lighter else ground - difference) <= 245:
        lighter = ground < 128
    level = ground + difference if lighter else ground - difference
    tint = rng.uniform(-60, 60, 3) * (rng.uniform() < 0.5)
    ink = np.clip(level + tint - (tint[0] + tint[1] + tint[2]) / 3, 0, 255).astype(np.float32)
    region += (ink - region) * coverage[..., None]


def _to_uint8(picture: Array) -> Array:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
