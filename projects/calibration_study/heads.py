"""Heads and losses of the score, trained alike, compared by the calibration of their scores.

    python -m projects.calibration_study.heads heads --data bccd
    python -m projects.calibration_study.heads scores --data bccd
    python -m projects.calibration_study.heads --data bccd face_masks --figure FILE.png

Everything is read from the JSON files of `projects.training_study.trainings`, where calibrators
were fitted on the validation split and judged on the test split. The tables have means and standard
deviations over seeds; the noise floor of an error is its .95 quantile. Claims are tested in pairs
of one seed by Student's t, all those of a table together (Holm). Heads keep different detections,
and with them different floors, so between heads the debiased errors are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfl_det.cli import main as cli
from gfl_det.errors import DataError
from gfl_det.evaluation.comparison import holm
from gfl_det.visualization.charts import APART, GRID, NOISE, TEXT, figure, save_figure
from projects.calibration_study.tables import fraction, markdown, paired, spread, verdict
from projects.training_study.arms import SHARED, arm_of, studies

RAW, PLATT, ISOTONIC = 'identity', 'platt', 'isotonic'
NAMES = {
    'gfl': 'GFL',
    'atss': 'ATSS',
    'retinanet': 'RetinaNet',
    'gflv2': 'GFLv2',
    'flsd': 'FLSD-QFL',
    'inverse': 'IFL-QFL',
    'brier': 'Brier-QFL',
    'smooth': 'LS-QFL',
}
METHODS = {
    'heads': (RAW, 'temperature', PLATT, 'linear', ISOTONIC),
    'scores': (RAW, PLATT, ISOTONIC),
}
VIEW_COLUMNS = {
    'all': ('bias', 'count', 'LaECE_0', 'floor', 'debiased', 'LaACE_0', 'D-ECE', 'oLRP', 'AP'),
    'kept': ('bias', 'count', 'LaECE_0', 'floor', 'debiased', 'LaACE_0', 'LRP_0', 'LRP_0_FN'),
}
# The columns about LaECE_0, and headings that differ from the metric's name.
PARTS = {'count': 'LaECE_0_count', 'floor': 'LaECE_0_floor_95', 'debiased': 'LaECE_0_debiased'}
HEADINGS = {'bias': 'score - IoU', 'floor': '.95 floor', 'LRP_0_FN': 'FN_0'}
FIGURE_METHODS = {RAW: ('raw', NOISE), PLATT: ('Platt', '#d1a05b'), ISOTONIC: ('isotonic', APART)}
WIDTH, HEIGHT, MARGIN = 7.5, 2.4, 0.4  # inches; height of a data set's row


class Claim(NamedTuple):
    """That a metric of a view is lower for one arm and method than for another."""

    metric: str
    view: str
    lower: tuple[str, str]  # arm, method
    higher: tuple[str, str]

    def __str__(self) -> str:
        sides = [
            NAMES[arm] + ('' if method == RAW else f', {method}')
            for arm, method in (self.lower, self.higher)
        ]
        name = self.metric.replace('_debiased', ' debiased')
        return f'{name}, {self.view}: {sides[0]} < {sides[1]}'


def _between(metric: str, view: str, lower: str, higher: str, method: str = RAW) -> Claim:
    return Claim(metric, view, (lower, method), (higher, method))


DEBIASED = 'LaECE_0_debiased'
HEAD_CLAIMS = (
    _between('AP', 'all', 'atss', 'gfl'),
    _between('AP', 'all', 'retinanet', 'gfl'),
    _between(DEBIASED, 'all', 'atss', 'gfl'),
    _between(DEBIASED, 'all', 'gfl', 'retinanet'),
    _between(DEBIASED, 'kept', 'gfl', 'atss'),
    *(Claim('LaECE_0', 'all', (arm, ISOTONIC), (arm, RAW)) for arm in ('gfl', 'atss', 'retinanet')),
    _between(DEBIASED, 'all', 'gfl', 'atss', ISOTONIC),
    _between(DEBIASED, 'all', 'gfl', 'retinanet', ISOTONIC),
    Claim('AP', 'all', ('gfl', ISOTONIC), ('gfl', RAW)),
)
SCORE_CLAIMS = (
    _between('AP', 'all', 'gfl', 'gflv2'),
    _between('AP', 'all', 'flsd', 'gfl'),
    _between(DEBIASED, 'all', 'gflv2', 'gfl'),
    _between(DEBIASED, 'all', 'flsd', 'gfl'),
    _between(DEBIASED, 'all', 'brier', 'gfl'),
    _between(DEBIASED, 'all', 'smooth', 'gfl'),
    _between(DEBIASED, 'all', 'gfl', 'inverse'),
    _between(DEBIASED, 'kept', 'inverse', 'gfl'),
    _between(DEBIASED, 'all', 'inverse', 'gfl', ISOTONIC),
    _between(DEBIASED, 'all', 'gfl', 'smooth', ISOTONIC),
)
CLAIMS = {'heads': HEAD_CLAIMS, 'scores': SCORE_CLAIMS}

Runs = dict[str, dict[int, dict[str, Any]]]  # by arm and seed


def runs_of(study: str, data: str) -> Runs:
    """Finished runs of a study and of the arm that it compares with.

    Raises:
        DataError: there is none.
    """
    from projects.training_study.trainings import by_seed  # loads mmdet

    pairs = dict.fromkeys([SHARED, *((study, arm.name) for arm in studies()[study])])
    found = {pair[1]: by_seed(*pair, data) for pair in pairs if arm_of(*pair).calibrated}
    found = {arm: runs for arm, runs in found.items() if runs}
    if not found:
        raise DataError(f'No run of {study} on {data} is there: train first.')
    return found


def values_of(runs: dict[int, dict[str, Any]], view: str, method: str, metric: str) -> list[float]:
    """A metric of one arm, seed by seed; NaN where there is none."""
    return [
        runs[seed]['calibration'][view].get(method, {}).get(metric, float('nan'))
        for seed in sorted(runs)
    ]


def table(found: Runs, view: str, methods: Sequence[str]) -> str:
    """Means and standard deviations over seeds, an arm and a calibrator a row."""
    rows = []
    for arm, runs in found.items():
        for method in methods:
            cells = []
            for column in VIEW_COLUMNS[view]:
                values = values_of(runs, view, method, PARTS.get(column, column))
                cells.append(f'{np.mean(values):.0f}' if column == 'count' else spread(values))
            shown = 'raw' if method == RAW else method
            rows.append([NAMES[arm], shown, str(len(runs)), *cells])
    head = [HEADINGS.get(column, column) for column in VIEW_COLUMNS[view]]
    return markdown(['detector', 'calibrator', 'seeds', *head], rows, words=2)


def claim_table(found: Runs, claims: Sequence[Claim]) -> str:
    """Each claim's difference with its interval, p values and verdict."""
    tested = {}
    for claim in claims:
        (lower, first), (higher, second) = claim.lower, claim.higher
        if lower not in found or higher not in found:
            continue
        seeds = sorted(set(found[lower]) & set(found[higher]))
        sides = [
            values_of({seed: found[arm][seed] for seed in seeds}, claim.view, method, claim.metric)
            for arm, method in ((lower, first), (higher, second))
        ]
        tested[claim] = paired([one - other for one, other in zip(*sides)])
    adjusted = holm({str(claim): each.p for claim, each in tested.items()})
    rows = []
    for claim, each in tested.items():
        p = adjusted[str(claim)]
        rows.append([str(claim), str(each), fraction(each.p), fraction(p), verdict(each.mean, p)])
    return markdown(['claim', 'difference [.95]', 'p', 'p of all', ''], rows)


def draw(data: Sequence[str]) -> Any:
    """LaECE_0 of each head, raw and calibrated, with the .95 noise floor of each as a line."""
    drawing = figure(WIDTH, MARGIN + HEIGHT * len(data))
    grid = drawing.subplots(len(data), len(VIEW_COLUMNS), squeeze=False, sharey=True)
    for row, name in zip(grid, data):
        for axes, view in zip(row, VIEW_COLUMNS):
            _draw_view(axes, runs_of('heads', name), view)
            axes.set_title(f'{name.replace("_", " ")}, {view}', fontsize=8, color=TEXT)
    for axes in grid[:, 0]:
        axes.set_ylabel('LaECE_0', fontsize=8)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc='outside lower center', ncols=4, fontsize=8, frameon=False)
    return drawing


def _draw_view(axes: Any, found: Runs, view: str) -> None:
    width = 0.8 / len(FIGURE_METHODS)
    for number, (method, (label, colour)) in enumerate(FIGURE_METHODS.items()):
        places = np.arange(len(found)) + (number - (len(FIGURE_METHODS) - 1) / 2) * width
        values = [values_of(runs, view, method, 'LaECE_0') for runs in found.values()]
        floors = [
            float(np.mean(values_of(runs, view, method, PARTS['floor']))) for runs in found.values()
        ]
        axes.bar(places, [np.mean(each) for each in values], 0.9 * width, color=colour, label=label)
        for place, each in zip(places, values):  # every seed
            axes.plot([place] * len(each), each, '.', color=TEXT, markersize=3)
        axes.hlines(
            floors,
            places - width / 2,
            places + width / 2,
            color='#d1495b',
            linewidth=2,
            label='.95 noise floor' if number == 0 else None,
        )
    axes.set_xticks(range(len(found)), [NAMES[arm] for arm in found], fontsize=8)
    axes.tick_params(labelsize=8, length=0)
    axes.grid(axis='y', color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right', 'left']].set_visible(False)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('study', nargs='?', choices=list(CLAIMS), default='heads')
    parser.add_argument('--data', default=['bccd'], nargs='+', metavar='NAME')
    parser.add_argument('--figure', type=Path, metavar='FILE', help='draw heads into this file')
    return parser.parse_args(argv)


def main() -> None:
    """Print the tables of a study, or draw the figure."""
    args = parse_arguments()
    if args.figure is not None:
        save_figure(draw(args.data), args.figure)
        return
    for data in args.data:
        found = runs_of(args.study, data)
        tables = [table(found, view, METHODS[args.study]) for view in VIEW_COLUMNS]
        print(data, *tables, claim_table(found, CLAIMS[args.study]), sep='\n\n', end='\n\n')


if __name__ == '__main__':
    cli.run(main)
