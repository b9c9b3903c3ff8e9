"""Simulations of noise floors and debiased calibration errors against known truth.

``python -m projects.calibration_study.floors [--generators fresh] [--error .1]`` prints, for each
count of detections, the mean of the debiased error under calibration, and the root mean squared
errors of the published error and of the debiased one where the true error is .1; then the ratio of
the two over all scores and shapes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.floors import Floor, binned_floor
from gfl_det.evaluation.functional import DECE_BINS, LAECE_BINS

Draw = Callable[[np.random.Generator, int], np.ndarray]

# The estimate was chosen on the first group; the second was looked at once it stood.
SCORES: dict[str, dict[str, Draw]] = {
    'chosen': {'uniform': lambda rng, size: rng.uniform(0.3, 0.86, size)},
    'fresh': {
        'raw': lambda rng, size: rng.beta(1.2, 4, size),
        'peaked': lambda rng, size: rng.beta(20, 10, size),
        'two humps': lambda rng, size: np.where(
            rng.random(size) < 0.6, rng.beta(2, 12, size), rng.beta(12, 4, size)
        ),
    },
}
SHAPES: dict[str, dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    'chosen': {
        'shift down': lambda scores, _: -np.ones(len(scores)),
        'slope': lambda scores, many: np.median(many) - scores,
        'bump': lambda scores, many: np.exp(
            -(((scores - np.quantile(many, 0.6)) / (many.std() / 2)) ** 2)
        ),
        'wave': lambda scores, many: np.sin(6 * scores / (4 * many.std())),
    },
    'fresh': {
        'shift up': lambda scores, _: np.ones(len(scores)),
        'slope': lambda scores, many: np.quantile(many, 0.3) - scores,
        'top down': lambda scores, many: -np.clip(scores - np.median(many), 0, 1),
        'step': lambda scores, many: np.where(scores > np.quantile(many, 0.7), -1.0, 0.5),
    },
}
TRUE_ERROR = 0.1  # unless told otherwise
COUNTS = (50, 100, 300, 1000, 3000)
MANY = 50_000  # scores that stand for all


class Row(NamedTuple):
    """Of one simulated detector: means over simulations, with their standard errors."""

    scores: str
    targets: str
    shape: str
    count: int
    plug_in: tuple[float, float]  # under calibration the mean, else the root mean squared error
    debiased: tuple[float, float]
    difference: tuple[float, float]  # of squared errors, debiased less published
    inside: float  # share of values inside their floor


def ious(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """IoUs of this expectation: 0 for a wrong detection, else about .75 or what it takes."""
    right = np.maximum(0.75, means)
    hit = rng.random(len(means)) < means / right
    return np.where(hit, rng.beta(20 * right, 20 * (1 - right)), 0)


def flips(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Right or wrong, with this chance."""
    return (rng.random(len(means)) < means).astype(float)


def miscalibrated(
    shape: Callable[[np.ndarray, np.ndarray], np.ndarray], many: np.ndarray, true_error: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Expected targets by score, so far from the scores that the true error is this one."""
    low, high = 0.0, 20.0

    def means(scores: np.ndarray, size: float) -> np.ndarray:
        return np.clip(scores + size * shape(scores, many), 0.01, 0.99)

    for _ in range(50):
        middle = (low + high) / 2
        error = np.abs(means(many, middle) - many).mean()
        low, high = (middle, high) if error < true_error else (low, middle)
    return lambda scores: means(scores, low)


def simulate(
    group: str,
    scores: str,
    shape: str | None,
    binary: bool,
    count: int,
    simulations: int,
    true_error: float = TRUE_ERROR,
) -> Row:
    """Simulate detectors of ``count`` detections, as so many classes; no shape is calibrated."""
    rng = np.random.default_rng(count)
    draw = SCORES[group][scores]
    means: Callable[[np.ndarray], np.ndarray] = np.asarray
    if shape:
        means = miscalibrated(SHAPES[group][shape], draw(rng, MANY), true_error)
    label = np.repeat(np.arange(simulations), count)
    drawn = draw(rng, len(label))
    targets = (flips if binary else ious)(means(drawn), rng)
    bins = DECE_BINS if binary else LAECE_BINS
    found = binned_floor(drawn, targets, bins, label, simulations, binary, count).per_class
    return _row((scores, 'right' if binary else 'IoU', shape or 'none', count), found, true_error)


def _row(names: tuple[str, str, str, int], found: Floor, true_error: float) -> Row:
    inside = float(found.inside.mean())
    root = np.sqrt(len(found.value))
    both = (found.value, found.debiased)
    if names[2] == 'none':
        cells = [(float(each.mean()), float(each.std() / root)) for each in both]
        return Row(*names, *cells, (np.nan, np.nan), inside)
    squares = [(each - true_error) ** 2 for each in both]
    errors = [np.sqrt(each.mean()) for each in squares]
    cells = [
        (float(error), float(each.std() / root / 2 / error)) for error, each in zip(errors, squares)
    ]
    difference = squares[1] - squares[0]
    return Row(*names, *cells, (float(difference.mean()), float(difference.std() / root)), inside)


def ratios(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """Root mean squared error of the debiased error over that of the published, by targets, count.

    Over all scores and shapes together.
    """
    found = {}
    for targets in dict.fromkeys(row.targets for row in rows):
        for count in dict.fromkeys(row.count for row in rows):
            chosen = [
                (row.debiased[0], row.plug_in[0])
                for row in rows
                if (row.targets, row.count) == (targets, count) and row.shape != 'none'
            ]
            debiased, published = (np.array(chosen) ** 2).mean(0)
            found[targets, count] = float(np.sqrt(debiased / published))
    return found


def main() -> None:
    """Print one line for each simulated detector, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--generators', choices=list(SCORES), default='fresh')
    parser.add_argument('--simulations', type=int, default=500)
    parser.add_argument('--error', type=float, default=TRUE_ERROR, help='true error')
    args = parser.parse_args()
    print('scores targets miscalibration count | published | debiased | difference of MSE | inside')
    rows = []
    for scores in SCORES[args.generators]:
        for binary in (False, True):
            for shape in (None, *SHAPES[args.generators]):
                for count in COUNTS:
                    what = (scores, shape, binary, count, args.simulations)
                    row = simulate(args.generators, *what, args.error)
                    cells = [f'{mean:+.4f} ({error:.4f})' for mean, error in row[4:6]]
                    change = f'{row.difference[0]:+.5f} ({row.difference[1]:.5f})'
                    line = ' | '.join(cells)
                    print(*row[:4], '|', line, '|', change, f'| {row.inside:.3f}', flush=True)
                    rows.append(row)
    for (targets, count), ratio in ratios(rows).items():
        print(f'debiased / published, {targets}, {count} detections: {ratio:.3f}')


if __name__ == '__main__':
    main()
