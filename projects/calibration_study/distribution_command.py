"""The command line of ``tools/prove_distribution.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gfl_det.cli.arguments import add_cfg_options
from gfl_det.errors import ConfigError
from gfl_det.utils.config import load_config
from gfl_det.utils.files import check_writable, write_json
from projects.calibration_study.distribution import (
    METRICS,
    SUPPRESSIONS,
    VIEWS,
    Outcome,
    compare,
    pool,
)
from projects.calibration_study.tables import check_name, markdown, spread
from projects.provenance import provenance

SPLITS = ('val', 'test')


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Predict the IoU of detections from their scores, their edges and their '
        'neighbours; judge that against isotonic regression of the scores on other images.'
    )
    parser.add_argument('name', help='of the data and detector, for the table')
    parser.add_argument('config', help='of a GFL detector: a file, or the name of one')
    parser.add_argument('checkpoints', nargs='+', help='its weights; several are averaged')
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=SPLITS,
        default=['val'],
        help='held-out data of the config that are pooled and cut in two at random',
    )
    parser.add_argument('--seeds', type=int, default=5, help='random cuts, at least 2')
    parser.add_argument(
        '--suppressions',
        action='store_true',
        help='also judge isotonic maps after a tuned NMS threshold and after soft-NMS; runs the '
        f'detector {len(SUPPRESSIONS)} times more',
    )
    add_cfg_options(parser)
    parser.add_argument('--out', type=Path, help='file for all values')
    return parser.parse_args(argv)


def prove(args: argparse.Namespace) -> None:
    """Run the detector, judge every calibrator, print the table, write the JSON file.

    Raises:
        GFLDetError: an argument is out of range, or the detector or its data cannot be used.
    """
    from gfl_det.engine.runner import detect_edges  # loads mmdet

    if args.seeds < 2:
        raise ConfigError(f'--seeds is at least 2, as cuts are compared, not {args.seeds}')
    if args.out is None:
        check_name(args.name)
    out = args.out or Path('work_dirs/proof') / f'distribution_{args.name}.json'
    check_writable(out)
    outcomes: list[Outcome] = []
    for number, checkpoint in enumerate(args.checkpoints):
        cfg = load_config(args.config, args.cfg_options)
        gts, found = pool([detect_edges(cfg, checkpoint, each) for each in args.splits])
        suppressed = {}
        for kind, nms in SUPPRESSIONS.items() if args.suppressions else ():
            cfg.model.test_cfg.nms = nms
            parts = [detect_edges(cfg, checkpoint, each) for each in args.splits]
            suppressed[kind] = pool(parts)[1]
        for outcome in compare(args.name, gts, found, args.seeds, suppressed):
            outcomes.append(outcome)
            if outcome.calibrator == 'raw' and outcome.view == 'all':
                place = f'{number + 1}/{len(args.checkpoints)}'
                print(f'[{place}] cut {outcome.seed + 1} of {args.seeds}', file=sys.stderr)
    content = dict(outcomes=[each._asdict() for each in outcomes], **provenance())
    write_json(out, content, indent=1)
    print(table(outcomes), f'values: {out}', sep='\n\n')


def table(outcomes: Sequence[Outcome]) -> str:
    """Means and deviations as Markdown, and LaACE_0 against isotonic regression's."""
    rows = []
    for view in VIEWS:
        reference = _values(outcomes, 'isotonic', view, 'LaACE_0').mean()
        for calibrator in dict.fromkeys(each.calibrator for each in outcomes):
            cells = [_values(outcomes, calibrator, view, metric) for metric in METRICS]
            change = f'{100 * (cells[1].mean() / reference - 1):+.0f} %'
            rows.append([view, calibrator, *(spread(each.tolist()) for each in cells), change])
    head = ['detections', 'reads', *METRICS, 'LaACE_0 to isotonic']
    return markdown(head, rows, words=2)


def _values(outcomes: Sequence[Outcome], calibrator: str, view: str, metric: str) -> np.ndarray:
    return np.array(
        [
            each.metrics[metric]
            for each in outcomes
            if (each.calibrator, each.view) == (calibrator, view)
        ]
    )
