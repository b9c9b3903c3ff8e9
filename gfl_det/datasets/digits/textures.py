"""Backgrounds and distractors for synthetic scenes: NumPy only, element by element.

No sums, matrix products or transcendental functions take part, so that a picture does not depend on
the processor's vector width or on the maths library. Pictures are float32, grey levels 0..255.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


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
    """A unit vector by rejection from the square, without sine and cosine."""
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
    """A wave of period 1 with straight flanks, in [-1, 1]."""
    return np.abs(phase - np.floor(phase) - np.float32(0.5)) * 4 - 1


def background(rng: np.random.Generator, height: int, width: int, strength: float) -> Array:
    """A tinted ground with a gradient, noise at four scales, patterns and large flat patches.

    Args:
        rng: The picture's own generator.
        height: Pixels.
        width: Pixels.
        strength: 0 leaves one flat colour, 1 is the full texture.

    Returns:
        (height, width, 3) float32; values may leave 0..255 until the scene is finished.
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
    """A tilted half plane, slab or ellipse, larger than any digit: (height, width) in [0, 1]."""
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
    """A hair-thin bow across most of the picture (no digit is that long): coverage in [0, 1]."""
    rows, columns = coordinates(height, width)
    dx, dy = random_direction(rng)
    x0, y0 = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height
    along = (columns - np.float32(x0)) * np.float32(dx) + (rows - np.float32(y0)) * np.float32(dy)
    across = (rows - np.float32(y0)) * np.float32(dx) - (columns - np.float32(x0)) * np.float32(dy)
    across = across + along * along * np.float32(rng.uniform(-0.5, 0.5) / height)
    return np.clip(np.float32(rng.uniform(0.8, 2.0)) - np.abs(across), 0, 1)


def blot(rng: np.random.Generator, size: int) -> Array:
    """A filled triangle, bar cross or disc with a ragged rim: (size, size) coverage in [0, 1]."""
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
