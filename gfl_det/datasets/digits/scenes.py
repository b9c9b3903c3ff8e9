"""Scenes with handwritten digits: 8x8 scans at many sizes on textured backgrounds, with tight
boxes.

A scene is a pure function of its scans, recipe and random generator. Backgrounds and distractors
use only element-wise NumPy operations without sums, matrix products or transcendental functions, so
an image does not depend on the CPU's vector width or the maths library. Images are float32, grey
levels 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Array = np.ndarray

INK_LEVEL = 0.5  # coverage from which a pixel belongs to the digit and its box
MARGIN = 2  # empty cells around a scan, whose strokes touch the border and must fade out
TORN_LABELS = (2, 4, 5, 7)  # digits whose swapped halves resemble no digit (an 8 would give 3s)
PLACEMENT_TRIES = 25


def value_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Array:
    """Smooth noise: a random lattice of about ``cells`` squares along the height, interpolated.

    Returns:
        (height, width) float32 in [-1, 1].
    """
    columns = max(1, round(cells * width / height))
    lattice = rng.uniform(-1, 1, (cells + 1, columns + 1)).astype(np.float32)
    for axis, (size, squares) in enumerate(((height, cells), (width, columns))):
        position = np.arange(size, dtype=np.float32) * np.float32(squares / size)
        left = position.astype(np.int64)
        fraction = position - left
        fraction = fraction * fraction * (3 - 2 * fraction)  # no creases at lattice lines
        fraction = fraction[:, None] if axis == 0 else fraction
        near, far = lattice.take(left, axis), lattice.take(left + 1, axis)
        lattice = near + (far - near) * fraction
    return lattice


def random_direction(rng: np.random.Generator) -> tuple[float, float]:
    """Random unit vector by rejection from the square, without sine and cosine."""
    while True:
        x, y = rng.uniform(-1, 1, 2)
        length = float(np.sqrt(x * x + y * y))
        if 0.1 < length <= 1:
            return float(x) / length, float(y) / length


def coordinates(height: int, width: int) -> tuple[Array, Array]:
    """Pixel centres as a column of rows (height, 1) and a row of columns (1, width), float32."""
    return (
        np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5),
        np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5),
    )


def pattern(rng: np.random.Generator, height: int, width: int) -> Array:
    """Stripes, checks or rings of a random period and direction: (height, width) in [-1, 1]."""
    rows, columns = coordinates(height, width)
    dx, dy = random_direction(rng)
    period = rng.uniform(8, 48)
    kind = rng.integers(3)
    along = (columns * np.float32(dx) + rows * np.float32(dy)) / np.float32(period)
    if kind == 0:
        return triangle_wave(along)
    if kind == 1:
        across = (rows * np.float32(dx) - columns * np.float32(dy)) / np.float32(period)
        return triangle_wave(along) * triangle_wave(across)
    x0, y0 = rng.uniform(0, width), rng.uniform(0, height)
    radius = np.sqrt((columns - np.float32(x0)) ** 2 + (rows - np.float32(y0)) ** 2)
    return triangle_wave(radius / np.float32(period))


def triangle_wave(phase: Array) -> Array:
    """Triangle wave of period 1, in [-1, 1]."""
    return np.abs(phase - np.floor(phase) - np.float32(0.5)) * 4 - 1


def background(rng: np.random.Generator, height: int, width: int, strength: float) -> Array:
    """Tinted background with a gradient, noise at four scales, patterns and large flat patches.

    Args:
        rng: Random generator of the image.
        height: Height in pixels.
        width: Width in pixels.
        strength: 0 for a flat colour, 1 for the full texture.

    Returns:
        (height, width, 3) float32; values may exceed 0..255 until the scene is finished.
    """
    rows, columns = coordinates(height, width)
    dx, dy = random_direction(rng)
    ramp = (columns / width - np.float32(0.5)) * dx + (rows / height - np.float32(0.5)) * dy
    light = ramp.astype(np.float32) * np.float32(rng.uniform(0, 90))
    for cells, most in ((2, 40), (6, 28), (20, 22), (64, 16)):
        light += value_noise(rng, height, width, cells) * np.float32(rng.uniform(0.15, 1) * most)
    if rng.uniform() < 0.6:
        light += pattern(rng, height, width) * np.float32(rng.uniform(4, 22))
    for _ in range(rng.integers(0, 4)):
        light += patch(rng, height, width) * np.float32(rng.uniform(-60, 60))
    colour = rng.uniform(-25, 25, 3).astype(np.float32)
    tint = value_noise(rng, height, width, 2)[..., None] * colour
    ground = np.float32(rng.uniform(50, 205)) + rng.uniform(-35, 35, 3).astype(np.float32)
    return ground + (light[..., None] + tint) * np.float32(strength)


def patch(rng: np.random.Generator, height: int, width: int) -> Array:
    """Tilted half plane, slab or ellipse, larger than any digit: (height, width) in [0, 1]."""
    rows, columns = coordinates(height, width)
    x0, y0 = np.float32(rng.uniform(0, width)), np.float32(rng.uniform(0, height))
    dx, dy = random_direction(rng)
    along = (columns - x0) * np.float32(dx) + (rows - y0) * np.float32(dy)
    across = (rows - y0) * np.float32(dx) - (columns - x0) * np.float32(dy)
    half = np.float32(rng.uniform(0.25, 0.6) * height)
    kind = rng.integers(3)
    if kind == 0:
        inside = along
    elif kind == 1:
        inside = half - np.abs(along)
    else:
        inside = half - np.sqrt(along * along + across * across * np.float32(rng.uniform(0.2, 1)))
    return np.clip(inside + np.float32(0.5), 0, 1)


def scratch(rng: np.random.Generator, height: int, width: int) -> Array:
    """Thin arc across most of the image, longer than any digit: coverage in [0, 1]."""
    rows, columns = coordinates(height, width)
    dx, dy = random_direction(rng)
    x0, y0 = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height
    along = (columns - np.float32(x0)) * np.float32(dx) + (rows - np.float32(y0)) * np.float32(dy)
    across = (rows - np.float32(y0)) * np.float32(dx) - (columns - np.float32(x0)) * np.float32(dy)
    across = across + along * along * np.float32(rng.uniform(-0.5, 0.5) / height)
    return np.clip(np.float32(rng.uniform(0.8, 2.0)) - np.abs(across), 0, 1)


def blot(rng: np.random.Generator, size: int) -> Array:
    """Filled triangle, cross or disc with a ragged border: (size, size) coverage in [0, 1]."""
    rows, columns = coordinates(size, size)
    half = np.float32(size / 2)
    x, y = columns - half, rows - half
    dx, dy = random_direction(rng)
    along = x * np.float32(dx) + y * np.float32(dy)
    across = y * np.float32(dx) - x * np.float32(dy)
    kind = rng.integers(3)
    if kind == 0:
        inside = np.minimum(half * np.float32(0.5) - along, along + half - 2 * np.abs(across))
    elif kind == 1:
        bar = half * np.float32(rng.uniform(0.15, 0.35))
        reach = half * np.float32(0.9)
        first = np.minimum(bar - np.abs(along), reach - np.abs(across))
        second = np.minimum(bar - np.abs(across), reach - np.abs(along))
        inside = np.maximum(first, second)
    else:
        squeezed = across * np.float32(rng.uniform(1, 2))
        inside = half * np.float32(0.8) - np.sqrt(along * along + squeezed * squeezed)
    rim = value_noise(rng, size, size, 5) * half * np.float32(rng.uniform(0, 0.25))
    return np.clip(inside + rim, 0, 1)


@dataclass(frozen=True)
class SceneRecipe:
    """Appearance of images; a digit's size is the height of its 8x8 frame in pixels."""

    width: int = 256
    height: int = 192
    min_size: int = 24
    max_size: int = 112
    max_objects: int = 8
    max_overlap: float = 0.2  # shared area over the smaller box; keeps digits legible
    max_distractors: int = 3
    texture: float = 0.8
    noise: int = 8  # grey levels in either direction


class DigitObject(NamedTuple):
    """Digit with its tight box (x, y, width, height) in whole pixels, its class and its scan."""

    box: tuple[int, int, int, int]
    label: int
    scan_id: int


class DigitScene(NamedTuple):
    """Image (H, W, 3) uint8 in BGR, as OpenCV writes it, and its digits."""

    image: Array
    objects: list[DigitObject]


class ScanSet(NamedTuple):
    """Scans to draw from: images (N, 8, 8) in 0..16, labels (N,), ids (N,) in the full set."""

    images: Array
    labels: Array
    ids: Array


def draw_scene(rng: np.random.Generator, scans: ScanSet, recipe: SceneRecipe) -> DigitScene:
    """Draw an image with 1 to ``max_objects`` digits on top of distractors."""
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
    """Render a scan with random size (mostly small), aspect, slant, weight and sharpness."""
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
    """Enlarge a scan smoothly and crop it to its ink.

    Args:
        scan: (8, 8), 0 for paper and 16 for full ink.
        height: Height of the frame of eight cells, pixels.
        aspect: Width over height of the frame.
        slant: Horizontal shift in cells per cell of height.
        threshold: Interpolated ink (0..1) at which coverage is one half.
        sharpness: Slope of coverage there; large values give hard edges.

    Returns:
        (h, w) float32 coverage in [0, 1]; each outermost row and column contains a pixel of at
        least ``INK_LEVEL``, so the array's frame is the tight box.
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
    """Draw a distractor: a scratch, a blot, or the strokes of a torn scan."""
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
    """Shared area over the smaller box's area, at least the IoU; boxes are x, y, w, h."""
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
    """Blend ink over the canvas, darker or lighter than the background, sometimes coloured."""
    x, y, width, height = box
    region = canvas[y : y + height, x : x + width]
    # A mean of integers is exact in any order of summation.
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
