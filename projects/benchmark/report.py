"""Rows as a table, as JSON to compare with later, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from gfl_det.compat.environment import processor_kind
from gfl_det.errors import DataError
from gfl_det.utils.timing import Row
from projects.provenance import commit, processor

VERSION = 1
RESULTS = Path(__file__).parent / 'results'


def machine(device: str) -> str:
    """The device and the versions that a figure depends on, in one line."""
    if device.startswith('cuda'):
        name = torch.cuda.get_device_name()
    else:
        name = f'{processor()} ({processor_kind()}), {torch.get_num_threads()} threads'
    return f'{name}, torch {torch.__version__}'


def format_table(rows: Sequence[Row], *others: Sequence[Row]) -> str:
    """The rows of a run as a Markdown table, with the ratios of other runs.

    Raises:
        DataError: the runs have other rows.
    """
    names = [[row.name for row in run] for run in (rows, *others)]
    if any(each != names[0] for each in names):
        raise DataError('Runs that stand in one table must have the same rows: run them alike.')
    lines = [
        '| | mmdet | gfl_det | ratio | asked | floor | gfl_det / floor |',
        '|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row, *again in zip(rows, *others, strict=True):
        if row.ours is None:
            lines.append(f'| {row.name} | {row.theirs:.1f} {row.unit} | | | | | |')
            continue
        asked = '' if row.target is None else f'{row.target:g}'
        floor, above = '', ''
        if row.floor is not None:
            floor, above = f'{row.floor:.2g} {row.unit}', f'{row.ours / row.floor:.2g}'
            if row.floor >= 10:
                floor = f'{row.floor:.0f} {row.unit}'
            if row.ours >= 10 * row.floor:
                above = f'{row.ours / row.floor:.0f}'
        ratios = ', '.join(f'{each.ratio:.2f}' for each in (row, *again))
        lines.append(
            f'| {row.name} | {row.theirs:.1f} {row.unit} | {row.ours:.1f} {row.unit} '
            f'| {ratios} | {asked} | {floor} | {above} |'
        )
    return '\n'.join(lines)


def write_json(rows: Sequence[Row], path: Path, device: str) -> None:
    """Write rows where :func:`read_json` finds them again."""
    facts = dict(version=VERSION, machine=machine(device), commit=commit())
    parts = dict(facts, rows=[row._asdict() for row in rows])
    path.write_text(json.dumps(parts, indent=1) + '\n')


def read_json(path: Path) -> list[Row]:
    """Rows of an earlier run.

    Raises:
        DataError: the file is none that :func:`write_json` wrote.
    """
    try:
        parts = json.loads(path.read_text())
        if parts['version'] != VERSION:
            raise DataError(f'{path} is of version {parts["version"]}, not {VERSION}: run it anew.')
        return [Row(**row) for row in parts['rows']]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f'{path} is not a result of tools/benchmark.py ({type(error).__name__}: {error}).'
        ) from error


def slower_rows(rows: Sequence[Row], earlier: Sequence[Row], tolerance: float) -> list[str]:
    """One sentence for each row whose ratio fell by more than a share since an earlier run."""
    before = {row.name: row for row in earlier}
    return [
        f'{row.name}: {row.ratio:.2f} times mmdet, {before[row.name].ratio:.2f} before'
        for row in rows
        if row.name in before and row.ratio < (1 - tolerance) * before[row.name].ratio
    ]


def draw(rows: Sequence[Row], path: Path, device: str) -> None:
    """A bar for each row: how many times faster or smaller; marks for what was asked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.28 * len(rows)), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(rows))
    colours = ['#2b7a78' if row.unit == 'ms' else '#8d99ae' for row in rows]
    axes.barh(places, [row.ratio for row in rows], color=colours)
    for place, row in zip(places, rows):
        if row.ours is None:
            continue
        label = f'{row.ratio:.0f}' if row.ratio >= 10 else f'{row.ratio:.2f}'
        axes.text(max(row.ratio, 1) * 1.05, place, label, va='center', fontsize=8)
        if row.target is not None:
            axes.plot([row.target] * 2, [place - 0.45, place + 0.45], color='#d1495b', linewidth=2)
    axes.axvline(1, color='black', linewidth=0.8)
    axes.set_xscale('log')
    axes.set_yticks(places, [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel('mmdet / gfl_det: times faster (green), times smaller (grey); red: asked')
    axes.set_title(machine(device), fontsize=9)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=130)
