"""Markdown tables of measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gfl_det.errors import ConfigError


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table with its first columns aligned left, the others right.

    Args:
        head: names of the columns.
        rows: cells, as many as columns.
        words: how many columns hold words and not numbers.
    """
    rule = ['---' if column < words else '---:' for column in range(len(head))]
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, rule, *rows))


def fraction(value: float) -> str:
    """Three digits as in .123; a dash for NaN."""
    if np.isnan(value):
        return '-'
    text = f'{value:.3f}'
    return text.replace('0.', '.', 1) if abs(value) < 1 else text


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of repeated runs (of one run: the value)."""
    mean = fraction(float(np.mean(values)))
    return f'{mean} ± {fraction(float(np.std(values, ddof=1)))}' if len(values) > 1 else mean


def check_name(name: str) -> None:
    """Refuse the name of a row that becomes part of a file's name and cannot be.

    Raises:
        ConfigError: it has a slash.
    """
    if '/' in name:
        raise ConfigError(f'The name {name!r} becomes part of the name of a file: leave its / out.')
