"""The advice as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gfl_det.engine.reach.advice import Advice

SHOWN = 33  # values of reg_max, from 2 on
LEAST = 1e-5  # share drawn for none, on a logarithmic axis


def draw(advice: Advice, path: Path) -> None:
    """Write a PNG: clipped positives by reg_max and level, and bare truths by size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    _clipped(axes[0], advice)
    _sizes(axes[1], advice)
    _tried(axes[2], advice)
    figure.savefig(path, dpi=110)


def _clipped(axes: Any, advice: Advice) -> None:
    values = range(2, SHOWN)
    levels = advice.now.pyramid.strides
    for level, stride in enumerate(levels):
        if advice.now.needed[level].sum():
            shares = [max(LEAST, advice.now.clipped(n)[level]) for n in values]
            axes.plot(values, shares, label=f'stride {stride}')
    everything = [max(LEAST, advice.now.clipped_of_all(n)) for n in values]
    axes.plot(values, everything, 'k', lw=2.5, label='all levels')
    axes.axhline(advice.limits.clipped, color='grey', ls=':')
    axes.axvline(advice.reg_max, color='grey', ls='--')
    axes.set(
        yscale='log',
        ylim=(LEAST, 1.2),
        xlabel='reg_max',
        ylabel='share of positives',
        title=f'Positives with an edge beyond reg_max\n(strides {" ".join(map(str, levels))})',
    )
    axes.legend(fontsize=8)


def _sizes(axes: Any, advice: Advice) -> None:
    names = [f'{row.low:g}' for row in advice.sizes]
    places = range(len(names))
    number = sum(row.truths for row in advice.sizes)
    shares = [row.truths / number for row in advice.sizes]
    axes.bar(places, shares, color='lightgrey', label='of all truths')
    axes.plot(places, [row.bare for row in advice.sizes], 'o-', c='C3', label='without a positive')
    axes.set_xticks(places, names)
    axes.set(
        ylim=(0, 1.05),
        xlabel='size from, px after resizing (square root of the area)',
        ylabel='share',
        title='Truths by size, and those without a positive',
    )
    axes.legend(fontsize=8)


def _tried(axes: Any, advice: Advice) -> None:
    by_strides: dict[tuple[int, ...], list] = {}
    for each in advice.candidates:
        by_strides.setdefault(each.pyramid.strides, []).append(each)
    for strides, tried in by_strides.items():
        tried = sorted(tried, key=lambda each: each.pyramid.scale)
        scales = [each.pyramid.scale for each in tried]
        label = f'{" ".join(map(str, strides))} ({tried[0].cells:.2f} x cells)'
        axes.plot(scales, [100 * each.bare for each in tried], 'o-', ms=4, label=label)
        if strides[-1] != advice.now.pyramid.strides[-1]:
            continue  # its points lie on those without the coarser level: one number a point
        for each in tried:
            place = (each.pyramid.scale, 100 * each.bare)
            above = dict(xytext=(0, 4), textcoords='offset points')
            axes.annotate(each.reg_max, place, fontsize=7, **above)
    chosen = advice.chosen
    axes.plot(chosen.pyramid.scale, 100 * chosen.bare, 'k*', ms=14, label='suggested')
    axes.axhline(100 * advice.limits.bare, color='grey', ls=':')
    axes.set(
        xlabel='anchor scale, strides',
        ylabel='truths without a positive, %',
        title='Pyramids tried, with the reg_max they need',
    )
    axes.legend(fontsize=8)
