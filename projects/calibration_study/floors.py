"""Simulations of noise floors and debiased calibration errors against known truth.

``python -m projects.calibration_study.floors`` simulates detectors whose true error is known: for
each count of detections the mean of the debiased error under calibration, the root mean squared
errors of the published error and of the debiased one where the true error is not 0, and the ratio
of the two over scores and shapes, with its .95 interval. Ten minutes on one core, written to
``results/floors-simulated.json``; :mod:`.pages` makes the tables of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from gfl_det.cli import main as cli
from gfl_det.evaluation.floors import Floor, binned_floor
from gfl_det.evaluation.functional import DECE_BINS, LAECE_BINS
from gfl_det.utils.files import check_writable, write_json
from projects.calibration_study.tables import fraction, markdown
from projects.provenance import provenance

RESULTS = Path(__file__).parent / 'results' / 'floors-simulated.json'
Draw = Callable[[np.random.Generator, int], np.ndarray]

# The estimate was chosen on the first two groups; the third was looked at once it stood.
SCORES: dict[str, dict[str, Draw]] = {
    'chosen': {'uniform': lambda rng, size: rng.uniform(0.3, 0.86, size)},
    'fresh': {
        'raw': lambda rng, size: rng.beta(1.2, 4, size),
        'peaked': lambda rng, size: rng.beta(20, 10, size),
        'two humps': lambda rng, size: np.where(
            rng.random(size) < 0.6, rng.beta(2, 12, size), rng.beta(12, 4, size)
        ),
    },
    'untouched': {
        'flat': lambda rng, size: rng.uniform(0.02, 0.98, size),
        'low': lambda rng, size: rng.beta(1.5, 6, size),
        'high': lambda rng, size: rng.beta(9, 2.5, size),
        'tail': lambda rng, size: np.minimum(0.05 + rng.exponential(0.2, size), 0.97),
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
    'untouched': {
        'over': lambda scores, _: -(scores**2),
        'under': lambda scores, _: scores * (1 - scores),
        'towards half': lambda scores, _: 0.5 - scores,
        'bottom up': lambda scores, many: np.clip(np.median(many) - scores, 0, 1),
        'S': lambda scores, many: np.sin(
            2 * np.pi * (scores - np.quantile(many, 0.1)) / np.ptp(np.quantile(many, [0.1, 0.9]))
        ),
    },
}
TRUE_ERROR = 0.1


class Part(NamedTuple):
    """Simulations of the plan."""

    scores: str  # group of scores
    simulations: int  # detectors of each kind
    true_error: float


PLAN = {
    'chosen': Part('chosen', 500, 0.1),
    'fresh': Part('fresh', 500, 0.1),
    'untouched': Part('untouched', 250, 0.1),
    'smaller error': Part('untouched', 100, 0.05),
}
# Over which parts the errors are compared.
TOGETHER = {
    'uniform': ['chosen'],
    'the three others': ['fresh'],
    'all four': ['chosen', 'fresh'],
    'untouched': ['untouched'],
    'untouched, true error .05': ['smaller error'],
}
SHOWN = ('chosen', 'fresh', 'untouched')  # row by row
COUNTS = (50, 100, 300, 1000, 3000)
MANY = 50_000  # scores that stand for all
RESAMPLES = 10_000


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
    spread: float  # standard deviation of the debiased error
    squares: np.ndarray  # (2, S) squared errors by simulation, published and debiased


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
    """Expected targets by score, so far from the scores that the true error is this one.

    Raises:
        ValueError: No size of the shape gives it, as targets stay in [.01, .99].
    """
    low, high = 0.0, 20.0

    def means(scores: np.ndarray, size: float) -> np.ndarray:
        return np.clip(scores + size * shape(scores, many), 0.01, 0.99)

    for _ in range(30):
        middle = (low + high) / 2
        error = np.abs(means(many, middle) - many).mean()
        low, high = (middle, high) if error < true_error else (low, middle)
    if high == 20:
        raise ValueError(f'A true error of {true_error} is out of reach.')
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
    rng = np.random.default_rng([count, crc32(f'{scores} {shape} {binary}'.encode())])
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
    inside, spread = float(found.inside.mean()), float(found.debiased.std())
    root = np.sqrt(len(found.value))
    both = (found.value, found.debiased)
    if names[2] == 'none':
        cells = [(float(each.mean()), float(each.std() / root)) for each in both]
        return Row(*names, *cells, (np.nan, np.nan), inside, spread, np.zeros((2, 0)))
    squares = np.stack([(each - true_error) ** 2 for each in both])
    errors = [np.sqrt(each.mean()) for each in squares]
    cells = [
        (float(error), float(each.std() / root / 2 / error)) for error, each in zip(errors, squares)
    ]
    difference = squares[1] - squares[0]
    change = (float(difference.mean()), float(difference.std() / root))
    return Row(*names, *cells, change, inside, spread, squares)


def ratios(rows: Sequence[Row]) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Root mean squared error of the debiased error over that of the published, by targets, count.

    Over all scores and shapes together, with the .95 interval of a bootstrap over simulations.
    """
    found, rng = {}, np.random.default_rng(0)
    for key in dict.fromkeys((row.targets, row.count) for row in rows if row.shape != 'none'):
        squares = np.array(
            [row.squares for row in rows if (row.targets, row.count) == key and row.squares.size]
        )
        picks = rng.integers(0, squares.shape[2], (RESAMPLES, squares.shape[2]))
        drawn = squares.mean(0)[:, picks].mean(2)
        published, debiased = squares.mean((0, 2))
        low, high = np.quantile(np.sqrt(drawn[1] / drawn[0]), [0.025, 0.975])
        found[key] = (float(np.sqrt(debiased / published)), float(low), float(high))
    return found


def simulated(group: str, simulations: int, true_error: float) -> Iterator[Row]:
    """All scores, targets, shapes and counts of a group."""
    for scores in SCORES[group]:
        for binary in (False, True):
            for shape in (None, *SHAPES[group]):
                for count in COUNTS:
                    yield simulate(group, scores, shape, binary, count, simulations, true_error)
            print(group, true_error, scores, 'right' if binary else 'IoU', file=sys.stderr)


def to_json(rows: dict[str, Sequence[Row]]) -> dict[str, Any]:
    """Rows of each part of the plan, and the ratios of those that are taken together."""
    written = [
        dict(
            {key: value for key, value in row._asdict().items() if key != 'squares'},
            simulations=simulations,
            true_error=0.0 if row.shape == 'none' else true_error,
            part=part,
        )
        for part, (_, simulations, true_error) in PLAN.items()
        for row in rows[part]
    ]
    compared = [
        dict(scores=name, targets=targets, count=count, ratio=ratio, low=low, high=high)
        for name, parts in TOGETHER.items()
        for (targets, count), (ratio, low, high) in ratios(
            [row for part in parts for row in rows[part]]
        ).items()
    ]
    return dict(rows=written, ratios=compared)


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Tables of a file of results, by kind: calibrated, ratios, errors."""
    heading = [f'{count} detections' for count in COUNTS]
    rows = content['rows']
    calibrated = [row for row in rows if row['shape'] == 'none' and row['part'] in SHOWN]
    wrong = [row for row in rows if row['shape'] != 'none' and row['part'] in SHOWN]
    return dict(
        calibrated=_table(
            ('scores', 'targets'),
            calibrated,
            heading,
            lambda row: f'{fraction(row["debiased"][0], 4)} ({fraction(row["plug_in"][0])})',
        ),
        ratios=_table(
            ('scores', 'targets'),
            content['ratios'],
            heading,
            lambda row: '{} [{}, {}]'.format(*(fraction(row[k]) for k in ('ratio', 'low', 'high'))),
        ),
        errors=_table(('scores', 'targets', 'shape'), wrong, heading, _errors),
    )


def _table(
    names: Sequence[str],
    rows: Sequence[dict[str, Any]],
    heading: Sequence[str],
    cell: Callable[[dict[str, Any]], str],
) -> str:
    """One line for rows that have these names alike, a column for each count."""
    lines = {tuple(row[name] for name in names): [''] * len(COUNTS) for row in rows}
    for row in rows:
        lines[tuple(row[name] for name in names)][COUNTS.index(row['count'])] = cell(row)
    return markdown(
        [*names, *heading], [[*key, *cells] for key, cells in lines.items()], len(names)
    )


def _errors(row: dict[str, Any]) -> str:
    mean, error = row['difference']
    text = ' / '.join(fraction(row[key][0], 4) for key in ('plug_in', 'debiased'))
    return f'**{text}**' if mean > 2 * error else text


def main() -> None:
    """Simulate what the plan asks for, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--out', type=Path, default=RESULTS, metavar='FILE')
    args = parser.parse_args()
    check_writable(args.out)
    content = to_json({name: list(simulated(*part)) for name, part in PLAN.items()})
    write_json(args.out, content | provenance(), indent=1)


if __name__ == '__main__':
    cli.run(main)
