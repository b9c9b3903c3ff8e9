"""Calibration of a detector that others trained: its scores against IoU, its edges against errors.

    python -m projects.calibration_study.published_weights CONFIG CHECKPOINT
        [--split test] [--halves 5] [--cfg-options KEY=VALUE ...] [--out FILE.json]
    python -m projects.calibration_study.published_weights --figure FILE.png [--out FILE.json]

The detector runs once. Calibrators are fitted on a random half of the images and judged on the
other, over several halvings, in two views: all detections, and those above each class's least LRP.
Beside each calibration error stand its count, the mean and .95 quantile of its noise floor and the
debiased estimate. All is written as JSON, of which the tables and the figure are made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfl_det.calibration.calibrators import Cut, Settings, fit_calibrator
from gfl_det.calibration.distribution import EdgeDetections
from gfl_det.calibration.splits import split_images, take_edge_images
from gfl_det.cli import main as cli
from gfl_det.cli.arguments import add_cfg_options
from gfl_det.evaluation.detections import GroundTruth, read_json
from gfl_det.evaluation.evaluate import evaluate_detections
from gfl_det.evaluation.functional import reliability
from gfl_det.evaluation.matching import TRUE, match
from gfl_det.utils.config import load_config
from gfl_det.utils.files import check_writable, write_json
from gfl_det.visualization.charts import APART, GRID, figure, save_figure
from gfl_det.visualization.report.curves import rank_correlation
from projects.calibration_study.tables import fraction, markdown, spread
from projects.provenance import provenance

RESULTS = Path(__file__).parent / 'results' / 'published-nanodet.json'
VIEWS: dict[str, tuple[Cut, Cut]] = {'all': (0.0, 0.0), 'kept': ('lrp', 'lrp')}
METHODS = ('identity', 'platt', 'isotonic')
ERRORS = ('LaECE_0', 'LaACE_0', 'D-ECE')
PARTS = ('', '_floor', '_floor_95', '_debiased', '_count')
MEASURED = [name + part for name in ERRORS for part in PARTS]
WORDS = {'identity': 'raw', 'platt': 'Platt'}  # of maps, in tables
BINS = np.linspace(0, 1, 11)


class HalfResult(NamedTuple):
    """Metrics of one calibrator and view on the half that it was not fitted on."""

    seed: int
    view: str
    method: str
    metrics: dict[str, float]


def judge_halves(gts: GroundTruth, found: EdgeDetections, halves: int) -> Iterator[HalfResult]:
    """Fit every method on one half and judge it on the other, for each seed and view."""
    for seed in range(halves):
        first, second = split_images(gts, seed)
        fit_gts, fit_found = take_edge_images(gts, found, first)
        judged_gts, judged = take_edge_images(gts, found, second)
        for view, cuts in VIEWS.items():
            for method in METHODS:
                settings = Settings(method, cuts=cuts)
                calibrator = fit_calibrator(fit_found.detections, fit_gts, settings)
                kept = calibrator.apply(judged.detections)[0]
                metrics = evaluate_detections(kept, judged_gts)
                plain = {key: float(metrics[key]) for key in MEASURED}
                yield HalfResult(seed, view, method, plain)


def table(results: Sequence[HalfResult]) -> str:
    """Means and standard deviations over the halves, as Markdown."""
    rows = []
    for view in VIEWS:
        for method in METHODS:
            metrics = [r.metrics for r in results if (r.view, r.method) == (view, method)]
            for name in ERRORS:
                columns = [name + part for part in PARTS[:-1]]
                cells = [[each[column] for each in metrics] for column in columns]
                count = round(np.mean([each[f'{name}_count'] for each in metrics]))
                rows.append(
                    [view, WORDS.get(method, method), name, str(count), *map(spread, cells)]
                )
    head = ['detections', 'map', 'error', 'count', 'value', 'floor', 'floor .95', 'debiased']
    return markdown(head, rows, words=3)


def reliability_bins(gts: GroundTruth, found: EdgeDetections) -> list[dict[str, float]]:
    """Count, mean score and mean IoU of each bin of the score that is not empty, of all classes."""
    (matches,) = match(found.detections, gts, [0.0])
    judged = matches.judged()
    bins = reliability(matches.scores[judged], matches.iou[judged], BINS)
    columns = (np.asarray(each)[0].tolist() for each in (bins.number, bins.score, bins.target))
    rows = [dict(count=count, score=score, iou=iou) for count, score, iou in zip(*columns)]
    return [row for row in rows if row['count']]


def rank_correlations(gts: GroundTruth, found: EdgeDetections) -> list[dict[str, Any]]:
    """Spearman's rank correlations over detections that match a gt box at IoU .5; NaN for none."""
    (matches,) = match(found.detections, gts, [0.5])
    true = matches.state == TRUE
    rows, boxes = matches.row[true], gts.boxes[matches.gt[true]]
    detected = found.detections.boxes[rows]
    error = np.abs(_edges(detected) - _edges(boxes))
    logits = found.logits[rows].astype(float)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    places = np.arange(shares.shape[-1])
    mean = shares @ places
    std = np.sqrt((shares * (places - mean[..., None]) ** 2).sum(-1)) * found.bin_widths[rows]
    side = np.sqrt(detected[:, 2:].prod(1))[:, None].repeat(4, 1)
    pairs = {
        'score, IoU': (matches.scores[true], matches.iou[true]),
        'edge std, edge error': (std, error),
        'box side, edge error': (side, error),
        'edge std / side, edge error / side': (std / side, error / side),
    }
    return [
        dict(
            pair=name,
            count=int(np.size(one)),
            correlation=float(rank_correlation(np.ravel(one), np.ravel(other))),
        )
        for name, (one, other) in pairs.items()
    ]


def _edges(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``(N, 4)`` xywh px as xyxy."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Tables of a file of results, as Markdown: halves, reliability, ranks."""
    bins = [
        [str(round(row['count'])), fraction(row['score']), fraction(row['iou'])]
        for row in content['reliability']
    ]
    ranks = [
        [row['pair'], str(row['count']), fraction(np.array(row['correlation'], float))]
        for row in content['ranks']  # JSON has null for NaN
    ]
    return dict(
        halves=table([HalfResult(**each) for each in content['halves']]),
        reliability=markdown(['count', 'mean score', 'mean IoU'], bins, words=0),
        ranks=markdown(['pair', 'count', 'rank correlation'], ranks),
    )


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw mean IoU over mean score, with the counts of the bins."""
    drawing = figure(5, 4)
    axes = drawing.subplots()
    score, iou = ([row[key] for row in content['reliability']] for key in ('score', 'iou'))
    axes.plot([0, 1], [0, 1], color=GRID)
    axes.plot(score, iou, marker='o', color=APART)
    for row in content['reliability']:
        place = dict(textcoords='offset points', xytext=(-1, 8), ha='center', rotation=90)
        axes.annotate(f'{round(row["count"]):,}', (row['score'], row['iou']), **place)
    axes.set(xlabel='mean score', ylabel='mean IoU', xlim=(0, 1), ylim=(0, 1.1))
    save_figure(drawing, path)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('config', nargs='?', help='a file, or the name of a shipped config')
    parser.add_argument('checkpoint', nargs='?', help='weights of the detector')
    parser.add_argument('--split', choices=('val', 'test'), default='test', help='data (test)')
    parser.add_argument('--halves', type=int, default=5, help='random halvings (5)')
    parser.add_argument('--out', type=Path, default=RESULTS, metavar='FILE.json')
    parser.add_argument('--figure', type=Path, metavar='FILE.png', help='draw what --out holds')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if (args.config is None) != (args.checkpoint is None):
        parser.error('a config needs a checkpoint')
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the detector and judge it."""
    from gfl_det.engine.runner import detect_edges  # loads mmdet

    cfg = load_config(args.config, args.cfg_options)
    gts, found = detect_edges(cfg, args.checkpoint, args.split)
    results = []
    for result in judge_halves(gts, found, args.halves):
        results.append(result._asdict())
        if (result.view, result.method) == ('kept', METHODS[-1]):
            print(f'half {result.seed + 1} of {args.halves}', file=sys.stderr)
    return dict(
        images=len(gts.image_ids),
        halves=results,
        reliability=reliability_bins(gts, found),
        ranks=rank_correlations(gts, found),
    )


def main() -> None:
    """Run the study if a detector is given; print its tables, and draw."""
    args = parse_arguments()
    if args.config:
        check_writable(args.out)
        write_json(args.out, measure(args) | provenance(), indent=1)
    content = read_json(args.out)
    if args.figure:
        draw(content, args.figure)
    print(*tables(content).values(), sep='\n\n')


if __name__ == '__main__':
    cli.run(main)
