"""Markdown tables of measurements, and differences that are paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from gfl_det.errors import ConfigError

LEVEL = 0.05  # of two-sided tests
Verdict = Literal['holds', 'contradicted', 'undecided']


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table with its first columns aligned left, the others right.

    Args:
        head: names of the columns.
        rows: cells, as many as columns.
        words: how many columns hold words and not numbers.
    """
    rule = ['---' if column < words else '---:' for column in range(len(head))]
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, rule, *rows))


def fraction(value: float, digits: int = 3) -> str:
    """So many digits as in .123; a dash for NaN."""
    if np.isnan(value):
        return '-'
    text = f'{value:.{digits}f}'
    return text.replace('0.', '.', 1) if abs(value) < 1 else text


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of repeated runs (of one run: the value)."""
    mean = fraction(float(np.mean(values)))
    return f'{mean} ± {fraction(float(np.std(values, ddof=1)))}' if len(values) > 1 else mean


class PairedMean(NamedTuple):
    """Mean of paired differences, its .95 interval and two-sided p, by Student's t."""

    mean: float
    low: float  # NaN for a single pair, as are high and p
    high: float
    p: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return '' if np.isnan(self.mean) else f'{self.mean:+.3f}'
        return f'{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]'


def paired(differences: Sequence[float], ratio: float = 0.0) -> PairedMean:
    """Test whether differences of pairs (seeds) are 0 on average.

    Args:
        differences: one per pair; NaN for none.
        ratio: judged samples over training samples, where pairs cut the same samples anew and the
            variance of the mean is that of Nadeau and Bengio (2003); 0 for independent pairs.
    """
    from scipy.stats import t as student  # slow to import

    values = np.asarray(differences, float)
    mean = float(values.mean()) if len(values) else float('nan')
    if len(values) < 2:
        return PairedMean(mean, *[float('nan')] * 3)
    # Equal values have no spread, whatever rounding leaves of their mean.
    spread_of_one = float(values.std(ddof=1)) if np.ptp(values) else 0.0
    error = spread_of_one * (1 / len(values) + ratio) ** 0.5
    half = float(student.ppf(1 - LEVEL / 2, len(values) - 1)) * error
    # Without any spread the sign is the answer.
    p = 2 * student.sf(abs(mean) / error, len(values) - 1) if error else float(mean == 0)
    return PairedMean(mean, mean - half, mean + half, float(p))


def verdict(difference: float, p: float) -> Verdict:
    """What a test says of the claim that a difference is below 0."""
    if not p < LEVEL:
        return 'undecided'
    return 'holds' if difference < 0 else 'contradicted'


def check_name(name: str) -> None:
    """Refuse the name of a row that becomes part of a file's name and cannot be.

    Raises:
        ConfigError: it has a slash.
    """
    if '/' in name:
        raise ConfigError(f'The name {name!r} becomes part of the name of a file: leave its / out.')
