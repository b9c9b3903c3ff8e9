"""Chart of paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gfl_det.visualization.charts import GRID, TEXT, figure

APART, NOISE = '#2b7a78', '#8d99ae'  # intervals without 0, with 0
ROW, MARGIN, WIDTH = 0.28, 1.1, 6.5  # inches


def difference_figure(
    found: Mapping[str, float], rows: Mapping[str, str], sides: tuple[str, str] = ('A', 'B')
) -> Any:
    """Draw a row per metric: the difference as a dot, its interval as a line.

    Args:
        found: Result of :func:`gfl_det.evaluation.comparison.compare_detections`.
        rows: Metric titles by name, from top to bottom.
        sides: Names of the two detectors.

    Returns:
        A matplotlib figure.

    Example:
        >>> ends = dict(difference=0.02, low=0.01, high=0.03, p=0.002)
        >>> found = {f'AP_{end}': value for end, value in ends.items()}
        >>> len(difference_figure(found, {'AP': 'AP'}).axes)
        1
    """
    drawing = figure(WIDTH, MARGIN + ROW * len(rows))
    axes = drawing.subplots()
    axes.axvline(0, color=TEXT, linewidth=0.8)
    for place, name in enumerate(rows):
        value, low, high, p = (found[f'{name}_{end}'] for end in ('difference', 'low', 'high', 'p'))
        if not p <= 1:  # NaN: one side has no value
            continue
        colour = APART if low > 0 or high < 0 else NOISE
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle='butt')
        axes.plot([value], [place], 'o', color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), rows.values(), fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f'{sides[0]} less {sides[1]}, with .95 intervals', fontsize=8)
    axes.tick_params(labelsize=8, length=0)
    axes.grid(axis='x', color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right', 'left', 'bottom']].set_visible(False)
    return drawing
