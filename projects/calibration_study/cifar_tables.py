"""What the runs on CIFAR-10 say: tables, the papers' claims, and a figure of the mechanism.

    python -m projects.calibration_study.cifar_tables [--noise 0] [--figure FILE.png]

Everything is read from the JSON files that :mod:`.cifar` wrote. Of a family of losses that differ
in one number the member counts whose NLL after temperature scaling was least on the pictures that
temperatures are fitted on, in seed 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from gfl_det.cli import main as cli
from gfl_det.errors import DataError
from gfl_det.visualization.charts import APART, GRID, NOISE, TEXT, figure, save_figure
from projects.calibration_study import cifar
from projects.calibration_study.claims import CLAIMS, Claim, judge_all
from projects.calibration_study.classification import Run
from projects.calibration_study.classification_command import claim_table
from projects.calibration_study.tables import fraction, markdown, spread

MEASURES = ('ECE', 'ECE_floor', 'ECE_debiased', 'AdaECE', 'classwise_ECE', 'NLL', 'Brier')
HEADINGS = ('ECE', 'floor', 'debiased', 'AdaECE', 'classwise', 'NLL', 'Brier')
MECHANISM = {
    'entropy': 'entropy',
    'entropy_of_wrong': 'entropy of wrong ones',
    'nll_of_right': 'NLL of right ones',
    'nll_of_wrong': 'NLL of wrong ones',
    'last_layer_norm': 'norm of the last layer',
}
# Names in CLAIMS of losses that are families here.
FAMILY_OF = {'MMCE': 'MMCE', 'IFL-1.5': 'IFL'}
# For all losses of the study; more would begin again.
COLOURS = (
    *(TEXT, APART, NOISE, '#d1495b', '#d1a05b', '#6a8d73', '#8e6c8a'),
    *('#4f81bd', '#e07a3f', '#7f7f3f', '#3d405b'),
)
DRAWN = ('entropy', 'last_layer_norm', 'nll_of_wrong')
PANEL, HEIGHT = 3.1, 2.7  # inches

Found = dict[str, list[dict[str, Any]]]  # by loss, seeds ascending


def results(noise: float) -> Found:
    """Runs that are there with this share of labels drawn anew."""
    contents = [
        json.loads(path.read_text(encoding='utf-8')) for path in cifar.RESULTS.glob('*.json')
    ]
    mine = sorted(
        (each for each in contents if each['noise'] == noise), key=lambda each: each['seed']
    )
    found = {loss: [each for each in mine if each['loss'] == loss] for loss in cifar.LOSSES}
    return {loss: runs for loss, runs in found.items() if runs}


def chosen(found: Found) -> dict[str, str]:
    """The member of each family that counts, where seed 0 of any is there."""
    best = {}
    for family, members in cifar.FAMILIES.items():
        first = {loss: found[loss][0]['fitted_NLL'] for loss in members if loss in found}
        if first:
            best[family] = min(first, key=first.__getitem__)
    return best


def _counting(found: Found) -> Found:
    members = {loss for family in cifar.FAMILIES.values() for loss in family}
    left_out = members - set(chosen(found).values())
    return {loss: runs for loss, runs in found.items() if loss not in left_out}


def tables(noise: float) -> dict[str, str]:
    """The tables by kind; a kind without runs is absent."""
    found = results(noise)
    made = {}
    if found:
        counting = _counting(found)
        made = dict(results=_results(counting), mechanism=_mechanism(counting))
    best = chosen(found)
    if best:
        made['tuning'] = _tuning(found, best)
    claims = _claims(found, best)
    if claims:
        made['claims'] = claim_table(judge_all(claims, _runs(found)))
    return made


def _results(found: Found) -> str:
    rows = []
    for loss, runs in found.items():
        kinds = {'raw': [each['before'] for each in runs]}
        kinds |= {kind: [each['after'][kind] for each in runs] for kind in runs[0]['after']}
        for kind, values in kinds.items():
            cells = [
                spread([each[name] for each in values]) if name in values[0] else ''
                for name in MEASURES
            ]
            errors = [
                spread([each[name] for each in runs]) if kind == 'raw' else ''
                for name in ('train_error', 'error')
            ]
            rows.append([loss, kind, str(len(runs)), *errors, *cells])
    return markdown(['loss', 'scaling', 'seeds', 'in training', 'error', *HEADINGS], rows, words=2)


def _mechanism(found: Found) -> str:
    rows = []
    for loss, runs in found.items():
        last = [each['mechanism'][-1] for each in runs]
        cells = [spread([each[name] for each in last]) for name in MECHANISM]
        rows.append([loss, spread([each['temperature'] for each in runs]), *cells])
    return markdown(['loss', 'T', *MECHANISM.values()], rows)


def _tuning(found: Found, best: dict[str, str]) -> str:
    rows = [
        [loss, fraction(found[loss][0]['fitted_NLL']), 'chosen' if loss == best[family] else '']
        for family, members in cifar.FAMILIES.items()
        for loss in members
        if loss in found
    ]
    return markdown(['loss', 'NLL after T, fitted pictures', ''], rows)


def _claims(found: Found, best: dict[str, str]) -> list[Claim]:
    """Claims of losses that have the same seeds, at least two."""

    def name(loss: str) -> str:
        return best.get(FAMILY_OF.get(loss, ''), loss)

    def seeds(loss: str) -> set[int]:
        return {each['seed'] for each in found.get(loss, [])}

    named = [each._replace(lower=name(each.lower), higher=name(each.higher)) for each in CLAIMS]
    return [
        each
        for each in named
        if seeds(each.lower) == seeds(each.higher) and len(seeds(each.lower)) > 1
    ]


def _runs(found: Found) -> list[Run]:
    return [
        Run(
            each['loss'],
            each['seed'],
            each['error'],
            each['temperature'],
            each['before'],
            each['after']['T by NLL'],
        )
        for runs in found.values()
        for each in runs
    ]


def draw(noises: Sequence[float]) -> Any:
    """What Mukhoti et al. look at, over epochs: a row a noise, a line a loss, a band its seeds.

    Raises:
        DataError: there is no run.
    """
    rows = {noise: _counting(results(noise)) for noise in noises}
    if not all(rows.values()):
        raise DataError('No run is there: train first.')
    drawing = figure(PANEL * len(DRAWN), HEIGHT * len(rows) + 0.4)
    grid = drawing.subplots(len(rows), len(DRAWN), squeeze=False, sharex=True)
    losses = list(dict.fromkeys(loss for found in rows.values() for loss in found))
    colours = dict(zip(losses, cycle(COLOURS)))
    for line, (noise, found) in zip(grid, rows.items()):
        for axes, name in zip(line, DRAWN):
            _draw_panel(axes, found, name, colours)
            axes.set_title(f'{MECHANISM[name]}, noise {noise:g}', fontsize=8, color=TEXT)
    for axes in grid[-1]:
        axes.set_xlabel('epoch', fontsize=8)
    handles = {
        label: handle
        for line in grid
        for handle, label in zip(*line[0].get_legend_handles_labels())
    }
    drawing.legend(
        list(handles.values()),
        list(handles),
        loc='outside lower center',
        ncols=len(handles),
        fontsize=8,
        frameon=False,
    )
    return drawing


def _draw_panel(axes: Any, found: Found, name: str, colours: dict[str, str]) -> None:
    for loss, runs in found.items():
        epochs = [look['epoch'] for look in runs[0]['mechanism']]
        values = np.array([[look[name] for look in each['mechanism']] for each in runs])
        axes.plot(epochs, values.mean(0), color=colours[loss], label=loss, linewidth=1.2)
        axes.fill_between(
            epochs, values.min(0), values.max(0), color=colours[loss], alpha=0.15, linewidth=0
        )
    axes.tick_params(labelsize=8, length=0)
    axes.grid(color=GRID, linewidth=0.5)
    axes.spines[['top', 'right']].set_visible(False)


def main() -> None:
    """Print the tables, or draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--noise', type=float, nargs='+', default=[0.0], metavar='SHARE')
    parser.add_argument('--figure', type=Path, metavar='FILE', help='draw into this file')
    args = parser.parse_args()
    if args.figure:
        save_figure(draw(args.noise), args.figure)
    else:
        for noise in args.noise:
            print(f'noise {noise:g}', *tables(noise).values(), sep='\n\n')


if __name__ == '__main__':
    cli.run(main)
